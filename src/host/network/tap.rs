//! The TAP of a VM: its device, mark, address and state.
//!
//! The mark is the alias of the device, which `ip link` shows: `nixbox WORKSPACE GENERATION`. The alias is set before the
//! device is made to outlive the descriptor that made it. So a TAP without its alias never lasts, whenever nixbox is
//! killed. It may last a moment longer than the transition that made it: a process that is being started at the same time has
//! the descriptor, too, until it executes its program. A device of that name with another alias or none that stays belongs to
//! somebody else, and is left alone.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::link::{LinkError, Netlink, alias, bytes_of, setting};
use super::plan::NetworkPlan;
use super::world_route;
use crate::host::ioctl::{Tap, TapError};
use crate::world::{Generation, Slot};

/// How long a device that ends with its descriptors may take to end.
const ENDING: Duration = Duration::from_secs(1);

/// The device that has the name of the TAP.
pub(super) enum FoundTap {
    Nothing,
    /// A device without the mark of this workspace, described for people.
    Foreign(String),
    Marked(TapDevice),
}

/// A device with the mark of this workspace.
pub(super) struct TapDevice {
    index: u32,
    /// Whether it is a TAP as [`Link::build`] makes it. If it is not, the device has to be made anew.
    sound: bool,
    addresses: Vec<AddressMessage>,
    up: bool,
    mtu: Option<u32>,
    /// Whether a process has it open, as the VMM does.
    attached: bool,
}

impl TapDevice {
    /// Whether the VMM can go on with the device. If not, it has to be made anew.
    pub(super) fn serves(&self) -> bool {
        self.sound && self.attached
    }

    /// Whether the device is as [`Link::build`] leaves it.
    pub(super) fn whole(&self, plan: &NetworkPlan) -> bool {
        self.sound
            && self.up
            && self.mtu == Some(plan.mtu)
            && self.addresses.len() == 1
            && self.addresses.iter().all(|one| is_gateway(one, plan))
    }
}

/// Where the device of a plan is, or is to be.
pub(super) struct Link<'a> {
    pub(super) plan: &'a NetworkPlan,
    pub(super) netlink: &'a Netlink,
}

