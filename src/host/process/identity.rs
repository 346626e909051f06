//! Finds the processes that nixbox started, and ends them without ever touching another process.
//!
//! A pid alone is reused. A pid with the time at which the process started and the boot of the host is not, and a pidfd
//! that was opened *before* these are compared refers to the same process afterwards, whatever becomes of the pid.
//! Everything here works on /proc and pidfds alone, for VMMs, share daemons, dnsmasq and nft alike.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::error::{ProcessError, ProcessExit};
use super::mark::{Environment, ProcessMark};
use crate::files::FileError;
use crate::world::{Generation, WorkspaceId};

/// How long a killed process may take to be gone. Only a process that hangs in the kernel takes longer than an instant.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How often /proc is looked through while processes end that may have forked before.
const LOOKS: usize = 5;
/// How often processes with a mark are looked for and killed, before nixbox gives up on a process that keeps forking.
const SWEEPS: usize = 8;

/// What no two processes have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The process id.
    pub pid: u32,
    /// When the process started: clock ticks since the host booted, field 22 of /proc/PID/stat.
    pub start: u64,
    /// The host's boot, /proc/sys/kernel/random/boot_id without its dashes.
    pub boot: u128,
}

impl Identity {
    /// How long ago the process started, by a clock that a suspend of the host does not stop.
    #[must_use]
    pub fn age(&self) -> Duration {
        /// `USER_HZ`: a tick in /proc is 10 ms on every architecture that runs VMs.
        const TICKS_PER_SECOND: u64 = 100;
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = Duration::new(now.tv_sec.unsigned_abs(), 0);
        now.saturating_sub(Duration::from_secs(self.start / TICKS_PER_SECOND))
    }
}

/// The host's boot.
///
/// # Errors
/// [`ProcessError::File`] if /proc does not say.
pub(super) fn host_boot() -> Result<u128, ProcessError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(PATH).map_err(FileError::system("read", PATH))?;
    Ok(u128::from_str_radix(&text.trim().replace('-', ""), 16)
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
        .map_err(FileError::system("read", PATH))?)
}

/// What nixbox needs of /proc/PID/stat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    /// `None` for a process that is being released: the kernel then writes -1 (`do_task_stat`, fs/proc/array.c).
    session: Option<u32>,
    start: u64,
    kernel_thread: bool,
}

impl Stat {
    /// The process chooses its name, field 2, itself, and the name may hold spaces, brackets and line breaks. So only
    /// what follows the last `)` is read.
    fn parse(bytes: &[u8]) -> Option<Self> {
        /// `PF_KTHREAD` of include/linux/sched.h.
        const KERNEL_THREAD: u32 = 0x0020_0000;
        let close = bytes.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(&bytes[close + 1..]).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The first field here is field 3 of proc(5), the state.
        let session = match *fields.get(3)? {
            "-1" => None,
            session => Some(session.parse().ok()?),
        };
        let flags: u32 = fields.get(6)?.parse().ok()?;
        let start = fields.get(19)?.parse().ok()?;
        Some(Self { session, start, kernel_thread: flags & KERNEL_THREAD != 0 })
    }

    /// `None` if there is no such process.
    fn of(pid: u32) -> Result<Option<Self>, ProcessError> {
        let path = PathBuf::from(format!("/proc/{pid}/stat"));
        match fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes).map(Some).ok_or(ProcessError::Stat { pid }),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(FileError::system("read", path)(error).into()),
        }
    }
}

/// Reading a file of a process fails with ESRCH if the process ended after the file was opened.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// What can be read of the environment of a process.
enum ReadEnvironment {
    Seen(Environment),
    /// The process has none: it ended, or it is ending, or its exec has not got that far, or it is a kernel thread.
    None,
    /// The process is another user's, or has privileges that this process lacks.
    Hidden,
}

