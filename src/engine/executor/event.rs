//! Progress events for observers, and the result of a run for its caller.
//!
//! May use: the engine's words.

use std::time::Duration;

use super::super::journal::JournalError;
use super::super::planner::{Direction, NoPlan};
use super::super::record::{Ended, PayloadError};
use super::super::transition::{Failure, Generation};

/// A transition that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{label} failed")]
pub struct TransitionFailure {
    /// The transition's name for people.
    pub label: &'static str,
    /// Why it failed.
    #[source]
    pub failure: Failure,
}

/// How a run of an operation ended.
#[derive(Debug)]
pub enum Ending {
    /// All of it was done.
    Done,
    /// All of it was undone. There is no failure if a recovery undid an operation only because it had been interrupted.
    RolledBack(Option<TransitionFailure>),
    /// It failed after its commit point: its VM is gone or cannot be used, and what is left is to be cleared away.
    Lost(TransitionFailure),
    /// An undo failed, or whether a transition was done cannot be determined. The operation stays open.
    Stuck(TransitionFailure),
}

/// Why a run stopped without an ending. What was done so far is in the journal, and the next run goes on from it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No run of this operation can have left the journal's history.
    #[error("the journal does not fit the operation; nothing was done")]
    NoPlan(#[from] NoPlan),
    /// A recovery was asked for, and there is nothing to recover.
    #[error("no operation is open")]
    NothingOpen,
    /// A table without a commit point: an error of the program.
    #[error("the operation has no commit point")]
    NoCommitPoint,
    /// A payload of the operation is too large for a record.
    #[error("the operation cannot be written down")]
    Payload(#[from] PayloadError),
}

/// What happens while an operation runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An operation begins, or is taken up again by a recovery.
    Begun {
        /// The operation's name for people.
        operation: &'static str,
        /// Its generation.
        generation: Generation,
        /// The name of its commit point for people.
        commit: &'static str,
        /// Whether it was left open by an earlier run.
        recovery: bool,
    },
    /// The direction that an operation takes after a failure, or in a recovery.
    Turned(Direction),
    /// A stage begins.
    Stage(&'static str),
    /// The intent of a transition is on the medium, and it is about to act.
    Acts(&'static str),
    /// A transition is done, and its outcome is written.
    Done {
        /// The transition's name for people.
        label: &'static str,
        /// How long it took; `None` if a probe found it done.
        took: Option<Duration>,
    },
    /// A transition failed.
    Failed(&'static str),
    /// A transition is about to be undone.
    Undoes(&'static str),
    /// A transition has been undone, and that is written.
    Undone(&'static str),
    /// The operation has ended, and that is on the medium.
    Ended(Ended),
}

/// Sees what happens while an operation runs.
pub trait Observer: Send + Sync {
    /// Called in order, from the thread that runs the operation.
    fn event(&self, event: Event);

    /// Why the transition failed whose [`Event::Failed`] follows. A transition that fails after the commit point is tried
    /// once more; if that succeeds, the run's result says nothing about the failure.
    fn failure(&self, _failure: &TransitionFailure) {}

    /// The run waits for something that may take a while; the text says for what.
    fn waits(&self, _why: &str) {}
}

/// An observer that ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn event(&self, _: Event) {}
}
