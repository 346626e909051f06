//! What a guest is found to hold before it is wiped.

use super::*;
use crate::world::{GuestAudit, HoldingProcess, SecretCommand, UnprovenPlace};

/// The names of the programs that were found, with the names of the values that they hold.
fn programs(audit: &GuestAudit) -> Vec<(String, Vec<String>)> {
    let named = |one: &HoldingProcess| (one.program.clone(), one.values.clone());
    audit.processes.iter().map(named).collect()
}

/// The places that were named, without file systems: those are the machine's that the test runs on.
fn places(audit: &GuestAudit) -> Vec<&str> {
    let is_of_machine = |place: &&UnprovenPlace| place.reason.contains("free blocks");
    audit.unproven.iter().filter(|place| !is_of_machine(place)).map(|place| place.place.as_str()).collect()
}

/// A value that a command of the host prints: one that is written in the configuration and looks like words is no secret.
fn printed(value: &str) -> SecretSource {
    let arguments = vec![Secret::new(value.as_bytes().to_vec())];
    SecretSource::Command(SecretCommand { program: "echo".to_owned(), arguments })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_keep_a_value_are_named_and_no_argument_list_holds_one() {
    for (kind, user, uid) in [(Kind::Busybox, "root", 0), (Kind::Debian, "user", 1000)] {
        let Some(fixture) = Fixture::start(kind, user, uid) else { continue };
        let guest = fixture.guest(Wanted {
            environment: vec![("TOKEN".parse().unwrap(), printed(&fixture.first))],
            ..fixture.wanted(fixture.files())
        });
        let audit = guest.audit(&machine(), None).await.unwrap();
        assert_eq!(
            (audit.processes.len(), places(&audit)),
            (0, Vec::new()),
            "nothing is known yet: {audit:?}"
        );
        guest.inject(&machine()).await.unwrap();
        let shell = fixture.server.connect(fixture.user).await;
        // A process that holds the value, and one that does not. The mark of the script is in neither.
        let start = "for c in '. \"$HOME/.env\"; exec sleep 301' 'exec sleep 302'; do\n\
                     env -i HOME=\"$HOME\" PATH=\"$PATH\" sh -c \"$c\" > /dev/null 2>&1 < /dev/null &\ndone\n\
                     until [ \"$(cat /proc/[0-9]*/comm 2>/dev/null | grep -c '^sleep$')\" -ge 2 ]; do :; done";
        shell.script("start programs", Rights::User, start, &[], LIMIT).await.unwrap();

        let stop = Arc::new(AtomicBool::new(false));
        let watch = in_arguments(vec![fixture.first.clone(), fixture.second.clone()], Arc::clone(&stop));
        let audit = guest.audit(&machine(), None).await.unwrap();
        stop.store(true, Ordering::SeqCst);
        let (_, found) = watch.join().unwrap();
        assert_eq!(found, Vec::<String>::new());
        assert_eq!(places(&audit), [] as [&str; 0], "{fixture:?}: {audit:?}");
        assert_eq!(programs(&audit), [("sleep".to_owned(), vec!["TOKEN".to_owned()])], "{fixture:?}");
        assert!(audit.processes.iter().all(|process| process.pid > 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_wipe_takes_is_searched_for_from_then_on() {
    let Some(fixture) = Fixture::start(Kind::Busybox, "root", 0) else { return };
    let guest = fixture.guest(Wanted { wipe: vec![path("~/.docker")], ..Wanted::default() });
    fs::create_dir(fixture.home(".docker")).unwrap();
    fs::write(fixture.home(".docker/config.json"), format!("{{\"token\": \"{}\"}}", fixture.first)).unwrap();
    let shell = fixture.server.connect(fixture.user).await;
    let start = format!(
        "env -i KEPT='{}' sleep 300 > /dev/null 2>&1 < /dev/null &\nuntil [ \"$(cat /proc/$!/comm)\" = sleep ]; do :; done",
        fixture.first
    );
    shell.script("start a program", Rights::User, &start, &[], LIMIT).await.unwrap();
    let backup = guest.back_up(&machine()).await.unwrap().unwrap();
    let audit = guest.audit(&machine(), Some(&backup)).await.unwrap();
    // Once because the configuration lists the directory, and once because every wipe takes the file.
    let names = ["/home/root/.docker of the guest", "/home/root/.docker/config.json of the guest"];
    assert_eq!(programs(&audit), [("sleep".to_owned(), names.map(str::to_owned).to_vec())], "{audit:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_cannot_be_read_are_no_reason_to_fail() {
    let Some(fixture) = Fixture::start(Kind::DebianWithoutSudo, "user", 1000) else { return };
    let guest = fixture.guest(fixture.wanted(Vec::new()));
    guest.inject(&machine()).await.unwrap();
    let audit = guest.audit(&machine(), None).await.unwrap();
    assert_eq!(audit.processes, []);
    let said = format!("{:?}", audit.unproven);
    assert!(
        said.contains("environments and arguments of the guest's processes") && said.contains("sudo"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_wipe_leaves_on_disks_is_named() {
    for (kind, user, uid, other) in [(Kind::Busybox, "root", 0, "user"), (Kind::Debian, "user", 1000, "root")]
    {
        let Some(fixture) = Fixture::start(kind, user, uid) else { continue };
        let guest = fixture.guest(Wanted { wipe: vec![path("~/listed")], ..Wanted::default() });
        // An empty history says nothing, and root's is wiped.
        fs::write(fixture.server.home(other, ".ash_history"), "").unwrap();
        fs::write(fixture.server.home(other, ".bash_history"), "login --token abc").unwrap();
        fs::write(fixture.home(".bash_history"), "ls").unwrap();
        fs::create_dir(fixture.home("listed")).unwrap();
        fs::write(fixture.home("listed/file"), "x").unwrap();
        fs::write(fixture.home("listed/a\u{1b}[2J"), "x").unwrap();
        fs::hard_link(fixture.home("listed/file"), fixture.home("second name")).unwrap();
        let audit = guest.audit(&machine(), None).await.unwrap();
        let home = |user: &str| match kind {
            Kind::Busybox => format!("/home/{user}"),
            _ => fixture.server.home(user, "listed").parent().unwrap().display().to_string(),
        };
        let mut expected = vec![format!("{}/listed of the guest", home(user))];
        if other != "root" {
            expected.insert(0, format!("{}/.bash_history of the guest", home(other)));
        }
        assert_eq!(places(&audit), expected, "{audit:?}");
    }
}

/// The stand-ins of the test server get a path without its escape, as the real programs do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swap_is_switched_off_and_on_again_and_what_stays_is_named() {
    let Some(fixture) = Fixture::start(Kind::Debian, "user", 1000) else { return };
    let told = Arc::new(Mutex::new(Vec::new()));
    let (server, wanted) = (&fixture.server, fixture.wanted(fixture.files()));
    let settings = settings(server.address, "user", Arc::clone(&server.key), server.directory.path(), wanted);
    let settings = GuestSettings {
        on_no_swap: Arc::new({
            let told = Arc::clone(&told);
            move |stays_off| told.lock().unwrap().push(stays_off.to_owned())
        }),
        ..settings
    };
    let guest = SshGuest::new(settings, Arc::new(StateOnlyVmm(Mutex::new(VmmState::Running))));
    guest.inject(&machine()).await.unwrap();
    let list = server.swaps();
    let head = fs::read_to_string(&list).unwrap();
    let is_on = |path: &str| fs::read_to_string(&list).unwrap().contains(&format!("\n{path} "));
    let credentials = async || guest.equipped(&machine()).await.unwrap().credentials;

    fs::write(&list, format!("{head}/nixbox/zram0 partition 1024 8 100\n/nixbox/busy file 9 0 -3\n"))
        .unwrap();
    let stays = guest.switch_off_swap(&machine()).await.unwrap();
    assert!(stays.len() == 1 && stays[0].place.ends_with("/nixbox/busy"), "{stays:?}");
    assert!(!is_on("/nixbox/zram0") && is_on("/nixbox/busy"));
    assert_eq!(credentials().await, Presence::Partial);
    guest.inject(&machine()).await.unwrap();
    assert!(is_on("/nixbox/zram0") && is_on("/nixbox/busy"));
    assert_eq!(credentials().await, Presence::Whole);

    fs::write(&list, format!("{head}/nixbox/gone partition 1024 0 5\n")).unwrap();
    assert_eq!(guest.switch_off_swap(&machine()).await.unwrap(), []);
    guest.inject(&machine()).await.unwrap();
    assert_eq!(*told.lock().unwrap(), ["/nixbox/gone: it is gone"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credential_files_are_wiped_if_they_hold_a_known_value_and_named_otherwise() {
    for (kind, user, uid) in [(Kind::Busybox, "root", 0), (Kind::Debian, "user", 1000)] {
        let Some(fixture) = Fixture::start(kind, user, uid) else { continue };
        let guest = fixture.guest(fixture.wanted(fixture.files()));
        guest.inject(&machine()).await.unwrap();
        let own = |name: &str, content: &str| {
            fs::write(fixture.home(name), content).unwrap();
            std::os::unix::fs::chown(fixture.home(name), Some(uid), Some(uid)).unwrap();
        };
        own(".netrc", &format!("machine example.com password {}\n", fixture.second));
        own(".npmrc", "registry=https://registry.npmjs.org\n");
        own(".pypirc", "");
        let backup = guest.back_up(&machine()).await.unwrap().unwrap();
        let audit = guest.audit(&machine(), Some(&backup)).await.unwrap();
        let places: Vec<&str> = audit.unproven.iter().map(|one| one.place.as_str()).collect();
        assert_eq!(places, ["~/.npmrc of the guest"], "{fixture:?} {audit:?}");
        assert!(guest.wipe(&machine(), Some(&backup)).await.unwrap());
        let there = |name: &str| fixture.home(name).exists();
        assert!(!there(".netrc") && there(".npmrc") && there(".pypirc"), "{fixture:?}");
        guest.give_back(&machine(), &backup).await.unwrap();
        assert!(fs::read_to_string(fixture.home(".netrc")).unwrap().contains(&fixture.second));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_of_root_and_of_other_programs_are_wiped_and_given_back() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let user = if kind == Kind::Busybox { "root" } else { "user" };
        let Some(fixture) = Fixture::start(kind, user, if user == "root" { 0 } else { 1000 }) else {
            continue;
        };
        let guest = fixture.guest(Wanted::default());
        let files =
            [("root", ".psql_history"), (user, ".local/state/bash/history"), (user, ".rediscli_history")];
        for (owner, name) in files {
            let shell = fixture.server.connect(owner).await;
            let script = format!("f=$HOME/{name}; mkdir -p \"${{f%/*}}\" && echo 'of {owner}' > \"$f\"");
            shell.script("write a history", Rights::User, &script, &[], LIMIT).await.unwrap();
        }
        let backup = guest.back_up(&machine()).await.unwrap().unwrap();
        assert!(guest.wipe(&machine(), Some(&backup)).await.unwrap());
        let read = |owner: &str, name: &str| fs::read_to_string(fixture.server.home(owner, name)).ok();
        assert!(files.iter().all(|(owner, name)| read(owner, name).is_none()));
        guest.give_back(&machine(), &backup).await.unwrap();
        assert!(files.iter().all(|(owner, name)| read(owner, name) == Some(format!("of {owner}\n"))));
    }
}
