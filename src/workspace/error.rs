//! Why there is no workspace to work in. May use `files`, `host` and the errors of the other files of this module.

use std::io;
use std::path::PathBuf;

use super::entries::RegistryError;
use super::identity::{DirectoryGone, IdError};
use super::lock::LockError;
use super::places::PlacesError;
use super::relocate::MoveError;
use crate::files::FileError;
use crate::host::process::ProcessError;

/// Why there is no workspace to work in.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Places(#[from] PlacesError),
    #[error(transparent)]
    Registry(#[from] Box<RegistryError>),
    #[error(transparent)]
    Move(#[from] MoveError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot find the directory {}", path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("neither {} nor a directory above it is a workspace: `nixbox init` makes one", from.display())]
    None { from: PathBuf },
    #[error("{} is missing: `nixbox init` makes what is missing and leaves the rest as it is", path.display())]
    Incomplete { path: PathBuf },
    /// The registry knows where the state is, and it is not there.
    #[error(
        "the state of the workspace is not at {}: if that is on a disk that is not mounted, mount it; if it is lost, remove \
         {}, and `nixbox init` makes a new one", path.display(), entry.display()
    )]
    StateGone { path: PathBuf, entry: PathBuf },
    #[error(
        "the state of the workspace is not below {}, and a VM of it runs: XDG_STATE_HOME or state.directory was another when \
         it was brought up, and has to be so again", state.display()
    )]
    StateElsewhere { state: PathBuf },
    #[error(
        "the state of the workspace is half moved out of it: the next command that changes something goes on"
    )]
    HalfMoved,
    #[error(transparent)]
    DirectoryGone(#[from] DirectoryGone),
    #[error("cannot tell whether a VM of the workspace lives")]
    Processes(#[from] ProcessError),
    /// Each directory that was tried for sockets, and why none can be there.
    #[error("no directory for sockets can be made: {}", tried.join("; "))]
    NoRuntime { tried: Vec<String> },
}

impl From<RegistryError> for WorkspaceError {
    fn from(error: RegistryError) -> Self {
        Box::new(error).into()
    }
}
