//! The time of day of this machine.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::world::Clock;

/// [`Clock`] by the system's own. Before 1970 it says 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostClock;

impl Clock for HostClock {
    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
