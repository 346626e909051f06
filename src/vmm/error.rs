//! What can go wrong with the VMM, seen from its seam.

use std::path::PathBuf;
use std::time::Duration;

use super::client::ApiError;
use super::restore::RewriteError;
use super::state::StateError;
use crate::host::process::ProcessError;
use crate::host::socket::{SocketError, SocketPath};
use crate::host::spawn::SpawnError;
use crate::world::capability::VersionError;
use crate::world::{Failure, VmmState};

/// Why the VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// Over its API.
    #[error(transparent)]
    Client(#[from] ApiError),
    /// About its process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// About its socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// About the program.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// About its version.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// The state on disk.
    #[error(transparent)]
    State(#[from] StateError),
    /// The snapshot and the machine do not fit.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// A part of the VM is not there.
    #[error("the VM's disks, RAM or saved state cannot be given to the VMM")]
    Parts(#[source] Failure),
    /// `--version` failed.
    #[error("cannot ask {program:?} for its version")]
    NoVersion {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another process answers on the socket.
    #[error("process {found} answers on {socket}, where process {wanted} should")]
    Stranger {
        /// The socket.
        socket: SocketPath,
        /// Who answers.
        found: u32,
        /// Whom nixbox started.
        wanted: u32,
    },
    /// The VM is not in a state in which that can be done.
    #[error("the VM cannot be {what}: it is {state:?}")]
    Unfit {
        /// What was to be done.
        what: &'static str,
        /// Its state.
        state: VmmState,
    },
    /// The guest does not let go of a share.
    #[error(
        "the guest still holds {devices:?} {limit:?} after it was asked to let go; a process in it may use the mount"
    )]
    Held {
        /// Their device ids.
        devices: Vec<String>,
        /// How long it was given.
        limit: Duration,
    },
    /// A path that cannot be sent to the VMM.
    #[error("{path:?} cannot be given to the VMM: it must be absolute and UTF-8")]
    Path {
        /// The path.
        path: PathBuf,
    },
}

impl From<VmmError> for Failure {
    fn from(error: VmmError) -> Self {
        Self::world(error)
    }
}
