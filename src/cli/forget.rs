//! `nixbox forget`.

use super::error::{self, Outcome};
use super::forward::ended;
use super::ssh_config::installed;
use super::{WorkspaceLocation, success};
use crate::workspace::registry::Registry;
use crate::world::WorkspaceId;

/// Remove what nixbox keeps of a workspace whose directory is gone
///
/// This removes the snapshots, the disks, the key, the journal and the logs of the workspace, and its entry for ssh. It is refused while the directory is
/// there, or the VM runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox forget 0f6a1c8e2d4b5a69788796a5b4c3d2e1")]
pub(super) struct Arguments {
    /// The id of the workspace, which `nixbox list` shows
    id: WorkspaceId,
}

pub(super) fn run(_: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let registry = Registry::open(&WorkspaceLocation::places()?)?;
    let forgotten = registry.forget(arguments.id)?;
    // A process that still forwards ports of a VM that has ended does so for a moment only.
    ended::end_all(arguments.id)?;
    installed::remove(&installed::home()?, arguments.id)?;
    let state = forgotten.state_directory();
    error::print(&format!("removed {}, the state of {}", state.display(), forgotten.path.display()))?;
    success()
}
