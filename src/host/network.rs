//! The network of a VM: TAP, firewall table, DHCP and DNS.
//!
//! Slot n has the TAP `vm{n}`, a gateway on it and the guest beside it ([`Slot`]). A [`NetworkPolicy`] says what the guest may
//! reach.
//!
//! The network is in a network namespace of its own ([`NetworkPlace`]). Where nixbox has root's rights, the namespace has a
//! name, and a veth pair, the [`uplink`], connects it with the host, unless the mode is `off`:
//!
//! ```text
//!  namespace nixbox-WORKSPACE                                        host
//!  VMM ── TAP vm64 198.51.100.253/30 ── table ── uplink0 203.0.113.2/30 ════ nixbox-0 203.0.113.1/30 ── table ── world
//!         dnsmasq ──► keeper, 127.0.0.1:5300 ──────────────────────────────► resolvers of the host
//! ```
//!
//! An ordinary user's namespace belongs to a user namespace ([`user_namespace`]), which the [`holder`] holds. `uplink0` is the
//! device of pasta ([`pasta_uplink`]), which opens the guest's connections as sockets of the user, and the host has no part
//! of the network. The VM of an earlier nixbox may have its TAP in the host's network, with neither namespace, uplink nor
//! keeper.
//!
//! Every part carries a mark of its workspace: the namespace in the alias of its loopback device ([`namespace`]), the TAP and
//! the uplink in their aliases ([`tap`], [`uplink`]), tables in their names ([`firewall`]), rules in the chains of other
//! firewalls in their comment ([`offered`], [`legacy`]), dnsmasq, nft, the [`keeper`], the [`follow`]er, the [`holder`] and the
//! parent of pasta in their environment
//! ([`processes`]). A part is found by its mark,
//! and removed only with it. [`Network::build`] refuses to begin if a device or namespace of another workspace or program has
//! the name of one of the parts.
//!
//! # What a crash leaves
//!
//! `build` makes the parts in this order, and each one can be told from a missing one at the next call of `find`:
//!
//! | killed while | left behind | the next `build` or `remove` |
//! |---|---|---|
//! | the namespace is made | nothing, or its name as an empty file: a namespace gets its name when it is whole | makes the namespace, or removes the file |
//! | the holder makes an ordinary user's namespace | nothing, as the holder ends with a nixbox that does not hear that it holds; or a holder with the mark | ends it and makes another, or enters its namespace |
//! | pasta starts | the parent of pasta with the mark, and perhaps its device | ends the parent, and pasta with it, and starts both |
//! | nft replaces the table | the old table or the new one, never half of one; perhaps an nft that still runs | ends nft before it touches the table |
//! | `firewall.json` is written | a table without its record, or with a torn one | replaces the table, as the record does not fit |
//! | the uplink is made | a pair of devices in the namespace, or one that is not whole | makes the pair anew |
//! | the table on the host is made | an uplink without its table, of which nothing is passed on that the guest began | makes the table |
//! | rules are put into the chains of other firewalls | all rules of a chain, or none | makes them anew, or removes them by their comment |
//! | the TAP is made | nothing: a TAP without its alias ends with the process that made it | makes the TAP |
//! | the TAP gets its address and comes up | a marked TAP that is not whole | mends the TAP, or makes it anew |
//! | the keeper starts | a keeper with the mark, or its socket alone | ends it, and starts the keeper |
//! | dnsmasq starts | one or two dnsmasqs with the mark, or a configuration file alone | ends them, and starts dnsmasq |
//! | the follower starts | a follower with the mark, and perhaps an nft that it has started | ends both, and starts a follower |
//!
//! While a VM runs, the [`follow`]er repeats a part of this when the host's networks change, and [`repair`] says how the
//! network of a standing VM is examined and repaired. [`processes`] says how a process is found without a look at all
//! processes of the host.
//!
//! `remove` ends the processes first, so that none of them brings anything back, and removes the table after the TAP, so
//! that a guest is never without its firewall. The uplink goes before the namespace, because a process that looks at the
//! namespace may keep it for a while. A `remove` that was killed is repeated, and succeeds for parts that are
//! gone. What stays after it is IPv4 forwarding of the host, which `build` turns on: nixbox cannot know what else has
//! come to need it.
//!
//! # Who may use this
//!
//! Root, also through sudo, and every ordinary user on a host that lets ordinary users have user namespaces. nixbox hands
//! capabilities over the host's network to nft and dnsmasq only ([`tool`]), and those of an ordinary user's nft and dnsmasq
//! are over the user namespace alone.
//!
//! # A second firewall backend
//!
//! There is no seam for one: [`HostNetwork`] calls the functions of [`firewall`], and dnsmasq fills a set of nftables
//! ([`firewall::ALLOWED_SET`]). A second backend would get a trait with the four functions that `firewall` exports
//! (`asked`, `apply`, `refuse`, `remove`) and a look at the rules as that of [`tables`], a line of dnsmasq's configuration from the backend, and a
//! file beside `firewall.rs`.

