//! Copies of large files: a reflink if the file system has it, or else the data only, by several threads, holes kept.
//!
//! A sparse copy reads the data that the source has ([`super::extents`]) and leaves out pages of zeros. It can hash on the
//! way ([`super::hash`]) and search for credentials ([`super::search`]), reports its progress, and ends some milliseconds
//! after an [`Interrupt`].
//! Only [`sync`] syncs: a VM may be paused for a copy, and the copy can be synced when the VM runs again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::FileError;
use super::extents::{self, PAGE};
use super::search::findings::{FileSearch, Findings};
use crate::world::{Failure, HashMethod, Interrupt};

mod precopy;
mod reading;
mod threads;

pub use precopy::{Precopy, PrecopyRequest, precopy};

use reading::{ReadResult, Reading, ReadingRequest};

/// The smallest hole of an image on a disk. Smaller ones cost more time than room: the file system notes each, and the
/// image is written, and read again, in as many pieces. RAM of a guest has runs of some pages.
pub const IMAGE_HOLE: usize = 64 << 10;

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
pub struct CopyRequest {
    /// For people: "disk 0", "memory".
    pub what: String,
    /// Opened for reading.
    pub source: NamedFile,
    /// A new file, opened for reading and writing: empty, or of the source's size and without data.
    pub target: NamedFile,
    /// Whether to share blocks where the file system can. A reflink is not hashed.
    pub reflink: bool,
    /// How many zeros become a hole of the target, in bytes: see [`IMAGE_HOLE`].
    pub smallest_hole: usize,
    /// How to hash on the way, if at all.
    pub hash: Option<HashMethod>,
    /// What to search for on the way. What it overwrites is overwritten in the copy alone, before it is written and hashed.
    /// A reflink is not searched.
    pub search: Option<Arc<FileSearch>>,
}

/// A copy that was made.
#[derive(Debug)]
pub struct Copied {
    /// How it was made.
    pub method: CopyMethod,
    /// Its hash, if that was asked for and data was copied.
    pub hash: Option<[u8; 32]>,
    /// What was found in the source, if it was searched.
    pub findings: Findings,
    /// Where the source was read in two steps, if the copy was searched: see [`search_seams`].
    pub seams: Vec<u64>,
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
    #[error("the system gives no random bytes, which a copy in several passes needs")]
    Random(#[source] getrandom::Error),
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
    let CopyRequest { what, source, target, reflink, smallest_hole, hash, search } = copying;
    let (size, total) = extent(&source)?;
    let (source, target) = (Arc::new(source), Arc::new(target));
    if reflink && share(&source, &target, interrupt).await? {
        progress.progress(&what, total, total);
        progress.copied(&what, CopyMethod::Reflink);
        let (findings, seams) = Default::default();
        return Ok(Copied { method: CopyMethod::Reflink, hash: None, findings, seams });
    }
    target.file.set_len(size).map_err(|error| write_error(&target, error, 0))?;
    let reading = ReadingRequest {
        what: what.clone(),
        source,
        target: Some(target),
        smallest_hole,
        size,
        total,
        hash,
        search,
    };
    let read = Reading::run(reading, Arc::clone(&progress), interrupt).await?;
    let method = CopyMethod::Sparse { read: read.read, written: read.written };
    progress.copied(&what, method);
    Ok(Copied { method, hash: read.hash, findings: read.findings, seams: read.seams })
}

/// Hashes a file without copying it, and searches it if that is asked for. Returns the hash, and what was found.
///
/// # Errors
/// [`CopyError::Interrupted`], or if it cannot be read.
pub async fn hash(
    what: String,
    source: NamedFile,
    method: HashMethod,
    search: Option<Arc<FileSearch>>,
    progress: Arc<dyn Progress>,
    interrupt: &Interrupt,
) -> Result<([u8; 32], Findings)> {
    let read = read(what, source, Some(method), search, progress, interrupt).await?;
    // There is a hash because one was asked for.
    Ok((read.hash.unwrap_or_default(), read.findings))
}

/// Searches a file, and returns what was found.
///
/// # Errors
/// [`CopyError::Interrupted`], or if it cannot be read.
pub async fn search(
    what: String,
    source: NamedFile,
    search: Arc<FileSearch>,
    progress: Arc<dyn Progress>,
    interrupt: &Interrupt,
) -> Result<Findings> {
    Ok(read(what, source, None, Some(search), progress, interrupt).await?.findings)
}

/// Searches a copy around these places. While a copy is made, the bytes before such a place and those after it are read one
/// after the other, and the search of each sees the others as they are then. If something writes to the source
/// meanwhile, a value that lies across the place may be in the copy and in neither of the two. Returns what was found.
///
/// # Errors
/// If the copy cannot be read.
pub fn search_seams(copied: &NamedFile, seams: &[u64], search: &FileSearch) -> Result<Findings> {
    let failed = |error| FileError::system("read", &copied.path)(error);
    let size = copied.file.metadata().map_err(failed)?.len();
    let margin = search.margin() as u64;
    let (mut buffer, mut findings) = (vec![0; 2 * search.margin()], Findings::default());
    for seam in seams {
        let (from, to) = (seam.saturating_sub(margin), size.min(seam + margin));
        let bytes = &mut buffer[..(to - from) as usize];
        copied.file.read_exact_at(bytes, from).map_err(failed)?;
        let whole = 0..bytes.len();
        findings.add(search.chunk(bytes, whole, from));
    }
    Ok(findings)
}

async fn read(
    what: String,
    source: NamedFile,
    hash: Option<HashMethod>,
    search: Option<Arc<FileSearch>>,
    progress: Arc<dyn Progress>,
    interrupt: &Interrupt,
) -> Result<ReadResult> {
    let (size, total) = extent(&source)?;
    let reading = ReadingRequest {
        what,
        source: Arc::new(source),
        target: None,
        smallest_hole: PAGE,
        size,
        total,
        hash,
        search,
    };
    Reading::run(reading, progress, interrupt).await
}

/// A file's size in bytes, and about how much of it is data.
fn extent(source: &NamedFile) -> Result<(u64, u64)> {
    let examine = |error| FileError::system("examine", &source.path)(error);
    let size = source.file.metadata().map_err(examine)?.len();
    Ok((size, extents::about_data_bytes(&source.file).map_err(examine)?))
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

fn read_error(named: &NamedFile, source: io::Error) -> CopyError {
    let path = named.path.clone();
    match source.kind() {
        io::ErrorKind::UnexpectedEof => CopyError::Shrunk { path },
        _ => FileError::system("read", path)(source).into(),
    }
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

#[cfg(test)]
pub(crate) mod tests;
