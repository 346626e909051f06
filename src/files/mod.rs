//! Files in directories that nixbox made, reached by handle and name and never through a symbolic link.
//!
//! The kernel looks a path up at every call, and another process may have put a symbolic link into it in between. A
//! [`Folder`] is an open directory: what it opens, makes, renames and removes are plain names in it, and a link in the
//! place of a file or directory of nixbox's is refused.
//!
//! [`copy`] copies large files, [`hash`] computes their hashes, and [`extents`] tells where they have data.
//! [`shared_paths`] opens what a guest may have replaced, and [`incoming`] makes what a guest sends. May use `world`.

mod beneath;
pub mod changes;
pub mod copy;
mod error;
pub mod extents;
pub mod hash;
mod identity;
pub mod incoming;
pub mod search;
pub mod shared_paths;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, StatxFlags};
use rustix::io::Errno;

pub use error::FileError;
pub use identity::DirectoryIdentity;

/// Only their owner may use directories and files in the workspace.
const DIRECTORY_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// How deep a tree may be that [`Folder::remove_tree`] removes. The directories of nixbox are flat.
const MAX_DEPTH: usize = 8;

type Result<T, E = FileError> = std::result::Result<T, E>;

/// An open directory, with the path by which it was opened.
#[derive(Debug)]
pub struct Folder {
    handle: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens a directory. Links on the way to it are followed. A link in its own place is refused.
    ///
    /// # Errors
    /// If the directory is missing, not a directory, or a symbolic link.
    pub fn open(path: &Path) -> Result<Self> {
        open_directory(fs::CWD, path.as_os_str(), path)?
            .ok_or_else(|| FileError::system("open", path)(io::Error::from(io::ErrorKind::NotFound)))
    }

    /// The path by which it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a name within it, for messages and for programs that take paths.
    #[must_use]
    pub fn path_of(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path.join(name.as_ref())
    }

