//! The results of a session's commands, and the refusals of commands that were not begun.

use std::time::Duration;

use super::compatibility::NotRestorable;
use super::repair::NetworkRepair;
use super::state::VmCondition;
use super::sweep::Swept;
use super::tables::NoTable;
use crate::engine::executor::{Ending, EngineError, TransitionFailure};
use crate::engine::record::PayloadError;
use crate::engine::transition::Failure;
use crate::world::{
    Generation, ListedSnapshot, Manifest, ReferencedSnapshot, SnapshotId, SnapshotName, SnapshotReference,
    VmmState, VmmVersion, error_chain,
};

/// How an operation ended.
#[derive(Debug)]
pub enum OperationResult {
    /// It was done.
    Done,
    /// There was nothing to do.
    Already,
    /// It failed or was interrupted; all is as it was before.
    RolledBack(TransitionFailure),
    /// The same; but the VM that was to be replaced had been brought down before, and is still down.
    ReplacedInVain(TransitionFailure),
    /// It failed after its commit point, or its VM is gone; what was left is cleared away, and the workspace is down.
    ClearedAway(TransitionFailure),
    /// It failed after its commit point, and its VM was left running for a person to look at.
    LeftRunning(TransitionFailure),
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
    /// Its VMM has ended in order, as it does when its guest powers off.
    PoweredOff,
    /// Its operation passed the commit point, and could not be finished.
    Condemned,
}

/// What a recovery did.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The operation that had been left open, and how it ended.
    pub operation: Option<(&'static str, Ending)>,
    /// Why what was left of a VM was cleared away, if it was.
    pub cleared: Option<LossReason>,
    /// What belonged to no VM, and was removed.
    pub swept: Vec<Swept>,
    /// What was wrong with the network of the VM that runs, and what was done about it.
    pub network: NetworkRepair,
    /// Why a person is needed.
    pub stuck: Option<TransitionFailure>,
}

