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
    Virtiofs::new(ShareSettings { runtime, workspace, root, invoker, guest: (1000, 1000), shares })
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
    // The daemon ends with the connection of its VMM. The next start starts another.
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

#[tokio::test]
async fn a_user_is_served_as_that_user() {
    if !have(&[Need::Root, Need::VirtiofsdForUsers]) {
        return;
    }
    let directory = testing::open_directory();
    let invoker = Invoker::user(USER, 12346).unwrap();
    let shares = shares(&directory, invoker, true);
    shares.start(GENERATION).await.unwrap();
    let pid = shares.state_of(0, GENERATION).unwrap().0.unwrap().pid();
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
    // Its lock makes a second virtiofsd on the same socket fail.
    std::fs::create_dir(&source).unwrap();
    let socket = socket_of(directory.path(), 0, GENERATION).unwrap();
    std::fs::create_dir(socket.with_suffix(".pid")).unwrap();
    assert!(shares.start(GENERATION).await.is_err());
    std::fs::remove_dir(socket.with_suffix(".pid")).unwrap();
    shares.settings.invoker = Invoker::user(USER, USER).unwrap();
    std::os::unix::fs::chown(directory.path(), Some(0), Some(0)).unwrap();
    let error = shares.start(GENERATION).await.unwrap_err().to_string();
    assert!(error.contains("ended with exit status 1") && error.contains("ermission denied"), "{error}");
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

/// What a virtiofsd sees at `path` of its share. It listens before it makes the share its root directory.
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
        let daemon = shares.state_of(0, GENERATION).unwrap().0.unwrap();
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
