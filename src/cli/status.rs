//! `nixbox status`: shows the state of the workspace. The command only reads, and takes no lock.

use serde::Serialize;

use super::command::{self, OpenWorkspace, block_on, vm_state};
use super::error::{self, CliError, Outcome, Problem};
use super::{WorkspaceLocation, journal_state, success, wiring};
use crate::host::clock::utc;
use crate::operations::WorkspaceState;
use crate::simulator;
use crate::workspace::LockHolder;
use crate::world::VmmState;

/// Show whether this workspace's VM runs, and which operation is unfinished
///
/// The state is `running`, `paused`, `stopped`, `down`, `silent` (the VMM does not answer) or `lost` (the VM should
/// run, but is gone). The exit status is 0 in every state. Nothing is changed, and the lock is not taken.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox status --json | jq -r .state")]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct StatusReport {
    name: String,
    workspace: String,
    id: String,
    /// `cloud-hypervisor` or `simulator`. The simulator runs no VM.
    vmm: &'static str,
    /// One of the states that the help text of the command explains.
    state: &'static str,
    vm: Option<VmReport>,
    /// The operation that has not ended. The operation is running if there is a `holder`; otherwise it was left half
    /// done.
    operation: Option<OpenSummary>,
    holder: Option<LockHolder>,
}

#[derive(Debug, Serialize)]
struct VmReport {
    generation: u64,
    slot: u8,
    address: String,
    tap: String,
    serial_log: String,
    /// Why the shares of the VM do not hide every `.nixbox`, if they do not.
    exposed: Option<String>,
}

#[derive(Debug, Serialize)]
struct OpenSummary {
    operation: &'static str,
    generation: u64,
}

fn read_status(location: &WorkspaceLocation) -> Result<StatusReport, Problem> {
    let open = OpenWorkspace::open(location)?;
    let OpenWorkspace { workspace, config } = &open;
    let journal = journal_state::read(workspace)?;
    let holder = workspace.holder()?;
    let simulated = wiring::simulated(config).is_some();
    let (mut state, mut vm) = ("down", None);
    if let WorkspaceState::Up(running) = journal.state {
        let wiring = open.wire()?;
        let machine = running.machine;
        let found = block_on(async { Ok(vm_state(&wiring, machine.vmm).await.map_err(CliError::VmState)?) })?;
        state = match found {
            VmmState::Running if !running.condemned => "running",
            VmmState::Paused => "paused",
            VmmState::Stopped | VmmState::Empty => "stopped",
            VmmState::Silent => "silent",
            _ => "lost",
        };
        vm = Some(VmReport {
            generation: machine.vmm.0,
            slot: machine.slot.number(),
            address: if simulated {
                simulator::network::address(&wiring.runtime, machine.slot).to_string()
            } else {
                machine.slot.guest().to_string()
            },
            tap: machine.slot.tap(),
            serial_log: wiring.vmm.serial_log(machine.vmm).display().to_string(),
            exposed: command::exposed(&wiring, machine.vmm).map(|error| error::chain(&error)),
        });
    }
    Ok(StatusReport {
        name: config.name.as_str().to_owned(),
        workspace: workspace.root().display().to_string(),
        id: workspace.id().to_string(),
        vmm: if simulated { "simulator" } else { "cloud-hypervisor" },
        state,
        vm,
        operation: journal
            .open_label()
            .map(|(operation, generation)| OpenSummary { operation, generation: generation.0 }),
        holder,
    })
}

fn text(status: &StatusReport) -> String {
    let mut lines = vec![format!("{} ({}): {}", status.name, status.workspace, status.state)];
    if status.vmm == "simulator" {
        lines.push("  simulated: no VM runs, and this is no sandbox".to_owned());
    }
    if let Some(vm) = &status.vm {
        lines.push(format!(
            "  slot {}, address {}, TAP {}, generation {}",
            vm.slot, vm.address, vm.tap, vm.generation
        ));
        lines.push(format!("  serial console: {}", vm.serial_log));
        if let Some(exposed) = &vm.exposed {
            lines.push(format!("  warning: {exposed}: `nixbox down` and `nixbox up` hide it again"));
        }
        if status.state != "running" {
            lines
                .push("  hint: `nixbox recover` repairs the VM or clears away what is left of it".to_owned());
        }
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
