//! Which files of a snapshot have not been touched since all of their bytes were read: `snapshots/.seen-<id>.json`.
//!
//! A restore that had to read all of a disk image first would not be a warm start. So each file's inode, size and change
//! time are kept from when its hash was taken, beside the snapshot and not in it. The kernel sets the change time at
//! every write and lets nobody choose it, so a file that looks the same is the same, but for a medium that forgets: that
//! is for `nixbox snapshot verify` to find, which reads everything. A hint: without it, or where it does not fit, files
//! are read.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};

use super::Result;
use crate::files::{FileError, Folder};
use crate::world::{FileRecord, SnapshotId};

/// More than 18 files take.
const LIMIT: u64 = 64 << 10;

/// As `stat` gives them. No device: a btrfs has another number after each mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileStatus {
    inode: u64,
    size: u64,
    changed_s: i64,
    changed_ns: i64,
}

/// How the files of one snapshot looked, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VerifiedFiles(BTreeMap<String, FileStatus>);

fn file_name(id: SnapshotId) -> String {
    format!(".seen-{id}.json")
}

fn file_status(snapshot: &Folder, name: &str) -> Result<Option<FileStatus>> {
    let Some(file) = snapshot.file(name)? else {
        return Ok(None);
    };
    let status = file.metadata().map_err(FileError::system("examine", snapshot.path_of(name)))?;
    Ok(Some(FileStatus {
        inode: status.ino(),
        size: status.len(),
        changed_s: status.ctime(),
        changed_ns: status.ctime_nsec(),
    }))
}

impl VerifiedFiles {
    /// How these files look now. To be taken before they are read.
    ///
    /// # Errors
    /// If one cannot be examined.
    pub(super) fn now(snapshot: &Folder, files: &[FileRecord]) -> Result<Self> {
        let mut seen = Self::default();
        for record in files {
            if let Some(look) = file_status(snapshot, &record.name)? {
                seen.0.insert(record.name.clone(), look);
            }
        }
        Ok(seen)
    }

    /// What was kept of a snapshot; nothing if that is not there, or cannot be understood.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn read(root: &Folder, id: SnapshotId) -> Result<Self> {
        let bytes = root.read(file_name(id), LIMIT)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    /// Keeps it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&self, root: &Folder, id: SnapshotId) -> Result<()> {
        let text = serde_json::to_vec(self)
            .map_err(|source| super::StoreError::Unwritable { id, source: source.into() })?;
        Ok(root.replace(file_name(id), &text)?)
    }

    /// Forgets a snapshot, and what a killed [`VerifiedFiles::write`] left.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub(super) fn forget(root: &Folder, id: SnapshotId) -> Result<()> {
        root.remove_file(format!(".{}.unfinished", file_name(id)))?;
        Ok(root.remove_file(file_name(id))?)
    }

    /// Whether a file looks as it did when `self` was taken.
    pub(super) fn agrees(&self, now: &Self, name: &str) -> bool {
        self.0.get(name).is_some_and(|then| now.0.get(name) == Some(then))
    }
}
