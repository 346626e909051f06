//! How far the clock of a guest is off, as the greeting of a connection finds it out. Uses nothing of nixbox.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The seconds since 1970 on this host.
pub(super) fn now() -> Option<u64> {
    Some(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// How far a clock is off that told `guest` at some moment from `asked` to `answered`, all in whole seconds since 1970.
pub(super) fn off_by(asked: u64, guest: u64, answered: u64) -> Duration {
    Duration::from_secs(asked.saturating_sub(guest).max(guest.saturating_sub(answered)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_by_what_no_moment_of_the_round_trip_explains() {
        for (told, off) in [(90, 10), (99, 1), (100, 0), (103, 0), (105, 0), (106, 1), (205, 100)] {
            assert_eq!(off_by(100, told, 105), Duration::from_secs(off), "{told}");
        }
    }
}
