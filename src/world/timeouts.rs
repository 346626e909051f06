//! Times that a person sets: how long nixbox waits for a guest, and how long it keeps a snapshot.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::value::{InvalidValue, from_text};

/// How long a guest may take until it is SSH-ready: whole seconds, from one second to one day. A guest that is slow and
/// shows that it is at work may take [`ReadyTimeout::STRETCH`] times as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadyTimeout(u32);

/// How long a snapshot without a name is kept: whole seconds, from one second to 36,500 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RetentionTime(u32);

/// The units of times, largest first.
const UNITS: [(&str, u32); 4] = [("d", DAY), ("h", 3600), ("min", 60), ("s", 1)];
const DAY: u32 = 24 * 3600;

/// What a type of times accepts, and the words with which it refuses the rest.
struct TimeRule {
    /// How many of the units, counted from the smallest, may be used.
    units: usize,
    longest: u32,
    form: &'static str,
    bounds: &'static str,
}

impl TimeRule {
    fn units(&self) -> &'static [(&'static str, u32)] {
        &UNITS[UNITS.len() - self.units..]
    }

    /// The seconds that the text says.
    fn read(&self, text: &str) -> Result<u32, InvalidValue> {
        // The last letters of "min" and "d" are those of no other unit, and "s" is the end of no other.
        let (digits, unit) = self
            .units()
            .iter()
            .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?.trim_end_matches(' '), seconds)))
            .filter(|(digits, _)| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| InvalidValue::new(text, self.form))?;
        let seconds = digits.parse::<u32>().ok().and_then(|number| number.checked_mul(*unit));
        let seconds = seconds.filter(|seconds| (1..=self.longest).contains(seconds));
        seconds.ok_or_else(|| InvalidValue::new(text, self.bounds))
    }

    /// The seconds in the largest unit that needs no fraction.
    fn write(&self, seconds: u32, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, unit): &&(&str, u32)| seconds.is_multiple_of(*unit);
        let (name, unit) = self.units().iter().find(whole).unwrap_or(&("s", 1));
        write!(formatter, "{}{name}", seconds / unit)
    }
}

const READY: TimeRule = TimeRule {
    units: 3,
    longest: DAY,
    form: "is not a time: a whole number and one of s, min, h, as in \"110s\"",
    bounds: "is not from 1s to 24h",
};

const RETENTION: TimeRule = TimeRule {
    units: 4,
    longest: 36_500 * DAY,
    form: "is not a time: a whole number and one of s, min, h, d, as in \"14d\"",
    bounds: "is not from 1s to 36500d",
};

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

impl RetentionTime {
    /// As a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

/// Gives a type of times its text forms, by its rule.
macro_rules! text_forms {
    ($name:ident, $rule:expr) => {
        impl FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                $rule.read(text).map(Self)
            }
        }

        /// In the largest unit that needs no fraction, as `from_str` reads it.
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                $rule.write(self.0, formatter)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

text_forms!(ReadyTimeout, READY);
text_forms!(RetentionTime, RETENTION);

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

    #[test]
    fn a_retention_is_counted_in_days_too() {
        for (text, seconds, written) in [
            ("14d", 14 * 86_400, "14d"),
            ("48h", 2 * 86_400, "2d"),
            ("1 h", 3600, "1h"),
            ("90min", 5400, "90min"),
            ("1s", 1, "1s"),
            ("36500d", 36_500 * 86_400, "36500d"),
        ] {
            let time: RetentionTime = text.parse().unwrap();
            assert_eq!((time.duration(), time.to_string().as_str()), (Duration::from_secs(seconds), written));
        }
        for text in ["", "d", "14", "0d", "-1d", "1.5d", "1w", "14days", "14D", "36501d", "4294967296s", "٣d"]
        {
            assert!(text.parse::<RetentionTime>().is_err(), "{text}");
        }
        assert!("1d".parse::<ReadyTimeout>().is_err());
    }
}