mod answers;
mod changes;
pub mod child;
mod daemons;
mod dhcp;
mod error;
mod firewall;
mod follow;
mod follow_words;
mod handover;
mod holder;
mod inhabitant;
pub mod inside;
mod keeper;
mod legacy;
mod link;
mod marked;
pub mod namespace;
mod needs;
mod nf_netlink;
mod nft;
pub mod obstacle;
mod offered;
mod pasta;
mod pasta_uplink;
mod plan;
mod processes;
mod refused_names;
mod rejected;
mod repair;
mod reserve;
mod rules;
mod runtime_files;
mod site;
mod tables;
mod tap;
pub(super) mod tool;
mod uplink;
mod user_namespace;
mod world_route;

use std::path::PathBuf;
use std::time::Duration;

pub use super::program::ProgramError;
use async_trait::async_trait;
pub use error::NetworkError;
pub use link::LinkError;
pub use namespace::{NamespaceError, NetworkNamespace};
pub use needs::{fills_sets, find_obstacle, forwards, program_path};
pub use pasta_uplink::path as pasta_path;
pub use site::NetworkPlace;
pub use uplink::UplinkError;
pub use user_namespace::{NamespaceObstacle, UserNamespaceError, rehearse};

use super::systemd::scope::ScopeManager;
use crate::world::{
    Generation, Network, NetworkFault, NetworkMode, NetworkPolicy, Presence, RefusedTraffic, Result, Slot,
    WorkspaceId,
};
use inside::Opened;
use namespace::FoundNamespace;
use pasta_uplink::Pasta;
use plan::NetworkPlan;
use processes::NetworkProcess;
use runtime_files::RuntimeFiles;
use site::Site;
use tap::{FoundTap, Link};

/// dnsmasq forks into the background once it serves. That takes milliseconds, or seconds in software emulation.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The record of how the firewall was right after it was made.
const LISTING: &str = "firewall.json";

/// What the network of a workspace is built from.
#[derive(Debug, Clone)]
pub struct NetworkSettings {
    /// The workspace whose mark the parts get.
    pub workspace: WorkspaceId,
    /// The user who may attach to the TAP: the VMM runs as this user.
    pub owner: u32,
    /// An existing directory for dnsmasq's files. It has to belong to the user who runs nixbox, no other user may write
    /// in it, and it must not be shared with the guest.
    pub runtime: PathBuf,
    /// What the guest may reach.
    pub policy: NetworkPolicy,
    /// /etc/resolv.conf, except in tests.
    pub resolv_conf: PathBuf,
    /// Where the network is, or is to be.
    pub place: NetworkPlace,
}

/// The network of a VM on this host. The host's network is that of the calling thread.
#[derive(Debug, Clone)]
pub struct HostNetwork {
    settings: NetworkSettings,
    scopes: Option<ScopeManager>,
}

impl HostNetwork {
    /// Touches nothing yet.
    #[must_use]
    pub fn new(settings: NetworkSettings) -> Self {
        Self { settings, scopes: None }
    }

