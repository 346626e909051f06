//! What a VM consists of on the host: its VMM process, its share daemons, its network and its RAM file.

use super::guest::FakeRam;
use crate::world::{Machine, NetworkFault, Presence, SnapshotId, VmmState, WorkspaceId};

/// A VMM process, or what is left of one.
#[derive(Debug, Clone, Hash)]
pub(super) struct VmmProcess {
    /// `VmmState::Gone` if the process has ended and only its socket and its record are there.
    pub(super) state: VmmState,
    /// The major version of its program. Another one may have been installed since.
    pub(super) version: u32,
    pub(super) machine: Option<Machine>,
    pub(super) shares: Presence,
    /// Whether the shares die when the VM is resumed, because `vm.snapshot` was called.
    pub(super) shares_spoilt: bool,
    /// Whether RAM, disk and devices were put together from different instants.
    pub(super) mangled: bool,
    /// The snapshot that `vm.snapshot` is being written for.
    pub(super) saving: Option<SnapshotId>,
    /// Whether its guest is shutting down. It does so even if the nixbox that asked for it has died.
    pub(super) going: bool,
    /// Whether it lives and never answers.
    pub(super) hangs: bool,
}

/// A set of share daemons, or what is left of one.
#[derive(Debug, Clone, Hash)]
pub(super) struct ShareDaemons {
    pub(super) listening: Presence,
    pub(super) alive: bool,
}

impl VmmProcess {
    pub(super) fn empty(version: u32) -> Self {
        Self {
            state: VmmState::Empty,
            version,
            machine: None,
            shares: Presence::Absent,
            shares_spoilt: false,
            mangled: false,
            saving: None,
            going: false,
            hangs: false,
        }
    }
}

impl ShareDaemons {
    pub(super) fn serve(&self) -> bool {
        self.alive && self.listening == Presence::Whole
    }
}

/// TAP, table, uplink, keeper and DHCP of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NetworkParts {
    pub(super) owner: WorkspaceId,
    pub(super) tap: bool,
    pub(super) table: bool,
    pub(super) uplink: bool,
    pub(super) keeper: bool,
    pub(super) dhcp: bool,
}

impl NetworkParts {
    pub(super) fn all(owner: WorkspaceId) -> Self {
        Self { owner, tap: true, table: true, uplink: true, keeper: true, dhcp: true }
    }

    pub(super) fn none(owner: WorkspaceId) -> Self {
        Self { owner, tap: false, table: false, uplink: false, keeper: false, dhcp: false }
    }

    pub(super) fn presence(&self) -> Presence {
        if *self == Self::all(self.owner) {
            Presence::Whole
        } else if *self == Self::none(self.owner) {
            Presence::Absent
        } else {
            Presence::Partial
        }
    }

    /// Each part with what is wrong with a network that lacks it.
    fn parts(&mut self) -> [(NetworkFault, &mut bool); 5] {
        [
            (NetworkFault::Tap, &mut self.tap),
            (NetworkFault::GuestFirewall, &mut self.table),
            (NetworkFault::Uplink, &mut self.uplink),
            (NetworkFault::Keeper, &mut self.keeper),
            (NetworkFault::Dns, &mut self.dhcp),
        ]
    }

    pub(super) fn faults(mut self) -> Vec<NetworkFault> {
        self.parts().into_iter().filter(|(_, there)| !**there).map(|(fault, _)| fault).collect()
    }

    /// Takes away the part that this fault is about.
    pub(super) fn suffer(&mut self, fault: NetworkFault) {
        self.parts().into_iter().filter(|(of, _)| *of == fault).for_each(|(_, there)| *there = false);
    }
}

/// A RAM file. It lies in memory, so that it outlives processes but no power cut.
#[derive(Debug, Clone, Hash)]
pub(super) struct RamFile {
    pub(super) ram: Option<FakeRam>,
    pub(super) presence: Presence,
}
