//! Why disk images could not be made, captured or removed.

use std::path::PathBuf;

use crate::files::FileError;
use crate::files::copy::CopyError;
use crate::host::program::ProgramError;
use crate::store::StoreError;
use crate::world::{Failure, Generation, SnapshotId};

/// Why disk images could not be made, captured or removed.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the disk image {} is not a regular file", path.display())]
    TemplateKind { path: PathBuf },
    #[error("cannot open the disk image {}", path.display())]
    Template { path: PathBuf, source: FileError },
    /// The template does not fit.
    #[error(
        "the disk image {} has {found} bytes, and its disk is to have {wanted}: raise `size` or leave it out",
        path.display()
    )]
    TooSmall { path: PathBuf, found: u64, wanted: u64 },
    #[error(
        "the disk image {} is {format}, and the disk of a VM is a raw image: `{}` makes one", path.display(),
        command.replace("FILE", &path.display().to_string())
    )]
    Format { path: PathBuf, format: &'static str, command: &'static str },
    #[error("disk {0} has neither an image nor a size")]
    Nothing(usize),
    #[error("mkfs.ext4 of {} failed", path.display())]
    Mkfs { path: PathBuf, source: ProgramError },
    #[error("{} is not the inventory of disk images that nixbox wrote", path.display())]
    Inventory { path: PathBuf, source: serde_json::Error },
    #[error("the disk images of generation {0} are not there, or not all of them")]
    NotWhole(Generation),
    #[error("there is no snapshot {0} to take disk images from or to put them into")]
    NoSnapshot(SnapshotId),
    /// An image is missing, or has another size than the manifest says.
    #[error("{name} of snapshot {id} is not what its manifest says: the snapshot is damaged")]
    Damaged { id: SnapshotId, name: String },
    #[error("{} holds {name:?}, which is not nixbox's: nothing was removed", folder.display())]
    Foreign { folder: PathBuf, name: std::ffi::OsString },
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Copy(error) => error.into(),
            DiskError::Mkfs { source: ProgramError::Interrupted, .. } => Self::Interrupted,
            error => Self::world(error),
        }
    }
}
