//! Forwards the ports of one command: until a signal, the end of the VM, or an error. A guest that is rebooted is connected to
//! again.

use std::time::Duration;

use futures_util::future::try_join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::obstacle::SocketObstacle;
use super::ports::{Listening, PortError, PortPair};
use super::server::{ForwardError, GuestListener, PortServer};
use super::sockets::bind_all;
use crate::cli::equipped::{self, EquippedGuest};
use crate::cli::error::Problem;
use crate::cli::{WorkspaceLocation, signals};
use crate::guest::channel::forwarding::ForwardingError;
use crate::guest::shell::Shell;

/// How often the VMM is asked whether it has the VM.
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
/// Those of `ready`; if a port cannot be used; if the VM has ended.
pub(super) fn serve(
    location: &WorkspaceLocation,
    guest: EquippedGuest,
    wanted: &WantedForward,
    tell: &dyn Fn(&str),
    ready: impl FnOnce() -> Result<(), Problem>,
) -> Result<(), Problem> {
    let EquippedGuest { wiring, vm, shell, runtime } = guest;
    let WantedForward { listening, pairs } = wanted;
    allow_many_connections();
    let ended = runtime.block_on(async {
        let server = PortServer::new(&wiring.guest, &vm.machine, tell);
        let interrupted = signals::first()?;
        let served = async {
            let (on_host, in_guest) = match listening {
                Listening::Host => (bind_all(pairs).await?, Vec::new()),
                Listening::Guest => (Vec::new(), listen_in_guest(&server, pairs, &shell).await?),
            };
            shell.session.close().await;
            ready()?;
            let on_host = on_host.into_iter().zip(pairs);
            let on_host = try_join_all(on_host.map(|(listener, pair)| server.serve_host(listener, pair)));
            let in_guest = try_join_all(in_guest.into_iter().map(|listener| server.serve_guest(listener)));
            // Nothing ends what serves but an error.
            tokio::try_join!(on_host, in_guest)?;
            Ok(())
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

/// Makes the guest listen on the ports and sockets of the pairs.
async fn listen_in_guest<'a>(
    server: &PortServer<'a>,
    pairs: &'a [PortPair],
    shell: &Shell,
) -> Result<Vec<GuestListener<'a>>, ForwardError> {
    let mut listeners = Vec::new();
    for pair in pairs {
        listeners.push(match server.listen_in_guest(pair).await {
            Err(ForwardError::Port(ForwardingError::NotListeningOnSocket { path })) => {
                let obstacle = SocketObstacle::at(shell, &path).await;
                return Err(ForwardError::Socket { path, obstacle });
            }
            listener => listener?,
        });
    }
    Ok(listeners)
}

/// Lets this process have as many descriptors open as it may, because each connection takes three.
fn allow_many_connections() {
    let limit = getrlimit(Resource::Nofile);
    // With fewer descriptors, fewer connections are carried at once.
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).ok();
}
