use super::*;
use crate::config::{Config, HostFacts};
use crate::world::{Backing, NetworkMode};

const GENERATION: Generation = Generation(7);

fn spec() -> VmSpec {
    let text = r#"
[vm]
kernel = "image/vmlinuz"
initramfs = "image/initramfs.gz"
memory = "64MiB"
vcpus = 2
backing = "disk"
[[disks]]
image = "root.img"
size = "1GiB"
[[disks]]
size = "2GiB"
[[mounts]]
source = "."
target = "~/workspace"
readonly = true
[network]
mode = "filtered"
domains = ["github.com"]
ports = [443]
[env]
TOKEN = "not to be written down"
"#;
    let host = HostFacts { vcpus: 4, memory: 1 << 30, home: Some("/home/me".into()) };
    Config::parse(text, "config.toml".as_ref(), "/srv/project".as_ref(), "/state/ssh".as_ref(), &host)
        .unwrap()
        .vm_spec()
}

fn files(directory: &tempfile::TempDir) -> RecordFiles {
    RecordFiles {
        run: directory.path().to_owned(),
        root: "/srv/project".into(),
        runtime: "/run/nixbox-0/1".into(),
        namespace: Some(NamespaceKeeping::Holder),
        spec: spec(),
    }
}

fn read_back(files: &RecordFiles) -> Result<Option<BuiltRecord>, RecordFileError> {
    read(&Folder::open(&files.run).unwrap(), GENERATION)
}

#[tokio::test]
async fn a_record_is_read_as_it_was_written_until_it_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(&directory);
    assert_eq!(files.find(GENERATION).await.unwrap(), Presence::Absent);
    assert_eq!(read_back(&files).unwrap(), None);
    for _ in 0..2 {
        files.write(GENERATION).await.unwrap();
        let record = read_back(&files).unwrap().unwrap();
        assert_eq!((&record.spec, &record.runtime), (&files.spec, &files.runtime));
        assert_eq!(record.namespace, Some(NamespaceKeeping::Holder));
        assert_eq!(files.find(GENERATION).await.unwrap(), Presence::Whole);
        assert_eq!(files.generations().await.unwrap(), BTreeSet::from([GENERATION]));
    }
    let text = std::fs::read_to_string(directory.path().join("built-7.json")).unwrap();
    assert!(!text.contains("not to be written down"), "{text}");
    for _ in 0..2 {
        files.remove(GENERATION).await.unwrap();
        assert_eq!(files.find(GENERATION).await.unwrap(), Presence::Absent);
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// `nixbox network reload` writes the record of a VM that runs again.
#[tokio::test]
async fn a_killed_writer_leaves_the_record_that_it_was_to_replace() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(&directory);
    files.write(GENERATION).await.unwrap();
    let before = read_back(&files).unwrap();
    std::fs::write(directory.path().join(".built-7.json.unfinished"), "{").unwrap();
    assert_eq!(files.find(GENERATION).await.unwrap(), Presence::Whole);
    assert_eq!(read_back(&files).unwrap(), before);
    files.write(GENERATION).await.unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    std::fs::write(directory.path().join(".built-7.json.unfinished"), "{").unwrap();
    files.remove(GENERATION).await.unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn what_a_killed_writer_leaves_is_no_record_and_goes() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(&directory);
    std::fs::write(directory.path().join(".built-7.json.unfinished"), "{").unwrap();
    assert_eq!(read_back(&files).unwrap(), None);
    assert_eq!(files.find(GENERATION).await.unwrap(), Presence::Partial);
    assert_eq!(files.generations().await.unwrap(), BTreeSet::from([GENERATION]));
    files.remove(GENERATION).await.unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_record_that_was_changed_or_cut_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(&directory);
    files.write(GENERATION).await.unwrap();
    let path = directory.path().join("built-7.json");
    let good = std::fs::read_to_string(&path).unwrap();
    for length in [0, 1, good.len() / 2, good.len() - 1] {
        std::fs::write(&path, &good[..length]).unwrap();
        assert!(matches!(read_back(&files), Err(RecordFileError::Unreadable { .. })), "{length}");
    }
    let changed = [
        ("\"kernel\": \"/srv", "\"kernel\": \"srv"),
        ("67108864", "99999999999999999999"),
        ("67108864", "\"64MiB\""),
        ("\"vcpus\": 2", "\"vcpus\": 0"),
        ("\"~/workspace\"", "\"../workspace\""),
        ("github.com", "github.com\\nserver=/#/1.1.1.1"),
        ("443", "53"),
        ("\"readonly\": true", "\"readonly\": true, \"other\": 1"),
        ("\"backing\": \"disk\"", "\"backing\": \"elsewhere\""),
        ("\"cloud-hypervisor\"", "\"qemu\""),
        ("\"holder\"", "\"nobody\""),
    ];
    for (from, to) in changed {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from} is not in {good}");
        std::fs::write(&path, text).unwrap();
        assert!(matches!(read_back(&files), Err(RecordFileError::Unreadable { .. })), "{from} to {to}");
    }
    std::fs::write(&path, good.replacen("\"format\": 2", "\"format\": 3, \"more\": 3", 1)).unwrap();
    assert!(matches!(read_back(&files), Err(RecordFileError::Newer { found: 3, .. })));
    std::fs::write(&path, good.replacen("\"generation\": 7", "\"generation\": 8", 1)).unwrap();
    assert!(matches!(read_back(&files), Err(RecordFileError::OtherGeneration { .. })));
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(matches!(read_back(&files), Err(RecordFileError::File(_))));
}

