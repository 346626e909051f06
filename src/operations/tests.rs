//! What holds for every table of every operation.

use std::collections::{BTreeMap, BTreeSet};

use super::down::{DownPlan, StopMode};
use super::restore::RestorePlan;
use super::snapshot::{ShareStrategy, SnapshotPlan};
use super::up::UpPlan;
use super::{RunningVm, VmCondition, WorkspaceState, ids, label, table, tables};
use crate::engine::history::MAX_TRANSITIONS;
use crate::engine::record;
use crate::engine::transition::{Generation, OperationId, UndoPolicy};
use crate::world::{
    BootId, KeptDiskId, Machine, Origin, ReadyTimeout, Slot, SnapshotId, SnapshotName, VmmVersion,
};

fn vm(former_disk: Option<Generation>) -> RunningVm {
    let slot = Slot::all().next().unwrap();
    let generation = Generation(3);
    let machine = Machine { vmm: generation, disk: generation, memory: generation, slot, shares: true };
    RunningVm { machine, former_disk, from: None, condition: VmCondition::Good, boot: None }
}

#[test]
fn every_table_has_one_commit_point_and_policies_to_match() {
    for (_, table) in tables() {
        let commit = table.commit_point().unwrap();
        for (index, transition) in table.transitions().enumerate() {
            let context = format!("{} of {}", transition.spec().label, table.label);
            let forbidden = matches!(transition.spec().undo, UndoPolicy::Forbidden(_));
            assert!(index != commit || forbidden, "{context} is the commit point");
            assert!(index >= commit || !forbidden, "{context} comes before the commit point");
            let undoable = transition.spec().undo == UndoPolicy::Undoable;
            assert!(index <= commit || !undoable, "{context} comes after the commit point");
            if let UndoPolicy::Nothing(why) | UndoPolicy::Forbidden(why) = transition.spec().undo {
                assert!(why.len() > 10, "{context} does not say why");
            }
            assert!(!transition.spec().limit.is_zero(), "{context} has no time");
        }
        assert!(table.transitions().count() < usize::from(MAX_TRANSITIONS));
        let stage = &table.stages()[table
            .stages()
            .iter()
            .scan(0, |seen, stage| {
                *seen += stage.transitions.len();
                Some(*seen)
            })
            .position(|seen| seen > commit)
            .unwrap()];
        assert_eq!(stage.transitions.len(), 1, "the commit point of {} is alone", table.label);
    }
}

/// Every id on disk and its label, as they are written to journals.
const ON_DISK: [(u16, &str); 48] = [
    (1, "claim slot"),
    (2, "network"),
    (3, "shares"),
    (4, "start VMM"),
    (5, "SSH-ready"),
    (6, "inject credentials"),
    (7, "mount shares"),
    (8, "pre-up scripts"),
    (9, "post-up scripts"),
    (10, "pre-down scripts"),
    (11, "post-down scripts"),
    (12, "VMM"),
    (13, "network"),
    (14, "shares"),
    (15, "memory"),
    (16, "release slot"),
    (17, "retire the former disk"),
    (18, "remove"),
    (19, "entropy and clock"),
    (20, "disk"),
    (21, "memory"),
    (22, "boot"),
    (25, "stop guest"),
    (26, "rename to trash"),
    (30, "clone disk"),
    (31, "fill RAM"),
    (32, "load"),
    (33, "resume"),
    (40, "stage"),
    (41, "wipe credentials"),
    (42, "detach shares"),
    (43, "pause"),
    (44, "clone disk"),
    (45, "VMM state"),
    (46, "copy RAM"),
    (47, "resume"),
    (48, "commit"),
    (49, "flush disk"),
    (50, "built record"),
    (51, "built record"),
    (52, "take the kept disk"),
    (53, "give back files"),
    (54, "same boot"),
    (55, "after-up scripts"),
    (56, "after-restore scripts"),
    (57, "before-snapshot scripts"),
    (58, "precopy disk"),
    (59, "precopy RAM"),
];

