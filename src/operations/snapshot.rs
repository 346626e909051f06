//! `snapshot`: disk, RAM and VMM state of one instant, without a credential, and the VM goes on.
//!
//! ```text
//! check ─► stage ∥ wipe ─► detach* ─► flush ─► pause ─► clone disk ∥ VMM state ∥ copy RAM ─► resume ─► reinject ─► COMMIT
//! check ─► stage ∥ wipe ─► detach* ─► flush ─► pause ─► clone disk ∥ VMM state ∥ copy RAM ─► COMMIT ─► clear away (--stop)
//! ```
//!
//! Whatever happens before the commit point, the VM runs on with its shares and credentials and nothing is left of the
//! snapshot. How it runs on depends on what the VMM's version can do ([`ShareStrategy`]):
//!
//! - *in place*: `vm.resume`. Nothing else is to be seen of it.
//! - *detached*: the shares are taken away before, and given back after an in-place resume.
//! - *rolled over*: `vm.snapshot` has left the share daemons unusable, so the VMM and its daemons are ended, and fresh
//!   ones load what was just saved, upon the same RAM file. Nothing is copied; the guest does not notice.
//!
//! How a VM that was paused comes to run again is in `roll_over.rs`.

use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use super::limits::{GUEST, LONG};
use super::roll_over::{alive, make_it_run};
use super::shared::clear_away::{
    ReleaseSlot, RemoveDisk, RemoveMemory, RemoveNetwork, RemoveShares, RemoveVmm,
};
use super::shared::guest::{Inject, MountShares, Settle, attach_and_mount};
use super::shared::machine::Target;
use super::shared::{must_live, presence};
use super::{RunningVm, WorkspaceState, state_bytes};
use crate::engine::record::Ended;
use crate::engine::transition::{
    AfterCommit, Context, Failure, Operation, OperationId, Probe, Transition, TransitionId, UndoPolicy,
};
use crate::world::{
    Ability, BootId, Generation, Machine, Manifest, Origin, Presence, SnapshotId, SnapshotName,
    SnapshotState, VmmState, World,
};

pub(super) const ID: OperationId = OperationId(3);

/// What the shares need on a VMM of this ability.
pub(super) fn strategy(shares: bool, ability: Ability) -> ShareStrategy {
    match ability {
        _ if !shares => ShareStrategy::InPlace,
        Ability { shares_survive_restore: false, .. } => ShareStrategy::Detach,
        Ability { shares_survive_resume: false, .. } => ShareStrategy::RollOver,
        Ability { .. } => ShareStrategy::InPlace,
    }
}

/// What the shares need, so that they work in the VM that goes on and in the one that is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareStrategy {
    /// Nothing.
    InPlace,
    /// To be detached before and attached after.
    Detach,
    /// A fresh VMM and fresh daemons for the VM that goes on.
    RollOver,
}

/// What `snapshot` was asked to do.
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
    /// What they need.
    pub strategy: ShareStrategy,
    /// Whether the VM is down afterwards.
    pub stop: bool,
    /// What it is made under.
    pub origin: Origin,
}

