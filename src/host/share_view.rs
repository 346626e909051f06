//! What a share daemon sees of the directory that it serves, and so what a guest can reach through a share.
//!
//! nixbox does not start virtiofsd itself. It starts its own program as a supervisor (`nixbox share-daemon`), which starts
//! the program once more as a launcher. The launcher makes a mount namespace, covers what the guest must not reach, and then
//! becomes virtiofsd by exec. The launcher has one thread, as the kernel demands of a process that makes a user namespace. The
//! namespace ends with its last process, so a launcher or daemon that is killed at any point leaves no mount behind, and the
//! host's own mounts never change.
//!
//! | module | what it does |
//! |---|---|
//! | [`supervisor`] | starts launchers, one for each connection of the VMM |
//! | [`namespace`] | makes the namespaces |
//! | [`place`] | mounts the directory where the daemon finds it, so that the daemon serves what was examined |
//! | [`search`] | finds every `.nixbox` that the share gives access to |
//! | [`mask`] | covers a `.nixbox`, makes protected paths read-only, and keeps the directories on the way to them in place |
//! | [`seccomp`] | keeps the daemon from making files that give privileges to those who use them |
//! | [`standing`] | tells of a daemon that runs whether its masks still stand |

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{Mode, OFlags};

use crate::host::process::ProcessError;
use crate::host::socket::SocketError;
use mask::Tree;
use supervisor::SupervisedSource;

mod mask;
mod namespace;
mod place;
mod search;
mod seccomp;
pub mod standing;
mod supervisor;

/// The directory that no guest may reach.
const HIDDEN: &str = ".nixbox";
/// The variable in which the daemon's environment names the masks that the launcher made.
const MASKS: &str = "NIXBOX_MASKS";
/// The variable in which the daemon's environment names the directory that is served.
pub const SOURCE: &str = "NIXBOX_SHARE";
/// What /proc/PID/mountinfo shows as the source of a mask.
const MASK: &str = "nixbox-mask";

/// Why a share is not served: what the guest must not reach through it cannot be hidden.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ShareViewError {
    #[error("`share-daemon` got {0} arguments, which is not what nixbox gives it")]
    Arguments(usize),
    #[error("the launcher of a share daemon cannot follow its supervisor")]
    Supervisor(#[source] io::Error),
    #[error("the VMM of the share cannot be found")]
    Vmm(#[source] ProcessError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("{0:?} lies inside a {HIDDEN}, which no guest may reach; share another directory")]
    Inside(PathBuf),
    #[error("{0:?} is a link now, or was moved while it was examined; name the directory itself")]
    Moved(PathBuf),
    #[error(
        "no mount namespace can be made to hide {HIDDEN} in ({0}): allow user namespaces \
         (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or remove the share"
    )]
    Namespace(&'static str, #[source] io::Error),
    #[error("cannot {action} {path:?}")]
    System { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{0:?} has so many files or directories, or is so slow, that it cannot be searched for other workspaces; share \
         a smaller directory"
    )]
    TooLarge(PathBuf),
    #[error("{0:?} holds too many directories with the name {HIDDEN}; share a smaller directory")]
    TooMany(PathBuf),
    #[error("{0:?} is larger than {limit} bytes, and cannot be shown to the guest", limit = mask::LARGEST)]
    LargeFile(PathBuf),
    #[error("the {HIDDEN} of the workspace, {0:?}, was not found below the share, which contains it")]
    Missed(PathBuf),
    #[error(
        "{0:?} is a link, and cannot be protected from the guest; name in mounts.protect what it leads to, or leave it out"
    )]
    ProtectedLink(PathBuf),
    #[error("the daemon's system calls cannot be filtered")]
    Filter(#[source] io::Error),
    #[error("cannot start {path:?}")]
    Exec { path: PathBuf, source: io::Error },
}

fn failed<E: Into<io::Error>>(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> ShareViewError {
    move |source| ShareViewError::System { action, path: path.into(), source: source.into() }
}

type Result<T, E = ShareViewError> = std::result::Result<T, E>;

/// What is served, and which workspace it is served for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShareView {
    /// The directory, canonical.
    pub(super) source: PathBuf,
    /// The directory of the workspace, canonical.
    pub(super) workspace: PathBuf,
    /// The paths below the source that are read-only.
    pub(super) protect: Vec<PathBuf>,
}

impl ShareView {
    /// The argument of virtiofsd that names the directory.
    pub(super) fn daemon_argument() -> String {
        format!("{}{}", standing::SHARED_DIRECTORY, place::PATH)
    }

    /// The first arguments of the supervisor whose share is at `socket`. The program of its daemons follows.
    pub(super) fn supervisor_arguments(&self, socket: &str) -> Vec<OsString> {
        let mode = [SUPERVISE.into(), socket.into()];
        mode.into_iter().chain(self.launcher_arguments()).collect()
    }

    /// The arguments of a launcher that becomes nothing.
    pub(super) fn rehearsal_arguments(&self) -> Vec<OsString> {
        [REHEARSE.into()].into_iter().chain(self.launcher_arguments()).collect()
    }

    /// The arguments that describe the view.
    fn launcher_arguments(&self) -> Vec<OsString> {
        let count = self.protect.len().to_string();
        let mut arguments = vec![self.source.clone().into(), self.workspace.clone().into(), count.into()];
        arguments.extend(self.protect.iter().map(Into::into));
        arguments
    }

