//! One SSH connection to the guest, made in this process.
//!
//! A connection belongs to one VMM generation, because the guest's end of the connection is stale after a pause.
//! Dropping a [`SshSession`] cuts its connection at once, even while a command runs.
//!
//! Everything that the guest sends has a limit: russh limits the greeting (21 lines of 255 bytes), [`Capture`] limits
//! the output of a command, and [`Limits`] limits how long the guest may be silent.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use russh::client::{self, Handle, Msg};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, Disconnect};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::host_key::{Pin, PinError};
use crate::world::UserName;
use command::{CaptureSink, Reader, StreamSink, converse, drain, pump};
use forwarding::AskedPort;

mod command;
pub mod forwarding;

pub use command::{CommandEvent, GuestCommand};

/// Connects to an address of the guest.
pub type Dial = dyn Fn(SocketAddr) -> DialFuture + Send + Sync;

/// A TCP connection that is being made.
pub type DialFuture = std::pin::Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// A [`Dial`] for a guest in the network of this process.
pub fn dial_here(address: SocketAddr) -> DialFuture {
    Box::pin(TcpStream::connect(address))
}

/// A guest's SSH server, and how nixbox and the server prove to each other who they are.
#[derive(Clone)]
pub struct Endpoint {
    /// The server's address.
    pub address: SocketAddr,
    /// Connects to the address.
    pub dial: Arc<Dial>,
    /// The user to log in as.
    pub user: UserName,
    /// The key to log in with.
    pub key: Arc<PrivateKey>,
    /// The host key that the server must show.
    pub pin: Pin,
}

/// Limits on how long nixbox waits for the guest.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The time until the guest's kernel answers the first packet. A lost packet is sent again only after a second (RFC
    /// 6298), so while the guest may not be listening yet, a new attempt is faster than waiting for the old one.
    pub reach: Duration,
    /// The time from the first packet until nixbox is logged in.
    pub connect: Duration,
    /// The silence after which nixbox sends a keepalive. nixbox gives up the connection after four times this long.
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            reach: Duration::from_secs(5),
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(5),
        }
    }
}

/// Why talking to the guest failed. No message contains any of the bytes that nixbox sent.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ChannelError {
    #[error("cannot connect to the guest's SSH server at {address}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("the guest did not answer within {limit:?} while {doing}")]
    Silent { doing: &'static str, limit: Duration },
    #[error("the SSH connection to the guest broke while {doing}")]
    Protocol { doing: &'static str, source: russh::Error },
    #[error("the guest's SSH server cannot be trusted")]
    HostKey(#[source] PinError),
    #[error(
        "the guest does not let {user} in with the key {fingerprint}: is it in the image's authorized_keys?"
    )]
    Denied { user: UserName, fingerprint: String },
    #[error("the guest's SSH server refused to run a command")]
    NoCommands,
    #[error("the guest closed the connection before the command ended")]
    Closed,
    #[error("the guest's SSH server did not say how the command ended")]
    Unsaid,
    #[error("a command in the guest wrote more than {limit} bytes")]
    TooMuch { limit: usize },
    #[error("no command has run in the guest within {limit:?}")]
    NotReady {
        limit: Duration,
        #[source]
        last: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("interrupted while waiting for the guest")]
    Interrupted,
    #[error("cannot {doing}")]
    Local { doing: &'static str, source: io::Error },
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandExit {
    /// The command ended with this exit status.
    Status(u32),
    /// This signal, named without `SIG`, ended the command.
    Signal(String),
}

impl std::fmt::Display for CommandExit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(formatter, "exit status {status}"),
            Self::Signal(signal) => write!(formatter, "signal {signal}"),
        }
    }
}

/// The limits of one command, and the condition for sending its input.
#[derive(Debug, Clone, Copy)]
pub struct Capture {
    /// The most bytes that the command may write to stdout, and the same for stderr.
    pub most: usize,
    /// The time within which the command has to end.
    pub within: Duration,
    /// The text that has to appear on the command's stdout before nixbox sends the input.
    pub prompt: Option<&'static [u8]>,
}

/// A command that ended.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Finished {
    pub exit: CommandExit,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// A connection that is logged in.
pub struct SshSession {
    handle: Handle<SshClientHandler>,
    asked: AskedPort,
    _cut: Cut,
}

/// Closes the connection's socket when dropped. Without this, russh's own task would keep the connection open until the
/// guest closes it.
struct Cut(std::net::TcpStream);

impl Drop for Cut {
    fn drop(&mut self) {
        // This fails if the other side has closed the connection already, which has the same effect.
        self.0.shutdown(Shutdown::Both).ok();
    }
}

