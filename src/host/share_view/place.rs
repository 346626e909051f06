//! The place at which a share daemon finds the directory that it serves.
//!
//! virtiofsd opens its directory by a path, some time after the launcher has examined the directory. A guest that can
//! write in a directory on the way could put a link there in between. So the launcher mounts what it has opened at a
//! path on which no directory of a user lies, and the daemon gets that path. The mount is in the namespace of the daemon
//! alone, and on a read-only file system, so that nothing else can come to lie there.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::mask::{attach, clone_of};
use super::{Result, failed, open_at};

/// A directory of every Linux system that holds no file of a user and that no share daemon needs.
const COVERED: &str = "/sys";
/// The name of the place in the file system that covers it.
const NAME: &str = "nixbox-share";
/// The path that the daemon opens.
pub(in crate::host) const PATH: &str = "/sys/nixbox-share";

/// Mounts the directory `source`, with all that is mounted in it, at the place. Returns the directory at the place.
///
/// The process must be in a mount namespace of its own.
pub(super) fn mount(source: &OwnedFd) -> Result<OwnedFd> {
    let directory = OFlags::PATH | OFlags::DIRECTORY;
    let failed = |errno: Errno| failed("make a place for the share at", PATH)(errno);
    let clone = clone_of(source).map_err(failed)?;
    let covered = open_at(rustix::fs::CWD, OsStr::new(COVERED), directory).map_err(failed)?;
    attach(&file_system().map_err(failed)?, &covered).map_err(failed)?;
    let place = || open_at(rustix::fs::CWD, OsStr::new(PATH), directory).map_err(failed);
    attach(&clone, &place()?).map_err(failed)?;
    place()
}

/// A read-only file system with one directory, which is not attached yet.
fn file_system() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("source", NAME), ("size", "4096"), ("nr_inodes", "2"), ("mode", "755")] {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let made = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    rustix::fs::mkdirat(&made, NAME, Mode::from_raw_mode(0o755))?;
    rustix::mount::fsconfig_set_flag(context.as_fd(), "ro")?;
    rustix::mount::fsconfig_reconfigure(context.as_fd())?;
    Ok(made)
}
