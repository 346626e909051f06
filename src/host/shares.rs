//! The seam [`Shares`] over virtiofsd: one daemon per mount and VMM generation.
//!
//! virtiofsd serves one connection and exits when its VMM disconnects; that is no error. It runs as the invoking user
//! in namespaces of its own, and whoever acts in the guest, its root too, acts on the host as that user.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::Resource;
use rustix::thread::CapabilitySet;
use tokio::time::Instant;

use super::process::{Daemon, DaemonRole, Daemons, ProcessError};
use super::socket::{self, SocketError, SocketPath, Use};
use super::spawn::{self, Invoker, Privileges, Program, SpawnError, StandIn};
use crate::world::{Failure, Generation, Presence, Result, ShareTag, Shares, WorkspaceId};

/// No configuration has more.
const MOST: usize = 64;
/// How long a daemon may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to end by itself after TERM.
const GRACE: Duration = Duration::from_secs(3);
/// As many files as a guest may hold open, where the host allows it: virtiofsd has one per inode that a guest knows.
const OPEN_FILES: u64 = 1_000_000;

/// Why shares cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It is not there, or no directory, or cannot be searched.
    #[error("the mount source {source_path:?} is no directory that can be shared")]
    Source {
        /// The directory.
        source_path: PathBuf,
        /// What the system says of it.
        source: std::io::Error,
    },
    /// About its socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// About its process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// About the program.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

impl From<ShareError> for Failure {
    fn from(error: ShareError) -> Self {
        Self::world(error)
    }
}

/// A directory of the host that the guest is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// By what the guest mounts it.
    pub tag: ShareTag,
    /// The directory, absolute.
    pub source: PathBuf,
    /// Whether the guest may not write.
    pub readonly: bool,
}

/// What the shares of a workspace are served with.
#[derive(Debug, Clone)]
pub struct ShareSettings {
    /// Where sockets, records and logs are: an existing directory that the invoking user can write, absolute and short.
    pub runtime: PathBuf,
    /// Whose they are.
    pub workspace: WorkspaceId,
    /// As whom they are served.
    pub invoker: Invoker,
    /// Who the invoking user is in the guest: the uid and gid that files of the invoking user have there.
    pub guest: (u32, u32),
    /// The directories.
    pub shares: Vec<Share>,
}

/// The socket of share number `index`: the VMM connects to it.
///
/// # Errors
/// [`SocketError`] if no socket can be there.
pub fn socket_of(
    runtime: &std::path::Path,
    index: usize,
    generation: Generation,
) -> std::result::Result<SocketPath, SocketError> {
    SocketPath::new(runtime.join(format!("fs-{index}-{generation}.sock")))
}

/// [`Shares`] over virtiofsd 1.14 (`NIXBOX_VIRTIOFSD`, or on PATH).
#[derive(Debug)]
pub struct Virtiofs {
    settings: ShareSettings,
    daemons: Daemons,
    stand_in: Option<StandIn>,
}

impl Virtiofs {
    /// Serves by these settings. Starts nothing yet.
    #[must_use]
    pub fn new(settings: ShareSettings) -> Self {
        let daemons = Daemons::new(settings.runtime.clone(), settings.workspace);
        Self { settings, daemons, stand_in: None }
    }

    /// The same by a program that stands in for virtiofsd.
    #[must_use]
    pub fn by(self, stand_in: Option<StandIn>) -> Self {
        Self { stand_in, ..self }
    }

    /// How far share `index` is: its daemon, and whether it listens or is connected.
    fn look(
        &self,
        index: usize,
        generation: Generation,
    ) -> std::result::Result<(Option<Daemon>, Use), ShareError> {
        let daemon = self.daemons.find(&DaemonRole::share(index), generation)?;
        Ok((daemon, socket::usage(&socket_of(&self.settings.runtime, index, generation)?)?))
    }

