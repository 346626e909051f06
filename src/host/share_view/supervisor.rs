//! The supervisor of a share: the process that starts the share's daemon, and starts it again for the next connection of the
//! same VMM.
//!
//! virtiofsd serves one connection, and ends when the VMM disconnects. A VMM disconnects when its guest reboots, and then
//! connects again. So the supervisor owns the listening socket, which outlives the daemons: a connection that no daemon has
//! taken yet waits there. The supervisor is outside of the namespaces of the daemons, each of which begins as a launcher that
//! makes its namespace and masks anew.
//!
//! | what happens | what the supervisor does |
//! |---|---|
//! | it starts | binds the socket and starts a launcher, which listens once the share is known to be good |
//! | the daemon ends in order | waits for the next connection or for the end of the VMM, whichever comes first |
//! | the VMM ends, or there is none any more | ends |
//! | the daemon or its launcher fails | ends with the same status, so that the share counts as dead |
//! | it is killed | the kernel kills the daemon |
//!
//! The directory that is served stays the same: the supervisor holds what it opened at first, and a launcher that finds
//! another directory at the path refuses.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

use super::{COMMAND, Result, ShareView, ShareViewError, failed};
use crate::host::process::{Daemon, ProcessMark, ProcessSearch};
use crate::host::socket::{self, SocketPath};

/// How many connections wait until a daemon takes them. A VMM makes one at a time.
const BACKLOG: i32 = 4;

/// The directory that a supervisor has opened, and the supervisor itself, as a launcher is told of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SupervisedSource {
    device: u64,
    inode: u64,
    supervisor: u32,
}

impl SupervisedSource {
    /// The directory, opened by this process.
    fn of(opened: &OwnedFd) -> io::Result<Self> {
        let status = File::from(opened.try_clone()?).metadata()?;
        Ok(Self { device: status.dev(), inode: status.ino(), supervisor: std::process::id() })
    }

    /// The directory as a word of a launcher's command line.
    pub(super) fn parse(word: &OsStr) -> Option<Self> {
        let numbers: Vec<&str> = word.to_str()?.split(':').collect();
        let [device, inode, supervisor] = numbers[..] else { return None };
        Some(Self {
            device: device.parse().ok()?,
            inode: inode.parse().ok()?,
            supervisor: supervisor.parse().ok()?,
        })
    }

    fn word(self) -> String {
        format!("{}:{}:{}", self.device, self.inode, self.supervisor)
    }

    /// Whether this is the directory that was opened.
    pub(super) fn is(self, opened: &OwnedFd) -> io::Result<bool> {
        Ok(Self { supervisor: self.supervisor, ..Self::of(opened)? } == self)
    }

    /// Lets this process, a launcher, end with its supervisor.
    pub(super) fn follow_supervisor(self) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if std::os::unix::process::parent_id() == self.supervisor {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::BrokenPipe, "the supervisor has ended"))
        }
    }
}

/// Listens on the socket that a supervisor has handed to this process, a launcher, as its standard input.
pub(super) fn listen() -> Result<()> {
    rustix::net::listen(io::stdin().as_fd(), BACKLOG).map_err(failed("listen on", "the socket of the share"))
}

/// Serves the share at `socket`, by daemons that `view` and `program` describe, as long as the VMM lives. Returns the exit
/// status of this process: 0, or that of a daemon that failed.
pub(super) fn supervise(socket: &OsStr, view: &ShareView, program: &[OsString]) -> Result<u8> {
    view.check()?;
    let source = view.open_source()?;
    let served = SupervisedSource::of(&source).map_err(failed("examine", &view.source))?;
    let path = SocketPath::new(PathBuf::from(socket))?;
    let listener = socket::bind(&path)?;
    loop {
        let ended = serve_once(&listener, served, view, program)?;
        if !ended.success() {
            return Ok(status_of(ended));
        }
        if !connects_again(&listener)? {
            return Ok(0);
        }
    }
}

/// Runs a launcher, and the daemon that it becomes, until the daemon ends.
fn serve_once(
    listener: &OwnedFd,
    served: SupervisedSource,
    view: &ShareView,
    program: &[OsString],
) -> Result<ExitStatus> {
    let listener = listener.try_clone().map_err(failed("share", "the socket of the share"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(COMMAND).arg(super::BECOME).arg(served.word());
    command.args(view.launcher_arguments()).args(program).stdin(listener);
    command.status().map_err(|source| ShareViewError::Exec { path: "/proc/self/exe".into(), source })
}

/// Waits until the VMM that this share belongs to has connected again. `false` if there is no such VMM any more.
fn connects_again(listener: &OwnedFd) -> Result<bool> {
    let Some(vmm) = vmm()? else { return Ok(false) };
    let mut watched =
        [PollFd::new(listener, PollFlags::IN), PollFd::from_borrowed_fd(vmm.as_pidfd(), PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed("watch", "the socket of the share")(errno)),
            Ok(_) if watched[1].revents().is_empty() => return Ok(true),
            Ok(_) => return Ok(false),
        }
    }
}

/// The VMM of the workspace and the generation that this process belongs to.
fn vmm() -> Result<Option<Daemon>> {
    let Some(mark) = ProcessMark::of_own_vmm() else { return Ok(None) };
    let found = ProcessSearch { mark: &mark, owners: None }.find();
    Ok(found.map_err(ShareViewError::Vmm)?.into_iter().next())
}

/// The exit status by which this process says how a daemon ended. A signal is told as a shell tells it.
fn status_of(ended: ExitStatus) -> u8 {
    let status = ended.code().or_else(|| ended.signal().map(|signal| 128 + signal));
    status.and_then(|status| u8::try_from(status).ok()).filter(|status| *status != 0).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_told_from_another_that_has_taken_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("source");
        let open = || OwnedFd::from(File::open(&path).unwrap());
        std::fs::create_dir(&path).unwrap();
        let opened = open();
        let served = SupervisedSource::of(&opened).unwrap();
        let told = SupervisedSource::parse(served.word().as_ref()).unwrap();
        assert_eq!(told, served);
        assert!(told.is(&open()).unwrap());
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(!told.is(&open()).unwrap());
        for bad in ["", "1:2", "1:2:3:4", "a:2:3", "1:2:-3"] {
            assert_eq!(SupervisedSource::parse(bad.as_ref()), None, "{bad}");
        }
    }

    #[test]
    fn a_daemon_that_was_killed_has_failed() {
        assert_eq!(status_of(ExitStatus::from_raw(9)), 137);
        assert_eq!(status_of(ExitStatus::from_raw(1 << 8)), 1);
        // virtiofsd ends with the negative number of a signal that its child met.
        assert_eq!(status_of(ExitStatus::from_raw(247 << 8)), 247);
    }
}
