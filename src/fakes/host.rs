//! The host as a test holds it: the test sets faults, cuts the power, kills VMMs, and compares what is there.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fault::{Counts, Fault, Loss, RefusedLoads};
use super::files::{Content, Survival};
use super::guest::FakeSecret;
use super::state::{FakeState, NEIGHBOUR, RAM, VmmProcess, record_name};
use crate::engine::journal::Name;
use crate::world::{
    Failure, Generation, Interrupt, KeptDiskId, NetworkFault, Slot, SnapshotId, VmmState, WorkspaceId,
};

/// A host. Clones are handles to the same host.
#[derive(Clone)]
pub struct Host(Arc<Mutex<FakeState>>);

impl Host {
    /// A host with a VMM of this major version, with shares or without. A VM of another workspace runs on it.
    #[must_use]
    pub fn new(vmm_version: u32, shares: bool) -> Self {
        Self(Arc::new(Mutex::new(FakeState::new(vmm_version, shares))))
    }

    /// A copy of the host, as it is now.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// Sets what is to happen, and starts counting anew. If the program has died this starts it again.
    pub fn set_fault(&self, fault: Fault, interrupt: Option<Interrupt>) {
        let mut state = self.lock();
        state.fault = fault;
        state.counts = Counts::default();
        state.dead = false;
        state.locks.clear();
        state.failing_kind = None;
        state.interrupt = interrupt;
    }

    /// Takes the lock of a workspace, unless it is taken. A program that dies loses it.
    #[must_use]
    pub fn try_lock(&self, workspace: WorkspaceId) -> Option<WorkspaceLock> {
        let fresh = self.lock().locks.insert(workspace);
        fresh.then(|| WorkspaceLock { host: self.clone(), workspace })
    }

    /// What the program did since the fault was set.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Whether the program died.
    #[must_use]
    pub fn died(&self) -> bool {
        self.lock().dead
    }

    /// Cuts the power.
    pub fn power_cut(&self, survival: Survival) {
        self.lock().power_cut(survival);
    }

    /// Kills the VMM of a workspace.
    pub fn kill_vmm(&self, workspace: WorkspaceId) {
        self.lock().kill_vmm(workspace);
    }

    /// Breaks the network of a workspace's VM, as another program does that flushes tables, deletes devices or ends
    /// processes.
    pub fn break_network(&self, workspace: WorkspaceId, fault: NetworkFault) {
        let mut state = self.lock();
        state
            .networks
            .values_mut()
            .filter(|network| network.owner == workspace)
            .for_each(|own| own.suffer(fault));
    }

    /// Lets the guest of a workspace reboot by itself.
    pub fn reboot_guest(&self, workspace: WorkspaceId) {
        let mut state = self.lock();
        state.vmms_of(workspace).into_iter().for_each(|key| state.reboot(key));
    }

    /// Lets the guest of a workspace power off by itself.
    pub fn power_off_guest(&self, workspace: WorkspaceId) {
        let mut state = self.lock();
        state.vmms_of(workspace).into_iter().for_each(|key| state.power_off(key));
    }

    /// Whether the guest that runs in a workspace has no credential in its RAM.
    #[must_use]
    pub fn lacks_credentials(&self, workspace: WorkspaceId) -> bool {
        let state = self.lock();
        let machines = state.vmms_of(workspace).into_iter().filter_map(|key| state.vmms[&key].machine);
        let mut rams = machines.filter_map(|machine| state.ram(workspace, machine.memory));
        rams.any(|ram| ram.secrets.is_empty())
    }

    /// Suspends the host for a while. The clocks of guests that run are behind then.
    pub fn suspend(&self, workspace: WorkspaceId) {
        let mut state = self.lock();
        for key in state.vmms_of(workspace) {
            let machine = state.vmms.get(&key).and_then(|vmm| vmm.machine);
            if let Some(ram) = machine.and_then(|machine| state.ram_mut(workspace, machine.memory)) {
                ram.clock = false;
            }
        }
    }

