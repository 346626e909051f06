//! `nixbox shell`: runs the ssh program of this host, and lets it accept only the host key that nixbox has pinned.

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::WorkspaceLocation;
use super::command::{OpenWorkspace, block_on};
use super::error::{self, CliError, Outcome};
use super::rebooted;
use super::wiring::place;
use crate::engine::transition::Interrupt;
use crate::guest::host_key::ALIAS;
use crate::guest::{ssh_guest, terminal};
use crate::host::spawn;
use crate::simulator;

/// Log in to the VM with a terminal, or run a command in one
///
/// Without a command, nixbox starts the ssh program of this host, which accepts only the guest's host key that nixbox has learned, and
/// ends with its exit status. A guest that does not know the terminal in TERM is told another one that it knows.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox shell\n\
    Example: nixbox shell htop")]
pub(super) struct Arguments {
    /// A command line, or a program and its arguments, as `nixbox run -t` takes them
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    if !arguments.command.is_empty() {
        let arguments = super::run::Arguments::in_terminal(arguments.command.clone());
        return super::run::run(location, &arguments);
    }
    let (workspace, vm) = OpenWorkspace::of_running_vm(location)?;
    let id = workspace.workspace.id();
    let wiring = workspace.wire_for(&vm)?;
    let ssh = spawn::find_program("ssh", "NIXBOX_SSH").map_err(CliError::NoSsh)?;
    let own_type = std::env::var("TERM").ok().filter(|_| std::io::stdin().is_terminal());
    // This connection pins the guest's host key. It also reports a guest that does not answer, whereas ssh would wait
    // without a message.
    let (is_rebooted, terminal) = block_on(async {
        let connected = wiring.guest.connect(&vm.machine, &Interrupt::new()).await;
        let shell = connected.map_err(CliError::Connect)?;
        wiring.guest.put_clock_right(&shell).await;
        let is_rebooted = rebooted::is_rebooted(&vm, &shell);
        let terminal = match &own_type {
            Some(own) => terminal::substitute(&shell.session, own).await,
            None => None,
        };
        shell.session.close().await;
        Ok((is_rebooted, terminal))
    })?;
    if is_rebooted && let Err(problem) = rebooted::equip(location) {
        // A person may want to find out in the guest what is wrong.
        error::print_stderr(&format!("nixbox: {}; the guest lacks them\n", problem.one_line()));
    }
    if let (Some(own), Some(terminal)) = (&own_type, terminal) {
        error::print_stderr(&terminal::told_otherwise(own, terminal));
    }
    let pin = wiring.guest.pin(vm.machine.disk);
    let address = if wiring.simulated {
        simulator::network::address(&wiring.runtime, vm.machine.slot)
    } else {
        ssh_guest::address(vm.machine.slot)
    };
    let mut command = Command::new(&ssh);
    // ssh tells the guest this type.
    command.envs(terminal.map(|terminal| ("TERM", terminal)));
    if let Some(keeping) = place::keeping(&wiring.place) {
        // ssh puts "exec" before the command. The values are in the environment, so that no character of a path means anything to ssh or to the shell that ssh
        // starts.
        let program = std::env::current_exe().map_err(CliError::NoOwnProgram)?;
        command
            .args(["-o", "ProxyUseFdpass=yes", "-o"])
            .arg(
                "ProxyCommand=\"$NIXBOX_OWN\" guest-connection \"$NIXBOX_OWN_ID\" \"$NIXBOX_OWN_RUNTIME\" \
                 \"$NIXBOX_OWN_ADDRESS\" \"$NIXBOX_OWN_NAMESPACE\"",
            )
            .env("SHELL", "/bin/sh")
            .env("NIXBOX_OWN", program)
            .env("NIXBOX_OWN_ID", id.to_string())
            .env("NIXBOX_OWN_RUNTIME", &wiring.runtime)
            .env("NIXBOX_OWN_ADDRESS", address.to_string())
            .env("NIXBOX_OWN_NAMESPACE", keeping.to_string());
    }
    let error = command
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
