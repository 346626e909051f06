//! Hears from the kernel that the networks of the host have changed: addresses, routes, neighbours and uplinks.
//!
//! The socket is one of the host's network, and needs no capability. A message only says that it is worth looking: what the
//! host's networks are is always asked for anew, so a message that is lost, late or forged does no harm. If the kernel has
//! more messages than the socket can hold, it says so (`ENOBUFS`), and that counts as a change.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

use super::firewall::AddressRange;
use super::{link, uplink};

/// `RTMGRP_*` of linux/rtnetlink.h.
const LINK: u32 = 0x1;
const NEIGHBOUR: u32 = 0x4;
const IPV4_ADDRESS: u32 = 0x10;
const IPV4_ROUTE: u32 = 0x40;

/// The kernel sends at most this much at once: `NLMSG_GOODSIZE` is a page or 8 KiB.
const DATAGRAM: usize = 32 * 1024;

/// The changes of the host's networks since it was made.
pub(super) struct HostChanges {
    socket: AsyncFd<OwnedFd>,
    /// The addresses that uplinks may have.
    pool: AddressRange,
    /// How often the kernel had more messages than the socket holds.
    overflows: AtomicUsize,
}

impl HostChanges {
    /// Listens from now on, in the network namespace of this thread.
    pub(super) fn subscribe(pool: AddressRange) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let family = rustix::net::AddressFamily::NETLINK;
        // NETLINK_ROUTE, which is 0.
        let socket = rustix::net::socket_with(family, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, LINK | NEIGHBOUR | IPV4_ADDRESS | IPV4_ROUTE))?;
        // Deprecated for types that can change their descriptor while it is watched; an OwnedFd cannot.
        #[allow(deprecated)]
        let socket = AsyncFd::with_interest(socket, tokio::io::Interest::READABLE)?;
        Ok(Self { socket, pool, overflows: AtomicUsize::new(0) })
    }

    #[cfg(test)]
    pub(super) fn overflows(&self) -> usize {
        self.overflows.load(Ordering::Relaxed)
    }

    /// Waits for a change that matters. All that has been heard until then counts as one change.
    pub(super) async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut matters = false;
            loop {
                match ready.try_io(|socket| receive(socket.get_ref())) {
                    Ok(Ok(datagram)) => matters |= concerns(&datagram, self.pool),
                    Ok(Err(error)) if overflowed(&error) => {
                        self.overflows.fetch_add(1, Ordering::Relaxed);
                        matters = true;
                    }
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(Err(error)) => return Err(error),
                    Err(_would_block) => break,
                }
            }
            if matters {
                return Ok(());
            }
        }
    }
}

fn receive(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; DATAGRAM];
    let (length, _) = rustix::net::recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?;
    buffer.truncate(length);
    Ok(buffer)
}

fn overflowed(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}

/// Whether one of the messages of a datagram is about something that decides what a guest may reach or where an uplink may
/// be. A message that cannot be parsed does.
fn concerns(datagram: &[u8], pool: AddressRange) -> bool {
    let mut rest = datagram;
    while !rest.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) else { return true };
        // Messages begin at multiples of four bytes.
        let length = (message.header.length as usize).next_multiple_of(4).max(4);
        let NetlinkPayload::InnerMessage(inner) = message.payload else { return true };
        let matters = match inner {
            RouteNetlinkMessage::NewNeighbour(neighbour) | RouteNetlinkMessage::DelNeighbour(neighbour) => {
                is_in(&neighbour, pool)
            }
            RouteNetlinkMessage::DelLink(device) => is_uplink(&device),
            RouteNetlinkMessage::NewLink(device) => is_uplink(&device),
            _ => true,
        };
        if matters {
            return true;
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    false
}

/// Neighbours come and go all the time; only those with an address of an uplink matter.
fn is_in(neighbour: &NeighbourMessage, pool: AddressRange) -> bool {
    neighbour.header.family == AddressFamily::Inet
        && neighbour.attributes.iter().any(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                pool.overlaps(AddressRange::new(*address, 32))
            }
            _ => false,
        })
}

fn is_uplink(device: &LinkMessage) -> bool {
    link::name(device).starts_with(uplink::OUTER)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rtnetlink::packet_route::address::AddressMessage;
    use rtnetlink::packet_route::link::LinkAttribute;

    use super::*;

    fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        bytes
    }

    fn neighbour(address: Ipv4Addr) -> Vec<u8> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(address))];
        bytes(RouteNetlinkMessage::NewNeighbour(message))
    }

    fn device(name: &str) -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        bytes(RouteNetlinkMessage::DelLink(message))
    }

    #[test]
    fn only_neighbours_and_devices_that_are_about_uplinks_matter() {
        let pool = AddressRange::new(Ipv4Addr::new(203, 0, 113, 0), 24);
        let (far, near) = (Ipv4Addr::new(192, 168, 1, 7), Ipv4Addr::new(203, 0, 113, 9));
        assert!(!concerns(&neighbour(far), pool) && concerns(&neighbour(near), pool));
        assert!(!concerns(&device("eth0"), pool) && concerns(&device("nixbox-3"), pool));
        let address = bytes(RouteNetlinkMessage::NewAddress(AddressMessage::default()));
        assert!(concerns(&address, pool));
        // Several messages in one datagram.
        assert!(!concerns(&[neighbour(far), device("eth0")].concat(), pool));
        assert!(concerns(&[neighbour(far), device("eth0"), neighbour(near)].concat(), pool));
    }

    #[test]
    fn what_cannot_be_parsed_matters() {
        let pool = AddressRange::new(Ipv4Addr::new(203, 0, 113, 0), 24);
        let whole = neighbour(Ipv4Addr::new(192, 168, 1, 7));
        for length in 1..whole.len() {
            assert!(concerns(&whole[..length], pool), "{length}");
        }
        assert!(concerns(&[0; 16], pool), "a length of 0");
    }
}
