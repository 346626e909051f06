//! The TAP of a slot: its device, mark, address and state.
//!
//! The mark is the alias of the device, which `ip link` shows: `nixbox WORKSPACE GENERATION`. The alias is set before the
//! device is made to outlive the descriptor that made it. So a TAP without its alias never lasts, whenever nixbox is
//! killed. A device of that name with another alias or none belongs to somebody else, and is left alone.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::TryStreamExt;
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{Handle, LinkUnspec};

use super::plan::NetworkPlan;
use crate::files::FileError;
use crate::host::ioctl::{Tap, TapError};
use crate::world::{Generation, Slot};

/// Nothing that is asked of the kernel here takes longer than some milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// Why the device cannot be found, made or removed.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot talk to the kernel about network devices")]
    Connect(#[source] io::Error),
    /// EPERM: CAP_NET_ADMIN is missing.
    #[error("cannot {action} network device {name}")]
    Netlink { action: &'static str, name: String, source: rtnetlink::Error },
    #[error("the kernel did not answer within {LIMIT:?} about network device {0}")]
    TimedOut(String),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(
        "network device {name} is not of this workspace ({found}), and was left as it is; \
         if nothing uses it, remove it with: ip link delete {name}"
    )]
    Foreign { name: String, found: String },
    #[error("network device {0} vanished while it was set up")]
    Vanished(String),
    /// A kernel setting below /proc/sys.
    #[error(transparent)]
    Setting(#[from] FileError),
}

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
}

impl TapDevice {
    /// Whether the device is as [`Link::build`] leaves it.
    pub(super) fn whole(&self, plan: &NetworkPlan) -> bool {
        self.sound
            && self.up
            && self.addresses.len() == 1
            && self.addresses.iter().all(|one| is_gateway(one, plan))
    }
}

/// A netlink connection to the kernel, in the network namespace of the thread that made it.
pub(super) struct Link<'a> {
    plan: &'a NetworkPlan,
    handle: Handle,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl<'a> Link<'a> {
    pub(super) fn new(plan: &'a NetworkPlan) -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Connect)?;
        Ok(Self { plan, handle, driver: tokio::spawn(connection) })
    }

    /// Finds the device, and changes nothing.
    pub(super) async fn find(&self) -> Result<FoundTap, LinkError> {
        let Some(message) = self.get().await? else {
            return Ok(FoundTap::Nothing);
        };
        let alias = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
            _ => None,
        });
        let mark = format!("nixbox {} ", self.plan.workspace);
        if !alias.is_some_and(|alias| alias.starts_with(&mark)) {
            return Ok(FoundTap::Foreign(match alias {
                Some(alias) => format!("its alias is {alias:?}"),
                None => "it has no alias, which nixbox would have set".to_owned(),
            }));
        }
        Ok(FoundTap::Marked(TapDevice {
            index: message.header.index,
            sound: is_sound(&message, self.plan.owner),
            addresses: self.addresses(message.header.index).await?,
            up: message.header.flags.contains(LinkFlags::Up),
        }))
    }

    /// Makes or mends the device, and marks it with this generation.
    pub(super) async fn build(&self, generation: Generation) -> Result<(), LinkError> {
        let device = match self.find().await? {
            FoundTap::Foreign(found) => return Err(self.foreign(found)),
            FoundTap::Marked(device) if device.sound => device,
            FoundTap::Marked(device) => {
                self.delete(device.index).await?;
                self.create(generation).await?
            }
            FoundTap::Nothing => self.create(generation).await?,
        };
        self.mark(device.index, generation).await?;
        // Keeps the host's link-local addresses and router solicitations off the device.
        setting(&format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.plan.tap), "1", true)?;
        for address in device.addresses.iter().filter(|address| !is_gateway(address, self.plan)) {
            self.limited("remove an address of", self.handle.address().del(address.clone()).execute())
                .await?;
        }
        let address = self.handle.address().add(device.index, IpAddr::V4(self.plan.gateway), Slot::PREFIX);
        self.limited("set the address of", address.replace().execute()).await?;
        let up = LinkUnspec::new_with_index(device.index).up().build();
        self.limited("bring up", self.handle.link().set(up).execute()).await
    }

    /// Removes the device, if it has the mark of this workspace.
    pub(super) async fn remove(&self) -> Result<(), LinkError> {
        match self.find().await? {
            FoundTap::Marked(device) => self.delete(device.index).await,
            FoundTap::Nothing | FoundTap::Foreign(_) => Ok(()),
        }
    }

    pub(super) fn foreign(&self, found: String) -> LinkError {
        LinkError::Foreign { name: self.plan.tap.clone(), found }
    }

    async fn create(&self, generation: Generation) -> Result<TapDevice, LinkError> {
        let tap = Tap::create(&self.plan.tap).map_err(|error| match error {
            TapError::Exists(_) => self.foreign("another process made it just now".to_owned()),
            other => other.into(),
        })?;
        let message = self.get().await?.ok_or_else(|| LinkError::Vanished(self.plan.tap.clone()))?;
        let index = message.header.index;
        self.mark(index, generation).await?;
        tap.set_owner(self.plan.owner)?;
        tap.persist()?;
        Ok(TapDevice { index, sound: true, addresses: Vec::new(), up: false })
    }

    async fn mark(&self, index: u32, generation: Generation) -> Result<(), LinkError> {
        let alias = LinkAttribute::IfAlias(format!("nixbox {} {generation}", self.plan.workspace));
        let message = LinkUnspec::new_with_index(index).append_extra_attribute(alias).build();
        self.limited("mark", self.handle.link().set(message).execute()).await
    }

    async fn delete(&self, index: u32) -> Result<(), LinkError> {
        match self.limited("remove", self.handle.link().del(index).execute()).await {
            Err(LinkError::Netlink { source, .. }) if is_missing(&source) => Ok(()),
            other => other,
        }
    }

    async fn get(&self) -> Result<Option<LinkMessage>, LinkError> {
        let mut answer = Box::pin(self.handle.link().get().match_name(self.plan.tap.clone()).execute());
        match self.limited("look at", answer.try_next()).await {
            Err(LinkError::Netlink { source, .. }) if is_missing(&source) => Ok(None),
            other => other,
        }
    }

    async fn addresses(&self, index: u32) -> Result<Vec<AddressMessage>, LinkError> {
        let all = self.handle.address().get().set_link_index_filter(index).execute();
        let all: Vec<AddressMessage> = self.limited("list addresses of", all.try_collect()).await?;
        Ok(all.into_iter().filter(|one| one.header.family == AddressFamily::Inet).collect())
    }

    async fn limited<T>(
        &self,
        action: &'static str,
        call: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, LinkError> {
        let name = || self.plan.tap.clone();
        match tokio::time::timeout(LIMIT, call).await {
            Ok(answer) => answer.map_err(|source| LinkError::Netlink { action, name: name(), source }),
            Err(_elapsed) => Err(LinkError::TimedOut(name())),
        }
    }
}

