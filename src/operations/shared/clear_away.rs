//! What comes after the commit point of an operation that removes something: each transition can only go forward.
//!
//! Removing what is not there succeeds, so that recovery removes again where it finds an intent alone.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{SeamCall, Unprobed};
use crate::engine::transition::{ErasedTransition, Operation, TransitionId, TransitionSpec};
use crate::operations::ids;
use crate::operations::limits::QUICK;
use crate::world::{Generation, KeptDiskId, Machine, SnapshotId, World};

type Removal = Box<dyn ErasedTransition<World>>;

fn removal<I>(id: TransitionId, label: &'static str, what: I, apply: SeamCall<I, ()>) -> Removal
where
    I: Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let spec = TransitionSpec::never_undone(id, label, "comes after the commit point", QUICK);
    Box::new(Unprobed { spec, intent: what, apply })
}

/// A disk that the VM's disk has taken the place of, or the VM's own disk if another takes its place again.
#[derive(Debug, Clone, Copy)]
pub(in crate::operations) enum FormerDisk {
    /// It is the disk of a session, and kept as long as the configuration says.
    Kept(Generation),
    /// It is a clone of a snapshot's disk, and removed.
    Removed(Generation),
}

/// Adds the stages in which all of a VM goes but its disk: the VMM and what it used, then one of two disks, and the slot last, so that no other VM takes the slot while its network is still there. The built record
/// goes with the slot, because a nixbox that clears away needs it until everything else is gone.
pub(in crate::operations) fn clear_away(
    operation: Operation<World>,
    machine: &Machine,
    former: Option<FormerDisk>,
) -> Operation<World> {
    let Machine { vmm, memory, slot, .. } = *machine;
    let remove: SeamCall<Generation, ()> = |context, disk| context.world.disk.remove(*disk);
    // The name that the disk gets is the same in a recovery, which has the generation of the operation.
    let keep: SeamCall<Generation, ()> =
        |context, disk| context.world.disk.retire(KeptDiskId { disk: *disk, kept_by: context.generation });
    let retired = former.map(|former| {
        let (disk, apply) = match former {
            FormerDisk::Kept(disk) => (disk, keep),
            FormerDisk::Removed(disk) => (disk, remove),
        };
        removal(ids::RETIRE_DISK, "retire the former disk", disk, apply)
    });
    operation
        .stage(
            "clear away",
            vec![
                removal(ids::REMOVE_VMM, "VMM", vmm, |context, vmm| context.world.vmm.stop(*vmm)),
                removal(ids::REMOVE_NETWORK, "network", slot, |context, slot| {
                    context.world.network.remove(*slot)
                }),
                removal(ids::REMOVE_SHARES, "shares", vmm, |context, vmm| context.world.shares.stop(*vmm)),
                removal(ids::REMOVE_MEMORY, "memory", memory, |context, memory| {
                    context.world.memory.remove(*memory)
                }),
            ],
        )
        .stage_if(retired.is_some(), "former disk", retired.into_iter().collect())
        .stage(
            "release slot",
            vec![
                removal(ids::RELEASE_SLOT, "release slot", slot, |context, slot| {
                    context.world.slots.release(*slot)
                }),
                removal(ids::REMOVE_RECORD, "built record", memory, |context, memory| {
                    context.world.records.remove(*memory)
                }),
            ],
        )
}

/// Removes a snapshot that is in the trash.
pub(in crate::operations) fn purge(id: SnapshotId) -> Removal {
    removal(ids::PURGE, "remove", id, |context, id| context.world.catalog.purge(*id))
}
