//! What is wrong with a network, and the repair of that of a VM that runs.
//!
//! A repair makes the same parts as `build`, in the same order and with the same marks, so what a killed repair leaves is
//! what a killed `build` leaves, and the next look finds it. There are two differences, because the VMM has the TAP open and
//! is in the namespace:
//!
//! - A TAP that is gone is not made anew: the VMM cannot open another one. The table in the namespace comes first all the
//!   same, and the guest gets its network back with the next VM.
//! - A namespace that has lost its name gets the name back, from a process that is in it. No other namespace is made in its
//!   place.
//!
//! If nothing of the pool is free, the VM goes on without an uplink. The follower makes one as soon as there is room.

use super::namespace::{FoundNamespace, NamespaceError};
use super::plan::NetworkPlan;
use super::processes::NetworkProcess;
use super::site::Site;
use super::tap::{FoundTap, Link};
use super::uplink::{FoundUplink, UplinkError};
use super::{HostNetwork, NetworkError, NetworkPlace, forwards, marked};
use crate::host::process::{DaemonRole, ProcessMark};
use crate::world::{Generation, NetworkFault, Presence};

/// What was found of a network.
pub(super) struct NetworkInspection {
    /// What is not as `build` leaves it.
    pub(super) faults: Vec<NetworkFault>,
    /// Whether there is nothing at all.
    pub(super) nothing: bool,
    /// Whether a VMM can go on with the TAP.
    pub(super) attached: bool,
}

impl HostNetwork {
    /// Looks at each part, and changes nothing.
    pub(super) async fn inspect(&self, plan: &NetworkPlan) -> Result<NetworkInspection, NetworkError> {
        let slot = plan.slot;
        let device = |source| NetworkError::Link { slot, source };
        let site = match self.found_site(plan).await? {
            Ok(site) => site,
            Err(presence) => {
                let nothing = presence == Presence::Absent;
                return Ok(NetworkInspection {
                    faults: vec![NetworkFault::Namespace],
                    nothing,
                    attached: false,
                });
            }
        };
        let host = Site::host(plan).map_err(device)?;
        let found = Link { plan, netlink: &site.netlink }.find().await.map_err(device)?;
        let uplink = self.found_uplink(plan, &site, &host).await?;
        let rules = self.examine_rules(plan, &site, &host, &uplink).await?;
        let (whole, attached) = match &found {
            FoundTap::Marked(found) => (found.whole(plan), found.serves()),
            FoundTap::Nothing | FoundTap::Foreign(_) => (false, false),
        };
        let mut faults = Vec::new();
        let mut expect = |right: bool, fault| faults.extend((!right).then_some(fault));
        expect(whole, NetworkFault::TapState);
        expect(rules.inside, NetworkFault::GuestFirewall);
        let uplink_fault = self.uplink_fault(plan, &site, &host, &uplink).await?;
        expect(rules.outside || uplink_fault.is_some(), NetworkFault::HostFirewall);
        expect(!self.needs_forwarding() || forwards()?, NetworkFault::Forwarding);
        expect(self.is_held(plan)?, NetworkFault::Holder);
        faults.extend(uplink_fault);
        faults.extend(self.dead_processes(plan)?);
        // A namespace with a name is itself something that is left. A namespace that is found in /proc may be
        // that of the VMM alone.
        let nothing = (site.namespace.is_none() || self.settings.place.of_user().is_some())
            && !matches!(found, FoundTap::Marked(_))
            && rules.listing.inside.is_none()
            && rules.listing.outside.is_none()
            && !self.has_processes_or_files(plan)?;
        Ok(NetworkInspection { faults, nothing, attached })
    }

    /// How much of the network is there.
    pub(super) async fn find_parts(&self, plan: &NetworkPlan) -> Result<Presence, NetworkError> {
        let NetworkInspection { faults, nothing, .. } = self.inspect(plan).await?;
        Ok(match (faults.is_empty(), nothing) {
            (true, _) => Presence::Whole,
            (false, true) => Presence::Absent,
            (false, false) => Presence::Partial,
        })
    }