    /// The view, and the rest of the arguments.
    fn parse(arguments: &[OsString]) -> Option<(Self, &[OsString])> {
        let [source, workspace, count, rest @ ..] = arguments else { return None };
        let (protect, rest) = rest.split_at_checked(count.to_str()?.parse().ok()?)?;
        let protect = protect.iter().map(PathBuf::from).collect();
        Some((Self { source: source.into(), workspace: workspace.into(), protect }, rest))
    }

    /// Refuses a directory that is a `.nixbox` or lies in one.
    pub(super) fn check(&self) -> Result<()> {
        let inside = self.source.components().any(|part| part.as_os_str() == HIDDEN);
        if inside { Err(ShareViewError::Inside(self.source.clone())) } else { Ok(()) }
    }

    /// Makes the namespace of this process show the view at [`place::PATH`]. Returns the paths of the masks, as the
    /// environment names them.
    ///
    /// A supervisor has `served` the directory before, and another one in its place is refused. This has to be called while the
    /// process has one thread. If it fails, the process has to end.
    fn enter(&self, served: Option<SupervisedSource>) -> Result<OsString> {
        self.check()?;
        namespace::enter()?;
        let opened = self.open_source()?;
        let is_same = served.map_or(Ok(true), |served| served.is(&opened));
        if !is_same.map_err(failed("examine", &self.source))? {
            return Err(ShareViewError::Moved(self.source.clone()));
        }
        // From here on the source's path does not matter any more, whatever takes its place.
        let source = place::mount(&opened)?;
        let mut found = search::hidden_below(&source, &self.source)?;
        if let Ok(within) = self.workspace.strip_prefix(&self.source) {
            let own = within.join(HIDDEN);
            if !found.contains(&own) {
                return Err(ShareViewError::Missed(self.workspace.join(HIDDEN)));
            }
        }
        // A directory is kept in place before anything below it is covered.
        found.sort();
        let mut tree = Tree::new(source.as_fd(), &self.source);
        for path in &found {
            tree.mask(path)?;
        }
        for path in &self.protect {
            tree.protect(path)?;
        }
        standing::masks_value(&found).ok_or_else(|| ShareViewError::TooMany(self.source.clone()))
    }

    /// Becomes the daemon, which serves what listens on standard input. Returns only an error.
    fn become_daemon(&self, served: SupervisedSource, program: &OsStr, rest: &[OsString]) -> ShareViewError {
        let prepared = || {
            served.follow_supervisor().map_err(ShareViewError::Supervisor)?;
            let masks = self.enter(Some(served))?;
            seccomp::install().map_err(ShareViewError::Filter)?;
            supervisor::listen()?;
            Ok(masks)
        };
        match prepared() {
            Err(error) => error,
            Ok(masks) => {
                let source =
                    Command::new(program).args(rest).env(MASKS, masks).env(SOURCE, &self.source).exec();
                ShareViewError::Exec { path: program.into(), source }
            }
        }
    }

    fn open_source(&self) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source =
            rustix::fs::open(&self.source, flags, Mode::empty()).map_err(failed("open", &self.source))?;
        let link = format!("/proc/self/fd/{}", source.as_raw_fd());
        let opened = std::fs::read_link(&link).map_err(failed("examine", &self.source))?;
        if opened == self.source { Ok(source) } else { Err(ShareViewError::Moved(self.source.clone())) }
    }
}

/// The command of nixbox that is the supervisor, and the launcher.
pub const COMMAND: &str = "share-daemon";
/// The exit status of a supervisor or launcher that says on stderr why the share is refused.
pub const REFUSED: u8 = 40;
/// The arguments by which the process is the supervisor, a launcher, or a launcher that becomes nothing.
const SUPERVISE: &str = "supervise";
const BECOME: &str = "become";
const REHEARSE: &str = "rehearse";

/// Is what `arguments` say: the supervisor of a share, until its VMM has ended; a launcher, which becomes the daemon and does
/// not return then; or a launcher that only rehearses. Returns the exit status of this process.
///
/// This has to be called while the process has one thread.
///
/// # Errors
/// [`ShareViewError`]. The process has to end then.
pub fn launch(arguments: &[OsString]) -> Result<u8> {
    let unknown = || ShareViewError::Arguments(arguments.len());
    let (mode, rest) = arguments.split_first().ok_or_else(unknown)?;
    match (mode.to_str(), rest) {
        (Some(SUPERVISE), [socket, view @ ..]) => {
            let (view, program) = ShareView::parse(view).ok_or_else(unknown)?;
            supervisor::supervise(socket, &view, program)
        }
        (Some(BECOME), [served, view @ ..]) => {
            let served = SupervisedSource::parse(served).ok_or_else(unknown)?;
            let (view, program) = ShareView::parse(view).ok_or_else(unknown)?;
            let (program, rest) = program.split_first().ok_or_else(unknown)?;
            Err(view.become_daemon(served, program, rest))
        }
        (Some(REHEARSE), view) => {
            let (view, _) = ShareView::parse(view).ok_or_else(unknown)?;
            view.enter(None)?;
            seccomp::install().map_err(ShareViewError::Filter)?;
            Ok(0)
        }
        _ => Err(unknown()),
    }
}

/// Opens `name` in a directory without following a link in its place.
fn open_at(directory: impl AsFd, name: &OsStr, more: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(directory, name, more | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests;
