//! Forwards the ports of one command: until a signal, the end of the VM, or an error.

use std::time::Duration;

use futures_util::future::try_join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::ports::{GuestEnd, Listening, PortError, PortPair};
use super::server::{ForwardError, PortServer};
use super::sockets::bind_all;
use crate::cli::equipped::{self, EquippedGuest};
use crate::cli::error::Problem;
use crate::cli::{WorkspaceLocation, signals};

/// How often the VMM is asked whether it has the VM. Mostly the connection to the guest ends first.
const WATCH: Duration = Duration::from_secs(2);

/// What is to be forwarded.
#[derive(Debug)]
pub(super) struct WantedForward {
    pub(super) listening: Listening,
    pub(super) pairs: Vec<PortPair>,
}

impl WantedForward {
    pub(super) fn parse(ports: &[String], listening: Listening) -> Result<Self, PortError> {
        Ok(Self { listening, pairs: PortPair::parse_all(ports, listening)? })
    }

    /// What is forwarded, for people.
    pub(super) fn sentences(&self) -> impl Iterator<Item = String> {
        self.pairs.iter().map(|pair| pair.sentence(self.listening))
    }

    /// What is forwarded, for programs.
    pub(super) fn json(&self) -> impl Iterator<Item = serde_json::Value> {
        self.pairs.iter().map(|pair| pair.json(self.listening))
    }
}

/// Forwards until a signal comes. Calls `ready` once every port can be used, and `tell` with what becomes of connections.
///
/// # Errors
/// Those of `ready`; if a port cannot be used; if the VM or the connection to its guest has ended.
pub(super) fn serve(
    location: &WorkspaceLocation,
    guest: EquippedGuest,
    wanted: &WantedForward,
    tell: &dyn Fn(&str),
    ready: impl FnOnce() -> Result<(), Problem>,
) -> Result<(), Problem> {
    let EquippedGuest { wiring, vm, mut shell, runtime } = guest;
    let WantedForward { listening, pairs } = wanted;
    allow_many_connections();
    let ended = runtime.block_on(async {
        let server = PortServer::new(&wiring.guest, &vm.machine, tell);
        let interrupted = signals::first()?;
        let carried = async {
            match listening {
                Listening::Host => {
                    let listeners = bind_all(pairs).await?;
                    ready()?;
                    let served = listeners.into_iter().zip(pairs);
                    try_join_all(served.map(|(listener, pair)| server.serve_host(listener, pair))).await?;
                }
                Listening::Guest => {
                    let mut listeners = Vec::new();
                    for pair in pairs {
                        if let GuestEnd::Port(port) = pair.guest {
                            listeners.push(server.listen_in_guest(port, pair).await?);
                        }
                    }
                    ready()?;
                    try_join_all(listeners.into_iter().map(|listener| listener.serve())).await?;
                }
            }
            Ok::<_, Problem>(())
        };
        let served = async {
            tokio::select! {
                served = carried => served,
                why = shell.session.ended() => Err(ForwardError::Lost(why).into()),
            }
        };
        tokio::select! {
            served = equipped::until_vm_ends(location, &wiring, &vm, WATCH, served) => {
                served?.ok_or_else(|| ForwardError::VmGone.into())
            }
            () = interrupted => Ok(()),
        }
    });
    runtime.shutdown_background();
    ended
}

/// Lets this process have as many descriptors open as it may, because each connection takes three.
fn allow_many_connections() {
    let limit = getrlimit(Resource::Nofile);
    // With fewer descriptors, fewer connections are carried at once.
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).ok();
}
