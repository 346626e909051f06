use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::files::copy::NoProgress;
use crate::files::copy::tests::{Stopping, Stuck, allocated, kill_when_ready, mounted, patchy};
use crate::testing::{Need, have};
use crate::world::{Failure, OnLeak};

const GENERATION: Generation = Generation(7);
const SNAPSHOT: SnapshotId = SnapshotId(Generation(8));

fn disks(directory: &Path, specs: Vec<DiskSpec>, progress: Arc<dyn Progress>) -> Disks {
    let (run, snapshots) = (directory.join("run"), directory.join("snapshots"));
    std::fs::create_dir_all(&run).unwrap();
    std::fs::create_dir_all(&snapshots).unwrap();
    let leaks = Arc::new(LeakSearch::new(directory.to_owned(), OnLeak::Redact));
    Disks::new(run, snapshots, specs, progress, leaks)
}

fn spec(image: Option<&Path>, size: Option<u64>) -> DiskSpec {
    DiskSpec { image: image.map(|image| HostPath::below(image, ".")), size: size.map(ByteSize::from_bytes) }
}

async fn find(disks: &Disks) -> Presence {
    disks.find(GENERATION).await.unwrap()
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[tokio::test]
async fn images_are_made_captured_and_filled_on_every_file_system() {
    let Some(mounts) = mounted("host::disk::tests::images_are_made_captured_and_filled_on_every_file_system")
    else {
        return;
    };
    let never = Interrupt::new();
    for (name, shares) in [("ext4", false), ("btrfs", true), ("xfs", true), ("tmpfs", false)] {
        let directory = mounts.join(name);
        let template = directory.join("template");
        patchy(&template, 50 << 20);
        let before = bytes(&template);
        let specs = vec![spec(Some(&template), Some(80 << 20)), spec(None, Some(64 << 20))];
        let disks = disks(&directory, specs, Arc::new(NoProgress));
        assert_eq!(find(&disks).await, Presence::Absent);
        disks.create(GENERATION, &never).await.unwrap();
        disks.create(GENERATION, &never).await.unwrap();
        assert_eq!(find(&disks).await, Presence::Whole);
        assert_eq!(disks.methods().iter().all(|method| *method == CopyMethod::Reflink), shares, "{name}");
        let images = disks.images(GENERATION).unwrap();
        let image = bytes(&images[0]);
        assert!(
            image.len() == 80 << 20
                && image.starts_with(&before)
                && image[before.len()..].iter().all(|b| *b == 0)
        );
        let checked = Command::new("e2fsck").args(["-fn"]).arg(&images[1]).output().unwrap();
        assert!(checked.status.success(), "{checked:?}");
        assert!(shares || allocated(&images[0]) < 2 << 20, "{name}: {}", allocated(&images[0]));

        std::fs::create_dir(disks.snapshots.join(".staging-8")).unwrap();
        disks.capture(GENERATION, SNAPSHOT, &never).await.unwrap();
        disks.precopy(GENERATION, SNAPSHOT, &never).await.unwrap();
        // What the guest writes is in the snapshot and never in the template.
        std::os::unix::fs::FileExt::write_all_at(
            &File::options().write(true).open(&images[0]).unwrap(),
            b"guest",
            0,
        )
        .unwrap();
        disks.capture(GENERATION, SNAPSHOT, &never).await.unwrap();
        let captured = bytes(&images[0]);
        std::os::unix::fs::FileExt::write_all_at(
            &File::options().write(true).open(&images[0]).unwrap(),
            b"later",
            0,
        )
        .unwrap();
        disks.remove(GENERATION).await.unwrap();
        disks.remove(GENERATION).await.unwrap();
        assert_eq!(find(&disks).await, Presence::Absent);
        disks.fill(SNAPSHOT, GENERATION, &never).await.unwrap();
        assert_eq!(find(&disks).await, Presence::Whole);
        assert!(bytes(&images[0]) == captured && captured.starts_with(b"guest"), "{name}");
        assert!(bytes(&template) == before, "{name}");
        disks.remove(GENERATION).await.unwrap();
        assert_eq!(std::fs::read_dir(&disks.run).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_full_disk_leaves_what_the_remover_removes() {
    let Some(mounts) = mounted("host::disk::tests::a_full_disk_leaves_what_the_remover_removes") else {
        return;
    };
    let template = mounts.join("tmpfs/template");
    std::fs::write(&template, vec![1; 32 << 20]).unwrap();
    let disks = disks(&mounts.join("small"), vec![spec(Some(&template), None)], Arc::new(NoProgress));
    let failure = disks.create(GENERATION, &Interrupt::new()).await.unwrap_err();
    assert!(failure.to_string().contains("bytes are missing"), "{failure}");
    assert_eq!(find(&disks).await, Presence::Partial);
    disks.remove(GENERATION).await.unwrap();
    assert_eq!(find(&disks).await, Presence::Absent);
}

#[tokio::test]
async fn a_process_killed_during_a_copy_leaves_a_partial_set() {
    const ROLE: &str = "NIXBOX_TEST_DISK_IN";
    let of = |directory: &Path, progress| {
        disks(directory, vec![spec(Some(&directory.join("template")), None)], progress)
    };
    let never = Interrupt::new();
    if let Some(directory) = std::env::var_os(ROLE) {
        of(Path::new(&directory), Arc::new(Stuck)).create(GENERATION, &never).await.unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("template"), vec![1; 32 << 20]).unwrap();
    let test = "host::disk::tests::a_process_killed_during_a_copy_leaves_a_partial_set";
    let disks = of(directory.path(), Arc::new(NoProgress));
    kill_when_ready(test, ROLE, directory.path());
    assert_eq!(find(&disks).await, Presence::Partial);
    assert!(disks.images(GENERATION).is_err());
    disks.remove(GENERATION).await.unwrap();
    assert_eq!(find(&disks).await, Presence::Absent);
    kill_when_ready(test, ROLE, directory.path());
    disks.create(GENERATION, &never).await.unwrap();
    assert_eq!(find(&disks).await, Presence::Whole);
    assert_eq!(std::fs::read_dir(&disks.run).unwrap().count(), 1);
}

#[tokio::test]
async fn an_interrupt_ends_creating_and_capturing() {
    if !have(&[Need::Program("mkfs.ext4")]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let template = directory.path().join("template");
    std::fs::write(&template, vec![1; 64 << 20]).unwrap();
    let never = Interrupt::new();
    let make = |progress| disks(directory.path(), vec![spec(Some(&template), None)], progress);
    let interrupt = Interrupt::new();
    let failure = make(Arc::new(Stopping(interrupt.clone()))).create(GENERATION, &interrupt).await;
    assert!(matches!(failure, Err(Failure::Interrupted)));
    let disks = make(Arc::new(NoProgress));
    assert_eq!(find(&disks).await, Presence::Partial);
    disks.create(GENERATION, &never).await.unwrap();
    std::fs::create_dir(disks.snapshots.join(".staging-8")).unwrap();
    let interrupt = Interrupt::new();
    let failure = make(Arc::new(Stopping(interrupt.clone()))).precopy(GENERATION, SNAPSHOT, &interrupt).await;
    assert!(matches!(failure, Err(Failure::Interrupted)));
    let interrupt = Interrupt::new();
    let failure = make(Arc::new(Stopping(interrupt.clone()))).capture(GENERATION, SNAPSHOT, &interrupt).await;
    assert!(matches!(failure, Err(Failure::Interrupted)));
    let empty = self::disks(directory.path(), vec![spec(None, Some(64 << 20))], Arc::new(NoProgress));
    assert!(matches!(empty.create(Generation(9), &interrupt).await, Err(Failure::Interrupted)));
    empty.remove(Generation(9)).await.unwrap();
}

#[tokio::test]
async fn unusable_templates_are_refused() {
    if !have(&[Need::Program("mkfs.ext4")]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("large"), vec![1; 8192]).unwrap();
    std::fs::write(path("cloud.img"), b"QFI\xfb\0\0\0\x03").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    for (spec, expected) in [
        (spec(Some(&path("absent")), None), "cannot open the disk image"),
        (spec(Some(directory.path()), None), "is not a regular file"),
        (spec(Some(&path("fifo")), None), "is not a regular file"),
        (spec(Some(&path("large")), Some(4096)), "has 8192 bytes, and its disk is to have 4096"),
        (
            spec(Some(&path("cloud.img")), None),
            "cloud.img is a qcow2 image, and the disk of a VM is a raw image: `qemu-img",
        ),
        (spec(None, None), "neither an image nor a size"),
        (spec(None, Some(4096)), "mkfs.ext4 of"),
    ] {
        let disks = disks(directory.path(), vec![spec], Arc::new(NoProgress));
        let failure = disks.create(GENERATION, &Interrupt::new()).await.unwrap_err();
        assert!(failure.to_string().contains(expected), "{failure}");
        disks.remove(GENERATION).await.unwrap();
    }
}

#[tokio::test]
async fn foreign_files_are_not_removed_and_a_set_that_lost_a_file_is_not_whole() {
    if !have(&[Need::Program("mkfs.ext4")]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disks = disks(directory.path(), vec![spec(None, Some(16 << 20)); 2], Arc::new(NoProgress));
    disks.create(GENERATION, &Interrupt::new()).await.unwrap();
    let set = disks.run.join("disk-7");
    std::fs::write(set.join("notes.txt"), "mine").unwrap();
    let failure = disks.remove(GENERATION).await.unwrap_err();
    assert!(failure.to_string().contains("notes.txt"), "{failure}");
    assert_eq!(find(&disks).await, Presence::Whole);
    std::fs::remove_file(set.join("notes.txt")).unwrap();
    std::fs::remove_file(set.join("1.img")).unwrap();
    assert_eq!(find(&disks).await, Presence::Partial);
    assert!(disks.create(GENERATION, &Interrupt::new()).await.is_err());
    disks.remove(GENERATION).await.unwrap();

    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("0.img"), "kept").unwrap();
    symlink(outside.path(), &set).unwrap();
    assert!(disks.find(GENERATION).await.is_err());
    assert!(disks.remove(GENERATION).await.is_err());
    assert!(disks.create(GENERATION, &Interrupt::new()).await.is_err());
    assert_eq!(bytes(&outside.path().join("0.img")), b"kept");
}

#[tokio::test]
async fn a_snapshot_with_a_gap_or_without_a_directory_fills_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let disks = disks(directory.path(), vec![], Arc::new(NoProgress));
    let never = Interrupt::new();
    assert!(disks.fill(SNAPSHOT, GENERATION, &never).await.is_err());
    std::fs::create_dir(disks.snapshots.join(".staging-8")).unwrap();
    std::fs::write(disks.snapshots.join(".staging-8/disk-1.img"), "x").unwrap();
    assert!(disks.fill(SNAPSHOT, GENERATION, &never).await.is_err());
    assert!(disks.capture(GENERATION, SNAPSHOT, &never).await.is_err());
    assert_eq!(find(&disks).await, Presence::Absent);
}

#[tokio::test]
async fn disks_of_earlier_sessions_are_kept_taken_back_and_removed_first_come_first() {
    let directory = tempfile::tempdir().unwrap();
    let template = directory.path().join("template");
    std::fs::write(&template, b"a system").unwrap();
    let specs = vec![spec(Some(&template), Some(8 << 10))];
    let mut disks = disks(directory.path(), specs, Arc::new(NoProgress));
    let id = |disk, kept_by| KeptDiskId { disk: Generation(disk), kept_by: Generation(kept_by) };
    let kept = async |disks: &Disks| -> Vec<u64> {
        disks.kept().await.unwrap().into_iter().map(|kept| kept.id.disk.0).collect()
    };
    for generation in [2, 9, 10] {
        disks.create(Generation(generation), &Interrupt::new()).await.unwrap();
    }
    std::fs::write(disks.host_key(Generation(9)), b"ssh-ed25519 AAAA").unwrap();
    // The second was kept first. Without a limit nothing is removed.
    disks.retire(id(9, 11)).await.unwrap();
    disks.retire(id(2, 100)).await.unwrap();
    disks.retire(id(2, 100)).await.unwrap();
    assert_eq!(kept(&disks).await, [9, 2]);
    assert_eq!(disks.generations().unwrap(), [Generation(10)].into());
    assert_eq!(disks.find(Generation(9)).await.unwrap(), Presence::Absent);
    let described = disks.kept().await.unwrap()[0];
    assert!(described.bytes > 0 && described.written_ms > 1_600_000_000_000, "{described:?}");
    // What lies with the images comes back with them.
    disks.take(id(9, 11)).await.unwrap();
    disks.take(id(9, 11)).await.unwrap();
    assert_eq!(disks.find(Generation(9)).await.unwrap(), Presence::Whole);
    assert!(bytes(&disks.images(Generation(9)).unwrap()[0]).starts_with(b"a system"));
    assert_eq!(bytes(&disks.host_key(Generation(9))), b"ssh-ed25519 AAAA");
    disks.keep(id(9, 11)).await.unwrap();
    // A name that nixbox would not have written is somebody else's.
    std::fs::create_dir(disks.run.join("kept-09-1")).unwrap();
    disks.keep = Some(2);
    disks.retire(id(10, 101)).await.unwrap();
    assert_eq!(kept(&disks).await, [2, 10]);
    assert!(disks.run.join("kept-09-1").exists());
    disks.keep = Some(0);
    disks.retire(id(10, 101)).await.unwrap();
    assert!(kept(&disks).await.is_empty());
    // A disk that is not there cannot be taken.
    assert!(disks.take(id(2, 100)).await.is_err());
}
