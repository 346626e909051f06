//! The state of a workspace between operations, as the journal's end record carries it.

use serde::{Deserialize, Serialize};

use super::ids;
use crate::engine::history::{History, OpenOperation};
use crate::engine::record::{self, Ended, PayloadError};
use crate::world::{BootId, Generation, Machine, Settlement, SnapshotId};

/// Whether a workspace has a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "StoredState", from = "StoredState")]
pub enum WorkspaceState {
    /// There is no VM.
    Down {
        /// The disk of an earlier session, if there was one.
        disk: Option<Generation>,
    },
    /// There is a VM, unless it was lost since.
    Up(RunningVm),
}

/// The state as a journal has it. Older journals have only the first two forms.
#[derive(Serialize, Deserialize)]
enum StoredState {
    Down { disk: Option<Generation> },
    Up(RunningVm),
    UpInBoot(RunningVm, BootId),
}

impl From<WorkspaceState> for StoredState {
    fn from(state: WorkspaceState) -> Self {
        match state {
            WorkspaceState::Down { disk } => Self::Down { disk },
            WorkspaceState::Up(vm @ RunningVm { boot: None, .. }) => Self::Up(vm),
            WorkspaceState::Up(vm @ RunningVm { boot: Some(boot), .. }) => Self::UpInBoot(vm, boot),
        }
    }
}

impl From<StoredState> for WorkspaceState {
    fn from(stored: StoredState) -> Self {
        match stored {
            StoredState::Down { disk } => Self::Down { disk },
            StoredState::Up(vm) => Self::Up(vm),
            StoredState::UpInBoot(vm, boot) => Self::Up(RunningVm { boot: Some(boot), ..vm }),
        }
    }
}

/// A VM that an operation left running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningVm {
    /// Its parts.
    pub machine: Machine,
    /// The disk of the session before the restore that this VM came from, or before a person went back to an earlier disk. It
    /// is kept when the VM goes down, as long as the configuration says.
    pub former_disk: Option<Generation>,
    /// The snapshot that it came from, if it was not booted.
    pub from: Option<SnapshotId>,
    /// What is known to be wrong with it.
    pub condition: VmCondition,
    /// The boot of its guest in which the guest got its credentials and shares, if that is known. The parameters of an
    /// operation do not have it: a VM that comes from them is given both again.
    #[serde(skip)]
    pub boot: Option<BootId>,
}

/// What is known to be wrong with a VM. In the journal this is one byte, and older journals have only the first ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum VmCondition {
    /// Nothing.
    Good,
    /// The operation that made the VM failed after its commit point: the VM is to be cleared away.
    Condemned,
    /// The clock of the guest could not be set when it went on from a snapshot.
    NoClock,
    /// Neither fresh entropy could be given to the guest nor its clock be set.
    NoEntropy,
    /// The operation that made the VM failed after its commit point, and the VM was left running for a person to look at,
    /// as the person had asked.
    LeftRunning,
}

#[derive(Debug, thiserror::Error)]
#[error("{0} is no condition of a VM")]
pub struct UnknownCondition(u8);

impl From<VmCondition> for u8 {
    fn from(condition: VmCondition) -> Self {
        match condition {
            VmCondition::Good => 0,
            VmCondition::Condemned => 1,
            VmCondition::NoClock => 2,
            VmCondition::NoEntropy => 3,
            VmCondition::LeftRunning => 4,
        }
    }
}

impl TryFrom<u8> for VmCondition {
    type Error = UnknownCondition;

    fn try_from(byte: u8) -> Result<Self, UnknownCondition> {
        Ok(match byte {
            0 => Self::Good,
            1 => Self::Condemned,
            2 => Self::NoClock,
            3 => Self::NoEntropy,
            4 => Self::LeftRunning,
            unknown => return Err(UnknownCondition(unknown)),
        })
    }
}

impl VmCondition {
    /// The condition of a VM whose guest was settled like this.
    pub(super) fn settled(settlement: Settlement) -> Self {
        match settlement {
            Settlement { entropy: false, .. } => Self::NoEntropy,
            Settlement { clock: false, .. } => Self::NoClock,
            Settlement::WHOLE => Self::Good,
        }
    }

    /// This condition after an operation that ended so. With `keep`, a VM that the operation could not finish is left
    /// running.
    pub(super) fn after(self, ended: Ended, keep: bool) -> Self {
        match (ended, keep) {
            (Ended::Lost, false) => Self::Condemned,
            (Ended::Lost, true) => Self::LeftRunning,
            (Ended::Done | Ended::RolledBack, _) => self,
        }
    }
}

impl WorkspaceState {
    /// The state of a workspace whose journal ends with these bytes. A new journal has none, and no VM.
    ///
    /// # Errors
    /// If the bytes are not those of a state.
    pub fn of(bytes: &[u8]) -> Result<Self, PayloadError> {
        if bytes.is_empty() {
            return Ok(Self::Down { disk: None });
        }
        record::decode_payload(bytes)
    }

    pub(super) fn bytes(&self) -> Result<Vec<u8>, PayloadError> {
        record::encode_payload(self)
    }
}

/// The generation of the built record that describes the VM which a journal is about: the VM that an operation builds if
/// that operation has not ended, or else the VM that runs. `None` if the journal is about no VM.
///
/// # Errors
/// If the bytes of the state in the journal are not those of a state.
pub fn described_vm(history: &History) -> Result<Option<Generation>, PayloadError> {
    let building = |open: &&OpenOperation| matches!(open.operation, Some(ids::UP | ids::RESTORE));
    if let Some(open) = history.open().filter(building) {
        return Ok(Some(open.generation));
    }
    Ok(match WorkspaceState::of(&history.final_state)? {
        WorkspaceState::Up(vm) => Some(vm.machine.memory),
        WorkspaceState::Down { .. } => None,
    })
}
