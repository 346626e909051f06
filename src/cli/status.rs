//! `nixbox status`: shows the state of the workspace. The command only reads, and takes no lock.

use std::os::unix::fs::MetadataExt;

use indicatif::HumanBytes;
use serde::Serialize;

use super::age::lapse;
use super::command::{self, OpenWorkspace, block_on, vm_state};
use super::consent::{self, Consent};
use super::error::{self, CliError, ExitKind, Outcome, Problem};
use super::wiring::Wiring;
use super::{WorkspaceLocation, rebooted, success, wiring};
use crate::config::PendingEdit;
use crate::host::clock::utc;
use crate::host::disk::kept;
use crate::host::network::NetworkPlace;
use crate::operations::{RunningVm, VmCondition, WorkspaceState};
use crate::simulator;
use crate::store::withheld;
use crate::workspace::LockHolder;
use crate::workspace::registry::Registry;
use crate::world::{Generation, KeptDisk, NetworkFault, Slot, VmmState, WorkspaceName};

/// Show whether this workspace's VM runs, and which operation is unfinished
///
/// The state is `running`, `paused`, `stopped`, `down` (also after the guest has powered off), `silent` (the VMM does not
/// answer) or `lost` (the VM should run, but is gone). Edits of the configuration that the running VM does not have yet are listed. The exit status is 0 in
/// every state. The status lists the actions on this host that the configuration asks for and that no person has
/// confirmed yet. The command changes nothing, and does not take the lock.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox status --json | jq -r .state")]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct StatusReport {
    pub(super) name: String,
    workspace: String,
    id: String,
    /// The directory of everything of the workspace that a guest must not reach.
    state_directory: String,
    /// `cloud-hypervisor` or `simulator`. The simulator runs no VM.
    vmm: &'static str,
    /// One of the states that the help text of the command explains.
    pub(super) state: &'static str,
    pub(super) vm: Option<VmReport>,
    /// The disks of earlier sessions that `nixbox up --disk` can go back to, first the one that was kept first.
    kept_disks: Vec<DiskReport>,
    /// The values of the configuration that differ from what the VM was built from. They wait for the next VM.
    pending_edits: Vec<PendingEdit>,
    /// Why the built record of the VM cannot be used; `None` if it can.
    record_problem: Option<String>,
    /// Why the configuration cannot be used; `None` if it can.
    config_problem: Option<String>,
    /// The actions on this host that the configuration asks for and that no person has confirmed yet. Each is a sentence
    /// that begins after "it".
    unconfirmed: Vec<String>,
    /// Why the directory is not the workspace that its id names; `None` if it is. A copy shows the state of the
    /// original.
    not_the_workspace: Option<String>,
    /// The operation that has not ended. The operation is running if there is a `holder`; otherwise it was left half
    /// done.
    operation: Option<OpenSummary>,
    holder: Option<LockHolder>,
}

#[derive(Debug, Serialize)]
pub(super) struct VmReport {
    generation: u64,
    slot: u8,
    address: String,
    tap: String,
    /// The network namespace that the TAP is in; `None` for a VM in the host's network.
    network_namespace: Option<String>,
    serial_log: String,
    /// How long the VM has been up, in milliseconds: since its boot, or since it was restored. `None` if its VMM does not run.
    pub(super) up_for_ms: Option<u64>,
    pub(super) memory: MemoryReport,
    /// Why the shares of the VM do not hide every `.nixbox`, if they do not.
    exposed: Option<String>,
    /// What is wrong with the network of the VM.
    network_faults: Vec<FaultReport>,
    /// Why the network could not be examined; `None` if it was.
    network_problem: Option<String>,
    /// Whether the clock of the guest was set when it last went on from a snapshot.
    clock_set: bool,
    /// Whether the guest got fresh entropy then.
    entropy_given: bool,
    /// The disk of the session before, which is kept when the VM goes down.
    former_disk: Option<u64>,
    /// Whether the VM was left running though it was not brought to SSH-ready.
    left_running: bool,
    /// Whether the guest has powered off, so that what is left of the VM waits to be cleared away.
    powered_off: bool,
    /// Whether `nixbox credentials wipe` has taken the credentials from the guest.
    credentials_withheld: bool,
    /// Whether the guest was rebooted and lacks its credentials and shares, which the next command that reaches it gives it.
    rebooted: bool,
}

