//! Questions to nf_tables of the kernel, and its answers (`linux/netfilter/nfnetlink.h` and `nf_tables.h`). What is asked for
//! is read, and nothing is changed: nft changes.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// The kernel answers while it is asked, so nothing is waited for.
const LIMIT: Duration = Duration::from_secs(20);
/// `netlink_dump` of the kernel fills at most 32 KiB at once.
const DATAGRAM: usize = 64 * 1024;
/// The lengths of `struct nlmsghdr` and of `struct nfgenmsg`.
const HEADER: usize = 16;
const GENERAL: usize = 4;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST` and `NLM_F_DUMP`.
const REQUEST: u16 = 0x1;
const DUMP: u16 = 0x300;

/// The family of a table: `NFPROTO_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Any = 0,
    Inet = 1,
    Ipv4 = 2,
}

/// What is asked for: `NFT_MSG_GET*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Table = 1,
    Chain = 4,
    Rule = 7,
    Set = 10,
    Element = 13,
    Generation = 16,
}

/// How many objects answer a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    /// The one that the attributes name.
    One,
    /// All that the attributes do not exclude.
    All,
}

/// An attribute of an object, or of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attribute<'a> {
    pub(super) kind: u16,
    pub(super) payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes that follow each other in these bytes. They end where the bytes are not an attribute.
    pub(super) fn all(bytes: &'a [u8]) -> impl Iterator<Item = Self> {
        let mut rest = bytes;
        std::iter::from_fn(move || {
            let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
            let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
            let payload = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            /// Without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
            const KIND: u16 = 0x3fff;
            Some(Self { kind: kind & KIND, payload })
        })
    }

    /// The payload of the attribute of this kind among these bytes.
    pub(super) fn of(bytes: &'a [u8], kind: u16) -> Option<&'a [u8]> {
        Self::all(bytes).find(|attribute| attribute.kind == kind).map(|attribute| attribute.payload)
    }
}

/// A text in an attribute, which ends with a zero.
pub(super) fn text(payload: &[u8]) -> &[u8] {
    payload.strip_suffix(&[0]).unwrap_or(payload)
}

/// A connection to nf_tables of one network namespace.
#[derive(Debug)]
pub(super) struct NfNetlink(Mutex<Connection>);

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    /// The number of the last question.
    number: u32,
}

/// Opens a socket for a connection, in the network namespace of this thread.
pub(super) fn open_socket() -> io::Result<OwnedFd> {
    let protocol = Some(netlink::NETFILTER);
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(LIMIT))?;
    Ok(socket)
}

impl NfNetlink {
    /// A connection about the network namespace in which this socket was opened.
    pub(super) fn of_socket(socket: OwnedFd) -> Self {
        Self(Mutex::new(Connection { socket, number: 0 }))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the objects that these attributes name. Each answer is the attributes of an object.
    ///
    /// # Errors
    /// That of the kernel; `ENOENT` if the one object is not there.
    pub(super) fn ask(
        &self,
        question: Question,
        answers: Answers,
        family: Family,
        attributes: &[(u16, &str)],
    ) -> io::Result<Vec<Vec<u8>>> {
        let mut connection = self.connection();
        connection.number = connection.number.wrapping_add(1);
        let asked = message(connection.number, question, answers, family, attributes);
        rustix::net::send(&connection.socket, &asked, SendFlags::empty())?;
        let mut objects = Vec::new();
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let received = rustix::net::recv(&connection.socket, buffer.as_mut_slice(), RecvFlags::TRUNC);
            let length = match received {
                Ok((_, length)) if length <= DATAGRAM => length,
                Ok(_) => return Err(Errno::MSGSIZE.into()),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(errno) => return Err(errno.into()),
            };
            if take(&buffer[..length], connection.number, answers, &mut objects)? {
                return Ok(objects);
            }
        }
    }
}

