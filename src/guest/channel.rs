//! One SSH connection to the guest, made in this process.
//!
//! A connection belongs to one VMM generation: after a pause the guest's end of it is stale, so nothing here is kept open
//! for longer than one call to a seam or one `nixbox run`. Dropping a [`SshSession`] cuts its connection at once, whatever was
//! going on in it.
//!
//! Everything that the other side sends is bounded: its greeting by russh (21 lines of 255 bytes), what commands write by
//! [`Capture`], its silence by [`Limits`].

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
use command::{Kept, Passed, Reader, converse, drain, pump};

mod command;

pub use command::{GuestCommand, Said};

/// Where a guest's SSH server is, and as whom and to whom one talks there.
#[derive(Clone)]
pub struct Endpoint {
    /// Its address.
    pub address: SocketAddr,
    /// The user to log in as.
    pub user: UserName,
    /// The key to log in with.
    pub key: Arc<PrivateKey>,
    /// The host key that it must show.
    pub pin: Pin,
}

/// How long one waits for the other side.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until its kernel answers at all. A packet that it was not there to hear is sent again after a second only
    /// (RFC 6298): while it is not known to listen, a fresh attempt is faster than patience.
    pub reach: Duration,
    /// From the first packet until logged in.
    pub connect: Duration,
    /// Silence after which it is asked for a sign of life. After four without one the connection is given up.
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

/// Why talking to the guest failed. No message holds anything that was sent.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Nobody listens there, or it cannot be reached.
    #[error("cannot connect to the guest's SSH server at {address}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// It accepted the connection, or ran the command, and then said nothing.
    #[error("the guest did not answer within {limit:?} while {doing}")]
    Silent {
        /// What was going on.
        doing: &'static str,
        /// For how long it was waited.
        limit: Duration,
    },
    /// The SSH protocol broke down.
    #[error("the SSH connection to the guest broke while {doing}")]
    Protocol {
        /// What was going on.
        doing: &'static str,
        /// What russh says.
        source: russh::Error,
    },
    /// The host key is not the pinned one, or could not be pinned.
    #[error("the guest's SSH server is not to be trusted")]
    HostKey(#[source] PinError),
    /// It does not let the key in.
    #[error(
        "the guest does not let {user} in with the key {fingerprint}: is it in the image's authorized_keys?"
    )]
    Denied {
        /// As whom.
        user: UserName,
        /// With which key.
        fingerprint: String,
    },
    /// It runs no commands.
    #[error("the guest's SSH server refused to run a command")]
    NoCommands,
    /// The connection ended before the command did.
    #[error("the guest closed the connection before the command ended")]
    Closed,
    /// The connection may well go on, but this command has ended, and how is not known.
    #[error("the guest's SSH server did not say how the command ended")]
    Unsaid,
    /// A command wrote more than it was expected to.
    #[error("a command in the guest wrote more than {limit} bytes")]
    TooMuch {
        /// The limit, in bytes, for each of stdout and stderr.
        limit: usize,
    },
    /// The guest was not ready in time.
    #[error("no command has run in the guest within {limit:?}")]
    NotReady {
        /// For how long it was waited.
        limit: Duration,
        /// Why the last attempt failed.
        #[source]
        last: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A person asked to stop.
    #[error("interrupted while waiting for the guest")]
    Interrupted,
    /// Our own stdin, stdout or stderr failed.
    #[error("cannot {doing}")]
    Local {
        /// Which.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandExit {
    /// By itself.
    Status(u32),
    /// By a signal; its name without `SIG`.
    Signal(String),
}

/// What is expected of a command.
#[derive(Debug, Clone, Copy)]
pub struct Capture {
    /// Bytes of stdout, and of stderr, above which it is an error.
    pub most: usize,
    /// Time until it must have ended.
    pub within: Duration,
    /// What its stdout must have said before it is sent anything.
    pub prompt: Option<&'static [u8]>,
}

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub exit: CommandExit,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained of.
    pub stderr: Vec<u8>,
}

/// A connection that is logged in.
pub struct SshSession {
    handle: Handle<SshClientHandler>,
    _cut: Cut,
}

/// Ends the connection when dropped: russh's own part in it runs on its own until its socket ends.
struct Cut(std::net::TcpStream);

impl Drop for Cut {
    fn drop(&mut self) {
        // Fails where the other side was faster, which is as good.
        self.0.shutdown(Shutdown::Both).ok();
    }
}

impl SshSession {
    /// Connect, hold the host key to the pin, and log in. A key that is seen for the first time is pinned once the server
    /// has let us in.
    ///
    /// # Errors
    /// Any of [`ChannelError`] but those about commands.
    pub async fn open(endpoint: &Endpoint, limits: Limits) -> Result<Self, ChannelError> {
        let silent = |_| ChannelError::Silent { doing: "logging in", limit: limits.connect };
        timeout(limits.connect, Self::open_unhurried(endpoint, limits)).await.map_err(silent)?
    }

