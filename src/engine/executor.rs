//! The only loop that runs anything, for fresh runs and for recovery alike.
//!
//! ```text
//!  run ──► forward ──────────────────────────────► conclude: done
//!             │ setback                                ▲
//!             ▼                                        │
//!  recover ► plan ──► commit point done ──► forward ───┤ (a second setback: conclude: lost, or stuck)
//!             │
//!             └─────► commit point not done ► back ───► conclude: rolled back (a failed undo: stuck)
//! ```
//!
//! A stage: prepare all, write all intents, sync once, then run them at the same time and write each outcome as it
//! comes. A transition that fails lets its stage-mates end. Every call of a transition has its time limit.

mod event;

pub use event::{Ending, EngineError, Event, Observer, TransitionFailure, Unobserved};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::history::{OpenOperation, TransitionStatus};
use super::journal::{Journal, Storage};
use super::planner::{self, Decision, Direction, RecoveryPlan, TableShape};
use super::record::Ended;
use super::transition::{
    AfterCommit, Context, ErasedTransition, Failure, Interrupt, Operation, Probe, TransitionId, UndoPolicy,
    within,
};

/// How long it may take to look how a workspace stands at the end of an operation.
const CONCLUDE_LIMIT: Duration = Duration::from_secs(30);

/// Runs operations on a world, and writes a journal of it.
pub struct Executor<'a, W: ?Sized, S> {
    /// What is changed.
    pub world: &'a W,
    /// Where it is written down first.
    pub journal: &'a mut Journal<S>,
    /// A person's wish to stop. Heeded before the commit point.
    pub interrupt: Interrupt,
    /// Milliseconds since 1970, UTC, for the journal's readers. Nothing is decided by it.
    pub unix_ms: Box<dyn Fn() -> u64 + Send + Sync + 'a>,
    /// Who sees what happens.
    pub observer: &'a dyn Observer,
}

enum Halt {
    /// A transition failed.
    Failed(TransitionFailure),
    /// It cannot be told whether something was done.
    CannotTell(TransitionFailure),
    Engine(EngineError),
}

