//! `up`: a fresh boot.
//!
//! ```text
//! check ─► pre-up scripts ─► claim slot ─► disk ∥ memory ∥ network ∥ shares ∥ start VMM ─► BOOT
//!       ─► connect ─► inject credentials ∥ mount shares ─► post-up scripts
//! ```
//!
//! The disk of an earlier session is used again. One that this operation makes goes with it if it rolls back.

use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use super::limits::{GUEST, LONG, QUICK};
use super::shared::guest::{Inject, MountShares, Ready};
use super::shared::hooks::{PostUp, PreUp};
use super::shared::machine::{BuildNetwork, StartShares, StartVmm, Target};
use super::shared::slot::ClaimSlot;
use super::shared::{part, presence};
use super::{RunningVm, WorkspaceState, state_bytes};
use crate::engine::record::Ended;
use crate::engine::transition::{
    AfterCommit, Context, Failure, Operation, OperationId, Probe, Transition, TransitionId, UndoPolicy,
};
use crate::world::{Generation, Machine, VmmState, World};

pub(super) const ID: OperationId = OperationId(1);

/// What `up` was asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpPlan {
    /// The disk of an earlier session.
    pub disk: Option<Generation>,
    /// Whether there are shares.
    pub shares: bool,
}

pub(super) fn table(plan: UpPlan) -> Operation<World> {
    let target = Target::New { disk: plan.disk, shares: plan.shares };
    let operation = Operation::new(ID, "up", AfterCommit::ClearAway, move |context, ended| {
        async move { state_bytes(&state(plan.disk, target, &context, ended)?) }.boxed()
    })
    .stage("pre-up scripts", [Box::new(PreUp)])
    .stage("claim slot", [Box::new(ClaimSlot { only: None })]);
    let operation = match plan.disk {
        Some(_) => operation.stage(
            "build",
            [Box::new(MakeMemory), Box::new(BuildNetwork), Box::new(StartShares), Box::new(StartVmm)],
        ),
        None => operation.stage(
            "build",
            [
                Box::new(MakeDisk),
                Box::new(MakeMemory),
                Box::new(BuildNetwork),
                Box::new(StartShares),
                Box::new(StartVmm),
            ],
        ),
    };
    operation
        .commit(Box::new(Boot { target }))
        .stage("connect", [Box::new(Ready { target, same_as: None })])
        .stage("equip", [Box::new(Inject(target)), Box::new(MountShares(target))])
        .stage("post-up scripts", [Box::new(PostUp)])
}

fn state(
    disk: Option<Generation>,
    target: Target,
    context: &Context<'_, World>,
    ended: Ended,
) -> Result<WorkspaceState, Failure> {
    Ok(match ended {
        Ended::RolledBack => WorkspaceState::Down { disk },
        Ended::Done | Ended::Lost => WorkspaceState::Up(RunningVm {
            machine: target.machine(context)?,
            former_disk: None,
            from: None,
            condemned: ended == Ended::Lost,
        }),
    })
}

/// The disk images, cloned from their templates.
pub(super) struct MakeDisk;

part! {
    MakeDisk, 20, "disk", LONG,
    (): |context, disk, nothing| Ok(()),
    find: context.world.disk.find(context.generation),
    make: context.world.disk.create(context.generation, &context.interrupt),
    remove: context.world.disk.remove(context.generation),
}

/// The RAM file, empty.
pub(super) struct MakeMemory;

part! {
    MakeMemory, 21, "memory", QUICK,
    (): |context, memory, nothing| Ok(()),
    find: context.world.memory.find(context.generation),
    make: context.world.memory.create(context.generation),
    remove: context.world.memory.remove(context.generation),
}

/// `vm.create` and `vm.boot`: from here on there is a guest that somebody may have begun to use.
pub(super) struct Boot {
    pub(super) target: Target,
}

impl Transition for Boot {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(22);
    const LABEL: &'static str = "boot";
    const UNDO: UndoPolicy = UndoPolicy::Forbidden("it is the commit point");
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, context: &Context<'_, World>) -> Result<Machine, Failure> {
        self.target.machine(context)
    }

    async fn probe(&self, context: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        Ok(match context.world.vmm.find(machine.vmm).await? {
            VmmState::Running => Probe::Done(()),
            VmmState::Empty | VmmState::Stopped => Probe::NotDone,
            VmmState::Never | VmmState::Gone | VmmState::Silent => Probe::Lost,
            VmmState::Paused => {
                Probe::CannotTell("the VM is paused, which nothing in this operation does".to_owned())
            }
        })
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        context.world.vmm.boot(machine).await
    }
}
