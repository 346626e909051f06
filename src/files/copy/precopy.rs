//! A copy in several passes of a file that something writes to until the last pass begins.
//!
//! The first pass copies, searches and hashes the file while its writers go on. Each further pass reads the file once more,
//! and copies, searches and hashes the pieces that differ. [`precopy`] makes passes until little differs. The last pass
//! ([`Precopy::finish`]) begins when the writers stand still. The copy is then what the file was when the writers stopped.
//! So a VM has to stand still for one reading of its RAM, at the speed of memory, and not for writing, searching and
//! hashing.
//!
//! # What is compared
//!
//! A pass keeps a digest for each piece of [`PIECE`] bytes that it has read: of the piece and of the bytes around it that
//! its search looked at, as they were in the same reading. If a later pass finds the same bytes there, then the copy, the
//! hash and the findings of the earlier pass are what it would come to itself. So it does not matter that a pass may have
//! read neighbours at different times.
//!
//! The digest is XXH3 of 128 bits with a random seed that no other copy has. It is computed at the speed of memory. It is
//! no cryptographic hash: a guest that could find two contents with the same digest, without having seen the seed or any
//! digest, would damage the snapshot of its own RAM and nothing else.
//!
//! The digests and hashes stay in memory, about 100 bytes for each piece: 2 MiB for a GiB of data.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{Advice, FallocateFlags};
use rustix::io::Errno;
use twox_hash::XxHash3_128;

use super::reading::lock;
use super::threads::on_threads;
use super::{
    Copied, CopyError, CopyMethod, NamedFile, Progress, Result, answering, extent, read_error, sync,
    write_error,
};
use crate::files::FileError;
use crate::files::extents::{BLOCK, DataBlock, DataBlocks, is_zero, runs_of_data};
use crate::files::hash::pieces::{PIECE, hash_of_piece, root_of_pieces};
use crate::files::search::findings::{FileSearch, Findings};
use crate::world::Interrupt;

/// The most passes while the writers go on. A guest that writes faster than it is copied is not waited for.
const MOST_PASSES: usize = 4;
/// Little differs if a pass had to write no more than this part of what it has read.
const LITTLE: u64 = 64;

/// How many places are kept of what was found in a piece, so that a guest cannot fill this host's memory with them. A snapshot
/// whose findings were overwritten is searched again, and that search finds the others.
const MOST_PLACES: usize = 64;

/// A copy to be made in several passes.
pub struct PrecopyRequest {
    /// For people: "disk 0", "memory".
    pub what: String,
    /// Opened for reading. Its size does not change.
    pub source: NamedFile,
    /// A new file, opened for reading and writing, empty.
    pub target: NamedFile,
    /// How many zeros become a hole of the target, in bytes: see [`super::IMAGE_HOLE`].
    pub smallest_hole: usize,
    /// What to search for. What it overwrites is overwritten in the copy alone.
    pub search: Option<Arc<FileSearch>>,
}

/// What a pass has made of a piece that is not zeros.
struct CopiedPiece {
    /// The digest of what the piece was made from.
    digest: u128,
    /// The hash of the piece in the target; `None` if it is zeros there.
    hash: Option<[u8; 32]>,
    /// What begins in the piece, if anything.
    findings: Option<Box<Findings>>,
}

type Pieces = BTreeMap<u64, CopiedPiece>;

/// A file that was copied while something wrote to it.
pub struct Precopy {
    request: Arc<PrecopyRequest>,
    seed: u64,
    size: u64,
    pieces: Pieces,
}

