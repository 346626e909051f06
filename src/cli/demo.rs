//! `nixbox demo`: the whole of it in one go, on the simulator: freeze, kill, recover, restore.
//!
//! It runs the program itself, as anybody would, and holds what it says to what is there: a demonstration that does not
//! come out as it should is an error.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Instant;

use super::error::{self, ExitKind, Outcome, Problem};
use super::progress::ProgressDisplay;
use super::{WorkspaceLocation, signals, success};
use crate::engine::transition::Interrupt;

/// Show what nixbox does, without KVM, root or network: freeze, kill, recover, restore
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox demo --keep")]
pub(super) struct Arguments {
    /// Leave the workspace as it is at the end, with its VM running
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("cannot make {}, a directory to show it in", .0.display())]
    Directory(PathBuf, #[source] std::io::Error),
    #[error("cannot run `nixbox {0}`")]
    Run(String, #[source] std::io::Error),
    #[error("`nixbox {words}` ended with {status}: {said}")]
    Failed { words: String, status: ExitStatus, said: String },
    #[error("`nixbox snapshot` was done before it could be killed")]
    TooFast,
    #[error("{what}: there is {found:?} where {wanted:?} should be")]
    Unlike { what: &'static str, found: String, wanted: String },
    #[error("{} holds the secret", .0.display())]
    Leaked(PathBuf),
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    #[error("interrupted")]
    Interrupted,
}

impl From<DemoError> for Problem {
    fn from(error: DemoError) -> Self {
        let exit =
            if matches!(error, DemoError::Interrupted) { ExitKind::Interrupted } else { ExitKind::Failed };
        Self::new(exit, error)
    }
}

/// The secret of the workspace that `init --simulator` makes.
const SECRET: &str = "a-secret-of-the-demonstration";

/// Something slow, as far as anybody has to wait for it here: a cache on the disk, a program with something in memory.
const WARM_UP: &str =
    "mkdir -p cache && head -c 4194304 /dev/urandom > cache/jars && echo 'in memory alone' | keep > program";
const ASK: &str =
    "sha256sum < cache/jars; cat /proc/sys/kernel/random/boot_id; [ -n \"$TOKEN\" ] && ls ~/workspace";

/// A workspace that goes when this does.
struct DemoStage {
    program: PathBuf,
    directory: PathBuf,
    interrupt: Interrupt,
    keep: bool,
}

impl Drop for DemoStage {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // What is left then is said by neither of the two: whatever went wrong before matters more.
        self.command(&["down", "--quiet"]).stderr(Stdio::null()).status().ok();
        std::fs::remove_dir_all(&self.directory).ok();
    }
}

impl DemoStage {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).current_dir(&self.directory).stdin(Stdio::null());
        command
    }

    fn output(&self, words: &[&str]) -> Result<Output, DemoError> {
        let output = self.command(words).output();
        let output = output.map_err(|error| DemoError::Run(words.join(" "), error))?;
        if self.interrupt.requested() {
            return Err(DemoError::Interrupted);
        }
        Ok(output)
    }

    /// Runs a command that has to succeed, and gives what it printed.
    fn run(&self, words: &[&str]) -> Result<String, DemoError> {
        let output = self.output(words)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        let (words, said) = (words.join(" "), text(&output.stderr));
        Err(DemoError::Failed { words, status: output.status, said })
    }

    fn guest(&self, script: &str) -> Result<String, DemoError> {
        self.run(&["run", "--", "sh", "-c", script])
    }

    fn same(&self, what: &'static str, script: &str, wanted: &str) -> Result<(), DemoError> {
        let found = self.guest(script)?;
        let wanted = wanted.to_owned();
        if found == wanted { Ok(()) } else { Err(DemoError::Unlike { what, found, wanted }) }
    }

    /// Kills a snapshot when the guest is paused and some of it has been copied.
    fn kill_in_the_middle(&self) -> Result<(), DemoError> {
        let run = |error| DemoError::Run("snapshot".to_owned(), error);
        let mut child = self.command(&["snapshot"]).stderr(Stdio::piped()).spawn().map_err(run)?;
        let lines = child.stderr.take().map(BufReader::new).into_iter().flat_map(BufRead::lines);
        let mut paused = false;
        for line in lines {
            let line = line.map_err(run)?;
            if paused {
                break;
            }
            paused = line.contains("snapshot: pause (");
        }
        child.kill().map_err(run)?;
        let status = child.wait().map_err(run)?;
        if status.success() { Err(DemoError::TooFast) } else { Ok(()) }
    }

    /// Looks into every file of every snapshot. Says how many bytes it saw.
    fn search_snapshots(&self) -> Result<u64, DemoError> {
        let mut seen = 0;
        let mut left = vec![self.directory.join(".nixbox/snapshots")];
        while let Some(path) = left.pop() {
            let failed = |error| DemoError::Read(path.clone(), error);
            if path.is_dir() {
                for entry in std::fs::read_dir(&path).map_err(failed)? {
                    left.push(entry.map_err(failed)?.path());
                }
                continue;
            }
            let bytes = std::fs::read(&path).map_err(failed)?;
            seen += bytes.len() as u64;
            if find(&bytes, SECRET.as_bytes()) {
                return Err(DemoError::Leaked(path));
            }
        }
        Ok(seen)
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> bool {
    let first = wanted.first().copied().unwrap_or_default();
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        if rest[at..].starts_with(wanted) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// Prints a stage with its time, and what there is to say of it.
fn told(since: Instant, what: &str) -> Result<Instant, Problem> {
    error::print(&format!("{:>7}  {what}", error::duration(since.elapsed())))?;
    Ok(Instant::now())
}

fn indented(text: &str) -> Result<(), Problem> {
    let lines: Vec<_> = text.lines().map(|line| format!("         | {line}")).collect();
    error::print(&lines.join("\n"))
}

/// The operation in the journal that has not ended, as `nixbox journal` shows it.
fn last_operation(journal: &str) -> String {
    let lines: Vec<&str> = journal.lines().collect();
    let is_head = |line: &&str| line.contains("snapshot: open");
    let begin = lines.iter().position(is_head).unwrap_or(0);
    lines[begin..].iter().take_while(|line| !line.starts_with('/')).copied().collect::<Vec<_>>().join("\n")
}

pub(super) fn run(_: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let interrupt = Interrupt::new();
    signals::listen(&interrupt, &Arc::new(ProgressDisplay::new(true)))?;
    let directory = std::env::temp_dir().join(format!("nixbox-demo-{}", std::process::id()));
    std::fs::create_dir(&directory).map_err(|error| DemoError::Directory(directory.clone(), error))?;
    let program = std::env::current_exe().map_err(|error| DemoError::Run("demo".to_owned(), error))?;
    let mut stage = DemoStage { program, directory, interrupt, keep: false };
    let began = Instant::now();
    error::print(&format!(
        "nixbox demo, in {}. No VM runs here: a simulator stands in for Cloud Hypervisor. All else is real:\n\
         processes, files, sockets, SSH, the journal, and the SIGKILL.\n",
        stage.directory.display()
    ))?;
    play(&stage)?;
    told(began, "in all")?;
    stage.keep = arguments.keep;
    error::print(&ending(&stage.directory, arguments.keep))?;
    drop(stage);
    success()
}

fn play(stage: &DemoStage) -> Result<(), Problem> {
    let mut since = Instant::now();
    stage.run(&["init", "--simulator"])?;
    stage.run(&["up"])?;
    since = told(since, "nixbox up: a guest has booted, has its share and its secret, and is SSH-ready")?;
    stage.guest(WARM_UP)?;
    let before = stage.guest(ASK)?;
    since = told(since, "warm up: 4 MiB of a build's cache, and a program with something in memory")?;
    stage.run(&["snapshot", "--name", "warm"])?;
    since = told(since, "nixbox snapshot --name warm: frozen without the secret, and the guest runs on")?;
    let bytes = stage.search_snapshots()?;
    since = told(since, &format!("every file of it was searched for the secret: {bytes} bytes, not found"))?;

    stage.kill_in_the_middle()?;
    since = told(since, "nixbox snapshot: killed with SIGKILL while the guest was paused. In the journal:")?;
    indented(&last_operation(&stage.run(&["journal"])?))?;
    let foreseen = stage.run(&["recover", "--dry-run"])?;
    since = told(since, "nixbox recover --dry-run: what a recovery would do, and why:")?;
    indented(&foreseen)?;
    stage.run(&["recover"])?;
    stage.same("the guest after the recovery", ASK, &before)?;
    since =
        told(since, "nixbox recover: all is as it was before: the same guest runs, with share and secret")?;

    stage.guest("rm -r cache && sync")?;
    stage.run(&["down"])?;
    since = told(
        since,
        "the cache is deleted in the guest; nixbox down: nothing of the VM is left but its disk",
    )?;
    stage.run(&["up", "--snapshot"])?;
    stage.same("the restored guest", ASK, &before)?;
    stage.same("the restored program", "keep --end $(cat program)", "in memory alone")?;
    told(since, "nixbox up --snapshot: the same guest, its cache and its program are back, and SSH-ready")?;
    Ok(())
}

fn ending(directory: &Path, keep: bool) -> String {
    let mut enter = OsString::from("cd ");
    enter.push(directory);
    let files = if keep {
        format!(
            "It is all there, and the guest runs: {} && nixbox status\n\
             The journal is in .nixbox/journal, the snapshot in .nixbox/snapshots; `nixbox down` ends the guest.",
            enter.display()
        )
    } else {
        "Nothing of it is left; `nixbox demo --keep` leaves it for you to look at.".to_owned()
    };
    format!(
        "\n{files}\n\
         For a real VM: `nixbox doctor` says what this machine lacks, `nixbox init` makes a workspace of a directory."
    )
}
