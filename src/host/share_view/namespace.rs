//! The namespaces in which a share daemon runs.
//!
//! Root needs a mount namespace alone. Another user needs a user namespace too, in which the user has the capabilities
//! that mounts need. It maps the user's uid and gid to themselves, so that files keep their owners, and virtiofsd makes
//! its own namespaces inside it.

use std::fs;
use std::io;

use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::{getegid, geteuid};
use rustix::thread::UnshareFlags;

use super::{Result, ShareViewError};

/// Where the names of network namespaces are.
const NETWORK_NAMESPACES: &str = "/run/netns";

/// Takes this process, which has one thread, to a mount namespace of its own.
///
/// No mount propagates between it and the host. A directory that the host mounts below the share later could hold a
/// workspace, and so the guest does not see it.
pub(super) fn enter() -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        unshare(UnshareFlags::NEWNS)?;
    } else {
        unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
        // The kernel lets a user map a gid only after the namespace has given up setgroups(2), see user_namespaces(7).
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &format!("{0} {0} 1", uid.as_raw()))?;
        write("/proc/self/gid_map", &format!("{0} {0} 1", gid.as_raw()))?;
    }
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| ShareViewError::Namespace("make its mounts private", errno.into()))?;
    // A network namespace lives as long as a mount of it, and the names of those of VMs are mounts. The daemon needs none of
    // them. Where there are none, or the user may not take them away, the daemon runs nevertheless.
    rustix::mount::unmount(NETWORK_NAMESPACES, UnmountFlags::DETACH).ok();
    Ok(())
}

fn unshare(flags: UnshareFlags) -> Result<()> {
    // Deprecated because of CLONE_FILES, which is not among these flags.
    #[allow(deprecated)]
    rustix::thread::unshare(flags)
        .map_err(|errno| ShareViewError::Namespace("unshare", io::Error::from(errno)))
}

fn write(path: &'static str, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|source| ShareViewError::Namespace(path, source))
}
