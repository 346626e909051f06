use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::guest::testing::{Kind, LIMIT, Server, free_port};

/// A listener on the loopback, which the test servers share with this machine, and its port.
async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Two ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let (listener, port) = listener().await;
    let (near, far) = tokio::join!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn session(kind: Kind) -> Option<(Server, SshSession)> {
    let server = Server::start(kind)?;
    let session = server.connect("user").await.session;
    Some((server, session))
}

fn from() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 4711).into()
}

/// A connection to a program of the guest: the end of a program of this host, that of the guest, and the relay between them.
async fn connected(session: &SshSession) -> (TcpStream, TcpStream, impl Future<Output = bool> + use<>) {
    let (listener, port) = listener().await;
    let (connection, accepted) = tokio::join!(session.connect_to_port(port, from()), listener.accept());
    let (host, relayed) = pair().await;
    (host, accepted.unwrap().0, connection.unwrap().relay(relayed))
}

async fn read_all(socket: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    socket.read_to_end(&mut all).await.unwrap();
    all
}

#[tokio::test]
async fn what_either_side_sends_arrives_and_the_end_of_one_side_leaves_the_other() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some((_server, session)) = session(kind).await else { continue };
        for _ in 0..3 {
            let (host, mut guest, relay) = connected(&session).await;
            let (mut answer, mut ask) = host.into_split();
            let request: Vec<u8> = (0..3_000_000_u32).map(|byte| byte as u8).collect();
            let asking = async {
                ask.write_all(&request).await.unwrap();
                ask.shutdown().await.unwrap();
            };
            let answering = async {
                let received = read_all(&mut guest).await;
                assert!(received == request, "{} bytes", received.len());
                guest.write_all(&received).await.unwrap();
                drop(guest);
            };
            let ((), (), answer, is_reusable) = tokio::join!(asking, answering, read_all(&mut answer), relay);
            assert!(answer == request && is_reusable, "{kind:?}: {} bytes", answer.len());
        }
        assert!(session.lives());
    }
}

#[tokio::test]
async fn the_guest_may_end_first() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some((_server, session)) = session(kind).await else { continue };
        let (mut host, mut guest, relay) = connected(&session).await;
        let talk = async {
            guest.write_all(b"bye").await.unwrap();
            guest.shutdown().await.unwrap();
            assert_eq!(read_all(&mut host).await, b"bye");
            host.write_all(b"late").await.unwrap();
            host.shutdown().await.unwrap();
            assert_eq!(read_all(&mut guest).await, b"late");
        };
        let ((), is_reusable) = tokio::join!(talk, relay);
        assert!(is_reusable, "{kind:?}");
    }
}

#[tokio::test]
async fn a_side_that_is_gone_ends_the_connection_and_no_other() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some((_server, session)) = session(kind).await else { continue };
        let (host, mut guest, relay) = connected(&session).await;
        let (_, ()) = tokio::join!(relay, async {
            host.set_zero_linger().unwrap();
            drop(host);
            // The server ends the connection in any way.
            guest.read_to_end(&mut Vec::new()).await.ok();
        });
        let (mut host, guest, relay) = connected(&session).await;
        guest.set_zero_linger().unwrap();
        let (_, ()) = tokio::join!(relay, async {
            drop(guest);
            host.read_to_end(&mut Vec::new()).await.ok();
            drop(host);
        });
        assert!(session.lives(), "{kind:?}");
    }
}

#[tokio::test]
async fn a_program_that_reads_a_little_at_a_time_gets_everything() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some((_server, session)) = session(kind).await else { continue };
        let (listener, port) = listener().await;
        let (connection, accepted) = tokio::join!(session.connect_to_port(port, from()), listener.accept());
        let mut guest = accepted.unwrap().0;
        // More than the buffers on the way hold.
        let sent = vec![5; 16 << 20];
        let (mut host, relayed) = tokio::io::duplex(64);
        let sending = async {
            guest.write_all(&sent).await.unwrap();
            drop(guest);
        };
        let reading = async move {
            let mut buffer = vec![0; 4096];
            let mut received = 0;
            loop {
                match host.read(&mut buffer).await.unwrap() {
                    0 => return received,
                    read => received += read,
                }
            }
        };
        let ((), received, _) = tokio::join!(sending, reading, connection.unwrap().relay(relayed));
        assert_eq!(received, sent.len(), "{kind:?}");
    }
}

#[tokio::test]
async fn a_port_on_which_nothing_listens_is_refused() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some((_server, session)) = session(kind).await else { continue };
        let error = session.connect_to_port(free_port(), from()).await.err().unwrap();
        assert!(matches!(error, ForwardingError::Refused { .. }), "{kind:?}: {error}");
        // The connection can be used for others.
        let (mut host, guest, relay) = connected(&session).await;
        drop(guest);
        let (rest, _) = tokio::join!(async move { read_all(&mut host).await }, relay);
        assert!(rest.is_empty());
    }
}

