//! Checks the ten invariants of the design on the state of the host. Of nixbox's own code only the reader of the journal is
//! used, to know what state the workspace should be in.

use super::fault::Loss;
use super::files::Content;
use super::guest::{FakeHistory, FakeMount};
use super::state::{DISK, FakeState, MANIFEST, NEIGHBOUR, RAM, SAVED, disk_name, kept_name, record_name};
use crate::engine::history::History;
use crate::engine::journal::Name;
use crate::engine::reader;
use crate::operations::{RunningVm, VmCondition, WorkspaceState};
use crate::world::{BootId, Generation, Machine, Presence, VmmState, WorkspaceId};

/// A violated invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The number of the invariant in the design.
    pub invariant: u8,
    /// What was seen.
    pub what: String,
}

/// Everything of `workspace` that the invariants forbid while no operation is open. Of invariants 6 to 8 and 10, which
/// compare the host at several times, only what can be seen at one time is checked; the caller compares the rest.
pub(super) fn violations(state: &FakeState, workspace: WorkspaceId) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut forbid = |invariant: u8, forbidden: bool, what: &str| {
        if forbidden {
            found.push(Violation { invariant, what: what.to_owned() });
        }
    };
    snapshots(state, workspace, &mut forbid);
    let workspace_state = match journal(state, workspace) {
        Ok((workspace_state, open)) => {
            forbid(6, open, "an operation is still open");
            workspace_state
        }
        Err(what) => {
            forbid(6, true, &what);
            return found;
        }
    };
    let machine = match workspace_state {
        WorkspaceState::Up(vm) => {
            forbid(4, vm.condition == VmCondition::Condemned, "a condemned VM was not cleared away");
            match vm.condition {
                VmCondition::LeftRunning => left_running(state, workspace, &vm.machine, &mut forbid),
                _ => running(state, workspace, &vm, &mut forbid),
            }
            Some(vm.machine)
        }
        WorkspaceState::Down { .. } => None,
    };
    left_overs(state, workspace, machine, &mut forbid);
    disks(state, workspace, workspace_state, &mut forbid);
    neighbour(state, &mut forbid);
    found
}

type Forbid<'a> = dyn FnMut(u8, bool, &str) + 'a;

fn journal(state: &FakeState, workspace: WorkspaceId) -> Result<(WorkspaceState, bool), String> {
    let directory = state.workspace_directory(workspace).ok_or("the workspace is gone")?;
    let Some(Content::Bytes(bytes)) = state.files.get(directory, Name::Current.file_name()) else {
        return Ok((WorkspaceState::Down { disk: None }, false));
    };
    let mut history = History::default();
    reader::scan(&mut bytes.as_slice(), Some(workspace), |located| {
        history.push(located.generation, &located.record)
    })
    .map_err(|error| format!("the journal cannot be read: {error}"))?;
    let workspace_state = WorkspaceState::of(&history.final_state).map_err(|error| error.to_string())?;
    Ok((workspace_state, history.open().is_some()))
}

fn snapshots(state: &FakeState, workspace: WorkspaceId, forbid: &mut Forbid<'_>) {
    let Some(directory) = state.workspace_directory(workspace) else {
        return;
    };
    let Some(snapshots) = state.files.find(directory, "snapshots") else {
        return;
    };
    for (name, ino) in state.files.list(snapshots) {
        if name.starts_with('.') {
            forbid(3, true, &format!("{name} was left behind"));
            continue;
        }
        let Some(Content::Manifest(manifest)) = state.files.get(ino, MANIFEST) else {
            forbid(1, true, &format!("snapshot {name} has no manifest"));
            continue;
        };
        let same = manifest.0.files == state.records(ino);
        forbid(1, !same, &format!("the files of snapshot {name} are not those of its manifest"));
        match (state.files.get(ino, DISK), state.files.get(ino, RAM), state.files.get(ino, SAVED)) {
            (Some(Content::Disk(disk)), Some(Content::Ram(ram)), Some(Content::State(saved))) => {
                let instant = disk.ticks == ram.ticks && ram.ticks == saved.ticks;
                forbid(1, !instant, &format!("snapshot {name} is of several instants"));
                let clean = disk.secrets.is_empty() && disk.residue.is_empty() && ram.secrets.is_empty();
                forbid(2, !clean, &format!("snapshot {name} holds a credential"));
                let searched = disk.leaked.is_empty() && ram.leaked.is_empty();
                forbid(2, !searched, &format!("snapshot {name} holds a credential that a program has kept"));
                let wiped = disk.history.is_after(ram.wiped_lines);
                forbid(2, !wiped, &format!("snapshot {name} holds lines of a history from before its wipe"));
            }
            _ => forbid(1, true, &format!("snapshot {name} lacks a file")),
        }
    }
}