fn is_missing(error: &rtnetlink::Error) -> bool {
    let missing = -rustix::io::Errno::NODEV.raw_os_error();
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == missing)
}

fn is_gateway(address: &AddressMessage, plan: &NetworkPlan) -> bool {
    let gateway = AddressAttribute::Local(IpAddr::V4(plan.gateway));
    address.header.prefix_len == Slot::PREFIX && address.attributes.contains(&gateway)
}

/// Whether the device is a persistent single-queue TAP with virtio-net headers that the user may attach to.
fn is_sound(message: &LinkMessage, owner: u32) -> bool {
    /// `IFLA_TUN_*` of `linux/if_link.h`.
    const OWNER: u16 = 1;
    const TYPE: u16 = 3;
    const PACKET_INFORMATION: u16 = 4;
    const VNET_HEADER: u16 = 5;
    const PERSIST: u16 = 6;
    const MULTI_QUEUE: u16 = 7;
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let Some(infos) = infos.filter(|infos| infos.contains(&LinkInfo::Kind(InfoKind::Tun))) else {
        return false;
    };
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Tun(data)) => Some(data),
        _ => None,
    });
    let value = |kind: u16| -> Option<Vec<u8>> {
        let attribute: &InfoTun = data?.iter().find(|attribute| attribute.kind() == kind)?;
        let mut bytes = vec![0; attribute.value_len()];
        attribute.emit_value(&mut bytes);
        Some(bytes)
    };
    value(OWNER) == Some(owner.to_ne_bytes().to_vec())
        && [(TYPE, 2), (PACKET_INFORMATION, 0), (VNET_HEADER, 1), (PERSIST, 1), (MULTI_QUEUE, 0)]
            .into_iter()
            .all(|(kind, wanted)| value(kind) == Some(vec![wanted]))
}

/// Whether this host passes packets on between its devices.
pub(super) fn forwards() -> Result<bool, LinkError> {
    let path = FORWARDING;
    let value = std::fs::read_to_string(path).map_err(FileError::system("read", path))?;
    Ok(value.trim() == "1")
}

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Makes this host pass packets on. This is never turned off again, because nixbox cannot know what else has come to
/// need it.
pub(super) fn forward() -> Result<(), LinkError> {
    if forwards()? { Ok(()) } else { setting(FORWARDING, "1", false) }
}

fn setting(path: &str, value: &str, optional: bool) -> Result<(), LinkError> {
    match std::fs::write(path, value) {
        // The kernel has no IPv6.
        Err(error) if optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => Ok(other.map_err(FileError::system("write", path))?),
    }
}