fn environment(pid: u32) -> Result<ReadEnvironment, ProcessError> {
    let path = PathBuf::from(format!("/proc/{pid}/environ"));
    let mut bytes = Vec::new();
    // A process that nixbox starts has a handful of short variables, so the rest of a longer environment is not needed.
    match fs::File::open(&path).and_then(|file| file.take(1 << 16).read_to_end(&mut bytes)) {
        Ok(0) => Ok(ReadEnvironment::None),
        Ok(_) => Ok(ReadEnvironment::Seen(Environment(bytes))),
        Err(error) if is_gone(&error) => Ok(ReadEnvironment::None),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(ReadEnvironment::Hidden),
        Err(error) => Err(FileError::system("read", path)(error).into()),
    }
}

#[cfg(test)]
thread_local! {
    /// How often this thread has listed all processes of the host.
    pub(in crate::host) static LISTINGS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// The numbers of all processes.
fn processes() -> Result<Vec<u32>, ProcessError> {
    #[cfg(test)]
    LISTINGS.set(LISTINGS.get() + 1);
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").map_err(FileError::system("list", "/proc"))? {
        let name = entry.map_err(FileError::system("list", "/proc"))?.file_name();
        all.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(all)
}

/// The generations in the marks of the live processes of a workspace.
///
/// # Errors
/// [`ProcessError::File`] if /proc cannot be read.
pub fn generations(workspace: WorkspaceId) -> Result<BTreeSet<Generation>, ProcessError> {
    let mut found = BTreeSet::new();
    for pid in processes()? {
        if let ReadEnvironment::Seen(environment) = environment(pid)? {
            found.extend(environment.generation_in(workspace));
        }
    }
    Ok(found)
}

/// The live processes of a workspace that this user owns, each with its role. /proc is looked through once, so a process
/// that is in the middle of an exec is missed.
///
/// # Errors
/// [`ProcessError::File`] or [`ProcessError::Process`] if /proc cannot be read.
pub(in crate::host) fn processes_of(
    workspace: WorkspaceId,
    owner: u32,
) -> Result<Vec<(String, Daemon)>, ProcessError> {
    let (boot, mut found) = (host_boot()?, Vec::new());
    for pid in processes()? {
        let ReadEnvironment::Seen(seen) = environment(pid)? else { continue };
        let Some(role) = seen.role_in(workspace) else { continue };
        let owned = fs::metadata(format!("/proc/{pid}")).is_ok_and(|status| status.uid() == owner);
        let Some(daemon) = Daemon::open_pid(pid, boot)?.filter(|_| owned) else { continue };
        // Opened, and then asked again: another process may have got the pid in between.
        if let ReadEnvironment::Seen(again) = environment(pid)?
            && again.role_in(workspace).as_ref() == Some(&role)
            && daemon.alive()?
        {
            found.push((role, daemon));
        }
    }
    Ok(found)
}

/// Which processes are looked for.
#[derive(Debug, Clone, Copy)]
pub(in crate::host) struct ProcessSearch<'a> {
    pub(in crate::host) mark: &'a ProcessMark,
    /// The users of whom one must own the process; `None` if the owner does not matter. Root reads the environment of
    /// every process, and a user can put any mark into the environment of a process of his own.
    pub(in crate::host) owners: Option<&'a [u32]>,
}

