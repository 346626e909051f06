//! The only loop that runs anything, for fresh runs and for recovery alike.
//!
//! ```text
//!  run ──► forward ────────────────────────────────► conclude: done
//!             │ failure                                  ▲
//!             ▼                                          │
//!  recover ► plan ──► commit point done ────► forward ───┤ (a second failure: conclude: lost, or stuck)
//!             │
//!             └─────► commit point not done ► back ─────► conclude: rolled back (a failed undo: stuck)
//! ```
//!
//! **Forward** runs the stages in order. In each stage all transitions prepare their intents, the intents are written
//! and synced at once, and then the transitions run at the same time. Each outcome is written as it comes. A transition
//! whose intent is in the journal already, from an earlier run, is probed first, and applied only if its work is not
//! done. When a transition fails, the others of its stage run to completion, and forward ends with the failure.
//!
//! **Plan** reads the status of every transition from the journal and asks the decision table what is to be done
//! ([`planner`]). The commit point decides the direction. If its outcome is not in the journal, it is probed: work that
//! was done leads forward, and anything else leads back. A probe that fails or cannot tell ends the run as stuck,
//! because either direction could be wrong.
//!
//! **Back** undoes transitions one by one, in reverse order. A transition with an intent and no outcome is probed first:
//! an undo works either way, but a probe that cannot tell what happened means that undoing could destroy something. An
//! undo that fails ends the run as stuck. The next run tries again, beginning with the undo that failed.
//!
//! **A failure after the commit point** leads to a second forward, because the world may have done what it did not
//! report. If that fails too, the operation ends as lost and its VM is cleared away; or it is stuck, if the operation
//! is itself one that clears away ([`AfterCommit`]). There is no second forward if the VM is gone, or if the failure is
//! that a person's time limit is over.
//!
//! **Conclude** determines the final state of the workspace and writes the end of the operation. If the state cannot be
//! determined, the run is stuck and the operation stays open.
//!
//! **A person's interrupt** is a failure like any other up to the commit point, and is ignored after it and on the way
//! back. **A crash** needs nothing here: what was synced is in the journal, and [`Executor::recover`] goes on from it.
//! **An error of the journal** ends the run at once with an [`EngineError`], because nothing may act whose intent is not
//! on the medium; it is treated like a crash. Every call of a transition has the time limit that its
//! [`TransitionSpec`](super::transition::TransitionSpec) gives, and a call that exceeds it has failed.

mod event;

pub use event::{Ending, EngineError, Event, Observer, TransitionFailure, Unobserved};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tracing::{Instrument as _, debug_span};

use super::history::{OpenOperation, TransitionStatus};
use super::journal::{Journal, Storage};
use super::planner::{self, Decision, Direction, RecoveryPlan, TableShape};
use super::record::Ended;
use super::transition::{
    AfterCommit, Context, ErasedTransition, Failure, Interrupt, Operation, Probe, TransitionId, UndoPolicy,
    within,
};

/// How long it may take to determine the final state of a workspace.
const CONCLUDE_LIMIT: Duration = Duration::from_secs(30);

/// Runs operations on a world, and writes a journal of it.
pub struct Executor<'a, W: ?Sized, S> {
    /// What is changed.
    pub world: &'a W,
    /// Where it is written down first.
    pub journal: &'a mut Journal<S>,
    /// A person's request to stop. It is ignored after the commit point.
    pub interrupt: Interrupt,
    /// Milliseconds since 1970, UTC, for the journal's readers. Nothing is decided by it.
    pub unix_ms: Box<dyn Fn() -> u64 + Send + Sync + 'a>,
    /// Sees what happens.
    pub observer: &'a dyn Observer,
}

/// Why forward or back did not get to its end.
enum Halt {
    /// A transition failed.
    Failed(TransitionFailure),
    /// Whether a transition was done cannot be determined.
    CannotTell(TransitionFailure),
    Engine(EngineError),
}

