//! The seam [`Shares`] over virtiofsd: one daemon for each share and VMM generation.
//!
//! virtiofsd serves one connection, and exits when its VMM disconnects; that is not an error. The daemon of a share is
//! therefore a supervisor of nixbox's own, which starts virtiofsd again for the next connection, as long as the VMM lives: the
//! VMM of a guest that reboots connects again, without a nixbox. virtiofsd runs as the invoking user in namespaces of its own.
//! So every user of the guest, root included, acts on the host as the invoking user. [`share_view`] decides which part of a
//! directory the daemon sees.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::Resource;
use rustix::thread::CapabilitySet;
use tokio::time::Instant;

use super::process::{Daemon, DaemonRole, Daemons, ProcessError, ProcessExit};
use super::share_view::{self, ShareView, ShareViewError, standing};
use super::socket::{self, SocketError, SocketPath, SocketUse};
use super::spawn::{self, Invoker, Privileges, Program, SpawnError, StandIn};
use super::systemd::scope::ScopeManager;
use crate::files::FileError;
use crate::files::shared_paths::SharedPaths;
use crate::world::{
    Failure, Generation, PathInShare, Presence, Result, ShareTag, Shares, UserIds, WorkspaceId,
};

pub mod daemon_program;

/// The most shares that a configuration can have.
const MOST: usize = 64;
/// How long a daemon may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to end by itself after TERM.
const GRACE: Duration = Duration::from_secs(3);
/// The most open files of a virtiofsd, if the host allows that many: it has one for each inode that the guest knows.
const OPEN_FILES: u64 = 1_000_000;

/// Why shares cannot be served.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error("the mount source {source_path:?} is not a directory that can be shared")]
    Source { source_path: PathBuf, source: FileError },
    #[error("the mount source {source_path:?} is refused")]
    View { source_path: PathBuf, source: Box<ShareViewError> },
    /// The reason is what the launcher of the daemon wrote.
    #[error("the mount source {source_path:?} is refused: {reason}")]
    Refused { source_path: PathBuf, reason: String },
    #[error("cannot tell whether the guest can reach a .nixbox")]
    Standing(#[source] FileError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Process(#[from] ProcessError),
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
    /// The paths below the directory where the guest may not write.
    pub protect: Vec<PathInShare>,
}

/// What the shares of a workspace are served with.
#[derive(Debug, Clone)]
pub struct ShareSettings {
    /// Where sockets, records and logs are: an existing directory in which the invoking user may write, with a short
    /// absolute path.
    pub runtime: PathBuf,
    /// The workspace whose mark the daemons get.
    pub workspace: WorkspaceId,
    /// The directory of the workspace, canonical.
    pub root: PathBuf,
    /// The user as whom the daemons run.
    pub invoker: Invoker,
    /// The uid and gid that files of the invoking user have in the guest.
    pub guest: UserIds,
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

/// [`Shares`] over virtiofsd (`NIXBOX_VIRTIOFSD`, or as [`daemon_program`] finds it).
#[derive(Debug)]
pub struct Virtiofs {
    settings: ShareSettings,
    daemons: Daemons,
    stand_in: Option<StandIn>,
}

impl Virtiofs {
    /// Starts nothing yet.
    #[must_use]
    pub fn new(settings: ShareSettings) -> Self {
        let daemons = Daemons::new(settings.runtime.clone(), settings.workspace);
        Self { settings, daemons, stand_in: None }
    }

    /// The same, with the daemons in scopes of this manager, if there is one.
    #[must_use]
    pub fn in_scopes_of(self, scopes: Option<ScopeManager>) -> Self {
        Self { daemons: self.daemons.in_scopes_of(scopes), ..self }
    }

    /// The same, with a program that stands in for virtiofsd.
    #[must_use]
    pub fn by(self, stand_in: Option<StandIn>) -> Self {
        Self { stand_in, ..self }
    }

    /// The daemon of share `index`, and how its socket is used.
    fn state_of(
        &self,
        index: usize,
        generation: Generation,
    ) -> std::result::Result<(Option<Daemon>, SocketUse), ShareError> {
        let daemon = self.daemons.find(&DaemonRole::share(index), generation)?;
        Ok((daemon, socket::usage(&socket_of(&self.settings.runtime, index, generation)?)?))
    }

