use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use super::*;
use crate::files::copy::NoProgress;
use crate::files::copy::tests::{Stopping, Stuck, allocated, kill_when_ready, mounted, patchy};
use crate::files::hash::tests::root_of;
use crate::files::search::known::KnownValues;
use crate::files::search::value::{NamedValue, ValueKind};
use crate::store::Snapshots;
use crate::world::{BootId, Catalog, Depth, Failure, Manifest, OnLeak, Origin, Secret, Slot, VmmVersion};

pub(super) const GENERATION: Generation = Generation(7);
pub(super) const SNAPSHOT: SnapshotId = SnapshotId(Generation(8));
pub(super) const SIZE: u64 = 64 << 20;

pub(super) fn ram(directory: &Path, tmpfs: &Path, backing: Backing, progress: Arc<dyn Progress>) -> RamFiles {
    let (run, snapshots) = (directory.join("run"), directory.join("snapshots"));
    std::fs::create_dir_all(&run).unwrap();
    std::fs::create_dir_all(&snapshots).unwrap();
    RamFiles {
        run,
        snapshots,
        tmpfs: vec![tmpfs.to_owned()],
        former: vec![],
        others: vec![],
        // Tests that run at once have files in one tmpfs of this machine, below the name of their workspace.
        workspace: WorkspaceId(
            *blake3::hash(directory.as_os_str().as_encoded_bytes()).as_bytes().first_chunk().unwrap(),
        ),
        size: SIZE,
        backing,
        check: true,
        progress,
        leaks: Arc::new(LeakSearch::new(directory.to_owned(), OnLeak::Redact)),
    }
}

pub(super) fn catalog(ram: &RamFiles) -> Snapshots {
    Snapshots { root: ram.snapshots.clone(), progress: Arc::new(NoProgress), leaks: Arc::clone(&ram.leaks) }
}

pub(super) fn path(ram: &RamFiles, generation: Generation) -> PathBuf {
    ram.file(generation).unwrap().expect("a file")
}

pub(super) fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

async fn commit(catalog: &Snapshots) -> Manifest {
    let manifest = Manifest {
        id: SNAPSHOT,
        name: None,
        created_ms: 1,
        slot: Slot::try_from(0).unwrap(),
        boot: BootId([1; 16]),
        shares: false,
        origin: Origin {
            vmm: VmmVersion { major: 53, text: "v53.0".to_owned() },
            cpu: BTreeSet::new(),
            shape: Default::default(),
        },
        files: catalog.digest(SNAPSHOT, &Interrupt::new()).await.unwrap(),
        given: Default::default(),
        receipt: None,
    };
    catalog.commit(manifest.clone()).await.unwrap();
    manifest
}

