//! The recovery decision table. Pure: statuses in, decisions out.
//!
//! | status of a transition | before the commit point | the commit point itself | after it |
//! |---|---|---|---|
//! | never started | skip | roll back | apply |
//! | intent only | probe, undo | probe decides the direction; cannot tell: stuck | probe: done → record, not done → apply, lost → clear away |
//! | done | undo, in reverse order | roll forward | nothing |
//! | undo begun | undo, in reverse order | illegal history | illegal history |
//! | undone | nothing | illegal history | illegal history |
//!
//! [`decide`] is the table. [`plan`] asks it for every transition of an operation, reads the direction off the commit
//! point, and refuses a history that no run can have written: a stage that began before the stage before it was done, or
//! an undo from the commit point on. Once undoing has begun, the direction is back, because the commit point was probed
//! before that.

use super::history::TransitionStatus;
use super::transition::{Operation, Stage, TransitionId};

/// On which side of the commit point a transition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CommitSide {
    /// Before the commit point.
    Before,
    /// The commit point itself.
    Commit,
    /// After it.
    After,
}

impl CommitSide {
    /// The side of transition `index` in an operation whose commit point is `commit`.
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
    /// It never acted, and it does not have to.
    Skip,
    /// It is probed and then undone.
    ProbeThenUndo,
    /// It is undone.
    Undo,
    /// There is nothing left to do.
    Nothing,
    /// The operation goes back.
    RollBack,
    /// The operation goes forward.
    RollForward,
    /// It is probed, and the finding decides the direction.
    ProbeDecides,
    /// It is applied.
    Apply,
    /// It is probed: done is recorded, not done is applied, lost ends the operation.
    ProbeThenApply,
    /// No run can have left this status.
    Illegal,
}

/// The table, cell by cell.
#[must_use]
pub fn decide(place: CommitSide, status: TransitionStatus) -> Decision {
    match (status, place) {
        (TransitionStatus::NeverStarted, CommitSide::Before) => Decision::Skip,
        (TransitionStatus::NeverStarted, CommitSide::Commit) => Decision::RollBack,
        (TransitionStatus::NeverStarted, CommitSide::After) => Decision::Apply,
        (TransitionStatus::IntentOnly, CommitSide::Before) => Decision::ProbeThenUndo,
        (TransitionStatus::IntentOnly, CommitSide::Commit) => Decision::ProbeDecides,
        (TransitionStatus::IntentOnly, CommitSide::After) => Decision::ProbeThenApply,
        (TransitionStatus::Done, CommitSide::Before) => Decision::Undo,
        (TransitionStatus::Done, CommitSide::Commit) => Decision::RollForward,
        (TransitionStatus::Done, CommitSide::After) => Decision::Nothing,
        (TransitionStatus::UndoBegun, CommitSide::Before) => Decision::Undo,
        (TransitionStatus::Undone, CommitSide::Before) => Decision::Nothing,
        (TransitionStatus::UndoBegun | TransitionStatus::Undone, CommitSide::Commit | CommitSide::After) => {
            Decision::Illegal
        }
    }
}

/// The direction of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To its end.
    Forward,
    /// To its beginning.
    Back,
    /// The direction that the commit point's probe decides.
    ProbeDecides,
}

/// The part of an operation's table that the planner needs: stages of transitions, and among them the commit point, which
/// is a stage of its own. If it shared a stage, it could be done while another transition of the stage is not, and no
/// direction would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableShape {
    stages: Vec<Vec<TransitionId>>,
    commit: usize,
}

impl TableShape {
    /// The shape of these stages, in order.
    #[must_use]
    pub fn new(before: Vec<Vec<TransitionId>>, commit: TransitionId, after: Vec<Vec<TransitionId>>) -> Self {
        let place = before.iter().map(Vec::len).sum();
        let stages = before.into_iter().chain([vec![commit]]).chain(after).collect();
        Self { stages, commit: place }
    }

    /// The shape of an operation; `None` if it has no commit point.
    #[must_use]
    pub fn of<W: ?Sized + Sync>(operation: &Operation<W>) -> Option<Self> {
        let (stage, commit) = operation.commit_stage()?;
        let ids =
            |stage: &Stage<W>| stage.transitions.iter().map(|transition| transition.spec().id).collect();
        let stages: Vec<_> = operation.stages().iter().map(ids).collect();
        Some(Self::new(stages[..stage].to_vec(), commit.spec().id, stages[stage + 1..].to_vec()))
    }

