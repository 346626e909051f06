//! `restore`: a snapshot comes back to life, on clones of its files.
//!
//! ```text
//! check ─► claim slot ─► disk ∥ fill RAM ∥ network ∥ shares ∥ start VMM ─► load ─► RESUME
//!       ─► settle ─► ready ─► inject credentials ∥ mount shares ─► post-up scripts
//! ```
//!
//! The slot is the one that the guest's address belongs to. All is ready before the VM resumes: the network, and the
//! share daemons, which the VMM connects to when it loads. After it has resumed, fresh entropy comes first, so that no
//! two restored guests draw the same random numbers; and no credential is given to a guest that has not proven to be the
//! same. The disk of an earlier session is left alone until the VM has gone down: a restore that is lost falls back to it.

use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use super::limits::{LONG, QUICK};
use super::shared::guest::{Inject, MountShares, Ready, Settle};
use super::shared::hooks::PostUp;
use super::shared::machine::{BuildNetwork, StartShares, StartVmm, Target};
use super::shared::slot::ClaimSlot;
use super::shared::{part, presence};
use super::{RunningVm, WorkspaceState, state_bytes};
use crate::engine::record::Ended;
use crate::engine::transition::{
    AfterCommit, Context, Failure, Operation, OperationId, Probe, Transition, TransitionId, UndoPolicy,
};
use crate::world::{BootId, Generation, Machine, Slot, SnapshotId, VmmState, World};

pub(super) const ID: OperationId = OperationId(4);

/// What `restore` was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The slot that the guest's address belongs to.
    pub slot: Slot,
    /// The boot that the guest has to be.
    pub boot: BootId,
    /// Whether the shares are attached in the VMM state.
    pub shares: bool,
    /// The disk of an earlier session, which the snapshot's takes the place of.
    pub former_disk: Option<Generation>,
}

pub(super) fn table(plan: RestorePlan) -> Operation<World> {
    let target = Target::New { disk: None, shares: plan.shares };
    let from = plan.snapshot;
    Operation::new(ID, "restore", AfterCommit::ClearAway, move |context, ended| {
        async move { state_bytes(&state(&plan, target, &context, ended)?) }.boxed()
    })
    .stage("claim slot", [Box::new(ClaimSlot { only: Some(plan.slot) })])
    .stage(
        "rebuild",
        [
            Box::new(FillDisk(from)),
            Box::new(FillMemory(from)),
            Box::new(BuildNetwork),
            Box::new(StartShares),
            Box::new(StartVmm),
        ],
    )
    .stage("load", [Box::new(Load { target, from })])
    .commit(Box::new(ResumeRestored { target }))
    .stage("settle", [Box::new(Settle(target))])
    .stage("ready", [Box::new(Ready { target, same_as: Some(plan.boot) })])
    .stage("reinject", [Box::new(Inject(target)), Box::new(MountShares(target))])
    .stage("post-up scripts", [Box::new(PostUp)])
}

fn state(
    plan: &RestorePlan,
    target: Target,
    context: &Context<'_, World>,
    ended: Ended,
) -> Result<WorkspaceState, Failure> {
    Ok(match ended {
        Ended::RolledBack => WorkspaceState::Down { disk: plan.former_disk },
        Ended::Done | Ended::Lost => WorkspaceState::Up(RunningVm {
            machine: target.machine(context)?,
            former_disk: plan.former_disk,
            from: Some(plan.snapshot),
            condemned: ended == Ended::Lost,
        }),
    })
}

/// The disk images, cloned from the snapshot.
pub(super) struct FillDisk(SnapshotId);

part! {
    FillDisk, 30, "clone disk", LONG,
    SnapshotId: |context, disk, from| Ok(disk.0),
    find: context.world.disk.find(context.generation),
    make: context.world.disk.fill(*from, context.generation, &context.interrupt),
    remove: context.world.disk.remove(context.generation),
}

/// The RAM file, filled from the snapshot.
pub(super) struct FillMemory(SnapshotId);

part! {
    FillMemory, 31, "fill RAM", LONG,
    SnapshotId: |context, memory, from| Ok(memory.0),
    find: context.world.memory.find(context.generation),
    make: context.world.memory.fill(*from, context.generation, &context.interrupt),
    remove: context.world.memory.remove(context.generation),
}

/// `vm.restore`: the VM is there, and paused.
pub(super) struct Load {
    target: Target,
    from: SnapshotId,
}

impl Transition for Load {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(32);
    const LABEL: &'static str = "load";
    const UNDO: UndoPolicy = UndoPolicy::Nothing("what was loaded goes with its VMM");
    const LIMIT: Duration = LONG;

    async fn prepare(&self, context: &Context<'_, World>) -> Result<Machine, Failure> {
        self.target.machine(context)
    }

    async fn probe(&self, context: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        Ok(match context.world.vmm.find(machine.vmm).await? {
            VmmState::Paused => Probe::Done(()),
            VmmState::Empty | VmmState::Stopped => Probe::NotDone,
            VmmState::Never | VmmState::Gone | VmmState::Silent => Probe::Lost,
            VmmState::Running => Probe::CannotTell("the VM runs before it was resumed".to_owned()),
        })
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        context.world.vmm.load(machine, self.from).await
    }
}

/// `vm.resume`: from here on there is a guest that goes on with what it was doing.
pub(super) struct ResumeRestored {
    target: Target,
}

impl Transition for ResumeRestored {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(33);
    const LABEL: &'static str = "resume";
    const UNDO: UndoPolicy = UndoPolicy::Forbidden("it is the commit point");
    const LIMIT: Duration = QUICK;

    async fn prepare(&self, context: &Context<'_, World>) -> Result<Machine, Failure> {
        self.target.machine(context)
    }

    async fn probe(&self, context: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        Ok(match context.world.vmm.find(machine.vmm).await? {
            VmmState::Running => Probe::Done(()),
            VmmState::Paused => Probe::NotDone,
            VmmState::Never | VmmState::Gone | VmmState::Silent => Probe::Lost,
            VmmState::Empty | VmmState::Stopped => {
                Probe::CannotTell("the VM that was loaded is not in its VMM".to_owned())
            }
        })
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        context.world.vmm.resume(machine.vmm).await
    }
}
