//! The processes that forward ports in the background: how they are started, found and ended.
//!
//! Such a process is found by the mark in its environment, as every daemon of nixbox's, and the words of its command line say
//! what it forwards. There is no file about it, so that none is left or wrong after the process was killed. The mark has no
//! generation, because the process is no part of a VM: no operation makes it, and it ends by itself when its VM does.
//!
//! What a process forwards is text here, which the command line parses. May use `process`, `systemd`, `sudo`, and how the
//! network starts nixbox's own program.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::thread::{CapabilitySet, CapabilitySets};
use tokio::io::AsyncReadExt;

use super::network::ProgramError;
use super::network::tool::{self, OWN_PROGRAM};
use super::process::{Daemon, DaemonRole, ProcessError, ProcessExit, ProcessMark, ProcessSearch};
use super::sudo;
use super::systemd::scope::ScopeManager;
use crate::files::FileError;
use crate::world::{Generation, WorkspaceId};

/// The command of nixbox that such a process runs.
pub const COMMAND: &str = "forward-daemon";
/// What the process writes to stdout once its ports can be used.
pub const READY: &[u8] = b"serving\n";

/// The variables that say where a workspace and its files are. No other variable is passed on, because that of a person may
/// be secret, and /proc shows it as long as the process lives.
const PASSED: [&str; 5] = ["PATH", "HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"];
/// How long a process may take to close its sockets after TERM.
const GRACE: Duration = Duration::from_secs(5);

