//! What a file system has for RAM files: numbers for errors and for people.

use std::fmt;

/// What a file system has for RAM files, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What is free now.
    pub free: u64,
    /// How much more the RAM files that are there may come to occupy.
    pub promised: u64,
}

impl Room {
    /// What is free and not promised.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.free.saturating_sub(self.promised)
    }
}

impl fmt::Display for Room {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} free", Rounded(self.free))?;
        if self.promised == 0 {
            return Ok(());
        }
        write!(formatter, ", {} of it promised to VMs", Rounded(self.promised.min(self.free)))
    }
}

/// Bytes for people, rounded down.
struct Rounded(u64);

impl fmt::Display for Rounded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.0 >> 20;
        if mib < 10 << 10 { write!(formatter, "{mib} MiB") } else { write!(formatter, "{} GiB", mib >> 10) }
    }
}
