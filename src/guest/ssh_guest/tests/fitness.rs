//! What a guest is refused for before it is changed, and files of the guest that nixbox did not write.

use super::*;
use crate::guest::examine::UnfitGuest;
use crate::guest::survey::LEDGER;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fit_guest_passes_the_examination_and_is_as_before() {
    for (kind, user, uid) in [(Kind::Busybox, "root", 0), (Kind::Debian, "user", 1000)] {
        let Some(fixture) = Fixture::start(kind, user, uid) else { continue };
        let guest = fixture.guest(fixture.wanted(fixture.files()));
        let names = || {
            let entries = fs::read_dir(fixture.home("")).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let before = names();
        guest.examine(&machine()).await.unwrap();
        assert_eq!(names(), before, "{fixture:?}");
        guest.inject(&machine()).await.unwrap();
        guest.examine(&machine()).await.unwrap();
    }
}

async fn unfit(guest: &SshGuest) -> String {
    let Failure::World(error) = guest.examine(&machine()).await.unwrap_err() else { panic!() };
    error.downcast::<UnfitGuest>().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfit_guest_is_told_before_it_is_changed() {
    let Some(fixture) = Fixture::start(Kind::DebianWithoutSudo, "user", 1000) else { return };
    let told = unfit(&fixture.guest(Wanted::default())).await;
    assert!(told.contains("no `sudo` without a password"), "{told}");

    let Some(fixture) = Fixture::start(Kind::Debian, "user", 1000) else { return };
    let guest = fixture.guest(fixture.wanted(fixture.files()));
    fs::create_dir(fixture.home(".env")).unwrap();
    // The directory belongs to root, and the user may only read it.
    fs::create_dir(fixture.home(".aws")).unwrap();
    fs::set_permissions(fixture.home(".aws"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(fixture.home(".profile"), "# root's\n").unwrap();
    let told = unfit(&guest).await;
    for part in [".env is a directory", "it's: the directory", "/.aws cannot be written", ".profile cannot"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(fs::read_dir(fixture.home(".aws")).unwrap().next().is_none());
    assert_eq!(fs::read_to_string(fixture.home(".profile")).unwrap(), "# root's\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_cannot_be_settled_is_unfit() {
    let Some(fixture) = Fixture::start(Kind::Busybox, "root", 0) else { return };
    // The guest has no directory that its helper can be run from.
    let shell = fixture.server.connect("root").await;
    let script = "for d in /dev/shm /run /tmp; do mount -t tmpfs -o noexec tmpfs $d || exit 1; done
        mount -o bind /home /home && mount -o remount,bind,noexec /home";
    shell.script("mount", Rights::User, script, &[], LIMIT).await.unwrap();
    let Failure::World(error) = fixture.guest(Wanted::default()).examine(&machine()).await.unwrap_err()
    else {
        panic!()
    };
    let UnfitGuest::Settle(why) = *error.downcast::<UnfitGuest>().unwrap() else { panic!() };
    assert!(why.to_string().contains("no directory to run a program from"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_nixbox_did_not_write_is_left_as_it_is_unless_it_may_be_overwritten() {
    for (kind, user, uid) in [(Kind::Busybox, "root", 0), (Kind::Debian, "user", 1000)] {
        let Some(fixture) = Fixture::start(kind, user, uid) else { continue };
        let guest = fixture.guest(fixture.wanted(fixture.files()));
        let own = |name: &str, content: &str| {
            fs::write(fixture.home(name), content).unwrap();
            std::os::unix::fs::chown(fixture.home(name), Some(uid), Some(uid)).unwrap();
        };
        own(".env", "export MINE=1\n");
        own(".ssh/id_ed25519", "my key\n");
        let public = key::public_text(&fixture.workspace_key).unwrap();
        own(".ssh/id_ed25519.pub", &public);
        let told = unfit(&guest).await;
        let told_later = guest.inject(&machine()).await.unwrap_err().to_string();
        for told in [told, told_later] {
            assert!(told.contains("did not write ~/.env, ~/.ssh/id_ed25519 in the guest"), "{told}");
            assert!(told.contains("credentials.overwrite"), "{told}");
        }
        let content = |name: &str| fs::read_to_string(fixture.home(name)).unwrap();
        assert_eq!(
            (content(".env"), content(".ssh/id_ed25519")),
            ("export MINE=1\n".into(), "my key\n".into())
        );
        // The others were written. The public half is what nixbox would have written.
        assert_eq!(content(".aws/deep er/it's"), fixture.second);
        assert_eq!(content(".ssh/id_ed25519.pub"), public);

        let overwrite = vec![path("~/.env"), path("~/.ssh/id_ed25519")];
        let allowed = fixture.guest(Wanted { overwrite, ..fixture.wanted(fixture.files()) });
        allowed.examine(&machine()).await.unwrap();
        allowed.inject(&machine()).await.unwrap();
        assert_eq!(guest.equipped(&machine()).await.unwrap().credentials, Presence::Whole);
        // nixbox has written them now.
        own(".env", "changed");
        guest.inject(&machine()).await.unwrap();
        assert_eq!(guest.equipped(&machine()).await.unwrap().credentials, Presence::Whole);
    }
}

/// A VM that is killed may lose the list of injected files, and what was in the files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_empty_or_as_nixbox_writes_them_are_nobody_elses() {
    let Some(fixture) = Fixture::start(Kind::Debian, "user", 1000) else { return };
    let guest = fixture.guest(fixture.wanted(fixture.files()));
    guest.inject(&machine()).await.unwrap();
    fs::remove_file(fixture.home(LEDGER)).unwrap();
    fs::write(fixture.home(".env"), "").unwrap();
    let again = fixture.guest(fixture.wanted(fixture.files()));
    again.examine(&machine()).await.unwrap();
    again.inject(&machine()).await.unwrap();
    assert_eq!(again.equipped(&machine()).await.unwrap().credentials, Presence::Whole);
    assert!(!fs::read_to_string(fixture.home(".env")).unwrap().is_empty());
}