impl Halt {
    fn severity(&self) -> u8 {
        match self {
            Self::Failed(_) => 0,
            Self::CannotTell(_) => 1,
            Self::Engine(_) => 2,
        }
    }
}

impl<E: Into<EngineError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Engine(error.into())
    }
}

/// A transition that is to run in a stage, and whether it is probed first.
struct Pending<'o, W: ?Sized> {
    index: u16,
    transition: &'o dyn ErasedTransition<W>,
    intent: Vec<u8>,
    probe_first: bool,
}

impl<'w, W: ?Sized + Sync, S: Storage> Executor<'w, W, S> {
    /// Runs an operation from its beginning.
    ///
    /// # Errors
    /// If the journal failed. The operation is then left as it is, for the next run.
    pub async fn run(&mut self, operation: &Operation<W>, parameters: &[u8]) -> Result<Ending, EngineError> {
        let (shape, commit) = shape(operation)?;
        let generation = self.journal.begin(operation.id, parameters, (self.unix_ms)())?;
        self.observer.event(Event::Begun {
            operation: operation.label,
            commit: commit.spec().label,
            generation,
            recovery: false,
        });
        let fresh = vec![Decision::Apply; shape.transitions().count()];
        ending(match self.forward(operation, &shape, &fresh).await {
            Ok(()) => self.conclude(operation, Ended::Done, None).await,
            Err(Halt::Failed(failure)) => self.resolve(operation, &shape, commit, Some(failure)).await,
            Err(halt) => Err(halt),
        })
    }

    /// Takes up the operation that is open in the journal, and brings it to an end.
    ///
    /// # Errors
    /// If the journal failed, or does not fit `operation`.
    pub async fn recover(&mut self, operation: &Operation<W>) -> Result<Ending, EngineError> {
        let (shape, commit) = shape(operation)?;
        let generation = self.journal.open_operation().ok_or(EngineError::NothingOpen)?.generation;
        self.observer.event(Event::Begun {
            operation: operation.label,
            commit: commit.spec().label,
            generation,
            recovery: true,
        });
        ending(self.resolve(operation, &shape, commit, None).await)
    }

    /// Does what the decision table says, until the operation has ended.
    async fn resolve(
        &mut self,
        operation: &Operation<W>,
        shape: &TableShape,
        commit: &dyn ErasedTransition<W>,
        mut failure: Option<TransitionFailure>,
    ) -> Result<Ending, Halt> {
        // A run that failed after its commit point is here for its second forward. A recovery has not tried any yet.
        let mut again = failure.is_none() || self.status(shape.commit()) != TransitionStatus::Done;
        loop {
            let RecoveryPlan { decisions, mut direction } = planner::plan(shape, &self.found())?;
            if direction == Direction::ProbeDecides {
                direction = self.probe_commit_point(commit, shape.commit()).await?;
            }
            self.observer.event(Event::Turned(direction));
            if direction != Direction::Forward {
                self.back(operation, &decisions).await?;
                return self.conclude(operation, Ended::RolledBack, failure).await;
            }
            let failed = match failure.take() {
                // A person's time limit was over after the commit point.
                Some(failed) if !again && matches!(failed.failure, Failure::WaitedOut(_)) => failed,
                _ => match self.forward(operation, shape, &decisions).await {
                    Ok(()) => return self.conclude(operation, Ended::Done, None).await,
                    Err(Halt::Failed(failed)) => failed,
                    Err(halt) => return Err(halt),
                },
            };
            match operation.after_commit {
                _ if again && !matches!(failed.failure, Failure::Lost | Failure::WaitedOut(_)) => {
                    again = false
                }
                AfterCommit::ClearAway => return self.conclude(operation, Ended::Lost, Some(failed)).await,
                AfterCommit::Stuck => return Ok(Ending::Stuck(failed)),
            }
            failure = Some(failed);
        }
    }

