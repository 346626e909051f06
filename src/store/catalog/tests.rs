use std::os::unix::fs::symlink;

use super::*;
use crate::files::FileError;
use crate::files::copy::NoProgress;
use crate::files::copy::tests::BytesRead;
use crate::files::hash::tests::root_of;
use crate::files::search::value::ValueKind;
use crate::world::{
    BootId, Failure, Generation, HashMethod, OnLeak, Origin, ReferencedSnapshot, Secret, Slot, SnapshotName,
    SnapshotNote, SnapshotReference, VmmVersion,
};

fn snapshots() -> (tempfile::TempDir, Snapshots) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_owned();
    let leaks = Arc::new(LeakSearch::new(root.clone(), OnLeak::Redact));
    (directory, Snapshots { root, progress: Arc::new(NoProgress), leaks })
}

fn id(number: u64) -> SnapshotId {
    SnapshotId(Generation(number))
}

fn origin() -> Origin {
    let vmm = VmmVersion { major: 53, text: "v53.0".to_owned() };
    Origin { vmm, cpu: ["sse2".to_owned()].into(), shape: [("vm.vcpus".to_owned(), "2".to_owned())].into() }
}

/// Why the store refuses.
fn refusal<T: std::fmt::Debug>(result: world::Result<T>) -> StoreError {
    match result.unwrap_err() {
        Failure::World(error) => *error.downcast().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The manifests in the list, all of them whole.
async fn listed(snapshots: &Snapshots) -> Vec<Manifest> {
    snapshots.list().await.unwrap().into_iter().map(|listing| listing.manifest.unwrap()).collect()
}

/// Stages a snapshot with some files and gives the manifest to commit it with.
async fn staged(snapshots: &Snapshots, number: u64, name: Option<&str>) -> Manifest {
    snapshots.stage(id(number)).await.unwrap();
    let directory = snapshots.root.join(staging_name(id(number)));
    std::fs::write(directory.join("config.json"), "{}").unwrap();
    std::fs::write(directory.join("state.json"), "{\"a\": [1]}").unwrap();
    std::fs::write(directory.join("memory.img"), vec![number as u8; 10_000_000]).unwrap();
    Manifest {
        id: id(number),
        name: name.map(|name| SnapshotName::try_from(name.to_owned()).unwrap()),
        created_ms: 5,
        slot: Slot::try_from(1).unwrap(),
        boot: BootId([3; 16]),
        shares: true,
        origin: origin(),
        files: snapshots.digest(id(number), &Interrupt::new()).await.unwrap(),
        given: Default::default(),
        receipt: None,
    }
}

#[tokio::test]
async fn a_snapshot_is_listed_from_its_commit_to_its_deletion() {
    let (_directory, snapshots) = snapshots();
    assert_eq!(snapshots.find(id(12)).await.unwrap(), SnapshotState::Absent);
    let second = staged(&snapshots, 12, Some("warm")).await;
    snapshots.stage(id(12)).await.unwrap();
    assert_eq!(snapshots.find(id(12)).await.unwrap(), SnapshotState::Staged);
    assert!(snapshots.list().await.unwrap().is_empty());
    assert!(snapshots.holds_vmm_state(id(12)).await.unwrap());
    let bytes = std::fs::read(snapshots.root.join(".staging-12/memory.img")).unwrap();
    assert_eq!(second.files[1].hash, root_of(&bytes));
    snapshots.commit(second.clone()).await.unwrap();
    let first = staged(&snapshots, 9, None).await;
    snapshots.commit(first.clone()).await.unwrap();
    assert_eq!(listed(&snapshots).await, [first, second.clone()]);
    assert_eq!(snapshots.manifest(id(12)).unwrap(), second);
    snapshots.verify(id(12), Depth::All, &Interrupt::new()).await.unwrap();
    assert!(matches!(refusal(snapshots.stage(id(12)).await), StoreError::Exists(_)));

    for _ in 0..2 {
        snapshots.trash(id(12)).await.unwrap();
        assert_eq!(snapshots.find(id(12)).await.unwrap(), SnapshotState::Trashed);
        assert_eq!(snapshots.list().await.unwrap().len(), 1);
    }
    for _ in 0..2 {
        snapshots.purge(id(12)).await.unwrap();
        assert_eq!(snapshots.find(id(12)).await.unwrap(), SnapshotState::Absent);
    }
    snapshots.trash(id(12)).await.unwrap();
    staged(&snapshots, 13, None).await;
    for _ in 0..2 {
        snapshots.discard(id(13)).await.unwrap();
        assert_eq!(snapshots.find(id(13)).await.unwrap(), SnapshotState::Absent);
    }
}

#[tokio::test]
async fn a_commit_is_finished_wherever_it_was_interrupted() {
    let (_directory, snapshots) = snapshots();
    let manifest = staged(&snapshots, 12, Some("warm")).await;
    let staging = snapshots.root.join(".staging-12");
    // Interrupted while the manifest was written, and after that.
    std::fs::write(staging.join(".manifest.json.unfinished"), "half").unwrap();
    snapshots.commit(manifest.clone()).await.unwrap();
    std::fs::rename(snapshots.root.join("12"), &staging).unwrap();
    assert_eq!(snapshots.digest(id(12), &Interrupt::new()).await.unwrap(), manifest.files);
    snapshots.commit(manifest.clone()).await.unwrap();
    // Right after the rename.
    snapshots.commit(manifest.clone()).await.unwrap();
    snapshots.verify(id(12), Depth::All, &Interrupt::new()).await.unwrap();
    let other = Manifest { created_ms: 6, ..manifest };
    assert!(matches!(refusal(snapshots.commit(other).await), StoreError::Exists(_)));
    let nothing = Manifest { id: id(99), name: None, ..snapshots.manifest(id(12)).unwrap() };
    assert!(matches!(refusal(snapshots.commit(nothing).await), StoreError::NotStaged(_)));
}

#[tokio::test]
async fn a_commit_that_does_not_fit_the_staged_files_is_refused() {
    let (_directory, snapshots) = snapshots();
    let manifest = staged(&snapshots, 12, None).await;
    let staging = snapshots.root.join(".staging-12");
    let refused = || async { refusal(snapshots.commit(manifest.clone()).await) };
    std::fs::write(staging.join("extra"), "").unwrap();
    assert!(matches!(refused().await, StoreError::Extra { .. }));
    std::fs::remove_file(staging.join("extra")).unwrap();
    std::fs::write(staging.join("config.json"), "{} ").unwrap();
    assert!(matches!(refused().await, StoreError::Size { found: 3, expected: 2, .. }));
    std::fs::remove_file(staging.join("config.json")).unwrap();
    assert!(matches!(refused().await, StoreError::Missing { .. }));
    symlink("state.json", staging.join("config.json")).unwrap();
    assert!(matches!(refused().await, StoreError::File(FileError::Symlink { .. })));
    assert_eq!(snapshots.find(id(12)).await.unwrap(), SnapshotState::Staged);
}

#[tokio::test]
async fn a_name_is_used_for_one_snapshot() {
    let (_directory, snapshots) = snapshots();
    snapshots.commit(staged(&snapshots, 1, Some("warm")).await).await.unwrap();
    let again = staged(&snapshots, 2, Some("warm")).await;
    assert!(
        matches!(refusal(snapshots.commit(again.clone()).await), StoreError::NameTaken { id: first, .. } if first == id(1))
    );
    snapshots.trash(id(1)).await.unwrap();
    snapshots.commit(again).await.unwrap();
}

#[tokio::test]
async fn every_kind_of_damage_is_found() {
    let never = Interrupt::new();
    type Damage = fn(&std::path::Path);
    let damages: [(&str, Damage); 9] = [
        ("is not what its manifest says", |listed| {
            let file = std::fs::File::options().write(true).open(listed.join("memory.img")).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"X", 9_000_000).unwrap();
        }),
        ("has 9999999 bytes", |listed| {
            std::fs::File::options()
                .write(true)
                .open(listed.join("memory.img"))
                .unwrap()
                .set_len(9_999_999)
                .unwrap();
        }),
        ("lacks state.json", |listed| std::fs::remove_file(listed.join("state.json")).unwrap()),
        ("does not name", |listed| std::fs::write(listed.join("more"), "").unwrap()),
        ("symbolic link", |listed| {
            std::fs::rename(listed.join("state.json"), listed.join("../moved")).unwrap();
            symlink("../moved", listed.join("state.json")).unwrap();
        }),
        ("symbolic link", |listed| {
            std::fs::rename(listed, listed.join("../moved-directory")).unwrap();
            symlink("moved-directory", listed).unwrap();
        }),
        ("manifest of snapshot 12", |listed| {
            let text = std::fs::read_to_string(listed.join("manifest.json")).unwrap();
            std::fs::write(listed.join("manifest.json"), text.replace("\"slot\": 1", "\"slot\": 2")).unwrap();
        }),
        ("manifest of snapshot 12", |listed| std::fs::write(listed.join("manifest.json"), "").unwrap()),
        ("has no manifest", |listed| std::fs::remove_file(listed.join("manifest.json")).unwrap()),
    ];
    for (expected, damage) in damages {
        let (_directory, snapshots) = snapshots();
        snapshots.commit(staged(&snapshots, 12, None).await).await.unwrap();
        snapshots.commit(staged(&snapshots, 13, None).await).await.unwrap();
        damage(&snapshots.root.join("12"));
        // A file that was touched is read, even if not all files are.
        let failure = snapshots.verify(id(12), Depth::Touched, &never).await.unwrap_err();
        assert!(failure.to_string().contains(expected), "{failure}");
        snapshots.verify(id(13), Depth::Touched, &never).await.unwrap();
        // A damaged snapshot does not hide the others.
        let found = snapshots.survey().unwrap();
        assert!(matches!(&found[1].manifest, Some(Ok(manifest)) if manifest.id == id(13)));
    }
}

#[tokio::test]
async fn a_disk_of_a_terabyte_is_hashed_committed_verified_and_searched_by_its_data() {
    const SIZE: u64 = 1 << 40;
    const DATA: u64 = 10 << 20;
    let (never, (_directory, mut snapshots)) = (Interrupt::new(), snapshots());
    let read = Arc::new(BytesRead::default());
    snapshots.progress = read.clone();
    let empty = staged(&snapshots, 12, None).await;
    let path = snapshots.root.join(".staging-12/disk-0.img");
    let disk = std::fs::File::create(&path).unwrap();
    disk.set_len(SIZE).unwrap();
    for number in 0..10 {
        let at = number * (SIZE / 10) / DATA * DATA;
        std::os::unix::fs::FileExt::write_all_at(&disk, &[7; 1 << 20], at).unwrap();
    }
    let files = snapshots.digest(id(12), &never).await.unwrap();
    assert_eq!((files[1].size, read.take("disk-0.img")), (SIZE, DATA));
    snapshots.commit(Manifest { files, ..empty }).await.unwrap();
    assert_eq!(read.take("disk-0.img"), 0);
    snapshots.verify(id(12), Depth::All, &never).await.unwrap();
    assert_eq!(read.take("disk-0.img"), DATA);
    let content = Secret::new(b"glpat-0123456789abcdefGHIJ".to_vec());
    let value = NamedValue { name: "TOKEN".to_owned(), kind: ValueKind::Read, content };
    let receipt = snapshots.search(id(12), &[value], &never).await.unwrap();
    assert_eq!((receipt.found.len(), read.take("disk-0.img")), (0, DATA));

    // A byte in the middle of a hole is damage.
    let disk = std::fs::File::options().write(true).open(snapshots.root.join("12/disk-0.img")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, b"X", SIZE / 3).unwrap();
    let failure = snapshots.verify(id(12), Depth::Touched, &never).await.unwrap_err();
    assert!(
        failure.to_string().contains("disk-0.img of snapshot 12 is not what its manifest says"),
        "{failure}"
    );
}

/// Gives a listed snapshot the manifest that an older nixbox would have written for the same files.
fn written_by_an_older_nixbox(snapshots: &Snapshots, number: u64) {
    let (directory, mut manifest) =
        (snapshots.root.join(number.to_string()), snapshots.manifest(id(number)).unwrap());
    for file in &mut manifest.files {
        file.hash = *blake3::hash(&std::fs::read(directory.join(&file.name)).unwrap()).as_bytes();
        file.method = HashMethod::Whole;
    }
    let text = String::from_utf8(manifest::encode(&manifest).unwrap()).unwrap();
    let text = text.replace("\"format\": 3", "\"format\": 2");
    let (before, rest) = text.split_once("\"check\": \"").unwrap();
    let unchecked = format!("{before}\"check\": \"{}", &rest[64..]);
    let check = blake3::hash(unchecked.as_bytes()).to_hex();
    let text = format!("{before}\"check\": \"{check}{}", &rest[64..]);
    std::fs::write(directory.join("manifest.json"), text).unwrap();
}

#[tokio::test]
async fn a_snapshot_of_an_older_nixbox_is_verified_by_the_hashes_that_it_has() {
    let (never, (_directory, snapshots)) = (Interrupt::new(), snapshots());
    snapshots.commit(staged(&snapshots, 12, Some("warm")).await).await.unwrap();
    let image = snapshots.root.join("12/memory.img");
    // A hole at the end, and zeros in the middle.
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 100_000], 5_000_000).unwrap();
    written_by_an_older_nixbox(&snapshots, 12);
    let manifest = snapshots.manifest(id(12)).unwrap();
    assert!(manifest.files.iter().all(|file| file.method == HashMethod::Whole));
    snapshots.verify(id(12), Depth::All, &never).await.unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"X", 5_050_000).unwrap();
    let failure = snapshots.verify(id(12), Depth::Touched, &never).await.unwrap_err();
    assert!(failure.to_string().contains("is not what its manifest says"), "{failure}");
}