    /// The index of the commit point among all transitions.
    #[must_use]
    pub fn commit(&self) -> usize {
        self.commit
    }

    /// All transitions, in order.
    pub fn transitions(&self) -> impl Iterator<Item = TransitionId> {
        self.stages.iter().flatten().copied()
    }
}

/// A history that the operation's table cannot have led to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum NoPlan {
    #[error("the journal has transition {found:?} in place {index}, and this nixbox has {expected:?} there")]
    OtherTable { index: usize, expected: Option<TransitionId>, found: TransitionId },
    #[error("transition {index} was taken back, and nothing from the commit point on ever is")]
    BackPastCommit { index: usize },
    #[error("transition {index} began before transition {unfinished} of an earlier stage was done")]
    ForwardPastGap { index: usize, unfinished: usize },
}

/// What is to be done about an operation that did not end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryPlan {
    /// One decision for each transition, in order.
    pub decisions: Vec<Decision>,
    /// The direction.
    pub direction: Direction,
}

/// The plan for the statuses that a journal gives, in order.
///
/// # Errors
/// If no run of this table can have left them.
pub fn plan(shape: &TableShape, found: &[(TransitionId, TransitionStatus)]) -> Result<RecoveryPlan, NoPlan> {
    let table: Vec<TransitionId> = shape.transitions().collect();
    for (index, (id, status)) in found.iter().enumerate() {
        if *status != TransitionStatus::NeverStarted && table.get(index) != Some(id) {
            return Err(NoPlan::OtherTable { index, expected: table.get(index).copied(), found: *id });
        }
    }
    let status =
        |index: usize| found.get(index).map_or(TransitionStatus::NeverStarted, |(_, status)| *status);
    let decisions: Vec<_> =
        (0..table.len()).map(|index| decide(CommitSide::of(index, shape.commit), status(index))).collect();
    if let Some(index) = decisions.iter().position(|decision| *decision == Decision::Illegal) {
        return Err(NoPlan::BackPastCommit { index });
    }
    refuse_gaps(shape, status)?;
    let taken_back =
        |index: &usize| matches!(status(*index), TransitionStatus::UndoBegun | TransitionStatus::Undone);
    let direction = match (decisions.get(shape.commit), (0..shape.commit).find(taken_back)) {
        (Some(Decision::RollForward), Some(index)) => return Err(NoPlan::BackPastCommit { index }),
        (Some(Decision::RollForward), None) => Direction::Forward,
        (Some(Decision::ProbeDecides), None) => Direction::ProbeDecides,
        // Undoing has begun, so the commit point was probed before that, and found not done.
        _ => Direction::Back,
    };
    Ok(RecoveryPlan { decisions, direction })
}

