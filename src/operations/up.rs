//! `up`: a fresh boot.
//!
//! ```text
//! up:
//! pre-up scripts ─► claim slot ↶ ∥ built record ↶
//!   ─► [disk ↶] ∥ memory ↶ ∥ network ↶ ∥ shares ↶ ∥ start VMM ↶ ─► BOOT ─► SSH-ready
//!   ─► inject credentials ∥ mount shares ─► [after-up scripts] ─► post-up scripts
//!
//! up --disk:
//! pre-up scripts ─► claim slot ↶ ∥ built record ↶
//!   ─► take the kept disk ↶ ∥ memory ↶ ∥ network ↶ ∥ shares ↶ ∥ start VMM ↶ ─► BOOT ─► SSH-ready
//!   ─► inject credentials ∥ mount shares ─► [after-up scripts] ─► post-up scripts
//! ```
//!
//! Before the first stage the session makes sure that no VM runs, reads the credentials from their sources, and takes
//! the disk of an earlier session if there is one. Then there is no `disk` in the table: a disk that this operation did not
//! make must not go when it rolls back. With `--disk` the VM gets a kept disk in place of that one: **take the kept disk**
//! gives it its former name, and rolling back keeps it again. The disk that it takes the place of stays until the VM goes
//! down, as after a restore (`down.rs`).
//!
//! **Pre-up scripts** are the user's. A script that fails ends the operation before anything was made. Nothing tells
//! whether a script ran, so a recovery does not look for it, and what the script did is not taken back.
//!
//! **Claim slot** takes the slot that the workspace holds already, or any that is free. It comes alone and first,
//! because the network and the VM's addresses follow from it. Rolling back releases the slot. **Built record**, at the same
//! time, writes down what the VM is built from. From then on every command goes by the record, so that an edit of the
//! configuration waits for the next VM. Rolling back removes the record.
//!
//! **Build** makes everything on the host that the VM consists of, at the same time: disk images cloned from their
//! templates, an empty RAM file, the slot's network, the share daemons, and the VMM process with no VM in it. If one of
//! them fails, the others are let finish, and then all of them are removed in reverse order. After a crash recovery
//! removes them too: each part bears the operation's generation, so that nothing of another operation is taken for it.
//! A part that cannot be removed leaves the operation stuck, and the next command tries again.
//!
//! **Boot** is the commit point: `vm.create` and `vm.boot`. From here on there is a guest that may have begun to
//! work, and its disk must not be taken away from under it. If the boot fails, the VMM is asked once more: a VM that
//! runs was booted, and anything else rolls back. After a crash the same probe decides. It cannot explain a paused VM,
//! which nothing in `up` makes: then recovery is stuck.
//!
//! **SSH-ready** waits until an authenticated command has run in the guest, for `[guest] ready-timeout`, and up to three
//! times as long while the guest writes to its console.
//! **Equip** then injects the credentials of today's configuration and mounts the shares. The **after-up scripts** run in
//! the guest (`shared/guest_scripts.rs`), and the **post-up scripts** on the host, which may run commands in the guest. A
//! failure in one of these stages is tried once more, but a guest that did not answer in time is not waited for again. If
//! it fails again, or the VM is lost (the VMM was killed, or the host rebooted), the operation ends as lost: the VM is
//! condemned, and the session shuts the guest down and clears the VM away. Its disk is kept for the next `up`. With
//! `--keep` the VM is left running instead, for a person to look at, until a `down`; what is left of a VM that is gone is
//! cleared away even then. A script of these that fails is reported and changes nothing else. A crash in these stages is
//! recovered forward, to a guest that is SSH-ready.

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use super::ids;
use super::limits::{GUEST, LONG, QUICK};
use super::shared::guest::{Inject, MountShares, Ready, must_be_served};
use super::shared::guest_scripts::RunGuestScripts;
use super::shared::hooks::{POST_UP, PRE_UP};
use super::shared::machine::{BuildNetwork, StartVmm, Target, built, start_shares, write_record};
use super::shared::slot::ClaimSlot;
use super::shared::{Context, Part, parameters};
use super::state::{RunningVm, VmCondition, WorkspaceState};
use crate::engine::record::{Ended, PayloadError};
use crate::engine::transition::{
    AfterCommit, ErasedTransition, Operation, Probe, Transition, TransitionSpec,
};
use crate::world::{BootId, Generation, KeptDiskId, Machine, ReadyTimeout, Result, Slot, VmmState, World};

/// The parameters of `up` in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpPlan {
    /// The disk of an earlier session.
    pub disk: Option<Generation>,
    /// The kept disk that the VM gets in place of that one.
    pub back_to: Option<KeptDiskId>,
    /// Whether there are shares.
    pub shares: bool,
    /// How long the guest may take until it is SSH-ready.
    pub timeout: ReadyTimeout,
    /// Whether a VM that does not become SSH-ready is left running.
    pub keep: bool,
    /// Whether scripts run in the guest.
    pub scripts: bool,
}

/// The parameters that an earlier nixbox wrote, which ran no script in the guest.
#[derive(Deserialize)]
struct FormerUpPlan {
    disk: Option<Generation>,
    back_to: Option<KeptDiskId>,
    shares: bool,
    timeout: ReadyTimeout,
    keep: bool,
}

/// The parameters of the first versions of nixbox.
#[derive(Deserialize)]
struct OldUpPlan {
    disk: Option<Generation>,
    shares: bool,
}

