//! What the search for credentials costs: 8 values with all their forms, in a file that is in the page cache, measured in turns
//! with what reads the same file otherwise.
//!
//! - against `grep -a -F -c` with as many patterns (LC_ALL=C), which is to take at least 5 times as long;
//! - against `rg -a -F -c` of one thread with as many patterns, which is to take at least 0.8 times as long;
//! - by two threads against a plain read of the file, which is to take at least half as long;
//! - by one thread that also computes BLAKE3: it takes at most 1.3 times the slower of a search alone and of BLAKE3 alone.
//!
//! All of them read the file; how fast the search is in memory is printed besides.
//!
//! It prints a line for each ratio: its name, the ratio of the medians, and the target. Then it searches 4 GiB of random bytes
//! and as much of the files below `/usr`, or below the directory that `NIXBOX_BENCH_FILES` names, and prints how often the 20
//! bits fit by chance and how often BLAKE3 agreed, which is never.

#![allow(clippy::expect_used)]

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nixbox::files::search::fingerprint::SearchKey;
use nixbox::files::search::forms::forms_of;
use nixbox::files::search::searcher::Searcher;

const SIZE: usize = 128 << 20;
const CHUNK: usize = 1 << 20;
const ROUNDS: usize = 9;
/// How much is searched for chance hits.
const MUCH: u64 = 4 << 30;

/// Bytes as a program has them: machine code, text and zeros.
fn bytes() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SIZE);
    let program = std::env::current_exe().expect("this program has a path");
    while bytes.len() < SIZE {
        File::open(&program).and_then(|mut file| file.read_to_end(&mut bytes)).expect("it can be read");
    }
    bytes.truncate(SIZE);
    bytes
}

fn values() -> impl Iterator<Item = Vec<u8>> {
    let letter = |byte: &u8| {
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[usize::from(byte % 64)]
    };
    (0..8_u8).map(move |number| blake3::hash(&[number]).as_bytes().iter().map(letter).collect())
}

