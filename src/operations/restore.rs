//! `restore`: a snapshot becomes a running VM, on clones of its files. `up --snapshot` does the same.
//!
//! ```text
//! claim slot ↶ ∥ built record ↶ ─► clone disk ↶ ∥ fill RAM ↶ ∥ network ↶ ∥ shares ↶ ∥ start VMM ↶
//!   ─► load ─► RESUME ─► entropy and clock ─► SSH-ready ─► inject credentials ∥ mount shares
//!   ─► [after-restore scripts] ─► post-up scripts
//! ```
//!
//! Before the first stage the session chooses a snapshot: the one that is asked for, or the newest that is whole and
//! compatible with this host and this configuration (`compatibility.rs`). A VM that runs is refused, or with
//! `--replace` brought down by a `down` of its own, once it is known that the snapshot can be restored and that the
//! sources of the credentials can be read.
//!
//! **Claim slot** takes the slot that the guest's address belongs to, and no other will do, because the restored guest
//! keeps its address. Rolling back releases the slot. **Built record** writes down what the VM is built from, as in `up`.
//!
//! **Rebuild** makes everything on the host that the VM consists of, at the same time: disk images and a RAM file cloned
//! or copied from the snapshot, the slot's network, the share daemons, and the VMM process with no VM in it. The
//! snapshot's own files are read and never changed, so that it can be restored any number of times. If one of them
//! fails, all of them are removed in reverse order; after a crash recovery removes them too.
//!
//! **Load** is `vm.restore`: the VM is in the VMM, and paused. The network and the share daemons are ready by then,
//! because the VMM connects to them while it loads. There is nothing to undo: what was loaded goes with its VMM.
//!
//! **Resume** is the commit point: from here on there is a guest that goes on with what it was doing, and what it does
//! cannot be taken back. If the resume fails, the VMM is asked: a VM that runs was resumed, and a VM that is paused or
//! gone rolls back. After a crash the same probe decides. It cannot explain a VMM that answers and has no VM: then
//! recovery is stuck.
//!
//! **Settle** gives the guest fresh entropy, so that no two guests of one snapshot draw the same random numbers, and
//! then sets its clock. Without entropy the operation fails, unless `[guest] require-entropy = false`; a clock that
//! cannot be set is written down as the VM's condition, and the operation goes on. **Ready** waits for SSH and compares the boot id: a guest that was rebooted meanwhile is
//! another system than the snapshot's, and gets no credential. **Reinject** injects today's credentials and mounts the
//! shares. The **after-restore scripts** run in the guest (`shared/guest_scripts.rs`), so that its programs can reconnect,
//! and the **post-up scripts** on the host, which may run commands in the guest. A failure in one of these stages is tried
//! once more, but a guest that did not answer within `[guest] ready-timeout` is not waited for again. If it fails again, or
//! the VM is lost, the operation ends as lost: the VM is condemned, and the session shuts the guest down and clears the VM
//! away, or with `--keep` leaves it running as in `up`. A crash in these stages is recovered forward, to a guest that is
//! SSH-ready.
//!
//! The disk of the session before the restore stays until the restored VM goes down, and is then kept as `down.rs` says. A
//! restore that rolls back, or that ends as lost, falls back to it, and what is lost is only what the restored guest had
//! written.

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use super::ids;
use super::limits::{LONG, QUICK, until_ready};
use super::shared::guest::{Inject, MountShares, Ready, Settle, condition, must_be_served};
use super::shared::guest_scripts::RunGuestScripts;
use super::shared::hooks::POST_UP;
use super::shared::machine::{BuildNetwork, StartVmm, Target, built, start_shares, write_record};
use super::shared::slot::ClaimSlot;
use super::shared::{Context, Part, parameters};
use super::state::{RunningVm, VmCondition, WorkspaceState};
use crate::engine::record::{Ended, PayloadError};
use crate::engine::transition::{AfterCommit, Operation, Probe, Transition, TransitionSpec};
use crate::world::{BootId, Generation, Machine, ReadyTimeout, Result, Slot, SnapshotId, VmmState, World};

/// The parameters of `restore` in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The slot that the guest's address belongs to.
    pub slot: Slot,
    /// The boot that the guest has to be in.
    pub boot: BootId,
    /// Whether the shares are attached in the VMM state.
    pub shares: bool,
    /// The disk of an earlier session, which the snapshot's takes the place of.
    pub former_disk: Option<Generation>,
    /// How long the guest may take until it is SSH-ready.
    pub timeout: ReadyTimeout,
    /// Whether a VM that does not become SSH-ready is left running.
    pub keep: bool,
    /// Whether scripts run in the guest.
    pub scripts: bool,
}

/// The parameters that an earlier nixbox wrote, which ran no script in the guest.
#[derive(Deserialize)]
struct FormerRestorePlan {
    snapshot: SnapshotId,
    slot: Slot,
    boot: BootId,
    shares: bool,
    former_disk: Option<Generation>,
    timeout: ReadyTimeout,
    keep: bool,
}

/// The parameters of the first versions of nixbox.
#[derive(Deserialize)]
struct OldRestorePlan {
    snapshot: SnapshotId,
    slot: Slot,
    boot: BootId,
    shares: bool,
    former_disk: Option<Generation>,
}

impl From<FormerRestorePlan> for RestorePlan {
    fn from(former: FormerRestorePlan) -> Self {
        let FormerRestorePlan { snapshot, slot, boot, shares, former_disk, timeout, keep } = former;
        Self { snapshot, slot, boot, shares, former_disk, timeout, keep, scripts: false }
    }
}

