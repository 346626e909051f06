//! Carries the connections of forwarded ports.
//!
//! Each connection to a port of this host has an SSH connection of its own, so that a program that does not read holds up no
//! other; `guest/channel/forwarding.rs` says why. An SSH connection that is no longer needed is kept for the next.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Semaphore, mpsc};

use super::obstacle::SocketObstacle;
use super::ports::{GuestEnd, PortPair};
use super::sockets::{self, HostListener, HostStream};
use crate::cli::error;
use crate::guest::channel::forwarding::{ForwardedConnection, ForwardingError, GuestConnection};
use crate::guest::channel::{ChannelError, SshSession};
use crate::guest::ssh_guest::SshGuest;
use crate::host::process::ProcessExit;
use crate::world::{Failure, Machine};

/// How many connections to one port are carried at once. More wait until one of them ends.
const MOST_AT_ONCE: usize = 256;
/// How many logins are under way at once. SSH servers drop some of the connections on which nobody is logged in yet, if there
/// are more than ten.
const LOGINS_AT_ONCE: usize = 4;
/// How long a guest that has ended its SSH connection is left alone.
const RETRY: Duration = Duration::from_secs(1);
/// How many SSH connections are kept for later.
const MOST_IDLE: usize = 8;

/// Why ports are not forwarded any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error("the SSH connection to the guest has ended")]
    Lost(#[source] Option<ChannelError>),
    #[error("the VM has ended, so no port is forwarded any more")]
    VmGone,
    #[error("the process that was to forward ports in the background ended with {0} before it served")]
    Ended(ProcessExit),
    /// A person may have interrupted the command.
    #[error("the command that asked for the ports ended before they could be used, so no port is forwarded")]
    Unasked(#[source] io::Error),
    #[error("cannot give up capabilities, so no port is forwarded in the background")]
    Capabilities(#[source] io::Error),
    #[error("cannot connect to the guest to forward a port")]
    Connect(#[source] Failure),
    #[error("cannot forward a port of the guest")]
    Port(#[source] ForwardingError),
    #[error("cannot listen on {path} of the guest: {obstacle}")]
    Socket { path: String, obstacle: SocketObstacle },
    #[error("cannot accept connections any more")]
    Accept(#[source] io::Error),
}

/// Says why something of a port has ended, once.
struct Notice<'a> {
    is_told: Cell<bool>,
    tell: &'a dyn Fn(&str),
}

impl<'a> Notice<'a> {
    fn new(tell: &'a dyn Fn(&str)) -> Self {
        Self { is_told: Cell::new(false), tell }
    }

    fn tell(&self, pair: &PortPair, error: &(dyn std::error::Error + 'static)) {
        if !self.is_told.replace(true) {
            let PortPair { host, guest } = pair;
            let why = error::chain(error);
            (self.tell)(&format!(
                "a connection between {host} and {guest} was closed: {why}; further ones are closed without a message"
            ));
        }
    }

    fn tell_lost(&self, pair: &PortPair, error: &ForwardError) {
        if !self.is_told.replace(true) {
            let (end, why) = (&pair.guest, error::chain(error));
            (self.tell)(&format!(
                "nothing listens on {end} until it answers again: {why}; the next times are without a message"
            ));
        }
    }
}

/// Makes the SSH connections for forwarded ports of one guest.
pub(super) struct PortServer<'a> {
    guest: &'a SshGuest,
    machine: &'a Machine,
    /// Prints what becomes of connections.
    tell: &'a dyn Fn(&str),
    idle: RefCell<Vec<SshSession>>,
    logins: Semaphore,
}

impl<'a> PortServer<'a> {
    pub(super) fn new(guest: &'a SshGuest, machine: &'a Machine, tell: &'a dyn Fn(&str)) -> Self {
        let logins = Semaphore::new(LOGINS_AT_ONCE);
        Self { guest, machine, tell, idle: RefCell::default(), logins }
    }

    /// Carries the connections to a port of this host.
    pub(super) async fn serve_host(
        &self,
        listener: HostListener,
        pair: &PortPair,
    ) -> Result<(), ForwardError> {
        let notice = Notice::new(self.tell);
        let mut carried = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if carried.len() < MOST_AT_ONCE => match accepted {
                    Ok((socket, from)) => carried.push(self.carry(socket, from, pair, &notice)),
                    // The program had closed the connection before it was accepted.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(ForwardError::Accept(error)),
                },
                Some(()) = carried.next() => {}
            }
        }
    }

    async fn carry(
        &self,
        socket: Box<dyn HostStream>,
        from: SocketAddr,
        pair: &PortPair,
        notice: &Notice<'_>,
    ) {
        if let Err(error) = self.try_to_carry(socket, from, pair).await {
            notice.tell(pair, &error);
        }
    }

    async fn try_to_carry(
        &self,
        socket: Box<dyn HostStream>,
        from: SocketAddr,
        pair: &PortPair,
    ) -> Result<(), ForwardError> {
        let (session, connection) = self.open(from, pair).await?;
        let (is_reusable, carried) = match connection {
            Ok(connection) => (connection.relay(socket).await, Ok(())),
            Err(error) => (!matches!(error, ForwardingError::Channel(_)), Err(ForwardError::Port(error))),
        };
        let mut idle = self.idle.borrow_mut();
        if is_reusable && idle.len() < MOST_IDLE {
            idle.push(session);
        }
        carried
    }

    /// Connects to the guest's end of a pair. A kept SSH connection may have broken without a notice, as in a reboot of the
    /// guest; another one is made then.
    async fn open(
        &self,
        from: SocketAddr,
        pair: &PortPair,
    ) -> Result<(SshSession, Result<ForwardedConnection, ForwardingError>), ForwardError> {
        loop {
            let kept = self.kept_session();
            let is_kept = kept.is_some();
            let session = match kept {
                Some(session) => session,
                None => self.connect().await?,
            };
            let connection = match &pair.guest {
                GuestEnd::Port(port) => session.connect_to_port(*port, from).await,
                GuestEnd::Socket(path) => session.connect_to_socket(path).await,
            };
            match connection {
                Err(ForwardingError::Channel(_)) if is_kept => {}
                connection => return Ok((session, connection)),
            }
        }
    }

    fn kept_session(&self) -> Option<SshSession> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(SshSession::lives);
        idle.pop()
    }

    async fn connect(&self) -> Result<SshSession, ForwardError> {
        // The semaphore is never closed, and without a permit one login more is under way.
        let _permit = self.logins.acquire().await.ok();
        self.guest.connect_for_relay(self.machine).await.map_err(ForwardError::Connect)
    }

    /// Makes the guest listen on its end of the pair, for which connections come to the host's end.
    pub(super) async fn listen_in_guest<'p>(
        &self,
        pair: &'p PortPair,
    ) -> Result<GuestListener<'p>, ForwardError> {
        let session = self.connect().await?;
        let listens = match &pair.guest {
            GuestEnd::Port(port) => session.listen_on_port(*port).await,
            GuestEnd::Socket(path) => session.listen_on_socket(path).await,
        };
        let connections = listens.map_err(ForwardError::Port)?;
        Ok(GuestListener { session, connections, pair })
    }

    /// Carries the connections to a port of the guest. If the SSH connection ends, as in a reboot of the guest, the guest is
    /// made to listen again.
    pub(super) async fn serve_guest(&self, mut listener: GuestListener<'_>) -> Result<(), ForwardError> {
        let (closed, lost) = (Notice::new(self.tell), Notice::new(self.tell));
        loop {
            let why = listener.serve(&closed).await;
            lost.tell_lost(listener.pair, &ForwardError::Lost(why));
            listener = self.listen_again(listener.pair).await?;
        }
    }

    async fn listen_again<'p>(&self, pair: &'p PortPair) -> Result<GuestListener<'p>, ForwardError> {
        loop {
            // No event reports that a guest answers again.
            tokio::time::sleep(RETRY).await;
            match self.listen_in_guest(pair).await {
                Err(ForwardError::Connect(_) | ForwardError::Port(ForwardingError::Channel(_))) => {}
                listening => return listening,
            }
        }
    }
}

/// A port or socket of the guest on which its SSH server listens.
pub(super) struct GuestListener<'p> {
    session: SshSession,
    connections: mpsc::Receiver<GuestConnection>,
    pair: &'p PortPair,
}

impl GuestListener<'_> {
    /// Carries the connections to the port until its SSH connection ends. Returns why that has ended.
    async fn serve(&mut self, notice: &Notice<'_>) -> Option<ChannelError> {
        let mut carried = FuturesUnordered::new();
        loop {
            tokio::select! {
                why = self.session.ended() => return why,
                Some(connection) = self.connections.recv(), if carried.len() < MOST_AT_ONCE => {
                    carried.push(carry_to_host(connection, self.pair, notice));
                }
                Some(()) = carried.next() => {}
            }
        }
    }
}

/// Carries a connection that a program of the guest has made to a port of this host.
async fn carry_to_host(connection: GuestConnection, pair: &PortPair, notice: &Notice<'_>) {
    match sockets::connect(&pair.host).await {
        Ok(socket) => {
            connection.accept().await.relay(socket).await;
        }
        Err(error) => {
            connection.refuse().await;
            notice.tell(pair, &error);
        }
    }
}
