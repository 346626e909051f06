//! The sole printer of errors and hints, and the one place that decides exit codes.

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use super::wiring::WiringError;
use crate::config::ConfigError;
use crate::engine::executor::{EngineError, TransitionFailure};
use crate::engine::journal::JournalError;
use crate::engine::transition::Failure;
use crate::operations::{OperationResult, Refusal};
use crate::workspace::{LockError, WorkspaceError};

/// What nixbox exits with. `nixbox run` and `nixbox shell` exit with what their command did, once it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitKind {
    /// It was done.
    Done = 0,
    /// It failed, and was rolled back or never begun.
    Failed = 1,
    /// The command line or the configuration is wrong; nothing was begun.
    Usage = 2,
    /// There is no such workspace, snapshot or running VM.
    NotFound = 3,
    /// A person is needed.
    Stuck = 4,
    /// Another nixbox is at work in the workspace.
    Locked = 5,
    /// Somebody interrupted it, and it was rolled back.
    Interrupted = 130,
}

/// Why a command did not do what it was asked, and what nixbox exits with then.
#[derive(Debug)]
pub struct Problem {
    exit: ExitKind,
    error: Box<dyn Error + Send + Sync>,
    hint: Option<&'static str>,
    /// Whether a VM was lost, and what is known of why.
    lost: bool,
    last_words: Vec<String>,
}

/// What a command came to: what to exit with.
pub type Outcome = Result<u8, Problem>;