    async fn start_one(&self, index: usize, generation: Generation) -> std::result::Result<(), ShareError> {
        let share = &self.settings.shares[index];
        let role = DaemonRole::share(index);
        let socket = socket_of(&self.settings.runtime, index, generation)?;
        match self.state_of(index, generation)? {
            (Some(daemon), SocketUse::Bound) => {
                return self
                    .listening(&daemon, &role, generation, &socket)
                    .await
                    .map_err(|error| refusal(share, error));
            }
            (Some(_), SocketUse::Listening | SocketUse::Connected) => return Ok(()),
            _ => {}
        }
        // A daemon without a socket is that of an earlier nixbox, which had no supervisor, and has served its connection; or
        // only a part of its processes was killed.
        self.daemons.stop(&role, generation, GRACE).await?;
        remove_sockets(&socket).await?;
        let view = self.view(share)?;
        let program = self.program(share)?.launched(launcher(view.supervisor_arguments(socket.as_str())));
        let started = match self.daemons.start(&role, generation, program).await {
            Ok(daemon) => self.listening(&daemon, &role, generation, &socket).await,
            Err(error) => Err(error.into()),
        };
        started.map_err(|error| refusal(share, error))
    }

    /// What the daemon of a share sees.
    fn view(&self, share: &Share) -> std::result::Result<ShareView, ShareError> {
        let writable = self.settings.shares.iter().filter(|share| !share.readonly);
        let shared = SharedPaths::new(writable.map(|share| share.source.as_path()));
        let source_path = || share.source.clone();
        // The launcher opens this path again, and refuses a directory that is not at the path by now. The daemon serves
        // what the launcher has opened.
        let directory = shared.open(&share.source).and_then(|opened| opened.directory());
        let source = directory.map_err(|source| ShareError::Source { source_path: source_path(), source })?;
        let view = ShareView {
            source,
            workspace: self.settings.root.clone(),
            protect: share.protect.iter().map(|path| path.as_str().into()).collect(),
        };
        view.check()
            .map_err(|source| ShareError::View { source_path: source_path(), source: Box::new(source) })?;
        Ok(view)
    }

