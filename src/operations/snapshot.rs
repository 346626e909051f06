//! `snapshot`: disk, RAM and VMM state of one instant, without a credential; and the VM goes on.
//!
//! ```text
//! snapshot:
//! [before-snapshot scripts] ─► stage ↶ ∥ wipe credentials ↶ ─► [detach shares ↶]
//!   ─► precopy disk ∥ precopy RAM ─► flush disk ─► pause ↶ ─► clone disk ∥ VMM state ↶ ∥ copy RAM
//!   ─► resume ↶ ─► entropy and clock ─► [mount shares] ─► inject credentials ─► give back files
//!   ─► COMMIT
//!
//! snapshot --stop:
//! [before-snapshot scripts] ─► stage ↶ ∥ wipe credentials ↶ ─► [detach shares ↶]
//!   ─► precopy disk ∥ precopy RAM ─► flush disk ─► pause ↶ ─► clone disk ∥ VMM state ↶ ∥ copy RAM
//!   ─► COMMIT ─► VMM ∥ network ∥ shares ∥ memory ─► [retire the former disk]
//!   ─► release slot ∥ built record
//! ```
//!
//! Whatever happens before the commit point, the VM runs on with its shares and credentials, and nothing is left of the
//! snapshot. Only if the VM is lost meanwhile (the VMM is killed, or the host reboots) is it cleared away, and its disk
//! is kept.
//!
//! Before the first stage the session checks everything that can be known without touching the guest: that the VM runs
//! and answers, that the name is free, that there is room for disk and RAM, what the VMM's version needs for the shares
//! ([`ShareStrategy`]), and that the sources of the credentials can be read, because they are given back afterwards. In
//! the guest it tries, without a change, what the stages below need there: root, entropy, the time, and files that can
//! be written. `plan_snapshot.rs` has these checks.
//!
//! The **before-snapshot scripts** run in the guest (`shared/guest_scripts.rs`), while it still has everything. Nothing of
//! them is undone: the guest runs on as they leave it, also if the operation rolls back.
//!
//! **Stage** makes the staging directory that everything is captured into; undoing removes it with all that is in it, which
//! is why *clone disk* and *copy RAM* have nothing to undo. **Wipe credentials** runs at the same time: it overwrites and
//! removes every credential in the guest, and drops the guest's caches. Histories of shells and what `credentials.wipe`
//! lists belong to the guest: before they are removed, they are copied into a backup beside the RAM, and the guest is asked
//! to remove them only if they still are as in the backup. What the backup has that looks like a credential is searched for
//! in the snapshot as well, and the processes that hold a value are named in the receipt, because no wipe reaches them.
//! Swap is switched off, so that what was swapped out is where the search finds it. Undoing switches it on, injects the
//! credentials again, gives back what is in the backup, and then gives the guest entropy and the time as well as it can:
//! the guest may have been loaded into a new VMM.
//!
//! **Detach shares** is there only where the VMM's version cannot restore a VM with shares: they are unmounted in the
//! guest and removed from the VM. Undoing attaches and mounts them.
//!
//! **Precopy** copies RAM, and disk images that the file system cannot clone, while the guest runs. So the capture has to
//! copy only what the guest changes after that, and what takes long, which is to write, to search and to hash, is mostly
//! over when the pause begins. It has nothing to undo either: the copies are in the staging directory.
//!
//! **Flush disk** brings to the medium what the guest has written, because a clone of unwritten blocks takes long and
//! the VM would be paused for it.
//!
//! **Pause** begins the time in which the guest stands still; nothing is done in it that can be done before or after.
//! Undoing makes the VM run, from wherever an interrupted capture or roll-over has left it (`roll_over.rs`).
//!
//! **Capture** takes the snapshot: a clone of the disk images, the VMM's own state and a copy of RAM, at the same time.
//! What was copied before is read once more and compared, and copied again where it differs.
//! If one of them fails, or a person interrupts, the others are let finish or stop, and the operation rolls back. After
//! a crash the VM may stay paused until recovery, which makes it run again.
//!
//! **Resume** lets the VM go on: by `vm.resume`, or by a roll-over into a new VMM. Half a roll-over cannot be taken
//! back, so that undoing finishes it: the VM runs, as it did before. Only a VM that no attempt can load is lost. **Settle**,
//! **attach**, **reinject** and **give back** give the guest entropy, the time, its shares, its credentials, and what is in the
//! backup, which is removed then. They have nothing to undo, because the guest had all of it before the snapshot; a rollback
//! gives it by undoing *wipe* and *detach*. A backup of a VM that is lost or stopped goes with its RAM.
//!
//! **Commit** is the commit point. Before it, all files are searched for every credential that a guest of the workspace was
//! ever given, and hashed: a program of the guest may keep one where no wipe reaches. What is found is overwritten in the
//! staging directory, or the operation rolls back, as `[snapshot] on-leak` says. That needs nothing of the guest, so it
//! is no part of the pause, except that a file that is copied is searched and hashed on the way, and not read again. Then the manifest is written, everything is synced, and the staging directory is renamed into
//! the list. If it fails, or after a crash, the probe looks where the snapshot is: in the list means done, in the
//! staging directory means not done, and the operation rolls back. A snapshot in the trash cannot be explained: then
//! recovery is stuck. Credentials are in the guest again by then, and not in the snapshot: it was captured before.
//!
//! With `--stop` the commit comes right after the capture, and the paused VM is not resumed. The stages of
//! `clear_away.rs` remove everything of it except its disk, as `down` does. A failure in them leaves the operation
//! stuck, and the next command tries again.

