//! The checks that a command makes before it starts a VM.
//!
//! The checks find problems that can be known before the operation begins. The error of a failed check says what to do;
//! a check changes nothing.

use std::path::Path;

use super::error::{self, CliError, Problem};
use super::wiring::{self, Wiring};
use crate::config::Config;
use crate::host::network::{self, NetworkPlace};
use crate::host::shares::daemon_program;
use crate::host::spawn::Invoker;
use crate::host::sudo;
use crate::store::withheld::{self, WithheldError};
use crate::workspace::Workspace;
use crate::world::{Failure, Generation, NetworkMode, Presence, Slot};

/// The set of checks that a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preflight {
    /// The command starts no VM.
    None,
    /// The command starts no VM, and relies on the configuration of the VM that runs.
    Snapshot,
    /// The command starts no VM, and the guest of the VM that runs gets its credentials, also if they are withheld.
    GiveCredentials,
    /// The command starts no VM, and the guest of the VM that runs keeps no credentials.
    WithholdCredentials,
    /// The command starts no VM, and brings the network of the VM that runs to the configuration.
    NetworkReload,
    /// The command ends a VM. It does so with a configuration that cannot be used, and without keys and credentials.
    EndVm,
    /// The command boots a VM if none runs, from the files that the configuration names.
    Boot,
    /// The command restores a VM, and replaces a running VM if it was asked to. It boots from no file.
    Restore,
}

impl Preflight {
    /// Makes the checks that need only the configuration. `starts_vm` is true if no VM runs, so that the command starts
    /// one.
    pub(super) fn check_config(self, config: &Config, starts_vm: bool) -> Result<(), Problem> {
        match self {
            Self::Boot if starts_vm => {
                config.check_files()?;
                check_kvm(config)
            }
            Self::Restore => check_kvm(config),
            Self::None
            | Self::Snapshot
            | Self::GiveCredentials
            | Self::WithholdCredentials
            | Self::NetworkReload
            | Self::EndVm
            | Self::Boot => Ok(()),
        }
    }

    /// Whether the guest of the VM with this RAM is given no credentials by the command.
    pub(super) fn withholds(self, workspace: &Workspace, vm: Generation) -> Result<bool, WithheldError> {
        match self {
            Self::GiveCredentials => Ok(false),
            // A VM that is ended is given none.
            Self::WithholdCredentials | Self::EndVm => Ok(true),
            Self::None | Self::Snapshot | Self::NetworkReload | Self::Boot | Self::Restore => {
                withheld::is_withheld(workspace.state(), vm)
            }
        }
    }

    /// Whether the command may start a VM.
    pub(super) fn starts_vm(self) -> bool {
        matches!(self, Self::Boot | Self::Restore)
    }
}

/// Checks that KVM can be used, unless the VM is simulated.
fn check_kvm(config: &Config) -> Result<(), Problem> {
    if wiring::simulated(config.vmm).is_none() {
        open_kvm()?;
    }
    Ok(())
}

/// The reason why this host's KVM cannot be used, on one line. Even if KVM can be opened, only a boot shows whether a
/// guest boots on it.
pub(super) fn kvm_problem() -> Option<String> {
    open_kvm().err().map(|error| error::chain(&error))
}

fn open_kvm() -> Result<(), CliError> {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(CliError::NoKvm),
        Err(error) => Err(CliError::Kvm(error)),
    }
}

/// Makes the checks that ask the host before a VM is started: programs, capabilities, a free slot and the name of its
/// TAP.
pub(super) async fn check_host(wiring: &Wiring) -> Result<(), Problem> {
    let world = &wiring.world;
    world.vmm.ability(None).await.map_err(CliError::Vmm)?;
    if wiring.simulated {
        return Ok(());
    }
    if world.shares.wanted() {
        let user = Invoker::detect().map_err(|error| CliError::Virtiofsd(error.into()))?;
        daemon_program::find(&user).await.map_err(CliError::Virtiofsd)?;
    }
    let mode = wiring.spec.network.mode;
    if matches!(&wiring.place, NetworkPlace::Namespace(namespace) if namespace.is_of_user()) {
        return check_user(mode).await;
    }
    check_network_rights(wiring)?;
    if mode != NetworkMode::Off && network::forwards().is_ok_and(|forwards| !forwards) {
        error::print_stderr(
            "nixbox: this host does not forward IPv4 packets yet; that is switched on for the VM now, and stays on\n",
        );
    }
    if mode != NetworkMode::Off {
        tell_of_firewalls(wiring).await;
    }
    let slot = match world.slots.held().await.map_err(CliError::Slots)? {
        Some(held) => held,
        None => {
            let free = world.slots.free().await.map_err(CliError::Slots)?;
            *free.first().ok_or(CliError::NoSlot)?
        }
    };
    let tap = slot.tap();
    if let NetworkPlace::Namespace(namespace) = &wiring.place {
        return namespace.check().await.map_err(|error| CliError::Network(Failure::from(error)).into());
    }
    let exists = Path::new("/sys/class/net").join(&tap).exists();
    if exists && world.network.find(slot).await.map_err(CliError::Network)? == Presence::Absent {
        return Err(CliError::ForeignTap(tap).into());
    }
    Ok(())
}

/// Checks that this process may change the network of the VM. Without the right it cannot even see whether the rules are as
/// they should be.
pub(super) fn check_network_rights(wiring: &Wiring) -> Result<(), Problem> {
    match &wiring.place {
        NetworkPlace::Namespace(namespace) if !namespace.is_of_user() && !namespace.may_enter() => {
            let shown = namespace.shown().map_err(|error| CliError::Network(Failure::from(error)))?;
            Err(CliError::ForeignRights(shown.unwrap_or_default()).into())
        }
        NetworkPlace::Namespace(_) => Ok(()),
        NetworkPlace::Host => {
            let sets = rustix::thread::capabilities(None);
            match sets.is_ok_and(|sets| sets.effective.contains(sudo::NEEDED)) {
                true => Ok(()),
                false => Err(CliError::Capabilities.into()),
            }
        }
    }
}

/// Says which other firewall drops the packets of the VM. That is no reason not to start it: nixbox reaches the guest
/// nevertheless, and what drops may be wanted.
async fn tell_of_firewalls(wiring: &Wiring) {
    let slot = match &wiring.place {
        NetworkPlace::Namespace(_) => None,
        NetworkPlace::Host => Slot::all().next(),
    };
    match network::find_obstacle(&wiring.spec.network, slot).await {
        Ok(None) => {}
        Ok(Some(obstacle)) => error::print_stderr(&format!("nixbox: {obstacle}\n")),
        Err(problem) => error::print_stderr(&format!("nixbox: {}\n", error::chain(&problem))),
    }
}

/// Checks that an ordinary user can have the network of a VM.
async fn check_user(mode: NetworkMode) -> Result<(), Problem> {
    network::rehearse().await.map_err(CliError::UserNamespaces)?;
    for name in ["nft", "dnsmasq"] {
        network::program_path(name).map_err(CliError::NetworkProgram)?;
    }
    if mode != NetworkMode::Off {
        network::pasta_path().map_err(CliError::Pasta)?;
    }
    Ok(())
}
