//! What copies and hashes of disks and RAM cost, measured in turns with what they are compared with:
//!
//! - a sparse disk of 100 GiB with 5 MiB of data against a disk of 5 MiB: at most 1.2 times as long, hashed and copied;
//! - a copy that hashes against `dd` and `cp --sparse=always` of the same file: at least 0.8 of their speed;
//! - RAM in runs of 4 KiB with holes of 4 KiB between them against dense RAM of as many bytes: at most 1.5 times as
//!   long, from tmpfs to a disk (capture) and from the disk to tmpfs (fill). How long a capture takes that keeps every
//!   hole is printed beside it;
//! - what a VM is paused for after a copy that was made while it ran: the last pass over RAM that has not changed, and
//!   over RAM of which every hundredth page has, against a copy of all of it, and against a plain read by one thread.
//!
//! It prints a line for each ratio: its name, the ratio of the medians, and the target. `TMPDIR` says which disk is used.

#![allow(clippy::expect_used)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nixbox::files::copy::{self, CopyRequest, IMAGE_HOLE, NamedFile, NoProgress, PrecopyRequest};
use nixbox::files::extents::PAGE;
use nixbox::world::{HashMethod, Interrupt};

const MIB: u64 = 1 << 20;
/// Enough for a median, and for the page cache to be as full in each round.
const ROUNDS: usize = 5;

/// A file of this size with runs of data of this length at these offsets.
fn with_data(path: PathBuf, size: u64, length: u64, offsets: impl Iterator<Item = u64>) -> PathBuf {
    let file = File::create(&path).expect("a file");
    file.set_len(size).expect("the file system has files of this size");
    let bytes: Vec<u8> = (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 7) as u8 | 1).collect();
    for offset in offsets {
        file.write_all_at(&bytes, offset).expect("it is written");
    }
    file.sync_all().expect("it is synced");
    path
}

fn opened(path: &Path) -> NamedFile {
    NamedFile { file: File::open(path).expect("it is there"), path: path.to_owned() }
}

fn timed(call: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    call();
    begun.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn tell(name: &str, target: &str, ours: Vec<Duration>, theirs: Vec<Duration>) {
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!("{name}: ratio {ratio:.2}, target {target} ({ours:?} against {theirs:?})");
}

/// Prints the ratio of the medians of two calls, which are made in turns.
fn compare(name: &str, target: &str, ours: impl Fn(), theirs: impl Fn()) {
    let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
    ours();
    theirs();
    for _ in 0..ROUNDS {
        our_times.push(timed(&ours));
        their_times.push(timed(&theirs));
    }
    tell(name, target, our_times, their_times);
}

struct Copies {
    runtime: tokio::runtime::Runtime,
    directory: PathBuf,
}

impl Copies {
    fn hash(&self, source: &Path) {
        let (progress, never) = (Arc::new(NoProgress), Interrupt::new());
        let hashing = copy::hash(String::new(), opened(source), HashMethod::Pieces, None, progress, &never);
        self.runtime.block_on(hashing).expect("it is hashed");
    }

    fn copy_to(&self, source: &Path, path: &Path, hash: Option<HashMethod>, smallest_hole: usize) {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let request = CopyRequest {
            what: String::new(),
            source: opened(source),
            target: NamedFile { file: file.expect("a file"), path: path.to_owned() },
            reflink: false,
            smallest_hole,
            hash,
            search: None,
        };
        let (progress, never) = (Arc::new(NoProgress), Interrupt::new());
        self.runtime.block_on(copy::copy(request, progress, &never)).expect("it is copied");
    }

    /// Copies into a new file of that directory, and removes it.
    fn copy(&self, source: &Path, directory: &Path, hash: Option<HashMethod>, smallest_hole: usize) {
        let path = directory.join("copy");
        self.copy_to(source, &path, hash, smallest_hole);
        std::fs::remove_file(path).expect("it is removed");
    }

    /// Runs a program that makes such a copy.
    fn program(&self, program: &str, arguments: &[String]) {
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().expect("the program is there").success(), "{program}");
        std::fs::remove_file(self.directory.join("copy")).expect("it is removed");
    }

    fn holes(&self) {
        let disk = |name: &str, size: u64| {
            let offsets = (0..5).map(|number| number * (size / 5) / MIB * MIB);
            with_data(self.directory.join(name), size, MIB, offsets)
        };
        let (sparse, dense) = (disk("sparse", 100 << 30), disk("dense", 5 * MIB));
        compare("hash of 5 MiB in 100 GiB", "1.20", || self.hash(&sparse), || self.hash(&dense));
        let copy = |source: &Path| self.copy(source, &self.directory, Some(HashMethod::Pieces), PAGE);
        compare("copy of 5 MiB in 100 GiB", "1.20", || copy(&sparse), || copy(&dense));
    }

    fn programs(&self) {
        let source = with_data(self.directory.join("source"), 512 * MIB, 512 * MIB, 0..1);
        let ours = || self.copy(&source, &self.directory, Some(HashMethod::Pieces), PAGE);
        let (from, to) = (source.display().to_string(), self.directory.join("copy").display().to_string());
        let dd = [format!("if={from}"), format!("of={to}"), "bs=1M".to_owned()];
        compare("copy and hash against dd", "1.25", ours, || self.program("dd", &dd));
        let cp = ["--sparse=always".to_owned(), "--reflink=never".to_owned(), from.clone(), to.clone()];
        compare("copy and hash against cp", "1.25", ours, || self.program("cp", &cp));
        let unhashed = || self.copy(&source, &self.directory, None, PAGE);
        compare("copy and hash against copy", "none", ours, unhashed);
    }

    fn scattered(&self) {
        const DATA: u64 = 128 * MIB;
        let ram = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        for run in [4 << 10, 64 << 10] {
            let name = format!("runs of {} KiB", run >> 10);
            let offsets = || (0..DATA / run).map(|number| number * 2 * run);
            let (scattered, dense) = (
                with_data(ram.path().join("scattered"), 2 * DATA, run, offsets()),
                with_data(ram.path().join("dense"), DATA, DATA, 0..1),
            );
            let method = Some(HashMethod::Pieces);
            let capture = |source: &Path| self.copy(source, &self.directory, method, IMAGE_HOLE);
            compare(&format!("capture, {name}"), "1.50", || capture(&scattered), || capture(&dense));
            let with_all_holes = || self.copy(&scattered, &self.directory, method, PAGE);
            compare(&format!("capture with all holes, {name}"), "none", with_all_holes, || capture(&dense));
            // The images that a capture makes of them.
            let image = |source: &Path, name: &str| {
                let to = self.directory.join(name);
                self.copy_to(source, &to, None, IMAGE_HOLE);
                to
            };
            let (scattered, dense) = (image(&scattered, "scattered"), image(&dense, "dense"));
            let fill = |source: &Path| self.copy(source, ram.path(), method, PAGE);
            compare(&format!("fill, {name}"), "1.50", || fill(&scattered), || fill(&dense));
        }
    }
}

