//! The tables of a network and its uplink: whether they are as they were made, and how they are made again.
//!
//! The tables are read from the kernel right after they were made, and what they are recognized by ([`Listing`]) is kept in the
//! runtime directory. It has two parts, because one can be repaired without the other: what is inside, where the TAP is, and
//! what is outside, on the host.
//! dnsmasq fills a set of the inner table, which is lost when that table is replaced.

use serde_json::{Value, json};

use super::firewall::{self, AddressRange};
use super::plan::NetworkPlan;
use super::site::Site;
use super::uplink::{self, FoundUplink, UplinkError, UplinkPlan};
use super::{HostNetwork, LISTING, NetworkError, pasta_uplink};
use crate::world::{Generation, NetworkMode};

/// What the rules of a VM are recognized by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listing {
    /// The table of the TAP.
    pub(super) inside: Option<String>,
    /// The table of the uplink, and the rules in the chains of other firewalls.
    pub(super) outside: Option<Value>,
}

/// What is known about the tables, and whether it fits what was written down when they were made.
pub(super) struct ExaminedRules {
    pub(super) listing: Listing,
    /// Whether the table of the TAP is as it was made, for this policy.
    pub(super) inside: bool,
    /// Whether the rules on the host are as they were made, for this uplink.
    pub(super) outside: bool,
}

impl HostNetwork {
    /// What all rules of this VM are recognized by now.
    async fn listing(&self, plan: &NetworkPlan, site: &Site, host: &Site) -> Result<Listing, NetworkError> {
        let slot = plan.slot;
        let failed = |source| NetworkError::Firewall { slot, source };
        let inside = site.nft.tables.digest(&plan.table).map_err(|source| failed(source.into()))?;
        let inside = inside.map(|found| found.to_string());
        let outside = match site.namespace {
            // The network of an ordinary user's VM has no part on the host.
            _ if self.settings.place.of_user().is_some() => None,
            None => {
                let (listing, rules) = site.list_offered(plan).await.map_err(failed)?;
                rules.then_some(listing)
            }
            Some(_) => host.list(plan, &plan.uplink_table()).await.map_err(failed)?,
        };
        Ok(Listing { inside, outside })
    }

    fn record(&self, plan: &NetworkPlan, uplink: Option<&UplinkPlan>, listing: &Listing) -> Value {
        json!({
            "asked": firewall::asked(plan, &self.settings.policy),
            // They are not in the table, but the addresses that dnsmasq has put into its set are theirs.
            "domains": &self.settings.policy.domains,
            "uplink": uplink.map(|uplink| &uplink.device),
            "inside": listing.inside,
            "outside": listing.outside,
        })
    }

    /// Compares the rules with what was written down.
    pub(super) async fn examine_rules(
        &self,
        plan: &NetworkPlan,
        site: &Site,
        host: &Site,
        uplink: &FoundUplink,
    ) -> Result<ExaminedRules, NetworkError> {
        let listing = self.listing(plan, site, host).await?;
        // An unreadable record counts as missing, and the tables are made anew.
        let written = std::fs::read(self.files().path(LISTING)).ok();
        let written: Value =
            written.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let now = self.record(plan, uplink.plan(), &listing);
        let same =
            |keys: [&str; 2]| keys.iter().all(|key| written.get(key).is_some() && written[key] == now[key]);
        // An earlier nixbox did not write down the domains.
        let of_domains = written.get("domains").is_none_or(|domains| *domains == now["domains"]);
        let inside = listing.inside.is_some() && same(["asked", "inside"]) && of_domains;
        let outside = same(["uplink", "outside"]);
        Ok(ExaminedRules { listing, inside, outside })
    }

    /// The uplink that there is. A VM in the host's network has none.
    pub(super) async fn found_uplink(
        &self,
        plan: &NetworkPlan,
        site: &Site,
        host: &Site,
    ) -> Result<FoundUplink, NetworkError> {
        if site.namespace.is_none() {
            return Ok(FoundUplink::Nothing);
        }
        if let Some(pasta) = self.pasta(plan, site, host) {
            return Ok(pasta.find().await?);
        }
        Ok(site.uplink(host, plan, &self.settings.policy.uplink).find().await?)
    }

