//! What the engine runs: transitions, the stages that they are in, and operations, which are tables of stages.
//!
//! A [`Transition`] is written once, with types of its own; [`Operation`] holds it behind [`ErasedTransition`], where intents and
//! outcomes are bytes. Nothing here acts or does I/O.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

pub use super::ids::{Generation, OperationId, TransitionId};
use super::record::{self, Ended};

/// How a transition is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UndoPolicy {
    /// By its `undo`.
    Undoable,
    /// There is nothing to undo, for this reason.
    Nothing(&'static str),
    /// It must never be undone, for this reason: the commit point, and everything after it.
    Forbidden(&'static str),
}

/// The facts of a transition, which its table, the journal and a person know it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransitionSpec {
    /// Its id on disk.
    pub id: TransitionId,
    /// Its name for people.
    pub label: &'static str,
    /// How it is undone.
    pub undo: UndoPolicy,
    /// How long `prepare`, `probe`, `apply` and `undo` may each take.
    pub limit: Duration,
}

impl TransitionSpec {
    /// A transition with an undo.
    #[must_use]
    pub const fn undoable(id: TransitionId, label: &'static str, limit: Duration) -> Self {
        Self { id, label, undo: UndoPolicy::Undoable, limit }
    }

    /// A transition with nothing to undo, for this reason.
    #[must_use]
    pub const fn nothing_to_undo(
        id: TransitionId,
        label: &'static str,
        why: &'static str,
        limit: Duration,
    ) -> Self {
        Self { id, label, undo: UndoPolicy::Nothing(why), limit }
    }

    /// A transition that must not be undone, for this reason.
    #[must_use]
    pub const fn never_undone(
        id: TransitionId,
        label: &'static str,
        why: &'static str,
        limit: Duration,
    ) -> Self {
        Self { id, label, undo: UndoPolicy::Forbidden(why), limit }
    }
}

/// What a probe found of an intent whose outcome is not in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe<O> {
    /// It was done, with this outcome.
    Done(O),
    /// It was not done, or not completely: `apply` has to run, or to run again.
    NotDone,
    /// The VM that it acts on is gone.
    Lost,
    /// Whether it was done cannot be determined, and a person is needed. The text says what was seen.
    CannotTell(String),
}

/// Why a transition failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A person asked to stop, and it stopped.
    #[error("interrupted")]
    Interrupted,
    /// No answer within the transition's time limit.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The VM that it acts on is gone.
    #[error("the VM is gone")]
    Lost,
    /// The layer below waited for as long as a person allows. It is not tried again, because that would only be a second
    /// wait of the same length.
    #[error(transparent)]
    WaitedOut(Box<dyn std::error::Error + Send + Sync>),
    /// An intent or outcome does not fit into a record, or does not decode as the transition's type.
    #[error(transparent)]
    Payload(#[from] record::PayloadError),
    /// A transition asked for the outcome of a transition that has none in this operation.
    #[error("the outcome of transition {0:?} is not known at this place")]
    NoOutcome(TransitionId),
    /// The layer below failed.
    #[error(transparent)]
    World(Box<dyn std::error::Error + Send + Sync>),
}

impl Failure {
    /// The failure for an error of the layer below.
    pub fn world(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::World(error.into())
    }
}

/// The answer of `call`, or [`Failure::TimedOut`] if there is none within `limit`.
///
/// # Errors
/// Those of `call`, and [`Failure::TimedOut`].
pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout(limit, call).await.unwrap_or(Err(Failure::TimedOut(limit)))
}

/// A person's request to stop, seen by everything that takes long. Clones share the request.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(CancellationToken);

impl Interrupt {
    /// An interrupt that nobody has requested.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests the stop. A second request changes nothing.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// Whether the stop was requested.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Resolves when the stop is requested.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }

    /// For loops that copy: call it at least every 100 ms.
    ///
    /// # Errors
    /// [`Failure::Interrupted`] once the stop was requested.
    pub fn check(&self) -> Result<(), Failure> {
        if self.requested() { Err(Failure::Interrupted) } else { Ok(()) }
    }

    /// An interrupt that is requested when this one is, and can be requested alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Requests this interrupt when dropped: work on another thread ends with the future that waited for it.
    #[must_use]
    pub fn on_drop(&self) -> impl Drop + Send + use<> {
        self.0.clone().drop_guard()
    }
}

/// What a transition is given: the world, the operation's generation, earlier outcomes, and the request to stop.
pub struct Context<'a, W: ?Sized> {
    /// The world to act on.
    pub world: &'a W,
    /// The generation of this operation.
    pub generation: Generation,
    /// To be checked by everything that takes long. Never requested while an undo runs or after the commit point.
    pub interrupt: Interrupt,
    outcomes: Arc<BTreeMap<TransitionId, Vec<u8>>>,
}