mod plan;

use futures_util::FutureExt;

pub use super::roll_over::ShareStrategy;
pub use plan::SnapshotPlan;

use super::compatibility::given;
use super::ids;
use super::limits::{GUEST, LONG, SETTLES, within};
use super::roll_over::{alive, make_it_run, make_it_run_again};
use super::shared::clear_away::{FormerDisk, clear_away};
use super::shared::guest::{GiveBack, Inject, MountShares, Settle, attach_and_mount, condition, give_back};
use super::shared::guest_scripts::RunGuestScripts;
use super::shared::machine::Target;
use super::shared::{Context, SeamCall, Unprobed, done_if_absent, must_live, probe_if_alive};
use super::state::{RunningVm, WorkspaceState};
use crate::engine::record::Ended;
use crate::engine::transition::{
    AfterCommit, Failure, Operation, Probe, Transition, TransitionId, TransitionSpec,
};
use crate::world::{
    BootId, Generation, Machine, Manifest, Origin, Result, SnapshotId, SnapshotName, SnapshotState, VmmState,
    World,
};

pub(super) fn table(plan: SnapshotPlan) -> Operation<World> {
    let SnapshotPlan { strategy, stop, gives_back, scripts, precopies, .. } = plan;
    // The guest had its credentials and shares in the boot that the session found.
    let vm = RunningVm { boot: Some(plan.boot), ..plan.vm };
    let machine = vm.machine;
    let detach = strategy == ShareStrategy::Detach;
    let target = match strategy {
        ShareStrategy::RollOver => Target::RolledOver(machine),
        ShareStrategy::InPlace | ShareStrategy::Detach => Target::Existing(machine),
    };
    let commit = Commit {
        machine,
        boot: plan.boot,
        name: plan.name,
        shares: plan.shares && !detach,
        origin: plan.origin,
    };
    let after = if stop { AfterCommit::Stuck } else { AfterCommit::ClearAway };
    let captured = Operation::new(ids::SNAPSHOT, "snapshot", after, move |context, ended| {
        async move { Ok(final_state(vm, stop, &context, ended).await?.bytes()?) }.boxed()
    })
    .stage_if(
        scripts,
        "before-snapshot scripts",
        vec![RunGuestScripts::before_snapshot(Target::Existing(machine))],
    )
    .stage("wipe", vec![Box::new(OpenStaging), Box::new(Wipe(machine))])
    .stage_if(detach, "detach", vec![Box::new(Detach(machine))])
    .stage_if(
        precopies,
        "precopy",
        vec![Box::new(precopy_disk(machine.disk)), Box::new(precopy_memory(machine.memory))],
    )
    .stage("flush", vec![Box::new(flush(machine.disk))])
    .stage("pause", vec![Box::new(Pause { machine, strategy })])
    .stage(
        "capture",
        vec![
            Box::new(clone_disk(machine.disk)),
            Box::new(SaveState { machine, strategy }),
            Box::new(copy_memory(machine.memory)),
        ],
    );
    if stop {
        return clear_away(captured.commit(Box::new(commit)), &machine, vm.former_disk.map(FormerDisk::Kept));
    }
    captured
        .stage("resume", vec![Box::new(ResumeSource { machine, strategy })])
        .stage("settle", vec![Box::new(Settle { target, limit: GUEST })])
        .stage_if(detach, "attach", vec![Box::new(MountShares(target))])
        .stage("reinject", vec![Box::new(Inject(target))])
        .stage_if(gives_back, "give back", vec![Box::new(GiveBack(target))])
        .commit(Box::new(commit))
}

async fn final_state(
    vm: RunningVm,
    stop: bool,
    context: &Context<'_>,
    ended: Ended,
) -> Result<WorkspaceState> {
    if stop && ended == Ended::Done {
        return Ok(WorkspaceState::Down { disk: Some(vm.machine.disk) });
    }
    let machine = alive(context, &vm.machine).await?;
    // A VM that was not paused to the end has the condition that it had.
    let condition = if ended == Ended::Done { condition(context) } else { vm.condition };
    Ok(WorkspaceState::Up(RunningVm { machine, condition: condition.after(ended, false), ..vm }))
}

