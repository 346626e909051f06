//! The slot of a VM: it decides the VM's TAP, MAC and addresses, and no two VMs of a host share one.

use serde::{Deserialize, Serialize};

use super::Context;
use crate::engine::transition::{Failure, Probe, Transition, TransitionSpec};
use crate::operations::ids;
use crate::operations::limits::QUICK;
use crate::world::{Result, Slot, World};

/// Claims a slot for this workspace.
pub(in crate::operations) struct ClaimSlot {
    /// The only slot that will do: that of a snapshot's guest, which keeps its address. Without one, the slot that the
    /// workspace holds already is taken, or else any that is free.
    pub(in crate::operations) only: Option<Slot>,
}

/// The slots that are claimed, in this order, until one is free.
#[derive(Serialize, Deserialize)]
pub(in crate::operations) struct WantedSlots(Vec<Slot>);

#[derive(Debug, thiserror::Error)]
enum NoSlot {
    #[error("all {} slots of this host are taken; bring a VM of another workspace down first", Slot::COUNT)]
    AllTaken,
    #[error(
        "slot {0}, which the snapshot's guest has its address from, is taken by another VM; bring that VM down first"
    )]
    Taken(Slot),
}

/// The slot that [`ClaimSlot`] claimed in an earlier stage.
pub(in crate::operations) fn claimed(context: &Context<'_>) -> Result<Slot> {
    context.outcome(ids::CLAIM_SLOT)
}

impl Transition<World> for ClaimSlot {
    type Intent = WantedSlots;
    type Outcome = Slot;

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::undoable(ids::CLAIM_SLOT, "claim slot", QUICK)
    }

    async fn prepare(&self, context: &Context<'_>) -> Result<WantedSlots> {
        let held = context.world.slots.held().await?;
        let mut wanted: Vec<Slot> = held.into_iter().chain(context.world.slots.free().await?).collect();
        wanted.retain(|slot| self.only.is_none_or(|only| *slot == only));
        match (wanted.is_empty(), self.only) {
            (false, _) => Ok(WantedSlots(wanted)),
            (true, Some(only)) => Err(Failure::world(NoSlot::Taken(only))),
            (true, None) => Err(Failure::world(NoSlot::AllTaken)),
        }
    }

    async fn probe(&self, context: &Context<'_>, _: &WantedSlots) -> Result<Probe<Slot>> {
        Ok(context.world.slots.held().await?.map_or(Probe::NotDone, Probe::Done))
    }

    async fn apply(&self, context: &Context<'_>, intent: &WantedSlots) -> Result<Slot> {
        context.world.slots.claim(&intent.0).await
    }

    async fn undo(&self, context: &Context<'_>, _: &WantedSlots) -> Result<()> {
        match context.world.slots.held().await? {
            Some(slot) => context.world.slots.release(slot).await,
            None => Ok(()),
        }
    }
}