/// The RAM of a VM.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct MemoryReport {
    /// The size of the guest's RAM in bytes, which this host has promised to the VM.
    pub(super) promised_bytes: u64,
    /// The bytes of it that the guest has written, as far as they occupy the file of the RAM; `None` if the VMM keeps the RAM
    /// in memory of its own.
    pub(super) occupied_bytes: Option<u64>,
}

impl MemoryReport {
    fn of(wiring: &Wiring, generation: Generation) -> Result<Self, Problem> {
        let file = wiring.memory.file(generation).map_err(|error| Problem::new(ExitKind::Failed, error))?;
        // st_blocks counts units of 512 bytes (stat(2)). The file of a VM that ends meanwhile is gone.
        let occupied = file.and_then(|file| std::fs::metadata(file).ok()).map(|status| status.blocks() * 512);
        Ok(Self { promised_bytes: wiring.spec.vm.memory.bytes(), occupied_bytes: occupied })
    }
}

/// Something that is wrong with the network of the VM.
#[derive(Debug, Serialize)]
struct FaultReport {
    fault: NetworkFault,
    /// What that means.
    text: String,
    /// What a person can do about it.
    remedy: &'static str,
}

impl From<NetworkFault> for FaultReport {
    fn from(fault: NetworkFault) -> Self {
        Self { fault, text: fault.to_string(), remedy: fault.remedy() }
    }
}

/// The disk of an earlier session.
#[derive(Debug, Serialize)]
struct DiskReport {
    generation: u64,
    /// How much space it occupies.
    bytes: u64,
    /// When it was last written, in milliseconds since 1970, UTC.
    written_ms: u64,
}

#[derive(Debug, Serialize)]
struct OpenSummary {
    operation: &'static str,
    generation: u64,
}

pub(super) fn read_status(location: &WorkspaceLocation) -> Result<StatusReport, Problem> {
    let mut open = OpenWorkspace::open(location)?;
    let root = open.workspace.root().to_owned();
    let holder = open.workspace.holder()?;
    let operation = open.journal.open_label();
    let (name, config_problem, configured) = match &open.config {
        Ok(config) => (config.name.clone(), None, Some(config.vm_spec())),
        Err(problem) => (WorkspaceName::of_directory(&root), Some(problem.one_line()), None),
    };
    let record_problem = open.record.as_ref().err().map(Problem::one_line);
    if record_problem.is_some() {
        // The configuration describes the VM then, as well as it can.
        open.record = Ok(None);
    }
    let record = open.record.as_ref().ok().and_then(Option::as_ref);
    let built = record.map(|record| record.spec.clone().moved(&record.root, &root));
    let spec = built.as_ref().or(configured.as_ref());
    let simulated = spec.is_some_and(|spec| wiring::simulated(spec.vmm).is_some());
    let pending_edits = match (&built, &configured) {
        (Some(built), Some(configured)) => built.pending_edits(configured),
        _ => Vec::new(),
    };
    let id = open.workspace.id().to_string();
    let registry = Registry::open(open.workspace.places());
    let standing = registry.and_then(|registry| registry.examine(&open.workspace));
    let state_directory = open.workspace.state().path().display().to_string();
    let not_the_workspace = standing.err().map(|error| error::chain(&error));
    let kept_disks = kept::in_directory(&open.workspace.run())
        .map_err(|error| Problem::new(ExitKind::Failed, error))?
        .into_iter()
        .map(|KeptDisk { id, bytes, written_ms }| DiskReport { generation: id.disk.0, bytes, written_ms })
        .collect();
    let (unconfirmed, config_problem) = match &open.config {
        Ok(config) => match Consent::load(&open.workspace) {
            Ok(consent) => (consent::sentences(&consent.missing(&consent.actions(config))), None),
            Err(problem) => (Vec::new(), Some(problem.one_line())),
        },
        Err(_) => (Vec::new(), config_problem),
    };
    let (mut state, mut vm) = ("down", None);
    if let WorkspaceState::Up(running) = open.journal.state {
        let report = vm_report(open, &running)?;
        (state, vm) = (report.0, Some(report.1));
    }
    Ok(StatusReport {
        name: name.as_str().to_owned(),
        workspace: root.display().to_string(),
        id,
        state_directory,
        vmm: if simulated { "simulator" } else { "cloud-hypervisor" },
        state,
        vm,
        kept_disks,
        pending_edits,
        record_problem,
        config_problem,
        unconfirmed,
        not_the_workspace,
        operation: operation
            .map(|(operation, generation)| OpenSummary { operation, generation: generation.0 }),
        holder,
    })
}

