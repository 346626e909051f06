use proptest::prelude::*;

use super::*;

fn entry(path: &str, kind: EntryKind) -> TarEntry {
    TarEntry {
        path: path.as_bytes().to_vec(),
        link: Vec::new(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified: 0,
        attributes: BTreeMap::new(),
        size: 0,
    }
}

fn link(path: &str, target: &str, kind: EntryKind) -> TarEntry {
    TarEntry { link: target.as_bytes().to_vec(), ..entry(path, kind) }
}

fn file(tree: &mut ImageTree, path: &str) {
    tree.apply(&entry(path, EntryKind::File), Some(ContentNumber(0))).unwrap();
}

fn put(tree: &mut ImageTree, entry: &TarEntry) {
    tree.apply(entry, None).unwrap();
}

/// All paths in alphabetical order.
fn paths(tree: &ImageTree) -> String {
    let mut paths: Vec<String> = tree.paths().iter().map(|(path, _)| shown(path)).collect();
    paths.sort();
    paths.join(" ")
}

#[test]
fn a_whiteout_removes_what_is_below_and_nothing_of_its_own_layer() {
    let mut tree = ImageTree::default();
    tree.begin_layer();
    for path in ["a/one", "a/two", "b/one", "b/sub/two", "c"] {
        file(&mut tree, path);
    }
    tree.begin_layer();
    file(&mut tree, "b/new");
    put(&mut tree, &entry("a/.wh.one", EntryKind::File));
    put(&mut tree, &entry("b/.wh..wh..opq", EntryKind::File));
    put(&mut tree, &entry(".wh.c", EntryKind::File));
    put(&mut tree, &entry(".wh.never", EntryKind::File));
    assert_eq!(paths(&tree), "/a /a/two /b /b/new");
    // A directory that this layer makes anew after its whiteout keeps what is new.
    tree.begin_layer();
    file(&mut tree, "b/newer");
    put(&mut tree, &entry(".wh.b", EntryKind::File));
    assert_eq!(paths(&tree), "/a /a/two /b /b/newer");
    tree.begin_layer();
    put(&mut tree, &entry(".wh.b", EntryKind::File));
    assert_eq!(paths(&tree), "/a /a/two");
}

#[test]
fn a_link_in_the_way_is_followed_within_the_image() {
    let mut tree = ImageTree::default();
    tree.begin_layer();
    put(&mut tree, &entry("usr/lib", EntryKind::Directory));
    put(&mut tree, &link("lib", "usr/lib", EntryKind::Symlink));
    put(&mut tree, &link("up", "../../../../usr", EntryKind::Symlink));
    put(&mut tree, &link("out", "/etc/../..", EntryKind::Symlink));
    tree.begin_layer();
    file(&mut tree, "lib/one");
    file(&mut tree, "up/two");
    file(&mut tree, "out/three");
    assert_eq!(paths(&tree), "/etc /lib /out /three /up /usr /usr/lib /usr/lib/one /usr/two");
    assert!(tree.look_up("/lib/one").is_some() && tree.look_up("lib/two").is_none());
    put(&mut tree, &link("loop", "loop", EntryKind::Symlink));
    let error = tree.apply(&entry("loop/x", EntryKind::File), Some(ContentNumber(0))).unwrap_err();
    assert!(matches!(error, TreeError::Links(_)), "{error}");
}

#[test]
fn hard_links_are_one_file_and_kinds_replace_each_other() {
    let mut tree = ImageTree::default();
    tree.begin_layer();
    file(&mut tree, "a");
    put(&mut tree, &link("b", "/a", EntryKind::HardLink));
    assert_eq!(tree.look_up("a"), tree.look_up("b"));
    tree.begin_layer();
    put(&mut tree, &entry(".wh.a", EntryKind::File));
    assert_eq!(paths(&tree), "/b");
    put(&mut tree, &entry("b", EntryKind::Directory));
    file(&mut tree, "b/c");
    assert_eq!(paths(&tree), "/b /b/c");
    put(&mut tree, &TarEntry { mode: 0o700, ..entry("b", EntryKind::Directory) });
    assert_eq!(paths(&tree), "/b /b/c", "a directory keeps what is in it");
    file(&mut tree, "b");
    assert_eq!(paths(&tree), "/b");
}

#[test]
fn hostile_entries_are_refused_and_change_nothing() {
    let mut tree = ImageTree::default();
    tree.begin_layer();
    file(&mut tree, "file");
    put(&mut tree, &entry("directory", EntryKind::Directory));
    let before = paths(&tree);
    let long = "x".repeat(256);
    let refused = [
        entry("../etc/passwd", EntryKind::File),
        entry("a/../../b", EntryKind::Directory),
        link("a", "../../etc/shadow", EntryKind::HardLink),
        link("a", "missing", EntryKind::HardLink),
        link("a", "directory", EntryKind::HardLink),
        link("a", "", EntryKind::Symlink),
        entry("device", EntryKind::Device),
        entry("dev", EntryKind::Device),
        entry("file/below", EntryKind::File),
        entry("", EntryKind::File),
        entry("new\nline", EntryKind::File),
        entry(".wh...", EntryKind::File),
        entry(".wh.", EntryKind::File),
        entry(&long, EntryKind::File),
    ];
    for entry in refused {
        assert!(tree.apply(&entry, Some(ContentNumber(1))).is_err(), "{entry:?}");
        assert_eq!(paths(&tree), before, "{entry:?}");
    }
    // What a kernel puts into /dev is left to it.
    put(&mut tree, &entry("dev/null", EntryKind::Device));
    assert_eq!(paths(&tree), before);
}

fn any_entry() -> impl Strategy<Value = TarEntry> {
    let name = prop::sample::select(vec!["a", "b", "c", ".wh.a", ".wh.b", ".wh..wh..opq", "..", "."]);
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let target = prop::sample::select(vec!["a", "/a", "../b", "a/b", "../../..", "/c/a", "."]);
    let kind = prop::sample::select(vec![
        EntryKind::File,
        EntryKind::HardLink,
        EntryKind::Symlink,
        EntryKind::Directory,
        EntryKind::Fifo,
        EntryKind::Device,
    ]);
    (path, target, kind).prop_map(|(path, target, kind)| link(&path, target, kind))
}

proptest! {
    /// Whatever is applied, every path of the tree is made of plain names, directories come before what is in them, and no whiteout
    /// is left as a file.
    #[test]
    fn any_layers_make_a_tree(entries in prop::collection::vec((any_entry(), any::<bool>()), 0..40)) {
        let mut tree = ImageTree::default();
        for (entry, new_layer) in entries {
            if new_layer {
                tree.begin_layer();
            }
            let before = paths(&tree);
            if tree.apply(&entry, Some(ContentNumber(0))).is_err() && entry.kind == EntryKind::Device {
                prop_assert_eq!(paths(&tree), before);
            }
        }
        let mut seen = std::collections::BTreeSet::from([String::new()]);
        for (path, id) in tree.paths() {
            let path = shown(&path);
            let (parent, name) = path.rsplit_once('/').unwrap();
            prop_assert!(seen.contains(parent), "{} before {}", path, parent);
            prop_assert!(!name.starts_with(".wh.") && name != ".." && name != "." && !name.is_empty());
            if matches!(tree.node(id).kind, NodeKind::Directory(_)) {
                seen.insert(path.clone());
            }
            // A name is found where it is listed, unless it is a link.
            let found = tree.find(&parts(path.as_bytes()).unwrap(), false);
            prop_assert_eq!(found, Some(id));
        }
    }
}
