use std::path::Path;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;
use crate::files::Folder;

/// An archive of raw entries, whose names and links the builder does not check.
#[derive(Default)]
struct HostileArchive(Vec<u8>);

impl HostileArchive {
    fn add(mut self, kind: EntryType, name: &str, link: &str, content: &str) -> Self {
        let mut header = Header::new_gnu();
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content.as_bytes());
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str) -> Self {
        self.add(EntryType::Regular, name, "", "content")
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Unpacks an archive in a directory beside a directory that nothing may be written to.
fn unpacked(archive: &[u8], whole: bool) -> (Result<Unpacked, UnpackError>, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let mut tree = IncomingTree::begin(Folder::open(&target).unwrap()).unwrap();
    let result = unpack(archive, &mut tree, whole);
    if result.is_ok() && tree.has_content() {
        tree.place(OsStr::new("placed")).unwrap();
    } else {
        tree.discard().unwrap();
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    }
    let outside = std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(outside, 1, "an entry was made outside of the target");
    let mut names = Vec::new();
    list(&target, &target, &mut names);
    names.sort();
    (result, names)
}

fn list(root: &Path, directory: &Path, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        names.push(path.strip_prefix(root).unwrap().display().to_string());
        if path.symlink_metadata().unwrap().is_dir() {
            list(root, &path, names);
        }
    }
}

#[test]
fn hostile_archives_make_nothing() {
    let hostile = |archive: HostileArchive| {
        let (result, names) = unpacked(&archive.end(), false);
        assert!(names.is_empty(), "{names:?}");
        result.unwrap_err()
    };
    let begin = || HostileArchive::default().add(EntryType::Directory, "./x/", "", "").file("./x/file");
    for name in ["./x/../../out", "../out", "/tmp/out", "./x/..", ".."] {
        let error = hostile(begin().file(name));
        assert!(matches!(error, UnpackError::Tree(IncomingError::Outside(_))), "{name}: {error}");
    }
    for name in ["./y/file", ".", "./"] {
        let error = hostile(begin().file(name));
        assert!(matches!(error, UnpackError::NotAsked(_)), "{name}: {error}");
    }
    let twice = |archive| matches!(hostile(archive), UnpackError::Tree(IncomingError::Twice(_)));
    assert!(twice(begin().file("./x/file")));
    assert!(twice(begin().file("./x")));
    let link = || begin().add(EntryType::Symlink, "./x/link", "../..", "");
    assert!(twice(link().file("./x/link/out")));
    assert!(twice(link().file("./x/link")));
    assert!(twice(begin().file("./x/file/below")));
    for original in ["/etc/passwd", "./x/../../target"] {
        let error = hostile(begin().add(EntryType::Link, "./x/link", original, ""));
        assert!(matches!(error, UnpackError::Tree(IncomingError::Outside(_))), "{original}: {error}");
    }
    let error = hostile(begin().add(EntryType::Link, "./x/link", "./x/later", "").file("./x/later"));
    assert!(matches!(error, UnpackError::Tree(IncomingError::NoOriginal { .. })), "{error}");
    let error = hostile(link().add(EntryType::Link, "./x/other", "./x/link", ""));
    assert!(matches!(error, UnpackError::Tree(IncomingError::NoOriginal { .. })), "{error}");
}

#[test]
fn archives_that_are_cut_short_make_nothing() {
    let archive = HostileArchive::default().file("./x").end();
    // The mark at the end is two blocks of zeros, of which the first says it already.
    let least = archive.len() - 512;
    for length in (0..least).step_by(97).chain([least - 1, least, archive.len()]) {
        let (result, names) = unpacked(&archive[..length], false);
        let is_whole = length >= least;
        assert_eq!((result.is_ok(), names.len()), (is_whole, usize::from(is_whole)), "{length}");
    }
}

#[test]
fn devices_are_left_out_and_links_are_made_as_they_are() {
    let archive = HostileArchive::default()
        .add(EntryType::Directory, "./x", "", "")
        .add(EntryType::Char, "./x/null", "", "")
        .add(EntryType::Fifo, "./x/pipe", "", "")
        .add(EntryType::Symlink, "./x/out", "/etc/shadow", "")
        .add(EntryType::Symlink, "./x/in", "file", "")
        .file("./x/file")
        .add(EntryType::Link, "./x/same", "./x/file", "");
    let (result, names) = unpacked(&archive.end(), false);
    let unpacked = result.unwrap();
    assert_eq!(names, ["placed", "placed/file", "placed/in", "placed/out", "placed/same"]);
    assert_eq!((unpacked.left_out.count, unpacked.left_out.first.as_deref()), (2, Some("./x/null")));
    assert_eq!((unpacked.links_out.count, unpacked.links_out.first.as_deref()), (1, Some("out")));
}

#[test]
fn the_content_of_a_directory_is_unpacked_without_its_name() {
    let archive = HostileArchive::default().add(EntryType::Directory, "./", "", "").file("./a").file("b/c");
    let (result, names) = unpacked(&archive.end(), true);
    result.unwrap();
    assert_eq!(names, ["placed", "placed/a", "placed/b", "placed/b/c"]);
}

#[test]
fn what_a_login_shell_prints_is_passed_over() {
    let skipped = |text: &[u8]| {
        let mut source = text;
        skip_greeting(&mut source).map(|()| source.to_vec())
    };
    assert_eq!(skipped(b"nixbox:stream\nrest").unwrap(), b"rest");
    assert_eq!(skipped(b"Welcome!\n\nnixbox:nixbox:stream\n").unwrap(), b"");
    assert!(matches!(skipped(b"nixbox:strea"), Err(UnpackError::NothingSent)));
    assert!(matches!(skipped(&vec![b'x'; MOST_BEFORE + 1]), Err(UnpackError::NoBegin)));
    let mut output = Vec::new();
    pass_on(&b"greeting\nnixbox:stream\n\0\xff"[..], &mut output).unwrap();
    assert_eq!(output, b"\0\xff");
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[./a]{0,8}", Just("./x/a".to_owned()), Just("./x/l/a".to_owned()), Just("./x/l".to_owned())]
}

fn kind() -> impl Strategy<Value = EntryType> {
    prop_oneof![
        Just(EntryType::Regular),
        Just(EntryType::Directory),
        Just(EntryType::Symlink),
        Just(EntryType::Link),
        Just(EntryType::Char)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn nothing_is_made_outside_whatever_the_entries_are(
        entries in prop::collection::vec((kind(), name(), name()), 1..8),
        whole: bool,
    ) {
        let mut archive = HostileArchive::default();
        for (kind, name, link) in entries {
            archive = archive.add(kind, &name, &link, "");
        }
        // `unpacked` examines what is outside of the target.
        unpacked(&archive.end(), whole).0.ok();
    }

    #[test]
    fn damaged_archives_are_no_panic(at in 0_usize..2560, byte: u8) {
        let mut builder = Builder::new(Vec::new());
        for name in ["x/one", "x/two"] {
            let mut header = Header::new_gnu();
            header.set_size(5);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            builder.append_data(&mut header, name, &b"12345"[..]).unwrap();
        }
        let mut archive = builder.into_inner().unwrap();
        archive[at] = byte;
        unpacked(&archive, false).0.ok();
    }
}
