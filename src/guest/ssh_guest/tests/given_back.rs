//! What a wipe takes from a guest that runs, and how the guest gets it back.

use super::*;
use crate::guest::backup::{BackupError, MOST};

/// Writes a file of the guest's user.
fn own(fixture: &Fixture, name: &str, content: &str) {
    fs::write(fixture.home(name), content).unwrap();
    std::os::unix::fs::chown(fixture.home(name), Some(fixture.uid), Some(fixture.uid)).unwrap();
}

fn own_directory(fixture: &Fixture, name: &str, mode: u32) {
    fs::create_dir(fixture.home(name)).unwrap();
    std::os::unix::fs::chown(fixture.home(name), Some(fixture.uid), Some(fixture.uid)).unwrap();
    fs::set_permissions(fixture.home(name), fs::Permissions::from_mode(mode)).unwrap();
}

fn read(fixture: &Fixture, name: &str) -> String {
    fs::read_to_string(fixture.home(name)).unwrap_or_else(|error| panic!("{fixture:?} {name}: {error}"))
}

/// The systems that a guest can be wiped in.
fn fixtures() -> Vec<Fixture> {
    let systems = [(Kind::Busybox, "root", 0), (Kind::Debian, "user", 1000)];
    systems.into_iter().filter_map(|(kind, user, uid)| Fixture::start(kind, user, uid)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_wipe_takes_comes_back_before_what_was_written_since() {
    for fixture in fixtures() {
        let guest = fixture.guest(fixture.wanted(vec![rule("injected", "~/.docker/token", None)]));
        guest.inject(&machine()).await.unwrap();
        own(&fixture, ".bash_history", "one\ntwo\n");
        fs::set_permissions(fixture.home(".bash_history"), fs::Permissions::from_mode(0o640)).unwrap();
        own(&fixture, ".python_history", "import os\n");
        own_directory(&fixture, ".docker/it's", 0o750);
        own(&fixture, ".docker/it's/config", "of the guest\n");
        own(&fixture, ".docker/changed", "before\n");
        own(&fixture, "real", "followed\n");
        symlink("real", fixture.home("linked")).unwrap();
        let modified = || fs::metadata(fixture.home(".python_history")).unwrap().mtime();
        let before = modified();

        let measured = guest.examine(&machine()).await.unwrap();
        let backup = guest.back_up(&machine()).await.unwrap().unwrap();
        assert!((512..=MOST as u64).contains(&measured));
        assert!(guest.wipe(&machine(), Some(&backup)).await.unwrap());
        for name in [".bash_history", ".python_history", ".docker", "real", "linked", ".env"] {
            assert!(fs::symlink_metadata(fixture.home(name)).is_err(), "{fixture:?} {name} is left");
        }
        own(&fixture, ".bash_history", "three\n");
        own_directory(&fixture, ".docker", 0o700);
        own(&fixture, ".docker/changed", "since\n");
        guest.inject(&machine()).await.unwrap();
        fs::write(fixture.home(".docker/token"), "rotated").unwrap();

        // Once more, as after a crash.
        for _ in 0..2 {
            guest.give_back(&machine(), &backup).await.unwrap();
            assert_eq!(read(&fixture, ".bash_history"), "one\ntwo\nthree\n", "{fixture:?}");
            assert_eq!(read(&fixture, ".python_history"), "import os\n");
            assert_eq!(read(&fixture, ".docker/it's/config"), "of the guest\n");
            assert_eq!(read(&fixture, ".docker/changed"), "before\nsince\n");
            // What nixbox has injected is not the guest's.
            assert_eq!(read(&fixture, ".docker/token"), "rotated");
            assert_eq!(fs::read_link(fixture.home("linked")).unwrap(), Path::new("real"));
            assert_eq!(read(&fixture, "real"), "followed\n");
            let about = |name: &str| fs::metadata(fixture.home(name)).unwrap();
            assert_eq!(
                (about(".bash_history").mode() & 0o777, about(".bash_history").uid()),
                (0o640, fixture.uid)
            );
            assert_eq!(
                (about(".docker/it's").mode() & 0o777, about(".docker/it's").uid()),
                (0o750, fixture.uid)
            );
            assert_eq!(modified(), before);
            let left = fs::read_dir(fixture.home("")).unwrap().map(|entry| entry.unwrap().file_name());
            let left: Vec<_> = left.filter(|name| name.to_str().unwrap().contains("nixbox-back")).collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

/// Without a word of the configuration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_docker_login_keeps_is_wiped_and_given_back() {
    for fixture in fixtures() {
        let wanted = Wanted { wipe: Vec::new(), ..fixture.wanted(Vec::new()) };
        let guest = fixture.guest(wanted);
        own_directory(&fixture, ".docker", 0o700);
        own(&fixture, ".docker/config.json", "{\"auths\": {}}");
        own(&fixture, ".docker/daemon.json", "{}");
        let backup = guest.back_up(&machine()).await.unwrap().unwrap();
        assert!(guest.wipe(&machine(), Some(&backup)).await.unwrap());
        assert!(!fixture.home(".docker/config.json").exists(), "{fixture:?}");
        assert_eq!(read(&fixture, ".docker/daemon.json"), "{}");
        guest.give_back(&machine(), &backup).await.unwrap();
        assert_eq!(read(&fixture, ".docker/config.json"), "{\"auths\": {}}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wipe_leaves_everything_if_the_guest_has_written_since_the_backup() {
    for fixture in fixtures() {
        let guest = fixture.guest(fixture.wanted(fixture.files()));
        guest.inject(&machine()).await.unwrap();
        assert!(guest.back_up(&machine()).await.unwrap().is_none());
        own(&fixture, ".bash_history", "one\n");
        assert!(!guest.wipe(&machine(), None).await.unwrap());
        let backup = guest.back_up(&machine()).await.unwrap().unwrap();
        own(&fixture, ".bash_history", "one\ntwo\n");
        assert!(!guest.wipe(&machine(), Some(&backup)).await.unwrap());
        assert_eq!(read(&fixture, ".bash_history"), "one\ntwo\n");
        assert_eq!(guest.equipped(&machine()).await.unwrap().credentials, Presence::Whole);
        let backup = guest.back_up(&machine()).await.unwrap().unwrap();
        assert!(guest.wipe(&machine(), Some(&backup)).await.unwrap());
        guest.give_back(&machine(), &backup).await.unwrap();
        assert_eq!(read(&fixture, ".bash_history"), "one\ntwo\n");
    }
}

/// What the guest has put into the place of an entry is never followed to somewhere else, and never lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_the_guest_makes_meanwhile_are_not_followed() {
    for fixture in fixtures() {
        let guest = fixture.guest(fixture.wanted(Vec::new()));
        own(&fixture, ".bash_history", "one\n");
        own_directory(&fixture, ".docker", 0o700);
        own(&fixture, ".docker/config", "mine\n");
        let backup = guest.back_up(&machine()).await.unwrap().unwrap();
        assert!(guest.wipe(&machine(), Some(&backup)).await.unwrap());
        own(&fixture, "other", "other\n");
        own_directory(&fixture, "elsewhere", 0o700);
        symlink("other", fixture.home(".bash_history")).unwrap();
        symlink("elsewhere", fixture.home(".docker")).unwrap();
        for _ in 0..2 {
            guest.give_back(&machine(), &backup).await.unwrap();
            assert_eq!(read(&fixture, "other"), "other\n");
            assert_eq!(read(&fixture, ".bash_history.before-snapshot"), "one\n");
            assert_eq!(fs::read_dir(fixture.home("elsewhere")).unwrap().count(), 0);
            assert_eq!(read(&fixture, ".docker.before-snapshot/config"), "mine\n");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_to_give_back_is_refused_by_its_name() {
    for fixture in fixtures() {
        let guest = fixture.guest(fixture.wanted(Vec::new()));
        own_directory(&fixture, ".docker", 0o700);
        own(&fixture, ".bash_history", "one\n");
        own(&fixture, ".docker/layers", "");
        let layers = fs::File::options().write(true).open(fixture.home(".docker/layers")).unwrap();
        layers.set_len(MOST as u64).unwrap();
        for failed in [guest.examine(&machine()).await.map(drop), guest.back_up(&machine()).await.map(drop)] {
            let Err(Failure::World(error)) = failed else { panic!("{fixture:?}: {failed:?}") };
            let error = error.downcast::<BackupError>().unwrap();
            assert!(
                matches!(&*error, BackupError::TooLarge { path, .. } if path.ends_with("/.docker")),
                "{error}"
            );
            assert!(error.to_string().contains("credentials.wipe"), "{error}");
        }
        layers.set_len(MOST as u64 / 2).unwrap();
        let backup = guest.back_up(&machine()).await.unwrap().unwrap();
        assert!(guest.wipe(&machine(), Some(&backup)).await.unwrap());
        guest.give_back(&machine(), &backup).await.unwrap();
        assert_eq!(fs::metadata(fixture.home(".docker/layers")).unwrap().len(), MOST as u64 / 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_nixbox_did_not_write_is_refused() {
    let Some(fixture) = Fixture::start(Kind::Busybox, "root", 0) else { return };
    let guest = fixture.guest(fixture.wanted(Vec::new()));
    own(&fixture, ".bash_history", "one\n");
    let whole = guest.back_up(&machine()).await.unwrap().unwrap();
    let bytes = whole.expose();
    assert!(!format!("{whole:?}").contains("one"));
    let longer = [bytes, b"x"].concat();
    for bad in [&bytes[..0], &bytes[..9], &bytes[..bytes.len() - 1], &longer] {
        let bad = Secret::new(bad.to_vec());
        for failed in [
            guest.give_back(&machine(), &bad).await.map(drop),
            guest.wipe(&machine(), Some(&bad)).await.map(drop),
        ] {
            assert!(failed.unwrap_err().to_string().contains("not one that nixbox wrote"));
        }
    }
    assert_eq!(read(&fixture, ".bash_history"), "one\n");
}
