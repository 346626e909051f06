//! `equip`: the guest of a VM that runs gets its credentials and shares again, because it was rebooted.
//!
//! ```text
//! inject credentials ∥ mount shares ─► SAME BOOT
//! ```
//!
//! A guest that reboots keeps its VMM process, its network and its share daemons (`host/share_view/supervisor.rs`), and loses
//! its mounts and what its RAM held. No nixbox runs then. So each command that reaches the guest compares the guest's boot id
//! with the one in the state of the workspace, and runs this operation if they differ.
//!
//! Before the first stage the session makes sure that the VM runs, waits until the guest is SSH-ready, and reads the
//! credentials from their sources. **Inject** and **mount** then do what they do in `up`.
//!
//! **Same boot** is the commit point: it asks the guest for its boot id once more. A guest that was rebooted in the
//! meantime may lack a part of what it was given, so the operation rolls back then, as it does after any other failure.
//! Rolling back changes nothing: the state of the workspace keeps the earlier boot id, so that the next command that
//! reaches the guest tries again. After a crash the guest is asked as well. A VM that is gone is cleared away by the session.

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use super::ids;
use super::limits::GUEST;
use super::shared::guest::{Inject, MountShares};
use super::shared::machine::Target;
use super::shared::{Context, probe_if_alive};
use super::state::{RunningVm, WorkspaceState};
use crate::engine::record::Ended;
use crate::engine::transition::{AfterCommit, Failure, Operation, Probe, Transition, TransitionSpec};
use crate::world::{BootId, Machine, Result, World};

/// The parameters of `equip` in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EquipPlan {
    /// The VM.
    pub vm: RunningVm,
    /// The boot of its guest in which the guest had everything, if that is known.
    pub before: Option<BootId>,
    /// The boot that its guest is in.
    pub boot: BootId,
}

pub(super) fn table(plan: EquipPlan) -> Operation<World> {
    let EquipPlan { vm, before, boot } = plan;
    let target = Target::Existing(vm.machine);
    let final_state = move |ended| match ended {
        Ended::RolledBack => WorkspaceState::Up(RunningVm { boot: before, ..vm }),
        Ended::Done | Ended::Lost => WorkspaceState::Up(RunningVm { boot: Some(boot), ..vm }),
    };
    Operation::new(ids::EQUIP, "equip", AfterCommit::Stuck, move |_, ended| {
        async move { Ok(final_state(ended).bytes()?) }.boxed()
    })
    .stage("equip", vec![Box::new(Inject(target)), Box::new(MountShares(target))])
    .commit(Box::new(SameBoot { machine: vm.machine, boot }))
}

/// The guest is still in the boot in which it was given everything.
struct SameBoot {
    machine: Machine,
    boot: BootId,
}

#[derive(Debug, thiserror::Error)]
#[error("the guest was rebooted once more")]
struct RebootedAgain;

impl SameBoot {
    async fn holds(&self, context: &Context<'_>) -> Result<bool> {
        Ok(context.world.guest.ready(&self.machine).await? == self.boot)
    }
}

impl Transition<World> for SameBoot {
    type Intent = ();
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::never_undone(ids::SAME_BOOT, "same boot", "it is the commit point", GUEST)
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<()> {
        Ok(())
    }

    async fn probe(&self, context: &Context<'_>, (): &()) -> Result<Probe<()>> {
        let probe = async { Ok(if self.holds(context).await? { Probe::Done(()) } else { Probe::NotDone }) };
        probe_if_alive(context.world, self.machine.vmm, probe).await
    }

    async fn apply(&self, context: &Context<'_>, (): &()) -> Result<()> {
        if self.holds(context).await? { Ok(()) } else { Err(Failure::world(RebootedAgain)) }
    }
}
