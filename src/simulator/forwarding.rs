//! Forwarded ports and Unix sockets of the simulated guest. Its loopback is that of this machine, and the paths of sockets are
//! those of files on this machine.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelOpenFailure};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;

/// The ports, sockets and connections of one client, which end with it. The files of sockets stay, as those of OpenSSH do.
#[derive(Default)]
pub(super) struct ForwardedPorts(JoinSet<()>);

impl ForwardedPorts {
    /// Connects to a port for a client.
    pub(super) fn connect(&mut self, channel: Channel<Msg>, host: &str, port: u32, reply: ChannelOpenHandle) {
        let address = u16::try_from(port).map(|port| (host.to_owned(), port));
        let connect = async move {
            match address {
                Ok(address) => TcpStream::connect(address).await,
                Err(_) => Err(io::ErrorKind::InvalidInput.into()),
            }
        };
        self.0.spawn(carry(channel, connect, reply));
    }

    /// Connects to a Unix socket for a client.
    pub(super) fn connect_to_socket(
        &mut self,
        channel: Channel<Msg>,
        path: PathBuf,
        reply: ChannelOpenHandle,
    ) {
        self.0.spawn(carry(channel, UnixStream::connect(path), reply));
    }

    /// Listens on a port for a client. Returns whether it could be bound.
    pub(super) async fn listen(&mut self, address: &str, port: u32, client: Handle) -> bool {
        let Ok(own) = u16::try_from(port) else { return false };
        let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, own)).await else { return false };
        let address = address.to_owned();
        self.0.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, from)) = listener.accept().await {
                let opened = client.channel_open_forwarded_tcpip(
                    address.clone(),
                    port,
                    from.ip().to_string(),
                    from.port().into(),
                );
                if let Ok(channel) = opened.await {
                    connections.spawn(relay(channel, socket));
                }
            }
        });
        true
    }

    /// Listens on a Unix socket for a client, which named it so. Returns whether it could be bound.
    pub(super) fn listen_on_socket(&mut self, named: &str, path: PathBuf, client: Handle) -> bool {
        let Ok(listener) = UnixListener::bind(path) else { return false };
        let named = named.to_owned();
        self.0.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                if let Ok(channel) = client.channel_open_forwarded_streamlocal(named.clone()).await {
                    connections.spawn(relay(channel, socket));
                }
            }
        });
        true
    }
}

/// Passes a connection on that a client has asked for, once it is made.
async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    channel: Channel<Msg>,
    connect: impl Future<Output = io::Result<S>>,
    reply: ChannelOpenHandle,
) {
    match connect.await {
        Ok(socket) => {
            reply.accept().await;
            relay(channel, socket).await;
        }
        Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
    }
}

/// Passes on what either side sends. An error means that one side is gone, which ends the other.
async fn relay(channel: Channel<Msg>, mut socket: impl AsyncRead + AsyncWrite + Unpin) {
    copy_bidirectional(&mut channel.into_stream(), &mut socket).await.ok();
}
