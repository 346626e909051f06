//! The transitions that several operations share: what a VM is made of, made and removed.
//!
//! May use: the seams of `world`, and the engine's words.

pub(crate) mod clear_away;
pub(crate) mod guest;
pub(crate) mod hooks;
pub(crate) mod machine;
pub(crate) mod slot;

use crate::engine::transition::{Failure, Probe};
use crate::world::{Generation, Presence, World};

pub(crate) fn presence(found: Presence) -> Probe<()> {
    match found {
        Presence::Whole => Probe::Done(()),
        Presence::Partial | Presence::Absent => Probe::NotDone,
    }
}

/// Fails with [`Failure::Lost`] unless the VMM of this generation has a system in it.
pub(crate) async fn must_live(world: &World, vmm: Generation) -> Result<(), Failure> {
    if world.vmm.find(vmm).await?.has_system() { Ok(()) } else { Err(Failure::Lost) }
}
/// A part of a VM, of this operation's generation: found, made and removed by a seam.
macro_rules! part {
    (
        $name:ident, $id:literal, $label:literal, $limit:expr,
        $intent:ty: |$context:ident, $self:ident, $what:ident| $prepare:expr,
        find: $find:expr, make: $make:expr, remove: $remove:expr $(,)?
    ) => {
        // Not every part needs each of what is given.
        #[allow(unused_variables)]
        impl Transition for $name {
            type World = World;
            type Intent = $intent;
            type Outcome = ();

            const ID: TransitionId = TransitionId($id);
            const LABEL: &'static str = $label;
            const UNDO: UndoPolicy = UndoPolicy::Undoable;
            const LIMIT: Duration = $limit;

            async fn prepare(&self, $context: &Context<'_, World>) -> Result<$intent, Failure> {
                let $self = self;
                $prepare
            }

            async fn probe(
                &self,
                $context: &Context<'_, World>,
                $what: &$intent,
            ) -> Result<Probe<()>, Failure> {
                Ok(presence($find.await?))
            }

            async fn apply(&self, $context: &Context<'_, World>, $what: &$intent) -> Result<(), Failure> {
                $make.await
            }

            async fn undo(&self, $context: &Context<'_, World>, $what: &$intent) -> Result<(), Failure> {
                $remove.await
            }
        }
    };
}
pub(crate) use part;
