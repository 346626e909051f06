//! The errors of the command line, and the sole printer of results, errors, hints and exit codes.
//!
//! Commands return a [`Problem`]. The operator `?` converts errors of the layers below, and [`CliError`] for errors
//! that this layer finds itself, into a [`Problem`]. The `From` implementations at the end of this file choose the exit
//! code and the hint.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use super::visible::{visible, visible_json};
use crate::engine::executor::TransitionFailure;
use crate::engine::history::IllegalHistory;
use crate::engine::reader::ReadError;
use crate::engine::record::PayloadError;
use crate::engine::transition::Failure;
use crate::files::FileError;
use crate::guest::channel::ChannelError;
use crate::guest::host_key::PinError;
use crate::guest::shell::ScriptError;
use crate::host::network;
use crate::host::process::ProcessError;
use crate::host::shares::daemon_program::DaemonProgramError;
use crate::host::spawn::SpawnError;
use crate::operations::{DryRunError, OperationResult};
pub use crate::world::error_chain as chain;
use crate::world::messages;
use crate::world::{NetworkFault, Slot, SnapshotId, VariableName};

mod conversions;
mod refusal;

/// The exit codes of nixbox. Once a command of the user runs in the guest, `nixbox run` and `nixbox shell` exit with
/// its status instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitKind {
    /// The command did what it was asked to do.
    Done = 0,
    /// The command failed. Its operation was rolled back or never begun.
    Failed = 1,
    /// The command line or the configuration is wrong. No operation was begun.
    Usage = 2,
    /// There is no such workspace, snapshot or running VM.
    NotFound = 3,
    /// An operation is stuck, or the journal cannot be relied on: a person is needed.
    Stuck = 4,
    /// Another nixbox holds the workspace's lock.
    Locked = 5,
    /// A signal interrupted the operation, and it was rolled back.
    Interrupted = 130,
}

/// What is wrong with a network, and what a person can do about each part.
fn list_faults(faults: &[NetworkFault]) -> String {
    faults.iter().map(|fault| format!("{fault}: {}", fault.remedy())).collect::<Vec<_>>().join("; ")
}