    async fn start_one(&self, index: usize, generation: Generation) -> std::result::Result<(), ShareError> {
        let share = &self.settings.shares[index];
        let (daemon, usage) = self.look(index, generation)?;
        if daemon.is_some() && usage != Use::Unused {
            return Ok(());
        }
        let role = DaemonRole::share(index);
        let socket = socket_of(&self.settings.runtime, index, generation)?;
        // One that lives and has no socket is past its use, or was killed by degrees.
        self.daemons.stop(&role, generation, GRACE).await?;
        remove_sockets(&socket).await?;
        let directory = std::fs::metadata(&share.source).and_then(|metadata| match metadata.is_dir() {
            true => Ok(()),
            false => Err(std::io::ErrorKind::NotADirectory.into()),
        });
        directory.map_err(|source| ShareError::Source { source_path: share.source.clone(), source })?;
        let daemon = self.daemons.spawn(&role, generation, &self.program(share, &socket)?)?;
        self.listening(&daemon, &role, generation, &socket).await
    }

    /// Waits until the kernel has a listener on the socket, or the daemon has ended.
    async fn listening(
        &self,
        daemon: &Daemon,
        role: &DaemonRole,
        generation: Generation,
        socket: &SocketPath,
    ) -> std::result::Result<(), ShareError> {
        let mark = self.daemons.mark(role, generation);
        let deadline = Instant::now() + START_LIMIT;
        let mut pause = Duration::from_millis(1);
        while socket::usage(socket)? != Use::Listening {
            if Instant::now() > deadline {
                return Err(self.daemons.mute(&mark, START_LIMIT).into());
            }
            // No event tells of listen(2): looked for again with a growing pause, which the daemon's end cuts short.
            if let Ok(exit) = tokio::time::timeout(pause, daemon.exited()).await {
                return Err(self.daemons.ended(&mark, exit?).into());
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Ok(())
    }

    fn program(&self, share: &Share, socket: &SocketPath) -> std::result::Result<Program, ShareError> {
        let privileges = Privileges::Invoker(self.settings.invoker.clone());
        let open_files = open_files();
        let mut shared = std::ffi::OsString::from("--shared-dir=");
        shared.push(&share.source);
        let mut program =
            spawn::program("virtiofsd", "NIXBOX_VIRTIOFSD", self.stand_in.as_ref(), privileges)?
                .argument(format!("--socket-path={socket}"))
                .argument(shared)
                // As a user, that is a user namespace with the user's own ids alone.
                .argument("--sandbox=namespace")
                .argument("--cache=auto")
                .argument(format!("--rlimit-nofile={open_files}"))
                // A file that was removed on the host between snapshot and restore costs the guest that file, as on any
                // network file system, and not the restore.
                .argument("--migration-on-error=guest-error")
                .open_files(open_files);
        let (uid, gid) = (self.settings.invoker.uid(), self.settings.invoker.gid());
        for (kind, host, guest) in [("uid", uid, self.settings.guest.0), ("gid", gid, self.settings.guest.1)]
        {
            // Whoever it is in the guest; and back, the user alone. Others keep their ids, unmapped ones are nobody.
            program = program
                .argument(format!("--translate-{kind}=squash-guest:0:{host}:{}", u32::MAX))
                .argument(format!("--translate-{kind}=host:{host}:{guest}:1"));
        }
        Ok(if share.readonly { program.argument("--readonly") } else { program })
    }

    async fn stop_one(&self, index: usize, generation: Generation) -> std::result::Result<(), ShareError> {
        self.daemons.stop(&DaemonRole::share(index), generation, GRACE).await?;
        remove_sockets(&socket_of(&self.settings.runtime, index, generation)?).await
    }
}

/// virtiofsd leaves both behind when it is killed, and the second always.
async fn remove_sockets(socket: &SocketPath) -> std::result::Result<(), ShareError> {
    socket::remove_stale(socket).await?;
    Ok(socket::remove_file(&socket.with_suffix(".pid"))?)
}

/// The limit of open files for virtiofsd: above our own hard one with `CAP_SYS_RESOURCE` alone, and never above what
/// the kernel allows anybody. What cannot be found out counts as not allowed.
fn open_files() -> u64 {
    let own = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES);
    let privileged = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    let kernel =
        std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    match (privileged, kernel) {
        (true, Some(kernel)) => OPEN_FILES.min(kernel).max(own),
        _ => OPEN_FILES.min(own),
    }
}

#[async_trait]
impl Shares for Virtiofs {
    fn wanted(&self) -> bool {
        !self.settings.shares.is_empty()
    }

