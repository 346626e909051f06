//! Where the network of a VM is, and what follows from that: its slots, and how its guest is reached. May use `guest`, `host`,
//! `simulator` and `workspace`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::guest::channel::{self, Dial};
use crate::guest::ssh_guest;
use crate::host::network::{NamespaceError, NetworkNamespace, NetworkPlace, namespace};
use crate::host::slots::{self, HostSlots, SlotError};
use crate::host::sudo;
use crate::host::systemd::scope::ScopeManager;
use crate::simulator;
use crate::workspace::Workspace;
use crate::world::capability::Capability;
use crate::world::{NamespaceKeeping, Slot, WorkspaceId};

/// Why it cannot be told where the network of a VM is.
#[allow(missing_docs, reason = "the messages of the sources say it")]
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("cannot tell where the network of the VM is")]
    Slots(#[from] SlotError),
    #[error("cannot tell where the network of the VM is")]
    Namespace(#[from] NamespaceError),
}

/// Returns the function that computes the address of a guest's SSH server from the VM's slot.
pub(super) fn address(version: Option<&'static Capability>, runtime: &Path) -> Arc<ssh_guest::Address> {
    let runtime = runtime.to_owned();
    match version {
        Some(_) => Arc::new(move |slot| simulator::network::address(&runtime, slot)),
        None => Arc::new(ssh_guest::address),
    }
}

/// Returns the function that connects to the guest.
pub(super) fn dial(place: &NetworkPlace, runtime: &Path) -> Arc<Dial> {
    match place.clone() {
        NetworkPlace::Host => Arc::new(channel::dial_here),
        NetworkPlace::Namespace(namespace) => {
            let runtime = runtime.to_owned();
            Arc::new(move |address| {
                let (namespace, runtime) = (namespace.clone(), runtime.clone());
                Box::pin(async move { namespace.connect(&runtime, address).await })
            })
        }
    }
}

/// The namespace that a workspace's VM has, or is to have: the one that was built, where that is known. Otherwise one with a
/// name if there is one, or if nixbox has root's rights and the VM has none without a name.
pub(in crate::cli) fn namespace(
    workspace: WorkspaceId,
    scopes: Option<ScopeManager>,
    built: Option<NamespaceKeeping>,
) -> Result<NetworkNamespace, NamespaceError> {
    let named = NetworkNamespace::new(Path::new(namespace::DIRECTORY), workspace);
    let of_user = NetworkNamespace::of_user(workspace, scopes);
    let is_named = match built {
        Some(keeping) => keeping == NamespaceKeeping::Name,
        None => named.exists()? || (sudo::may_make_namespaces() && !of_user.exists()?),
    };
    Ok(if is_named { named } else { of_user })
}

/// How the network namespace of a VM is kept that is built at this place.
pub(in crate::cli) fn keeping(place: &NetworkPlace) -> Option<NamespaceKeeping> {
    match place {
        NetworkPlace::Host => None,
        NetworkPlace::Namespace(namespace) if namespace.is_of_user() => Some(NamespaceKeeping::Holder),
        NetworkPlace::Namespace(_) => Some(NamespaceKeeping::Name),
    }
}

/// Finds out where the network of the running VM is. Without a running VM, decides where the network of the next VM will be. A
/// VM that holds a slot of the host has its network among those of the host: an earlier version of nixbox has built it there,
/// and its built record does not say how a namespace is kept.
pub(super) fn network_place(
    workspace: &Workspace,
    version: Option<&'static Capability>,
    scopes: Option<ScopeManager>,
    built: Option<NamespaceKeeping>,
) -> Result<NetworkPlace, PlaceError> {
    if version.is_some() {
        return Ok(NetworkPlace::Host);
    }
    let namespace = namespace(workspace.id(), scopes, built)?;
    if built.is_none() && !namespace.exists()? {
        let on_host = HostSlots::new(slots::DIRECTORY, workspace.id(), workspace.root()).held_slot()?;
        if on_host.is_some() {
            return Ok(NetworkPlace::Host);
        }
    }
    Ok(NetworkPlace::Namespace(namespace))
}

/// The slots that the VM can have. Slots in the network of the host belong to the whole host, because each has a TAP there. A
/// VM in a network of its own, and a simulated one, has slots of its own.
pub(super) fn slots(
    workspace: &Workspace,
    version: Option<&'static Capability>,
    place: &NetworkPlace,
    runtime: &Path,
) -> HostSlots {
    let slots = |directory: PathBuf| HostSlots::new(directory, workspace.id(), workspace.root());
    let own = || slots(runtime.join("slots")).preferring(Slot::OWN_NETWORK);
    match (version, place) {
        (None, NetworkPlace::Host) => slots(slots::DIRECTORY.into()),
        // The network of a simulated VM is as much its own as a namespace is.
        (Some(_), _) | (None, NetworkPlace::Namespace(_)) => own(),
    }
}
