use super::*;
use crate::testing::{self, Need, USER, have};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;

fn shares(directory: &tempfile::TempDir, invoker: Invoker, readonly: bool) -> Virtiofs {
    let workspace = WorkspaceId(uuid());
    let source = directory.path().join("src");
    let share = |tag: &str| Share {
        tag: tag.parse().unwrap(),
        source: source.clone(),
        readonly,
        protect: Vec::new(),
    };
    let shares = vec![share("a"), share("b")];
    for path in [directory.path(), &source] {
        std::fs::create_dir_all(path).unwrap();
        chown(path, Some(invoker.uid()), Some(invoker.gid())).unwrap();
    }
    let (runtime, root) = (directory.path().to_owned(), directory.path().join("elsewhere"));
    Virtiofs::new(ShareSettings {
        runtime,
        workspace,
        root,
        invoker,
        guest: UserIds { uid: 1000, gid: 1000 },
        shares,
    })
}

fn uuid() -> [u8; 16] {
    let mut id = [0; 16];
    getrandom::fill(&mut id).unwrap();
    id
}

fn status(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap()
}

const GENERATION: Generation = Generation(5);

#[tokio::test]
async fn daemons_listen_serve_one_connection_and_leave_nothing() {
    if !have(&[Need::Root, Need::Virtiofsd]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let shares = shares(&directory, Invoker::user(0, 0).unwrap(), false);
    assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Absent);
    shares.start(GENERATION).await.unwrap();
    assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Whole);
    let pid = |index| shares.state_of(index, GENERATION).unwrap().0.unwrap().pid();
    let first = pid(1);
    shares.start(GENERATION).await.unwrap();
    assert_eq!(pid(1), first);
    // There is no VMM that could connect again, so the daemon ends with the connection. The next start starts another.
    let daemon = shares.state_of(0, GENERATION).unwrap().0.unwrap();
    let socket = socket_of(directory.path(), 0, GENERATION).unwrap();
    drop(UnixStream::connect(socket.as_path()).unwrap());
    tokio::time::timeout(START_LIMIT, daemon.exited()).await.unwrap().unwrap();
    assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Partial);
    shares.start(GENERATION).await.unwrap();
    assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Whole);
    assert_eq!(shares.find(Generation(6)).await.unwrap(), Presence::Absent);
    shares.stop(GENERATION).await.unwrap();
    assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Absent);
    let mut left: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["share-0-5.log", "share-1-5.log", "src"]);
    shares.stop(GENERATION).await.unwrap();
}

/// A process with the mark of the VMM, which lives until it is stopped.
fn vmm(shares: &Virtiofs) -> Daemon {
    let program = Program::new("/bin/sleep", Privileges::Invoker(shares.settings.invoker.clone()));
    shares.daemons.spawn(&DaemonRole::vmm(), GENERATION, &program.argument("1000")).unwrap()
}

/// Connects to the first share as a VMM does, until a virtiofsd has taken the connection. Returns that virtiofsd.
fn connect(shares: &Virtiofs) -> (UnixStream, Daemon) {
    let socket = socket_of(&shares.settings.runtime, 0, GENERATION).unwrap();
    let connection = UnixStream::connect(socket.as_path()).unwrap();
    (connection, virtiofsd_of(shares))
}

#[tokio::test]
async fn a_vmm_that_connects_again_is_served_again_until_it_ends() {
    if !have(&[Need::Root, Need::VirtiofsdForUsers]) {
        return;
    }
    for user in [0, USER] {
        let directory = testing::open_directory();
        let shares = of_workspace(&directory, Invoker::user(user, user).unwrap());
        let vmm = vmm(&shares);
        shares.start(GENERATION).await.unwrap();
        let supervisor = shares.state_of(0, GENERATION).unwrap().0.unwrap();
        let mut before = None;
        for _ in 0..3 {
            let (connection, virtiofsd) = connect(&shares);
            assert_ne!(before.replace(virtiofsd.pid()), Some(virtiofsd.pid()));
            assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Whole);
            assert!(shares.exposed(GENERATION).await.unwrap().is_empty());
            drop(connection);
            virtiofsd.exited().await.unwrap();
            assert!(supervisor.alive().unwrap());
            assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Whole);
        }
        vmm.signal(rustix::process::Signal::KILL).unwrap();
        tokio::time::timeout(START_LIMIT, supervisor.exited()).await.unwrap().unwrap();
        assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Partial);
        shares.stop(GENERATION).await.unwrap();
        shares.daemons.stop(&DaemonRole::vmm(), GENERATION, GRACE).await.unwrap();
    }
}