/// A copy in several passes.
impl Copies {
    /// How long the last pass takes if `change` happens before it.
    fn last_pass(&self, source: &Path, change: impl Fn()) -> Duration {
        let path = self.directory.join("copy");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let request = PrecopyRequest {
            what: String::new(),
            source: opened(source),
            target: NamedFile { file: file.expect("a file"), path: path.clone() },
            smallest_hole: IMAGE_HOLE,
            search: None,
        };
        let (progress, never) = (Arc::new(NoProgress), Interrupt::new());
        let first = copy::precopy(request, progress.clone(), &never);
        let first = self.runtime.block_on(first).expect("it is copied");
        change();
        let took =
            timed(|| drop(self.runtime.block_on(first.finish(progress, &never)).expect("it is copied")));
        std::fs::remove_file(path).expect("it is removed");
        took
    }

    fn passes(&self) {
        const DATA: u64 = 512 * MIB;
        let ram = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        let source = with_data(ram.path().join("ram"), DATA, DATA, 0..1);
        let file = File::options().write(true).open(&source).expect("it is there");
        let page = |number: usize| vec![number as u8; PAGE];
        let change = |round: usize| {
            for at in (0..DATA).step_by(100 * PAGE) {
                file.write_all_at(&page(round), at).expect("it is written");
            }
        };
        let (mut same, mut changed, mut whole, mut read) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            same.push(self.last_pass(&source, || ()));
            changed.push(self.last_pass(&source, || change(round)));
            let method = Some(HashMethod::Pieces);
            whole.push(timed(|| self.copy(&source, &self.directory, method, IMAGE_HOLE)));
            let mut plain = Command::new("dd");
            plain.arg(format!("if={}", source.display())).args(["of=/dev/null", "bs=1M", "status=none"]);
            read.push(timed(|| assert!(plain.status().expect("dd is there").success())));
        }
        tell("last pass, nothing changed, against a copy", "0.30", same.clone(), whole.clone());
        tell("last pass, 1 % of the pages changed, against a copy", "none", changed, whole);
        tell("last pass, nothing changed, against a plain read", "1.00", same, read);
    }
}

fn main() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let copies = Copies { runtime, directory: directory.path().to_owned() };
    copies.holes();
    copies.programs();
    copies.scattered();
    copies.passes();
}
