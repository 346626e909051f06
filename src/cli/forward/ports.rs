//! The ports that `nixbox forward` is asked for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::{fmt, io};

/// The ports below this number are for root.
pub(super) const FIRST_FREE: u16 = 1024;

/// The most bytes that the path of a Unix socket may have: the kernel ends it with a zero in the 108 of unix(7).
const SOCKET_LIMIT: usize = 107;

/// Why ports cannot be forwarded. Nothing was bound.
#[derive(Debug, thiserror::Error)]
pub(super) enum PortError {
    #[error("{0:?} is not of the form [HOST:]PORT[:PORT]; an IPv6 address stands in brackets")]
    Form(String),
    #[error("{0:?} is not a port: a port is a number from 1 to 65535")]
    Number(String),
    #[error("{0:?} is not an address of this host: write an IP address, or localhost")]
    Address(String),
    #[error("{0} is asked for twice")]
    Twice(String),
    #[error("{0} is in use on this host already")]
    Taken(SocketAddr),
    #[error("only root may listen on {0}, because its port is below {FIRST_FREE}")]
    Privileged(SocketAddr),
    #[error("{} exists already: remove it, unless a program listens there", .0.display())]
    Exists(PathBuf),
    #[error("{0:?} is longer than the {SOCKET_LIMIT} bytes that the path of a Unix socket may have")]
    LongPath(String),
    #[error("cannot listen on {end}")]
    Listen { end: HostEnd, source: io::Error },
}

impl PortError {
    /// Whether the command line is wrong, whatever this host is like.
    pub(super) fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Form(_) | Self::Number(_) | Self::Address(_) | Self::Twice(_) | Self::LongPath(_)
        )
    }
}

/// Which side listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listening {
    /// This host, for programs here that use a port of the guest.
    Host,
    /// The guest, for programs there that use a port of this host.
    Guest,
}

/// The end of a forwarded connection on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostEnd {
    Address(SocketAddr),
    Socket(PathBuf),
}

impl fmt::Display for HostEnd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Socket(path) => path.display().fmt(formatter),
        }
    }
}

/// The end of a forwarded connection in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GuestEnd {
    /// A port of its loopback.
    Port(u16),
    /// The path of a Unix socket.
    Socket(String),
}

impl fmt::Display for GuestEnd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(formatter, "port {port} of the guest"),
            Self::Socket(path) => write!(formatter, "{path} of the guest"),
        }
    }
}

/// A port or a Unix socket, as the command line has it.
#[derive(Debug, Clone, Copy)]
enum WrittenEnd<'a> {
    Port(u16),
    Path(&'a str),
}

/// A port of this host and a port of the guest that belong together. Either can be a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortPair {
    pub(super) host: HostEnd,
    pub(super) guest: GuestEnd,
}

impl PortPair {
    /// Parses `[HOST:]PORT[:PORT]`, in which each port may be the absolute path of a Unix socket. The first is that of the side
    /// that listens; the other side has the same port if there is no second.
    pub(super) fn parse(text: &str, listening: Listening) -> Result<Self, PortError> {
        let (address, ends) = split_address(text)?;
        let form = || PortError::Form(text.to_owned());
        let (first, second) = split_ends(ends).ok_or_else(form)?;
        let first = parse_end(first)?;
        let second = match (second, first) {
            (Some(second), _) => parse_end(second)?,
            (None, WrittenEnd::Port(_)) => first,
            (None, WrittenEnd::Path(_)) => return Err(form()),
        };
        let (on_host, in_guest) = match listening {
            Listening::Host => (first, second),
            Listening::Guest => (second, first),
        };
        let host = match (on_host, address) {
            (WrittenEnd::Port(port), address) => {
                HostEnd::Address(SocketAddr::new(address.unwrap_or(Ipv4Addr::LOCALHOST.into()), port))
            }
            (WrittenEnd::Path(path), None) => HostEnd::Socket(path.into()),
            (WrittenEnd::Path(_), Some(_)) => return Err(form()),
        };
        let guest = match in_guest {
            WrittenEnd::Port(port) => GuestEnd::Port(port),
            WrittenEnd::Path(path) => GuestEnd::Socket(path.to_owned()),
        };
        Ok(Self { host, guest })
    }

