//! The network of a VM: TAP, firewall table, DHCP and DNS.
//!
//! Slot n has the TAP `vm{n}`, the gateway 172.16.{4n}.1/30 on it, the guest at .2 with MAC 02:00:00:00:00:{n+1}.
//! A [`NetworkPolicy`] says what the guest may reach. Every part is marked as this workspace's ([`tap`], [`firewall`],
//! [`daemon`] say how), is found by its mark, and is removed only with it. What is another's is no part of ours: it is
//! never touched, and [`Network::build`] refuses to begin where it is in the way.
//!
//! What stays after [`Network::remove`]: IPv4 forwarding of the host, which is turned on where it is off and never off
//! again, because nobody can tell who else came to need it.
//!
//! Who may use this: root, or a user whose nixbox has CAP_NET_ADMIN, CAP_NET_RAW and CAP_NET_BIND_SERVICE. The
//! capabilities are handed to nft and dnsmasq alone ([`program`]). Such a nixbox makes its users administrators of the
//! host's network; it is for a group of trusted users.

mod daemon;
mod dhcp;
mod docker;
mod firewall;
mod program;
mod tap;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

pub use daemon::DaemonError;
pub use firewall::FirewallError;
pub use program::ProgramError;
pub use tap::LinkError;

use crate::world::{
    Failure, Generation, Network, NetworkMode, NetworkPolicy, Presence, Result, Slot, WorkspaceId,
};
use daemon::{Mark, Role};
use program::NetworkTool;
use tap::{FoundTap, Link};

/// dnsmasq forks into the background once it serves; that takes milliseconds, and seconds in software emulation.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How the firewall looked right after it was made.
const LISTING: &str = "firewall.json";

/// What went wrong with a VM's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The TAP.
    #[error("the network of slot {slot}: device")]
    Link {
        /// The slot.
        slot: Slot,
        /// More about it.
        source: LinkError,
    },
    /// The table.
    #[error("the network of slot {slot}: firewall")]
    Firewall {
        /// The slot.
        slot: Slot,
        /// More about it.
        source: FirewallError,
    },
    /// DHCP and DNS could not be started.
    #[error("the network of slot {slot}: DHCP and DNS do not start")]
    Start {
        /// The slot.
        slot: Slot,
        /// More about it.
        source: ProgramError,
    },
    /// DHCP and DNS could not be found or ended.
    #[error("the network of slot {slot}: DHCP and DNS daemon")]
    Daemon {
        /// The slot.
        slot: Slot,
        /// More about it.
        source: DaemonError,
    },
    /// A file in the runtime directory.
    #[error("cannot {what} {path}")]
    File {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Others could put files of theirs before privileged programs.
    #[error(
        "{0} must be a directory of this user's that nobody else may write to, as dnsmasq is configured from it"
    )]
    UnsafeDirectory(PathBuf),
    /// A name that dnsmasq would not read back from a configuration file.
    #[error(
        "{0:?} cannot be the runtime directory: a path without line breaks, `#`, quotes and backslashes is needed"
    )]
    OddDirectory(PathBuf),
    /// Filtered mode cannot keep its promise then.
    #[error(
        "this dnsmasq cannot fill nftables sets, which filtered mode needs: install version 2.87 or later, \
         built with nftset"
    )]
    NoSets,
}

impl From<NetworkError> for Failure {
    fn from(error: NetworkError) -> Self {
        Self::world(error)
    }
}

/// What of a workspace decides about its network.
#[derive(Debug, Clone)]
pub struct NetworkSettings {
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// The user who may attach to the TAP: the one that the VMM runs as.
    pub owner: u32,
    /// Where dnsmasq's files go. It has to exist, belong to the user that nixbox runs as, be writable for nobody else,
    /// and must not be in a directory that is shared with the guest.
    pub runtime: PathBuf,
    /// What the guest may reach.
    pub policy: NetworkPolicy,
    /// Normally /etc/resolv.conf.
    pub resolv_conf: PathBuf,
}

/// The network on this host, in the network namespace of the calling thread.
#[derive(Debug, Clone)]
pub struct HostNetwork {
    settings: NetworkSettings,
}

/// All that follows from a slot.
struct NetworkPlan {
    slot: Slot,
    workspace: WorkspaceId,
    owner: u32,
    tap: String,
    gateway: Ipv4Addr,
    guest: Ipv4Addr,
    mac: String,
    table: String,
}

impl NetworkPlan {
    fn mark(&self, role: Role) -> Mark {
        Mark { workspace: self.workspace, slot: self.slot, role }
    }

