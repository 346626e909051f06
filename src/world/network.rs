//! What the guest may reach.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::private_network::{PrivateNetwork, parse_network};
use super::value::{InvalidValue, text_value, words};

/// How much of the network a guest may reach. In each mode nixbox reaches the guest, the guest reaches the host for
/// DHCP, and for DNS unless the mode is `Off`; no guest reaches another, and no IPv6 packet leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NetworkMode {
    /// Nothing.
    Off,
    /// The domains and ports of the [`NetworkPolicy`]: TCP and UDP to these ports of addresses that these domains
    /// resolved to through nixbox's own resolver, which resolves nothing else. An address stays allowed until the
    /// network is removed: a guest may use it for longer than the answer was valid. An answer with an address that is
    /// not public is refused, unless the address is of [`NetworkPolicy::host_networks`].
    Filtered,
    /// All public addresses, and those of [`NetworkPolicy::host_networks`].
    #[default]
    Open,
}

words!(NetworkMode, "off" => Self::Off, "filtered" => Self::Filtered, "open" => Self::Open);

/// By what the network namespace of a VM is kept when no process of the VM is in it, and found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceKeeping {
    /// A name in /run/netns, which root's rights are needed for.
    Name,
    /// A process of an ordinary user, which holds the user namespace that the network namespace belongs to.
    Holder,
}

words!(NamespaceKeeping, "name" => Self::Name, "holder" => Self::Holder);

/// What a guest may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NetworkPolicy {
    /// How much.
    pub mode: NetworkMode,
    /// In filtered mode: these domains and what is below them. Sorted, none twice.
    pub domains: Vec<Domain>,
    /// In filtered mode: these ports of them. Sorted, none twice.
    pub ports: Vec<Port>,
    /// Which private networks, such as the host's LAN and VPN, may be reached too. By default none: a guest is a sandbox, and
    /// routers, printers and databases of a LAN trust everyone who is in it. Sorted, none twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_networks: Vec<PrivateNetwork>,
    /// Where the uplink of a VM gets its addresses from.
    #[serde(default, skip_serializing_if = "UplinkPool::is_default")]
    pub uplink: UplinkPool,
}

/// A policy without domains and ports.
impl From<NetworkMode> for NetworkPolicy {
    fn from(mode: NetworkMode) -> Self {
        Self { mode, ..Self::default() }
    }
}

text_value!(
    /// The network of which the uplink of each VM gets four addresses, as `203.0.113.0/24`. An uplink connects the network
    /// namespace of a VM with the host, and its addresses are seen by the two alone. By default they are of a network that
    /// RFC 5737 reserves for documentation, so that no LAN, VPN or server on the Internet has them.
    UplinkPool,
    parse_pool
);

impl Default for UplinkPool {
    fn default() -> Self {
        Self("203.0.113.0/24".into())
    }
}

/// How many addresses an uplink has.
const PER_UPLINK: u32 = 4;

impl UplinkPool {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Its first address, and the length of its prefix.
    #[must_use]
    pub fn range(&self) -> (Ipv4Addr, u8) {
        // The text was parsed when the value was made.
        parse_network(&self.0).unwrap_or((Ipv4Addr::UNSPECIFIED, 32))
    }

    /// The first addresses of the networks for uplinks, each of 30 bits.
    pub fn uplinks(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let (first, prefix) = self.range();
        let count = 1u32.checked_shl(u32::from(32 - prefix)).unwrap_or(0) / PER_UPLINK;
        (0..count).map(move |number| Ipv4Addr::from_bits(first.to_bits() + number * PER_UPLINK))
    }
}

fn parse_pool(text: &str) -> Result<String, InvalidValue> {
    let refuse =
        |reason| Err(InvalidValue::new(text, "is not a network such as 203.0.113.0/24").because(reason));
    let Some((address, prefix)) = parse_network(text) else {
        return refuse("an IPv4 address, \"/\" and the length of the prefix");
    };
    if !(16..=30).contains(&prefix) {
        return refuse("from 4 to 65536 addresses, which are prefixes from /30 to /16");
    }
    if address.to_bits().trailing_zeros() < u32::from(32 - prefix) {
        return refuse("the address has to be the first one of the network");
    }
    let last = address.to_bits() | (u32::MAX >> prefix);
    let unusable = |address: Ipv4Addr| {
        address.is_loopback()
            || address.is_link_local()
            || address.is_multicast()
            || address.octets()[0] == 0
            || address.octets()[0] >= 240
    };
    if unusable(address) || unusable(Ipv4Addr::from_bits(last)) {
        return refuse("loopback, link-local, multicast and reserved addresses cannot be used");
    }
    Ok(format!("{address}/{prefix}"))
}

