//! Sockets of this host: ports and Unix sockets alike.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::ports::{FIRST_FREE, HostEnd, PortError, PortPair};

/// The permissions of a socket: this user alone may connect.
const OWN_MODE: u32 = 0o600;

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
        fs::remove_file(&self.path).ok();
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

/// Listens on all of the host's ports and sockets, or on none.
pub(super) async fn bind_all(pairs: &[PortPair]) -> Result<Vec<HostListener>, PortError> {
    let mut listeners = Vec::new();
    for pair in pairs {
        let bound = match &pair.host {
            HostEnd::Address(address) => TcpListener::bind(address).await.map(HostListener::Port),
            HostEnd::Socket(path) => bind_socket(path).await,
        };
        listeners.push(bound.map_err(|source| match (source.kind(), &pair.host) {
            (io::ErrorKind::AddrInUse, HostEnd::Socket(path)) => PortError::Exists(path.clone()),
            (io::ErrorKind::AddrInUse, HostEnd::Address(address)) => PortError::Taken(*address),
            (io::ErrorKind::PermissionDenied, HostEnd::Address(address)) if address.port() < FIRST_FREE => {
                PortError::Privileged(*address)
            }
            _ => PortError::Listen { end: pair.host.clone(), source },
        })?);
    }
    Ok(listeners)
}

async fn bind_socket(path: &Path) -> io::Result<HostListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left(path).await => {
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    let socket = SocketListener { listener, path: path.to_owned() };
    // Only this user may connect.
    fs::set_permissions(path, fs::Permissions::from_mode(OWN_MODE))?;
    Ok(HostListener::Socket(socket))
}

/// Whether this is what a killed `nixbox forward` leaves: a socket of this user's that nobody else may use, and on which nobody
/// listens.
async fn is_left(path: &Path) -> bool {
    let is_own = fs::symlink_metadata(path).is_ok_and(|file| {
        let user = rustix::process::geteuid().as_raw();
        file.file_type().is_socket() && file.uid() == user && file.mode() & 0o777 == OWN_MODE
    });
    is_own
        && UnixStream::connect(path)
            .await
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests;