    /// A hash over all that can be seen of the host, except how far guests have run.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.lock().fingerprint()
    }

    /// The listed snapshots of a workspace, each with a hash over all its files.
    #[must_use]
    pub fn snapshots(&self, workspace: WorkspaceId) -> Vec<(SnapshotId, u64)> {
        self.lock().snapshots(workspace)
    }

    /// Lets guests write to their disk and RAM, this many times.
    pub fn guest_works(&self, ticks: u64) {
        let mut state = self.lock();
        for _ in 0..ticks {
            state.tick();
        }
    }

    /// Flips one bit in a file of a listed snapshot, as a failing disk does.
    pub fn damage_snapshot(&self, workspace: WorkspaceId, snapshot: SnapshotId) {
        let mut state = self.lock();
        let directory = state.snapshots_directory(workspace);
        let ino = state
            .files
            .find(directory, &snapshot.to_string())
            .and_then(|snapshot| state.files.find(snapshot, RAM));
        if let Some(ino) = ino {
            state.files.write_whole(ino, Content::Torn);
        }
    }

    /// Makes the VMM refuse to restore the state of a snapshot, although its files are whole.
    pub fn refuse_to_load(&self, workspace: WorkspaceId, snapshot: SnapshotId) {
        self.lock().unloadable.insert((workspace, snapshot));
    }

    /// Sets which loads of any saved state the VMM refuses.
    pub fn refuse_loads(&self, refused: RefusedLoads) {
        self.lock().refused_loads = refused;
    }

    /// How many guests were ended while they ran, as if their power were cut, and were not let shut down.
    #[must_use]
    pub fn guests_cut_off(&self) -> u64 {
        self.lock().cut_off
    }

    /// How many VMs of a workspace run, whether their guests answer or not.
    #[must_use]
    pub fn running_vms(&self, workspace: WorkspaceId) -> usize {
        let running = |vmm: &&VmmProcess| vmm.state == VmmState::Running;
        let state = self.lock();
        let ours = state.vmms.iter().filter(|((of, _), _)| *of == workspace).map(|(_, vmm)| vmm);
        ours.filter(running).count()
    }

    /// Lets something that has stopped working work again.
    pub fn restore_loss(&self, loss: Loss) {
        self.lock().lost.remove(&loss);
    }

    /// Whether an authenticated command can run in the workspace's guest.
    #[must_use]
    pub fn is_ssh_ready(&self, workspace: WorkspaceId) -> bool {
        self.lock().is_ssh_ready(workspace)
    }

    /// Changes a value of the configuration that shapes a VM.
    pub fn set_shape(&self, key: &str, value: &str) {
        self.lock().today.shape.insert(key.to_owned(), value.to_owned());
    }

    /// Adds shares to the configuration, or removes them. They shape a VM.
    pub fn set_shares(&self, shares: bool) {
        let mut state = self.lock();
        state.today.shares = shares;
        state.today.shape.insert("mounts".to_owned(), shares.to_string());
    }

    /// Removes the built record of the VM that runs in a workspace, as if an earlier nixbox had built the VM.
    pub fn lose_record(&self, workspace: WorkspaceId) {
        let mut state = self.lock();
        let memories: Vec<Generation> =
            state.memories.keys().filter(|(of, _)| *of == workspace).map(|(_, memory)| *memory).collect();
        if let Some(directory) = state.workspace_directory(workspace) {
            memories.into_iter().for_each(|memory| state.files.remove(directory, &record_name(memory)));
        }
    }

    /// Sets EBX of the first subleaf of leaf 7 of CPUID that KVM can give to guests, or that KVM does not say it.
    pub fn set_cpuid(&self, leaf_7: Option<u32>) {
        self.lock().leaf_7 = leaf_7;
    }

    /// Sets the content of a file that VMs are built from.
    pub fn set_content(&self, key: &str, content: u8) {
        self.lock().contents.insert(key.to_owned(), [content; 32]);
    }

    /// Takes a feature from the host's processor, as if the host were another one.
    pub fn lose_cpu_feature(&self, feature: &str) {
        self.lock().cpu.remove(feature);
    }

    /// Installs another major version of the VMM. A VM that runs keeps its own.
    pub fn install_vmm(&self, version: u32) {
        self.lock().version = version;
    }

    /// Lets something stop working.
    pub fn lose(&self, loss: Loss) {
        self.lock().lost.insert(loss);
    }

    /// Lets something stop working at this point, counted from 0 since the fault was set.
    pub fn lose_at(&self, point: u64, loss: Loss) {
        self.lock().loss_at = Some((point, loss));
    }

    /// Sets how many disks of earlier sessions are kept.
    pub fn keep_disks(&self, most: usize) {
        self.lock().keep_disks = most;
    }

    /// The kept disks of a workspace, first the one that was kept first.
    #[must_use]
    pub fn kept_disks(&self, workspace: WorkspaceId) -> Vec<KeptDiskId> {
        self.lock().kept_disks(workspace)
    }

    /// The generations of all disks of a workspace, kept or in use.
    #[must_use]
    pub fn disks(&self, workspace: WorkspaceId) -> BTreeSet<Generation> {
        let state = self.lock();
        let kept = state.kept_disks(workspace).into_iter().map(|kept| kept.disk);
        let names = state.workspace_directory(workspace).into_iter().flat_map(|at| state.files.list(at));
        let number = |name: &str| Some(Generation(name.strip_prefix("disk-")?.parse().ok()?));
        kept.chain(names.filter_map(|(name, _)| number(name))).collect()
    }

    /// Sets whether a guest without fresh entropy must not go on.
    pub fn require_entropy(&self, require: bool) {
        self.lock().requires_entropy = require;
    }

    /// Leaves space for this many bytes of snapshots. Disk and RAM take one byte each.
    pub fn set_room(&self, bytes: u64) {
        self.lock().room = bytes;
    }

    /// Promises this many bytes of that space to RAM files.
    pub fn promise_room(&self, bytes: u64) {
        self.lock().promised = bytes;
    }

    /// Adds scripts for the guest to the configuration, at every point.
    pub fn add_guest_scripts(&self) {
        self.lock().guest_scripts = true;
    }

    /// Renews the credentials of the configuration. A guest gets them at the next injection.
    pub fn renew_credentials(&self) {
        let mut state = self.lock();
        state.secret = FakeSecret(state.secret.0 + 1);
    }

    /// Sets whether a credential in a snapshot keeps it from being made. Otherwise it is taken out of the snapshot.
    pub fn fail_on_leak(&self, fail: bool) {
        self.lock().fails_on_leak = fail;
    }

    /// Whether programs of the guest that runs keep a credential, in RAM and on disk.
    #[must_use]
    pub fn guest_keeps_a_credential(&self, workspace: WorkspaceId) -> bool {
        let state = self.lock();
        let running =
            state.vmms.iter().find(|((of, _), vmm)| *of == workspace && vmm.state == VmmState::Running);
        let Some(machine) = running.and_then(|(_, vmm)| vmm.machine) else { return false };
        let in_ram = state.ram(workspace, machine.memory).is_some_and(|ram| !ram.leaked.is_empty());
        in_ram && state.disk(workspace, machine.disk).is_some_and(|disk| !disk.leaked.is_empty())
    }

    /// Adds a process that uses a share in a guest.
    pub fn use_share(&self, user: &str) {
        self.lock().share_users.push(user.to_owned());
    }

    /// Gives a free slot to the other workspace on this host, whose VM always runs.
    pub fn take_slot(&self, slot: Slot) {
        self.lock().slots.entry(slot).or_insert(NEIGHBOUR);
    }

    /// Removes the journal of a workspace, as a person might do.
    pub fn lose_journal(&self, workspace: WorkspaceId) {
        let mut state = self.lock();
        if let Some(directory) = state.workspace_directory(workspace) {
            state.files.remove(directory, Name::Current.file_name());
        }
    }

    /// The bytes of a workspace's journal.
    #[must_use]
    pub fn journal_bytes(&self, workspace: WorkspaceId) -> Option<Vec<u8>> {
        let state = self.lock();
        let directory = state.workspace_directory(workspace)?;
        match state.files.get(directory, Name::Current.file_name()) {
            Some(Content::Bytes(bytes)) => Some(bytes.clone()),
            _ => None,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, FakeState> {
        // A test that has panicked while it held the lock has failed already.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a point. An error means that the program has died at this point or before.
    pub(super) fn point(&self) -> Result<(), Failure> {
        self.lock().point()
    }
}

/// The lock of a workspace, until it is dropped.
pub struct WorkspaceLock {
    host: Host,
    workspace: WorkspaceId,
}

impl Drop for WorkspaceLock {
    fn drop(&mut self) {
        self.host.lock().locks.remove(&self.workspace);
    }
}
