//! A tree of files that comes from a guest, made in a directory of its own first, and then moved to its place.
//!
//! Everything about the tree is hostile: its paths, the targets of its links, the order of its entries. The directory in
//! which it is made is new, has mode 0700 and a random name, and lies in the directory to which the tree goes. So whatever is
//! found there is of the same tree: a name that exists already has come twice, and a hard link cannot lead to a file of the
//! host. Every path is looked up beneath that directory in one call that follows no link (openat2(2)). Symbolic links are
//! made as they came, and never followed. If anything fails, the directory is removed with all that is in it, so that a full
//! disk leaves no half file in the place of a whole one. If nixbox is killed, the next copy to the same place removes it: a
//! directory that is in use is locked ([`staging`]).
//!
//! [`IncomingTree::place`] then renames what was made. A directory that exists already keeps its permissions and its other
//! entries, and every file in it is replaced by one call. May use `world`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::{DIRECTORY_MODE, FileError, Folder, beneath};

/// How deep a tree may be. The names of more directories do not fit into a path that the kernel accepts, if each is long
/// enough to mean something, and the functions here call themselves for each of them.
const DEEPEST: usize = 256;
/// The name of the tree in the directory that is made for it.
const CONTENT: &str = "content";

/// Why a tree that comes from a guest is not made.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot get random bytes for the name of a directory")]
    Unnamed(#[source] getrandom::Error),
    #[error("the guest sent the path {0:?}, which leads out of what is copied")]
    Outside(String),
    #[error("the guest sent the path {0:?}, which is deeper than {DEEPEST} directories")]
    TooDeep(String),
    #[error("the guest sent {0:?} twice")]
    Twice(String),
    #[error("the guest sent {path:?} as another name of {original:?}, which it did not send before")]
    NoOriginal { path: String, original: String },
    #[error("cannot read the content of {path:?} that the guest sends")]
    Content { path: String, source: io::Error },
    #[error("{} is a directory, and would be replaced by a file: it was left as it is", .0.display())]
    DirectoryInPlace(PathBuf),
    #[error("{} is not a directory, and would be replaced by one: it was left as it is", .0.display())]
    FileInPlace(PathBuf),
}

mod staging;

type Result<T, E = IncomingError> = std::result::Result<T, E>;

/// A path in a tree: names alone, none of which is `..`. The empty path is the tree itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreePath(Vec<OsString>);

impl TreePath {
    /// Parses a path as an archive has it.
    ///
    /// # Errors
    /// [`IncomingError::Outside`] if it is absolute or has `..` in it; [`IncomingError::TooDeep`].
    pub fn parse(path: &[u8]) -> Result<Self> {
        let shown = || String::from_utf8_lossy(path).into_owned();
        let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
        let names: Vec<_> = names.map(|name| OsString::from_vec(name.to_vec())).collect();
        if path.starts_with(b"/") || path.contains(&0) || names.iter().any(|name| name == "..") {
            return Err(IncomingError::Outside(shown()));
        }
        if names.len() > DEEPEST {
            return Err(IncomingError::TooDeep(shown()));
        }
        Ok(Self(names))
    }

    /// The first name, and the path below it; `None` if the path is empty.
    #[must_use]
    pub fn split_first(mut self) -> Option<(OsString, Self)> {
        if self.0.is_empty() {
            return None;
        }
        let first = self.0.remove(0);
        Some((first, self))
    }

    /// The path for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        self.0.iter().collect::<PathBuf>().display().to_string()
    }

    /// Whether a link at this path with this target leads out of the tree.
    #[must_use]
    pub fn leads_out(&self, target: &OsStr) -> bool {
        let mut depth = self.0.len().saturating_sub(1);
        for name in target.as_bytes().split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => match depth.checked_sub(1) {
                    Some(above) => depth = above,
                    None => return true,
                },
                _ => depth += 1,
            }
        }
        target.as_bytes().starts_with(b"/")
    }

    /// The directory of the entry and its name, in the directory that is made for the tree.
    fn place(&self) -> (PathBuf, OsString) {
        match self.0.split_last() {
            None => (PathBuf::new(), CONTENT.into()),
            Some((name, above)) => {
                let above = std::iter::once(OsStr::new(CONTENT)).chain(above.iter().map(OsString::as_os_str));
                (above.collect(), name.clone())
            }
        }
    }
}