text_value!(
    /// A domain: itself and everything below it. In lower case, without the dot at its end. Names such as
    /// `_dmarc.a.com` are allowed, as they are in DNS.
    Domain,
    parse_domain
);

fn parse_domain(text: &str) -> Result<String, InvalidValue> {
    let refuse = |reason| {
        let rule = "is not a domain such as github.com, which stands for itself and everything below it";
        Err(InvalidValue::new(text, rule).because(reason))
    };
    if text.starts_with("*.") {
        return refuse("leave out the \"*.\"");
    }
    if text.contains(['/', ':']) {
        return refuse("only the host's name, without scheme, port or path");
    }
    if !text.is_ascii() {
        return refuse("write it in its xn-- form");
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return refuse("labels of 1 to 63 of a-z 0-9 - _, separated by dots, at most 253 in all");
    }
    // No top-level domain is a number, so this would be an address.
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
        return refuse("addresses cannot be allowed by name");
    }
    Ok(name)
}

/// A port that the guest may be allowed to reach. Neither 53 nor 853: a guest that could ask another DNS server would
/// get addresses past the list of domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Port(u16);

impl Port {
    /// The port of HTTP.
    pub const HTTP: Self = Self(80);
    /// The port of HTTPS.
    pub const HTTPS: Self = Self(443);

    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Port {
    type Error = InvalidValue;

    fn try_from(number: u16) -> Result<Self, InvalidValue> {
        match number {
            0 => Err(InvalidValue::unquoted("0 is not from 1 to 65535")),
            53 | 853 => Err(InvalidValue::unquoted(
                "53 and 853 are the ports of DNS, which goes through nixbox's own resolver alone: leave them out",
            )),
            _ => Ok(Self(number)),
        }
    }
}

impl From<Port> for u16 {
    fn from(port: Port) -> Self {
        port.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_names_that_a_configuration_file_can_hold() {
        for (good, parsed) in [
            ("github.com", "github.com"),
            ("GitHub.com.", "github.com"),
            ("_dmarc.a-b.example", "_dmarc.a-b.example"),
            ("intranet", "intranet"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("4.com", "4.com"),
        ] {
            assert_eq!(good.parse::<Domain>().unwrap().as_str(), parsed);
        }
        let long = "a".repeat(64);
        let longer = format!("{}b", "a.".repeat(127));
        for bad in [
            "",
            ".",
            "a..b",
            "a..",
            "*.a.b",
            ".a",
            "a/b",
            "a#b",
            "a\nserver=/#/1.1.1.1",
            "-a.b",
            "a-.b",
            "bücher.de",
            "10.0.0.1",
            "a b",
            &long,
            &longer,
        ] {
            assert!(bad.parse::<Domain>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pool_is_a_whole_network_that_can_be_used() {
        let pool = |text: &str| text.parse::<UplinkPool>();
        assert_eq!(UplinkPool::default(), pool("203.0.113.0/24").unwrap());
        assert_eq!(UplinkPool::default().uplinks().count(), 64);
        let small: Vec<_> = pool("10.255.255.248/29").unwrap().uplinks().collect();
        assert_eq!(small, [Ipv4Addr::new(10, 255, 255, 248), Ipv4Addr::new(10, 255, 255, 252)]);
        assert_eq!(pool("10.0.0.0/16").unwrap().uplinks().count(), 16384);
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/+24",
            "10.0.0.0/24 ",
            "10.0.0.0/31",
            "10.0.0.0/15",
            "10.0.0.0/33",
            "10.0.0.0/256",
            "10.0.0.4/29",
            "127.0.0.0/24",
            "169.254.0.0/16",
            "224.0.0.0/24",
            "255.255.255.252/30",
            "0.0.0.0/24",
            "fd00::/24",
            "localhost/24",
        ] {
            assert!(pool(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_that_would_pass_the_list_of_domains_by_are_refused() {
        assert_eq!(Port::try_from(443), Ok(Port::HTTPS));
        for bad in [0, 53, 853] {
            assert!(Port::try_from(bad).is_err(), "{bad}");
        }
    }
}
