//! Why something about a snapshot could not be done.

use std::ffi::OsString;
use std::path::PathBuf;

use super::file_systems::Fixed;
use super::label::LabelError;
use super::manifest::ManifestError;
use crate::files::FileError;
use crate::files::copy::CopyError;
use crate::files::search::known::KnownValuesError;
use crate::world::{Failure, SnapshotId, SnapshotName};

/// Why something about a snapshot could not be done.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    File(#[from] FileError),
    /// A file was to be read whole, or synced.
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("the manifest of snapshot {id}, {}, is damaged; `nixbox snapshot delete` removes it", path.display())]
    Manifest { id: SnapshotId, path: PathBuf, source: ManifestError },
    #[error(
        "the name and the note of snapshot {id} cannot be read in {}; the snapshot is found by its number", path.display()
    )]
    Label { id: SnapshotId, path: PathBuf, source: LabelError },
    #[error("the name and the note of snapshot {id} cannot be written")]
    UnwritableLabel { id: SnapshotId, source: serde_json::Error },
    #[error("the manifest of snapshot {id} cannot be written")]
    Unwritable { id: SnapshotId, source: ManifestError },
    #[error("snapshot {0} has no manifest: it is damaged; `nixbox snapshot delete` removes it")]
    NoManifest(SnapshotId),
    #[error("there is no snapshot {0}")]
    Absent(SnapshotId),
    #[error("there is no staging directory of snapshot {0}")]
    NotStaged(SnapshotId),
    #[error("snapshot {0} exists already")]
    Exists(SnapshotId),
    #[error("snapshot {id} is named {name:?} already: delete it, or take another name", name = name.as_str())]
    NameTaken { name: SnapshotName, id: SnapshotId },
    #[error("snapshot {id} lacks {name}")]
    Missing { id: SnapshotId, name: String },
    #[error("snapshot {id} holds {name:?}, which its manifest does not name")]
    Extra { id: SnapshotId, name: OsString },
    #[error("{name} of snapshot {id} has {found} bytes, and its manifest says {expected}")]
    Size { id: SnapshotId, name: String, found: u64, expected: u64 },
    #[error("{name} of snapshot {id} is not what its manifest says: its BLAKE3 is another")]
    Content { id: SnapshotId, name: String },
    #[error("the search for well-known kinds of tokens cannot be prepared")]
    TokenKinds(#[source] aho_corasick::BuildError),
    #[error(transparent)]
    Known(#[from] KnownValuesError),
    #[error(
        "snapshot {id} would hold credentials, and snapshot.on-leak is \"fail\": {}; end the guest's processes that keep \
         them, or set snapshot.on-leak to \"redact\"", leaks.join(", ")
    )]
    Leak { id: SnapshotId, leaks: Vec<String> },
    #[error(
        "snapshot {id} would hold a credential that cannot be overwritten there: {value} in {place}, {why}; remove it in the \
         guest"
    )]
    Fixed { id: SnapshotId, value: String, place: String, why: Fixed },
    #[error(
        "snapshot {id} still holds credentials after {rounds} rounds of overwriting them: something else writes to {place}"
    )]
    Recurring { id: SnapshotId, place: String, rounds: u32 },
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Copy(error) => error.into(),
            error => Self::world(error),
        }
    }
}

pub(super) type Result<T, E = StoreError> = std::result::Result<T, E>;
