//! Connections to the guest on which no script runs.

use std::sync::Arc;

use super::SshGuest;
use super::settings::GuestSettings;
use crate::guest::channel::forwarding::RELAY_LIMITS;
use crate::guest::channel::{Endpoint, SshSession};
use crate::world::{Failure, Machine, Result};

impl SshGuest {
    /// The SSH server of a VM's guest.
    pub(super) fn endpoint(&self, machine: &Machine) -> Result<Endpoint> {
        let GuestSettings { user, key, address, dial, .. } = &self.settings;
        let key = key.as_ref().map_err(|error| Failure::world(Arc::clone(error)))?;
        Ok(Endpoint {
            address: address(machine.slot),
            dial: Arc::clone(dial),
            user: user.clone(),
            key: Arc::clone(key),
            pin: self.pin(machine.disk),
        })
    }

    /// Connects once, to a guest that is SSH-ready, for the connections of a port that is forwarded.
    ///
    /// # Errors
    /// Those of [`SshSession::open`].
    pub async fn connect_for_relay(&self, machine: &Machine) -> Result<SshSession> {
        SshSession::open(&self.endpoint(machine)?, RELAY_LIMITS).await.map_err(Failure::world)
    }
}
