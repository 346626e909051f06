//! What the RAM files of a file system were promised, counted before another one is made.
//!
//! A RAM file has its full size from the start, and occupies what the guest has written. What is free now therefore says
//! little: a guest may write to any page of its RAM at any time, and if the file system is full then, the VMM dies of
//! SIGBUS. So what the RAM files may still come to occupy is subtracted from what is free, and a file that does not fit
//! into the rest is not made.
//!
//! Two processes that count at the same time would promise the same bytes. A file therefore gets its size while its
//! maker holds the lock of the file system ([`lock`]), and counts from then on.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs2::FileExt;
use rustix::fs::{FallocateFlags, FileType};
use rustix::io::Errno;

use super::error::{MemoryError, Result};
use super::room::Room;
use crate::files::{FileError, Folder};
use crate::host::ioctl;

/// `TMPFS_MAGIC` and others of linux/magic.h.
pub(super) const TMPFS: i64 = 0x0102_1994;
const EXT: i64 = 0xEF53;
const XFS: i64 = 0x5846_5342;
const BTRFS: i64 = 0x9123_683E;
/// The lock is held while files are counted and one is made. That takes milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Where a file system puts what is written to blocks that a file occupies already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BlockReuse {
    /// Into the same blocks: what a file occupies stays its own.
    Always,
    /// Into the same blocks, except those that a reflink shares with another file.
    UnlessShared,
    /// Into new blocks, which a full file system does not have.
    Never,
}

impl BlockReuse {
    /// A file system that is not known counts as one that writes everything to new blocks.
    fn of(file_system: i64) -> Self {
        match file_system {
            TMPFS | EXT => Self::Always,
            XFS => Self::UnlessShared,
            _ => Self::Never,
        }
    }
}

/// The lock of a file system, released when this is dropped.
#[derive(Debug)]
pub(super) struct FileSystemLock(File);

impl Drop for FileSystemLock {
    fn drop(&mut self) {
        // A process that is being forked meanwhile has a copy of the descriptor, so that closing this one releases
        // nothing before that process executes its program.
        FileExt::unlock(&self.0).ok();
    }
}

/// Takes the lock of the file system on which the directory is: an flock on the root directory of the file system, which
/// every user may open. `None` where directories cannot be locked.
///
/// # Errors
/// [`MemoryError::Locked`] if another process holds it for ten seconds.
pub(super) async fn lock(folder: &Folder) -> Result<Option<FileSystemLock>> {
    let (path, file) = root_of(folder)?;
    let (send, receive) = tokio::sync::oneshot::channel();
    // A thread of its own: flock(2) knows no time limit, and the threads of the runtime are waited for when it ends.
    let waiting = move || {
        // If nobody waits any more, the lock comes back and is dropped.
        drop(send.send(FileExt::lock_exclusive(&file).map(|()| FileSystemLock(file))));
    };
    std::thread::Builder::new()
        .name("file system lock".to_owned())
        .spawn(waiting)
        .map_err(FileError::system("start a thread to lock", &path))?;
    match tokio::time::timeout(LOCK_LIMIT, receive).await {
        Ok(Ok(Ok(lock))) => Ok(Some(lock)),
        Ok(Ok(Err(error))) if is_unsupported(&error) => Ok(None),
        Ok(Ok(Err(error))) => Err(FileError::system("lock", path)(error).into()),
        Ok(Err(_)) | Err(_) => Err(MemoryError::Locked { path, limit: LOCK_LIMIT }),
    }
}

/// NFS has no locks on directories.
fn is_unsupported(error: &std::io::Error) -> bool {
    let unsupported = [Errno::BADF, Errno::OPNOTSUPP, Errno::NOLCK, Errno::NOSYS, Errno::INVAL];
    Errno::from_io_error(error).is_some_and(|errno| unsupported.contains(&errno))
}

/// The highest directory above `folder` on the same file system, or `folder` itself if that one cannot be opened.
fn root_of(folder: &Folder) -> Result<(PathBuf, File)> {
    let device = folder.status()?.st_dev;
    let path = std::fs::canonicalize(folder.path()).map_err(FileError::system("examine", folder.path()))?;
    let same = |path: &&Path| path.metadata().is_ok_and(|status| status.dev() == device);
    let root = path.ancestors().take_while(same).last().unwrap_or(&path);
    match File::open(root) {
        Ok(file) => Ok((root.to_owned(), file)),
        Err(_) => {
            let file = File::open(&path).map_err(FileError::system("open", &path))?;
            Ok((path, file))
        }
    }
}

