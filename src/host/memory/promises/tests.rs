use std::os::unix::fs::{FileExt as _, chown};
use std::process::Command;
use std::sync::{Arc, Barrier};

use super::super::RamFiles;
use super::super::tests::{GENERATION, SIZE, SNAPSHOT, path, ram};
use super::*;
use crate::files::copy::NoProgress;
use crate::files::copy::tests::{Stuck, allocated, kill_when_ready, mounted, patchy};
use crate::testing::USER;
use crate::world::{Backing, Generation, Interrupt, Memory, Presence, WorkspaceId};

const MIB: u64 = 1 << 20;

/// Mounts a tmpfs of that many MiB, in the mount namespace of [`mounted`].
fn tmpfs(mounts: &Path, name: &str, mib: u64) -> PathBuf {
    let directory = mounts.join(name);
    std::fs::create_dir(&directory).unwrap();
    let options = format!("size={mib}m,mode=1777");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&directory).status();
    assert!(mount.unwrap().success());
    directory
}

/// The RAM of workspace `number`, whose directory lies in `all`, and which knows of workspaces 1 and 2.
fn workspace(all: &Path, number: u8, tmpfs: &Path, backing: Backing) -> RamFiles {
    let id = WorkspaceId([number; 16]);
    let ram = ram(&all.join(id.to_string()), tmpfs, backing, Arc::new(NoProgress));
    let others = [1, 2].map(|other| all.join(WorkspaceId([other; 16]).to_string()).join("run")).to_vec();
    RamFiles { workspace: id, others, ..ram }
}

/// Writes to all pages of a range, as a guest does.
fn write(file: &Path, range: std::ops::Range<u64>) {
    let file = File::options().write(true).open(file).unwrap();
    for at in range.step_by(1 << 20) {
        file.write_all_at(&[7; 1 << 20], at).unwrap();
    }
    file.sync_all().unwrap();
}

/// Writes to a file until the file system is full. Returns the size of the file.
fn fill_up(file: &Path) -> u64 {
    let file = File::create(file).unwrap();
    let mut at = 0;
    for bytes in [1 << 20, 4096] {
        while file.write_all_at(&vec![1; bytes], at).is_ok() {
            at += bytes as u64;
        }
    }
    // The kernel may accept a write that finds no block later.
    file.sync_all().ok();
    at
}

#[tokio::test]
async fn what_one_workspace_was_promised_is_refused_to_another() {
    let Some(mounts) =
        mounted("host::memory::promises::tests::what_one_workspace_was_promised_is_refused_to_another")
    else {
        return;
    };
    let (all, base) = (mounts.join("ext4"), tmpfs(&mounts, "shm", 100));
    let first = workspace(&all, 1, &base, Backing::Tmpfs);
    let second = workspace(&all, 2, &base, Backing::Tmpfs);
    first.create(GENERATION).await.unwrap();
    assert!(!first.is_reserved(GENERATION).unwrap());
    let said = second.create(GENERATION).await.unwrap_err().to_string();
    assert!(said.contains("64MiB of guest RAM fit nowhere"), "{said}");
    assert!(said.contains("shm: 100 MiB free, 64 MiB of it promised to VMs"), "{said}");
    assert!(said.contains("bring another VM down, lower vm.memory"), "{said}");
    assert_eq!(second.find(GENERATION).await.unwrap(), Presence::Absent, "nothing is left of it");

    // What the first guest has written is not counted a second time.
    write(&path(&first, GENERATION), 0..30 * MIB);
    let said = second.create(GENERATION).await.unwrap_err().to_string();
    assert!(said.contains("70 MiB free, 34 MiB of it promised to VMs"), "{said}");
    RamFiles { size: 36 * MIB, ..workspace(&all, 2, &base, Backing::Tmpfs) }
        .create(GENERATION)
        .await
        .unwrap();
    second.remove(GENERATION).await.unwrap();

    let automatic = workspace(&all, 2, &base, Backing::Auto);
    automatic.create(GENERATION).await.unwrap();
    assert_eq!(automatic.file(GENERATION).unwrap(), None, "the VMM keeps it");
    automatic.remove(GENERATION).await.unwrap();
    first.remove(GENERATION).await.unwrap();
    second.create(GENERATION).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_made_anew_does_not_count_against_itself() {
    let Some(mounts) =
        mounted("host::memory::promises::tests::a_file_that_is_made_anew_does_not_count_against_itself")
    else {
        return;
    };
    let (all, base) = (mounts.join("ext4"), tmpfs(&mounts, "shm", 100));
    let ram = workspace(&all, 1, &base, Backing::Tmpfs);
    std::fs::create_dir(ram.snapshots.join(".staging-8")).unwrap();
    patchy(&ram.snapshots.join(".staging-8/memory.img"), SIZE);
    ram.create(GENERATION).await.unwrap();
    let file = path(&ram, GENERATION);
    std::fs::rename(&file, file.with_extension("img.partial")).unwrap();
    ram.fill(SNAPSHOT, GENERATION, &Interrupt::new()).await.unwrap();
    assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Whole);
    // An attempt with another size.
    let smaller = RamFiles { size: 40 * MIB, ..workspace(&all, 1, &base, Backing::Tmpfs) };
    smaller.create(GENERATION).await.unwrap();
    assert_eq!(std::fs::metadata(path(&smaller, GENERATION)).unwrap().len(), 40 * MIB);
}

