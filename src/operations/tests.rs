//! What holds of every table, whatever it says.

use std::collections::{BTreeMap, BTreeSet};

use super::snapshot::ShareStrategy;
use super::{RunningVm, WorkspaceState, delete, down, label, restore, snapshot, table, up};
use crate::engine::history::MAX_TRANSITIONS;
use crate::engine::record;
use crate::engine::transition::{Generation, Operation, UndoPolicy};
use crate::world::{BootId, Machine, Origin, Slot, SnapshotId, VmmVersion, World};

fn vm(former_disk: Option<Generation>) -> RunningVm {
    let slot = Slot::all().next().unwrap();
    let generation = Generation(3);
    let machine = Machine { vmm: generation, disk: generation, memory: generation, slot, shares: true };
    RunningVm { machine, former_disk, from: None, condemned: false }
}

fn origin() -> Origin {
    let vmm = VmmVersion { major: 53, text: "v53.0".to_owned() };
    Origin { vmm, cpu: BTreeSet::new(), shape: BTreeMap::new() }
}

/// Every shape that a table can have.
fn tables() -> Vec<Operation<World>> {
    let snapshot = SnapshotId(Generation(2));
    let boot = BootId([7; 16]);
    let slot = Slot::all().next().unwrap();
    let mut tables = vec![
        up::table(up::UpPlan { disk: None, shares: true }),
        up::table(up::UpPlan { disk: Some(Generation(1)), shares: false }),
        restore::table(restore::RestorePlan { snapshot, slot, boot, shares: true, former_disk: None }),
        delete::table(delete::DeletePlan { snapshot, state: WorkspaceState::Down { disk: None } }),
    ];
    for former in [None, Some(Generation(1))] {
        for ask in [false, true] {
            tables.push(down::table(down::DownPlan { vm: vm(former), ask }));
        }
        for strategy in [ShareStrategy::InPlace, ShareStrategy::Detach, ShareStrategy::RollOver] {
            for stop in [false, true] {
                let origin = origin();
                let plan = snapshot::SnapshotPlan {
                    vm: vm(former),
                    boot,
                    name: None,
                    shares: true,
                    strategy,
                    stop,
                    origin,
                };
                tables.push(snapshot::table(plan));
            }
        }
    }
    tables
}

#[test]
fn every_table_has_one_commit_point_and_policies_to_match() {
    for table in tables() {
        let commit = table.commit_point().unwrap();
        for (index, transition) in table.transitions().enumerate() {
            let context = format!("{} of {}", transition.label(), table.label);
            let forbidden = matches!(transition.policy(), UndoPolicy::Forbidden(_));
            assert!(index != commit || forbidden, "{context} is the commit point");
            assert!(index >= commit || !forbidden, "{context} comes before the commit point");
            let undoable = transition.policy() == UndoPolicy::Undoable;
            assert!(index <= commit || !undoable, "{context} comes after the commit point");
            if let UndoPolicy::Nothing(why) | UndoPolicy::Forbidden(why) = transition.policy() {
                assert!(why.len() > 10, "{context} does not say why");
            }
            assert!(!transition.limit().is_zero(), "{context} has no time");
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

#[test]
fn a_number_on_disk_means_one_thing() {
    let mut names = BTreeMap::new();
    for table in tables() {
        let mut here = BTreeSet::new();
        for transition in table.transitions() {
            assert!(here.insert(transition.id()), "{} twice in {}", transition.label(), table.label);
            // The same number may stand in several tables, for the same thing.
            let name = *names.entry(transition.id()).or_insert_with(|| transition.label());
            assert_eq!(name, transition.label(), "{:?} has two names", transition.id());
        }
    }
    assert!(names.len() > 25);
}

#[test]
fn the_words_to_avoid_are_avoided() {
    let avoided = ["abort", "cancel", "transaction", "task", "job", "phase", "step", "manager"];
    for table in tables() {
        let labels = table.stages().iter().map(|stage| stage.label);
        for label in labels.chain(table.transitions().map(|transition| transition.label())) {
            assert!(!avoided.iter().any(|word| label.contains(word)), "{label}");
        }
    }
}

#[test]
fn what_a_plan_was_is_read_back_from_its_bytes() {
    let plan = down::DownPlan { vm: vm(Some(Generation(1))), ask: true };
    let bytes = record::encode_payload(&plan).unwrap();
    assert_eq!(record::decode_payload::<down::DownPlan>(&bytes).unwrap(), plan);
    assert_eq!(table(down::ID, &bytes).unwrap().label, label(down::ID));
    assert!(table(down::ID, &bytes[1..]).is_err());
    assert!(table(crate::engine::transition::OperationId(99), &bytes).is_err());
}

#[test]
fn a_standing_is_read_back_and_nothing_else_is() {
    for state in [WorkspaceState::Down { disk: None }, WorkspaceState::Up(vm(None))] {
        let bytes = record::encode_payload(&state).unwrap();
        assert_eq!(WorkspaceState::of(&bytes).unwrap(), state);
        assert!(WorkspaceState::of(&bytes[..bytes.len() - 1]).is_err());
    }
    assert_eq!(WorkspaceState::of(&[]).unwrap(), WorkspaceState::Down { disk: None });
    // A slot that no host has.
    let mut bytes = record::encode_payload(&WorkspaceState::Up(vm(None))).unwrap();
    bytes[28] = 64;
    assert!(WorkspaceState::of(&bytes).is_err());
}
