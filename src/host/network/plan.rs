//! What follows from a slot and a workspace: names, addresses, and the marks of processes.

use std::net::Ipv4Addr;

use super::world_route;
use crate::host::process::{DaemonRole, ProcessMark};
use crate::world::{Generation, Slot, WorkspaceId};

/// What the network of a slot is called, and what it is made of.
pub(super) struct NetworkPlan {
    pub(super) slot: Slot,
    pub(super) workspace: WorkspaceId,
    /// The user who may attach to the TAP.
    pub(super) owner: u32,
    pub(super) tap: String,
    pub(super) gateway: Ipv4Addr,
    pub(super) guest: Ipv4Addr,
    pub(super) mac: String,
    pub(super) table: String,
    /// How large a packet of the VM's devices may be.
    pub(super) mtu: u32,
}

impl NetworkPlan {
    pub(super) fn new(slot: Slot, workspace: WorkspaceId, owner: u32) -> Self {
        let tap = slot.tap();
        Self {
            slot,
            workspace,
            owner,
            gateway: slot.gateway(),
            guest: slot.guest(),
            mac: slot.mac(),
            table: format!("nixbox_{tap}_{workspace}"),
            tap,
            mtu: world_route::ETHERNET,
        }
    }

    /// The table on the host that belongs to the uplink.
    pub(super) fn uplink_table(&self) -> String {
        format!("nixbox_uplink_{}", self.workspace)
    }

    /// The alias of the VM's devices, which says whose they are.
    pub(super) fn alias(&self, generation: impl std::fmt::Display) -> String {
        format!("nixbox {} {generation}", self.workspace)
    }

    /// The mark of dnsmasq; without a generation it matches a dnsmasq of any.
    pub(super) fn dhcp_mark(&self, generation: Option<Generation>) -> ProcessMark {
        ProcessMark { workspace: self.workspace, generation, role: DaemonRole::dhcp(self.slot) }
    }

    /// The mark of the keeper; without a generation it matches a keeper of any.
    pub(super) fn keeper_mark(&self, generation: Option<Generation>) -> ProcessMark {
        ProcessMark { workspace: self.workspace, generation, role: DaemonRole::keeper() }
    }

    /// The mark of the follower; without a generation it matches a follower of any.
    pub(super) fn follower_mark(&self, generation: Option<Generation>) -> ProcessMark {
        ProcessMark { workspace: self.workspace, generation, role: DaemonRole::follower() }
    }

    /// The mark of the process that has pasta as its child; without a generation it matches one of any.
    pub(super) fn uplink_mark(&self, generation: Option<Generation>) -> ProcessMark {
        ProcessMark { workspace: self.workspace, generation, role: DaemonRole::uplink() }
    }

    /// The mark of the holder of the namespaces; without a generation it matches a holder of any.
    pub(super) fn holder_mark(&self, generation: Option<Generation>) -> ProcessMark {
        ProcessMark { workspace: self.workspace, generation, role: DaemonRole::holder() }
    }

    /// The marks of all processes that stay with the network, of any generation.
    #[cfg(test)]
    pub(super) fn daemon_marks(&self) -> [ProcessMark; 5] {
        [
            self.dhcp_mark(None),
            self.keeper_mark(None),
            self.follower_mark(None),
            self.uplink_mark(None),
            self.holder_mark(None),
        ]
    }

    /// The mark of an nft that changes the table. It has no generation, as an nft does not belong to a VM.
    pub(super) fn firewall_mark(&self) -> ProcessMark {
        ProcessMark { workspace: self.workspace, generation: None, role: DaemonRole::firewall(self.slot) }
    }
}
