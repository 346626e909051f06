use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tempfile::TempDir;

use super::super::location::CopyRoute;
use super::*;
use crate::guest::testing::{Kind, Server};

/// A guest's home and a directory of the host, and a connection between them.
struct Arena {
    server: Server,
    host: TempDir,
    shell: Shell,
    shared: SharedPaths,
}

impl Arena {
    async fn new(kind: Kind) -> Option<Self> {
        let server = Server::start(kind)?;
        let host = tempfile::tempdir().unwrap();
        let shell = server.connect("user").await;
        Some(Self { server, host, shell, shared: SharedPaths::default() })
    }

    fn guest(&self, name: &str) -> PathBuf {
        self.server.home("user", name)
    }

    fn host(&self, name: &str) -> PathBuf {
        self.host.path().join(name)
    }

    async fn copy(&self, arguments: &[&str]) -> Result<Option<ReceivedCopy>> {
        self.copy_unless(arguments, std::future::pending()).await
    }

    /// Copies until `interrupted` is ready.
    async fn copy_unless(
        &self,
        arguments: &[&str],
        interrupted: impl Future<Output = ()>,
    ) -> Result<Option<ReceivedCopy>> {
        let (target, sources) = arguments.split_last().unwrap();
        let sources: Vec<_> = sources.iter().map(OsString::from).collect();
        let interrupted = std::pin::pin!(interrupted);
        let mut transfer = Transfer { shell: &self.shell, shared: &self.shared, interrupted };
        match CopyRoute::parse(&sources, OsStr::new(target), self.host.path()).unwrap() {
            CopyRoute::StdinToGuest(target) => {
                transfer.stdin_to_guest(&b"from stdin"[..], &target).await.map(|()| None)
            }
            CopyRoute::GuestToStdout(source) => {
                let file = std::fs::File::create(self.host("stdout")).unwrap();
                transfer.guest_to_stdout(&source, file).await.map(|()| None)
            }
            CopyRoute::ToGuest(sources, target) => transfer.send_files(&sources, &target).await.map(|_| None),
            CopyRoute::ToHost(sources, target) => {
                let mut last = None;
                for source in &sources {
                    last = Some(transfer.receive(source, &target, sources.len() > 1).await?);
                }
                Ok(last)
            }
        }
    }

    fn host_names(&self) -> Vec<String> {
        names(self.host.path())
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A directory with all that is copied in one.
fn make_tree(directory: &Path) {
    std::fs::create_dir_all(directory.join("sub/empty")).unwrap();
    std::fs::write(directory.join("-name with 'quotes'\n"), "text").unwrap();
    std::fs::write(directory.join("n".repeat(255)), "long").unwrap();
    let program = directory.join("sub/program");
    std::fs::write(&program, vec![7; 3 << 20]).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o750)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    std::fs::File::open(&program).unwrap().set_modified(time).unwrap();
    symlink("sub/program", directory.join("link")).unwrap();
    symlink("/nowhere", directory.join("sub/dangling")).unwrap();
}

fn check_tree(directory: &Path, owner: u32) {
    let mut expected = ["-name with 'quotes'\n", "link", "sub"].map(str::to_owned).to_vec();
    expected.push("n".repeat(255));
    expected.sort();
    assert_eq!(names(directory), expected);
    assert_eq!(names(&directory.join("sub")), ["dangling", "empty", "program"]);
    let program = directory.join("sub/program").metadata().unwrap();
    assert_eq!(
        (program.mode() & 0o7777, program.mtime(), program.uid(), program.len()),
        (0o750, 1_000_000_000, owner, 3 << 20)
    );
    assert_eq!(std::fs::read_link(directory.join("link")).unwrap(), Path::new("sub/program"));
    assert_eq!(std::fs::read_link(directory.join("sub/dangling")).unwrap(), Path::new("/nowhere"));
    assert_eq!(std::fs::read_to_string(directory.join("-name with 'quotes'\n")).unwrap(), "text");
}

#[tokio::test]
async fn trees_are_copied_to_the_guest_and_back() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some(arena) = Arena::new(kind).await else { continue };
        make_tree(&arena.host("tree"));
        // To a new name, into a directory, and the content alone.
        arena.copy(&["tree", "vm:new"]).await.unwrap();
        check_tree(&arena.guest("new"), 1000);
        arena.copy(&["tree", "vm:new/sub"]).await.unwrap();
        check_tree(&arena.guest("new/sub/tree"), 1000);
        std::fs::remove_dir_all(arena.guest("new/sub/tree")).unwrap();
        arena.copy(&["tree/.", "vm:~/new"]).await.unwrap();
        check_tree(&arena.guest("new"), 1000);

