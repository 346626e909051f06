//! Which process is ours: the mark in its environment, and an identity that no other process ever has.
//!
//! A pid alone is reused. A pid, the time the process started and the boot it started in are not; and a pidfd opened
//! *before* these are compared keeps meaning the same process afterwards. Uses /proc and pidfds alone.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use super::process::ProcessError;
use crate::world::{Generation, WorkspaceId};

/// What a daemon is for: `vmm`, `share-0`. 1 to 32 of `a-z 0-9 -`, beginning with a letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DaemonRole(String);

impl DaemonRole {
    /// Cloud Hypervisor.
    #[must_use]
    pub fn vmm() -> Self {
        Self("vmm".to_owned())
    }

    /// The virtiofsd of share number `index`.
    #[must_use]
    pub fn share(index: usize) -> Self {
        Self(format!("share-{index}"))
    }
}

/// A text that names no role.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no role: 1 to 32 of a-z 0-9 -, beginning with a letter")]
pub struct BadRole(String);

impl TryFrom<String> for DaemonRole {
    type Error = BadRole;

    fn try_from(text: String) -> Result<Self, BadRole> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let good = text.len() <= 32
            && text.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
            && text.bytes().all(plain);
        if good { Ok(Self(text)) } else { Err(BadRole(text)) }
    }
}

impl From<DaemonRole> for String {
    fn from(role: DaemonRole) -> Self {
        role.0
    }
}

impl fmt::Display for DaemonRole {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Which daemon of which workspace and generation a process is; in its environment from exec to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMark {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The generation it was started under.
    pub generation: Generation,
    /// What it is for.
    pub role: DaemonRole,
}

impl ProcessMark {
    /// As variables.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("NIXBOX_WORKSPACE", self.workspace.to_string()),
            ("NIXBOX_GENERATION", self.generation.to_string()),
            ("NIXBOX_ROLE", self.role.to_string()),
        ]
    }

    /// Whether `environ`, as in /proc/PID/environ, has this mark.
    fn is_in(&self, environ: &[u8]) -> bool {
        self.environment().iter().all(|(key, value)| {
            let wanted = format!("{key}={value}");
            environ.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
        })
    }
}

impl fmt::Display for ProcessMark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of generation {}", self.role, self.generation)
    }
}

/// What no two processes have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The process id.
    pub pid: u32,
    /// When it started: clock ticks since the host booted, field 22 of /proc/PID/stat.
    pub start: u64,
    /// The host's boot, /proc/sys/kernel/random/boot_id without its dashes.
    pub boot: u128,
}

/// The host's boot.
///
/// # Errors
/// [`ProcessError::File`] if /proc does not say.
pub fn host_boot() -> Result<u128, ProcessError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let failed = |source| ProcessError::File { action: "read", path: PATH.into(), source };
    let text = fs::read_to_string(PATH).map_err(failed)?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16)
        .map_err(|error| failed(io::Error::new(ErrorKind::InvalidData, error)))
}

/// What nixbox needs of /proc/PID/stat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// `None` for a process that is being released: the kernel then writes -1 (`do_task_stat`, fs/proc/array.c).
    pub(super) session: Option<u32>,
    pub(super) start: u64,
}

impl Stat {
    /// The name, field 2, is the process's own choice: spaces, brackets, newlines. Hence what follows the last `)`.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let close = bytes.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(&bytes[close + 1..]).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The first one here is field 3 of proc(5), the state.
        let session = match *fields.get(3)? {
            "-1" => None,
            session => Some(session.parse().ok()?),
        };
        Some(Self { session, start: fields.get(19)?.parse().ok()? })
    }

    /// `None` if there is no such process.
    pub(super) fn of(pid: u32) -> Result<Option<Self>, ProcessError> {
        let path = PathBuf::from(format!("/proc/{pid}/stat"));
        match fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes).map(Some).ok_or(ProcessError::Stat { pid }),
            Err(error) if is_gone(&error) => Ok(None),
            Err(source) => Err(ProcessError::File { action: "read", path, source }),
        }
    }
}

/// ESRCH is what reading a file of a process gives that ended after the file was opened.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// What the environment of a process says of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marked {
    Yes,
    No,
    /// It is another user's process, or has privileges that this one has not.
    Hidden,
}

fn marked(pid: u32, mark: &ProcessMark) -> Result<Marked, ProcessError> {
    Ok(match environ(pid)? {
        Environ::Seen(environ) if mark.is_in(&environ) => Marked::Yes,
        Environ::Seen(_) | Environ::Gone => Marked::No,
        Environ::Hidden => Marked::Hidden,
    })
}

/// The environment that a process was exec'd with.
enum Environ {
    Seen(Vec<u8>),
    /// There is no such process any more.
    Gone,
    /// It is another user's process, or has privileges that this one has not.
    Hidden,
}

