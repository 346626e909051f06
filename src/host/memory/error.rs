//! Why RAM could not be made, captured or filled.

use std::path::PathBuf;

use crate::files::FileError;
use crate::files::copy::CopyError;
use crate::store::StoreError;
use crate::world::{ByteSize, Failure, Generation, SnapshotId};

/// The RAM file's name in a snapshot.
pub const SNAPSHOT_FILE: &str = "memory.img";
/// The VMM's name for RAM that it writes itself.
pub const VMM_FILE: &str = "memory-ranges";

/// Why RAM could not be made, captured or filled.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "{} of guest RAM fit on no tmpfs ({}): lower vm.memory, or set vm.backing to \"disk\" or \"vmm\"",
        ByteSize::from_bytes(*size),
        tried.join("; ")
    )]
    NoTmpfs { size: u64, tried: Vec<String> },
    #[error(
        "{} of guest RAM do not fit into {}, which has {} left: lower vm.memory, or set vm.backing to \"vmm\"",
        ByteSize::from_bytes(*size),
        path.display(),
        ByteSize::from_bytes(*free)
    )]
    NoDisk { size: u64, path: PathBuf, free: u64 },
    #[error("{} does not say where guest RAM is, as nixbox writes it", path.display())]
    Unreadable { path: PathBuf, source: serde_json::Error },
    #[error("the RAM file of generation {0} is not there, or not all of it")]
    NotWhole(Generation),
    #[error("there is no snapshot {0} to take RAM from or to put it into")]
    NoSnapshot(SnapshotId),
    #[error("snapshot {0} holds no RAM: neither {SNAPSHOT_FILE} nor {VMM_FILE}")]
    NoMemory(SnapshotId),
    #[error("{SNAPSHOT_FILE} of snapshot {0} is not what its manifest says: the snapshot is damaged")]
    Damaged(SnapshotId),
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Copy(error) => error.into(),
            MemoryError::Store(error) => error.into(),
            error => Self::world(error),
        }
    }
}

pub(super) type Result<T, E = MemoryError> = std::result::Result<T, E>;
