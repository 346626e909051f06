//! Where the RAM of a VM is. May use `config`, `host`, `store` and `workspace`.

use std::path::PathBuf;
use std::sync::Arc;

use super::Result;
use crate::config::VmSpec;
use crate::files::copy::Progress;
use crate::host::lifetime::Lifetime;
use crate::host::memory::{self, RamFiles};
use crate::store::LeakSearch;
use crate::workspace::registry::Registry;
use crate::workspace::{Workspace, WorkspaceError};
use crate::world::Backing;

/// Where RAM is put. A log-out empties `/dev/shm` of the files of a user who does not linger, so RAM is put on disk then,
/// unless the configuration asks for tmpfs.
fn backing(configured: Backing) -> Result<Backing> {
    let lifetime = Lifetime::of_this_process().map_err(WorkspaceError::File)?;
    let on_disk = configured == Backing::Auto && lifetime.files_end_at_log_out;
    Ok(if on_disk { Backing::Disk } else { configured })
}

/// The RAM of the VM of a workspace.
pub(super) fn of(
    workspace: &Workspace,
    spec: &VmSpec,
    progress: &Arc<dyn Progress>,
    leaks: &Arc<LeakSearch>,
) -> Result<RamFiles> {
    Ok(RamFiles {
        run: workspace.run(),
        snapshots: workspace.snapshots(),
        tmpfs: memory::tmpfs_directories(),
        former: memory::former_directories(),
        others: other_run_directories(workspace),
        workspace: workspace.id(),
        size: spec.vm.memory.bytes(),
        backing: backing(spec.vm.backing)?,
        // No check is needed, because a restore verifies every file of the snapshot just before the copy.
        check: false,
        progress: Arc::clone(progress),
        leaks: Arc::clone(leaks),
    })
}

/// Where the user's other workspaces have RAM files on disk. A registry that cannot be read does not keep a person from
/// a VM, as elsewhere; its workspaces are not counted then.
fn other_run_directories(workspace: &Workspace) -> Vec<PathBuf> {
    let registry = Registry::open(workspace.places());
    let entries = registry.and_then(|registry| registry.list()).unwrap_or_default();
    let others = entries.into_iter().flatten().filter(|entry| entry.id != workspace.id());
    others.map(|entry| entry.state_directory().join("run")).collect()
}
