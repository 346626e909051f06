//! The VM that runs in a workspace after the one under which a command was started.

use std::time::Duration;

use crate::cli::WorkspaceLocation;
use crate::cli::command::OpenWorkspace;
use crate::cli::journal_state;
use crate::world::Machine;

/// How often the journal is read while an operation is at work.
const LOOK: Duration = Duration::from_millis(250);

/// The VM that has taken the place of `gone`; `None` if there is none, or if the journal cannot be read. An operation that is
/// at work is waited for: it may have ended the VM to go on with its guest in another one.
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
