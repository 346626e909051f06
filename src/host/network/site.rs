//! Where the parts of a VM's network are made: the namespace of the VM or the host's network, and the host beside a namespace.

use std::sync::Arc;

use serde_json::Value;

use super::firewall;
use super::inhabitant::Inhabitant;
use super::legacy::LegacyChains;
use super::link::{LinkError, Netlink};
use super::namespace::{Inside, NamespaceError, NetworkNamespace};
use super::nft::{Nft, RulesError};
use super::offered::{OfferedChain, OfferedChains};
use super::plan::NetworkPlan;
use super::tables::{FoundRule, Tables};
use super::tool::Entrance;
use super::uplink::{self, Uplink, UplinkPlan};
use crate::host::spawn::entrance::NamespaceEntrance;
use crate::world::{Generation, UplinkPool};

/// Where the network of a VM is.
#[derive(Debug, Clone)]
pub enum NetworkPlace {
    /// In the network of the host: a VM that an earlier nixbox has built there. The TAP is a device of the host.
    Host,
    /// In a namespace of its own.
    Namespace(NetworkNamespace),
}

impl NetworkPlace {
    /// What a program enters that is to run in the namespace, or `None`. The namespace is made if it is not there.
    ///
    /// # Errors
    /// [`NamespaceError`]; most often a permission is missing, or the name is somebody else's.
    pub async fn entrance(
        &self,
        generation: Generation,
    ) -> Result<Option<Arc<NamespaceEntrance>>, NamespaceError> {
        match self {
            Self::Host => Ok(None),
            Self::Namespace(namespace) => Ok(Some(namespace.entrance(generation).await?)),
        }
    }

    /// The namespace that an ordinary user makes, if this is one.
    pub(super) fn of_user(&self) -> Option<&NetworkNamespace> {
        match self {
            Self::Namespace(namespace) if namespace.is_of_user() => Some(namespace),
            Self::Host | Self::Namespace(_) => None,
        }
    }
}

/// The network in which a VM's TAP is.
pub(super) struct Site {
    pub(super) netlink: Netlink,
    pub(super) nft: Nft,
    /// The namespace; `None` if the TAP is in the host's network.
    pub(super) namespace: Option<Arc<NamespaceEntrance>>,
}

impl Site {
    /// The host's network.
    pub(super) fn host(plan: &NetworkPlan) -> Result<Self, LinkError> {
        let tables = Tables::here().map_err(LinkError::Connect)?;
        let nft = Nft { tables, inside: None, mark: plan.firewall_mark() };
        Ok(Self { netlink: Netlink::here()?, nft, namespace: None })
    }

    /// A namespace.
    pub(super) fn of(plan: &NetworkPlan, inside: Inside) -> Self {
        let Inside { entrance, netlink, tables } = inside;
        let entered = Some(Entrance::Entered(Arc::clone(&entrance)));
        let nft = Nft { tables, inside: entered, mark: plan.firewall_mark() };
        Self { netlink, nft, namespace: Some(entrance) }
    }

    /// The same namespace, with an nft that a thread starts which is in it.
    pub(super) fn inhabited_by(self, inhabitant: Inhabitant) -> Self {
        let inside = Some(Entrance::Inhabited(Arc::new(inhabitant)));
        Self { nft: Nft { inside, ..self.nft }, ..self }
    }

    /// How dnsmasq comes into the namespace. It is `None` if the network is that of the host.
    pub(super) fn entrance(&self) -> Option<Entrance> {
        self.namespace.clone().map(Entrance::Entered)
    }

    /// The uplink between this namespace and the host.
    pub(super) fn uplink<'a>(
        &'a self,
        host: &'a Self,
        plan: &'a NetworkPlan,
        pool: &'a UplinkPool,
    ) -> Uplink<'a> {
        Uplink { plan, pool, host: &host.netlink, inside: &self.netlink }
    }

    /// The chains of nftables that other firewalls offer.
    fn offered(&self, plan: &NetworkPlan) -> OfferedChains<'_> {
        OfferedChains { nft: &self.nft, workspace: plan.workspace }
    }

    /// The chains of the legacy iptables that other firewalls offer.
    fn legacy(&self, plan: &NetworkPlan) -> LegacyChains<'_> {
        LegacyChains { workspace: plan.workspace, mark: &self.nft.mark }
    }

    /// What a table of this host is recognized by, and the rules in the chains of other firewalls; `None` if there is neither.
    pub(super) async fn list(&self, plan: &NetworkPlan, table: &str) -> Result<Option<Value>, RulesError> {
        let table = self.nft.tables.digest(table)?.map(|found| found.to_string());
        let (listing, rules) = self.list_offered(plan).await?;
        Ok((table.is_some() || rules).then(|| serde_json::json!({ "table": table, "offered": listing })))
    }

    /// The chains of other firewalls with the rules of this workspace in them, and whether there is such a rule.
    pub(super) async fn list_offered(&self, plan: &NetworkPlan) -> Result<(Value, bool), RulesError> {
        let (offered, legacy) = (self.offered(plan).list()?, self.legacy(plan).list().await?);
        let rules = !legacy.1.is_empty() || offered.iter().any(|(_, rules)| !rules.is_empty());
        let named = |(chain, rules): (OfferedChain, Vec<FoundRule>)| {
            (chain.name, rules.iter().map(|rule| rule.digest.to_string()).collect::<Vec<_>>())
        };
        let offered: Vec<_> = offered.into_iter().map(named).collect();
        Ok((serde_json::json!({ "nftables": offered, "legacy": legacy }), rules))
    }

    /// Lets other firewalls pass on what comes from this device of the host or goes to it. A firewall that starts meanwhile is
    /// noticed at the next call.
    pub(super) async fn pass_firewalls(&self, plan: &NetworkPlan, device: &str) -> Result<(), RulesError> {
        self.offered(plan).apply(device).await?;
        Ok(self.legacy(plan).apply(device).await?)
    }

    /// Makes or replaces the table of an uplink, on the host.
    pub(super) async fn make_uplink_table(
        &self,
        plan: &NetworkPlan,
        uplink: &UplinkPlan,
    ) -> Result<(), RulesError> {
        self.nft.change(&uplink.table(&plan.uplink_table()).batch).await?;
        self.pass_firewalls(plan, &uplink.device).await
    }

    /// Removes a table and the rules in the chains of other firewalls.
    pub(super) async fn remove_rules(&self, plan: &NetworkPlan, table: &str) -> Result<(), RulesError> {
        self.offered(plan).remove().await?;
        self.legacy(plan).remove().await?;
        firewall::remove(&self.nft, table).await
    }

    /// Whether the host has anything left of an uplink.
    pub(super) async fn has_outer(&self, plan: &NetworkPlan) -> Result<bool, LinkError> {
        uplink::has_outer(&self.netlink, plan).await
    }
}
