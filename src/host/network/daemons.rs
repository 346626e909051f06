//! The daemons of a VM's network: dnsmasq, the keeper and the follower. May use the other files of this module.

use super::answers::AnswerFilter;
use super::dhcp::Upstreams;
use super::follow_words::FollowerWords;
use super::keeper::KeeperSettings;
use super::plan::NetworkPlan;
use super::processes::{NetworkProcess, ProcessRecord};
use super::site::Site;
use super::tool::NetworkTool;
use super::{
    HostNetwork, NetworkError, NetworkPlace, NetworkSettings, START_LIMIT, dhcp, fills_sets, keeper, marked,
    namespace,
};
use crate::host::process::ProcessMark;
use crate::host::systemd::scope::Scope;
use crate::world::{Generation, NetworkMode};

impl HostNetwork {
    fn configuration(&self, plan: &NetworkPlan) -> String {
        let (policy, runtime) = (&self.settings.policy, &self.settings.runtime);
        let user = match self.settings.place.of_user() {
            Some(_) => dhcp::DaemonUser::Own,
            None => dhcp::DaemonUser::Nobody,
        };
        dhcp::configuration(plan, policy, &self.upstreams(), runtime, user)
    }

    /// The scope of systemd that a daemon enters, if there is a manager of scopes.
    pub(super) fn scope(
        &self,
        plan: &NetworkPlan,
        generation: Generation,
        mark: &ProcessMark,
    ) -> Option<Scope> {
        let manager = self.scopes.as_ref()?;
        Some(manager.scope(plan.workspace, generation, &mark.role.to_string()))
    }

    fn upstreams(&self) -> Upstreams {
        match self.settings.place {
            NetworkPlace::Host => {
                let (path, servers) = dhcp::upstreams(
                    &self.settings.resolv_conf,
                    dhcp::RESOLVED.as_ref(),
                    dhcp::Stub::PassedBy,
                );
                Upstreams::Servers(path, servers)
            }
            NetworkPlace::Namespace(_) => Upstreams::Keeper(keeper::RESOLVER),
        }
    }

