//! The parts of a VM on the host that `up` and `restore` both make, and [`Target`]: which VM a transition acts on.

use super::{Context, Part, done_if_whole, slot};
use crate::engine::transition::{Probe, Transition, TransitionSpec};
use crate::operations::ids;
use crate::operations::limits::QUICK;
use crate::world::{Generation, Machine, Result, Slot, VmmState, World};

/// Which VM a transition acts on.
#[derive(Debug, Clone, Copy)]
pub(in crate::operations) enum Target {
    /// The VM that this operation builds.
    New {
        /// Its disk; `None` for the disk that this operation makes.
        disk: Option<Generation>,
        /// Whether its shares are devices from the start.
        shares: bool,
    },
    /// A VM that ran before this operation.
    Existing(Machine),
    /// A VM that ran before this operation and is now in the VMM that this operation started for it.
    RolledOver(Machine),
}

impl Target {
    pub(in crate::operations) fn machine(self, context: &Context<'_>) -> Result<Machine> {
        Ok(match self {
            Self::New { disk, shares } => built(context.generation, slot::claimed(context)?, disk, shares),
            Self::Existing(machine) => machine,
            Self::RolledOver(machine) => Machine { vmm: context.generation, ..machine },
        })
    }
}

/// The VM that the operation of this generation builds in a slot, with its own disk unless it has another one.
pub(in crate::operations) fn built(
    generation: Generation,
    slot: Slot,
    disk: Option<Generation>,
    shares: bool,
) -> Machine {
    let disk = disk.unwrap_or(generation);
    Machine { vmm: generation, disk, memory: generation, slot, shares }
}

/// The built record: what the VM is built from, for the nixbox that acts on the VM later.
pub(in crate::operations) fn write_record() -> Part<()> {
    Part {
        spec: TransitionSpec::undoable(ids::WRITE_RECORD, "built record", QUICK),
        intent: (),
        find: |context, ()| context.world.records.find(context.generation),
        make: |context, ()| context.world.records.write(context.generation),
        remove: |context, ()| context.world.records.remove(context.generation),
    }
}

/// The share daemons.
pub(in crate::operations) fn start_shares() -> Part<()> {
    Part {
        spec: TransitionSpec::undoable(ids::START_SHARES, "shares", QUICK),
        intent: (),
        find: |context, ()| context.world.shares.find(context.generation),
        make: |context, ()| context.world.shares.start(context.generation),
        remove: |context, ()| context.world.shares.stop(context.generation),
    }
}

/// TAP, addresses, firewall and DHCP of the slot that an earlier stage claimed.
pub(in crate::operations) struct BuildNetwork;

impl Transition<World> for BuildNetwork {
    type Intent = Slot;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::undoable(ids::BUILD_NETWORK, "network", QUICK)
    }

    async fn prepare(&self, context: &Context<'_>) -> Result<Slot> {
        slot::claimed(context)
    }

    async fn probe(&self, context: &Context<'_>, slot: &Slot) -> Result<Probe<()>> {
        Ok(done_if_whole(context.world.network.find(*slot).await?))
    }

    async fn apply(&self, context: &Context<'_>, slot: &Slot) -> Result<()> {
        context.world.network.build(*slot, context.generation).await
    }

    async fn undo(&self, context: &Context<'_>, slot: &Slot) -> Result<()> {
        context.world.network.remove(*slot).await
    }
}

/// The VMM process, without a VM in it yet.
pub(in crate::operations) struct StartVmm;

impl Transition<World> for StartVmm {
    type Intent = ();
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::undoable(ids::START_VMM, "start VMM", QUICK)
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<()> {
        Ok(())
    }

    async fn probe(&self, context: &Context<'_>, (): &()) -> Result<Probe<()>> {
        Ok(match context.world.vmm.find(context.generation).await? {
            VmmState::Never => Probe::NotDone,
            VmmState::Gone | VmmState::PoweredOff => Probe::Lost,
            _ => Probe::Done(()),
        })
    }

    async fn apply(&self, context: &Context<'_>, (): &()) -> Result<()> {
        context.world.vmm.start(context.generation).await
    }

    async fn undo(&self, context: &Context<'_>, (): &()) -> Result<()> {
        context.world.vmm.stop(context.generation).await
    }
}
