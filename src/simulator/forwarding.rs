//! Forwarded ports of the simulated guest. Its loopback is that of this machine.

use std::io;
use std::net::Ipv4Addr;

use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelOpenFailure};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The ports and connections of one client, which end with it.
#[derive(Default)]
pub(super) struct ForwardedPorts(JoinSet<()>);

impl ForwardedPorts {
    /// Connects to a port for a client.
    pub(super) fn connect(&mut self, channel: Channel<Msg>, host: &str, port: u32, reply: ChannelOpenHandle) {
        let address = u16::try_from(port).map(|port| (host.to_owned(), port));
        self.0.spawn(async move {
            let connected = match address {
                Ok(address) => TcpStream::connect(address).await,
                Err(_) => Err(io::ErrorKind::InvalidInput.into()),
            };
            match connected {
                Ok(socket) => {
                    reply.accept().await;
                    relay(channel, socket).await;
                }
                Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
        });
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
}

/// Passes on what either side sends. An error means that one side is gone, which ends the other.
async fn relay(channel: Channel<Msg>, mut socket: TcpStream) {
    copy_bidirectional(&mut channel.into_stream(), &mut socket).await.ok();
}