/// A failure that the command line itself finds, or the reported end of an operation.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CliError {
    #[error("cannot write the result to stdout")]
    Stdout(#[source] io::Error),
    #[error("cannot start the asynchronous runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen for SIGINT, SIGTERM and SIGHUP")]
    Signals(#[source] io::Error),

    #[error("this host has no KVM: there is no /dev/kvm")]
    NoKvm,
    #[error("/dev/kvm cannot be opened")]
    Kvm(#[source] io::Error),
    #[error("Cloud Hypervisor cannot be used")]
    Vmm(#[source] Failure),
    #[error("the configuration has mounts, and virtiofsd, which they need, cannot be used")]
    Virtiofsd(#[source] DaemonProgramError),
    #[error(
        "the VM's network is that of the host, where an earlier nixbox has built it, and only root may change it: run the \
         command through sudo"
    )]
    Capabilities,
    #[error("a program that the VM's network needs cannot be used; nothing was changed")]
    NetworkProgram(#[source] network::ProgramError),
    #[error("the VM needs namespaces and a TAP that it cannot have; nothing was changed")]
    UserNamespaces(#[source] network::UserNamespaceError),
    #[error(
        "the guest may reach the network, for which an ordinary user's VM needs pasta; nothing was changed. With \
         network.mode = \"off\" the VM needs none"
    )]
    Pasta(#[source] network::ProgramError),
    #[error(
        "the VM's network is the namespace {0:?}, which only root may change: run the command through sudo"
    )]
    ForeignRights(std::path::PathBuf),
    #[error("cannot read which slots of this host are free")]
    Slots(#[source] Failure),
    #[error("all {} slots of this host are taken: bring down a VM of another workspace first", Slot::COUNT)]
    NoSlot,
    #[error("cannot examine the network of this host")]
    Network(#[source] Failure),
    #[error("the network of the VM cannot be examined or repaired; the VM goes on as it is")]
    NetworkNotRepaired(#[source] Failure),
    #[error("the network of the VM is still broken: {}", list_faults(.0))]
    NetworkBroken(Vec<NetworkFault>),
    #[error(
        "the network device {0} has the name that the VM's TAP needs, and is not nixbox's: remove the device"
    )]
    ForeignTap(String),

    #[error("cannot open the journal's directory {path}")]
    JournalDirectory {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the journal {path}")]
    Journal {
        path: String,
        #[source]
        source: ReadError<IllegalHistory>,
    },
    #[error("the journal {path} does not say in what state the workspace is")]
    JournalState {
        path: String,
        #[source]
        source: PayloadError,
    },
    #[error("cannot look for the processes of VMs")]
    Processes(#[source] ProcessError),
    #[error("what belongs to the VM of this workspace cannot be ended and removed")]
    End(#[source] Failure),
    #[error("cannot tell what a recovery would do")]
    DryRun(#[source] DryRunError),
    #[error("there is neither a directory {0:?} here nor a workspace with this name or id")]
    NoSuchWorkspace(String),
    #[error(
        "several workspaces have the name {name:?}: {}",
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    AmbiguousName { name: String, paths: Vec<PathBuf> },
    #[error(
        "network.uplink was edited, and the uplink of a VM that runs cannot be given other addresses; nothing was changed"
    )]
    UplinkEdited,
    #[error("the network of the VM cannot be brought to the configuration")]
    NetworkNotReloaded(#[source] Failure),
    #[error("the network of the VM is not as the configuration says: {}", list_faults(.0))]
    NetworkPartsNotReloaded(Vec<NetworkFault>),
    #[error("the manual pages cannot be written into {}", path.display())]
    ManualPages { path: PathBuf, source: io::Error },
    #[error("no VM is running")]
    NotRunning,
    #[error(
        "the VM is paused or has stopped, so its guest cannot be reached; its credentials are as they were"
    )]
    GuestPaused,
    #[error("no VM is running: `{0}` was left half done, or is under way")]
    HalfDone(&'static str),

    #[error(
        "the guest can reach {}, which was made anew since the VM came up, and may have written there",
        .0.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Exposed(Vec<PathBuf>),
    #[error("the shares could not be served again; nothing was changed")]
    Shares(#[source] Failure),
    #[error("cannot tell whether the guest can reach the workspace's .nixbox")]
    Masks(#[source] Failure),
    #[error("cannot ask the VMM for the state of the VM")]
    VmState(#[source] Failure),
    #[error("cannot connect to the guest")]
    Connect(#[source] Failure),
    #[error("the connection to the guest broke, and the exit status of the command is not known")]
    CommandLost(#[source] ChannelError),
    #[error("the command was not started in the guest")]
    NotStarted(#[source] ScriptError),
    #[error("the VM ended before its guest was done, so it is not known how far the guest came")]
    VmEnded,
    #[error("ended by the third signal; the guest is told to end the command")]
    RunGivenUp,
    #[error("the terminal cannot be changed for a command of the guest")]
    Terminal(#[source] io::Error),
    #[error("nixbox's environment has no variable {0} to pass on")]
    NoVariable(VariableName),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("there is no such log in {}", .0.display())]
    NoLog(PathBuf),
    #[error("cannot wait for changes of files")]
    Changes(#[source] io::Error),
    #[error("this user has no home directory for a configuration of ssh")]
    NoHome,
    #[error("ssh cannot be told the path {}: it has a quote, a backslash, a dollar sign or a control character", .0.display())]
    PathForSsh(PathBuf),
    #[error("{} is a symbolic link, which nixbox does not replace; the entry is written: add the line \"{line}\" at the \
         beginning of that file", path.display())]
    SshConfigIsLink { path: PathBuf, line: &'static str },
    #[error("the guest's host key that nixbox has learned cannot be read")]
    Pin(#[source] PinError),
    #[error("the connection of ssh to the guest broke")]
    Relay(#[source] io::Error),
    #[error("`nixbox shell` needs the ssh program of this host, and cannot find it")]
    NoSsh(#[source] SpawnError),
    #[error("nixbox's own program, which connects ssh to the guest, cannot be found")]
    NoOwnProgram(#[source] io::Error),
    #[error("cannot connect to the guest at {address}")]
    GuestConnection { address: std::net::SocketAddr, source: io::Error },
    #[error("cannot start {path}")]
    StartSsh {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("snapshot {0} is damaged; nothing was changed")]
    DamagedSnapshot(SnapshotId, #[source] Failure),
    #[error("both are snapshot {0}, which has no difference from itself")]
    SameSnapshot(SnapshotId),
    #[error("the name and the note of snapshot {0} stay as they were")]
    SnapshotLabel(SnapshotId, #[source] Failure),
    #[error("there are several snapshots, and none was named: {0}; nothing was deleted")]
    SnapshotsToChoose(String),
    #[error("nothing was deleted")]
    DeletionDeclined,
    #[error("the answer cannot be read; nothing was deleted")]
    DeletionUnanswered(#[source] io::Error),
    #[error("snapshot {0} holds credentials: {1}")]
    LeakySnapshot(SnapshotId, String),

    #[error("the operation was rolled back: all is as it was before")]
    RolledBack(#[source] TransitionFailure),
    #[error("the snapshot was not restored, and the VM that it was to replace is down; its disk is kept")]
    ReplacedInVain(#[source] TransitionFailure),
    #[error(
        "the operation failed and its VM is lost; the VM's processes, network and RAM were cleared away. The workspace \
         is down, and its disk is kept"
    )]
    ClearedAway(#[source] TransitionFailure),
    #[error(
        "the guest did not answer, and its VM was shut down and cleared away. The workspace is down, and its disk is kept"
    )]
    NeverAnswered(#[source] TransitionFailure),
    #[error("the guest was not brought to SSH-ready, and its VM was left running for you to look at")]
    LeftRunning(#[source] TransitionFailure),
    #[error("the operation can be neither completed nor rolled back")]
    Stuck(#[source] TransitionFailure),
}

/// An error with its exit code and a hint how to solve it.
#[derive(Debug)]
pub struct Problem {
    exit: ExitKind,
    error: Box<dyn Error + Send + Sync>,
    hint: Option<&'static str>,
    /// Whether the error is about a VM that was lost.
    lost: bool,
    /// The last lines of the log of the lost VM's VMM.
    last_words: Vec<String>,
}

/// The exit code of a command that ran, or why it failed.
pub type Outcome = Result<u8, Problem>;

impl Problem {
    /// An error without a hint.
    pub fn new(exit: ExitKind, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit, error: error.into(), hint: None, lost: false, last_words: Vec::new() }
    }

    /// Adds the last lines of the VMM's log, if the error is about a VM that was lost.
    #[must_use]
    pub fn with_last_words(mut self, words: impl FnOnce() -> Vec<String>) -> Self {
        if self.lost {
            self.last_words = words();
        }
        self
    }

    /// Sets the hint if there is none yet.
    #[must_use]
    pub fn or_hint(mut self, hint: &'static str) -> Self {
        self.hint = self.hint.or(Some(hint));
        self
    }

    /// The exit code that the error leads to.
    #[must_use]
    pub fn exit(&self) -> ExitKind {
        self.exit
    }

    /// Whether the error is that no VM runs.
    pub(super) fn is_not_running(&self) -> bool {
        matches!(self.error.downcast_ref(), Some(CliError::NotRunning))
    }

    /// The error and its causes on one line.
    pub(super) fn one_line(&self) -> String {
        messages(&*self.error).join(": ")
    }

    /// The error and its causes.
    pub(super) fn messages(&self) -> Vec<String> {
        messages(&*self.error)
    }

    /// What a person can do.
    pub(super) fn hint(&self) -> Option<&'static str> {
        self.hint
    }

    /// Prints the error, its causes and the hint on stderr.
    pub fn print(&self) {
        let mut messages = messages(&*self.error).into_iter();
        let mut text = format!("nixbox: {}\n", messages.next().unwrap_or_default());
        for message in messages {
            text.push_str(&format!("  because: {message}\n"));
        }
        for words in &self.last_words {
            text.push_str(&format!("  {words}\n"));
        }
        if let Some(hint) = self.hint {
            text.push_str(&format!("  hint: {hint}\n"));
        }
        print_stderr(&text);
    }
}

/// Writes to stderr, with control characters replaced. A failure is ignored, because it means that stderr is closed and
/// that nobody reads it.
pub fn print_stderr(text: &str) {
    io::stderr().write_all(visible(text).as_bytes()).ok();
}

/// Writes a result and a line end to stdout, with control characters replaced.
///
/// # Errors
/// If stdout cannot be written.
pub fn print(text: &str) -> Result<(), Problem> {
    write_line(&visible(text))
}

fn write_line(text: &str) -> Result<(), Problem> {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    Ok(written.map_err(CliError::Stdout)?)
}

/// Writes a value to stdout as one line of JSON.
///
/// # Errors
/// If stdout cannot be written.
pub(super) fn print_json_line(value: &impl serde::Serialize) -> Result<(), Problem> {
    let text = serde_json::to_string(value).map_err(|error| CliError::Stdout(error.into()))?;
    write_line(&visible_json(&text))
}

/// Writes a value to stdout as JSON.
///
/// # Errors
/// If stdout cannot be written.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Problem> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CliError::Stdout(error.into()))?;
    write_line(&visible_json(&text))
}

/// Formats a duration for people.
#[must_use]
pub fn duration(took: Duration) -> String {
    match took.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        seconds => format!("{seconds:.1} s"),
    }
}

/// Returns whether an operation that ended had anything to do.
///
/// # Errors
/// If the operation did not do what it was asked to do.
pub fn check_result(result: OperationResult) -> Result<bool, Problem> {
    Err(match result {
        OperationResult::Done => return Ok(true),
        OperationResult::Already => return Ok(false),
        OperationResult::RolledBack(failure) => CliError::RolledBack(failure),
        OperationResult::ReplacedInVain(failure) => CliError::ReplacedInVain(failure),
        OperationResult::ClearedAway(failure) if matches!(failure.failure, Failure::WaitedOut(_)) => {
            CliError::NeverAnswered(failure)
        }
        OperationResult::ClearedAway(failure) => CliError::ClearedAway(failure),
        OperationResult::LeftRunning(failure) => CliError::LeftRunning(failure),
        OperationResult::Stuck(failure) => CliError::Stuck(failure),
    }
    .into())
}

impl From<CliError> for Problem {
    fn from(error: CliError) -> Self {
        use ExitKind::{Failed, Interrupted, NotFound, Stuck, Usage};
        let rolled_back = |failure: &TransitionFailure| {
            if matches!(failure.failure, Failure::Interrupted) { Interrupted } else { Failed }
        };
        let (exit, hint) = match &error {
            CliError::NoKvm => (
                Failed,
                Some(
                    "enable virtualization in the firmware, or nested virtualization in the host that this one runs on; \
                     then `modprobe kvm_intel` or `kvm_amd`",
                ),
            ),
            CliError::Kvm(_) => {
                (Failed, Some("add your user to the group that owns /dev/kvm, and log in again"))
            }
            CliError::Vmm(_) => (Failed, Some("`nixbox doctor` says what is needed")),
            CliError::Pasta(_) => {
                (Failed, Some("install the package passt once; without root, put its program pasta on PATH"))
            }
            CliError::NetworkProgram(_) => (Failed, Some("`nixbox doctor` says what is needed")),
            CliError::JournalState { .. } | CliError::DryRun(_) => (Stuck, None),
            CliError::UplinkEdited => {
                (Usage, Some("`nixbox down` and `nixbox up` give the VM another uplink"))
            }
            CliError::NetworkNotReloaded(_) | CliError::NetworkPartsNotReloaded(_) => (
                Failed,
                Some(
                    "the next command that changes something, as `nixbox recover`, puts the former rules back",
                ),
            ),
            CliError::NoSuchWorkspace(_) => {
                (NotFound, Some("`nixbox list` shows the workspaces of this user"))
            }
            CliError::AmbiguousName { .. } => {
                (Usage, Some("-C takes the directory of a workspace, or its id, too"))
            }
            CliError::NotRunning => (NotFound, Some("`nixbox up` starts one")),
            CliError::Exposed(_) | CliError::Masks(_) => (
                Failed,
                Some(
                    "nothing was changed; read the config.toml there, then `nixbox down` and `nixbox up` hide it again",
                ),
            ),
            CliError::NoLog(_) => (NotFound, Some("`nixbox up` starts a VM, which writes logs")),
            CliError::RunGivenUp => (Interrupted, None),
            CliError::NoVariable(_) => (Usage, Some("give it a value: -e NAME=VALUE; nothing was run")),
            CliError::VmEnded => (Failed, Some("`nixbox status` says what became of the VM")),
            CliError::HalfDone(_) => (NotFound, Some("`nixbox recover` completes it or rolls it back")),
            CliError::Connect(Failure::Lost) => {
                (NotFound, Some("`nixbox up` clears away what is left of the VM and starts another"))
            }
            CliError::LeakySnapshot(..) => {
                (Failed, Some("`nixbox snapshot delete` removes it; a new one is searched while it is made"))
            }
            CliError::DamagedSnapshot(..) => (Failed, Some("`nixbox snapshot delete` removes it")),
            CliError::SameSnapshot(_) => (Usage, Some("`nixbox snapshot list` shows the others")),
            CliError::SnapshotsToChoose(_) => {
                (Usage, Some("`nixbox snapshot delete SNAPSHOT` deletes the one that is named"))
            }
            CliError::RolledBack(failure) => (rolled_back(failure), None),
            CliError::ReplacedInVain(failure) => {
                (rolled_back(failure), Some("`nixbox up` boots from that disk"))
            }
            CliError::NeverAnswered(_) => (
                Failed,
                Some(
                    "[guest] ready-timeout says how long a guest may take, and --keep leaves the VM running for a look",
                ),
            ),
            CliError::LeftRunning(_) => (
                Failed,
                Some(
                    "`nixbox status` names the serial console, and `nixbox down` ends the VM; [guest] ready-timeout says how \
                     long a guest may take",
                ),
            ),
            CliError::Stuck(_) => (
                Stuck,
                Some(
                    "fix the cause named above, then run `nixbox recover`; `nixbox journal` shows how far the operation \
                     got",
                ),
            ),
            _ => (Failed, None),
        };
        let lost =
            matches!(error, CliError::ClearedAway(_) | CliError::NeverAnswered(_) | CliError::LeftRunning(_));
        Self { hint, lost, ..Self::new(exit, error) }
    }
}

#[cfg(test)]
mod tests;