    /// The same, with dnsmasq and the keeper in scopes of their own, if there is a manager of scopes.
    #[must_use]
    pub fn in_scopes_of(self, scopes: Option<ScopeManager>) -> Self {
        Self { scopes, ..self }
    }

    fn plan(&self, slot: Slot) -> NetworkPlan {
        NetworkPlan::new(slot, self.settings.workspace, self.settings.owner)
    }

    /// The plan for the host's networks of the moment.
    async fn present_plan(&self, slot: Slot) -> Result<NetworkPlan, NetworkError> {
        let device = |source| NetworkError::Link { slot, source };
        let plan = self.plan(slot);
        if self.settings.policy.mode == NetworkMode::Off {
            return Ok(plan);
        }
        let world = world_route::find(&Site::host(&plan).map_err(device)?.netlink).await.map_err(device)?;
        Ok(NetworkPlan { mtu: world.map_or(plan.mtu, |route| route.mtu), ..plan })
    }

    /// The plan that the network of a VM was built by. Its devices keep their MTU while the VM runs, because the guest has
    /// taken it over; the host tells the guest of packets that are too large for a newer route.
    fn standing_plan(&self, slot: Slot) -> NetworkPlan {
        let plan = self.plan(slot);
        // Without the file dnsmasq is started anew in any case.
        let configured = std::fs::read_to_string(self.files().path(dhcp::CONFIGURATION)).unwrap_or_default();
        NetworkPlan { mtu: dhcp::configured_mtu(&configured).unwrap_or(plan.mtu), ..plan }
    }

