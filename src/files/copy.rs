//! Copies of large files: a reflink if the file system has it, or else the data only, by several threads, holes kept.
//!
//! A sparse copy reads the extents that the source reports (`SEEK_DATA`, `SEEK_HOLE`) and leaves out pages of zeros. It
//! can hash on the way ([`super::hash`]), reports its progress, and ends some milliseconds after an [`Interrupt`].
//! Only [`sync`] syncs: a VM may be paused for a copy, and the copy can be synced when the VM runs again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use futures_util::future::join_all;
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::FileError;
use super::hash::{PIECE, PieceHasher, PieceHashes, pieces};
use crate::world::{Failure, Interrupt};

/// Bytes read at once. The interrupt is checked before each read.
const CHUNK: usize = 1 << 20;
/// A run of this many zeros, at a multiple of this offset, becomes a hole.
const PAGE: usize = 4096;
static ZERO_PAGE: [u8; PAGE] = [0; PAGE];
/// More threads than this gain nothing on one disk or one memory bus.
const MAX_THREADS: usize = 8;

/// Hears how far a copy is. It is called from the threads that copy, so it must not block.
pub trait Progress: Send + Sync {
    /// `done` of about `total` bytes of `what`. The last call of a copy has both equal.
    fn progress(&self, what: &str, done: u64, total: u64);
    /// The copy of `what` is made.
    fn copied(&self, _what: &str, _method: CopyMethod) {}
}

/// Ignores progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn progress(&self, _what: &str, _done: u64, _total: u64) {}
}

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMethod {
    /// The file system shares the blocks, and no data was copied.
    Reflink,
    /// The data was copied, the holes kept.
    Sparse {
        /// Bytes of data read.
        read: u64,
        /// Bytes of data that were not zeros and were written.
        written: u64,
    },
}

/// An open file, with its path for messages.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug)]
pub struct NamedFile {
    pub file: File,
    pub path: PathBuf,
}

/// A copy to be made.
#[derive(Debug)]
pub struct CopyRequest {
    /// For people: "disk 0", "memory".
    pub what: String,
    /// Opened for reading.
    pub source: NamedFile,
    /// A new file, opened for reading and writing: empty, or of the source's size and without data.
    pub target: NamedFile,
    /// Whether to share blocks where the file system can. A reflink is not hashed.
    pub reflink: bool,
    /// Whether to hash on the way.
    pub hash: bool,
}

/// A copy that was made.
#[derive(Debug)]
pub struct Copied {
    /// How it was made.
    pub method: CopyMethod,
    /// The hashes of its pieces, if that was asked for and data was copied.
    pub hashes: Option<PieceHashes>,
}

/// Why a copy was not made.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("the copy was interrupted")]
    Interrupted,
    #[error(transparent)]
    File(#[from] FileError),
    /// The target's file system is full: `missing` is what is still to be copied and does not fit, in bytes.
    #[error("no space left for {}: about {missing} bytes are missing", path.display())]
    Full { path: PathBuf, missing: u64 },
    #[error("{} has become shorter while it was copied", path.display())]
    Shrunk { path: PathBuf },
    #[error("a copying thread ended without a result")]
    Thread(#[source] tokio::task::JoinError),
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Interrupted => Self::Interrupted,
            error => Self::world(error),
        }
    }
}

type Result<T, E = CopyError> = std::result::Result<T, E>;

/// Makes the copy. The target then has the source's size and content.
///
/// # Errors
/// See [`CopyError`]. The target then has some of the content.
pub async fn copy(
    copying: CopyRequest,
    progress: Arc<dyn Progress>,
    interrupt: &Interrupt,
) -> Result<Copied> {
    let CopyRequest { what, source, target, reflink, hash } = copying;
    let (size, total) = extent(&source)?;
    let (source, target) = (Arc::new(source), Arc::new(target));
    if reflink && share(&source, &target, interrupt).await? {
        progress.progress(&what, total, total);
        progress.copied(&what, CopyMethod::Reflink);
        return Ok(Copied { method: CopyMethod::Reflink, hashes: None });
    }
    target.file.set_len(size).map_err(|error| write_error(&target, error, 0))?;
    let stop = interrupt.child();
    let _stop_with_this_future = stop.on_drop();
    let reading =
        Reading::new(what.clone(), source, Some(target), size, total, hash, Arc::clone(&progress), stop);
    let (read, written, hashes) = reading.run().await?;
    let method = CopyMethod::Sparse { read, written };
    progress.copied(&what, method);
    Ok(Copied { method, hashes })
}

/// Hashes a file without copying it.
///
/// # Errors
/// [`CopyError::Interrupted`], or if it cannot be read.
pub async fn hash(
    what: String,
    source: NamedFile,
    progress: Arc<dyn Progress>,
    interrupt: &Interrupt,
) -> Result<PieceHashes> {
    let (size, total) = extent(&source)?;
    let stop = interrupt.child();
    let _stop_with_this_future = stop.on_drop();
    let reading = Reading::new(what, Arc::new(source), None, size, total, true, progress, stop);
    let (_, _, hashes) = reading.run().await?;
    Ok(hashes.unwrap_or_else(|| PieceHashes::new(size)))
}

