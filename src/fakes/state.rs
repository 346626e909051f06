//! The state of the host, and what happens to it without nixbox: guests run, processes end, the power fails.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::fault::{Counts, Crash, FakeError, Fault, Loss, RefusedLoads};
use super::files::{Content, FakeFiles, Ino, ROOT, Survival};
use super::guest::{DiskImage, FakeHistory, FakeRam, FakeSecret, FakeSpec};
pub(super) use super::parts::{NetworkParts, RamFile, ShareDaemons, VmmProcess};
use crate::world::{
    Ability, Failure, FileRecord, Generation, HashMethod, Interrupt, KeptDiskId, Machine, Presence, Slot,
    SnapshotId, VmmState, WorkspaceId,
};

/// The files of a snapshot.
pub(super) const DISK: &str = "disk";
pub(super) const RAM: &str = "ram";
pub(super) const SAVED: &str = "state";
pub(super) const MANIFEST: &str = "manifest";

/// Another workspace, whose VM always runs. Nothing of it may be changed.
pub(super) const NEIGHBOUR: WorkspaceId = WorkspaceId([0xEE; 16]);

/// How many ticks a guest that runs takes for one line of its history: more than pass from a backup to its comparison while
/// another workspace is at work too. The first tick has a line.
const LINE: u64 = 97;

/// A workspace and a generation of it.
pub(super) type Key = (WorkspaceId, Generation);

#[derive(Clone)]
pub(super) struct FakeState {
    pub(super) version: u32,
    /// The configuration of today. A VM that was built earlier goes by its built record.
    pub(super) today: FakeSpec,
    pub(super) files: FakeFiles,
    pub(super) vmms: BTreeMap<Key, VmmProcess>,
    pub(super) daemons: BTreeMap<Key, ShareDaemons>,
    pub(super) memories: BTreeMap<Key, RamFile>,
    /// What wipes have taken from guests. A backup lies beside the RAM, and survives what the RAM survives.
    pub(super) backups: BTreeMap<Key, FakeHistory>,
    pub(super) networks: BTreeMap<Slot, NetworkParts>,
    pub(super) slots: BTreeMap<Slot, WorkspaceId>,
    pub(super) secret: FakeSecret,
    /// What snapshots of a workspace are searched for. It is on the medium.
    pub(super) known: BTreeSet<(WorkspaceId, FakeSecret)>,
    /// Whether a credential in a snapshot keeps it from being made.
    pub(super) fails_on_leak: bool,
    /// Whether the last attempt to settle a guest met a fault of its call.
    pub(super) settle_failed: bool,
    /// Whether a guest without fresh entropy must not go on.
    pub(super) requires_entropy: bool,
    /// What does not work.
    pub(super) lost: BTreeSet<Loss>,
    /// The point at which something stops working.
    pub(super) loss_at: Option<(u64, Loss)>,
    /// How many disks of earlier sessions are kept.
    pub(super) keep_disks: usize,
    /// The features of the host's processor.
    pub(super) cpu: BTreeSet<String>,
    /// EBX of the first subleaf of leaf 7 of CPUID that KVM can give to guests, if it says so.
    pub(super) leaf_7: Option<u32>,
    /// The contents of the files that a VM is built from.
    pub(super) contents: BTreeMap<String, [u8; 32]>,
    /// The space for snapshots, in bytes.
    pub(super) room: u64,
    /// How much of that space is promised to RAM files, in bytes.
    pub(super) promised: u64,
    /// The snapshots whose state the VMM refuses to restore, though their files are whole.
    pub(super) unloadable: BTreeSet<(WorkspaceId, SnapshotId)>,
    /// The loads that the VMM refuses to roll VMs over with, beginning with the next.
    pub(super) refused_loads: RefusedLoads,
    /// The processes that use a share in a guest.
    pub(super) share_users: Vec<String>,
    pub(super) boots: u64,
    pub(super) salts: u64,
    pub(super) clock_ms: u64,
    pub(super) hooks_run: u64,
    /// Whether the configuration has scripts for the guest, at every point.
    pub(super) guest_scripts: bool,
    /// Whether the last attempt to run scripts in a guest met a fault of its call.
    pub(super) scripts_failed: bool,
    /// How many guests were ended while they ran, as if the power were cut.
    pub(super) cut_off: u64,
    pub(super) fault: Fault,
    pub(super) counts: Counts,
    pub(super) dead: bool,
    pub(super) failing_kind: Option<&'static str>,
    pub(super) interrupt: Option<Interrupt>,
    pub(super) locks: BTreeSet<WorkspaceId>,
}

