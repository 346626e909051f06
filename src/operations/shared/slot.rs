//! The slot that a VM holds.
//!
//! May use: the seams of `world`, and the engine's words.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::transition::{Context, Failure, Probe, Transition, TransitionId, UndoPolicy};
use crate::operations::limits::QUICK;
use crate::world::{Slot, World};

/// The slot that decides the VM's addresses. Wanted ones are asked for in order.
pub(crate) struct ClaimSlot {
    /// Only this one will do; else the one held, else any.
    pub(crate) only: Option<Slot>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct WantedSlots(Vec<Slot>);

/// No slot is free.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoSlot {
    #[error("all {} slots of this host are taken; bring a VM of another workspace down first", Slot::COUNT)]
    AllTaken,
    #[error(
        "slot {0}, which the snapshot's guest has its address from, is taken by another VM; bring that VM down first"
    )]
    Taken(Slot),
}

impl Transition for ClaimSlot {
    type World = World;
    type Intent = WantedSlots;
    type Outcome = Slot;

    const ID: TransitionId = TransitionId(1);
    const LABEL: &'static str = "claim slot";
    const UNDO: UndoPolicy = UndoPolicy::Undoable;
    const LIMIT: Duration = QUICK;

    async fn prepare(&self, context: &Context<'_, World>) -> Result<WantedSlots, Failure> {
        let held = context.world.slots.held().await?;
        let mut wanted: Vec<Slot> = held.into_iter().chain(context.world.slots.free().await?).collect();
        if let Some(only) = self.only {
            wanted.retain(|slot| *slot == only);
            if wanted.is_empty() {
                return Err(Failure::world(NoSlot::Taken(only)));
            }
        }
        if wanted.is_empty() { Err(Failure::world(NoSlot::AllTaken)) } else { Ok(WantedSlots(wanted)) }
    }

    async fn probe(&self, context: &Context<'_, World>, _: &WantedSlots) -> Result<Probe<Slot>, Failure> {
        Ok(context.world.slots.held().await?.map_or(Probe::NotDone, Probe::Done))
    }

    async fn apply(&self, context: &Context<'_, World>, intent: &WantedSlots) -> Result<Slot, Failure> {
        context.world.slots.claim(&intent.0).await
    }

    async fn undo(&self, context: &Context<'_, World>, _: &WantedSlots) -> Result<(), Failure> {
        match context.world.slots.held().await? {
            Some(slot) => context.world.slots.release(slot).await,
            None => Ok(()),
        }
    }
}
