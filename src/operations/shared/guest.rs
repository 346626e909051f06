//! What is done in the guest.
//!
//! May use: the seams of `world`, and the engine's words.

use std::time::Duration;

use super::machine::Target;
use super::{must_live, presence};
use crate::engine::transition::{Context, Failure, Probe, Transition, TransitionId, UndoPolicy};
use crate::operations::limits::GUEST;
use crate::world::{BootId, Machine, Presence, World};

/// Looks whether a system lives, for transitions that are done again rather than looked for.
async fn again_if_alive<O>(context: &Context<'_, World>, machine: &Machine) -> Result<Probe<O>, Failure> {
    let state = context.world.vmm.find(machine.vmm).await?;
    Ok(if state.has_system() { Probe::NotDone } else { Probe::Lost })
}

/// Waits until the guest is SSH-ready. With a boot to compare, anything but the same guest is a failure.
pub(crate) struct Ready {
    pub(crate) target: Target,
    /// The boot that it has to be.
    pub(crate) same_as: Option<BootId>,
}

/// The guest that answers is not the one that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the guest that answers was rebooted: its boot id is not the snapshot's")]
pub(crate) struct OtherBoot;

impl Transition for Ready {
    type World = World;
    type Intent = Machine;
    type Outcome = BootId;

    const ID: TransitionId = TransitionId(5);
    const LABEL: &'static str = "SSH-ready";
    const UNDO: UndoPolicy = UndoPolicy::Nothing("it only asks");
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, context: &Context<'_, World>) -> Result<Machine, Failure> {
        self.target.machine(context)
    }

    async fn probe(&self, context: &Context<'_, World>, machine: &Machine) -> Result<Probe<BootId>, Failure> {
        again_if_alive(context, machine).await
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<BootId, Failure> {
        let boot = context.world.guest.ready(machine).await?;
        match self.same_as {
            Some(expected) if expected != boot => Err(Failure::world(OtherBoot)),
            _ => Ok(boot),
        }
    }
}

/// Fresh entropy first, then the clock.
pub(crate) struct Settle(pub(crate) Target);

impl Transition for Settle {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(19);
    const LABEL: &'static str = "entropy and clock";
    const UNDO: UndoPolicy = UndoPolicy::Nothing("entropy and a right clock do no harm");
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, context: &Context<'_, World>) -> Result<Machine, Failure> {
        self.0.machine(context)
    }

    async fn probe(&self, context: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        again_if_alive(context, machine).await
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        context.world.guest.settle(machine).await
    }
}

/// The credentials of the configuration as it is now.
pub(crate) struct Inject(pub(crate) Target);

impl Transition for Inject {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(6);
    const LABEL: &'static str = "inject credentials";
    const UNDO: UndoPolicy = UndoPolicy::Nothing("where it can be taken back, the guest had them before");
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, context: &Context<'_, World>) -> Result<Machine, Failure> {
        self.0.machine(context)
    }

    async fn probe(&self, context: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        match must_live(context.world, machine.vmm).await {
            Err(Failure::Lost) => Ok(Probe::Lost),
            Err(failure) => Err(failure),
            Ok(()) => Ok(presence(context.world.guest.equipped(machine).await?.credentials)),
        }
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        context.world.guest.inject(machine).await
    }
}

/// The shares, attached where they are no devices yet, and mounted in the guest.
pub(crate) struct MountShares(pub(crate) Target);

impl Transition for MountShares {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(7);
    const LABEL: &'static str = "mount shares";
    const UNDO: UndoPolicy = UndoPolicy::Nothing("where it can be taken back, the guest had them before");
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, context: &Context<'_, World>) -> Result<Machine, Failure> {
        self.0.machine(context)
    }

    async fn probe(&self, context: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        match must_live(context.world, machine.vmm).await {
            Err(Failure::Lost) => Ok(Probe::Lost),
            Err(failure) => Err(failure),
            // The guest's word is its table of mounts, in which those that nobody serves are too.
            Ok(()) if !served(context.world, machine).await? => Ok(Probe::NotDone),
            Ok(()) => Ok(presence(context.world.guest.equipped(machine).await?.mounts)),
        }
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        attach_and_mount(context.world, machine).await
    }
}

pub(crate) async fn attach_and_mount(world: &World, machine: &Machine) -> Result<(), Failure> {
    if world.vmm.shares_attached(machine.vmm).await? != Presence::Whole {
        // A share daemon ends with the device that it served.
        world.shares.start(machine.vmm).await?;
        world.vmm.attach_shares(machine.vmm).await?;
    }
    // Before, because the guest hangs in what nobody serves; and after, because its kernel mounts that all the same.
    if !served(world, machine).await? {
        return Err(Failure::world(NoDaemon));
    }
    world.guest.mount(machine).await?;
    if served(world, machine).await? { Ok(()) } else { Err(Failure::world(NoDaemon)) }
}

async fn served(world: &World, machine: &Machine) -> Result<bool, Failure> {
    Ok(!world.shares.wanted() || world.shares.find(machine.vmm).await? == Presence::Whole)
}

/// A mount that nobody serves.
#[derive(Debug, thiserror::Error)]
#[error(
    "a share daemon (virtiofsd) has ended: its log is beside the serial console's, which `nixbox status` names"
)]
struct NoDaemon;