#[tokio::test]
async fn the_file_of_another_user_counts() {
    let Some(mounts) = mounted("host::memory::promises::tests::the_file_of_another_user_counts") else {
        return;
    };
    let base = tmpfs(&mounts, "shm", 100);
    let ram = workspace(&mounts.join("ext4"), 1, &base, Backing::Tmpfs);
    let user = base.join(format!("nixbox-{USER}"));
    let directory = user.join("0123");
    std::fs::create_dir_all(&directory).unwrap();
    // These are no RAM files, and are not counted.
    std::os::unix::fs::symlink("/", user.join("link")).unwrap();
    std::os::unix::fs::symlink(&directory, base.join("nixbox-link")).unwrap();
    std::os::unix::fs::symlink("/proc/kcore", directory.join("memory-1.img")).unwrap();
    std::fs::create_dir(directory.join("memory-2.img")).unwrap();
    File::create(directory.join("memory-2.json")).unwrap().set_len(64 * MIB).unwrap();
    ram.create(GENERATION).await.unwrap();
    ram.remove(GENERATION).await.unwrap();

    let file = directory.join("memory-3.img");
    File::create(&file).unwrap().set_len(64 * MIB).unwrap();
    for path in [&user, &directory, &file] {
        chown(path, Some(USER), None).unwrap();
    }
    let said = ram.create(GENERATION).await.unwrap_err().to_string();
    assert!(said.contains("64 MiB of it promised to VMs"), "{said}");
    // A size that no file system has does not wrap around.
    for name in ["memory-4.img", "memory-5.img", "memory-6.img.partial"] {
        File::create(directory.join(name)).unwrap().set_len(i64::MAX as u64).unwrap();
    }
    let said = ram.create(GENERATION).await.unwrap_err().to_string();
    assert!(said.contains("100 MiB free, 100 MiB of it promised to VMs"), "{said}");
}

#[test]
fn the_same_bytes_are_never_promised_twice_at_the_same_time() {
    let Some(mounts) =
        mounted("host::memory::promises::tests::the_same_bytes_are_never_promised_twice_at_the_same_time")
    else {
        return;
    };
    const CREATORS: u8 = 8;
    let (all, base) = (mounts.join("ext4"), tmpfs(&mounts, "shm", 150));
    for round in 0..20 {
        let together = Arc::new(Barrier::new(CREATORS.into()));
        let creators: Vec<_> = (1..=CREATORS)
            .map(|number| {
                let ram = workspace(&all, number, &base, Backing::Tmpfs);
                let together = Arc::clone(&together);
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    together.wait();
                    let made = runtime.block_on(ram.create(GENERATION)).is_ok();
                    together.wait();
                    runtime.block_on(ram.remove(GENERATION)).unwrap();
                    made
                })
            })
            .collect();
        let made = creators.into_iter().map(|creator| creator.join().unwrap());
        assert_eq!(made.filter(|made| *made).count(), 2, "in round {round}");
    }
}