/// Why an operation was not begun. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    #[error("an earlier operation is stuck")]
    Stuck(#[source] TransitionFailure),
    #[error("the VM is running")]
    Running,
    #[error("no VM is running")]
    NotRunning,
    #[error("the VM was left running by an operation that could not bring it to SSH-ready")]
    LeftRunning,
    #[error("the VM is {0}, and it has to be running")]
    NotInOrder(VmmState),
    #[error(
        "an earlier nixbox built the VM, and did not write down what from: bring the VM down and up again"
    )]
    NoRecord,
    #[error("a snapshot named {0} exists")]
    NameTaken(SnapshotName),
    #[error("no disk of generation {0} is kept")]
    NoSuchDisk(Generation),
    #[error("there is no snapshot {0}")]
    NoSuchSnapshot(SnapshotReference),
    #[error(
        "several snapshots have the name {name}: {}",
        ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    AmbiguousSnapshot { name: SnapshotReference, ids: Vec<SnapshotId> },
    #[error("there is no snapshot")]
    NoSnapshot,
    #[error("snapshot {0} cannot be restored")]
    Unfit(SnapshotId, #[source] NotRestorable),
    #[error("none of the snapshots can be restored")]
    NothingFits(#[source] PassedOver),
    /// Another version of the VMM was installed since the VM was started, and a roll-over would start that one.
    #[error(
        "the VM runs under Cloud Hypervisor {running}, and {installed} is installed, which its shares would have to \
         go over to: bring the VM down and up again"
    )]
    VmmReplaced { running: VmmVersion, installed: VmmVersion },
    #[error("the shares have to be detached for a snapshot, and are in use in the guest: {}", .0.join(", "))]
    SharesInUse(Vec<String>),
    #[error(
        "a snapshot would take about {wanted} bytes, and {free} are free, {promised} of them promised to the RAM of VMs: \
         about {} are missing",
        wanted.saturating_add(*promised).saturating_sub(*free)
    )]
    NoRoom { wanted: u64, free: u64, promised: u64 },
    #[error("the credentials for the guest cannot be read, so nothing was begun")]
    Credentials(#[source] Failure),
    #[error("the guest is not fit for a snapshot, so nothing was begun")]
    GuestUnfit(#[source] Failure),
    #[error(
        "what the wipe takes from the running guest cannot be kept for it meanwhile, so nothing was begun"
    )]
    NoBackup(#[source] Failure),
    #[error("what belongs to no VM of this workspace cannot be removed")]
    Sweep(#[source] Failure),
    #[error("cannot determine the workspace's state")]
    Look(#[source] Failure),
    #[error("the guest of the VM that runs cannot be reached")]
    Guest(#[source] Failure),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    NoTable(#[from] NoTable),
    #[error("the journal does not say what the workspace's state is")]
    UnreadableState(#[source] PayloadError),
    #[error("the operation cannot be written down")]
    Parameters(#[source] PayloadError),
}

/// The one snapshot of a list that a person means.
///
/// # Errors
/// [`Refusal::NoSuchSnapshot`], or [`Refusal::AmbiguousSnapshot`].
pub fn find_snapshot(listed: &[ListedSnapshot], wanted: &SnapshotReference) -> Result<SnapshotId, Refusal> {
    match wanted.find(listed) {
        ReferencedSnapshot::One(one) => Ok(one.id),
        ReferencedSnapshot::Absent => Err(Refusal::NoSuchSnapshot(wanted.clone())),
        ReferencedSnapshot::Several(ids) => Err(Refusal::AmbiguousSnapshot { name: wanted.clone(), ids }),
    }
}

/// The snapshots that were considered, and why each cannot be restored.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(|(id, reason)| format!("snapshot {id}: {}", error_chain(reason))).collect::<Vec<_>>().join("; "))]
pub struct PassedOver(pub Vec<(SnapshotId, NotRestorable)>);

/// What a restore, or an `up --snapshot`, did.
#[derive(Debug)]
pub struct RestoreResult {
    /// How it ended.
    pub report: OperationResult,
    /// The snapshot; `None` for a fresh boot, or if there was nothing to do.
    pub restored: Option<Manifest>,
    /// The newer snapshots that cannot be restored.
    pub passed_over: Vec<(SnapshotId, NotRestorable)>,
    /// What is known to be wrong with the VM.
    pub condition: VmCondition,
    /// The disk of the session before, which the snapshot's disk has taken the place of.
    pub former_disk: Option<Generation>,
}

/// What was asked of a snapshot.
#[derive(Debug, Clone, Default)]
pub struct SnapshotRequest {
    /// Its name.
    pub name: Option<SnapshotName>,
    /// Whether the VM is to be down afterwards.
    pub stop: bool,
    /// Which older ones are deleted afterwards.
    pub retention: Retention,
}

/// Which snapshots are kept when another one was made. The last one is kept in any case, and so are those with a name and the
/// one that the VM came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// How many unnamed ones are kept; `None` for all.
    pub keep: Option<u32>,
    /// How long an unnamed one is kept; `None` for no limit.
    pub keep_for: Option<Duration>,
    /// The oldest unnamed ones are deleted until all snapshots together occupy so many bytes at most; `None` for no limit.
    pub keep_bytes: Option<u64>,
}

/// What a snapshot did.
#[derive(Debug)]
pub struct SnapshotResult {
    /// How it ended.
    pub report: OperationResult,
    /// The new snapshot, if it was done.
    pub snapshot: Option<Manifest>,
    /// Older ones that were pruned.
    pub pruned: Vec<SnapshotId>,
    /// What all snapshots occupy, in bytes, if that is more than [`Retention::keep_bytes`] and no other may be deleted.
    pub above_limit: Option<u64>,
    /// What failed after the snapshot was in the list: reading the list, or pruning it.
    pub afterwards: Option<Refusal>,
}
