use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use russh::keys::PrivateKey;
use zeroize::Zeroizing;

use super::*;
use crate::guest::channel::Limits;
use crate::guest::credentials::{FileRule, Wanted};
use crate::guest::host_key::PinError;
use crate::guest::key;
use crate::guest::mounts::Mount;
use crate::guest::settle::SettleError;
use crate::guest::testing::{Kind, LIMIT, Server, free_port};
use crate::guest::wipe::WipeError;
use crate::world::{
    Ability, GuestPath, Presence, Secret, SecretSource, SnapshotId, VariableName, VmmState, VmmVersion,
};

mod audit;
mod fitness;
mod given_back;
mod left_running;
mod real;
mod scripts;
mod state_only_vmm;

use state_only_vmm::StateOnlyVmm;

fn machine() -> Machine {
    let slot = Slot::try_from(3).unwrap();
    Machine { vmm: Generation(1), disk: Generation(2), memory: Generation(1), slot, shares: true }
}

fn path(text: &str) -> GuestPath {
    text.parse().unwrap()
}

fn share(tag: &str, target: &str, readonly: bool) -> Mount {
    Mount { tag: tag.parse().unwrap(), target: path(target), readonly }
}

fn rule(content: &str, target: &str, owner: Option<&str>) -> FileRule {
    let owner = owner.map(|owner| owner.parse().unwrap());
    FileRule { source: plain(content), target: path(target), owner }
}

fn settings(
    address: SocketAddr,
    user: &str,
    key: Arc<PrivateKey>,
    pins: &Path,
    wanted: Wanted,
) -> GuestSettings {
    GuestSettings {
        user: user.parse().unwrap(),
        key: Ok(key),
        pin: {
            let pins = pins.to_owned();
            Arc::new(move |disk| pins.join(format!("{disk}.host-key")))
        },
        address: Arc::new(move |_| address),
        dial: Arc::new(crate::guest::channel::dial_here),
        wanted,
        state: pins.to_owned(),
        require_entropy: true,
        on_unsettled: Arc::new(|_| ()),
        on_no_swap: Arc::new(|_| ()),
        on_remounted: Arc::new(|| ()),
        on_user: Arc::new(|_| ()),
        on_waiting: Arc::new(|_, _| ()),
        mounts: Vec::new(),
        ready: ReadyTimeout::DEFAULT,
        console: Arc::new(|_| None),
        scripts: BTreeMap::new(),
        on_script: Arc::new(|_| ()),
        limits: Limits::default(),
    }
}

fn guest(server: &Server, user: &str, wanted: Wanted) -> SshGuest {
    let settings = settings(server.address, user, Arc::clone(&server.key), server.directory.path(), wanted);
    SshGuest::new(settings, Arc::new(StateOnlyVmm(Mutex::new(VmmState::Running))))
}

/// Removes what a wipe removes, after a backup.
async fn wipe(guest: &SshGuest) -> Result<()> {
    let backup = guest.back_up(&machine()).await?;
    assert!(guest.wipe(&machine(), backup.as_ref()).await?, "the backup is of what is there");
    Ok(())
}

/// A text that occurs nowhere else.
fn token() -> String {
    let key = key::generate().unwrap();
    key.fingerprint(russh::keys::HashAlg::Sha256).to_string().split_off(10)
}

fn plain(value: &str) -> SecretSource {
    SecretSource::Plain(Secret::new(value.as_bytes().to_vec()))
}

fn environment(value: &str) -> Vec<(VariableName, SecretSource)> {
    vec![("TOKEN".parse().unwrap(), plain(value))]
}

/// Searches every argument list on this machine for the needles, again and again until `stop` is set. The processes of
/// the test servers run on this machine, so they are included.
fn in_arguments(needles: Vec<String>, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<(u64, Vec<String>)> {
    std::thread::spawn(move || {
        let (mut seen, mut found) = (0, Vec::new());
        while !stop.load(Ordering::SeqCst) {
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let Ok(line) = fs::read(entry.path().join("cmdline")) else {
                    continue;
                };
                let line = String::from_utf8_lossy(&line).into_owned();
                seen += u64::from(line.contains("nixbox:begin"));
                if needles.iter().any(|needle| line.contains(needle.as_str())) {
                    found.push(line);
                }
            }
        }
        (seen, found)
    })
}

