//! `nixbox network`: brings the network of a VM that runs to the configuration of today, and shows what its guest was refused.
//!
//! # Reload
//!
//! The parts of a network are compared with the policy that they were made for whenever nixbox looks at them, and a part that is
//! for another policy is repaired like one that somebody has changed (`host/network/repair.rs`). So a reload is a repair with
//! the policy of today, after which the built record of the VM is written with that policy. The record is the commit point: if
//! nixbox is killed before, or a part cannot be made, the next command that changes something repairs the network to the policy
//! of the record, which is the former one.

use super::command::{LockedWorkspace, OpenWorkspace, OutputOptions};
use super::consent::TrustOption;
use super::error::{CliError, Outcome};
use super::preflight::{self, Preflight};
use super::{WorkspaceLocation, success};
use crate::operations::Refusal;

mod log;

/// Change what the guest of the running VM may reach, or show what it was refused
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox network reload")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: NetworkCommand,
}

#[derive(Debug, clap::Subcommand)]
enum NetworkCommand {
    /// Apply the network table of the configuration to the running VM: mode, domains, ports and host-networks
    ///
    /// There is no moment without rules: one table takes the place of the other. In filtered mode the guest has to look up a
    /// name again before it reaches an address, so connections may stand still until it does. A guest that was booted with mode
    /// "off" was given neither a router nor a name server, and learns both when it asks for its address again (DHCP). The key
    /// network.uplink waits for the next VM.
    #[command(after_help = "Example: nixbox network reload && nixbox run 'curl -I https://new.example.com'")]
    Reload {
        #[command(flatten)]
        trust: TrustOption,
        #[command(flatten)]
        output: OutputOptions,
    },
    Log(log::Arguments),
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    match &arguments.command {
        NetworkCommand::Reload { trust, output } => reload(location, *trust, *output),
        NetworkCommand::Log(arguments) => log::run(location, arguments),
    }
}

fn reload(location: &WorkspaceLocation, trust: TrustOption, output: OutputOptions) -> Outcome {
    let (open, _) = OpenWorkspace::of_running_vm(location)?;
    let (built, today) = (open.record?.ok_or(Refusal::NoRecord)?.spec.network, open.config?.network);
    if built.uplink != today.uplink {
        return Err(CliError::UplinkEdited.into());
    }
    let workspace =
        LockedWorkspace::open_trusting(location, "network reload", Preflight::NetworkReload, output, trust)?;
    if !workspace.wiring.simulated {
        preflight::check_network_rights(&workspace.wiring)?;
    }
    let faults = workspace.run(async |session| {
        // The world has the policy of today, so this repairs the network to it.
        let vm = session.running_vm().await?;
        let looked = session.world.network.faults(vm.machine.slot).await;
        let faults = looked.map_err(CliError::NetworkNotReloaded)?;
        if faults.is_empty() {
            session.world.records.write(vm.machine.memory).await.map_err(CliError::NetworkNotReloaded)?;
        }
        Ok(faults)
    })?;
    if !faults.is_empty() {
        return Err(CliError::NetworkPartsNotReloaded(faults).into());
    }
    let (word, sentence) = match built == today {
        true => ("already", "the network of the VM is as the configuration says"),
        false => ("done", "the network of the VM is now as the configuration says"),
    };
    output.report(&serde_json::json!({ "result": word }), sentence)?;
    success()
}
