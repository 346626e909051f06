use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use russh::server::{self, Server as _, VerifiedPublicKey};
use russh::{ChannelId, Sig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::guest::key;
use crate::guest::ready::{Attempt, Patience, REFUSALS, until_ready};
use crate::guest::testing::{Kind, LIMIT, Server, free_port};
use crate::world::Interrupt;

mod standstill;

const CAPTURE: Capture = Capture { most: 4 << 20, within: LIMIT, prompt: None };

fn nothing() -> Zeroizing<Vec<u8>> {
    Zeroizing::new(Vec::new())
}

async fn exec(session: &SshSession, command: &str) -> Finished {
    session.exec(command.as_bytes(), nothing(), CAPTURE).await.unwrap()
}

#[tokio::test]
async fn commands_run_with_input_output_and_status() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some(server) = Server::start(kind) else { continue };
        let session = server.connect("user").await.session;
        let done = exec(&session, "echo out; echo err >&2; exit 42").await;
        assert_eq!(done.exit, CommandExit::Status(42));
        assert_eq!((done.stdout.as_slice(), done.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));

        let input: Vec<u8> = (0..3_000_000_u32).map(|byte| byte as u8).collect();
        let echoed = session.exec(b"cat", Zeroizing::new(input.clone()), CAPTURE).await.unwrap();
        assert_eq!(echoed.exit, CommandExit::Status(0));
        assert!(echoed.stdout == input, "{kind:?}: {} bytes came back", echoed.stdout.len());

        // A command that ends without reading its input: neither side may wait for the input to be sent.
        let ignored = session.exec(b"exit 5", Zeroizing::new(vec![0; 16 << 20]), CAPTURE).await.unwrap();
        assert_eq!(ignored.exit, CommandExit::Status(5), "{kind:?}");

        assert_eq!(exec(&session, "kill -KILL $$").await.exit, CommandExit::Signal("KILL".into()));
        session.close().await;
    }
}

#[tokio::test]
async fn output_and_time_are_limited() {
    let Some(server) = Server::start(Kind::Busybox) else { return };
    let session = server.connect("user").await.session;
    let capture = Capture { most: 1000, within: LIMIT, prompt: None };
    for command in [&b"yes"[..], b"yes >&2", b"head -c 1001 /dev/zero"] {
        let error = session.exec(command, nothing(), capture).await.unwrap_err();
        assert!(matches!(error, ChannelError::TooMuch { limit: 1000 }), "{error:?}");
    }
    let whole = session.exec(b"head -c 1000 /dev/zero", nothing(), capture).await.unwrap();
    assert_eq!(whole.stdout.len(), 1000);
    let within = Duration::from_millis(100);
    let error = session
        .exec(b"sleep 1000", nothing(), Capture { most: 1000, within, prompt: None })
        .await
        .unwrap_err();
    assert!(matches!(error, ChannelError::Silent { .. }), "{error:?}");
}

#[tokio::test]
async fn streams_pass_through() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some(server) = Server::start(kind) else { continue };
        let session = server.connect("user").await.session;
        let input = vec![7_u8; 2 << 20];
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let command = b"wc -c; echo oops >&2; exit 9";
        let exit = session.pass_through(command, input.as_slice(), &mut out, &mut err).await.unwrap();
        assert_eq!(exit, CommandExit::Status(9));
        assert_eq!(String::from_utf8(out).unwrap().trim(), (2 << 20).to_string());
        assert_eq!(err, b"oops\n");

        // The command answers before its stdin ends, and ends before it has read all of its stdin.
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (stdin, mut stdout) = tokio::io::split(theirs);
        let (mut reader, mut writer) = tokio::io::split(ours);
        let talk = async {
            writer.write_all(b"ping\n").await.unwrap();
            let mut answer = [0; 5];
            reader.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"ping\n");
        };
        let command = b"read l; echo $l; exit 3";
        let mut nowhere = tokio::io::sink();
        let run = session.pass_through(command, stdin, &mut stdout, &mut nowhere);
        let (exit, ()) = tokio::join!(run, talk);
        assert_eq!(exit.unwrap(), CommandExit::Status(3));

        // Nobody reads the command's output.
        let (mut broken, other) = tokio::io::duplex(16);
        drop(other);
        let run = session.pass_through(b"yes", tokio::io::empty(), &mut broken, tokio::io::sink());
        assert!(matches!(run.await.unwrap_err(), ChannelError::Local { doing: "write to stdout", .. }));
    }
}