/// What is kept of a file besides its content.
#[derive(Debug, Clone, Copy)]
pub struct KeptAttributes {
    /// The permissions. The bits that make a program run with other rights are dropped.
    pub mode: u32,
    /// The time of the last change, in seconds.
    pub modified: u64,
}

impl KeptAttributes {
    fn mode(self) -> Mode {
        Mode::from_raw_mode(self.mode & 0o777)
    }

    fn apply(self, handle: &OwnedFd) -> rustix::io::Result<()> {
        let time = Timespec { tv_sec: i64::try_from(self.modified).unwrap_or(i64::MAX), tv_nsec: 0 };
        fs::fchmod(handle, self.mode())?;
        fs::futimens(handle, &Timestamps { last_access: time, last_modification: time })
    }
}

/// A tree that is being made.
#[derive(Debug)]
pub struct IncomingTree {
    /// The directory to which the tree goes.
    target: Folder,
    /// The name of the directory that was made for the tree, in `target`.
    name: OsString,
    root: OwnedFd,
    /// The directory of the entry before, because the next entry is usually in it too.
    recent: Option<(PathBuf, OwnedFd)>,
    /// The directories that are being filled, outermost first. They get their attributes when they are full, because a
    /// directory that was made read-only could not be filled, and the time of one that is filled changes.
    unfinished: Vec<(PathBuf, KeptAttributes)>,
}

impl IncomingTree {
    /// Makes a directory for a tree that goes to `target`. Removes those that a killed nixbox has left there.
    ///
    /// # Errors
    /// If it cannot be made, or one that was left cannot be removed.
    pub fn begin(target: Folder) -> Result<Self> {
        staging::remove_abandoned(&target)?;
        let (name, root) = staging::make(&target)?;
        Ok(Self { target, name, root, recent: None, unfinished: Vec::new() })
    }

