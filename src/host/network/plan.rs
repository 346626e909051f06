//! What follows from a slot and a workspace: names, addresses, and the marks of processes.

use std::net::Ipv4Addr;

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
        }
    }

    /// The mark of dnsmasq; without a generation it matches a dnsmasq of any.
    pub(super) fn dhcp_mark(&self, generation: Option<Generation>) -> ProcessMark {
        ProcessMark { workspace: self.workspace, generation, role: DaemonRole::dhcp(self.slot) }
    }

    /// The mark of an nft that changes the table. It has no generation, as an nft does not belong to a VM.
    pub(super) fn firewall_mark(&self) -> ProcessMark {
        ProcessMark { workspace: self.workspace, generation: None, role: DaemonRole::firewall(self.slot) }
    }
}