impl ProcessSearch<'_> {
    /// All live processes that are wanted.
    ///
    /// A process that ends after /proc was listed may have forked, and the list then lacks its child. A process that
    /// ends, or is in the middle of an exec, shows no environment. So if nothing was found, and processes without an
    /// environment were met that the looks before did not meet, /proc is looked through again. Zombies stay without an
    /// environment, and cost one more look.
    pub(in crate::host) fn find(&self) -> Result<Vec<Daemon>, ProcessError> {
        let boot = host_boot()?;
        let mut met_before = BTreeSet::new();
        for _ in 0..LOOKS {
            let (found, unreadable) = self.scan(boot)?;
            if !found.is_empty() || unreadable.is_subset(&met_before) {
                return Ok(found);
            }
            met_before.extend(unreadable);
        }
        Ok(Vec::new())
    }

    /// Looks through /proc once: the processes that are wanted, and those that show no environment.
    fn scan(&self, boot: u128) -> Result<(Vec<Daemon>, BTreeSet<u32>), ProcessError> {
        let (mut found, mut unreadable) = (Vec::new(), BTreeSet::new());
        for pid in processes()? {
            match environment(pid)? {
                ReadEnvironment::Seen(environment) if self.mark.is_in(&environment) => {
                    // Opened, and then asked again: another process may have got the pid in between.
                    match Daemon::open_pid(pid, boot)? {
                        Some(daemon) if daemon.has(self.mark)? == Some(true) && daemon.alive()? => {
                            found.extend(self.is_owned(pid).then_some(daemon));
                        }
                        _ => drop(unreadable.insert(pid)),
                    }
                }
                ReadEnvironment::None if !Stat::of(pid)?.is_some_and(|stat| stat.kernel_thread) => {
                    unreadable.insert(pid);
                }
                _ => {}
            }
        }
        Ok((found, unreadable))
    }

    /// The live process with this identity, if it is wanted. It costs the same however many processes there are.
    pub(in crate::host) fn of(&self, identity: Identity) -> Result<Option<Daemon>, ProcessError> {
        if identity.boot != host_boot()? {
            return Ok(None);
        }
        Ok(Daemon::open(identity, self.mark)?.filter(|_| self.is_owned(identity.pid)))
    }

    /// The process that has this pid now, if it is wanted.
    pub(in crate::host) fn at(&self, pid: u32) -> Result<Option<Daemon>, ProcessError> {
        let found = Daemon::open_pid(pid, host_boot()?)?;
        found.map_or(Ok(None), |found| self.of(found.identity()))
    }

    fn is_owned(&self, pid: u32) -> bool {
        // A process that is gone belongs to nobody.
        self.owners.is_none_or(|owners| {
            fs::metadata(format!("/proc/{pid}")).is_ok_and(|status| owners.contains(&status.uid()))
        })
    }

    /// Ends all that are wanted, until none is left: TERM, `grace`, KILL; KILL at once if `grace` is zero.
    pub(in crate::host) async fn end(&self, grace: Duration) -> Result<(), ProcessError> {
        for _ in 0..SWEEPS {
            let left = self.find()?;
            if left.is_empty() {
                return Ok(());
            }
            for daemon in left {
                daemon.end(self.mark, grace).await?;
            }
        }
        Err(ProcessError::KeepAppearing { mark: self.mark.clone() })
    }
}

/// A process that nixbox started, held by a pidfd: it stays this process whatever becomes of the pid.
#[derive(Debug)]
pub struct Daemon {
    identity: Identity,
    leader: bool,
    pidfd: OwnedFd,
}

