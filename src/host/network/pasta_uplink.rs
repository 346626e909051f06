//! The uplink of an ordinary user's VM: pasta, of the package passt.
//!
//! pasta makes the device [`INNER`] in the network namespace of the VM, and opens a socket in the host's network, as any
//! program of the user does, for each connection that comes out of the device. It needs no right on the host, and the host
//! has no device, address or rule for it. nixbox turns off what pasta maps by default: no port of the namespace is
//! forwarded to the host, none of the host to the namespace, and the address of the gateway is not that of the host.
//! Addresses of the host are refused by the table in the namespace, because pasta would connect to them.
//!
//! The addresses of the device are those of the first network of the pool that is not the guest's. The namespace alone sees
//! them, so every VM has the same.
//!
//! pasta is the child of a process that bears its mark: see [`super::pasta`].

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;

use super::firewall::AddressRange;
use super::inside::{COMMAND, Opened};
use super::link::{LinkError, Netlink};
use super::namespace::{NamespaceError, NetworkNamespace};
use super::pasta::{VERB, said};
use super::plan::NetworkPlan;
use super::uplink::{FoundUplink, INNER, Uplink, UplinkError, UplinkPlan};
use super::{marked, tool};
use crate::host::process::{ProcessError, ProcessMark};
use crate::host::program::{self, ProgramError};
use crate::host::systemd::scope::Scope;
use crate::world::UplinkPool;

/// The program.
pub(super) const NAME: &str = "pasta";
/// pasta begins to serve within milliseconds, and within seconds in software emulation.
const LIMIT: Duration = Duration::from_secs(20);
/// The addresses of Ethernet that pasta and the device have. They are local ones, and the namespace alone sees them.
const OUTER_MAC: &str = "02:00:00:00:00:01";
const INNER_MAC: &str = "02:00:00:00:00:02";

/// Why pasta does not connect a VM with the host's network.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum PastaUplinkError {
    #[error("the uplink of a VM of an ordinary user is pasta; with network.mode = \"off\" the VM needs none")]
    Missing(#[source] ProgramError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("cannot {action}")]
    System { action: &'static str, source: io::Error },
    #[error("pasta ended before it had connected the VM: {said}")]
    NotStarted { said: String },
    #[error("pasta has not connected the VM within {LIMIT:?}, and was ended")]
    Slow,
    #[error("the namespaces of the VM ended while pasta was started")]
    NoNamespace,
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> PastaUplinkError {
    move |source| PastaUplinkError::System { action, source: source.into() }
}

/// Where pasta is. It gets no right from nixbox, so the directories of the user's PATH are searched first.
pub fn path() -> Result<PathBuf, ProgramError> {
    program::locate(NAME, "passt", program::path_directories())
}

/// Addresses that mean the host itself to a socket of the host, whatever addresses the host has.
pub(super) fn always_refused() -> [AddressRange; 2] {
    [AddressRange::new(Ipv4Addr::UNSPECIFIED, 8), AddressRange::new(Ipv4Addr::LOCALHOST, 8)]
}

/// The uplink of a VM through pasta.
pub(super) struct Pasta<'a> {
    pub(super) plan: &'a NetworkPlan,
    pub(super) pool: &'a UplinkPool,
    pub(super) host: &'a Netlink,
    pub(super) inside: &'a Netlink,
    pub(super) namespace: &'a NetworkNamespace,
}

impl Pasta<'_> {
    fn uplink(&self) -> Uplink<'_> {
        Uplink { plan: self.plan, pool: self.pool, host: self.host, inside: self.inside }
    }

    /// The addresses of the device.
    fn wanted(&self) -> Result<UplinkPlan, UplinkError> {
        let plans = self.pool.uplinks().map(|first| UplinkPlan::of_device(INNER.to_owned(), first));
        let mut free = plans.filter(|plan| !plan.range().overlaps(AddressRange::new(self.plan.gateway, 30)));
        free.next().ok_or_else(|| UplinkError::NoneFree { pool: self.pool.clone() })
    }

    /// Finds the uplink, and changes nothing.
    pub(super) async fn find(&self) -> Result<FoundUplink, PastaUplinkError> {
        let parents = marked::find(&self.plan.uplink_mark(None))?.len();
        let there = self.inside.get(INNER).await?.is_some();
        let wanted = self.wanted()?;
        Ok(match (parents, there) {
            (0, false) => FoundUplink::Nothing,
            (1, true) if self.serves(&wanted).await? => FoundUplink::Whole(wanted),
            _ => FoundUplink::Partial,
        })
    }

    /// Whether the device is as pasta sets it up.
    async fn serves(&self, wanted: &UplinkPlan) -> Result<bool, LinkError> {
        let Some(device) = self.inside.get(INNER).await? else { return Ok(false) };
        let uplink = self.uplink();
        Ok(uplink.is_set(self.inside, &device, wanted.inner()).await? && uplink.is_routed(wanted).await?)
    }

    /// Starts pasta anew, unless the uplink is whole. `mark` and `scope` are for the parent of pasta.
    pub(super) async fn build(
        &self,
        mark: &ProcessMark,
        scope: Option<&Scope>,
    ) -> Result<UplinkPlan, PastaUplinkError> {
        if let FoundUplink::Whole(plan) = self.find().await? {
            return Ok(plan);
        }
        self.remove().await?;
        let wanted = self.wanted()?;
        self.start(&wanted, mark, scope).await?;
        Ok(wanted)
    }

    /// Ends pasta, and with it the device.
    pub(super) async fn remove(&self) -> Result<(), PastaUplinkError> {
        end(self.plan).await?;
        // The device ends with pasta, unless pasta has outlived its parent by an instant.
        if let Some(device) = self.inside.get(INNER).await? {
            self.inside.delete(device.header.index, INNER).await?;
        }
        Ok(())
    }

    /// Brings the device up again that was taken down, with the route that it lost.
    pub(super) async fn join(&self) -> Result<(), PastaUplinkError> {
        Ok(self.uplink().join(&self.wanted()?).await?)
    }

    async fn start(
        &self,
        wanted: &UplinkPlan,
        mark: &ProcessMark,
        scope: Option<&Scope>,
    ) -> Result<(), PastaUplinkError> {
        let program = path().map_err(PastaUplinkError::Missing)?;
        let holder = marked::find(&self.plan.holder_mark(None))?;
        let holder = holder.first().ok_or(PastaUplinkError::NoNamespace)?.pid();
        // The changes are watched from here on, so that none is missed.
        let [changes] = self.namespace.open([Opened::Changes]).await?;
        let changes = Changes::new(changes).map_err(failed("watch the devices of the VM's network"))?;
        let mut command = tool::own_daemon(mark, scope);
        command
            .arg(COMMAND)
            .arg(VERB)
            .arg(program)
            .args(arguments(holder, wanted, self.plan.mtu))
            .stdin(Stdio::null());
        let mut parent = command.spawn().map_err(failed("start nixbox's own program for pasta"))?;
        let served = async {
            while !self.serves(wanted).await? {
                changes.next().await.map_err(failed("watch the devices of the VM's network"))?;
            }
            Ok::<_, PastaUplinkError>(())
        };
        let begun = async {
            tokio::select! {
                served = served => served,
                said = last_words(&mut parent) => Err(PastaUplinkError::NotStarted { said }),
            }
        };
        match tokio::time::timeout(LIMIT, begun).await {
            Ok(begun) => begun,
            Err(_elapsed) => {
                end(self.plan).await?;
                Err(PastaUplinkError::Slow)
            }
        }
    }
}