    async fn find(&self, generation: Generation) -> Result<Presence> {
        let (mut any, mut all) = (false, true);
        for index in 0..self.settings.shares.len() {
            let (daemon, usage) = self.look(index, generation)?;
            any |= daemon.is_some() || usage != Use::Unused;
            all &= daemon.is_some() && usage != Use::Unused;
        }
        Ok(match (any, all) {
            (false, _) => Presence::Absent,
            (true, false) => Presence::Partial,
            (true, true) => Presence::Whole,
        })
    }

    async fn start(&self, generation: Generation) -> Result<()> {
        let starts = (0..self.settings.shares.len()).map(|index| self.start_one(index, generation));
        futures_util::future::try_join_all(starts).await?;
        Ok(())
    }

    async fn stop(&self, generation: Generation) -> Result<()> {
        // Whatever the configuration says now: it may have had more shares when they were started.
        let begun = |index: &usize| {
            *index < self.settings.shares.len()
                || self.daemons.record(&DaemonRole::share(*index), generation).exists()
        };
        let stops = (0..MOST).filter(begun).map(|index| self.stop_one(index, generation));
        // All of them, whatever becomes of one.
        let ended = futures_util::future::join_all(stops).await;
        ended.into_iter().collect::<std::result::Result<(), _>>()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Need, have};
    use std::os::unix::fs::chown;
    use std::os::unix::net::UnixStream;

    fn shares(directory: &tempfile::TempDir, invoker: Invoker, readonly: bool) -> Virtiofs {
        let workspace = WorkspaceId(uuid());
        let source = directory.path().join("src");
        let share = |tag: &str| Share { tag: tag.parse().unwrap(), source: source.clone(), readonly };
        let shares = vec![share("a"), share("b")];
        for path in [directory.path(), &source] {
            std::fs::create_dir_all(path).unwrap();
            chown(path, Some(invoker.uid()), Some(invoker.gid())).unwrap();
        }
        let runtime = directory.path().to_owned();
        Virtiofs::new(ShareSettings { runtime, workspace, invoker, guest: (1000, 1000), shares })
    }

    fn uuid() -> [u8; 16] {
        let mut id = [0; 16];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut id).unwrap();
        id
    }

    fn status(pid: u32) -> String {
        std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap()
    }

    const GENERATION: Generation = Generation(5);

