//! What the journal costs, against what its bytes alone cost, measured in turns in one run.
//!
//! - append: the intents of a stage and their sync, against a write and `fdatasync` of as many bytes;
//! - open: opening and folding a journal of 100,000 records, against reading the file and taking its CRC-32C.
//!
//! Besides criterion's figures it prints a line for each ratio: its name, the ratio of the medians, and the target.

#![allow(clippy::expect_used)]

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use nixbox::engine::journal::{Journal, Name, inspect};
use nixbox::engine::reader::WINDOW;
use nixbox::engine::record::{Ended, FileHeader, Record, VERSION, WorkspaceId, encode_frame};
use nixbox::engine::transition::{Generation, OperationId, TransitionId};
use nixbox::store::journal_files::FileStorage;

const WORKSPACE: WorkspaceId = WorkspaceId([0x11; 16]);
const RECORDS: u64 = 100_000;
/// What opening may take of memory, in bytes: the reader's window, and as much again twice.
const MEMORY: u64 = 3 * WINDOW as u64;

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
    journal: Journal<FileStorage>,
    left: u16,
}

impl Appending {
    fn new(path: &Path) -> Self {
        let journal =
            Journal::open(FileStorage::new(path).expect("a directory"), WORKSPACE, Generation(0), 1)
                .expect("open");
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
    let mut full = push(0, &Record::Checkpoint { final_state: &small, at_ms: 1 });
    let mut generation = 0;
    while !full {
        generation += 1;
        let begin = Record::Begin { operation: 1, parameters: &small, at_ms: 2 };
        let intents = (0..5).map(|index| Record::Intent { index, transition: index, payload: &payload });
        let outcomes = (0..5).map(|index| Record::Outcome { index, payload: &small, micros: 5 });
        let end = Record::End { ended: Ended::Done, final_state: &small, at_ms: 3 };
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
        let mut storage = FileStorage::new(directory.path()).expect("a directory");
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
    let size = std::fs::metadata(&path).expect("the journal").len();
    let grew = peak_growth(fold);
    println!(
        "peak memory of opening a journal of {} KiB: {} KiB more than before, limit {} KiB",
        size / 1024,
        grew / 1024,
        MEMORY / 1024
    );
    assert!(grew <= MEMORY);
    let mut group = criterion.benchmark_group("open");
    group.bench_function("open and fold", |bencher| bencher.iter(fold));
    group.bench_function("read and CRC-32C", |bencher| bencher.iter(&mut sum));
    group.finish();
}

/// By how many bytes the most memory that the process ever had in use grew while this ran.
fn peak_growth(run: impl Fn()) -> u64 {
    let field = |name: &str| -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.trim_end_matches("kB").trim().parse::<u64>().expect(name) * 1024
    };
    // Sets the peak back to what is in use now (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").expect("/proc/self/clear_refs");
    let before = field("VmRSS:");
    run();
    field("VmHWM:").saturating_sub(before)
}

criterion_group! {
    name = journal;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(3));
    targets = append, open
}
criterion_main!(journal);
