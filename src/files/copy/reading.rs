//! One file that several threads read block by block, to hash it, to write it elsewhere, or both.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::Advice;

use super::threads::on_threads;
use super::{CopyError, NamedFile, Progress, Result, answering, read_error, write_error};
use crate::files::extents::{BLOCK, DataBlock, DataBlocks, runs_of_data};
use crate::files::hash::pieces::PIECE;
use crate::files::hash::{BlockHasher, ContentHash};
use crate::files::search::findings::{FileSearch, Findings};
use crate::world::{HashMethod, Interrupt};

pub(super) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is to be read.
pub(super) struct ReadingRequest {
    pub(super) what: String,
    pub(super) source: Arc<NamedFile>,
    /// Where the data is written to, if anywhere.
    pub(super) target: Option<Arc<NamedFile>>,
    /// How many zeros become a hole of the target, in bytes.
    pub(super) smallest_hole: usize,
    /// The size of the source in bytes.
    pub(super) size: u64,
    /// How much of it is data, for the progress.
    pub(super) total: u64,
    pub(super) hash: Option<HashMethod>,
    pub(super) search: Option<Arc<FileSearch>>,
}

/// What a file's reading came to.
pub(super) struct ReadResult {
    /// Bytes that were read.
    pub(super) read: u64,
    /// Bytes that were not zeros and were written.
    pub(super) written: u64,
    pub(super) hash: Option<[u8; 32]>,
    /// What was found, its places in the order of the file.
    pub(super) findings: Findings,
    /// Where a run of the source was read and searched by itself, if it was searched.
    pub(super) seams: Vec<u64>,
}

/// The state that the reading threads share.
pub(super) struct Reading {
    request: ReadingRequest,
    blocks: DataBlocks,
    /// `None` if nothing is hashed.
    hash: Mutex<Option<ContentHash>>,
    findings: Mutex<Findings>,
    seams: Mutex<Vec<u64>>,
    read: AtomicU64,
    written: AtomicU64,
    progress: Arc<dyn Progress>,
    stop: Interrupt,
}

impl Reading {
    /// Reads all data. The threads end when the future is dropped.
    pub(super) async fn run(
        request: ReadingRequest,
        progress: Arc<dyn Progress>,
        interrupt: &Interrupt,
    ) -> Result<ReadResult> {
        let stop = interrupt.child();
        let _stop_with_this_future = stop.on_drop();
        // What is read once shall not push other files out of the page cache. A kernel that does not know the advice keeps
        // the pages as it would otherwise.
        rustix::fs::fadvise(&request.source.file, 0, None, Advice::NoReuse).ok();
        let [read, written] = [const { AtomicU64::new(0) }; 2];
        let reading = Arc::new(Self {
            blocks: DataBlocks::new(request.size),
            hash: Mutex::new(request.hash.map(|method| ContentHash::new(method, request.size))),
            request,
            findings: Mutex::default(),
            seams: Mutex::default(),
            read,
            written,
            progress,
            stop,
        });
        let readers = Arc::clone(&reading);
        on_threads(reading.request.total, &reading.stop, move || readers.read_blocks()).await?;
        let (read, written) = (reading.read.load(Ordering::Relaxed), reading.written.load(Ordering::Relaxed));
        reading.progress.progress(&reading.request.what, read, read);
        let seams = std::mem::take(&mut *lock(&reading.seams));
        let mut findings = std::mem::take(&mut *lock(&reading.findings));
        findings.places.sort_unstable();
        Ok(ReadResult { read, written, hash: reading.finish_hash().await?, findings, seams })
    }

    async fn finish_hash(&self) -> Result<Option<[u8; 32]>> {
        let Some(hash) = self.hash().take() else { return Ok(None) };
        let watched = self.stop.clone();
        // Hashing the holes of a large file as a whole takes seconds of computing, so a thread of its own does it.
        let hash = answering(&self.stop, move || hash.finish(&watched)).await?;
        // An interrupt is the only reason why it can fail.
        hash.map(Some).map_err(|_| CopyError::Interrupted)
    }

    fn hash(&self) -> MutexGuard<'_, Option<ContentHash>> {
        lock(&self.hash)
    }

    /// Reads blocks until none is left.
    fn read_blocks(&self) -> Result<()> {
        let margin = self.request.search.as_ref().map_or(0, |search| search.margin());
        let mut buffer = vec![0; BLOCK as usize + 2 * margin];
        loop {
            self.check()?;
            let block =
                self.blocks.take(&self.request.source.file).map_err(|error| self.read_error(error))?;
            match block {
                Some(block) => self.read_block(block, &mut buffer)?,
                None => return Ok(()),
            }
        }
    }

    fn read_block(&self, block: DataBlock, buffer: &mut [u8]) -> Result<()> {
        let mut hasher = self.hash().as_ref().map(|hash| hash.block(block.range.start));
        let mut at = block.range.start;
        while at < block.range.end {
            self.check()?;
            let run = block.next_run(&self.request.source.file, at, PIECE);
            let run = run.map_err(|error| self.read_error(error))?;
            at = run.end;
            if !run.is_empty() {
                self.read_run(run, hasher.as_mut(), buffer)?;
            }
        }
        if let Some(hasher) = hasher {
            let block = hasher.finish();
            if let Some(hash) = self.hash().as_mut() {
                hash.add(block);
            }
        }
        Ok(())
    }

    fn read_run(&self, run: Range<u64>, hasher: Option<&mut BlockHasher>, buffer: &mut [u8]) -> Result<()> {
        let bytes = self.read_and_search(buffer, run.clone())?;
        if let Some(hasher) = hasher {
            hasher.bytes(run.start, bytes);
        }
        self.write(bytes, run.start)?;
        let read = bytes.len() as u64;
        let read = self.read.fetch_add(read, Ordering::Relaxed) + read;
        self.progress.progress(&self.request.what, read, self.request.total.max(read));
        Ok(())
    }

    /// Reads a run of bytes, and searches it.
    fn read_and_search<'a>(&self, buffer: &'a mut [u8], run: Range<u64>) -> Result<&'a [u8]> {
        let read = |bytes: &mut [u8], at| {
            self.request.source.file.read_exact_at(bytes, at).map_err(|error| self.read_error(error))
        };
        let length = (run.end - run.start) as usize;
        let Some(search) = &self.request.search else {
            read(&mut buffer[..length], run.start)?;
            return Ok(&buffer[..length]);
        };
        let margin = search.margin() as u64;
        let from = run.start - margin.min(run.start);
        let to = self.request.size.min(run.end + margin);
        let (before, bytes) = ((run.start - from) as usize, &mut buffer[..(to - from) as usize]);
        lock(&self.seams).push(run.start);
        read(bytes, from)?;
        let found = search.chunk(bytes, before..before + length, from);
        if !found.is_empty() {
            lock(&self.findings).add(found);
        }
        Ok(&bytes[before..before + length])
    }

    /// Writes the data to the target, if there is one, and no run of zeros that may become a hole.
    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        let Some(target) = &self.request.target else {
            return Ok(());
        };
        for run in runs_of_data(bytes, self.request.smallest_hole) {
            let length = run.len() as u64;
            target.file.write_all_at(&bytes[run.clone()], at + run.start as u64).map_err(|error| {
                let read = self.read.load(Ordering::Relaxed);
                write_error(target, error, self.request.total.saturating_sub(read))
            })?;
            self.written.fetch_add(length, Ordering::Relaxed);
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.stop.requested() { Err(CopyError::Interrupted) } else { Ok(()) }
    }

    fn read_error(&self, source: io::Error) -> CopyError {
        read_error(&self.request.source, source)
    }
}
