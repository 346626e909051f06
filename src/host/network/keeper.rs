//! The keeper: the one process of nixbox's that stays with a network namespace.
//!
//! It does three things, and holds no capability while it does them:
//!
//! - It asks the resolvers of the host for the guest. dnsmasq in the namespace asks the keeper, on the loopback address of
//!   the namespace, and the keeper asks from the host's network, so that a resolver on a LAN, in a VPN or at 127.0.0.53
//!   works. The resolvers are those that resolv.conf names at that moment. The bytes of a question are passed on as they
//!   are, and so are those of an answer, unless the guest must not have it ([`super::answers`]).
//! - It notes and refuses the names that the guest may not have: see [`super::refused_names`].
//! - It opens sockets in the namespace for nixbox commands, which may have no right to enter the namespace. Each client of
//!   its Unix socket, which only the user of the VM can reach, is handed one TCP socket.
//!
//! One thread is in the namespace and the others are in the host's network. If the keeper is killed, the guest has no DNS
//! until the network is built again, and nothing else is lost.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};
use serde::{Deserialize, Serialize};

use super::answers::AnswerFilter;
use super::refused_names::{self, REFUSER, RefusedNames};
use super::reserve::Reserve;
use super::{dhcp, handover};
use crate::files::FileError;

/// Where the keeper answers dnsmasq in the namespace.
pub(super) const RESOLVER: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 5300);

/// What the keeper writes to stdout when it serves.
pub(super) const READY: &[u8] = b"ready\n";

/// What the keeper works by, in the runtime directory, beside its socket.
pub(super) const SETTINGS: &str = "keeper.json";

/// How many questions are asked at the same time. dnsmasq asks up to 150.
const QUESTIONS: usize = 150;
/// How long a resolver may take, before the next one is asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long a TCP connection of a question may be silent.
const STREAM_LIMIT: Duration = Duration::from_secs(10);
/// The stack of a thread that asks a question.
const STACK: usize = 128 * 1024;

/// Why the keeper does not serve.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error("cannot {action}")]
    System { action: &'static str, source: io::Error },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path:?} is not what nixbox has written for its keeper")]
    Settings { path: PathBuf, source: serde_json::Error },
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> KeeperError {
    move |source| KeeperError::System { action, source: source.into() }
}

/// A TCP socket that is not connected yet, in the network namespace of this thread.
pub(super) fn tcp_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?)
}

/// What a keeper works by. Another text in the file means another keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct KeeperSettings {
    /// Which answers of name servers the guest gets.
    answers: AnswerFilter,
    /// Where names are refused. The keeper of an earlier nixbox refuses none.
    refuser: (Ipv4Addr, u16),
}

impl KeeperSettings {
    pub(super) fn new(answers: AnswerFilter) -> Self {
        Self { answers, refuser: REFUSER }
    }

    fn read(socket: &Path) -> Result<Self, KeeperError> {
        let path = socket.with_file_name(SETTINGS);
        let bytes = std::fs::read(&path).map_err(FileError::system("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|source| KeeperError::Settings { path, source })
    }
}

/// Listens at this path. A socket that an earlier keeper has left there is removed.
fn listen(path: &Path) -> Result<UnixListener, KeeperError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::system("remove", path)(error).into())
        }
        _ => Ok(UnixListener::bind(path).map_err(FileError::system("make", path))?),
    }
}

/// Does this on a thread of its own. The keeper ends with it, so that the next command starts another.
fn serve_apart(name: &str, serve: impl FnOnce() + Send + 'static) -> Result<(), KeeperError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        serve();
        std::process::exit(1);
    });
    thread.map(drop).map_err(failed("start a thread"))
}

/// Serves, and returns only if it cannot. The process has one thread, in the network of the host.
pub(super) fn keep(namespace: &File, socket: &Path, resolv_conf: &Path) -> Result<(), KeeperError> {
    let KeeperSettings { answers: filter, refuser } = KeeperSettings::read(socket)?;
    let clients = listen(socket)?;
    let (names, readers) = (RefusedNames::default(), listen(&socket.with_file_name(refused_names::SOCKET))?);
    let (hand_over, resolvers) = mpsc::channel::<(UdpSocket, TcpListener)>();
    let resolv_conf = resolv_conf.to_owned();
    // This thread stays in the network of the host, and so do the threads that it starts.
    serve_apart("outside", move || {
        let given_up = give_up_capabilities();
        if let (Ok(()), Ok((datagrams, streams))) = (given_up, resolvers.recv()) {
            Resolvers { resolv_conf, filter, asking: AtomicUsize::new(0) }.serve(datagrams, streams);
        }
    })?;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(failed("enter the network namespace"))?;
    let datagrams = UdpSocket::bind(RESOLVER).map_err(failed("listen for questions"))?;
    let streams = TcpListener::bind(RESOLVER).map_err(failed("listen for questions"))?;
    let refused = UdpSocket::bind(refuser).map_err(failed("listen for questions"))?;
    give_up_capabilities().map_err(failed("give up capabilities"))?;
    let refuser = names.clone();
    serve_apart("refuser", move || refuser.refuse(&refused))?;
    serve_apart("names", move || names.tell(&readers))?;
    hand_over
        .send((datagrams, streams))
        .map_err(|_| failed("hand sockets over")(io::ErrorKind::BrokenPipe))?;
    io::stdout().write_all(READY).map_err(failed("say that it serves"))?;
    silence().map_err(failed("close its output"))?;
    let mut reserve = Reserve::new().map_err(failed("reserve a descriptor"))?;
    loop {
        let client = reserve.accept(|| clients.accept()).map_err(failed("wait for clients"))?;
        // A client that is gone already, and a lack of descriptors, concern that client alone.
        if let Some((client, _)) = client
            && let Ok(opened) = tcp_socket()
        {
            handover::send(&client, &[opened.as_fd()]).ok();
        }
    }
}