#[tokio::test]
async fn a_share_is_dead_when_its_virtiofsd_or_its_supervisor_was_killed() {
    if !have(&[Need::Root, Need::Virtiofsd]) {
        return;
    }
    let directory = testing::open_directory();
    let shares = of_workspace(&directory, Invoker::user(0, 0).unwrap());
    let vmm = vmm(&shares);
    for kills_supervisor in [false, true] {
        shares.start(GENERATION).await.unwrap();
        let supervisor = shares.state_of(0, GENERATION).unwrap().0.unwrap();
        let (_connection, virtiofsd) = connect(&shares);
        let (killed, other) =
            if kills_supervisor { (&supervisor, &virtiofsd) } else { (&virtiofsd, &supervisor) };
        killed.signal(rustix::process::Signal::KILL).unwrap();
        tokio::time::timeout(START_LIMIT, other.exited()).await.unwrap().unwrap();
        assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Partial);
    }
    shares.stop(GENERATION).await.unwrap();
    assert!(vmm.alive().unwrap());
    shares.daemons.stop(&DaemonRole::vmm(), GENERATION, GRACE).await.unwrap();
}

#[tokio::test]
async fn a_directory_that_has_taken_the_place_of_the_source_is_not_served_after_a_reboot() {
    if !have(&[Need::Root, Need::Virtiofsd]) {
        return;
    }
    let directory = testing::open_directory();
    let mut shares = shares(&directory, Invoker::user(0, 0).unwrap(), false);
    shares.settings.shares.truncate(1);
    let vmm = vmm(&shares);
    shares.start(GENERATION).await.unwrap();
    let supervisor = shares.state_of(0, GENERATION).unwrap().0.unwrap();
    let (connection, virtiofsd) = connect(&shares);
    let source = directory.path().join("src");
    std::fs::rename(&source, directory.path().join("moved")).unwrap();
    std::fs::create_dir(&source).unwrap();
    drop(connection);
    virtiofsd.exited().await.unwrap();
    let socket = socket_of(directory.path(), 0, GENERATION).unwrap();
    let _again = UnixStream::connect(socket.as_path()).unwrap();
    let exit = tokio::time::timeout(START_LIMIT, supervisor.exited()).await.unwrap().unwrap();
    assert_eq!(exit, ProcessExit::Status(share_view::REFUSED.into()));
    assert!(shares.daemons.log_tail(&DaemonRole::share(0), GENERATION).contains("was moved"));
    shares.stop(GENERATION).await.unwrap();
    assert!(vmm.alive().unwrap());
    shares.daemons.stop(&DaemonRole::vmm(), GENERATION, GRACE).await.unwrap();
}