    /// Makes a directory, or gives it attributes if an entry in it has come before it.
    ///
    /// # Errors
    /// [`IncomingError::Twice`] if something else has that name; or if it cannot be made.
    pub fn directory(&mut self, path: &TreePath, attributes: KeptAttributes) -> Result<()> {
        let (above, name) = self.prepare(path)?;
        let parent = self.open_directory(&above)?;
        match fs::mkdirat(parent, &name, DIRECTORY_MODE) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let status = fs::statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW);
                let status = status.map_err(FileError::system("examine", path.shown()))?;
                if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
                    return Err(IncomingError::Twice(path.shown()));
                }
            }
            Err(error) => return Err(self.failed("make the directory", path, error)),
        }
        self.unfinished.push((above.join(name), attributes));
        Ok(())
    }

    /// Makes a regular file with this content.
    ///
    /// # Errors
    /// [`IncomingError::Twice`], [`IncomingError::Content`], or if it cannot be written.
    pub fn file(
        &mut self,
        path: &TreePath,
        attributes: KeptAttributes,
        content: &mut impl Read,
    ) -> Result<()> {
        let (above, name) = self.prepare(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let opened = fs::openat(self.open_directory(&above)?, &name, flags, mode);
        let mut file = File::from(opened.map_err(|error| self.refused("make", path, error))?);
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let read = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(IncomingError::Content { path: path.shown(), source }),
            };
            file.write_all(&buffer[..read]).map_err(|error| self.failed("write", path, error))?;
        }
        attributes.apply(&file.into()).map_err(|error| self.failed("set the permissions of", path, error))
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// [`IncomingError::Twice`], or if it cannot be made.
    pub fn symlink(&mut self, path: &TreePath, target: &OsStr) -> Result<()> {
        let (above, name) = self.prepare(path)?;
        let made = fs::symlinkat(target, self.open_directory(&above)?, &name);
        made.map_err(|error| self.refused("make the link", path, error))
    }

    /// Gives a file that has come before another name.
    ///
    /// # Errors
    /// [`IncomingError::NoOriginal`], [`IncomingError::Twice`], or if it cannot be made.
    pub fn hard_link(&mut self, path: &TreePath, original: &TreePath) -> Result<()> {
        let (above, name) = self.prepare(path)?;
        let (original_above, original_name) = original.place();
        let missing = || IncomingError::NoOriginal { path: path.shown(), original: original.shown() };
        let from = beneath::open(&self.root, &original_above, OFlags::PATH).map_err(|_| missing())?;
        let status = fs::statat(&from, &original_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(missing());
        }
        let made = fs::linkat(&from, &original_name, self.open_directory(&above)?, &name, AtFlags::empty());
        made.map_err(|error| self.refused("make the link", path, error))
    }

    /// Whether the tree has anything in it.
    #[must_use]
    pub fn has_content(&self) -> bool {
        fs::statat(&self.root, CONTENT, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Finishes the directories that do not contain the next entry, and returns the place of the entry.
    fn prepare(&mut self, path: &TreePath) -> Result<(PathBuf, OsString)> {
        let (above, name) = path.place();
        self.finish_all_but(&above)?;
        Ok((above, name))
    }

    fn finish_all_but(&mut self, above: &Path) -> Result<()> {
        while let Some((full, attributes)) = self.unfinished.pop_if(|(full, _)| !above.starts_with(full)) {
            let applied = beneath::open(&self.root, &full, OFlags::RDONLY | OFlags::DIRECTORY)
                .and_then(|handle| attributes.apply(&handle));
            applied.map_err(|error| self.failed_at("set the permissions of", &full, error))?;
        }
        Ok(())
    }

    /// Opens a directory of the tree. It and those above it are made if they are missing, as in an archive of files alone.
    fn open_directory(&mut self, path: &Path) -> Result<&OwnedFd> {
        if self.recent.as_ref().is_none_or(|(recent, _)| recent != path) {
            let opened = self.open_or_make(path).map_err(|error| match error {
                // A file or a link has come where this entry needs a directory.
                Errno::NOTDIR | Errno::LOOP | Errno::XDEV => IncomingError::Twice(shown(path)),
                error => self.failed_at("open the directory", path, error),
            })?;
            self.recent = Some((path.to_owned(), opened));
        }
        match &self.recent {
            Some((_, handle)) => Ok(handle),
            None => Err(self.failed_at("open", path, Errno::NOENT)),
        }
    }

    fn open_or_make(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let open = |path: &Path| beneath::open(&self.root, path, OFlags::PATH | OFlags::DIRECTORY);
        match open(path) {
            Err(Errno::NOENT) => {}
            opened => return opened,
        }
        let mut made = PathBuf::new();
        for name in path {
            match fs::mkdirat(open(&made)?, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => made.push(name),
                Err(error) => return Err(error),
            }
        }
        open(path)
    }

    fn refused(&self, action: &'static str, path: &TreePath, error: Errno) -> IncomingError {
        if error == Errno::EXIST {
            IncomingError::Twice(path.shown())
        } else {
            self.failed(action, path, error)
        }
    }

    fn failed(&self, action: &'static str, path: &TreePath, error: impl Into<io::Error>) -> IncomingError {
        let (above, name) = path.place();
        self.failed_at(action, &above.join(name), error)
    }

    fn failed_at(&self, action: &'static str, path: &Path, error: impl Into<io::Error>) -> IncomingError {
        FileError::system(action, self.target.path_of(&self.name).join(path))(error).into()
    }

    /// Moves the tree to `name` in the directory to which it goes, or into the directory that has this name.
    ///
    /// # Errors
    /// [`IncomingError::DirectoryInPlace`], [`IncomingError::FileInPlace`], or what the system refuses. What was moved before
    /// stays, and the rest is removed.
    pub fn place(self, name: &OsStr) -> Result<()> {
        self.put_in_place(|tree| {
            tree.move_to(Path::new(CONTENT), &tree.target.handle, name, &tree.target.path_of(name))
        })
    }

    /// Moves what is in the tree, which is a directory, into the directory to which it goes.
    ///
    /// # Errors
    /// As for [`IncomingTree::place`].
    pub fn place_content(self) -> Result<()> {
        self.put_in_place(|tree| {
            tree.move_content(Path::new(CONTENT), &tree.target.handle, &tree.target.path)
        })
    }

    fn put_in_place(mut self, act: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let placed = self.finish_all_but(Path::new("")).and_then(|()| act(&self));
        let discarded = self.discard();
        placed.and(discarded)
    }

    /// Removes what was made.
    ///
    /// # Errors
    /// If it cannot be removed. The error names what was left.
    pub fn discard(self) -> Result<()> {
        let failed = |error| FileError::system("remove", self.target.path_of(&self.name))(error);
        staging::remove_content(&self.root).map_err(failed)?;
        fs::unlinkat(&self.target.handle, &self.name, AtFlags::REMOVEDIR).map_err(failed)?;
        Ok(())
    }

    /// Moves an entry of the tree to `name` in `parent`. The tree may lie in a directory that a guest writes through a share,
    /// so the directory of the entry is opened without following a link, too.
    fn move_to(&self, from: &Path, parent: &OwnedFd, name: &OsStr, place: &Path) -> Result<()> {
        let failed = |error: Errno| FileError::system("put in its place", place)(error);
        let (Some(above), Some(entry)) = (from.parent(), from.file_name()) else {
            return Err(failed(Errno::INVAL).into());
        };
        let above = beneath::open(&self.root, above, OFlags::PATH | OFlags::DIRECTORY).map_err(failed)?;
        let status = fs::statat(&above, entry, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
            return match fs::renameat(&above, entry, parent, name) {
                Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
                    Err(IncomingError::DirectoryInPlace(place.to_owned()))
                }
                moved => Ok(moved.map_err(failed)?),
            };
        }
        // The kernel moves only a directory that its owner may write.
        let handle = staging::open_writable(&self.root, from).map_err(failed)?;
        let moved = fs::renameat_with(&above, entry, parent, name, RenameFlags::NOREPLACE);
        match moved {
            Ok(()) => Ok(fs::fchmod(&handle, Mode::from_raw_mode(status.st_mode & 0o777)).map_err(failed)?),
            Err(Errno::EXIST) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                // Every directory on the way is open, and few descriptors have to do.
                drop(handle);
                match fs::openat(parent, name, flags, Mode::empty()) {
                    Ok(existing) => {
                        self.move_content(from, &existing, place)?;
                        Ok(fs::unlinkat(&above, entry, AtFlags::REMOVEDIR).map_err(failed)?)
                    }
                    Err(Errno::NOTDIR | Errno::LOOP) => Err(IncomingError::FileInPlace(place.to_owned())),
                    Err(error) => Err(failed(error).into()),
                }
            }
            Err(error) => Err(failed(error).into()),
        }
    }

    fn move_content(&self, from: &Path, into: &OwnedFd, place: &Path) -> Result<()> {
        let failed = |error: Errno| FileError::system("put in its place", place)(error);
        let handle = staging::open_writable(&self.root, from).map_err(failed)?;
        loop {
            let names = staging::some_names(&handle).map_err(failed)?;
            if names.is_empty() {
                return Ok(());
            }
            // Each entry goes, so the next names are others.
            for name in names {
                self.move_to(&from.join(&name), into, &name, &place.join(&name))?;
            }
        }
    }
}

/// A path in the directory that is made for a tree, as the guest sent it.
fn shown(path: &Path) -> String {
    path.strip_prefix(CONTENT).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests;