impl Daemon {
    /// The live process with this identity and mark. If the environment cannot be read because nixbox has fewer
    /// privileges than the process, the identity alone decides: a signal to it needs those privileges anyway.
    pub(super) fn open(identity: Identity, mark: &ProcessMark) -> Result<Option<Self>, ProcessError> {
        let Some(found) = Self::open_pid(identity.pid, identity.boot)? else {
            return Ok(None);
        };
        if found.identity != identity || found.has(mark)? == Some(false) {
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
            // EINVAL: a thread that does not lead a process.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(errno) => {
                return Err(ProcessError::Process { action: "open", pid, source: errno.into() });
            }
        };
        let Some(stat) = Stat::of(pid)? else {
            return Ok(None);
        };
        // If the process of the pidfd ended before the stat was read, the stat is another's, and `alive` says so.
        let identity = Identity { pid, start: stat.start, boot };
        let daemon = Self { identity, leader: stat.session == Some(pid), pidfd };
        Ok(daemon.alive()?.then_some(daemon))
    }

    /// Whether the process has the mark; `None` if its environment must not be read. For some microseconds of an exec
    /// a process does not show its mark: the kernel has replaced its memory, and not yet written its environment.
    pub(super) fn has(&self, mark: &ProcessMark) -> Result<Option<bool>, ProcessError> {
        Ok(match environment(self.identity.pid)? {
            ReadEnvironment::Seen(environment) => Some(mark.is_in(&environment)),
            ReadEnvironment::None => Some(false),
            ReadEnvironment::Hidden => None,
        })
    }

    /// Whether the process leads a session. A daemon does before it has its mark; its children do not, and may outlive
    /// it.
    pub(super) fn leads(&self) -> bool {
        self.leader
    }

    /// A descriptor that becomes readable when the process has ended.
    pub(in crate::host) fn as_pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
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

    /// Whether the process lives. A pidfd becomes readable when all threads have ended: a zombie is dead.
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

    /// How many bytes the process has written so far, to files, sockets and devices: `wchar` of /proc/PID/io, proc(5).
    /// 0 if the process has ended.
    ///
    /// # Errors
    /// [`ProcessError::File`] if the kernel does not say, or not to this process. Then the process may be writing.
    pub fn written(&self) -> Result<u64, ProcessError> {
        let path = PathBuf::from(format!("/proc/{}/io", self.identity.pid));
        let count = fs::read_to_string(&path).and_then(|text| {
            let count = text.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok());
            count.ok_or_else(|| ErrorKind::InvalidData.into())
        });
        match count {
            Err(error) if is_gone(&error) && !self.alive()? => Ok(0),
            count => Ok(count.map_err(FileError::system("read", path))?),
        }
    }

    /// Sends a signal; succeeds if the process has ended.
    ///
    /// # Errors
    /// [`ProcessError::Process`], most often because a permission is missing.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(self.failed("signal", errno.into())),
        }
    }

    /// Ends the process and waits for its end: TERM, `grace`, KILL; KILL at once if `grace` is zero.
    pub(in crate::host) async fn end(&self, mark: &ProcessMark, grace: Duration) -> Result<(), ProcessError> {
        let kill = (Signal::KILL, KILL_LIMIT);
        let signals = if grace.is_zero() { vec![kill] } else { vec![(Signal::TERM, grace), kill] };
        for (signal, limit) in signals {
            self.signal(signal)?;
            if let Ok(exit) = timeout(limit, self.exited()).await {
                return exit.map(drop);
            }
        }
        Err(ProcessError::SurvivesKill { mark: mark.clone(), pid: self.pid(), limit: KILL_LIMIT })
    }

    /// Waits until the process has ended, and reaps it if it is a child of this process. The wait has no time limit of
    /// its own: the caller sets one.
    ///
    /// # Errors
    /// [`ProcessError::Process`] if the kernel cannot watch the process.
    pub async fn exited(&self) -> Result<ProcessExit, ProcessError> {
        // A duplicate, because epoll takes each descriptor once, and there may be two waiters.
        let pidfd = self.pidfd.try_clone().map_err(|source| self.failed("watch", source))?;
        // Deprecated for types that can change their descriptor while it is watched, and its successor is unsafe; an
        // OwnedFd cannot change it.
        #[allow(deprecated)]
        let watched = AsyncFd::with_interest(pidfd, tokio::io::Interest::READABLE)
            .map_err(|source| self.failed("watch", source))?;
        // The readiness is never cleared, because a process ends once.
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
        let stat = |session, start, kernel_thread| Some(Stat { session, start, kernel_thread });
        assert_eq!(Stat::parse(text), stat(Some(77), 987_654, false));
        let released = b"649 (cloud-hyperviso) X 0 -1 -1 0 -1 4227084 0 0 0 0 9 4 0 0 20 0 1 0 5150 0 0\n";
        assert_eq!(Stat::parse(released), stat(None, 5150, false));
        let kernel = b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 1 0 0 20 0 1 0 42 0 0\n";
        assert_eq!(Stat::parse(kernel), stat(Some(0), 42, true));
        for bad in [&b""[..], b"77 (x", b"77 (x) S", b"77 (x) S 1 2 many", b"77 (x) \xff"] {
            assert_eq!(Stat::parse(bad), None, "{bad:?}");
        }
        let own = Stat::of(std::process::id()).unwrap().unwrap();
        assert!(own.start > 0 && !own.kernel_thread);
        assert_eq!(Stat::of(u32::MAX).unwrap(), None);
    }
}