#[tokio::test]
async fn the_first_host_key_is_pinned_and_another_is_refused() {
    let Some(server) = Server::start(Kind::Debian) else { return };
    let pin = server.endpoint("user").pin;
    drop(server.connect("user").await);
    let learned = pin.load().unwrap().unwrap();
    drop(server.connect("root").await);
    assert_eq!(pin.load().unwrap().unwrap(), learned);

    // The system's ssh accepts the pin as its known_hosts.
    let private = server.directory.path().join("key");
    key::write(&server.key, &private).unwrap();
    let ssh = std::process::Command::new("ssh")
        .args(["-F", "none", "-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlias=nixbox", "-o"])
        .arg(format!("UserKnownHostsFile={}", pin.path().display()))
        .arg("-i")
        .arg(&private)
        .args(["-p", &server.address.port().to_string(), "user@127.0.0.1", "echo hello"])
        .output()
        .unwrap();
    assert_eq!(ssh.stdout, b"hello\n", "{}", String::from_utf8_lossy(&ssh.stderr));

    // If the server has several host keys, nixbox asks for the pinned one.
    let second = fs::read_to_string(server.directory.path().join("hostkey2.pub")).unwrap();
    fs::write(pin.path(), format!("nixbox {second}")).unwrap();
    SshSession::open(&server.endpoint("user"), Limits::default()).await.map(drop).unwrap();

    // Another key is refused at once, and the pin stays as it was.
    let other = key::generate().unwrap().public_key().to_openssh().unwrap();
    fs::write(pin.path(), format!("nixbox {other}\n")).unwrap();
    let endpoint = server.endpoint("user");
    let attempt = async |limits: Limits| Ok(SshSession::open(&endpoint, limits).await?);
    let refused = until_ready(LIMIT.into(), Limits::default(), &Interrupt::new(), attempt).await;
    let error = refused.map(drop).unwrap_err();
    assert!(matches!(&error, ChannelError::HostKey(PinError::Changed { .. })), "{error:?}");
    assert_eq!(pin.load().unwrap().unwrap().to_openssh().unwrap(), other);
}

#[tokio::test]
async fn a_refused_login_pins_no_host_key() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some(server) = Server::start(kind) else { continue };
        drop(server.connect("user").await);
        let pin = Pin::new(server.directory.path().join("second"));
        let key = Arc::new(key::generate().unwrap());
        let endpoint = Endpoint { key, pin: pin.clone(), ..server.endpoint("user") };
        let error = SshSession::open(&endpoint, Limits::default()).await.map(drop).unwrap_err();
        assert!(matches!(error, ChannelError::Denied { .. }), "{error:?}");
        assert!(pin.load().unwrap().is_none());
    }
}

fn endpoint(address: SocketAddr, directory: &std::path::Path) -> Endpoint {
    Endpoint {
        address,
        dial: Arc::new(dial_here),
        user: UserName::DEFAULT,
        key: Arc::new(key::generate().unwrap()),
        pin: Pin::new(directory.join("pin")),
    }
}

fn short() -> Limits {
    let half = Duration::from_millis(500);
    Limits { reach: half, connect: half, silence: Duration::from_millis(200), endless: false }
}

#[tokio::test]
async fn silent_noisy_and_absent_servers_are_different_errors() {
    let directory = tempfile::tempdir().unwrap();
    // The kernel accepts the connection into the backlog, and no server answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let guest = endpoint(silent.local_addr().unwrap(), directory.path());
    let error = SshSession::open(&guest, short()).await.map(drop).unwrap_err();
    assert!(matches!(error, ChannelError::Silent { .. }), "{error:?}");

    // This server sends a greeting that never ends.
    let noisy = TcpListener::bind("127.0.0.1:0").unwrap();
    let guest = endpoint(noisy.local_addr().unwrap(), directory.path());
    let noise = std::thread::spawn(move || {
        let (mut stream, _) = noisy.accept().unwrap();
        let mut sent = 0;
        while sent < 64 << 20 && stream.write_all(&[b'A'; 4096]).is_ok() {
            sent += 4096;
        }
        sent
    });
    let error = SshSession::open(&guest, Limits::default()).await.map(drop).unwrap_err();
    assert!(matches!(error, ChannelError::Protocol { source: russh::Error::Version, .. }), "{error:?}");
    assert!(noise.join().unwrap() < 64 << 20, "all of the noise was taken");

    let guest = endpoint(([127, 0, 0, 1], free_port()).into(), directory.path());
    let error = SshSession::open(&guest, short()).await.map(drop).unwrap_err();
    assert!(matches!(error, ChannelError::Connect { .. }), "{error:?}");
    assert!(guest.pin.load().unwrap().is_none());
}