impl<'a, W: ?Sized> Context<'a, W> {
    pub(super) fn new(
        world: &'a W,
        generation: Generation,
        interrupt: Interrupt,
        outcomes: Arc<BTreeMap<TransitionId, Vec<u8>>>,
    ) -> Self {
        Self { world, generation, interrupt, outcomes }
    }

    /// The outcome of a transition of an earlier stage.
    ///
    /// # Errors
    /// [`Failure::NoOutcome`] if it has none, [`Failure::Payload`] if it is not a `T`.
    pub fn outcome<T: DeserializeOwned>(&self, id: TransitionId) -> Result<T, Failure> {
        let bytes = self.outcomes.get(&id).ok_or(Failure::NoOutcome(id))?;
        Ok(record::decode_payload(bytes)?)
    }
}

impl<W: ?Sized> Clone for Context<'_, W> {
    fn clone(&self) -> Self {
        Self {
            world: self.world,
            generation: self.generation,
            interrupt: self.interrupt.clone(),
            outcomes: Arc::clone(&self.outcomes),
        }
    }
}

/// One journaled change of the world `W`.
///
/// `apply` and `undo` are idempotent: either may find its work done, half done, or not begun. `undo` makes sure that
/// the world is as it was before, whether or not `apply` ever ran. `prepare` and `probe` change nothing.
pub trait Transition<W: ?Sized + Sync>: Send + Sync + 'static {
    /// What it is about to do: enough to probe and to undo it without the outcome.
    type Intent: Serialize + DeserializeOwned + Send + Sync;
    /// What it did.
    type Outcome: Serialize + DeserializeOwned + Send + Sync;

    /// Its id, label, undo policy and time limit. A method, and no constant, so that one struct can declare several
    /// transitions that differ in data alone.
    fn spec(&self) -> TransitionSpec;

    /// Decides what to do, without doing it.
    fn prepare(&self, context: &Context<'_, W>)
    -> impl Future<Output = Result<Self::Intent, Failure>> + Send;

    /// Determines whether the intent was carried out.
    fn probe(
        &self,
        context: &Context<'_, W>,
        intent: &Self::Intent,
    ) -> impl Future<Output = Result<Probe<Self::Outcome>, Failure>> + Send;

    /// Carries the intent out.
    fn apply(
        &self,
        context: &Context<'_, W>,
        intent: &Self::Intent,
    ) -> impl Future<Output = Result<Self::Outcome, Failure>> + Send;

    /// Makes sure that the world is as it was before. [`Failure::Lost`] means that there is nothing left to undo because
    /// the VM is gone; it counts as undone. Never called unless the policy is [`UndoPolicy::Undoable`].
    fn undo(
        &self,
        context: &Context<'_, W>,
        intent: &Self::Intent,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (context, intent);
        std::future::ready(Ok(()))
    }
}

/// The future of a call of an [`ErasedTransition`].
pub type Called<'a, T> = BoxFuture<'a, Result<T, Failure>>;

/// A [`Transition`] whose intent and outcome are bytes, so that a table can hold transitions of any types.
#[allow(missing_docs, reason = "the methods are those of Transition")]
pub trait ErasedTransition<W: ?Sized>: Send + Sync {
    fn spec(&self) -> TransitionSpec;
    fn prepare<'a>(&'a self, context: &'a Context<'_, W>) -> Called<'a, Vec<u8>>;
    fn probe<'a>(&'a self, context: &'a Context<'_, W>, intent: &'a [u8]) -> Called<'a, Probe<Vec<u8>>>;
    fn apply<'a>(&'a self, context: &'a Context<'_, W>, intent: &'a [u8]) -> Called<'a, Vec<u8>>;
    fn undo<'a>(&'a self, context: &'a Context<'_, W>, intent: &'a [u8]) -> Called<'a, ()>;
}

impl<W: ?Sized + Sync, T: Transition<W>> ErasedTransition<W> for T {
    fn spec(&self) -> TransitionSpec {
        Transition::spec(self)
    }