        arena.copy(&["vm:new", "back"]).await.unwrap();
        check_tree(&arena.host("back"), 0);
        std::fs::create_dir(arena.host("into")).unwrap();
        let received = arena.copy(&["vm:new", "into"]).await.unwrap().unwrap();
        assert_eq!(received.unpacked.links_out.count, 1, "{received:?}");
        check_tree(&arena.host("into/new"), 0);
        std::fs::create_dir(arena.host("content")).unwrap();
        arena.copy(&["vm:new/.", "content"]).await.unwrap();
        check_tree(&arena.host("content"), 0);
        arena.copy(&["vm:new/", "content/again"]).await.unwrap();
        check_tree(&arena.host("content/again"), 0);
        assert_eq!(arena.host_names(), ["back", "content", "into", "tree"], "{kind:?}");
    }
}

#[tokio::test]
async fn files_are_copied_one_by_one_and_several_at_once() {
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some(arena) = Arena::new(kind).await else { continue };
        for name in ["a", "-b"] {
            std::fs::write(arena.host(name), name).unwrap();
        }
        arena.copy(&["a", "vm:./x"]).await.unwrap();
        arena.copy(&["-b", "vm:x"]).await.unwrap();
        assert_eq!(std::fs::read_to_string(arena.guest("x")).unwrap(), "-b");
        std::fs::create_dir(arena.guest("d")).unwrap();
        std::os::unix::fs::chown(arena.guest("d"), Some(1000), Some(1000)).unwrap();
        arena.copy(&["a", "-b", "vm:d"]).await.unwrap();
        assert_eq!(names(&arena.guest("d")), ["-b", "a"]);
        symlink("-b", arena.guest("d/link")).unwrap();
        std::fs::create_dir(arena.host("out")).unwrap();
        arena.copy(&["vm:d/a", "vm:d/-b", "vm:d/link", "out/"]).await.unwrap();
        assert_eq!(names(&arena.host("out")), ["-b", "a", "link"]);
        assert_eq!(
            std::fs::read_to_string(arena.host("out/link")).unwrap(),
            "-b",
            "a link that is named is followed"
        );
        arena.copy(&["vm:d/-b", "out/a"]).await.unwrap();
        assert_eq!(std::fs::read_to_string(arena.host("out/a")).unwrap(), "-b");

        arena.copy(&["-", "vm:streamed"]).await.unwrap();
        arena.copy(&["vm:streamed", "-"]).await.unwrap();
        assert_eq!(std::fs::read_to_string(arena.host("stdout")).unwrap(), "from stdin");
        assert_eq!(arena.guest("streamed").metadata().unwrap().mode() & 0o777, 0o644);
    }
}

