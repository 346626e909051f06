//! `nixbox forward`, and the commands on what is forwarded in the background: `list` and `stop`.
//!
//! [`serving`] forwards, in the command itself or in the process that [`background`] starts.

use super::equipped;
use super::error::{self, ExitKind, Outcome, Problem};
use super::visible::visible_json;
use super::{WorkspaceLocation, success};
use crate::host::forwards::ForwardDaemonError;
use background::BackgroundStart;
use obstacle::SocketObstacle;
use ports::{Listening, PortError};
use server::ForwardError;
use serving::WantedForward;

pub(super) mod background;
pub(super) mod ended;
mod listing;
mod obstacle;
mod ports;
mod server;
mod serving;
mod sockets;

/// Forward TCP ports of this host to the VM
///
/// A program of this host that connects to the first PORT reaches the second PORT of the VM, which is the same number if it is
/// left out. In the VM the connection comes from its own loopback, so that a program there need not listen for others. On this
/// host only programs of this host can connect, unless HOST is an address that others reach. With --remote it is the other way
/// round: programs in the VM that connect to the first PORT of its loopback reach the second PORT of HOST.
///
/// A PORT can be the absolute path of a Unix socket. The SSH server of the VM has to be OpenSSH for a socket there. With
/// --remote OpenSSH makes the socket, for its user alone, and leaves the file there afterwards: nixbox removes no file of the VM,
/// so remove it before the next time, or set StreamLocalBindUnlink in the sshd_config of the VM.
///
/// The ports are forwarded as long as the command runs and the VM does, also if the VM is rebooted: until Ctrl-C. A line is
/// printed for each once it can be used. With --background the command returns then, and a process goes on until `nixbox forward
/// stop`, or the end of the VM; `nixbox logs forwards` shows what the process has written.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Example: nixbox forward 8080 5433:5432\n\
    Example: nixbox forward --background 8080 && nixbox forward stop 8080\n\
    Example: nixbox forward 2375:/var/run/docker.sock\n\
    Example: nixbox forward --remote 11434\n\
    Example: nixbox forward --remote /tmp/agent.sock:/run/user/1000/agent.sock")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<ForwardCommand>,
    /// The ports, as `[HOST:]PORT[:PORT]`
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<String>,
    /// Return once the ports can be used, and forward them until they are stopped or the VM ends
    #[arg(short, long)]
    background: bool,
    /// Forward ports of the VM to this host
    #[arg(long)]
    remote: bool,
    /// Print each port as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum ForwardCommand {
    List(listing::ListArguments),
    Stop(listing::StopArguments),
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    match &arguments.command {
        Some(ForwardCommand::List(arguments)) => return listing::list(location, arguments),
        Some(ForwardCommand::Stop(arguments)) => return listing::stop(location, arguments),
        None => {}
    }
    let listening = if arguments.remote { Listening::Guest } else { Listening::Host };
    let wanted = WantedForward::parse(&arguments.ports, listening)?;
    let guest = equipped::reach_for_long(location)?;
    ended::end_those_of_other_vms(location.workspace()?.id(), guest.vm.machine.memory)?;
    if arguments.background {
        let pid = match background::start(location, guest, listening, &arguments.ports)? {
            BackgroundStart::Serves(pid) => pid,
            BackgroundStart::Refused(code) => return Ok(code),
        };
        if let Err(problem) = arguments.tell(&wanted, Some(pid)) {
            // A person is told that the command failed, so it leaves nothing.
            ended::end_one(location.workspace()?.id(), pid)?;
            return Err(problem);
        }
    } else {
        let tell = |text: &str| error::print_stderr(&format!("nixbox: {text}\n"));
        serving::serve(location, guest, &wanted, &tell, || arguments.tell(&wanted, None))?;
    }
    success()
}

impl Arguments {
    /// Says that the ports can be used, and which process in the background forwards them.
    fn tell(&self, wanted: &WantedForward, pid: Option<u32>) -> Result<(), Problem> {
        if self.json {
            return wanted.json().try_for_each(|mut value| {
                if let Some(pid) = pid {
                    value["pid"] = pid.into();
                }
                error::print(&visible_json(&value.to_string()))
            });
        }
        wanted.sentences().try_for_each(|sentence| error::print(&sentence))?;
        if let Some(pid) = pid {
            error::print_stderr(&format!(
                "nixbox: process {pid} forwards until the VM ends; `nixbox forward stop {pid}` ends it before\n"
            ));
        }
        Ok(())
    }
}

impl From<PortError> for Problem {
    fn from(error: PortError) -> Self {
        let exit = if error.is_usage() { ExitKind::Usage } else { ExitKind::Failed };
        let is_taken = matches!(error, PortError::Taken(_));
        let problem = Self::new(exit, error);
        if is_taken {
            problem.or_hint("`nixbox forward list` shows what this workspace forwards in the background")
        } else {
            problem
        }
    }
}

impl From<ForwardError> for Problem {
    fn from(error: ForwardError) -> Self {
        let hint = match error {
            ForwardError::VmGone => Some("`nixbox status` says whether the VM runs"),
            ForwardError::Socket { obstacle: SocketObstacle::Exists, .. } => Some(
                "OpenSSH leaves the socket of a former forward there; with `StreamLocalBindUnlink yes` in the sshd_config of \
                 the guest, it makes it anew",
            ),
            _ => None,
        };
        let problem = Self::new(ExitKind::Failed, error);
        match hint {
            Some(hint) => problem.or_hint(hint),
            None => problem,
        }
    }
}

impl From<ForwardDaemonError> for Problem {
    fn from(error: ForwardDaemonError) -> Self {
        Self::new(ExitKind::Failed, error)
    }
}
