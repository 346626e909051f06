//! How a VM that was paused for a snapshot comes to run again: where it is, or rolled over into a new VMM.
//!
//! Rolling over is safe only while the guest has not run since it was saved: its RAM must be that of the saved state.
//! Hence the rule of [`make_it_run`]: a new VMM that is gone may have run, and then the VM is lost.
//!
//! May use: the seams of `world`, and the engine's words.

use super::snapshot::ShareStrategy;
use crate::engine::transition::{Context, Failure};
use crate::world::{Generation, Machine, Presence, SnapshotId, VmmState, World};

/// The VM in the VMM that has it now: the one that this operation started, if it started one.
pub(super) async fn alive(context: &Context<'_, World>, machine: &Machine) -> Result<Machine, Failure> {
    Ok(match context.world.vmm.find(context.generation).await? {
        VmmState::Never => *machine,
        _ => Machine { vmm: context.generation, ..*machine },
    })
}

/// Brings the VM back to running, from wherever an interrupted capture or roll-over has left it.
pub(super) async fn make_it_run(
    context: &Context<'_, World>,
    machine: &Machine,
    strategy: ShareStrategy,
) -> Result<(), Failure> {
    let world = context.world;
    let (old, new) = (machine.vmm, context.generation);
    match (world.vmm.find(new).await?, world.vmm.find(old).await?) {
        (VmmState::Running, VmmState::Never | VmmState::Gone) | (VmmState::Never, VmmState::Running) => {
            Ok(())
        }
        (VmmState::Paused, _) => finish_roll_over(world, old, new).await,
        // It has no VM yet, so that nothing can have run in it. It is not ended: one that is gone may have run.
        (VmmState::Empty, _) => roll_over(context, machine).await,
        (VmmState::Never, VmmState::Paused) => {
            let saved = world.catalog.holds_vmm_state(SnapshotId(new)).await?;
            if strategy == ShareStrategy::RollOver && saved {
                roll_over(context, machine).await
            } else {
                world.vmm.resume(old).await
            }
        }
        // It was ended to be rolled over, or killed while it was paused: what was saved is what its RAM is.
        (VmmState::Never, VmmState::Gone | VmmState::Never) if strategy == ShareStrategy::RollOver => {
            roll_over(context, machine).await
        }
        _ => Err(Failure::Lost),
    }
}

/// Ends the old VMM and loads what was saved into a new one, upon the same RAM file. The guest must not have run since.
async fn roll_over(context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
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

async fn finish_roll_over(world: &World, old: Generation, new: Generation) -> Result<(), Failure> {
    world.vmm.stop(old).await?;
    world.shares.stop(old).await?;
    world.vmm.resume(new).await
}