#[tokio::test]
async fn a_record_of_an_earlier_nixbox_does_not_say_how_the_namespace_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(&directory);
    files.write(GENERATION).await.unwrap();
    let path = directory.path().join("built-7.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let earlier =
        text.replacen("\"format\": 2", "\"format\": 1", 1).replacen("  \"namespace\": \"holder\",\n", "", 1);
    assert_eq!(earlier.lines().count() + 1, text.lines().count());
    std::fs::write(&path, earlier).unwrap();
    let record = read_back(&files).unwrap().unwrap();
    assert_eq!((record.namespace, record.spec), (None, files.spec));
}

#[tokio::test]
async fn a_path_that_json_cannot_hold_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let directory = tempfile::tempdir().unwrap();
    let mut files = files(&directory);
    let odd = std::path::Path::new(std::ffi::OsStr::from_bytes(b"/srv/\xff"));
    files.spec.mounts[0].source = crate::world::HostPath::below(odd, "src");
    let error = files.write(GENERATION).await.unwrap_err().to_string();
    assert!(error.contains("not UTF-8"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_paths_of_a_workspace_that_was_moved_follow_it() {
    let moved = spec().moved("/srv/project".as_ref(), "/home/me/other".as_ref());
    let path = |path: &crate::world::HostPath| path.as_path().to_str().unwrap().to_owned();
    assert_eq!(path(&moved.vm.kernel), "/home/me/other/image/vmlinuz");
    assert_eq!(path(moved.disks[0].image.as_ref().unwrap()), "/home/me/other/root.img");
    assert_eq!(path(&moved.mounts[0].source), "/home/me/other");
    assert_eq!(moved.clone().moved("/srv".as_ref(), "/elsewhere".as_ref()), moved);
    let (here, there) = (spec().shape("/srv/project".as_ref()), moved.shape("/home/me/other".as_ref()));
    assert_eq!(here, there);
}

#[test]
fn edits_are_named_by_their_keys() {
    let built = spec();
    assert_eq!(built.pending_edits(&built), []);
    let mut today = built.clone();
    today.vm.backing = Backing::Auto;
    today.vm.initramfs = None;
    today.network = NetworkMode::Off.into();
    today.mounts.push(today.mounts[0].clone());
    let edits = built.pending_edits(&today);
    let keys: Vec<&str> = edits.iter().map(|edit| edit.key.as_str()).collect();
    let expected = [
        "mounts.1.protect.0",
        "mounts.1.protect.1",
        "mounts.1.readonly",
        "mounts.1.source",
        "mounts.1.target",
        "network.domains.0",
        "network.mode",
        "network.ports.0",
        "vm.backing",
        "vm.initramfs",
    ];
    assert_eq!(keys, expected);
    let backing = edits.iter().find(|edit| edit.key == "vm.backing").unwrap();
    assert_eq!(
        (backing.built.clone(), backing.configured.clone()),
        (Some("disk".into()), Some("auto".into()))
    );
}
