//! The checks that a command makes before it starts a VM.
//!
//! They find what can be known before the operation begins. A check that fails says what to do, and nothing was changed.

use std::path::Path;

use super::error::{self, CliError, Problem};
use super::wiring::{self, Wiring};
use crate::config::Config;
use crate::host::spawn::{self, Invoker};
use crate::host::sudo;
use crate::world::Presence;

/// Which checks a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preflight {
    /// The command starts no VM.
    None,
    /// The command boots a VM if none runs, from the files that the configuration names.
    Boot,
    /// The command restores a VM, if it is asked to in the place of a running one. It boots from no file.
    Restore,
}

impl Preflight {
    /// The checks that need no more than the configuration. `starts_vm`: no VM runs, so that the command starts one.
    pub(super) fn check_config(self, config: &Config, starts_vm: bool) -> Result<(), Problem> {
        match self {
            Self::Boot if starts_vm => {
                config.check_files()?;
                check_kvm(config)
            }
            Self::Restore => check_kvm(config),
            Self::None | Self::Boot => Ok(()),
        }
    }
}

/// A simulated VM needs no KVM.
fn check_kvm(config: &Config) -> Result<(), Problem> {
    if wiring::simulated(config).is_none() {
        open_kvm()?;
    }
    Ok(())
}

/// Why this host's KVM cannot be used, on one line. Whether a guest boots on a KVM that opens is known only after a boot.
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

/// The checks that ask the host, before a VM is started: programs, capabilities, a free slot and its TAP's name.
pub(super) async fn check_host(wiring: &Wiring) -> Result<(), Problem> {
    let world = &wiring.world;
    world.vmm.ability(None).await.map_err(CliError::Vmm)?;
    if wiring.simulated {
        return Ok(());
    }
    if world.shares.wanted() {
        Invoker::detect()
            .and_then(|user| spawn::find_program_for(&user, "virtiofsd", "NIXBOX_VIRTIOFSD"))
            .map_err(CliError::Virtiofsd)?;
    }
    let may = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(sudo::NEEDED));
    if !may {
        return Err(CliError::Capabilities.into());
    }
    let slot = match world.slots.held().await.map_err(CliError::Slots)? {
        Some(held) => held,
        None => {
            let free = world.slots.free().await.map_err(CliError::Slots)?;
            *free.first().ok_or(CliError::NoSlot)?
        }
    };
    let tap = slot.tap();
    let exists = Path::new("/sys/class/net").join(&tap).exists();
    if exists && world.network.find(slot).await.map_err(CliError::Network)? == Presence::Absent {
        return Err(CliError::ForeignTap(tap).into());
    }
    Ok(())
}
