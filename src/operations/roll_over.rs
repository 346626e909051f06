//! How a VM with shares gets through a snapshot ([`ShareStrategy`]), and how a VM that was paused for it runs again.
//!
//! ```text
//! in place   : pause ─► capture ─► vm.resume
//! detach     : unmount and remove the shares ─► pause ─► capture ─► vm.resume ─► attach and mount the shares
//! roll over  : pause ─► capture ─► end VMM and share daemons ─► start new ones ─► vm.restore ─► vm.resume
//! ```
//!
//! A roll-over loads the VMM state that was just saved into a new VMM, on the same RAM file. Nothing is copied, and the
//! guest does not notice. It is safe only while the guest has not run since its state was saved, because its RAM must
//! be that of the saved state. Hence the rule of [`make_it_run`]: a new VMM that is gone may have run its VM, and then
//! the VM is lost.
//!
//! May use: the seams of `world`, and the engine's words.

use serde::{Deserialize, Serialize};

use super::shared::Context;
use crate::engine::transition::Failure;
use crate::world::{Ability, Generation, Machine, Presence, Result, SnapshotId, VmmState, World};

/// What is done about the shares, so that they work both in the VM that goes on and in the one that is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareStrategy {
    /// Nothing: the VMM's version keeps them working, or there are none.
    InPlace,
    /// They are detached before the pause and attached after the resume, because the VMM's version cannot restore them.
    Detach,
    /// A new VMM with new daemons takes over the VM, because `vm.snapshot` leaves the old daemons unusable.
    RollOver,
}

impl ShareStrategy {
    /// What a VMM of this ability needs.
    pub(super) fn of(shares: bool, ability: Ability) -> Self {
        match ability {
            _ if !shares => Self::InPlace,
            Ability { shares_survive_restore: false, .. } => Self::Detach,
            Ability { shares_survive_resume: false, .. } => Self::RollOver,
            Ability { .. } => Self::InPlace,
        }
    }
}

/// The VM in the VMM that has it now: the VMM that this operation started, if it started one.
pub(super) async fn alive(context: &Context<'_>, machine: &Machine) -> Result<Machine> {
    Ok(match context.world.vmm.find(context.generation).await? {
        VmmState::Never => *machine,
        _ => Machine { vmm: context.generation, ..*machine },
    })
}

/// Brings the VM back to running, from wherever an interrupted capture or roll-over has left it.
pub(super) async fn make_it_run(
    context: &Context<'_>,
    machine: &Machine,
    strategy: ShareStrategy,
) -> Result<()> {
    let world = context.world;
    let (old, new) = (machine.vmm, context.generation);
    match (world.vmm.find(new).await?, world.vmm.find(old).await?) {
        (VmmState::Running, VmmState::Never | VmmState::Gone) | (VmmState::Never, VmmState::Running) => {
            Ok(())
        }
        (VmmState::Paused, _) => finish_roll_over(world, old, new).await,
        // The new VMM has no VM yet, so no guest can have run in it. It is not ended, because a new VMM that is gone
        // would count as one that may have run.
        (VmmState::Empty, _) => roll_over(context, machine).await,
        (VmmState::Never, VmmState::Paused) => {
            let saved = world.catalog.holds_vmm_state(SnapshotId(new)).await?;
            if strategy == ShareStrategy::RollOver && saved {
                roll_over(context, machine).await
            } else {
                world.vmm.resume(old).await
            }
        }
        // The old VMM was ended for the roll-over, or killed while the VM was paused: RAM is still that of the saved
        // state.
        (VmmState::Never, VmmState::Gone | VmmState::Never) if strategy == ShareStrategy::RollOver => {
            roll_over(context, machine).await
        }
        _ => Err(Failure::Lost),
    }
}

/// Ends the old VMM and loads what was saved into a new one, on the same RAM file. The guest must not have run since.
async fn roll_over(context: &Context<'_>, machine: &Machine) -> Result<()> {
    let world = context.world;
    let saved = SnapshotId(context.generation);
    let ram = world.memory.find(machine.memory).await?;
    if ram != Presence::Whole || !world.catalog.holds_vmm_state(saved).await? {
        return Err(Failure::Lost);
    }
    world.vmm.stop(machine.vmm).await?;
    world.shares.stop(machine.vmm).await?;
    world.shares.start(context.generation).await?;
    world.vmm.start(context.generation).await?;
    world.vmm.load(&Machine { vmm: context.generation, ..*machine }, saved).await?;
    finish_roll_over(world, machine.vmm, context.generation).await
}

async fn finish_roll_over(world: &World, old: Generation, new: Generation) -> Result<()> {
    world.vmm.stop(old).await?;
    world.shares.stop(old).await?;
    world.vmm.resume(new).await
}
