use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use super::threads::MAX_THREADS;
use super::*;
use crate::files::extents::{BLOCK, data_bytes};
use crate::files::hash::pieces::PIECE;
use crate::files::hash::tests::root_of;
use crate::testing::{Need, have};
use crate::world::Interrupt;

/// A directory with one file system of each kind mounted below it, in a mount namespace of its own.
///
/// A test calls this first. The call runs the same test again in such a namespace, and returns `None`. In the namespace
/// it returns the directory. The mounts end with the namespace.
pub(crate) fn mounted(test: &str) -> Option<PathBuf> {
    const MOUNTS: &str = "NIXBOX_TEST_MOUNTS";
    if let Some(directory) = std::env::var_os(MOUNTS) {
        return Some(directory.into());
    }
    let programs = ["mkfs.ext4", "mkfs.btrfs", "mkfs.xfs", "mount", "unshare"].map(Need::Program);
    if !have(&[&[Need::Root], &programs[..]].concat()) {
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut script = "set -e; cd \"$0\"\n".to_owned();
    for (name, make) in [("ext4", "mkfs.ext4 -q -F"), ("btrfs", "mkfs.btrfs -q"), ("xfs", "mkfs.xfs -q")] {
        script += &format!(
            "mkdir {name}; truncate -s 400M {name}.img; {make} {name}.img >&2; mount -o loop {name}.img {name}\n"
        );
    }
    script += "mkdir tmpfs small; mount -t tmpfs none tmpfs; mount -t tmpfs -o size=8m none small\n";
    script += "\"$1\" --exact \"$2\" --nocapture";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(MOUNTS, directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    None
}

/// Runs the same test in a process of its own, with `role` set to a directory, until it prints `ready`; then kills it.
pub(crate) fn kill_when_ready(test: &str, role: &str, directory: &Path) {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(role, directory)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = io::BufReader::new(victim.stdout.take().unwrap());
    assert!(io::BufRead::lines(output).any(|line| line.unwrap() == "ready"));
    victim.kill().unwrap();
    victim.wait().unwrap();
}

/// Prints `ready` at the first bytes, and never returns: for processes that are killed in the middle of a copy.
pub(crate) struct Stuck;

impl Progress for Stuck {
    fn progress(&self, _what: &str, _done: u64, _total: u64) {
        println!("\nready");
        loop {
            thread::park();
        }
    }
}

/// Interrupts at the first bytes.
pub(crate) struct Stopping(pub(crate) Interrupt);

impl Progress for Stopping {
    fn progress(&self, _what: &str, _done: u64, _total: u64) {
        self.0.request();
    }
}

/// A sparse file with data here and there, and pages of zeros that are data.
pub(crate) fn patchy(path: &Path, size: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let pattern: Vec<u8> = (0..300_000_u32).map(|number| (number * 7 % 251) as u8 + 1).collect();
    for at in [0, 5 << 20, (8 << 20) - 150_000, 40 << 20] {
        if at + pattern.len() as u64 <= size {
            file.write_all_at(&pattern, at).unwrap();
        }
    }
    if size > 30 << 20 {
        file.write_all_at(&vec![0; 2 << 20], 20 << 20).unwrap();
    }
    if size > 0 {
        file.write_all_at(&[9], size - 1).unwrap();
    }
    file.sync_all().unwrap();
}

pub(crate) fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

fn copying(from: &Path, to: &Path, reflink: bool) -> CopyRequest {
    let source = NamedFile { file: File::open(from).unwrap(), path: from.to_owned() };
    let file = File::options().read(true).write(true).create_new(true).open(to).unwrap();
    CopyRequest {
        what: "it".to_owned(),
        source,
        target: NamedFile { file, path: to.to_owned() },
        reflink,
        smallest_hole: PAGE,
        hash: Some(HashMethod::default()),
        search: None,
    }
}

async fn hash_of(path: &Path, method: HashMethod) -> [u8; 32] {
    let named = NamedFile { file: File::open(path).unwrap(), path: path.to_owned() };
    hash("it".to_owned(), named, method, None, Arc::new(NoProgress), &Interrupt::new()).await.unwrap().0
}

fn same(from: &Path, to: &Path) -> bool {
    std::fs::read(from).unwrap() == std::fs::read(to).unwrap()
}

#[tokio::test]
async fn copies_are_right_and_sparse_on_every_file_system() {
    let Some(mounts) = mounted("files::copy::tests::copies_are_right_and_sparse_on_every_file_system") else {
        return;
    };
    let never = Interrupt::new();
    for from in ["ext4", "btrfs", "xfs", "tmpfs"] {
        for size in [0, 1, 4097, 8 << 20, (64 << 20) + 123] {
            let source = mounts.join(from).join(format!("source-{size}"));
            patchy(&source, size);
            for to in ["ext4", "btrfs", "xfs", "tmpfs"] {
                for reflink in [false, true] {
                    let target = mounts.join(to).join(format!("{from}-{size}-{reflink}"));
                    let copied =
                        copy(copying(&source, &target, reflink), Arc::new(NoProgress), &never).await.unwrap();
                    let shares = reflink && from == to && matches!(from, "btrfs" | "xfs");
                    assert_eq!(copied.method == CopyMethod::Reflink, shares, "{target:?}");
                    assert!(same(&source, &target), "{target:?}");
                    let Some(hash) = copied.hash else {
                        continue;
                    };
                    assert_eq!(hash, root_of(&std::fs::read(&source).unwrap()), "{target:?}");
                    File::open(&target).unwrap().sync_all().unwrap();
                    // Four patches and the last byte; the 2 MiB of zeros have become a hole.
                    assert!(allocated(&target) < 2 << 20, "{target:?}: {}", allocated(&target));
                    std::fs::remove_file(&target).unwrap();
                }
            }
            let content = std::fs::read(&source).unwrap();
            assert_eq!(hash_of(&source, HashMethod::Pieces).await, root_of(&content));
            assert_eq!(hash_of(&source, HashMethod::Whole).await, *blake3::hash(&content).as_bytes());
            std::fs::remove_file(&source).unwrap();
        }
    }
}

#[tokio::test]
async fn a_full_file_system_is_reported_with_what_is_missing() {
    let Some(mounts) = mounted("files::copy::tests::a_full_file_system_is_reported_with_what_is_missing")
    else {
        return;
    };
    let source = mounts.join("tmpfs/source");
    std::fs::write(&source, vec![1; 32 << 20]).unwrap();
    let target = mounts.join("small/target");
    let error =
        copy(copying(&source, &target, true), Arc::new(NoProgress), &Interrupt::new()).await.unwrap_err();
    let CopyError::Full { missing, .. } = error else { panic!("{error:?}") };
    // 8 of the 32 MiB fit.
    assert!((20 << 20..=25 << 20).contains(&missing), "{missing}");
}

#[tokio::test]
async fn an_interrupt_ends_a_copy_in_its_middle() {
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    std::fs::write(&source, vec![1; 64 << 20]).unwrap();
    let interrupt = Interrupt::new();
    let progress = Arc::new(Stopping(interrupt.clone()));
    let error = copy(copying(&source, &target, true), progress, &interrupt).await.unwrap_err();
    assert!(matches!(Failure::from(error), Failure::Interrupted));
    // Each thread finishes the piece of a megabyte that it is at.
    assert!(allocated(&target) <= MAX_THREADS as u64 * 2 * BLOCK, "{}", allocated(&target));
    let named = NamedFile { file: File::open(&source).unwrap(), path: source };
    assert!(matches!(sync(named, &interrupt).await, Err(CopyError::Interrupted)));
}

#[tokio::test]
async fn a_copy_whose_future_is_dropped_ends() {
    struct Count(Mutex<u64>, tokio::sync::Notify);
    impl Progress for Count {
        fn progress(&self, _what: &str, done: u64, _total: u64) {
            *self.0.lock().unwrap() = done;
            self.1.notify_one();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    std::fs::write(&source, vec![1; 256 << 20]).unwrap();
    let progress = Arc::new(Count(Mutex::new(0), tokio::sync::Notify::new()));
    let never = Interrupt::new();
    tokio::select! {
        biased;
        () = progress.1.notified() => {}
        done = copy(copying(&source, &target, false), progress.clone(), &never) => panic!("{done:?}"),
    }
    // The threads hold the progress as long as they run.
    while Arc::strong_count(&progress) > 1 {
        tokio::task::yield_now().await;
    }
    assert!(*progress.0.lock().unwrap() < 256 << 20);
}

#[tokio::test]
async fn a_source_that_shrinks_is_noticed() {
    struct Cutting(PathBuf);
    impl Progress for Cutting {
        fn progress(&self, _what: &str, _done: u64, _total: u64) {
            File::options().write(true).open(&self.0).unwrap().set_len(1 << 20).unwrap();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    std::fs::write(&source, vec![1; 64 << 20]).unwrap();
    let cutting = Arc::new(Cutting(source.clone()));
    let copied = copy(copying(&source, &target, false), cutting, &Interrupt::new()).await;
    assert!(matches!(copied, Err(CopyError::Shrunk { .. })), "{copied:?}");
}

#[tokio::test]
async fn progress_ends_with_everything_done() {
    struct Last(Mutex<Vec<(u64, u64)>>);
    impl Progress for Last {
        fn progress(&self, what: &str, done: u64, total: u64) {
            assert!(what == "it" && done <= total);
            self.0.lock().unwrap().push((done, total));
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    std::fs::write(&source, vec![1; 20 << 20]).unwrap();
    let last = Arc::new(Last(Mutex::default()));
    copy(copying(&source, &target, false), last.clone(), &Interrupt::new()).await.unwrap();
    let calls = last.0.lock().unwrap();
    assert_eq!(calls.last(), Some(&(20 << 20, 20 << 20)));
    assert!(calls.len() >= 20);
}

/// How many bytes were read of each file.
#[derive(Default)]
pub(crate) struct BytesRead(Mutex<BTreeMap<String, u64>>);

impl BytesRead {
    /// The bytes read since the last call.
    pub(crate) fn take(&self, what: &str) -> u64 {
        self.0.lock().unwrap().remove(what).unwrap_or_default()
    }
}

impl Progress for BytesRead {
    fn progress(&self, what: &str, done: u64, _total: u64) {
        let mut read = self.0.lock().unwrap();
        let most = read.entry(what.to_owned()).or_default();
        *most = done.max(*most);
    }
}

#[tokio::test]
async fn what_a_terabyte_of_holes_costs_is_its_data() {
    const DATA: u64 = 10 << 20;
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    let file = File::create(&source).unwrap();
    let size = match file.set_len(1 << 40) {
        Ok(()) => 1 << 40,
        // The largest file that an ext4 with blocks of 1 KiB has.
        Err(_) => (16 << 30) - 4096,
    };
    file.set_len(size).unwrap();
    // Ten pieces of 64 KiB at the beginning, in the middle, and at the end, and one run of the rest.
    let places = (0..10).map(|number| number * (size / 10) / PIECE * PIECE);
    for place in places {
        file.write_all_at(&[3; PIECE as usize], place).unwrap();
    }
    file.write_all_at(&vec![4; (DATA - 10 * PIECE) as usize], size - DATA).unwrap();
    assert_eq!(data_bytes(&file).unwrap(), DATA);

    let named = || NamedFile { file: File::open(&source).unwrap(), path: source.clone() };
    let (read, never) = (Arc::new(BytesRead::default()), Interrupt::new());
    let hashing = hash("it".to_owned(), named(), HashMethod::Pieces, None, read.clone(), &never);
    let (expected, _) = hashing.await.unwrap();
    assert_eq!(read.take("it"), DATA);
    let copied = copy(copying(&source, &target, false), Arc::new(NoProgress), &never).await.unwrap();
    assert_eq!(copied.method, CopyMethod::Sparse { read: DATA, written: DATA });
    assert_eq!(copied.hash, Some(expected));
    assert_eq!(hash_of(&target, HashMethod::Pieces).await, expected);

    // A bit of the data, a byte in a hole, and a byte less are noticed.
    let changed = File::options().write(true).open(&target).unwrap();
    for (at, byte, was) in [(size - DATA, 5, 4), (size / 2 + 12345, 1, 0), (size / 4, 1, 0)] {
        changed.write_all_at(&[byte], at).unwrap();
        assert_ne!(hash_of(&target, HashMethod::Pieces).await, expected);
        changed.write_all_at(&[was], at).unwrap();
        // Where there was a hole, there are zeros now.
        assert_eq!(hash_of(&target, HashMethod::Pieces).await, expected);
    }
    for length in [size + 1, size - 1] {
        changed.set_len(length).unwrap();
        assert_ne!(hash_of(&target, HashMethod::Pieces).await, expected);
    }
}

#[tokio::test]
async fn blocks_that_are_reserved_and_not_written_are_no_data() {
    let Some(mounts) = mounted("files::copy::tests::blocks_that_are_reserved_and_not_written_are_no_data")
    else {
        return;
    };
    const SIZE: u64 = 64 << 20;
    for from in ["ext4", "btrfs", "xfs"] {
        let (source, target) = (mounts.join(from).join("source"), mounts.join(from).join("target"));
        patchy(&source, SIZE);
        let file = File::options().read(true).write(true).open(&source).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SIZE).unwrap();
        file.sync_all().unwrap();
        assert!(allocated(&source) >= SIZE);
        let data = data_bytes(&file).unwrap();
        assert!((1 << 20..8 << 20).contains(&data), "{from}: {data}");
        // The target of a copy may have its size and its blocks already.
        let request = copying(&source, &target, false);
        rustix::fs::fallocate(&request.target.file, rustix::fs::FallocateFlags::empty(), 0, SIZE).unwrap();
        copy(request, Arc::new(NoProgress), &Interrupt::new()).await.unwrap();
        // This comes before the comparison: what was read lately, and is in the page cache, passes for data.
        let target_data = data_bytes(&File::open(&target).unwrap()).unwrap();
        assert!(allocated(&target) >= SIZE, "{from}: {}", allocated(&target));
        assert!(target_data < 8 << 20, "{from}: {target_data}");
        assert!(same(&source, &target), "{from}");
    }
}
