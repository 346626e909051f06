//! What a snapshot needs, checked before the guest is touched. Nothing is changed.
//!
//! Uses the seams, and the snapshot's own plan and table.

use super::compatibility::origin;
use super::limits::{LOOK, within};
use super::outcome::{Refusal, SnapshotRequest};
use super::snapshot::{ShareStrategy, SnapshotPlan};
use super::sources::Sources;
use super::state::RunningVm;
use crate::world::{
    GuestScriptPoint, ListedSnapshot, Machine, Presence, Result, SnapshotName, VmmState, World,
};

/// Awaits a call that reads the state of the world before an operation begins, for [`LOOK`] at most.
pub(super) async fn examine<T>(call: impl Future<Output = Result<T>>) -> Result<T, Refusal> {
    within(LOOK, call).await.map_err(Refusal::Look)
}

pub(super) async fn plan_snapshot(
    world: &World,
    vm: RunningVm,
    request: SnapshotRequest,
    sources: Sources<'_>,
) -> Result<SnapshotPlan, Refusal> {
    let SnapshotRequest { name, stop, retention: _ } = request;
    must_run(world, &vm.machine).await?;
    must_be_recorded(world, &vm.machine).await?;
    if let Some(name) = &name {
        must_be_free(world, name).await?;
    }
    let ability = examine(world.vmm.ability(Some(vm.machine.vmm))).await?;
    let version = examine(world.vmm.version(Some(vm.machine.vmm))).await?;
    let shares = world.shares.wanted();
    let strategy = ShareStrategy::of(shares, ability);
    if strategy == ShareStrategy::RollOver {
        // A roll-over starts the installed program for the VM.
        let installed = examine(world.vmm.version(None)).await?;
        if installed.major != version.major {
            return Err(Refusal::VmmReplaced { running: version, installed });
        }
    }
    let origin = origin(world, version).map_err(Refusal::Look)?;
    must_have_room(world, &vm.machine).await?;
    // A snapshot that rolls back gives the credentials back, with --stop too.
    sources.hold(world).await?;
    let boot = examine(world.guest.ready(&vm.machine)).await?;
    let taken = within(LOOK, world.guest.examine(&vm.machine)).await.map_err(Refusal::GuestUnfit)?;
    let backup = world.backups.examine(vm.machine.memory, taken);
    within(LOOK, backup).await.map_err(Refusal::NoBackup)?;
    if strategy == ShareStrategy::Detach {
        shares_must_be_unused(world, &vm.machine).await?;
    }
    let scripts = world.guest.has_scripts(GuestScriptPoint::BeforeSnapshot);
    let (gives_back, precopies) = (true, true);
    Ok(SnapshotPlan { vm, boot, name, shares, strategy, stop, origin, gives_back, scripts, precopies })
}

/// Refuses a VM that is paused or has stopped.
pub(super) async fn must_run(world: &World, machine: &Machine) -> Result<(), Refusal> {
    match examine(world.vmm.find(machine.vmm)).await? {
        VmmState::Running => Ok(()),
        state => Err(Refusal::NotInOrder(state)),
    }
}

/// A VM that an earlier nixbox built has no record, and the configuration may have been edited since.
pub(super) async fn must_be_recorded(world: &World, machine: &Machine) -> Result<(), Refusal> {
    match examine(world.records.find(machine.memory)).await? {
        Presence::Whole => Ok(()),
        Presence::Absent | Presence::Partial => Err(Refusal::NoRecord),
    }
}

async fn must_be_free(world: &World, name: &SnapshotName) -> Result<(), Refusal> {
    let listed = examine(world.catalog.list()).await?;
    let taken = |one: &ListedSnapshot| one.manifest.as_ref().is_ok_and(|one| one.name.as_ref() == Some(name));
    if listed.iter().any(taken) { Err(Refusal::NameTaken(name.clone())) } else { Ok(()) }
}

async fn must_have_room(world: &World, machine: &Machine) -> Result<(), Refusal> {
    let memory = examine(world.memory.weight(machine.memory)).await?;
    let disk = examine(world.disk.weight(machine.disk)).await?;
    let free = examine(world.catalog.free()).await?;
    let promised = examine(world.memory.promised()).await?;
    let wanted = memory.saturating_add(disk);
    // A VM whose RAM file finds no block for a page that the guest writes dies.
    if wanted.saturating_add(promised) > free {
        return Err(Refusal::NoRoom { wanted, free, promised });
    }
    Ok(())
}

async fn shares_must_be_unused(world: &World, machine: &Machine) -> Result<(), Refusal> {
    let users = examine(world.guest.share_users(machine)).await?;
    if users.is_empty() { Ok(()) } else { Err(Refusal::SharesInUse(users)) }
}
