use std::os::unix::fs::{PermissionsExt, symlink};

use futures_util::FutureExt as _;

use super::*;

fn slot(number: u8) -> Slot {
    Slot::try_from(number).unwrap()
}

struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(crate::testing::open_directory())
    }

    fn directory(&self) -> PathBuf {
        self.0.path().join("run/slots")
    }

    fn workspace(&self, id: u8) -> HostSlots {
        HostSlots::new(self.directory(), WorkspaceId([id; 16]), format!("/home/{id}"))
    }
}

#[tokio::test]
async fn a_slot_is_claimed_kept_and_released() {
    let host = Host::new();
    let ours = host.workspace(1);
    assert_eq!(ours.held().await.unwrap(), None);
    assert_eq!(ours.free().await.unwrap().len(), 65);
    assert!(!host.directory().exists(), "looking makes nothing");

    assert_eq!(ours.claim(&[slot(7), slot(8)]).await.unwrap(), slot(7));
    assert_eq!(ours.claim(&[slot(8), slot(7)]).await.unwrap(), slot(7), "the one that it holds is kept");
    assert_eq!(ours.held().await.unwrap(), Some(slot(7)));
    assert!(!ours.free().await.unwrap().contains(&slot(7)));
    assert_eq!(host.directory().metadata().unwrap().permissions().mode() & 0o7777, 0o1777);

    ours.release(slot(7)).await.unwrap();
    ours.release(slot(7)).await.unwrap();
    assert_eq!(ours.held().await.unwrap(), None);
    assert_eq!(std::fs::read_dir(host.directory()).unwrap().count(), 0, "nothing but claims is ever there");
}

#[tokio::test]
async fn the_slot_of_another_workspace_is_neither_claimed_nor_released() {
    let host = Host::new();
    host.workspace(1).claim(&[slot(0)]).await.unwrap();
    let other = host.workspace(2);
    assert_eq!(other.claim(&[slot(0), slot(1)]).await.unwrap(), slot(1));
    let refused = other.release(slot(0)).await.unwrap_err().to_string();
    assert!(refused.contains("/home/1"), "{refused}");
    assert_eq!(host.workspace(1).held().await.unwrap(), Some(slot(0)));
}

#[tokio::test]
async fn a_workspace_has_one_slot_at_a_time() {
    let host = Host::new();
    let ours = host.workspace(1);
    ours.claim(&[slot(3)]).await.unwrap();
    let refused = ours.claim(&[slot(4)]).await.unwrap_err().to_string();
    assert!(refused.contains("holds slot 3"), "{refused}");
    assert!(!ours.path(slot(4)).exists());
}

#[tokio::test]
async fn an_error_says_who_holds_the_slots() {
    let host = Host::new();
    for id in 0..65 {
        host.workspace(id).claim(&Slot::all().collect::<Vec<_>>()).await.unwrap();
    }
    assert!(host.workspace(99).free().await.unwrap().is_empty());
    let refused = host.workspace(99).claim(&Slot::all().collect::<Vec<_>>()).await.unwrap_err().to_string();
    assert!(refused.contains("63 is held by workspace \"/home/63\""), "{refused}");
}

#[tokio::test]
async fn a_file_that_is_not_a_claim_holds_its_slot_and_is_left_alone() {
    let host = Host::new();
    let ours = host.workspace(1);
    ours.claim(&[slot(63)]).await.unwrap();
    let good = std::fs::read_to_string(ours.path(slot(63))).unwrap();
    ours.release(slot(63)).await.unwrap();
    let bad = [
        String::new(),
        good.replace("\"version\":1", "\"version\":2"),
        good.replace('{', "{\"more\":1,"),
        good.clone() + "x",
        "x".repeat(100_000),
    ];
    for (number, content) in (0..).zip(&bad) {
        std::fs::write(ours.path(slot(number)), content).unwrap();
    }
    symlink("/nowhere", ours.path(slot(5))).unwrap();
    std::fs::create_dir(ours.path(slot(6))).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(ours.path(slot(7))).status().unwrap();
    assert!(fifo.success());

    assert_eq!(ours.held().await.unwrap(), None);
    assert_eq!(ours.free().await.unwrap().len(), 65 - 8);
    assert_eq!(ours.claim(&Slot::all().collect::<Vec<_>>()).await.unwrap(), slot(8));
    for number in 0..8 {
        assert!(ours.release(slot(number)).await.is_err(), "{number}");
        assert!(ours.path(slot(number)).symlink_metadata().is_ok(), "{number}");
    }
}

#[tokio::test]
async fn a_claim_by_another_user_does_not_count_for_the_workspace() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: giving a file away needs root");
        return;
    }
    let host = Host::new();
    let ours = host.workspace(1);
    ours.claim(&[slot(2)]).await.unwrap();
    std::os::unix::fs::chown(ours.path(slot(2)), Some(65534), None).unwrap();
    assert_eq!(ours.held().await.unwrap(), None);
    assert!(ours.release(slot(2)).await.is_err());
    assert!(ours.path(slot(2)).exists());
}

#[test]
fn users_claim_beside_root_and_cannot_take_from_each_other() {
    use rustix::process::{Gid, Uid};
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: becoming another user needs root");
        return;
    }
    let host = Host::new();
    let (roots, users) = (host.workspace(1), host.workspace(2));
    assert_eq!(roots.claim(&[slot(0)]).now_or_never().unwrap().unwrap(), slot(0));
    // These calls are this thread's alone.
    let as_user = std::thread::spawn(move || {
        rustix::thread::set_thread_res_gid(Gid::from_raw(4711), Gid::from_raw(4711), Gid::from_raw(4711))
            .unwrap();
        rustix::thread::set_thread_res_uid(Uid::from_raw(4711), Uid::from_raw(4711), Uid::from_raw(4711))
            .unwrap();
        assert_eq!(users.claim(&[slot(0), slot(1)]).now_or_never().unwrap().unwrap(), slot(1));
        assert_eq!(users.held().now_or_never().unwrap().unwrap(), Some(slot(1)));
        let taken = std::fs::remove_file(users.path(slot(0))).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::PermissionDenied, "the sticky bit");
    });
    as_user.join().unwrap();
    assert_eq!(roots.held().now_or_never().unwrap().unwrap(), Some(slot(0)));
    assert!(roots.release(slot(1)).now_or_never().unwrap().is_err());
}

#[tokio::test]
async fn an_unsafe_directory_is_refused() {
    let host = Host::new();
    std::fs::create_dir_all(host.directory()).unwrap();
    std::fs::set_permissions(host.directory(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(host.workspace(1).claim(&[slot(0)]).await.unwrap_err().to_string().contains("sticky"));
    std::fs::remove_dir(host.directory()).unwrap();
    symlink("/tmp", host.directory()).unwrap();
    assert!(host.workspace(1).held().await.unwrap_err().to_string().contains("not a directory"));
}

#[test]
fn each_of_many_that_race_for_slots_gets_its_own() {
    let host = Host::new();
    let (all, start) = (Slot::all().collect::<Vec<_>>(), std::sync::Barrier::new(16));
    let mut got = std::thread::scope(|scope| {
        let claim = |id| {
            let (slots, all, start) = (host.workspace(id), &all, &start);
            scope.spawn(move || {
                start.wait();
                slots.claim(all).now_or_never().unwrap().unwrap()
            })
        };
        (0..16)
            .map(claim)
            .collect::<Vec<_>>()
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Vec<_>>()
    });
    got.sort();
    assert_eq!(got, all[..16]);
}
