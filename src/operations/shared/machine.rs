//! What a VM is made of, and which VM a transition is about.
//!
//! May use: the seams of `world`, and the engine's words.

use std::time::Duration;

use super::slot::ClaimSlot;
use super::{part, presence};
use crate::engine::transition::{Context, Failure, Probe, Transition, TransitionId, UndoPolicy};
use crate::operations::limits::QUICK;
use crate::world::{Generation, Machine, Slot, VmmState, World};

/// TAP, addresses, firewall and DHCP of the slot.
pub(crate) struct BuildNetwork;

part! {
    BuildNetwork, 2, "network", QUICK,
    Slot: |context, network, slot| context.outcome::<ClaimSlot>(),
    find: context.world.network.find(*slot),
    make: context.world.network.build(*slot, context.generation),
    remove: context.world.network.remove(*slot),
}

/// The share daemons of this generation.
pub(crate) struct StartShares;

part! {
    StartShares, 3, "shares", QUICK,
    (): |context, shares, nothing| Ok(()),
    find: context.world.shares.find(context.generation),
    make: context.world.shares.start(context.generation),
    remove: context.world.shares.stop(context.generation),
}

/// The VMM process of this generation, without a VM in it yet.
pub(crate) struct StartVmm;

impl Transition for StartVmm {
    type World = World;
    type Intent = ();
    type Outcome = ();

    const ID: TransitionId = TransitionId(4);
    const LABEL: &'static str = "start VMM";
    const UNDO: UndoPolicy = UndoPolicy::Undoable;
    const LIMIT: Duration = QUICK;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<(), Failure> {
        Ok(())
    }

    async fn probe(&self, context: &Context<'_, World>, (): &()) -> Result<Probe<()>, Failure> {
        Ok(match context.world.vmm.find(context.generation).await? {
            VmmState::Never => Probe::NotDone,
            VmmState::Gone => Probe::Lost,
            _ => Probe::Done(()),
        })
    }

    async fn apply(&self, context: &Context<'_, World>, (): &()) -> Result<(), Failure> {
        context.world.vmm.start(context.generation).await
    }

    async fn undo(&self, context: &Context<'_, World>, (): &()) -> Result<(), Failure> {
        context.world.vmm.stop(context.generation).await
    }
}

/// Which VM a transition is about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// The one that this operation puts together.
    New {
        /// Its disk; `None`: the one that this operation makes.
        disk: Option<Generation>,
        /// Whether its shares are devices from the start.
        shares: bool,
    },
    /// One that ran before this operation.
    Existing(Machine),
    /// One that ran before, in the VMM that this operation started for it.
    RolledOver(Machine),
}

impl Target {
    pub(crate) fn machine(self, context: &Context<'_, World>) -> Result<Machine, Failure> {
        Ok(match self {
            Self::New { disk, shares } => Machine {
                vmm: context.generation,
                disk: disk.unwrap_or(context.generation),
                memory: context.generation,
                slot: context.outcome::<ClaimSlot>()?,
                shares,
            },
            Self::Existing(machine) => machine,
            Self::RolledOver(machine) => Machine { vmm: context.generation, ..machine },
        })
    }
}
