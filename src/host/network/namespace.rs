//! The network namespace of a VM, as nixbox sees it from outside.
//!
//! That of an ordinary user's VM has no name: see [`super::user_namespace`]. The name of any other is `nixbox-WORKSPACE` in
//! the directory in which `ip netns` has its names, so that `ip netns list` shows it. Its mark is the alias of the loopback
//! device in it, which is set before the namespace gets its name: a namespace of that name without the mark is somebody
//! else's, and is left alone.
//!
//! nixbox makes, opens and removes the namespace in a child ([`inside`]), and never enters it itself: programs enter it
//! before their exec, and sockets are handed over.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Command;
use tokio::sync::Mutex;

use super::follow_words::FollowerWords;
use super::inside::{self, COMMAND, NamespaceFile, Opened};
use super::link::{Netlink, alias};
use super::tables::Tables;
use super::tool::{self, LIMIT, OWN_PROGRAM};
use super::user_namespace::{FoundNamespaces, UserNamespace};
use super::{handover, keeper};
use crate::files::FileError;
use crate::host::process::ProcessMark;
use crate::host::program;
use crate::host::socket::SocketPath;
use crate::host::spawn::entrance::NamespaceEntrance;
use crate::host::sudo;
use crate::host::systemd::scope::{Scope, ScopeManager};
use crate::world::{Generation, Interrupt, WorkspaceId};

mod error;

pub use error::NamespaceError;

/// Where `ip netns` has the names of namespaces.
pub const DIRECTORY: &str = "/run/netns";

/// What is opened in a namespace to work with it.
const INSIDE: [Opened; 3] = [Opened::Namespace, Opened::Netlink, Opened::Tables];

/// The socket of the keeper, in the runtime directory.
pub(super) const KEEPER_SOCKET: &str = "keeper.sock";

type Result<T, E = NamespaceError> = std::result::Result<T, E>;

/// What a network namespace is found by.
#[derive(Debug, Clone)]
enum NamespaceKind {
    /// Its name, which is this path.
    Named(PathBuf),
    /// A process of an ordinary user that is in it.
    Held(UserNamespace),
}

/// The network namespace of a workspace's VM.
#[derive(Debug, Clone)]
pub struct NetworkNamespace {
    kind: NamespaceKind,
    workspace: WorkspaceId,
    /// The namespace that this process made or found last. It is locked while one is made, because the network and the VMM
    /// are made at the same time, and both need the namespace.
    known: Arc<Mutex<Option<Arc<NamespaceEntrance>>>>,
}

/// The namespace as it was found.
#[derive(Debug)]
pub(super) enum FoundNamespace {
    Nothing,
    /// Its name is taken, and nothing has it.
    Unfinished,
    /// It has no mark of this workspace. The text describes it for people.
    Foreign(String),
    Marked(Inside),
}

/// What nixbox works with in a namespace.
pub(super) struct Inside {
    pub(super) entrance: Arc<NamespaceEntrance>,
    pub(super) netlink: Netlink,
    pub(super) tables: Tables,
}

impl std::fmt::Debug for Inside {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.entrance.fmt(formatter)
    }
}

impl NetworkNamespace {
    /// The namespace of this workspace with a name, which root's rights make. `directory` is [`DIRECTORY`], except in tests.
    /// Touches nothing yet.
    #[must_use]
    pub fn new(directory: &Path, workspace: WorkspaceId) -> Self {
        let path = directory.join(format!("nixbox-{workspace}"));
        Self { kind: NamespaceKind::Named(path), workspace, known: Arc::default() }
    }

    /// The namespace of this workspace that an ordinary user makes. The processes that stay with it get into scopes of their
    /// own, if there is a manager of scopes. Touches nothing yet.
    #[must_use]
    pub fn of_user(workspace: WorkspaceId, scopes: Option<ScopeManager>) -> Self {
        let kind = NamespaceKind::Held(UserNamespace::new(workspace, scopes));
        Self { kind, workspace, known: Arc::default() }
    }