pub(super) fn table(plan: SnapshotPlan) -> Operation<World> {
    let SnapshotPlan { vm, strategy, stop, .. } = plan;
    let machine = vm.machine;
    let target = if strategy == ShareStrategy::RollOver {
        Target::RolledOver(machine)
    } else {
        Target::Existing(machine)
    };
    let operation =
        Operation::new(ID, "snapshot", if stop { AfterCommit::Stuck } else { AfterCommit::ClearAway }, {
            move |context, ended| async move { state_bytes(&state(vm, stop, &context, ended).await?) }.boxed()
        })
        .stage("wipe", [Box::new(OpenStaging), Box::new(Wipe { machine })])
        .stage_if(strategy == ShareStrategy::Detach, "detach", [Box::new(Detach { machine })])
        .stage("flush", [Box::new(Flush { machine })])
        .stage("pause", [Box::new(Pause { machine, strategy })])
        .stage(
            "capture",
            [
                Box::new(CloneDisk { machine }),
                Box::new(SaveState { machine, strategy }),
                Box::new(CopyMemory { machine }),
            ],
        );
    let shares = plan.shares && strategy != ShareStrategy::Detach;
    let commit = Commit { machine, boot: plan.boot, name: plan.name, shares, origin: plan.origin };
    if stop {
        let operation = operation.commit(Box::new(commit)).stage(
            "clear away",
            [
                Box::new(RemoveVmm(machine.vmm)),
                Box::new(RemoveNetwork(machine.slot)),
                Box::new(RemoveShares(machine.vmm)),
                Box::new(RemoveMemory(machine.memory)),
            ],
        );
        let operation = match vm.former_disk {
            Some(disk) => operation.stage("former disk", [Box::new(RemoveDisk(disk))]),
            None => operation,
        };
        return operation.stage("release slot", [Box::new(ReleaseSlot(machine.slot))]);
    }
    operation
        .stage("resume", [Box::new(ResumeSource { machine, strategy })])
        .stage("settle", [Box::new(Settle(target))])
        .stage_if(strategy == ShareStrategy::Detach, "attach", [Box::new(MountShares(target))])
        .stage("reinject", [Box::new(Inject(target))])
        .commit(Box::new(commit))
}

async fn state(
    vm: RunningVm,
    stop: bool,
    context: &Context<'_, World>,
    ended: Ended,
) -> Result<WorkspaceState, Failure> {
    if stop && ended == Ended::Done {
        return Ok(WorkspaceState::Down { disk: Some(vm.machine.disk) });
    }
    let machine = alive(context, &vm.machine).await?;
    Ok(WorkspaceState::Up(RunningVm { machine, condemned: ended == Ended::Lost, ..vm }))
}

/// The staging directory that everything is captured into.
pub(super) struct OpenStaging;

impl Transition for OpenStaging {
    type World = World;
    type Intent = ();
    type Outcome = ();

    const ID: TransitionId = TransitionId(40);
    const LABEL: &'static str = "stage";
    const UNDO: UndoPolicy = UndoPolicy::Undoable;
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<(), Failure> {
        Ok(())
    }

    async fn probe(&self, context: &Context<'_, World>, (): &()) -> Result<Probe<()>, Failure> {
        Ok(match context.world.catalog.find(SnapshotId(context.generation)).await? {
            SnapshotState::Absent => Probe::NotDone,
            _ => Probe::Done(()),
        })
    }

    async fn apply(&self, context: &Context<'_, World>, (): &()) -> Result<(), Failure> {
        context.world.catalog.stage(SnapshotId(context.generation)).await
    }

    async fn undo(&self, context: &Context<'_, World>, (): &()) -> Result<(), Failure> {
        context.world.catalog.discard(SnapshotId(context.generation)).await
    }
}

/// Credentials leave the guest before it is paused.
pub(super) struct Wipe {
    machine: Machine,
}

impl Transition for Wipe {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(41);
    const LABEL: &'static str = "wipe credentials";
    const UNDO: UndoPolicy = UndoPolicy::Undoable;
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<Machine, Failure> {
        Ok(self.machine)
    }

    async fn probe(&self, context: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        let machine = alive(context, machine).await?;
        match must_live(context.world, machine.vmm).await {
            Err(Failure::Lost) => return Ok(Probe::Lost),
            other => other?,
        }
        Ok(match context.world.guest.equipped(&machine).await?.credentials {
            Presence::Absent => Probe::Done(()),
            Presence::Partial | Presence::Whole => Probe::NotDone,
        })
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        context.world.guest.wipe(machine).await
    }

    async fn undo(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        let machine = alive(context, machine).await?;
        must_live(context.world, machine.vmm).await?;
        context.world.guest.settle(&machine).await?;
        context.world.guest.inject(&machine).await
    }
}

/// The shares leave the guest and the VM, where the VMM's version asks for it.
pub(super) struct Detach {
    machine: Machine,
}

