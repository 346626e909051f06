//! Which files of a snapshot have not changed since all of their bytes were read: `snapshots/.seen-<id>.json`.
//!
//! A restore that had to read a whole disk image first would not be a warm start. So the inode, size and change time of
//! each file are kept from when its hash was taken, beside the snapshot and not in it. The kernel sets the change time
//! at every write, and no program can choose it. So a file that looks as it did has the same bytes, unless the medium
//! lost some; `nixbox snapshot verify` reads everything and finds that. The record is a hint: if it is missing or does
//! not fit, files are read.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};

use super::error::{Result, StoreError};
use crate::files::{FileError, Folder};
use crate::world::{FileRecord, SnapshotId};

/// More than the record of 18 files takes.
const LIMIT: u64 = 64 << 10;

/// As `stat` gives them. There is no device number, because a btrfs gets another one at each mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileStatus {
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

impl FileStatus {
    /// The status that a file has now. Returns `None` if the file does not exist.
    pub(super) fn of(snapshot: &Folder, name: &str) -> Result<Option<Self>> {
        let Some(file) = snapshot.file(name)? else {
            return Ok(None);
        };
        let status = file.metadata().map_err(FileError::system("examine", snapshot.path_of(name)))?;
        Ok(Some(Self {
            inode: status.ino(),
            size: status.len(),
            changed_s: status.ctime(),
            changed_ns: status.ctime_nsec(),
        }))
    }
}

impl VerifiedFiles {
    /// How these files look now. To be taken before the files are read.
    pub(super) fn now(snapshot: &Folder, files: &[FileRecord]) -> Result<Self> {
        let mut now = Self::default();
        for record in files {
            if let Some(status) = FileStatus::of(snapshot, &record.name)? {
                now.0.insert(record.name.clone(), status);
            }
        }
        Ok(now)
    }

    /// The record of a snapshot; an empty one if there is none, or none that can be parsed.
    pub(super) fn read(root: &Folder, id: SnapshotId) -> Result<Self> {
        let bytes = root.read(file_name(id), LIMIT)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
    }

    /// Writes the record of a snapshot.
    pub(super) fn write(&self, root: &Folder, id: SnapshotId) -> Result<()> {
        let text = serde_json::to_vec(self)
            .map_err(|source| StoreError::Unwritable { id, source: source.into() })?;
        Ok(root.replace(file_name(id), &text)?)
    }

    /// Removes the record of a snapshot, and what a killed [`VerifiedFiles::write`] left.
    pub(super) fn forget(root: &Folder, id: SnapshotId) -> Result<()> {
        root.remove_file(format!(".{}.unfinished", file_name(id)))?;
        Ok(root.remove_file(file_name(id))?)
    }

    /// Whether a file looks as it did when `self` was taken.
    pub(super) fn agrees(&self, now: &Self, name: &str) -> bool {
        self.0.get(name).is_some_and(|then| now.0.get(name) == Some(then))
    }
}
