//! Sockets of this host: ports and Unix sockets alike.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::ports::HostEnd;

/// A connection on this host.
pub(super) trait HostStream: AsyncRead + AsyncWrite + Unpin {}

impl HostStream for TcpStream {}
impl HostStream for UnixStream {}

/// What is listened on.
#[derive(Debug)]
pub(super) enum HostListener {
    Port(TcpListener),
    Socket(SocketListener),
}

/// A Unix socket, whose file is removed when nobody listens on it any more.
#[derive(Debug)]
pub(super) struct SocketListener {
    pub(super) listener: UnixListener,
    pub(super) path: PathBuf,
}

impl Drop for SocketListener {
    fn drop(&mut self) {
        // It may have been removed before, and otherwise the next command says that it is there.
        std::fs::remove_file(&self.path).ok();
    }
}

impl HostListener {
    /// Accepts a connection. A Unix socket has no address to tell the guest, so the loopback stands for it.
    pub(super) async fn accept(&self) -> io::Result<(Box<dyn HostStream>, SocketAddr)> {
        match self {
            Self::Port(listener) => {
                let (stream, from) = listener.accept().await?;
                // Without this, small messages are only slower.
                stream.set_nodelay(true).ok();
                Ok((Box::new(stream), from))
            }
            Self::Socket(socket) => {
                let (stream, _) = socket.listener.accept().await?;
                Ok((Box::new(stream), (Ipv4Addr::LOCALHOST, 0).into()))
            }
        }
    }
}

/// Connects to a program of this host.
pub(super) async fn connect(end: &HostEnd) -> io::Result<Box<dyn HostStream>> {
    match end {
        HostEnd::Address(address) => {
            let stream = TcpStream::connect(address).await?;
            // As above.
            stream.set_nodelay(true).ok();
            Ok(Box::new(stream))
        }
        HostEnd::Socket(path) => Ok(Box::new(UnixStream::connect(path).await?)),
    }
}