    fn found(&self) -> Vec<(TransitionId, TransitionStatus)> {
        self.journal
            .open_operation()
            .map(|open| open.entries().iter().map(|entry| (entry.id, entry.status)).collect())
            .unwrap_or_default()
    }

    async fn probe_commit_point(
        &mut self,
        transition: &dyn ErasedTransition<W>,
        index: usize,
    ) -> Result<Direction, Halt> {
        let context = self.context(Interrupt::new());
        let Some(outcome) = must_tell(&context, transition, &self.intent(index)).await? else {
            return Ok(Direction::Back);
        };
        self.journal.outcome(place(index), &outcome, 0)?;
        self.journal.sync()?;
        self.observer.event(Event::Done { label: transition.spec().label, took: None });
        Ok(Direction::Forward)
    }

    /// Runs every stage, in order, as far as `decisions` ask for it.
    async fn forward(
        &mut self,
        operation: &Operation<W>,
        shape: &TableShape,
        decisions: &[Decision],
    ) -> Result<(), Halt> {
        let mut first = 0;
        for stage in operation.stages() {
            let heeded = first <= shape.commit();
            let interrupt = if heeded { self.interrupt.clone() } else { Interrupt::new() };
            let wanted: Vec<_> = (first..)
                .zip(&stage.transitions)
                .filter(|(index, _)| matches!(decisions[*index], Decision::Apply | Decision::ProbeThenApply))
                .map(|(index, transition)| (index, transition.as_ref()))
                .collect();
            first += stage.transitions.len();
            if wanted.is_empty() {
                continue;
            }
            if interrupt.requested() {
                return Err(Halt::Failed(TransitionFailure {
                    label: stage.label,
                    failure: Failure::Interrupted,
                }));
            }
            self.observer.event(Event::Stage(stage.label));
            let context = self.context(interrupt);
            let calls = self.prepare(&context, wanted).await?;
            self.apply(&context, calls, shape.commit()).await?;
        }
        Ok(())
    }