#[tokio::test]
async fn ram_goes_into_a_snapshot_and_back_wherever_it_is() {
    let Some(mounts) = mounted("host::memory::tests::ram_goes_into_a_snapshot_and_back_wherever_it_is")
    else {
        return;
    };
    let (never, tmpfs) = (Interrupt::new(), mounts.join("tmpfs"));
    for (name, backing) in
        [("ext4", Backing::Auto), ("xfs", Backing::Tmpfs), ("btrfs", Backing::Disk), ("ext4", Backing::Disk)]
    {
        let directory = mounts.join(name).join(format!("{backing:?}"));
        let ram = ram(&directory, &tmpfs, backing, Arc::new(NoProgress));
        let catalog = catalog(&ram);
        assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Absent);
        ram.create(GENERATION).await.unwrap();
        ram.create(GENERATION).await.unwrap();
        assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Whole);
        let file = path(&ram, GENERATION);
        assert_eq!(file.starts_with(&tmpfs), backing != Backing::Disk);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // Its blocks are reserved where that keeps them for the file.
        let reserved = if (name, backing) == ("ext4", Backing::Disk) { SIZE } else { 0 };
        assert_eq!(std::fs::metadata(&file).unwrap().len(), SIZE);
        assert!((reserved..=reserved + (64 << 10)).contains(&allocated(&file)), "{}", allocated(&file));
        patchy(&file, SIZE);

        catalog.stage(SNAPSHOT).await.unwrap();
        ram.capture(GENERATION, SNAPSHOT, &never).await.unwrap();
        ram.precopy(GENERATION, SNAPSHOT, &never).await.unwrap();
        let copied_before = backing != Backing::Disk || name != "btrfs";
        let staged = ram.snapshots.join(store::staging_name(SNAPSHOT)).join(SNAPSHOT_FILE);
        assert!(!copied_before || std::fs::read(&staged).unwrap() == std::fs::read(&file).unwrap());
        // What the guest writes after that is in the snapshot too.
        let guest = std::fs::File::options().write(true).open(&file).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&guest, b"guest", 9 << 20).unwrap();
        let content = std::fs::read(&file).unwrap();
        ram.capture(GENERATION, SNAPSHOT, &never).await.unwrap();
        let manifest = commit(&catalog).await;
        assert_eq!(manifest.files[0].hash, root_of(&content), "{name}");
        catalog.verify(SNAPSHOT, Depth::All, &never).await.unwrap();

        let next = Generation(9);
        ram.fill(SNAPSHOT, next, &never).await.unwrap();
        ram.fill(SNAPSHOT, next, &never).await.unwrap();
        assert!(std::fs::read(path(&ram, next)).unwrap() == content);
        std::fs::write(path(&ram, next), "the guest runs on").unwrap();
        catalog.verify(SNAPSHOT, Depth::All, &never).await.unwrap();
        for generation in [GENERATION, next, next] {
            ram.remove(generation).await.unwrap();
            assert_eq!(ram.find(generation).await.unwrap(), Presence::Absent);
        }
        assert_eq!(entries(&ram.run), 0);
        if backing != Backing::Disk {
            let user = tmpfs.join(format!("nixbox-{}", rustix::process::geteuid().as_raw()));
            assert_eq!(entries(&user), 0, "nothing is left on tmpfs but the user's directory");
        }
    }
}

#[tokio::test]
async fn a_token_is_overwritten_in_the_copy_alone_and_on_tmpfs_before_it_is_written() {
    const TOKEN: &[u8] = b"ghp_16C7e42F292c6912E7710c838347Ae178B4a";
    let Some(mounts) = mounted(
        "host::memory::tests::a_token_is_overwritten_in_the_copy_alone_and_on_tmpfs_before_it_is_written",
    ) else {
        return;
    };
    let (never, tmpfs) = (Interrupt::new(), mounts.join("tmpfs"));
    for (name, backing) in [("ext4", Backing::Tmpfs), ("btrfs", Backing::Disk)] {
        let directory = mounts.join(name).join("leak");
        let ram = ram(&directory, &tmpfs, backing, Arc::new(NoProgress));
        let content = Secret::new(TOKEN.to_vec());
        let value = NamedValue { name: "TOKEN".to_owned(), kind: ValueKind::Read, content };
        KnownValues::remember(&Folder::open(&directory).unwrap(), &[value]).unwrap();
        let catalog = catalog(&ram);
        ram.create(GENERATION).await.unwrap();
        let mut guest = vec![0; SIZE as usize];
        // Across two chunks, and at the end.
        for at in [(3 << 20) - 17, SIZE as usize - TOKEN.len()] {
            guest[at..at + TOKEN.len()].copy_from_slice(TOKEN);
        }
        std::fs::write(path(&ram, GENERATION), &guest).unwrap();

        catalog.stage(SNAPSHOT).await.unwrap();
        // One of the tokens comes while RAM is copied.
        let file = std::fs::File::options().write(true).open(path(&ram, GENERATION)).unwrap();
        let first = (3 << 20) - 17;
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; TOKEN.len()], first).unwrap();
        ram.precopy(GENERATION, SNAPSHOT, &never).await.unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, TOKEN, first).unwrap();
        ram.capture(GENERATION, SNAPSHOT, &never).await.unwrap();
        let staged = ram.snapshots.join(store::staging_name(SNAPSHOT)).join(SNAPSHOT_FILE);
        let holds = |bytes: &[u8]| bytes.windows(TOKEN.len()).any(|window| window == TOKEN);
        assert_eq!(holds(&std::fs::read(&staged).unwrap()), backing == Backing::Disk, "{name}");
        commit(&catalog).await;
        let listed = std::fs::read(ram.snapshots.join("8").join(SNAPSHOT_FILE)).unwrap();
        assert!(!holds(&listed) && listed.iter().filter(|byte| **byte == b'*').count() == 2 * TOKEN.len());
        let receipt = catalog.receipt(SNAPSHOT).await.unwrap().unwrap();
        assert_eq!((receipt.found[0].place.as_str(), receipt.found[0].count), ("RAM", 2), "{name}");
        assert!(std::fs::read(path(&ram, GENERATION)).unwrap() == guest, "the guest has it still");
    }
}

