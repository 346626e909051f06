//! The comparison of what a packet has with the right side of a match, as nft lists it. Uses no other file of this module.

use std::net::Ipv4Addr;

use serde_json::Value;

/// Whether a rule is about a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    Yes,
    No,
    Unknown,
}

impl Truth {
    pub(super) fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
        }
    }

    /// Whether one of these is true.
    pub(super) fn any(all: impl IntoIterator<Item = Self>) -> Self {
        let mut any = Self::No;
        for one in all {
            match one {
                Self::Yes => return Self::Yes,
                Self::Unknown => any = Self::Unknown,
                Self::No => {}
            }
        }
        any
    }
}

impl From<bool> for Truth {
    fn from(truth: bool) -> Self {
        if truth { Self::Yes } else { Self::No }
    }
}

/// Something of the packet.
pub(super) enum PacketValue {
    Text(String),
    Protocol(&'static str),
    Number(u64),
    Address(Ipv4Addr),
}

impl PacketValue {
    /// Whether it is the right side of a match, or in it.
    pub(super) fn is(&self, right: &Value) -> Truth {
        match right {
            Value::Array(all) => Truth::any(all.iter().map(|one| self.is(one))),
            // A named set.
            Value::String(name) if name.starts_with('@') => Truth::Unknown,
            Value::String(text) => self.is_text(text),
            Value::Number(number) => match self {
                Self::Number(own) => Truth::from(number.as_u64() == Some(*own)),
                Self::Protocol(own) => {
                    Truth::from(number.as_u64() == Some(if *own == "tcp" { 6 } else { 17 }))
                }
                Self::Text(_) | Self::Address(_) => Truth::No,
            },
            Value::Object(object) => match object.iter().next() {
                Some((kind, all)) if kind == "set" => self.is(all),
                Some((kind, element)) if kind == "elem" => self.is(&element["val"]),
                Some((kind, prefix)) if kind == "prefix" => self.is_within(prefix),
                Some((kind, range)) if kind == "range" => self.is_between(range),
                _ => Truth::Unknown,
            },
            _ => Truth::Unknown,
        }
    }

    fn is_text(&self, text: &str) -> Truth {
        match self {
            Self::Text(own) => Truth::from(match text.strip_suffix('*') {
                Some(beginning) => own.starts_with(beginning),
                None => own == text,
            }),
            Self::Protocol(own) => Truth::from(*own == text),
            Self::Address(own) => {
                text.parse().map_or(Truth::Unknown, |address: Ipv4Addr| (*own == address).into())
            }
            // The name of a service.
            Self::Number(_) => Truth::Unknown,
        }
    }

    fn is_within(&self, prefix: &Value) -> Truth {
        let address = prefix["addr"].as_str().and_then(|text| text.parse::<Ipv4Addr>().ok());
        let length = prefix["len"].as_u64().and_then(|length| u32::try_from(length).ok());
        match (self, address, length) {
            (Self::Address(own), Some(address), Some(length)) if length <= 32 => {
                let different = own.to_bits() ^ address.to_bits();
                Truth::from(different.checked_shr(32 - length).unwrap_or(0) == 0)
            }
            _ => Truth::Unknown,
        }
    }

    fn is_between(&self, range: &Value) -> Truth {
        let number = |value: &Value| match value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse::<Ipv4Addr>().ok().map(|address| address.to_bits().into()),
            _ => None,
        };
        let own = match self {
            Self::Number(own) => *own,
            Self::Address(own) => own.to_bits().into(),
            Self::Text(_) | Self::Protocol(_) => return Truth::Unknown,
        };
        match (number(&range[0]), number(&range[1])) {
            (Some(first), Some(last)) => Truth::from((first..=last).contains(&own)),
            _ => Truth::Unknown,
        }
    }
}