/// The state of the VM that the journal says there is, and where it is found.
fn vm_report(open: OpenWorkspace, running: &RunningVm) -> Result<(&'static str, VmReport), Problem> {
    let machine = running.machine;
    let credentials_withheld = withheld::is_withheld(open.workspace.state(), machine.memory)?;
    let wiring = open.wire()?;
    let found = block_on(async { Ok(vm_state(&wiring, machine.vmm).await.map_err(CliError::VmState)?) })?;
    let state = match found {
        VmmState::Running if running.condition != VmCondition::Condemned => "running",
        VmmState::Paused => "paused",
        VmmState::Stopped | VmmState::Empty => "stopped",
        VmmState::Silent => "silent",
        VmmState::PoweredOff if running.condition != VmCondition::Condemned => "down",
        _ => "lost",
    };
    let (network_faults, network_problem) = match state {
        "running" | "paused" => network_faults(&wiring, machine.slot)?,
        _ => (Vec::new(), None),
    };
    let report = VmReport {
        network_faults,
        network_problem,
        generation: machine.vmm.0,
        up_for_ms: up_for(&wiring, machine.vmm)?,
        memory: MemoryReport::of(&wiring, machine.memory)?,
        slot: machine.slot.number(),
        address: if wiring.simulated {
            simulator::network::address(&wiring.runtime, machine.slot).to_string()
        } else {
            machine.slot.guest().to_string()
        },
        tap: machine.slot.tap(),
        network_namespace: match &wiring.place {
            NetworkPlace::Host => None,
            NetworkPlace::Namespace(namespace) => {
                let shown = namespace.shown().map_err(|error| CliError::Network(error.into()))?;
                shown.map(|path| path.display().to_string())
            }
        },
        clock_set: !matches!(running.condition, VmCondition::NoClock | VmCondition::NoEntropy),
        entropy_given: running.condition != VmCondition::NoEntropy,
        former_disk: running.former_disk.map(|disk| disk.0),
        left_running: running.condition == VmCondition::LeftRunning,
        credentials_withheld,
        powered_off: state == "down",
        rebooted: state == "running" && rebooted::lacks(&wiring, running),
        serial_log: wiring.vmm.serial_log(machine.vmm).display().to_string(),
        exposed: command::exposed(&wiring, machine.vmm).map(|error| error::chain(&error)),
    };
    Ok((state, report))
}

