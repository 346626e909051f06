//! `nixbox demo`: takes a snapshot, kills the next snapshot halfway, recovers and restores, on the simulator.
//!
//! The demonstration runs the commands of this program as a person would, and compares the state of the guest before
//! and after. A difference is an error.

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

/// Show a snapshot, a kill, a recovery and a restore, without KVM, root or network
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox demo --keep")]
pub(super) struct Arguments {
    /// Keep the workspace, with its VM running, at the end
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("cannot make the directory {} for the demonstration", .0.display())]
    Directory(PathBuf, #[source] std::io::Error),
    #[error("cannot run `nixbox {0}`")]
    Run(String, #[source] std::io::Error),
    #[error("`nixbox {words}` ended with {status}: {stderr}")]
    Failed { words: String, status: ExitStatus, stderr: String },
    #[error("`nixbox snapshot` ended before it could be killed")]
    TooFast,
    #[error("{what} answered {found:?} instead of {wanted:?}")]
    Different { what: &'static str, found: String, wanted: String },
    #[error("the secret was found in {}", .0.display())]
    Leaked(PathBuf),
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    #[error("`nixbox status --json` does not say the {0} of the workspace")]
    Status(&'static str),
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

/// The secret in the configuration that `init --simulator` writes.
const SECRET: &str = "a-secret-of-the-demonstration";

/// A guest command that stands for slow work: it makes a cache on the disk, and starts a program that keeps data in
/// memory.
const WARM_UP: &str =
    "mkdir -p cache && head -c 4194304 /dev/urandom > cache/jars && echo 'in memory alone' | keep > program";
/// A guest command that prints the values which must be equal before and after: the cache, the boot id, the secret, and
/// the share.
const ASK: &str =
    "sha256sum < cache/jars; cat /proc/sys/kernel/random/boot_id; [ -n \"$TOKEN\" ] && ls ~/workspace";

/// The workspace of the demonstration. Dropping this value removes the workspace, unless the workspace is to be kept.
struct DemoWorkspace {
    program: PathBuf,
    directory: PathBuf,
    interrupt: Interrupt,
    keep: bool,
}

impl Drop for DemoWorkspace {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Errors of the clean-up are ignored: an error of the demonstration itself is the one to report.
        let id = self.status("id");
        self.command(&["down", "--quiet"]).stderr(Stdio::null()).status().ok();
        std::fs::remove_dir_all(&self.directory).ok();
        if let Ok(id) = id {
            let mut forget = self.command(&["forget", &id]);
            forget.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
        }
    }
}

impl DemoWorkspace {
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

    /// Runs a command that has to succeed, and returns its output.
    fn run(&self, words: &[&str]) -> Result<String, DemoError> {
        let output = self.output(words)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        let (words, stderr) = (words.join(" "), text(&output.stderr));
        Err(DemoError::Failed { words, status: output.status, stderr })
    }

    /// A text of the report of `nixbox status`.
    fn status(&self, key: &'static str) -> Result<String, DemoError> {
        let output = self.command(&["status", "--json"]).output();
        let output = output.map_err(|error| DemoError::Run("status".to_owned(), error))?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        report[key].as_str().map(ToOwned::to_owned).ok_or(DemoError::Status(key))
    }

    fn guest(&self, script: &str) -> Result<String, DemoError> {
        self.run(&["run", "--", "sh", "-c", script])
    }

    fn same(&self, what: &'static str, script: &str, wanted: &str) -> Result<(), DemoError> {
        let found = self.guest(script)?;
        let wanted = wanted.to_owned();
        if found == wanted { Ok(()) } else { Err(DemoError::Different { what, found, wanted }) }
    }

    /// Takes a snapshot, and kills nixbox once the guest is paused and the next transition has begun.
    fn kill_snapshot_halfway(&self) -> Result<(), DemoError> {
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

    /// Searches every file of every snapshot for the secret. Returns the number of bytes that were searched.
    fn search_snapshots(&self) -> Result<u64, DemoError> {
        let mut searched = 0;
        let mut paths = vec![PathBuf::from(self.status("state_directory")?).join("snapshots")];
        while let Some(path) = paths.pop() {
            let failed = |error| DemoError::Read(path.clone(), error);
            if path.is_dir() {
                for entry in std::fs::read_dir(&path).map_err(failed)? {
                    paths.push(entry.map_err(failed)?.path());
                }
                continue;
            }
            let bytes = std::fs::read(&path).map_err(failed)?;
            searched += bytes.len() as u64;
            if find(&bytes, SECRET.as_bytes()) {
                return Err(DemoError::Leaked(path));
            }
        }
        Ok(searched)
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

/// Prints what was done, and how long it took. Returns the present time, at which the next measurement begins.
fn report(since: Instant, what: &str) -> Result<Instant, Problem> {
    error::print(&format!("{:>7}  {what}", error::duration(since.elapsed())))?;
    Ok(Instant::now())
}

fn indented(text: &str) -> Result<(), Problem> {
    let lines: Vec<_> = text.lines().map(|line| format!("         | {line}")).collect();
    error::print(&lines.join("\n"))
}

/// The part of the output of `nixbox journal` that shows the operation that has not ended.
fn open_operation(journal: &str) -> String {
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
    let mut workspace = DemoWorkspace { program, directory, interrupt, keep: false };
    let began = Instant::now();
    error::print(&format!(
        "nixbox demo, in {}. No VM runs here: a simulator stands in for Cloud Hypervisor. Everything else is\n\
         real: processes, files, sockets, SSH, the journal, and the SIGKILL.\n",
        workspace.directory.display()
    ))?;
    play(&workspace)?;
    report(began, "in all")?;
    workspace.keep = arguments.keep;
    let state = workspace.status("state_directory")?;
    error::print(&ending(&workspace.directory, &state, arguments.keep))?;
    drop(workspace);
    success()
}

fn play(workspace: &DemoWorkspace) -> Result<(), Problem> {
    let mut since = Instant::now();
    workspace.run(&["init", "--simulator"])?;
    workspace.run(&["up"])?;
    since = report(since, "nixbox up: a guest has booted, has its share and its secret, and is SSH-ready")?;
    workspace.guest(WARM_UP)?;
    let before = workspace.guest(ASK)?;
    since = report(since, "warm up: a cache of 4 MiB on the disk, and a program with something in memory")?;
    workspace.run(&["snapshot", "--name", "warm"])?;
    since =
        report(since, "nixbox snapshot --name warm: a snapshot without the secret, and the guest runs on")?;
    let bytes = workspace.search_snapshots()?;
    since = report(
        since,
        &format!("every file of the snapshot was searched for the secret: not found in {bytes} bytes"),
    )?;

    workspace.kill_snapshot_halfway()?;
    since =
        report(since, "nixbox snapshot: killed with SIGKILL while the guest was paused. In the journal:")?;
    indented(&open_operation(&workspace.run(&["journal"])?))?;
    let dry_run = workspace.run(&["recover", "--dry-run"])?;
    since = report(since, "nixbox recover --dry-run: what a recovery would do, and why:")?;
    indented(&dry_run)?;
    workspace.run(&["recover"])?;
    workspace.same("the guest after the recovery", ASK, &before)?;
    since = report(since, "nixbox recover: the same guest runs as before, with share and secret")?;

    workspace.guest("rm -r cache && sync")?;
    workspace.run(&["down"])?;
    since = report(since, "the cache is deleted in the guest; nixbox down: only the disk of the VM is left")?;
    workspace.run(&["up", "--snapshot"])?;
    workspace.same("the restored guest", ASK, &before)?;
    workspace.same("the restored program", "keep --end $(cat program)", "in memory alone")?;
    report(
        since,
        "nixbox up --snapshot: the same guest is back, with its cache and its program, and SSH-ready",
    )?;
    Ok(())
}

fn ending(directory: &Path, state: &str, keep: bool) -> String {
    let mut enter = OsString::from("cd ");
    enter.push(directory);
    let files = if keep {
        format!(
            "The workspace was kept, and its guest runs: {} && nixbox status\n\
             The journal and the snapshot are in {state}; `nixbox down` ends the guest.",
            enter.display()
        )
    } else {
        "The workspace was removed; `nixbox demo --keep` keeps it for you to look at.".to_owned()
    };
    format!(
        "\n{files}\n\
         For a real VM: `nixbox doctor` says what this machine lacks, and `nixbox init` turns a directory into a workspace."
    )
}
