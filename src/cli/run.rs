//! `nixbox run`.
//!
//! [`passed_variable`] reads the option `-e`, and [`local_terminal`] changes the person's own terminal.

use std::io::IsTerminal as _;

use futures_util::future;
use nix::sys::signal::Signal;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc;

use super::WorkspaceLocation;
use super::equipped::{self, EquippedGuest};
use super::error::{self, CliError, Outcome, Problem};
use crate::guest::channel::{CommandExit, GuestCommand, GuestTerminal};
use crate::guest::person_command::{CommandGuard, CommandLine, PersonCommand};
use crate::guest::shell::Shell;
use crate::guest::terminal;
use crate::world::UserName;
use local_terminal::RawTerminal;
use passed_variable::PassedVariable;

mod local_terminal;
mod passed_variable;

/// The signals that are passed on, with the names that the guard takes.
fn passed_signals() -> [(SignalKind, &'static str); 4] {
    [
        (SignalKind::interrupt(), "INT"),
        (SignalKind::terminate(), "TERM"),
        (SignalKind::hangup(), "HUP"),
        (SignalKind::quit(), "QUIT"),
    ]
}

/// The signal with this number ends nixbox.
const MOST_SIGNALS: usize = 3;

/// Run a command in the VM and exit with its status
///
/// One argument is a command line for sh, and several are a program and its arguments. stdin, stdout and stderr are passed
/// through. The command has the variables of the workspace's [env]. It gets SIGINT, SIGTERM and SIGHUP that nixbox gets,
/// and ends if nixbox is killed; the third signal makes nixbox end at once. While the VM is paused or slow, nixbox waits. The
/// exit status is 128 plus the signal's number if a signal ended the command, 3 if no VM is running, and 1 if the guest
/// cannot be reached or the connection breaks.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox run 'cd app && make test'\n\
    Example: echo hello | nixbox run -- tr a-z A-Z\n\
    Example: nixbox run -t -w /var/log less syslog")]
pub(super) struct Arguments {
    /// Give the command a terminal
    #[arg(short = 't', long)]
    terminal: bool,
    /// Pass a variable of nixbox's own environment on, or give it this value. It is no credential to nixbox: snapshots are
    /// not searched for it
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]")]
    variables: Vec<PassedVariable>,
    /// Run it in this directory of the guest, which is relative to the user's home
    #[arg(short = 'w', long, value_name = "DIRECTORY")]
    workdir: Option<String>,
    /// Run it as another user of the guest, without the variables of [env]
    #[arg(long)]
    user: Option<UserName>,
    /// A command line, or a program and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

impl Arguments {
    /// A command in a terminal if nixbox has one, for `nixbox shell`.
    pub(super) fn in_terminal(command: Vec<String>) -> Self {
        let terminal = std::io::stdin().is_terminal();
        Self { terminal, variables: Vec::new(), workdir: None, user: None, command }
    }
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let variables = arguments.variables.iter().map(PassedVariable::read).collect::<Result<_, _>>()?;
    let EquippedGuest { wiring, vm, shell, runtime } = equipped::reach_for_long(location)?;
    let command = PersonCommand {
        line: CommandLine::of_words(&arguments.command),
        variables,
        directory: arguments.workdir.clone(),
        user: arguments.user.clone().filter(|user| *user != wiring.spec.guest.user),
        terminal: None,
    };
    let ended = runtime.block_on(async {
        let terminal = if arguments.terminal { Some(guest_terminal(&shell).await) } else { None };
        let command = PersonCommand { terminal, ..command };
        let ended = equipped::while_vm_runs(location, &wiring, &vm, run_to_end(&shell, command)).await;
        shell.session.close().await;
        ended
    });
    // A thread may still be blocked in a read of stdin, which cannot be interrupted, so the runtime must not wait for
    // it.
    runtime.shutdown_background();
    Ok(status(&ended?))
}

/// The terminal that the command gets: like that of nixbox, if nixbox has one that the guest knows.
async fn guest_terminal(shell: &Shell) -> GuestTerminal {
    let own = std::env::var("TERM").ok().filter(|_| std::io::stdin().is_terminal());
    let own = own.unwrap_or_else(|| terminal::PLAINEST.to_owned());
    let kind = match terminal::substitute(&shell.session, &own).await {
        Some(known) => {
            error::print_stderr(&terminal::told_otherwise(&own, known));
            known.to_owned()
        }
        None => own,
    };
    GuestTerminal { kind, size: local_terminal::size().unwrap_or(local_terminal::USUAL_SIZE) }
}

/// Runs the command until it ends, or nixbox gets its third signal.
async fn run_to_end(shell: &Shell, command: PersonCommand) -> Result<CommandExit, Problem> {
    let signals =
        passed_signals().into_iter().map(|(kind, _)| unix::signal(kind)).collect::<Result<Vec<_>, _>>();
    let signals = signals.map_err(CliError::Signals)?;
    let (guard, running) = command.start(shell).await.map_err(CliError::NotStarted)?;
    // The terminal is as before when this is dropped.
    let _raw = match command.terminal {
        Some(_) => RawTerminal::of_stdin().map_err(CliError::Terminal)?,
        None => None,
    };
    let through = pass_through(running, command.terminal.is_some());
    let ended = tokio::select! {
        ended = through => ended,
        given_up = pass_signals(signals, &guard) => Err(given_up),
    };
    if ended.is_ok() {
        // If this fails, the connection has ended. Then the guard finds that the command has too.
        guard.dismiss().await.ok();
    }
    Ok(ended?)
}

async fn pass_through(running: GuestCommand, in_terminal: bool) -> Result<CommandExit, CliError> {
    let (resize, resized) = mpsc::channel(1);
    let (stdin, stdout, stderr) = (tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr());
    let through = running.pass_through(stdin, stdout, stderr, resized);
    if !in_terminal {
        drop(resize);
        return through.await.map_err(CliError::CommandLost);
    }
    let mut changes = unix::signal(SignalKind::window_change()).map_err(CliError::Signals)?;
    let mut through = std::pin::pin!(through);
    loop {
        tokio::select! {
            ended = &mut through => return ended.map_err(CliError::CommandLost),
            _ = changes.recv() => {
                if let Some(size) = local_terminal::size() {
                    // This fails if the command has just ended.
                    resize.send(size).await.ok();
                }
            }
        }
    }
}

/// Passes signals on to the command. Returns after the third one, because a guest may not answer.
async fn pass_signals(mut signals: Vec<unix::Signal>, guard: &CommandGuard) -> CliError {
    for _ in 1..MOST_SIGNALS {
        let next = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
        let (_, number, _) = future::select_all(next).await;
        // This fails if the connection has ended, which the command's end reports.
        guard.signal(passed_signals()[number].1).await.ok();
    }
    future::select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
    CliError::RunGivenUp
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
