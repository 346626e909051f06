//! The seams: one trait for each thing that nixbox acts upon, and [`World`], which has an implementation of each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{
    Ability, BootId, Cpuid, Depth, Equipment, FileRecord, Generation, GuestAudit, GuestScriptPoint,
    GuestScriptsOutcome, HashMethod, HostCpu, Interrupt, KeptDisk, KeptDiskId, ListedSnapshot, Machine,
    Manifest, NetworkFault, Presence, ReadyTimeout, Receipt, RefusedTraffic, Result, Secret, Settlement,
    Slot, SnapshotId, SnapshotState, UnprovenPlace, VmmState, VmmVersion,
};

/// One VMM process per generation, spoken to through its API socket.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// What the running VMM of this generation can do, or the installed program if none is named. Starts nothing.
    async fn ability(&self, of: Option<Generation>) -> Result<Ability>;
    /// Its version, for the same.
    async fn version(&self, of: Option<Generation>) -> Result<VmmVersion>;
    /// The state of the VMM of this generation. If the VMM is still busy with a call of an earlier nixbox, this waits
    /// for that call to end. It returns [`VmmState::Silent`] if the VMM does not answer within a time limit.
    async fn find(&self, generation: Generation) -> Result<VmmState>;
    /// Starts the VMM and waits until its API answers.
    async fn start(&self, generation: Generation) -> Result<()>;
    /// `vm.create` and `vm.boot`.
    async fn boot(&self, machine: &Machine) -> Result<()>;
    /// `vm.pause`, unless it is paused.
    async fn pause(&self, generation: Generation) -> Result<()>;
    /// `vm.resume`, unless it runs.
    async fn resume(&self, generation: Generation) -> Result<()>;
    /// `vm.snapshot` into the staging directory of `into`, synced.
    async fn save(&self, generation: Generation, into: SnapshotId) -> Result<()>;
    /// What CPUID says in the guest of a snapshot, staged or listed, as far as the VMM has saved it.
    async fn saved_cpuid(&self, of: SnapshotId) -> Result<Option<Cpuid>>;
    /// `vm.restore` from a copy of the VMM state of `from`, staged or listed, with its paths rewritten to `machine`'s.
    /// The VM is paused then.
    async fn load(&self, machine: &Machine, from: SnapshotId) -> Result<()>;
    /// The same without the shares that the saved VM has as devices. Its guest still knows the devices, and they no longer
    /// answer.
    async fn load_without_shares(&self, machine: &Machine, from: SnapshotId) -> Result<()>;
    /// Presses the power button, and waits for the VM to stop, with a time limit.
    async fn power_button(&self, generation: Generation) -> Result<()>;
    /// Whether the VMM ends by itself within that time, because a guest that an earlier nixbox asked to shut down may
    /// still be doing so.
    async fn ends(&self, generation: Generation, within: Duration) -> Result<bool>;
    /// Ends the process (TERM, then KILL) and removes its sockets.
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
    /// The slots that no workspace holds.
    async fn free(&self) -> Result<Vec<Slot>>;
    /// Claims the first of `wanted` that no workspace holds. If this workspace holds a slot already, it keeps that one.
    async fn claim(&self, wanted: &[Slot]) -> Result<Slot>;
    /// Gives back the slot, if this workspace holds it.
    async fn release(&self, slot: Slot) -> Result<()>;
}

/// TAP, addresses, firewall table and DHCP of a slot.
#[async_trait]
pub trait Network: Send + Sync {
    /// How much of the network is there.
    async fn find(&self, slot: Slot) -> Result<Presence>;
    /// Builds what is missing.
    async fn build(&self, slot: Slot, generation: Generation) -> Result<()>;
    /// What is wrong with the network of a VM that runs. Changes nothing.
    async fn faults(&self, slot: Slot) -> Result<Vec<NetworkFault>>;
    /// Repairs the network of a VM that runs, as far as that can be done while it runs. What was made anew bears this
    /// generation. Nothing changes where nothing is wrong.
    async fn repair(&self, slot: Slot, generation: Generation) -> Result<()>;
    /// What the guest of a VM that runs was refused. Changes nothing.
    async fn refused_traffic(&self, slot: Slot) -> Result<RefusedTraffic>;
    /// Removes all of it.
    async fn remove(&self, slot: Slot) -> Result<()>;
}

