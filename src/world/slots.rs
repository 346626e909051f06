//! The places for VMs, and the names and addresses that come with each.
//!
//! A VM whose network is a namespace of its own has [`Slot::OWN_NETWORK`], whatever other VMs have, or the slot that the
//! guest of an older snapshot has its address from. The slots below it are places in the network that all VMs of a host
//! share, so that no two of these VMs have the same slot.
//!
//! Why [`Slot::OWN_NETWORK`] has addresses of 198.51.100.252/30: RFC 5737 reserves 198.51.100.0/24 for documentation, so
//! nobody routes it. Of the other candidates, 10/8, 172.16/12 and 192.168/16 are LANs, 100.64/10 belongs to providers and
//! Tailscale, 169.254/16 must not be reached by a guest, and proxies hand out addresses of 198.18/15. The end of the network
//! is used because a virtual machine that has an address of it most often has one at its beginning.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::InvalidValue;

/// One of the 65 places for a VM. It decides the VM's TAP, addresses and MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Slot(u8);

impl Slot {
    /// How many there are.
    pub const COUNT: u8 = 65;
    /// The slot of every VM whose network is a namespace of its own.
    pub const OWN_NETWORK: Self = Self(64);
    /// The length of the prefix of the network that gateway and guest share.
    pub const PREFIX: u8 = 30;

    /// All of them, lowest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// Its number, below [`Slot::COUNT`].
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// The name of the TAP.
    #[must_use]
    pub fn tap(self) -> String {
        format!("vm{}", self.0)
    }

    /// The MAC of the guest's network device.
    #[must_use]
    pub fn mac(self) -> String {
        format!("02:00:00:00:00:{:02x}", self.0 + 1)
    }

    /// The address of the TAP, which the guest has as its gateway.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        match self {
            Self::OWN_NETWORK => Ipv4Addr::new(198, 51, 100, 253),
            Self(number) => Ipv4Addr::new(172, 16, 4 * number, 1),
        }
    }

    /// The guest's address.
    #[must_use]
    pub fn guest(self) -> Ipv4Addr {
        match self {
            Self::OWN_NETWORK => Ipv4Addr::new(198, 51, 100, 254),
            Self(number) => Ipv4Addr::new(172, 16, 4 * number, 2),
        }
    }
}

impl TryFrom<u8> for Slot {
    type Error = InvalidValue;

    fn try_from(number: u8) -> Result<Self, InvalidValue> {
        let refused = || InvalidValue::new(&number.to_string(), "is not a slot: there are slots 0 to 64");
        if number < Self::COUNT { Ok(Self(number)) } else { Err(refused()) }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_slot_has_its_own_names_and_addresses() {
        let names = |slot: Slot| (slot.tap(), slot.mac(), slot.gateway(), slot.guest());
        let last = Slot::try_from(63).unwrap();
        let (gateway, guest) = (Ipv4Addr::new(172, 16, 252, 1), Ipv4Addr::new(172, 16, 252, 2));
        assert_eq!(names(last), ("vm63".to_owned(), "02:00:00:00:00:40".to_owned(), gateway, guest));
        let first = Slot::try_from(0).unwrap();
        let (gateway, guest) = (Ipv4Addr::new(172, 16, 0, 1), Ipv4Addr::new(172, 16, 0, 2));
        assert_eq!(names(first), ("vm0".to_owned(), "02:00:00:00:00:01".to_owned(), gateway, guest));
        let (gateway, guest) = (Ipv4Addr::new(198, 51, 100, 253), Ipv4Addr::new(198, 51, 100, 254));
        let own = ("vm64".to_owned(), "02:00:00:00:00:41".to_owned(), gateway, guest);
        assert_eq!(names(Slot::OWN_NETWORK), own);
        assert_eq!(Slot::all().map(Slot::tap).collect::<BTreeSet<_>>().len(), 65);
        assert_eq!(Slot::all().map(Slot::mac).collect::<BTreeSet<_>>().len(), 65);
        assert_eq!(Slot::all().map(Slot::guest).collect::<BTreeSet<_>>().len(), 65);
        assert!(Slot::try_from(65).is_err());
    }
}