/// A server that accepts every key, and misbehaves when a command is requested.
#[derive(Clone)]
enum Hostile {
    /// Closes this many channels before it answers, as Dropbear sometimes does.
    ClosesFirst(Arc<AtomicUsize>),
    /// Ends the connection in the middle of the output, with a message that a terminal would obey.
    Hangs,
    /// Closes the channel without saying how the command ended.
    NoStatus,
    /// Refuses to run the command.
    Refuses,
    /// Stops sending, even answers to keepalives.
    Freezes,
    /// Reports that a signal with a long and odd name ended the command.
    OddSignal,
}

impl server::Server for Hostile {
    type Handler = Self;

    fn new_client(&mut self, _: Option<SocketAddr>) -> Self {
        self.clone()
    }
}

impl server::Handler for Hostile {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: VerifiedPublicKey<'_>,
    ) -> Result<server::Auth, russh::Error> {
        Ok(server::Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<server::Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        _: &[u8],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        if !matches!(self, Self::Refuses | Self::ClosesFirst(_) | Self::OddSignal) {
            session.channel_success(id)?;
        }
        match self {
            Self::ClosesFirst(left) if left.load(Ordering::SeqCst) > 0 => {
                left.fetch_sub(1, Ordering::SeqCst);
                session.eof(id)?;
                session.close(id)?;
            }
            Self::ClosesFirst(_) => {
                session.channel_success(id)?;
                session.data(id, &b"ran"[..])?;
                session.exit_status_request(id, 7)?;
                session.eof(id)?;
                session.close(id)?;
            }
            Self::Refuses => session.channel_failure(id)?,
            Self::Hangs => {
                session.data(id, &b"half of "[..])?;
                session.disconnect(Disconnect::ByApplication, "gone \x1b[2J", "")?;
            }
            Self::NoStatus => {
                session.data(id, &b"all"[..])?;
                session.eof(id)?;
                session.close(id)?;
            }
            Self::OddSignal => {
                let name = Sig::Custom(format!("\x1b[2J{}", "X".repeat(100)));
                session.exit_signal_request(id, name, false, "", "")?;
                session.eof(id)?;
                session.close(id)?;
            }
            Self::Freezes => std::future::pending().await,
        }
        Ok(())
    }
}

