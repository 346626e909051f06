//! The network of a VM: TAP, firewall table, DHCP and DNS.
//!
//! Slot n has the TAP `vm{n}`, the gateway 172.16.{4n}.1/30 on it, the guest at .2 with MAC 02:00:00:00:00:{n+1}.
//! A [`NetworkPolicy`] says what the guest may reach.
//!
//! Every part carries a mark of its workspace: the TAP in its alias ([`tap`]), the table in its name ([`firewall`]),
//! rules in Docker's chain in their comment ([`docker`]), dnsmasq and nft in their environment ([`processes`]). A part is
//! found by its mark, and removed only with it. [`Network::build`] refuses to begin if a device of another workspace or
//! program has the name of the TAP.
//!
//! # What a crash leaves
//!
//! `build` makes the parts in this order, and each one can be told from a missing one at the next call of `find`:
//!
//! | killed while | left behind | the next `build` or `remove` |
//! |---|---|---|
//! | nft replaces the table | the old table or the new one, never half of one; perhaps an nft that still runs | ends nft before it touches the table |
//! | `firewall.json` is written | a table without its record, or with a torn one | replaces the table, as the record does not fit |
//! | the TAP is made | nothing: a TAP without its alias ends with the process that made it | makes the TAP |
//! | the TAP gets its address and comes up | a marked TAP that is not whole | mends the TAP, or makes it anew |
//! | dnsmasq starts | one or two dnsmasqs with the mark, or a configuration file alone | ends them, and starts dnsmasq |
//!
//! `remove` ends the processes first, so that none of them brings anything back, and removes the table after the TAP, so
//! that a guest is never without its firewall. A `remove` that was killed is repeated, and succeeds for parts that are
//! gone. What stays after it is IPv4 forwarding of the host, which `build` turns on: nixbox cannot know what else has
//! come to need it.
//!
//! # Who may use this
//!
//! Root, or a user whose nixbox has CAP_NET_ADMIN, CAP_NET_RAW and CAP_NET_BIND_SERVICE. nixbox hands these to nft and
//! dnsmasq only ([`tool`]). Such a nixbox makes its users administrators of the host's network, so it is for a group of
//! trusted users.
//!
//! # A second firewall backend
//!
//! There is no seam for one: [`HostNetwork`] calls the functions of [`firewall`], and dnsmasq fills a set of nftables
//! ([`firewall::ALLOWED_SET`]). A second backend would get a trait with the five functions that `firewall` exports
//! (`tables` and `list` to find, `asked`, `apply`, `remove`), a line of dnsmasq's configuration from the backend, and a
//! file beside `firewall.rs`.

mod dhcp;
mod docker;
mod firewall;
mod nft;
mod plan;
mod processes;
mod tap;
mod tool;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

pub use super::program::ProgramError;
pub use tap::LinkError;

use super::process::{ProcessError, ProcessMark};
use crate::files::FileError;
use crate::world::{
    Failure, Generation, Network, NetworkMode, NetworkPolicy, Presence, Result, Slot, WorkspaceId,
};
use plan::NetworkPlan;
use tap::{FoundTap, Link};
use tool::NetworkTool;

/// dnsmasq forks into the background once it serves. That takes milliseconds, or seconds in software emulation.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The record of how nft listed the firewall right after it was made.
const LISTING: &str = "firewall.json";

/// Why the network of a slot cannot be found, built or removed.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("the network of slot {slot}: device")]
    Link { slot: Slot, source: LinkError },
    #[error("the network of slot {slot}: firewall")]
    Firewall { slot: Slot, source: ProgramError },
    #[error("the network of slot {slot}: DHCP and DNS do not start")]
    Start { slot: Slot, source: ProgramError },
    #[error("the network of slot {slot}: DHCP and DNS daemon, or nft")]
    Process { slot: Slot, source: ProcessError },
    /// A file in the runtime directory.
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{0:?} must be a directory of this user that nobody else may write to, because dnsmasq reads its configuration there"
    )]
    UnsafeDirectory(PathBuf),
    #[error(
        "{0:?} cannot be the runtime directory: a path without line breaks, `#`, quotes and backslashes is needed"
    )]
    OddDirectory(PathBuf),
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
}

/// The network on this host, in the network namespace of the calling thread.
#[derive(Debug, Clone)]
pub struct HostNetwork {
    settings: NetworkSettings,
}

impl HostNetwork {
    /// Touches nothing yet.
    #[must_use]
    pub fn new(settings: NetworkSettings) -> Self {
        Self { settings }
    }

    fn plan(&self, slot: Slot) -> NetworkPlan {
        NetworkPlan::new(slot, self.settings.workspace, self.settings.owner)
    }

    fn configuration(&self, plan: &NetworkPlan) -> String {
        let upstreams = dhcp::upstreams(&self.settings.resolv_conf, dhcp::RESOLVED.as_ref());
        dhcp::configuration(plan, &self.settings.policy, &upstreams, &self.settings.runtime)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.settings.runtime.join(name)
    }

    /// Writes a file anew. Whatever has its name is removed first, so a link is not followed.
    fn write(&self, name: &str, content: &str) -> Result<(), NetworkError> {
        self.remove_file(name)?;
        let path = self.file(name);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = opened.and_then(|mut file| file.write_all(content.as_bytes()));
        Ok(written.map_err(FileError::system("write", path))?)
    }

    fn remove_file(&self, name: &str) -> Result<(), NetworkError> {
        let path = self.file(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => Ok(other.map_err(FileError::system("remove", path))?),
        }
    }

