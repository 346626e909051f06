//! The repair of the network of a VM that runs: what somebody else has ended, flushed or deleted since it was built.
//!
//! A repair is no operation and is not journaled, for the same reason as a sweep: the next run looks at the network itself
//! and finds what is still wrong, also if this run was killed in the middle. Every part that a repair makes bears the mark
//! by which `down` finds and removes it, and the journal already says that there is a VM with a network. An intent would
//! say nothing more.
//!
//! A repair that fails refuses no command, because a VM whose network cannot be repaired can still be snapshotted and must
//! always go down. What is left is told to the person.
//!
//! Uses the seams and nothing else.

use super::limits::{LOOK, QUICK, within};
use crate::engine::executor::Observer;
use crate::engine::transition::Failure;
use crate::world::{Machine, NetworkFault, World, error_chain};

/// What was wrong with the network of a VM that runs, and what was done about it.
#[derive(Debug, Default)]
pub struct NetworkRepair {
    /// What was wrong.
    pub found: Vec<NetworkFault>,
    /// What is wrong still.
    pub left: Vec<NetworkFault>,
    /// Why the network could not be looked at or repaired.
    pub failure: Option<Failure>,
}

impl NetworkRepair {
    /// What was wrong and is not any more.
    pub fn repaired(&self) -> impl Iterator<Item = NetworkFault> {
        self.found.iter().copied().filter(|fault| !self.left.contains(fault))
    }
}

/// Looks at the network of a VM that runs, and repairs it.
pub(super) async fn repair(world: &World, machine: &Machine, observer: &dyn Observer) -> NetworkRepair {
    let mut repair = NetworkRepair::default();
    if let Err(failure) = look_and_repair(world, machine, observer, &mut repair).await {
        let reason = error_chain(&failure);
        observer.waits(&format!(
            "the network of the VM cannot be examined or repaired; the command goes on: {reason}"
        ));
        repair.failure = Some(failure);
    }
    for fault in &repair.left {
        observer.waits(&format!("the network of the VM is still broken: {fault}: {}", fault.remedy()));
    }
    repair
}

async fn look_and_repair(
    world: &World,
    machine: &Machine,
    observer: &dyn Observer,
    repair: &mut NetworkRepair,
) -> Result<(), Failure> {
    repair.found = within(LOOK, world.network.faults(machine.slot)).await?;
    repair.left.clone_from(&repair.found);
    if repair.found.is_empty() {
        return Ok(());
    }
    for fault in &repair.found {
        observer.waits(&format!("the network of the VM is repaired: {fault}"));
    }
    within(QUICK, world.network.repair(machine.slot, machine.vmm)).await?;
    repair.left = within(LOOK, world.network.faults(machine.slot)).await?;
    Ok(())
}