#[tokio::test]
async fn the_manifest_of_another_snapshot_is_refused() {
    let (_directory, snapshots) = snapshots();
    snapshots.commit(staged(&snapshots, 12, None).await).await.unwrap();
    std::fs::rename(snapshots.root.join("12"), snapshots.root.join("14")).unwrap();
    assert!(matches!(snapshots.manifest(id(14)), Err(StoreError::Manifest { .. })));
    let list = snapshots.list().await.unwrap();
    assert!(matches!(&list[..], [ListedSnapshot { manifest: Err(_), .. }]), "{list:?}");
    snapshots.trash(id(14)).await.unwrap();
    snapshots.purge(id(14)).await.unwrap();
    assert!(snapshots.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_survey_finds_left_overs_and_skips_other_entries() {
    let (_directory, snapshots) = snapshots();
    for name in [".staging-3", ".trash-2", "5", "notes", "007", "-1", ".staging-x", "18446744073709551616"] {
        std::fs::create_dir(snapshots.root.join(name)).unwrap();
    }
    let found: Vec<_> =
        snapshots.survey().unwrap().into_iter().map(|found| (found.id, found.state)).collect();
    assert_eq!(
        found,
        [(id(2), SnapshotState::Trashed), (id(3), SnapshotState::Staged), (id(5), SnapshotState::Listed)]
    );
}

#[tokio::test]
async fn reading_can_be_interrupted() {
    let (_directory, snapshots) = snapshots();
    let manifest = staged(&snapshots, 12, None).await;
    let interrupt = Interrupt::new();
    interrupt.request();
    assert!(matches!(snapshots.digest(id(12), &interrupt).await, Err(Failure::Interrupted)));
    snapshots.commit(manifest).await.unwrap();
    assert!(matches!(snapshots.verify(id(12), Depth::All, &interrupt).await, Err(Failure::Interrupted)));
}

#[tokio::test]
async fn half_a_vmm_state_does_not_count() {
    let (_directory, snapshots) = snapshots();
    assert!(!snapshots.holds_vmm_state(id(12)).await.unwrap());
    staged(&snapshots, 12, None).await;
    let state = snapshots.root.join(".staging-12/state.json");
    for text in ["", "{\"a\": [1", "{} {}"] {
        std::fs::write(&state, text).unwrap();
        assert!(!snapshots.holds_vmm_state(id(12)).await.unwrap(), "{text:?}");
    }
    std::fs::remove_file(&state).unwrap();
    assert!(!snapshots.holds_vmm_state(id(12)).await.unwrap());
}

#[tokio::test]
async fn only_files_that_were_touched_are_read_again() {
    let never = Interrupt::new();
    let (_directory, snapshots) = snapshots();
    snapshots.commit(staged(&snapshots, 12, None).await).await.unwrap();
    let image = snapshots.root.join("12/memory.img");
    let seen = snapshots.root.join(".seen-12.json");
    assert!(seen.is_file(), "the commit keeps how the files looked");
    // Bytes that change without a trace stand for a medium that forgets: only reading everything finds it.
    let before = std::fs::read_to_string(&seen).unwrap();
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[5_000_000] ^= 1;
    std::fs::write(&image, &bytes).unwrap();
    assert!(snapshots.verify(id(12), Depth::Touched, &never).await.is_err());
    let manifest = snapshots.manifest(id(12)).unwrap();
    let folder = Folder::open(&snapshots.root.join("12")).unwrap();
    VerifiedFiles::now(&folder, &manifest.files).unwrap().write(&snapshots.root().unwrap(), id(12)).unwrap();
    snapshots.verify(id(12), Depth::Touched, &never).await.unwrap();
    assert!(snapshots.verify(id(12), Depth::All, &never).await.is_err());
    // The file is repaired and read, and how it looks is kept again.
    bytes[5_000_000] ^= 1;
    std::fs::write(&image, &bytes).unwrap();
    snapshots.verify(id(12), Depth::Touched, &never).await.unwrap();
    assert_ne!(std::fs::read_to_string(&seen).unwrap(), before);
    // The record is not needed, and what a killed write of it leaves is removed with it.
    std::fs::write(&seen, "{").unwrap();
    let unfinished = snapshots.root.join("..seen-12.json.unfinished");
    std::fs::write(&unfinished, "{").unwrap();
    snapshots.verify(id(12), Depth::Touched, &never).await.unwrap();
    snapshots.trash(id(12)).await.unwrap();
    snapshots.purge(id(12)).await.unwrap();
    assert!(!seen.exists() && !unfinished.exists());
}

#[tokio::test]
async fn a_link_in_place_of_a_snapshot_is_damage() {
    let (_directory, snapshots) = snapshots();
    snapshots.commit(staged(&snapshots, 12, None).await).await.unwrap();
    std::fs::rename(snapshots.root.join("12"), snapshots.root.join("elsewhere")).unwrap();
    symlink(snapshots.root.join("elsewhere"), snapshots.root.join("12")).unwrap();
    let list = snapshots.list().await.unwrap();
    assert!(matches!(&list[..], [ListedSnapshot { manifest: Err(_), .. }]), "{list:?}");
    assert!(snapshots.verify(id(12), Depth::Touched, &Interrupt::new()).await.is_err());
}

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

fn note(text: &str) -> Option<SnapshotNote> {
    Some(text.parse().unwrap())
}

#[tokio::test]
async fn a_renamed_snapshot_has_its_new_name_everywhere_and_stays_whole() {
    let (_directory, snapshots) = snapshots();
    let first = staged(&snapshots, 12, Some("warm")).await;
    snapshots.commit(first.clone()).await.unwrap();
    snapshots.commit(staged(&snapshots, 13, None).await).await.unwrap();
    snapshots.annotate(id(13), note("a note alone names nothing")).unwrap();
    assert!(snapshots.list().await.unwrap()[1].is_unnamed());
    // A note leaves the name of the manifest, and a new name leaves the note.
    snapshots.annotate(id(12), note("first")).unwrap();
    assert_eq!(listed(&snapshots).await[0].name, Some(name("warm")));
    snapshots.rename(id(12), name("cold")).unwrap();
    snapshots.rename(id(13), name("warm")).unwrap();
    let list = snapshots.list().await.unwrap();
    let label = list[0].label.as_ref().unwrap();
    assert_eq!((&label.name, &label.note), (&Some(name("cold")), &note("first")));
    assert!(!list[1].is_unnamed());
    let found = |text: &str| match text.parse::<SnapshotReference>().unwrap().find(&list) {
        ReferencedSnapshot::One(one) => Some(one.id),
        ReferencedSnapshot::Absent | ReferencedSnapshot::Several(_) => None,
    };
    assert_eq!((found("cold"), found("warm"), found("13")), (Some(id(12)), Some(id(13)), Some(id(13))));
    let taken = snapshots.rename(id(12), name("warm")).unwrap_err();
    assert!(matches!(taken, StoreError::NameTaken { id: other, .. } if other == id(13)), "{taken}");
    snapshots.rename(id(12), name("cold")).unwrap();
    snapshots.annotate(id(12), None).unwrap();
    assert_eq!(snapshots.list().await.unwrap()[0].label.as_ref().unwrap().note, None);
    // The manifest and the files are untouched, and a commit that is tried again knows its snapshot.
    snapshots.verify(id(12), Depth::All, &Interrupt::new()).await.unwrap();
    snapshots.commit(first.clone()).await.unwrap();
    assert_eq!(snapshots.manifest(id(12)).unwrap(), first);
    // The name that a snapshot no longer has is free, and the one that it has is not.
    let refused = staged(&snapshots, 14, Some("cold")).await;
    assert!(matches!(refusal(snapshots.commit(refused).await), StoreError::NameTaken { .. }));
    assert!(matches!(snapshots.rename(id(99), name("x")), Err(StoreError::Absent(_))));
}

#[tokio::test]
async fn a_damaged_label_costs_the_name_and_not_the_snapshot() {
    let damages: [(&str, bool); 4] = [
        ("", true),
        ("{\"format\": 1, \"name\": \"../x\", \"note\": null}", true),
        ("{\"format\": 2, \"labels\": []}", false),
        (&"x".repeat(100_000), true),
    ];
    for (text, replaced) in damages {
        let (_directory, snapshots) = snapshots();
        snapshots.commit(staged(&snapshots, 12, Some("warm")).await).await.unwrap();
        let path = snapshots.root.join("12/label.json");
        std::fs::write(&path, text).unwrap();
        let list = snapshots.list().await.unwrap();
        assert!(list[0].label.is_err() && list[0].manifest.as_ref().unwrap().name.is_none());
        assert!(!list[0].is_unnamed(), "it may have had a name, so it is not pruned");
        assert!(matches!(SnapshotReference::from(id(12)).find(&list), ReferencedSnapshot::One(_)));
        snapshots.verify(id(12), Depth::All, &Interrupt::new()).await.unwrap();
        // A note would lose the name, which nobody knows.
        snapshots.annotate(id(12), note("x")).unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(snapshots.rename(id(12), name("again")).is_ok(), replaced);
        assert_eq!(listed(&snapshots).await[0].name, replaced.then(|| name("again")));
    }
    // A link is not followed.
    let (directory, snapshots) = snapshots();
    snapshots.commit(staged(&snapshots, 12, None).await).await.unwrap();
    std::fs::write(directory.path().join("elsewhere"), "kept").unwrap();
    symlink("../elsewhere", snapshots.root.join("12/label.json")).unwrap();
    assert!(snapshots.list().await.unwrap()[0].label.is_err());
    snapshots.rename(id(12), name("own")).unwrap();
    assert_eq!(std::fs::read_to_string(directory.path().join("elsewhere")).unwrap(), "kept");
}

#[tokio::test]
async fn a_label_that_cannot_be_written_stays_as_it_was() {
    let (_directory, snapshots) = snapshots();
    snapshots.commit(staged(&snapshots, 12, None).await).await.unwrap();
    snapshots.rename(id(12), name("warm")).unwrap();
    // What a killed change has left is removed by the next one, and is no damage.
    let unfinished = snapshots.root.join("12/.label.json.unfinished");
    std::fs::write(&unfinished, "{\"format\": 1, \"na").unwrap();
    snapshots.verify(id(12), Depth::All, &Interrupt::new()).await.unwrap();
    snapshots.annotate(id(12), note("x")).unwrap();
    assert!(!unfinished.exists());
    // Nothing can be written where a directory has the name.
    std::fs::create_dir(&unfinished).unwrap();
    std::fs::write(unfinished.join("x"), "").unwrap();
    snapshots.rename(id(12), name("cold")).unwrap_err();
    assert_eq!(listed(&snapshots).await[0].name, Some(name("warm")));
}
