//! The follower: the process that keeps the network of a VM in step with the networks of the host while the VM runs.
//!
//! - It keeps the set of the host's addresses current that the table in the namespace refuses.
//! - It looks whether the addresses of the uplink overlap an address, route or neighbour of the host. If they do, the uplink
//!   is made anew with a free pair of the pool. If no pair is free, the VM has no uplink until one becomes free. An uplink that
//!   somebody has deleted is made anew too. The address and the routes of the guest stay.
//!
//! # Order
//!
//! The follower subscribes to the kernel's messages first, then looks at the networks, brings the set up to date, and only
//! then says that it serves; the guest is started after that. So no address that the host gets falls between the two. Where
//! a set cannot be brought up to date, the uplink is cut until it can be: a guest never goes on with a set that is known to
//! be old. For the milliseconds between a new address and the set, the table on the host refuses what is the host's by its
//! routing, which needs no list.
//!
//! # A process of its own
//!
//! The follower is not a part of the [`keeper`], because the two must not share rights. The keeper reads what a guest has
//! written and has no capability. The follower reads what the kernel writes and nothing else, and keeps `CAP_NET_ADMIN`
//! (devices, addresses, nftables), and `CAP_NET_RAW` and `CAP_NET_BIND_SERVICE`, which a program that nixbox starts for the
//! network is handed with it. All others are given up, also for the programs that it starts. One thread is in the namespace
//! and starts the nft that works there, as no thread may enter it any more.
//!
//! The follower of an ordinary user's VM has these capabilities in the user namespace of the workspace alone. It leaves pasta
//! to the commands of nixbox, because pasta has no part on the host that could be in the way of a network.
//!
//! A command that changes the network ends the follower first and starts another one last, so the two never change it at
//! the same time.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::changes::HostChanges;
use super::firewall::{self, AddressRange};
use super::follow_words::{FollowerWords, PROBLEM};
use super::inhabitant::Inhabitant;
use super::inside::{InsideError, Opened};
use super::link::LinkError;
use super::namespace::{FoundNamespace, NetworkNamespace};
use super::plan::NetworkPlan;
use super::site::Site;
use super::uplink::{self, UplinkError};
use super::{HostNetwork, NetworkError, NetworkPlace, NetworkSettings, keeper};
use crate::host::sudo;
use crate::world::{Generation, error_chain};

/// How long the follower waits for a change, after it could not do what the last one asked for.
const RETRY: Duration = Duration::from_secs(5);

