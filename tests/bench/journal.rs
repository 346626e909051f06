//! What the journal costs, against what its bytes alone cost, measured in turns in one run.
//!
//! - append: the intents of a stage and their sync, against a write and `fdatasync` of as many bytes;
//! - open: opening and folding a journal of 100,000 records, against reading the file and taking its CRC-32C.
//!
//! Besides criterion's figures it prints a line for each ratio: its name, the ratio of the medians, and the target.

#![allow(clippy::expect_used)]

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use nixbox::engine::journal::{Journal, Name, Storage, inspect};
use nixbox::engine::reader::{self, Source, WINDOW};
use nixbox::engine::record::{Ended, FILE_HEADER, FileHeader, Record, VERSION, WorkspaceId, encode_frame};
use nixbox::engine::transition::{Generation, OperationId, TransitionId};

const WORKSPACE: WorkspaceId = WorkspaceId([0x11; 16]);
const RECORDS: u64 = 100_000;

/// A journal's files in a directory, plainly.
struct Directory {
    path: PathBuf,
    current: Option<File>,
}

impl Directory {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), current: None }
    }

    fn join(&self, name: Name) -> PathBuf {
        self.path.join(name.file_name())
    }

    fn with<T>(&mut self, name: Name, call: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let path = self.join(name);
        let open = || OpenOptions::new().create(true).read(true).append(true).open(path);
        if name != Name::Current {
            return call(&open()?);
        }
        let file = match self.current.take() {
            Some(file) => file,
            None => open()?,
        };
        let result = call(&file);
        self.current = Some(file);
        result
    }
}