    /// Its owner and permissions.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn status(&self) -> Result<Stat> {
        fs::fstat(&self.handle).map_err(FileError::system("examine", &self.path))
    }

    /// What tells the directory from a copy of it.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn identity(&self) -> Result<DirectoryIdentity> {
        let failed = || FileError::system("examine", &self.path);
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let status = fs::statx(&self.handle, "", AtFlags::EMPTY_PATH, wanted).map_err(failed())?;
        let file_system = fs::fstatvfs(&self.handle).map_err(failed())?.f_fsid;
        let born = status.stx_btime;
        let known = status.stx_mask & StatxFlags::BTIME.bits() != 0;
        Ok(DirectoryIdentity {
            file_system,
            inode: status.stx_ino,
            born: known.then_some((born.tv_sec, born.tv_nsec)),
        })
    }

    /// Makes sure that the directory belongs to the user who runs nixbox, and that no other user may write in it.
    ///
    /// # Errors
    /// [`FileError::Owner`], [`FileError::Writable`].
    pub fn check_private(&self) -> Result<()> {
        check_owner(&self.status()?, &self.path)
    }

    /// Makes sure that nothing is mounted on the directory, which was opened in the directory `above`.
    ///
    /// # Errors
    /// [`FileError::MountPoint`].
    pub fn check_not_mounted(&self, above: &Self) -> Result<()> {
        let mount = |folder: &Self| {
            fs::statx(&folder.handle, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
                .map(|status| status.stx_mnt_id)
                .map_err(FileError::system("examine", &folder.path))
        };
        if mount(self)? == mount(above)? {
            Ok(())
        } else {
            Err(FileError::MountPoint { path: self.path.clone() })
        }
    }

    /// How many bytes its file system has left for users without privileges.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn free_bytes(&self) -> Result<u64> {
        let status = fs::fstatvfs(&self.handle).map_err(FileError::system("examine", &self.path))?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }

    /// The kind of its file system, as a number of the kernel (`f_type` of statfs).
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn file_system(&self) -> Result<i64> {
        let status = fs::fstatfs(&self.handle).map_err(FileError::system("examine", &self.path))?;
        Ok(status.f_type as i64)
    }

    /// The status of the entry of that name; `None` if there is none. Links are not followed.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn examine(&self, name: impl AsRef<OsStr>) -> Result<Option<Stat>> {
        let name = plain(name.as_ref())?;
        match fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => Ok(Some(status)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(FileError::system("examine", self.path_of(name))(error)),
        }
    }

    /// A directory in it, `None` if there is nothing of that name.
    ///
    /// # Errors
    /// If the entry is something else, or cannot be opened.
    pub fn folder(&self, name: impl AsRef<OsStr>) -> Result<Option<Self>> {
        let name = plain(name.as_ref())?;
        open_directory(&self.handle, name, &self.path_of(name))
    }

    /// A directory in it, made with mode 0700 if there is nothing of that name. The flag is true if it was made.
    ///
    /// # Errors
    /// If the entry is something else, or cannot be made.
    pub fn make_folder(&self, name: impl AsRef<OsStr>) -> Result<(Self, bool)> {
        let name = plain(name.as_ref())?;
        let made = match fs::mkdirat(&self.handle, name, DIRECTORY_MODE) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => {
                return Err(FileError::system("make the directory", self.path_of(name))(error));
            }
        };
        let missing =
            || FileError::system("open", self.path_of(name))(io::Error::from(io::ErrorKind::NotFound));
        Ok((self.folder(name)?.ok_or_else(missing)?, made))
    }

    /// A regular file in it, opened for reading; `None` if there is nothing of that name.
    ///
    /// # Errors
    /// If the entry is something else, or cannot be opened.
    pub fn file(&self, name: impl AsRef<OsStr>) -> Result<Option<File>> {
        self.open_file(name.as_ref(), OFlags::RDONLY)
    }

    /// A regular file in it, opened for reading and writing; `None` if there is nothing of that name.
    ///
    /// # Errors
    /// If the entry is something else, or cannot be opened.
    pub fn file_to_write(&self, name: impl AsRef<OsStr>) -> Result<Option<File>> {
        self.open_file(name.as_ref(), OFlags::RDWR)
    }

    fn open_file(&self, name: &OsStr, access: OFlags) -> Result<Option<File>> {
        let name = plain(name)?;
        let path = self.path_of(name);
        // NONBLOCK, because opening a FIFO would wait for a writer. The flag has no effect on a regular file.
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match fs::openat(&self.handle, name, flags, Mode::empty()) {
            Ok(handle) => File::from(handle),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(FileError::Symlink { path }),
            Err(Errno::ISDIR | Errno::NXIO) => {
                return Err(FileError::Kind { path, wanted: "regular file" });
            }
            Err(error) => return Err(FileError::system("open", path)(error)),
        };
        let status = fs::fstat(&file).map_err(FileError::system("examine", &path))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(FileError::Kind { path, wanted: "regular file" });
        }
        Ok(Some(file))
    }

    /// The target of the symbolic link of that name.
    ///
    /// # Errors
    /// If the entry is something else, or cannot be read.
    pub fn link(&self, name: impl AsRef<OsStr>) -> Result<OsString> {
        let name = plain(name.as_ref())?;
        let target = fs::readlinkat(&self.handle, name, Vec::new());
        let target = target.map_err(FileError::system("read the link", self.path_of(name)))?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// A new file in it, empty, mode 0600, opened for reading and writing.
    ///
    /// # Errors
    /// If there is something of that name, or it cannot be made.
    pub fn new_file(&self, name: impl AsRef<OsStr>) -> Result<File> {
        let name = plain(name.as_ref())?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(&self.handle, name, flags, FILE_MODE)
            .map(File::from)
            .map_err(FileError::system("make", self.path_of(name)))
    }

    /// The bytes of a regular file in it, `None` if there is nothing of that name.
    ///
    /// # Errors
    /// If the entry is something else, larger than `limit` bytes, or cannot be read.
    pub fn read(&self, name: impl AsRef<OsStr>, limit: u64) -> Result<Option<Vec<u8>>> {
        let name = name.as_ref();
        self.file(name)?.map(|file| self.read_open(name, file, limit)).transpose()
    }

    /// The same for a file that decides what nixbox does: only its owner, who is the user that runs nixbox, may write it.
    ///
    /// # Errors
    /// Those of [`Folder::read`], [`FileError::Owner`] and [`FileError::Writable`].
    pub fn read_private(&self, name: impl AsRef<OsStr>, limit: u64) -> Result<Option<Vec<u8>>> {
        let name = name.as_ref();
        let Some(file) = self.file(name)? else {
            return Ok(None);
        };
        let status = fs::fstat(&file).map_err(FileError::system("examine", self.path_of(name)))?;
        check_owner(&status, &self.path_of(name))?;
        self.read_open(name, file, limit).map(Some)
    }

    fn read_open(&self, name: &OsStr, file: File, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(FileError::system("read", self.path_of(name)))?;
        if bytes.len() as u64 > limit {
            return Err(FileError::TooLarge { path: self.path_of(name), limit });
        }
        Ok(bytes)
    }

    /// Makes a file with these bytes, which are on the medium when this returns. If a file has the name already, it is
    /// left as it is, and the result is `false`.
    ///
    /// # Errors
    /// If the file cannot be written. A file has another name until it is whole, so a later call never reads half of it.
    pub fn write_new(&self, name: impl AsRef<OsStr>, bytes: &[u8]) -> Result<bool> {
        let name = plain(name.as_ref())?;
        if self.examine(name)?.is_some() {
            return Ok(false);
        }
        let unfinished = self.write_unfinished(name, bytes)?;
        match fs::renameat_with(&self.handle, &unfinished, &self.handle, name, RenameFlags::NOREPLACE) {
            Ok(()) => self.sync().map(|()| true),
            Err(Errno::EXIST) => self.remove_file(&unfinished).map(|()| false),
            Err(error) => Err(FileError::system("make", self.path_of(name))(error)),
        }
    }

    /// Makes a file with these bytes, or atomically replaces the file of that name. The bytes are on the medium when this
    /// returns.
    ///
    /// # Errors
    /// If the file cannot be written. Then the earlier file is still there.
    pub fn replace(&self, name: impl AsRef<OsStr>, bytes: &[u8]) -> Result<()> {
        let name = plain(name.as_ref())?;
        let unfinished = self.write_unfinished(name, bytes)?;
        fs::renameat(&self.handle, &unfinished, &self.handle, name)
            .map_err(FileError::system("replace", self.path_of(name)))?;
        self.sync()
    }

    fn write_unfinished(&self, name: &OsStr, bytes: &[u8]) -> Result<OsString> {
        let mut unfinished = OsString::from(".");
        unfinished.push(name);
        unfinished.push(".unfinished");
        self.remove_file(&unfinished)?;
        let mut file = self.new_file(&unfinished)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(FileError::system("write", self.path_of(&unfinished)))?;
        Ok(unfinished)
    }

    /// Gives an entry another name, which must not exist.
    ///
    /// # Errors
    /// If the name exists, or the file system cannot rename without replacing. All usual file systems of Linux can.
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Result<()> {
        let (from, to) = (plain(from.as_ref())?, plain(to.as_ref())?);
        fs::renameat_with(&self.handle, from, &self.handle, to, RenameFlags::NOREPLACE)
            .map_err(FileError::system("rename", self.path_of(from)))
    }

    /// Gives an entry a name in another directory, which must not have that name. Returns `false` if the directories are on
    /// two file systems, and changes nothing then.
    ///
    /// # Errors
    /// Those of [`Folder::rename`].
    pub fn rename_into(
        &self,
        from: impl AsRef<OsStr>,
        directory: &Self,
        to: impl AsRef<OsStr>,
    ) -> Result<bool> {
        let (from, to) = (plain(from.as_ref())?, plain(to.as_ref())?);
        match fs::renameat_with(&self.handle, from, &directory.handle, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::XDEV) => Ok(false),
            Err(error) => Err(FileError::system("move", self.path_of(from))(error)),
        }
    }

    /// Waits until its entries are on the medium.
    ///
    /// # Errors
    /// If the medium fails.
    pub fn sync(&self) -> Result<()> {
        fs::fsync(&self.handle).map_err(FileError::system("sync", &self.path))
    }

    /// The names in it, sorted, without `.` and `..`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn names(&self) -> Result<Vec<OsString>> {
        let failed = |error: Errno| FileError::system("list", &self.path)(error);
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.handle).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(OsStr::from_bytes(name.to_bytes()).to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes a file or a link; succeeds if there is none.
    ///
    /// # Errors
    /// If the entry is a directory, or cannot be removed.
    pub fn remove_file(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = plain(name.as_ref())?;
        match fs::unlinkat(&self.handle, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(FileError::system("remove", self.path_of(name))(error)),
        }
    }

    /// Removes an empty directory; succeeds if there is none. The result is `false` if the directory is not empty.
    ///
    /// # Errors
    /// If the entry is something else, or cannot be removed.
    pub fn remove_empty(&self, name: impl AsRef<OsStr>) -> Result<bool> {
        let name = plain(name.as_ref())?;
        match fs::unlinkat(&self.handle, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(error) => Err(FileError::system("remove", self.path_of(name))(error)),
        }
    }

    /// Removes all that is in it, and not the directory itself. Links in it are removed and not followed. The removal is on
    /// the medium when this returns.
    ///
    /// # Errors
    /// Those of [`Folder::remove_tree`].
    pub fn remove_content(&self) -> Result<()> {
        for name in self.names()? {
            self.remove_entry(&name, 0)?;
        }
        self.sync()
    }

    /// Removes a directory and all that is in it; succeeds if there is none. Links in it are removed and not followed.
    /// The removal is on the medium when this returns.
    ///
    /// # Errors
    /// If the entry is not a directory, is deeper than a directory of nixbox's, or cannot be removed.
    pub fn remove_tree(&self, name: impl AsRef<OsStr>) -> Result<()> {
        self.remove_below(name.as_ref(), 0)?;
        self.sync()
    }

    fn remove_entry(&self, name: &OsStr, depth: usize) -> Result<()> {
        let status = self.examine(name)?;
        match status.map(|status| FileType::from_raw_mode(status.st_mode)) {
            Some(FileType::Directory) => self.remove_below(name, depth),
            _ => self.remove_file(name),
        }
    }

    fn remove_below(&self, name: &OsStr, depth: usize) -> Result<()> {
        let Some(folder) = self.folder(name)? else {
            return Ok(());
        };
        if depth == MAX_DEPTH {
            return Err(FileError::Kind {
                path: folder.path,
                wanted: "directory that nixbox made: it is too deep",
            });
        }
        for entry in folder.names()? {
            folder.remove_entry(&entry, depth + 1)?;
        }
        self.remove_empty(name)?.then_some(()).ok_or_else(|| {
            FileError::system("remove", self.path_of(name))(io::Error::from(io::ErrorKind::DirectoryNotEmpty))
        })
    }
}

