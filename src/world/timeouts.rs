//! How long nixbox waits for something that a person may know better than nixbox.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::value::{InvalidValue, from_text};

/// How long a guest may take until it is SSH-ready: whole seconds, from one second to one day. A guest that is slow and
/// shows that it is at work may take [`ReadyTimeout::STRETCH`] times as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadyTimeout(u32);

const UNITS: [(&str, u32); 3] = [("min", 60), ("h", 3600), ("s", 1)];
const LONGEST: u32 = 24 * 3600;

impl ReadyTimeout {
    /// A boot in software emulation takes half a minute; the rest is a reserve.
    pub const DEFAULT: Self = Self(110);

    /// How many times as long a guest is waited for as long as it writes to its console.
    pub const STRETCH: u32 = 3;

    /// As a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }

    /// The longest time that a guest is waited for.
    #[must_use]
    pub const fn longest(self) -> Duration {
        self.duration().saturating_mul(Self::STRETCH)
    }
}

impl FromStr for ReadyTimeout {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        const RULE: &str = "is not a time: a whole number and one of s, min, h, as in \"110s\"";
        const BOUNDS: &str = "is not from 1s to 24h";
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?.trim_end_matches(' '), seconds)))
            .filter(|(digits, _)| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| InvalidValue::new(text, RULE))?;
        let seconds = digits.parse::<u32>().ok().and_then(|number| number.checked_mul(*unit));
        let seconds = seconds.filter(|seconds| (1..=LONGEST).contains(seconds));
        seconds.map(Self).ok_or_else(|| InvalidValue::new(text, BOUNDS))
    }
}

/// In the largest unit that needs no fraction, as [`ReadyTimeout::from_str`] reads it.
impl fmt::Display for ReadyTimeout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds if seconds.is_multiple_of(3600) => write!(formatter, "{}h", seconds / 3600),
            seconds if seconds.is_multiple_of(60) => write!(formatter, "{}min", seconds / 60),
            seconds => write!(formatter, "{seconds}s"),
        }
    }
}

impl Serialize for ReadyTimeout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ReadyTimeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_each_unit_and_written_in_the_largest() {
        for (text, seconds, written) in [
            ("1s", 1, "1s"),
            ("110s", 110, "110s"),
            ("120 s", 120, "2min"),
            ("10min", 600, "10min"),
            ("90min", 5400, "90min"),
            ("24h", 86_400, "24h"),
        ] {
            let time: ReadyTimeout = text.parse().unwrap();
            assert_eq!((time.duration(), time.to_string().as_str()), (Duration::from_secs(seconds), written));
            assert_eq!(time.to_string().parse::<ReadyTimeout>().unwrap(), time);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "s",
            "110",
            "-1s",
            "1.5min",
            "1m",
            "110sec",
            "0s",
            "25h",
            "99999999999999999999h",
            "4294967295min",
        ] {
            assert!(text.parse::<ReadyTimeout>().is_err(), "{text}");
        }
    }
}
