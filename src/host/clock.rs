//! The time of day of this machine.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::world::Clock;

/// [`Clock`] by the clock of the system. Before 1970 it reports 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostClock;

impl Clock for HostClock {
    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The last second of the year 9999, in milliseconds since 1970: the last one that RFC 3339 can express.
const LAST: u64 = 253_402_300_799_000;

/// A moment, in milliseconds since 1970, as RFC 3339 in UTC. A later moment than RFC 3339 can express becomes the last
/// one that it can.
#[must_use]
pub fn utc(unix_ms: u64) -> String {
    let moment = UNIX_EPOCH + Duration::from_millis(unix_ms.min(LAST));
    humantime::format_rfc3339_seconds(moment).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_is_a_time() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_767_225_599_999, "2025-12-31T23:59:59Z"),
            (LAST + 999, "9999-12-31T23:59:59Z"),
            (u64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(utc(unix_ms), text);
        }
    }
}
