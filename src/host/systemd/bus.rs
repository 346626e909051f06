//! Asks a manager of systemd, by busctl(1), to make a scope with this process in it.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::SystemdError;
use super::unit;

/// How often the state of systemd is looked at, where systemd reports nothing: after the first pause, then after twice as
/// long each time, up to the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// The most that an error repeats of what busctl wrote to stderr, in bytes.
const STDERR_LIMIT: usize = 500;

/// The scope that a process enters.
pub(super) struct WantedScope<'a> {
    /// The program busctl.
    pub(super) busctl: &'a Path,
    /// The user whose manager has the scope; `None` for the manager of the system.
    pub(super) user: Option<u32>,
    pub(super) name: &'a str,
    /// The unit that is to be stopped before the scope when the host shuts down.
    pub(super) ordered_before: Option<&'a str>,
}

impl WantedScope<'_> {
    /// Makes the scope with this process in it. Returns once the process is in it, or after `limit` with an error.
    ///
    /// A scope of an earlier process may be about to go, because that process has ended. systemd refuses to make the scope
    /// then, so the scope is asked for again. systemd answers before it has moved the process, and busctl cannot wait for
    /// the end of that job, so the cgroup of the process is looked at again.
    pub(super) fn enter(&self, limit: Duration) -> Result<(), SystemdError> {
        let mut time = RemainingTime { limit, deadline: Instant::now() + limit, pause: FIRST_PAUSE };
        let mut with_oom_policy = true;
        while let Err(text) = self.make(with_oom_policy, &time)? {
            // Before version 253, scopes had no OOMPolicy, and systemd left the other processes of a scope alone.
            if with_oom_policy && text.contains("OOMPolicy") {
                with_oom_policy = false;
            } else if !text.contains("already") || !time.pause() {
                return Err(SystemdError::Refused { scope: self.name.to_owned(), text });
            }
        }
        loop {
            let cgroup = unit::cgroup()?;
            if unit::unit_in(&cgroup).is_some_and(|unit| unit.name == self.name) {
                return Ok(());
            }
            if !time.pause() {
                return Err(SystemdError::Outside { scope: self.name.to_owned(), cgroup });
            }
        }
    }

    /// Asks for the scope. The inner error says why systemd does not make it.
    fn make(&self, with_oom_policy: bool, time: &RemainingTime) -> Result<Result<(), String>, SystemdError> {
        let mut child = self
            .command(with_oom_policy, time.left())
            .spawn()
            .map_err(|source| SystemdError::Exec { path: self.busctl.to_owned(), source })?;
        let waited = wait(&child, time);
        if !matches!(waited, Ok(true)) {
            // It may have ended meanwhile. Either way there is no child left after the next call.
            child.kill().map_err(SystemdError::Wait)?;
        }
        let output = child.wait_with_output().map_err(SystemdError::Wait)?;
        match waited {
            Err(errno) => Err(SystemdError::Wait(errno.into())),
            Ok(false) => Err(SystemdError::Silent(time.limit)),
            Ok(true) if output.status.success() => Ok(Ok(())),
            Ok(true) => Ok(Err(reason(&output))),
        }
    }

    /// The environment has nothing of this process: no mark by which busctl would be taken for a daemon.
    fn command(&self, with_oom_policy: bool, limit: Duration) -> Command {
        let mut command = Command::new(self.busctl);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        match self.user {
            None => command.arg("--system"),
            Some(uid) => command.arg("--user").env("XDG_RUNTIME_DIR", format!("/run/user/{uid}")),
        };
        let pid = std::process::id().to_string();
        let mut properties = vec![
            vec!["Description", "s", "VM of nixbox"],
            vec!["PIDs", "au", "1", &pid],
            vec!["CollectMode", "s", "inactive-or-failed"],
        ];
        if with_oom_policy {
            properties.push(vec!["OOMPolicy", "s", "continue"]);
        }
        if let Some(service) = self.ordered_before {
            properties.push(vec!["Before", "as", "1", service]);
        }
        command
            .arg(format!("--timeout={}ms", limit.as_millis().max(1)))
            .args(["--allow-interactive-authorization=no", "--", "call"])
            .args(["org.freedesktop.systemd1", "/org/freedesktop/systemd1"])
            .args(["org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"])
            .args([self.name, "fail"])
            .arg(properties.len().to_string())
            .args(properties.concat())
            // The number of auxiliary units.
            .arg("0");
        command
    }
}

/// Waits for the end of the child. Returns whether it ended in time.
fn wait(child: &Child, time: &RemainingTime) -> rustix::io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = Timespec::try_from(time.left()).map_err(|_too_long| Errno::INVAL)?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            ended => return Ok(ended? > 0),
        }
    }
}

/// What a failed busctl says, in one line.
fn reason(output: &Output) -> String {
    let stderr = &output.stderr[..output.stderr.len().min(STDERR_LIMIT)];
    let text = String::from_utf8_lossy(stderr).trim().replace(char::is_control, " ");
    if text.is_empty() { output.status.to_string() } else { text }
}

/// The time that is left for all that is asked of systemd.
struct RemainingTime {
    limit: Duration,
    deadline: Instant,
    pause: Duration,
}

impl RemainingTime {
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Waits before systemd is looked at again. Returns whether there is time left.
    fn pause(&mut self) -> bool {
        let left = self.left();
        std::thread::sleep(self.pause.min(left));
        self.pause = LONGEST_PAUSE.min(self.pause * 2);
        !left.is_zero()
    }
}