fn environ(pid: u32) -> Result<Environ, ProcessError> {
    let path = PathBuf::from(format!("/proc/{pid}/environ"));
    let mut environ = Vec::new();
    // Ours have four short variables. Whoever has more than this is none of ours.
    match fs::File::open(&path).and_then(|file| file.take(1 << 16).read_to_end(&mut environ)) {
        Ok(_) => Ok(Environ::Seen(environ)),
        Err(error) if is_gone(&error) => Ok(Environ::Gone),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(Environ::Hidden),
        Err(source) => Err(ProcessError::File { action: "read", path, source }),
    }
}

/// The numbers of all processes.
fn processes() -> Result<Vec<u32>, ProcessError> {
    let failed = |source| ProcessError::File { action: "list", path: "/proc".into(), source };
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").map_err(failed)? {
        all.extend(entry.map_err(failed)?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(all)
}

/// The generations that live processes of a workspace bear.
pub(super) fn generations(workspace: WorkspaceId) -> Result<BTreeSet<Generation>, ProcessError> {
    let ours = format!("NIXBOX_WORKSPACE={workspace}").into_bytes();
    let mut found = BTreeSet::new();
    for pid in processes()? {
        let Environ::Seen(environ) = environ(pid)? else {
            continue;
        };
        let entries: Vec<&[u8]> = environ.split(|byte| *byte == 0).collect();
        if entries.contains(&ours.as_slice()) {
            let number = entries.iter().find_map(|entry| entry.strip_prefix(b"NIXBOX_GENERATION="));
            let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
            found.extend(number.map(Generation));
        }
    }
    Ok(found)
}

/// How a process ended, as far as can be known: only a parent is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessExit {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// It was started by another nixbox.
    Unknown,
}

impl From<ExitStatus> for ProcessExit {
    fn from(status: ExitStatus) -> Self {
        let ended = status.code().map(Self::Status).or_else(|| status.signal().map(Self::Signal));
        ended.unwrap_or(Self::Unknown)
    }
}

impl fmt::Display for ProcessExit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(formatter, "exit status {status}"),
            Self::Signal(signal) => write!(formatter, "signal {signal}"),
            Self::Unknown => formatter.write_str("an exit status that is not known"),
        }
    }
}

/// A process that was verified to be ours, held by a pidfd: it stays this process whatever becomes of the pid.
#[derive(Debug)]
pub struct Daemon {
    identity: Identity,
    leader: bool,
    pidfd: OwnedFd,
}

impl Daemon {
    /// The live process with this identity and mark. Where the environment cannot be read (nixbox has fewer privileges
    /// than the process), the identity has to do; signalling it will need those privileges anyway.
    pub(super) fn open(identity: Identity, mark: &ProcessMark) -> Result<Option<Self>, ProcessError> {
        let Some(found) = Self::open_pid(identity.pid, identity.boot)? else {
            return Ok(None);
        };
        if found.identity != identity || marked(identity.pid, mark)? == Marked::No {
            return Ok(None);
        }
        Ok(found.alive()?.then_some(found))
    }

