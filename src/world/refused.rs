//! What a guest wanted to reach and was not let to.

use std::net::Ipv4Addr;
use std::time::Duration;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// An address and port to which packets of the guest were refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedDestination {
    /// The address.
    pub address: Ipv4Addr,
    /// The protocol of the packets.
    pub transport: Transport,
    /// The port.
    pub port: u16,
    /// How long ago the last packet was refused.
    pub last: Duration,
}

/// A name of which the guest was not told the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedName {
    /// The name, in lower case. The guest chose it.
    pub name: String,
    /// How many times the guest has asked.
    pub times: u64,
    /// How long ago it asked last.
    pub last: Duration,
}

/// What a guest was refused, the last first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefusedTraffic {
    /// Packets of the last day, since the rules were made.
    pub destinations: Vec<RefusedDestination>,
    /// Names, since the keeper was started; `None` if no process notes them.
    pub names: Option<Vec<RefusedName>>,
}
