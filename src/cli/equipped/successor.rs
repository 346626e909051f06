//! The VM that runs in a workspace after the one under which a command was started.

use crate::cli::WorkspaceLocation;
use crate::cli::command::OpenWorkspace;
use crate::cli::error::{CliError, Problem};
use crate::cli::journal_state;
use crate::files::Folder;
use crate::files::changes::DirectoryChanges;
use crate::world::Machine;

/// Returns what the VM is now whose VMM is gone: the same guest, with the same RAM, in another VMM. Returns `None` if the
/// workspace has no VM, or another one. While an operation is at work, this function waits for the next record in the journal,
/// because a live snapshot ends a VMM and goes on with the guest in another one.
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
        if let Some(vm) = running.filter(|vm| vm.machine.memory == gone.memory && vm.machine.vmm != gone.vmm)
        {
            return Ok(Some(vm.machine));
        }
        if open.journal.open().is_none() {
            return Ok(None);
        }
        changes.changed().await.map_err(CliError::Changes)?;
    }
}
