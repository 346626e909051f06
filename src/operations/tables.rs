//! The tables of all operations, as a journal names them and as the documentation draws them.

use std::collections::{BTreeMap, BTreeSet};

use super::delete::DeletePlan;
use super::down::{DownPlan, StopMode};
use super::equip::EquipPlan;
use super::restore::RestorePlan;
use super::snapshot::{ShareStrategy, SnapshotPlan};
use super::state::{RunningVm, VmCondition, WorkspaceState};
use super::up::UpPlan;
use super::{delete, down, equip, ids, restore, snapshot, up};
use crate::engine::record::{self, PayloadError};
use crate::engine::transition::{Operation, OperationId};
use crate::world::{
    BootId, Generation, KeptDiskId, Machine, Origin, ReadyTimeout, Slot, SnapshotId, VmmVersion, World,
};

/// An operation that this nixbox does not have.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum NoTable {
    #[error("the journal has an operation of kind {}, which this nixbox does not have", .0.0)]
    Unknown(OperationId),
    #[error("the parameters of the operation in the journal are not what this nixbox writes")]
    Parameters(#[from] PayloadError),
}

/// The table of an operation, as the journal names it.
///
/// # Errors
/// If there is no such operation, or if the parameters are not its own.
pub fn table(id: OperationId, parameters: &[u8]) -> Result<Operation<World>, NoTable> {
    Ok(match id {
        ids::UP => up::table(UpPlan::of(parameters)?),
        ids::DOWN => down::table(record::decode_payload(parameters)?),
        ids::SNAPSHOT => snapshot::table(SnapshotPlan::of(parameters)?),
        ids::RESTORE => restore::table(RestorePlan::of(parameters)?),
        ids::DELETE => delete::table(record::decode_payload(parameters)?),
        ids::EQUIP => equip::table(record::decode_payload(parameters)?),
        unknown => return Err(NoTable::Unknown(unknown)),
    })
}

/// The name of an operation for people.
#[must_use]
pub fn label(id: OperationId) -> &'static str {
    match id {
        ids::UP => "up",
        ids::DOWN => "down",
        ids::SNAPSHOT => "snapshot",
        ids::RESTORE => "restore",
        ids::DELETE => "delete",
        ids::EQUIP => "equip",
        _ => "unknown",
    }
}

/// Every table that an operation can have, with made-up parameters, and the command that it is drawn under. The tables
/// of one command follow each other, and the first of them has all transitions that any of them has.
///
/// For tests and documentation: nothing runs these.
///
/// # Panics
/// If there were no slots; there always are.
#[must_use]
pub fn tables() -> Vec<(&'static str, Operation<World>)> {
    let generation = Generation(3);
    let (snapshot, boot) = (SnapshotId(Generation(2)), BootId([7; 16]));
    let Some(slot) = Slot::all().next() else { unreachable!("Slot::COUNT is not 0") };
    let vm = |former_disk| {
        let machine = Machine { vmm: generation, disk: generation, memory: generation, slot, shares: true };
        RunningVm { machine, former_disk, from: None, condition: VmCondition::Good, boot: None }
    };
    let former_disks = [Some(Generation(1)), None];
    let timeout = ReadyTimeout::DEFAULT;
    let mut tables = Vec::new();
    let (shares, keep) = (true, false);
    for (disk, scripts) in [(None, true), (Some(Generation(1)), false)] {
        let plan = UpPlan { disk, back_to: None, shares, timeout, keep, scripts };
        tables.push(("up", up::table(plan)));
    }
    let back_to = Some(KeptDiskId { kept_by: generation, disk: Generation(1) });
    for scripts in [true, false] {
        let plan = UpPlan { disk: Some(Generation(2)), back_to, shares, timeout, keep, scripts };
        tables.push(("up --disk", up::table(plan)));
    }
    for mode in [StopMode::Ordinary, StopMode::WithoutScripts, StopMode::ClearAway] {
        tables.extend(former_disks.map(|former| ("down", down::table(DownPlan { vm: vm(former), mode }))));
    }
    for (command, stop) in [("snapshot", false), ("snapshot --stop", true)] {
        for strategy in [ShareStrategy::Detach, ShareStrategy::InPlace, ShareStrategy::RollOver] {
            tables.extend(former_disks.map(|former| {
                let vmm = VmmVersion { major: 53, text: "v53.0".to_owned() };
                let plan = SnapshotPlan {
                    vm: vm(former),
                    boot,
                    name: None,
                    shares,
                    strategy,
                    stop,
                    origin: Origin { vmm, cpu: BTreeSet::new(), shape: BTreeMap::new() },
                    gives_back: true,
                    scripts: former.is_some(),
                    precopies: true,
                };
                (command, snapshot::table(plan))
            }));
        }
    }
    for scripts in [true, false] {
        let plan = RestorePlan { snapshot, slot, boot, shares, former_disk: None, timeout, keep, scripts };
        tables.push(("restore", restore::table(plan)));
    }
    tables.push(("equip", equip::table(EquipPlan { vm: vm(None), before: None, boot })));
    let state = WorkspaceState::Down { disk: None };
    tables.push(("delete", delete::table(DeletePlan { snapshot, state })));
    tables
}
