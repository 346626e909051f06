//! What a session does after a snapshot was made: it deletes the oldest snapshots that have no name.
//!
//! Uses the session.

use super::outcome::{OperationResult, Refusal};
use super::session::Session;
use super::state::WorkspaceState;
use crate::engine::journal::Storage;
use crate::world::{ListedSnapshot, SnapshotId};

impl<S: Storage> Session<'_, S> {
    /// Deletes the oldest unnamed snapshots. The last `keep` stay, and so does the one that the VM came from.
    pub(super) async fn prune(
        &mut self,
        keep: Option<u32>,
        pruned: &mut Vec<SnapshotId>,
    ) -> Result<(), Refusal> {
        let Some(keep) = keep else {
            return Ok(());
        };
        for id in to_prune(&self.listed().await?, keep, &self.state()?) {
            match self.remove(id).await? {
                OperationResult::Done => pruned.push(id),
                OperationResult::Stuck(failure) => return Err(Refusal::Stuck(failure)),
                // A person asked to stop: the next snapshot prunes the others.
                _ => return Ok(()),
            }
        }
        Ok(())
    }
}

/// The unnamed snapshots that are deleted when `keep` of them stay, oldest first.
fn to_prune(listed: &[ListedSnapshot], keep: u32, state: &WorkspaceState) -> Vec<SnapshotId> {
    let from = match state {
        WorkspaceState::Up(vm) => vm.from,
        WorkspaceState::Down { .. } => None,
    };
    let newest_first = listed.iter().rev().filter(|one| one.is_unnamed()).map(|one| one.id);
    let mut old: Vec<_> = newest_first.skip(keep as usize).filter(|id| Some(*id) != from).collect();
    old.reverse();
    old
}