impl SshSession {
    /// Connects, compares the host key with the pin, and logs in. A host key that is seen for the first time is pinned
    /// after the server has accepted the login.
    ///
    /// # Errors
    /// Any [`ChannelError`] except those about commands.
    pub async fn open(endpoint: &Endpoint, limits: Limits) -> Result<Self, ChannelError> {
        let silent = |_| ChannelError::Silent { doing: "logging in", limit: limits.connect };
        timeout(limits.connect, Self::open_without_limit(endpoint, limits)).await.map_err(silent)?
    }

    async fn open_without_limit(endpoint: &Endpoint, limits: Limits) -> Result<Self, ChannelError> {
        let pinned = endpoint.pin.load().map_err(ChannelError::HostKey)?;
        let connect = |source| ChannelError::Connect { address: endpoint.address, source };
        let stream = timeout(limits.reach, (endpoint.dial)(endpoint.address)).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        let stream = stream.into_std().map_err(connect)?;
        let cut = Cut(stream.try_clone().map_err(connect)?);
        let stream = TcpStream::from_std(stream).map_err(connect)?;

        let shown = Arc::new(Mutex::new(None));
        let asked = AskedPort::default();
        let client = SshClientHandler {
            pin: endpoint.pin.clone(),
            pinned,
            shown: Arc::clone(&shown),
            asked: asked.clone(),
        };
        let configuration = Arc::new(client.configuration(limits));
        let mut handle = client::connect_stream(configuration, stream, client)
            .await
            .map_err(|error| error.while_doing("agreeing on keys"))?;
        let protocol = |source| ChannelError::Protocol { doing: "logging in", source };
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&endpoint.key), None);
        let answer = handle.authenticate_publickey(endpoint.user.as_str(), key).await.map_err(protocol)?;
        if !answer.success() {
            let fingerprint = endpoint.key.fingerprint(russh::keys::HashAlg::Sha256).to_string();
            return Err(ChannelError::Denied { user: endpoint.user.clone(), fingerprint });
        }
        let shown = shown.lock().unwrap_or_else(PoisonError::into_inner).take();
        match shown {
            Some(key) => endpoint.pin.learn(&key).map_err(ChannelError::HostKey)?,
            None => return Err(protocol(russh::Error::UnknownKey)),
        }
        Ok(Self { handle, asked, _cut: cut })
    }

    /// Whether the connection is open, as far as this side knows.
    #[must_use]
    pub fn lives(&self) -> bool {
        !self.handle.is_closed()
    }

    /// Starts a command under the user's login shell.
    ///
    /// # Errors
    /// [`ChannelError::Protocol`], [`ChannelError::Closed`], [`ChannelError::NoCommands`], [`ChannelError::Unsaid`] if
    /// the server ended [`STARTS`] channels before the command was started.
    pub async fn start(&self, command: &[u8]) -> Result<GuestCommand, ChannelError> {
        for _ in 0..STARTS {
            if let Some(command) = self.start_once(command).await? {
                return Ok(command);
            }
        }
        Err(ChannelError::Unsaid)
    }

    /// Requests the command on a new channel. Returns `None` if the server closed the channel before it answered, which
    /// means that it started no command. Dropbear does this when another command ends between the opening of the
    /// channel and the request: `sesscheckclose` mistakes a channel without a process for a channel whose process has
    /// ended (seen in 2022.83, and in the main branch as of 2026).
    async fn start_once(&self, command: &[u8]) -> Result<Option<GuestCommand>, ChannelError> {
        let protocol = |source| ChannelError::Protocol { doing: "starting a command", source };
        let channel: Channel<Msg> = self.handle.channel_open_session().await.map_err(protocol)?;
        channel.exec(true, command).await.map_err(protocol)?;
        let (half, writer) = channel.split();
        let mut reader = Reader { half, early: None };
        loop {
            match reader.wait().await {
                Some(ChannelMsg::Success) => return Ok(Some(GuestCommand { reader, writer })),
                Some(ChannelMsg::Failure) => return Err(ChannelError::NoCommands),
                Some(ChannelMsg::Close) => return Ok(None),
                // Some servers send the command's output before they confirm its start.
                Some(
                    early @ (ChannelMsg::Data { .. }
                    | ChannelMsg::ExtendedData { .. }
                    | ChannelMsg::ExitStatus { .. }
                    | ChannelMsg::ExitSignal { .. }),
                ) => {
                    reader.early = Some(early);
                    return Ok(Some(GuestCommand { reader, writer }));
                }
                Some(_) => {}
                None => return Err(ChannelError::Closed),
            }
        }
    }

    /// Runs a command to its end. The command's stdin is `input`, whose memory is overwritten once it was sent.
    ///
    /// # Errors
    /// [`ChannelError::Silent`], [`ChannelError::TooMuch`], [`ChannelError::Closed`], [`ChannelError::Unsaid`],
    /// [`ChannelError::NoCommands`], [`ChannelError::Protocol`]. A command that ends with a failure status is not an
    /// error here.
    pub async fn exec(
        &self,
        command: &[u8],
        input: Zeroizing<Vec<u8>>,
        capture: Capture,
    ) -> Result<Finished, ChannelError> {
        let run = async {
            let GuestCommand { mut reader, writer } = self.start(command).await?;
            let prompted = Notify::new();
            let prompt = capture.prompt.map(|prompt| (prompt, &prompted));
            let mut sink = CaptureSink { most: capture.most, stdout: Vec::new(), stderr: Vec::new(), prompt };
            let feed = async {
                if capture.prompt.is_some() {
                    prompted.notified().await;
                }
                // Sending fails if the command has ended. The receiving side reports how it ended.
                if writer.data_bytes(Bytes::from_owner(input)).await.is_ok() {
                    writer.eof().await.ok();
                }
                Ok(())
            };
            let exit = converse(feed, drain(&mut reader, &mut sink)).await?;
            Ok(Finished { exit, stdout: sink.stdout, stderr: sink.stderr })
        };
        let silent = |_| ChannelError::Silent { doing: "running a command", limit: capture.within };
        timeout(capture.within, run).await.map_err(silent)?
    }

    /// Runs a command to its end with stdin, stdout and stderr passed through. The command has no time limit; nixbox
    /// gives up when the guest stops answering keepalives. If `stdin` is tokio's own, the caller has to shut the
    /// runtime down without waiting, because a blocked read of stdin cannot be stopped.
    ///
    /// # Errors
    /// The errors of [`SshSession::exec`] except [`ChannelError::TooMuch`], and [`ChannelError::Local`].
    pub async fn pass_through(
        &self,
        command: &[u8],
        stdin: impl AsyncRead + Unpin + Send,
        stdout: impl AsyncWrite + Unpin + Send,
        stderr: impl AsyncWrite + Unpin + Send,
    ) -> Result<CommandExit, ChannelError> {
        let GuestCommand { mut reader, writer } = self.start(command).await?;
        let mut sink = StreamSink { stdout, stderr };
        converse(pump(stdin, &writer), drain(&mut reader, &mut sink)).await
    }

    /// Tells the guest that the connection ends, and waits at most a second for the connection to end.
    pub async fn close(self) {
        let Self { handle, _cut, .. } = self;
        if handle.disconnect(Disconnect::ByApplication, "", "en").await.is_ok() {
            // An error is ignored, because nothing is sent over the connection any more.
            timeout(Duration::from_secs(1), handle).await.ok();
        }
    }
}

