//! The directories in which trees are made.
//!
//! A process that makes a tree holds a lock on its directory (flock(2)), which the kernel releases when the process ends. So a
//! directory whose lock is free was left by a process that was killed.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{IncomingError, Result};
use crate::files::{DIRECTORY_MODE, FileError, Folder, beneath};

/// What the names begin with. 16 hexadecimal digits follow.
const PREFIX: &str = ".nixbox-cp-";
/// How many names of a directory are read at once, so that a directory of any size needs little memory.
pub(super) const NAMES_AT_ONCE: usize = 1024;

/// Makes a directory and locks it. Returns its name.
///
/// # Errors
/// If it cannot be made.
pub(super) fn make(target: &Folder) -> Result<(OsString, OwnedFd)> {
    loop {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(IncomingError::Unnamed)?;
        let name = OsString::from(format!("{PREFIX}{}", hex::encode(random)));
        let failed = FileError::system("make the directory", target.path_of(&name));
        fs::mkdirat(&target.handle, &name, DIRECTORY_MODE).map_err(failed)?;
        // Another nixbox may take the new directory for one that was left, before it is locked. Then there is another name.
        if let Some(root) = lock(target, &name)? {
            return Ok((name, root));
        }
    }
}

/// Removes the directories that were left in `target`, as far as they belong to this user.
///
/// # Errors
/// If one cannot be examined or removed. The error names it.
pub(super) fn remove_abandoned(target: &Folder) -> Result<()> {
    let is_ours = |name: &OsStr| {
        let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        digits.is_some_and(|digits| digits.len() == 16 && hex::decode(digits).is_ok())
    };
    for name in target.names()?.into_iter().filter(|name| is_ours(name)) {
        let failed = |error| FileError::system("remove", target.path_of(&name))(error);
        let owner = match fs::statat(&target.handle, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => status.st_uid,
            // The nixbox that made it has ended meanwhile.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(failed(error).into()),
        };
        if owner != rustix::process::geteuid().as_raw() {
            continue;
        }
        if let Some(root) = lock(target, &name)? {
            remove_content(&root).map_err(failed)?;
            fs::unlinkat(&target.handle, &name, AtFlags::REMOVEDIR).map_err(failed)?;
        }
    }
    Ok(())
}

/// Opens a directory and locks it; `None` if another process has the lock, or the directory is gone.
fn lock(target: &Folder, name: &OsStr) -> Result<Option<OwnedFd>> {
    let failed = |error| FileError::system("lock", target.path_of(name))(error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = match fs::openat(&target.handle, name, flags, Mode::empty()) {
        // nixbox made nothing of that name that is no directory.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    match fs::flock(&root, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        locked => locked.map_err(failed)?,
    }
    // The process that had the lock before may have removed the directory.
    let mine = fs::fstat(&root).map_err(failed)?;
    let there = match fs::statat(&target.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        there => there.map_err(failed)?,
    };
    Ok(((mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)).then_some(root))
}

/// Removes everything in a directory.
///
/// # Errors
/// What the system refuses.
pub(super) fn remove_content(root: &OwnedFd) -> Result<(), Errno> {
    remove_below(root, Path::new(""))
}

fn remove_below(root: &OwnedFd, path: &Path) -> Result<(), Errno> {
    let handle = open_writable(root, path)?;
    loop {
        let names = some_names(&handle)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            match fs::unlinkat(&handle, &name, AtFlags::empty()) {
                Err(Errno::ISDIR) => {
                    remove_below(root, &path.join(&name))?;
                    fs::unlinkat(&handle, &name, AtFlags::REMOVEDIR)?;
                }
                removed => removed?,
            }
        }
    }
}

/// Opens a directory of the tree whose entries can then be moved or removed, whatever its permissions were.
///
/// # Errors
/// What the system refuses.
pub(super) fn open_writable(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let found = beneath::open(root, path, OFlags::PATH | OFlags::DIRECTORY)?;
    // A handle that was opened without a right to read changes no permissions itself. Its name in /proc does, and a name in
    // the tree may be another file by now.
    fs::chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), DIRECTORY_MODE)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(&found, ".", flags, Mode::empty())
}

/// Some names of a directory; none if it is empty.
///
/// # Errors
/// What the system refuses.
pub(super) fn some_names(directory: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(OsString::from_vec(name.into_bytes()));
        }
        if names.len() == NAMES_AT_ONCE {
            break;
        }
    }
    Ok(names)
}
