//! How long ago something happened, in words for a person.

const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];

/// The time from `then` to `now`, both in milliseconds since 1970, in the largest unit of which there is at least one: `3 h
/// ago`. A moment that the clock of this host has not reached is `ahead`, as after the clock was set back.
pub(super) fn age(then: u64, now: u64) -> String {
    match now.checked_sub(then).map(span) {
        None => "ahead".to_owned(),
        Some(None) => "now".to_owned(),
        Some(Some(span)) => format!("{span} ago"),
    }
}

/// A number of milliseconds in the same words; `None` if it is less than a second.
pub(super) fn span(milliseconds: u64) -> Option<String> {
    let seconds = milliseconds / 1000;
    let (unit, name) = UNITS.iter().find(|(unit, _)| seconds >= *unit)?;
    Some(format!("{} {name}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_one_unit() {
        let day = 86_400_000;
        for (passed, words) in [
            (0, "now"),
            (999, "now"),
            (1_000, "1 s ago"),
            (59_999, "59 s ago"),
            (60_000, "1 min ago"),
            (3_600_000, "1 h ago"),
            (day - 1, "23 h ago"),
            (day, "1 d ago"),
            (400 * day, "400 d ago"),
        ] {
            assert_eq!(age(5, 5 + passed), words);
        }
        assert_eq!(age(6, 5), "ahead");
        assert_eq!(age(0, u64::MAX), "213503982334 d ago");
    }
}
