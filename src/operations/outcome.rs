//! What a command came to, or why it was not begun.

use super::NoTable;
use super::compatibility::{NotRestorable, Reference};
use super::sweep::Swept;
use crate::engine::executor::{Ending, EngineError, TransitionFailure};
use crate::engine::record::PayloadError;
use crate::engine::transition::Failure;
use crate::world::{Manifest, SnapshotId, SnapshotName, VmmState, VmmVersion};

/// What an operation came to.
#[derive(Debug)]
pub enum OperationResult {
    /// It was done.
    Done,
    /// There was nothing to do.
    Already,
    /// It failed or was interrupted; all is as it was before.
    RolledBack(TransitionFailure),
    /// The same, but that the VM which was to be replaced had been brought down before.
    ReplacedInVain(TransitionFailure),
    /// It got past its commit point, failed then for good, and what was left was cleared away: the workspace is down.
    ClearedAway(TransitionFailure),
    /// A person is needed.
    Stuck(TransitionFailure),
}

/// Why a VM that should be there counts as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossReason {
    /// Its VMM is gone, or has no VM any more.
    Gone,
    /// Its VMM lives and does not answer.
    Silent,
    /// Its operation passed the commit point, and could not be finished.
    Condemned,
}

/// What a recovery came to.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The operation that had been left open, and how it ended.
    pub operation: Option<(&'static str, Ending)>,
    /// Why what was left of a VM was cleared away, if it was.
    pub cleared: Option<LossReason>,
    /// What belonged to no VM, and was removed.
    pub swept: Vec<Swept>,
    /// Why a person is needed.
    pub stuck: Option<TransitionFailure>,
}

/// Why an operation was not begun. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// An earlier operation is stuck.
    #[error("an earlier operation is stuck")]
    Stuck(#[source] TransitionFailure),
    /// The VM has to be down for it.
    #[error("the VM is running")]
    Running,
    /// The VM has to be up for it.
    #[error("no VM is running")]
    NotRunning,
    /// The VM is there, but not in a state to be worked with.
    #[error("the VM is {0:?}, and has to run")]
    NotInOrder(VmmState),
    /// The name is taken.
    #[error("a snapshot named {0} exists")]
    NameTaken(SnapshotName),
    /// There is none.
    #[error("there is no snapshot {0}")]
    NoSuchSnapshot(Reference),
    /// There is none at all.
    #[error("there is no snapshot")]
    NoSnapshot,
    /// It cannot be restored.
    #[error("snapshot {0} cannot be restored")]
    Unfit(SnapshotId, #[source] NotRestorable),
    /// None can be restored.
    #[error("none of the snapshots can be restored")]
    NothingFits(#[source] PassedOver),
    /// Another version of the VMM was installed since the VM was started, and a roll-over would start that one.
    #[error(
        "the VM runs under Cloud Hypervisor {running}, and {installed} is installed, which its shares would have to \
         go over to: bring the VM down and up again"
    )]
    VmmReplaced {
        /// The VM's.
        running: VmmVersion,
        /// The installed one.
        installed: VmmVersion,
    },
    /// A share could not be detached.
    #[error("the shares have to be detached for a snapshot, and are in use in the guest: {}", .0.join(", "))]
    SharesInUse(Vec<String>),
    /// There is not enough room for it.
    #[error("a snapshot would take about {wanted} bytes, and {free} are free: about {} are missing", wanted - free)]
    NoRoom {
        /// At most, in bytes.
        wanted: u64,
        /// In bytes.
        free: u64,
    },
    /// What belongs to no VM is still there.
    #[error("what belongs to no VM of this workspace cannot be removed")]
    Sweep(#[source] Failure),
    /// Looking at the world failed.
    #[error("cannot look how the workspace stands")]
    Look(#[source] Failure),
    /// The journal failed, before or in the operation.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The journal's open operation is not one of this nixbox.
    #[error(transparent)]
    NoTable(#[from] NoTable),
    /// The journal's last state is not one of this nixbox.
    #[error("the journal does not say how the workspace stands")]
    UnreadableState(#[source] PayloadError),
    /// The operation cannot be written down.
    #[error("the operation cannot be written down")]
    Parameters(#[source] PayloadError),
}

/// What was looked at, and why it cannot be restored.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(|(id, unfit)| format!("snapshot {id}: {}", told(unfit))).collect::<Vec<_>>().join("; "))]
pub struct PassedOver(pub Vec<(SnapshotId, NotRestorable)>);

/// With what caused it, in one line.
fn told(unfit: &NotRestorable) -> String {
    let mut text = unfit.to_string();
    let mut cause = std::error::Error::source(unfit);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// How a workspace came up.
#[derive(Debug)]
pub struct RestoreResult {
    /// What came of it.
    pub report: OperationResult,
    /// The snapshot; `None` for a fresh boot, or if there was nothing to do.
    pub restored: Option<Manifest>,
    /// What was looked at before that, and cannot be restored.
    pub passed_over: Vec<(SnapshotId, NotRestorable)>,
}

/// What was asked of a snapshot.
#[derive(Debug, Clone, Default)]
pub struct SnapshotRequest {
    /// Its name.
    pub name: Option<SnapshotName>,
    /// Whether the VM is to be down afterwards.
    pub stop: bool,
    /// How many unnamed ones are kept; `None` for all.
    pub keep: Option<u32>,
}

/// What came of a snapshot.
#[derive(Debug)]
pub struct SnapshotResult {
    /// What came of it.
    pub report: OperationResult,
    /// The new snapshot, if it was done.
    pub snapshot: Option<Manifest>,
    /// Older ones that were pruned.
    pub pruned: Vec<SnapshotId>,
    /// What went wrong when the snapshot was there: looking at the list, or pruning it.
    pub afterwards: Option<Refusal>,
}