/// Makes the passes before the last one. What they wrote is on the medium when this returns, so that the last pass finds
/// room in the page cache, and does not have to wait for the medium.
///
/// # Errors
/// See [`CopyError`]. The target then has some of the content.
pub async fn precopy(
    request: PrecopyRequest,
    progress: Arc<dyn Progress>,
    interrupt: &Interrupt,
) -> Result<Precopy> {
    let seed = getrandom::u64().map_err(CopyError::Random)?;
    let (size, total) = extent(&request.source)?;
    let target = &request.target;
    target.file.set_len(size).map_err(|error| write_error(target, error, 0))?;
    let mut precopy = Precopy { request: Arc::new(request), seed, size, pieces: Pieces::new() };
    for _ in 0..MOST_PASSES {
        let pass = precopy.pass(total, Arc::clone(&progress), interrupt).await?;
        if let CopyMethod::Sparse { read, written } = pass
            && written <= read / LITTLE
        {
            break;
        }
    }
    let target = &precopy.request.target;
    let written = target.file.try_clone().map_err(FileError::system("open", &target.path))?;
    sync(NamedFile { file: written, path: target.path.clone() }, interrupt).await?;
    Ok(precopy)
}

impl Precopy {
    /// Makes the last pass: the target then has the content that the source has now. Nothing may write to the source
    /// meanwhile.
    ///
    /// # Errors
    /// See [`CopyError`]. The target then has some of the content.
    pub async fn finish(mut self, progress: Arc<dyn Progress>, interrupt: &Interrupt) -> Result<Copied> {
        let (size, total) = extent(&self.request.source)?;
        if size != self.size {
            return Err(CopyError::Shrunk { path: self.request.source.path.clone() });
        }
        let method = self.pass(total, Arc::clone(&progress), interrupt).await?;
        let mut findings = Findings::default();
        let mut hashes = Vec::with_capacity(self.pieces.len());
        for (number, piece) in self.pieces {
            hashes.extend(piece.hash.map(|hash| (number, hash)));
            findings.add(piece.findings.map(|found| *found).unwrap_or_default());
        }
        let hash = answering(interrupt, move || root_of_pieces(size, &hashes)).await?;
        progress.copied(&self.request.what, method);
        Ok(Copied { method, hash: Some(hash), findings, seams: Vec::new() })
    }

    /// Reads all data, and makes anew the pieces that are not known as they are now.
    async fn pass(
        &mut self,
        total: u64,
        progress: Arc<dyn Progress>,
        interrupt: &Interrupt,
    ) -> Result<CopyMethod> {
        let stop = interrupt.child();
        // The threads end when the future is dropped.
        let _stop_with_this_future = stop.on_drop();
        // What is read once shall not push other files out of the page cache. A kernel that does not know the advice keeps
        // the pages as it would otherwise.
        rustix::fs::fadvise(&self.request.source.file, 0, None, Advice::NoReuse).ok();
        let [read, written] = [const { AtomicU64::new(0) }; 2];
        let pass = Arc::new(Pass {
            margin: self.request.search.as_ref().map_or(0, |search| search.margin()),
            request: Arc::clone(&self.request),
            seed: self.seed,
            size: self.size,
            total,
            blocks: DataBlocks::new(self.size),
            former: Mutex::new(std::mem::take(&mut self.pieces)),
            pieces: Mutex::default(),
            read,
            written,
            progress,
            stop,
        });
        let readers = Arc::clone(&pass);
        on_threads(total, &pass.stop, move || readers.read_blocks()).await?;
        let cleared = Arc::clone(&pass);
        answering(&pass.stop, move || cleared.clear_former()).await??;
        let [read, written] = [&pass.read, &pass.written].map(|bytes| bytes.load(Ordering::Relaxed));
        pass.progress.progress(&pass.request.what, read, read);
        self.pieces = std::mem::take(&mut *lock(&pass.pieces));
        Ok(CopyMethod::Sparse { read, written })
    }
}

/// A piece that is not known as it is now.
struct ChangedPiece {
    number: u64,
    digest: u128,
    /// Whether the target has data there.
    was_written: bool,
}

/// A run of pieces that was read, with the bytes around it.
struct RunBytes<'a> {
    bytes: &'a mut [u8],
    /// Where the bytes begin in the file.
    offset: u64,
    /// The run itself, as a range of the file.
    range: Range<u64>,
}

