//! A snapshot as the seams name it: its state on disk, and what its manifest says.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{BootId, Cpuid, Receipt, Result, Slot, SnapshotId, SnapshotName, SnapshotNote, VmmVersion};

/// The circumstances in which a snapshot was made. It can be restored only where they are compatible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The VMM that saved it.
    pub vmm: VmmVersion,
    /// The features of the host's processor.
    pub cpu: BTreeSet<String>,
    /// The values of the configuration that shape a VM, by key.
    pub shape: BTreeMap<String, String>,
}

/// What the guest of a snapshot was given, by content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// The features of its processors. An older nixbox did not write them down, and neither does the simulator.
    pub cpuid: Option<Cpuid>,
    /// The hashes of the files that the shape names by path, by the same key.
    pub contents: BTreeMap<String, [u8; 32]>,
    /// How these hashes are computed.
    pub method: HashMethod,
}

/// The state of a snapshot on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotState {
    /// It is not there.
    Absent,
    /// It is in its staging directory, is not listed, and can be used only by the operation that makes it.
    Staged,
    /// It is committed.
    Listed,
    /// It was renamed out of the list and is not removed yet.
    Trashed,
}

/// What a snapshot says of itself: enough to restore it, and to decide whether it can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The snapshot.
    pub id: SnapshotId,
    /// The name that a person gave it, if any. The list of snapshots puts the name of the [`SnapshotLabel`] here.
    pub name: Option<SnapshotName>,
    /// When it was committed: milliseconds since 1970, UTC.
    pub created_ms: u64,
    /// The slot that the guest's address belongs to.
    pub slot: Slot,
    /// The guest's boot at the time.
    pub boot: BootId,
    /// Whether the shares are attached in the VMM state.
    pub shares: bool,
    /// The circumstances in which it was made.
    pub origin: Origin,
    /// Every file of the snapshot.
    pub files: Vec<FileRecord>,
    /// What the guest was given. It is found out when the manifest is written, and is no part of a journal.
    #[serde(skip)]
    pub given: Given,
    /// What was searched for credentials. An older nixbox searched nothing. It is no part of a journal either.
    #[serde(skip)]
    pub receipt: Option<Receipt>,
}

/// What a person may change about a snapshot after it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotLabel {
    /// Its name, if it has one.
    pub name: Option<SnapshotName>,
    /// What a person wrote down about it.
    pub note: Option<SnapshotNote>,
}

/// A snapshot in the list, damaged or not.
#[derive(Debug)]
pub struct ListedSnapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// Its manifest, with the name that its label gives it, or why the manifest cannot be read.
    pub manifest: Result<Manifest>,
    /// Its label, or why that cannot be read. A snapshot whose label is damaged has no name that could be known.
    pub label: Result<SnapshotLabel>,
    /// What its files occupy, in bytes, or why that cannot be found out. Blocks that files share count for each of them.
    pub occupied: Result<u64>,
}

impl ListedSnapshot {
    /// Whether nobody named the snapshot, as far as can be known: a snapshot may have had a name that is damaged now.
    #[must_use]
    pub fn is_unnamed(&self) -> bool {
        self.label.is_ok() && self.manifest.as_ref().is_ok_and(|manifest| manifest.name.is_none())
    }
}

/// How much of a snapshot is read to verify it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The manifest, all sizes, and the content of each file whose inode, size or change time is not the one of its
    /// last verification.
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
    /// The hash of its content.
    pub hash: [u8; 32],
    /// How the hash is computed. It is no part of a journal: what an operation writes there is hashed by the default
    /// method.
    #[serde(skip)]
    pub method: HashMethod,
}

/// How the hash of a file is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HashMethod {
    /// BLAKE3 of its bytes from the first to the last. The manifests of an older nixbox have this.
    Whole,
    /// The root over the hashes of its pieces, in which a hole costs nothing.
    #[default]
    Pieces,
}

impl HashMethod {
    /// What the formats call a hash that is computed like this.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "blake3",
            Self::Pieces => "pieces",
        }
    }
}
