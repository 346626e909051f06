use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::files::copy::tests::{Stopping, mounted};
use crate::files::copy::{IMAGE_HOLE, NoProgress};
use crate::files::extents::PAGE;
use crate::files::hash::tests::root_of;
use crate::files::search::fingerprint::SearchKey;
use crate::files::search::forms::Form;
use crate::files::search::searcher::Searcher;
use crate::files::search::token_kinds::TokenKindSearch;

const TOKEN: &[u8] = b"a-token-of-24-characters";
const WORDS: &[u8] = b"correct horse battery";

/// A search that overwrites [`TOKEN`] and leaves [`WORDS`].
fn search() -> Arc<FileSearch> {
    let key = SearchKey::new([3; 32]);
    let pattern = |number, pattern: &[u8]| (key.fingerprint(pattern).unwrap(), number, Form::Plain);
    let searcher = Searcher::new(key.clone(), vec![pattern(0, TOKEN), pattern(1, WORDS)]);
    let kinds = Arc::new(TokenKindSearch::new().unwrap());
    Arc::new(FileSearch::new(Arc::new(searcher), vec![0]).with_token_kinds(kinds))
}

fn named(path: &Path) -> NamedFile {
    NamedFile { file: File::options().read(true).write(true).open(path).unwrap(), path: path.to_owned() }
}

fn request(source: &Path, target: &Path, search: Option<Arc<FileSearch>>) -> PrecopyRequest {
    File::create(target).unwrap();
    PrecopyRequest {
        what: "it".to_owned(),
        source: named(source),
        target: named(target),
        smallest_hole: IMAGE_HOLE,
        search,
    }
}

async fn first_pass(request: PrecopyRequest) -> Precopy {
    precopy(request, Arc::new(NoProgress), &Interrupt::new()).await.unwrap()
}

async fn second_pass(precopy: Precopy) -> Copied {
    precopy.finish(Arc::new(NoProgress), &Interrupt::new()).await.unwrap()
}

/// Compares a copy with what a search of the whole source at once makes of it.
fn check(source: &Path, target: &Path, copied: &Copied, search: &FileSearch) {
    let mut expected = std::fs::read(source).unwrap();
    let whole = 0..expected.len();
    let mut found = search.chunk(&mut expected, whole, 0);
    found.places.sort_unstable();
    assert!(std::fs::read(target).unwrap() == expected);
    assert_eq!(copied.hash, Some(root_of(&expected)));
    assert_eq!(copied.findings, found);
    assert!(copied.seams.is_empty());
}

/// What a guest does to its RAM, or to a disk.
#[derive(Debug, Clone)]
enum Write {
    Bytes(u8, usize),
    Token,
    HalfToken,
    Words,
    Kind,
    Zeros(usize),
    Hole,
}

fn write(file: &File, size: u64, at: u64, write: &Write) {
    let at = at % size;
    let put = |bytes: &[u8]| {
        let length = bytes.len().min((size - at) as usize);
        file.write_all_at(&bytes[..length], at).unwrap();
    };
    match write {
        Write::Bytes(byte, length) => put(&vec![*byte; *length]),
        Write::Token => put(TOKEN),
        Write::HalfToken => put(&TOKEN[..TOKEN.len() / 2]),
        Write::Words => put(WORDS),
        Write::Kind => put(b" glpat-16C7e42F292c6912E771 "),
        Write::Zeros(length) => put(&vec![0; *length]),
        Write::Hole => {
            let page = at / PIECE * PIECE;
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, punch, page, PIECE).unwrap();
        }
    }
}