impl Halt {
    fn gravity(&self) -> u8 {
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

/// A transition that is to run in a stage, and whether it is looked at first.
struct Call<'o, W: ?Sized> {
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
            commit: commit.label(),
            generation,
            recovery: false,
        });
        let fresh = vec![Decision::Apply; shape.transitions().count()];
        match self.forward(operation, &shape, &fresh).await {
            Ok(()) => self.conclude(operation, Ended::Done, None).await,
            Err(Halt::Failed(failure)) => self.resolve(operation, &shape, commit, Some(failure)).await,
            Err(Halt::CannotTell(failure)) => Ok(Ending::Stuck(failure)),
            Err(Halt::Engine(error)) => Err(error),
        }
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
            commit: commit.label(),
            generation,
            recovery: true,
        });
        self.resolve(operation, &shape, commit, None).await
    }

    /// The decision table, carried out.
    async fn resolve(
        &mut self,
        operation: &Operation<W>,
        shape: &TableShape,
        commit: &dyn ErasedTransition<W>,
        mut failure: Option<TransitionFailure>,
    ) -> Result<Ending, EngineError> {
        // A run whose commit point is done comes here to look again; a recovery has not looked yet.
        let mut again = failure.is_none() || self.status(shape.commit()) != TransitionStatus::Done;
        loop {
            let RecoveryPlan { decisions, mut direction } = planner::plan(shape, &self.found())?;
            if direction == Direction::ProbeDecides {
                direction = match self.probe_commit_point(commit, shape.commit()).await {
                    Ok(direction) => direction,
                    Err(Halt::Failed(blind) | Halt::CannotTell(blind)) => {
                        return Ok(Ending::Stuck(blind));
                    }
                    Err(Halt::Engine(error)) => return Err(error),
                };
            }
            self.observer.event(Event::Turned(direction));
            if direction != Direction::Forward {
                return match self.back(operation, &decisions).await {
                    Ok(()) => self.conclude(operation, Ended::RolledBack, failure).await,
                    Err(Halt::Failed(stuck) | Halt::CannotTell(stuck)) => Ok(Ending::Stuck(stuck)),
                    Err(Halt::Engine(error)) => Err(error),
                };
            }
            match self.forward(operation, shape, &decisions).await {
                Ok(()) => return self.conclude(operation, Ended::Done, None).await,
                Err(Halt::Engine(error)) => return Err(error),
                Err(Halt::CannotTell(stuck)) => return Ok(Ending::Stuck(stuck)),
                Err(Halt::Failed(failed)) => {
                    let lost = matches!(failed.failure, Failure::Lost);
                    match operation.forward {
                        // The world may have done what it did not say.
                        _ if again && !lost => again = false,
                        AfterCommit::ClearAway => {
                            return self.conclude(operation, Ended::Lost, Some(failed)).await;
                        }
                        AfterCommit::Stuck => return Ok(Ending::Stuck(failed)),
                    }
                    failure = Some(failed);
                }
            }
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
        let intent = self.intent(index);
        match within(transition.limit(), transition.probe(&context, &intent)).await {
            Ok(Probe::Done(outcome)) => {
                self.journal.outcome(place(index), &outcome, 0)?;
                self.journal.sync()?;
                self.observer.event(Event::Done { label: transition.label(), took: None });
                Ok(Direction::Forward)
            }
            // Gone with its VM before it was known to be done: there is nothing to go forward to.
            Ok(Probe::NotDone | Probe::Lost) => Ok(Direction::Back),
            Ok(Probe::CannotTell(why)) => Err(blind(transition, why)),
            Err(failure) => Err(Halt::CannotTell(TransitionFailure { label: transition.label(), failure })),
        }
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

    /// Decides on every intent of a stage, writes those that are new, and syncs once.
    async fn prepare<'o>(
        &mut self,
        context: &Context<'_, W>,
        wanted: Vec<(usize, &'o dyn ErasedTransition<W>)>,
    ) -> Result<Vec<Call<'o, W>>, Halt> {
        let mut calls = Vec::with_capacity(wanted.len());
        let mut intents = Vec::with_capacity(wanted.len());
        for (index, transition) in wanted {
            let probe_first = self.status(index) != TransitionStatus::NeverStarted;
            let intent = if probe_first {
                self.intent(index)
            } else {
                let intent = within(transition.limit(), transition.prepare(context))
                    .await
                    .map_err(|failure| self.failed(transition, failure))?;
                intents.push((place(index), transition.id(), intent.clone()));
                intent
            };
            calls.push(Call { index: place(index), transition, intent, probe_first });
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
        calls: Vec<Call<'_, W>>,
        commit: usize,
    ) -> Result<(), Halt> {
        let mut running: FuturesUnordered<_> = calls.iter().map(|call| carry_out(context, call)).collect();
        calls.iter().for_each(|call| self.observer.event(Event::Acts(call.transition.label())));
        let mut halt = None;
        while let Some((call, result)) = running.next().await {
            let recorded = match result {
                Ok((outcome, took)) => self.record(call, &outcome, took, usize::from(call.index) == commit),
                Err(Halt::Failed(failure)) => Err(self.report(failure)),
                Err(halt) => Err(halt),
            };
            // The gravest failure is the one to tell, and of equals the first; its stage-mates end all the same.
            if let Err(new) = recorded {
                halt = match halt {
                    Some(old) if Halt::gravity(&old) >= Halt::gravity(&new) => Some(old),
                    _ => Some(new),
                };
            }
        }
        halt.map_or(Ok(()), Err)
    }

    fn record(
        &mut self,
        call: &Call<'_, W>,
        outcome: &[u8],
        took: Option<Duration>,
        commit: bool,
    ) -> Result<(), Halt> {
        let micros = took.map_or(0, |took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.journal.outcome(call.index, outcome, micros)?;
        if commit {
            self.journal.sync()?;
        }
        self.observer.event(Event::Done { label: call.transition.label(), took });
        Ok(())
    }

    /// Takes back, in reverse order, all that `decisions` ask for.
    async fn back(&mut self, operation: &Operation<W>, decisions: &[Decision]) -> Result<(), Halt> {
        let transitions: Vec<_> = operation.transitions().collect();
        let context = self.context(Interrupt::new());
        for (index, (transition, decision)) in transitions.into_iter().zip(decisions).enumerate().rev() {
            match decision {
                Decision::ProbeThenUndo => self.look_before_undo(&context, transition, index).await?,
                Decision::Undo => {}
                _ => continue,
            }
            self.undo(&context, transition, index).await?;
        }
        Ok(())
    }

    async fn look_before_undo(
        &mut self,
        context: &Context<'_, W>,
        transition: &dyn ErasedTransition<W>,
        index: usize,
    ) -> Result<(), Halt> {
        if transition.policy() != UndoPolicy::Undoable {
            return Ok(());
        }
        let intent = self.intent(index);
        match within(transition.limit(), transition.probe(context, &intent)).await {
            Ok(Probe::Done(_) | Probe::NotDone | Probe::Lost) => Ok(()),
            Ok(Probe::CannotTell(why)) => Err(blind(transition, why)),
            Err(failure) => Err(Halt::CannotTell(TransitionFailure { label: transition.label(), failure })),
        }
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
        if transition.policy() == UndoPolicy::Undoable {
            self.observer.event(Event::Undoes(transition.label()));
            let intent = self.intent(index);
            match within(transition.limit(), transition.undo(context, &intent)).await {
                Ok(()) | Err(Failure::Lost) => {}
                Err(failure) => return Err(self.failed(transition, failure)),
            }
        }
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.journal.undone(place(index), micros)?;
        if transition.policy() == UndoPolicy::Undoable {
            self.observer.event(Event::Undone(transition.label()));
        }
        Ok(())
    }

    async fn conclude(
        &mut self,
        operation: &Operation<W>,
        ended: Ended,
        failure: Option<TransitionFailure>,
    ) -> Result<Ending, EngineError> {
        let context = self.context(Interrupt::new());
        let final_state = match within(CONCLUDE_LIMIT, operation.conclude(context, ended)).await {
            Ok(final_state) => final_state,
            Err(failure) => {
                return Ok(Ending::Stuck(TransitionFailure { label: "look how it stands", failure }));
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
        self.report(TransitionFailure { label: transition.label(), failure })
    }

    fn report(&self, failure: TransitionFailure) -> Halt {
        self.observer.failure(&failure);
        self.observer.event(Event::Failed(failure.label));
        Halt::Failed(failure)
    }
}

async fn carry_out<'c, 'o, W: ?Sized + Sync>(
    context: &Context<'_, W>,
    call: &'c Call<'o, W>,
) -> (&'c Call<'o, W>, Result<(Vec<u8>, Option<Duration>), Halt>) {
    let transition = call.transition;
    let failed = |failure| Halt::Failed(TransitionFailure { label: transition.label(), failure });
    if call.probe_first {
        match within(transition.limit(), transition.probe(context, &call.intent)).await {
            Ok(Probe::Done(outcome)) => return (call, Ok((outcome, None))),
            Ok(Probe::NotDone) => {}
            Ok(Probe::Lost) => return (call, Err(failed(Failure::Lost))),
            Ok(Probe::CannotTell(why)) => return (call, Err(blind(transition, why))),
            Err(failure) => return (call, Err(failed(failure))),
        }
    }
    let begun = Instant::now();
    let result = within(transition.limit(), transition.apply(context, &call.intent)).await;
    (call, result.map(|outcome| (outcome, Some(begun.elapsed()))).map_err(failed))
}

fn blind<W: ?Sized>(transition: &dyn ErasedTransition<W>, why: String) -> Halt {
    Halt::CannotTell(TransitionFailure { label: transition.label(), failure: Failure::world(why) })
}

/// What the planner has to know of a table, and its commit point.
fn shape<W: ?Sized + Sync>(
    operation: &Operation<W>,
) -> Result<(TableShape, &dyn ErasedTransition<W>), EngineError> {
    let shape = TableShape::of(operation).ok_or(EngineError::NoCommitPoint)?;
    let (_, commit) = operation.commit_stage().ok_or(EngineError::NoCommitPoint)?;
    Ok((shape, commit))
}

/// A place as it stands in a record. Tables are short: a test holds every one of them below `MAX_TRANSITIONS`.
fn place(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}