impl Storage for Directory {
    fn size(&mut self, name: Name) -> io::Result<Option<u64>> {
        match std::fs::metadata(self.join(name)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_at(&mut self, name: Name, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.with(name, |file| file.read_at(buffer, offset))
    }

    fn append(&mut self, name: Name, bytes: &[u8]) -> io::Result<()> {
        self.with(name, |mut file| file.write_all(bytes))
    }

    fn reserve(&mut self, name: Name, bytes: u64) -> io::Result<()> {
        self.with(name, |file| {
            let end = file.metadata()?.len();
            let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
            Ok(rustix::fs::fallocate(file, keep, end, bytes)?)
        })
    }

    fn sync(&mut self, name: Name) -> io::Result<()> {
        self.with(name, File::sync_data)
    }

    fn truncate(&mut self, name: Name, size: u64) -> io::Result<()> {
        self.with(name, |file| file.set_len(size))
    }

    fn remove(&mut self, name: Name) -> io::Result<()> {
        match std::fs::remove_file(self.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn link(&mut self, from: Name, to: Name) -> io::Result<()> {
        std::fs::hard_link(self.join(from), self.join(to))
    }

    fn rename(&mut self, from: Name, to: Name) -> io::Result<()> {
        self.current = None;
        std::fs::rename(self.join(from), self.join(to))
    }

    fn sync_names(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn path(&self, name: Name) -> String {
        self.join(name).display().to_string()
    }

    fn salt(&mut self) -> io::Result<u64> {
        Ok(0x1234_5678_9abc_def0)
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Runs both in turns, so that what else goes on is the same for both, and prints the ratio of their medians.
fn compare(name: &str, target: f64, rounds: usize, mut ours: impl FnMut(), mut bare: impl FnMut()) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let timed = |call: &mut dyn FnMut()| {
        let begun = Instant::now();
        call();
        begun.elapsed()
    };
    for round in 0..rounds {
        // Who goes first changes, so that neither always pays for what the other left behind.
        if round % 2 == 0 {
            first.push(timed(&mut ours));
            second.push(timed(&mut bare));
        } else {
            second.push(timed(&mut bare));
            first.push(timed(&mut ours));
        }
    }
    let (ours, bare) = (median(first), median(second));
    let ratio = ours.as_secs_f64() / bare.as_secs_f64();
    println!("{name}: ratio {ratio:.2}, target {target:.2} ({ours:?} against {bare:?})");
}

/// The intents of one stage: five transitions, of some 100 bytes each.
fn stage() -> Vec<(u16, TransitionId, Vec<u8>)> {
    (0..5).map(|index| (index, TransitionId(index), vec![index as u8; 100])).collect()
}

/// An operation that is about to write its stages, one after the other.
struct Appending {
    journal: Journal<Directory>,
    left: u16,
}

impl Appending {
    fn new(path: &Path) -> Self {
        let journal = Journal::open(Directory::new(path), WORKSPACE, Generation(0), 1).expect("open");
        Self { journal, left: 0 }
    }

    /// Outside of what is measured: an operation has room for so many transitions.
    fn make_room(&mut self) {
        if self.left < 5 {
            if self.journal.open_operation().is_some() {
                self.journal.end(Ended::Done, b"", 2).expect("end");
            }
            self.journal.begin(OperationId(1), b"", 1).expect("begin");
            self.journal.sync().expect("sync");
            self.left = 250;
        }
    }

    fn intents(&mut self, intents: &mut [(u16, TransitionId, Vec<u8>)]) {
        for intent in intents.iter_mut() {
            intent.0 = 250 - self.left;
            self.left -= 1;
        }
        self.journal.intents(intents).expect("intents");
    }
}

fn append(criterion: &mut Criterion) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut appending = Appending::new(directory.path());
    let mut intents = stage();
    appending.make_room();
    let current = directory.path().join(Name::Current.file_name());
    let size = || std::fs::metadata(&current).expect("the journal").len();
    let before = size();
    appending.intents(&mut intents);
    let bytes = vec![0xA5; (size() - before) as usize];
    let mut bare =
        OpenOptions::new().create(true).append(true).open(directory.path().join("bare")).expect("a file");
    let mut write = || {
        bare.write_all(&bytes).expect("write");
        bare.sync_data().expect("fdatasync");
    };
    let mut turn = |appending: &mut Appending| {
        appending.make_room();
        appending.intents(&mut intents);
    };
    // An operation of fifty stages begins now and then; one round in fifty does not move the median.
    compare(
        "append of a stage's intents with its sync, against write and fdatasync",
        1.2,
        2000,
        || turn(&mut appending),
        &mut write,
    );
    let mut group = criterion.benchmark_group("append");
    group.bench_function("intents and sync", |bencher| {
        bencher.iter(|| turn(&mut appending));
    });
    group.bench_function("write and fdatasync", |bencher| bencher.iter(&mut write));
    group.finish();
}

/// Operations of five transitions each, as `up` and `down` leave them.
fn large_journal(path: &Path) {
    let header = FileHeader { version: VERSION, workspace: WORKSPACE, salt: 1, first_sequence: 1 };
    let mut bytes = header.encode().to_vec();
    let mut sequence = 1;
    let mut push = |generation: u64, record: &Record<'_>| {
        encode_frame(&mut bytes, 1, sequence, Generation(generation), sequence - 1, record)
            .expect("a record");
        sequence += 1;
        sequence > RECORDS
    };
    let (payload, small) = ([7; 60], [8; 24]);
    let mut full = push(0, &Record::Checkpoint { standing: &small, at_ms: 1 });
    let mut generation = 0;
    while !full {
        generation += 1;
        let begin = Record::Begin { operation: 1, parameters: &small, at_ms: 2 };
        let intents = (0..5).map(|index| Record::Intent { index, transition: index, payload: &payload });
        let outcomes = (0..5).map(|index| Record::Outcome { index, payload: &small, micros: 5 });
        let end = Record::End { ended: Ended::Done, standing: &small, at_ms: 3 };
        full = [begin]
            .into_iter()
            .chain(intents)
            .chain(outcomes)
            .chain([end])
            .any(|record| push(generation, &record));
    }
    std::fs::write(path.join(Name::Current.file_name()), bytes).expect("write");
}

fn open(criterion: &mut Criterion) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    large_journal(directory.path());
    let path = directory.path().join(Name::Current.file_name());
    let fold = || {
        let mut storage = Directory::new(directory.path());
        let read = inspect(&mut storage, Some(WORKSPACE), |_| {}).expect("a journal");
        let (scan, history) = read.expect("a journal");
        assert_eq!(scan.records, RECORDS);
        black_box(history);
    };
    let mut buffer = vec![0; WINDOW];
    let mut sum = || {
        let file = File::open(&path).expect("the journal");
        let (mut check, mut at) = (0, 0);
        loop {
            let size = file.read_at(&mut buffer, at).expect("read");
            if size == 0 {
                break;
            }
            check = crc32c::crc32c_append(check, &buffer[..size]);
            at += size as u64;
        }
        black_box(check);
    };
    compare("open and fold of 100,000 records, against reading and CRC-32C", 5.0, 200, fold, &mut sum);
    let largest = largest_read(&path);
    println!("largest read while opening: {largest} bytes, limit {WINDOW}");
    assert!(largest <= WINDOW);
    let mut group = criterion.benchmark_group("open");
    group.bench_function("open and fold", |bencher| bencher.iter(fold));
    group.bench_function("read and CRC-32C", |bencher| bencher.iter(&mut sum));
    group.finish();
}

struct Largest(File, usize);

impl Source for Largest {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = self.1.max(buffer.len());
        self.0.read_at(buffer, offset)
    }
}

fn largest_read(path: &Path) -> usize {
    let mut source = Largest(File::open(path).expect("the journal"), FILE_HEADER);
    reader::scan(&mut source, None, |_| Ok::<_, std::convert::Infallible>(())).expect("a journal");
    source.1
}

criterion_group! {
    name = journal;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(3));
    targets = append, open
}
criterion_main!(journal);
