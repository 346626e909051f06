//! Runs the user's own scripts: `sh -c` in the workspace's directory. What a script prints goes to nixbox's stderr.
//!
//! Each script is a process group of its own. The whole group is ended when nixbox is interrupted, and when the wait
//! for the script is given up. Scripts run as the user who runs nixbox, with nixbox's environment and none of its
//! capabilities; the variable `NIXBOX` has the path of nixbox's program.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tracing::{Instrument as _, debug_span};

use crate::world::{self, Failure, HookPoint, Hooks, Interrupt};

/// How long a script may take to end after TERM.
const GRACE: Duration = Duration::from_secs(2);

/// The variable in which a script finds this program, so that it can run a command in the guest with it.
const PROGRAM: &str = "NIXBOX";

/// Why a script did not do its work. The command line may hold a secret, so the script is named by its number from 1.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("cannot {action} script {number} of {point}")]
    Shell { action: &'static str, point: &'static str, number: usize, source: io::Error },
    #[error("script {number} of {point} failed: {status}")]
    Failed { point: &'static str, number: usize, status: ExitStatus },
    #[error("script {number} of {point} was not run")]
    NotAllowed { point: &'static str, number: usize, source: Box<dyn std::error::Error + Send + Sync> },
}

/// Decides right before a script of a point is started whether it may run.
pub type ScriptCheck =
    dyn Fn(HookPoint, &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + Send + Sync;

/// Hears of a script that failed after the commit point of its operation, which does not fail with it.
pub type FailedScriptObserver = dyn Fn(&HookError) + Send + Sync;

/// [`Hooks`] by shell scripts.
#[derive(Clone)]
pub struct ShellHooks {
    /// The working directory of the scripts: the workspace.
    pub directory: PathBuf,
    /// The command lines of each point for a shell, in order.
    pub scripts: BTreeMap<HookPoint, Vec<String>>,
    /// Says whether a script may run.
    pub check: Arc<ScriptCheck>,
    /// Hears of scripts that fail at [`HookPoint::PostUp`] and [`HookPoint::PostDown`], and of those that may not run when
    /// the VM goes down.
    pub on_failed_script: Arc<FailedScriptObserver>,
}

impl ShellHooks {
    fn start(&self, script: &str) -> io::Result<Group> {
        // The output of a script is for people, and stdout is for the result of nixbox.
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        let child = Command::new("/bin/sh")
            .arg("-c")
            .arg(script)
            .current_dir(&self.directory)
            .env(PROGRAM, std::env::current_exe()?)
            .stdin(Stdio::null())
            .stdout(stderr)
            .process_group(0)
            .spawn()?;
        Ok(Group(child))
    }
}

/// A script and all that it started. Killed when dropped, unless the script has been waited for.
struct Group(Child);

impl Group {
    fn signal(&self, signal: Signal) {
        // A child without an id has been waited for, and another process may have its number by now.
        let pid = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // The call fails if all processes of the group have ended, which is what is wanted.
            rustix::process::kill_process_group(pid, signal).ok();
        }
    }

    async fn end(&mut self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, self.0.wait()).await.is_err() {
            self.signal(Signal::KILL);
            // A process ends after KILL, and the caller already has an error to report.
            self.0.wait().await.ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// [`Hooks`] of a workspace whose configuration is not to be trusted: runs nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoScripts;

#[async_trait]
impl Hooks for NoScripts {
    async fn run(&self, _: HookPoint, _: &Interrupt) -> world::Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Hooks for ShellHooks {
    async fn run(&self, point: HookPoint, interrupt: &Interrupt) -> world::Result<()> {
        let ran = self.run_all(point, interrupt).await;
        if let (Err(HookExit::Error(error)), HookPoint::PostUp | HookPoint::PostDown) = (&ran, point) {
            (self.on_failed_script)(error);
        }
        ran.map_err(|ended| match ended {
            HookExit::Interrupted => Failure::Interrupted,
            HookExit::Error(error) => Failure::world(error),
        })
    }
}

enum HookExit {
    Interrupted,
    Error(HookError),
}

impl From<HookError> for HookExit {
    fn from(error: HookError) -> Self {
        Self::Error(error)
    }
}

impl ShellHooks {
    async fn run_all(&self, at: HookPoint, interrupt: &Interrupt) -> Result<(), HookExit> {
        let point = at.key();
        for (index, script) in self.scripts.get(&at).into_iter().flatten().enumerate() {
            if interrupt.requested() {
                return Err(HookExit::Interrupted);
            }
            let number = index + 1;
            let failed = |action| move |source| HookError::Shell { action, point, number, source };
            if let Err(source) = (self.check)(at, script) {
                let refused = HookError::NotAllowed { point, number, source };
                if at == HookPoint::PreDown {
                    // A VM can be ended whatever its guest did with the script.
                    (self.on_failed_script)(&refused);
                    continue;
                }
                return Err(refused.into());
            }
            let span = debug_span!("hook", point, number);
            let mut group = self.start(script).map_err(failed("start a shell for"))?;
            let status = tokio::select! {
                status = group.0.wait().instrument(span) => status,
                () = interrupt.wait() => {
                    group.end().await;
                    return Err(HookExit::Interrupted);
                }
            };
            let status = status.map_err(failed("wait for"))?;
            if !status.success() {
                let failed = HookError::Failed { point, number, status };
                return Err(failed.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(directory: &tempfile::TempDir, scripts: &[&str]) -> ShellHooks {
        let scripts = scripts.iter().map(|script| (*script).to_owned()).collect();
        let scripts = BTreeMap::from([(HookPoint::PreUp, scripts)]);
        ShellHooks {
            directory: directory.path().to_owned(),
            scripts,
            check: Arc::new(|_, _| Ok(())),
            on_failed_script: Arc::new(|_| {}),
        }
    }

    #[tokio::test]
    async fn scripts_run_in_order_in_the_workspace_until_one_fails() {
        let directory = tempfile::tempdir().unwrap();
        let hooks = hooks(
            &directory,
            &["echo a >> out", "test -x \"$NIXBOX\" && echo b >> out; exit 3", "echo c >> out"],
        );
        let failure = hooks.run(HookPoint::PreUp, &Interrupt::new()).await.unwrap_err();
        assert!(failure.to_string().contains("script 2 of hooks.pre-up"));
        let written = std::fs::read_to_string(directory.path().join("out")).unwrap();
        assert_eq!(written, "a\nb\n");
        hooks.run(HookPoint::PostUp, &Interrupt::new()).await.unwrap();
    }

    #[tokio::test]
    async fn a_script_that_may_not_run_is_an_error_and_is_passed_over_when_the_vm_goes_down() {
        let directory = tempfile::tempdir().unwrap();
        let mut hooks = hooks(&directory, &["echo a >> out", "echo b >> out", "echo c >> out"]);
        let scripts = hooks.scripts.remove(&HookPoint::PreUp).unwrap();
        hooks.scripts = BTreeMap::from([(HookPoint::PreUp, scripts.clone()), (HookPoint::PreDown, scripts)]);
        hooks.check = Arc::new(|_, script| match script {
            "echo b >> out" => Err("the guest changed it".into()),
            _ => Ok(()),
        });
        let (send, told) = std::sync::mpsc::channel();
        hooks.on_failed_script = Arc::new(move |error| send.send(error.to_string()).unwrap());
        let written = || std::fs::read_to_string(directory.path().join("out")).unwrap();
        let failure = hooks.run(HookPoint::PreUp, &Interrupt::new()).await.unwrap_err();
        assert!(failure.to_string().contains("script 2 of hooks.pre-up was not run"));
        assert_eq!(written(), "a\n");
        hooks.run(HookPoint::PreDown, &Interrupt::new()).await.unwrap();
        assert_eq!(written(), "a\na\nc\n");
        assert_eq!(told.try_iter().collect::<Vec<_>>(), ["script 2 of hooks.pre-down was not run"]);
    }

    #[tokio::test]
    async fn an_interrupt_ends_a_script_and_all_that_it_started() {
        let directory = tempfile::tempdir().unwrap();
        // The pipe reports its end when the last process that has it open ends.
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        let hooks = hooks(&directory, &["exec 3> pipe; echo begun >&3; sleep 1000 & sleep 1000"]);
        let interrupt = Interrupt::new();
        let asked = interrupt.clone();
        let reader = tokio::task::spawn_blocking(move || {
            use std::io::{BufRead as _, Read as _};
            let mut pipe = std::io::BufReader::new(std::fs::File::open(pipe).unwrap());
            let mut line = String::new();
            pipe.read_line(&mut line).unwrap();
            asked.request();
            pipe.read_to_string(&mut line).unwrap();
            line
        });
        let failure = hooks.run(HookPoint::PreUp, &interrupt).await.unwrap_err();
        assert!(matches!(failure, Failure::Interrupted));
        assert_eq!(reader.await.unwrap(), "begun\n");
    }
}
