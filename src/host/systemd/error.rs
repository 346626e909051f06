//! What fails between nixbox and systemd.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::files::FileError;
use crate::host::program::ProgramError;

/// Why a process is not in a scope of its own. It is in the unit of its caller then.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("cannot wait for busctl")]
    Wait(#[source] io::Error),
    #[error("systemd did not answer within {0:?}")]
    Silent(Duration),
    #[error("systemd does not make {scope}: {text}")]
    Refused { scope: String, text: String },
    #[error("systemd does not put the process into {scope}; its cgroup is {cgroup:?}")]
    Outside { scope: String, cgroup: String },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the launcher got {0} arguments, which is not what nixbox gives it")]
    Arguments(usize),
    #[error("cannot give the daemon the privileges that nixbox meant it to have")]
    Privileges(#[source] io::Error),
    #[error("cannot start {path:?}")]
    Exec { path: PathBuf, source: io::Error },
    #[error("the launcher says: {0}")]
    Rehearsal(String),
}
