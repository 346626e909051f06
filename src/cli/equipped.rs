//! How commands reach the guest of the VM that runs: with its credentials and shares, also if it was rebooted.

use std::time::Duration;

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

/// How often the VMM is asked for the VM while a command of a person runs in the guest.
const COMMAND_WATCH: Duration = Duration::from_millis(250);

/// A guest that was reached.
pub(super) struct EquippedGuest {
    pub(super) wiring: Wiring,
    pub(super) vm: RunningVm,
    pub(super) shell: Shell,
    /// The runtime on which the connection is. A command whose thread may be blocked in a read of stdin shuts it down
    /// without waiting.
    pub(super) runtime: Runtime,
}

/// Connects to the guest for a command that may run long, and is to wait for a guest that is silent. What speaks to the guest
/// then has to run in [`while_vm_runs`] or [`until_vm_ends`]. A guest that was rebooted gets its credentials and shares again
/// first.
pub(super) fn reach_for_long(location: &WorkspaceLocation) -> Result<EquippedGuest, Problem> {
    let (workspace, vm) = OpenWorkspace::of_running_vm(location)?;
    let wiring = workspace.wire_for(&vm)?;
    let runtime = command::runtime()?;
    let connect = async || wiring.guest.connect_for_long(&vm.machine, &Interrupt::new()).await;
    let mut shell = runtime.block_on(connect()).map_err(CliError::Connect)?;
    if rebooted::is_rebooted(&vm, &shell) {
        // A command must not run without what it was given before.
        runtime.block_on(shell.session.close());
        rebooted::equip(location)?;
        shell = runtime.block_on(connect()).map_err(CliError::Connect)?;
    }
    runtime.block_on(wiring.guest.put_clock_right(&shell));
    Ok(EquippedGuest { wiring, vm, shell, runtime })
}

/// Does the same and gives the guest nothing, for a process that is started by a command which has reached the guest.
pub(super) fn reach_as_it_is(location: &WorkspaceLocation) -> Result<EquippedGuest, Problem> {
    let (workspace, vm) = OpenWorkspace::of_running_vm(location)?;
    let wiring = workspace.wire()?;
    let runtime = command::runtime()?;
    let connected = runtime.block_on(wiring.guest.connect_for_long(&vm.machine, &Interrupt::new()));
    Ok(EquippedGuest { shell: connected.map_err(CliError::Connect)?, wiring, vm, runtime })
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
    let done = until_vm_ends(location, wiring, vm, COMMAND_WATCH, act).await?;
    Ok(done.ok_or(CliError::VmEnded)?)
}

/// Does the same, and asks the VMM for the VM at this interval. Returns `None` if the VM has ended.
///
/// # Errors
/// Those of `act`, and if it cannot be found out whether the VM runs.
pub(super) async fn until_vm_ends<T>(
    location: &WorkspaceLocation,
    wiring: &Wiring,
    vm: &RunningVm,
    interval: Duration,
    act: impl Future<Output = Result<T, Problem>>,
) -> Result<Option<T>, Problem> {
    let (mut machine, mut act) = (vm.machine, std::pin::pin!(act));
    loop {
        let acting = async { Ok(act.as_mut().await) };
        machine = match wiring.guest.until_vm_is_gone(&machine, interval, acting).await {
            Ok(ended) => return ended.map(Some),
            Err(Failure::Lost) => {
                let mut found = std::pin::pin!(successor::find(location, &machine));
                // The guest may go on before the operation has ended that gave it to another VMM.
                let found = tokio::select! {
                    found = &mut found => found?,
                    ended = &mut act => match ended {
                        Ok(done) => return Ok(Some(done)),
                        Err(problem) => return found.await?.map_or(Ok(None), |_| Err(problem)),
                    },
                };
                match found {
                    Some(successor) => successor,
                    None => return Ok(None),
                }
            }
            Err(failure) => return Err(CliError::VmState(failure).into()),
        };
    }
}