#[tokio::test(start_paused = true)]
async fn shutting_down_a_silent_guest_gives_up_after_its_limit() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let pins = tempfile::tempdir().unwrap();
    let key = Arc::new(key::generate().unwrap());
    let settings = settings(silent.local_addr().unwrap(), "user", key, pins.path(), Wanted::default());
    let settings = GuestSettings { ready: "1h".parse().unwrap(), ..settings };
    let guest = SshGuest::new(settings, Arc::new(StateOnlyVmm(Mutex::new(VmmState::Running))));
    let begun = tokio::time::Instant::now();
    let failed = guest.shut_down(&machine()).await;
    assert!(matches!(failed, Err(Failure::TimedOut(_))), "{failed:?}");
    assert!(begun.elapsed() <= SHUT_DOWN_LIMIT * 2, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_connection_is_reused_under_one_vmm_until_the_guest_may_be_paused() {
    let Some(server) = Server::start(Kind::Busybox) else { return };
    let guest = guest(&server, "root", Wanted::default());
    let machine = machine();
    let logins = || server.log().matches("auth succeeded").count();
    for _ in 0..3 {
        guest.ready(&machine).await.unwrap();
    }
    guest.inject(&machine).await.unwrap();
    assert_eq!(logins(), 1, "{}", server.log());
    let next = Machine { vmm: Generation(machine.vmm.0 + 1), ..machine };
    guest.ready(&next).await.unwrap();
    assert_eq!(logins(), 2, "{}", server.log());
    // A call that comes before a pause closes the connection.
    guest.unmount(&next).await.unwrap();
    guest.ready(&next).await.unwrap();
    assert_eq!(logins(), 3, "{}", server.log());
}

/// A server, and the credentials that its guest is given.
struct Fixture {
    server: Server,
    kind: Kind,
    user: &'static str,
    uid: u32,
    /// A text within `value`, which is the value of the variable `TOKEN`.
    first: String,
    value: String,
    /// The content of `~/.aws/deep er/it's`.
    second: String,
    workspace_key: Arc<PrivateKey>,
}

impl std::fmt::Debug for Fixture {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?} {}", self.kind, self.user)
    }
}

impl Fixture {
    fn start(kind: Kind, user: &'static str, uid: u32) -> Option<Self> {
        let server = Server::start(kind)?;
        let (first, second) = (token(), token());
        let value = format!("{first} it's \"$HOME\"\n`x` \\");
        let workspace_key = Arc::new(key::generate().unwrap());
        Some(Self { server, kind, user, uid, first, value, second, workspace_key })
    }

    fn home(&self, name: &str) -> PathBuf {
        self.server.home(self.user, name)
    }

    fn files(&self) -> Vec<FileRule> {
        vec![rule(&self.second, "~/.aws/deep er/it's", None)]
    }

    fn wanted(&self, files: Vec<FileRule>) -> Wanted {
        Wanted {
            environment: environment(&self.value),
            files,
            key: Some(Arc::clone(&self.workspace_key)),
            wipe: vec![path("~/.docker"), path("~/linked")],
            ..Wanted::default()
        }
    }