/// A file's size in bytes, and how much of it is data.
fn extent(source: &NamedFile) -> Result<(u64, u64)> {
    let examine = |error| FileError::system("examine", &source.path)(error);
    let size = source.file.metadata().map_err(examine)?.len();
    Ok((size, data_bytes(&source.file).map_err(examine)?))
}

/// How many bytes of a file are data, as far as the file system can tell. Blocks that are reserved for the file and not
/// written yet are no data, although the file occupies them; those that were read lately may pass for data.
///
/// # Errors
/// If the system cannot tell.
pub fn data_bytes(file: &File) -> io::Result<u64> {
    let end = file.metadata()?.len();
    let (mut at, mut bytes) = (0, 0);
    while at < end {
        let (data, hole) = next_extent(file, at, end)?;
        bytes += hole - data;
        at = hole;
    }
    Ok(bytes)
}

/// Runs `work` on a thread that may block, and returns at once on an interrupt. The thread then goes on with the files
/// that it has open, and ends by itself. So `work` must not look anything up by path.
pub(crate) async fn answering<T: Send + 'static>(
    interrupt: &Interrupt,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::select! {
        biased;
        () = interrupt.wait() => Err(CopyError::Interrupted),
        ended = tokio::task::spawn_blocking(work) => ended.map_err(CopyError::Thread),
    }
}

/// Waits until the file is on the medium.
///
/// # Errors
/// [`CopyError::Interrupted`] at once, or if the medium fails.
pub async fn sync(named: NamedFile, interrupt: &Interrupt) -> Result<()> {
    answering(interrupt, move || named.file.sync_all().map_err(|error| write_error(&named, error, 0))).await?
}

/// Whether the file systems share the source's blocks with the target now.
async fn share(source: &Arc<NamedFile>, target: &Arc<NamedFile>, interrupt: &Interrupt) -> Result<bool> {
    let (from, to) = (Arc::clone(source), Arc::clone(target));
    // The call first writes the pages of the source that are not written yet, which may take long.
    let shared = answering(interrupt, move || rustix::fs::ioctl_ficlone(&to.file, &from.file)).await?;
    match shared {
        Ok(()) => Ok(true),
        // This file system cannot share (EOPNOTSUPP, ENOTTY), the files are on two file systems (EXDEV), or one of the
        // files has no copy-on-write (EINVAL). A seccomp filter or an old overlay answers ENOSYS or EPERM.
        Err(
            Errno::OPNOTSUPP
            | Errno::NOTTY
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOSYS
            | Errno::PERM
            | Errno::TXTBSY,
        ) => Ok(false),
        Err(error) => Err(write_error(target, error.into(), 0)),
    }
}

/// Whether files in these two directories can share blocks. This is tried with two files without names.
#[must_use]
pub fn can_share(from: &Path, to: &Path) -> bool {
    let unnamed = |directory: &Path| {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR).map(File::from)
    };
    let (Ok(from), Ok(to)) = (unnamed(from), unnamed(to)) else {
        // A file system without unnamed files cannot share blocks either (9p, overlay, FUSE).
        return false;
    };
    from.write_all_at(&[1; PAGE], 0).is_ok() && rustix::fs::ioctl_ficlone(&to, &from).is_ok()
}

fn write_error(target: &NamedFile, source: io::Error, remaining: u64) -> CopyError {
    let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    if !full {
        return FileError::system("write", &target.path)(source).into();
    }
    let free = rustix::fs::fstatvfs(&target.file)
        .map_or(0, |status| status.f_bavail.saturating_mul(status.f_frsize));
    CopyError::Full { path: target.path.clone(), missing: remaining.saturating_sub(free).max(1) }
}

/// One file that several threads read, to hash it, to write it elsewhere, or both.
struct Reading {
    what: String,
    source: Arc<NamedFile>,
    target: Option<Arc<NamedFile>>,
    size: u64,
    total: u64,
    hashes: Option<Mutex<PieceHashes>>,
    next: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    progress: Arc<dyn Progress>,
    stop: Interrupt,
}

impl Reading {
    #[expect(clippy::too_many_arguments, reason = "it is called twice, with all of them different")]
    fn new(
        what: String,
        source: Arc<NamedFile>,
        target: Option<Arc<NamedFile>>,
        size: u64,
        total: u64,
        hash: bool,
        progress: Arc<dyn Progress>,
        stop: Interrupt,
    ) -> Arc<Self> {
        let hashes = hash.then(|| Mutex::new(PieceHashes::new(size)));
        let [next, read, written] = [const { AtomicU64::new(0) }; 3];
        Arc::new(Self { what, source, target, size, total, hashes, next, read, written, progress, stop })
    }