    /// What is known about the processes of one kind.
    pub(super) fn process(&self, plan: &NetworkPlan, process: NetworkProcess) -> ProcessRecord<'_> {
        let mark = match process {
            NetworkProcess::Dns => plan.dhcp_mark(None),
            NetworkProcess::Keeper => plan.keeper_mark(None),
            NetworkProcess::Follower => plan.follower_mark(None),
            NetworkProcess::Nft => plan.firewall_mark(),
        };
        ProcessRecord { files: self.files(), name: process.record(), slot: plan.slot, mark }
    }

    fn lives(&self, plan: &NetworkPlan, process: NetworkProcess) -> Result<bool, NetworkError> {
        Ok(self.process(plan, process).find()?.len() == 1)
    }

    pub(super) fn serves(&self, plan: &NetworkPlan) -> Result<bool, NetworkError> {
        let one = self.lives(plan, NetworkProcess::Dns)?;
        // A configuration that cannot be read does not count as the wanted one, and is written anew.
        let configured = std::fs::read_to_string(self.files().path(dhcp::CONFIGURATION)).ok();
        Ok(one && configured.is_some_and(|text| text == self.configuration(plan)))
    }

    /// Whether the keeper lives and works by the policy, where there is to be one.
    pub(super) fn is_kept(&self, plan: &NetworkPlan) -> Result<bool, NetworkError> {
        if matches!(self.settings.place, NetworkPlace::Host) {
            return Ok(true);
        }
        let one = self.lives(plan, NetworkProcess::Keeper)?;
        // Settings that cannot be read do not count as the wanted ones, and are written anew.
        let settings = std::fs::read_to_string(self.files().path(keeper::SETTINGS)).ok();
        Ok(one
            && settings.is_some_and(|text| text == self.keeper_settings())
            && self.files().path(namespace::KEEPER_SOCKET).symlink_metadata().is_ok())
    }

    /// What the keeper works by.
    fn keeper_settings(&self) -> String {
        let settings = KeeperSettings::new(AnswerFilter::from(&self.settings.policy));
        serde_json::json!(settings).to_string()
    }

    /// Whether the follower lives, where there is to be one.
    pub(super) fn is_followed(&self, plan: &NetworkPlan) -> Result<bool, NetworkError> {
        Ok(!self.has_uplink() || self.lives(plan, NetworkProcess::Follower)?)
    }

    /// Whether the holder lives, where there is to be one.
    pub(super) fn is_held(&self, plan: &NetworkPlan) -> Result<bool, NetworkError> {
        let slot = plan.slot;
        if self.settings.place.of_user().is_none() {
            return Ok(true);
        }
        let running = marked::find(&plan.holder_mark(None));
        Ok(running.map_err(|source| NetworkError::Process { slot, source })?.len() == 1)
    }

    pub(super) async fn build_keeper(
        &self,
        plan: &NetworkPlan,
        generation: Generation,
    ) -> Result<(), NetworkError> {
        let NetworkPlace::Namespace(namespace) = &self.settings.place else { return Ok(()) };
        if self.is_kept(plan)? {
            return Ok(());
        }
        let (record, mark) = (self.process(plan, NetworkProcess::Keeper), plan.keeper_mark(Some(generation)));
        let scope = self.scope(plan, generation, &mark);
        let NetworkSettings { runtime, resolv_conf, .. } = &self.settings;
        let start = async || {
            record.begin()?;
            let pid = namespace.start_keeper(&mark, scope.as_ref(), runtime, resolv_conf).await?;
            record.settle(pid)
        };
        record.end().await?;
        // The settings are those of the keeper that runs, so they change when none does.
        self.files().write(keeper::SETTINGS, &self.keeper_settings())?;
        if start().await.is_err() {
            // A process of which the record does not know may have the sockets.
            record.end_all().await?;
            return start().await;
        }
        Ok(())
    }

    /// Starts the follower anew. It has looked at the host's networks when this returns.
    pub(super) async fn build_follower(
        &self,
        plan: &NetworkPlan,
        generation: Generation,
    ) -> Result<(), NetworkError> {
        let NetworkPlace::Namespace(namespace) = &self.settings.place else { return Ok(()) };
        let record = self.process(plan, NetworkProcess::Follower);
        record.end().await?;
        if !self.has_uplink() {
            return Ok(());
        }
        let mark = plan.follower_mark(Some(generation));
        let scope = self.scope(plan, generation, &mark);
        let NetworkSettings { workspace, owner, runtime, policy, .. } = self.settings.clone();
        let of_user = namespace.is_of_user();
        let words = FollowerWords { workspace, slot: plan.slot, generation, owner, runtime, policy, of_user };
        record.begin()?;
        let pid = namespace.start_follower(&mark, scope.as_ref(), &words).await?;
        record.settle(pid)
    }

    pub(super) async fn build_daemon(
        &self,
        plan: &NetworkPlan,
        site: &Site,
        generation: Generation,
    ) -> Result<(), NetworkError> {
        if self.serves(plan)? {
            return Ok(());
        }
        let slot = plan.slot;
        let record = self.process(plan, NetworkProcess::Dns);
        record.end().await?;
        let start = |source| NetworkError::Start { slot, source };
        if self.settings.policy.mode == NetworkMode::Filtered && !fills_sets().await.map_err(start)? {
            return Err(NetworkError::NoSets);
        }
        record.begin()?;
        for name in dhcp::FILES {
            self.files().remove(name)?;
        }
        self.files().write(dhcp::CONFIGURATION, &self.configuration(plan))?;
        if self.start_dnsmasq(plan, site, generation).await.is_err() {
            // A process of which the record does not know may have the sockets.
            record.end_all().await?;
            record.begin()?;
            self.start_dnsmasq(plan, site, generation).await?;
        }
        // A dnsmasq that is not root's writes no pid if it may not. Then the record says that it may be anywhere.
        let pid = std::fs::read_to_string(self.files().path(dhcp::STARTED).join(dhcp::PID)).ok();
        if let Some(pid) = pid.and_then(|text| text.trim().parse().ok()) {
            record.settle(pid)?;
        }
        self.files().remove_directory(dhcp::STARTED, dhcp::PID)
    }

    async fn start_dnsmasq(
        &self,
        plan: &NetworkPlan,
        site: &Site,
        generation: Generation,
    ) -> Result<(), NetworkError> {
        let slot = plan.slot;
        let configuration = format!("--conf-file={}", self.files().path(dhcp::CONFIGURATION).display());
        let mark = plan.dhcp_mark(Some(generation));
        self.files().make_directory(dhcp::STARTED, dhcp::PID)?;
        let program = NetworkTool {
            name: "dnsmasq",
            arguments: &[&configuration],
            mark: Some(&mark),
            confinement: Some(dhcp::confinement(&self.settings.runtime, &self.upstreams())),
            scope: self.scope(plan, generation, &mark),
            input: &[],
            limit: START_LIMIT,
            inside: site.entrance(),
        };
        program.run().await.map(drop).map_err(|source| NetworkError::Start { slot, source })
    }
}
