//! The TAP of a slot: its device, mark, address and state.
//!
//! The mark is the device's alias (`ip link` shows it): `nixbox WORKSPACE GENERATION`. It is set before the device
//! outlives the descriptor that made it, so that there is never a lasting TAP of ours without it, whatever is killed
//! when. A device of that name without our mark is another's, and is left alone.

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

use super::NetworkPlan;
use crate::host::ioctl::{Tap, TapError};
use crate::world::{Generation, Slot};

/// Nothing that is asked of the kernel here takes longer than some milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// What cannot be done about the device.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No netlink socket.
    #[error("cannot talk to the kernel about network devices")]
    Connect(#[source] io::Error),
    /// The kernel refuses. EPERM: CAP_NET_ADMIN is missing.
    #[error("cannot {what} network device {name}")]
    Netlink {
        /// The verb.
        what: &'static str,
        /// The device.
        name: String,
        /// What the kernel says.
        source: rtnetlink::Error,
    },
    /// The kernel does not answer.
    #[error("the kernel did not answer within {LIMIT:?} about network device {0}")]
    TimedOut(String),
    /// It could not be made.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A device of that name is there and not marked as this workspace's. It is left untouched.
    #[error(
        "network device {name} is not of this workspace ({what}); \
         if nothing uses it, remove it with: ip link delete {name}"
    )]
    Another {
        /// The device.
        name: String,
        /// What was found.
        what: String,
    },
    /// The device that was just made is gone.
    #[error("network device {0} vanished while it was set up")]
    Vanished(String),
    /// A kernel setting for the device.
    #[error("cannot write {path}")]
    Setting {
        /// Below /proc/sys.
        path: String,
        /// What the kernel says.
        source: io::Error,
    },
}

/// What has the name.
pub(super) enum FoundTap {
    Nothing,
    /// A device without our mark, described.
    Another(String),
    Ours(TapDevice),
}

/// A device that is marked as this workspace's.
pub(super) struct TapDevice {
    index: u32,
    /// A TAP as [`Link::build`] makes it; if not, it cannot be mended.
    sound: bool,
    addresses: Vec<AddressMessage>,
    up: bool,
}

impl TapDevice {
    /// Whether it is as [`Link::build`] leaves it.
    pub(super) fn whole(&self, plan: &NetworkPlan) -> bool {
        self.sound
            && self.up
            && self.addresses.len() == 1
            && self.addresses.iter().all(|one| is_ours(one, plan))
    }
}

/// A conversation with the kernel, in the network namespace of the thread that began it.
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

    /// What is there. Changes nothing.
    pub(super) async fn find(&self) -> Result<FoundTap, LinkError> {
        let Some(message) = self.get().await? else {
            return Ok(FoundTap::Nothing);
        };
        let alias = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
            _ => None,
        });
        let ours = format!("nixbox {} ", self.plan.workspace);
        if !alias.is_some_and(|alias| alias.starts_with(&ours)) {
            return Ok(FoundTap::Another(match alias {
                Some(alias) => format!("its alias is {alias:?}"),
                None => "it has no mark of nixbox's".to_owned(),
            }));
        }
        Ok(FoundTap::Ours(TapDevice {
            index: message.header.index,
            sound: is_sound(&message, self.plan.owner),
            addresses: self.addresses(message.header.index).await?,
            up: message.header.flags.contains(LinkFlags::Up),
        }))
    }

    /// Make it, or mend it, and mark it with this generation.
    pub(super) async fn build(&self, generation: Generation) -> Result<(), LinkError> {
        let device = match self.find().await? {
            FoundTap::Another(what) => return Err(self.another(what)),
            FoundTap::Ours(device) if device.sound => device,
            FoundTap::Ours(device) => {
                self.delete(device.index).await?;
                self.create(generation).await?
            }
            FoundTap::Nothing => self.create(generation).await?,
        };
        self.mark(device.index, generation).await?;
        // Without link-local addresses and router solicitations of the host's on it.
        setting(&format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.plan.tap), "1", true)?;
        for address in device.addresses.iter().filter(|address| !is_ours(address, self.plan)) {
            self.limited("remove an address of", self.handle.address().del(address.clone()).execute())
                .await?;
        }
        let address = self.handle.address().add(device.index, IpAddr::V4(self.plan.gateway), Slot::PREFIX);
        self.limited("set the address of", address.replace().execute()).await?;
        let up = LinkUnspec::new_with_index(device.index).up().build();
        self.limited("bring up", self.handle.link().set(up).execute()).await
    }

    /// Remove it, if it is ours.
    pub(super) async fn remove(&self) -> Result<(), LinkError> {
        match self.find().await? {
            FoundTap::Ours(device) => self.delete(device.index).await,
            FoundTap::Nothing | FoundTap::Another(_) => Ok(()),
        }
    }

    pub(super) fn another(&self, what: String) -> LinkError {
        LinkError::Another { name: self.plan.tap.clone(), what }
    }

    async fn create(&self, generation: Generation) -> Result<TapDevice, LinkError> {
        let tap = Tap::create(&self.plan.tap).map_err(|error| match error {
            TapError::Exists(_) => self.another("another process made it just now".to_owned()),
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
        what: &'static str,
        call: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, LinkError> {
        let name = || self.plan.tap.clone();
        match tokio::time::timeout(LIMIT, call).await {
            Ok(answer) => answer.map_err(|source| LinkError::Netlink { what, name: name(), source }),
            Err(_elapsed) => Err(LinkError::TimedOut(name())),
        }
    }
}

fn is_missing(error: &rtnetlink::Error) -> bool {
    let missing = -rustix::io::Errno::NODEV.raw_os_error();
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == missing)
}

fn is_ours(address: &AddressMessage, plan: &NetworkPlan) -> bool {
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
    let value = std::fs::read_to_string(path)
        .map_err(|source| LinkError::Setting { path: path.to_owned(), source })?;
    Ok(value.trim() == "1")
}

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Make this host pass packets on. It is never turned off again: nobody can tell who else came to need it meanwhile.
pub(super) fn forward() -> Result<(), LinkError> {
    if forwards()? { Ok(()) } else { setting(FORWARDING, "1", false) }
}

fn setting(path: &str, value: &str, optional: bool) -> Result<(), LinkError> {
    match std::fs::write(path, value) {
        // A kernel without IPv6.
        Err(error) if optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| LinkError::Setting { path: path.to_owned(), source }),
    }
}