fn running(state: &FakeState, workspace: WorkspaceId, vm: &RunningVm, forbid: &mut Forbid<'_>) {
    let machine = &vm.machine;
    let Some(vmm) = state.vmms.get(&(workspace, machine.vmm)) else {
        forbid(4, true, "the VM is neither running nor cleanly down");
        return;
    };
    forbid(4, vmm.state != VmmState::Running, "the VM does not run");
    forbid(4, vmm.machine.is_none_or(|own| own.slot != machine.slot), "the VM has another slot");
    forbid(1, vmm.mangled, "the VM was put together from several instants");
    forbid(7, !state.is_ssh_ready(workspace), "the guest is not SSH-ready");
    let network = state.networks.get(&machine.slot).filter(|network| network.owner == workspace);
    let faults = network.map(|network| network.clone().faults());
    forbid(
        13,
        faults.as_ref().is_none_or(|faults| !faults.is_empty()),
        &format!("the network of the VM is broken: {faults:?}"),
    );
    let Some(ram) = state.ram(workspace, machine.memory) else {
        forbid(4, true, "the VM has no RAM");
        return;
    };
    // A guest that reboots by itself lacks what it had until the next command that reaches it.
    let rebooted = vm.boot.is_some_and(|boot| boot != BootId(ram.boot));
    forbid(4, !rebooted && !ram.secrets.contains(&state.secret), "the guest lacks its credentials in RAM");
    forbid(14, !ram.swap, "the guest lacks its swap");
    let disk = state.disk(workspace, machine.disk);
    let all = FakeHistory::of(ram.first_line, ram.lines);
    let has_all = disk.is_some_and(|disk| disk.history == all);
    forbid(
        14,
        !has_all,
        &format!("the guest's history is not {all:?}: {:?}", disk.map(|disk| &disk.history)),
    );
    let on_disk = disk.is_some_and(|disk| disk.secrets.contains(&state.secret));
    forbid(4, !rebooted && !on_disk, "the guest lacks its credentials on disk");
    let Some(built) = state.built(workspace, machine.memory) else {
        forbid(12, true, "nothing says what the VM was built from");
        return;
    };
    let shares = vmm.shares == Presence::Whole && ram.mount == FakeMount::Works;
    forbid(4, built.shares && !rebooted && !shares, "the guest lacks its shares");
    let serving = state.daemons.get(&(workspace, machine.vmm)).is_some_and(|daemons| daemons.serve());
    forbid(4, built.shares && !serving, "no share daemon serves the guest");
    // A guest that refused both, or could not be asked, runs on as it is where the operation allows it.
    let refused =
        state.settle_failed || [Loss::Entropy, Loss::Clock].iter().any(|loss| state.lost.contains(loss));
    let settled = ram.seeded && ram.clock;
    forbid(4, !settled && !refused, "the guest has no fresh entropy, or a wrong clock");
    let missed = ram.awaits_scripts && !state.scripts_failed;
    forbid(4, missed, "the scripts that are to run in the guest did not run");
}

/// A VM that a person wanted to look at although it was not brought to SSH-ready.
fn left_running(state: &FakeState, workspace: WorkspaceId, machine: &Machine, forbid: &mut Forbid<'_>) {
    let vmm = state.vmms.get(&(workspace, machine.vmm));
    forbid(
        4,
        vmm.is_none_or(|vmm| vmm.state != VmmState::Running),
        "the VM that was left running does not run",
    );
    forbid(12, state.built(workspace, machine.memory).is_none(), "nothing says what the VM was built from");
}