    /// End what an earlier run left, and wait for that.
    async fn end(&self, role: Role) -> Result<(), NetworkError> {
        let slot = self.slot;
        self.mark(role).stop().await.map_err(|source| NetworkError::Daemon { slot, source })
    }
}

impl HostNetwork {
    /// Touches nothing yet.
    #[must_use]
    pub fn new(settings: NetworkSettings) -> Self {
        Self { settings }
    }

    fn plan(&self, slot: Slot) -> NetworkPlan {
        let NetworkSettings { workspace, owner, .. } = self.settings;
        NetworkPlan {
            slot,
            workspace,
            owner,
            gateway: slot.gateway(),
            guest: slot.guest(),
            mac: slot.mac(),
            table: format!("nixbox_{}_{workspace}", slot.tap()),
            tap: slot.tap(),
        }
    }

    fn configuration(&self, plan: &NetworkPlan) -> String {
        let upstreams = dhcp::upstreams(&self.settings.resolv_conf, dhcp::RESOLVED.as_ref());
        dhcp::configuration(plan, &self.settings.policy, &upstreams, &self.settings.runtime)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.settings.runtime.join(name)
    }

    /// Write a file of ours anew, whatever was there: a link is not followed.
    fn write(&self, name: &str, content: &str) -> Result<(), NetworkError> {
        self.remove_file(name)?;
        let path = self.file(name);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = opened.and_then(|mut file| file.write_all(content.as_bytes()));
        written.map_err(|source| NetworkError::File { what: "write", path, source })
    }

    fn remove_file(&self, name: &str) -> Result<(), NetworkError> {
        let path = self.file(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| NetworkError::File { what: "remove", path, source }),
        }
    }

    fn check_runtime(&self) -> Result<(), NetworkError> {
        let path = &self.settings.runtime;
        let failed = |source| NetworkError::File { what: "look at", path: path.clone(), source };
        let status = path.symlink_metadata().map_err(failed)?;
        let ours = status.is_dir() && status.uid() == rustix::process::geteuid().as_raw();
        if !ours || status.mode() & 0o022 != 0 {
            return Err(NetworkError::UnsafeDirectory(path.clone()));
        }
        let odd = |character: char| character.is_control() || "#\"\\".contains(character);
        match path.to_str() {
            Some(text) if !text.contains(odd) && path.is_absolute() => Ok(()),
            _ => Err(NetworkError::OddDirectory(path.clone())),
        }
    }

    /// Whether the firewall is as it was right after it was made for this mode.
    fn is_recorded(&self, plan: &NetworkPlan, listing: &Value) -> bool {
        // One that cannot be read is none, and the firewall is made anew.
        let record = std::fs::read(self.file(LISTING)).ok();
        let record = record.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        record.is_some_and(|record| record == self.record(plan, listing))
    }

    fn record(&self, plan: &NetworkPlan, listing: &Value) -> Value {
        serde_json::json!({ "asked": firewall::asked(plan, &self.settings.policy), "listing": listing })
    }

    async fn build_firewall(&self, plan: &NetworkPlan) -> Result<(), NetworkError> {
        let slot = plan.slot;
        let failed = |source| NetworkError::Firewall { slot, source };
        let tables = firewall::tables(plan).await.map_err(failed)?;
        if let Some(listing) = firewall::list(plan, tables).await.map_err(failed)?
            && self.is_recorded(plan, &listing)
        {
            return Ok(());
        }
        let listing = firewall::apply(plan, &self.settings.policy, tables).await.map_err(failed)?;
        self.write(LISTING, &self.record(plan, &listing).to_string())
    }

    fn serves(&self, plan: &NetworkPlan, mark: &Mark) -> Result<bool, DaemonError> {
        let one = mark.find()?.len() == 1;
        // One that cannot be read is not that which is wanted, and is written anew.
        let configured = std::fs::read_to_string(self.file(dhcp::CONFIGURATION)).ok();
        Ok(one && configured.is_some_and(|text| text == self.configuration(plan)))
    }

    async fn build_daemon(&self, plan: &NetworkPlan, generation: Generation) -> Result<(), NetworkError> {
        let slot = plan.slot;
        let mark = plan.mark(Role::Dhcp);
        let failed = |source| NetworkError::Daemon { slot, source };
        if self.serves(plan, &mark).map_err(failed)? {
            return Ok(());
        }
        mark.stop().await.map_err(failed)?;
        let start = |source| NetworkError::Start { slot, source };
        if self.settings.policy.mode == NetworkMode::Filtered && !fills_sets().await.map_err(start)? {
            return Err(NetworkError::NoSets);
        }
        for name in dhcp::FILES {
            self.remove_file(name)?;
        }
        self.write(dhcp::CONFIGURATION, &self.configuration(plan))?;
        let configuration = format!("--conf-file={}", self.file(dhcp::CONFIGURATION).display());
        let program = NetworkTool {
            name: "dnsmasq",
            arguments: &[&configuration],
            environment: &mark.environment(Some(generation)),
            input: &[],
            limit: START_LIMIT,
        };
        program.run().await.map(drop).map_err(start)
    }
}