fn message(
    number: u32,
    question: Question,
    answers: Answers,
    family: Family,
    attributes: &[(u16, &str)],
) -> Vec<u8> {
    let flags = match answers {
        Answers::One => REQUEST,
        Answers::All => REQUEST | DUMP,
    };
    // The length is filled in last. The kernel knows the sender.
    let mut message = vec![0; 4];
    message.extend(((SUBSYSTEM << 8) | question as u16).to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(number.to_ne_bytes());
    message.extend([0; 4]);
    // The version and the number of the resource are 0.
    message.extend([family as u8, 0, 0, 0]);
    for (kind, text) in attributes {
        let length = u16::try_from(4 + text.len() + 1).unwrap_or(u16::MAX);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(text.as_bytes());
        message.push(0);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_ne_bytes();
    message[..4].copy_from_slice(&length);
    message
}

/// Takes the objects out of a datagram, and says whether the answer to the question of this number is complete. Answers to
/// an earlier question, which was given up, are left out.
fn take(datagram: &[u8], number: u32, answers: Answers, objects: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    let cut_short = || io::Error::from(io::ErrorKind::InvalidData);
    let mut rest = datagram;
    while !rest.is_empty() {
        let header: &[u8; HEADER] = rest.first_chunk().ok_or_else(cut_short)?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = word(0) as usize;
        let body = rest.get(HEADER..length).ok_or_else(cut_short)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if word(8) != number {
            continue;
        }
        match u16::from_ne_bytes([header[4], header[5]]) {
            kind @ (ERROR | DONE) => {
                let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                if kind == ERROR || code < 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                return Ok(true);
            }
            _ => objects.push(body.get(GENERAL..).ok_or_else(cut_short)?.to_vec()),
        }
        if answers == Answers::One {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(number: u32, kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut reply = [length.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), &[0; 2]].concat();
        reply.extend(number.to_ne_bytes());
        reply.extend([0; 4]);
        reply.extend(body);
        reply.resize(reply.len().next_multiple_of(4), 0);
        reply
    }

    #[test]
    fn attributes_end_where_the_bytes_are_none() {
        let bytes = [6, 0, 1, 0x80, 7, 8, 0, 0, 5, 0, 2, 0, 9, 0, 0, 0, 200, 0, 3, 0];
        let found: Vec<_> = Attribute::all(&bytes).map(|one| (one.kind, one.payload.to_vec())).collect();
        assert_eq!(found, [(1, vec![7, 8]), (2, vec![9])]);
        assert_eq!(Attribute::of(&bytes, 2), Some([9].as_slice()));
        assert_eq!(Attribute::all(&[2, 0, 1, 0]).count(), 0, "a length that is none");
        assert_eq!((text(b"name\0"), text(b"name")), (b"name".as_slice(), b"name".as_slice()));
    }

    #[test]
    fn answers_to_an_earlier_question_are_left_out_and_an_end_is_an_end() {
        let (mut objects, object) = (Vec::new(), [1, 0, 0, 0, 5, 0, 1, 0, 7, 0, 0, 0]);
        let datagram = [reply(6, 0xa00, &[0; 4]), reply(7, 0xa00, &object)].concat();
        assert!(!take(&datagram, 7, Answers::All, &mut objects).unwrap(), "the end has not come");
        assert_eq!(objects, [object[GENERAL..].to_vec()]);
        assert!(take(&reply(7, DONE, &[0; 4]), 7, Answers::All, &mut objects).unwrap());
        assert!(take(&datagram, 7, Answers::One, &mut objects).unwrap());
        assert_eq!(objects.len(), 2);
    }

    #[test]
    fn a_refusal_is_the_error_of_the_kernel_and_garbage_is_an_error() {
        let refused = |reply: &[u8]| take(reply, 7, Answers::All, &mut Vec::new()).unwrap_err();
        let missing = (-2_i32).to_ne_bytes();
        assert_eq!(refused(&reply(7, ERROR, &missing)).kind(), io::ErrorKind::NotFound);
        assert_eq!(refused(&reply(7, DONE, &missing)).kind(), io::ErrorKind::NotFound);
        assert_eq!(refused(&reply(7, DONE, &missing)[..8]).kind(), io::ErrorKind::InvalidData);
        assert_eq!(refused(&[255; 40]).kind(), io::ErrorKind::InvalidData);
    }
}