/// The daemons that serve the host's directories, one set per VMM generation.
#[async_trait]
pub trait Shares: Send + Sync {
    /// Whether the configuration has mounts.
    fn wanted(&self) -> bool;
    /// Whether all, some or none of the daemons serve.
    async fn find(&self, generation: Generation) -> Result<Presence>;
    /// Tries everything of a start that can fail because of what the shares hold, and starts nothing.
    async fn rehearse(&self) -> Result<()>;
    /// Each `.nixbox` that the guest can reach, because the host made it anew after the daemons were started.
    async fn exposed(&self, generation: Generation) -> Result<Vec<PathBuf>>;
    /// Starts the daemons, and waits until each listens on its socket.
    async fn start(&self, generation: Generation) -> Result<()>;
    /// Ends the daemons, and removes their sockets.
    async fn stop(&self, generation: Generation) -> Result<()>;
}

/// The VM's disk images, one set per generation.
#[async_trait]
pub trait Disk: Send + Sync {
    /// Whether all, some or none of the images are there.
    async fn find(&self, generation: Generation) -> Result<Presence>;
    /// The most bytes that a capture would take now.
    async fn weight(&self, generation: Generation) -> Result<u64>;
    /// Writes to the medium what the guest has written so far. Cloning data that is not on the medium takes long, and
    /// the VM is paused meanwhile.
    async fn flush(&self, generation: Generation, interrupt: &Interrupt) -> Result<()>;
    /// Clones the images from their templates, or makes empty ones.
    async fn create(&self, generation: Generation, interrupt: &Interrupt) -> Result<()>;
    /// Copies into the staging directory, while the guest runs, the images that cannot be cloned, so that a capture by the
    /// same process has to copy only what changes from now on.
    async fn precopy(&self, generation: Generation, into: SnapshotId, interrupt: &Interrupt) -> Result<()>;
    /// Clones the images into the staging directory, or makes the copies there what the images are now.
    async fn capture(&self, generation: Generation, into: SnapshotId, interrupt: &Interrupt) -> Result<()>;
    /// Clones the images from a snapshot.
    async fn fill(&self, from: SnapshotId, generation: Generation, interrupt: &Interrupt) -> Result<()>;
    /// Removes the images.
    async fn remove(&self, generation: Generation) -> Result<()>;
    /// The kept disks, first the one that was kept first.
    async fn kept(&self) -> Result<Vec<KeptDisk>>;
    /// Keeps the images beside those that VMs use.
    async fn keep(&self, kept: KeptDiskId) -> Result<()>;
    /// Makes a kept disk one that a VM uses.
    async fn take(&self, kept: KeptDiskId) -> Result<()>;
    /// Keeps the images, and removes those that were kept first, until there are as many as the configuration says.
    async fn retire(&self, kept: KeptDiskId) -> Result<()>;
}

/// The VM's RAM file, one per generation.
#[async_trait]
pub trait Memory: Send + Sync {
    /// Whether all, some or nothing of the file is there.
    async fn find(&self, generation: Generation) -> Result<Presence>;
    /// The most bytes that a capture would take now.
    async fn weight(&self, generation: Generation) -> Result<u64>;
    /// How many of the bytes that [`Catalog::free`] counts the RAM files of VMs may still come to occupy.
    async fn promised(&self) -> Result<u64>;
    /// Makes an empty file.
    async fn create(&self, generation: Generation) -> Result<()>;
    /// Copies the file into the staging directory while the guest runs, unless it can be cloned, so that a capture by the
    /// same process has to copy only what changes from now on.
    async fn precopy(&self, generation: Generation, into: SnapshotId, interrupt: &Interrupt) -> Result<()>;
    /// Clones the file into the staging directory, or makes the copy there what the file is now.
    async fn capture(&self, generation: Generation, into: SnapshotId, interrupt: &Interrupt) -> Result<()>;
    /// Copies the file from a snapshot.
    async fn fill(&self, from: SnapshotId, generation: Generation, interrupt: &Interrupt) -> Result<()>;
    /// Removes the file.
    async fn remove(&self, generation: Generation) -> Result<()>;
}