#[tokio::test]
async fn ram_that_fits_nowhere_is_refused_or_left_to_the_vmm() {
    let Some(mounts) = mounted("host::memory::tests::ram_that_fits_nowhere_is_refused_or_left_to_the_vmm")
    else {
        return;
    };
    let small = mounts.join("small");
    let never = Interrupt::new();
    let of = |name: &str, tmpfs: &Path, backing| {
        ram(&mounts.join(name).join("w"), tmpfs, backing, Arc::new(NoProgress))
    };
    let failure = of("ext4", &small, Backing::Tmpfs).create(GENERATION).await.unwrap_err();
    assert!(failure.to_string().contains("64MiB of guest RAM fit nowhere"), "{failure}");
    let failure = of("ext4", &mounts.join("xfs"), Backing::Tmpfs).create(GENERATION).await.unwrap_err();
    assert!(failure.to_string().contains("not a tmpfs"), "{failure}");
    let failure = of("small", &small, Backing::Disk).create(GENERATION).await.unwrap_err();
    assert!(failure.to_string().contains("small/w/run: 7 MiB free): make room there"), "{failure}");
    let ram = of("ext4", &small, Backing::Auto);
    assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Absent);
    ram.create(GENERATION).await.unwrap();
    assert_eq!(ram.file(GENERATION).unwrap(), None);
    assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Whole);

    // The VMM's own RAM comes back to the VMM.
    let catalog = catalog(&ram);
    catalog.stage(SNAPSHOT).await.unwrap();
    ram.capture(GENERATION, SNAPSHOT, &never).await.unwrap();
    assert!(ram.fill(SNAPSHOT, Generation(9), &never).await.is_err());
    std::fs::write(ram.snapshots.join(".staging-8/memory-ranges"), "RAM").unwrap();
    ram.fill(SNAPSHOT, Generation(9), &never).await.unwrap();
    assert_eq!(ram.file(Generation(9)).unwrap(), None);
    // RAM from a file goes to a file, even if the configuration has changed since.
    patchy(&ram.snapshots.join(".staging-8/memory.img"), SIZE);
    let vmm = of("ext4", &small, Backing::Vmm);
    vmm.fill(SNAPSHOT, Generation(10), &never).await.unwrap();
    assert!(path(&vmm, Generation(10)).starts_with(&vmm.run));
    for generation in [GENERATION, Generation(9), Generation(10)] {
        ram.remove(generation).await.unwrap();
    }
    assert_eq!(entries(&ram.run), 0);
}

