//! The places for VMs on a host.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the 64 places for a VM on this host. It decides the VM's TAP, addresses and MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Slot(u8);

impl Slot {
    /// How many there are.
    pub const COUNT: u8 = 64;

    /// All of them, lowest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// Its number, below [`Slot::COUNT`].
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }
}

/// A number that is no slot's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("slot {0} does not exist: there are slots 0 to {last}", last = Slot::COUNT - 1)]
pub struct NoSuchSlot(u8);

impl TryFrom<u8> for Slot {
    type Error = NoSuchSlot;

    fn try_from(number: u8) -> Result<Self, NoSuchSlot> {
        if number < Self::COUNT { Ok(Self(number)) } else { Err(NoSuchSlot(number)) }
    }
}

impl From<Slot> for u8 {
    fn from(slot: Slot) -> Self {
        slot.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