/// The virtiofsd of the first share. The launcher listens before it becomes virtiofsd.
fn virtiofsd_of(shares: &Virtiofs) -> Daemon {
    loop {
        let family = shares.daemons.family(&DaemonRole::share(0), GENERATION).unwrap();
        let mut family = family.into_iter();
        let is_virtiofsd = |daemon: &Daemon| {
            let line = std::fs::read_to_string(format!("/proc/{}/cmdline", daemon.pid())).unwrap_or_default();
            line.split('\0').next().is_some_and(|program| program.ends_with("/virtiofsd"))
        };
        if let Some(found) = family.find(is_virtiofsd) {
            return found;
        }
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_user_is_served_as_that_user() {
    if !have(&[Need::Root, Need::VirtiofsdForUsers]) {
        return;
    }
    let directory = testing::open_directory();
    let invoker = Invoker::user(USER, 12346).unwrap();
    let shares = shares(&directory, invoker, true);
    shares.start(GENERATION).await.unwrap();
    let pid = virtiofsd_of(&shares).pid();
    let status = status(pid);
    assert!(status.contains("Uid:\t12345\t12345\t12345\t12345\n"), "{status}");
    assert!(status.contains("Gid:\t12346\t12346\t12346\t12346\n"), "{status}");
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    // In a user namespace of its own, where alone its capabilities hold.
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_ne!(namespace(&pid.to_string()), namespace("self"));
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(limits.contains(&format!("Max open files            {}", open_files())), "{limits}");
    let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(arguments.contains("--readonly\0"), "{arguments}");
    shares.stop(GENERATION).await.unwrap();
}

#[tokio::test]
async fn left_overs_of_killed_daemons_do_not_prevent_a_start() {
    if !have(&[Need::Root, Need::Virtiofsd]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let shares = shares(&directory, Invoker::user(0, 0).unwrap(), false);
    shares.start(GENERATION).await.unwrap();
    for index in [0, 1] {
        let daemon = shares.state_of(index, GENERATION).unwrap().0.unwrap();
        daemon.signal(rustix::process::Signal::KILL).unwrap();
        daemon.exited().await.unwrap();
    }
    // A sweep finds what they have left.
    assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Partial);
    assert!(socket_of(directory.path(), 0, GENERATION).unwrap().as_path().exists());
    shares.start(GENERATION).await.unwrap();
    assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Whole);
    shares.stop(GENERATION).await.unwrap();
    // nixbox does not remove a file that has the name of the socket.
    let socket = socket_of(directory.path(), 1, GENERATION).unwrap();
    std::fs::write(socket.as_path(), "precious").unwrap();
    assert!(shares.start(GENERATION).await.unwrap_err().to_string().contains("nixbox did not make it"));
    assert_eq!(std::fs::read(socket.as_path()).unwrap(), b"precious");
    std::fs::remove_file(socket.as_path()).unwrap();
    shares.stop(GENERATION).await.unwrap();
}

#[tokio::test]
async fn a_missing_source_and_a_failing_daemon_are_errors_that_say_so() {
    if !have(&[Need::Root, Need::VirtiofsdForUsers]) {
        return;
    }
    let directory = testing::open_directory();
    let mut shares = shares(&directory, Invoker::user(0, 0).unwrap(), false);
    shares.settings.shares.truncate(1);
    let source = shares.settings.shares[0].source.clone();
    std::fs::remove_dir(&source).unwrap();
    let error = shares.start(GENERATION).await.unwrap_err().to_string();
    assert!(error.contains("src\" is not a directory that can be shared"), "{error}");
    // A daemon that fails ends its supervisor with the same status.
    std::fs::create_dir(&source).unwrap();
    let go = directory.path().join("go");
    let (fifo, all) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o644));
    rustix::fs::mknodat(rustix::fs::CWD, &go, fifo, all, 0).unwrap();
    let script = format!("cat {}; echo 'no share today' >&2; exit 3", go.display());
    let failing = StandIn { path: "/bin/sh".into(), words: vec!["-c".to_owned(), script] };
    let vmm = vmm(&shares);
    let mut with_failing = Virtiofs::new(shares.settings.clone()).by(Some(failing));
    with_failing.settings.shares.truncate(1);
    with_failing.start(GENERATION).await.unwrap();
    // The daemon fails after its start was seen. The opening waits for the daemon.
    drop(std::fs::File::options().write(true).open(&go).unwrap());
    let role = DaemonRole::share(0);
    tokio::time::timeout(START_LIMIT, async {
        while with_failing.find(GENERATION).await.unwrap() != Presence::Partial {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert!(shares.daemons.log_tail(&role, GENERATION).contains("no share today"));
    assert!(vmm.alive().unwrap());
    shares.stop(GENERATION).await.unwrap();
    shares.daemons.stop(&DaemonRole::vmm(), GENERATION, GRACE).await.unwrap();
    shares.settings.invoker = Invoker::user(USER, USER).unwrap();
    std::os::unix::fs::chown(directory.path(), Some(0), Some(0)).unwrap();
    let error = shares.start(GENERATION).await.unwrap_err().to_string();
    assert!(error.contains("is refused: cannot make") && error.contains("ermission denied"), "{error}");
    shares.stop(GENERATION).await.unwrap();
}

/// The shares of a workspace below their common source.
fn of_workspace(directory: &tempfile::TempDir, invoker: Invoker) -> Virtiofs {
    let mut shares = shares(directory, invoker.clone(), false);
    let root = directory.path().canonicalize().unwrap().join("src/work");
    for path in [root.clone(), root.join(".nixbox"), root.join(".nixbox/ssh")] {
        std::fs::create_dir(&path).unwrap();
        chown(path, Some(invoker.uid()), Some(invoker.gid())).unwrap();
    }
    std::fs::write(root.join(".nixbox/config.toml"), "name").unwrap();
    chown(root.join(".nixbox/config.toml"), Some(invoker.uid()), Some(invoker.gid())).unwrap();
    shares.settings.root = root;
    shares.settings.shares.truncate(1);
    shares
}

/// What a virtiofsd sees at `path` of its share, once it has made the share its root directory.
fn seen_by(daemon: &Daemon, source: &std::path::Path, path: &str) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let root = PathBuf::from(format!("/proc/{}/root", daemon.pid()));
    let inode = |path: &std::path::Path| std::fs::metadata(path).unwrap().ino();
    while inode(&root) != inode(source) {
        std::thread::yield_now();
    }
    root.join(path)
}

#[tokio::test]
async fn virtiofsd_sees_copies_in_place_of_nixbox() {
    if !have(&[Need::Root, Need::VirtiofsdForUsers]) {
        return;
    }
    for user in [0, USER] {
        let directory = testing::open_directory();
        let mut shares = of_workspace(&directory, Invoker::user(user, user).unwrap());
        // A link to the parent of the workspace is the same share.
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("src", &link).unwrap();
        shares.settings.shares[0].source = link;
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        shares.start(GENERATION).await.unwrap();
        let daemon = virtiofsd_of(&shares);
        let shown =
            std::fs::read_dir(seen_by(&daemon, &directory.path().join("src"), "work/.nixbox")).unwrap();
        let names: Vec<_> = shown.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["config.toml"]);
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
        shares.stop(GENERATION).await.unwrap();
    }
}