#[tokio::test]
async fn each_misbehaviour_of_a_server_is_its_own_error() {
    let closes = |count| Hostile::ClosesFirst(Arc::new(AtomicUsize::new(count)));
    for how in [
        Hostile::Hangs,
        Hostile::NoStatus,
        Hostile::Refuses,
        Hostile::Freezes,
        Hostile::OddSignal,
        closes(STARTS - 1),
        closes(STARTS),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let guest = endpoint(listener.local_addr().unwrap(), directory.path());
        let configuration =
            server::Config { keys: vec![key::generate().unwrap()], ..server::Config::default() };
        let (mut hostile, starts) =
            (how.clone(), matches!(&how, Hostile::ClosesFirst(left) if left.load(Ordering::SeqCst) < STARTS));
        let serving =
            tokio::spawn(async move { hostile.run_on_socket(Arc::new(configuration), &listener).await });
        let limits = Limits { connect: LIMIT, ..short() };
        let session = SshSession::open(&guest, limits).await.unwrap();
        let done = session.exec(b"true", Zeroizing::new(vec![0; 1 << 20]), CAPTURE).await;
        match how {
            Hostile::Refuses => assert!(matches!(done, Err(ChannelError::NoCommands)), "{done:?}"),
            Hostile::ClosesFirst(_) if starts => {
                let done = done.unwrap();
                assert_eq!((done.exit, done.stdout.as_slice()), (CommandExit::Status(7), &b"ran"[..]));
            }
            Hostile::NoStatus | Hostile::ClosesFirst(_) => {
                assert!(matches!(done, Err(ChannelError::Unsaid)), "{done:?}");
            }
            Hostile::OddSignal => {
                assert_eq!(done.unwrap().exit, CommandExit::Signal(format!("2J{}", "X".repeat(14))))
            }
            Hostile::Hangs => {
                let end = ConnectionEnd::ByServer { message: "gone [2J".to_owned() };
                let Err(ChannelError::Closed(Some(told))) = done else { panic!("{done:?}") };
                assert_eq!(told.to_string(), end.to_string());
            }
            Hostile::Freezes => {
                let Err(ChannelError::Closed(Some(ConnectionEnd::Broken(why)))) = done else {
                    panic!("{done:?}")
                };
                assert!(matches!(*why, russh::Error::KeepaliveTimeout), "{why:?}");
            }
        }
        serving.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_with_success_at_the_limit_or_by_an_interrupt() {
    let again = || Attempt::Again("not yet".into());
    let (limits, interrupt) = (Limits::default(), Interrupt::new());
    let mut reaches = Vec::new();
    let third = until_ready(LIMIT.into(), limits, &interrupt, |limits: Limits| {
        reaches.push(limits.reach.as_millis());
        let count = reaches.len();
        async move {
            tokio::time::sleep(Duration::from_secs(4)).await;
            if count < 3 { Err(again()) } else { Ok(count) }
        }
    });
    assert_eq!(third.await.unwrap(), 3);
    assert_eq!(reaches, [200, 500, 1001], "an eighth of the time waited");

    let begun = tokio::time::Instant::now();
    let mut count = 0;
    let never = until_ready::<(), _>(Duration::from_secs(10).into(), limits, &interrupt, |_| {
        count += 1;
        async move { Err(again()) }
    });
    let error = never.await.unwrap_err();
    assert!(
        matches!(&error, ChannelError::NotReady { last: Some(last), .. } if last.to_string() == "not yet")
    );
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    // The pauses are 5, 10, … 160 ms, and then 250 ms each.
    assert!((40..=46).contains(&count), "{count} attempts");

    // While the guest refuses the key, nixbox waits only for a part of the limit.
    let denied = |_| async {
        let user = UserName::DEFAULT;
        Err(Attempt::from(ChannelError::Denied { user, fingerprint: "SHA256:x".to_owned() }))
    };
    let begun = tokio::time::Instant::now();
    let refused = until_ready::<(), _>(Duration::from_secs(100).into(), limits, &interrupt, denied).await;
    assert!(matches!(refused, Err(ChannelError::Denied { .. })), "{refused:?}");
    assert!(begun.elapsed() >= REFUSALS && begun.elapsed() < REFUSALS * 2, "{:?}", begun.elapsed());

    let waiting = until_ready::<(), _>(LIMIT.into(), limits, &interrupt, |_| std::future::pending());
    let interrupting = async { interrupt.request() };
    let (outcome, ()) = tokio::join!(waiting, interrupting);
    assert!(matches!(outcome, Err(ChannelError::Interrupted)));
}

/// A guest that is busy, with a build or with its own boot.
#[tokio::test(start_paused = true)]
async fn a_guest_that_takes_long_for_a_login_is_reached() {
    let login = Duration::from_secs(60);
    let slow = |limits: Limits| async move {
        tokio::time::sleep(login.min(limits.connect)).await;
        if limits.connect < login { Err(Attempt::Again("cut off".into())) } else { Ok(()) }
    };
    let begun = tokio::time::Instant::now();
    until_ready(Duration::from_secs(300).into(), Limits::default(), &Interrupt::new(), slow).await.unwrap();
    assert!(begun.elapsed() < login * 3, "{:?}", begun.elapsed());
}

/// How long a guest is waited for that never answers, and writes to its console at these times, in seconds.
async fn waited_for(within: u64, writes: &[u64]) -> Duration {
    let begun = tokio::time::Instant::now();
    let console = || Some(writes.iter().filter(|at| begun.elapsed().as_secs() >= **at).count() as u64);
    let patience = Patience { within: Duration::from_secs(within), signs: &console };
    let never = |_| async { Err::<(), _>(Attempt::Again("not yet".into())) };
    match until_ready(patience, Limits::default(), &Interrupt::new(), never).await {
        Err(ChannelError::NotReady { limit, .. }) => {
            assert_eq!(limit, begun.elapsed());
            limit
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_guest_is_waited_for_while_its_console_grows() {
    let seconds = Duration::from_secs;
    assert_eq!(waited_for(100, &[]).await, seconds(100));
    // The guest panicked early in its boot.
    assert_eq!(waited_for(100, &[1, 2, 3, 74]).await, seconds(100));
    // It is at work, and falls silent.
    assert_eq!(waited_for(100, &[1, 80, 100, 124, 140]).await, seconds(165));
    // It writes and writes.
    let all: Vec<u64> = (0..1000).collect();
    assert_eq!(waited_for(100, &all).await, seconds(300));
}

#[tokio::test]
async fn dropping_a_session_ends_its_connection() {
    // The shell counts without starting a program, because such a process might be counted or not.
    const COUNT: &str = "set -- /proc/*/comm; echo $#";
    let Some(server) = Server::start(Kind::Debian) else { return };
    let session = server.connect("root").await.session;
    let begun = Instant::now();
    let others = exec(&session, COUNT).await;
    let count: u32 = String::from_utf8(others.stdout).unwrap().trim().parse().unwrap();
    let second = server.connect("root").await.session;
    let command = second.start(b"exec sleep 1000").await.unwrap();
    drop(command);
    drop(second);
    loop {
        let now = exec(&session, COUNT).await;
        let now: u32 = String::from_utf8(now.stdout).unwrap().trim().parse().unwrap();
        // The sshd processes of the dropped session end. `sleep` continues, because the server does not end it.
        if now <= count + 1 {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{now} processes, {count} before");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