    fn guest(&self, wanted: Wanted) -> SshGuest {
        guest(&self.server, self.user, wanted)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_injected_checked_and_wiped() {
    for (kind, user, uid) in
        [(Kind::Busybox, "root", 0), (Kind::Busybox, "user", 1000), (Kind::Debian, "user", 1000)]
    {
        let Some(fixture) = Fixture::start(kind, user, uid) else { continue };
        let guest = fixture.guest(fixture.wanted(fixture.files()));
        assert_eq!(guest.equipped(&machine()).await.unwrap().credentials, Presence::Absent);
        inject_watched(&fixture, &guest).await;
        assert_eq!(guest.equipped(&machine()).await.unwrap().credentials, Presence::Whole);
        check_files_and_environment(&fixture).await;
        change_and_inject_again(&fixture, &guest).await;
        wipe_with_another_configuration(&fixture, &guest).await;
    }
}

/// Injects the credentials, and checks meanwhile that no argument list contains one.
async fn inject_watched(fixture: &Fixture, guest: &SshGuest) {
    fs::write(fixture.home(".profile"), "# no line end").unwrap();
    fs::set_permissions(fixture.home(".profile"), fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::chown(fixture.home(".profile"), Some(fixture.uid), Some(fixture.uid)).unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let private = key::private_text(&fixture.workspace_key).unwrap().lines().nth(1).unwrap().to_owned();
    let watch = in_arguments(vec![fixture.first.clone(), fixture.second.clone(), private], Arc::clone(&stop));
    for _ in 0..3 {
        guest.inject(&machine()).await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let (seen, found) = watch.join().unwrap();
    assert!(seen > 0, "the watch saw no script run");
    assert!(found.is_empty(), "{found:?}");
}

async fn check_files_and_environment(fixture: &Fixture) {
    for (name, mode) in [
        (".env", 0o600),
        (".aws/deep er/it's", 0o600),
        (".ssh/id_ed25519", 0o600),
        (".ssh/id_ed25519.pub", 0o644),
    ] {
        let about = fs::metadata(fixture.home(name)).unwrap();
        assert_eq!((about.mode() & 0o7777, about.uid()), (mode, fixture.uid), "{fixture:?} {name}");
    }
    for name in [".aws", ".aws/deep er"] {
        let about = fs::metadata(fixture.home(name)).unwrap();
        assert_eq!((about.mode() & 0o7777, about.uid()), (0o700, fixture.uid), "{name}");
    }
    assert_eq!(fs::read_to_string(fixture.home(".aws/deep er/it's")).unwrap(), fixture.second);
    let shell = fixture.server.connect(fixture.user).await;
    let capture = crate::guest::channel::Capture { most: 9999, within: LIMIT, prompt: None };
    let command = b"sh -lc 'printf %s \"$TOKEN\"'";
    let told = shell.session.exec(command, Zeroizing::new(Vec::new()), capture).await.unwrap();
    let complaint = String::from_utf8_lossy(&told.stderr);
    assert_eq!(
        String::from_utf8(told.stdout).unwrap().trim_end_matches('\n'),
        fixture.value,
        "{fixture:?}: {complaint}"
    );
    let profile = fs::read_to_string(fixture.home(".profile")).unwrap();
    assert_eq!((profile.lines().count(), profile.lines().next()), (2, Some("# no line end")));
}

async fn change_and_inject_again(fixture: &Fixture, guest: &SshGuest) {
    // A wrong mode or content is noticed, and corrected by the next injection.
    fs::set_permissions(fixture.home(".env"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(guest.equipped(&machine()).await.unwrap().credentials, Presence::Partial);
    fs::write(fixture.home(".env"), "x").unwrap();
    assert_eq!(guest.equipped(&machine()).await.unwrap().credentials, Presence::Partial);
    guest.inject(&machine()).await.unwrap();
    assert_eq!(guest.equipped(&machine()).await.unwrap().credentials, Presence::Whole);

    // Injection removes a file that is no longer in the configuration.
    let fewer = fixture.guest(fixture.wanted(Vec::new()));
    assert_eq!(fewer.equipped(&machine()).await.unwrap().credentials, Presence::Partial);
    fewer.inject(&machine()).await.unwrap();
    assert!(!fixture.home(".aws/deep er/it's").exists());
    assert_eq!(fewer.equipped(&machine()).await.unwrap().credentials, Presence::Whole);
    guest.inject(&machine()).await.unwrap();
}

async fn wipe_with_another_configuration(fixture: &Fixture, guest: &SshGuest) {
    // A hard link to the file shows whether its bytes are overwritten.
    fs::hard_link(fixture.home(".aws/deep er/it's"), fixture.home("witness")).unwrap();
    fs::create_dir_all(fixture.home(".docker/sub")).unwrap();
    fs::write(fixture.home(".docker/sub/config.json"), &fixture.first).unwrap();
    fs::write(fixture.home("real"), &fixture.first).unwrap();
    symlink("real", fixture.home("linked")).unwrap();
    fs::write(fixture.home(".bash_history"), &fixture.first).unwrap();
    fs::write(fixture.home(".env.nixbox-new"), &fixture.first).unwrap();
    for name in
        [".docker", ".docker/sub", ".docker/sub/config.json", "real", ".bash_history", ".env.nixbox-new"]
    {
        std::os::unix::fs::chown(fixture.home(name), Some(fixture.uid), Some(fixture.uid)).unwrap();
    }
    // The ledger is in the guest: a configuration without any of the files still finds them.
    let forgetful =
        fixture.guest(Wanted { wipe: vec![path("~/.docker"), path("~/linked")], ..Wanted::default() });
    let outcome = wipe(&forgetful).await;
    if (fixture.kind, fixture.user) == (Kind::Busybox, "user") {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("sudo") && error.contains("caches"), "{error}");
    } else {
        outcome.unwrap();
        wipe(&forgetful).await.unwrap();
    }
    for name in [
        ".env",
        ".env.nixbox-new",
        ".aws/deep er/it's",
        ".ssh/id_ed25519",
        ".docker",
        "linked",
        "real",
        ".bash_history",
    ] {
        assert!(fs::symlink_metadata(fixture.home(name)).is_err(), "{fixture:?} {name} is left");
    }
    assert!(fs::read(fixture.home("witness")).unwrap().iter().all(|byte| *byte == 0));
    assert!(fs::read_to_string(fixture.home(".profile")).unwrap().starts_with("# no line end"));
    assert_eq!(guest.equipped(&machine()).await.unwrap().credentials, Presence::Absent);
}

#[tokio::test]
async fn files_outside_of_the_home_need_root() {
    let Some(server) = Server::start(Kind::Debian) else { return };
    let target = server.directory.path().join("elsewhere/secret");
    let target = target.to_str().unwrap();
    let wanted = || Wanted {
        files: vec![rule("s", target, Some("root:root")), rule("t", "~/roots", Some("root"))],
        ..Wanted::default()
    };
    let theirs = guest(&server, "user", wanted());
    theirs.inject(&machine()).await.unwrap();
    for target in [Path::new(target), &server.home("user", "roots")] {
        let about = fs::metadata(target).unwrap();
        assert_eq!((about.mode() & 0o7777, about.uid()), (0o600, 0));
    }
    assert_eq!(theirs.equipped(&machine()).await.unwrap().credentials, Presence::Whole);
    wipe(&theirs).await.unwrap();
    assert!(!Path::new(target).exists() && !server.home("user", "roots").exists());

    let Some(server) = Server::start(Kind::DebianWithoutSudo) else { return };
    let error = guest(&server, "user", wanted()).inject(&machine()).await.unwrap_err().to_string();
    assert!(error.contains("sudo"), "{error}");
    assert!(!Path::new(target).exists());
    let error = guest(&server, "user", Wanted::default()).settle(&machine()).await.unwrap_err();
    let Failure::World(error) = error else { panic!("{error:?}") };
    let error = error.downcast::<SettleError>().unwrap();
    let SettleError::Script(why) = *error else { panic!("{error:?}") };
    assert!(matches!(*why, ScriptError::NoRights { .. }), "{why:?}");
}

#[tokio::test]
async fn a_wipe_that_fails_names_the_files_that_are_left() {
    let Some(server) = Server::start(Kind::DebianWithoutSudo) else { return };
    let stubborn = server.home("user", "stubborn");
    fs::create_dir(&stubborn).unwrap();
    fs::set_permissions(&stubborn, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(stubborn.join("secret"), "s").unwrap();
    fs::write(server.home("user", "mine"), "s").unwrap();
    std::os::unix::fs::chown(server.home("user", "mine"), Some(1000), Some(1000)).unwrap();
    let list = vec![path("~/stubborn/secret"), path("~/mine")];
    let error = wipe(&guest(&server, "user", Wanted { wipe: list, ..Wanted::default() })).await.unwrap_err();
    let Failure::World(error) = error else { panic!("{error:?}") };
    let WipeError::Left { left, .. } = *error.downcast::<WipeError>().unwrap() else { panic!() };
    assert_eq!(left, [stubborn.join("secret").to_str().unwrap()]);
    assert!(!server.home("user", "mine").exists());
    assert!(stubborn.join("secret").exists());
}

#[tokio::test]
async fn a_directory_at_the_target_is_refused_and_untouched() {
    let Some(server) = Server::start(Kind::Busybox) else { return };
    fs::create_dir(server.home("root", "taken")).unwrap();
    let secret = token();
    let wanted = Wanted { files: vec![rule(&secret, "~/taken", None)], ..Wanted::default() };
    let error = guest(&server, "root", wanted).inject(&machine()).await.unwrap_err();
    assert!(error.to_string().contains("is a directory"), "{error}");
    assert!(!format!("{error:?}").contains(&secret));
    assert_eq!(fs::read_dir(server.home("root", "taken")).unwrap().count(), 0);
}

/// Guest and host share a clock here, so the test measures the clock and does not set it. The host's kernel really gets
/// the entropy.
#[tokio::test]
async fn settling_adds_entropy_and_leaves_no_file() {
    for (kind, user) in [(Kind::Busybox, "root"), (Kind::Debian, "root"), (Kind::Debian, "user")] {
        let Some(server) = Server::start(kind) else { continue };
        let shell = server.connect(user).await;
        let clock_offset = settle::settle(&shell).await.unwrap();
        assert!(clock_offset.nanoseconds.abs() <= clock_offset.uncertainty, "{clock_offset:?}");
        let left = "ls -a /dev/shm /run /tmp | grep nixbox-settle; true";
        let left = shell.script("look", Rights::User, left, &[], LIMIT).await.unwrap();
        assert_eq!(left, "", "{kind:?} {user}");
    }
}

#[tokio::test]
async fn ready_returns_the_boot_and_a_vm_that_is_gone_is_lost() {
    let Some(server) = Server::start(Kind::Busybox) else { return };
    let boot = guest(&server, "user", Wanted::default()).ready(&machine()).await.unwrap();
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(hex::encode(boot.0), text.trim().replace('-', ""));

    // No server listens, and the VM disappears while nixbox waits.
    let directory = tempfile::tempdir().unwrap();
    let nobody = ([127, 0, 0, 1], free_port()).into();
    let runs = Arc::new(StateOnlyVmm(Mutex::new(VmmState::Running)));
    let of = |ready: &str| {
        let settings = settings(nobody, "user", server.key.clone(), directory.path(), Wanted::default());
        let settings = GuestSettings { ready: ready.parse().unwrap(), ..settings };
        SshGuest::new(settings, runs.clone())
    };
    let guest = of("30s");
    let going = async { *runs.0.lock().unwrap() = VmmState::Gone };
    let (machine, interrupt) = (machine(), Interrupt::new());
    let (outcome, ()) = tokio::join!(guest.ready(&machine), going);
    assert!(matches!(outcome, Err(Failure::Lost)));
    *runs.0.lock().unwrap() = VmmState::Running;
    interrupt.request();
    assert!(matches!(guest.connect(&machine, &interrupt).await, Err(Failure::Interrupted)));
    // A VMM that does not answer may still have a running guest.
    *runs.0.lock().unwrap() = VmmState::Silent;
    assert!(matches!(of("1s").ready(&machine).await, Err(Failure::WaitedOut(_))));
}

#[tokio::test]
async fn each_disk_has_its_host_key_and_a_clone_inherits_it() {
    let (Some(first), Some(second)) = (Server::start(Kind::Busybox), Server::start(Kind::Busybox)) else {
        return;
    };
    let old = guest(&first, "user", Wanted::default());
    old.ready(&machine()).await.unwrap();
    let settings =
        settings(second.address, "user", Arc::clone(&second.key), first.directory.path(), Wanted::default());
    let new = SshGuest::new(settings, Arc::new(StateOnlyVmm(Mutex::new(VmmState::Running))));
    let refused = |outcome: Result<BootId>| match outcome {
        Err(Failure::World(error)) => {
            matches!(
                *error.downcast::<ChannelError>().unwrap(),
                ChannelError::HostKey(PinError::Changed { .. })
            )
        }
        _ => false,
    };
    assert!(refused(new.ready(&machine()).await));
    let clone = Machine { disk: Generation(9), ..machine() };
    new.pin(Generation(9)).inherit(&new.pin(Generation(2))).unwrap();
    assert!(refused(new.ready(&clone).await));
    new.ready(&Machine { disk: Generation(10), ..machine() }).await.unwrap();
}
