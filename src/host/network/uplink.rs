//! The uplink: a veth pair between the network namespace of a VM and the host's network, and what the host's firewall does
//! for it.
//!
//! The end on the host is called `nixbox-N` and has the first address of the N-th network of the pool, and the end in the
//! namespace has the second. The kernel lets no two devices have one name, so no two VMs have one network of a pool. A network
//! that has an address in common with an address, route or neighbour of the host is passed over, so that nothing of the
//! host's is ever shadowed.
//!
//! The end on the host is made in the namespace, gets its mark there, and is then moved under its name. So a device on the
//! host that bears such a name and no mark is not nixbox's. Both ends go when the namespace goes.
//!
//! The table on the host lets the guest out under the host's address, and lets nothing in. It says once more what the guest
//! must not reach; the table in the namespace does not depend on it.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};

use futures_util::TryStreamExt;
use nftables::expr::{Expression, Fib, FibFlag, FibResult, MetaKey, NamedExpression};
use nftables::stmt::Statement;
use nftables::types::{NfChainType, NfHook};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::firewall::{AddressRange, Rules, is_answer, is_not, payload, reject, within};
use super::link::{LinkError, Netlink, alias, is_address, is_taken, name, setting};
use super::nft::{is, meta, text};
use super::plan::NetworkPlan;
use super::world_route;
use crate::files::FileError;
use crate::world::{Generation, UplinkPool};

/// The end in the namespace.
pub(super) const INNER: &str = "uplink0";
/// The end on the host, before it is moved there.
const UNMOVED: &str = "outer0";
/// Begins the name of the end on the host.
pub(super) const OUTER: &str = "nixbox-";
/// The length of the prefix of the network of an uplink.
const PREFIX: u8 = 30;
/// A route for more addresses than this prefix stands for is a default route by another name.
const BROADEST: u8 = 8;

/// Why there is no uplink.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("cannot look at the host's own network namespace")]
    Host(#[source] FileError),
    #[error(
        "no network of the pool {pool} is free: each has an address in common with an address, route or neighbour of this \
         host, or with the uplink of another VM; name a network that nothing on this host uses in network.uplink"
    )]
    NoneFree { pool: UplinkPool },
}

/// What an uplink is called, and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UplinkPlan {
    /// The device on the host.
    pub(super) device: String,
    /// The first address of its network, which no device has.
    first: Ipv4Addr,
}

impl UplinkPlan {
    fn new(number: usize, first: Ipv4Addr) -> Self {
        Self::of_device(format!("{OUTER}{number}"), first)
    }

    /// The addresses of the network that begins with this one, and the device by which the uplink is known.
    pub(super) fn of_device(device: String, first: Ipv4Addr) -> Self {
        Self { device, first }
    }

    pub(super) fn range(&self) -> AddressRange {
        AddressRange::new(self.first, PREFIX)
    }

    pub(super) fn outer(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() + 1)
    }

    pub(super) fn inner(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() + 2)
    }

    /// The batch that replaces the table on the host.
    pub(super) fn table(&self, table: &str) -> Rules {
        let mut rules = Rules::new(table, &self.device);
        let kind = Fib { result: FibResult::Type, flags: std::collections::HashSet::from([FibFlag::Daddr]) };
        let local = is(Expression::Named(NamedExpression::Fib(kind)), text("local"));
        // Before destination NAT (-100), which may replace an address of the host by that of a container.
        rules.chain("guard", NfChainType::Filter, NfHook::Prerouting, -150);
        let others = payload("ip", "saddr");
        rules.rule_for_guest(vec![is_not(others, text(self.inner()))], Statement::Drop(None));
        rules.rule_for_guest(vec![local], reject());
        rules.chain("input", NfChainType::Filter, NfHook::Input, 0);
        rules.rule_for_guest(vec![], reject());
        rules.chain("forward", NfChainType::Filter, NfHook::Forward, 0);
        let other_vm = is(meta(MetaKey::Oifname), text(format!("{OUTER}*")));
        rules.rule_for_guest(vec![other_vm], reject());
        let to_guest = || is(meta(MetaKey::Oifname), text(&self.device));
        rules.rule(vec![to_guest(), is_answer(), Statement::Accept(None)]);
        rules.rule(vec![to_guest(), reject()]);
        rules.chain("postrouting", NfChainType::NAT, NfHook::Postrouting, 100);
        rules.rule(vec![
            is(payload("ip", "saddr"), within(self.first, PREFIX)),
            is_not(meta(MetaKey::Oifname), text(&self.device)),
            Statement::Masquerade(None),
        ]);
        rules
    }
}

