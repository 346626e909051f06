//! Finds every `.nixbox` at or below the source of a share.
//!
//! The whole tree is searched, other file systems that are mounted in it included, because no list of workspaces is
//! complete: a clone or a copy is a workspace that this host has not seen yet. Links are not followed, because the guest
//! resolves them itself and gets no farther than the share. A directory that the daemon's user can enter and not list
//! is asked for a `.nixbox` by name; what lies deeper in such a directory of another user is not searched.
//!
//! The search has limits, and a share that exceeds them is refused.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use rustix::io::Errno;

use super::{HIDDEN, Result, ShareViewError, failed, open_at};

/// The most entries of directories that are read.
const MOST_ENTRIES: u64 = 4_000_000;
/// How long the search may take. nixbox waits longer than this for a daemon to serve.
const LIMIT: Duration = Duration::from_secs(15);
/// How deep directories may be nested. Each level holds a descriptor.
const DEEPEST: usize = 400;
/// The most masks of one share.
const MOST_FOUND: usize = 500;

/// Paths relative to `source`, whose path is `path`.
pub(super) fn hidden_below(source: &OwnedFd, path: &Path) -> Result<Vec<PathBuf>> {
    let mut search =
        Search { path, found: Vec::new(), entries_left: MOST_ENTRIES, deadline: Instant::now() + LIMIT };
    let list = open_at(source, OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY);
    match list {
        Ok(directory) => search.directory(directory, Path::new(""), 0)?,
        Err(Errno::ACCESS) => search.by_name(source, Path::new(""))?,
        Err(errno) => return Err(failed("list", path)(errno)),
    }
    Ok(search.found)
}

struct Search<'a> {
    path: &'a Path,
    found: Vec<PathBuf>,
    entries_left: u64,
    deadline: Instant,
}

impl Search<'_> {
    /// Searches the open `directory`, whose path relative to the source is `within`.
    fn directory(&mut self, directory: OwnedFd, within: &Path, depth: usize) -> Result<()> {
        if depth > DEEPEST || Instant::now() > self.deadline {
            return Err(self.too_large());
        }
        let here = || self.path.join(within);
        let entries = Dir::read_from(&directory).map_err(failed("list", here()))?;
        for entry in entries {
            let entry = entry.map_err(failed("list", self.path.join(within)))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            self.entries_left = self.entries_left.checked_sub(1).ok_or_else(|| self.too_large())?;
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => kind_of(&directory, name),
                kind => kind,
            };
            if kind != FileType::Directory {
                continue;
            }
            let path = within.join(name);
            if name == HIDDEN {
                self.found(path)?;
                continue;
            }
            match open_at(&directory, name, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(inner) => self.directory(inner, &path, depth + 1)?,
                Err(Errno::ACCESS | Errno::PERM) => self.unlisted(&directory, name, &path)?,
                // It was removed or replaced since it was listed.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(failed("list", self.path.join(&path))(errno)),
            }
        }
        Ok(())
    }

    /// A directory that may not be listed.
    fn unlisted(&mut self, directory: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
        match open_at(directory, name, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(inner) => self.by_name(&inner, path),
            // What nixbox may not open as the daemon's user, the daemon may not open either.
            Err(_) => Ok(()),
        }
    }

    fn by_name(&mut self, directory: impl AsFd, within: &Path) -> Result<()> {
        match kind_of(directory, OsStr::new(HIDDEN)) {
            FileType::Directory => self.found(within.join(HIDDEN)),
            _ => Ok(()),
        }
    }

    fn found(&mut self, path: PathBuf) -> Result<()> {
        if self.found.len() == MOST_FOUND {
            return Err(ShareViewError::TooMany(self.path.to_owned()));
        }
        self.found.push(path);
        Ok(())
    }

    fn too_large(&self) -> ShareViewError {
        ShareViewError::TooLarge(self.path.to_owned())
    }
}

/// `Unknown` if it cannot be found out, or is not there.
fn kind_of(directory: impl AsFd, name: &OsStr) -> FileType {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_or(FileType::Unknown, |status| FileType::from_raw_mode(status.st_mode))
}
