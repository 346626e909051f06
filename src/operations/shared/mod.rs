//! The transitions that several operations share, and the two forms that most transitions have.
//!
//! A transition that needs no more than three calls of a seam is a [`Part`]; one whose effect is not looked for is an
//! [`Unprobed`]. Everything else is a struct with an implementation of [`Transition`] of its own.
//!
//! May use: the seams of `world`, the engine, and `limits` and `ids` of the operations.

pub(super) mod clear_away;
pub(super) mod guest;
pub(super) mod guest_scripts;
pub(super) mod hooks;
pub(super) mod machine;
pub(super) mod slot;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::record::{self, PayloadError};
use crate::engine::transition::{self, Called, Failure, Probe, Transition, TransitionSpec};
use crate::world::{Generation, Presence, Result, World};

/// What a transition of nixbox is given.
pub(super) type Context<'a> = transition::Context<'a, World>;

/// A call of a seam for an intent.
pub(super) type SeamCall<I, T> = for<'a> fn(&'a Context<'a>, &'a I) -> Called<'a, T>;

/// A part of a VM that bears the generation of this operation. A seam finds it, makes it and removes it.
pub(super) struct Part<I> {
    pub(super) spec: TransitionSpec,
    pub(super) intent: I,
    pub(super) find: SeamCall<I, Presence>,
    pub(super) make: SeamCall<I, ()>,
    pub(super) remove: SeamCall<I, ()>,
}

impl<I: Clone + Serialize + DeserializeOwned + Send + Sync + 'static> Transition<World> for Part<I> {
    type Intent = I;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        self.spec
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<I> {
        Ok(self.intent.clone())
    }

    async fn probe(&self, context: &Context<'_>, intent: &I) -> Result<Probe<()>> {
        Ok(done_if_whole((self.find)(context, intent).await?))
    }

    async fn apply(&self, context: &Context<'_>, intent: &I) -> Result<()> {
        (self.make)(context, intent).await
    }

    async fn undo(&self, context: &Context<'_>, intent: &I) -> Result<()> {
        (self.remove)(context, intent).await
    }
}

/// A transition whose effect is not looked for, because applying it again costs no more than a look would. It has no
/// undo of its own.
pub(super) struct Unprobed<I> {
    pub(super) spec: TransitionSpec,
    pub(super) intent: I,
    pub(super) apply: SeamCall<I, ()>,
}

impl<I: Clone + Serialize + DeserializeOwned + Send + Sync + 'static> Transition<World> for Unprobed<I> {
    type Intent = I;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        self.spec
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<I> {
        Ok(self.intent.clone())
    }

    async fn probe(&self, _: &Context<'_>, _: &I) -> Result<Probe<()>> {
        Ok(Probe::NotDone)
    }

    async fn apply(&self, context: &Context<'_>, intent: &I) -> Result<()> {
        (self.apply)(context, intent).await
    }
}

/// The parameters of an operation. Earlier versions of nixbox wrote fewer of them, `Old` fewer than `Former`, and what they
/// did not write has a meaning of its own then. The three cannot be confused, because parameters fill their bytes.
pub(super) fn parameters<P, Former, Old>(bytes: &[u8]) -> Result<P, PayloadError>
where
    P: DeserializeOwned,
    Former: DeserializeOwned + Into<P>,
    Old: DeserializeOwned + Into<Former>,
{
    record::decode_payload(bytes).or_else(|error| {
        record::decode_payload::<Former>(bytes)
            .or_else(|_| record::decode_payload::<Old>(bytes).map(Into::into))
            .map(Into::into)
            .map_err(|_| error)
    })
}

/// What is found of something that a transition makes.
pub(super) fn done_if_whole(found: Presence) -> Probe<()> {
    if found == Presence::Whole { Probe::Done(()) } else { Probe::NotDone }
}

/// What is found of something that a transition removes.
pub(super) fn done_if_absent(found: Presence) -> Probe<()> {
    if found == Presence::Absent { Probe::Done(()) } else { Probe::NotDone }
}

/// What `probe` finds, or [`Probe::Lost`] if the VMM of this generation has no running or paused VM.
pub(super) async fn probe_if_alive<O>(
    world: &World,
    vmm: Generation,
    probe: impl Future<Output = Result<Probe<O>>> + Send,
) -> Result<Probe<O>> {
    if world.vmm.find(vmm).await?.has_system() { probe.await } else { Ok(Probe::Lost) }
}

/// Fails with [`Failure::Lost`] if the VMM of this generation has no running or paused VM.
pub(super) async fn must_live(world: &World, vmm: Generation) -> Result<()> {
    if world.vmm.find(vmm).await?.has_system() { Ok(()) } else { Err(Failure::Lost) }
}
