//! `nixbox run`.

use std::sync::Arc;

use nix::sys::signal::Signal;

use super::error::{ExitKind, Outcome, Problem};
use super::{WorkspaceLocation, journal_state, session, wiring};
use crate::engine::transition::{Failure, Interrupt};
use crate::files::copy::Silent;
use crate::guest::channel::{ChannelError, CommandExit};
use crate::guest::shell::run_command;

/// Run a command in the VM: no terminal, stdin, stdout and stderr passed through, exit status the command's
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: echo hello | nixbox run -- tr a-z A-Z")]
pub(super) struct Arguments {
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("cannot get through to the VM")]
    Connect(#[source] Failure),
    #[error("the command's end is not known")]
    Broken(#[source] ChannelError),
}

/// A guest that cannot be reached.
pub(super) fn unreachable(failure: Failure) -> Problem {
    let gone = matches!(failure, Failure::Lost);
    let problem =
        Problem::new(if gone { ExitKind::NotFound } else { ExitKind::Failed }, RunError::Connect(failure));
    if gone { problem.with("`nixbox up` clears away what is left of it and starts another") } else { problem }
}

pub(super) fn run(place: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let workspace = place.workspace()?;
    let vm = journal_state::running(&workspace)?;
    let config = WorkspaceLocation::config(&workspace)?;
    let assembly = wiring::assemble(&workspace, &config, Arc::new(Silent), session::complain())?;
    let runtime = session::runtime()?;
    let ended = runtime.block_on(async {
        let shell = assembly.guest.connect(&vm.machine, &Interrupt::new()).await.map_err(unreachable)?;
        let command = run_command(&arguments.command);
        let ended = shell
            .session
            .pass_through(command.as_bytes(), tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr())
            .await
            .map_err(|error| Problem::new(ExitKind::Failed, RunError::Broken(error)))?;
        shell.session.close().await;
        Ok(ended)
    });
    // A read of stdin cannot be taken back.
    runtime.shutdown_background();
    ended.map(|ended| status(&ended))
}

/// The exit status with which a shell would report how the command ended.
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