#[tokio::test]
async fn a_rehearsal_refuses_what_a_start_would_and_starts_nothing() {
    if !have(&[Need::Root]) {
        return;
    }
    for user in [0, USER] {
        let directory = testing::open_directory();
        let shares = of_workspace(&directory, Invoker::user(user, user).unwrap());
        shares.rehearse().await.unwrap();
        assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Absent);
        std::fs::rename(shares.settings.root.join(".nixbox"), directory.path().join("away")).unwrap();
        let error = shares.rehearse().await.unwrap_err().to_string();
        assert!(error.contains("is refused") && error.contains("was not found below the share"), "{error}");
    }
}

#[tokio::test]
async fn a_share_whose_launcher_refuses_it_says_why() {
    if !have(&[Need::Root, Need::Virtiofsd]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut shares = of_workspace(&directory, Invoker::user(0, 0).unwrap());
    std::fs::rename(shares.settings.root.join(".nixbox"), directory.path().join("away")).unwrap();
    let error = shares.start(GENERATION).await.unwrap_err().to_string();
    assert!(error.contains("src\" is refused: the .nixbox of the workspace"), "{error}");
    // The record of the launcher is left until the undo of the start, as that of a daemon is.
    shares.stop(GENERATION).await.unwrap();
    assert_eq!(shares.find(GENERATION).await.unwrap(), Presence::Absent);
    shares.settings.shares[0].source = shares.settings.root.join(".nixbox/ssh");
    std::fs::create_dir_all(&shares.settings.shares[0].source).unwrap();
    let error = format!("{:?}", shares.start(GENERATION).await.unwrap_err());
    assert!(error.contains("Inside("), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_serves_what_was_examined_and_not_what_has_taken_its_place() {
    if !have(&[Need::Root]) {
        return;
    }
    // The daemon waits between its start and the moment when it opens its directory, as virtiofsd does. At its end it waits
    // again, so that it lives until its start was seen.
    const DAEMON: &str = r#"d=${NIXBOX_SHARE%/src/own}; cat "$d/wait"
        for a; do case "$a" in --shared-dir=*) cat "${a#--shared-dir=}/file" > "$d/seen";; esac; done; cat "$d/end""#;
    for user in [0, USER] {
        let directory = testing::open_directory();
        let mut shares = shares(&directory, Invoker::user(user, user).unwrap(), false)
            .by(Some(StandIn { path: "/bin/sh".into(), words: vec!["-c".to_owned(), DAEMON.to_owned()] }));
        let source = directory.path().join("src");
        let at = |name: &str| directory.path().join(name);
        for (path, text) in [(source.join("own"), "shared"), (at("elsewhere"), "secret")] {
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("file"), text).unwrap();
        }
        shares.settings.shares.truncate(1);
        shares.settings.shares[0].source = source.join("own");
        let (fifo, all) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o644));
        for name in ["wait", "end"] {
            rustix::fs::mknodat(rustix::fs::CWD, at(name), fifo, all, 0).unwrap();
        }
        let replace = || {
            // Opens when the daemon waits.
            let _wait = std::fs::File::options().write(true).open(at("wait")).unwrap();
            std::fs::rename(source.join("own"), source.join("moved")).unwrap();
            std::os::unix::fs::symlink(at("elsewhere"), source.join("own")).unwrap();
        };
        let started = std::thread::scope(|scope| {
            scope.spawn(replace);
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(shares.start(GENERATION))
            })
        });
        // The daemon's socket listens before the daemon waits for the first time.
        started.unwrap();
        drop(std::fs::File::options().write(true).open(at("end")).unwrap());
        let supervisor = shares.daemons.family(&DaemonRole::share(0), GENERATION).unwrap();
        for process in supervisor {
            tokio::time::timeout(START_LIMIT, process.exited()).await.unwrap().unwrap();
        }
        assert_eq!(std::fs::read_to_string(at("seen")).unwrap(), "shared");
        shares.stop(GENERATION).await.unwrap();
    }
}
