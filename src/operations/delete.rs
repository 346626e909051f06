//! `delete`: a snapshot leaves the list at once, and the disk after that.
//!
//! ```text
//! RENAME TO TRASH ─► remove
//! ```
//!
//! Before the first stage the session finds the snapshot in the list, by its name or its number. Nothing else has to
//! hold: a damaged snapshot can be deleted, and a VM that came from the snapshot has copies of its files.
//!
//! **Rename to trash** is the commit point: one rename takes the snapshot out of the list, so that no crash leaves a
//! listed snapshot with half of its files. If the rename fails, the snapshot stays in the list and nothing has changed.
//! After a crash the probe looks where the snapshot is. In the list means not done, and recovery ends the operation
//! with nothing changed. In the trash, or gone, means done. In the staging directory cannot be explained by this
//! operation: a person has to look, and recovery is stuck.
//!
//! **Remove** deletes the files in the trash. If it fails, or a crash interrupts it, the operation stays open and every
//! later command that changes something tries again. Nothing is lost by that but the space.

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use super::ids;
use super::limits::QUICK;
use super::shared::Context;
use super::shared::clear_away::purge;
use super::state::WorkspaceState;
use crate::engine::transition::{AfterCommit, Operation, Probe, Transition, TransitionSpec};
use crate::world::{Result, SnapshotId, SnapshotState, World};

/// The parameters of `delete` in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletePlan {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The state of the workspace, which `delete` does not change.
    pub state: WorkspaceState,
}

pub(super) fn table(plan: DeletePlan) -> Operation<World> {
    let state = plan.state;
    Operation::new(ids::DELETE, "delete", AfterCommit::Stuck, move |_, _| {
        async move { Ok(state.bytes()?) }.boxed()
    })
    .commit(Box::new(Trash(plan.snapshot)))
    .stage("remove", vec![purge(plan.snapshot)])
}

struct Trash(SnapshotId);

impl Transition<World> for Trash {
    type Intent = SnapshotId;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::never_undone(ids::TRASH, "rename to trash", "it is the commit point", QUICK)
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<SnapshotId> {
        Ok(self.0)
    }

    async fn probe(&self, context: &Context<'_>, id: &SnapshotId) -> Result<Probe<()>> {
        Ok(match context.world.catalog.find(*id).await? {
            SnapshotState::Listed => Probe::NotDone,
            SnapshotState::Trashed | SnapshotState::Absent => Probe::Done(()),
            SnapshotState::Staged => Probe::CannotTell(format!(
                "snapshot {id} is in its staging directory, though it was in the list"
            )),
        })
    }

    async fn apply(&self, context: &Context<'_>, id: &SnapshotId) -> Result<()> {
        context.world.catalog.trash(*id).await
    }
}
