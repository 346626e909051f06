//! Connections to ports and Unix sockets through an SSH connection, in both directions.
//!
//! russh gives a server more window as soon as data has arrived, and not when somebody has read it. So a channel whose data
//! nobody takes stops the whole connection, with its keepalives. That is back pressure, as long as each forwarded connection
//! has an SSH connection of its own; see [`RELAY_LIMITS`]. Connections to a port on which the guest's SSH server listens
//! share one, as the protocol demands, and so one of them that is not read holds up the others of that port. A Unix socket of
//! the guest is listened on by OpenSSH's `streamlocal-forward@openssh.com` (PROTOCOL, section 2.4); OpenSSH leaves its file
//! there when it listens no more (seen in 9.2).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use russh::client::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::{ChannelError, Limits, SshSession};

/// The limits of an SSH connection that forwards. Nothing of it is answered while somebody does not read what was sent, which
/// may take hours. Another connection tells whether the guest is there.
pub const RELAY_LIMITS: Limits = Limits {
    reach: Duration::from_secs(5),
    connect: Duration::from_secs(10),
    silence: Duration::from_secs(5),
    endless: true,
};

/// The addresses of the guest's own loopback. A program may listen on either.
const LOOPBACKS: [&str; 2] = ["127.0.0.1", "::1"];
/// How many connections to a port of the guest may wait for this host.
const WAITING: usize = 64;
/// How long the server may take to close a channel that was closed here.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// How many bytes are read at once.
const CHUNK: usize = 32 * 1024;

/// Why a port of the guest cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ForwardingError {
    #[error("nothing in the guest listens on its port {port}")]
    Refused { port: u16 },
    #[error("nothing in the guest listens on {path}, or its SSH server does not lead there")]
    NoSocket { path: String },
    #[error("the guest's SSH server does not let nixbox forward ports")]
    Forbidden,
    #[error("the guest's SSH server cannot listen on port {port} of the guest")]
    NotListening { port: u16 },
    #[error("the guest's SSH server does not listen on {path} of the guest")]
    NotListeningOnSocket { path: String },
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

fn lost(source: russh::Error) -> ForwardingError {
    ForwardingError::Channel(ChannelError::Protocol { doing: "forwarding a port", source })
}

/// A connection to a port of the guest.
pub struct ForwardedConnection {
    channel: Channel<Msg>,
}

/// A connection that a program of the guest has made to a port that is forwarded to this host. It stands once it was
/// accepted, and is refused when it is dropped before.
pub struct GuestConnection {
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
}

/// What the guest's SSH server can listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ServerEnd {
    Port(u32),
    Socket(String),
}

/// What the guest's SSH server was asked to listen on. No other connection is accepted from it.
#[derive(Clone, Default)]
pub(super) struct AskedEnd(Arc<Mutex<Option<EndWaiter>>>);

/// Where the connections to a port or socket go.
#[derive(Clone)]
struct EndWaiter {
    end: ServerEnd,
    connections: mpsc::Sender<GuestConnection>,
}

impl AskedEnd {
    fn set(&self, asked: Option<EndWaiter>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = asked;
    }

    /// Passes on a connection that the server announces. The connection is refused if nixbox has not asked for its end, or if
    /// [`WAITING`] connections wait already.
    pub(super) async fn announce(&self, channel: Channel<Msg>, end: ServerEnd, reply: ChannelOpenHandle) {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(waiter) = asked.filter(|waiter| waiter.end == end) else {
            return reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        };
        if let Err(error) = waiter.connections.try_send(GuestConnection { channel, reply }) {
            error.into_inner().reply.reject(ChannelOpenFailure::ResourceShortage).await;
        }
    }
}

impl SshSession {
    /// Connects to a port of the guest's loopback. `from` is the address of the program for which this is done.
    ///
    /// # Errors
    /// [`ForwardingError::Refused`], [`ForwardingError::Forbidden`], [`ForwardingError::Channel`].
    pub async fn connect_to_port(
        &self,
        port: u16,
        from: SocketAddr,
    ) -> Result<ForwardedConnection, ForwardingError> {
        for address in LOOPBACKS {
            let (origin, origin_port) = (from.ip().to_string(), from.port().into());
            match self.handle.channel_open_direct_tcpip(address, port.into(), origin, origin_port).await {
                Ok(channel) => return Ok(ForwardedConnection { channel }),
                Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited)) => {
                    return Err(ForwardingError::Forbidden);
                }
                Err(russh::Error::ChannelOpenFailure(_)) => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Err(ForwardingError::Refused { port })
    }