/// The staging directory.
struct OpenStaging;

impl Transition<World> for OpenStaging {
    type Intent = ();
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::undoable(ids::OPEN_STAGING, "stage", GUEST)
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<()> {
        Ok(())
    }

    async fn probe(&self, context: &Context<'_>, (): &()) -> Result<Probe<()>> {
        Ok(match context.world.catalog.find(SnapshotId(context.generation)).await? {
            SnapshotState::Absent => Probe::NotDone,
            _ => Probe::Done(()),
        })
    }

    async fn apply(&self, context: &Context<'_>, (): &()) -> Result<()> {
        context.world.catalog.stage(SnapshotId(context.generation)).await
    }

    async fn undo(&self, context: &Context<'_>, (): &()) -> Result<()> {
        context.world.catalog.discard(SnapshotId(context.generation)).await
    }
}

/// How often the guest's files are backed up at most, because the guest has written to them before they were removed.
const BACKUPS: usize = 5;

#[derive(Debug, thiserror::Error)]
#[error(
    "the guest keeps writing to its histories or to what credentials.wipe lists, so nothing was removed: end what writes \
     there, and try again"
)]
struct StillWritten;

struct Wipe(Machine);

impl Transition<World> for Wipe {
    type Intent = Machine;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::undoable(ids::WIPE, "wipe credentials", GUEST)
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<Machine> {
        Ok(self.0)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<()>> {
        let machine = alive(context, machine).await?;
        let probe = async { Ok(done_if_absent(context.world.guest.equipped(&machine).await?.credentials)) };
        probe_if_alive(context.world, machine.vmm, probe).await
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        let world = context.world;
        let swap = world.guest.switch_off_swap(machine).await?;
        for _ in 0..BACKUPS {
            let backup = world.guest.back_up(machine).await?;
            match &backup {
                Some(backup) => world.backups.write(machine.memory, backup).await?,
                None => world.backups.remove(machine.memory).await?,
            }
            let mut audit = world.guest.audit(machine, backup.as_ref()).await?;
            audit.unproven.extend(swap.iter().cloned());
            world.catalog.keep_audit(SnapshotId(context.generation), audit).await?;
            if world.guest.wipe(machine, backup.as_ref()).await? {
                return Ok(());
            }
        }
        Err(Failure::world(StillWritten))
    }

    async fn undo(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        let machine = alive(context, machine).await?;
        must_live(context.world, machine.vmm).await?;
        context.world.guest.inject(&machine).await?;
        give_back(context.world, &machine).await?;
        // A guest that cannot be given entropy or the time runs on as well as it can. The guest goes on from where it was,
        // and no person could settle it for nixbox, so a failure here is no reason to leave the operation stuck.
        match within(SETTLES, context.world.guest.settle(&machine)).await {
            Err(Failure::Lost) => Err(Failure::Lost),
            // The guest seam has told a person why.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

struct Detach(Machine);

impl Transition<World> for Detach {
    type Intent = Machine;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::undoable(ids::DETACH, "detach shares", GUEST)
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<Machine> {
        Ok(self.0)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<()>> {
        let probe = async { Ok(done_if_absent(context.world.vmm.shares_attached(machine.vmm).await?)) };
        probe_if_alive(context.world, machine.vmm, probe).await
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        context.world.guest.unmount(machine).await?;
        context.world.vmm.detach_shares(machine.vmm).await
    }

    async fn undo(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        must_live(context.world, machine.vmm).await?;
        attach_and_mount(context.world, machine).await
    }
}

/// A transition that reads a disk or a RAM file, and that needs no undo.
fn reading(
    id: TransitionId,
    label: &'static str,
    why: &'static str,
    from: Generation,
    apply: SeamCall<Generation, ()>,
) -> Unprobed<Generation> {
    Unprobed { spec: TransitionSpec::nothing_to_undo(id, label, why, LONG), intent: from, apply }
}

const GOES_WITH_STAGING: &str = "it goes with the staging directory";

fn flush(disk: Generation) -> Unprobed<Generation> {
    reading(ids::FLUSH, "flush disk", "what is on the medium may stay there", disk, |context, disk| {
        context.world.disk.flush(*disk, &context.interrupt)
    })
}

fn precopy_disk(disk: Generation) -> Unprobed<Generation> {
    reading(ids::PRECOPY_DISK, "precopy disk", GOES_WITH_STAGING, disk, |context, disk| {
        context.world.disk.precopy(*disk, SnapshotId(context.generation), &context.interrupt)
    })
}

fn precopy_memory(memory: Generation) -> Unprobed<Generation> {
    reading(ids::PRECOPY_MEMORY, "precopy RAM", GOES_WITH_STAGING, memory, |context, memory| {
        context.world.memory.precopy(*memory, SnapshotId(context.generation), &context.interrupt)
    })
}

fn clone_disk(disk: Generation) -> Unprobed<Generation> {
    reading(ids::CLONE_DISK, "clone disk", GOES_WITH_STAGING, disk, |context, disk| {
        context.world.disk.capture(*disk, SnapshotId(context.generation), &context.interrupt)
    })
}

fn copy_memory(memory: Generation) -> Unprobed<Generation> {
    reading(ids::COPY_MEMORY, "copy RAM", GOES_WITH_STAGING, memory, |context, memory| {
        context.world.memory.capture(*memory, SnapshotId(context.generation), &context.interrupt)
    })
}

/// `vm.pause`.
struct Pause {
    machine: Machine,
    strategy: ShareStrategy,
}

impl Transition<World> for Pause {
    type Intent = Machine;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::undoable(ids::PAUSE, "pause", GUEST)
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<Machine> {
        Ok(self.machine)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<()>> {
        Ok(match context.world.vmm.find(machine.vmm).await? {
            VmmState::Paused => Probe::Done(()),
            VmmState::Running => Probe::NotDone,
            _ => Probe::Lost,
        })
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        context.world.vmm.pause(machine.vmm).await
    }

    async fn undo(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        make_it_run_again(context, machine, self.strategy).await
    }
}

/// `vm.snapshot`.
struct SaveState {
    machine: Machine,
    strategy: ShareStrategy,
}

impl Transition<World> for SaveState {
    type Intent = Machine;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::undoable(ids::SAVE_STATE, "VMM state", LONG)
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<Machine> {
        Ok(self.machine)
    }

    async fn probe(&self, context: &Context<'_>, _: &Machine) -> Result<Probe<()>> {
        let saved = context.world.catalog.holds_vmm_state(SnapshotId(context.generation)).await?;
        Ok(if saved { Probe::Done(()) } else { Probe::NotDone })
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        context.world.vmm.save(machine.vmm, SnapshotId(context.generation)).await
    }

    /// A roll-over needs the saved state, so the VM is made to run before the staging directory is removed.
    async fn undo(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        make_it_run_again(context, machine, self.strategy).await
    }
}

/// `vm.resume`, or a roll-over.
struct ResumeSource {
    machine: Machine,
    strategy: ShareStrategy,
}

impl Transition<World> for ResumeSource {
    type Intent = Machine;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::undoable(ids::RESUME_SOURCE, "resume", GUEST)
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<Machine> {
        Ok(self.machine)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<()>> {
        let machine = alive(context, machine).await?;
        Ok(match context.world.vmm.find(machine.vmm).await? {
            VmmState::Running => Probe::Done(()),
            _ => Probe::NotDone,
        })
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        make_it_run(context, machine, self.strategy).await
    }

    async fn undo(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        make_it_run_again(context, machine, self.strategy).await
    }
}

/// The manifest, the syncs, and the rename into the list.
struct Commit {
    machine: Machine,
    boot: BootId,
    name: Option<SnapshotName>,
    shares: bool,
    origin: Origin,
}

impl Transition<World> for Commit {
    type Intent = Manifest;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::never_undone(ids::COMMIT, "commit", "it is the commit point", LONG)
    }

    async fn prepare(&self, context: &Context<'_>) -> Result<Manifest> {
        let id = SnapshotId(context.generation);
        // A first reading of the files may take long and can be interrupted here. Afterwards their contents are known.
        let given = given(context.world, id, &context.interrupt).await?;
        Ok(Manifest {
            id,
            name: self.name.clone(),
            created_ms: context.world.clock.unix_ms(),
            slot: self.machine.slot,
            boot: self.boot,
            shares: self.shares,
            origin: self.origin.clone(),
            files: context.world.catalog.digest(id, &context.interrupt).await?,
            given,
            receipt: None,
        })
    }

    async fn probe(&self, context: &Context<'_>, manifest: &Manifest) -> Result<Probe<()>> {
        Ok(match context.world.catalog.find(manifest.id).await? {
            SnapshotState::Listed => Probe::Done(()),
            SnapshotState::Staged | SnapshotState::Absent => Probe::NotDone,
            SnapshotState::Trashed => Probe::CannotTell(format!(
                "snapshot {} is in the trash before it was in the list",
                manifest.id
            )),
        })
    }

    async fn apply(&self, context: &Context<'_>, manifest: &Manifest) -> Result<()> {
        // The intent in the journal has neither.
        let given = given(context.world, manifest.id, &context.interrupt).await?;
        let receipt = context.world.catalog.receipt(manifest.id).await?;
        context.world.catalog.commit(Manifest { given, receipt, ..manifest.clone() }).await
    }
}
