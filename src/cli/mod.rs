//! The command line: the arguments in this file, and one file per command.
//!
//! A command opens its workspace ([`command`]), under the lock if the command changes anything. It then wires the real
//! world ([`wiring`]) and passes it to an `operations::Session`. Nothing here decides what an operation does. [`error`]
//! prints every result and error, and chooses the exit codes. This module may use every other module.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};

use crate::config::{Config, DecidedDefaults, HostFacts};
use crate::engine::transition::Interrupt;
use crate::files::copy::Progress;
use crate::host::sudo;
use crate::workspace::places::StatePlaces;
use crate::workspace::registry::{Registry, RegistryError, Standing};
use crate::workspace::{self, Lock, Workspace, WorkspaceError};
use crate::world::WorkspaceId;

mod age;
mod command;
mod completions;
mod config;
mod confined_daemon;
mod consent;
mod cp;
mod credentials;
mod demo;
mod doctor;
mod down;
mod equipped;
pub mod error;
mod events;
#[cfg(feature = "failpoints")]
mod failpoints;
mod forget;
mod forward;
mod image;
mod init;
mod journal;
mod journal_state;
mod list;
mod logs;
mod named;
mod network;
mod network_namespace;
mod own_process;
mod preflight;
mod progress;
mod rebooted;
mod receipt;
mod recover;
mod restore;
mod run;
mod scope_daemon;
mod share_daemon;
mod shell;
mod signals;
mod simulator;
mod snapshot;
mod ssh_config;
mod status;
mod trace;
mod trust;
mod up;
mod visible;
pub mod wiring;

use error::{ExitKind, Outcome, Problem};
use events::PrintedEvent;
use trace::TimingsFormat;

/// Developer sandboxes as microVMs, one per workspace.
#[derive(Debug, Parser)]
#[command(name = "nixbox", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 done, 1 failed and rolled back, 2 wrong command line or configuration, 3 not found, \
4 stuck (a person is needed), 5 another nixbox works in the workspace, 130 interrupted and rolled back."
)]
struct Arguments {
    /// Use the workspace of this directory, or the one with this name or id, instead of that of the current directory
    #[arg(
        short = 'C',
        long = "workspace",
        alias = "directory",
        global = true,
        value_name = "WORKSPACE",
        default_value = ".",
        add = completions::of_workspaces()
    )]
    chosen_workspace: PathBuf,
    /// Print each request to the VMM, each program and each script on stderr, with its time; twice: more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Print at the end on stderr how long each part took, and which of them the command waited for
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "table"
    )]
    timings: Option<TimingsFormat>,
    /// Print each step of an operation on the VM or its snapshots as a line of JSON on stdout; the last is the result, or the error
    #[arg(long, global = true)]
    events: bool,
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
    SshConfig(ssh_config::Arguments),
    Cp(cp::Arguments),
    Forward(forward::Arguments),
    Credentials(credentials::Arguments),
    Network(network::Arguments),
    Status(status::Arguments),
    Logs(logs::Arguments),
    List(list::Arguments),
    Forget(forget::Arguments),
    Config(config::Arguments),
    Trust(trust::Arguments),
    Doctor(doctor::Arguments),
    Recover(recover::Arguments),
    Journal(journal::Arguments),
    Completions(completions::Arguments),
    Man(completions::ManArguments),
    #[command(hide = true)]
    Simulator(simulator::Arguments),
    #[command(hide = true)]
    SshProxy(ssh_config::ProxyArguments),
    #[command(hide = true)]
    ForwardDaemon(forward::background::DaemonArguments),
    #[command(hide = true)]
    GuestConnection(network_namespace::ConnectionArguments),
}

/// Which workspace a command works in.
struct WorkspaceLocation {
    /// The workspace is that of this directory.
    directory: PathBuf,
    /// The workspace has this id, wherever its directory is or was. The directory does not matter then.
    id: Option<WorkspaceId>,
}

impl WorkspaceLocation {
    fn of_directory(directory: PathBuf) -> Self {
        Self { directory, id: None }
    }

    fn places() -> Result<StatePlaces, Problem> {
        Ok(StatePlaces::of_this_user().map_err(WorkspaceError::Places)?)
    }

    fn workspace(&self) -> Result<Workspace, Problem> {
        let places = Self::places()?;
        Ok(match self.id {
            Some(id) => Workspace::of_id(id, &places)?,
            None => Workspace::find(&self.directory, &places)?,
        })
    }

    /// The workspace, whose lock is taken for an operation. A move of its state that a killed nixbox has begun is finished
    /// first.
    fn lock(&self, operation: &str, progress: &Arc<dyn Progress>) -> Result<(Workspace, Lock), Problem> {
        if self.id.is_none() {
            let (places, interrupt) = (Self::places()?, Interrupt::new());
            let finished = workspace::finish_move(&self.directory, &places, progress, &interrupt);
            command::block_on(async { Ok(finished.await?) })?;
        }
        let mut workspace = self.workspace()?;
        loop {
            let lock = workspace.lock(operation)?;
            // Another nixbox may have moved the state, and with it the lock, before this one had the lock.
            let now = self.workspace()?;
            if now.state().path() == workspace.state().path() {
                return Ok((now, lock));
            }
            workspace = now;
        }
    }