    /// The live process that has this pid now, with whatever identity that is.
    pub(super) fn open_pid(pid: u32, boot: u128) -> Result<Option<Self>, ProcessError> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // EINVAL: a thread that leads no process.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(errno) => {
                return Err(ProcessError::Process { action: "open", pid, source: errno.into() });
            }
        };
        let Some(stat) = Stat::of(pid)? else {
            return Ok(None);
        };
        // If the process of the pidfd ended before its stat was read, that was another's; then it is dead now.
        let identity = Identity { pid, start: stat.start, boot };
        let daemon = Self { identity, leader: stat.session == Some(pid), pidfd };
        Ok(daemon.alive()?.then_some(daemon))
    }

    /// Whether its mark can be seen. It cannot for some microseconds while a program is exec'd, when the kernel has
    /// replaced the memory of the process and not yet written the environment.
    pub(super) fn shows(&self, mark: &ProcessMark) -> Result<bool, ProcessError> {
        Ok(marked(self.identity.pid, mark)? != Marked::No)
    }

    /// The live process with this mark that leads a session, as a daemon does from before it has the mark; its own
    /// children do not, and may be dying after it.
    pub(super) fn marked_leader(mark: &ProcessMark) -> Result<Option<Self>, ProcessError> {
        Ok(Self::all_marked(mark)?.into_iter().find(|daemon| daemon.leader))
    }

    /// All live processes with this mark.
    pub(super) fn all_marked(mark: &ProcessMark) -> Result<Vec<Self>, ProcessError> {
        let boot = host_boot()?;
        let mut all = Vec::new();
        for pid in processes()? {
            if marked(pid, mark)? != Marked::Yes {
                continue;
            }
            // Opened first, and asked again: the pid may have got another owner in between.
            let Some(daemon) = Self::open_pid(pid, boot)? else {
                continue;
            };
            if marked(pid, mark)? == Marked::Yes && daemon.alive()? {
                all.push(daemon);
            }
        }
        Ok(all)
    }

    /// Its identity.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// Whether it lives. A pidfd becomes readable when all threads have ended: a zombie is dead.
    ///
    /// # Errors
    /// [`ProcessError::Process`] if the kernel does not say.
    pub fn alive(&self) -> Result<bool, ProcessError> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut fds, Some(&now)) {
            Ok(ready) => Ok(ready == 0),
            Err(errno) => Err(self.failed("poll", errno.into())),
        }
    }

    /// How many bytes it has written so far, to files, sockets and devices: `wchar` of /proc/PID/io, proc(5). 0 of a
    /// process that has ended.
    ///
    /// # Errors
    /// [`ProcessError::File`] if the kernel does not say, or not to this process: then it is not known to write nothing.
    pub fn written(&self) -> Result<u64, ProcessError> {
        let path = PathBuf::from(format!("/proc/{}/io", self.identity.pid));
        let count = fs::read_to_string(&path).and_then(|text| {
            let count = text.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok());
            count.ok_or_else(|| ErrorKind::InvalidData.into())
        });
        match count {
            Err(error) if is_gone(&error) && !self.alive()? => Ok(0),
            count => count.map_err(|source| ProcessError::File { action: "read", path, source }),
        }
    }

    /// Sends a signal; a process that has ended needs none.
    ///
    /// # Errors
    /// [`ProcessError::Process`], above all for want of permission.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(self.failed("signal", errno.into())),
        }
    }

    /// Waits until it has ended, and leaves no zombie of it if it is a child of this process. Waits for ever: to be
    /// called under a time limit.
    ///
    /// # Errors
    /// [`ProcessError::Process`] if it cannot be waited for.
    pub async fn exited(&self) -> Result<ProcessExit, ProcessError> {
        // A duplicate: epoll takes each descriptor once, and two may wait.
        let pidfd = self.pidfd.try_clone().map_err(|source| self.failed("watch", source))?;
        // Deprecated for types that can change their descriptor while it is watched, and its successor is unsafe; an
        // OwnedFd cannot.
        #[allow(deprecated)]
        let watched = AsyncFd::with_interest(pidfd, tokio::io::Interest::READABLE)
            .map_err(|source| self.failed("watch", source))?;
        // Never cleared, so ready means ready for good: a process ends once.
        let _ready = watched.readable().await.map_err(|source| self.failed("watch", source))?;
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), ended) {
            Ok(Some(status)) => Ok(status
                .exit_status()
                .map(ProcessExit::Status)
                .or_else(|| status.terminating_signal().map(ProcessExit::Signal))
                .unwrap_or(ProcessExit::Unknown)),
            Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(ProcessExit::Unknown),
            Err(errno) => Err(self.failed("reap", errno.into())),
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> ProcessError {
        ProcessError::Process { action, pid: self.identity.pid, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_after_the_last_bracket() {
        let text = b"77 (evil) S 1 2 3) R 10 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 11\n";
        assert_eq!(Stat::parse(text), Some(Stat { session: Some(77), start: 987_654 }));
        let released = b"649 (cloud-hyperviso) X 0 -1 -1 0 -1 4227084 0 0 0 0 9 4 0 0 20 0 1 0 5150 0 0\n";
        assert_eq!(Stat::parse(released), Some(Stat { session: None, start: 5150 }));
        for bad in [&b""[..], b"77 (x", b"77 (x) S", b"77 (x) S 1 2 many", b"77 (x) \xff"] {
            assert_eq!(Stat::parse(bad), None, "{bad:?}");
        }
        let own = Stat::of(std::process::id()).unwrap().unwrap();
        assert!(own.start > 0);
        assert_eq!(Stat::of(u32::MAX).unwrap(), None);
    }

    #[test]
    fn a_mark_is_whole_variables() {
        let mark = ProcessMark {
            workspace: WorkspaceId([7; 16]),
            generation: Generation(12),
            role: DaemonRole::vmm(),
        };
        let environ = |generation: &str| {
            let workspace = "07".repeat(16);
            format!("A=1\0NIXBOX_WORKSPACE={workspace}\0NIXBOX_GENERATION={generation}\0NIXBOX_ROLE=vmm\0")
                .into_bytes()
        };
        assert!(mark.is_in(&environ("12")));
        for other in ["1", "123", "012", ""] {
            assert!(!mark.is_in(&environ(other)), "{other}");
        }
        assert!(!mark.is_in(b""));
    }

    #[test]
    fn roles_are_names_of_files() {
        for bad in ["", "0", "-a", "A", "a/b", "a.b", "a b", &"a".repeat(33)] {
            assert!(DaemonRole::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        for good in [DaemonRole::vmm(), DaemonRole::share(0), DaemonRole::share(usize::MAX)] {
            assert_eq!(DaemonRole::try_from(good.to_string()), Ok(good));
        }
    }
}
