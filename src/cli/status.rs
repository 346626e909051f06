//! `nixbox status`: reads only, without the lock.

use std::sync::Arc;

use serde::Serialize;

use super::error::{self, ExitKind, Outcome, Problem};
use super::{WorkspaceLocation, done, journal_state, session, wiring};
use crate::engine::transition::Failure;
use crate::files::copy::Silent;
use crate::host::clock::utc;
use crate::operations::WorkspaceState;
use crate::simulator;
use crate::workspace::LockHolder;
use crate::world::VmmState;

/// Show whether this workspace's VM runs
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox status --json | jq -r .state")]
pub(super) struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct StatusReport {
    name: String,
    workspace: String,
    id: String,
    /// What runs it: `cloud-hypervisor`, or `simulator`, and then no VM is one.
    vmm: &'static str,
    /// `down`, `running`, `paused`, `stopped`, `silent`: its VMM does not answer right now, or `lost`: a VM that should be
    /// there and is not.
    state: &'static str,
    vm: Option<VmReport>,
    /// The operation that has not ended: under way if there is a `holder`, left half done otherwise.
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
}

#[derive(Debug, Serialize)]
struct OpenSummary {
    operation: &'static str,
    generation: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot ask the VMM how the VM is")]
struct Unknown(#[source] Failure);

fn look(place: &WorkspaceLocation) -> Result<StatusReport, Problem> {
    let workspace = place.workspace()?;
    let config = WorkspaceLocation::config(&workspace)?;
    let peek = journal_state::peek(&workspace)?;
    let holder = workspace.holder()?;
    let simulated = wiring::simulated(&config).is_some();
    let (mut state, mut vm) = ("down", None);
    if let WorkspaceState::Up(up) = peek.standing {
        let assembly = wiring::assemble(&workspace, &config, Arc::new(Silent), session::complain())?;
        let machine = up.machine;
        let found = session::block_on(async {
            let found = session::glance(&assembly, machine.vmm).await;
            found.map_err(|failure| Problem::new(ExitKind::Failed, Unknown(failure)))
        })?;
        state = match found {
            VmmState::Running if !up.condemned => "running",
            VmmState::Paused => "paused",
            VmmState::Stopped | VmmState::Empty => "stopped",
            VmmState::Silent => "silent",
            _ => "lost",
        };
        vm = Some(VmReport {
            generation: machine.vmm.0,
            slot: machine.slot.number(),
            address: if simulated {
                simulator::network::address(&assembly.runtime, machine.slot).to_string()
            } else {
                machine.slot.guest().to_string()
            },
            tap: machine.slot.tap(),
            serial_log: assembly.vmm.serial_log(machine.vmm).display().to_string(),
        });
    }
    Ok(StatusReport {
        name: config.name.as_str().to_owned(),
        workspace: workspace.root().display().to_string(),
        id: workspace.id().to_string(),
        vmm: if simulated { "simulator" } else { "cloud-hypervisor" },
        state,
        vm,
        operation: peek
            .open
            .map(|(operation, generation)| OpenSummary { operation, generation: generation.0 }),
        holder,
    })
}

fn text(status: &StatusReport) -> String {
    let mut lines = vec![format!("{} ({}): {}", status.name, status.workspace, status.state)];
    if status.vmm == "simulator" {
        lines.push("  simulated: no VM runs here, and this is no sandbox".to_owned());
    }
    if let Some(vm) = &status.vm {
        lines.push(format!(
            "  slot {}, address {}, TAP {}, generation {}",
            vm.slot, vm.address, vm.tap, vm.generation
        ));
        lines.push(format!("  serial console: {}", vm.serial_log));
        if status.state != "running" {
            lines.push("  hint: `nixbox recover` puts right or clears away what is left".to_owned());
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
            "  `{}` was left half done: `nixbox recover` finishes it or takes it back",
            open.operation
        )),
        (None, None) => {}
    }
    lines.join("\n")
}

pub(super) fn run(place: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let status = look(place)?;
    if arguments.json {
        error::print_json(&status)?;
    } else {
        error::print(&text(&status))?;
    }
    done()
}