/// The search for all forms of the values, and the patterns as lines.
fn searcher() -> (Searcher, Vec<u8>) {
    let key = SearchKey::new([7; 32]);
    let (mut wanted, mut lines) = (Vec::new(), Vec::new());
    for (number, value) in (0..).zip(values()) {
        for (form, pattern) in forms_of(&value) {
            wanted.extend(key.fingerprint(&pattern).map(|fingerprint| (fingerprint, number, form)));
            // grep reads no pattern with a zero byte, and gets as many others.
            lines.extend(pattern.iter().map(|byte| (*byte).max(1)));
            lines.push(b'\n');
        }
    }
    println!("{} patterns", wanted.len());
    (Searcher::new(key, wanted), lines)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn timed(call: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    call();
    begun.elapsed()
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

/// Counts the lines of the file that hold a pattern, as `program` does with these arguments.
fn count_lines(program: &str, arguments: &[&str], patterns: &Path, file: &Path) {
    let mut counting = Command::new(program);
    counting.env("LC_ALL", "C").args(arguments).args(["-a", "-F", "-c", "-f"]).args([patterns, file]);
    counting.stdout(Stdio::null()).status().expect("the program can be started");
}

/// Reads every `step`-th chunk of the file, from the chunk `first` on.
fn read(file: &File, first: usize, step: usize, mut each: impl FnMut(&[u8])) {
    let mut buffer = vec![0; CHUNK];
    for chunk in (first..SIZE / CHUNK).step_by(step) {
        file.read_exact_at(&mut buffer, (chunk * CHUNK) as u64).expect("the file can be read");
        each(&buffer);
    }
}

/// Reads the file by two threads.
fn read_by_two(file: &File, each: impl Fn(&[u8]) + Sync) {
    std::thread::scope(|scope| {
        scope.spawn(|| read(file, 0, 2, &each));
        read(file, 1, 2, &each);
    });
}

fn compare(searcher: &Searcher, lines: &[u8], bytes: &[u8]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (patterns, path) = (directory.path().join("patterns"), directory.path().join("file"));
    std::fs::write(&patterns, lines).expect("a file");
    std::fs::write(&path, bytes).expect("a file");
    let file = File::open(&path).expect("it was made");
    let found = |chunk: &[u8]| {
        black_box(searcher.search(chunk, usize::MAX, |hit| {
            black_box(hit);
        }));
    };
    let has_ripgrep = Command::new("rg").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !has_ripgrep {
        println!("there is no rg, so it is not compared with");
    }

    let mut times: [Vec<Duration>; 8] = Default::default();
    for _ in 0..ROUNDS {
        let round = [
            timed(|| read(&file, 0, 1, found)),
            timed(|| count_lines("grep", &[], &patterns, &path)),
            timed(|| count_lines(if has_ripgrep { "rg" } else { "true" }, &["-j1"], &patterns, &path)),
            timed(|| {
                read(&file, 0, 1, |chunk| {
                    black_box(chunk);
                });
            }),
            timed(|| {
                read_by_two(&file, |chunk| {
                    black_box(chunk);
                });
            }),
            timed(|| read_by_two(&file, found)),
            timed(|| {
                let mut hasher = blake3::Hasher::new();
                read(&file, 0, 1, |chunk| {
                    hasher.update(chunk);
                });
                black_box(hasher.finalize());
            }),
            timed(|| {
                let mut hasher = blake3::Hasher::new();
                read(&file, 0, 1, |chunk| {
                    found(chunk);
                    hasher.update(chunk);
                });
                black_box(hasher.finalize());
            }),
        ];
        times.iter_mut().zip(round).for_each(|(times, time)| times.push(time));
    }
    let [ours, grep, ripgrep, plain, plain_by_two, by_two, hash, both] = times.map(median);
    println!("search against grep: {:.2} times as fast, target 5 ({ours:?}, {grep:?})", ratio(grep, ours));
    if has_ripgrep {
        let fast = ratio(ripgrep, ours);
        println!("search against rg: {fast:.2} times as fast, target 0.80 ({ours:?}, {ripgrep:?})");
    }
    println!(
        "search by two threads against a plain read: {:.2} times as fast, target 0.50 ({by_two:?}, {plain:?}; \
         a read by two threads {plain_by_two:?})",
        ratio(plain, by_two)
    );
    let slower = ours.max(hash);
    println!(
        "search with BLAKE3: ratio {:.2}, target 1.30 ({both:?}, {ours:?} and {hash:?})",
        ratio(both, slower)
    );
}

/// Bytes of all regular files below a directory, one chunk after the other, until `each` wants no more.
fn walk(directory: PathBuf, each: &mut impl FnMut(&[u8]) -> bool) {
    let mut directories = vec![directory];
    let mut buffer = vec![0; CHUNK];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    let Ok(mut file) = File::open(entry.path()) else { continue };
                    while let Ok(read @ 1..) = file.read(&mut buffer) {
                        if !each(&buffer[..read]) {
                            return;
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// How often the 20 bits fitted by chance.
#[derive(Default)]
struct ChanceHits {
    bytes: u64,
    fitting: u64,
    confirmed: u64,
}

impl ChanceHits {
    /// Searches a chunk; `false` if that was enough.
    fn count(&mut self, searcher: &Searcher, chunk: &[u8]) -> bool {
        self.bytes += chunk.len() as u64;
        self.fitting += searcher.search(chunk, usize::MAX, |_| self.confirmed += 1);
        self.bytes < MUCH
    }

    fn print(&self, what: &str) {
        let Self { bytes, fitting, confirmed } = self;
        let per_gib = *fitting as f64 * f64::from(1 << 30) / *bytes as f64;
        println!(
            "{what}: in {bytes} bytes the 20 bits fit {fitting} times ({per_gib:.0} per GiB), BLAKE3 {confirmed} times"
        );
    }
}

fn count_chance_hits(searcher: &Searcher) {
    let mut hits = ChanceHits::default();
    let mut random = fastrand::Rng::with_seed(1);
    let mut chunk = vec![0; CHUNK];
    random.fill(&mut chunk);
    while hits.count(searcher, &chunk) {
        random.fill(&mut chunk);
    }
    hits.print("random bytes");
    let mut hits = ChanceHits::default();
    let files = PathBuf::from(std::env::var_os("NIXBOX_BENCH_FILES").unwrap_or_else(|| "/usr".into()));
    walk(files.clone(), &mut |chunk| hits.count(searcher, chunk));
    hits.print(&format!("files below {}", files.display()));
}

fn search(criterion: &mut Criterion) {
    let (searcher, lines) = searcher();
    let bytes = bytes();
    compare(&searcher, &lines, &bytes);
    count_chance_hits(&searcher);
    let mut group = criterion.benchmark_group("search");
    group.sample_size(10).throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("8 values", |bencher| {
        bencher.iter(|| {
            for chunk in bytes.chunks(CHUNK) {
                black_box(searcher.search(chunk, usize::MAX, |hit| {
                    black_box(hit);
                }));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, search);
criterion_main!(benches);