impl Transition for Detach {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(42);
    const LABEL: &'static str = "detach shares";
    const UNDO: UndoPolicy = UndoPolicy::Undoable;
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<Machine, Failure> {
        Ok(self.machine)
    }

    async fn probe(&self, context: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        match must_live(context.world, machine.vmm).await {
            Err(Failure::Lost) => return Ok(Probe::Lost),
            other => other?,
        }
        Ok(match context.world.vmm.shares_attached(machine.vmm).await? {
            Presence::Absent => Probe::Done(()),
            Presence::Partial | Presence::Whole => Probe::NotDone,
        })
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        context.world.guest.unmount(machine).await?;
        context.world.vmm.detach_shares(machine.vmm).await
    }

    async fn undo(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        must_live(context.world, machine.vmm).await?;
        attach_and_mount(context.world, machine).await
    }
}

/// The disk images on the medium, so that cloning them does not have to wait for it while the VM is paused.
pub(super) struct Flush {
    machine: Machine,
}

impl Transition for Flush {
    type World = World;
    type Intent = Generation;
    type Outcome = ();

    const ID: TransitionId = TransitionId(49);
    const LABEL: &'static str = "flush disk";
    const UNDO: UndoPolicy = UndoPolicy::Nothing("what is on the medium may stay there");
    const LIMIT: Duration = LONG;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<Generation, Failure> {
        Ok(self.machine.disk)
    }

    async fn probe(&self, _: &Context<'_, World>, _: &Generation) -> Result<Probe<()>, Failure> {
        Ok(Probe::NotDone)
    }

    async fn apply(&self, context: &Context<'_, World>, disk: &Generation) -> Result<(), Failure> {
        context.world.disk.flush(*disk, &context.interrupt).await
    }
}

/// `vm.pause`. From here to the resume nothing is done that can be done before or after.
pub(super) struct Pause {
    machine: Machine,
    strategy: ShareStrategy,
}

impl Transition for Pause {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(43);
    const LABEL: &'static str = "pause";
    const UNDO: UndoPolicy = UndoPolicy::Undoable;
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<Machine, Failure> {
        Ok(self.machine)
    }

    async fn probe(&self, context: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        Ok(match context.world.vmm.find(machine.vmm).await? {
            VmmState::Paused => Probe::Done(()),
            VmmState::Running => Probe::NotDone,
            _ => Probe::Lost,
        })
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        context.world.vmm.pause(machine.vmm).await
    }

    async fn undo(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        make_it_run(context, machine, self.strategy).await
    }
}

/// The disk images of this instant.
pub(super) struct CloneDisk {
    machine: Machine,
}

impl Transition for CloneDisk {
    type World = World;
    type Intent = Generation;
    type Outcome = ();

    const ID: TransitionId = TransitionId(44);
    const LABEL: &'static str = "clone disk";
    const UNDO: UndoPolicy = UndoPolicy::Nothing("it goes with the staging directory");
    const LIMIT: Duration = LONG;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<Generation, Failure> {
        Ok(self.machine.disk)
    }

    async fn probe(&self, _: &Context<'_, World>, _: &Generation) -> Result<Probe<()>, Failure> {
        Ok(Probe::NotDone)
    }

    async fn apply(&self, context: &Context<'_, World>, disk: &Generation) -> Result<(), Failure> {
        context.world.disk.capture(*disk, SnapshotId(context.generation), &context.interrupt).await
    }
}

/// The VMM's own state of this instant: `vm.snapshot`.
pub(super) struct SaveState {
    machine: Machine,
    strategy: ShareStrategy,
}

impl Transition for SaveState {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(45);
    const LABEL: &'static str = "VMM state";
    const UNDO: UndoPolicy = UndoPolicy::Undoable;
    const LIMIT: Duration = LONG;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<Machine, Failure> {
        Ok(self.machine)
    }