    /// Prepares every intent of a stage, writes those that are new, and syncs once.
    async fn prepare<'o>(
        &mut self,
        context: &Context<'_, W>,
        wanted: Vec<(usize, &'o dyn ErasedTransition<W>)>,
    ) -> Result<Vec<Pending<'o, W>>, Halt> {
        let mut calls = Vec::with_capacity(wanted.len());
        let mut intents = Vec::with_capacity(wanted.len());
        for (index, transition) in wanted {
            let probe_first = self.status(index) != TransitionStatus::NeverStarted;
            let intent = if probe_first {
                self.intent(index)
            } else {
                let intent = within(transition.spec().limit, transition.prepare(context))
                    .await
                    .map_err(|failure| self.failed(transition, failure))?;
                intents.push((place(index), transition.spec().id, intent.clone()));
                intent
            };
            calls.push(Pending { index: place(index), transition, intent, probe_first });
        }
        if !intents.is_empty() {
            self.journal.intents(&intents)?;
        }
        Ok(calls)
    }

    /// Runs a stage's transitions at the same time, and writes each outcome as it comes.
    async fn apply(
        &mut self,
        context: &Context<'_, W>,
        calls: Vec<Pending<'_, W>>,
        commit: usize,
    ) -> Result<(), Halt> {
        let mut running: FuturesUnordered<_> = calls.iter().map(|call| carry_out(context, call)).collect();
        calls.iter().for_each(|call| self.observer.event(Event::Acts(call.transition.spec().label)));
        let mut halt = None;
        while let Some((call, result)) = running.next().await {
            let recorded = match result {
                Ok((outcome, took)) => self.record(call, &outcome, took, usize::from(call.index) == commit),
                Err(Halt::Failed(failure)) => Err(self.report(failure)),
                Err(halt) => Err(halt),
            };
            // The most severe failure is reported, and the first of equals. The stage's other transitions still run to
            // completion.
            if let Err(new) = recorded {
                halt = match halt {
                    Some(old) if Halt::severity(&old) >= Halt::severity(&new) => Some(old),
                    _ => Some(new),
                };
            }
        }
        halt.map_or(Ok(()), Err)
    }

    fn record(
        &mut self,
        call: &Pending<'_, W>,
        outcome: &[u8],
        took: Option<Duration>,
        commit: bool,
    ) -> Result<(), Halt> {
        self.journal.outcome(call.index, outcome, took.map_or(0, micros))?;
        if commit {
            self.journal.sync()?;
        }
        self.observer.event(Event::Done { label: call.transition.spec().label, took });
        Ok(())
    }

    /// Undoes, in reverse order, all that `decisions` ask for.
    async fn back(&mut self, operation: &Operation<W>, decisions: &[Decision]) -> Result<(), Halt> {
        let transitions: Vec<_> = operation.transitions().collect();
        let context = self.context(Interrupt::new());
        for (index, (transition, decision)) in transitions.into_iter().zip(decisions).enumerate().rev() {
            match decision {
                Decision::ProbeThenUndo if transition.spec().undo == UndoPolicy::Undoable => {
                    must_tell(&context, transition, &self.intent(index)).await?;
                }
                Decision::ProbeThenUndo | Decision::Undo => {}
                _ => continue,
            }
            self.undo(&context, transition, index).await?;
        }
        Ok(())
    }

    async fn undo(
        &mut self,
        context: &Context<'_, W>,
        transition: &dyn ErasedTransition<W>,
        index: usize,
    ) -> Result<(), Halt> {
        if self.status(index) != TransitionStatus::UndoBegun {
            self.journal.undo_begun(place(index))?;
        }
        let begun = Instant::now();
        let undoable = transition.spec().undo == UndoPolicy::Undoable;
        if undoable {
            self.observer.event(Event::Undoes(transition.spec().label));
            let intent = self.intent(index);
            let span = debug_span!("undo", transition = transition.spec().label);
            match within(transition.spec().limit, transition.undo(context, &intent)).instrument(span).await {
                Ok(()) | Err(Failure::Lost) => {}
                Err(failure) => return Err(self.failed(transition, failure)),
            }
        }
        self.journal.undone(place(index), micros(begun.elapsed()))?;
        if undoable {
            self.observer.event(Event::Undone(transition.spec().label));
        }
        Ok(())
    }

    async fn conclude(
        &mut self,
        operation: &Operation<W>,
        ended: Ended,
        failure: Option<TransitionFailure>,
    ) -> Result<Ending, Halt> {
        let context = self.context(Interrupt::new());
        let final_state = match within(CONCLUDE_LIMIT, operation.conclude(context, ended)).await {
            Ok(final_state) => final_state,
            Err(failure) => {
                return Ok(Ending::Stuck(TransitionFailure {
                    label: "determining the final state",
                    failure,
                }));
            }
        };
        self.journal.end(ended, &final_state, (self.unix_ms)())?;
        self.observer.event(Event::Ended(ended));
        Ok(match (ended, failure) {
            (Ended::Done, _) => Ending::Done,
            (Ended::RolledBack, failure) => Ending::RolledBack(failure),
            (Ended::Lost, Some(failure)) => Ending::Lost(failure),
            (Ended::Lost, None) => {
                Ending::Lost(TransitionFailure { label: operation.label, failure: Failure::Lost })
            }
        })
    }

    fn context(&self, interrupt: Interrupt) -> Context<'w, W> {
        let open = self.journal.open_operation();
        let done = |open: &OpenOperation| -> BTreeMap<TransitionId, Vec<u8>> {
            let done = open.entries().iter().filter(|entry| entry.status == TransitionStatus::Done);
            done.map(|entry| (entry.id, entry.outcome.clone())).collect()
        };
        let generation = open.map(|open| open.generation).unwrap_or_default();
        Context::new(self.world, generation, interrupt, Arc::new(open.map(done).unwrap_or_default()))
    }

    fn status(&self, index: usize) -> TransitionStatus {
        self.journal.open_operation().map_or(TransitionStatus::NeverStarted, |open| open.entry(index).status)
    }

    fn intent(&self, index: usize) -> Vec<u8> {
        self.journal.open_operation().map(|open| open.entry(index).intent.clone()).unwrap_or_default()
    }

    fn failed(&self, transition: &dyn ErasedTransition<W>, failure: Failure) -> Halt {
        self.report(TransitionFailure { label: transition.spec().label, failure })
    }

    fn report(&self, failure: TransitionFailure) -> Halt {
        self.observer.failure(&failure);
        self.observer.event(Event::Failed(failure.label));
        Halt::Failed(failure)
    }
}