impl From<OldRestorePlan> for FormerRestorePlan {
    fn from(OldRestorePlan { snapshot, slot, boot, shares, former_disk }: OldRestorePlan) -> Self {
        Self { snapshot, slot, boot, shares, former_disk, timeout: ReadyTimeout::DEFAULT, keep: false }
    }
}

impl RestorePlan {
    pub(super) fn of(bytes: &[u8]) -> std::result::Result<Self, PayloadError> {
        parameters::<Self, FormerRestorePlan, OldRestorePlan>(bytes)
    }

    /// The VM that the operation of this generation makes.
    pub(super) fn machine(&self, generation: Generation) -> Machine {
        built(generation, self.slot, None, self.shares)
    }

    /// The same VM in the state of the workspace.
    pub(super) fn vm(&self, machine: Machine, condition: VmCondition) -> RunningVm {
        let Self { snapshot, boot, former_disk, .. } = *self;
        RunningVm { machine, former_disk, from: Some(snapshot), condition, boot: Some(boot) }
    }
}

pub(super) fn table(plan: RestorePlan) -> Operation<World> {
    let target = Target::New { disk: None, shares: plan.shares };
    let from = plan.snapshot;
    Operation::new(ids::RESTORE, "restore", AfterCommit::ClearAway, move |context, ended| {
        async move { Ok(final_state(&plan, target, &context, ended)?.bytes()?) }.boxed()
    })
    .stage("claim slot", vec![Box::new(ClaimSlot { only: Some(plan.slot) }), Box::new(write_record())])
    .stage(
        "rebuild",
        vec![
            Box::new(fill_disk(from)),
            Box::new(fill_memory(from)),
            Box::new(BuildNetwork),
            Box::new(start_shares()),
            Box::new(StartVmm),
        ],
    )
    .stage("load", vec![Box::new(Load { target, from })])
    .commit(Box::new(ResumeRestored(target)))
    .stage("settle", vec![Box::new(Settle { target, limit: until_ready(plan.timeout) })])
    .stage("ready", vec![Box::new(Ready { target, same_as: Some(plan.boot), timeout: plan.timeout })])
    .stage("reinject", vec![Box::new(Inject(target)), Box::new(MountShares(target))])
    .stage_if(plan.scripts, "after-restore scripts", vec![RunGuestScripts::after_restore(target)])
    .stage("post-up scripts", vec![Box::new(POST_UP)])
}

fn final_state(
    plan: &RestorePlan,
    target: Target,
    context: &Context<'_>,
    ended: Ended,
) -> Result<WorkspaceState> {
    Ok(match ended {
        Ended::RolledBack => WorkspaceState::Down { disk: plan.former_disk },
        Ended::Done | Ended::Lost => {
            let condition = condition(context).after(ended, plan.keep);
            WorkspaceState::Up(plan.vm(target.machine(context)?, condition))
        }
    })
}

/// The disk images, cloned from the snapshot.
fn fill_disk(from: SnapshotId) -> Part<SnapshotId> {
    Part {
        spec: TransitionSpec::undoable(ids::FILL_DISK, "clone disk", LONG),
        intent: from,
        find: |context, _| context.world.disk.find(context.generation),
        make: |context, from| context.world.disk.fill(*from, context.generation, &context.interrupt),
        remove: |context, _| context.world.disk.remove(context.generation),
    }
}

/// The RAM file, filled from the snapshot.
fn fill_memory(from: SnapshotId) -> Part<SnapshotId> {
    Part {
        spec: TransitionSpec::undoable(ids::FILL_MEMORY, "fill RAM", LONG),
        intent: from,
        find: |context, _| context.world.memory.find(context.generation),
        make: |context, from| context.world.memory.fill(*from, context.generation, &context.interrupt),
        remove: |context, _| context.world.memory.remove(context.generation),
    }
}

/// `vm.restore`.
struct Load {
    target: Target,
    from: SnapshotId,
}

impl Transition<World> for Load {
    type Intent = Machine;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::nothing_to_undo(ids::LOAD, "load", "what was loaded goes with its VMM", LONG)
    }

    async fn prepare(&self, context: &Context<'_>) -> Result<Machine> {
        self.target.machine(context)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<()>> {
        Ok(match context.world.vmm.find(machine.vmm).await? {
            VmmState::Paused => Probe::Done(()),
            VmmState::Empty | VmmState::Stopped => Probe::NotDone,
            VmmState::Never | VmmState::Gone | VmmState::PoweredOff | VmmState::Silent => Probe::Lost,
            VmmState::Running => Probe::CannotTell("the VM runs before it was resumed".to_owned()),
        })
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        if machine.shares {
            must_be_served(context.world, machine).await?;
        }
        context.world.vmm.load(machine, self.from).await
    }
}

/// `vm.resume`.
struct ResumeRestored(Target);

impl Transition<World> for ResumeRestored {
    type Intent = Machine;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::never_undone(ids::RESUME_RESTORED, "resume", "it is the commit point", QUICK)
    }

    async fn prepare(&self, context: &Context<'_>) -> Result<Machine> {
        self.0.machine(context)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<()>> {
        Ok(match context.world.vmm.find(machine.vmm).await? {
            VmmState::Running => Probe::Done(()),
            VmmState::Paused => Probe::NotDone,
            VmmState::Never | VmmState::Gone | VmmState::PoweredOff | VmmState::Silent => Probe::Lost,
            VmmState::Empty | VmmState::Stopped => {
                Probe::CannotTell("the VM that was loaded is not in its VMM".to_owned())
            }
        })
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        context.world.vmm.resume(machine.vmm).await
    }
}