#[tokio::test]
async fn connections_to_a_port_of_the_guest_reach_this_host() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some((_server, session)) = session(kind).await else { continue };
        let port = free_port();
        let mut connections = session.listen_on_port(port).await.unwrap();
        let guest = tokio::spawn(async move {
            let mut guest = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            guest.write_all(b"question").await.unwrap();
            guest.shutdown().await.unwrap();
            read_all(&mut guest).await
        });
        let connection = timeout(LIMIT, connections.recv()).await.unwrap().unwrap().accept().await;
        let (mut host, relayed) = pair().await;
        let answering = async {
            assert_eq!(read_all(&mut host).await, b"question");
            host.write_all(b"answer").await.unwrap();
            host.shutdown().await.unwrap();
            read_all(&mut host).await;
        };
        tokio::join!(connection.relay(relayed), answering);
        assert_eq!(guest.await.unwrap(), b"answer", "{kind:?}");

        // A connection that is refused ends.
        let refused = tokio::spawn(async move {
            let mut guest = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            guest.read(&mut [0]).await.unwrap_or_default()
        });
        timeout(LIMIT, connections.recv()).await.unwrap().unwrap().refuse().await;
        assert_eq!(refused.await.unwrap(), 0, "{kind:?}");
    }
}

#[tokio::test]
async fn a_port_of_the_guest_that_is_in_use_is_not_listened_on() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some((_server, session)) = session(kind).await else { continue };
        let (_listener, taken) = listener().await;
        // dropbear is content with either address.
        let _other = TcpListener::bind((Ipv6Addr::LOCALHOST, taken)).await;
        let error = session.listen_on_port(taken).await.err().unwrap();
        assert!(
            matches!(error, ForwardingError::NotListening { port } if port == taken),
            "{kind:?}: {error}"
        );
        assert!(session.lives());
    }
}

#[tokio::test]
async fn the_end_of_the_connection_is_noticed() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some((server, mut session)) = session(kind).await else { continue };
        drop(server);
        timeout(LIMIT, session.ended()).await.unwrap();
        assert!(!session.lives(), "{kind:?}");
    }
}

#[tokio::test]
async fn a_unix_socket_of_the_guest_is_reached_where_its_server_can() {
    let Some((server, session)) = session(Kind::Debian).await else { return };
    let path = server.home("user", "socket");
    let text = path.to_str().unwrap();
    let error = session.connect_to_socket(text).await.err().unwrap();
    assert!(matches!(error, ForwardingError::NoSocket { .. }), "{error}");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(1000), Some(1000)).unwrap();
    let (connection, accepted) = tokio::join!(session.connect_to_socket(text), listener.accept());
    let (mut host, relayed) = pair().await;
    let mut guest = accepted.unwrap().0;
    let talk = async {
        host.write_all(b"question").await.unwrap();
        host.shutdown().await.unwrap();
        assert_eq!(read_all(&mut guest).await, b"question");
        drop(guest);
        assert!(read_all(&mut host).await.is_empty());
    };
    tokio::join!(talk, connection.unwrap().relay(relayed));
}

#[tokio::test]
async fn dropbear_is_said_to_lead_to_no_unix_socket() {
    let Some((_server, session)) = session(Kind::Busybox).await else { return };
    let error = session.connect_to_socket("/absent").await.err().unwrap();
    assert!(matches!(error, ForwardingError::NoSocket { .. } | ForwardingError::Forbidden), "{error}");
    assert!(session.lives());
}

#[tokio::test]
async fn a_unix_socket_of_the_guest_is_listened_on_where_its_server_can() {
    let Some((server, session)) = session(Kind::Debian).await else { return };
    let path = server.home("user", "socket");
    let text = path.to_str().unwrap();
    let mut connections = session.listen_on_socket(text).await.unwrap();
    for _ in 0..2 {
        let mut guest = tokio::net::UnixStream::connect(&path).await.unwrap();
        guest.write_all(b"question").await.unwrap();
        guest.shutdown().await.unwrap();
        let connection = timeout(LIMIT, connections.recv()).await.unwrap().unwrap().accept().await;
        let (mut host, relayed) = pair().await;
        let answering = async {
            assert_eq!(read_all(&mut host).await, b"question");
            host.write_all(b"answer").await.unwrap();
            host.shutdown().await.unwrap();
            assert_eq!(read_all(&mut guest).await, b"answer");
        };
        tokio::join!(connection.relay(relayed), answering);
    }
    // A connection that is refused ends.
    let mut guest = tokio::net::UnixStream::connect(&path).await.unwrap();
    timeout(LIMIT, connections.recv()).await.unwrap().unwrap().refuse().await;
    assert_eq!(guest.read(&mut [0]).await.unwrap_or_default(), 0);

    // The server leaves the file, and does not listen there again.
    session.close().await;
    let session = server.connect("user").await.session;
    let missing = server.home("user", "missing/socket");
    for refused in [text, missing.to_str().unwrap(), "/etc/socket"] {
        let error = session.listen_on_socket(refused).await.err().unwrap();
        assert!(
            matches!(&error, ForwardingError::NotListeningOnSocket { path } if path == refused),
            "{refused}: {error}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    session.listen_on_socket(text).await.unwrap();
}

#[tokio::test]
async fn dropbear_is_said_to_listen_on_no_unix_socket() {
    let Some((_server, session)) = session(Kind::Busybox).await else { return };
    let error = session.listen_on_socket("/home/user/socket").await.err().unwrap();
    assert!(matches!(error, ForwardingError::NotListeningOnSocket { .. }), "{error}");
    assert!(session.lives());
}