/// What a person reads about an operation that did not get through.
#[derive(Debug, thiserror::Error)]
enum ReportedEnd {
    #[error("all is as it was before")]
    RolledBack(#[source] TransitionFailure),
    #[error("the snapshot was not restored, and the VM that it was to replace is down; its disk is kept")]
    ReplacedInVain(#[source] TransitionFailure),
    #[error("the VM was of no use and what was left of it was cleared away; the workspace is down")]
    ClearedAway(#[source] TransitionFailure),
    #[error("it can be neither finished nor taken back")]
    Stuck(#[source] TransitionFailure),
}

impl Problem {
    /// A problem of its own kind.
    pub fn new(exit: ExitKind, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit, error: error.into(), hint: None, lost: false, last_words: Vec::new() }
    }

    /// The same with what the VM said last, if it is about one that was lost.
    #[must_use]
    pub fn with_last_words(mut self, words: impl FnOnce() -> Vec<String>) -> Self {
        if self.lost {
            self.last_words = words();
        }
        self
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn with(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    /// The same with what to do about it, if nothing better is known.
    #[must_use]
    pub fn or_with(mut self, hint: &'static str) -> Self {
        self.hint = self.hint.or(Some(hint));
        self
    }

    /// What nixbox exits with because of it.
    #[must_use]
    pub fn exit(&self) -> ExitKind {
        self.exit
    }

    /// Prints it with all that caused it.
    pub fn print(&self) {
        let mut text = format!("nixbox: {}\n", self.error);
        let mut last = self.error.to_string();
        let mut cause = self.error.source();
        while let Some(error) = cause {
            let message = error.to_string();
            // A transparent layer says what the one below it says.
            if message != last {
                text.push_str(&format!("  because: {message}\n"));
            }
            last = message;
            cause = error.source();
        }
        for words in &self.last_words {
            text.push_str(&format!("  {words}\n"));
        }
        if let Some(hint) = self.hint {
            text.push_str(&format!("  hint: {hint}\n"));
        }
        say(&text);
    }
}

/// An error and all that caused it, in one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // A transparent layer says what the one below it says.
        if !text.ends_with(&message) {
            text.push_str(&format!(": {message}"));
        }
        cause = error.source();
    }
    text
}

/// Writes to stderr. Who closed it does not want to know.
pub fn say(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).ok();
}

/// Writes a result to stdout, with a line end.
///
/// # Errors
/// If stdout cannot be written.
pub fn print(text: &str) -> Result<(), Problem> {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    written.map_err(|error| Problem::new(ExitKind::Failed, Unprinted(error)))
}

/// Prints a value as JSON on stdout.
///
/// # Errors
/// If stdout cannot be written.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Problem> {
    let text = serde_json::to_string_pretty(value);
    print(&text.map_err(|error| Problem::new(ExitKind::Failed, Unprinted(error.into())))?)
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write the result to stdout")]
struct Unprinted(#[source] std::io::Error);

/// A duration as people read it.
#[must_use]
pub fn duration(took: Duration) -> String {
    match took.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        seconds => format!("{seconds:.1} s"),
    }
}

/// What an operation that ended came to: whether there was something to do.
///
/// # Errors
/// If it did not get through.
pub fn ended(report: OperationResult) -> Result<bool, Problem> {
    match report {
        OperationResult::Done => Ok(true),
        OperationResult::Already => Ok(false),
        OperationResult::RolledBack(setback) => {
            Err(Problem::new(taken_back(&setback), ReportedEnd::RolledBack(setback)))
        }
        OperationResult::ReplacedInVain(setback) => {
            Err(Problem::new(taken_back(&setback), ReportedEnd::ReplacedInVain(setback))
                .with("`nixbox up` boots from that disk"))
        }
        OperationResult::ClearedAway(setback) => {
            Err(Problem { lost: true, ..Problem::new(ExitKind::Failed, ReportedEnd::ClearedAway(setback)) })
        }
        OperationResult::Stuck(setback) => Err(stuck(setback)),
    }
}

fn taken_back(setback: &TransitionFailure) -> ExitKind {
    if matches!(setback.failure, Failure::Interrupted) { ExitKind::Interrupted } else { ExitKind::Failed }
}

/// An operation that needs a person.
#[must_use]
pub fn stuck(setback: TransitionFailure) -> Problem {
    Problem::new(ExitKind::Stuck, ReportedEnd::Stuck(setback))
        .with("put right what it names, then run `nixbox recover`; `nixbox journal` shows how far it got")
}

impl From<WorkspaceError> for Problem {
    fn from(error: WorkspaceError) -> Self {
        let exit = match error {
            WorkspaceError::None { .. } | WorkspaceError::Start { .. } => ExitKind::NotFound,
            _ => ExitKind::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<WiringError> for Problem {
    fn from(error: WiringError) -> Self {
        let exit = match error {
            WiringError::SharedRuntime { .. } => ExitKind::Usage,
            _ => ExitKind::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<LockError> for Problem {
    fn from(error: LockError) -> Self {
        let exit = match error {
            LockError::Locked(_) => ExitKind::Locked,
            LockError::File(_) => ExitKind::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Self::new(ExitKind::Usage, error)
    }
}

impl From<JournalError> for Problem {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Unusable { .. } => {
                Self::new(ExitKind::Stuck, error).with("`nixbox journal` shows what can be read of it")
            }
            error => Self::new(ExitKind::Failed, error),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Stuck(setback) => stuck(setback),
            Refusal::Engine(EngineError::Journal(error)) => error.into(),
            Refusal::Look(Failure::Interrupted) => Self::new(ExitKind::Interrupted, refusal),
            Refusal::Running => Self::new(ExitKind::Failed, refusal)
                .with("`nixbox down` brings it down; `nixbox restore --replace` does so by itself"),
            Refusal::NameTaken(_) => Self::new(ExitKind::Failed, refusal)
                .with("take another name, or `nixbox snapshot delete` that one first"),
            Refusal::NoRoom { .. } => Self::new(ExitKind::Failed, refusal)
                .with("`nixbox snapshot list` shows what could be deleted; nothing was changed"),
            Refusal::SharesInUse(_) => Self::new(ExitKind::Failed, refusal)
                .with("let them end, or leave the shared directories; nothing was changed"),
            Refusal::Unfit(..) | Refusal::NothingFits(_) => Self::new(ExitKind::Failed, refusal)
                .with("nothing was changed; `nixbox up` boots without a snapshot"),
            Refusal::NoSnapshot => {
                Self::new(ExitKind::NotFound, refusal).with("`nixbox snapshot` makes one of the VM that runs")
            }
            Refusal::NotRunning => Self::new(ExitKind::NotFound, refusal).with("`nixbox up` starts one"),
            Refusal::NoSuchSnapshot(_) => Self::new(ExitKind::NotFound, refusal)
                .with("`nixbox snapshot list` shows those that there are"),
            Refusal::NoTable(_) | Refusal::UnreadableState(_) | Refusal::Engine(EngineError::NoPlan(_)) => {
                Self::new(ExitKind::Stuck, refusal)
            }
            _ => Self::new(ExitKind::Failed, refusal),
        }
    }
}