/// A transition begins only when all stages before it are done, even if some of them have been undone since.
fn refuse_gaps(shape: &TableShape, status: impl Fn(usize) -> TransitionStatus) -> Result<(), NoPlan> {
    let mut unfinished = None;
    let mut first = 0;
    for stage in &shape.stages {
        let here = first..first + stage.len();
        let begun = here.clone().find(|index| status(*index) != TransitionStatus::NeverStarted);
        if let (Some(index), Some(unfinished)) = (begun, unfinished) {
            return Err(NoPlan::ForwardPastGap { index, unfinished });
        }
        let open = |index: &usize| {
            matches!(status(*index), TransitionStatus::NeverStarted | TransitionStatus::IntentOnly)
        };
        unfinished = unfinished.or(here.clone().find(open));
        first = here.end;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use TransitionStatus::{Done, IntentOnly, NeverStarted, UndoBegun, Undone};

    const STATUSES: [TransitionStatus; 5] = [NeverStarted, IntentOnly, Done, UndoBegun, Undone];

    /// The table of the module head, row by row.
    #[test]
    fn every_row_and_every_status() {
        use Decision::*;
        let table = [
            (NeverStarted, [Skip, RollBack, Apply]),
            (IntentOnly, [ProbeThenUndo, ProbeDecides, ProbeThenApply]),
            (Done, [Undo, RollForward, Nothing]),
            (UndoBegun, [Undo, Illegal, Illegal]),
            (Undone, [Nothing, Illegal, Illegal]),
        ];
        assert_eq!(table.map(|(status, _)| status), STATUSES);
        for (status, row) in table {
            let found = [CommitSide::Before, CommitSide::Commit, CommitSide::After]
                .map(|place| decide(place, status));
            assert_eq!(found, row, "{status:?}");
        }
        assert_eq!(
            [3, 4, 5].map(|index| CommitSide::of(index, 4)),
            [CommitSide::Before, CommitSide::Commit, CommitSide::After]
        );
    }

    /// Tables whose stages have so many transitions, and in which this stage is the commit point.
    const TABLES: [(&[usize], usize); 7] = [
        (&[1], 0),
        (&[1, 1], 0),
        (&[1, 2], 0),
        (&[1, 1], 1),
        (&[1, 1, 1, 1], 2),
        (&[2, 2, 1], 2),
        (&[2, 1, 1, 2], 2),
    ];

    fn shape(stages: &[usize], commit: usize) -> TableShape {
        let mut ids = (100..).map(TransitionId);
        let transitions = |size: &usize| ids.by_ref().take(*size).collect();
        let mut table: Vec<Vec<_>> = stages.iter().map(transitions).collect();
        let after = table.split_off(commit + 1);
        let point = table.pop().unwrap();
        assert_eq!(point.len(), 1, "the commit point stands alone");
        TableShape::new(table, point[0], after)
    }

    fn found(shape: &TableShape, statuses: &[TransitionStatus]) -> Vec<(TransitionId, TransitionStatus)> {
        shape.transitions().zip(statuses.iter().copied()).collect()
    }

    fn every_vector(size: usize) -> impl Iterator<Item = Vec<TransitionStatus>> {
        (0..5_usize.pow(size as u32)).map(move |mut number| {
            let mut digit = || {
                let status = STATUSES[number % 5];
                number /= 5;
                status
            };
            (0..size).map(|_| digit()).collect()
        })
    }

    /// Every vector that a run of this table, or a recovery of one, can leave after some record. It knows the rules of
    /// running (a stage after the other, outcomes in any order, back in reverse order and only before the commit point)
    /// and nothing of the planner.
    fn left_by_runs(shape: &TableShape) -> BTreeSet<Vec<TransitionStatus>> {
        let size: usize = shape.stages.iter().map(Vec::len).sum();
        let mut left = BTreeSet::from([vec![NeverStarted; size]]);
        let mut fresh: Vec<_> = left.iter().cloned().collect();
        while let Some(vector) = fresh.pop() {
            for next in next_of(shape, &vector) {
                if left.insert(next.clone()) {
                    fresh.push(next);
                }
            }
        }
        left
    }

    fn next_of(shape: &TableShape, vector: &[TransitionStatus]) -> Vec<Vec<TransitionStatus>> {
        let mut next = Vec::new();
        let mut to = |index: usize, status| {
            let mut changed = vector.to_vec();
            changed[index] = status;
            next.push(changed);
        };
        let back_begun = vector.iter().any(|status| matches!(status, UndoBegun | Undone));
        let mut first = 0;
        for stage in shape.stages.iter().filter(|_| !back_begun) {
            let here = first..first + stage.len();
            // Intents of a stage are one write, of which a crash keeps the beginning.
            if let Some(index) = here.clone().find(|index| vector[*index] == NeverStarted)
                && here.clone().all(|index| vector[index] != Done)
            {
                to(index, IntentOnly);
            }
            let begun = here.clone().all(|index| vector[index] != NeverStarted);
            for index in here.clone().filter(|index| begun && vector[*index] == IntentOnly) {
                to(index, Done);
            }
            first = here.end;
            if vector[here].iter().any(|status| *status != Done) {
                break;
            }
        }
        if vector[shape.commit] != Done {
            // Nothing after the commit point has begun. Back: the last one first.
            let last = (0..shape.commit).rev().find(|index| !matches!(vector[*index], NeverStarted | Undone));
            match last.map(|index| (index, vector[index])) {
                Some((index, UndoBegun)) => to(index, Undone),
                Some((index, _)) => to(index, UndoBegun),
                None => {}
            }
        }
        next
    }

    #[test]
    fn every_history_that_a_run_can_leave_has_a_plan_in_the_right_direction() {
        let mut vectors = 0;
        for (stages, commit) in TABLES {
            let shape = shape(stages, commit);
            for vector in left_by_runs(&shape) {
                vectors += 1;
                let plan = plan(&shape, &found(&shape, &vector)).unwrap();
                let back_begun = vector.iter().any(|status| matches!(status, UndoBegun | Undone));
                let direction = match vector[shape.commit] {
                    Done => Direction::Forward,
                    IntentOnly if !back_begun => Direction::ProbeDecides,
                    _ => Direction::Back,
                };
                assert_eq!(plan.direction, direction, "{stages:?}: {vector:?}");
                let before = &vector[..shape.commit];
                assert!(direction == Direction::Back || before.iter().all(|status| *status == Done));
                for (index, (decision, status)) in plan.decisions.iter().zip(&vector).enumerate() {
                    assert_eq!(*decision, decide(CommitSide::of(index, shape.commit), *status));
                }
                // A journal names no transition behind the last that has a record.
                let begun = vector.iter().rposition(|status| *status != NeverStarted);
                let short = found(&shape, &vector[..begun.map_or(0, |last| last + 1)]);
                assert_eq!(super::plan(&shape, &short), Ok(plan));
            }
        }
        assert!(vectors > 120, "{vectors} vectors");
    }

    #[test]
    fn every_history_has_a_plan_or_an_error_that_names_a_transition() {
        let (mut plans, mut errors) = (0, 0);
        for (stages, commit) in TABLES {
            let shape = shape(stages, commit);
            let size = stages.iter().sum();
            let stage_of: Vec<usize> =
                stages.iter().enumerate().flat_map(|(stage, size)| vec![stage; *size]).collect();
            let left = left_by_runs(&shape);
            for vector in every_vector(size) {
                let taken_back = |index: &usize| matches!(vector[*index], UndoBegun | Undone);
                let past_commit = (shape.commit..size).find(taken_back);
                let gap = (0..size).filter(|later| vector[*later] != NeverStarted).find_map(|later| {
                    let unfinished = (0..later).find(|earlier| {
                        stage_of[*earlier] < stage_of[later]
                            && matches!(vector[*earlier], NeverStarted | IntentOnly)
                    })?;
                    Some(NoPlan::ForwardPastGap { index: later, unfinished })
                });
                let committed = (0..shape.commit).find(taken_back).filter(|_| vector[shape.commit] == Done);
                let expected = past_commit
                    .map(|index| NoPlan::BackPastCommit { index })
                    .or(gap)
                    .or(committed.map(|index| NoPlan::BackPastCommit { index }));
                match (plan(&shape, &found(&shape, &vector)), expected) {
                    (Ok(_), None) => plans += 1,
                    (Err(error), Some(expected)) => {
                        errors += 1;
                        assert_eq!(error, expected, "{stages:?}: {vector:?}");
                        assert!(!left.contains(&vector), "{stages:?}: {vector:?}");
                    }
                    (planned, expected) => {
                        panic!("{stages:?}: {vector:?}: {planned:?}, not {expected:?}")
                    }
                }
            }
        }
        assert!(plans > 300 && errors > 10_000, "{plans} plans, {errors} errors");
    }

    /// A fuzzer found this input: in a table in which the commit point shared a stage, the commit point was done while
    /// the other transition had not begun, and the plan went forward past it.
    #[test]
    fn the_commit_point_is_a_stage_by_itself() {
        let [beside, commit, last] = [100, 101, 102].map(TransitionId);
        let shape = TableShape::new(vec![vec![beside]], commit, vec![vec![last]]);
        assert_eq!(shape.commit(), 1);
        assert_eq!(shape.transitions().collect::<Vec<_>>(), [beside, commit, last]);
        let found = [(beside, NeverStarted), (commit, Done)];
        assert_eq!(plan(&shape, &found), Err(NoPlan::ForwardPastGap { index: 1, unfinished: 0 }));
        for unfinished in [NeverStarted, IntentOnly] {
            let found = [(beside, unfinished), (commit, IntentOnly)];
            assert_eq!(plan(&shape, &found), Err(NoPlan::ForwardPastGap { index: 1, unfinished: 0 }));
        }
    }

    #[test]
    fn a_table_that_is_not_the_journals_is_named() {
        let shape = shape(&[1, 1, 1], 1);
        for index in 0..5 {
            let mut found = found(&shape, &[Done, Done, NeverStarted]);
            found.resize(5, (TransitionId(0), NeverStarted));
            found[index] = (TransitionId(7), Done);
            let error = NoPlan::OtherTable {
                index,
                expected: shape.stages.get(index).map(|stage| stage[0]),
                found: TransitionId(7),
            };
            assert_eq!(plan(&shape, &found), Err(error));
        }
    }
}
