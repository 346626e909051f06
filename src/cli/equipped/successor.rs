//! The VM that runs in a workspace after the one under which a command was started.

use std::time::Duration;

use crate::cli::WorkspaceLocation;
use crate::cli::command::OpenWorkspace;
use crate::cli::journal_state;
use crate::world::Machine;

/// How often the journal is read while an operation is at work.
const LOOK: Duration = Duration::from_millis(250);

/// Returns the VM that the workspace has in place of `gone`. Returns `None` if the workspace has no VM, or if its journal
/// cannot be read. While an operation is at work, this function waits, because a live snapshot ends a VM and goes on with the
/// guest in another one.
pub(super) async fn find(location: &WorkspaceLocation, gone: &Machine) -> Option<Machine> {
    loop {
        let open = OpenWorkspace::open(location).ok()?;
        let running = journal_state::running_vm(&open.workspace, &open.journal).ok();
        if let Some(vm) = running.filter(|vm| vm.machine.vmm != gone.vmm) {
            return Some(vm.machine);
        }
        open.journal.open()?;
        tokio::time::sleep(LOOK).await;
    }
}
