//! What of a VM, or of a snapshot, is cleared away.
//!
//! May use: the seams of `world`, and the engine's words.

use std::time::Duration;

use crate::engine::transition::{Context, Failure, Probe, Transition, TransitionId, UndoPolicy};
use crate::operations::limits::QUICK;
use crate::world::{Generation, Slot, SnapshotId, World};

/// What of a VM is cleared away, each by a transition that can only go forward.
macro_rules! clearing {
    ($name:ident, $intent:ty, $id:literal, $label:literal, |$world:ident, $what:ident| $remove:expr) => {
        #[doc = concat!("Clears away: ", $label, ".")]
        pub(crate) struct $name(pub(crate) $intent);

        impl Transition for $name {
            type World = World;
            type Intent = $intent;
            type Outcome = ();

            const ID: TransitionId = TransitionId($id);
            const LABEL: &'static str = $label;
            const UNDO: UndoPolicy = UndoPolicy::Forbidden("comes after the commit point");
            const LIMIT: Duration = QUICK;

            async fn prepare(&self, _: &Context<'_, World>) -> Result<$intent, Failure> {
                Ok(self.0)
            }

            async fn probe(&self, _: &Context<'_, World>, _: &$intent) -> Result<Probe<()>, Failure> {
                // Removing what is not there succeeds, so that doing it again is as good as looking.
                Ok(Probe::NotDone)
            }

            async fn apply(&self, context: &Context<'_, World>, $what: &$intent) -> Result<(), Failure> {
                let $world = context.world;
                $remove.await
            }
        }
    };
}

clearing!(RemoveVmm, Generation, 12, "VMM", |world, generation| world.vmm.stop(*generation));
clearing!(RemoveNetwork, Slot, 13, "network", |world, slot| world.network.remove(*slot));
clearing!(RemoveShares, Generation, 14, "shares", |world, generation| world.shares.stop(*generation));
clearing!(RemoveMemory, Generation, 15, "memory", |world, generation| world.memory.remove(*generation));
clearing!(ReleaseSlot, Slot, 16, "release slot", |world, slot| world.slots.release(*slot));
clearing!(RemoveDisk, Generation, 17, "retire the former disk", |world, generation| world
    .disk
    .remove(*generation));
clearing!(Purge, SnapshotId, 18, "remove", |world, id| world.catalog.purge(*id));
