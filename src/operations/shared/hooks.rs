//! The user's own scripts, before and after `up` and `down`.
//!
//! Nothing tells whether a script ran, so after a crash it runs again: each runs at least once.

use serde::{Deserialize, Serialize};

use super::Context;
use crate::engine::transition::{Probe, Transition, TransitionId, TransitionSpec};
use crate::operations::ids;
use crate::operations::limits::LONG;
use crate::world::{HookPoint, Result, World};

/// Whether the scripts of a point succeeded. What a script printed is shown to the person and never written to the
/// journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum HookOutcome {
    Succeeded,
    Failed,
}

/// Runs the scripts of one point.
pub(in crate::operations) struct RunHooks {
    spec: TransitionSpec,
    point: HookPoint,
    /// Before the commit point, a script that fails is a failure of the operation. After it, the VM stays as it is, and
    /// the report says that a script failed.
    may_fail: bool,
}

const fn hooks(id: TransitionId, label: &'static str, point: HookPoint, may_fail: bool) -> RunHooks {
    let spec = TransitionSpec::nothing_to_undo(id, label, "what a user's script did is the user's", LONG);
    RunHooks { spec, point, may_fail }
}

pub(in crate::operations) const PRE_UP: RunHooks =
    hooks(ids::PRE_UP, "pre-up scripts", HookPoint::PreUp, false);
pub(in crate::operations) const POST_UP: RunHooks =
    hooks(ids::POST_UP, "post-up scripts", HookPoint::PostUp, true);
pub(in crate::operations) const PRE_DOWN: RunHooks =
    hooks(ids::PRE_DOWN, "pre-down scripts", HookPoint::PreDown, false);
pub(in crate::operations) const POST_DOWN: RunHooks =
    hooks(ids::POST_DOWN, "post-down scripts", HookPoint::PostDown, true);

impl Transition<World> for RunHooks {
    type Intent = ();
    type Outcome = HookOutcome;

    fn spec(&self) -> TransitionSpec {
        self.spec
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<()> {
        Ok(())
    }

    async fn probe(&self, _: &Context<'_>, (): &()) -> Result<Probe<HookOutcome>> {
        Ok(Probe::NotDone)
    }

    async fn apply(&self, context: &Context<'_>, (): &()) -> Result<HookOutcome> {
        match context.world.hooks.run(self.point, &context.interrupt).await {
            Ok(()) => Ok(HookOutcome::Succeeded),
            Err(_) if self.may_fail => Ok(HookOutcome::Failed),
            Err(failure) => Err(failure),
        }
    }
}
