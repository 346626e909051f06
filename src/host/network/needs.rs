//! What the network needs of the host: programs, and that the host passes packets on. May use the errors of this module.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use super::dhcp;
use super::error::NetworkError;
use super::legacy;
use super::link::Netlink;
use super::obstacle::{self, Guests, Obstacle};
use super::tool::{self, NetworkTool};
use super::world_route;
use crate::files::FileError;
use crate::host::program::ProgramError;
use crate::world::{NetworkPolicy, Slot};

/// The time limit of a program that prints its version. It starts slowly in software emulation.
const LIMIT: Duration = Duration::from_secs(20);

/// Whether the host passes packets on.
pub(super) const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Whether this host passes packets on between its devices. nixbox turns this on and never off again, because nixbox
/// cannot know what else has come to need it.
///
/// # Errors
/// If /proc does not say.
pub fn forwards() -> Result<bool, NetworkError> {
    let value = std::fs::read_to_string(FORWARDING).map_err(FileError::system("read", FORWARDING))?;
    Ok(value.trim() == "1")
}

/// Where `nft` or `dnsmasq` is: the programs that get privileges from nixbox.
///
/// # Errors
/// [`ProgramError::Missing`], with the directories that were searched.
pub fn program_path(name: &'static str) -> Result<PathBuf, ProgramError> {
    tool::locate(name)
}

/// Whether the installed dnsmasq can fill nftables sets, as filtered mode needs. Version 2.87 was the first that could.
///
/// # Errors
/// If dnsmasq cannot be run.
pub async fn fills_sets() -> Result<bool, ProgramError> {
    let program = NetworkTool {
        name: "dnsmasq",
        arguments: &["--version"],
        mark: None,
        confinement: None,
        scope: None,
        input: &[],
        limit: LIMIT,
        inside: None,
    };
    Ok(dhcp::fills_sets(&String::from_utf8_lossy(&program.run().await?.stdout)))
}

/// Finds another firewall of this host that drops what a VM of this policy sends, or what it is answered. Where the firewall
/// offers a chain to others, nixbox uses that, and there is no obstacle. `slot` is that of a VM whose TAP is to be in the
/// network of the host; the traffic of the others comes from an uplink.
///
/// # Errors
/// If nft, the legacy iptables or the kernel cannot be asked.
pub async fn find_obstacle(
    policy: &NetworkPolicy,
    slot: Option<Slot>,
) -> Result<Option<Obstacle>, NetworkError> {
    let failed = |source| NetworkError::Firewalls { source };
    let nft = |arguments| NetworkTool {
        name: "nft",
        arguments,
        mark: None,
        confinement: None,
        scope: None,
        input: &[],
        limit: LIMIT,
        inside: None,
    };
    let listing = nft(&["-j", "list", "ruleset"]).run().await.map_err(failed)?.stdout;
    let json = |source| failed(ProgramError::Json { name: "nft", source });
    let ruleset: serde_json::Value = serde_json::from_slice(&listing).map_err(json)?;
    let device = |source| NetworkError::Host { source };
    let host = Netlink::here().map_err(device)?;
    let world = world_route::find(&host).await.map_err(device)?.map(|route| route.device);
    let (guests, packets) = match slot {
        None => {
            let guests = Guests { network: policy.uplink.to_string(), devices: "nixbox-" };
            let inner = policy.uplink.uplinks().next().map(|first| Ipv4Addr::from_bits(first.to_bits() + 2));
            (guests, obstacle::exchange("nixbox-0", inner, world).to_vec())
        }
        Some(slot) => {
            let mut packets = obstacle::exchange(&slot.tap(), Some(slot.guest()), world).to_vec();
            packets.extend(obstacle::questions_to_host(&slot.tap(), slot.gateway(), slot.guest()));
            (Guests { network: "172.16.0.0/16".to_owned(), devices: "vm" }, packets)
        }
    };
    if let Some(found) = obstacle::find(&ruleset, &packets, &guests) {
        return Ok(Some(found));
    }
    Ok(legacy::save().await.map_err(failed)?.and_then(|saved| obstacle::find_legacy(&saved)))
}