/// Why the follower does not follow.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum FollowerError {
    #[error("cannot {action}")]
    System { action: &'static str, source: io::Error },
    #[error("what nixbox told the follower cannot be read")]
    Words(#[source] serde_json::Error),
    #[error("the network namespace is not there")]
    NoNamespace,
    #[error(transparent)]
    Inside(InsideError),
    #[error("cannot look at the networks of the host")]
    Host(#[source] LinkError),
    #[error("cannot follow the networks of the host")]
    Network(#[source] Box<NetworkError>),
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> FollowerError {
    move |source| FollowerError::System { action, source: source.into() }
}

impl From<NetworkError> for FollowerError {
    fn from(error: NetworkError) -> Self {
        Self::Network(Box::new(error))
    }
}

/// Follows, and returns only if that cannot go on. The process has one thread, in the network of the host.
pub(super) fn follow(namespace: &Path) -> Result<(), FollowerError> {
    let mut words = Vec::new();
    io::stdin().read_to_end(&mut words).map_err(failed("read what nixbox says"))?;
    let words: FollowerWords = serde_json::from_slice(&words).map_err(FollowerError::Words)?;
    let path = namespace;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let namespace = match words.of_user {
        // The scopes are of no matter: the follower starts no process that stays.
        true => NetworkNamespace::of_user(words.workspace, None),
        false => NetworkNamespace::new(directory, words.workspace),
    };
    let network = HostNetwork::new(NetworkSettings {
        workspace: words.workspace,
        owner: words.owner,
        runtime: words.runtime,
        policy: words.policy,
        // It is asked by the keeper and by dnsmasq alone.
        resolv_conf: "/dev/null".into(),
        place: NetworkPlace::Namespace(namespace.clone()),
    });
    let plan = network.standing_plan(words.slot);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("speak to the kernel"))?;
    let never = runtime.block_on(async {
        let enter = |namespace| {
            Inhabitant::new(namespace, keep_capabilities).map_err(failed("enter the network namespace"))
        };
        let open = || File::open(path).map(OwnedFd::from).map_err(failed("open the network namespace"));
        let inhabitant = enter(open()?)?;
        let socket = |what: Opened| {
            let opened = inhabitant.run(move || what.open()).ok_or(FollowerError::NoNamespace)?;
            opened.map_err(FollowerError::Inside)
        };
        let opened = [socket(Opened::Namespace)?, socket(Opened::Netlink)?, socket(Opened::Tables)?];
        let found = namespace.examine(path, opened).await.map_err(NetworkError::from)?;
        let FoundNamespace::Marked(inside) = found else { return Err(FollowerError::NoNamespace) };
        keep_capabilities().map_err(failed("give up capabilities"))?;
        let pool = uplink::range_of(&network.settings.policy.uplink);
        let changes = HostChanges::subscribe(pool).map_err(failed("listen to the kernel"))?;
        let host = Site::host(&plan).map_err(FollowerError::Host)?;
        let site = Site::of(&plan, inside).inhabited_by(inhabitant);
        let follower = Follower { network: &network, plan: &plan, generation: words.generation, host, site };
        follower.run(&changes).await
    })?;
    match never {}
}

/// Keeps what this thread, and the nft that it starts, need.
fn keep_capabilities() -> io::Result<()> {
    let needed = sudo::NEEDED;
    rustix::thread::clear_ambient_capability_set()?;
    let before = rustix::thread::capabilities(None)?;
    if before.effective.contains(CapabilitySet::SETPCAP) {
        // A program that root starts has all that is in this set.
        for one in (CapabilitySet::all() - needed).iter() {
            match rustix::thread::remove_capability_from_bounding_set(one) {
                // This kernel does not know it.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    let permitted = before.permitted & needed;
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: before.inheritable & needed };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

struct Follower<'a> {
    network: &'a HostNetwork,
    plan: &'a NetworkPlan,
    generation: Generation,
    host: Site,
    site: Site,
}

impl Follower<'_> {
    async fn run(&self, changes: &HostChanges) -> Result<Infallible, FollowerError> {
        let mut refused = None;
        self.look(&mut refused).await?;
        io::stdout().write_all(keeper::READY).map_err(failed("say that it serves"))?;
        keeper::silence().map_err(failed("close its output"))?;
        let mut failing = false;
        loop {
            // Without a change there is another attempt, but only after one that failed.
            let changed = match failing {
                true => tokio::time::timeout(RETRY, changes.next()).await.unwrap_or(Ok(())),
                false => changes.next().await,
            };
            changed.map_err(failed("listen to the kernel"))?;
            match self.look(&mut refused).await {
                Ok(()) if failing => {
                    self.join().await?;
                    self.network.files().remove(PROBLEM)?;
                }
                Ok(()) => {}
                Err(error) => {
                    // What is in the set is not known now.
                    refused = None;
                    self.cut().await?;
                    self.network.files().write(PROBLEM, &error_chain(&error))?;
                    failing = true;
                    continue;
                }
            }
            failing = false;
        }
    }

    /// Brings the set and the uplink in step with the networks of the host as they are now.
    async fn look(&self, refused: &mut Option<Vec<AddressRange>>) -> Result<(), NetworkError> {
        let Self { network, plan, host, site, .. } = self;
        let slot = plan.slot;
        let now = network.refused(plan, host).await?;
        if refused.as_ref() != Some(&now) {
            let changed = firewall::refuse(&site.nft, plan, &now).await;
            changed.map_err(|source| NetworkError::Firewall { slot, source })?;
            *refused = Some(now);
        }
        if network.settings.place.of_user().is_some() {
            // pasta has no part on the host, and only a command can start another one.
            return Ok(());
        }
        if network.is_wanted(&network.found_uplink(plan, site, host).await?) {
            return Ok(());
        }
        match network.rebuild_outside(plan, site, host, self.generation).await {
            // The networks of the host win. A change makes room, or nothing does.
            Err(NetworkError::Uplink(UplinkError::NoneFree { .. })) => Ok(()),
            other => other,
        }
    }

    /// Lets nothing out of the namespace.
    async fn cut(&self) -> Result<(), NetworkError> {
        let pool = &self.network.settings.policy.uplink;
        Ok(self.site.uplink(&self.host, self.plan, pool).cut().await?)
    }

    /// Lets packets out of the namespace again, where the uplink was cut and not made anew.
    async fn join(&self) -> Result<(), NetworkError> {
        match self.network.pasta(self.plan, &self.site, &self.host) {
            Some(pasta) => Ok(pasta.join().await?),
            None => Ok(()),
        }
    }
}
