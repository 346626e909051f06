//! `nixbox shell`: runs the ssh program of this host, and lets it accept only the host key that nixbox has pinned.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::WorkspaceLocation;
use super::command::{OpenWorkspace, block_on};
use super::error::{CliError, Outcome};
use crate::engine::transition::Interrupt;
use crate::guest::host_key::ALIAS;
use crate::guest::ssh_guest;
use crate::host::spawn;
use crate::simulator;

/// Log in to the VM with a terminal
///
/// nixbox starts the ssh program of this host, which accepts only the guest's host key that nixbox has learned, and
/// ends with its exit status.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox shell")]
pub(super) struct Arguments {}

pub(super) fn run(location: &WorkspaceLocation, _: &Arguments) -> Outcome {
    let (workspace, vm) = OpenWorkspace::of_running_vm(location)?;
    let wiring = workspace.wire_for(&vm)?;
    let ssh = spawn::find_program("ssh", "NIXBOX_SSH").map_err(CliError::NoSsh)?;
    // This connection pins the guest's host key. It also reports a guest that does not answer, whereas ssh would wait
    // without a message.
    block_on(async {
        let connected = wiring.guest.connect(&vm.machine, &Interrupt::new()).await;
        let shell = connected.map_err(CliError::Connect)?;
        shell.session.close().await;
        Ok(())
    })?;
    let pin = wiring.guest.pin(vm.machine.disk);
    let address = if wiring.simulated {
        simulator::network::address(&wiring.runtime, vm.machine.slot)
    } else {
        ssh_guest::address(vm.machine.slot)
    };
    let error = Command::new(&ssh)
        .args(["-t", "-F", "none", "-i"])
        .arg(wiring.spec.guest.ssh_key.as_path())
        .args(["-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"])
        .args(["-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR"])
        .arg("-o")
        .arg(format!("HostKeyAlias={ALIAS}"))
        .arg("-o")
        // The path is quoted, because the option takes several files separated by blanks.
        .arg(format!("UserKnownHostsFile=\"{}\"", pin.path().display()))
        .args(["-o", "GlobalKnownHostsFile=none", "-p"])
        .arg(address.port().to_string())
        .arg("-l")
        .arg(wiring.spec.guest.user.as_str())
        .arg(address.ip().to_string())
        .exec();
    Err(CliError::StartSsh { path: ssh.display().to_string(), source: error }.into())
}