impl Link<'_> {
    /// Finds the device, and changes nothing.
    pub(super) async fn find(&self) -> Result<FoundTap, LinkError> {
        let Some(message) = self.lasting().await? else {
            return Ok(FoundTap::Nothing);
        };
        let alias = alias(&message);
        if !alias.is_some_and(|alias| alias.starts_with(&self.plan.alias(""))) {
            return Ok(FoundTap::Foreign(match alias {
                Some(alias) => format!("its alias is {alias:?}"),
                None => "it has no alias, which nixbox would have set".to_owned(),
            }));
        }
        Ok(FoundTap::Marked(TapDevice {
            index: message.header.index,
            sound: is_sound(&message, self.plan.owner),
            addresses: self.netlink.addresses(Some(message.header.index)).await?,
            up: message.header.flags.contains(LinkFlags::Up),
            mtu: world_route::mtu(&message),
            attached: message.header.flags.contains(LinkFlags::LowerUp),
        }))
    }

    /// The device that has the name. A device without an alias that ends with its descriptors is awaited to end, for at most
    /// [`ENDING`].
    async fn lasting(&self) -> Result<Option<LinkMessage>, LinkError> {
        let deadline = tokio::time::Instant::now() + ENDING;
        let mut pause = Duration::from_millis(1);
        loop {
            let found = self.netlink.get(&self.plan.tap).await?;
            let is_ending = found.as_ref().is_some_and(|found| alias(found).is_none() && is_ending(found));
            if !is_ending || tokio::time::Instant::now() > deadline {
                return Ok(found);
            }
            // To hear of the device's end takes another connection to the kernel, which a child would have to open in the
            // namespace of the device. That takes longer than the device lasts.
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Makes or mends the device, and marks it with this generation. `tun` is /dev/net/tun, opened in the network
    /// namespace of the device, or `None` for that of this thread.
    pub(super) async fn build(&self, generation: Generation, tun: Option<OwnedFd>) -> Result<(), LinkError> {
        let (netlink, name, inside) = (self.netlink, self.plan.tap.as_str(), tun.is_some());
        let index = match self.find().await? {
            FoundTap::Foreign(found) => return Err(self.foreign(found)),
            FoundTap::Marked(device) if device.sound => device.index,
            FoundTap::Marked(device) => {
                netlink.delete(device.index, name).await?;
                self.create(generation, tun).await?
            }
            FoundTap::Nothing => self.create(generation, tun).await?,
        };
        netlink.mark(index, name, self.plan.alias(generation)).await?;
        if !inside {
            // Keeps the host's link-local addresses and router solicitations off the device. A namespace has no IPv6.
            setting(&format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1", true)?;
        }
        netlink.set_address(index, name, self.plan.gateway, Slot::PREFIX).await?;
        netlink.set_mtu(index, name, self.plan.mtu).await?;
        netlink.bring_up(index, name).await
    }

    /// Mends the device without making it anew, because the VMM has it open. A device that is gone or unsound stays so.
    pub(super) async fn mend(&self) -> Result<(), LinkError> {
        let name = self.plan.tap.as_str();
        match self.find().await? {
            FoundTap::Marked(device) if device.sound && !device.whole(self.plan) => {
                self.netlink.set_address(device.index, name, self.plan.gateway, Slot::PREFIX).await?;
                self.netlink.bring_up(device.index, name).await
            }
            _ => Ok(()),
        }
    }

    /// Removes the device, if it has the mark of this workspace.
    pub(super) async fn remove(&self) -> Result<(), LinkError> {
        match self.find().await? {
            FoundTap::Marked(device) => self.netlink.delete(device.index, &self.plan.tap).await,
            FoundTap::Nothing | FoundTap::Foreign(_) => Ok(()),
        }
    }

    pub(super) fn foreign(&self, found: String) -> LinkError {
        LinkError::Foreign { name: self.plan.tap.clone(), found }
    }

    async fn create(&self, generation: Generation, tun: Option<OwnedFd>) -> Result<u32, LinkError> {
        let name = &self.plan.tap;
        let made = match tun {
            Some(tun) => Tap::create_by(tun, name),
            None => Tap::create(name),
        };
        let tap = made.map_err(|error| match error {
            TapError::Exists(_) => self.foreign("another process made it just now".to_owned()),
            other => other.into(),
        })?;
        let message = self.netlink.get(name).await?.ok_or_else(|| LinkError::Vanished(name.clone()))?;
        let index = message.header.index;
        self.netlink.mark(index, name, self.plan.alias(generation)).await?;
        tap.set_owner(self.plan.owner)?;
        tap.persist()?;
        Ok(index)
    }
}

fn is_gateway(address: &AddressMessage, plan: &NetworkPlan) -> bool {
    let gateway = AddressAttribute::Local(IpAddr::V4(plan.gateway));
    address.header.prefix_len == Slot::PREFIX && address.attributes.contains(&gateway)
}

/// `IFLA_TUN_*` of `linux/if_link.h`.
mod attribute {
    pub(super) const OWNER: u16 = 1;
    pub(super) const TYPE: u16 = 3;
    pub(super) const PACKET_INFORMATION: u16 = 4;
    pub(super) const VNET_HEADER: u16 = 5;
    pub(super) const PERSIST: u16 = 6;
    pub(super) const MULTI_QUEUE: u16 = 7;
}

/// The value of an attribute of a TUN or TAP; `None` if the device is neither.
fn tun_attribute(message: &LinkMessage, kind: u16) -> Option<Vec<u8>> {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let infos = infos.filter(|infos| infos.contains(&LinkInfo::Kind(InfoKind::Tun)))?;
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Tun(data)) => Some(data),
        _ => None,
    });
    let attribute: &InfoTun = data?.iter().find(|attribute| attribute.kind() == kind)?;
    Some(bytes_of(attribute))
}

/// Whether the device ends with the last of its descriptors.
fn is_ending(message: &LinkMessage) -> bool {
    tun_attribute(message, attribute::PERSIST) == Some(vec![0])
}

/// Whether the device is a persistent single-queue TAP with virtio-net headers that the user may attach to.
fn is_sound(message: &LinkMessage, owner: u32) -> bool {
    use attribute::{MULTI_QUEUE, OWNER, PACKET_INFORMATION, PERSIST, TYPE, VNET_HEADER};
    tun_attribute(message, OWNER) == Some(owner.to_ne_bytes().to_vec())
        && [(TYPE, 2), (PACKET_INFORMATION, 0), (VNET_HEADER, 1), (PERSIST, 1), (MULTI_QUEUE, 0)]
            .into_iter()
            .all(|(kind, wanted)| tun_attribute(message, kind) == Some(vec![wanted]))
}