    async fn probe(&self, context: &Context<'_, World>, _: &Machine) -> Result<Probe<()>, Failure> {
        let saved = context.world.catalog.holds_vmm_state(SnapshotId(context.generation)).await?;
        Ok(if saved { Probe::Done(()) } else { Probe::NotDone })
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        context.world.vmm.save(machine.vmm, SnapshotId(context.generation)).await
    }

    /// What was saved is needed to roll over, so that the VM is made to run before the staging directory goes.
    async fn undo(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        make_it_run(context, machine, self.strategy).await
    }
}

/// The RAM of this instant.
pub(super) struct CopyMemory {
    machine: Machine,
}

impl Transition for CopyMemory {
    type World = World;
    type Intent = Generation;
    type Outcome = ();

    const ID: TransitionId = TransitionId(46);
    const LABEL: &'static str = "copy RAM";
    const UNDO: UndoPolicy = UndoPolicy::Nothing("it goes with the staging directory");
    const LIMIT: Duration = LONG;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<Generation, Failure> {
        Ok(self.machine.memory)
    }

    async fn probe(&self, _: &Context<'_, World>, _: &Generation) -> Result<Probe<()>, Failure> {
        Ok(Probe::NotDone)
    }

    async fn apply(&self, context: &Context<'_, World>, memory: &Generation) -> Result<(), Failure> {
        context.world.memory.capture(*memory, SnapshotId(context.generation), &context.interrupt).await
    }
}

/// The VM goes on.
pub(super) struct ResumeSource {
    machine: Machine,
    strategy: ShareStrategy,
}

impl Transition for ResumeSource {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(47);
    const LABEL: &'static str = "resume";
    const UNDO: UndoPolicy = UndoPolicy::Undoable;
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<Machine, Failure> {
        Ok(self.machine)
    }

    async fn probe(&self, context: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        let machine = alive(context, machine).await?;
        Ok(presence(match context.world.vmm.find(machine.vmm).await? {
            VmmState::Running => Presence::Whole,
            VmmState::Never => Presence::Absent,
            _ => Presence::Partial,
        }))
    }

    async fn apply(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        make_it_run(context, machine, self.strategy).await
    }

    /// Half a roll-over cannot be taken back: the VM runs when it is finished, which is what it did before.
    async fn undo(&self, context: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        make_it_run(context, machine, self.strategy).await
    }
}

/// The manifest is written, everything synced, and the staging directory renamed into the list.
pub(super) struct Commit {
    machine: Machine,
    boot: BootId,
    name: Option<SnapshotName>,
    shares: bool,
    origin: Origin,
}

impl Transition for Commit {
    type World = World;
    type Intent = Manifest;
    type Outcome = ();

    const ID: TransitionId = TransitionId(48);
    const LABEL: &'static str = "commit";
    const UNDO: UndoPolicy = UndoPolicy::Forbidden("it is the commit point");
    const LIMIT: Duration = LONG;

    async fn prepare(&self, context: &Context<'_, World>) -> Result<Manifest, Failure> {
        let id = SnapshotId(context.generation);
        Ok(Manifest {
            id,
            name: self.name.clone(),
            created_ms: context.world.clock.unix_ms(),
            slot: self.machine.slot,
            boot: self.boot,
            shares: self.shares,
            origin: self.origin.clone(),
            files: context.world.catalog.digest(id, &context.interrupt).await?,
        })
    }

    async fn probe(&self, context: &Context<'_, World>, manifest: &Manifest) -> Result<Probe<()>, Failure> {
        Ok(match context.world.catalog.find(manifest.id).await? {
            SnapshotState::Listed => Probe::Done(()),
            SnapshotState::Staged | SnapshotState::Absent => Probe::NotDone,
            SnapshotState::Trashed => Probe::CannotTell(format!(
                "snapshot {} is in the trash before it was in the list",
                manifest.id
            )),
        })
    }

    async fn apply(&self, context: &Context<'_, World>, manifest: &Manifest) -> Result<(), Failure> {
        context.world.catalog.commit(manifest.clone()).await
    }
}