/// The uplink of a VM, seen from both sides.
pub(super) struct Uplink<'a> {
    pub(super) plan: &'a NetworkPlan,
    pub(super) pool: &'a UplinkPool,
    /// The host's network.
    pub(super) host: &'a Netlink,
    /// The namespace.
    pub(super) inside: &'a Netlink,
}

/// The uplink as it was found.
pub(super) enum FoundUplink {
    Nothing,
    /// Something is missing.
    Partial,
    /// It stands in the way of the host: an address, route or neighbour of the host overlaps its addresses.
    Overlaps,
    Whole(UplinkPlan),
}

impl FoundUplink {
    /// The uplink, if it is whole.
    pub(super) fn plan(&self) -> Option<&UplinkPlan> {
        match self {
            Self::Whole(plan) => Some(plan),
            Self::Nothing | Self::Partial | Self::Overlaps => None,
        }
    }
}

impl Uplink<'_> {
    /// Finds the uplink, and changes nothing.
    pub(super) async fn find(&self) -> Result<FoundUplink, UplinkError> {
        let outer = self.outer().await?;
        let inner = self.inside.get(INNER).await?;
        let (outer, inner) = match (outer.as_slice(), inner) {
            ([], None) => return Ok(FoundUplink::Nothing),
            ([outer], Some(inner)) => (outer, inner),
            _ => return Ok(FoundUplink::Partial),
        };
        let number = name(outer).strip_prefix(OUTER).and_then(|number| number.parse::<usize>().ok());
        let first = number.and_then(|number| Some((number, self.pool.uplinks().nth(number)?)));
        let Some(plan) = first.map(|(number, first)| UplinkPlan::new(number, first)) else {
            return Ok(FoundUplink::Partial);
        };
        let set = self.is_set(self.host, outer, plan.outer()).await?
            && self.is_set(self.inside, &inner, plan.inner()).await?
            && self.is_routed(&plan).await?;
        if !set {
            return Ok(FoundUplink::Partial);
        }
        let busy = self.busy(Some(outer.header.index)).await?;
        let free = !busy.iter().any(|busy| busy.overlaps(plan.range()));
        Ok(if free { FoundUplink::Whole(plan) } else { FoundUplink::Overlaps })
    }

    /// Whether a pair of the pool is free, so that an uplink could be made now.
    pub(super) async fn has_room(&self) -> Result<bool, UplinkError> {
        let busy = self.busy(None).await?;
        let names = self.host.links().await?;
        Ok(self.candidates(&busy).any(|plan| !names.iter().any(|link| name(link) == plan.device)))
    }

    /// The uplinks that have nothing in common with these addresses.
    fn candidates<'b>(&'b self, busy: &'b [AddressRange]) -> impl Iterator<Item = UplinkPlan> + 'b {
        let plans = self.pool.uplinks().enumerate().map(|(number, first)| UplinkPlan::new(number, first));
        plans.filter(|plan| !busy.iter().any(|range| range.overlaps(plan.range())))
    }

    /// Takes the end in the namespace down, so that nothing leaves the namespace.
    pub(super) async fn cut(&self) -> Result<(), UplinkError> {
        if let Some(inner) = self.inside.get(INNER).await? {
            self.inside.bring_down(inner.header.index, INNER).await?;
        }
        Ok(())
    }

    /// Makes the uplink anew, unless it is whole.
    pub(super) async fn build(&self, generation: Generation) -> Result<UplinkPlan, UplinkError> {
        self.set_mtu().await?;
        if let FoundUplink::Whole(plan) = self.find().await? {
            return Ok(plan);
        }
        self.remove().await?;
        let busy = self.busy(None).await?;
        for plan in self.candidates(&busy) {
            match self.make(&plan, generation).await {
                Err(UplinkError::Link(error)) if is_taken(&error) => self.remove().await?,
                other => return other.map(|()| plan),
            }
        }
        Err(UplinkError::NoneFree { pool: self.pool.clone() })
    }

    /// Sets the MTU of the ends that there are. Connections go on, which they would not over another uplink.
    async fn set_mtu(&self) -> Result<(), UplinkError> {
        for outer in self.outer().await? {
            self.host.set_mtu(outer.header.index, name(&outer), self.plan.mtu).await?;
        }
        if let Some(inner) = self.inside.get(INNER).await? {
            self.inside.set_mtu(inner.header.index, INNER, self.plan.mtu).await?;
        }
        Ok(())
    }

    /// Removes both ends.
    pub(super) async fn remove(&self) -> Result<(), UplinkError> {
        for outer in self.outer().await? {
            self.host.delete(outer.header.index, name(&outer)).await?;
        }
        for end in [INNER, UNMOVED] {
            if let Some(device) = self.inside.get(end).await? {
                self.inside.delete(device.header.index, end).await?;
            }
        }
        Ok(())
    }

    /// The ends on the host with the mark of this workspace.
    async fn outer(&self) -> Result<Vec<LinkMessage>, UplinkError> {
        let links = self.host.links().await?;
        Ok(links.into_iter().filter(|link| is_outer(link, self.plan)).collect())
    }

    async fn make(&self, plan: &UplinkPlan, generation: Generation) -> Result<(), UplinkError> {
        let (inside, host) = (self.inside, self.host);
        let veth = LinkVeth::new(INNER, UNMOVED).mtu(self.plan.mtu).build();
        inside.limited("make", INNER, inside.handle.link().add(veth).execute()).await?;
        let unmoved = self.device(inside, UNMOVED).await?;
        inside.mark(unmoved, UNMOVED, self.plan.alias(generation)).await?;
        let here = std::fs::File::open("/proc/thread-self/ns/net")
            .map_err(FileError::system("open", "/proc/thread-self/ns/net"))
            .map_err(UplinkError::Host)?;
        let there = LinkUnspec::new_with_index(unmoved)
            .name(plan.device.clone())
            .setns_by_fd(here.as_fd().as_raw_fd())
            .build();
        inside.limited("move", &plan.device, inside.handle.link().set(there).execute()).await?;
        let outer = self.device(host, &plan.device).await?;
        setting(&format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", plan.device), "1", true)?;
        host.set_mtu(outer, &plan.device, self.plan.mtu).await?;
        host.set_address(outer, &plan.device, plan.outer(), PREFIX).await?;
        host.bring_up(outer, &plan.device).await?;
        let inner = self.device(inside, INNER).await?;
        inside.set_address(inner, INNER, plan.inner(), PREFIX).await?;
        self.join(plan).await
    }

    /// Brings the end in the namespace up, and lets the default route lead through it.
    pub(super) async fn join(&self, plan: &UplinkPlan) -> Result<(), UplinkError> {
        let Some(inner) = self.inside.get(INNER).await? else { return Ok(()) };
        self.inside.bring_up(inner.header.index, INNER).await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(plan.outer()).build();
        let added = self.inside.handle.route().add(route).replace().execute();
        Ok(self.inside.limited("route through", INNER, added).await?)
    }

    async fn device(&self, netlink: &Netlink, name: &str) -> Result<u32, LinkError> {
        let device = netlink.get(name).await?;
        Ok(device.ok_or_else(|| LinkError::Vanished(name.to_owned()))?.header.index)
    }

    pub(super) async fn is_set(
        &self,
        netlink: &Netlink,
        device: &LinkMessage,
        address: Ipv4Addr,
    ) -> Result<bool, LinkError> {
        let addresses = netlink.addresses(Some(device.header.index)).await?;
        let one = addresses.len() == 1 && addresses.iter().all(|one| is_address(one, address, PREFIX));
        let fits = world_route::mtu(device) == Some(self.plan.mtu);
        Ok(one && fits && device.header.flags.contains(LinkFlags::Up))
    }

    /// Whether the default route of the namespace leads through the uplink.
    pub(super) async fn is_routed(&self, plan: &UplinkPlan) -> Result<bool, LinkError> {
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(plan.outer()));
        let routes = routes(self.inside).await?;
        Ok(routes
            .iter()
            .any(|route| route.header.destination_prefix_length == 0 && route.attributes.contains(&gateway)))
    }

    /// The addresses that the host and the guest use, without those of the device `own`.
    async fn busy(&self, own: Option<u32>) -> Result<Vec<AddressRange>, LinkError> {
        let is_other = |index: Option<u32>| own.is_none() || index != own;
        let mut busy = vec![AddressRange::new(self.plan.gateway, PREFIX)];
        for address in self.host.addresses(None).await? {
            if is_other(Some(address.header.index)) {
                busy.extend(ranges_of_address(&address));
            }
        }
        for route in routes(self.host).await? {
            let device = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            if is_other(device) {
                busy.extend(ranges_of_route(&route));
            }
        }
        let neighbours =
            self.host.handle.neighbours().get().set_address_family(AddressFamily::Inet).execute();
        let neighbours: Vec<_> =
            self.host.limited("list neighbours of", "the host", neighbours.try_collect()).await?;
        for neighbour in neighbours {
            if is_other(Some(neighbour.header.ifindex)) {
                busy.extend(neighbour.attributes.iter().filter_map(|attribute| match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                        Some(AddressRange::new(*address, 32))
                    }
                    _ => None,
                }));
            }
        }
        Ok(busy)
    }
}