    /// Reads all pieces. Returns how many bytes were read and written, and the hashes.
    async fn run(self: Arc<Self>) -> Result<(u64, u64, Option<PieceHashes>)> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let threads = threads.min(usize::try_from(pieces(self.size)).unwrap_or(MAX_THREADS));
        let running = (0..threads).map(|_| {
            let reading = Arc::clone(&self);
            tokio::task::spawn_blocking(move || reading.run_pieces().inspect_err(|_| reading.stop.request()))
        });
        let mut interrupted = false;
        let mut failed = None;
        for ended in join_all(running).await {
            match ended.map_err(CopyError::Thread).flatten() {
                Ok(()) => {}
                // The failure of one thread interrupts the others. The failure is the reason, and is returned.
                Err(CopyError::Interrupted) => interrupted = true,
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => return Err(error),
            None if interrupted => return Err(CopyError::Interrupted),
            None => {}
        }
        let (read, written) = (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed));
        self.progress.progress(&self.what, read, read);
        let hashes =
            self.hashes.as_ref().map(|hashes| hashes.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Ok((read, written, hashes))
    }

    /// Copies pieces until none is left.
    fn run_pieces(&self) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces(self.size) {
                return Ok(());
            }
            self.copy_piece(piece, &mut buffer)?;
        }
    }

    fn copy_piece(&self, piece: u64, buffer: &mut [u8]) -> Result<()> {
        let start = piece * PIECE;
        let end = self.size.min(start + PIECE);
        let mut hasher = None;
        let mut at = start;
        while at < end {
            self.check()?;
            let (data, hole) =
                next_extent(&self.source.file, at, end).map_err(|error| self.read_error(error))?;
            if self.hashes.is_some() && (hasher.is_some() || data < end) {
                hasher.get_or_insert_with(|| PieceHasher::new(self.size, piece)).zeros(data - at);
            }
            at = data;
            while at < hole {
                self.check()?;
                let chunk = &mut buffer[..CHUNK.min((hole - at) as usize)];
                self.source.file.read_exact_at(chunk, at).map_err(|error| self.read_error(error))?;
                if let Some(hasher) = &mut hasher {
                    hasher.bytes(chunk);
                }
                self.write(chunk, at)?;
                at += chunk.len() as u64;
                let read = self.read.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64;
                self.progress.progress(&self.what, read, self.total.max(read));
            }
        }
        // An empty file is one piece without bytes, and this piece has a hash.
        if self.size == 0 && self.hashes.is_some() {
            hasher = Some(PieceHasher::new(0, 0));
        }
        if let (Some(hashes), Some(hasher)) = (&self.hashes, hasher) {
            hashes.lock().unwrap_or_else(PoisonError::into_inner).set(piece, hasher.finish());
        }
        Ok(())
    }

    /// Writes the pages that are not zeros to the target, if there is one.
    fn write(&self, chunk: &[u8], at: u64) -> Result<()> {
        let Some(target) = &self.target else {
            return Ok(());
        };
        for (from, to) in runs_of_data(chunk) {
            target.file.write_all_at(&chunk[from..to], at + from as u64).map_err(|error| {
                write_error(target, error, self.total.saturating_sub(self.read.load(Ordering::Relaxed)))
            })?;
            self.written.fetch_add((to - from) as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.stop.requested() { Err(CopyError::Interrupted) } else { Ok(()) }
    }

    fn read_error(&self, source: io::Error) -> CopyError {
        let path = self.source.path.clone();
        match source.kind() {
            io::ErrorKind::UnexpectedEof => CopyError::Shrunk { path },
            _ => FileError::system("read", path)(source).into(),
        }
    }
}

/// Where the next data at or after `at` begins and ends, both at most `end`.
///
/// Several threads may call this for one file. The calls move the offset that the threads share, and no thread reads at
/// that offset.
fn next_extent(file: &File, at: u64, end: u64) -> io::Result<(u64, u64)> {
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data.min(end),
        // No data from here on.
        Err(Errno::NXIO) => end,
        // A file system without holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((at, end)),
        Err(error) => return Err(error.into()),
    };
    if data == end {
        return Ok((end, end));
    }
    let hole = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
        Ok(hole) => hole.min(end),
        // The file has become shorter, and the next read reports it.
        Err(Errno::NXIO) => end,
        Err(error) => return Err(error.into()),
    };
    Ok((data, hole))
}

/// The runs of pages that are not all zeros, as ranges within the chunk.
fn runs_of_data(chunk: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let zero = |at: usize| {
            let page = &chunk[at..chunk.len().min(at + PAGE)];
            page == &ZERO_PAGE[..page.len()]
        };
        while from < chunk.len() && zero(from) {
            from += PAGE;
        }
        let mut to = from;
        while to < chunk.len() && !zero(to) {
            to += PAGE;
        }
        let run = (from, to.min(chunk.len()));
        from = to;
        (run.0 < run.1).then_some(run)
    })
}

#[cfg(test)]
pub(crate) mod tests;