    fn check_runtime(&self) -> Result<(), NetworkError> {
        let path = &self.settings.runtime;
        let status = path.symlink_metadata().map_err(FileError::system("examine", path))?;
        let own = status.is_dir() && status.uid() == rustix::process::geteuid().as_raw();
        if !own || status.mode() & 0o022 != 0 {
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
        // An unreadable record counts as missing, and the firewall is made anew.
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

    fn serves(&self, plan: &NetworkPlan) -> Result<bool, NetworkError> {
        let slot = plan.slot;
        let running = processes::find(&plan.dhcp_mark(None));
        let one = running.map_err(|source| NetworkError::Process { slot, source })?.len() == 1;
        // A configuration that cannot be read does not count as the wanted one, and is written anew.
        let configured = std::fs::read_to_string(self.file(dhcp::CONFIGURATION)).ok();
        Ok(one && configured.is_some_and(|text| text == self.configuration(plan)))
    }

    async fn build_daemon(&self, plan: &NetworkPlan, generation: Generation) -> Result<(), NetworkError> {
        if self.serves(plan)? {
            return Ok(());
        }
        let slot = plan.slot;
        end(slot, &plan.dhcp_mark(None)).await?;
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
            mark: Some(&plan.dhcp_mark(Some(generation))),
            input: &[],
            limit: START_LIMIT,
        };
        program.run().await.map(drop).map_err(start)
    }
}

/// Ends what an earlier run left running, and waits for its end.
async fn end(slot: Slot, mark: &ProcessMark) -> Result<(), NetworkError> {
    processes::end(mark).await.map_err(|source| NetworkError::Process { slot, source })
}

/// Where `nft` or `dnsmasq` is: the programs that get privileges from nixbox.
///
/// # Errors
/// [`ProgramError::Missing`], with the directories that were searched.
pub fn program_path(name: &'static str) -> Result<PathBuf, ProgramError> {
    tool::locate(name)
}

/// Whether the installed dnsmasq can fill nftables sets, as filtered mode needs. Version 2.87 was the first that could.
///
/// # Errors
/// If dnsmasq cannot be run.
pub async fn fills_sets() -> Result<bool, ProgramError> {
    let program = NetworkTool {
        name: "dnsmasq",
        arguments: &["--version"],
        mark: None,
        input: &[],
        limit: START_LIMIT,
    };
    Ok(dhcp::fills_sets(&String::from_utf8_lossy(&program.run().await?.stdout)))
}

#[async_trait]
impl Network for HostNetwork {
    /// A device with the name of the TAP and without the mark of this workspace does not count.
    async fn find(&self, slot: Slot) -> Result<Presence> {
        let plan = self.plan(slot);
        let device = |source| NetworkError::Link { slot, source };
        let found = Link::new(&plan).map_err(device)?.find().await.map_err(device)?;
        let unlisted = |source| NetworkError::Firewall { slot, source };
        let tables = firewall::tables(&plan).await.map_err(unlisted)?;
        let listing = firewall::list(&plan, tables).await.map_err(unlisted)?;
        let whole = matches!(&found, FoundTap::Marked(device) if device.whole(&plan))
            && listing.as_ref().is_some_and(|listing| self.is_recorded(&plan, listing))
            && self.serves(&plan)?
            && (self.settings.policy.mode == NetworkMode::Off || tap::forwards().map_err(device)?);
        if whole {
            return Ok(Presence::Whole);
        }
        let files = dhcp::FILES.iter().chain([&LISTING]);
        let failed = |source| NetworkError::Process { slot, source };
        let none = !matches!(found, FoundTap::Marked(_))
            && listing.is_none()
            && processes::find(&plan.dhcp_mark(None)).map_err(failed)?.is_empty()
            && files.map(|name| self.file(name)).all(|path| path.symlink_metadata().is_err());
        Ok(if none { Presence::Absent } else { Presence::Partial })
    }

    /// The firewall is made before the TAP, so that no packet passes without it. Parts that are whole stay as they are,
    /// with the addresses that dnsmasq has put into its set.
    async fn build(&self, slot: Slot, generation: Generation) -> Result<()> {
        let plan = self.plan(slot);
        let device = |source| NetworkError::Link { slot, source };
        self.check_runtime()?;
        let link = Link::new(&plan).map_err(device)?;
        match link.find().await.map_err(device)? {
            FoundTap::Foreign(found) => return Err(device(link.foreign(found)).into()),
            FoundTap::Marked(found) if found.whole(&plan) => {}
            // A dnsmasq of an earlier device would go on listening on that device.
            FoundTap::Marked(_) | FoundTap::Nothing => {
                end(slot, &plan.dhcp_mark(None)).await?;
            }
        }
        end(slot, &plan.firewall_mark()).await?;
        self.build_firewall(&plan).await?;
        link.build(generation).await.map_err(device)?;
        if self.settings.policy.mode != NetworkMode::Off {
            tap::forward().map_err(device)?;
        }
        Ok(self.build_daemon(&plan, generation).await?)
    }

    /// A device with the name of the TAP and without the mark of this workspace stays, and is not an error.
    async fn remove(&self, slot: Slot) -> Result<()> {
        let plan = self.plan(slot);
        let device = |source| NetworkError::Link { slot, source };
        end(slot, &plan.firewall_mark()).await?;
        end(slot, &plan.dhcp_mark(None)).await?;
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