impl From<FormerUpPlan> for UpPlan {
    fn from(FormerUpPlan { disk, back_to, shares, timeout, keep }: FormerUpPlan) -> Self {
        Self { disk, back_to, shares, timeout, keep, scripts: false }
    }
}

impl From<OldUpPlan> for FormerUpPlan {
    fn from(OldUpPlan { disk, shares }: OldUpPlan) -> Self {
        Self { disk, back_to: None, shares, timeout: ReadyTimeout::DEFAULT, keep: false }
    }
}

impl UpPlan {
    pub(super) fn of(bytes: &[u8]) -> std::result::Result<Self, PayloadError> {
        parameters::<Self, FormerUpPlan, OldUpPlan>(bytes)
    }

    /// The disk that the VM gets; `None` for one that the operation makes.
    fn disk(&self) -> Option<Generation> {
        self.back_to.map(|kept| kept.disk).or(self.disk)
    }

    /// The VM that the operation of this generation makes.
    pub(super) fn machine(&self, generation: Generation, slot: Slot) -> Machine {
        built(generation, slot, self.disk(), self.shares)
    }

    /// The same VM in the state of the workspace, if nothing is wrong with it.
    pub(super) fn vm(&self, machine: Machine, boot: Option<BootId>) -> RunningVm {
        let former_disk = self.back_to.and(self.disk);
        RunningVm { machine, former_disk, from: None, condition: VmCondition::Good, boot }
    }
}

pub(super) fn table(plan: UpPlan) -> Operation<World> {
    let timeout = plan.timeout;
    let target = Target::New { disk: plan.disk(), shares: plan.shares };
    let mut parts: Vec<Box<dyn ErasedTransition<World>>> =
        vec![Box::new(make_memory()), Box::new(BuildNetwork), Box::new(start_shares()), Box::new(StartVmm)];
    match (plan.back_to, plan.disk) {
        (Some(kept), _) => parts.insert(0, Box::new(take_disk(kept))),
        (None, None) => parts.insert(0, Box::new(make_disk())),
        (None, Some(_)) => {}
    }
    Operation::new(ids::UP, "up", AfterCommit::ClearAway, move |context, ended| {
        async move { Ok(final_state(&plan, target, &context, ended)?.bytes()?) }.boxed()
    })
    .stage("pre-up scripts", vec![Box::new(PRE_UP)])
    .stage("claim slot", vec![Box::new(ClaimSlot { only: None }), Box::new(write_record())])
    .stage("build", parts)
    .commit(Box::new(Boot(target)))
    .stage("connect", vec![Box::new(Ready { target, same_as: None, timeout })])
    .stage("equip", vec![Box::new(Inject(target)), Box::new(MountShares(target))])
    .stage_if(plan.scripts, "after-up scripts", vec![RunGuestScripts::after_up(target)])
    .stage("post-up scripts", vec![Box::new(POST_UP)])
}

fn final_state(plan: &UpPlan, target: Target, context: &Context<'_>, ended: Ended) -> Result<WorkspaceState> {
    Ok(match ended {
        Ended::RolledBack => WorkspaceState::Down { disk: plan.disk },
        Ended::Done | Ended::Lost => {
            let vm = plan.vm(target.machine(context)?, context.outcome(ids::READY).ok());
            WorkspaceState::Up(RunningVm { condition: vm.condition.after(ended, plan.keep), ..vm })
        }
    })
}

/// The disk images, cloned from their templates.
fn make_disk() -> Part<()> {
    Part {
        spec: TransitionSpec::undoable(ids::MAKE_DISK, "disk", LONG),
        intent: (),
        find: |context, ()| context.world.disk.find(context.generation),
        make: |context, ()| context.world.disk.create(context.generation, &context.interrupt),
        remove: |context, ()| context.world.disk.remove(context.generation),
    }
}

/// The disk images of an earlier session, which a person goes back to.
fn take_disk(kept: KeptDiskId) -> Part<KeptDiskId> {
    Part {
        spec: TransitionSpec::undoable(ids::TAKE_DISK, "take the kept disk", QUICK),
        intent: kept,
        find: |context, kept| context.world.disk.find(kept.disk),
        make: |context, kept| context.world.disk.take(*kept),
        remove: |context, kept| context.world.disk.keep(*kept),
    }
}

/// The RAM file, empty.
fn make_memory() -> Part<()> {
    Part {
        spec: TransitionSpec::undoable(ids::MAKE_MEMORY, "memory", QUICK),
        intent: (),
        find: |context, ()| context.world.memory.find(context.generation),
        make: |context, ()| context.world.memory.create(context.generation),
        remove: |context, ()| context.world.memory.remove(context.generation),
    }
}

/// `vm.create` and `vm.boot`.
struct Boot(Target);

impl Transition<World> for Boot {
    type Intent = Machine;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::never_undone(ids::BOOT, "boot", "it is the commit point", GUEST)
    }

    async fn prepare(&self, context: &Context<'_>) -> Result<Machine> {
        self.0.machine(context)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<()>> {
        Ok(match context.world.vmm.find(machine.vmm).await? {
            VmmState::Running => Probe::Done(()),
            VmmState::Empty | VmmState::Stopped => Probe::NotDone,
            VmmState::Never | VmmState::Gone | VmmState::PoweredOff | VmmState::Silent => Probe::Lost,
            VmmState::Paused => {
                Probe::CannotTell("the VM is paused, which nothing in this operation does".to_owned())
            }
        })
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        if machine.shares {
            must_be_served(context.world, machine).await?;
        }
        context.world.vmm.boot(machine).await
    }
}
