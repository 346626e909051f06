//! The ports that `nixbox forward` is asked for.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;

/// The ports below this number are for root.
const FIRST_FREE: u16 = 1024;

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
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
}

impl PortError {
    /// Whether the command line is wrong, whatever this host is like.
    pub(super) fn is_usage(&self) -> bool {
        matches!(self, Self::Form(_) | Self::Number(_) | Self::Address(_) | Self::Twice(_))
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

/// A port of this host and a port of the guest that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PortPair {
    pub(super) host: SocketAddr,
    pub(super) guest: u16,
}

impl PortPair {
    /// Parses `[HOST:]PORT[:PORT]`. The first port is that of the side that listens; the other side has the same if there is
    /// no second.
    pub(super) fn parse(text: &str, listening: Listening) -> Result<Self, PortError> {
        let form = || PortError::Form(text.to_owned());
        let (host, ports) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (address, ports) = bracketed.split_once("]:").ok_or_else(form)?;
                let address = address.parse().map_err(|_| PortError::Address(address.to_owned()))?;
                (IpAddr::V6(address), ports)
            }
            None => match text.split_once(':') {
                Some((host, ports)) if !is_number(host) => (parse_address(host)?, ports),
                _ => (Ipv4Addr::LOCALHOST.into(), text),
            },
        };
        let ports: Vec<_> = ports.split(':').collect();
        let (first, second) = match ports[..] {
            [both] => (both, both),
            [first, second] => (first, second),
            _ => return Err(form()),
        };
        let (first, second) = (parse_port(first)?, parse_port(second)?);
        let (on_host, guest) = match listening {
            Listening::Host => (first, second),
            Listening::Guest => (second, first),
        };
        Ok(Self { host: SocketAddr::new(host, on_host), guest })
    }

    /// Parses several, of which no two may listen on the same port.
    pub(super) fn parse_all(texts: &[String], listening: Listening) -> Result<Vec<Self>, PortError> {
        let mut seen = BTreeSet::new();
        let mut pairs = Vec::new();
        for text in texts {
            let pair = Self::parse(text, listening)?;
            let listens = match listening {
                Listening::Host => pair.host.to_string(),
                Listening::Guest => format!("port {} of the guest", pair.guest),
            };
            if !seen.insert(listens.clone()) {
                return Err(PortError::Twice(listens));
            }
            pairs.push(pair);
        }
        Ok(pairs)
    }

    /// What is forwarded, for people.
    pub(super) fn sentence(self, listening: Listening) -> String {
        match listening {
            Listening::Host => format!("{} leads to port {} of the guest", self.host, self.guest),
            Listening::Guest => format!("port {} of the guest leads to {}", self.guest, self.host),
        }
    }
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

/// Listens on all of the host's ports, or on none.
pub(super) async fn bind_all(pairs: &[PortPair]) -> Result<Vec<TcpListener>, PortError> {
    let mut listeners = Vec::new();
    for pair in pairs {
        let address = pair.host;
        let bound = TcpListener::bind(address).await;
        listeners.push(bound.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => PortError::Taken(address),
            io::ErrorKind::PermissionDenied if address.port() < FIRST_FREE => PortError::Privileged(address),
            _ => PortError::Listen { address, source },
        })?);
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests;