/// Whether a device of the host is the end of an uplink of this workspace.
fn is_outer(link: &LinkMessage, plan: &NetworkPlan) -> bool {
    name(link).starts_with(OUTER) && alias(link).is_some_and(|alias| alias.starts_with(&plan.alias("")))
}

/// Removes what is left of an uplink on the host, whose namespace is gone.
pub(super) async fn remove_outer(host: &Netlink, plan: &NetworkPlan) -> Result<(), LinkError> {
    for link in host.links().await?.iter().filter(|link| is_outer(link, plan)) {
        host.delete(link.header.index, name(link)).await?;
    }
    Ok(())
}

/// Whether a device of the host is left of an uplink.
pub(super) async fn has_outer(host: &Netlink, plan: &NetworkPlan) -> Result<bool, LinkError> {
    Ok(host.links().await?.iter().any(|link| is_outer(link, plan)))
}

/// The addresses of a pool.
pub(super) fn range_of(pool: &UplinkPool) -> AddressRange {
    let (address, prefix) = pool.range();
    AddressRange::new(address, prefix)
}

/// The addresses that a guest must not reach: the host's own, and those of all uplinks. In order, none twice.
pub(super) async fn refused(host: &Netlink, pool: &UplinkPool) -> Result<Vec<AddressRange>, LinkError> {
    let pool = range_of(pool);
    let addresses = host.addresses(None).await?;
    let own = addresses.iter().filter_map(local).map(|address| AddressRange::new(address, 32));
    let mut refused: Vec<_> = own.filter(|address| !pool.overlaps(*address)).chain([pool]).collect();
    refused.sort_unstable();
    refused.dedup();
    Ok(refused)
}

async fn routes(netlink: &Netlink) -> Result<Vec<RouteMessage>, LinkError> {
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes = netlink.handle.route().get(all).execute();
    netlink.limited("list routes of", "the host", routes.try_collect()).await
}

/// The address of the device itself.
fn local(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

/// The network of an address, and that of its other end.
fn ranges_of_address(message: &AddressMessage) -> Vec<AddressRange> {
    let range = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) | AddressAttribute::Address(IpAddr::V4(address)) => {
            Some(AddressRange::new(*address, message.header.prefix_len))
        }
        _ => None,
    };
    message.attributes.iter().filter_map(range).collect()
}

/// What a route leads to, unless that is about everything, and its gateway.
fn ranges_of_route(message: &RouteMessage) -> Vec<AddressRange> {
    let prefix = message.header.destination_prefix_length;
    let range = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) if prefix >= BROADEST => {
            Some(AddressRange::new(*address, prefix))
        }
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(AddressRange::new(*address, 32)),
        _ => None,
    };
    message.attributes.iter().filter_map(range).collect()
}
