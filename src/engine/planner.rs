//! The recovery decision table. Pure: statuses in, decisions out.
//!
//! | status of a transition | before the commit point | the commit point itself | after it |
//! |---|---|---|---|
//! | never started | skip | roll back | apply |
//! | intent only | probe, undo | probe decides the direction; cannot tell → stuck | probe: done → record, not done → apply, lost → clear away |
//! | done | undo, in reverse order | roll forward | nothing |
//! | undo begun | undo again | illegal history | illegal history |
//! | undone | nothing | illegal history | illegal history |
//!
//! [`decide`] is the table. [`plan`] asks it for every transition of an operation, reads the direction off the
//! commit point, and refuses a history that no run can have written: one that goes forward past a gap, or back past
//! its commit point. A direction once taken back holds: undoing is never begun before the commit point was probed.

use super::history::Status;
use super::transition::TransitionId;

/// Where a transition stands in its operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Before the commit point.
    Before,
    /// The commit point itself.
    Commit,
    /// After it.
    After,
}

impl Place {
    /// The place of transition `index` of an operation whose commit point is `commit`.
    #[must_use]
    pub fn of(index: usize, commit: usize) -> Self {
        match index.cmp(&commit) {
            std::cmp::Ordering::Less => Self::Before,
            std::cmp::Ordering::Equal => Self::Commit,
            std::cmp::Ordering::Greater => Self::After,
        }
    }
}

/// One cell of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// It never acted, and does not have to.
    Skip,
    /// Look, then make sure that it is as before.
    ProbeThenUndo,
    /// Make sure that it is as before.
    Undo,
    /// All is done that there was to do.
    Nothing,
    /// The operation goes back.
    RollBack,
    /// The operation goes forward.
    RollForward,
    /// Look; what is found says which way the operation goes.
    ProbeDecides,
    /// It has to act.
    Apply,
    /// Look; done is recorded, not done is applied, lost ends the operation.
    ProbeThenApply,
    /// No run can have left this.
    Illegal,
}

/// The table, cell by cell.
#[must_use]
pub fn decide(place: Place, status: Status) -> Decision {
    match (status, place) {
        (Status::NeverStarted, Place::Before) => Decision::Skip,
        (Status::NeverStarted, Place::Commit) => Decision::RollBack,
        (Status::NeverStarted, Place::After) => Decision::Apply,
        (Status::IntentOnly, Place::Before) => Decision::ProbeThenUndo,
        (Status::IntentOnly, Place::Commit) => Decision::ProbeDecides,
        (Status::IntentOnly, Place::After) => Decision::ProbeThenApply,
        (Status::Done, Place::Before) => Decision::Undo,
        (Status::Done, Place::Commit) => Decision::RollForward,
        (Status::Done, Place::After) => Decision::Nothing,
        (Status::UndoBegun, Place::Before) => Decision::Undo,
        (Status::Undone, Place::Before) => Decision::Nothing,
        (Status::UndoBegun | Status::Undone, Place::Commit | Place::After) => Decision::Illegal,
    }
}

/// Which way an operation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To its end.
    Forward,
    /// To its beginning.
    Back,
    /// As the commit point's probe says.
    ProbeDecides,
}

/// What an operation's table looks like to the planner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The transitions of each stage, in order.
    pub stages: Vec<Vec<TransitionId>>,
    /// The place of the commit point among all transitions.
    pub commit: usize,
}

/// A history that the operation's table cannot have led to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlan {
    /// Written by a nixbox with another table, or not by one at all.
    #[error(
        "the journal has transition {found:?} in place {index}, and this nixbox has {expected:?} there"
    )]
    OtherTable {
        /// The place.
        index: usize,
        /// What the table has there; `None` behind its end.
        expected: Option<TransitionId>,
        /// What the journal has there.
        found: TransitionId,
    },
    /// The commit point, or one after it, was taken back.
    #[error("transition {index} was taken back, and nothing from the commit point on ever is")]
    BackPastCommit {
        /// Its place.
        index: usize,
    },
    /// It began before the stage before it was done.
    #[error("transition {index} began before transition {unfinished} of an earlier stage was done")]
    ForwardPastGap {
        /// Its place.
        index: usize,
        /// The place of the one that was not done.
        unfinished: usize,
    },
}

/// What is to be done with an operation that did not end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// One decision for each transition, by place.
    pub decisions: Vec<Decision>,
    /// Which way.
    pub direction: Direction,
}

/// The plan for statuses, by place, as a journal gives them.
///
/// # Errors
/// If no run of this table can have left them.
pub fn plan(shape: &Shape, found: &[(TransitionId, Status)]) -> Result<Plan, NoPlan> {
    let table: Vec<TransitionId> = shape.stages.iter().flatten().copied().collect();
    for (index, (id, status)) in found.iter().enumerate() {
        if *status != Status::NeverStarted && table.get(index) != Some(id) {
            return Err(NoPlan::OtherTable {
                index,
                expected: table.get(index).copied(),
                found: *id,
            });
        }
    }
    let status = |index: usize| {
        found
            .get(index)
            .map_or(Status::NeverStarted, |(_, status)| *status)
    };
    let decisions: Vec<_> = (0..table.len())
        .map(|index| decide(Place::of(index, shape.commit), status(index)))
        .collect();
    if let Some(index) = decisions
        .iter()
        .position(|decision| *decision == Decision::Illegal)
    {
        return Err(NoPlan::BackPastCommit { index });
    }
    refuse_gaps(shape, status)?;
    let taken_back = |index: &usize| matches!(status(*index), Status::UndoBegun | Status::Undone);
    let direction = match (
        decisions.get(shape.commit),
        (0..shape.commit).find(taken_back),
    ) {
        (Some(Decision::RollForward), Some(index)) => return Err(NoPlan::BackPastCommit { index }),
        (Some(Decision::RollForward), None) => Direction::Forward,
        (Some(Decision::ProbeDecides), None) => Direction::ProbeDecides,
        // Undoing has begun, so the commit point was probed by then, and found not done.
        _ => Direction::Back,
    };
    Ok(Plan {
        decisions,
        direction,
    })
}

/// A transition begins only when all of the stages before have been done, even if some were taken back since.
fn refuse_gaps(shape: &Shape, status: impl Fn(usize) -> Status) -> Result<(), NoPlan> {
    let mut unfinished = None;
    let mut first = 0;
    for stage in &shape.stages {
        let here = first..first + stage.len();
        let begun = here
            .clone()
            .find(|index| status(*index) != Status::NeverStarted);
        if let (Some(index), Some(unfinished)) = (begun, unfinished) {
            return Err(NoPlan::ForwardPastGap { index, unfinished });
        }
        let open =
            |index: &usize| matches!(status(*index), Status::NeverStarted | Status::IntentOnly);
        unfinished = unfinished.or(here.clone().find(open));
        first = here.end;
    }
    Ok(())
}