/// Ends the parent of pasta, and pasta with it.
pub(super) async fn end(plan: &NetworkPlan) -> Result<(), PastaUplinkError> {
    Ok(marked::end(&plan.uplink_mark(None)).await?)
}

/// Waits for the end of the parent, and returns what it said.
async fn last_words(parent: &mut Child) -> String {
    let said = match parent.stderr.take() {
        Some(stderr) => said(stderr).await,
        None => String::new(),
    };
    // What it said tells more than its status.
    drop(parent.wait().await);
    said
}

/// The command line of pasta. The interface `lo` is named so that pasta needs no interface of the host with a default
/// route: a laptop without a network can start a VM, and the VM has the network when the laptop has.
fn arguments(holder: u32, wanted: &UplinkPlan, mtu: u32) -> Vec<String> {
    let namespace = |kind: &str| format!("/proc/{holder}/ns/{kind}");
    let (inner, outer) = (wanted.inner().to_string(), wanted.outer().to_string());
    let (network, user) = (namespace("net"), namespace("user"));
    let mtu = mtu.to_string();
    let pairs: [(&str, &str); 14] = [
        ("--netns", &network),
        ("--userns", &user),
        ("-t", "none"),
        ("-u", "none"),
        ("-T", "none"),
        ("-U", "none"),
        ("-I", INNER),
        ("-i", "lo"),
        ("-a", &inner),
        ("-n", "255.255.255.252"),
        ("-g", &outer),
        ("-m", &mtu),
        ("-M", OUTER_MAC),
        ("--ns-mac-addr", INNER_MAC),
    ];
    let flags = ["-f", "-q", "-4", "--config-net", "--no-map-gw", "--no-dhcp", "--no-ndp", "--no-ra"];
    let pairs = pairs.into_iter().flat_map(|(name, value)| [name, value]);
    flags.into_iter().chain(pairs).map(str::to_owned).collect()
}

/// What changes among the devices, addresses and routes of a network namespace.
struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    /// `socket` is a netlink socket that is told of the changes.
    fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        // Deprecated for types that can change their descriptor while it is watched, and its successor is unsafe; an
        // OwnedFd cannot change it.
        #[allow(deprecated)]
        Ok(Self(AsyncFd::with_interest(socket, Interest::READABLE)?))
    }

    /// Waits for the next change. What has changed is not read: it is asked for anew.
    async fn next(&self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        loop {
            let mut ready = self.0.readable().await?;
            let read = |socket: &AsyncFd<OwnedFd>| {
                match rustix::net::recv(socket.get_ref().as_fd(), &mut buffer, RecvFlags::empty()) {
                    // So many changes came that the kernel dropped some.
                    Ok(_) | Err(rustix::io::Errno::NOBUFS) => Ok(()),
                    Err(errno) => Err(errno.into()),
                }
            };
            if let Ok(read) = ready.try_io(read) {
                return read;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pasta_maps_nothing_between_the_host_and_the_namespace() {
        let plan = UplinkPlan::of_device(INNER.to_owned(), Ipv4Addr::new(203, 0, 113, 0));
        let line = arguments(77, &plan, 1400).join(" ");
        for part in [
            "-t none",
            "-u none",
            "-T none",
            "-U none",
            "--no-map-gw",
            "-4",
            "-a 203.0.113.2",
            "-g 203.0.113.1",
            "-m 1400",
            "--netns /proc/77/ns/net",
            "--userns /proc/77/ns/user",
        ] {
            assert!(format!(" {line} ").contains(&format!(" {part} ")), "{part} in {line}");
        }
    }
}
