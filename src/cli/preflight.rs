//! What `up` can know before it begins anything: each check has an error that says what to do, and changes nothing.

use std::path::Path;

use super::error::{ExitKind, Problem};
use super::wiring::{self, Wiring};
use crate::config::Config;
use crate::engine::transition::Failure;
use crate::host::spawn::{self, Invoker, SpawnError};
use crate::host::sudo;
use crate::world::{Presence, Slot};

#[derive(Debug, thiserror::Error)]
enum PreflightError {
    #[error("this host has no KVM: there is no /dev/kvm")]
    NoKvm,
    #[error("/dev/kvm cannot be opened")]
    Kvm(#[source] std::io::Error),
    #[error("Cloud Hypervisor cannot be used")]
    Vmm(#[source] Failure),
    #[error("there are mounts, and virtiofsd cannot be used")]
    Virtiofsd(#[source] SpawnError),
    #[error("nixbox may not make the VM's network")]
    Capabilities,
    #[error("the slots of this host cannot be looked at")]
    Slots(#[source] Failure),
    #[error("all {} slots of this host are taken: bring a VM of another workspace down first", Slot::COUNT)]
    NoSlot,
    #[error("the network of this host cannot be looked at")]
    Network(#[source] Failure),
    #[error(
        "there is a network device {0} that is not nixbox's, where the VM's would be: remove it, or wait for it to go"
    )]
    ForeignTap(String),
}

fn failed(error: PreflightError) -> Problem {
    Problem::new(ExitKind::Failed, error)
}

/// What needs no more than the configuration.
pub(super) fn files(config: &Config) -> Result<(), Problem> {
    config.check_files()?;
    kvm(config)
}

/// Whether VMs can be run at all, unless they are simulated.
pub(super) fn kvm(config: &Config) -> Result<(), Problem> {
    if wiring::simulated(config).is_some() {
        return Ok(());
    }
    open_kvm().map_err(|error| {
        let hint = match error {
            PreflightError::NoKvm => "enable virtualization in the firmware, or nested virtualization in the host that this one runs on; then `modprobe kvm_intel` or `kvm_amd`",
            _ => "add your user to the group that owns /dev/kvm, and log in again",
        };
        failed(error).with(hint)
    })
}

/// Whether this host has no KVM, or one that cannot be opened; nothing more can be known of it without a guest.
pub(super) fn kvm_problem() -> Option<String> {
    open_kvm().err().map(|error| match error {
        PreflightError::Kvm(source) => format!("/dev/kvm cannot be opened: {source}"),
        error => error.to_string(),
    })
}

fn open_kvm() -> Result<(), PreflightError> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    match opened {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(PreflightError::NoKvm),
        Err(error) => Err(PreflightError::Kvm(error)),
    }
}

/// What asks the host.
pub(super) async fn host(assembly: &Wiring) -> Result<(), Problem> {
    let world = &assembly.world;
    world
        .vmm
        .ability(None)
        .await
        .map_err(|error| failed(PreflightError::Vmm(error)).with("`nixbox doctor` says what is needed"))?;
    if assembly.simulated {
        return Ok(());
    }
    if world.shares.wanted() {
        Invoker::detect()
            .and_then(|user| spawn::find_program_for(&user, "virtiofsd", "NIXBOX_VIRTIOFSD"))
            .map_err(|error| failed(PreflightError::Virtiofsd(error)))?;
    }
    let may = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(sudo::NEEDED));
    if !may {
        return Err(failed(PreflightError::Capabilities)
            .with("run it as root or through sudo, or give it the capabilities once: `nixbox doctor` prints the line"));
    }
    let slots = |failure| failed(PreflightError::Slots(failure));
    let slot = match world.slots.held().await.map_err(slots)? {
        Some(held) => held,
        None => {
            let free = world.slots.free().await.map_err(slots)?;
            *free.first().ok_or_else(|| failed(PreflightError::NoSlot))?
        }
    };
    let tap = format!("vm{slot}");
    let there = Path::new("/sys/class/net").join(&tap).exists();
    let network = |failure| failed(PreflightError::Network(failure));
    if there && world.network.find(slot).await.map_err(network)? == Presence::Absent {
        return Err(failed(PreflightError::ForeignTap(tap)));
    }
    Ok(())
}