    /// The names of the files in the runtime directory that belong to the network.
    fn names() -> impl Iterator<Item = &'static str> {
        let processes = NetworkProcess::ALL.map(NetworkProcess::record);
        dhcp::FILES
            .into_iter()
            .chain([LISTING, runtime_files::UNNAMED, namespace::KEEPER_SOCKET, refused_names::SOCKET])
            .chain([keeper::SETTINGS, follow_words::PROBLEM])
            .chain(processes)
    }

    /// Whether the VM has an uplink.
    fn has_uplink(&self) -> bool {
        let isolated = matches!(self.settings.place, NetworkPlace::Namespace(_));
        isolated && self.settings.policy.mode != NetworkMode::Off
    }

    /// Whether the host has to pass packets on: pasta opens sockets instead.
    fn needs_forwarding(&self) -> bool {
        self.settings.policy.mode != NetworkMode::Off && self.settings.place.of_user().is_none()
    }

    fn files(&self) -> RuntimeFiles<'_> {
        RuntimeFiles { directory: &self.settings.runtime }
    }

    /// The uplink of a VM whose namespace an ordinary user makes.
    fn pasta<'a>(&'a self, plan: &'a NetworkPlan, site: &'a Site, host: &'a Site) -> Option<Pasta<'a>> {
        let namespace = self.settings.place.of_user()?;
        let pool = &self.settings.policy.uplink;
        Some(Pasta { plan, pool, host: &host.netlink, inside: &site.netlink, namespace })
    }

    /// What is left of a network whose namespace is not there.
    async fn find_without_namespace(&self, plan: &NetworkPlan) -> Result<Presence, NetworkError> {
        let slot = plan.slot;
        let device = |source| NetworkError::Link { slot, source };
        if self.settings.place.of_user().is_some() {
            let left = self.has_processes_or_files(plan)?;
            return Ok(if left { Presence::Partial } else { Presence::Absent });
        }
        let host = Site::host(plan).map_err(device)?;
        let rules = host.list(plan, &plan.uplink_table()).await;
        let left = host.has_outer(plan).await.map_err(device)?
            || rules.map_err(|source| NetworkError::Firewall { slot, source })?.is_some()
            || self.has_processes_or_files(plan)?;
        Ok(if left { Presence::Partial } else { Presence::Absent })
    }

    fn has_processes_or_files(&self, plan: &NetworkPlan) -> Result<bool, NetworkError> {
        if Self::names().any(|name| self.files().path(name).symlink_metadata().is_ok()) {
            return Ok(true);
        }
        if self.settings.place.of_user().is_none() {
            return Ok(false);
        }
        let slot = plan.slot;
        for mark in [plan.holder_mark(None), plan.uplink_mark(None)] {
            let found = marked::find(&mark).map_err(|source| NetworkError::Process { slot, source })?;
            if !found.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The network in which the TAP is, if it is there.
    async fn found_site(
        &self,
        plan: &NetworkPlan,
    ) -> Result<std::result::Result<Site, Presence>, NetworkError> {
        let slot = plan.slot;
        Ok(match &self.settings.place {
            NetworkPlace::Host => Ok(Site::host(plan).map_err(|source| NetworkError::Link { slot, source })?),
            NetworkPlace::Namespace(namespace) => match namespace.find().await? {
                FoundNamespace::Marked(inside) => Ok(Site::of(plan, inside)),
                FoundNamespace::Unfinished => Err(Presence::Partial),
                FoundNamespace::Nothing | FoundNamespace::Foreign(_) => {
                    Err(self.find_without_namespace(plan).await?)
                }
            },
        })
    }

    /// What the guest was refused, as far as somebody has noted it: not by the rules and the keeper of an earlier nixbox.
    async fn find_refused_traffic(&self, plan: &NetworkPlan) -> Result<RefusedTraffic, NetworkError> {
        let slot = plan.slot;
        let failed = |source| NetworkError::Firewall { slot, source };
        let Ok(site) = self.found_site(plan).await? else { return Ok(RefusedTraffic::default()) };
        let destinations =
            rejected::find(&site.nft.tables, &plan.table).map_err(|error| failed(error.into()))?;
        let filtered = self.settings.policy.mode == NetworkMode::Filtered && site.namespace.is_some();
        let names = match filtered {
            true => refused_names::ask(&self.settings.runtime).await.ok(),
            false => None,
        };
        Ok(RefusedTraffic { destinations, names })
    }

    /// The firewall is made before the TAP, so that no packet passes without it. Parts that are whole stay as they are,
    /// with the addresses that dnsmasq has put into its set.
    async fn build_parts(&self, plan: &NetworkPlan, generation: Generation) -> Result<(), NetworkError> {
        let slot = plan.slot;
        let device = |source| NetworkError::Link { slot, source };
        self.files().check()?;
        let host = Site::host(plan).map_err(device)?;
        let site = match &self.settings.place {
            NetworkPlace::Host => Site::host(plan).map_err(device)?,
            NetworkPlace::Namespace(namespace) => Site::of(plan, namespace.make(generation).await?),
        };
        let link = Link { plan, netlink: &site.netlink };
        match link.find().await.map_err(device)? {
            FoundTap::Foreign(found) => return Err(device(link.foreign(found))),
            FoundTap::Marked(found) if found.whole(plan) => {}
            // A dnsmasq of an earlier device would go on listening on that device, and a keeper of an earlier namespace
            // would serve that namespace.
            FoundTap::Marked(_) | FoundTap::Nothing => {
                self.process(plan, NetworkProcess::Dns).end().await?;
                self.process(plan, NetworkProcess::Keeper).end().await?;
            }
        }
        self.begin_changes(plan).await?;
        self.build_firewall(plan, &site, &host, generation).await?;
        let tun = match &self.settings.place {
            NetworkPlace::Host => None,
            NetworkPlace::Namespace(namespace) => {
                let [tun] = namespace.open([Opened::Tun]).await?;
                Some(tun)
            }
        };
        link.build(generation, tun).await.map_err(device)?;
        self.build_rest(plan, &site, generation).await
    }

    /// What serves a TAP that is there: forwarding and the processes. The follower is last, because it changes the tables
    /// too, and ends those who change them.
    async fn build_rest(
        &self,
        plan: &NetworkPlan,
        site: &Site,
        generation: Generation,
    ) -> Result<(), NetworkError> {
        let slot = plan.slot;
        if self.needs_forwarding() && !forwards()? {
            link::setting(needs::FORWARDING, "1", false)
                .map_err(|source| NetworkError::Link { slot, source })?;
        }
        // Neither needs the other to start. Both are awaited, so that no start goes on after an error.
        let keeper = self.build_keeper(plan, generation);
        let (keeper, daemon) = tokio::join!(keeper, self.build_daemon(plan, site, generation));
        keeper.and(daemon)?;
        self.process(plan, NetworkProcess::Nft).forget()?;
        self.build_follower(plan, generation).await
    }

    /// Ends the other processes that change the tables and the uplink: the follower, and an nft that outlived its nixbox or
    /// follower.
    async fn begin_changes(&self, plan: &NetworkPlan) -> Result<(), NetworkError> {
        let (follower, nft) =
            (self.process(plan, NetworkProcess::Follower), self.process(plan, NetworkProcess::Nft));
        // A follower that was killed may have left an nft, and has written down nothing about it.
        let followed = self.files().path(follower.name).symlink_metadata().is_ok();
        follower.end().await?;
        if followed {
            nft.end_all().await?;
        } else {
            nft.end().await?;
        }
        nft.begin()
    }

    /// A device or namespace without the mark of this workspace stays, and is not an error.
    async fn remove_parts(&self, plan: &NetworkPlan) -> Result<(), NetworkError> {
        let slot = plan.slot;
        let device = |source| NetworkError::Link { slot, source };
        let rules = |source| NetworkError::Firewall { slot, source };
        for process in NetworkProcess::ALL {
            self.process(plan, process).end_all().await?;
        }
        if self.settings.place.of_user().is_some() {
            pasta_uplink::end(plan).await?;
        }
        let host = Site::host(plan).map_err(device)?;
        match &self.settings.place {
            NetworkPlace::Host => {
                Link { plan, netlink: &host.netlink }.remove().await.map_err(device)?;
                host.remove_rules(plan, &plan.table).await.map_err(rules)?;
            }
            NetworkPlace::Namespace(namespace) if namespace.is_of_user() => {
                if let FoundNamespace::Marked(inside) = namespace.find().await? {
                    let site = Site::of(plan, inside);
                    Link { plan, netlink: &site.netlink }.remove().await.map_err(device)?;
                    // The VMM may be in the namespace for a while.
                    firewall::remove(&site.nft, &plan.table).await.map_err(rules)?;
                }
                namespace.remove().await?;
            }
            NetworkPlace::Namespace(namespace) => {
                if let FoundNamespace::Marked(inside) = namespace.find().await? {
                    let site = Site::of(plan, inside);
                    site.uplink(&host, plan, &self.settings.policy.uplink).remove().await?;
                    Link { plan, netlink: &site.netlink }.remove().await.map_err(device)?;
                }
                uplink::remove_outer(&host.netlink, plan).await.map_err(device)?;
                host.remove_rules(plan, &plan.uplink_table()).await.map_err(rules)?;
                namespace.remove().await?;
            }
        }
        self.files().remove_directory(dhcp::STARTED, dhcp::PID)?;
        for name in Self::names() {
            self.files().remove(name)?;
        }
        Ok(())
    }
}

#[async_trait]
impl Network for HostNetwork {
    async fn find(&self, slot: Slot) -> Result<Presence> {
        Ok(self.find_parts(&self.present_plan(slot).await?).await?)
    }

    async fn build(&self, slot: Slot, generation: Generation) -> Result<()> {
        Ok(self.build_parts(&self.present_plan(slot).await?, generation).await?)
    }

    async fn faults(&self, slot: Slot) -> Result<Vec<NetworkFault>> {
        Ok(self.standing_faults(&self.standing_plan(slot)).await?)
    }

    async fn repair(&self, slot: Slot, generation: Generation) -> Result<()> {
        Ok(self.repair_parts(&self.standing_plan(slot), generation).await?)
    }

    async fn refused_traffic(&self, slot: Slot) -> Result<RefusedTraffic> {
        Ok(self.find_refused_traffic(&self.plan(slot)).await?)
    }

    async fn remove(&self, slot: Slot) -> Result<()> {
        Ok(self.remove_parts(&self.plan(slot)).await?)
    }
}

#[cfg(test)]
mod tests;
