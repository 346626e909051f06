//! The exit codes and hints of errors of the layers below.

use super::{ExitKind, Problem};
use crate::cli::wiring::WiringError;
use crate::config::ConfigError;
use crate::engine::journal::JournalError;
use crate::store::built::RecordFileError;
use crate::store::withheld::WithheldError;
use crate::workspace::confirmations::ConfirmationError;
use crate::workspace::registry::RegistryError;
use crate::workspace::{DirectoryGone, LockError, WorkspaceError};

impl From<WorkspaceError> for Problem {
    fn from(error: WorkspaceError) -> Self {
        let exit = match error {
            WorkspaceError::Registry(error) => return (*error).into(),
            WorkspaceError::None { .. } | WorkspaceError::Start { .. } => ExitKind::NotFound,
            WorkspaceError::Lock(LockError::Locked(_)) => ExitKind::Locked,
            _ => ExitKind::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<WiringError> for Problem {
    fn from(error: WiringError) -> Self {
        let exit = match error {
            WiringError::SharedPrivate { .. } | WiringError::InsideNixbox { .. } => ExitKind::Usage,
            _ => ExitKind::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        let exit = match error {
            RegistryError::Unknown { .. } => ExitKind::NotFound,
            _ => ExitKind::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<DirectoryGone> for Problem {
    fn from(error: DirectoryGone) -> Self {
        WorkspaceError::from(error).into()
    }
}

impl From<ConfirmationError> for Problem {
    fn from(error: ConfirmationError) -> Self {
        Self::new(ExitKind::Failed, error)
    }
}

impl From<RecordFileError> for Problem {
    fn from(error: RecordFileError) -> Self {
        Self::new(ExitKind::Failed, error)
            .or_hint("`nixbox down` ends the VM without this file, and `nixbox up` starts another")
    }
}

impl From<WithheldError> for Problem {
    fn from(error: WithheldError) -> Self {
        Self::new(ExitKind::Failed, error)
    }
}

impl From<LockError> for Problem {
    fn from(error: LockError) -> Self {
        let exit = match error {
            LockError::Locked(_) => ExitKind::Locked,
            LockError::File(_) => ExitKind::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Self::new(ExitKind::Usage, error)
    }
}

impl From<JournalError> for Problem {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Unusable { .. } => {
                let hint = Some("`nixbox journal` shows the part that can be read");
                Self { hint, ..Self::new(ExitKind::Stuck, error) }
            }
            error => Self::new(ExitKind::Failed, error),
        }
    }
}