async fn carry_out<'c, 'o, W: ?Sized + Sync>(
    context: &Context<'_, W>,
    call: &'c Pending<'o, W>,
) -> (&'c Pending<'o, W>, Result<(Vec<u8>, Option<Duration>), Halt>) {
    let transition = call.transition;
    let failed = |failure| Halt::Failed(TransitionFailure { label: transition.spec().label, failure });
    if call.probe_first {
        let span = debug_span!("probe", transition = transition.spec().label);
        match within(transition.spec().limit, transition.probe(context, &call.intent)).instrument(span).await
        {
            Ok(Probe::Done(outcome)) => return (call, Ok((outcome, None))),
            Ok(Probe::NotDone) => {}
            Ok(Probe::Lost) => return (call, Err(failed(Failure::Lost))),
            Ok(Probe::CannotTell(why)) => return (call, Err(cannot_tell(transition, Failure::world(why)))),
            Err(failure) => return (call, Err(failed(failure))),
        }
    }
    let begun = Instant::now();
    let span = debug_span!("apply", transition = transition.spec().label);
    let result =
        within(transition.spec().limit, transition.apply(context, &call.intent)).instrument(span).await;
    (call, result.map(|outcome| (outcome, Some(begun.elapsed()))).map_err(failed))
}

/// The outcome that a probe finds, or `None` if there is none to be found. A probe that fails is as bad as one that
/// cannot tell: the direction depends on it.
async fn must_tell<W: ?Sized + Sync>(
    context: &Context<'_, W>,
    transition: &dyn ErasedTransition<W>,
    intent: &[u8],
) -> Result<Option<Vec<u8>>, Halt> {
    match within(transition.spec().limit, transition.probe(context, intent)).await {
        Ok(Probe::Done(outcome)) => Ok(Some(outcome)),
        Ok(Probe::NotDone | Probe::Lost) => Ok(None),
        Ok(Probe::CannotTell(why)) => Err(cannot_tell(transition, Failure::world(why))),
        Err(failure) => Err(cannot_tell(transition, failure)),
    }
}

fn cannot_tell<W: ?Sized>(transition: &dyn ErasedTransition<W>, failure: Failure) -> Halt {
    Halt::CannotTell(TransitionFailure { label: transition.spec().label, failure })
}

/// A run that did not get to its end is stuck, unless the journal failed.
fn ending(result: Result<Ending, Halt>) -> Result<Ending, EngineError> {
    match result {
        Ok(ending) => Ok(ending),
        Err(Halt::Failed(failure) | Halt::CannotTell(failure)) => Ok(Ending::Stuck(failure)),
        Err(Halt::Engine(error)) => Err(error),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The shape of a table, for the planner, and its commit point.
fn shape<W: ?Sized + Sync>(
    operation: &Operation<W>,
) -> Result<(TableShape, &dyn ErasedTransition<W>), EngineError> {
    let shape = TableShape::of(operation).ok_or(EngineError::NoCommitPoint)?;
    let (_, commit) = operation.commit_stage().ok_or(EngineError::NoCommitPoint)?;
    Ok((shape, commit))
}

/// An index as a record holds it. A test holds every table below `MAX_TRANSITIONS`, which is far below the limit.
fn place(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}
