//! The command line: clap's types here, one file per command, and [`error`] for all that goes wrong.
//!
//! A command finds its workspace, takes its lock if it changes anything, puts the real world together
//! ([`wiring`]) and hands it to an `operations::Session`. Nothing here decides what an operation does.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, HostFacts};
use crate::host::sudo;
use crate::workspace::Workspace;

mod config;
mod demo;
mod doctor;
mod down;
pub mod error;
#[cfg(feature = "failpoints")]
mod failpoints;
mod image;
mod init;
mod journal;
mod journal_state;
mod preflight;
mod progress;
mod recover;
mod restore;
mod run;
mod session;
mod shell;
mod signals;
mod simulator;
mod snapshot;
mod status;
mod up;
pub mod wiring;

use error::{ExitKind, Outcome, Problem};

/// Developer sandboxes as microVMs, one per workspace.
#[derive(Debug, Parser)]
#[command(name = "nixbox", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 done, 1 failed and rolled back, 2 usage, 3 not found, 4 a person is needed, \
5 another nixbox is at work, 130 interrupted and rolled back."
)]
struct Arguments {
    /// Work in the workspace that this directory belongs to, not the current one
    #[arg(short = 'C', long, global = true, value_name = "DIRECTORY", default_value = ".")]
    directory: PathBuf,
    #[command(subcommand)]
    command: NixboxCommand,
}

#[derive(Debug, Subcommand)]
enum NixboxCommand {
    Init(init::Arguments),
    Image(image::Arguments),
    Demo(demo::Arguments),
    Up(up::Arguments),
    Down(down::Arguments),
    Snapshot(snapshot::Arguments),
    Restore(restore::Arguments),
    Shell(shell::Arguments),
    Run(run::Arguments),
    Status(status::Arguments),
    Config(config::Arguments),
    Doctor(doctor::Arguments),
    Recover(recover::Arguments),
    Journal(journal::Arguments),
    #[command(hide = true)]
    Simulator(simulator::Arguments),
}

/// Where a command was called.
struct WorkspaceLocation {
    directory: PathBuf,
}

impl WorkspaceLocation {
    fn workspace(&self) -> Result<Workspace, Problem> {
        Ok(Workspace::find(&self.directory)?)
    }

    fn config(workspace: &Workspace) -> Result<Config, Problem> {
        let host = HostFacts::of_this_machine();
        Ok(Config::load(workspace.nixbox(), workspace.root(), &host)?)
    }
}

/// Runs the command that the arguments of this process name.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let place = WorkspaceLocation { directory: arguments.directory };
    let ran = sudo::become_invoker()
        .map_err(|error| Problem::new(ExitKind::Failed, error))
        .and_then(|()| run(&place, arguments.command));
    let code = ran.unwrap_or_else(|problem| {
        problem.print();
        problem.exit() as u8
    });
    #[cfg(feature = "failpoints")]
    failpoints::tell();
    ExitCode::from(code)
}

fn run(place: &WorkspaceLocation, command: NixboxCommand) -> Outcome {
    match command {
        NixboxCommand::Init(arguments) => init::run(place, &arguments),
        NixboxCommand::Image(arguments) => image::run(place, &arguments),
        NixboxCommand::Demo(arguments) => demo::run(place, &arguments),
        NixboxCommand::Up(arguments) => up::run(place, &arguments),
        NixboxCommand::Down(arguments) => down::run(place, &arguments),
        NixboxCommand::Snapshot(arguments) => snapshot::run(place, arguments),
        NixboxCommand::Restore(arguments) => restore::run(place, &arguments),
        NixboxCommand::Shell(arguments) => shell::run(place, &arguments),
        NixboxCommand::Run(arguments) => run::run(place, &arguments),
        NixboxCommand::Status(arguments) => status::run(place, &arguments),
        NixboxCommand::Config(arguments) => config::run(place, &arguments),
        NixboxCommand::Doctor(arguments) => doctor::run(place, &arguments),
        NixboxCommand::Recover(arguments) => recover::run(place, &arguments),
        NixboxCommand::Journal(arguments) => journal::run(place, &arguments),
        NixboxCommand::Simulator(arguments) => simulator::run(place, arguments),
    }
}

fn done() -> Outcome {
    Ok(ExitKind::Done as u8)
}
