//! Names and directories of snapshots, and what is in an open one.

use std::ffi::OsStr;

use super::error::{Result, StoreError};
use super::label;
use super::manifest::{self, FILE, LIMIT, ManifestError};
use crate::files::{FileError, Folder};
use crate::world::{FileRecord, Generation, Manifest, SnapshotId, SnapshotLabel};

/// The name of a manifest that is being written; see [`Folder::replace`].
pub(super) const UNFINISHED: &str = ".manifest.json.unfinished";

pub(super) const STAGING: &str = ".staging-";
pub(super) const TRASH: &str = ".trash-";

/// The name of a staging directory.
#[must_use]
pub fn staging_name(id: SnapshotId) -> String {
    format!("{STAGING}{id}")
}

/// The name of a directory that is about to be removed.
pub(super) fn trash_name(id: SnapshotId) -> String {
    format!("{TRASH}{id}")
}

/// The snapshot whose number follows the prefix; `None` if nixbox would not have written the number like this.
pub(super) fn id_of(name: &OsStr, prefix: &str) -> Option<SnapshotId> {
    let digits = name.to_str()?.strip_prefix(prefix)?;
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(SnapshotId(Generation(number)))
}

/// The directory of a snapshot, listed or else staged; `None` if it is neither.
///
/// # Errors
/// If something else has its name, such as a symbolic link.
pub fn open(snapshots: &Folder, id: SnapshotId) -> Result<Option<Folder>> {
    match snapshots.folder(id.to_string())? {
        Some(listed) => Ok(Some(listed)),
        None => Ok(snapshots.folder(staging_name(id))?),
    }
}

/// The manifest in an open snapshot; `None` if there is none.
pub(super) fn read_manifest(snapshot: &Folder, id: SnapshotId) -> Result<Option<Manifest>> {
    let Some(encoded) = snapshot.read(FILE, LIMIT)? else {
        return Ok(None);
    };
    let checked = manifest::decode(&encoded).and_then(|manifest| {
        if manifest.id == id { Ok(manifest) } else { Err(ManifestError::OtherSnapshot(manifest.id)) }
    });
    checked.map(Some).map_err(|source| StoreError::Manifest { id, path: snapshot.path_of(FILE), source })
}

/// The label in an open snapshot; `None` if the snapshot has no label.
pub(super) fn read_label(snapshot: &Folder, id: SnapshotId) -> Result<Option<SnapshotLabel>> {
    let Some(bytes) = snapshot.read(label::FILE, label::LIMIT)? else {
        return Ok(None);
    };
    let label = label::decode(&bytes);
    label.map(Some).map_err(|source| StoreError::Label { id, path: snapshot.path_of(label::FILE), source })
}

/// What the manifest of an open snapshot says of one of its files; `None` if the snapshot is staged and has none.
///
/// # Errors
/// If the manifest is damaged, or does not name the file.
pub fn record_of(snapshot: &Folder, id: SnapshotId, name: &str) -> Result<Option<FileRecord>> {
    let Some(manifest) = read_manifest(snapshot, id)? else {
        return Ok(None);
    };
    let record = manifest.files.into_iter().find(|record| record.name == name);
    record.map(Some).ok_or_else(|| StoreError::Extra { id, name: name.into() })
}

/// Makes sure that an open snapshot has exactly the files of the manifest, in their sizes.
pub(super) fn check_files(snapshot: &Folder, manifest: &Manifest) -> Result<()> {
    let id = manifest.id;
    for record in &manifest.files {
        let name = || record.name.clone();
        let file = snapshot.file(&record.name)?.ok_or_else(|| StoreError::Missing { id, name: name() })?;
        let found =
            file.metadata().map_err(FileError::system("examine", snapshot.path_of(&record.name)))?.len();
        if found != record.size {
            return Err(StoreError::Size { id, name: name(), found, expected: record.size });
        }
    }
    let known = |name: &std::ffi::OsString| {
        [FILE, UNFINISHED, label::FILE, label::UNFINISHED].iter().any(|own| name == *own)
            || manifest.files.iter().any(|record| *name == *record.name)
    };
    match snapshot.names()?.into_iter().find(|name| !known(name)) {
        Some(name) => Err(StoreError::Extra { id, name }),
        None => Ok(()),
    }
}
