//! The SSH server of the simulated guest: SSH on a loopback address. Commands are run by this machine's shell, in the
//! directory that stands for the guest's root.
//!
//! The authorized keys and the host key are files on the guest's disk, as in a real guest. There are no terminals.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{PrivateKey, PublicKey, decode_secret_key};
use russh::server::{self, Auth, ChannelOpenHandle, Handle, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, Sig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::forwarding::ForwardedPorts;
use super::guest::SimulatedGuest;
use super::pausable_stream::PausableStream;
use super::syscalls;
use super::translate::{CommandInput, Translator};
use crate::guest::{key, person_command};

/// The file of the host key, relative to the root.
const HOST_KEY: &str = "etc/ssh/host_key";

/// Accepts connections while the guest runs, until it ends.
pub(super) fn listen(guest: &Arc<SimulatedGuest>, listener: std::net::TcpListener) -> io::Result<()> {
    let key = host_key(guest)?;
    let config = Arc::new(server::Config {
        keys: vec![key],
        auth_rejection_time: std::time::Duration::ZERO,
        ..server::Config::default()
    });
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let guest = Arc::clone(guest);
    tokio::spawn(async move {
        while guest.pause_control.until_running().await.is_ok() {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = guest.pause_control.until_gone() => return,
            };
            let Ok((stream, _)) = accepted else {
                return;
            };
            // If this fails, answers are only slower.
            stream.set_nodelay(true).ok();
            let stream = PausableStream { stream, pause_control: Arc::clone(&guest.pause_control) };
            let connection = ClientConnection {
                guest: Arc::clone(&guest),
                home: None,
                channels: HashMap::new(),
                ports: ForwardedPorts::default(),
            };
            let config = Arc::clone(&config);
            tokio::spawn(async move {
                // The client may end the connection in any way.
                if let Ok(session) = server::run_stream(config, stream, connection).await {
                    session.await.ok();
                }
            });
        }
    });
    Ok(())
}

/// The host key on the disk, which is made if it is missing.
fn host_key(guest: &SimulatedGuest) -> io::Result<PrivateKey> {
    let path = guest.kernel().view().join(HOST_KEY);
    match std::fs::read_to_string(&path) {
        Ok(text) => decode_secret_key(&text, None).map_err(io::Error::other),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) => {
            let key = key::generate().map_err(io::Error::other)?;
            let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            std::fs::write(path, text.as_bytes())?;
            guest.settle();
            Ok(key)
        }
    }
}

struct ClientConnection {
    guest: Arc<SimulatedGuest>,
    /// The home directory of the user, once logged in.
    home: Option<PathBuf>,
    /// The commands that run, by channel: what the client sends goes there.
    channels: HashMap<ChannelId, UnboundedSender<CommandMessage>>,
    ports: ForwardedPorts,
}

/// What a client sends to a command.
enum CommandMessage {
    Bytes(Vec<u8>),
    EndOfInput,
    Signal(rustix::process::Signal),
}

impl ClientConnection {
    fn home_of(&self, user: &str) -> PathBuf {
        let view = self.guest.kernel().view().to_owned();
        if user == "root" { view.join("root") } else { view.join("home").join(user) }
    }

    /// The file of this machine that stands for a file of the guest.
    fn path_of(&self, path: &str) -> PathBuf {
        let view = self.guest.kernel().view().to_owned();
        if Path::new(path).starts_with(&view) {
            return path.into();
        }
        view.join(path.trim_start_matches('/'))
    }

    fn may_log_in(&self, user: &str, key: &PublicKey) -> bool {
        // The name becomes part of a path.
        let plain = user.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter));
        let list =
            std::fs::read_to_string(self.home_of(user).join(".ssh/authorized_keys")).unwrap_or_default();
        let mut keys = list.lines().filter_map(|line| PublicKey::from_openssh(line).ok());
        plain && keys.any(|known| known.key_data() == key.key_data())
    }

    fn begin(&mut self, id: ChannelId, command: &str, session: &mut Session) -> Result<(), russh::Error> {
        match self.start(command) {
            Ok((child, translator)) => {
                let (sender, receiver) = unbounded_channel();
                self.channels.insert(id, sender);
                session.channel_success(id)?;
                let running = RunningCommand {
                    guest: Arc::clone(&self.guest),
                    handle: session.handle(),
                    id,
                    input: CommandInput::of(command),
                    translator,
                };
                tokio::spawn(running.run(child, receiver));
                Ok(())
            }
            Err(error) => {
                self.guest.kernel().print(&format!("sshd: {command}: {error}"));
                session.channel_failure(id)
            }
        }
    }

    fn start(&self, command: &str) -> io::Result<(tokio::process::Child, Translator)> {
        let home = self.home.clone().ok_or(io::ErrorKind::PermissionDenied)?;
        let view = self.guest.kernel().view().to_owned();
        let translator = Translator::new(&view, &self.guest.sources())?;
        if let Some(file) = person_command::file_of(command) {
            translator.file(Path::new(file))?;
        }
        let user = home.file_name().unwrap_or_default().to_owned();
        let host = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned());
        let mut shell = Command::new("/bin/sh");
        shell
            .arg("-c")
            .arg(translator.script(command)?)
            .current_dir(&home)
            .env("HOME", &home)
            .env("USER", &user)
            .env("LOGNAME", &user)
            .env("SHELL", "/bin/sh")
            .env("PATH", format!("{}:{host}", view.join("bin").display()))
            .env(syscalls::VARIABLE, self.guest.calls())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let child = shell.spawn()?;
        if let Some(group) = group(&child) {
            self.guest.started(group.as_raw_nonzero().get(), command)?;
        }
        Ok((child, translator))
    }
}

