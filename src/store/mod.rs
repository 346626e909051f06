//! Snapshots on disk: `.nixbox/snapshots/<id>/`, listed once it is there under that name and not before.
//!
//! ```text
//! snapshots/.staging-12/   being made: only the operation that makes it knows it
//! snapshots/12/            listed: manifest.json, and exactly the files that it names
//! snapshots/.trash-12/     deleted, about to be removed
//! snapshots/.seen-12.json  how its files looked when they were last read whole
//! ```
//!
//! A snapshot moves through these by renames alone. [`catalog`] does that, [`manifest`] is the bytes of `manifest.json`,
//! [`scan`] reads all files of a snapshot. Everything is reached through [`Folder`]s: no link is followed.

use std::ffi::OsStr;
use std::path::PathBuf;

use crate::files::copy::CopyError;
use crate::files::{FileError, Folder};
use crate::world::{Failure, FileRecord, Generation, SnapshotId, SnapshotName};

pub mod catalog;
pub mod journal_files;
pub mod manifest;
pub mod scan;
mod verified;

pub use catalog::Snapshots;
use manifest::ManifestError;

/// Why something about a snapshot could not be done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory of ours.
    #[error(transparent)]
    File(#[from] FileError),
    /// Syncing or reading was interrupted, or failed.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The manifest is not one.
    #[error("the manifest of snapshot {id}, {}, is damaged; `nixbox snapshot delete` removes it", path.display())]
    Manifest {
        /// The snapshot.
        id: SnapshotId,
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// It cannot be written down.
    #[error("the manifest of snapshot {id} cannot be written")]
    Unwritable {
        /// The snapshot.
        id: SnapshotId,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// A listed snapshot has no manifest.
    #[error("snapshot {0} has no manifest: it is damaged; `nixbox snapshot delete` removes it")]
    NoManifest(SnapshotId),
    /// There is none.
    #[error("there is no snapshot {0}")]
    Absent(SnapshotId),
    /// There is none that is being made.
    #[error("there is no staging directory of snapshot {0}")]
    NotStaged(SnapshotId),
    /// The generation has been used.
    #[error("snapshot {0} exists already")]
    Exists(SnapshotId),
    /// The name has been used.
    #[error("snapshot {id} is named {name:?} already: delete it, or take another name", name = name.as_str())]
    NameTaken {
        /// The name.
        name: SnapshotName,
        /// Whose it is.
        id: SnapshotId,
    },
    /// A file of the manifest is not there.
    #[error("snapshot {id} lacks {name}")]
    Missing {
        /// The snapshot.
        id: SnapshotId,
        /// The file.
        name: String,
    },
    /// There is something that the manifest does not name.
    #[error("snapshot {id} holds {name:?}, which its manifest does not name")]
    Extra {
        /// The snapshot.
        id: SnapshotId,
        /// What there is.
        name: std::ffi::OsString,
    },
    /// A file has another size than its manifest says.
    #[error("{name} of snapshot {id} has {found} bytes, and its manifest says {expected}")]
    Size {
        /// The snapshot.
        id: SnapshotId,
        /// The file.
        name: String,
        /// As it is.
        found: u64,
        /// As it should be.
        expected: u64,
    },
    /// A file has another content than its manifest says.
    #[error("{name} of snapshot {id} is not what its manifest says: its BLAKE3 is another")]
    Content {
        /// The snapshot.
        id: SnapshotId,
        /// The file.
        name: String,
    },
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Copy(error) => error.into(),
            error => Self::world(error),
        }
    }
}

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The name of a staging directory.
#[must_use]
pub fn staging_name(id: SnapshotId) -> String {
    format!(".staging-{id}")
}

/// The name of a directory that is about to be removed.
#[must_use]
pub fn trash_name(id: SnapshotId) -> String {
    format!(".trash-{id}")
}

/// The snapshot whose number this is, as we write numbers.
fn id_of(name: &OsStr, prefix: &str) -> Option<SnapshotId> {
    let digits = name.to_str()?.strip_prefix(prefix)?;
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(SnapshotId(Generation(number)))
}

/// The directory of a snapshot, listed or else staged; `None` if it is neither.
///
/// # Errors
/// If there is something else in its place, a symbolic link above all.
pub fn open(snapshots: &Folder, id: SnapshotId) -> Result<Option<Folder>> {
    match snapshots.folder(id.to_string())? {
        Some(listed) => Ok(Some(listed)),
        None => Ok(snapshots.folder(staging_name(id))?),
    }
}

/// What the manifest of an open snapshot says of one of its files; `None` if the snapshot is staged and has none.
///
/// # Errors
/// If the manifest is damaged, or does not name the file.
pub fn record_of(snapshot: &Folder, id: SnapshotId, name: &str) -> Result<Option<FileRecord>> {
    let Some(manifest) = manifest::read(snapshot, id)? else {
        return Ok(None);
    };
    let record = manifest.files.into_iter().find(|record| record.name == name);
    record.map(Some).ok_or_else(|| StoreError::Extra { id, name: name.into() })
}