/// Where a program is that gets privileges from nixbox: `nft` or `dnsmasq`.
///
/// # Errors
/// [`ProgramError::Missing`], with where it was looked for.
pub fn program_path(name: &'static str) -> Result<PathBuf, ProgramError> {
    program::locate(name)
}

/// Whether the installed dnsmasq can do what filtered mode needs: fill nftables sets, which came with 2.87.
///
/// # Errors
/// If it cannot be run.
pub async fn fills_sets() -> Result<bool, ProgramError> {
    let program = NetworkTool {
        name: "dnsmasq",
        arguments: &["--version"],
        environment: &[],
        input: &[],
        limit: START_LIMIT,
    };
    Ok(dhcp::fills_sets(&String::from_utf8_lossy(&program.run().await?.stdout)))
}

#[async_trait]
impl Network for HostNetwork {
    /// A device of the TAP's name that is not ours is no part of ours, and so does not count.
    async fn find(&self, slot: Slot) -> Result<Presence> {
        let plan = self.plan(slot);
        let device = |source| NetworkError::Link { slot, source };
        let found = Link::new(&plan).map_err(device)?.find().await.map_err(device)?;
        let unlisted = |source| NetworkError::Firewall { slot, source };
        let tables = firewall::tables(&plan).await.map_err(unlisted)?;
        let listing = firewall::list(&plan, tables).await.map_err(unlisted)?;
        let mark = plan.mark(Role::Dhcp);
        let failed = |source| NetworkError::Daemon { slot, source };
        let whole = matches!(&found, FoundTap::Ours(device) if device.whole(&plan))
            && listing.as_ref().is_some_and(|listing| self.is_recorded(&plan, listing))
            && self.serves(&plan, &mark).map_err(failed)?
            && (self.settings.policy.mode == NetworkMode::Off || tap::forwards().map_err(device)?);
        if whole {
            return Ok(Presence::Whole);
        }
        let files = dhcp::FILES.iter().chain([&LISTING]);
        let none = !matches!(found, FoundTap::Ours(_))
            && listing.is_none()
            && mark.find().map_err(failed)?.is_empty()
            && files.map(|name| self.file(name)).all(|path| path.symlink_metadata().is_err());
        Ok(if none { Presence::Absent } else { Presence::Partial })
    }

    /// The firewall is there before the first packet can be, and nothing is made where another's device is in the way.
    /// What is in order is left as it is, with the addresses that dnsmasq has put into its set.
    async fn build(&self, slot: Slot, generation: Generation) -> Result<()> {
        let plan = self.plan(slot);
        let device = |source| NetworkError::Link { slot, source };
        self.check_runtime()?;
        let link = Link::new(&plan).map_err(device)?;
        match link.find().await.map_err(device)? {
            FoundTap::Another(what) => return Err(device(link.another(what)).into()),
            FoundTap::Ours(found) if found.whole(&plan) => {}
            // A daemon of an earlier device would listen on that for ever.
            FoundTap::Ours(_) | FoundTap::Nothing => {
                plan.end(Role::Dhcp).await?;
            }
        }
        plan.end(Role::Firewall).await?;
        self.build_firewall(&plan).await?;
        link.build(generation).await.map_err(device)?;
        if self.settings.policy.mode != NetworkMode::Off {
            tap::forward().map_err(device)?;
        }
        Ok(self.build_daemon(&plan, generation).await?)
    }

    /// The firewall goes last. A device of the TAP's name that is not ours stays, and is no error: it was there before.
    async fn remove(&self, slot: Slot) -> Result<()> {
        let plan = self.plan(slot);
        let device = |source| NetworkError::Link { slot, source };
        plan.end(Role::Firewall).await?;
        plan.end(Role::Dhcp).await?;
        Link::new(&plan).map_err(device)?.remove().await.map_err(device)?;
        firewall::remove(&plan).await.map_err(|source| NetworkError::Firewall { slot, source })?;
        for name in dhcp::FILES.iter().chain([&LISTING]) {
            self.remove_file(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
