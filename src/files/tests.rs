use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn folder() -> (tempfile::TempDir, Folder) {
    let directory = tempfile::tempdir().unwrap();
    let folder = Folder::open(directory.path()).unwrap();
    (directory, folder)
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let (_directory, folder) = folder();
    for name in ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b"] {
        assert!(matches!(folder.examine(name), Err(FileError::Name(_))), "{name:?}");
        assert!(matches!(folder.read(name, 1), Err(FileError::Name(_))), "{name:?}");
        assert!(matches!(folder.new_file(name), Err(FileError::Name(_))), "{name:?}");
        assert!(matches!(folder.remove_tree(name), Err(FileError::Name(_))), "{name:?}");
        assert!(matches!(folder.rename("a", name), Err(FileError::Name(_))), "{name:?}");
    }
}

#[test]
fn links_are_not_followed() {
    let (directory, folder) = folder();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("kept"), "kept").unwrap();
    symlink(outside.path(), directory.path().join("to-directory")).unwrap();
    symlink(outside.path().join("kept"), directory.path().join("to-file")).unwrap();
    symlink("nowhere", directory.path().join("dangling")).unwrap();
    assert!(matches!(folder.folder("to-directory"), Err(FileError::Symlink { .. })));
    assert!(matches!(folder.make_folder("to-directory"), Err(FileError::Symlink { .. })));
    assert!(matches!(folder.remove_tree("to-directory"), Err(FileError::Symlink { .. })));
    assert!(matches!(Folder::open(&directory.path().join("to-directory")), Err(FileError::Symlink { .. })));
    assert!(matches!(folder.file("to-file"), Err(FileError::Symlink { .. })));
    assert!(matches!(folder.file_to_write("dangling"), Err(FileError::Symlink { .. })));
    assert!(folder.new_file("dangling").unwrap_err().is(io::ErrorKind::AlreadyExists));
    assert!(!folder.write_new("to-file", b"new").unwrap());

    std::fs::create_dir(directory.path().join("tree")).unwrap();
    symlink(outside.path(), directory.path().join("tree/link")).unwrap();
    folder.remove_tree("tree").unwrap();
    assert!(!directory.path().join("tree").exists());
    assert_eq!(std::fs::read(outside.path().join("kept")).unwrap(), b"kept");
}

#[test]
fn other_kinds_of_files_are_refused_without_waiting_for_them() {
    let (directory, folder) = folder();
    fs::mknodat(fs::CWD, directory.path().join("fifo"), FileType::Fifo, FILE_MODE, 0).unwrap();
    assert!(matches!(folder.read("fifo", 10), Err(FileError::Kind { .. })));
    std::fs::create_dir(directory.path().join("directory")).unwrap();
    assert!(matches!(folder.read("directory", 10), Err(FileError::Kind { .. })));
    assert!(matches!(folder.file_to_write("directory"), Err(FileError::Kind { .. })));
    std::fs::write(directory.path().join("file"), "12345").unwrap();
    assert!(matches!(folder.folder("file"), Err(FileError::Kind { .. })));
    assert!(matches!(folder.read("file", 4), Err(FileError::TooLarge { limit: 4, .. })));
    assert_eq!(folder.read("file", 5).unwrap().unwrap(), b"12345");
    assert!(folder.read("absent", 5).unwrap().is_none());
}

#[test]
fn files_are_written_once_and_for_their_owner_only() {
    let (directory, folder) = folder();
    assert!(folder.write_new("a", b"first").unwrap());
    assert!(!folder.write_new("a", b"second").unwrap());
    assert_eq!(folder.read("a", 100).unwrap().unwrap(), b"first");
    std::fs::write(directory.path().join(".a.unfinished"), "left by a crash").unwrap();
    folder.replace("a", b"third").unwrap();
    assert_eq!(folder.read("a", 100).unwrap().unwrap(), b"third");
    assert_eq!(folder.names().unwrap(), ["a"]);
    let (made, new) = folder.make_folder("d").unwrap();
    assert!(new && !folder.make_folder("d").unwrap().1);
    for (path, mode) in [(directory.path().join("a"), 0o600), (made.path().to_owned(), 0o700)] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o7777, mode);
    }
}

#[test]
fn renaming_replaces_nothing_and_removing_twice_succeeds() {
    let (directory, folder) = folder();
    std::fs::create_dir_all(directory.path().join("a/b/c")).unwrap();
    std::fs::write(directory.path().join("a/b/file"), "").unwrap();
    std::fs::create_dir(directory.path().join("z")).unwrap();
    assert!(folder.rename("a", "z").unwrap_err().is(io::ErrorKind::AlreadyExists));
    assert!(!folder.remove_empty("a").unwrap());
    folder.rename("a", "y").unwrap();
    folder.remove_tree("y").unwrap();
    folder.remove_tree("y").unwrap();
    assert!(folder.remove_empty("z").unwrap() && folder.remove_empty("z").unwrap());
    assert!(folder.names().unwrap().is_empty());
}
