//! The sources of the credentials, which are read before anything is changed.
//!
//! Uses the seams only.

use super::limits::{LOOK, within};
use super::outcome::Refusal;
use crate::engine::executor::Observer;
use crate::engine::transition::Interrupt;
use crate::world::World;

/// What is needed to read the sources of the credentials before an operation begins.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    /// A person's request to stop.
    pub(super) interrupt: &'a Interrupt,
    /// Is told which source takes long.
    pub(super) observer: &'a dyn Observer,
}

impl Sources<'_> {
    /// Has the guest seam of `world` read the credentials of the configuration from their sources, and hold them.
    pub(super) async fn hold(self, world: &World) -> Result<(), Refusal> {
        let waits = |why: &str| self.observer.waits(why);
        within(LOOK, world.guest.resolve_credentials(self.interrupt, &waits))
            .await
            .map_err(Refusal::Credentials)
    }
}
