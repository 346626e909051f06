//! The networks of a host that a guest may reach.

use std::net::Ipv4Addr;

use super::InvalidValue;
use super::value::text_value;

text_value!(
    /// A private network that a guest may reach, as `192.168.1.0/24`: one of the host's LAN or VPN. It lies within one of
    /// [`PrivateNetwork::ALL`], because a guest needs no such permission for public addresses, and never gets one for
    /// loopback, link-local and multicast addresses.
    PrivateNetwork,
    parse
);

impl PrivateNetwork {
    /// The addresses that belong to nobody on the Internet, but to each network that uses them for itself: those of
    /// RFC 1918, and those of RFC 6598, which providers and Tailscale use.
    pub const ALL: [(Ipv4Addr, u8); 4] = [
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(100, 64, 0, 0), 10),
    ];

    /// Its first address, and the length of its prefix.
    #[must_use]
    pub fn range(&self) -> (Ipv4Addr, u8) {
        // The text was parsed when the value was made.
        parse_network(self.as_str()).unwrap_or((Ipv4Addr::UNSPECIFIED, 32))
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        is_in(address, self.range())
    }
}

fn is_in(address: Ipv4Addr, (first, prefix): (Ipv4Addr, u8)) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    address.to_bits() & mask == first.to_bits() & mask
}

/// An IPv4 address and the length of a prefix, with "/" between them.
pub(super) fn parse_network(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let plain = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
    let prefix: u8 = prefix.parse().ok().filter(|_| plain)?;
    Some((address.parse().ok()?, prefix)).filter(|_| prefix <= 32)
}

fn parse(text: &str) -> Result<String, InvalidValue> {
    let refuse = |reason| {
        Err(InvalidValue::new(text, "is not a private network such as 192.168.1.0/24").because(reason))
    };
    let Some((address, prefix)) = parse_network(text) else {
        return refuse("an IPv4 address, \"/\" and the length of the prefix");
    };
    if address.to_bits().trailing_zeros() < u32::from(32 - prefix) {
        return refuse("the address has to be the first one of the network");
    }
    if !PrivateNetwork::ALL.iter().any(|all| prefix >= all.1 && is_in(address, *all)) {
        return refuse("it has to lie within 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10");
    }
    Ok(format!("{address}/{prefix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_lies_within_the_private_addresses() {
        for good in [
            "10.0.0.0/8",
            "10.99.0.0/24",
            "172.16.0.0/12",
            "172.31.255.255/32",
            "192.168.1.0/24",
            "100.64.0.0/10",
        ] {
            assert_eq!(good.parse::<PrivateNetwork>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "10.0.0.1",
            "10.0.0.1/24",
            "10.0.0.0/7",
            "0.0.0.0/0",
            "8.8.8.0/24",
            "172.32.0.0/16",
            "172.0.0.0/11",
            "100.128.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "fd00::/8",
            "10.0.0.0/8 ",
            "10.0.0.0/+8",
        ] {
            assert!(bad.parse::<PrivateNetwork>().is_err(), "{bad}");
        }
        let network: PrivateNetwork = "192.168.4.0/22".parse().unwrap();
        assert_eq!(network.range(), (Ipv4Addr::new(192, 168, 4, 0), 22));
        assert!(network.contains(Ipv4Addr::new(192, 168, 7, 255)));
        assert!(!network.contains(Ipv4Addr::new(192, 168, 8, 0)));
    }
}
