//! `nixbox run`.

use nix::sys::signal::Signal;

use super::WorkspaceLocation;
use super::command::{self, OpenWorkspace};
use super::error::{CliError, Outcome};
use super::rebooted;
use crate::engine::transition::Interrupt;
use crate::guest::channel::CommandExit;
use crate::guest::shell::run_command;

/// Run a command in the VM and exit with its status
///
/// stdin, stdout and stderr are passed through, without a terminal: `nixbox shell` has one. The exit status is 128 plus
/// the signal's number if a signal ended the command, 3 if no VM is running, and 1 if the guest cannot be reached or
/// the connection breaks.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: echo hello | nixbox run -- tr a-z A-Z")]
pub(super) struct Arguments {
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let (workspace, vm) = OpenWorkspace::of_running_vm(location)?;
    let wiring = workspace.wire_for(&vm)?;
    let runtime = command::runtime()?;
    let connect = async || {
        let connected = wiring.guest.connect(&vm.machine, &Interrupt::new()).await;
        connected.map_err(CliError::Connect)
    };
    let mut shell = runtime.block_on(connect())?;
    if rebooted::is_rebooted(&vm, &shell) {
        // A command must not run without what it was given before.
        runtime.block_on(shell.session.close());
        rebooted::equip(location)?;
        shell = runtime.block_on(connect())?;
    }
    let ended = runtime.block_on(async {
        wiring.guest.put_clock_right(&shell).await;
        let command = run_command(&arguments.command);
        let ended = shell
            .session
            .pass_through(command.as_bytes(), tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr())
            .await
            .map_err(CliError::CommandLost)?;
        shell.session.close().await;
        Ok::<_, CliError>(ended)
    });
    // A thread may still be blocked in a read of stdin, which cannot be interrupted, so the runtime must not wait for
    // it.
    runtime.shutdown_background();
    Ok(status(&ended?))
}

/// The exit status that a shell would give for the end of the command.
fn status(ended: &CommandExit) -> u8 {
    match ended {
        CommandExit::Status(status) => u8::try_from(*status).unwrap_or(u8::MAX),
        CommandExit::Signal(name) => signal_number(name).map_or(u8::MAX, |number| 128 + number),
    }
}

/// The number of a signal that SSH names without `SIG` (RFC 4254, 6.10).
fn signal_number(name: &str) -> Option<u8> {
    let signal: Signal = format!("SIG{name}").parse().ok()?;
    u8::try_from(signal as i32).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_ended_by_a_signal_has_the_exit_status_of_a_shell() {
        for (name, expected) in [
            ("HUP", 129),
            ("INT", 130),
            ("ABRT", 134),
            ("KILL", 137),
            ("USR1", 138),
            ("TERM", 143),
            ("SYS", 159),
        ] {
            assert_eq!(status(&CommandExit::Signal(name.to_owned())), expected, "{name}");
        }
        for unknown in ["", "term", "SIGTERM", "TERM@openssh.com"] {
            assert_eq!(status(&CommandExit::Signal(unknown.to_owned())), 255, "{unknown}");
        }
        assert_eq!(status(&CommandExit::Status(7)), 7);
        assert_eq!(status(&CommandExit::Status(256)), 255);
    }
}
