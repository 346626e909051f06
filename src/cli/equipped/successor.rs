//! The VM that runs in a workspace after the one under which a command was started.

use crate::cli::WorkspaceLocation;
use crate::cli::command::OpenWorkspace;
use crate::cli::error::{CliError, Problem};
use crate::cli::journal_state;
use crate::files::Folder;
use crate::files::changes::DirectoryChanges;
use crate::world::Machine;

/// Returns the VM that the workspace has in place of `gone`. Returns `None` if the workspace has no VM. While an operation is at
/// work, this function waits for the next record in the journal, because a live snapshot ends a VM and goes on with the guest in
/// another one.
///
/// # Errors
/// If the journal cannot be read or watched.
pub(super) async fn find(location: &WorkspaceLocation, gone: &Machine) -> Result<Option<Machine>, Problem> {
    let journal = Folder::open(&location.workspace()?.journal()).map_err(CliError::from)?;
    // A record that is written after this look ends the wait.
    let changes = DirectoryChanges::of(&journal).map_err(CliError::from)?;
    loop {
        let open = OpenWorkspace::open(location)?;
        let running = journal_state::running_vm(&open.workspace, &open.journal).ok();
        if let Some(vm) = running.filter(|vm| vm.machine.vmm != gone.vmm) {
            return Ok(Some(vm.machine));
        }
        if open.journal.open().is_none() {
            return Ok(None);
        }
        changes.changed().await.map_err(CliError::Changes)?;
    }
}
