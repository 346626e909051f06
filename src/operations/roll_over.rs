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
//! The old VMM is gone by the time of the load, so a load that fails is tried again ([`LoadAttempt`]): with daemons that are
//! started anew, and then without shares, which are attached and mounted when the guest runs. RAM is that of the saved
//! state for all of them, because no attempt has resumed the VM. If the last one fails too, the VM is lost.
//!
//! May use: the seams of `world`, what `shared` does about shares, and the engine's words.

use serde::{Deserialize, Serialize};

use super::limits::{ATTEMPT, within};
use super::shared::Context;
use super::shared::guest::{attach_and_mount, must_be_served};
use crate::engine::transition::Failure;
use crate::world::{
    Ability, Generation, Machine, Presence, Result, SnapshotId, VmmState, World, error_chain,
};

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

/// How the saved state is loaded into a new VMM. Each way is tried if the ones before it have failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoadAttempt {
    /// As it was saved.
    First,
    /// The same, with share daemons that are started anew.
    Again,
    /// Without the shares.
    WithoutShares,
}

impl LoadAttempt {
    const ALL: [Self; 3] = [Self::First, Self::Again, Self::WithoutShares];

    fn label(self) -> &'static str {
        match self {
            Self::First => "at first",
            Self::Again => "once more",
            Self::WithoutShares => "without its shares",
        }
    }
}

/// Every attempt to load the saved state has failed.
#[derive(Debug, thiserror::Error)]
#[error("the VM could not be loaded into a new VMM: {}", .0.join("; "))]
struct NotLoaded(Vec<String>);

/// Brings the VM back to running, from wherever an interrupted capture or roll-over has left it.
pub(super) async fn make_it_run(
    context: &Context<'_>,
    machine: &Machine,
    strategy: ShareStrategy,
) -> Result<()> {
    let world = context.world;
    let (old, new) = (machine.vmm, context.generation);
    match (world.vmm.find(new).await?, world.vmm.find(old).await?) {
        (VmmState::Never, VmmState::Running) => Ok(()),
        (VmmState::Running, VmmState::Never | VmmState::Gone | VmmState::PoweredOff) => {
            give_shares_back(context, machine).await
        }
        (VmmState::Paused, _) => {
            finish_roll_over(world, old, new).await?;
            give_shares_back(context, machine).await
        }
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
        (VmmState::Never, VmmState::Gone | VmmState::PoweredOff | VmmState::Never)
            if strategy == ShareStrategy::RollOver =>
        {
            roll_over(context, machine).await
        }
        _ => Err(Failure::Lost),
    }
}

/// Does the same to undo a transition. A VM that cannot be loaded is lost then, because the transition has failed for the
/// same reason and has said so.
pub(super) async fn make_it_run_again(
    context: &Context<'_>,
    machine: &Machine,
    strategy: ShareStrategy,
) -> Result<()> {
    match make_it_run(context, machine, strategy).await {
        Err(Failure::World(error)) if error.is::<NotLoaded>() => Err(Failure::Lost),
        result => result,
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
    let new = Machine { vmm: context.generation, ..*machine };
    let mut failures = Vec::new();
    for attempt in LoadAttempt::ALL {
        match within(ATTEMPT, load(world, &new, saved, attempt)).await {
            Ok(()) => {
                finish_roll_over(world, machine.vmm, new.vmm).await?;
                return match attempt {
                    LoadAttempt::First | LoadAttempt::Again => Ok(()),
                    LoadAttempt::WithoutShares => give_shares_back(context, machine).await,
                };
            }
            Err(failure) => failures.push(format!("{}: {}", attempt.label(), error_chain(&failure))),
        }
    }
    Err(Failure::world(NotLoaded(failures)))
}

/// One attempt to load what was saved into the new VMM.
async fn load(world: &World, new: &Machine, saved: SnapshotId, attempt: LoadAttempt) -> Result<()> {
    match world.vmm.find(new.vmm).await? {
        // The attempt before reported a failure, and has loaded the VM.
        VmmState::Paused => return Ok(()),
        VmmState::Never | VmmState::Empty | VmmState::Stopped => {}
        // The VMM has died of an attempt, or no longer answers. No attempt has resumed its VM.
        VmmState::Gone | VmmState::PoweredOff | VmmState::Silent => world.vmm.stop(new.vmm).await?,
        VmmState::Running => return Err(Failure::Lost),
    }
    if attempt != LoadAttempt::First {
        world.shares.stop(new.vmm).await?;
    }
    if attempt != LoadAttempt::WithoutShares {
        world.shares.start(new.vmm).await?;
    }
    world.vmm.start(new.vmm).await?;
    match attempt {
        LoadAttempt::First | LoadAttempt::Again => {
            must_be_served(world, new).await?;
            world.vmm.load(new, saved).await
        }
        LoadAttempt::WithoutShares => world.vmm.load_without_shares(new, saved).await,
    }
}

async fn finish_roll_over(world: &World, old: Generation, new: Generation) -> Result<()> {
    world.vmm.stop(old).await?;
    world.shares.stop(old).await?;
    world.vmm.resume(new).await
}

/// Attaches and mounts the shares in the new VMM if the VM was loaded without them.
async fn give_shares_back(context: &Context<'_>, machine: &Machine) -> Result<()> {
    let world = context.world;
    let new = Machine { vmm: context.generation, ..*machine };
    if world.vmm.shares_attached(new.vmm).await? != Presence::Whole {
        world.guest.forget_shares(&new).await?;
    } else if world.guest.equipped(&new).await?.mounts == Presence::Whole {
        return Ok(());
    }
    attach_and_mount(world, &new).await
}
