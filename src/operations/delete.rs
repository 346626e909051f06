//! `delete`: a snapshot leaves the list at once, and the disk after that.
//!
//! ```text
//! check ─► RENAME TO TRASH ─► remove
//! ```

use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use super::limits::QUICK;
use super::shared::clear_away::Purge;
use super::{WorkspaceState, state_bytes};
use crate::engine::transition::{
    AfterCommit, Context, Failure, Operation, OperationId, Probe, Transition, TransitionId, UndoPolicy,
};
use crate::world::{SnapshotId, SnapshotState, World};

pub(super) const ID: OperationId = OperationId(5);

/// What `delete` was asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletePlan {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// How the workspace stands, before and after.
    pub state: WorkspaceState,
}

pub(super) fn table(plan: DeletePlan) -> Operation<World> {
    let state = plan.state;
    Operation::new(ID, "delete", AfterCommit::Stuck, move |_, _| async move { state_bytes(&state) }.boxed())
        .commit(Box::new(Trash(plan.snapshot)))
        .stage("remove", [Box::new(Purge(plan.snapshot))])
}

/// The snapshot is renamed out of the list.
pub(super) struct Trash(SnapshotId);

impl Transition for Trash {
    type World = World;
    type Intent = SnapshotId;
    type Outcome = ();

    const ID: TransitionId = TransitionId(26);
    const LABEL: &'static str = "rename to trash";
    const UNDO: UndoPolicy = UndoPolicy::Forbidden("it is the commit point");
    const LIMIT: Duration = QUICK;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<SnapshotId, Failure> {
        Ok(self.0)
    }

    async fn probe(&self, context: &Context<'_, World>, id: &SnapshotId) -> Result<Probe<()>, Failure> {
        Ok(match context.world.catalog.find(*id).await? {
            SnapshotState::Listed => Probe::NotDone,
            SnapshotState::Trashed | SnapshotState::Absent => Probe::Done(()),
            SnapshotState::Staged => Probe::CannotTell(format!(
                "snapshot {id} is in its staging directory, though it was in the list"
            )),
        })
    }

    async fn apply(&self, context: &Context<'_, World>, id: &SnapshotId) -> Result<(), Failure> {
        context.world.catalog.trash(*id).await
    }
}
