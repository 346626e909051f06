use std::process::Command as Process;

use super::*;
use crate::files::Folder;
use crate::image::archive::{EntryKind, TarEntry};

/// The answer of debugfs to a request.
fn debugfs(disk: &Path, request: &str) -> String {
    let output = Process::new("/sbin/debugfs").args(["-R", request]).arg(disk).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A line of `stat` with the number, without what follows the name of a field.
fn field<'a>(stat: &'a str, name: &str) -> &'a str {
    let rest = stat.split_once(name).unwrap_or_else(|| panic!("{name}: {stat}")).1;
    rest.split_whitespace().next().unwrap()
}

#[tokio::test]
async fn an_ext4_has_owners_modes_attributes_and_hard_links_without_root() {
    if check_programs().is_err() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let workplace = directory.path().join("work");
    for name in ["contents", "work"] {
        fs::create_dir(directory.path().join(name)).unwrap();
    }
    let mut contents = ContentStore::new(Folder::open(&directory.path().join("contents")).unwrap(), 1 << 20);
    let mut tree = ImageTree::default();
    let entry = |path: &[u8], kind, mode, uid, gid| TarEntry {
        path: path.to_vec(),
        link: Vec::new(),
        kind,
        mode,
        uid,
        gid,
        modified: 1_000_000_000,
        attributes: BTreeMap::new(),
        size: 4,
    };
    let odd = b"odd \"name\" <3>\xff";
    let capability = b"\x01\x00\x00\x02\n\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    for (path, kind, mode, uid, gid) in [
        (&b"sealed"[..], EntryKind::Directory, 0o1777, 0, 0),
        (b"sealed/setuid", EntryKind::File, 0o4711, 0, 70_000),
        (b"sealed/secret", EntryKind::File, 0, 1000, 1000),
        (b"closed", EntryKind::Directory, 0o555, 70_000, 5),
        (odd, EntryKind::File, 0o644, 3, 4),
        (b"pipe", EntryKind::Fifo, 0o600, 1, 1),
    ] {
        let mut entry = entry(path, kind, mode, uid, gid);
        if path == b"sealed/setuid" {
            entry.attributes.insert(b"security.capability".to_vec(), capability.to_vec());
            entry.attributes.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
        }
        let content = (kind == EntryKind::File).then(|| contents.take(&mut &b"1234"[..], 4).unwrap());
        tree.apply(&entry, content).unwrap();
    }
    let mut link = entry(b"closed/twin", EntryKind::HardLink, 0, 0, 0);
    link.link = b"sealed/setuid".to_vec();
    tree.apply(&link, None).unwrap();
    let mut link = entry(b"link", EntryKind::Symlink, 0o777, 7, 8);
    link.link = b"/sealed/setuid".to_vec();
    tree.apply(&link, None).unwrap();

    let disk = directory.path().join("disk.img");
    fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let plan = DiskPlan {
        tree: &tree,
        contents: &contents,
        workplace: &workplace,
        disk: &disk,
        id: Uuid::from_bytes([7; 16]),
    };
    plan.make(&Interrupt::new()).await.unwrap();

    let has = |path: &str, mode: &str, user: &str, group: &str| {
        let stat = debugfs(&disk, &format!("stat {path}"));
        let found = [field(&stat, "Mode:"), field(&stat, "User:"), field(&stat, "Group:")];
        assert_eq!(found, [mode, user, group], "{path}: {stat}");
        stat
    };
    has("/", "0755", "0", "0");
    has("/sealed", "01777", "0", "0");
    let stat = has("/sealed/setuid", "04711", "0", "70000");
    assert_eq!(field(&stat, "Links:"), "2");
    assert!(stat.contains("mtime: 0x3b9aca00"), "{stat}");
    assert_eq!(field(&stat, "Inode:"), field(&debugfs(&disk, "stat /closed/twin"), "Inode:"));
    assert!(debugfs(&disk, "ea_list /sealed/setuid").contains("security.capability (20)"));
    assert!(!debugfs(&disk, "ea_list /sealed/setuid").contains("overlay"));
    let copy = directory.path().join("capability");
    debugfs(&disk, &format!("ea_get -f {} /sealed/setuid security.capability", copy.display()));
    assert_eq!(fs::read(copy).unwrap(), capability);
    has("/sealed/secret", "0000", "1000", "1000");
    has("/closed", "0555", "70000", "5");
    assert!(has("/link", "0777", "7", "8").contains("/sealed/setuid"));
    assert!(has("/pipe", "0600", "1", "1").contains("Type: FIFO"));
    let listed = debugfs(&disk, "ls -l /");
    assert!(listed.contains("100644 (1)      3      4       4"), "{listed}");
    let checked = Process::new("/sbin/e2fsck").args(["-fn"]).arg(&disk).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn words_of_debugfs_are_quoted() {
    assert_eq!(quoted(b"/a \"b\""), b"\"/a \"\"b\"\"\"");
    assert!(is_kept(b"user.x") && is_kept(b"security.capability"));
    assert!(!is_kept(b"trusted.overlay.opaque") && !is_kept(b"other.x") && !is_kept(b"user.\n"));
}