/// The directories below a tmpfs in which there may be RAM files: those of all users, as far as they can be read.
pub(super) fn directories_on_tmpfs(base: &Path) -> Vec<Folder> {
    let Ok(base) =
        std::fs::canonicalize(base).map_err(drop).and_then(|base| Folder::open(&base).map_err(drop))
    else {
        return Vec::new();
    };
    let mut bases = vec![base];
    // The directory that XDG_RUNTIME_DIR names may lie within the tmpfs that another user has as a base.
    if let Ok((root, _)) = root_of(&bases[0])
        && root != bases[0].path()
    {
        bases.extend(Folder::open(&root));
    }
    let users = bases.iter().flat_map(|base| folders_in(base, |name| name.starts_with("nixbox-")));
    users.flat_map(|user| folders_in(&user, |_| true)).collect()
}

/// The directories with suitable names in `folder`. What cannot be read belongs to another user, and is passed over.
pub(super) fn folders_in(folder: &Folder, suits: impl Fn(&str) -> bool) -> Vec<Folder> {
    let names = folder.names().unwrap_or_default();
    let suitable = names.iter().filter(|name| name.to_str().is_some_and(&suits));
    suitable.filter_map(|name| folder.folder(name).ok().flatten()).collect()
}

/// Counts what is free on the file system of `folder`, and what is promised to the RAM files that are on the same file
/// system in one of `directories`.
pub(super) fn room(folder: &Folder, directories: &[Folder]) -> Result<Room> {
    let (device, reuse) = (folder.status()?.st_dev, BlockReuse::of(folder.file_system()?));
    let count = || owed(device, reuse, directories);
    // A VM that writes, or gives pages back, moves bytes between what is free and what is owed. They are seen at least
    // once in what is owed if that is counted both before and after.
    let mut owed = count();
    let free = folder.free_bytes()?;
    for (inode, bytes) in count() {
        let most = owed.entry(inode).or_default();
        *most = bytes.max(*most);
    }
    Ok(Room { free, promised: owed.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)) })
}

/// What each RAM file may come to occupy in addition, by inode.
fn owed(device: u64, reuse: BlockReuse, directories: &[Folder]) -> BTreeMap<u64, u64> {
    let mut owed = BTreeMap::new();
    for directory in directories {
        for name in directory.names().unwrap_or_default() {
            let is_ram = name.to_str().is_some_and(|name| {
                name.starts_with("memory-") && (name.ends_with(".img") || name.ends_with(".img.partial"))
            });
            let Ok(Some(status)) = (if is_ram { directory.examine(&name) } else { Ok(None) }) else {
                continue;
            };
            if status.st_dev != device || FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
                continue;
            }
            let size = status.st_size.unsigned_abs();
            // 512: the unit of st_blocks, whatever the file system's own is.
            let allocated = status.st_blocks.unsigned_abs().saturating_mul(512);
            let own = match reuse {
                BlockReuse::Always => allocated,
                BlockReuse::UnlessShared => {
                    let shared = directory.file(&name).ok().flatten().map(|file| ioctl::shared_bytes(&file));
                    shared.map_or(0, |shared| allocated.saturating_sub(shared.unwrap_or(u64::MAX)))
                }
                BlockReuse::Never => 0,
            };
            owed.insert(status.st_ino, size.saturating_sub(own));
        }
    }
    owed
}

/// Whether the bytes that RAM files are promised on this file system cover a capture by reflink too. They do where the
/// file system writes every page of a file to a new block, because the promise then counts a new block for each page.
pub(super) fn covers_reflinks(folder: &Folder) -> Result<bool> {
    Ok(BlockReuse::of(folder.file_system()?) == BlockReuse::Never)
}

/// Reserves the blocks of a file that is on disk, where that keeps them for the file. Where it does not, the file counts
/// by its size.
///
/// # Errors
/// If there are too few blocks.
pub(super) fn reserve(file: &File, folder: &Folder, path: &Path, size: u64) -> Result<()> {
    // btrfs reserves blocks, and then writes to others.
    if size == 0 || folder.file_system()? == BTRFS {
        return Ok(());
    }
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(FileError::system("reserve the blocks of", path)(error).into()),
        }
    }
}

/// Whether a file occupies all of its size, and the file system writes to the blocks that it occupies.
pub(super) fn is_reserved(path: &Path) -> Result<bool> {
    let examine = |error: std::io::Error| FileError::system("examine", path)(error);
    let file = File::open(path).map_err(FileError::system("open", path))?;
    let status = file.metadata().map_err(examine)?;
    let file_system = rustix::fs::fstatfs(&file).map_err(|error| examine(error.into()))?;
    let keeps = BlockReuse::of(file_system.f_type as i64) != BlockReuse::Never;
    Ok(keeps && status.blocks().saturating_mul(512) >= status.len())
}

#[cfg(test)]
mod tests;
