//! The DHCP and DNS daemon as a process: known again, ended. Nothing here knows what it serves. So is an nft that
//! outlives the nixbox that ran it, and would make a table that was just removed.
//!
//! Each is known by the marks in its environment, which it got at its start and nobody can change from outside. That
//! needs no file that could be lost or go stale, and a pid that is reused has other marks.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::world::{Generation, Slot, WorkspaceId};

/// How long it gets after TERM, and then after KILL.
const GRACE: Duration = Duration::from_secs(2);

/// How often to look where processes end while they are looked at, and how often to look for what is left of one that
/// was ended: dnsmasq forks twice when it starts.
const ROUNDS: usize = 5;

/// What cannot be done about the daemon.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Neither whether it runs nor what it is can be told then.
    #[error("cannot look for it in /proc")]
    Look(#[source] io::Error),
    /// A signal could not be sent, or its end not be awaited.
    #[error("cannot end process {pid}")]
    End {
        /// The process.
        pid: i32,
        /// What the kernel says.
        source: io::Error,
    },
    /// It is most likely in an uninterruptible wait of the kernel's.
    #[error("process {0}, or another one marked like it, is still there after KILL")]
    Immortal(i32),
}

/// What a process is there for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    /// dnsmasq.
    Dhcp,
    /// nft, while it changes something.
    Firewall,
}

/// Whose process, and what for.
pub(super) struct Mark {
    pub(super) workspace: WorkspaceId,
    pub(super) slot: Slot,
    pub(super) role: Role,
}

/// A running daemon, held by a descriptor that stays with it and never with one that gets its pid later.
pub(super) struct Daemon {
    pid: i32,
    handle: OwnedFd,
}

impl Mark {
    /// The variables that it is known by.
    fn identity(&self) -> [(&'static str, String); 2] {
        let role = match self.role {
            Role::Dhcp => "dhcp",
            Role::Firewall => "firewall",
        };
        [("NIXBOX_WORKSPACE", self.workspace.to_string()), ("NIXBOX_ROLE", format!("{role}-{}", self.slot))]
    }

    /// All of the variables that it is started with.
    pub(super) fn environment(&self, generation: Option<Generation>) -> Vec<(&'static str, String)> {
        let mut all = self.identity().to_vec();
        all.extend(generation.map(|generation| ("NIXBOX_GENERATION", generation.to_string())));
        all
    }

    /// Those that run: more than one only while it starts, or if somebody meddled.
    pub(super) fn find(&self) -> Result<Vec<Daemon>, DaemonError> {
        let mut dead_before = BTreeSet::new();
        for _ in 0..ROUNDS {
            let (found, dead) = self.look()?;
            // One that ended after it was listed may have forked, and what it forked may not be in the list. Without
            // such, nothing can have been missed. Zombies stay, and are told from those that just ended by looking twice.
            if !found.is_empty() || dead.is_subset(&dead_before) {
                return Ok(found);
            }
            dead_before.extend(dead);
        }
        Ok(Vec::new())
    }

    /// Those that are marked, and those that are listed but not alive.
    fn look(&self) -> Result<(Vec<Daemon>, BTreeSet<i32>), DaemonError> {
        let (mut found, mut dead) = (Vec::new(), BTreeSet::new());
        for entry in std::fs::read_dir("/proc").map_err(DaemonError::Look)? {
            let entry = entry.map_err(DaemonError::Look)?;
            let number = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            let Some((number, pid)) = number.and_then(|number| Some((number, Pid::from_raw(number)?))) else {
                continue;
            };
            // First the descriptor, then the look: what was looked at is then what the descriptor holds.
            let handle = pidfd_open(pid, PidfdFlags::empty());
            let marked = self.is_on(&entry.path());
            match handle {
                Ok(handle) if alive(&handle) => {
                    if marked {
                        found.push(Daemon { pid: number, handle });
                    }
                }
                _ => drop(dead.insert(number)),
            }
        }
        Ok((found, dead))
    }

    /// Whether the process is marked. Other users' cannot be read, and are not ours.
    fn is_on(&self, process: &Path) -> bool {
        let Ok(environment) = std::fs::read(process.join("environ")) else {
            return false;
        };
        let has = |(name, value): (&str, String)| {
            let wanted = format!("{name}={value}");
            environment.split(|&byte| byte == 0).any(|variable| variable == wanted.as_bytes())
        };
        // Root can read everybody's, and anybody can write anything into his own.
        self.identity().into_iter().all(has)
            && process.metadata().is_ok_and(|status| {
                status.uid() == rustix::process::geteuid().as_raw() || status.uid() == nobody()
            })
    }

    /// End it and wait for that, until there is none.
    pub(super) async fn stop(&self) -> Result<(), DaemonError> {
        let mut last = 0;
        for _ in 0..ROUNDS {
            let running = self.find()?;
            let Some(first) = running.first() else {
                return Ok(());
            };
            last = first.pid;
            let ending = tokio::task::spawn_blocking(move || running.iter().try_for_each(Daemon::end));
            ending.await.map_err(|error| DaemonError::Look(error.into()))??;
        }
        Err(DaemonError::Immortal(last))
    }
}

impl Daemon {
    fn end(&self) -> Result<(), DaemonError> {
        let failed = |error: rustix::io::Errno| DaemonError::End { pid: self.pid, source: error.into() };
        for signal in [Signal::TERM, Signal::KILL] {
            match pidfd_send_signal(&self.handle, signal) {
                Ok(()) => {}
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                Err(error) => return Err(failed(error)),
            }
            if ended(&self.handle, GRACE).map_err(failed)? {
                return Ok(());
            }
        }
        Err(DaemonError::Immortal(self.pid))
    }
}

/// Whether the process ends within the limit. A pidfd is readable from the process's end on, reaped or not.
fn ended(handle: &OwnedFd, limit: Duration) -> rustix::io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(|_overflow| rustix::io::Errno::INVAL)?;
    loop {
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn alive(handle: &OwnedFd) -> bool {
    matches!(ended(handle, Duration::ZERO), Ok(false))
}

/// The user that dnsmasq becomes where root starts it.
fn nobody() -> u32 {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = accounts.lines().find_map(|line| line.strip_prefix("nobody:"));
    line.and_then(|rest| rest.split(':').nth(1)).and_then(|uid| uid.parse().ok()).unwrap_or(65534)
}