#[tokio::test]
async fn damaged_ram_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ram = ram(directory.path(), Path::new("/dev/shm"), Backing::Disk, Arc::new(NoProgress));
    let (catalog, never) = (catalog(&ram), Interrupt::new());
    ram.create(GENERATION).await.unwrap();
    patchy(&path(&ram, GENERATION), SIZE);
    catalog.stage(SNAPSHOT).await.unwrap();
    ram.capture(GENERATION, SNAPSHOT, &never).await.unwrap();
    commit(&catalog).await;
    let file = std::fs::File::options().write(true).open(ram.snapshots.join("8/memory.img")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"X", 5 << 20).unwrap();
    let failure = ram.fill(SNAPSHOT, Generation(9), &never).await.unwrap_err();
    assert!(failure.to_string().contains("damaged"), "{failure}");
    assert_eq!(ram.find(Generation(9)).await.unwrap(), Presence::Partial);
    file.set_len(SIZE - 1).unwrap();
    let failure = ram.fill(SNAPSHOT, Generation(9), &never).await.unwrap_err();
    assert!(failure.to_string().contains("damaged"), "{failure}");
    ram.remove(Generation(9)).await.unwrap();
    assert_eq!(ram.find(Generation(9)).await.unwrap(), Presence::Absent);
}

#[tokio::test]
async fn a_process_killed_during_a_fill_leaves_partial_ram() {
    const ROLE: &str = "NIXBOX_TEST_RAM_IN";
    let never = Interrupt::new();
    let of = |directory: &Path, progress| ram(directory, Path::new("/nowhere"), Backing::Disk, progress);
    if let Some(directory) = std::env::var_os(ROLE) {
        of(Path::new(&directory), Arc::new(Stuck)).fill(SNAPSHOT, GENERATION, &never).await.unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let ram = of(directory.path(), Arc::new(NoProgress));
    std::fs::create_dir(ram.snapshots.join(".staging-8")).unwrap();
    patchy(&ram.snapshots.join(".staging-8/memory.img"), SIZE);
    let test = "host::memory::tests::a_process_killed_during_a_fill_leaves_partial_ram";
    kill_when_ready(test, ROLE, directory.path());
    assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Partial);
    assert!(ram.file(GENERATION).is_err());
    ram.remove(GENERATION).await.unwrap();
    assert_eq!(entries(&ram.run), 0);
    kill_when_ready(test, ROLE, directory.path());
    ram.fill(SNAPSHOT, GENERATION, &never).await.unwrap();
    assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Whole);
}

#[tokio::test]
async fn a_process_killed_during_a_precopy_leaves_what_goes_with_the_staging_directory() {
    const ROLE: &str = "NIXBOX_TEST_PRECOPY_IN";
    let never = Interrupt::new();
    let of = |directory: &Path, progress| ram(directory, Path::new("/dev/shm"), Backing::Tmpfs, progress);
    if let Some(directory) = std::env::var_os(ROLE) {
        of(Path::new(&directory), Arc::new(Stuck)).precopy(GENERATION, SNAPSHOT, &never).await.unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let ram = of(directory.path(), Arc::new(NoProgress));
    let catalog = catalog(&ram);
    ram.create(GENERATION).await.unwrap();
    patchy(&path(&ram, GENERATION), SIZE);
    catalog.stage(SNAPSHOT).await.unwrap();
    let test =
        "host::memory::tests::a_process_killed_during_a_precopy_leaves_what_goes_with_the_staging_directory";
    kill_when_ready(test, ROLE, directory.path());
    catalog.discard(SNAPSHOT).await.unwrap();
    assert_eq!(entries(&ram.snapshots), 0);
    assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Whole);
    ram.remove(GENERATION).await.unwrap();
}