/// Capabilities belong to a thread. A thread has those of the thread that started it.
fn give_up_capabilities() -> io::Result<()> {
    let none = CapabilitySet::empty();
    rustix::thread::clear_ambient_capability_set()?;
    Ok(rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )?)
}

/// Nobody reads what the keeper writes once it serves.
pub(super) fn silence() -> io::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}

/// What asks the resolvers of the host.
struct Resolvers {
    resolv_conf: PathBuf,
    /// Which answers the guest gets.
    filter: AnswerFilter,
    /// How many questions are being asked.
    asking: AtomicUsize,
}

/// Counts a question for as long as it lives.
struct Asking(Arc<Resolvers>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Resolvers {
    fn serve(self, datagrams: UdpSocket, streams: TcpListener) {
        let (this, datagrams) = (Arc::new(self), Arc::new(datagrams));
        let of_streams = Arc::clone(&this);
        let listening = std::thread::Builder::new().stack_size(STACK).spawn(move || {
            let Ok(mut reserve) = Reserve::new() else { std::process::exit(1) };
            while let Ok(accepted) = reserve.accept(|| streams.accept()) {
                if let Some((stream, _)) = accepted {
                    Self::apart(&of_streams, move |resolvers| drop(resolvers.answer_stream(stream)));
                }
            }
            // As for its other half: the next command starts another keeper.
            std::process::exit(1);
        });
        if listening.is_err() {
            return;
        }
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            let (question, answers) = (buffer[..length].to_vec(), Arc::clone(&datagrams));
            Self::apart(&this, move |resolvers| {
                let answer = resolvers.ask(&question).unwrap_or_else(|| failure(question));
                // dnsmasq asks again if the answer is lost.
                answers.send_to(&answer, from).ok();
            });
        }
    }

    /// Answers on a thread of its own, unless too many questions are being asked. dnsmasq asks again then.
    fn apart(this: &Arc<Self>, answer: impl FnOnce(&Self) + Send + 'static) {
        this.asking.fetch_add(1, Ordering::Relaxed);
        let asking = Asking(Arc::clone(this));
        if this.asking.load(Ordering::Relaxed) <= QUESTIONS {
            let thread = std::thread::Builder::new().stack_size(STACK);
            // A host that has no thread left has none for the next question either.
            thread.spawn(move || answer(&asking.0)).ok();
        }
    }

    /// The resolvers of this moment.
    fn addresses(&self) -> Vec<SocketAddr> {
        let (_, servers) = dhcp::upstreams(&self.resolv_conf, dhcp::RESOLVED.as_ref(), dhcp::Stub::Asked);
        let address = |server: &String| (server.as_str(), 53).to_socket_addrs().ok()?.next();
        servers.iter().filter_map(address).collect()
    }

    /// The answer of the first resolver that gives one.
    fn ask(&self, question: &[u8]) -> Option<Vec<u8>> {
        let answer =
            self.addresses().into_iter().find_map(|resolver| ask_by_datagram(resolver, question).ok());
        answer.map(|answer| self.filter.pass(answer))
    }

    /// Passes the questions of a TCP connection to a resolver, and the answers back.
    fn answer_stream(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(STREAM_LIMIT))?;
        stream.set_write_timeout(Some(STREAM_LIMIT))?;
        loop {
            let question = with_length(&read_message(&mut stream)?)?;
            let asked = self.addresses().into_iter().find_map(|resolver| {
                let mut upstream = TcpStream::connect_timeout(&resolver, ANSWER_LIMIT).ok()?;
                upstream.set_read_timeout(Some(STREAM_LIMIT)).ok()?;
                upstream.set_write_timeout(Some(STREAM_LIMIT)).ok()?;
                upstream.write_all(&question).ok()?;
                read_message(&mut upstream).ok()
            });
            let answer = self.filter.pass(asked.ok_or(io::ErrorKind::NotConnected)?);
            stream.write_all(&with_length(&answer)?)?;
        }
    }
}

/// Asks from a port of its own. The socket is connected, so no one else's answer arrives.
fn ask_by_datagram(resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr =
        if resolver.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    socket.connect(resolver)?;
    socket.send(question)?;
    let mut answer = vec![0; 65535];
    loop {
        let length = socket.recv(&mut answer)?;
        // The first two bytes name the question.
        if length >= 2 && question.get(..2) == answer.get(..2) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

/// A message as DNS sends it over TCP, after its length (RFC 1035, 4.2.2).
fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn with_length(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok([&length.to_be_bytes(), message].concat())
}

/// The answer that no resolver could be asked: SERVFAIL (RFC 1035, 4.1.1), with the question as it was.
fn failure(mut question: Vec<u8>) -> Vec<u8> {
    if let [_, _, flags, code, ..] = question.as_mut_slice() {
        *flags = (*flags & 0x79) | 0x80;
        *code = 2;
    }
    question
}