impl FakeState {
    pub(super) fn new(version: u32, shares_wanted: bool) -> Self {
        let slot = Slot::all().next();
        let network = NetworkParts::all(NEIGHBOUR);
        let generation = Generation(7);
        let neighbour =
            VmmProcess { state: VmmState::Running, shares: Presence::Whole, ..VmmProcess::empty(version) };
        let daemons = ShareDaemons { listening: Presence::Whole, alive: true };
        let memory = RamFile { ram: None, presence: Presence::Whole };
        let mut files = FakeFiles::default();
        let directory = files.directory(ROOT, &NEIGHBOUR.to_string());
        let disk = files.create(directory, "disk-7", Content::Disk(DiskImage::blank()));
        files.sync(disk);
        files.sync_names(directory);
        Self {
            version,
            today: FakeSpec { shares: shares_wanted, shape: BTreeMap::new() },
            files,
            vmms: BTreeMap::from([((NEIGHBOUR, generation), neighbour)]),
            daemons: BTreeMap::from([((NEIGHBOUR, generation), daemons)]),
            memories: BTreeMap::from([((NEIGHBOUR, generation), memory)]),
            backups: BTreeMap::new(),
            networks: slot.map(|slot| (slot, network)).into_iter().collect(),
            slots: slot.map(|slot| (slot, NEIGHBOUR)).into_iter().collect(),
            secret: FakeSecret(1),
            known: BTreeSet::new(),
            fails_on_leak: false,
            settle_failed: false,
            requires_entropy: true,
            lost: BTreeSet::new(),
            loss_at: None,
            keep_disks: 1,
            cpu: BTreeSet::from(["sse2".to_owned()]),
            // avx2 and avx512f.
            leaf_7: Some(1 << 5 | 1 << 16),
            contents: BTreeMap::new(),
            room: 1 << 40,
            promised: 0,
            unloadable: BTreeSet::new(),
            refused_loads: RefusedLoads::None,
            share_users: Vec::new(),
            boots: 0,
            salts: 0,
            clock_ms: 1_800_000_000_000,
            hooks_run: 0,
            guest_scripts: false,
            scripts_failed: false,
            cut_off: 0,
            fault: Fault::None,
            counts: Counts::default(),
            dead: false,
            failing_kind: None,
            interrupt: None,
            locks: BTreeSet::new(),
        }
    }

    /// What becomes of shares under each version of the VMM. The fakes do not read the table in `world/capability.rs`: a
    /// row of it that is wrong would then be wrong in the fakes as well, and the tests of `operations`, which run on the
    /// fakes, would pass. This second statement of the rule is compared with the table by a test below.
    pub(super) fn ability(version: u32) -> Ability {
        Ability { shares_survive_restore: version >= 52, shares_survive_resume: !(52..54).contains(&version) }
    }

    /// The version of a VMM, or of the installed program.
    pub(super) fn version_of(&self, vmm: Option<Key>) -> Result<u32, Failure> {
        let Some(key) = vmm else {
            return Ok(self.version);
        };
        self.answers(key)?;
        let lives = self.vmms.get(&key).filter(|vmm| !vmm.state.has_ended());
        lives.map(|vmm| vmm.version).ok_or(Failure::Lost)
    }

    /// Whether the VMM refuses this load.
    pub(super) fn refuses_to_load(
        &mut self,
        workspace: WorkspaceId,
        from: SnapshotId,
        with_shares: bool,
    ) -> bool {
        let refused = match self.refused_loads {
            RefusedLoads::None | RefusedLoads::Next(0) => false,
            RefusedLoads::Next(loads) => {
                self.refused_loads = RefusedLoads::Next(loads - 1);
                true
            }
            RefusedLoads::WithShares => with_shares,
            RefusedLoads::All => true,
        };
        refused || self.unloadable.contains(&(workspace, from))
    }

    /// An error if there is a VMM and it hangs.
    pub(super) fn answers(&self, vmm: Key) -> Result<(), Failure> {
        let hangs = self.vmms.get(&vmm).is_some_and(|vmm| vmm.hangs);
        if hangs { Err(Failure::world(FakeError::VmmHangs)) } else { Ok(()) }
    }