#[tokio::test]
async fn an_interrupt_ends_capturing_and_filling() {
    let directory = tempfile::tempdir().unwrap();
    let interrupt = Interrupt::new();
    let stopping = Arc::new(Stopping(interrupt.clone()));
    let ram = ram(directory.path(), Path::new("/nowhere"), Backing::Disk, stopping);
    ram.create(GENERATION).await.unwrap();
    patchy(&path(&ram, GENERATION), SIZE);
    std::fs::create_dir(ram.snapshots.join(".staging-8")).unwrap();
    assert!(matches!(ram.precopy(GENERATION, SNAPSHOT, &interrupt).await, Err(Failure::Interrupted)));
    assert!(matches!(ram.capture(GENERATION, SNAPSHOT, &interrupt).await, Err(Failure::Interrupted)));
    assert!(matches!(ram.fill(SNAPSHOT, Generation(9), &interrupt).await, Err(Failure::Interrupted)));
    ram.remove(Generation(9)).await.unwrap();
    assert_eq!(ram.find(Generation(9)).await.unwrap(), Presence::Absent);
}

#[tokio::test]
async fn a_directory_of_another_user_is_not_used() {
    let Some(mounts) = mounted("host::memory::tests::a_directory_of_another_user_is_not_used") else {
        return;
    };
    let tmpfs = mounts.join("tmpfs");
    let ram = ram(&mounts.join("ext4"), &tmpfs, Backing::Tmpfs, Arc::new(NoProgress));
    let user = tmpfs.join(format!("nixbox-{}", rustix::process::geteuid().as_raw()));
    std::fs::create_dir(&user).unwrap();
    chown(&user, Some(12345), None).unwrap();
    let failure = ram.create(GENERATION).await.unwrap_err();
    assert!(failure.to_string().contains("belongs to user 12345"), "{failure}");
    std::fs::remove_dir(&user).unwrap();
    std::os::unix::fs::symlink(mounts.join("xfs"), &user).unwrap();
    let failure = ram.create(GENERATION).await.unwrap_err();
    assert!(failure.to_string().contains("symbolic link"), "{failure}");
}

#[tokio::test]
async fn ram_lost_in_a_reboot_is_partial_and_a_damaged_record_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let ram = ram(directory.path(), Path::new("/dev/shm"), Backing::Tmpfs, Arc::new(NoProgress));
    let ram = RamFiles { workspace: WorkspaceId([std::process::id() as u8; 16]), ..ram };
    ram.create(GENERATION).await.unwrap();
    std::fs::remove_file(path(&ram, GENERATION)).unwrap();
    assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Partial);
    ram.remove(GENERATION).await.unwrap();
    assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Absent);
    std::fs::write(ram.run.join("memory-7.json"), "{\"on\":\"tmpfs\",\"base\":\"/nowhere\",\"size\":5}")
        .unwrap();
    assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Partial);
    ram.remove(GENERATION).await.unwrap();
    std::fs::write(ram.run.join("memory-7.json"), "garbage").unwrap();
    assert!(ram.find(GENERATION).await.is_err() && ram.remove(GENERATION).await.is_err());
}

#[tokio::test]
async fn a_record_without_its_file_does_not_decide_where_the_file_goes() {
    let directory = tempfile::tempdir().unwrap();
    let ram = ram(directory.path(), Path::new("/nowhere"), Backing::Disk, Arc::new(NoProgress));
    std::fs::create_dir(ram.snapshots.join(".staging-8")).unwrap();
    patchy(&ram.snapshots.join(".staging-8/memory.img"), SIZE);
    // The tmpfs of a session that has ended.
    let record = format!("{{\"on\":\"tmpfs\",\"base\":\"/nowhere\",\"size\":{SIZE}}}");
    for generation in [GENERATION, Generation(8)] {
        std::fs::write(ram.run.join(format!("memory-{generation}.json")), &record).unwrap();
        assert_eq!(ram.find(generation).await.unwrap(), Presence::Partial);
    }
    ram.create(GENERATION).await.unwrap();
    ram.fill(SNAPSHOT, Generation(8), &Interrupt::new()).await.unwrap();
    for generation in [GENERATION, Generation(8)] {
        assert_eq!(ram.find(generation).await.unwrap(), Presence::Whole);
        assert!(path(&ram, generation).starts_with(&ram.run));
    }
}

