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
use crate::world::Failure;

mod successor;

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
    reach_by(location, async |wiring, vm| wiring.guest.connect(&vm.machine, &Interrupt::new()).await)
}

/// The same for a command that may run long, and is to wait for a guest that is silent. What speaks to the guest then has to
/// run in [`while_vm_runs`].
pub(super) fn reach_for_long(location: &WorkspaceLocation) -> Result<EquippedGuest, Problem> {
    reach_by(location, async |wiring, vm| wiring.guest.connect_for_long(&vm.machine, &Interrupt::new()).await)
}

fn reach_by(
    location: &WorkspaceLocation,
    connect: impl AsyncFn(&Wiring, &RunningVm) -> Result<Shell, Failure>,
) -> Result<EquippedGuest, Problem> {
    let (workspace, vm) = OpenWorkspace::of_running_vm(location)?;
    let wiring = workspace.wire_for(&vm)?;
    let runtime = command::runtime()?;
    let mut shell = runtime.block_on(connect(&wiring, &vm)).map_err(CliError::Connect)?;
    if rebooted::is_rebooted(&vm, &shell) {
        // A command must not run without what it was given before.
        runtime.block_on(shell.session.close());
        rebooted::equip(location)?;
        shell = runtime.block_on(connect(&wiring, &vm)).map_err(CliError::Connect)?;
    }
    runtime.block_on(wiring.guest.put_clock_right(&shell));
    Ok(EquippedGuest { wiring, vm, shell, runtime })
}

/// Does `act` until it ends, under the VM that the workspace has at each moment: a live snapshot may go on with the guest, and
/// its connections, in another VMM.
///
/// # Errors
/// [`CliError::VmEnded`], and the errors of `act`.
pub(super) async fn while_vm_runs<T>(
    location: &WorkspaceLocation,
    wiring: &Wiring,
    vm: &RunningVm,
    act: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    let (mut machine, mut act) = (vm.machine, std::pin::pin!(act));
    loop {
        let there = wiring.guest.while_there(&machine, async { Ok(act.as_mut().await) });
        machine = match there.await {
            Ok(ended) => return ended,
            Err(Failure::Lost) => successor::find(location, &machine).await?.ok_or(CliError::VmEnded)?,
            Err(failure) => return Err(CliError::VmState(failure).into()),
        };
    }
}