    /// Its name.
    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        match &self.kind {
            NamespaceKind::Named(path) => path,
            NamespaceKind::Held(_) => panic!("a namespace of an ordinary user has no name"),
        }
    }

    /// Whether an ordinary user makes it.
    #[must_use]
    pub fn is_of_user(&self) -> bool {
        matches!(self.kind, NamespaceKind::Held(_))
    }

    /// Where people can see it: its name, or that of its holder's namespace in /proc.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn shown(&self) -> Result<Option<PathBuf>> {
        Ok(match &self.kind {
            NamespaceKind::Named(path) => Some(path.clone()),
            NamespaceKind::Held(held) => {
                held.holder()?.map(|holder| PathBuf::from(format!("/proc/{}/ns/net", holder.pid())))
            }
        })
    }

    /// Whether it is there: whether something has its name, or a process holds it.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn exists(&self) -> Result<bool> {
        Ok(match &self.kind {
            NamespaceKind::Named(path) => path.symlink_metadata().is_ok(),
            NamespaceKind::Held(held) => held.holder()?.is_some(),
        })
    }

    /// The alias of the loopback device, which is the mark.
    fn mark(&self) -> String {
        format!("nixbox {} network", self.workspace)
    }

    /// Finds the namespace, and changes nothing.
    pub(super) async fn find(&self) -> Result<FoundNamespace> {
        match &self.kind {
            NamespaceKind::Named(path) => self.find_named(path).await,
            NamespaceKind::Held(held) => Ok(match held.find(&self.mark()).await? {
                Some(FoundNamespaces { entrance, netlink, tables }) => {
                    FoundNamespace::Marked(Inside { entrance, netlink, tables })
                }
                None => FoundNamespace::Nothing,
            }),
        }
    }

    async fn find_named(&self, path: &Path) -> Result<FoundNamespace> {
        let found = inside::name_at(path).map_err(FileError::system("examine", path))?;
        match found {
            NamespaceFile::Free => return Ok(FoundNamespace::Nothing),
            NamespaceFile::Taken => return Ok(FoundNamespace::Unfinished),
            NamespaceFile::Foreign => return Ok(FoundNamespace::Foreign("it is no namespace".to_owned())),
            NamespaceFile::Namespace => {}
        }
        self.examine(path, self.open_named(path, INSIDE).await?).await
    }

    /// Looks whether the namespace in which these were opened is that of this workspace.
    pub(super) async fn examine(
        &self,
        path: &Path,
        [itself, socket, tables]: [OwnedFd; 3],
    ) -> Result<FoundNamespace> {
        let entrance = Arc::new(NamespaceEntrance::of_network(itself));
        let netlink = Netlink::of_socket(socket);
        let inside = Inside { entrance, netlink, tables: Tables::of_socket(tables) };
        let failed = |source| NamespaceError::Link { path: path.to_owned(), source: Box::new(source) };
        let loopback = inside.netlink.get("lo").await.map_err(failed)?;
        let found = loopback.as_ref().and_then(alias);
        if found == Some(self.mark().as_str()) {
            return Ok(FoundNamespace::Marked(inside));
        }
        Ok(FoundNamespace::Foreign(match found {
            Some(alias) => format!("the alias of its loopback device is {alias:?}"),
            None => "its loopback device has no alias, which nixbox would have set".to_owned(),
        }))
    }

    /// Makes the namespace if it is not there, and lets another holder hold it if it has lost its holder. A holder bears
    /// this generation.
    pub(super) async fn make(&self, generation: Generation) -> Result<Inside> {
        let mut known = self.known.lock().await;
        let inside = self.make_alone(generation).await?;
        *known = Some(Arc::clone(&inside.entrance));
        Ok(inside)
    }

    /// Does the same for a program that only enters the namespace. A namespace that this process has made or found, and that
    /// is still there, is not looked at again.
    pub(super) async fn entrance(&self, generation: Generation) -> Result<Arc<NamespaceEntrance>> {
        let mut known = self.known.lock().await;
        if let Some(entrance) = &*known
            && self.is_shown(entrance)?
        {
            return Ok(Arc::clone(entrance));
        }
        let inside = self.make_alone(generation).await?;
        Ok(Arc::clone(known.insert(inside.entrance)))
    }

    /// Whether people see this namespace where this workspace's is to be.
    fn is_shown(&self, entrance: &NamespaceEntrance) -> Result<bool> {
        let Some(path) = self.shown()? else { return Ok(false) };
        let failed = |path: &Path| FileError::system("examine", path.to_owned());
        let shown = match std::fs::metadata(&path) {
            Ok(shown) => shown,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(&path)(error).into()),
        };
        let known = rustix::fs::fstat(entrance.network()).map_err(io::Error::from).map_err(failed(&path))?;
        Ok((shown.dev(), shown.ino()) == (known.st_dev, known.st_ino))
    }

    async fn make_alone(&self, generation: Generation) -> Result<Inside> {
        loop {
            let mut found = self.find().await?;
            if let (NamespaceKind::Named(path), FoundNamespace::Nothing | FoundNamespace::Unfinished) =
                (&self.kind, &found)
            {
                let mark = self.mark();
                found = self.examine(path, self.open_by(path, "make", &[&mark], INSIDE).await?).await?;
            }
            match (&self.kind, found) {
                (_, FoundNamespace::Foreign(found)) => return Err(self.foreign(found)),
                (NamespaceKind::Named(_), FoundNamespace::Marked(inside)) => return Ok(inside),
                // What was opened has been examined.
                (NamespaceKind::Named(_), FoundNamespace::Nothing | FoundNamespace::Unfinished) => {}
                (NamespaceKind::Held(held), FoundNamespace::Marked(inside)) => {
                    if held.holder()?.is_some() {
                        return Ok(inside);
                    }
                    held.hold(Some(&inside.entrance), &self.mark(), generation).await?;
                }
                (NamespaceKind::Held(held), FoundNamespace::Nothing | FoundNamespace::Unfinished) => {
                    held.hold(None, &self.mark(), generation).await?;
                }
            }
        }
    }

    /// Refuses a namespace of this name that is somebody else's.
    ///
    /// # Errors
    /// [`NamespaceError::Foreign`], and others if it cannot be examined.
    pub async fn check(&self) -> Result<()> {
        match self.find().await? {
            FoundNamespace::Foreign(found) => Err(self.foreign(found)),
            _ => Ok(()),
        }
    }

    /// Takes the name from the namespace, unless it is somebody else's, or ends its holder. The namespace ends with its last
    /// process.
    pub(super) async fn remove(&self) -> Result<()> {
        let mut known = self.known.lock().await;
        *known = None;
        let path = match &self.kind {
            NamespaceKind::Named(path) => path,
            NamespaceKind::Held(held) => return Ok(held.let_go().await?),
        };
        match self.find_named(path).await? {
            FoundNamespace::Nothing | FoundNamespace::Foreign(_) => Ok(()),
            FoundNamespace::Unfinished | FoundNamespace::Marked(_) => {
                self.child(path, "remove", &[], Stdio::null()).await
            }
        }
    }

    /// Says that no process is in the namespace whose name is lost.
    pub(super) fn lost(&self) -> NamespaceError {
        match &self.kind {
            NamespaceKind::Named(path) => NamespaceError::Lost { path: path.clone() },
            NamespaceKind::Held(_) => NamespaceError::NotHeld,
        }
    }

    pub(super) fn foreign(&self, found: String) -> NamespaceError {
        let path = match &self.kind {
            NamespaceKind::Named(path) => path.clone(),
            NamespaceKind::Held(_) => PathBuf::new(),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        NamespaceError::Foreign { path, name, found }
    }

    /// Opens these in the namespace.
    pub(super) async fn open<const N: usize>(&self, what: [Opened; N]) -> Result<[OwnedFd; N]> {
        match &self.kind {
            NamespaceKind::Named(path) => self.open_named(path, what).await,
            NamespaceKind::Held(held) => Ok(held.open(&self.mark(), what).await?),
        }
    }

    async fn open_named<const N: usize>(&self, path: &Path, what: [Opened; N]) -> Result<[OwnedFd; N]> {
        self.open_by(path, "open", &[], what).await
    }

    /// Lets a child do this with the namespace of this name, and then open these in it.
    async fn open_by<const N: usize>(
        &self,
        path: &Path,
        verb: &str,
        words: &[&str],
        what: [Opened; N],
    ) -> Result<[OwnedFd; N]> {
        let failed = |source| NamespaceError::Handover { path: path.to_owned(), source };
        let (near, far) = UnixStream::pair().map_err(failed)?;
        let words: Vec<_> = words.iter().copied().chain(what.map(Opened::word)).collect();
        self.child(path, verb, &words, Stdio::from(OwnedFd::from(far))).await?;
        // The child has ended, so whatever it has sent is here, and the other end is closed.
        handover::receive(&near).map_err(failed)
    }

    async fn child(&self, namespace: &Path, verb: &str, words: &[&str], stdin: Stdio) -> Result<()> {
        let failed = |source| NamespaceError::Child { path: namespace.to_owned(), source };
        let path = Path::new(OWN_PROGRAM);
        let mut command = tool::command(path, None);
        command.arg(COMMAND).arg(verb).arg(namespace).args(words).process_group(0).stdin(stdin);
        let child = tool::start(command, sudo::NEEDED | sudo::NAMESPACES, path).await.map_err(failed)?;
        let ended = program::finish(child, path, &[], LIMIT, &Interrupt::new()).await;
        ended.map(drop).map_err(failed)
    }

    /// Starts the keeper, and returns its pid when it serves. The keeper outlives nixbox.
    pub(super) async fn start_keeper(
        &self,
        mark: &ProcessMark,
        scope: Option<&Scope>,
        runtime: &Path,
        resolv_conf: &Path,
    ) -> Result<u32> {
        let socket = SocketPath::new(runtime.join(KEEPER_SOCKET))?;
        let (mut command, namespace) = self.own_process("keep", mark, scope).await?;
        command.arg(&namespace).arg(socket.as_path()).arg(resolv_conf).stdin(Stdio::null());
        self.start(mark, &namespace, command, &[]).await
    }

    /// Starts the follower, and returns its pid when it has looked at the host's networks. The follower outlives nixbox.
    pub(super) async fn start_follower(
        &self,
        mark: &ProcessMark,
        scope: Option<&Scope>,
        words: &FollowerWords,
    ) -> Result<u32> {
        let input = serde_json::to_vec(words).unwrap_or_default();
        let (mut command, namespace) = self.own_process("follow", mark, scope).await?;
        command.arg(&namespace).stdin(Stdio::piped());
        self.start(mark, &namespace, command, &input).await
    }

    /// A command of nixbox's own program that outlives nixbox and may enter the namespace, and the path of the namespace.
    async fn own_process(
        &self,
        verb: &str,
        mark: &ProcessMark,
        scope: Option<&Scope>,
    ) -> Result<(Command, PathBuf)> {
        let mut command = tool::own_daemon(mark, scope);
        command.arg(COMMAND).arg(verb);
        let path = match &self.kind {
            NamespaceKind::Named(path) => path.clone(),
            NamespaceKind::Held(held) => held.admit(&self.mark(), &mut command).await?,
        };
        Ok((command, path))
    }

    /// Starts a process of nixbox's own with this on its stdin, and returns its pid when it serves.
    async fn start(
        &self,
        mark: &ProcessMark,
        namespace: &Path,
        command: Command,
        input: &[u8],
    ) -> Result<u32> {
        let path = Path::new(OWN_PROGRAM);
        let failed = |source| NamespaceError::Child { path: namespace.to_owned(), source };
        let mut child = tool::start(command, sudo::NEEDED | sudo::NAMESPACES, path).await.map_err(failed)?;
        let pid = child.id();
        match (tool::until_ready(&mut child, input, keeper::READY).await, pid) {
            (Ok(()), Some(pid)) => Ok(pid),
            (Ok(()), None) => {
                Err(NamespaceError::NotServing { role: mark.role.clone(), said: String::new() })
            }
            (Err(said), _) => Err(NamespaceError::NotServing { role: mark.role.clone(), said }),
        }
    }

    /// Gives its name back to the namespace that this process is in.
    pub(super) async fn name_again(&self, pid: u32) -> Result<FoundNamespace> {
        let mut known = self.known.lock().await;
        *known = None;
        if let NamespaceKind::Named(path) = &self.kind {
            self.child(path, "name", &[&pid.to_string()], Stdio::null()).await?;
        }
        self.find().await
    }

    /// Whether nixbox may enter the namespace.
    #[must_use]
    pub fn may_enter(&self) -> bool {
        self.is_of_user() || sudo::may_make_namespaces()
    }

    /// Connects to an address in the namespace. The socket is the keeper's, or that of a child where the keeper is dead and
    /// nixbox may enter the namespace.
    ///
    /// # Errors
    /// If neither hands a socket over, or the address does not answer.
    pub async fn connect(&self, runtime: &Path, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match ask_keeper(&runtime.join(KEEPER_SOCKET)).await {
            Ok(socket) => socket,
            Err(_) if self.may_enter() => {
                let [socket] = self.open([Opened::Tcp]).await.map_err(io::Error::other)?;
                socket
            }
            Err(source) => {
                let socket = runtime.join(KEEPER_SOCKET);
                return Err(io::Error::other(NamespaceError::NoWay { socket, source }));
            }
        };
        TcpSocket::from_std_stream(socket.into()).connect(address).await
    }
}

/// Asks the keeper for a socket. The answer is a few bytes of a process that does nothing else.
async fn ask_keeper(path: &Path) -> io::Result<OwnedFd> {
    let asked = async {
        let stream = tokio::net::UnixStream::connect(path).await?;
        loop {
            stream.readable().await?;
            match stream.try_io(tokio::io::Interest::READABLE, || handover::receive(stream.as_fd())) {
                Ok([socket]) => return Ok(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    tokio::time::timeout(LIMIT, asked).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

/// Hands a connection to this address over to the program on the other end of `socket`: ssh with `ProxyUseFdpass`.
///
/// # Errors
/// If the connection cannot be made or handed over.
pub async fn hand_connection_over(
    namespace: &NetworkNamespace,
    runtime: &Path,
    address: SocketAddr,
    socket: impl AsFd,
) -> io::Result<()> {
    let stream = namespace.connect(runtime, address).await?.into_std()?;
    stream.set_nonblocking(false)?;
    handover::send(socket, &[stream.as_fd()])
}