#[tokio::test]
async fn what_cannot_be_copied_is_said_and_changes_nothing() {
    use TransferError::*;
    for kind in [Kind::Busybox, Kind::Debian] {
        let Some(arena) = Arena::new(kind).await else { continue };
        std::fs::write(arena.host("file"), "host").unwrap();
        std::fs::create_dir(arena.host("directory")).unwrap();
        arena.copy(&["directory", "vm:directory"]).await.unwrap();
        arena.copy(&["file", "vm:file"]).await.unwrap();
        let before = arena.host_names();
        let fails = async |arguments: &[&str]| {
            let error = arena.copy(arguments).await.unwrap_err();
            assert_eq!(arena.host_names(), before, "{arguments:?}");
            error
        };
        for (arguments, expected) in [
            (&["vm:absent", "new"][..], "NotInGuest"),
            (&["vm:/absent/x", "new"], "NotInGuest"),
            (&["absent", "vm:x"], "Source"),
            (&["file/", "vm:x"], "NoDirectory"),
            (&["vm:file", "absent/"], "NoDirectory"),
            (&["vm:file", "absent/new"], "Source"),
            (&["vm:file", "vm:directory", "file"], "NoDirectory"),
            (&["file", "directory", "vm:file"], "NoGuestDirectory"),
            (&["file", "vm:absent/"], "NoGuestDirectory"),
            (&["directory", "vm:file"], "GuestFileInPlace"),
            (&["-", "vm:directory"], "GuestDirectory"),
            (&["file", "vm:absent/x"], "GuestWrite"),
            (&["-", "vm:absent/x"], "GuestWrite"),
            (&["file", "vm:/proc/x"], "GuestWrite"),
            (&["vm:directory", "file"], "Place"),
        ] {
            let error = format!("{:?}", fails(arguments).await);
            assert!(
                error.starts_with(&format!("{expected} ")) || error.starts_with(&format!("{expected}(")),
                "{arguments:?}: {error}"
            );
        }
        assert!(matches!(fails(&["vm:directory", "directory/../file"]).await, Place { .. }));
        let full = fails(&["-", "vm:/dev/full"]).await.to_string();
        assert!(full.contains("No space left on device"), "{full}");
        let stdout = arena.copy(&["vm:directory", "-"]).await.unwrap_err();
        assert!(matches!(stdout, GuestDirectory(_)), "{stdout}");
        let stdout = arena.copy(&["vm:absent", "-"]).await.unwrap_err();
        assert!(matches!(stdout, NotInGuest(_)), "{stdout}");
        assert_eq!(std::fs::read_to_string(arena.host("file")).unwrap(), "host");
    }
}

#[tokio::test]
async fn an_interrupted_copy_leaves_nothing_on_the_host() {
    let Some(arena) = Arena::new(Kind::Busybox).await else { return };
    let endless = std::fs::File::create(arena.guest("sparse")).unwrap();
    endless.set_len(1 << 40).unwrap();
    endless.write_all_at(b"x", 0).unwrap();
    // The interrupt comes when a part of the file has arrived.
    let arrived = async {
        loop {
            let staged = arena.host_names().into_iter().find(|name| name.starts_with(".nixbox-cp-"));
            let file = staged.map(|name| arena.host(&name).join("content"));
            if file.and_then(|file| file.metadata().ok()).is_some_and(|file| file.len() > 1 << 16) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let error = arena.copy_unless(&["vm:sparse", "copy"], arrived).await.unwrap_err();
    assert!(matches!(error, TransferError::Interrupted(_)), "{error}");
    assert!(arena.host_names().is_empty());
}

#[tokio::test]
async fn a_tar_that_fails_in_the_guest_leaves_nothing_on_the_host() {
    let Some(arena) = Arena::new(Kind::Debian).await else { return };
    std::fs::create_dir(arena.guest("d")).unwrap();
    std::fs::write(arena.guest("d/file"), "x").unwrap();
    std::fs::write(arena.guest("d/secret"), "x").unwrap();
    std::fs::set_permissions(arena.guest("d/secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let error = arena.copy(&["vm:d", "copy"]).await.unwrap_err();
    let TransferError::GuestRead { stderr, .. } = &error else { panic!("{error:?}") };
    assert!(stderr.contains("secret"), "{error}");
    assert!(arena.host_names().is_empty());
}

#[tokio::test]
async fn links_in_a_share_that_a_guest_writes_are_not_followed() {
    let Some(mut arena) = Arena::new(Kind::Busybox).await else { return };
    std::fs::create_dir(arena.host("share")).unwrap();
    std::fs::create_dir(arena.host("private")).unwrap();
    std::fs::write(arena.host("private/key"), "private").unwrap();
    arena.shared = SharedPaths::new([arena.host("share").as_path()]);
    symlink("../private", arena.host("share/link")).unwrap();
    arena.copy(&["private/key", "vm:key"]).await.unwrap();
    for arguments in [
        &["share/link/key", "vm:x"],
        &["share/link", "vm:x"],
        &["vm:key", "share/link"],
        &["vm:key", "share/link/new"],
    ] {
        let error = arena.copy(arguments).await.unwrap_err();
        let TransferError::Source { source, .. } = &error else { panic!("{arguments:?}: {error:?}") };
        assert!(matches!(source, FileError::SharedLink { .. }), "{arguments:?}: {source}");
    }
    assert_eq!(names(&arena.host("private")), ["key"]);
}