fn some_writes() -> impl Strategy<Value = Vec<(u64, Write)>> {
    // Most of them near the edges of pieces and blocks, where a value lies across.
    let near = |unit: u64| {
        (0..48_u64, 0..64_u64).prop_map(move |(number, at)| (number * unit + at).saturating_sub(32))
    };
    let at = prop_oneof![near(PIECE), near(BLOCK), 0..5 * BLOCK];
    let write = prop_oneof![
        (any::<u8>(), 1..200_000_usize).prop_map(|(byte, length)| Write::Bytes(byte, length)),
        Just(Write::Token),
        Just(Write::HalfToken),
        Just(Write::Words),
        Just(Write::Kind),
        (1..200_000_usize).prop_map(Write::Zeros),
        Just(Write::Hole),
    ];
    proptest::collection::vec((at, write), 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_written_between_the_passes_the_copy_is_what_the_file_is_then(
        size in prop_oneof![1..3 * PIECE, Just(3 * BLOCK), 1..4 * BLOCK],
        before in some_writes(),
        after in some_writes(),
        smallest_hole in prop_oneof![Just(PAGE), Just(IMAGE_HOLE)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (source, target) = (directory.path().join("source"), directory.path().join("target"));
        let file = File::options().read(true).write(true).create_new(true).open(&source).unwrap();
        file.set_len(size).unwrap();
        before.iter().for_each(|(at, what)| write(&file, size, *at, what));
        runtime.block_on(async {
            let search = search();
            let request = PrecopyRequest { smallest_hole, ..request(&source, &target, Some(Arc::clone(&search))) };
            let precopy = first_pass(request).await;
            after.iter().for_each(|(at, what)| write(&file, size, *at, what));
            let copied = second_pass(precopy).await;
            check(&source, &target, &copied, &search);
        });
    }
}

#[test]
fn writers_at_full_speed_before_the_last_pass_lose_nothing() {
    const SIZE: u64 = 4 << 20;
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut differed = 0;
    for round in 0..200 {
        std::fs::write(&source, vec![1; SIZE as usize]).unwrap();
        let search = search();
        let request = request(&source, &target, Some(Arc::clone(&search)));
        let ended = AtomicBool::new(false);
        let precopy = thread::scope(|scope| {
            for writer in 0..2 {
                let (ended, source) = (&ended, &source);
                scope.spawn(move || {
                    let file = named(source).file;
                    let mut random = fastrand::Rng::with_seed(2 * round + writer);
                    while !ended.load(Ordering::Relaxed) {
                        let at = random.u64(..SIZE / PIECE) * PIECE;
                        let what = match random.u8(..8) {
                            0 => Write::Token,
                            1 => Write::Hole,
                            2 => Write::Words,
                            byte => Write::Bytes(byte, random.usize(1..20_000)),
                        };
                        write(&file, SIZE, (at + random.u64(..64)).saturating_sub(32), &what);
                    }
                });
            }
            let precopy = runtime.block_on(first_pass(request));
            ended.store(true, Ordering::Relaxed);
            precopy
        });
        differed += u32::from(std::fs::read(&source).unwrap() != std::fs::read(&target).unwrap());
        check(&source, &target, &runtime.block_on(second_pass(precopy)), &search);
    }
    // Otherwise the writers were too slow to show anything.
    assert!(differed > 100, "{differed}");
}

#[tokio::test]
async fn the_last_pass_writes_only_what_differs() {
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    let piece = |byte: u8| vec![byte; PIECE as usize];
    std::fs::write(&source, [1, 2, 3, 4].map(piece).concat()).unwrap();
    let precopy = first_pass(request(&source, &target, Some(search()))).await;
    let file = named(&source).file;
    file.write_all_at(b"x", 2 * PIECE + PIECE / 2).unwrap();
    let copied = second_pass(precopy).await;
    assert_eq!(copied.method, CopyMethod::Sparse { read: 4 * PIECE, written: PIECE });
    check(&source, &target, &copied, &search());

    // A change at an edge concerns the neighbour, which a value may lie across.
    let precopy = first_pass(request(&source, &target, Some(search()))).await;
    file.write_all_at(&TOKEN[4..], PIECE).unwrap();
    let copied = second_pass(precopy).await;
    assert_eq!(copied.method, CopyMethod::Sparse { read: 4 * PIECE, written: 2 * PIECE });

    let precopy = first_pass(request(&source, &target, None)).await;
    let copied = second_pass(precopy).await;
    assert_eq!(copied.method, CopyMethod::Sparse { read: 4 * PIECE, written: 0 });
    assert_eq!(copied.hash, Some(root_of(&std::fs::read(&source).unwrap())));
}

const PIECES: u64 = 200;

/// Counts the passes, and changes the first pieces at the end of each, as many as the first number says.
struct Writer {
    file: File,
    pieces: u64,
    passes: AtomicU64,
}

impl Progress for Writer {
    fn progress(&self, _what: &str, done: u64, total: u64) {
        // The last call of a pass has the bytes that were read twice.
        if done == total && done == PIECES * PIECE && self.passes.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            let number = self.passes.load(Ordering::Relaxed) as u8;
            let bytes = vec![number; PIECE as usize];
            (0..self.pieces).for_each(|piece| self.file.write_all_at(&bytes, piece * PIECE).unwrap());
        }
    }
}

#[tokio::test]
async fn passes_are_repeated_until_little_differs_or_the_writer_is_too_fast() {
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    for (pieces, passes) in [(0, 2), (1, 2), (PIECES / 2, MOST_PASSES as u64)] {
        std::fs::write(&source, vec![200; (PIECES * PIECE) as usize]).unwrap();
        let passed = AtomicU64::new(0);
        let writer = Arc::new(Writer { file: named(&source).file, pieces, passes: passed });
        let request = request(&source, &target, Some(search()));
        let precopied = precopy(request, writer.clone(), &Interrupt::new()).await.unwrap();
        // Each pass tells its end twice: with its last bytes, and when all threads have ended.
        assert_eq!(writer.passes.load(Ordering::Relaxed), 2 * passes, "{pieces}");
        check(&source, &target, &second_pass(precopied).await, &search());
    }
}

#[tokio::test]
async fn a_file_that_fits_no_longer_or_changes_its_size_is_an_error_of_either_pass() {
    let test = "files::copy::precopy::tests::a_file_that_fits_no_longer_or_changes_its_size_is_an_error_of_either_pass";
    let Some(mounts) = mounted(test) else { return };
    // The file system of the targets has room for 8 MiB.
    let (source, small) = (mounts.join("tmpfs/source"), mounts.join("small/target"));
    std::fs::write(&source, vec![1; 12 << 20]).unwrap();
    let full = precopy(request(&source, &small, None), Arc::new(NoProgress), &Interrupt::new()).await;
    assert!(matches!(full, Err(CopyError::Full { .. })));

    let file = named(&source).file;
    file.set_len(0).unwrap();
    file.set_len(12 << 20).unwrap();
    file.write_all_at(&vec![1; 6 << 20], 0).unwrap();
    let precopied = first_pass(request(&source, &small, None)).await;
    file.write_all_at(&vec![1; 6 << 20], 6 << 20).unwrap();
    let full = precopied.finish(Arc::new(NoProgress), &Interrupt::new()).await;
    assert!(matches!(full, Err(CopyError::Full { .. })));

    let target = mounts.join("tmpfs/target");
    let precopied = first_pass(request(&source, &target, None)).await;
    file.set_len(5 << 20).unwrap();
    let shrunk = precopied.finish(Arc::new(NoProgress), &Interrupt::new()).await;
    assert!(matches!(shrunk, Err(CopyError::Shrunk { .. })));
}

#[tokio::test]
async fn a_guest_that_repeats_a_value_everywhere_cannot_fill_the_memory_of_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    std::fs::write(&source, WORDS.repeat(2 * PIECE as usize / WORDS.len())).unwrap();
    let copied = second_pass(first_pass(request(&source, &target, Some(search()))).await).await;
    assert_eq!(copied.findings.of(1), 2 * PIECE / WORDS.len() as u64);
    assert_eq!(copied.findings.places.len(), 2 * MOST_PLACES);
}

#[tokio::test]
async fn an_interrupt_ends_either_pass() {
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    std::fs::write(&source, vec![1; 12 << 20]).unwrap();
    let stopping = |interrupt: &Interrupt| Arc::new(Stopping(interrupt.clone()));
    let interrupt = Interrupt::new();
    let ended = precopy(request(&source, &target, None), stopping(&interrupt), &interrupt).await;
    assert!(matches!(ended, Err(CopyError::Interrupted)));

    let precopied = first_pass(request(&source, &target, None)).await;
    let interrupt = Interrupt::new();
    let ended = precopied.finish(stopping(&interrupt), &interrupt).await;
    assert!(matches!(ended, Err(CopyError::Interrupted)));
}
