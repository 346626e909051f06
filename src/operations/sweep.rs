//! Sweeping: the removal of what bears the mark of this workspace and belongs to neither its VM nor its disk.
//!
//! The journal knows of everything that an operation made, so that a sweep finds nothing as long as the journal is kept.
//! It finds what is left when the journal was lost, or when a person has put files back. A sweep runs while no operation
//! is open, under the workspace's lock. It is not journaled, because a second sweep finds what the first has left.
//!
//! Uses the seams and nothing else.

use super::limits::{LONG, LOOK, QUICK, within};
use super::state::WorkspaceState;
use crate::engine::transition::{Failure, Generation};
use crate::world::{Machine, Presence, Slot, SnapshotState, VmmState, World};

/// Something that a sweep removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// A VMM process.
    Vmm(Generation),
    /// Share daemons.
    Shares(Generation),
    /// A RAM file.
    Memory(Generation),
    /// The built record of a VM.
    Record(Generation),
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
            Self::Record(generation) => write!(formatter, "the built record of generation {generation}"),
            Self::Disk(generation) => write!(formatter, "the disk images of generation {generation}"),
            Self::Snapshot(generation) => write!(formatter, "what was left of snapshot {generation}"),
            Self::Slot(slot) => write!(formatter, "slot {slot} and its network"),
        }
    }
}

/// Removes everything that belongs to no VM. Disk images are a person's work: they are kept if the journal does not say
/// what the workspace's state is (`known` is false), because one of them may be its disk.
pub(super) async fn sweep(world: &World, state: WorkspaceState, known: bool) -> Result<Vec<Swept>, Failure> {
    let mut swept = Vec::new();
    let (machine, disks) = match state {
        WorkspaceState::Up(vm) => (Some(vm.machine), [Some(vm.machine.disk), vm.former_disk]),
        WorkspaceState::Down { disk } => (None, [disk, None]),
    };
    let mut generations = within(LOOK, world.leftovers.generations()).await?;
    generations.extend(within(LOOK, world.records.generations()).await?);
    for generation in generations {
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
            // If a snapshot is both listed and staged, the listed one is kept and the staging directory is removed.
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

/// Ends every VMM of this workspace, and asks its guest to power off before. The RAM goes too, so that no recovery can
/// load the VM into another VMM. What else belongs to the VMs stays.
pub(super) async fn end_vmms(world: &World) -> Result<(), Failure> {
    for generation in within(LOOK, world.leftovers.generations()).await? {
        if within(LOOK, world.vmm.find(generation)).await? == VmmState::Running {
            // A power button that does nothing is no failure: the VMM is ended next.
            within(QUICK, world.vmm.power_button(generation)).await.ok();
        }
        within(QUICK, world.vmm.stop(generation)).await?;
        within(QUICK, world.memory.remove(generation)).await?;
    }
    Ok(())
}

/// Ends the VM of a workspace whose journal cannot be used, and removes what belongs to it. Nothing says which disk images
/// are in use, so all of them are kept.
///
/// # Errors
/// If something cannot be found or removed. What was removed before stays removed.
pub async fn end_without_journal(world: &World) -> Result<Vec<Swept>, Failure> {
    end_vmms(world).await?;
    sweep(world, WorkspaceState::Down { disk: None }, false).await
}

async fn sweep_generation(
    world: &World,
    generation: Generation,
    machine: Option<&Machine>,
    swept: &mut Vec<Swept>,
) -> Result<(), Failure> {
    let is_the_vms = machine.is_some_and(|machine| machine.vmm == generation);
    if !is_the_vms {
        // A VMM that does not answer counts as one that lives.
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
    let is_its_memory = machine.is_some_and(|machine| machine.memory == generation);
    if !is_its_memory && within(LOOK, world.memory.find(generation)).await? != Presence::Absent {
        within(QUICK, world.memory.remove(generation)).await?;
        swept.push(Swept::Memory(generation));
    }
    if !is_its_memory && within(LOOK, world.records.find(generation)).await? != Presence::Absent {
        within(QUICK, world.records.remove(generation)).await?;
        swept.push(Swept::Record(generation));
    }
    Ok(())
}