/// What a wipe removes from a running guest and the guest gets back: one backup for each VM, which lies beside its RAM and
/// bears the generation of its RAM. A backup outlives the nixbox that wrote it, and no VM.
#[async_trait]
pub trait Backups: Send + Sync {
    /// Tries, without a change that lasts, what a backup of that many bytes needs. An error says what is missing.
    async fn examine(&self, of: Generation, bytes: u64) -> Result<()>;
    /// Whether there is a backup.
    async fn find(&self, of: Generation) -> Result<Presence>;
    /// Writes the backup, in place of one that is there. Recovery finds it as soon as this has returned, and until the host
    /// or the RAM is gone.
    async fn write(&self, of: Generation, backup: &Secret) -> Result<()>;
    /// The backup, if there is one.
    async fn read(&self, of: Generation) -> Result<Option<Secret>>;
    /// Removes the backup.
    async fn remove(&self, of: Generation) -> Result<()>;
}

/// What each VM of the workspace was built from, written down when it was built: the built records. A record bears the
/// generation of the VM's RAM, which stays the same when the VM is rolled over.
#[async_trait]
pub trait BuiltRecords: Send + Sync {
    /// Whether there is a record of this generation.
    async fn find(&self, generation: Generation) -> Result<Presence>;
    /// Writes down what this world builds a VM from. The record is on the medium when this returns.
    async fn write(&self, generation: Generation) -> Result<()>;
    /// Removes the record.
    async fn remove(&self, generation: Generation) -> Result<()>;
    /// The generations that have a record.
    async fn generations(&self) -> Result<BTreeSet<Generation>>;
}

/// Is told what a call waits for, and for how much longer, when that takes long. For people to read.
pub type WaitObserver<'a> = dyn Fn(&str) + Send + Sync + 'a;