    /// Whether the uplink is what the mode asks for.
    pub(super) fn is_wanted(&self, uplink: &FoundUplink) -> bool {
        match uplink {
            FoundUplink::Whole(_) => self.has_uplink(),
            FoundUplink::Nothing => !self.has_uplink(),
            FoundUplink::Partial | FoundUplink::Overlaps => false,
        }
    }

    /// The addresses that the guest must not reach, as they are now.
    pub(super) async fn refused(
        &self,
        plan: &NetworkPlan,
        host: &Site,
    ) -> Result<Vec<AddressRange>, NetworkError> {
        let slot = plan.slot;
        let refused = uplink::refused(&host.netlink, &self.settings.policy.uplink).await;
        let mut refused = refused.map_err(|source| NetworkError::Link { slot, source })?;
        if self.settings.place.of_user().is_some() {
            refused.extend(pasta_uplink::always_refused());
        }
        Ok(refused)
    }

    /// Makes the tables and the uplink, as far as they are not whole. The table of the TAP is made first, so that nothing
    /// passes without it.
    pub(super) async fn build_firewall(
        &self,
        plan: &NetworkPlan,
        site: &Site,
        host: &Site,
        generation: Generation,
    ) -> Result<(), NetworkError> {
        let slot = plan.slot;
        let failed = |source| NetworkError::Firewall { slot, source };
        let refused = match site.namespace {
            // In the host's network, routing knows which addresses are the host's.
            None => Vec::new(),
            Some(_) => self.refused(plan, host).await?,
        };
        let found = self.found_uplink(plan, site, host).await?;
        let examined = self.examine_rules(plan, site, host, &found).await?;
        if examined.inside {
            firewall::refuse(&site.nft, plan, &refused).await.map_err(failed)?;
        } else {
            firewall::apply(&site.nft, plan, &self.settings.policy, &refused).await.map_err(failed)?;
        }
        if examined.inside && examined.outside && self.is_wanted(&found) {
            return Ok(());
        }
        self.rebuild_outside(plan, site, host, generation).await
    }

    /// Makes the uplink and the rules on the host, as far as they are not whole, and writes down how the tables are. If
    /// nothing of the pool is free, there is no uplink afterwards.
    pub(super) async fn rebuild_outside(
        &self,
        plan: &NetworkPlan,
        site: &Site,
        host: &Site,
        generation: Generation,
    ) -> Result<(), NetworkError> {
        let made = self.build_uplink(plan, site, host, generation).await;
        if let Err(NetworkError::Uplink(UplinkError::NoneFree { .. })) = &made
            && self.settings.place.of_user().is_none()
        {
            let slot = plan.slot;
            let removed = host.remove_rules(plan, &plan.uplink_table()).await;
            removed.map_err(|source| NetworkError::Firewall { slot, source })?;
        }
        let listing = self.listing(plan, site, host).await?;
        let uplink = made.as_ref().ok().and_then(Option::as_ref);
        self.files().write(LISTING, &self.record(plan, uplink, &listing).to_string())?;
        made.map(drop)
    }

    /// What lets packets pass between the TAP and the world. A VM that may reach nothing has none of it.
    async fn build_uplink(
        &self,
        plan: &NetworkPlan,
        site: &Site,
        host: &Site,
        generation: Generation,
    ) -> Result<Option<UplinkPlan>, NetworkError> {
        let slot = plan.slot;
        let failed = |source| NetworkError::Firewall { slot, source };
        if site.namespace.is_none() {
            if self.settings.policy.mode != NetworkMode::Off {
                site.pass_firewalls(plan, &plan.tap).await.map_err(failed)?;
            }
            return Ok(None);
        }
        if let Some(pasta) = self.pasta(plan, site, host) {
            if !self.has_uplink() {
                pasta.remove().await?;
                return Ok(None);
            }
            let mark = plan.uplink_mark(Some(generation));
            let scope = self.scope(plan, generation, &mark);
            return Ok(Some(pasta.build(&mark, scope.as_ref()).await?));
        }
        let uplink = site.uplink(host, plan, &self.settings.policy.uplink);
        if !self.has_uplink() {
            uplink.remove().await?;
            host.remove_rules(plan, &plan.uplink_table()).await.map_err(failed)?;
            return Ok(None);
        }
        let made = uplink.build(generation).await?;
        host.make_uplink_table(plan, &made).await.map_err(failed)?;
        Ok(Some(made))
    }
}
