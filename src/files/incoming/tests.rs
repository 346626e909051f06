use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::staging::NAMES_AT_ONCE;
use super::*;
use crate::testing::{Need, have};

const KEPT: KeptAttributes = KeptAttributes { mode: 0o100_644, modified: 1_000_000_000 };
const DIRECTORY: KeptAttributes = KeptAttributes { mode: 0o755, modified: 1_100_000_000 };

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

fn begin(directory: &Path) -> IncomingTree {
    IncomingTree::begin(Folder::open(directory).unwrap()).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn put(tree: &mut IncomingTree, name: &str, content: &str) -> Result<()> {
    tree.file(&path(name), KEPT, &mut content.as_bytes())
}

#[test]
fn paths_that_lead_out_are_refused_and_others_are_parsed() {
    for bad in ["/", "/a", "..", "a/..", "../a", "a/../b", "./..", "a\0b"] {
        assert!(matches!(TreePath::parse(bad.as_bytes()), Err(IncomingError::Outside(_))), "{bad:?}");
    }
    let deep = "a/".repeat(DEEPEST + 1);
    assert!(matches!(TreePath::parse(deep.as_bytes()), Err(IncomingError::TooDeep(_))));
    for (text, names) in [("", ""), (".", ""), ("./", ""), ("./a//b/.", "a/b"), ("...", "..."), ("a/", "a")] {
        assert_eq!(path(text).shown(), names, "{text:?}");
    }
}

#[test]
fn links_that_lead_out_are_told_from_others() {
    for (link, target, out) in [
        ("a", "b", false),
        ("a", "..", true),
        ("a", "/b", true),
        ("d/a", "../b", false),
        ("d/a", "../../b", true),
        ("d/a", "x/../../b", false),
        ("d/a", "x/../../../b", true),
        ("d/a", "", false),
    ] {
        assert_eq!(path(link).leads_out(OsStr::new(target)), out, "{link} -> {target}");
    }
}

#[test]
fn a_tree_is_made_with_its_permissions_and_times_and_moved_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let mut tree = begin(directory.path());
    tree.directory(&path(""), DIRECTORY).unwrap();
    tree.directory(&path("sealed"), KeptAttributes { mode: 0o555, ..DIRECTORY }).unwrap();
    put(&mut tree, "sealed/file", "content").unwrap();
    tree.hard_link(&path("sealed/other"), &path("sealed/file")).unwrap();
    tree.file(&path("program"), KeptAttributes { mode: 0o106_755, ..KEPT }, &mut &b""[..]).unwrap();
    tree.symlink(&path("link"), OsStr::new("/etc/passwd")).unwrap();
    assert_eq!(names(directory.path()).len(), 1, "nothing is in its place before it is whole");
    tree.place(OsStr::new("name")).unwrap();
    assert_eq!(names(directory.path()), ["name"]);
    let made = directory.path().join("name");
    assert_eq!(names(&made), ["link", "program", "sealed"]);
    let sealed = made.join("sealed").metadata().unwrap();
    assert_eq!((sealed.mode() & 0o7777, sealed.mtime()), (0o555, 1_100_000_000));
    assert_eq!(made.metadata().unwrap().mtime(), 1_100_000_000);
    let file = made.join("sealed/file").metadata().unwrap();
    assert_eq!((file.mode() & 0o7777, file.mtime(), file.nlink()), (0o644, 1_000_000_000, 2));
    assert_eq!(made.join("program").metadata().unwrap().mode() & 0o7777, 0o755);
    assert_eq!(std::fs::read_link(made.join("link")).unwrap(), Path::new("/etc/passwd"));
}

