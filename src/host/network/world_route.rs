//! The route from the host to the Internet: through which device, and how large a packet may be there. May use `link`.
//!
//! The devices of a VM get the MTU of that route, so that neither the guest sends packets that are too large for a VPN, nor
//! a network with large packets goes unused. A guest hears of it by DHCP. A guest that keeps another MTU, as a guest of a snapshot
//! does, is told by the host with each packet that is too large (RFC 1191).

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMetric};

use super::link::{LinkError, Netlink, is_unreachable, name};

/// The MTU of Ethernet, which is used where the host has no route to the Internet.
pub(super) const ETHERNET: u32 = 1500;

/// The MTUs that a VM's devices can have. Each host takes packets of the smallest (RFC 1122), and larger ones than the largest
/// are not sent on any Ethernet.
const SENSIBLE: RangeInclusive<u32> = 576..=9000;

/// An address on the Internet, for which any other would do. Nothing is sent to it.
const SOMEWHERE: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);

/// The route to the Internet.
pub(super) struct WorldRoute {
    /// The device that packets leave by.
    pub(super) device: String,
    pub(super) mtu: u32,
}

/// The route of the moment, by all rules and tables of the host; `None` if there is none.
pub(super) async fn find(host: &Netlink) -> Result<Option<WorldRoute>, LinkError> {
    let question = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(SOMEWHERE, 32).build();
    let mut answers = Box::pin(host.handle.route().get(question).execute());
    let route = match host.limited("find the route to the world of", "the host", answers.try_next()).await {
        Ok(Some(route)) => route,
        Ok(None) => return Ok(None),
        Err(error) if is_unreachable(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let index = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let links = host.links().await?;
    let Some(link) = links.iter().find(|link| Some(link.header.index) == index) else { return Ok(None) };
    let metrics = route.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    });
    let of_route = metrics.flatten().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let mtu = of_route.or(mtu(link)).unwrap_or(ETHERNET);
    Ok(Some(WorldRoute { device: name(link).to_owned(), mtu: mtu.clamp(*SENSIBLE.start(), *SENSIBLE.end()) }))
}

/// The MTU of a device.
pub(super) fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}
