//! What can be wrong with the network of a VM that runs, and what a person can do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A part of the network of a VM that runs, which is not as it was built. [`fmt::Display`] says what is wrong, in words that
/// follow "the network of the VM: ".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkFault {
    /// The network namespace has lost its name, so that nixbox cannot enter it.
    Namespace,
    /// The process that holds an ordinary user's namespace does not run.
    Holder,
    /// The TAP is gone, or the VMM has no TAP open any more.
    Tap,
    /// The TAP is there, and has lost its address or is down.
    TapState,
    /// The firewall table of the TAP is gone or was changed.
    GuestFirewall,
    /// The uplink is gone, or was changed.
    Uplink,
    /// The addresses of the uplink overlap an address, route or neighbour of the host.
    Overlap,
    /// There is no uplink, because nothing of the pool is free.
    NoFreeUplink,
    /// The rules on the host are gone or were changed: the table of the uplink, or the rules in Docker's chain.
    HostFirewall,
    /// The host passes no packets on.
    Forwarding,
    /// The keeper does not run.
    Keeper,
    /// The follower does not run.
    Follower,
    /// dnsmasq does not run, or not as it was configured.
    Dns,
}

impl NetworkFault {
    /// Every fault that there is.
    pub const ALL: [Self; 13] = [
        Self::Namespace,
        Self::Holder,
        Self::Tap,
        Self::TapState,
        Self::GuestFirewall,
        Self::Uplink,
        Self::Overlap,
        Self::NoFreeUplink,
        Self::HostFirewall,
        Self::Forwarding,
        Self::Keeper,
        Self::Follower,
        Self::Dns,
    ];

    /// What a person can do.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Tap => "a TAP cannot be given to a VM that runs: `nixbox down` and `nixbox up`",
            Self::NoFreeUplink => {
                "name a network that nothing on this host uses in network.uplink, then `nixbox down` and `nixbox up`; nixbox \
                 makes the uplink by itself once a part of the pool is free again"
            }
            _ => "`nixbox recover` repairs it, and so does every command that changes something",
        }
    }
}

impl fmt::Display for NetworkFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Namespace => "the network namespace has lost its name",
            Self::Holder => "the holder of the namespaces does not run, so they end with the VMM",
            Self::Tap => "the VMM has no TAP any more, so the guest has no network",
            Self::TapState => "the TAP is down or has not its address",
            Self::GuestFirewall => "the firewall table of the guest is gone or was changed",
            Self::Uplink => "the uplink is gone or was changed",
            Self::Overlap => {
                "the uplink has an address in common with an address, route or neighbour of the host"
            }
            Self::NoFreeUplink => {
                "there is no uplink, because the host's networks now use all of the pool network.uplink"
            }
            Self::HostFirewall => "the rules of the uplink in the host's firewall are gone or were changed",
            Self::Forwarding => "the host passes no packets on (net.ipv4.ip_forward is 0)",
            Self::Keeper => "the keeper does not run, so the guest resolves no name",
            Self::Follower => {
                "the follower does not run, so the guest may reach addresses that the host got since"
            }
            Self::Dns => "dnsmasq does not run, so the guest gets neither names nor an address",
        })
    }
}
