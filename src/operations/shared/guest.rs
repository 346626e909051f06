//! What is done in a guest that runs: wait for SSH, give it entropy and the time, credentials and shares.

use std::time::Duration;

use super::machine::Target;
use super::{Context, done_if_absent, done_if_whole, probe_if_alive};
use crate::engine::transition::{Failure, Probe, Transition, TransitionSpec};
use crate::operations::ids;
use crate::operations::limits::{GUEST, until_ready};
use crate::operations::state::VmCondition;
use crate::world::{BootId, Machine, Presence, ReadyTimeout, Result, Settlement, World};

const HAD_BEFORE: &str = "where it can be taken back, the guest had them before";

/// Waits until the guest is SSH-ready.
pub(in crate::operations) struct Ready {
    pub(in crate::operations) target: Target,
    /// The boot that the guest has to be in; a guest in any other is refused.
    pub(in crate::operations) same_as: Option<BootId>,
    /// How long the guest may take.
    pub(in crate::operations) timeout: ReadyTimeout,
}

#[derive(Debug, thiserror::Error)]
#[error("the guest that answers was rebooted: its boot id is not the snapshot's")]
struct OtherBoot;

impl Transition<World> for Ready {
    type Intent = Machine;
    type Outcome = BootId;

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::nothing_to_undo(ids::READY, "SSH-ready", "it only asks", until_ready(self.timeout))
    }

    async fn prepare(&self, context: &Context<'_>) -> Result<Machine> {
        self.target.machine(context)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<BootId>> {
        probe_if_alive(context.world, machine.vmm, async { Ok(Probe::NotDone) }).await
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<BootId> {
        let boot = context.world.guest.ready(machine).await?;
        match self.same_as {
            Some(expected) if expected != boot => Err(Failure::world(OtherBoot)),
            _ => Ok(boot),
        }
    }
}

/// Fresh entropy, then the wall clock. In this order, because a restored guest must not draw random numbers that
/// another guest of the same snapshot draws too.
pub(in crate::operations) struct Settle {
    pub(in crate::operations) target: Target,
    /// For each of its functions.
    pub(in crate::operations) limit: Duration,
}

/// The condition of the VM that the operation has settled. An earlier nixbox wrote no such outcome, because it failed if a
/// guest could not be settled.
pub(in crate::operations) fn condition(context: &Context<'_>) -> VmCondition {
    VmCondition::settled(context.outcome(ids::SETTLE).unwrap_or(Settlement::WHOLE))
}

impl Transition<World> for Settle {
    type Intent = Machine;
    type Outcome = Settlement;

    fn spec(&self) -> TransitionSpec {
        const WHY: &str = "entropy and a right clock do no harm";
        TransitionSpec::nothing_to_undo(ids::SETTLE, "entropy and clock", WHY, self.limit)
    }

    async fn prepare(&self, context: &Context<'_>) -> Result<Machine> {
        self.target.machine(context)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<Settlement>> {
        probe_if_alive(context.world, machine.vmm, async { Ok(Probe::NotDone) }).await
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<Settlement> {
        context.world.guest.settle(machine).await
    }
}

/// The credentials of the configuration as it is now.
pub(in crate::operations) struct Inject(pub(in crate::operations) Target);

impl Transition<World> for Inject {
    type Intent = Machine;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::nothing_to_undo(ids::INJECT, "inject credentials", HAD_BEFORE, GUEST)
    }

    async fn prepare(&self, context: &Context<'_>) -> Result<Machine> {
        self.0.machine(context)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<()>> {
        let probe = async { Ok(done_if_whole(context.world.guest.equipped(machine).await?.credentials)) };
        probe_if_alive(context.world, machine.vmm, probe).await
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        context.world.guest.inject(machine).await
    }
}

/// What the wipe took from the guest. The backup is there as long as the guest has not all of it.
pub(in crate::operations) struct GiveBack(pub(in crate::operations) Target);

impl Transition<World> for GiveBack {
    type Intent = Machine;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::nothing_to_undo(ids::GIVE_BACK, "give back files", HAD_BEFORE, GUEST)
    }

    async fn prepare(&self, context: &Context<'_>) -> Result<Machine> {
        self.0.machine(context)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<()>> {
        let probe = async { Ok(done_if_absent(context.world.backups.find(machine.memory).await?)) };
        probe_if_alive(context.world, machine.vmm, probe).await
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        give_back(context.world, machine).await
    }
}

/// Gives back what is in the backup, and removes the backup. Without a backup the guest lacks nothing.
pub(in crate::operations) async fn give_back(world: &World, machine: &Machine) -> Result<()> {
    if let Some(backup) = world.backups.read(machine.memory).await? {
        world.guest.give_back(machine, &backup).await?;
    }
    world.backups.remove(machine.memory).await
}

/// The shares: attached to the VM where they are not its devices yet, and mounted in the guest.
pub(in crate::operations) struct MountShares(pub(in crate::operations) Target);

impl Transition<World> for MountShares {
    type Intent = Machine;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::nothing_to_undo(ids::MOUNT_SHARES, "mount shares", HAD_BEFORE, GUEST)
    }

    async fn prepare(&self, context: &Context<'_>) -> Result<Machine> {
        self.0.machine(context)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<()>> {
        let probe = async {
            // The guest's table of mounts also lists shares whose daemon is dead, so the daemons are checked first.
            if !daemons_serve(context.world, machine).await? {
                return Ok(Probe::NotDone);
            }
            Ok(done_if_whole(context.world.guest.equipped(machine).await?.mounts))
        };
        probe_if_alive(context.world, machine.vmm, probe).await
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        attach_and_mount(context.world, machine).await
    }
}

/// Attaches the shares to the VM if they are not its devices yet, and mounts them in the guest.
pub(in crate::operations) async fn attach_and_mount(world: &World, machine: &Machine) -> Result<()> {
    if world.vmm.shares_attached(machine.vmm).await? != Presence::Whole {
        // A share daemon ends with the device that it served.
        world.shares.start(machine.vmm).await?;
        world.vmm.attach_shares(machine.vmm).await?;
    }
    // The daemons are checked before the mount, because the guest hangs in a share that no daemon serves; and after it,
    // because the guest's kernel reports success for such a mount.
    must_be_served(world, machine).await?;
    world.guest.mount(machine).await?;
    must_be_served(world, machine).await
}

/// Fails if a share daemon has ended since it was started, before a VMM that would wait a minute for it connects.
pub(in crate::operations) async fn must_be_served(world: &World, machine: &Machine) -> Result<()> {
    if daemons_serve(world, machine).await? { Ok(()) } else { Err(Failure::world(NoDaemon)) }
}

async fn daemons_serve(world: &World, machine: &Machine) -> Result<bool> {
    Ok(!world.shares.wanted() || world.shares.find(machine.vmm).await? == Presence::Whole)
}

#[derive(Debug, thiserror::Error)]
#[error(
    "a share daemon (virtiofsd) has ended: its log is beside the serial console's, which `nixbox status` names"
)]
struct NoDaemon;
