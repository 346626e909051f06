//! Scripts that go on in the guest though nobody waits for them any more.

use std::os::fd::OwnedFd;
use std::task::Poll;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::*;

/// A child of the script waits for a word.
const WAITS: &str = r#"
mkfifo -m 666 "$HOME/gate" || exit 1
sh -c 'read -r word < "$HOME/gate"'
"#;

/// Where a script's child waits.
struct Gate(OwnedFd);

impl Gate {
    /// Waits until the child waits.
    async fn reached(server: &Server, user: &str) -> Self {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let reached = async {
            loop {
                match rustix::fs::open(server.home(user, "gate"), flags, Mode::empty()) {
                    Ok(gate) => return Self(gate),
                    Err(Errno::NXIO | Errno::NOENT) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        timeout(LIMIT, reached).await.unwrap()
    }

    /// Lets it go on. False if nobody waits any more.
    fn open(&self) -> bool {
        match rustix::io::write(&self.0, b"go on\n") {
            Ok(_) => true,
            Err(Errno::PIPE) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn what_a_nixbox_that_is_gone_began_has_ended_before_another_acts() {
    for (kind, user, rights) in [
        (Kind::Busybox, "root", Rights::Root),
        (Kind::Busybox, "user", Rights::User),
        (Kind::Debian, "user", Rights::User),
        (Kind::Debian, "user", Rights::Root),
        (Kind::DebianWithoutSudo, "user", Rights::User),
    ] {
        let Some(server) = Server::start(kind) else { continue };
        let home = if rights == Rights::Root { "root" } else { user };
        let gone = server.connect(user).await;
        let dialogue = gone.converse("wait", rights, WAITS).await.unwrap();
        let gate = Gate::reached(&server, home).await;
        drop((dialogue, gone));
        guest(&server, user, Wanted::default()).ready(&machine()).await.unwrap();
        assert!(!gate.open(), "{kind:?} {user} {rights:?}");
    }
}

/// Polls a future so many times; what it came to, if it came to its end.
async fn polled<T>(times: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut left = times;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// The end of what was left running is itself left half done, at any point.
#[tokio::test]
async fn a_nixbox_that_is_gone_while_it_ends_others_is_no_hindrance() {
    let Some(server) = Server::start(Kind::Busybox) else { return };
    let machine = machine();
    for times in 1.. {
        let first = server.connect("user").await;
        let dialogue = first.converse("wait", Rights::User, WAITS).await.unwrap();
        let gate = Gate::reached(&server, "user").await;
        drop((dialogue, first));
        let second = guest(&server, "user", Wanted::default());
        let ended = polled(times, second.ready(&machine)).await;
        drop(second);
        guest(&server, "user", Wanted::default()).ready(&machine).await.unwrap();
        assert!(!gate.open(), "given up after {times} polls");
        fs::remove_file(server.home("user", "gate")).unwrap();
        if let Some(ended) = ended {
            ended.unwrap();
            assert!(times > 10, "given up at {times} points only");
            println!("given up after up to {times} polls");
            return;
        }
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_has_ended_before_the_next_acts() {
    let Some(server) = Server::start(Kind::Busybox) else { return };
    let guest = guest(&server, "user", Wanted::default());
    let machine = machine();
    let given_up = guest.with(&machine, async |shell: &Shell| {
        let _dialogue = shell.converse("wait", Rights::User, WAITS).await.unwrap();
        std::future::pending::<Result<()>>().await
    });
    let gate = tokio::select! {
        _ = given_up => unreachable!("it waits for ever"),
        gate = Gate::reached(&server, "user") => gate,
    };
    guest.ready(&machine).await.unwrap();
    assert!(!gate.open());
}

#[tokio::test]
async fn what_is_under_way_goes_on_when_another_connection_is_made() {
    let Some(server) = Server::start(Kind::Busybox) else { return };
    let guest = guest(&server, "user", Wanted::default());
    let machine = machine();
    let under_way = guest.with(&machine, async |shell: &Shell| {
        let dialogue = shell.converse("wait", Rights::User, WAITS).await.map_err(Failure::world)?;
        dialogue.finish().await.map_err(Failure::world)
    });
    let others = async {
        let gate = Gate::reached(&server, "user").await;
        let failed = guest.with(&machine, async |_: &Shell| Err::<(), _>(Failure::Interrupted)).await;
        assert!(matches!(failed, Err(Failure::Interrupted)), "{failed:?}");
        guest.ready(&machine).await.unwrap();
        assert_eq!(server.log().matches("auth succeeded").count(), 2, "{}", server.log());
        assert!(gate.open());
    };
    let (done, ()) = tokio::join!(under_way, others);
    done.unwrap();
}