    /// The workspace, unless the directory is a copy of one. Registers where it is, and says with `tell` if it was moved.
    /// A registry that cannot be used is an error, except for a command that ends a VM.
    fn registered(workspace: &Workspace, ends_vm: bool, tell: impl Fn(&str)) -> Result<(), Problem> {
        if workspace.nixbox().is_err() {
            // The directory is gone, so it is neither moved nor a copy.
            return Ok(());
        }
        match Registry::open(workspace.places()).and_then(|registry| registry.follow(workspace)) {
            Ok(Standing::Same) => {}
            Ok(Standing::Moved { from }) => {
                tell(&format!("the workspace was moved here from {}", from.display()))
            }
            Ok(Standing::TookPlace { of }) => tell(&format!(
                "this directory has taken the place of {}, which is gone and had the same id",
                of.display()
            )),
            Err(error @ RegistryError::Copy(_)) => return Err(error.into()),
            Err(error) if ends_vm => {
                tell(&format!("going on without the registry: {}", error::chain(&error)))
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn config(workspace: &Workspace) -> Result<Config, Problem> {
        let host = HostFacts::of_this_machine();
        let nixbox = workspace.nixbox().map_err(WorkspaceError::from)?;
        let mut config = Config::load(nixbox, workspace.root(), &workspace.ssh(), &host)?;
        DecidedDefaults::read(workspace.state())?.apply(&mut config, &host);
        Ok(config)
    }
}

/// Runs the command that this process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let become_invoker = || sudo::become_invoker().map_err(|error| Problem::new(ExitKind::Failed, error));
    let ran = match own_process::find(&words) {
        Some((own, rest)) => become_invoker().and_then(|()| own(rest)),
        None => {
            completions::answer();
            let arguments = Arguments::parse_from(&words);
            become_invoker().and_then(|()| run_arguments(arguments))
        }
    };
    let code = ran.unwrap_or_else(|problem| {
        events::print(&PrintedEvent::from(&problem));
        problem.print();
        problem.exit() as u8
    });
    #[cfg(feature = "failpoints")]
    failpoints::print_count();
    ExitCode::from(code)
}

fn run_arguments(arguments: Arguments) -> Outcome {
    if arguments.events {
        events::begin()?;
    }
    let trace = trace::begin(arguments.verbose, arguments.timings)?;
    let location = named::location(arguments.chosen_workspace);
    let ran = location.and_then(|location| run(&location, arguments.command));
    trace.end();
    ran
}

fn run(location: &WorkspaceLocation, command: NixboxCommand) -> Outcome {
    match command {
        NixboxCommand::Init(arguments) => init::run(location, &arguments),
        NixboxCommand::Image(arguments) => image::run(location, &arguments),
        NixboxCommand::Demo(arguments) => demo::run(location, &arguments),
        NixboxCommand::Up(arguments) => up::run(location, &arguments),
        NixboxCommand::Down(arguments) => down::run(location, &arguments),
        NixboxCommand::Snapshot(arguments) => snapshot::run(location, arguments),
        NixboxCommand::Restore(arguments) => restore::run(location, &arguments),
        NixboxCommand::Shell(arguments) => shell::run(location, &arguments),
        NixboxCommand::Run(arguments) => run::run(location, &arguments),
        NixboxCommand::SshConfig(arguments) => ssh_config::run(location, &arguments),
        NixboxCommand::SshProxy(arguments) => ssh_config::run_proxy(location, &arguments),
        NixboxCommand::Cp(arguments) => cp::run(location, &arguments),
        NixboxCommand::Forward(arguments) => forward::run(location, &arguments),
        NixboxCommand::Credentials(arguments) => credentials::run(location, &arguments),
        NixboxCommand::Network(arguments) => network::run(location, &arguments),
        NixboxCommand::Status(arguments) => status::run(location, &arguments),
        NixboxCommand::Logs(arguments) => logs::run(location, &arguments),
        NixboxCommand::List(arguments) => list::run(location, &arguments),
        NixboxCommand::Forget(arguments) => forget::run(location, &arguments),
        NixboxCommand::Config(arguments) => config::run(location, &arguments),
        NixboxCommand::Trust(arguments) => trust::run(location, &arguments),
        NixboxCommand::Doctor(arguments) => doctor::run(location, &arguments),
        NixboxCommand::Recover(arguments) => recover::run(location, &arguments),
        NixboxCommand::Journal(arguments) => journal::run(location, &arguments),
        NixboxCommand::Completions(arguments) => completions::run(location, &arguments),
        NixboxCommand::Man(arguments) => completions::run_man(location, &arguments),
        NixboxCommand::Simulator(arguments) => simulator::run(location, arguments),
        NixboxCommand::ForwardDaemon(arguments) => forward::background::run_daemon(location, &arguments),
        NixboxCommand::GuestConnection(arguments) => network_namespace::run_connection(&arguments),
    }
}

/// The outcome of a command that did what it was asked to do.
fn success() -> Outcome {
    Ok(ExitKind::Done as u8)
}
