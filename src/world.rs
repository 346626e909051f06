//! The seams between what nixbox does and what it does it with, and the values that cross them.
//!
//! `operations` sees the world through these traits alone. `host`, `vmm`, `guest` and `store` implement them on a real
//! machine, `fakes` in memory. A [`World`] belongs to one workspace; whatever a seam makes carries a generation, so
//! that things of this operation are told from things of another.
//!
//! What all seams promise:
//! - every call is idempotent: its work may be done, half done or not begun when it is called;
//! - `find`-like calls change nothing, and report what is there rather than what should be;
//! - removing what is not there succeeds; removing what is another's is an error and removes nothing;
//! - a call that takes long looks at its [`Interrupt`] at least every 100 ms, and leaves what it began to its remover.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

mod names;

pub use self::names::{BadSnapshotName, NoSuchSlot, Slot, SnapshotId, SnapshotName};
pub use crate::engine::record::WorkspaceId;
pub use crate::engine::transition::{Failure, Generation, Interrupt};

/// The result of a call to a seam.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// What the guest's kernel calls this boot: `/proc/sys/kernel/random/boot_id`, which lives in RAM alone. A restored
/// guest still has it, a rebooted one has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId(pub [u8; 16]);

/// What of a VM is decided when it is booted or loaded, and by which generation its parts are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Machine {
    /// The VMM process and the share daemons.
    pub vmm: Generation,
    /// The disk images.
    pub disk: Generation,
    /// The RAM file.
    pub memory: Generation,
    /// TAP, addresses, firewall table, DHCP.
    pub slot: Slot,
    /// Whether the shares are devices of the VM from the start; if not, they are attached later.
    pub shares: bool,
}

/// What is known of the VMM of a generation, and of the VM in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmmState {
    /// No VMM of this generation was ever started, as far as can be told; after a reboot of the host nothing can.
    Never,
    /// One was started, and lives no more.
    Gone,
    /// It answers and has no VM.
    Empty,
    /// Its VM has not been booted, or has shut down.
    Stopped,
    /// Its VM runs.
    Running,
    /// Its VM is paused.
    Paused,
    /// It lives, does nothing that can be seen, and has not answered for as long as it was waited for: it counts as lost.
    Silent,
}

impl fmt::Display for VmmState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Never => "not started",
            Self::Gone => "gone",
            Self::Empty => "not created",
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Silent => "not answering",
        })
    }
}

impl VmmState {
    /// Whether there is a VM that holds a running system, paused or not.
    #[must_use]
    pub fn has_system(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// What the VMM's version can do. `vmm/capability.rs` holds the table; nothing else asks for a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ability {
    /// A share mounted in the guest still works, open files too, after `vm.restore`.
    pub shares_survive_restore: bool,
    /// A share mounted in the guest still works after `vm.snapshot` and an in-place `vm.resume`.
    pub shares_survive_resume: bool,
}

/// A version of the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmVersion {
    /// VMM state is not promised to load under another one (Cloud Hypervisor's docs/releases.md).
    pub major: u32,
    /// As the VMM calls itself.
    pub text: String,
}

impl fmt::Display for VmmVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// What a snapshot was made under, and has to be restored under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The VMM that saved it.
    pub vmm: VmmVersion,
    /// What the host's processor could do.
    pub cpu: BTreeSet<String>,
    /// What of the configuration shapes a VM: values by key.
    pub shape: BTreeMap<String, String>,
}

/// Where a snapshot stands on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotState {
    /// Nowhere.
    Absent,
    /// In its staging directory: not listed, of no use to anybody but the operation that makes it.
    Staged,
    /// Committed.
    Listed,
    /// Renamed out of the list, not yet removed.
    Trashed,
}

/// Whether something that has several parts is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Presence {
    /// No part of it.
    Absent,
    /// Some of it, or all of it but not in order.
    Partial,
    /// All of it.
    Whole,
}

/// What a snapshot says of itself: enough to restore it, and to tell whether it fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The snapshot.
    pub id: SnapshotId,
    /// A name given by a person, or none.
    pub name: Option<SnapshotName>,
    /// When it was committed: milliseconds since 1970, UTC.
    pub created_ms: u64,
    /// The slot that the guest's address belongs to.
    pub slot: Slot,
    /// The boot that it was taken of.
    pub boot: BootId,
    /// Whether the shares are attached in the VMM state.
    pub shares: bool,
    /// What it was made under.
    pub origin: Origin,
    /// Every file with its size in bytes and its hash, by name.
    pub files: Vec<FileRecord>,
}

/// A snapshot in the list, whole or not.
#[derive(Debug)]
pub struct ListedSnapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// What it says of itself, or why that cannot be known.
    pub manifest: Result<Manifest>,
}

/// How much of a snapshot is read to find out whether it is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What was touched since it was last read: any file that has not the inode, the size and the change time that it
    /// had then. Sizes and the manifest are always looked at.
    Touched,
    /// Every byte.
    All,
}

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name within the snapshot's directory.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// BLAKE3 of its content.
    pub hash: [u8; 32],
}

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

/// What the guest has of what it should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Equipment {
    /// Its credentials.
    pub credentials: Presence,
    /// Its mounted shares.
    pub mounts: Presence,
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

/// What a VM stands on beside its VMM: the host's processor, and the configuration.
pub trait Ground: Send + Sync {
    /// What the host's processor can do: `flags` of /proc/cpuinfo.
    fn cpu(&self) -> Result<BTreeSet<String>>;
    /// What of the configuration shapes a VM: values by key. A snapshot is of use only where they are the same.
    fn shape(&self) -> BTreeMap<String, String>;
    /// The sources of shares that are not there.
    fn absent(&self) -> Vec<PathBuf>;
}

/// What bears the mark of this workspace, wherever it is: for finding what belongs to no VM.
#[async_trait]
pub trait Leftovers: Send + Sync {
    /// The generations of its processes, RAM files and disk images.
    async fn generations(&self) -> Result<BTreeSet<Generation>>;
}

/// When the user's own scripts run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Processor and configuration.
    pub ground: Arc<dyn Ground>,
    /// What belongs to nobody, perhaps.
    pub leftovers: Arc<dyn Leftovers>,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
}