    #[tokio::test]
    async fn daemons_listen_serve_one_connection_and_leave_nothing() {
        if !have(&[Need::Root, Need::Virtiofsd]) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let shares = shares(&directory, Invoker::user(0, 0).unwrap(), false);
        assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Absent);
        shares.start(GENERATION).await.unwrap();
        assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Whole);
        let pid = |index| shares.look(index, GENERATION).unwrap().0.unwrap().pid();
        let first = pid(1);
        shares.start(GENERATION).await.unwrap();
        assert_eq!(pid(1), first);
        // A VMM that connects and goes takes its daemon with it; the next start puts it back.
        let daemon = shares.look(0, GENERATION).unwrap().0.unwrap();
        let socket = socket_of(directory.path(), 0, GENERATION).unwrap();
        drop(UnixStream::connect(socket.as_path()).unwrap());
        tokio::time::timeout(START_LIMIT, daemon.exited()).await.unwrap().unwrap();
        assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Partial);
        shares.start(GENERATION).await.unwrap();
        assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Whole);
        assert_eq!(shares.find(Generation(6)).await.unwrap(), Presence::Absent);
        shares.stop(GENERATION).await.unwrap();
        assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Absent);
        let mut left: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["share-0-5.log", "share-1-5.log", "src"]);
        shares.stop(GENERATION).await.unwrap();
    }

    #[tokio::test]
    async fn a_user_is_served_as_that_user() {
        if !have(&[Need::Root, Need::Virtiofsd]) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let invoker = Invoker::user(12345, 12346).unwrap();
        let shares = shares(&directory, invoker, true);
        shares.start(GENERATION).await.unwrap();
        let pid = shares.look(0, GENERATION).unwrap().0.unwrap().pid();
        let status = status(pid);
        assert!(status.contains("Uid:\t12345\t12345\t12345\t12345\n"), "{status}");
        assert!(status.contains("Gid:\t12346\t12346\t12346\t12346\n"), "{status}");
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
        // In a user namespace of its own, where alone its capabilities hold.
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        assert_ne!(namespace(&pid.to_string()), namespace("self"));
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        assert!(limits.contains(&format!("Max open files            {}", open_files())), "{limits}");
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(arguments.contains("--readonly\0"), "{arguments}");
        shares.stop(GENERATION).await.unwrap();
    }

    #[tokio::test]
    async fn left_overs_of_killed_daemons_are_in_nobodys_way() {
        if !have(&[Need::Root, Need::Virtiofsd]) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let shares = shares(&directory, Invoker::user(0, 0).unwrap(), false);
        shares.start(GENERATION).await.unwrap();
        let daemon = shares.look(0, GENERATION).unwrap().0.unwrap();
        daemon.signal(rustix::process::Signal::KILL).unwrap();
        daemon.exited().await.unwrap();
        assert!(socket_of(directory.path(), 0, GENERATION).unwrap().as_path().exists());
        shares.start(GENERATION).await.unwrap();
        assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Whole);
        shares.stop(GENERATION).await.unwrap();
        // A file where the socket belongs is not ours to remove.
        let socket = socket_of(directory.path(), 1, GENERATION).unwrap();
        std::fs::write(socket.as_path(), "precious").unwrap();
        assert!(shares.start(GENERATION).await.unwrap_err().to_string().contains("nixbox did not make it"));
        assert_eq!(std::fs::read(socket.as_path()).unwrap(), b"precious");
        std::fs::remove_file(socket.as_path()).unwrap();
        shares.stop(GENERATION).await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_source_and_a_failing_daemon_are_errors_that_say_so() {
        if !have(&[Need::Root, Need::Virtiofsd]) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut shares = shares(&directory, Invoker::user(0, 0).unwrap(), false);
        shares.settings.shares.truncate(1);
        let source = shares.settings.shares[0].source.clone();
        std::fs::remove_dir(&source).unwrap();
        let error = shares.start(GENERATION).await.unwrap_err().to_string();
        assert!(error.contains("src\" is no directory that can be shared"), "{error}");
        // Its lock makes a second virtiofsd on the same socket fail.
        std::fs::create_dir(&source).unwrap();
        let socket = socket_of(directory.path(), 0, GENERATION).unwrap();
        std::fs::create_dir(socket.with_suffix(".pid")).unwrap();
        assert!(shares.start(GENERATION).await.is_err());
        std::fs::remove_dir(socket.with_suffix(".pid")).unwrap();
        shares.settings.invoker = Invoker::user(12345, 12345).unwrap();
        std::os::unix::fs::chown(directory.path(), Some(0), Some(0)).unwrap();
        let error = shares.start(GENERATION).await.unwrap_err().to_string();
        assert!(error.contains("ended with exit status 1") && error.contains("ermission denied"), "{error}");
        shares.stop(GENERATION).await.unwrap();
    }
}
