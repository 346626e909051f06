//! The command line: clap's types here, one file per command, and [`report`] for all that goes wrong.
//!
//! A command finds its workspace, takes its lock if it changes anything, puts the real world together
//! ([`assembly`]) and hands it to an `operations::Session`. Nothing here decides what an operation does.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

mod journal;
pub mod report;

use report::{Exit, Outcome, Problem};

/// Developer sandboxes as microVMs, one per workspace.
#[derive(Debug, Parser)]
#[command(name = "nixbox", version, arg_required_else_help = true)]
#[command(after_help = "Exit status: 0 done, 1 failed and rolled back, 2 usage, 3 not found, 4 a person is needed, \
5 another nixbox is at work, 130 interrupted and rolled back.")]
struct Arguments {
    /// Work in the workspace that this directory belongs to, not the current one
    #[arg(short = 'C', long, global = true, value_name = "DIRECTORY", default_value = ".")]
    directory: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Journal(journal::Arguments),
}

/// Where a command was called.
struct Place {
    directory: PathBuf,
}

impl Place {
    fn workspace(&self) -> Result<Workspace, Problem> {
        Ok(Workspace::find(&self.directory)?)
    }
}

/// Runs the command that the arguments of this process name.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let place = Place {
        directory: arguments.directory,
    };
    let code = run(&place, arguments.command).unwrap_or_else(|problem| {
        problem.print();
        problem.exit() as u8
    });
    ExitCode::from(code)
}

fn run(place: &Place, command: Command) -> Outcome {
    match command {
        Command::Journal(arguments) => journal::run(place, &arguments),
    }
}

fn done() -> Outcome {
    Ok(Exit::Done as u8)
}
