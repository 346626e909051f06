//! `nixbox forward`.

use futures_util::future::try_join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::equipped::{self, EquippedGuest};
use super::error::{self, ExitKind, Outcome, Problem};
use super::visible::visible_json;
use super::{WorkspaceLocation, signals, success};
use ports::{GuestEnd, Listening, PortError, PortPair};
use server::{ForwardError, PortServer};
use sockets::bind_all;

mod ports;
mod server;
mod sockets;

/// Forward TCP ports of this host to the VM, until Ctrl-C
///
/// A program of this host that connects to the first PORT reaches the second PORT of the VM, which is the same number if it is
/// left out. In the VM the connection comes from its own loopback, so that a program there need not listen for others. On this
/// host only programs of this host can connect, unless HOST is an address that others reach. With --remote it is the other way
/// round: programs in the VM that connect to the first PORT of its loopback reach the second PORT of HOST.
///
/// A PORT can be the absolute path of a Unix socket; not the first one with --remote. The SSH server of the VM has to be OpenSSH
/// for a socket there.
///
/// The ports are forwarded as long as the command runs and the VM does. A line is printed for each once it can be used.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox forward 8080 5433:5432\n\
    Example: nixbox forward 2375:/var/run/docker.sock\n\
    Example: nixbox forward --remote 11434")]
pub(super) struct Arguments {
    /// The ports, as `[HOST:]PORT[:PORT]`
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<String>,
    /// Forward ports of the VM to this host
    #[arg(long)]
    remote: bool,
    /// Print each port as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let listening = if arguments.remote { Listening::Guest } else { Listening::Host };
    let pairs = PortPair::parse_all(&arguments.ports, listening)?;
    let EquippedGuest { wiring, vm, mut shell, runtime } = equipped::reach(location)?;
    allow_many_connections();
    let ended = runtime.block_on(async {
        let server = PortServer::new(&wiring.guest, &vm.machine);
        let interrupted = signals::first()?;
        let tell = || pairs.iter().try_for_each(|pair| arguments.tell(pair, listening));
        let served = async {
            match listening {
                Listening::Host => {
                    let listeners = bind_all(&pairs).await?;
                    tell()?;
                    let served = listeners.into_iter().zip(&pairs);
                    try_join_all(served.map(|(listener, pair)| server.serve_host(listener, pair))).await?;
                }
                Listening::Guest => {
                    let mut listeners = Vec::new();
                    for pair in &pairs {
                        if let GuestEnd::Port(port) = pair.guest {
                            listeners.push(server.listen_in_guest(port, pair).await?);
                        }
                    }
                    tell()?;
                    try_join_all(listeners.into_iter().map(|listener| listener.serve())).await?;
                }
            }
            Ok::<_, Problem>(())
        };
        tokio::select! {
            served = served => served,
            why = shell.session.ended() => Err(ForwardError::Lost(why).into()),
            () = interrupted => Ok(()),
        }
    });
    runtime.shutdown_background();
    ended?;
    success()
}

/// Lets this process have as many descriptors open as it may, because each connection takes three.
fn allow_many_connections() {
    let limit = getrlimit(Resource::Nofile);
    // With fewer descriptors, fewer connections are carried at once.
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).ok();
}

impl Arguments {
    fn tell(&self, pair: &PortPair, listening: Listening) -> Result<(), Problem> {
        if !self.json {
            return error::print(&pair.sentence(listening));
        }
        let listens = match listening {
            Listening::Host => "host",
            Listening::Guest => "guest",
        };
        let (key, guest) = match &pair.guest {
            GuestEnd::Port(port) => ("guest_port", serde_json::json!(port)),
            GuestEnd::Socket(path) => ("guest_socket", serde_json::json!(path)),
        };
        let value = serde_json::json!({ "listens": listens, "host": pair.host.to_string(), key: guest });
        error::print(&visible_json(&value.to_string()))
    }
}

impl From<PortError> for Problem {
    fn from(error: PortError) -> Self {
        let exit = if error.is_usage() { ExitKind::Usage } else { ExitKind::Failed };
        Self::new(exit, error)
    }
}

impl From<ForwardError> for Problem {
    fn from(error: ForwardError) -> Self {
        let hint = match error {
            ForwardError::Lost(_) => Some("`nixbox status` says whether the VM runs"),
            _ => None,
        };
        let problem = Self::new(ExitKind::Failed, error);
        match hint {
            Some(hint) => problem.or_hint(hint),
            None => problem,
        }
    }
}
