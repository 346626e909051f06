//! Numbers of bytes, and where RAM of that many bytes lies.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::value::{InvalidValue, words};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// The rule that a number of bytes breaks which no file can have.
const HUGE: &str = "is more than any file can have";

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl ByteSize {
    /// So many bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// As a number.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let bad = || {
            let rule = "is not a size: a whole number and one of B, KiB, MiB, GiB, TiB, as in \"4GiB\"";
            InvalidValue::new(text, rule)
        };
        let (digits, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?.trim_end_matches(' '), shift)))
            .ok_or_else(bad)?;
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        // 8 EiB and more: file offsets are signed.
        let huge = || InvalidValue::new(text, HUGE);
        let bytes: u64 =
            digits.parse::<u64>().map_err(|_| huge())?.checked_mul(1 << shift).ok_or_else(huge)?;
        if bytes > i64::MAX as u64 { Err(huge()) } else { Ok(Self(bytes)) }
    }
}

/// In the largest unit that needs no fraction, as [`ByteSize::from_str`] reads it.
impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |&&(_, shift): &&(&str, u32)| self.0 != 0 && self.0.trailing_zeros() >= shift;
        let (unit, shift) = UNITS.iter().find(whole).unwrap_or(&("B", 0));
        write!(formatter, "{}{unit}", self.0 >> shift)
    }
}

/// In bytes, as a number: for programs.
impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = u64::deserialize(deserializer)?;
        if bytes > i64::MAX as u64 {
            return Err(serde::de::Error::custom(HUGE));
        }
        Ok(Self(bytes))
    }
}

/// Where the host keeps the guest's RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backing {
    /// On tmpfs where it fits, otherwise in the VMM.
    Auto,
    /// In a file on tmpfs.
    Tmpfs,
    /// In a file in the workspace.
    Disk,
    /// In memory of the VMM's own.
    Vmm,
}

words!(Backing, "auto" => Self::Auto, "tmpfs" => Self::Tmpfs, "disk" => Self::Disk, "vmm" => Self::Vmm);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_print_as_they_are_read() {
        for text in ["0B", "1B", "1023B", "1KiB", "3MiB", "4GiB", "5TiB", "1025KiB"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        assert_eq!("1024MiB".parse::<ByteSize>().unwrap().to_string(), "1GiB");
    }

    proptest! {
        #[test]
        fn every_size_survives(bytes in 0..=i64::MAX as u64) {
            let size = ByteSize::from_bytes(bytes);
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }
    }
}
