//! Sweeping up: what bears the mark of this workspace and belongs to neither its VM nor its disk.
//!
//! The journal knows of everything that an operation made, so there is nothing to sweep while it is kept. It is for a
//! journal that was lost, and for things that were put back by hand. Done while no operation is open and under the
//! lock; it is not journaled, since doing it again finds what is left. Uses the seams and nothing else.

use super::WorkspaceState;
use super::limits::{LONG, LOOK, QUICK, within};
use crate::engine::transition::{Failure, Generation};
use crate::world::{Machine, Presence, Slot, SnapshotState, VmmState, World};

/// Something that was removed because it belonged to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// A VMM process.
    Vmm(Generation),
    /// Share daemons.
    Shares(Generation),
    /// A RAM file.
    Memory(Generation),
    /// Disk images.
    Disk(Generation),
    /// The staging directory, or what was in the trash, of a snapshot.
    Snapshot(Generation),
    /// A slot, with its network.
    Slot(Slot),
}

impl std::fmt::Display for Swept {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vmm(generation) => write!(formatter, "the VMM of generation {generation}"),
            Self::Shares(generation) => write!(formatter, "the share daemons of generation {generation}"),
            Self::Memory(generation) => write!(formatter, "the RAM of generation {generation}"),
            Self::Disk(generation) => write!(formatter, "the disk images of generation {generation}"),
            Self::Snapshot(generation) => write!(formatter, "what was left of snapshot {generation}"),
            Self::Slot(slot) => write!(formatter, "slot {slot} and its network"),
        }
    }
}

/// Removes it all. Disk images are a person's work: they are left where the journal does not say how the workspace
/// stands (`known`), since one of them may be its disk.
pub(super) async fn sweep(world: &World, state: WorkspaceState, known: bool) -> Result<Vec<Swept>, Failure> {
    let mut swept = Vec::new();
    let (machine, disks) = match state {
        WorkspaceState::Up(vm) => (Some(vm.machine), [Some(vm.machine.disk), vm.former_disk]),
        WorkspaceState::Down { disk } => (None, [disk, None]),
    };
    for generation in within(LOOK, world.leftovers.generations()).await? {
        sweep_generation(world, generation, machine.as_ref(), &mut swept).await?;
        let superfluous = known && !disks.contains(&Some(generation));
        if superfluous && within(LOOK, world.disk.find(generation)).await? != Presence::Absent {
            within(LONG, world.disk.remove(generation)).await?;
            swept.push(Swept::Disk(generation));
        }
    }
    for id in within(LOOK, world.catalog.unlisted()).await? {
        match within(LOOK, world.catalog.find(id)).await? {
            SnapshotState::Trashed => within(LONG, world.catalog.purge(id)).await?,
            SnapshotState::Staged => within(LONG, world.catalog.discard(id)).await?,
            // One that is listed and staged at once: nobody's work but the list's is kept.
            SnapshotState::Listed => within(LONG, world.catalog.discard(id)).await?,
            SnapshotState::Absent => continue,
        }
        swept.push(Swept::Snapshot(id.0));
    }
    if machine.is_none()
        && let Some(slot) = within(LOOK, world.slots.held()).await?
    {
        within(QUICK, world.network.remove(slot)).await?;
        within(QUICK, world.slots.release(slot)).await?;
        swept.push(Swept::Slot(slot));
    }
    Ok(swept)
}

async fn sweep_generation(
    world: &World,
    generation: Generation,
    machine: Option<&Machine>,
    swept: &mut Vec<Swept>,
) -> Result<(), Failure> {
    let vmm_is_ours = machine.is_some_and(|machine| machine.vmm == generation);
    if !vmm_is_ours {
        // One that does not answer is there all the same.
        let there = !matches!(within(LOOK, world.vmm.find(generation)).await, Ok(VmmState::Never));
        if there {
            within(QUICK, world.vmm.stop(generation)).await?;
            swept.push(Swept::Vmm(generation));
        }
        if within(LOOK, world.shares.find(generation)).await? != Presence::Absent {
            within(QUICK, world.shares.stop(generation)).await?;
            swept.push(Swept::Shares(generation));
        }
    }
    let memory_is_ours = machine.is_some_and(|machine| machine.memory == generation);
    if !memory_is_ours && within(LOOK, world.memory.find(generation)).await? != Presence::Absent {
        within(QUICK, world.memory.remove(generation)).await?;
        swept.push(Swept::Memory(generation));
    }
    Ok(())
}