/// Why ports cannot be forwarded in the background.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ForwardDaemonError {
    #[error("the process that forwards ports in the background cannot be started")]
    Start(#[source] ProgramError),
    #[error("cannot hear from the process that was to forward ports in the background; it ends by itself")]
    Hear(#[source] std::io::Error),
    #[error("the processes that forward ports in the background cannot be found or ended")]
    Process(#[from] ProcessError),
}

/// The processes of one workspace that forward ports in the background.
#[derive(Debug)]
pub struct ForwardDaemons {
    mark: ProcessMark,
}

/// A process that forwards ports in the background.
#[derive(Debug)]
pub struct ForwardDaemon {
    daemon: Daemon,
    /// The words of its command line after [`COMMAND`]. A process that has not got that far has none.
    pub words: Vec<OsString>,
}

impl ForwardDaemon {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }
}

/// What became of a process that was started.
#[derive(Debug)]
pub enum StartedForward {
    /// It serves, and has this process id.
    Serves(u32),
    /// It has said on stderr why it cannot, and has ended.
    Ended(ProcessExit),
}

impl ForwardDaemons {
    /// Those of this workspace.
    #[must_use]
    pub fn new(workspace: WorkspaceId) -> Self {
        Self { mark: ProcessMark { workspace, generation: None, role: DaemonRole::forward() } }
    }

    fn search<'a>(&'a self, owner: &'a [u32]) -> ProcessSearch<'a> {
        ProcessSearch { mark: &self.mark, owners: Some(owner) }
    }

    /// Finds those that live, in the order of their ids.
    ///
    /// # Errors
    /// [`ForwardDaemonError::Process`] if /proc cannot be read.
    pub fn find(&self) -> Result<Vec<ForwardDaemon>, ForwardDaemonError> {
        let mut found = Vec::new();
        for daemon in self.search(&[own_user()]).find()? {
            let words = words_of(daemon.pid())?;
            // What was read is of another process if this one has ended.
            if daemon.alive()? {
                found.push(ForwardDaemon { daemon, words });
            }
        }
        found.sort_by_key(ForwardDaemon::pid);
        Ok(found)
    }

    /// Starts a process with these words, and waits until its ports can be used, or until it has ended. Until then it has the
    /// stderr of this process. It ends by itself if this process ends before.
    ///
    /// `vm` is the VM that it forwards the ports of: it becomes part of the name of the scope that the process enters.
    ///
    /// # Errors
    /// [`ForwardDaemonError::Start`], [`ForwardDaemonError::Hear`].
    pub async fn start(
        &self,
        scopes: Option<&ScopeManager>,
        vm: Generation,
        words: &[String],
    ) -> Result<StartedForward, ForwardDaemonError> {
        // There may be several under one VM, and each has a scope of its own.
        let role = format!("{}-{}", self.mark.role, std::process::id());
        let scope = scopes.map(|manager| manager.scope(self.mark.workspace, vm, &role));
        let mut command = tool::own_daemon(&self.mark, scope.as_ref());
        command.envs(PASSED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.arg(COMMAND).args(words).stdin(Stdio::null()).stderr(Stdio::inherit());
        let started = tool::start(command, sudo::NEEDED | sudo::NAMESPACES, Path::new(OWN_PROGRAM)).await;
        let mut child = started.map_err(ForwardDaemonError::Start)?;
        let (pid, mut said) = (child.id(), Vec::new());
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_end(&mut said).await.map_err(ForwardDaemonError::Hear)?;
        }
        match pid {
            Some(pid) if said == READY => Ok(StartedForward::Serves(pid)),
            _ => Ok(StartedForward::Ended(child.wait().await.map_err(ForwardDaemonError::Hear)?.into())),
        }
    }

    /// Ends one of them, and returns when its sockets are closed.
    ///
    /// # Errors
    /// [`ForwardDaemonError::Process`] if the process is still there.
    pub async fn end(&self, forward: &ForwardDaemon) -> Result<(), ForwardDaemonError> {
        Ok(forward.daemon.end(&self.mark, GRACE).await?)
    }

    /// Ends all of them, and returns when their sockets are closed.
    ///
    /// # Errors
    /// [`ForwardDaemonError::Process`] if one is still there.
    pub async fn end_all(&self) -> Result<(), ForwardDaemonError> {
        Ok(self.search(&[own_user()]).end(GRACE).await?)
    }
}

/// Gives up the capabilities of this process, unless root started it. It has listened on its ports then, and reaches the guest
/// through the keeper. Without sudo, a user cannot see the environment of a process that has capabilities, and so not find it.
///
/// # Errors
/// If the kernel refuses, which it does not.
pub fn give_up_capabilities() -> std::io::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The words after [`COMMAND`] on the command line of a process.
fn words_of(pid: u32) -> Result<Vec<OsString>, ProcessError> {
    let path = PathBuf::from(format!("/proc/{pid}/cmdline"));
    match std::fs::read(&path) {
        Ok(bytes) => Ok(words_in(&bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(Vec::new()),
        Err(error) => Err(FileError::system("read", path)(error).into()),
    }
}

fn words_in(command_line: &[u8]) -> Vec<OsString> {
    let words = command_line.strip_suffix(b"\0").unwrap_or(command_line).split(|byte| *byte == 0);
    let mut after = words.skip_while(|word| *word != COMMAND.as_bytes());
    after.next();
    after.map(|word| OsStr::from_bytes(word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_after_the_command_are_read_also_behind_a_launcher() {
        for (line, words) in [
            (&b"/proc/self/exe\0forward-daemon\0id\08080:80\0"[..], &["id", "8080:80"][..]),
            (b"/proc/self/exe\0scope-daemon\0system\0/proc/self/exe\0forward-daemon\0id\0", &["id"]),
            (b"/proc/self/exe\0forward-daemon\0\0", &[""]),
            (b"/proc/self/exe\0forward-daemon\0", &[]),
            (b"/proc/self/exe\0forward-daemons\0id\0", &[]),
            (b"", &[]),
        ] {
            assert_eq!(words_in(line), words, "{:?}", String::from_utf8_lossy(line));
        }
    }

    #[tokio::test]
    async fn a_workspace_without_forwards_has_none_to_end() {
        let forwards = ForwardDaemons::new(WorkspaceId([0xf7; 16]));
        assert!(forwards.find().unwrap().is_empty());
        forwards.end_all().await.unwrap();
    }
}