    /// Waits until the kernel has a listener on the socket, or the daemon has ended.
    async fn listening(
        &self,
        daemon: &Daemon,
        role: &DaemonRole,
        generation: Generation,
        socket: &SocketPath,
    ) -> std::result::Result<(), ShareError> {
        let deadline = Instant::now() + START_LIMIT;
        let mut pause = Duration::from_millis(1);
        while socket::usage(socket)? != SocketUse::Listening {
            if Instant::now() > deadline {
                return Err(self.daemons.not_serving(role, generation, START_LIMIT).into());
            }
            // No event reports listen(2), so the socket is looked at again after a growing pause. The end of the daemon
            // cuts the pause short.
            if let Ok(exit) = tokio::time::timeout(pause, daemon.exited()).await {
                return Err(self.daemons.ended(role, generation, exit?).into());
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The daemon of a share. It takes the connection from the listening socket that is its standard input.
    fn program(&self, share: &Share) -> std::result::Result<Program, ShareError> {
        let privileges = Privileges::Invoker(self.settings.invoker.clone());
        let open_files = open_files();
        let mut program = spawn::program(
            daemon_program::NAME,
            daemon_program::VARIABLE,
            self.stand_in.as_ref(),
            privileges,
        )?
        .argument("--fd=0")
        .argument(ShareView::daemon_argument())
        // If virtiofsd runs as a user, this is a user namespace that has the ids of that user only.
        .argument("--sandbox=namespace")
        .argument("--cache=auto")
        .argument(format!("--rlimit-nofile={open_files}"))
        // A build tool makes the guest know more files than a daemon can hold open. Where the daemon may, it holds handles.
        .argument("--inode-file-handles=prefer")
        // If a file was removed on the host between snapshot and restore, the guest gets errors for that file,
        // as on a network file system, and the restore succeeds.
        .argument("--migration-on-error=guest-error")
        .open_files(open_files);
        let (uid, gid) = (self.settings.invoker.uid(), self.settings.invoker.gid());
        for (kind, host, guest) in
            [("uid", uid, self.settings.guest.uid), ("gid", gid, self.settings.guest.gid)]
        {
            // Every guest id is mapped to the invoking user, and back only that user's id. Files of other users keep
            // their ids, and ids that the namespace does not map belong to nobody.
            program = program
                .argument(format!("--translate-{kind}=squash-guest:0:{host}:{}", u32::MAX))
                .argument(format!("--translate-{kind}=host:{host}:{guest}:1"));
        }
        if share.readonly {
            program = program.argument("--readonly");
        }
        Ok(program)
    }

    /// Starts the launcher of a share without a daemon to become.
    async fn rehearse_one(&self, share: &Share) -> std::result::Result<(), ShareError> {
        let view = self.view(share)?;
        let words = launcher(view.rehearsal_arguments());
        let program = Program::new("", Privileges::Invoker(self.settings.invoker.clone())).launched(words);
        let mut command = tokio::process::Command::from(program.command());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let refused = |reason| ShareError::Refused { source_path: share.source.clone(), reason };
        match tokio::time::timeout(START_LIMIT, command.output()).await {
            Err(_) => Err(refused(format!("it could not be examined within {START_LIMIT:?}"))),
            Ok(Err(source)) => Err(ProcessError::Spawn { program: program.path().to_owned(), source }.into()),
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let text = String::from_utf8_lossy(&output.stderr);
                Err(refused(text.trim().replace(char::is_control, " ")))
            }
        }
    }

    /// The shares that may have daemons. The configuration may have had more shares when the daemons were started.
    fn begun(&self, generation: Generation) -> impl Iterator<Item = usize> {
        (0..MOST).filter(move |index| {
            *index < self.settings.shares.len()
                || self.daemons.record(&DaemonRole::share(*index), generation).exists()
        })
    }

    async fn stop_one(&self, index: usize, generation: Generation) -> std::result::Result<(), ShareError> {
        self.daemons.stop(&DaemonRole::share(index), generation, GRACE).await?;
        remove_sockets(&socket_of(&self.settings.runtime, index, generation)?).await
    }
}

/// The error of a daemon whose launcher refused the share, as an error about the share.
fn refusal(share: &Share, error: ShareError) -> ShareError {
    match error {
        ShareError::Process(ProcessError::Ended { exit: ProcessExit::Status(status), tail, .. })
            if status == i32::from(share_view::REFUSED) =>
        {
            let reason = tail.rsplit(" | ").next().unwrap_or_default().to_owned();
            ShareError::Refused { source_path: share.source.clone(), reason }
        }
        error => error,
    }
}

/// The words of nixbox's own command for the daemons of shares.
fn launcher(arguments: Vec<OsString>) -> impl Iterator<Item = OsString> {
    std::iter::once(share_view::COMMAND.into()).chain(arguments)
}

/// Removes the socket, which a daemon leaves behind, and the lock file of a virtiofsd that an earlier nixbox started.
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
            let (daemon, usage) = self.state_of(index, generation)?;
            any |= daemon.is_some() || usage != SocketUse::Unused;
            all &= daemon.is_some() && matches!(usage, SocketUse::Listening | SocketUse::Connected);
        }
        // Daemons end with their VMM, and leave their records and sockets.
        any |= (0..MOST).any(|index| self.daemons.record(&DaemonRole::share(index), generation).exists());
        Ok(match (any, all) {
            (false, _) => Presence::Absent,
            (true, false) => Presence::Partial,
            (true, true) => Presence::Whole,
        })
    }

    async fn rehearse(&self) -> Result<()> {
        let rehearsals = self.settings.shares.iter().map(|share| self.rehearse_one(share));
        futures_util::future::try_join_all(rehearsals).await?;
        Ok(())
    }

    async fn exposed(&self, generation: Generation) -> Result<Vec<PathBuf>> {
        let mut exposed = std::collections::BTreeSet::new();
        for index in self.begun(generation) {
            let family =
                self.daemons.family(&DaemonRole::share(index), generation).map_err(ShareError::from)?;
            // The supervisor serves nothing, and shows nothing.
            for daemon in family {
                let found = standing::exposed(daemon.pid(), &self.settings.root);
                exposed.extend(found.map_err(ShareError::Standing)?);
            }
        }
        Ok(exposed.into_iter().collect())
    }

    async fn start(&self, generation: Generation) -> Result<()> {
        let starts = (0..self.settings.shares.len()).map(|index| self.start_one(index, generation));
        futures_util::future::try_join_all(starts).await?;
        Ok(())
    }

    async fn stop(&self, generation: Generation) -> Result<()> {
        let stops = self.begun(generation).map(|index| self.stop_one(index, generation));
        // If one cannot be stopped, the others are stopped nevertheless.
        let ended = futures_util::future::join_all(stops).await;
        ended.into_iter().collect::<std::result::Result<(), _>>()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
