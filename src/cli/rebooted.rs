//! What commands that speak to the guest do when they find out that it was rebooted. May use `command`.

use std::time::Duration;

use super::WorkspaceLocation;
use super::command::{LockedWorkspace, OutputOptions, block_on};
use super::error::{self, Problem};
use super::preflight::Preflight;
use super::wiring::Wiring;
use crate::engine::transition::Interrupt;
use crate::guest::shell::Shell;
use crate::operations::RunningVm;

/// How long a command that only reads waits for a guest that was rebooted.
const GUEST_WAIT: Duration = Duration::from_secs(5);

/// Whether the guest at the other end of a connection was rebooted since it got its credentials and shares.
pub(super) fn is_rebooted(vm: &RunningVm, shell: &Shell) -> bool {
    vm.boot.is_some_and(|boot| boot != shell.facts.boot)
}

/// Gives the guest of the running VM its credentials and shares again. This takes the lock of the workspace.
pub(super) fn equip(location: &WorkspaceLocation) -> Result<(), Problem> {
    error::print_stderr("nixbox: the guest was rebooted, and gets its credentials and shares again\n");
    let workspace = LockedWorkspace::open(location, "equip", Preflight::None, OutputOptions::QUIET)?;
    workspace.run(async |session| error::check_result(session.equip().await?)).map(drop)
}

/// Whether the guest of a VM that runs was rebooted and lacks its credentials and shares. The guest is asked only if its VMM
/// has reported a reboot; one that does not answer counts as booting.
pub(super) fn lacks(wiring: &Wiring, vm: &RunningVm) -> bool {
    let reported = wiring.vmm.last_events(vm.machine.vmm).is_ok_and(|events| events.rebooted);
    reported
        && block_on(async {
            let interrupt = Interrupt::new();
            let asked = wiring.guest.connect(&vm.machine, &interrupt);
            Ok(match tokio::time::timeout(GUEST_WAIT, asked).await {
                Ok(Ok(shell)) => {
                    let rebooted = is_rebooted(vm, &shell);
                    shell.session.close().await;
                    rebooted
                }
                Ok(Err(_)) | Err(_) => true,
            })
        })
        .unwrap_or(true)
}