    /// Parses several, of which no two may listen on the same port.
    pub(super) fn parse_all(texts: &[String], listening: Listening) -> Result<Vec<Self>, PortError> {
        let mut seen = BTreeSet::new();
        let mut pairs = Vec::new();
        for text in texts {
            let pair = Self::parse(text, listening)?;
            let listens = match listening {
                Listening::Host => pair.host.to_string(),
                Listening::Guest => pair.guest.to_string(),
            };
            if !seen.insert(listens.clone()) {
                return Err(PortError::Twice(listens));
            }
            pairs.push(pair);
        }
        Ok(pairs)
    }

    /// What is forwarded, for programs.
    pub(super) fn json(&self, listening: Listening) -> serde_json::Value {
        let listens = match listening {
            Listening::Host => "host",
            Listening::Guest => "guest",
        };
        let (key, guest) = match &self.guest {
            GuestEnd::Port(port) => ("guest_port", serde_json::json!(port)),
            GuestEnd::Socket(path) => ("guest_socket", serde_json::json!(path)),
        };
        serde_json::json!({ "listens": listens, "host": self.host.to_string(), key: guest })
    }

    /// Whether a person means this pair with a word: what the command line had for it, or the end that listens alone.
    pub(super) fn is_meant_by(&self, word: &str, listening: Listening) -> bool {
        let port = match (listening, &self.host, &self.guest) {
            (Listening::Host, HostEnd::Address(address), _) => Some(address.port()),
            (Listening::Guest, _, GuestEnd::Port(port)) => Some(*port),
            _ => None,
        };
        let end = match (listening, &self.guest) {
            (Listening::Host, _) => self.host.to_string(),
            (Listening::Guest, GuestEnd::Port(port)) => port.to_string(),
            (Listening::Guest, GuestEnd::Socket(path)) => path.clone(),
        };
        let is_port = port.is_some_and(|port| word == port.to_string());
        is_port || word == end || Self::parse(word, listening).is_ok_and(|pair| pair == *self)
    }

    /// What is forwarded, for people.
    pub(super) fn sentence(&self, listening: Listening) -> String {
        match listening {
            Listening::Host => format!("{} leads to {}", self.host, self.guest),
            Listening::Guest => format!("{} leads to {}", self.guest, self.host),
        }
    }
}

/// The address before the ports, and the ports.
fn split_address(text: &str) -> Result<(Option<IpAddr>, &str), PortError> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, ends) = bracketed.split_once("]:").ok_or_else(|| PortError::Form(text.to_owned()))?;
        let address = address.parse().map_err(|_| PortError::Address(address.to_owned()))?;
        return Ok((Some(IpAddr::V6(address)), ends));
    }
    match text.split_once(':') {
        Some((host, ends)) if !is_number(host) && !host.starts_with('/') => {
            Ok((Some(parse_address(host)?), ends))
        }
        _ => Ok((None, text)),
    }
}

/// The ends on both sides; `None` if there are more. A path may have colons in it, and ends before one with a slash or a
/// number after it.
fn split_ends(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some((first, _)) = text.split_once(":/") {
        return Some((first, Some(&text[first.len() + 1..])));
    }
    let split = if text.starts_with('/') { text.rsplit_once(':') } else { text.split_once(':') };
    match split {
        Some((_, second)) if second.contains(':') => None,
        Some((first, second)) => Some((first, Some(second))),
        None => Some((text, None)),
    }
}

fn parse_end(text: &str) -> Result<WrittenEnd<'_>, PortError> {
    if !text.starts_with('/') {
        return Ok(WrittenEnd::Port(parse_port(text)?));
    }
    if text.len() > SOCKET_LIMIT {
        return Err(PortError::LongPath(text.to_owned()));
    }
    Ok(WrittenEnd::Path(text))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_port(text: &str) -> Result<u16, PortError> {
    let port = if is_number(text) { text.parse().ok() } else { None };
    port.filter(|port| *port != 0).ok_or_else(|| PortError::Number(text.to_owned()))
}

fn parse_address(text: &str) -> Result<IpAddr, PortError> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        text => text.parse().map_err(|_| PortError::Address(text.to_owned())),
    }
}

#[cfg(test)]
mod tests;
