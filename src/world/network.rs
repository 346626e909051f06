//! What the guest may reach.

use serde::{Deserialize, Serialize};

use super::value::{InvalidValue, text_value, words};

/// How much of the network a guest may reach. In each mode the host reaches the guest, the guest reaches the host for
/// DHCP, and for DNS unless the mode is `Off`; no guest reaches another, and no IPv6 packet leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NetworkMode {
    /// Nothing.
    Off,
    /// The domains and ports of the [`NetworkPolicy`]: TCP and UDP to these ports of addresses that these domains
    /// resolved to through nixbox's own resolver, which resolves nothing else. An address stays allowed until the
    /// network is removed: a guest may use it for longer than the answer was valid.
    Filtered,
    /// Everything but link-local addresses: at 169.254.0.0/16 clouds give the host's own credentials to everyone who
    /// asks.
    #[default]
    Open,
}

words!(NetworkMode, "off" => Self::Off, "filtered" => Self::Filtered, "open" => Self::Open);

/// What a guest may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPolicy {
    /// How much.
    pub mode: NetworkMode,
    /// In filtered mode: these domains and what is below them. Sorted, none twice.
    pub domains: Vec<Domain>,
    /// In filtered mode: these ports of them. Sorted, none twice.
    pub ports: Vec<Port>,
}

/// A policy without domains and ports.
impl From<NetworkMode> for NetworkPolicy {
    fn from(mode: NetworkMode) -> Self {
        Self { mode, ..Self::default() }
    }
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
    fn ports_that_would_pass_the_list_of_domains_by_are_refused() {
        assert_eq!(Port::try_from(443), Ok(Port::HTTPS));
        for bad in [0, 53, 853] {
            assert!(Port::try_from(bad).is_err(), "{bad}");
        }
    }
}