impl server::Handler for ClientConnection {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        if self.may_log_in(user, key.public_key) {
            self.home = Some(self.home_of(user));
            Ok(Auth::Accept)
        } else {
            Ok(Auth::reject())
        }
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.ports.connect(channel, host, port, reply);
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.ports.listen(address, *port, session.handle()).await)
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        let file = self.path_of(path);
        self.ports.connect_to_socket(channel, file, reply);
        Ok(())
    }

    async fn streamlocal_forward(&mut self, path: &str, session: &mut Session) -> Result<bool, russh::Error> {
        let file = self.path_of(path);
        Ok(self.ports.listen_on_socket(path, file, session.handle()))
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let command = String::from_utf8_lossy(command).into_owned();
        self.begin(id, &command, session)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        self.begin(id, "exec sh -i", session)
    }

    async fn data(&mut self, id: ChannelId, bytes: &[u8], _: &mut Session) -> Result<(), russh::Error> {
        if let Some(command) = self.channels.get(&id) {
            // Without a receiver the command has ended.
            command.send(CommandMessage::Bytes(bytes.to_vec())).ok();
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        if let Some(command) = self.channels.get(&id) {
            // As above.
            command.send(CommandMessage::EndOfInput).ok();
        }
        Ok(())
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _: &mut Session) -> Result<(), russh::Error> {
        let signal = match signal {
            Sig::INT => rustix::process::Signal::INT,
            Sig::TERM => rustix::process::Signal::TERM,
            Sig::KILL => rustix::process::Signal::KILL,
            Sig::HUP => rustix::process::Signal::HUP,
            _ => return Ok(()),
        };
        if let Some(command) = self.channels.get(&id) {
            // As above.
            command.send(CommandMessage::Signal(signal)).ok();
        }
        Ok(())
    }
}

/// The process group of a command, which is its leader.
fn group(child: &tokio::process::Child) -> Option<rustix::process::Pid> {
    child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
}

/// A command that runs for a channel.
struct RunningCommand {
    guest: Arc<SimulatedGuest>,
    handle: Handle,
    id: ChannelId,
    input: CommandInput,
    translator: Translator,
}

impl RunningCommand {
    /// Transfers input and output until the command ends, and reports how it ended. If the client is gone the command runs
    /// on.
    async fn run(mut self, mut child: tokio::process::Child, receiver: UnboundedReceiver<CommandMessage>) {
        let group = group(&child);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (handle, id) = (self.handle.clone(), self.id);
        let guest = Arc::clone(&self.guest);
        let feeding = tokio::spawn(async move {
            // A command need not read its input to the end.
            self.feed(receiver, stdin, group).await.ok();
        });
        let wait = async {
            let ended = child.wait().await;
            let killed = ended.as_ref().is_ok_and(|status| status.signal() == Some(9));
            if let Some(group) = group {
                guest.ended(group.as_raw_nonzero().get(), killed);
            }
            ended
        };
        let (ended, (), ()) = tokio::join!(
            wait,
            send_output(stdout, &handle, id, None),
            send_output(stderr, &handle, id, Some(1))
        );
        feeding.abort();
        guest.settle();
        // Sending fails if the client has gone.
        match ended.map(|status| (status.code(), status.signal())) {
            Ok((Some(code), _)) => {
                handle.exit_status_request(id, u32::try_from(code).unwrap_or(255)).await.ok();
            }
            Ok((None, signal)) => {
                let signal = match signal {
                    Some(1) => Sig::HUP,
                    Some(2) => Sig::INT,
                    Some(9) => Sig::KILL,
                    Some(15) => Sig::TERM,
                    other => Sig::Custom(format!("{}", other.unwrap_or_default())),
                };
                let sent = handle.exit_signal_request(id, signal, false, String::new(), String::new());
                sent.await.ok();
            }
            Err(error) => guest.kernel().print(&format!("sshd: {error}")),
        }
        handle.eof(id).await.ok();
        handle.close(id).await.ok();
    }

    async fn feed(
        &mut self,
        mut receiver: UnboundedReceiver<CommandMessage>,
        mut stdin: Option<tokio::process::ChildStdin>,
        group: Option<rustix::process::Pid>,
    ) -> io::Result<()> {
        while let Some(next) = receiver.recv().await {
            match (next, &mut stdin) {
                (CommandMessage::Bytes(bytes), Some(stdin)) => {
                    self.guest.kernel().pass(&bytes)?;
                    let bytes = self.input.take(&self.translator, bytes)?;
                    stdin.write_all(&bytes).await?;
                }
                (CommandMessage::Bytes(_), None) => {}
                (CommandMessage::EndOfInput, _) => stdin = None,
                (CommandMessage::Signal(signal), _) => {
                    if let Some(group) = group {
                        rustix::process::kill_process_group(group, signal)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Sends the output of a command to the client until there is no more.
async fn send_output(
    from: Option<impl AsyncRead + Unpin>,
    to: &Handle,
    id: ChannelId,
    extended: Option<u32>,
) {
    let Some(mut from) = from else {
        return;
    };
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let bytes = buffer[..read].to_vec();
        let sent = match extended {
            None => to.data(id, bytes).await.is_ok(),
            Some(kind) => to.extended_data(id, kind, bytes).await.is_ok(),
        };
        if !sent {
            return;
        }
    }
}