    async fn open_unhurried(endpoint: &Endpoint, limits: Limits) -> Result<Self, ChannelError> {
        let pinned = endpoint.pin.load().map_err(ChannelError::HostKey)?;
        let connect = |source| ChannelError::Connect { address: endpoint.address, source };
        let stream = timeout(limits.reach, TcpStream::connect(endpoint.address)).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        let stream = stream.into_std().map_err(connect)?;
        let cut = Cut(stream.try_clone().map_err(connect)?);
        let stream = TcpStream::from_std(stream).map_err(connect)?;

        let shown = Arc::new(Mutex::new(None));
        let client = SshClientHandler { pin: endpoint.pin.clone(), pinned, shown: Arc::clone(&shown) };
        let configuration = Arc::new(client.configuration(limits));
        let mut handle =
            client::connect_stream(configuration, stream, client).await.map_err(|error| match error {
                SshClientError::Pin(error) => ChannelError::HostKey(error),
                SshClientError::Ssh(source) => ChannelError::Protocol { doing: "agreeing on keys", source },
            })?;
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
        Ok(Self { handle, _cut: cut })
    }

    /// Whether neither side has ended it, as far as is known here.
    #[must_use]
    pub fn lives(&self) -> bool {
        !self.handle.is_closed()
    }

    /// Start a command under the user's login shell.
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

    /// `None` if the server closed the channel before it answered, and so has not started anything. Dropbear does that
    /// (seen in 2022.83; as of 2026 in its main branch too: `sesscheckclose` takes a channel without a process for one
    /// whose process has ended) when another command ends between the opening of the channel and this request.
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
                // A server that speaks before it answers: what it says is the command's.
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

    /// Run a command to its end, giving it `input`, which is overwritten in memory once sent.
    ///
    /// # Errors
    /// [`ChannelError::Silent`], [`ChannelError::TooMuch`], [`ChannelError::Closed`], [`ChannelError::Unsaid`],
    /// [`ChannelError::NoCommands`], [`ChannelError::Protocol`]. How the command itself ended is no error.
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
            let mut sink = Kept { most: capture.most, stdout: Vec::new(), stderr: Vec::new(), prompt };
            let feed = async {
                if capture.prompt.is_some() {
                    prompted.notified().await;
                }
                // A command that ended closes its side; how it ended, the receiving side says.
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

    /// Run a command to its end with stdin, stdout and stderr passed through. It may run for as long as it likes, and is
    /// given up when the guest no longer shows signs of life. With tokio's own stdin the runtime must be shut down without
    /// waiting for it: a blocked read cannot be taken back.
    ///
    /// # Errors
    /// Those of [`SshSession::exec`] but [`ChannelError::TooMuch`], and [`ChannelError::Local`].
    pub async fn pass_through(
        &self,
        command: &[u8],
        stdin: impl AsyncRead + Unpin + Send,
        stdout: impl AsyncWrite + Unpin + Send,
        stderr: impl AsyncWrite + Unpin + Send,
    ) -> Result<CommandExit, ChannelError> {
        let GuestCommand { mut reader, writer } = self.start(command).await?;
        let mut sink = Passed { stdout, stderr };
        converse(pump(stdin, &writer), drain(&mut reader, &mut sink)).await
    }

    /// Say goodbye. A guest that does not hear it loses nothing.
    pub async fn close(self) {
        let Self { handle, _cut } = self;
        if handle.disconnect(Disconnect::ByApplication, "", "en").await.is_ok() {
            // What ends the connection from here on is of no interest: nothing is in it any more.
            timeout(Duration::from_secs(1), handle).await.ok();
        }
    }
}

/// How many channels a server may close before it has started anything in them.
pub const STARTS: usize = 5;

/// Our end of the key exchange.
struct SshClientHandler {
    pin: Pin,
    pinned: Option<PublicKey>,
    shown: Arc<Mutex<Option<PublicKey>>>,
}

impl SshClientHandler {
    fn configuration(&self, limits: Limits) -> client::Config {
        let mut configuration = client::Config {
            keepalive_interval: Some(limits.silence),
            keepalive_max: 3,
            // For a connection that is dropped before it is made; signs of life keep it from ending others.
            inactivity_timeout: Some(limits.silence * 6),
            nodelay: true,
            ..client::Config::default()
        };
        if let Some(key) = &self.pinned {
            // A server has several host keys: ask for the one that is known.
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

impl From<russh::Error> for SshClientError {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

impl client::Handler for SshClientHandler {
    type Error = SshClientError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, SshClientError> {
        // Certificates are not asked for.
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            return Ok(false);
        };
        if let Some(pinned) = &self.pinned {
            self.pin.compare(pinned, key).map_err(SshClientError::Pin)?;
        }
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
