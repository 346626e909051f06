//! A snapshot as the seams name it: where it stands, and what its manifest says.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{BootId, Result, Slot, SnapshotId, SnapshotName, VmmVersion};

/// What a snapshot was made under, and has to be restored under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The VMM that saved it.
    pub vmm: VmmVersion,
    /// What the host's processor could do.
    pub cpu: BTreeSet<String>,
    /// What of the configuration shapes a VM: values by key.
    pub shape: BTreeMap<String, String>,
}

/// Where a snapshot stands on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotState {
    /// Nowhere.
    Absent,
    /// In its staging directory: not listed, of no use to anybody but the operation that makes it.
    Staged,
    /// Committed.
    Listed,
    /// Renamed out of the list, not yet removed.
    Trashed,
}

/// What a snapshot says of itself: enough to restore it, and to tell whether it fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The snapshot.
    pub id: SnapshotId,
    /// A name given by a person, or none.
    pub name: Option<SnapshotName>,
    /// When it was committed: milliseconds since 1970, UTC.
    pub created_ms: u64,
    /// The slot that the guest's address belongs to.
    pub slot: Slot,
    /// The boot that it was taken of.
    pub boot: BootId,
    /// Whether the shares are attached in the VMM state.
    pub shares: bool,
    /// What it was made under.
    pub origin: Origin,
    /// Every file with its size in bytes and its hash, by name.
    pub files: Vec<FileRecord>,
}

/// A snapshot in the list, whole or not.
#[derive(Debug)]
pub struct ListedSnapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// What it says of itself, or why that cannot be known.
    pub manifest: Result<Manifest>,
}

/// How much of a snapshot is read to find out whether it is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What was touched since it was last read: any file that has not the inode, the size and the change time that it
    /// had then. Sizes and the manifest are always looked at.
    Touched,
    /// Every byte.
    All,
}

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name within the snapshot's directory.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// BLAKE3 of its content.
    pub hash: [u8; 32],
}
