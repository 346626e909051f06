//! The seams: one trait for each thing that nixbox acts upon, and [`World`], which holds one of each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{
    Ability, BootId, Depth, Equipment, FileRecord, Generation, Interrupt, ListedSnapshot, Machine, Manifest,
    Presence, Result, Slot, SnapshotId, SnapshotState, VmmState, VmmVersion,
};

/// One VMM process per generation, spoken to through its API socket.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// What the VMM of this generation can do, which lives; without one, what the installed program can. Starts nothing.
    async fn ability(&self, of: Option<Generation>) -> Result<Ability>;
    /// The version of the same.
    async fn version(&self, of: Option<Generation>) -> Result<VmmVersion>;
    /// What is known of the VMM of this generation. Waits for a call that an earlier nixbox made and that the VMM is still
    /// busy with, and for one that does not answer long enough to call it [`VmmState::Silent`].
    async fn find(&self, generation: Generation) -> Result<VmmState>;
    /// Start the VMM and wait until its API answers.
    async fn start(&self, generation: Generation) -> Result<()>;
    /// `vm.create` and `vm.boot`.
    async fn boot(&self, machine: &Machine) -> Result<()>;
    /// `vm.pause`; a paused VM stays paused.
    async fn pause(&self, generation: Generation) -> Result<()>;
    /// `vm.resume`; a running VM runs on.
    async fn resume(&self, generation: Generation) -> Result<()>;
    /// `vm.snapshot` into the staging directory of `into`, which then holds it synced.
    async fn save(&self, generation: Generation, into: SnapshotId) -> Result<()>;
    /// `vm.restore` from a copy of the VMM state of `from`, staged or listed, with its paths rewritten to `machine`'s.
    /// The VM is paused then.
    async fn load(&self, machine: &Machine, from: SnapshotId) -> Result<()>;
    /// Ask the guest to shut down by the power button, and wait for the VM to stop for as long as is sensible.
    async fn power_button(&self, generation: Generation) -> Result<()>;
    /// Whether the VMM ends by itself within that time: a guest that an earlier nixbox asked to shut down may still be at
    /// it.
    async fn ends(&self, generation: Generation, within: Duration) -> Result<bool>;
    /// End the process (TERM, then KILL) and remove its sockets.
    async fn stop(&self, generation: Generation) -> Result<()>;
    /// `vm.add-fs` for every share.
    async fn attach_shares(&self, generation: Generation) -> Result<()>;
    /// `vm.remove-device` for every share.
    async fn detach_shares(&self, generation: Generation) -> Result<()>;
    /// Whether the shares are devices of the VM.
    async fn shares_attached(&self, generation: Generation) -> Result<Presence>;
}

/// The slots of this host, claimed across workspaces.
#[async_trait]
pub trait Slots: Send + Sync {
    /// The slot that this workspace holds.
    async fn held(&self) -> Result<Option<Slot>>;
    /// The slots that nobody holds.
    async fn free(&self) -> Result<Vec<Slot>>;
    /// Claim the first of `wanted` that nobody holds; one that this workspace holds already is kept.
    async fn claim(&self, wanted: &[Slot]) -> Result<Slot>;
    /// Give back the slot, if this workspace holds it.
    async fn release(&self, slot: Slot) -> Result<()>;
}

/// TAP, addresses, firewall table and DHCP of a slot.
#[async_trait]
pub trait Network: Send + Sync {
    /// How much of it is there.
    async fn find(&self, slot: Slot) -> Result<Presence>;
    /// Build it, or what is missing of it.
    async fn build(&self, slot: Slot, generation: Generation) -> Result<()>;
    /// Remove all of it.
    async fn remove(&self, slot: Slot) -> Result<()>;
}

/// The daemons that serve the host's directories, one set per VMM generation.
#[async_trait]
pub trait Shares: Send + Sync {
    /// Whether the configuration has any.
    fn wanted(&self) -> bool;
    /// How many of them serve.
    async fn find(&self, generation: Generation) -> Result<Presence>;
    /// Start them, and wait until each listens on its socket.
    async fn start(&self, generation: Generation) -> Result<()>;
    /// End them, and remove their sockets.
    async fn stop(&self, generation: Generation) -> Result<()>;
}

/// The VM's disk images, one set per generation.
#[async_trait]
pub trait Disk: Send + Sync {
    /// Whether they are there, whole.
    async fn find(&self, generation: Generation) -> Result<Presence>;
    /// How many bytes a capture of them would take now, at most.
    async fn weight(&self, generation: Generation) -> Result<u64>;
    /// Bring to the medium what the guest has written so far: a clone of what is not there yet takes long, and a VM is
    /// paused for it.
    async fn flush(&self, generation: Generation, interrupt: &Interrupt) -> Result<()>;
    /// Clone them from their templates, or make empty ones.
    async fn create(&self, generation: Generation, interrupt: &Interrupt) -> Result<()>;
    /// Clone them into the staging directory.
    async fn capture(&self, generation: Generation, into: SnapshotId, interrupt: &Interrupt) -> Result<()>;
    /// Clone them from a snapshot.
    async fn fill(&self, from: SnapshotId, generation: Generation, interrupt: &Interrupt) -> Result<()>;
    /// Remove them.
    async fn remove(&self, generation: Generation) -> Result<()>;
}

/// The VM's RAM file, one per generation.
#[async_trait]
pub trait Memory: Send + Sync {
    /// Whether it is there, whole.
    async fn find(&self, generation: Generation) -> Result<Presence>;
    /// How many bytes a capture of it would take now, at most.
    async fn weight(&self, generation: Generation) -> Result<u64>;
    /// Make an empty one.
    async fn create(&self, generation: Generation) -> Result<()>;
    /// Copy it into the staging directory.
    async fn capture(&self, generation: Generation, into: SnapshotId, interrupt: &Interrupt) -> Result<()>;
    /// Copy it from a snapshot.
    async fn fill(&self, from: SnapshotId, generation: Generation, interrupt: &Interrupt) -> Result<()>;
    /// Remove it.
    async fn remove(&self, generation: Generation) -> Result<()>;
}