#[tokio::test]
async fn a_record_that_was_half_written_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let ram = ram(directory.path(), Path::new("/dev/shm"), Backing::Tmpfs, Arc::new(NoProgress));
    std::fs::write(ram.run.join(".memory-7.json.unfinished"), "{").unwrap();
    assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Absent);
    ram.remove(GENERATION).await.unwrap();
    assert_eq!(entries(&ram.run), 0);
}

#[tokio::test]
async fn no_ram_is_put_where_an_earlier_nixbox_did_and_what_is_there_is_used_and_removed() {
    let Some(mounts) = mounted(
        "host::memory::tests::no_ram_is_put_where_an_earlier_nixbox_did_and_what_is_there_is_used_and_removed",
    ) else {
        return;
    };
    let (host, directory) = (mounts.join("tmpfs"), mounts.join("ext4"));
    let earlier = ram(&directory, &host, Backing::Tmpfs, Arc::new(NoProgress));
    earlier.create(GENERATION).await.unwrap();
    earlier.create(Generation(8)).await.unwrap();
    let file = path(&earlier, GENERATION);

    // Neither the directory itself nor another one on its file system is taken.
    let below = host.join("user");
    std::fs::create_dir(&below).unwrap();
    let of = |backing| RamFiles {
        tmpfs: vec![host.clone(), below.clone()],
        former: vec![host.clone()],
        ..ram(&directory, &host, backing, Arc::new(NoProgress))
    };
    let failure = of(Backing::Tmpfs).create(Generation(9)).await.unwrap_err();
    assert_eq!(failure.to_string().matches("on the file system of").count(), 2, "{failure}");
    let ram = of(Backing::Auto);
    ram.create(Generation(9)).await.unwrap();
    assert_eq!(ram.file(Generation(9)).unwrap(), None, "the VMM has it");

    // A VM goes on with its file, and a file without a record is found.
    let ram = RamFiles { tmpfs: vec![], ..ram };
    assert_eq!(ram.find(GENERATION).await.unwrap(), Presence::Whole);
    assert_eq!(path(&ram, GENERATION), file);
    std::fs::remove_file(ram.run.join("memory-8.json")).unwrap();
    assert_eq!(ram.find(Generation(8)).await.unwrap(), Presence::Partial);
    for generation in [GENERATION, Generation(8), Generation(9)] {
        ram.remove(generation).await.unwrap();
        assert_eq!(ram.find(generation).await.unwrap(), Presence::Absent);
    }
    assert!(!file.exists());
    assert_eq!(entries(&ram.run), 0);
}

#[tokio::test]
async fn directories_that_a_vmm_is_confined_to_stay_until_the_ram_is_removed() {
    let Some(mounts) =
        mounted("host::memory::tests::directories_that_a_vmm_is_confined_to_stay_until_the_ram_is_removed")
    else {
        return;
    };
    let tmpfs = mounts.join("tmpfs");
    let mut ram = ram(&mounts.join("ext4/confined"), &tmpfs, Backing::Auto, Arc::new(NoProgress));
    // RAM cannot be put on a disk's file system.
    ram.tmpfs.push(mounts.join("ext4"));
    let directories = ram.directories_on_tmpfs();
    let [directory] = directories.as_slice() else { panic!("{directories:?}") };
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(directory).unwrap());
    let before = inode();
    ram.create(GENERATION).await.unwrap();
    assert_eq!(path(&ram, GENERATION).parent(), Some(directory.as_path()));
    assert_eq!(inode(), before, "the rules of the VMM would be about another directory");
    ram.remove(GENERATION).await.unwrap();
    assert!(!directory.exists());
    // Nothing is left of a VMM that was started for RAM that was made elsewhere.
    assert_eq!(ram.directories_on_tmpfs(), directories);
    ram.remove(GENERATION).await.unwrap();
    assert!(!directory.exists());
}