impl RunBytes<'_> {
    fn index(&self, range: &Range<u64>) -> Range<usize> {
        let index = |at: u64| (at.max(self.offset) - self.offset) as usize;
        index(range.start)..index(range.end).min(self.bytes.len())
    }

    fn at(&self, range: &Range<u64>) -> &[u8] {
        &self.bytes[self.index(range)]
    }

    /// A range with the bytes around it.
    fn with_margin(range: &Range<u64>, margin: usize) -> Range<u64> {
        range.start.saturating_sub(margin as u64)..range.end + margin as u64
    }

    /// The bytes that the content of a piece in the copy is made from.
    fn window(&self, number: u64, margin: usize) -> &[u8] {
        let piece = number * PIECE..((number + 1) * PIECE).min(self.range.end);
        self.at(&Self::with_margin(&piece, margin))
    }

    /// The bytes of a range and around it, where the range is in them, and where they begin in the file.
    fn around(&mut self, range: &Range<u64>, margin: usize) -> (&mut [u8], Range<usize>, u64) {
        let (inner, outer) = (self.index(range), self.index(&Self::with_margin(range, margin)));
        let offset = self.offset + outer.start as u64;
        (&mut self.bytes[outer.clone()], inner.start - outer.start..inner.end - outer.start, offset)
    }
}

/// The state that the threads of a pass share.
struct Pass {
    request: Arc<PrecopyRequest>,
    seed: u64,
    size: u64,
    /// How much is data, for the progress.
    total: u64,
    /// How many bytes before a piece, and after it, its search looks at.
    margin: usize,
    blocks: DataBlocks,
    /// The pieces of the pass before that this one has not met yet.
    former: Mutex<Pieces>,
    pieces: Mutex<Pieces>,
    read: AtomicU64,
    written: AtomicU64,
    progress: Arc<dyn Progress>,
    stop: Interrupt,
}

impl Pass {
    /// Reads blocks until none is left.
    fn read_blocks(&self) -> Result<()> {
        let mut buffer = vec![0; BLOCK as usize + 2 * self.margin];
        let source = &self.request.source;
        while let Some(block) = self.blocks.take(&source.file).map_err(|error| read_error(source, error))? {
            let mut at = block.range.start;
            while at < block.range.end {
                if self.stop.requested() {
                    return Err(CopyError::Interrupted);
                }
                let run = self.next_run(&block, at)?;
                at = run.end;
                if !run.is_empty() {
                    self.read_run(run, &mut buffer)?;
                }
            }
        }
        Ok(())
    }

    fn next_run(&self, block: &DataBlock, at: u64) -> Result<Range<u64>> {
        let source = &self.request.source;
        block.next_run(&source.file, at, PIECE).map_err(|error| read_error(source, error))
    }

    /// Reads a run of pieces, and makes those anew that are not as they were.
    fn read_run(&self, run: Range<u64>, buffer: &mut [u8]) -> Result<()> {
        let margin = self.margin as u64;
        let from = run.start - margin.min(run.start);
        let to = self.size.min(run.end + margin);
        let bytes = &mut buffer[..(to - from) as usize];
        let source = &self.request.source;
        source.file.read_exact_at(bytes, from).map_err(|error| read_error(source, error))?;
        let mut run_bytes = RunBytes { bytes, offset: from, range: run.clone() };

        let numbers = run.start / PIECE..run.end.div_ceil(PIECE);
        let mut former = self.take_former(numbers.clone());
        let (mut pieces, mut changed) = (Pieces::new(), Vec::new());
        for number in numbers {
            let window = run_bytes.window(number, self.margin);
            let known = former.get(&number);
            if is_zero(window) && known.is_none() {
                continue;
            }
            let digest = XxHash3_128::oneshot_with_seed(self.seed, window);
            match former.remove(&number) {
                Some(piece) if piece.digest == digest => drop(pieces.insert(number, piece)),
                before => changed.push(ChangedPiece {
                    number,
                    digest,
                    was_written: before.is_some_and(|piece| piece.hash.is_some()),
                }),
            }
        }
        for neighbours in changed.chunk_by(|piece, next| piece.number + 1 == next.number) {
            pieces.append(&mut self.make(neighbours, &mut run_bytes)?);
        }
        lock(&self.pieces).append(&mut pieces);
        let read = run.end - run.start;
        let read = self.read.fetch_add(read, Ordering::Relaxed) + read;
        self.progress.progress(&self.request.what, read, self.total.max(read));
        Ok(())
    }