#[tokio::test]
async fn what_a_killed_fill_leaves_counts_until_it_is_swept() {
    const TEST: &str = "host::memory::promises::tests::what_a_killed_fill_leaves_counts_until_it_is_swept";
    const ROLE: &str = "NIXBOX_TEST_PROMISED_IN";
    let Some(mounts) = mounted(TEST) else {
        return;
    };
    let (all, base) = (mounts.join("ext4"), mounts.join("shm"));
    let victim = workspace(&all, 1, &base, Backing::Tmpfs);
    if std::env::var_os(ROLE).is_some() {
        let stuck = RamFiles { progress: Arc::new(Stuck), ..victim };
        stuck.fill(SNAPSHOT, GENERATION, &Interrupt::new()).await.unwrap();
        return;
    }
    tmpfs(&mounts, "shm", 100);
    std::fs::create_dir(victim.snapshots.join(".staging-8")).unwrap();
    patchy(&victim.snapshots.join(".staging-8/memory.img"), SIZE);
    kill_when_ready(TEST, ROLE, &mounts);
    assert_eq!(victim.find(GENERATION).await.unwrap(), Presence::Partial);
    let other = workspace(&all, 2, &base, Backing::Tmpfs);
    let said = other.create(GENERATION).await.unwrap_err().to_string();
    assert!(said.contains("of it promised to VMs"), "{said}");
    assert!(victim.generations().unwrap().contains(&GENERATION), "the sweep finds it");
    victim.remove(GENERATION).await.unwrap();
    other.create(GENERATION).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_not_released_is_waited_for_with_a_limit() {
    let Some(mounts) =
        mounted("host::memory::promises::tests::a_lock_that_is_not_released_is_waited_for_with_a_limit")
    else {
        return;
    };
    let base = tmpfs(&mounts, "shm", 100);
    let below = base.join("user");
    std::fs::create_dir(&below).unwrap();
    let ram = workspace(&mounts.join("ext4"), 1, &below, Backing::Tmpfs);
    // The lock is on the root of the file system, wherever on it the file is to go.
    let holder = File::open(&base).unwrap();
    holder.lock_exclusive().unwrap();
    let said = ram.create(GENERATION).await.unwrap_err().to_string();
    assert!(said.contains("another process has held the lock on") && said.contains("10 seconds"), "{said}");
    assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Absent);
    tokio::time::resume();
    FileExt::unlock(&holder).unwrap();
    ram.create(GENERATION).await.unwrap();
}

#[tokio::test]
async fn a_reserved_file_takes_every_write_on_a_full_disk() {
    let Some(mounts) =
        mounted("host::memory::promises::tests::a_reserved_file_takes_every_write_on_a_full_disk")
    else {
        return;
    };
    for name in ["ext4", "xfs"] {
        let all = mounts.join(name);
        let ram = workspace(&all, 1, Path::new("/nowhere"), Backing::Disk);
        std::fs::create_dir(ram.snapshots.join(".staging-8")).unwrap();
        patchy(&ram.snapshots.join(".staging-8/memory.img"), SIZE);
        ram.create(GENERATION).await.unwrap();
        let filled = Generation(9);
        ram.fill(SNAPSHOT, filled, &Interrupt::new()).await.unwrap();
        for generation in [GENERATION, filled] {
            assert!(allocated(&path(&ram, generation)) >= SIZE, "{name}: {generation}");
            assert!(ram.is_reserved(generation).unwrap(), "{name}: {generation}");
        }
        let filler = all.join("filler");
        let filled_up = fill_up(&filler);
        write(&path(&ram, GENERATION), 0..SIZE);
        // Room for a record, but not for RAM.
        File::options().write(true).open(&filler).unwrap().set_len(filled_up - 20 * MIB).unwrap();
        let said = ram.create(Generation(10)).await.unwrap_err().to_string();
        assert!(said.contains("64MiB of guest RAM fit nowhere") && said.contains(" free"), "{said}");
        assert_eq!(ram.find(Generation(10)).await.unwrap(), Presence::Absent);
        std::fs::remove_file(&filler).unwrap();
    }
}