fn left_overs(state: &FakeState, workspace: WorkspaceId, machine: Option<Machine>, forbid: &mut Forbid<'_>) {
    let of_vm = |generation: Generation, of: fn(&Machine) -> Generation| {
        machine.is_some_and(|machine| of(&machine) == generation)
    };
    for (of, generation) in state.vmms.keys() {
        let left = *of == workspace && !of_vm(*generation, |machine| machine.vmm);
        forbid(5, left, &format!("a VMM of generation {generation} was left behind"));
    }
    for (of, generation) in state.daemons.keys() {
        let left = *of == workspace && !of_vm(*generation, |machine| machine.vmm);
        forbid(5, left, &format!("share daemons of generation {generation} were left behind"));
    }
    for (of, generation) in state.memories.keys() {
        let left = *of == workspace && !of_vm(*generation, |machine| machine.memory);
        forbid(5, left, &format!("a RAM file of generation {generation} was left behind"));
    }
    for (of, generation) in state.backups.keys() {
        forbid(5, *of == workspace, &format!("a backup of generation {generation} was left behind"));
    }
    let records = state.workspace_directory(workspace).into_iter().flat_map(|at| state.files.list(at));
    for name in records.map(|(name, _)| name).filter(|name| name.starts_with("built-")) {
        let left = machine.is_none_or(|machine| record_name(machine.memory) != name);
        forbid(5, left, &format!("{name} was left behind"));
    }
    for (slot, network) in &state.networks {
        let left = network.owner == workspace && machine.is_none_or(|machine| machine.slot != *slot);
        forbid(5, left, &format!("the network of slot {slot} was left behind"));
    }
    for (slot, holder) in &state.slots {
        let left = *holder == workspace && machine.is_none_or(|machine| machine.slot != *slot);
        forbid(5, left, &format!("slot {slot} was left behind"));
    }
}

fn disks(
    state: &FakeState,
    workspace: WorkspaceId,
    workspace_state: WorkspaceState,
    forbid: &mut Forbid<'_>,
) {
    let (current, former) = match workspace_state {
        WorkspaceState::Down { disk } => (disk, None),
        WorkspaceState::Up(vm) => (Some(vm.machine.disk), vm.former_disk),
    };
    let wanted: Vec<String> = [current, former].into_iter().flatten().map(disk_name).collect();
    let Some(directory) = state.workspace_directory(workspace) else {
        return;
    };
    for (name, _) in state.files.list(directory).filter(|(name, _)| name.starts_with("disk-")) {
        forbid(5, !wanted.iter().any(|wanted| wanted == name), &format!("{name} was left behind"));
    }
    let kept = state.kept_disks(workspace);
    forbid(5, kept.len() > state.keep_disks, "more disks are kept than were to be");
    for name in wanted.into_iter().chain(kept.into_iter().map(kept_name)) {
        let whole = matches!(state.files.get(directory, &name), Some(Content::Disk(_)));
        forbid(9, !whole, &format!("{name} is gone or torn"));
    }
}

fn neighbour(state: &FakeState, forbid: &mut Forbid<'_>) {
    let untouched =
        state.vmms.iter().any(|((of, _), vmm)| *of == NEIGHBOUR && vmm.state == VmmState::Running)
            && state.daemons.iter().any(|((of, _), daemons)| *of == NEIGHBOUR && daemons.serve())
            && state.memories.keys().any(|(of, _)| *of == NEIGHBOUR)
            && state.networks.values().any(|net| net.owner == NEIGHBOUR && net.presence() == Presence::Whole)
            && state.slots.values().any(|holder| *holder == NEIGHBOUR)
            && state
                .workspace_directory(NEIGHBOUR)
                .is_some_and(|directory| state.files.find(directory, "disk-7").is_some());
    forbid(9, !untouched, "another workspace's VM was touched");
}
