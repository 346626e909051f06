//! Opens paths that a guest may change while they are opened.

use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How often the call is made again, if a directory on the way was renamed meanwhile.
const MOST_ATTEMPTS: usize = 16;

/// Opens a path beneath a directory in one call that follows no link and does not leave the directory (openat2(2)). The empty
/// path is the directory itself.
///
/// # Errors
/// What the system refuses.
pub(super) fn open(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    // NOFOLLOW does not do: together with PATH it opens a link in the last place.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let attempt = || fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
    let mut opened = attempt();
    for _ in 0..MOST_ATTEMPTS {
        if !matches!(opened, Err(Errno::AGAIN)) {
            break;
        }
        opened = attempt();
    }
    opened
}