#[test]
fn ids_on_disk_are_unique_and_stay_as_they_are() {
    let mut found = BTreeMap::new();
    for (_, table) in tables() {
        let mut here = BTreeSet::new();
        for spec in table.transitions().map(|transition| transition.spec()) {
            assert!(here.insert(spec.id), "{} twice in {}", spec.label, table.label);
            // The same id may be in several tables, for the same transition.
            let label = *found.entry(spec.id.0).or_insert(spec.label);
            assert_eq!(label, spec.label, "{:?} has two labels", spec.id);
        }
    }
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ON_DISK);
    let operations = tables().into_iter().map(|(_, table)| (table.id.0, table.label));
    let operations: BTreeSet<_> = operations.collect();
    let expected = [(1, "up"), (2, "down"), (3, "snapshot"), (4, "restore"), (5, "delete"), (6, "equip")];
    assert_eq!(operations, BTreeSet::from(expected));
    for (id, expected) in expected {
        assert_eq!(label(OperationId(id)), expected);
    }
}

/// `ids.rs` is the whole list: no constant of it is unused, and none has a number that another one has.
#[test]
fn the_list_of_ids_is_the_one_that_the_tables_use() {
    let numbers = |kind: &str| -> Vec<u16> {
        let lines = include_str!("ids.rs").lines().filter_map(|line| line.split_once(kind));
        lines.map(|(_, number)| number.trim_end_matches(");").parse().unwrap()).collect()
    };
    assert_eq!(numbers("= TransitionId("), ON_DISK.map(|(id, _)| id));
    assert_eq!(numbers("= OperationId("), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn labels_contain_no_word_to_avoid() {
    let avoided = ["abort", "cancel", "transaction", "task", "job", "phase", "step", "manager"];
    for (_, table) in tables() {
        let labels = table.stages().iter().map(|stage| stage.label);
        for label in labels.chain(table.transitions().map(|transition| transition.spec().label)) {
            assert!(!avoided.iter().any(|word| label.contains(word)), "{label}");
        }
    }
}

#[test]
fn parameters_are_read_back_from_their_bytes() {
    let plan = DownPlan { vm: vm(Some(Generation(1))), mode: StopMode::Ordinary };
    let bytes = record::encode_payload(&plan).unwrap();
    assert_eq!(record::decode_payload::<DownPlan>(&bytes).unwrap(), plan);
    assert_eq!(table(ids::DOWN, &bytes).unwrap().label, label(ids::DOWN));
    assert!(table(ids::DOWN, &bytes[1..]).is_err());
    assert!(table(OperationId(99), &bytes).is_err());
}

#[test]
fn parameters_of_an_earlier_nixbox_are_read() {
    let (disk, timeout) = (Some(Generation(4)), ReadyTimeout::DEFAULT);
    let bytes = record::encode_payload(&(disk, true)).unwrap();
    assert_eq!(
        UpPlan::of(&bytes).unwrap(),
        UpPlan { disk, back_to: None, shares: true, timeout, keep: false, scripts: false }
    );
    let (snapshot, boot) = (SnapshotId(Generation(2)), BootId([7; 16]));
    let slot = Slot::all().next().unwrap();
    let bytes = record::encode_payload(&(snapshot, slot, boot, false, disk)).unwrap();
    let (shares, keep, scripts) = (false, true, false);
    let plan = RestorePlan { snapshot, slot, boot, shares, former_disk: disk, timeout, keep: false, scripts };
    assert_eq!(RestorePlan::of(&bytes).unwrap(), plan);
    let bytes = record::encode_payload(&(snapshot, slot, boot, false, disk, timeout, keep)).unwrap();
    let plan = RestorePlan { keep, ..plan };
    assert_eq!(RestorePlan::of(&bytes).unwrap(), plan);
    let plan = RestorePlan { scripts: true, ..plan };
    assert_eq!(RestorePlan::of(&record::encode_payload(&plan).unwrap()).unwrap(), plan);
    let bytes = record::encode_payload(&(vm(disk), true)).unwrap();
    let plan = DownPlan { vm: vm(disk), mode: StopMode::Ordinary };
    assert_eq!(record::decode_payload::<DownPlan>(&bytes).unwrap(), plan);
    // A snapshot that an earlier nixbox began has no backup to give back.
    let vmm = VmmVersion { major: 53, text: "v53.0".to_owned() };
    let origin = Origin { vmm, cpu: BTreeSet::new(), shape: BTreeMap::new() };
    let (vm, strategy, name) = (vm(disk), ShareStrategy::RollOver, None::<SnapshotName>);
    let older = record::encode_payload(&(vm, boot, &name, true, strategy, false, &origin)).unwrap();
    let former = record::encode_payload(&(vm, boot, &name, true, strategy, false, &origin, true)).unwrap();
    let (shares, stop, gives_back) = (true, false, false);
    let (scripts, precopies) = (false, false);
    let plan =
        SnapshotPlan { vm, boot, name, shares, strategy, stop, origin, gives_back, scripts, precopies };
    assert_eq!(SnapshotPlan::of(&older).unwrap(), plan);
    assert_eq!(SnapshotPlan::of(&former).unwrap(), SnapshotPlan { gives_back: true, ..plan.clone() });
    let has =
        |id, bytes: &[u8]| table(ids::SNAPSHOT, bytes).unwrap().transitions().any(|one| one.spec().id == id);
    let newer = record::encode_payload(&SnapshotPlan { gives_back: true, precopies: true, ..plan }).unwrap();
    for id in [ids::GIVE_BACK, ids::PRECOPY_DISK, ids::PRECOPY_MEMORY] {
        assert!(!has(id, &older) && has(id, &newer));
    }
    let back_to = Some(KeptDiskId { kept_by: Generation(7), disk: Generation(3) });
    let former = record::encode_payload(&(disk, back_to, true, timeout, true)).unwrap();
    let plan = UpPlan { disk, back_to, shares: true, timeout, keep: true, scripts: false };
    assert_eq!(UpPlan::of(&former).unwrap(), plan);
    let plan = UpPlan { scripts: true, ..plan };
    assert_eq!(UpPlan::of(&record::encode_payload(&plan).unwrap()).unwrap(), plan);
    for (id, cut) in [(ids::UP, 1), (ids::RESTORE, 1), (ids::DOWN, 1)] {
        assert!(table(id, &bytes[..bytes.len() - cut]).is_err(), "{id:?}");
    }
}

#[test]
fn a_state_is_read_back_and_other_bytes_are_refused() {
    let conditions = [
        VmCondition::Good,
        VmCondition::Condemned,
        VmCondition::NoClock,
        VmCondition::NoEntropy,
        VmCondition::LeftRunning,
    ];
    let up = conditions.map(|condition| WorkspaceState::Up(RunningVm { condition, ..vm(None) }));
    for (byte, state) in (0..).zip(up) {
        // The last byte was a truth value in older journals.
        assert_eq!(record::encode_payload(&state).unwrap().last(), Some(&byte));
    }
    for state in up.into_iter().chain([WorkspaceState::Down { disk: None }]) {
        let bytes = record::encode_payload(&state).unwrap();
        assert_eq!(WorkspaceState::of(&bytes).unwrap(), state);
        assert!(WorkspaceState::of(&bytes[..bytes.len() - 1]).is_err());
    }
    assert_eq!(WorkspaceState::of(&[]).unwrap(), WorkspaceState::Down { disk: None });
    // A slot number that no host has.
    let mut bytes = record::encode_payload(&WorkspaceState::Up(vm(None))).unwrap();
    bytes[28] = 65;
    assert!(WorkspaceState::of(&bytes).is_err());
}
