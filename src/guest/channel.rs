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
use russh::client::{self, DisconnectReason, Handle, Msg};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, ChannelWriteHalf, Disconnect};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tracing::{Instrument as _, debug_span};
use zeroize::Zeroizing;

use super::host_key::{Pin, PinError};
use super::last_words::last_words;
use crate::world::UserName;
use command::{CaptureSink, Reader, converse, drain};
use error::KnownEnd;
use forwarding::{AskedEnd, ServerEnd};

mod command;
mod error;
pub mod forwarding;

pub use command::{CommandEvent, GuestCommand};
pub use error::{ChannelError, ConnectionEnd};

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
    /// Whether nixbox never gives up a connection for its silence, because the guest of a VM that is paused is silent too.
    /// The caller has to find out by other means that the VM is gone.
    pub endless: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            reach: Duration::from_secs(5),
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(5),
            endless: false,
        }
    }
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
    end: KnownEnd,
    turn: Arc<tokio::sync::Mutex<CommandTurn>>,
    asked: AskedEnd,
    _cut: Cut,
}

/// The right to have a command started. Only one command starts at a time, and none while another may end.
///
/// Dropbear makes that necessary (seen in 2022.83; its main branch of 2026 has the same code). When a command ends, it looks
/// at all channels, and closes also one that was opened for a command which has not been requested yet: `sesscheckclose`
/// takes a channel without a process for one whose process has ended. If the request comes then, dropbear starts the command
/// nevertheless, and ends the whole connection when that command writes something, because the channel is closed. It may
/// still have to look when nixbox knows that the earlier command has ended. It has done so when it answers the next request.
#[derive(Debug, Default)]
pub(super) struct CommandTurn {
    /// Whether a command was started earlier.
    taken: bool,
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
        let opening = timeout(limits.connect, Self::open_without_limit(endpoint, limits));
        opening.instrument(debug_span!("connect")).await.map_err(silent)?
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

