//! `nixbox simulator`: the processes of the simulated VMM and its guest. nixbox itself starts these processes, except
//! `disk`, with which a person makes a disk image for a simulated guest.

use std::io;
use std::path::PathBuf;

use super::error::{self, ExitKind, Outcome, Problem};
use super::{WorkspaceLocation, success};
use crate::simulator::{self, programs, share, vmm};
use crate::world::capability::{self, Capability};
use crate::world::{ByteSize, UserName};

/// Stand in for Cloud Hypervisor where there is no KVM
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox simulator disk root.img --key vm_key.pub")]
pub(super) struct Arguments {
    #[command(subcommand)]
    process: SimulatorProcess,
}

#[derive(Debug, clap::Subcommand)]
enum SimulatorProcess {
    /// Stand in for cloud-hypervisor
    #[command(disable_version_flag = true)]
    Vmm {
        /// The version to behave like
        #[arg(long, default_value_t = capability::SIMULATED, value_parser = capability::simulated)]
        as_version: &'static Capability,
        /// Print the version, as cloud-hypervisor does, and exit
        #[arg(long)]
        version: bool,
        /// The socket to listen on, as path=SOCKET
        #[arg(long)]
        api_socket: Option<String>,
        /// The file to report events to, as path=FILE
        #[arg(long)]
        event_monitor: Option<String>,
    },
    /// Stand in for virtiofsd
    Share {
        /// The arguments of virtiofsd
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a program of the simulated guest
    Call {
        /// The name of the program
        name: String,
        /// The arguments of the program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Make a disk image for a simulated guest
    Disk {
        /// The file to make
        image: PathBuf,
        /// The size of the image
        #[arg(long, default_value = "64MiB")]
        size: ByteSize,
        /// The user who can log in
        #[arg(long, default_value = "user")]
        user: UserName,
        /// The file of the public key with which the user can log in
        #[arg(long)]
        key: PathBuf,
    },
}

#[derive(Debug, thiserror::Error)]
enum SimulatorError {
    #[error("the simulated {0} failed")]
    Ended(&'static str, #[source] io::Error),
    #[error("--api-socket has to be given as path=SOCKET")]
    NoSocket,
    #[error("cannot {0} {path}", path = .1.display())]
    File(&'static str, PathBuf, #[source] io::Error),
}

fn failed(error: SimulatorError) -> Problem {
    Problem::new(ExitKind::Failed, error)
}

pub(super) fn run(place: &WorkspaceLocation, arguments: Arguments) -> Outcome {
    let ended = |what| move |error| failed(SimulatorError::Ended(what, error));
    match arguments.process {
        SimulatorProcess::Vmm { as_version, version: true, .. } => {
            error::print(&format!("cloud-hypervisor {}", as_version.simulator_version()))?;
        }
        SimulatorProcess::Vmm { as_version, api_socket, event_monitor, .. } => {
            let path = |text: &Option<String>| Some(text.as_deref()?.strip_prefix("path=")?.to_owned());
            let (socket, events) = (path(&api_socket), path(&event_monitor));
            let events = events.map(|events| place.directory.join(events));
            let socket = socket.ok_or_else(|| Problem::new(ExitKind::Usage, SimulatorError::NoSocket))?;
            vmm::serve(&place.directory.join(socket), events.as_deref(), as_version).map_err(ended("VMM"))?;
        }
        SimulatorProcess::Share { arguments } => share::serve(&arguments).map_err(ended("share daemon"))?,
        SimulatorProcess::Call { name, arguments } => {
            return programs::run(&name, arguments).map_err(ended("program"));
        }
        SimulatorProcess::Disk { image, size, user, key } => {
            let image = place.directory.join(image);
            let key = place.directory.join(key);
            let line = std::fs::read_to_string(&key)
                .map_err(|error| failed(SimulatorError::File("read", key, error)))?;
            simulator::make_disk(&image, size.bytes(), user.as_str(), &line)
                .map_err(|error| failed(SimulatorError::File("make", image, error)))?;
        }
    }
    success()
}
