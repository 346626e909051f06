//! What tells a directory from a copy of it.

use serde::{Deserialize, Serialize};

/// What tells a directory from a copy of it: the same in every boot of the host, and through every mount of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryIdentity {
    /// `f_fsid` of statfs(2).
    pub(super) file_system: u64,
    pub(super) inode: u64,
    /// When the inode was made, in seconds and nanoseconds since 1970 (statx(2)), if the file system keeps it. A number
    /// of an inode that was removed is used again, and the time is not.
    pub(super) born: Option<(i64, u32)>,
}

impl DirectoryIdentity {
    /// Whether the two are the same inode, on a file system whose id may have changed with a reboot of the host.
    #[must_use]
    pub fn is_same_inode(&self, other: &Self) -> bool {
        (self.inode, self.born) == (other.inode, other.born)
    }

    /// Whether two directories are on one file system.
    #[must_use]
    pub fn same_file_system(self, other: Self) -> bool {
        self.file_system == other.file_system
    }
}
