//! Ends the processes that forward ports in the background where their VM has ended, or the workspace.
//!
//! They end by themselves. But that takes a moment, in which they have ports that the next command may need.

use super::background::DescribedForward;
use crate::cli::command::block_on;
use crate::cli::error::Problem;
use crate::host::forwards::ForwardDaemons;
use crate::world::{Generation, WorkspaceId};

/// Ends the processes that forward ports of an earlier VM of the workspace than the one with this RAM.
///
/// # Errors
/// If they cannot be found, or one is still there.
pub(super) fn end_those_of_other_vms(workspace: WorkspaceId, memory: Generation) -> Result<(), Problem> {
    let forwards = ForwardDaemons::new(workspace);
    block_on(async {
        for forward in forwards.find()? {
            if DescribedForward::of(&forward).is_some_and(|described| described.vm != memory) {
                forwards.end(&forward).await?;
            }
        }
        Ok(())
    })
}

/// Ends the process with this id, if it forwards ports of the workspace.
///
/// # Errors
/// If it cannot be found, or is still there.
pub(super) fn end_one(workspace: WorkspaceId, pid: u32) -> Result<(), Problem> {
    let forwards = ForwardDaemons::new(workspace);
    block_on(async {
        for forward in forwards.find()?.iter().filter(|forward| forward.pid() == pid) {
            forwards.end(forward).await?;
        }
        Ok(())
    })
}

/// Ends all processes that forward ports of the workspace, which has no VM.
///
/// # Errors
/// If they cannot be found, or one is still there.
pub(in crate::cli) fn end_all(workspace: WorkspaceId) -> Result<(), Problem> {
    block_on(async { Ok(ForwardDaemons::new(workspace).end_all().await?) })
}