/// The system in the VM, over SSH.
///
/// Every call makes a connection or uses one that was made under the same VMM generation. If the VM is gone, a call
/// fails with [`Failure::Lost`](super::Failure::Lost).
#[async_trait]
pub trait Guest: Send + Sync {
    /// Waits until an authenticated command has run, and returns the boot that it ran in. Only this means "ready".
    async fn ready(&self, machine: &Machine) -> Result<BootId>;
    /// Reads the credentials that the configuration has now from their sources, all at the same time, and holds them for
    /// as long as this value lives. Reads nothing if it holds them already. It neither needs nor changes a guest.
    async fn resolve_credentials(&self, interrupt: &Interrupt, waits: &WaitObserver<'_>) -> Result<()>;
    /// Tries what wiping, settling and injecting need in the guest, and changes nothing that lasts: to become root, to give
    /// entropy, to measure the clock, whether the files can be written, and whether the guest can be given back what a wipe
    /// takes from it. An error says what cannot be done. Returns how many bytes a backup would have.
    async fn examine(&self, machine: &Machine) -> Result<u64>;
    /// Switches on swap that [`Guest::switch_off_swap`] has switched off, and writes the credentials into the guest. They
    /// are read from their sources first unless they are held. What a snapshot has to be searched for is on the medium
    /// before the guest has it.
    async fn inject(&self, machine: &Machine) -> Result<()>;
    /// Reads what a wipe would remove and nixbox did not write: the histories of shells, and what the configuration lists.
    /// `None` if there is nothing.
    async fn back_up(&self, machine: &Machine) -> Result<Option<Secret>>;
    /// Makes known what the files of the backup hold that looks like a credential, so that the snapshot is searched for it
    /// too, and finds the guest's processes that have a known value in their environment or arguments. What cannot be
    /// examined is part of the answer and no error, as long as the VM is there.
    async fn audit(&self, machine: &Machine, backup: Option<&Secret>) -> Result<GuestAudit>;
    /// Switches off the guest's swap, as far as that can be done, so that what was swapped out is in RAM. Names what stays
    /// on. [`Guest::inject`] switches it on again, also in a guest that was restored.
    async fn switch_off_swap(&self, machine: &Machine) -> Result<Vec<UnprovenPlace>>;
    /// Overwrites and removes every credential, the histories of shells and what the configuration lists, drops the page
    /// cache, and trims the disks. If what nixbox did not write is not as in `backup`, because the guest has written to it,
    /// the answer is `false`, and nothing was removed.
    async fn wipe(&self, machine: &Machine, backup: Option<&Secret>) -> Result<bool>;
    /// Gives back what is in the backup, before what the guest has written to the same files since. A file that begins
    /// with its content in the backup is left as it is. What the guest was given is on its disk when this returns.
    async fn give_back(&self, machine: &Machine, backup: &Secret) -> Result<()>;
    /// Mounts the shares.
    async fn mount(&self, machine: &Machine) -> Result<()>;
    /// The guest's processes that keep a share from being unmounted, because they have a file or a directory of it in
    /// use. For people to read.
    async fn share_users(&self, machine: &Machine) -> Result<Vec<String>>;
    /// Makes the guest forget the shares whose devices the VM no longer has: begins to remove the devices. When the shares
    /// are attached again, `mount` removes the mounts that are there, also those that are in use.
    async fn forget_shares(&self, machine: &Machine) -> Result<()>;
    /// Unmounts the shares.
    async fn unmount(&self, machine: &Machine) -> Result<()>;
    /// Whether credentials (with swap) and mounts are as `inject` and `mount` leave them.
    async fn equipped(&self, machine: &Machine) -> Result<Equipment>;
    /// Gives the guest's kernel fresh entropy, then sets its clock, and says which of the two was done. It is an error if
    /// entropy is required and could not be given.
    async fn settle(&self, machine: &Machine) -> Result<Settlement>;
    /// Sets the guest's clock if it is wrong, as after a suspend of the host, unless a time daemon of the guest's own is at
    /// work. A clock that cannot be set is no error.
    async fn keep_time(&self, machine: &Machine) -> Result<()>;
    /// Whether a guest that cannot be given fresh entropy must not go on.
    fn requires_entropy(&self) -> bool;
    /// How long a guest may take until it is SSH-ready.
    fn ready_timeout(&self) -> ReadyTimeout;
    /// Whether the configuration has scripts that run in the guest at this point.
    fn has_scripts(&self, point: GuestScriptPoint) -> bool;
    /// Runs the scripts of this point in the guest, in order, for so long at most. They run as the guest's user, who can do
    /// in the guest what they can do anyway, and never on the host: so nobody confirms them. A script that fails or takes
    /// too long is told to a person, and is no error.
    async fn run_scripts(
        &self,
        machine: &Machine,
        point: GuestScriptPoint,
        limit: Duration,
        interrupt: &Interrupt,
    ) -> Result<GuestScriptsOutcome>;
    /// Tells a person that the scripts of this point may have run already, and are run again.
    fn tell_of_rerun(&self, point: GuestScriptPoint);
    /// Asks the guest to shut down.
    async fn shut_down(&self, machine: &Machine) -> Result<()>;
}

/// The workspace's snapshots on disk.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// The committed snapshots, oldest first, including damaged ones.
    async fn list(&self) -> Result<Vec<ListedSnapshot>>;
    /// The snapshots that are in their staging directories or in the trash.
    async fn unlisted(&self) -> Result<Vec<SnapshotId>>;
    /// How many bytes are free.
    async fn free(&self) -> Result<u64>;
    /// The state of a snapshot. The state is on the medium when this returns, because the caller's next change depends
    /// on it.
    async fn find(&self, id: SnapshotId) -> Result<SnapshotState>;
    /// Makes its staging directory.
    async fn stage(&self, id: SnapshotId) -> Result<()>;
    /// Whether the staging directory holds a whole VMM state.
    async fn holds_vmm_state(&self, id: SnapshotId) -> Result<bool>;
    /// Compares the files of a listed snapshot with its manifest.
    async fn verify(&self, id: SnapshotId, depth: Depth, interrupt: &Interrupt) -> Result<()>;
    /// Writes the manifest, syncs files and directories, renames the staging directory into the list, and syncs the
    /// list.
    async fn commit(&self, manifest: Manifest) -> Result<()>;
    /// Removes the staging directory.
    async fn discard(&self, id: SnapshotId) -> Result<()>;
    /// Renames it out of the list.
    async fn trash(&self, id: SnapshotId) -> Result<()>;
    /// Removes a snapshot that was renamed out of the list.
    async fn purge(&self, id: SnapshotId) -> Result<()>;
    /// Searches the files of the staging directory for every value that a guest of this workspace was ever given, and
    /// returns the files with their hashes. What was searched and hashed while it was captured is not read again; the
    /// VM runs meanwhile. A value that is found is overwritten in the staging directory, or is an error, as the
    /// configuration says.
    async fn digest(&self, id: SnapshotId, interrupt: &Interrupt) -> Result<Vec<FileRecord>>;
    /// Keeps, as long as this process lives, what the guest was found to hold, for the receipt of a snapshot.
    async fn keep_audit(&self, id: SnapshotId, audit: GuestAudit) -> Result<()>;
    /// What the digest of a snapshot, made by this process, has searched and found, with what was kept of the guest.
    async fn receipt(&self, id: SnapshotId) -> Result<Option<Receipt>>;
}

