//! What the guest may reach, as types that cannot be wrong.

use std::fmt;

/// What leaves the guest's network. The host reaches the guest in each of them; the guest reaches the host for DHCP,
/// and for DNS unless it is `Off`; no guest reaches another, and nothing of IPv6 leaves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Mode {
    /// Nothing.
    Off,
    /// Only TCP and UDP to `ports` of addresses that `domains` resolved to through the gateway's DNS. That resolves
    /// nothing else. An address stays allowed until the network is removed: a guest may well use it for longer than
    /// the answer was good for.
    Filtered {
        /// These and all below them.
        domains: Vec<Domain>,
        /// Ports at the far end.
        ports: Vec<Port>,
    },
    /// Everything but link-local addresses: in 169.254.0.0/16 clouds give the host's own credentials to whoever asks.
    #[default]
    Open,
}

/// A domain name, in lower case, without a dot at its end. Stands for itself and all names below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(String);

/// A text that is no domain name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a domain: {why}")]
pub struct BadDomain {
    text: String,
    why: &'static str,
}

impl Domain {
    /// The name as text: letters, digits, `-`, `_` and `.` only.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for Domain {
    type Error = BadDomain;

    fn try_from(text: &str) -> Result<Self, BadDomain> {
        let bad = |why| BadDomain { text: text.to_owned(), why };
        if text.starts_with("*.") || text.starts_with('.') {
            return Err(bad("names below a domain are included, so write the domain alone"));
        }
        if !text.is_ascii() {
            return Err(bad("write it in its xn-- form"));
        }
        if text.is_empty() || text.len() > 253 {
            return Err(bad("1 to 253 letters"));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !text.split('.').all(label) {
            return Err(bad("labels of 1 to 63 of a-z 0-9 - _, separated by dots"));
        }
        if text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
            return Err(bad("addresses cannot be allowed, names can"));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A port that the guest may be allowed to reach: not 0, and neither 53 nor 853, as DNS goes through the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(u16);

/// A number that is no port that can be allowed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPort {
    /// There is no port 0.
    #[error("0 is not a port")]
    Zero,
    /// Names would be resolved past the list of domains.
    #[error("port {0} is for DNS, which goes through the gateway alone")]
    Dns(u16),
}

impl Port {
    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Port {
    type Error = BadPort;

    fn try_from(number: u16) -> Result<Self, BadPort> {
        match number {
            0 => Err(BadPort::Zero),
            53 | 853 => Err(BadPort::Dns(number)),
            _ => Ok(Self(number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_names_that_a_configuration_file_can_hold() {
        for good in
            ["github.com", "GitHub.com", "_dmarc.a-b.example", "intranet", "xn--bcher-kva.example", "4.com"]
        {
            assert_eq!(Domain::try_from(good).unwrap().as_str(), good.to_ascii_lowercase());
        }
        let long = "a".repeat(64);
        for bad in [
            "",
            ".",
            "a..b",
            "*.a.b",
            ".a",
            "a.",
            "a/b",
            "a#b",
            "a\nserver=/#/1.1.1.1",
            "-a.b",
            "a-.b",
            "bücher.de",
            "10.0.0.1",
            "a b",
            &long,
        ] {
            assert!(Domain::try_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ports_that_would_pass_the_list_of_domains_by_are_refused() {
        assert_eq!(Port::try_from(443).map(Port::number), Ok(443));
        assert_eq!(Port::try_from(0), Err(BadPort::Zero));
        assert_eq!(Port::try_from(53), Err(BadPort::Dns(53)));
        assert_eq!(Port::try_from(853), Err(BadPort::Dns(853)));
    }
}