#[tokio::test]
async fn where_disks_reserve_nothing_the_files_of_all_known_workspaces_count() {
    let Some(mounts) = mounted(
        "host::memory::promises::tests::where_disks_reserve_nothing_the_files_of_all_known_workspaces_count",
    ) else {
        return;
    };
    let all = mounts.join("btrfs");
    let of = |number| RamFiles {
        size: 200 * MIB,
        ..workspace(&all, number, Path::new("/nowhere"), Backing::Disk)
    };
    of(1).create(GENERATION).await.unwrap();
    assert!(!of(1).is_reserved(GENERATION).unwrap(), "its blocks are not its own");
    let said = of(2).create(GENERATION).await.unwrap_err().to_string();
    assert!(said.contains("200 MiB of it promised to VMs): make room there"), "{said}");
    // What was written there may have to be written again, to other blocks.
    write(&path(&of(1), GENERATION), 0..MIB);
    assert_eq!(of(2).promised().await.unwrap(), 200 * MIB);
    of(1).remove(GENERATION).await.unwrap();
    of(2).create(GENERATION).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_that_shares_blocks_leaves_the_promise_as_it_was() {
    let Some(mounts) =
        mounted("host::memory::promises::tests::a_snapshot_that_shares_blocks_leaves_the_promise_as_it_was")
    else {
        return;
    };
    let never = Interrupt::new();
    for (name, before, after) in [("xfs", 0, 40 * MIB), ("btrfs", SIZE, SIZE), ("ext4", 0, 0)] {
        let ram = workspace(&mounts.join(name), 1, Path::new("/nowhere"), Backing::Disk);
        std::fs::create_dir(ram.snapshots.join(".staging-8")).unwrap();
        ram.create(GENERATION).await.unwrap();
        write(&path(&ram, GENERATION), 0..40 * MIB);
        let weight = ram.weight(GENERATION).await.unwrap();
        assert_eq!((ram.promised().await.unwrap(), weight), (before, 40 * MIB * u64::from(name != "btrfs")));
        ram.capture(GENERATION, SNAPSHOT, &never).await.unwrap();
        assert_eq!(ram.promised().await.unwrap(), after, "{name}");
        if name == "xfs" {
            // The guest writes to the shared pages, and has blocks of its own again.
            write(&path(&ram, GENERATION), 0..40 * MIB);
            assert_eq!(ram.promised().await.unwrap(), before, "{name}");
        }
    }
}

#[tokio::test]
async fn what_is_promised_on_the_file_system_of_snapshots_is_told() {
    let Some(mounts) =
        mounted("host::memory::promises::tests::what_is_promised_on_the_file_system_of_snapshots_is_told")
    else {
        return;
    };
    let base = tmpfs(&mounts, "shm", 200);
    let elsewhere = workspace(&mounts.join("ext4"), 1, &base, Backing::Tmpfs);
    let there = workspace(&base, 2, &base, Backing::Tmpfs);
    elsewhere.create(GENERATION).await.unwrap();
    assert_eq!(elsewhere.promised().await.unwrap(), 0);
    assert_eq!(there.promised().await.unwrap(), SIZE);
    write(&path(&elsewhere, GENERATION), 0..10 * MIB);
    assert_eq!(there.promised().await.unwrap(), SIZE - 10 * MIB);
}
