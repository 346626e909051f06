//! Hands open descriptors to another process, over a Unix socket. A socket or device keeps the network namespace that it
//! was opened in, in whichever process it is used, so a process that cannot or must not enter a namespace uses what another has opened there.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The most descriptors that are handed over at once.
const MOST: usize = 4;

/// The byte that the descriptors go with, as a message without data carries none.
const CARRIER: [u8; 1] = *b"+";

/// Sends these descriptors, at most [`MOST`], as one message.
pub(super) fn send(socket: impl AsFd, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    if !message.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(&CARRIER)], &mut message, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message with exactly `N` descriptors.
pub(super) fn receive<const N: usize>(socket: impl AsFd) -> io::Result<[OwnedFd; N]> {
    receive_all(socket)?.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Receives one message with the descriptors that it has.
pub(super) fn receive_all(socket: impl AsFd) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut carrier = [0; 1];
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut carrier)], &mut message, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for part in message.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = part {
            descriptors.extend(some);
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(descriptors)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_received_is_what_was_sent() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        send(&near, &[writer.as_fd(), reader.as_fd()]).unwrap();
        let [received, _] = receive::<2>(&far).unwrap();
        std::fs::File::from(received).write_all(b"text").unwrap();
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"text");

        send(&near, &[writer.as_fd()]).unwrap();
        assert_eq!(receive::<2>(&far).unwrap_err().kind(), io::ErrorKind::InvalidData);
        writer.write_all(b"x").unwrap();
        drop(near);
        assert_eq!(receive::<1>(&far).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