/// The system in the VM, spoken to over SSH.
///
/// Every call makes a connection of its own or uses one made under the same VMM generation. A guest that is gone with
/// its VMM is [`Failure::Lost`].
#[async_trait]
pub trait Guest: Send + Sync {
    /// Wait until an authenticated command has run, and say which boot it ran in. This alone is "ready".
    async fn ready(&self, machine: &Machine) -> Result<BootId>;
    /// Make the credentials of the configuration be there, as the configuration is now.
    async fn inject(&self, machine: &Machine) -> Result<()>;
    /// Overwrite and remove every credential, forget histories, drop the page cache, trim the disks.
    async fn wipe(&self, machine: &Machine) -> Result<()>;
    /// Mount the shares.
    async fn mount(&self, machine: &Machine) -> Result<()>;
    /// Who in the guest keeps a share from being unmounted: a file open, mapped, executed or worked in. For people.
    async fn share_users(&self, machine: &Machine) -> Result<Vec<String>>;
    /// Unmount the shares.
    async fn unmount(&self, machine: &Machine) -> Result<()>;
    /// Whether credentials and mounts are as `inject` and `mount` leave them.
    async fn equipped(&self, machine: &Machine) -> Result<Equipment>;
    /// Force fresh entropy into the kernel's pool, then set the clock.
    async fn settle(&self, machine: &Machine) -> Result<()>;
    /// Ask it to shut down.
    async fn shut_down(&self, machine: &Machine) -> Result<()>;
}

/// The workspace's snapshots on disk.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// The committed ones, oldest first, damaged ones included.
    async fn list(&self) -> Result<Vec<ListedSnapshot>>;
    /// Those that are there and not in the list: in their staging directories, or in the trash.
    async fn unlisted(&self) -> Result<Vec<SnapshotId>>;
    /// How many bytes there is room for.
    async fn free(&self) -> Result<u64>;
    /// Where one stands. What it reports is on the medium: the caller builds upon it.
    async fn find(&self, id: SnapshotId) -> Result<SnapshotState>;
    /// Make its staging directory.
    async fn stage(&self, id: SnapshotId) -> Result<()>;
    /// Whether the staging directory holds a whole VMM state.
    async fn holds_vmm_state(&self, id: SnapshotId) -> Result<bool>;
    /// Compare the files of a listed one with its manifest.
    async fn verify(&self, id: SnapshotId, depth: Depth, interrupt: &Interrupt) -> Result<()>;
    /// Write the manifest, sync files and directories, rename the staging directory into the list, sync the list.
    async fn commit(&self, manifest: Manifest) -> Result<()>;
    /// Remove the staging directory.
    async fn discard(&self, id: SnapshotId) -> Result<()>;
    /// Rename it out of the list.
    async fn trash(&self, id: SnapshotId) -> Result<()>;
    /// Remove what was renamed out of the list.
    async fn purge(&self, id: SnapshotId) -> Result<()>;
    /// The files of the staging directory with their hashes: every byte of them is read. The VM runs by then.
    async fn digest(&self, id: SnapshotId, interrupt: &Interrupt) -> Result<Vec<FileRecord>>;
}

/// Says what the host's processor can do: `flags` of /proc/cpuinfo.
pub type CpuFeatures = dyn Fn() -> Result<BTreeSet<String>> + Send + Sync;

/// What bears the mark of this workspace, wherever it is: for finding what belongs to no VM.
#[async_trait]
pub trait Leftovers: Send + Sync {
    /// The generations of its processes, RAM files and disk images.
    async fn generations(&self) -> Result<BTreeSet<Generation>>;
}

/// When the user's own scripts run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HookPoint {
    /// Before anything of `up`.
    PreUp,
    /// When the guest is ready.
    PostUp,
    /// Before the guest is stopped.
    PreDown,
    /// When everything is cleared away.
    PostDown,
}

/// The user's own scripts on the host. They run at least once for each operation that is not interrupted, and again
/// where a crash hides whether they ran.
#[async_trait]
pub trait Hooks: Send + Sync {
    /// Run those of this point, in order.
    async fn run(&self, point: HookPoint, interrupt: &Interrupt) -> Result<()>;
}

/// The time of day.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970, UTC.
    fn unix_ms(&self) -> u64;
}

/// All the seams, for one workspace.
#[derive(Clone)]
pub struct World {
    /// Cloud Hypervisor.
    pub vmm: Arc<dyn Vmm>,
    /// Slots.
    pub slots: Arc<dyn Slots>,
    /// Network.
    pub network: Arc<dyn Network>,
    /// Shares.
    pub shares: Arc<dyn Shares>,
    /// Disks.
    pub disk: Arc<dyn Disk>,
    /// RAM.
    pub memory: Arc<dyn Memory>,
    /// Guest.
    pub guest: Arc<dyn Guest>,
    /// Snapshots.
    pub catalog: Arc<dyn Catalog>,
    /// The user's scripts.
    pub hooks: Arc<dyn Hooks>,
    /// The host's processor.
    pub cpu: Arc<CpuFeatures>,
    /// What of the configuration shapes a VM, by key. A snapshot can be restored only where these are the same.
    pub shape: Arc<BTreeMap<String, String>>,
    /// The sources of shares that were not there when the configuration was read.
    pub missing_mounts: Arc<[PathBuf]>,
    /// What belongs to nobody, perhaps.
    pub leftovers: Arc<dyn Leftovers>,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
}
