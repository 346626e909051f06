//! Scripts that continue in the guest after nixbox was killed or gave up waiting.

use std::os::fd::OwnedFd;
use std::task::Poll;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::*;

/// A script whose child waits for a line.
const WAITS: &str = r#"
mkfifo -m 666 "$HOME/gate" || exit 1
sh -c 'read -r word < "$HOME/gate"'
"#;

/// The pipe that the script's child reads from.
struct Gate(OwnedFd);

impl Gate {
    /// Waits until the child reads from the pipe.
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

    /// Lets the child continue. Returns false if the child no longer reads from the pipe.
    fn open(&self) -> bool {
        match rustix::io::write(&self.0, b"go on\n") {
            Ok(_) => true,
            Err(Errno::PIPE) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn scripts_of_a_killed_nixbox_have_ended_before_the_next_call_acts() {
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

/// Polls a future at most `times` times. Returns the output if the future completed.
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

/// While the second nixbox ends the scripts of the first, it is killed at every point in turn.
#[tokio::test]
async fn ending_stale_scripts_can_itself_be_killed_at_any_point() {
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
async fn a_dropped_call_has_ended_before_the_next_call_acts() {
    let Some(server) = Server::start(Kind::Busybox) else { return };
    let guest = guest(&server, "user", Wanted::default());
    let machine = machine();
    let given_up = guest.with(&machine, async |shell: &Shell| {
        let _dialogue = shell.converse("wait", Rights::User, WAITS).await.unwrap();
        std::future::pending::<Result<()>>().await
    });
    let gate = tokio::select! {
        _ = given_up => unreachable!("it never completes"),
        gate = Gate::reached(&server, "user") => gate,
    };
    guest.ready(&machine).await.unwrap();
    assert!(!gate.open());
}

#[tokio::test]
async fn a_new_connection_does_not_end_scripts_of_calls_in_progress() {
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
