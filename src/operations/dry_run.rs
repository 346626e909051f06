//! What a recovery would do with the journal's open operation, by the decision table, without doing it.
//!
//! It reads a history and looks at nothing else; where a recovery would probe, it says so.

use serde::Serialize;

use super::tables::{NoTable, table};
use crate::engine::history::{OpenOperation, TransitionStatus};
use crate::engine::planner::{self, Decision, Direction, NoPlan, RecoveryPlan, TableShape};
use crate::engine::transition::{Generation, Operation};
use crate::world::World;

/// What a recovery would do with an operation that was left open.
#[derive(Debug, Serialize)]
pub struct DryRun {
    /// Its name for people.
    pub operation: &'static str,
    /// Its generation.
    pub generation: Generation,
    /// Which way it goes: `forward`, `back`, or `probe decides`.
    pub direction: &'static str,
    /// Why it goes that way.
    pub why: String,
    /// Each of its transitions, in order.
    pub transitions: Vec<DryRunTransition>,
}

/// What a recovery would do about one transition.
#[derive(Debug, Serialize)]
pub struct DryRunTransition {
    /// Its name for people.
    pub label: &'static str,
    /// How far it got.
    pub status: &'static str,
    /// What is done about it.
    pub decision: &'static str,
}

/// Why a recovery would stop at the operation.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DryRunError {
    #[error(transparent)]
    NoTable(#[from] NoTable),
    #[error("the journal does not fit the operation; a recovery would do nothing")]
    NoPlan(#[from] NoPlan),
}

/// What a recovery would do with this operation.
///
/// # Errors
/// If a recovery would stop at it.
pub fn dry_run(open: &OpenOperation) -> Result<Option<DryRun>, DryRunError> {
    let Some(id) = open.operation else {
        return Ok(None);
    };
    let operation = table(id, &open.parameters)?;
    let Some(shape) = TableShape::of(&operation) else {
        return Ok(None);
    };
    let commit = shape.commit();
    let found: Vec<_> = open.entries().iter().map(|entry| (entry.id, entry.status)).collect();
    let RecoveryPlan { decisions, direction } = planner::plan(&shape, &found)?;
    let status =
        |index: usize| found.get(index).map_or(TransitionStatus::NeverStarted, |(_, status)| *status);
    let transitions = operation
        .transitions()
        .zip(&decisions)
        .enumerate()
        .map(|(index, (transition, decision))| DryRunTransition {
            label: transition.spec().label,
            status: status_word(status(index)),
            decision: decision_word(*decision, direction, index > commit),
        })
        .collect();
    Ok(Some(DryRun {
        operation: operation.label,
        generation: open.generation,
        direction: match direction {
            Direction::Forward => "forward",
            Direction::Back => "back",
            Direction::ProbeDecides => "probe decides",
        },
        why: why(&operation, commit, direction, status(commit)),
        transitions,
    }))
}

fn why(
    operation: &Operation<World>,
    commit: usize,
    direction: Direction,
    status: TransitionStatus,
) -> String {
    let point = operation.transitions().nth(commit).map_or("", |transition| transition.spec().label);
    match (direction, status) {
        (Direction::Forward, _) => format!("its commit point, `{point}`, is done"),
        (Direction::ProbeDecides, _) => {
            format!("whether its commit point, `{point}`, was done is not written down: the world is asked")
        }
        (Direction::Back, TransitionStatus::NeverStarted) => {
            format!("its commit point, `{point}`, had not begun")
        }
        (Direction::Back, _) => {
            format!("its commit point, `{point}`, was found not done, and undoing has begun")
        }
    }
}

fn status_word(status: TransitionStatus) -> &'static str {
    match status {
        TransitionStatus::NeverStarted => "never started",
        TransitionStatus::IntentOnly => "intent only",
        TransitionStatus::Done => "done",
        TransitionStatus::UndoBegun => "undo begun",
        TransitionStatus::Undone => "undone",
    }
}

/// A decision in the words of the table. On the way back nothing is done about transitions after the commit point.
fn decision_word(decision: Decision, direction: Direction, after: bool) -> &'static str {
    match (decision, direction) {
        (Decision::Apply, Direction::Back) if after => "nothing",
        (Decision::Undo | Decision::ProbeThenUndo, Direction::Forward) => "nothing",
        (Decision::Undo | Decision::ProbeThenUndo, Direction::ProbeDecides) => "undo, if it goes back",
        (Decision::Apply, Direction::ProbeDecides) => "apply, if it goes forward",
        (Decision::Skip, _) => "skip",
        (Decision::ProbeThenUndo, _) => "probe, undo",
        (Decision::Undo, _) => "undo",
        (Decision::Nothing, _) => "nothing",
        (Decision::RollBack, _) => "roll back",
        (Decision::RollForward, _) => "roll forward",
        (Decision::ProbeDecides, _) => "probe decides",
        (Decision::Apply, _) => "apply",
        (Decision::ProbeThenApply, _) => "probe, apply",
        // A plan has no illegal cell: the planner refuses the history first.
        (Decision::Illegal, _) => "illegal",
    }
}