fn open_directory(at: impl rustix::fd::AsFd, name: &OsStr, path: &Path) -> Result<Option<Folder>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match fs::openat(at.as_fd(), name, flags, Mode::empty()) {
        Ok(handle) => Ok(Some(Folder { handle, path: path.to_owned() })),
        Err(Errno::NOENT) => Ok(None),
        // With DIRECTORY and NOFOLLOW together, Linux answers NOTDIR for a link.
        Err(Errno::NOTDIR | Errno::LOOP) => match fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) if FileType::from_raw_mode(status.st_mode) == FileType::Symlink => {
                Err(FileError::Symlink { path: path.to_owned() })
            }
            _ => Err(FileError::Kind { path: path.to_owned(), wanted: "directory" }),
        },
        Err(error) => Err(FileError::system("open", path)(error)),
    }
}

fn check_owner(status: &Stat, path: &Path) -> Result<()> {
    let user = rustix::process::geteuid().as_raw();
    if status.st_uid != user {
        return Err(FileError::Owner { path: path.to_owned(), owner: status.st_uid, user });
    }
    if Mode::from_raw_mode(status.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
        return Err(FileError::Writable { path: path.to_owned() });
    }
    Ok(())
}

/// Where an absolute path leads when links are followed. The part that does not exist stays as it is, without `..`.
#[must_use]
pub fn real_path(path: &Path) -> PathBuf {
    let mut real = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                real.pop();
            }
            part => real.push(part),
        }
        if let Ok(followed) = std::fs::canonicalize(&real) {
            real = followed;
        }
    }
    real
}

/// The name, if it can only mean an entry of the directory itself.
fn plain(name: &OsStr) -> Result<&OsStr> {
    let bytes = name.as_bytes();
    let good =
        !bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.contains(&b'/') && !bytes.contains(&0);
    if good { Ok(name) } else { Err(FileError::Name(name.to_owned())) }
}

#[cfg(test)]
mod tests;