/// How many channels in a row a server may close before it starts a command in one.
pub const STARTS: usize = 5;

/// nixbox's end of the key exchange: checks the host key that the server shows.
struct SshClientHandler {
    pin: Pin,
    pinned: Option<PublicKey>,
    shown: Arc<Mutex<Option<PublicKey>>>,
    asked: AskedPort,
}

impl SshClientHandler {
    fn configuration(&self, limits: Limits) -> client::Config {
        let mut configuration = client::Config {
            keepalive_interval: Some(limits.silence),
            keepalive_max: 3,
            // This limit ends a connection attempt that was dropped. Keepalives keep an established connection below
            // the limit.
            inactivity_timeout: Some(limits.silence * 6),
            nodelay: true,
            ..client::Config::default()
        };
        if let Some(key) = &self.pinned {
            // A server can have several host keys, so ask for the kind that is pinned.
            configuration.preferred.key = vec![key.algorithm()].into();
        }
        configuration
    }
}

#[derive(Debug)]
enum SshClientError {
    Ssh(russh::Error),
    Pin(PinError),
}

impl SshClientError {
    fn while_doing(self, doing: &'static str) -> ChannelError {
        match self {
            Self::Pin(error) => ChannelError::HostKey(error),
            Self::Ssh(source) => ChannelError::Protocol { doing, source },
        }
    }
}

impl From<russh::Error> for SshClientError {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

impl client::Handler for SshClientHandler {
    type Error = SshClientError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, SshClientError> {
        // nixbox offers no certificate algorithms, so a certificate is a protocol violation.
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            return Ok(false);
        };
        if let Some(pinned) = &self.pinned {
            self.pin.compare(pinned, key).map_err(SshClientError::Pin)?;
        }
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
        Ok(true)
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), SshClientError> {
        self.asked.announce(channel, port, reply).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