fn up_for(wiring: &Wiring, vmm: Generation) -> Result<Option<u64>, Problem> {
    let runs_for = wiring.vmm.runs_for(vmm).map_err(CliError::VmState)?;
    Ok(runs_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}

/// What is wrong with the network, or why nobody knows.
fn network_faults(wiring: &Wiring, slot: Slot) -> Result<(Vec<FaultReport>, Option<String>), Problem> {
    let looked = block_on(async { Ok(wiring.world.network.faults(slot).await) })?;
    Ok(match looked {
        Ok(faults) => (faults.into_iter().map(FaultReport::from).collect(), None),
        Err(failure) => (Vec::new(), Some(error::chain(&failure))),
    })
}

fn text(status: &StatusReport) -> String {
    let mut lines = vec![format!("{} ({}): {}", status.name, status.workspace, status.state)];
    lines.push(format!("  state directory: {}", status.state_directory));
    if status.vmm == "simulator" {
        lines.push("  simulated: no VM runs, and this is no sandbox".to_owned());
    }
    if let Some(vm) = &status.vm {
        lines.push(format!(
            "  slot {}, address {}, TAP {}, generation {}",
            vm.slot, vm.address, vm.tap, vm.generation
        ));
        if let Some(milliseconds) = vm.up_for_ms {
            lines.push(format!("  up for {}", lapse(milliseconds)));
        }
        let MemoryReport { promised_bytes, occupied_bytes } = vm.memory;
        let occupied = occupied_bytes.map(|bytes| format!(", of which {} are in use", HumanBytes(bytes)));
        lines.push(format!("  memory: {}{}", HumanBytes(promised_bytes), occupied.unwrap_or_default()));
        if let Some(namespace) = &vm.network_namespace {
            lines.push(format!("  network namespace: {namespace}"));
        }
        for FaultReport { text, remedy, .. } in &vm.network_faults {
            lines.push(format!("  warning: the network: {text}: {remedy}"));
        }
        if let Some(problem) = &vm.network_problem {
            lines.push(format!("  the network could not be examined: {problem}"));
        }
        lines.push(format!("  serial console: {}", vm.serial_log));
        if let Some(exposed) = &vm.exposed {
            lines.push(format!("  warning: {exposed}: `nixbox down` and `nixbox up` hide it again"));
        }
        if let Some(disk) = vm.former_disk {
            lines.push(format!("  the disk of the session before has generation {disk}"));
        }
        if vm.left_running {
            lines.push(
                "  the VM was not brought to SSH-ready, and was left running for you to look at: `nixbox down` ends it"
                    .to_owned(),
            );
        }
        if !vm.entropy_given {
            lines.push("  the guest could not be given fresh entropy, nor could its clock be set".to_owned());
        } else if !vm.clock_set {
            lines.push("  the clock of the guest could not be set: it may be wrong".to_owned());
        }
        if vm.credentials_withheld {
            lines.push(
                "  the credentials are withheld from the guest: `nixbox credentials inject` gives them again"
                    .to_owned(),
            );
        }
        if vm.rebooted {
            lines.push(
                "  the guest was rebooted: the next `nixbox run`, `nixbox shell` or `nixbox up` gives it its credentials and \
                 shares again"
                    .to_owned(),
            );
        }
        if vm.powered_off {
            lines.push(
                "  the guest has powered off, or its VMM was told to end: the next `nixbox up` or `nixbox down` clears away \
                 what is left of the VM, and keeps its disk"
                    .to_owned(),
            );
        } else if status.state != "running" {
            lines
                .push("  hint: `nixbox recover` repairs the VM or clears away what is left of it".to_owned());
        }
    }
    for disk in &status.kept_disks {
        lines.push(format!(
            "  kept disk: generation {}, {}, last written {}: `nixbox up --disk {}` goes back to it",
            disk.generation,
            HumanBytes(disk.bytes),
            utc(disk.written_ms),
            disk.generation
        ));
    }
    for edit in &status.pending_edits {
        let value = |value: &Option<serde_json::Value>| {
            value.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string)
        };
        let until = match edit.key.starts_with("network.") && !edit.key.starts_with("network.uplink") {
            true => "`nixbox network reload` or the next `nixbox up` or `nixbox restore`",
            false => "the next `nixbox up` or `nixbox restore`",
        };
        lines.push(format!(
            "  {} was edited from {} to {}: the edit waits for {until}",
            edit.key,
            value(&edit.built),
            value(&edit.configured)
        ));
    }
    if !status.unconfirmed.is_empty() {
        lines.push(
            "  the configuration asks for actions on this host that no person has confirmed: `nixbox trust` shows and confirms \
             them"
                .to_owned(),
        );
        lines.extend(status.unconfirmed.iter().map(|sentence| format!("  - it {sentence}")));
    }
    if let Some(problem) = &status.not_the_workspace {
        lines.push(format!("  {problem}"));
    }
    if let Some(problem) = &status.record_problem {
        lines.push(format!("  {problem}: `nixbox down` ends the VM without it"));
    }
    if let Some(problem) = &status.config_problem {
        lines.push(format!("  the configuration cannot be used: {problem}"));
    }
    match (&status.operation, &status.holder) {
        (_, Some(holder)) => lines.push(format!(
            "  `{}` is under way: process {} since {}",
            holder.operation,
            holder.pid,
            utc(holder.since_ms)
        )),
        (Some(open), None) => lines.push(format!(
            "  `{}` was left half done: `nixbox recover` completes it or rolls it back",
            open.operation
        )),
        (None, None) => {}
    }
    lines.join("\n")
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let status = read_status(location)?;
    if arguments.json {
        error::print_json(&status)?;
    } else {
        error::print(&text(&status))?;
    }
    success()
}
