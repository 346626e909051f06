//! What nixbox does: five operations, each a table of stages in a file of its own.
//!
//! | operation | commit point | before it, recovery goes | after it |
//! |---|---|---|---|
//! | [`up`] | the guest boots | back: nothing of it is left | forward, to SSH-ready |
//! | [`down`] | the guest is stopped | back: it runs | forward, until nothing is left |
//! | [`snapshot`] | the snapshot is in the list | back: the VM runs, with all that it had | - |
//! | [`restore`] | the VM resumes | back: nothing of it is left | forward, to SSH-ready |
//! | [`delete`] | it is renamed to the trash | back: it is listed | forward, until it is gone |
//!
//! A [`Session`] runs them: it recovers what an earlier run left open, checks all that can be known before the world is
//! touched, and runs. Uses the engine and the seams in `world`, and nothing else.

mod compatibility;
pub mod delete;
pub mod down;
mod dry_run;
mod limits;
mod outcome;
pub mod restore;
mod roll_over;
mod shared;
pub mod snapshot;
pub mod up;

mod session;
mod sweep;

pub use compatibility::{Incompatibility, NotRestorable, Reference};
pub use dry_run::{DryRun, DryRunError, DryRunTransition, dry_run};
pub use outcome::{
    LossReason, OperationResult, PassedOver, Recovered, Refusal, RestoreResult, SnapshotRequest,
    SnapshotResult,
};
pub use session::Session;
pub use shared::hooks::HookOutcome;
pub use sweep::Swept;

use serde::{Deserialize, Serialize};

use crate::engine::record::{self, PayloadError};
use crate::engine::transition::{Failure, Operation, OperationId};
use crate::world::{Generation, Machine, SnapshotId, World};

/// How a workspace stands between operations. The journal's end record carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkspaceState {
    /// There is no VM.
    Down {
        /// The disk of an earlier session, if there was one.
        disk: Option<Generation>,
    },
    /// There is a VM, unless it was lost since.
    Up(RunningVm),
}

impl WorkspaceState {
    /// How a workspace stands whose journal ends like this. A new journal says nothing.
    ///
    /// # Errors
    /// If these are not a state's bytes.
    pub fn of(bytes: &[u8]) -> Result<Self, PayloadError> {
        if bytes.is_empty() {
            return Ok(Self::Down { disk: None });
        }
        record::decode_payload(bytes)
    }
}

/// A VM that an operation left running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningVm {
    /// Its parts.
    pub machine: Machine,
    /// The disk of a session before the restore that this VM came from; it goes when the VM goes down.
    pub former_disk: Option<Generation>,
    /// The snapshot that it came from, if it was not booted.
    pub from: Option<SnapshotId>,
    /// It passed its commit point and then proved to be of no use: it is to be cleared away.
    pub condemned: bool,
}

fn state_bytes(state: &WorkspaceState) -> Result<Vec<u8>, Failure> {
    Ok(record::encode_payload(state)?)
}

/// An operation that this nixbox does not have.
#[derive(Debug, thiserror::Error)]
pub enum NoTable {
    /// Its number is unknown.
    #[error("the journal has an operation of kind {}, which this nixbox does not have", .0.0)]
    Unknown(OperationId),
    /// Its parameters do not decode.
    #[error("the parameters of the operation in the journal are not what this nixbox writes")]
    Parameters(#[from] PayloadError),
}

/// The table of an operation, as the journal names it.
///
/// # Errors
/// If there is no such operation, or if the parameters are not its own.
pub fn table(id: OperationId, parameters: &[u8]) -> Result<Operation<World>, NoTable> {
    Ok(match id {
        up::ID => up::table(record::decode_payload(parameters)?),
        down::ID => down::table(record::decode_payload(parameters)?),
        snapshot::ID => snapshot::table(record::decode_payload(parameters)?),
        restore::ID => restore::table(record::decode_payload(parameters)?),
        delete::ID => delete::table(record::decode_payload(parameters)?),
        unknown => return Err(NoTable::Unknown(unknown)),
    })
}

/// The name of an operation for people.
#[must_use]
pub fn label(id: OperationId) -> &'static str {
    match id {
        up::ID => "up",
        down::ID => "down",
        snapshot::ID => "snapshot",
        restore::ID => "restore",
        delete::ID => "delete",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests;