/// Says what the host's processor can do.
pub type CpuFeatures = dyn Fn() -> Result<HostCpu> + Send + Sync;

/// The files of the host that a VM is built from, and that its shape names by path.
#[async_trait]
pub trait SourceFiles: Send + Sync {
    /// The hash of each file's content, computed like this, by the key of the shape that names the file. A file that cannot
    /// be read is left out. A file that has not changed since the last call is not read again.
    async fn contents(&self, method: HashMethod, interrupt: &Interrupt)
    -> Result<BTreeMap<String, [u8; 32]>>;
}

/// Finds resources that this workspace left behind.
#[async_trait]
pub trait Leftovers: Send + Sync {
    /// The generations of all its processes, RAM files and disk images, wherever they are.
    async fn generations(&self) -> Result<BTreeSet<Generation>>;
}

/// The points at which the user's own scripts run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HookPoint {
    /// Before anything of `up`.
    PreUp,
    /// When the guest is ready.
    PostUp,
    /// Before the guest is stopped.
    PreDown,
    /// When everything is removed.
    PostDown,
}

impl HookPoint {
    /// The key of the configuration that lists the scripts of the point.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::PreUp => "hooks.pre-up",
            Self::PostUp => "hooks.post-up",
            Self::PreDown => "hooks.pre-down",
            Self::PostDown => "hooks.post-down",
        }
    }
}

/// The user's own scripts on the host. They run at least once for each operation that is not interrupted, and once more
/// if a crash makes it impossible to know whether they ran.
#[async_trait]
pub trait Hooks: Send + Sync {
    /// Runs the scripts of this point, in order.
    async fn run(&self, point: HookPoint, interrupt: &Interrupt) -> Result<()>;
}

/// The time of day.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970, UTC.
    fn unix_ms(&self) -> u64;
}

/// All the seams, for one workspace and one description of its VM: the built record of a VM that was built, or today's
/// configuration for a VM that is to be built.
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
    /// What wipes have taken from guests that run.
    pub backups: Arc<dyn Backups>,
    /// What VMs were built from.
    pub records: Arc<dyn BuiltRecords>,
    /// Guest.
    pub guest: Arc<dyn Guest>,
    /// Snapshots.
    pub catalog: Arc<dyn Catalog>,
    /// The user's scripts.
    pub hooks: Arc<dyn Hooks>,
    /// The host's processor.
    pub cpu: Arc<CpuFeatures>,
    /// The values that shape the VM of this world, by key. A snapshot can be restored only where these are the same. Paths
    /// below the workspace are relative to it, so that a workspace can be moved.
    pub shape: Arc<BTreeMap<String, String>>,
    /// The same with all paths absolute, as an earlier nixbox wrote them into manifests.
    pub absolute_shape: Arc<BTreeMap<String, String>>,
    /// The files that the shape names by path.
    pub sources: Arc<dyn SourceFiles>,
    /// The sources of shares that were not there when the configuration was read.
    pub missing_mounts: Arc<[PathBuf]>,
    /// Resources that may be left behind.
    pub leftovers: Arc<dyn Leftovers>,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
}