    fn prepare<'a>(&'a self, context: &'a Context<'_, W>) -> Called<'a, Vec<u8>> {
        async move { Ok(record::encode_payload(&Transition::prepare(self, context).await?)?) }.boxed()
    }

    fn probe<'a>(&'a self, context: &'a Context<'_, W>, intent: &'a [u8]) -> Called<'a, Probe<Vec<u8>>> {
        async move {
            let intent = record::decode_payload(intent)?;
            Ok(match Transition::probe(self, context, &intent).await? {
                Probe::Done(outcome) => Probe::Done(record::encode_payload(&outcome)?),
                Probe::NotDone => Probe::NotDone,
                Probe::Lost => Probe::Lost,
                Probe::CannotTell(why) => Probe::CannotTell(why),
            })
        }
        .boxed()
    }

    fn apply<'a>(&'a self, context: &'a Context<'_, W>, intent: &'a [u8]) -> Called<'a, Vec<u8>> {
        async move {
            let intent = record::decode_payload(intent)?;
            Ok(record::encode_payload(&Transition::apply(self, context, &intent).await?)?)
        }
        .boxed()
    }

    fn undo<'a>(&'a self, context: &'a Context<'_, W>, intent: &'a [u8]) -> Called<'a, ()> {
        async move {
            let intent = record::decode_payload(intent)?;
            Transition::undo(self, context, &intent).await
        }
        .boxed()
    }
}

/// Transitions of one operation that may run at the same time.
pub struct Stage<W: ?Sized> {
    /// Its name for people.
    pub label: &'static str,
    /// The transitions.
    pub transitions: Vec<Box<dyn ErasedTransition<W>>>,
}

/// What happens to an operation if a transition after its commit point fails twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterCommit {
    /// The VM cannot be used without it: the operation ends as lost, and what is left is cleared away.
    ClearAway,
    /// The operation itself clears something away: it is stuck, and the next run tries again.
    Stuck,
}

type Conclude<W> = dyn for<'a> Fn(Context<'a, W>, Ended) -> Called<'a, Vec<u8>> + Send + Sync;

/// A table of stages with one commit point.
pub struct Operation<W: ?Sized> {
    /// Its id on disk.
    pub id: OperationId,
    /// Its name for people.
    pub label: &'static str,
    /// What happens if a transition after the commit point fails twice.
    pub after_commit: AfterCommit,
    stages: Vec<Stage<W>>,
    /// The index of the commit point among the stages.
    commit: Option<usize>,
    conclude: Box<Conclude<W>>,
}

impl<W: ?Sized + Sync> Operation<W> {
    /// An operation without stages. `conclude` determines the final state of the workspace, whose bytes go into the
    /// journal's end record. It may look at the world, and changes nothing.
    pub fn new(
        id: OperationId,
        label: &'static str,
        after_commit: AfterCommit,
        conclude: impl for<'a> Fn(Context<'a, W>, Ended) -> Called<'a, Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        Self { id, label, after_commit, stages: Vec::new(), commit: None, conclude: Box::new(conclude) }
    }

    /// Adds a stage.
    #[must_use]
    pub fn stage(mut self, label: &'static str, transitions: Vec<Box<dyn ErasedTransition<W>>>) -> Self {
        self.stages.push(Stage { label, transitions });
        self
    }

    /// Adds a stage if `wanted`.
    #[must_use]
    pub fn stage_if(
        self,
        wanted: bool,
        label: &'static str,
        transitions: Vec<Box<dyn ErasedTransition<W>>>,
    ) -> Self {
        if wanted { self.stage(label, transitions) } else { self }
    }

    /// Adds the commit point, a stage of its own.
    #[must_use]
    pub fn commit(mut self, transition: Box<dyn ErasedTransition<W>>) -> Self {
        self.commit = Some(self.stages.len());
        self.stages.push(Stage { label: transition.spec().label, transitions: vec![transition] });
        self
    }

    /// Its stages, in order.
    #[must_use]
    pub fn stages(&self) -> &[Stage<W>] {
        &self.stages
    }

    /// Its transitions, in order.
    pub fn transitions(&self) -> impl Iterator<Item = &dyn ErasedTransition<W>> {
        self.stages.iter().flat_map(|stage| stage.transitions.iter().map(AsRef::as_ref))
    }

    /// The index of the commit point among the transitions.
    #[must_use]
    pub fn commit_point(&self) -> Option<usize> {
        self.commit.map(|stage| self.stages[..stage].iter().map(|stage| stage.transitions.len()).sum())
    }

    /// The commit point, and which stage it is.
    pub(super) fn commit_stage(&self) -> Option<(usize, &dyn ErasedTransition<W>)> {
        let stage = self.commit?;
        Some((stage, self.stages.get(stage)?.transitions.first()?.as_ref()))
    }

    pub(super) fn conclude<'a>(&self, context: Context<'a, W>, ended: Ended) -> Called<'a, Vec<u8>> {
        (self.conclude)(context, ended)
    }
}
