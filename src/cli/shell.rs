//! `nixbox shell`: the system's own ssh, for its terminal, held to the host key that nixbox learned.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;

use super::error::{ExitKind, Outcome, Problem};
use super::run::unreachable;
use super::{WorkspaceLocation, journal_state, session, wiring};
use crate::engine::transition::Interrupt;
use crate::files::copy::Silent;
use crate::guest::host_key::ALIAS;
use crate::guest::ssh_guest;
use crate::host::spawn::{self, SpawnError};
use crate::simulator;

/// Log in to the VM
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox shell")]
pub(super) struct Arguments {}

#[derive(Debug, thiserror::Error)]
enum ShellError {
    #[error("the system's ssh, which `nixbox shell` uses, cannot be found")]
    NoSsh(#[source] SpawnError),
    #[error("cannot start {path}")]
    Start {
        path: String,
        #[source]
        source: std::io::Error,
    },
}

pub(super) fn run(place: &WorkspaceLocation, _: &Arguments) -> Outcome {
    let workspace = place.workspace()?;
    let vm = journal_state::running(&workspace)?;
    let config = WorkspaceLocation::config(&workspace)?;
    let assembly = wiring::assemble(&workspace, &config, Arc::new(Silent), session::complain())?;
    let ssh = spawn::find_program("ssh", "NIXBOX_SSH")
        .map_err(|error| Problem::new(ExitKind::Failed, ShellError::NoSsh(error)))?;
    // Whether it answers is known before ssh waits for it in silence; and its host key is pinned then.
    session::block_on(async {
        let shell = assembly.guest.connect(&vm.machine, &Interrupt::new()).await.map_err(unreachable)?;
        shell.session.close().await;
        Ok(())
    })?;
    let pin = assembly.guest.pin(vm.machine.disk);
    let address = if assembly.simulated {
        simulator::network::address(&assembly.runtime, vm.machine.slot)
    } else {
        ssh_guest::address(vm.machine.slot)
    };
    let error = Command::new(&ssh)
        .args(["-t", "-F", "none", "-i"])
        .arg(config.guest.ssh_key.as_path())
        .args(["-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"])
        .args(["-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR"])
        .arg("-o")
        .arg(format!("HostKeyAlias={ALIAS}"))
        .arg("-o")
        // Quoted, for it takes several files.
        .arg(format!("UserKnownHostsFile=\"{}\"", pin.path().display()))
        .args(["-o", "GlobalKnownHostsFile=none", "-p"])
        .arg(address.port().to_string())
        .arg("-l")
        .arg(config.guest.user.as_str())
        .arg(address.ip().to_string())
        .exec();
    Err(Problem::new(ExitKind::Failed, ShellError::Start { path: ssh.display().to_string(), source: error }))
}