    async fn uplink_fault(
        &self,
        plan: &NetworkPlan,
        site: &Site,
        host: &Site,
        uplink: &FoundUplink,
    ) -> Result<Option<NetworkFault>, NetworkError> {
        if self.is_wanted(uplink) {
            return Ok(None);
        }
        Ok(Some(match uplink {
            FoundUplink::Overlaps => NetworkFault::Overlap,
            FoundUplink::Nothing
                if self.settings.place.of_user().is_none()
                    && !site.uplink(host, plan, &self.settings.policy.uplink).has_room().await? =>
            {
                NetworkFault::NoFreeUplink
            }
            _ => NetworkFault::Uplink,
        }))
    }

    /// The processes that should run, and do not.
    fn dead_processes(&self, plan: &NetworkPlan) -> Result<Vec<NetworkFault>, NetworkError> {
        let alive = [
            (NetworkFault::Keeper, self.is_kept(plan)?),
            (NetworkFault::Follower, self.is_followed(plan)?),
            (NetworkFault::Dns, self.serves(plan)?),
        ];
        Ok(alive.into_iter().filter(|(_, alive)| !alive).map(|(fault, _)| fault).collect())
    }

    /// What is wrong with the network of a VM that runs.
    pub(super) async fn standing_faults(
        &self,
        plan: &NetworkPlan,
    ) -> Result<Vec<NetworkFault>, NetworkError> {
        if matches!(&self.settings.place, NetworkPlace::Namespace(namespace) if !namespace.may_enter()) {
            // The namespace can be entered with root's rights only. Whether its processes live can be seen without.
            return self.dead_processes(plan);
        }
        let NetworkInspection { mut faults, attached, .. } = self.inspect(plan).await?;
        if !attached && !faults.contains(&NetworkFault::Namespace) {
            faults.retain(|fault| *fault != NetworkFault::TapState);
            faults.insert(0, NetworkFault::Tap);
        }
        Ok(faults)
    }

    /// Repairs the network of a VM that runs.
    pub(super) async fn repair_parts(
        &self,
        plan: &NetworkPlan,
        generation: Generation,
    ) -> Result<(), NetworkError> {
        let slot = plan.slot;
        let device = |source| NetworkError::Link { slot, source };
        self.files().check()?;
        let host = Site::host(plan).map_err(device)?;
        let site = match &self.settings.place {
            NetworkPlace::Host => Site::host(plan).map_err(device)?,
            NetworkPlace::Namespace(_) => self.standing_site(plan, generation).await?,
        };
        self.begin_changes(plan).await?;
        match self.build_firewall(plan, &site, &host, generation).await {
            Err(NetworkError::Uplink(UplinkError::NoneFree { .. })) | Ok(()) => {}
            other => return other,
        }
        Link { plan, netlink: &site.netlink }.mend().await.map_err(device)?;
        self.build_rest(plan, &site, generation).await
    }

    /// The namespace that the VM runs in.
    async fn standing_site(&self, plan: &NetworkPlan, generation: Generation) -> Result<Site, NetworkError> {
        let NetworkPlace::Namespace(namespace) = &self.settings.place else {
            return Site::host(plan).map_err(|source| NetworkError::Link { slot: plan.slot, source });
        };
        if namespace.is_of_user() {
            return match namespace.find().await? {
                // Another holder may have to hold it.
                FoundNamespace::Marked(_) => Ok(Site::of(plan, namespace.make(generation).await?)),
                _ => Err(NamespaceError::NotHeld.into()),
            };
        }
        let vmm =
            ProcessMark { workspace: plan.workspace, generation: Some(generation), role: DaemonRole::vmm() };
        match namespace.find().await? {
            FoundNamespace::Marked(inside) => return Ok(Site::of(plan, inside)),
            FoundNamespace::Foreign(found) => return Err(namespace.foreign(found).into()),
            FoundNamespace::Nothing | FoundNamespace::Unfinished => {}
        }
        let mut inhabitants = Vec::new();
        for process in [NetworkProcess::Keeper, NetworkProcess::Dns] {
            inhabitants.extend(self.process(plan, process).find()?);
        }
        let slot = plan.slot;
        let vmms = marked::find(&vmm).map_err(|source| NetworkError::Process { slot, source })?;
        for process in inhabitants.into_iter().chain(vmms) {
            if let FoundNamespace::Marked(inside) = namespace.name_again(process.pid()).await? {
                return Ok(Site::of(plan, inside));
            }
        }
        Err(namespace.lost().into())
    }
}
