//! What nixbox asks the kernel about network devices, addresses and routes. A [`Netlink`] speaks about one network
//! namespace: that of the thread that made it, or that of the process that opened its socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use futures_util::TryStreamExt;
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};

use crate::files::FileError;
use crate::host::ioctl::{self, TapError};

/// Nothing that is asked of the kernel here takes longer than some milliseconds. On a busy machine, or in software emulation,
/// the answer is read later.
const LIMIT: Duration = Duration::from_secs(20);

/// Why a device cannot be found, made or removed.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot talk to the kernel about network devices")]
    Connect(#[source] io::Error),
    /// EPERM: CAP_NET_ADMIN is missing.
    #[error("cannot {action} network device {name}")]
    Netlink { action: &'static str, name: String, source: rtnetlink::Error },
    #[error("cannot {action} network device {name}: the kernel did not answer within {LIMIT:?}")]
    TimedOut { action: &'static str, name: String },
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

/// A netlink connection to the kernel.
pub(super) struct Netlink {
    pub(super) handle: Handle,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Netlink {
    /// A connection about the network namespace of this thread.
    pub(super) fn here() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Connect)?;
        Ok(Self { handle, driver: tokio::spawn(connection) })
    }

    /// A connection about the network namespace in which this netlink socket was opened.
    pub(super) fn of_socket(socket: OwnedFd) -> Self {
        let (connection, handle, _) = rtnetlink::from_socket(ioctl::netlink_socket(socket));
        Self { handle, driver: tokio::spawn(connection) }
    }

    pub(super) async fn limited<T>(
        &self,
        action: &'static str,
        name: &str,
        call: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, LinkError> {
        match tokio::time::timeout(LIMIT, call).await {
            Ok(answer) => {
                answer.map_err(|source| LinkError::Netlink { action, name: name.to_owned(), source })
            }
            Err(_elapsed) => Err(LinkError::TimedOut { action, name: name.to_owned() }),
        }
    }

    /// The device of this name.
    pub(super) async fn get(&self, name: &str) -> Result<Option<LinkMessage>, LinkError> {
        let mut answer = Box::pin(self.handle.link().get().match_name(name.to_owned()).execute());
        match self.limited("look at", name, answer.try_next()).await {
            Err(LinkError::Netlink { source, .. }) if is_missing(&source) => Ok(None),
            other => other,
        }
    }

    /// All devices.
    pub(super) async fn links(&self) -> Result<Vec<LinkMessage>, LinkError> {
        self.limited("list each", "that there is", self.handle.link().get().execute().try_collect()).await
    }

    /// The IPv4 addresses of a device, or of all devices.
    pub(super) async fn addresses(&self, index: Option<u32>) -> Result<Vec<AddressMessage>, LinkError> {
        let request = self.handle.address().get();
        let request = match index {
            Some(index) => request.set_link_index_filter(index),
            None => request,
        };
        let all: Vec<AddressMessage> =
            self.limited("list addresses of", "the host", request.execute().try_collect()).await?;
        let wanted = |one: &AddressMessage| {
            one.header.family == AddressFamily::Inet && index.is_none_or(|index| one.header.index == index)
        };
        Ok(all.into_iter().filter(wanted).collect())
    }

    /// Writes the alias of a device, by which nixbox knows it.
    pub(super) async fn mark(&self, index: u32, name: &str, alias: String) -> Result<(), LinkError> {
        let alias = LinkAttribute::IfAlias(alias);
        let message = LinkUnspec::new_with_index(index).append_extra_attribute(alias).build();
        self.limited("mark", name, self.handle.link().set(message).execute()).await
    }

    /// Sets how large a packet of the device may be.
    pub(super) async fn set_mtu(&self, index: u32, name: &str, mtu: u32) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.limited("set the MTU of", name, self.handle.link().set(message).execute()).await
    }

    pub(super) async fn bring_up(&self, index: u32, name: &str) -> Result<(), LinkError> {
        let up = LinkUnspec::new_with_index(index).up().build();
        self.limited("bring up", name, self.handle.link().set(up).execute()).await
    }

    pub(super) async fn bring_down(&self, index: u32, name: &str) -> Result<(), LinkError> {
        let down = LinkUnspec::new_with_index(index).down().build();
        self.limited("take down", name, self.handle.link().set(down).execute()).await
    }

    /// Gives a device this address and no other.
    pub(super) async fn set_address(
        &self,
        index: u32,
        name: &str,
        address: Ipv4Addr,
        prefix: u8,
    ) -> Result<(), LinkError> {
        for other in self.addresses(Some(index)).await? {
            if !is_address(&other, address, prefix) {
                self.limited("remove an address of", name, self.handle.address().del(other).execute())
                    .await?;
            }
        }
        let wanted = self.handle.address().add(index, IpAddr::V4(address), prefix);
        self.limited("set the address of", name, wanted.replace().execute()).await
    }

    /// Removes a device, if it is there.
    pub(super) async fn delete(&self, index: u32, name: &str) -> Result<(), LinkError> {
        match self.limited("remove", name, self.handle.link().del(index).execute()).await {
            Err(LinkError::Netlink { source, .. }) if is_missing(&source) => Ok(()),
            other => other,
        }
    }
}

fn has_code(error: &rtnetlink::Error, errno: rustix::io::Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno.raw_os_error())
}

fn is_missing(error: &rtnetlink::Error) -> bool {
    has_code(error, rustix::io::Errno::NODEV)
}

/// Whether the kernel has no route to an address.
pub(super) fn is_unreachable(error: &LinkError) -> bool {
    use rustix::io::Errno;
    let none = [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::ACCESS, Errno::INVAL];
    matches!(error, LinkError::Netlink { source, .. } if none.into_iter().any(|errno| has_code(source, errno)))
}

/// Whether there is a device of that name already.
pub(super) fn is_taken(error: &LinkError) -> bool {
    matches!(error, LinkError::Netlink { source, .. } if has_code(source, rustix::io::Errno::EXIST))
}

/// Whether a device has this address.
pub(super) fn is_address(message: &AddressMessage, address: Ipv4Addr, prefix: u8) -> bool {
    let local = AddressAttribute::Local(IpAddr::V4(address));
    message.header.prefix_len == prefix && message.attributes.contains(&local)
}

/// The alias of a device.
pub(super) fn alias(message: &LinkMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    })
}

/// The name of a device.
pub(super) fn name(message: &LinkMessage) -> &str {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    name.unwrap_or_default()
}

/// The bytes of an attribute.
pub(super) fn bytes_of(attribute: &impl Nla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    bytes
}

/// Writes a kernel setting. An `optional` one may be missing.
pub(super) fn setting(path: &str, value: &str, optional: bool) -> Result<(), LinkError> {
    // Where /proc/sys is read-only, as in a container, the value may be right already.
    if std::fs::read_to_string(path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    match std::fs::write(path, value) {
        // The kernel has no IPv6.
        Err(error) if optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => Ok(other.map_err(FileError::system("write", path))?),
    }
}
