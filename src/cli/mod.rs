//! The command line: clap's types here, one file per command, and [`report`] for all that goes wrong.
//!
//! A command finds its workspace, takes its lock if it changes anything, puts the real world together
//! ([`assembly`]) and hands it to an `operations::Session`. Nothing here decides what an operation does.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, HostFacts};
use crate::host::sudo;
use crate::workspace::Workspace;

pub mod assembly;
mod config;
mod demo;
mod doctor;
mod down;
#[cfg(feature = "failpoints")]
mod failpoints;
mod image;
mod init;
mod journal;
mod preflight;
mod recover;
pub mod report;
mod restore;
mod run;
mod session;
mod shell;
mod show;
mod signals;
mod simulator;
mod snapshot;
mod standing;
mod status;
mod up;

use report::{Exit, Outcome, Problem};

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
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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
struct Place {
    directory: PathBuf,
}

impl Place {
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
    let place = Place { directory: arguments.directory };
    let ran = sudo::become_invoker()
        .map_err(|error| Problem::new(Exit::Failed, error))
        .and_then(|()| run(&place, arguments.command));
    let code = ran.unwrap_or_else(|problem| {
        problem.print();
        problem.exit() as u8
    });
    #[cfg(feature = "failpoints")]
    failpoints::tell();
    ExitCode::from(code)
}

fn run(place: &Place, command: Command) -> Outcome {
    match command {
        Command::Init(arguments) => init::run(place, &arguments),
        Command::Image(arguments) => image::run(place, &arguments),
        Command::Demo(arguments) => demo::run(place, &arguments),
        Command::Up(arguments) => up::run(place, &arguments),
        Command::Down(arguments) => down::run(place, &arguments),
        Command::Snapshot(arguments) => snapshot::run(place, arguments),
        Command::Restore(arguments) => restore::run(place, &arguments),
        Command::Shell(arguments) => shell::run(place, &arguments),
        Command::Run(arguments) => run::run(place, &arguments),
        Command::Status(arguments) => status::run(place, &arguments),
        Command::Config(arguments) => config::run(place, &arguments),
        Command::Doctor(arguments) => doctor::run(place, &arguments),
        Command::Recover(arguments) => recover::run(place, &arguments),
        Command::Journal(arguments) => journal::run(place, &arguments),
        Command::Simulator(arguments) => simulator::run(place, arguments),
    }
}

fn done() -> Outcome {
    Ok(Exit::Done as u8)
}
