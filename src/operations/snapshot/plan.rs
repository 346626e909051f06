//! The parameters of `snapshot`, as this nixbox and earlier ones write them to the journal.

use serde::{Deserialize, Serialize};

use crate::engine::record::PayloadError;
use crate::operations::roll_over::ShareStrategy;
use crate::operations::shared::parameters;
use crate::operations::state::RunningVm;
use crate::world::{BootId, Origin, SnapshotName};

/// The parameters of `snapshot` in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPlan {
    /// The VM.
    pub vm: RunningVm,
    /// The boot that it runs.
    pub boot: BootId,
    /// The snapshot's name.
    pub name: Option<SnapshotName>,
    /// Whether there are shares.
    pub shares: bool,
    /// What is done about them.
    pub strategy: ShareStrategy,
    /// Whether the VM is down afterwards.
    pub stop: bool,
    /// The VMM, the processor and the configuration that the snapshot is made under.
    pub origin: Origin,
    /// Whether the guest that runs on gets back what the wipe takes from it.
    pub gives_back: bool,
    /// Whether scripts run in the guest before the wipe.
    pub scripts: bool,
    /// Whether what cannot be cloned is copied while the guest runs, before the capture.
    pub precopies: bool,
}

/// The parameters that an earlier nixbox wrote, which ran no script in the guest, and copied nothing while the guest ran.
#[derive(Deserialize)]
struct FormerSnapshotPlan {
    vm: RunningVm,
    boot: BootId,
    name: Option<SnapshotName>,
    shares: bool,
    strategy: ShareStrategy,
    stop: bool,
    origin: Origin,
    gives_back: bool,
}

/// The parameters of the first versions of nixbox, which gave nothing back.
#[derive(Deserialize)]
struct OldSnapshotPlan {
    vm: RunningVm,
    boot: BootId,
    name: Option<SnapshotName>,
    shares: bool,
    strategy: ShareStrategy,
    stop: bool,
    origin: Origin,
}

impl From<FormerSnapshotPlan> for SnapshotPlan {
    fn from(former: FormerSnapshotPlan) -> Self {
        let FormerSnapshotPlan { vm, boot, name, shares, strategy, stop, origin, gives_back } = former;
        let (scripts, precopies) = (false, false);
        Self { vm, boot, name, shares, strategy, stop, origin, gives_back, scripts, precopies }
    }
}

impl From<OldSnapshotPlan> for FormerSnapshotPlan {
    fn from(old: OldSnapshotPlan) -> Self {
        let OldSnapshotPlan { vm, boot, name, shares, strategy, stop, origin } = old;
        Self { vm, boot, name, shares, strategy, stop, origin, gives_back: false }
    }
}

impl SnapshotPlan {
    pub(in crate::operations) fn of(bytes: &[u8]) -> Result<Self, PayloadError> {
        parameters::<Self, FormerSnapshotPlan, OldSnapshotPlan>(bytes)
    }
}
