//! What a run says: while it goes on, to those who show it, and when it is over, to the one who asked for it.
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
    /// Of the transition.
    pub label: &'static str,
    /// Why.
    #[source]
    pub failure: Failure,
}

/// How a run of an operation came out.
#[derive(Debug)]
pub enum Ending {
    /// All of it was done.
    Done,
    /// All of it was taken back. In a recovery the reason may be that it had been left half done, and nothing more.
    RolledBack(Option<TransitionFailure>),
    /// It had passed its commit point, but its VM is gone or of no use; what is left is to be cleared away.
    Lost(TransitionFailure),
    /// An undo failed, or it cannot be told whether something was done. The operation stays open.
    Stuck(TransitionFailure),
}

/// Why a run stopped without an ending. What was done so far is in the journal, and the next run goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal's history is not one of this operation.
    #[error("the journal does not fit the operation; nothing was done")]
    NoPlan(#[from] NoPlan),
    /// There is nothing to recover.
    #[error("no operation is open")]
    NothingOpen,
    /// A table without a commit point: an error of the program.
    #[error("the operation has no commit point")]
    NoCommitPoint,
    /// Something the operation wants to remember is too large.
    #[error("the operation cannot be written down")]
    Payload(#[from] PayloadError),
}

/// What happens while an operation runs, for those who show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An operation begins, or is taken up again.
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
    /// The direction of an operation that did not end by itself.
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
    /// A transition is about to be taken back.
    Undoes(&'static str),
    /// A transition has been taken back, and that is written.
    Undone(&'static str),
    /// The operation has ended, and that is on the medium.
    Ended(Ended),
}

/// Sees what happens.
pub trait Observer: Send + Sync {
    /// Called in order, from the thread that runs the operation.
    fn event(&self, event: Event);

    /// Why the transition failed whose [`Event::Failed`] follows. A failure after the commit point is tried once more, so
    /// this may be all that is heard of it.
    fn failure(&self, _failure: &TransitionFailure) {}

    /// Nothing happens for a while, and this is why.
    fn waits(&self, _why: &str) {}
}

/// Looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn event(&self, _: Event) {}
}
