//! `down`: the guest is asked, then pressed, then ended; and nothing of it is left but its disk.
//!
//! ```text
//! pre-down scripts ─► STOP GUEST ─► VMM ∥ network ∥ shares ∥ memory ─► disk ─► release slot ─► post-down scripts
//! ```
//!
//! One disk stays: that of the VM, unless the restore that made it came to nothing; then the one from before it.
//! The same table clears away what is left of a VM that is lost. Nobody is asked then, and no script runs.

use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use super::limits::LONG;
use super::shared::clear_away::{
    ReleaseSlot, RemoveDisk, RemoveMemory, RemoveNetwork, RemoveShares, RemoveVmm,
};
use super::shared::hooks::{PostDown, PreDown};
use super::{RunningVm, WorkspaceState, state_bytes};
use crate::engine::record::Ended;
use crate::engine::transition::{
    AfterCommit, Context, Failure, Operation, OperationId, Probe, Transition, TransitionId, UndoPolicy,
};
use crate::world::{Machine, VmmState, World};

pub(super) const ID: OperationId = OperationId(2);

/// What `down` was asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownPlan {
    /// The VM.
    pub vm: RunningVm,
    /// Whether there is a guest to be asked; if not, what is left of a lost VM is cleared away.
    pub ask: bool,
}

pub(super) fn table(plan: DownPlan) -> Operation<World> {
    let RunningVm { machine, former_disk, condemned, .. } = plan.vm;
    let (kept, superseded) = match former_disk {
        Some(former) if condemned => (former, Some(machine.disk)),
        former => (machine.disk, former),
    };
    let conclude = move |ended| match ended {
        Ended::RolledBack => WorkspaceState::Up(plan.vm),
        Ended::Done | Ended::Lost => WorkspaceState::Down { disk: Some(kept) },
    };
    let operation = Operation::new(ID, "down", AfterCommit::Stuck, move |_, ended| {
        async move { state_bytes(&conclude(ended)) }.boxed()
    })
    .stage_if(plan.ask, "pre-down scripts", [Box::new(PreDown)])
    .commit(Box::new(StopGuest { machine, ask: plan.ask }))
    .stage(
        "clear away",
        [
            Box::new(RemoveVmm(machine.vmm)),
            Box::new(RemoveNetwork(machine.slot)),
            Box::new(RemoveShares(machine.vmm)),
            Box::new(RemoveMemory(machine.memory)),
        ],
    );
    let operation = match superseded {
        Some(disk) => operation.stage("former disk", [Box::new(RemoveDisk(disk))]),
        None => operation,
    };
    operation.stage("release slot", [Box::new(ReleaseSlot(machine.slot))]).stage_if(
        plan.ask,
        "post-down scripts",
        [Box::new(PostDown)],
    )
}

/// The guest is asked to shut down, then by the power button, and then its VMM is ended.
pub(super) struct StopGuest {
    pub(super) machine: Machine,
    pub(super) ask: bool,
}

impl Transition for StopGuest {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(25);
    const LABEL: &'static str = "stop guest";
    const UNDO: UndoPolicy = UndoPolicy::Forbidden("it is the commit point");
    const LIMIT: Duration = LONG;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<Machine, Failure> {
        Ok(self.machine)
    }

    async fn probe(&self, context: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        Ok(match context.world.vmm.find(machine.vmm).await? {
            VmmState::Never | VmmState::Gone => Probe::Done(()),
            VmmState::Running if self.ask && is_going(context.world, machine).await? => Probe::Done(()),
            _ => Probe::NotDone,
        })
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        let world = context.world;
        if self.ask && world.vmm.find(machine.vmm).await? == VmmState::Running {
            // A guest that does not listen is pressed, and one that does not react is ended: neither is a failure.
            if world.guest.shut_down(machine).await.is_err()
                || world.vmm.find(machine.vmm).await?.has_system()
            {
                world.vmm.power_button(machine.vmm).await.ok();
            }
        }
        world.vmm.stop(machine.vmm).await
    }
}

/// Time for a guest that was asked to shut down to be gone, or so far that it does not answer any more; and for one that
/// does answer to do so.
const HEARS: Duration = Duration::from_secs(10);
/// Time for one that does not answer to be gone.
const GOES: Duration = Duration::from_secs(60);

/// Waits until it is clear whether a guest that runs is shutting down, because a nixbox that was killed had asked it to.
/// That cannot be taken back: to say that it runs on would be true for a moment only.
async fn is_going(world: &World, machine: &Machine) -> Result<bool, Failure> {
    if world.vmm.ends(machine.vmm, HEARS).await? {
        return Ok(true);
    }
    match tokio::time::timeout(HEARS, world.guest.equipped(machine)).await {
        // It was not asked yet, or does not listen.
        Ok(Ok(_)) => Ok(false),
        Ok(Err(_)) | Err(_) => world.vmm.ends(machine.vmm, GOES).await,
    }
}