    /// Connects to a Unix socket of the guest. dropbear, for one, does not do that.
    ///
    /// # Errors
    /// [`ForwardingError::NoSocket`], [`ForwardingError::Forbidden`], [`ForwardingError::Channel`].
    pub async fn connect_to_socket(&self, path: &str) -> Result<ForwardedConnection, ForwardingError> {
        match self.handle.channel_open_direct_streamlocal(path).await {
            Ok(channel) => Ok(ForwardedConnection { channel }),
            Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited)) => {
                Err(ForwardingError::Forbidden)
            }
            Err(russh::Error::ChannelOpenFailure(_)) => {
                Err(ForwardingError::NoSocket { path: path.to_owned() })
            }
            Err(error) => Err(lost(error)),
        }
    }

    /// Makes the guest's SSH server listen on a port of the guest's loopback, as long as this connection stands. The
    /// connections to it are received from the channel that is returned.
    ///
    /// # Errors
    /// [`ForwardingError::NotListening`], [`ForwardingError::Channel`].
    pub async fn listen_on_port(
        &self,
        port: u16,
    ) -> Result<mpsc::Receiver<GuestConnection>, ForwardingError> {
        let receiver = self.expect(ServerEnd::Port(port.into()));
        let asked = self.handle.tcpip_forward(LOOPBACKS[0], port.into()).await.map(drop);
        self.listening(receiver, asked, || ForwardingError::NotListening { port })
    }

    /// The same on a Unix socket of the guest. Its directory has to be there, and nothing at the path; the user of the guest
    /// alone may connect, unless its server is configured otherwise.
    ///
    /// # Errors
    /// [`ForwardingError::NotListeningOnSocket`], [`ForwardingError::Channel`].
    pub async fn listen_on_socket(
        &self,
        path: &str,
    ) -> Result<mpsc::Receiver<GuestConnection>, ForwardingError> {
        let receiver = self.expect(ServerEnd::Socket(path.to_owned()));
        let asked = self.handle.streamlocal_forward(path).await;
        self.listening(receiver, asked, || ForwardingError::NotListeningOnSocket { path: path.to_owned() })
    }

    /// Accepts connections from this end.
    fn expect(&self, end: ServerEnd) -> mpsc::Receiver<GuestConnection> {
        let (connections, receiver) = mpsc::channel(WAITING);
        self.asked.set(Some(EndWaiter { end, connections }));
        receiver
    }

    fn listening(
        &self,
        receiver: mpsc::Receiver<GuestConnection>,
        asked: Result<(), russh::Error>,
        denied: impl FnOnce() -> ForwardingError,
    ) -> Result<mpsc::Receiver<GuestConnection>, ForwardingError> {
        match asked {
            Ok(()) => Ok(receiver),
            Err(error) => {
                self.asked.set(None);
                Err(match error {
                    russh::Error::RequestDenied => denied(),
                    error => lost(error),
                })
            }
        }
    }

    /// Waits until the connection ends. Returns why, if it did not end in good order.
    pub async fn ended(&mut self) -> Option<ChannelError> {
        let error = (&mut self.handle).await.err()?;
        let doing = "waiting for it to end";
        // What russh returns says no more than that the connection has ended.
        Some(self.end.reason(doing).unwrap_or_else(|| error.while_doing(doing)))
    }
}

impl GuestConnection {
    /// Accepts the connection.
    pub async fn accept(self) -> ForwardedConnection {
        self.reply.accept().await;
        ForwardedConnection { channel: self.channel }
    }

    /// Refuses the connection, because nothing listens on this host.
    pub async fn refuse(self) {
        self.reply.reject(ChannelOpenFailure::ConnectFailed).await;
    }
}

impl ForwardedConnection {
    /// Passes on what either side sends until both have ended or one is gone. An end of one side alone is passed on, too.
    /// Returns whether the server has closed the channel, so that its SSH connection can be used for another: russh forgets a
    /// channel that it closes itself, and with it what the server still has to say.
    pub async fn relay(self, socket: impl AsyncRead + AsyncWrite) -> bool {
        let (mut reader, writer) = self.channel.split();
        match relay_until_ended(&mut reader, &writer, socket).await {
            RelayEnd::Closed => true,
            RelayEnd::BothEnded => {
                let closed =
                    async { while !matches!(reader.wait().await, Some(ChannelMsg::Close) | None) {} };
                timeout(CLOSE_LIMIT, closed).await.is_ok()
            }
            RelayEnd::Gone => {
                // This fails if the SSH connection has ended, and with it the channel.
                writer.close().await.ok();
                false
            }
        }
    }
}

/// How a relay ended.
enum RelayEnd {
    /// The server has closed the channel.
    Closed,
    /// Both sides have sent everything, after which the server closes the channel.
    BothEnded,
    /// The program on this side is gone, or the SSH connection.
    Gone,
}

async fn relay_until_ended(
    reader: &mut ChannelReadHalf,
    writer: &ChannelWriteHalf<Msg>,
    socket: impl AsyncRead + AsyncWrite,
) -> RelayEnd {
    let (mut from, mut to) = tokio::io::split(socket);
    let (has_received_all, received_all) = (AtomicBool::new(false), Notify::new());
    // An error of the socket means that the program at its other end is gone, which ends the connection.
    let send = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer).await {
                Ok(0) => return writer.eof().await.is_ok(),
                Ok(read) if writer.data_bytes(Bytes::copy_from_slice(&buffer[..read])).await.is_ok() => {}
                Ok(_) | Err(_) => return false,
            }
        }
    };
    let receive = async {
        loop {
            match reader.wait().await {
                Some(ChannelMsg::Data { data }) => {
                    if to.write_all(&data).await.is_err() {
                        return RelayEnd::Gone;
                    }
                }
                Some(ChannelMsg::Eof) => {
                    if to.shutdown().await.is_err() {
                        return RelayEnd::Gone;
                    }
                    has_received_all.store(true, Ordering::Relaxed);
                    received_all.notify_one();
                }
                Some(ChannelMsg::Close) => return RelayEnd::Closed,
                None => return RelayEnd::Gone,
                Some(_) => {}
            }
        }
    };
    tokio::pin!(send, receive);
    let mut has_sent_all = false;
    loop {
        tokio::select! {
            end = &mut receive => return end,
            is_sent = &mut send, if !has_sent_all => {
                if !is_sent {
                    return RelayEnd::Gone;
                }
                has_sent_all = true;
            }
            () = received_all.notified() => {}
        }
        if has_sent_all && has_received_all.load(Ordering::Relaxed) {
            return RelayEnd::BothEnded;
        }
    }
}

#[cfg(test)]
mod tests;