#[test]
fn directories_that_exist_are_joined_and_files_are_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("name");
    std::fs::create_dir_all(target.join("sub")).unwrap();
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(target.join("sub/kept"), "kept").unwrap();
    std::fs::write(target.join("sub/old"), "old").unwrap();
    std::fs::write(directory.path().join("outside"), "outside").unwrap();
    symlink("../../outside", target.join("sub/link")).unwrap();
    let mut tree = begin(directory.path());
    tree.directory(&path(""), KeptAttributes { mode: 0o777, ..DIRECTORY }).unwrap();
    tree.directory(&path("sub"), KeptAttributes { mode: 0o555, ..DIRECTORY }).unwrap();
    for name in ["sub/old", "sub/link", "sub/new", "sub/more/new"] {
        put(&mut tree, name, "new").unwrap();
    }
    tree.place(OsStr::new("name")).unwrap();
    assert_eq!(names(directory.path()), ["name", "outside"]);
    assert_eq!(std::fs::read_to_string(directory.path().join("outside")).unwrap(), "outside");
    for (name, content) in
        [("kept", "kept"), ("old", "new"), ("link", "new"), ("new", "new"), ("more/new", "new")]
    {
        assert_eq!(std::fs::read_to_string(target.join("sub").join(name)).unwrap(), content, "{name}");
    }
    assert_eq!(
        target.metadata().unwrap().mode() & 0o777,
        0o700,
        "a guest does not open a directory of the host"
    );
}

#[test]
fn entries_of_another_kind_are_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("elsewhere")).unwrap();
    std::fs::create_dir(directory.path().join("directory")).unwrap();
    std::fs::write(directory.path().join("file"), "").unwrap();
    symlink("elsewhere", directory.path().join("link")).unwrap();
    let before = names(directory.path());
    let mut tree = begin(directory.path());
    put(&mut tree, "", "").unwrap();
    let error = tree.place(OsStr::new("directory")).unwrap_err();
    assert!(matches!(error, IncomingError::DirectoryInPlace(_)), "{error}");
    for name in ["file", "link"] {
        let mut tree = begin(directory.path());
        put(&mut tree, "a", "").unwrap();
        let error = tree.place(OsStr::new(name)).unwrap_err();
        assert!(matches!(error, IncomingError::FileInPlace(_)), "{name}: {error}");
    }
    assert_eq!(names(directory.path()), before);
    assert!(names(&directory.path().join("elsewhere")).is_empty());
}

#[test]
fn links_of_the_tree_are_never_followed() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("victim")).unwrap();
    let mut tree = begin(directory.path());
    let victim = directory.path().join("victim");
    tree.symlink(&path("absolute"), victim.as_os_str()).unwrap();
    tree.symlink(&path("relative"), OsStr::new("../../victim")).unwrap();
    tree.symlink(&path("file"), OsStr::new("../../victim/made")).unwrap();
    for name in ["absolute/made", "relative/made", "relative/below/made", "file", "relative"] {
        let error = put(&mut tree, name, "bad").unwrap_err();
        assert!(matches!(error, IncomingError::Twice(_)), "{name}: {error}");
    }
    assert!(matches!(tree.directory(&path("relative"), DIRECTORY), Err(IncomingError::Twice(_))));
    assert!(tree.directory(&path("relative/made"), DIRECTORY).is_err());
    assert!(tree.symlink(&path("absolute/made"), OsStr::new("x")).is_err());
    put(&mut tree, "original", "").unwrap();
    for original in ["absolute", "relative/made", "absent", ""] {
        let error = tree.hard_link(&path("copy"), &path(original)).unwrap_err();
        assert!(matches!(error, IncomingError::NoOriginal { .. }), "{original}: {error}");
    }
    tree.discard().unwrap();
    assert_eq!(names(directory.path()), ["victim"]);
    assert!(names(&victim).is_empty());
}

/// A reader that fails after some bytes.
struct BreakingSource(usize);

impl Read for BreakingSource {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.0.min(buffer.len());
        self.0 -= most;
        if most == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(most) }
    }
}

#[test]
fn a_tree_that_ends_early_is_removed_whatever_its_permissions() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("name"), "old").unwrap();
    let mut tree = begin(directory.path());
    for depth in 1..40 {
        let sealed = KeptAttributes { mode: 0, ..DIRECTORY };
        tree.directory(&path(&vec!["d"; depth].join("/")), sealed).unwrap();
    }
    tree.directory(&path("next"), DIRECTORY).unwrap();
    let error = tree.file(&path("next/file"), KEPT, &mut BreakingSource(300_000)).unwrap_err();
    assert!(matches!(error, IncomingError::Content { .. }), "{error}");
    tree.discard().unwrap();
    assert_eq!(names(directory.path()), ["name"]);
    assert_eq!(std::fs::read_to_string(directory.path().join("name")).unwrap(), "old");
}

