//! The errors of [`super::cloud_hypervisor`].

use std::path::PathBuf;
use std::time::Duration;

use super::boot_files::BootFileError;
use super::client::ApiError;
use super::state::StateError;
use crate::files::FileError;
use crate::host::network::NamespaceError;
use crate::host::process::ProcessError;
use crate::host::socket::{SocketError, SocketPath};
use crate::host::spawn::SpawnError;
use crate::world::capability::VersionError;
use crate::world::{Failure, VmmState};

/// Why a call of the VMM failed.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error(transparent)]
    Client(#[from] ApiError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("what the VMM has reported cannot be read")]
    Events(#[from] FileError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("the VM cannot be booted from the files of the configuration")]
    BootFiles(#[from] BootFileError),
    #[error("the VM's disks, RAM or saved state cannot be given to the VMM")]
    Parts(#[source] Failure),
    #[error("cannot ask {program:?} for its version")]
    NoVersion { program: PathBuf, source: std::io::Error },
    #[error("process {found} answers on {socket}, but nixbox started process {wanted} there")]
    ForeignProcess { socket: SocketPath, found: u32, wanted: u32 },
    #[error("the VM cannot be {what}: it is {state}")]
    WrongState { what: &'static str, state: VmmState },
    #[error(
        "the guest still uses the shares {devices:?} {limit:?} after it was asked to let go of them: a process in the guest may use the mount"
    )]
    ShareInUse { devices: Vec<String>, limit: Duration },
    #[error("{path:?} cannot be given to the VMM: it must be absolute and UTF-8")]
    Path { path: PathBuf },
}

impl From<VmmError> for Failure {
    fn from(error: VmmError) -> Self {
        Self::world(error)
    }
}

/// A path as the VMM's API takes it.
pub(super) fn text(path: PathBuf) -> Result<String, VmmError> {
    match path.to_str() {
        Some(text) if path.is_absolute() => Ok(text.to_owned()),
        _ => Err(VmmError::Path { path }),
    }
}
