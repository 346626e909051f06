//! Why RAM could not be made, captured or filled.

use std::path::PathBuf;
use std::time::Duration;

use super::room::Room;
use super::seal::SealError;
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
        "{} of guest RAM fit nowhere ({}): {advice}",
        ByteSize::from_bytes(*size),
        tried.iter().map(Tried::to_string).collect::<Vec<_>>().join("; ")
    )]
    NoRoom { size: u64, tried: Vec<Tried>, advice: &'static str },
    #[error(
        "another process has held the lock on {}, under which RAM files are counted, for {} seconds: `lslocks` names it",
        path.display(),
        limit.as_secs()
    )]
    Locked { path: PathBuf, limit: Duration },
    #[error("{} does not say where guest RAM is, as nixbox writes it", path.display())]
    Unreadable { path: PathBuf, source: serde_json::Error },
    #[error("the RAM file of generation {0} is not there, or not all of it")]
    NotWhole(Generation),
    #[error("there is no snapshot {0} to take RAM from or to put it into")]
    NoSnapshot(SnapshotId),
    #[error("snapshot {0} holds no RAM: neither {SNAPSHOT_FILE} nor {VMM_FILE}")]
    NoMemory(SnapshotId),
    #[error(
        "{bytes} bytes of the guest's files do not fit beside its RAM in {} ({room}): bring another VM down, or make room there",
        path.display()
    )]
    NoRoomForBackup { path: PathBuf, bytes: u64, room: Room },
    #[error("the guest's files cannot be encrypted beside its RAM")]
    Seal(#[source] SealError),
    #[error("the guest's files in {} cannot be given back", path.display())]
    BackupLost { path: PathBuf, source: SealError },
    #[error("{SNAPSHOT_FILE} of snapshot {0} is not what its manifest says: the snapshot is damaged")]
    Damaged(SnapshotId),
}

/// Why RAM was not put into a place.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum Unsuitable {
    #[error("not a tmpfs")]
    NoTmpfs,
    #[error("on the file system of {}, where the host fails when it is full", .0.display())]
    OfTheHost(PathBuf),
    #[error("{0}")]
    Full(Room),
    #[error(transparent)]
    File(#[from] FileError),
    /// The file could not be made there.
    #[error(transparent)]
    Memory(Box<MemoryError>),
}

impl From<MemoryError> for Unsuitable {
    fn from(error: MemoryError) -> Self {
        Self::Memory(Box::new(error))
    }
}

/// A place that was tried for RAM, and why it was not taken.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", path.display(), in_a_line(why))]
pub struct Tried {
    /// The base of a tmpfs, or the workspace's directory.
    pub path: PathBuf,
    /// Why it was not taken.
    pub why: Unsuitable,
}

/// An error and its causes. A transparent error has the message of its cause.
fn in_a_line(error: &Unsuitable) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text.push_str(&format!(": {message}"));
        }
        cause = error.source();
    }
    text
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
