//! `nixbox run`.

use std::sync::Arc;

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

/// What a shell would say of a command that ended like this.
fn status(ended: &CommandExit) -> u8 {
    match ended {
        CommandExit::Status(status) => u8::try_from(*status).unwrap_or(u8::MAX),
        CommandExit::Signal(name) => signal_number(name).map_or(u8::MAX, |number| 128 + number),
    }
}

/// The numbers of x86-64 and aarch64 Linux (signal(7)) for the names of RFC 4254, 6.10, and those that OpenSSH adds.
fn signal_number(name: &str) -> Option<u8> {
    Some(match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ILL" => 4,
        "TRAP" => 5,
        "ABRT" => 6,
        "BUS" => 7,
        "FPE" => 8,
        "KILL" => 9,
        "USR1" => 10,
        "SEGV" => 11,
        "USR2" => 12,
        "PIPE" => 13,
        "ALRM" => 14,
        "TERM" => 15,
        _ => return None,
    })
}