#[test]
fn a_directory_of_many_names_is_joined() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("name")).unwrap();
    let mut tree = begin(directory.path());
    for number in 0..NAMES_AT_ONCE * 2 + 7 {
        put(&mut tree, &format!("{number}"), "").unwrap();
    }
    tree.place(OsStr::new("name")).unwrap();
    assert_eq!(names(&directory.path().join("name")).len(), NAMES_AT_ONCE * 2 + 7);
}

#[test]
fn a_full_disk_leaves_no_half_file() {
    if !have(&[Need::Root, Need::Program("mount")]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mounted = directory.path().join("small");
    std::fs::create_dir(&mounted).unwrap();
    let run = |arguments: &[&str]| {
        let status = std::process::Command::new(arguments[0]).args(&arguments[1..]).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    };
    run(&["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", mounted.to_str().unwrap()]);
    std::fs::write(mounted.join("name"), "old").unwrap();
    let mut tree = begin(&mounted);
    let written = tree.file(&path(""), KEPT, &mut io::repeat(7).take(1 << 20));
    tree.discard().unwrap();
    let (left, content) = (names(&mounted), std::fs::read_to_string(mounted.join("name")).unwrap());
    run(&["umount", mounted.to_str().unwrap()]);
    let error = written.unwrap_err();
    let full = |error: &IncomingError| match error {
        IncomingError::File(error) => error.is(io::ErrorKind::StorageFull),
        _ => false,
    };
    assert!(full(&error), "{error:?}");
    assert_eq!((left, content.as_str()), (vec!["name".to_owned()], "old"));
}

#[test]
fn a_link_that_a_guest_puts_into_the_tree_is_not_followed_either() {
    let directory = tempfile::tempdir().unwrap();
    let victim = directory.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("key"), "private").unwrap();
    let mut tree = begin(directory.path());
    put(&mut tree, "d/key", "sent").unwrap();
    let content = directory.path().join(&tree.name).join(CONTENT);
    std::fs::rename(content.join("d"), content.join("other")).unwrap();
    symlink(&victim, content.join("d")).unwrap();
    let moved = tree.move_to(
        &Path::new(CONTENT).join("d/key"),
        &tree.target.handle,
        OsStr::new("stolen"),
        directory.path(),
    );
    assert!(moved.is_err());
    assert!(tree.move_content(&Path::new(CONTENT).join("d"), &tree.target.handle, directory.path()).is_err());
    assert!(staging::open_writable(&tree.root, &Path::new(CONTENT).join("d")).is_err());
    tree.discard().unwrap();
    assert_eq!(names(directory.path()), ["victim"]);
    assert_eq!(names(&victim), ["key"]);
}

/// A process that is killed in the middle of a copy leaves its directory, and the next copy removes it. A copy that is under
/// way keeps its own.
#[test]
fn what_a_killed_process_leaves_is_removed_by_the_next_copy_and_what_is_in_use_is_not() {
    const ROLE: &str = "NIXBOX_TEST_INCOMING_IN";
    if let Some(directory) = std::env::var_os(ROLE) {
        let mut tree = begin(Path::new(&directory));
        tree.directory(&path(""), DIRECTORY).unwrap();
        put(&mut tree, "below/a", "half").unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let name = "files::incoming::tests::what_a_killed_process_leaves_is_removed_by_the_next_copy_and_what_is_in_use_is_not";
    let killed = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(ROLE, directory.path())
        .output()
        .unwrap();
    assert!(!killed.status.success(), "{killed:?}");
    assert_eq!(names(directory.path()).len(), 1);
    // These have such names, and are none of nixbox's, or not of this form.
    std::fs::write(directory.path().join(".nixbox-cp-0123456789abcdef"), "").unwrap();
    std::fs::create_dir(directory.path().join(".nixbox-cp-of-mine")).unwrap();

    let mut first = begin(directory.path());
    put(&mut first, "", "one").unwrap();
    assert_eq!(names(directory.path()).len(), 3);
    let mut second = begin(directory.path());
    put(&mut second, "", "two").unwrap();
    first.place(OsStr::new("one")).unwrap();
    second.place(OsStr::new("two")).unwrap();
    let left = [".nixbox-cp-0123456789abcdef", ".nixbox-cp-of-mine", "one", "two"];
    assert_eq!(names(directory.path()), left);
}
