//! How commands reach the guest of the VM that runs: with its credentials and shares, also if it was rebooted.

use tokio::runtime::Runtime;

use super::WorkspaceLocation;
use super::command::{self, OpenWorkspace};
use super::error::{CliError, Problem};
use super::rebooted;
use super::wiring::Wiring;
use crate::engine::transition::Interrupt;
use crate::guest::shell::Shell;
use crate::operations::RunningVm;

/// A guest that was reached.
pub(super) struct EquippedGuest {
    pub(super) wiring: Wiring,
    pub(super) vm: RunningVm,
    pub(super) shell: Shell,
    /// The runtime on which the connection is. A command whose thread may be blocked in a read of stdin shuts it down
    /// without waiting.
    pub(super) runtime: Runtime,
}

/// Connects to the guest. A guest that was rebooted gets its credentials and shares again first.
pub(super) fn reach(location: &WorkspaceLocation) -> Result<EquippedGuest, Problem> {
    let (workspace, vm) = OpenWorkspace::of_running_vm(location)?;
    let wiring = workspace.wire_for(&vm)?;
    let runtime = command::runtime()?;
    let connect = async || {
        let connected = wiring.guest.connect(&vm.machine, &Interrupt::new()).await;
        connected.map_err(CliError::Connect)
    };
    let mut shell = runtime.block_on(connect())?;
    if rebooted::is_rebooted(&vm, &shell) {
        runtime.block_on(shell.session.close());
        rebooted::equip(location)?;
        shell = runtime.block_on(connect())?;
    }
    runtime.block_on(wiring.guest.put_clock_right(&shell));
    Ok(EquippedGuest { wiring, vm, shell, runtime })
}
