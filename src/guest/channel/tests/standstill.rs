//! Connections of which one side stands still.

use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::*;

/// Passes one connection on to a server, byte by byte in both directions, while the returned value is true.
async fn relay(server: SocketAddr) -> (SocketAddr, watch::Sender<bool>) {
    async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut passes: watch::Receiver<bool>) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            if passes.wait_for(|passes| *passes).await.is_err()
                || to.write_all(&buffer[..read]).await.is_err()
            {
                return;
            }
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (passes, told) = watch::channel(true);
    tokio::spawn(async move {
        let (from, to) = listener.accept().await.unwrap().0.into_split();
        let (answers, asks) = TcpStream::connect(server).await.unwrap().into_split();
        tokio::join!(pass(from, asks, told.clone()), pass(answers, to, told));
    });
    (address, passes)
}

/// Lets more time pass than a connection may be silent that is given up. The time itself is what the test is about, and the
/// clock of tokio cannot be paused, because the server is another process.
async fn stand_still() {
    tokio::time::sleep(short().silence * 8).await;
}

#[tokio::test]
async fn a_reader_or_a_server_that_stands_still_ends_no_endless_connection() {
    const MUCH: usize = 60_000_000;
    for endless in [true, false] {
        let Some(server) = Server::start(Kind::Debian) else { return };
        server.connect("user").await;
        let limits = Limits { endless, connect: LIMIT, reach: LIMIT, ..short() };
        let (address, passes) = relay(server.address).await;
        let session =
            SshSession::open(&Endpoint { address, ..server.endpoint("user") }, limits).await.unwrap();
        let command = format!("head -c {MUCH} /dev/zero; read -r line; echo $line");
        let (mut ours, stdin) = tokio::io::duplex(64);
        let (stdout, mut out) = tokio::io::duplex(1 << 16);
        let run = session.pass_through(command.as_bytes(), stdin, stdout, tokio::io::sink());
        let read = async {
            out.read_u8().await?;
            stand_still().await;
            let mut rest = vec![0; MUCH - 1];
            out.read_exact(&mut rest).await?;
            passes.send_replace(false);
            stand_still().await;
            passes.send_replace(true);
            ours.write_all(b"last\n").await?;
            out.read_to_end(&mut rest).await?;
            Ok::<_, io::Error>(rest.ends_with(b"last\n") && rest.len() == MUCH + 4)
        };
        let (exit, read) = tokio::join!(run, read);
        if endless {
            assert_eq!(exit.unwrap(), CommandExit::Status(0));
            assert!(read.unwrap());
        } else {
            assert!(matches!(exit, Err(ChannelError::Closed(Some(ConnectionEnd::Broken(_))))), "{exit:?}");
        }
    }
}
