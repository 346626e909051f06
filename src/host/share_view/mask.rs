//! Covers a `.nixbox` with a read-only file system that holds copies of the files that are in version control, and mounts
//! protected paths on themselves, read-only.
//!
//! A directory on which something is mounted can be neither renamed nor removed by the daemon. The directories between
//! the source and a covered directory could be, and the guest could then make others in their place, which nothing
//! covers. So each of them is mounted on itself. The guest sees mount points there, and cannot rename them, nor rename a
//! file from one side of such a point to the other.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use crate::host::ioctl;

use super::{MASK, Result, ShareViewError, failed, open_at};

/// The files of a `.nixbox` that the guest sees, so that git finds nothing changed there.
const SHOWN: [&str; 2] = ["config.toml", ".gitignore"];
/// The most bytes of such a file.
pub(super) const LARGEST: u64 = 1 << 20;

/// The directory that is served, in which things are covered.
pub(super) struct Tree<'a> {
    source: BorrowedFd<'a>,
    path: &'a Path,
    /// The directories that are mounted on themselves, relative to the source.
    pinned: BTreeSet<PathBuf>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(source: BorrowedFd<'a>, path: &'a Path) -> Self {
        Self { source, path, pinned: BTreeSet::new() }
    }

    /// Covers the `.nixbox` at `path`, relative to the source.
    pub(super) fn mask(&mut self, path: &Path) -> Result<()> {
        let covered = self.pinned_parent(path)?;
        let whole = self.path.join(path);
        let name = path.file_name().unwrap_or_default();
        let covered =
            open_at(&covered, name, OFlags::PATH | OFlags::DIRECTORY).map_err(failed("open", &whole))?;
        let mask = made_from(&covered, &whole)?;
        attach(&mask, &covered).map_err(failed("cover", whole))
    }

    /// Makes what is at `path`, relative to the source, read-only. If a directory on the way is a file, as `.git` is in a
    /// work tree of git, the file becomes read-only in place of what is missing. What is not there is left alone.
    pub(super) fn protect(&mut self, path: &Path) -> Result<()> {
        let Some(path) = self.first_file(path)? else { return Ok(()) };
        let parent = self.pinned_parent(&path)?;
        let whole = self.path.join(&path);
        let place = open_at(&parent, path.file_name().unwrap_or_default(), OFlags::PATH)
            .map_err(failed("open", &whole))?;
        let mount = clone_of(&place).map_err(failed("protect", &whole))?;
        ioctl::make_read_only(mount.as_fd()).map_err(failed("protect", &whole))?;
        attach(&mount, &place).map_err(failed("protect", whole))
    }

    /// The shortest part of `path` that is no directory, or else `path`; `None` if it does not exist.
    fn first_file(&self, path: &Path) -> Result<Option<PathBuf>> {
        let mut directory = open_at(self.source, OsStr::new("."), OFlags::PATH | OFlags::DIRECTORY)
            .map_err(failed("open", self.path))?;
        let mut within = PathBuf::new();
        for part in path {
            within.push(part);
            let whole = self.path.join(&within);
            directory = match open_at(&directory, part, OFlags::PATH) {
                Ok(inner) => inner,
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(failed("open", whole)(errno)),
            };
            let status = rustix::fs::fstat(&directory).map_err(failed("examine", &whole))?;
            match FileType::from_raw_mode(status.st_mode) {
                FileType::Directory => {}
                FileType::Symlink => return Err(ShareViewError::ProtectedLink(whole)),
                _ => break,
            }
        }
        Ok(Some(within))
    }

    /// Opens the directory that holds `path`, through the mounts that keep it and those above it in place.
    fn pinned_parent(&mut self, path: &Path) -> Result<OwnedFd> {
        let mut directory = open_at(self.source, OsStr::new("."), OFlags::PATH | OFlags::DIRECTORY)
            .map_err(failed("open", self.path))?;
        let mut within = PathBuf::new();
        let parent = path.parent().unwrap_or(Path::new(""));
        for part in parent {
            within.push(part);
            let open = |directory: &OwnedFd| {
                open_at(directory, part, OFlags::PATH | OFlags::DIRECTORY)
                    .map_err(failed("open", self.path.join(&within)))
            };
            let mut inner = open(&directory)?;
            if !self.pinned.contains(&within) {
                pin(&inner).map_err(failed("keep in place", self.path.join(&within)))?;
                // What was opened before lies below the mount.
                inner = open(&directory)?;
                self.pinned.insert(within.clone());
            }
            directory = inner;
        }
        Ok(directory)
    }
}

/// Mounts a directory on itself.
fn pin(directory: &OwnedFd) -> Result<(), Errno> {
    attach(&clone_of(directory)?, directory)
}

/// A mount of a file or directory, with all that is mounted below it, that is not attached yet.
pub(super) fn clone_of(original: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(original, "", flags)
}

/// Attaches a mount to a file or directory.
pub(super) fn attach(mount: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", to, "", flags)
}

/// A read-only file system with the copies, which is not attached yet. The one for `covered` has the same permissions.
fn made_from(covered: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    let made = |errno: Errno| failed("make a mask for", path)(errno);
    let mode = rustix::fs::fstat(covered).map_err(failed("examine", path))?.st_mode & 0o777;
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(made)?;
    let size = LARGEST * (SHOWN.len() as u64 + 1);
    for (key, value) in [
        ("source", MASK.to_owned()),
        ("size", size.to_string()),
        ("nr_inodes", "8".to_owned()),
        ("mode", format!("{mode:o}")),
    ] {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value).map_err(made)?;
    }
    rustix::mount::fsconfig_create(context.as_fd()).map_err(made)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mask =
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(made)?;
    for name in SHOWN {
        copy(covered, &mask, name, &path.join(name))?;
    }
    rustix::mount::fsconfig_set_flag(context.as_fd(), "ro").map_err(made)?;
    rustix::mount::fsconfig_reconfigure(context.as_fd()).map_err(made)?;
    Ok(mask)
}

/// Copies a regular file. Anything else with its name, and a link too, is not shown.
fn copy(from: &OwnedFd, to: &OwnedFd, name: &str, path: &Path) -> Result<()> {
    let name = OsStr::new(name);
    // Opened as a place first: to open a FIFO or a device for reading would wait for another process, or act.
    let place = match open_at(from, name, OFlags::PATH) {
        Ok(place) => place,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed("open", path)(errno)),
    };
    let status = rustix::fs::fstat(&place).map_err(failed("examine", path))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Ok(());
    }
    let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).map_err(failed("open", path))?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 > LARGEST {
        return Err(ShareViewError::LargeFile(path.to_owned()));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let copied =
        rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed("copy", path))?;
    rustix::fs::fchmod(&copied, Mode::from_raw_mode(status.st_mode & 0o777)).map_err(failed("copy", path))?;
    File::from(copied).write_all(&bytes).map_err(failed("copy", path))
}