    fn take_former(&self, numbers: Range<u64>) -> Pieces {
        let mut former = lock(&self.former);
        numbers.filter_map(|number| former.remove_entry(&number)).collect()
    }

    /// Searches, hashes and writes pieces that follow each other.
    fn make(&self, changed: &[ChangedPiece], run: &mut RunBytes<'_>) -> Result<Pieces> {
        let ([first, ..], [.., last]) = (changed, changed) else { return Ok(Pieces::new()) };
        let range = first.number * PIECE..((last.number + 1) * PIECE).min(run.range.end);
        let mut findings = Vec::new();
        if let Some(search) = &self.request.search {
            let (bytes, chunk, offset) = run.around(&range, self.margin);
            findings = search.parts(bytes, chunk, offset, PIECE as usize);
        }
        let mut findings = findings.into_iter();
        let mut made = Pieces::new();
        for (piece, bytes) in changed.iter().zip(run.at(&range).chunks(PIECE as usize)) {
            let mut findings = findings.next().filter(|found| !found.is_empty()).map(Box::new);
            if let Some(found) = &mut findings {
                found.places.truncate(MOST_PLACES);
                found.places.shrink_to_fit();
            }
            let hash = hash_of_piece(bytes);
            self.write_piece(piece, hash.is_some().then_some(bytes))?;
            made.insert(piece.number, CopiedPiece { digest: piece.digest, hash, findings });
        }
        Ok(made)
    }

    /// Writes a piece to the target; `None` if it is zeros.
    fn write_piece(&self, piece: &ChangedPiece, bytes: Option<&[u8]>) -> Result<()> {
        let at = piece.number * PIECE;
        match bytes {
            None if piece.was_written => self.clear(piece.number),
            None => Ok(()),
            // The target has other data there, which zeros have to replace as well.
            Some(bytes) if piece.was_written => self.write(bytes, at),
            Some(bytes) if self.request.smallest_hole >= bytes.len() => self.write(bytes, at),
            Some(bytes) => runs_of_data(bytes, self.request.smallest_hole)
                .try_for_each(|data| self.write(&bytes[data.clone()], at + data.start as u64)),
        }
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        let target = &self.request.target;
        target.file.write_all_at(bytes, at).map_err(|error| {
            let read = self.read.load(Ordering::Relaxed);
            write_error(target, error, self.total.saturating_sub(read))
        })?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Clears the pieces that this pass has not met: they were data, and are holes now.
    fn clear_former(&self) -> Result<()> {
        let former = std::mem::take(&mut *lock(&self.former));
        former
            .iter()
            .filter(|(_, piece)| piece.hash.is_some())
            .try_for_each(|(number, _)| self.clear(*number))
    }

    /// Makes a piece of the target zeros.
    fn clear(&self, number: u64) -> Result<()> {
        let (target, at) = (&self.request.target, number * PIECE);
        let length = PIECE.min(self.size - at);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&target.file, punch, at, length) {
            Ok(()) => Ok(()),
            // A file system without holes.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write(&vec![0; length as usize], at),
            Err(error) => Err(write_error(target, error.into(), 0)),
        }
    }
}

#[cfg(test)]
mod tests;
