//! Why a network namespace cannot be made, opened or removed.

use std::io;
use std::path::PathBuf;

use crate::files::FileError;
use crate::host::network::link::LinkError;
use crate::host::network::user_namespace::UserNamespaceError;
use crate::host::process::DaemonRole;
use crate::host::program::ProgramError;
use crate::host::socket::SocketError;
use crate::world::Failure;

/// Why the network namespace of a VM cannot be used.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("cannot make, open or remove the network namespace {path:?}")]
    Child { path: PathBuf, source: ProgramError },
    #[error("cannot receive what was opened in the network namespace {path:?}")]
    Handover { path: PathBuf, source: io::Error },
    #[error("cannot look at the devices of the network namespace {path:?}")]
    Link { path: PathBuf, source: Box<LinkError> },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "the network namespace {path:?} is not of this workspace ({found}), and was left as it is; if nothing uses it, \
         remove it with: ip netns delete {name}"
    )]
    Foreign { path: PathBuf, name: String, found: String },
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    User(#[from] UserNamespaceError),
    #[error("the {role} of the network namespace does not serve: {said}")]
    NotServing { role: DaemonRole, said: String },
    #[error(
        "the network namespace {path:?} of the VM has lost its name, and none of the VM's processes is in it; the VM was left \
         as it is: bring it down and up again"
    )]
    Lost { path: PathBuf },
    #[error(
        "no process holds the network namespace of the VM any more; the VM was left as it is: bring it down and up again"
    )]
    NotHeld,
    #[error(
        "the VM is in a network namespace that this nixbox may not enter, and the keeper of the namespace does not answer at \
         {socket:?}; run the command through sudo"
    )]
    NoWay { socket: PathBuf, source: io::Error },
}

impl From<NamespaceError> for Failure {
    fn from(error: NamespaceError) -> Self {
        Self::world(error)
    }
}