    /// Whether an authenticated command can run in the workspace's guest.
    pub(super) fn is_ssh_ready(&self, workspace: WorkspaceId) -> bool {
        let running =
            self.vmms.iter().find(|((of, _), vmm)| *of == workspace && vmm.state == VmmState::Running);
        let Some((_, VmmProcess { machine: Some(machine), mangled: false, hangs: false, .. })) = running
        else {
            return false;
        };
        let network = self.networks.get(&machine.slot);
        network.is_some_and(|network| network.owner == workspace && network.presence() == Presence::Whole)
            && self.slots.get(&machine.slot) == Some(&workspace)
    }

    /// What a manifest says of the files of a directory, the manifest itself left out.
    pub(super) fn records(&self, directory: Ino) -> Vec<FileRecord> {
        let files = self.files.list(directory).filter(|(name, _)| *name != MANIFEST);
        let record = |(name, ino): (&str, Ino)| {
            let mut hasher = DefaultHasher::new();
            self.files.content(ino).hash(&mut hasher);
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&hasher.finish().to_le_bytes());
            FileRecord { name: name.to_owned(), size: 1, hash, method: HashMethod::default() }
        };
        files.map(record).collect()
    }

    pub(super) fn point(&mut self) -> Result<(), Failure> {
        if self.dead {
            return Err(Failure::world(FakeError::ProgramDied));
        }
        let here = self.counts.points;
        self.counts.points += 1;
        self.tick();
        self.lost.extend(self.loss_at.filter(|(at, _)| *at == here).map(|(_, loss)| loss));
        match self.fault {
            Fault::CrashAt(at, Crash::Death) if at == here => self.dead = true,
            Fault::CrashAt(at, Crash::PowerCut(survival)) if at == here => {
                self.dead = true;
                self.power_cut(survival);
            }
            Fault::CrashAt(at, Crash::VmmKilled) if at == here => self.kill_every_vmm(),
            Fault::CrashAt(at, Crash::VmmHangs) if at == here => {
                let hanging = self.vmms.iter_mut().filter(|((workspace, _), _)| *workspace != NEIGHBOUR);
                hanging.for_each(|(_, vmm)| vmm.hangs = !vmm.state.has_ended());
            }
            Fault::CrashAt(at, Crash::SharesKilled) if at == here => {
                let killed = self.daemons.iter_mut().filter(|((workspace, _), _)| *workspace != NEIGHBOUR);
                killed.for_each(|(_, daemons)| daemons.alive = false);
            }
            Fault::InterruptAt(at) if at == here => {
                if let Some(interrupt) = &self.interrupt {
                    interrupt.request();
                }
            }
            _ => {}
        }
        if self.dead { Err(Failure::world(FakeError::ProgramDied)) } else { Ok(()) }
    }

    /// Lets guests that run write to RAM and disk.
    pub(super) fn tick(&mut self) {
        let running: Vec<(WorkspaceId, Machine)> = self
            .vmms
            .iter()
            .filter(|(_, vmm)| vmm.state == VmmState::Running && !vmm.hangs)
            .filter_map(|((workspace, _), vmm)| Some((*workspace, vmm.machine?)))
            .collect();
        for (workspace, machine) in running {
            let Some(ram) =
                self.memories.get_mut(&(workspace, machine.memory)).and_then(|file| file.ram.as_mut())
            else {
                continue;
            };
            ram.ticks += 1;
            let ticks = ram.ticks;
            let from = ram.lines;
            if ticks % LINE == 1 {
                ram.lines += 1;
            }
            let written = FakeHistory::of(from, ram.lines);
            self.change_disk(workspace, machine.disk, |disk| {
                disk.ticks = ticks;
                disk.history.append(&written);
            });
        }
    }

    pub(super) fn change_disk(
        &mut self,
        workspace: WorkspaceId,
        generation: Generation,
        change: impl FnOnce(&mut DiskImage),
    ) {
        let Some(directory) = self.workspace_directory(workspace) else {
            return;
        };
        let Some(ino) = self.files.find(directory, &disk_name(generation)) else {
            return;
        };
        if let Content::Disk(mut disk) = self.files.content(ino).clone() {
            change(&mut disk);
            self.files.change_in_place(ino, Content::Disk(disk));
        }
    }

    pub(super) fn disk(&self, workspace: WorkspaceId, generation: Generation) -> Option<&DiskImage> {
        match self.files.get(self.workspace_directory(workspace)?, &disk_name(generation)) {
            Some(Content::Disk(disk)) => Some(disk),
            _ => None,
        }
    }

    /// The kept disks of a workspace, first the one that was kept first.
    pub(super) fn kept_disks(&self, workspace: WorkspaceId) -> Vec<KeptDiskId> {
        let names = self.workspace_directory(workspace).into_iter().flat_map(|at| self.files.list(at));
        let kept = names.filter_map(|(name, _)| {
            let (disk, kept_by) = name.strip_prefix("kept-")?.split_once('-')?;
            Some(KeptDiskId {
                disk: Generation(disk.parse().ok()?),
                kept_by: Generation(kept_by.parse().ok()?),
            })
        });
        let mut kept: Vec<_> = kept.collect();
        kept.sort();
        kept
    }

    /// What the VM was built from whose RAM bears this generation.
    pub(super) fn built(&self, workspace: WorkspaceId, generation: Generation) -> Option<&FakeSpec> {
        match self.files.get(self.workspace_directory(workspace)?, &record_name(generation)) {
            Some(Content::Built(spec)) => Some(spec),
            _ => None,
        }
    }

    pub(super) fn ram(&self, workspace: WorkspaceId, generation: Generation) -> Option<&FakeRam> {
        self.memories.get(&(workspace, generation))?.ram.as_ref()
    }

    pub(super) fn ram_mut(&mut self, workspace: WorkspaceId, generation: Generation) -> Option<&mut FakeRam> {
        self.memories.get_mut(&(workspace, generation))?.ram.as_mut()
    }

    pub(super) fn kill_vmm(&mut self, workspace: WorkspaceId) {
        self.vmms_of(workspace).into_iter().for_each(|key| self.end_vmm(key));
    }

    fn kill_every_vmm(&mut self) {
        let of: BTreeSet<WorkspaceId> = self.vmms.keys().map(|(workspace, _)| *workspace).collect();
        of.into_iter()
            .filter(|workspace| *workspace != NEIGHBOUR)
            .for_each(|workspace| self.kill_vmm(workspace));
    }

    /// Ends a VMM, and the share daemons that it is connected to. Sockets and records stay.
    pub(super) fn end_vmm(&mut self, key: Key) {
        if let Some(vmm) = self.vmms.get_mut(&key).filter(|vmm| !vmm.state.has_ended()) {
            vmm.state = VmmState::Gone;
            vmm.going = false;
            vmm.hangs = false;
            if vmm.shares != Presence::Absent {
                self.end_daemons(key);
            }
        }
    }

    /// Ends a VMM whose guest powers off.
    pub(super) fn power_off(&mut self, key: Key) {
        let lives = self.vmms.get(&key).is_some_and(|vmm| !vmm.state.has_ended());
        self.end_vmm(key);
        if let Some(vmm) = self.vmms.get_mut(&key).filter(|_| lives) {
            vmm.state = VmmState::PoweredOff;
        }
    }

    /// Boots a guest that runs anew. The VMM connects to the share daemons again, and ends if there are none.
    pub(super) fn reboot(&mut self, key: Key) {
        let running = self.vmms.get(&key).filter(|vmm| vmm.state == VmmState::Running && !vmm.hangs);
        let Some((machine, shares)) = running.and_then(|vmm| Some((vmm.machine?, vmm.shares))) else {
            return;
        };
        let served = self.daemons.get(&key).is_some_and(ShareDaemons::serve);
        let history = self.disk(key.0, machine.disk).map(|disk| disk.history.clone());
        let Some(history) = history.filter(|_| served || shares == Presence::Absent) else {
            self.end_vmm(key);
            return;
        };
        self.boots += 1;
        let boot = self.boots;
        if let Some(ram) = self.ram_mut(key.0, machine.memory) {
            *ram = FakeRam { ticks: ram.ticks, ..FakeRam::booted(boot, &history) };
        }
        if let Some(vmm) = self.vmms.get_mut(&key) {
            (vmm.shares_spoilt, vmm.going) = (false, false);
        }
    }

    /// The VMMs of a workspace.
    pub(super) fn vmms_of(&self, workspace: WorkspaceId) -> Vec<Key> {
        self.vmms.keys().filter(|(of, _)| *of == workspace).copied().collect()
    }

    pub(super) fn ask_to_go(&mut self, key: Key) {
        if let Some(vmm) = self.vmms.get_mut(&key).filter(|vmm| vmm.state == VmmState::Running && !vmm.hangs)
        {
            vmm.going = true;
        }
    }

    /// Lets so much time pass that all guests that are shutting down have done so.
    pub(super) fn pass_time(&mut self) {
        let going: Vec<Key> =
            self.vmms.iter().filter(|(_, vmm)| vmm.going && !vmm.hangs).map(|(key, _)| *key).collect();
        going.into_iter().for_each(|key| self.power_off(key));
    }

    pub(super) fn end_daemons(&mut self, key: Key) {
        if let Some(daemons) = self.daemons.get_mut(&key) {
            daemons.alive = false;
        }
    }

    pub(super) fn power_cut(&mut self, survival: Survival) {
        let of_neighbour = |workspace: &WorkspaceId| *workspace == NEIGHBOUR;
        // The power of the other workspace does not fail: what it lost would not be nixbox's fault.
        self.vmms.retain(|(workspace, _), _| of_neighbour(workspace));
        self.daemons.retain(|(workspace, _), _| of_neighbour(workspace));
        self.memories.retain(|(workspace, _), _| of_neighbour(workspace));
        self.backups.retain(|(workspace, _), _| of_neighbour(workspace));
        self.networks.retain(|_, network| of_neighbour(&network.owner));
        self.slots.retain(|_, workspace| of_neighbour(workspace));
        self.files.power_cut(survival);
    }

    pub(super) fn workspace_directory(&self, workspace: WorkspaceId) -> Option<Ino> {
        self.files.find(ROOT, &workspace.to_string())
    }

    pub(super) fn make_workspace_directory(&mut self, workspace: WorkspaceId) -> Ino {
        self.files.directory(ROOT, &workspace.to_string())
    }

    pub(super) fn snapshots_directory(&mut self, workspace: WorkspaceId) -> Ino {
        let directory = self.make_workspace_directory(workspace);
        self.files.directory(directory, "snapshots")
    }

    pub(super) fn snapshots(&mut self, workspace: WorkspaceId) -> Vec<(SnapshotId, u64)> {
        let directory = self.snapshots_directory(workspace);
        let listed = self.files.list(directory).filter_map(|(name, ino)| {
            let id = SnapshotId(Generation(name.parse().ok()?));
            let mut hasher = DefaultHasher::new();
            for (name, file) in self.files.list(ino) {
                (name, self.files.content(file)).hash(&mut hasher);
            }
            Some((id, hasher.finish()))
        });
        let mut listed: Vec<_> = listed.collect();
        listed.sort();
        listed
    }

    pub(super) fn fingerprint(&self) -> u64 {
        let mut still = self.clone();
        for file in still.memories.values_mut() {
            if let Some(ram) = &mut file.ram {
                ram.ticks = 0;
                ram.lines = 0;
            }
        }
        let disks: Vec<Key> = still
            .vmms
            .iter()
            .filter_map(|((workspace, _), vmm)| Some((*workspace, vmm.machine?.disk)))
            .collect();
        for (workspace, disk) in disks {
            still.change_disk(workspace, disk, |disk| {
                disk.ticks = 0;
                disk.history = FakeHistory::default();
            });
        }
        let mut hasher = DefaultHasher::new();
        (still.vmms, still.daemons, still.memories, still.backups).hash(&mut hasher);
        (still.networks, still.slots).hash(&mut hasher);
        still.files.hash_live(&mut hasher);
        hasher.finish()
    }
}

pub(super) fn record_name(generation: Generation) -> String {
    format!("built-{generation}")
}

pub(super) fn disk_name(generation: Generation) -> String {
    format!("disk-{generation}")
}

pub(super) fn kept_name(kept: KeptDiskId) -> String {
    format!("kept-{}-{}", kept.disk, kept.kept_by)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::capability;

    #[test]
    fn the_fakes_and_the_table_of_versions_agree() {
        for major in 51..60 {
            let row = capability::of(&format!("v{major}.0")).unwrap();
            assert_eq!(FakeState::ability(major), row.ability, "v{major}.0");
        }
    }
}