        let (shown, end) = (Arc::new(Mutex::new(None)), KnownEnd::default());
        let asked = AskedEnd::default();
        let client = SshClientHandler {
            pin: endpoint.pin.clone(),
            pinned,
            shown: Arc::clone(&shown),
            end: end.clone(),
            asked: asked.clone(),
        };
        let configuration = Arc::new(client.configuration(limits));
        let mut handle = client::connect_stream(configuration, stream, client)
            .await
            .map_err(|error| error.while_doing("agreeing on keys"))?;
        let protocol = |source| end.while_doing("logging in", source);
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
        Ok(Self { handle, end, turn: Arc::default(), asked, _cut: cut })
    }

    /// Whether the connection is open, as far as this side knows.
    #[must_use]
    pub fn lives(&self) -> bool {
        !self.handle.is_closed()
    }

    /// Starts a command under the user's login shell. The next one is started when this one has ended, or was dropped.
    ///
    /// # Errors
    /// [`ChannelError::Protocol`], [`ChannelError::Ended`], [`ChannelError::Closed`], [`ChannelError::NoCommands`],
    /// [`ChannelError::Unsaid`] if the server ended [`STARTS`] channels before the command was started.
    pub async fn start(&self, command: &[u8]) -> Result<GuestCommand, ChannelError> {
        let mut turn = Arc::clone(&self.turn).lock_owned().await;
        let (reader, writer) = self.start_in_turn(&mut turn, command, None).await?;
        Ok(GuestCommand { reader, writer, _turn: Some(turn) })
    }

    /// Starts a command beside which others are started. It must not end while another one is being started. If it gets a
    /// terminal of the guest as its stdin, stdout and stderr, what it prints comes as stdout.
    ///
    /// # Errors
    /// Those of [`SshSession::start`].
    pub async fn start_beside(
        &self,
        command: &[u8],
        terminal: Option<&GuestTerminal>,
    ) -> Result<GuestCommand, ChannelError> {
        let mut turn = self.turn.lock().await;
        let (reader, writer) = self.start_in_turn(&mut turn, command, terminal).await?;
        Ok(GuestCommand { reader, writer, _turn: None })
    }

    /// Runs a command to its end with stdin, stdout and stderr passed through, without a time limit.
    ///
    /// # Errors
    /// Those of [`SshSession::start`] and of [`GuestCommand::pass_through`].
    pub async fn pass_through(
        &self,
        command: &[u8],
        stdin: impl AsyncRead + Unpin,
        stdout: impl AsyncWrite + Unpin,
        stderr: impl AsyncWrite + Unpin,
    ) -> Result<CommandExit, ChannelError> {
        let (_, never_resized) = mpsc::channel(1);
        self.start(command).await?.pass_through(stdin, stdout, stderr, never_resized).await
    }

    async fn start_in_turn(
        &self,
        turn: &mut CommandTurn,
        command: &[u8],
        terminal: Option<&GuestTerminal>,
    ) -> Result<StartedCommand, ChannelError> {
        if std::mem::replace(&mut turn.taken, true) {
            let protocol = |source| self.end.while_doing("starting a command", source);
            self.handle.send_ping().await.map_err(protocol)?;
        }
        for _ in 0..STARTS {
            if let Some(command) = self.start_once(command, terminal).await? {
                return Ok(command);
            }
        }
        Err(ChannelError::Unsaid)
    }

    /// Requests the command on a new channel. Returns `None` if the server closed the channel before it answered. The server
    /// may have started the command even so; it has got no stdin then.
    async fn start_once(
        &self,
        command: &[u8],
        terminal: Option<&GuestTerminal>,
    ) -> Result<Option<StartedCommand>, ChannelError> {
        let protocol = |source| self.end.while_doing("starting a command", source);
        let channel: Channel<Msg> = self.handle.channel_open_session().await.map_err(protocol)?;
        if let Some(GuestTerminal { kind, size: TerminalSize { columns, rows } }) = terminal {
            // No answer is asked for: a guest without terminals refuses the command, or runs it without one.
            channel.request_pty(false, kind, *columns, *rows, 0, 0, &[]).await.map_err(protocol)?;
        }
        channel.exec(true, command).await.map_err(protocol)?;
        let (half, writer) = channel.split();
        let mut reader = Reader { half, early: None, end: self.end.clone() };
        loop {
            match reader.wait().await {
                Some(ChannelMsg::Success) => return Ok(Some((reader, writer))),
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
                    return Ok(Some((reader, writer)));
                }
                Some(_) => {}
                None => return Err(self.end.closed()),
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
        let mut turn = self.turn.lock().await;
        let run = async {
            let (mut reader, writer) = self.start_in_turn(&mut turn, command, None).await?;
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

    /// Tells the guest that the connection ends, and waits at most a second for the connection to end.
    pub async fn close(self) {
        let Self { handle, _cut, .. } = self;
        if handle.disconnect(Disconnect::ByApplication, "", "en").await.is_ok() {
            // An error is ignored, because nothing is sent over the connection any more.
            timeout(Duration::from_secs(1), handle).await.ok();
        }
    }
}

/// The two sides of a command's channel.
type StartedCommand = (Reader, ChannelWriteHalf<Msg>);

/// A terminal of the guest for a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestTerminal {
    /// Its type, as in `TERM`.
    pub kind: String,
    /// Its size at the beginning.
    pub size: TerminalSize,
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct TerminalSize {
    pub columns: u32,
    pub rows: u32,
}

/// How many channels in a row a server may close before it starts a command in one.
pub const STARTS: usize = 5;

/// nixbox's end of the key exchange: checks the host key that the server shows.
struct SshClientHandler {
    pin: Pin,
    pinned: Option<PublicKey>,
    shown: Arc<Mutex<Option<PublicKey>>>,
    end: KnownEnd,
    asked: AskedEnd,
}

impl SshClientHandler {
    fn configuration(&self, limits: Limits) -> client::Config {
        let mut configuration = client::Config {
            keepalive_interval: Some(limits.silence),
            // Zero means no limit to russh.
            keepalive_max: if limits.endless { 0 } else { 3 },
            // This limit ends a connection attempt that was dropped. Keepalives keep an established connection below
            // the limit, unless a reader of a command's output stands still.
            inactivity_timeout: (!limits.endless).then_some(limits.silence * 6),
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

    /// Keeps why the connection ended. russh calls this before the channels of the connection end.
    async fn disconnected(&mut self, reason: DisconnectReason<SshClientError>) -> Result<(), SshClientError> {
        let end = match reason {
            DisconnectReason::ReceivedDisconnect(told) => {
                ConnectionEnd::ByServer { message: last_words(told.message.as_bytes()) }
            }
            DisconnectReason::Error(SshClientError::Ssh(error)) => ConnectionEnd::Broken(Arc::new(error)),
            // The connection has not been used yet, and its opening returns this error.
            DisconnectReason::Error(error @ SshClientError::Pin(_)) => return Err(error),
        };
        self.end.0.get_or_init(|| end);
        Ok(())
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
        self.asked.announce(channel, ServerEnd::Port(port), reply).await;
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), SshClientError> {
        self.asked.announce(channel, ServerEnd::Socket(path.to_owned()), reply).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
