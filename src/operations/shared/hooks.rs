//! The user's own scripts.
//!
//! May use: the seams of `world`, and the engine's words.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::transition::{Context, Failure, Probe, Transition, TransitionId, UndoPolicy};
use crate::operations::limits::LONG;
use crate::world::{HookPoint, World};

/// How the user's scripts came out. After the commit point a script that fails is an outcome, not a failure: the VM
/// stays, and the report says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookOutcome {
    /// All exited with 0.
    Succeeded,
    /// One did not; what it was is in the report of the run, never in the journal.
    Failed,
}

macro_rules! hooks {
    ($name:ident, $point:ident, $id:literal, $label:literal, $failure:expr) => {
        #[doc = concat!("The user's own scripts: ", $label, ".")]
        pub(crate) struct $name;

        impl Transition for $name {
            type World = World;
            type Intent = ();
            type Outcome = HookOutcome;

            const ID: TransitionId = TransitionId($id);
            const LABEL: &'static str = $label;
            const UNDO: UndoPolicy = UndoPolicy::Nothing("what a user's script did is the user's");
            const LIMIT: Duration = LONG;

            async fn prepare(&self, _: &Context<'_, World>) -> Result<(), Failure> {
                Ok(())
            }

            async fn probe(&self, _: &Context<'_, World>, (): &()) -> Result<Probe<HookOutcome>, Failure> {
                // Nothing tells whether they ran. They run at least once.
                Ok(Probe::NotDone)
            }

            async fn apply(&self, context: &Context<'_, World>, (): &()) -> Result<HookOutcome, Failure> {
                let ran = context.world.hooks.run(HookPoint::$point, &context.interrupt).await;
                ran.map(|()| HookOutcome::Succeeded).or_else($failure)
            }
        }
    };
}

hooks!(PreUp, PreUp, 8, "pre-up scripts", Err);
hooks!(PostUp, PostUp, 9, "post-up scripts", |_| Ok(HookOutcome::Failed));
hooks!(PreDown, PreDown, 10, "pre-down scripts", Err);
hooks!(PostDown, PostDown, 11, "post-down scripts", |_| Ok(HookOutcome::Failed));
