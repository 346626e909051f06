//! The seams of `world`, on the fake host.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use async_trait::async_trait;

use super::files::{Content, Ino, ManifestFile};
use super::guest::{DiskImage, Mount, Ram, SavedState};
use super::state::{
    DISK, Key, MANIFEST, NetworkParts, RAM, RamFile, SAVED, ShareDaemons, State, VmmProcess,
    disk_name,
};
use super::{Fault, Host, SetFault, Wrong};
use crate::world::{
    Ability, BootId, Catalog, Clock, Disk, Entry, Equipment, Failure, FileRecord, Generation,
    Guest, HookPoint, Hooks, Interrupt, Machine, Manifest, Memory, Network, Presence, Result,
    Shares, Slot, Slots, SnapshotId, Vmm, VmmState, WorkspaceId, World,
};

/// Whether a guest can be worked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// No command can run in it.
    None,
    /// An authenticated command can run in it.
    Ready,
}

/// What a seam says when something is not as it must be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(&'static str);

fn refused<T>(why: &'static str) -> Result<T> {
    Err(Failure::world(Refused(why)))
}

#[derive(Clone)]
struct Seams {
    host: Host,
    workspace: WorkspaceId,
}

pub(super) fn world(host: &Host, workspace: WorkspaceId) -> World {
    host.lock().snapshots_directory(workspace);
    let seams = Arc::new(Seams {
        host: host.clone(),
        workspace,
    });
    World {
        vmm: seams.clone(),
        slots: seams.clone(),
        network: seams.clone(),
        shares: seams.clone(),
        disk: seams.clone(),
        memory: seams.clone(),
        guest: seams.clone(),
        catalog: seams.clone(),
        hooks: seams.clone(),
        clock: seams,
    }
}

pub(super) fn reach(state: &State, workspace: WorkspaceId) -> Reach {
    let running = state
        .vmms
        .iter()
        .find(|((of, _), vmm)| *of == workspace && vmm.state == VmmState::Running);
    let Some((
        _,
        VmmProcess {
            machine: Some(machine),
            mangled: false,
            ..
        },
    )) = running
    else {
        return Reach::None;
    };
    let network = state.networks.get(&machine.slot);
    let whole =
        network.is_some_and(|one| one.owner == workspace && one.presence() == Presence::Whole);
    if whole && state.slots.get(&machine.slot) == Some(&workspace) {
        Reach::Ready
    } else {
        Reach::None
    }
}

/// One part of an effect, between two points.
type Part<'a> = Box<dyn FnOnce(&mut State) -> Result<()> + Send + 'a>;

impl Seams {
    /// A look at the host: it may go wrong, and changes nothing.
    async fn look<T>(
        &self,
        kind: &'static str,
        look: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        match self.wrong(kind) {
            None => look(&mut self.host.lock()),
            Some(Wrong::ErrorBefore | Wrong::ErrorAfter) => Err(Failure::world(SetFault)),
            Some(Wrong::SilentBefore | Wrong::SilentAfter) => std::future::pending().await,
        }
    }

    /// A change of the host in several parts, with a point before each and one behind the last.
    async fn act(&self, kind: &'static str, parts: Vec<Part<'_>>) -> Result<()> {
        let wrong = self.wrong(kind);
        match wrong {
            Some(Wrong::ErrorBefore) => return Err(Failure::world(SetFault)),
            Some(Wrong::SilentBefore) => std::future::pending().await,
            _ => {}
        }
        for part in parts {
            self.host.point()?;
            part(&mut self.host.lock())?;
            // Stage-mates act in between.
            tokio::task::yield_now().await;
        }
        self.host.point()?;
        match wrong {
            Some(Wrong::ErrorAfter) => Err(Failure::world(SetFault)),
            Some(Wrong::SilentAfter) => std::future::pending().await,
            _ => Ok(()),
        }
    }

    fn wrong(&self, kind: &'static str) -> Option<Wrong> {
        let mut state = self.host.lock();
        if state.dead {
            return Some(Wrong::ErrorBefore);
        }
        let here = state.counts.calls;
        state.counts.calls += 1;
        match state.fault {
            Fault::CallGoesWrong(at, wrong) if at == here => Some(wrong),
            Fault::CallsGoWrong(at, wrong) => {
                if at == here {
                    state.wrong_kind = Some(kind);
                }
                (state.wrong_kind == Some(kind)).then_some(wrong)
            }
            _ => None,
        }
    }

    fn key(&self, generation: Generation) -> Key {
        (self.workspace, generation)
    }

    fn directory(&self, state: &mut State) -> Ino {
        state.make_workspace_directory(self.workspace)
    }

    fn staging(&self, state: &mut State, id: SnapshotId) -> Result<Ino> {
        let snapshots = state.snapshots_directory(self.workspace);
        match state.files.find(snapshots, &staging_name(id)) {
            Some(ino) => Ok(ino),
            None => refused("there is no staging directory"),
        }
    }

    fn staged_or_listed(&self, state: &mut State, id: SnapshotId) -> Result<Ino> {
        let snapshots = state.snapshots_directory(self.workspace);
        let found = state.files.find(snapshots, &id.to_string());
        match found.or_else(|| state.files.find(snapshots, &staging_name(id))) {
            Some(ino) => Ok(ino),
            None => refused("there is no such snapshot"),
        }
    }

    /// The RAM of a guest that answers.
    fn guest<'s>(&self, state: &'s mut State, machine: &Machine) -> Result<&'s mut Ram> {
        let found = state
            .vmms
            .get(&self.key(machine.vmm))
            .map_or(VmmState::Never, |vmm| vmm.state);
        match found {
            VmmState::Running if reach(state, self.workspace) == Reach::Ready => state
                .ram_mut(self.workspace, machine.memory)
                .ok_or(Failure::Lost),
            VmmState::Never | VmmState::Gone => Err(Failure::Lost),
            _ => refused("the guest does not answer"),
        }
    }
}

fn staging_name(id: SnapshotId) -> String {
    format!(".staging-{id}")
}

fn trash_name(id: SnapshotId) -> String {
    format!(".trash-{id}")
}

fn nothing<'a>() -> Part<'a> {
    Box::new(|_| Ok(()))
}

#[async_trait]
impl Vmm for Seams {
    async fn ability(&self) -> Result<Ability> {
        self.look("vmm.ability", |state| Ok(state.ability())).await
    }

    async fn find(&self, generation: Generation) -> Result<VmmState> {
        let key = self.key(generation);
        self.look("vmm.find", |state| {
            // A call that a nixbox made which died is carried on by the VMM, and this one waits for it.
            if let Some(id) = state.vmms.get_mut(&key).and_then(|vmm| vmm.saving.take()) {
                self.finish_save(state, key, id)?;
            }
            Ok(state
                .vmms
                .get(&key)
                .map_or(VmmState::Never, |vmm| vmm.state))
        })
        .await
    }

    async fn start(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let start = move |state: &mut State| {
            if state
                .vmms
                .get(&key)
                .is_none_or(|vmm| vmm.state == VmmState::Gone)
            {
                state.vmms.insert(key, VmmProcess::empty());
            }
            Ok(())
        };
        self.act("vmm.start", vec![Box::new(start), nothing()])
            .await
    }

    async fn boot(&self, machine: &Machine) -> Result<()> {
        let key = self.key(machine.vmm);
        let create = |state: &mut State| match state.vmms.get_mut(&key) {
            Some(vmm) if vmm.state == VmmState::Empty => {
                vmm.state = VmmState::Stopped;
                vmm.machine = Some(*machine);
                Ok(())
            }
            Some(vmm) if vmm.state.has_system() || vmm.state == VmmState::Stopped => Ok(()),
            _ => refused("no VMM listens"),
        };
        let boot = |state: &mut State| self.boot_now(state, machine);
        self.act("vmm.boot", vec![Box::new(create), Box::new(boot)])
            .await
    }

    async fn pause(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let pause = move |state: &mut State| match state.vmms.get_mut(&key) {
            Some(vmm) if vmm.state.has_system() => {
                vmm.state = VmmState::Paused;
                Ok(())
            }
            Some(vmm) if vmm.state == VmmState::Gone => Err(Failure::Lost),
            _ => refused("there is no VM to pause"),
        };
        self.act("vmm.pause", vec![Box::new(pause)]).await
    }

    async fn resume(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        self.act(
            "vmm.resume",
            vec![Box::new(move |state: &mut State| {
                self.resume_now(state, key)
            })],
        )
        .await
    }

    async fn save(&self, generation: Generation, into: SnapshotId) -> Result<()> {
        let key = self.key(generation);
        let begin = |state: &mut State| {
            let staging = self.staging(state, into)?;
            if state.files.find(staging, SAVED).is_some() {
                return refused("the VMM's files exist");
            }
            match state.vmms.get_mut(&key) {
                Some(vmm) if vmm.state == VmmState::Paused => vmm.saving = Some(into),
                Some(vmm) if vmm.state == VmmState::Gone => return Err(Failure::Lost),
                _ => return refused("the VM is not paused"),
            }
            state.files.create(staging, SAVED, Content::Torn);
            Ok(())
        };
        let finish =
            |state: &mut State| match state.vmms.get_mut(&key).and_then(|vmm| vmm.saving.take()) {
                Some(id) => self.finish_save(state, key, id),
                None => Err(Failure::Lost),
            };
        self.act("vmm.save", vec![Box::new(begin), Box::new(finish)])
            .await
    }

    async fn load(&self, machine: &Machine, from: SnapshotId) -> Result<()> {
        let load = |state: &mut State| self.load_now(state, machine, from);
        self.act("vmm.load", vec![nothing(), Box::new(load)]).await
    }

    async fn power_button(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let press = move |state: &mut State| {
            state.end_vmm(key);
            Ok(())
        };
        self.act("vmm.power_button", vec![Box::new(press)]).await
    }

    async fn stop(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let end = move |state: &mut State| {
            state.end_vmm(key);
            Ok(())
        };
        let forget = move |state: &mut State| {
            state.vmms.remove(&key);
            Ok(())
        };
        self.act("vmm.stop", vec![Box::new(end), Box::new(forget)])
            .await
    }

    async fn attach_shares(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let attach = move |state: &mut State| {
            if !state.shares_wanted {
                return Ok(());
            }
            let serving = state.daemons.get(&key).is_some_and(ShareDaemons::serve);
            match state.vmms.get_mut(&key) {
                Some(vmm) if vmm.state.has_system() && serving => {
                    vmm.shares = Presence::Whole;
                    vmm.shares_spoilt = false;
                    Ok(())
                }
                Some(vmm) if vmm.state == VmmState::Gone => Err(Failure::Lost),
                _ => refused("no share daemon listens"),
            }
        };
        self.act("vmm.attach_shares", vec![Box::new(attach)]).await
    }

    async fn detach_shares(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let detach = move |state: &mut State| {
            let memory = state
                .vmms
                .get(&key)
                .and_then(|vmm| vmm.machine)
                .map(|machine| machine.memory);
            let mounted = memory
                .and_then(|memory| state.ram(self.workspace, memory))
                .is_some_and(|ram| ram.mount != Mount::No);
            if mounted {
                return refused("the share is mounted in the guest");
            }
            if let Some(vmm) = state.vmms.get_mut(&key) {
                vmm.shares = Presence::Absent;
            }
            state.end_daemons(key);
            Ok(())
        };
        self.act("vmm.detach_shares", vec![Box::new(detach)]).await
    }

    async fn shares_attached(&self, generation: Generation) -> Result<Presence> {
        let key = self.key(generation);
        self.look("vmm.shares_attached", move |state| {
            Ok(match state.vmms.get(&key) {
                Some(_) if !state.shares_wanted => Presence::Whole,
                Some(vmm) => vmm.shares,
                None => Presence::Absent,
            })
        })
        .await
    }
}

impl Seams {
    fn boot_now(&self, state: &mut State, machine: &Machine) -> Result<()> {
        let key = self.key(machine.vmm);
        match state.vmms.get(&key).map(|vmm| vmm.state) {
            Some(VmmState::Running) => return Ok(()),
            Some(VmmState::Stopped) => {}
            _ => return Err(Failure::Lost),
        }
        let Some(ticks) = state
            .disk(self.workspace, machine.disk)
            .map(|disk| disk.ticks)
        else {
            return refused("the disk image is not there");
        };
        self.check_parts(state, machine, machine.shares)?;
        state.boots += 1;
        let boot = state.boots;
        let Some(file) = state.memories.get_mut(&self.key(machine.memory)) else {
            return refused("the RAM file is not there");
        };
        file.ram = Some(Ram {
            ticks,
            ..Ram::booted(boot)
        });
        let shares = if machine.shares {
            Presence::Whole
        } else {
            Presence::Absent
        };
        if let Some(vmm) = state.vmms.get_mut(&key) {
            vmm.state = VmmState::Running;
            vmm.shares = shares;
        }
        Ok(())
    }

    /// What a VMM connects to or opens when a VM is created in it.
    fn check_parts(&self, state: &State, machine: &Machine, shares: bool) -> Result<()> {
        if shares
            && !state
                .daemons
                .get(&self.key(machine.vmm))
                .is_some_and(ShareDaemons::serve)
        {
            return refused("no share daemon listens");
        }
        let tap = state
            .networks
            .get(&machine.slot)
            .is_some_and(|net| net.owner == self.workspace && net.tap);
        if !tap {
            return refused("the TAP is not there");
        }
        match state.memories.get(&self.key(machine.memory)) {
            Some(file) if file.presence == Presence::Whole => Ok(()),
            _ => refused("the RAM file is not there"),
        }
    }

    fn resume_now(&self, state: &mut State, key: Key) -> Result<()> {
        let tap = |state: &State, machine: Machine| {
            state
                .networks
                .get(&machine.slot)
                .is_some_and(|net| net.owner == self.workspace && net.tap)
        };
        let (machine, spoilt) = match state.vmms.get(&key) {
            Some(vmm) if vmm.state == VmmState::Running => return Ok(()),
            Some(VmmProcess {
                state: VmmState::Paused,
                machine: Some(machine),
                shares_spoilt,
                ..
            }) => (*machine, *shares_spoilt),
            Some(vmm) if vmm.state == VmmState::Gone => return Err(Failure::Lost),
            _ => return refused("there is no VM to resume"),
        };
        // A transmit error on a TAP that is down has killed a VM (their issue 8722).
        let mangled = !tap(state, machine);
        if let Some(vmm) = state.vmms.get_mut(&key) {
            vmm.state = VmmState::Running;
            vmm.mangled |= mangled;
        }
        if let Some(ram) = state
            .ram_mut(self.workspace, machine.memory)
            .filter(|ram| spoilt && ram.mount == Mount::Works)
        {
            ram.mount = Mount::Dead;
        }
        Ok(())
    }

    fn finish_save(&self, state: &mut State, key: Key, into: SnapshotId) -> Result<()> {
        let survives = state.ability().shares_survive_resume;
        let Some(vmm) = state
            .vmms
            .get_mut(&key)
            .filter(|vmm| vmm.state == VmmState::Paused)
        else {
            return Err(Failure::Lost);
        };
        let shares = vmm.shares == Presence::Whole;
        vmm.shares_spoilt |= shares && !survives;
        let memory = vmm
            .machine
            .map(|machine| machine.memory)
            .unwrap_or_default();
        let ticks = state.ram(self.workspace, memory).map_or(0, |ram| ram.ticks);
        let Ok(staging) = self.staging(state, into) else {
            return Ok(());
        };
        if let Some(ino) = state.files.find(staging, SAVED) {
            state
                .files
                .write_whole(ino, Content::State(SavedState { ticks, shares }));
        }
        Ok(())
    }

    fn load_now(&self, state: &mut State, machine: &Machine, from: SnapshotId) -> Result<()> {
        let key = self.key(machine.vmm);
        match state.vmms.get(&key).map(|vmm| vmm.state) {
            Some(VmmState::Empty) => {}
            Some(VmmState::Paused) => return Ok(()),
            Some(VmmState::Gone) | None => return Err(Failure::Lost),
            Some(_) => return refused("there is a VM already"),
        }
        let directory = self.staged_or_listed(state, from)?;
        let Some(Content::State(saved)) = state.files.get(directory, SAVED).cloned() else {
            return refused("the saved state does not parse");
        };
        self.check_parts(state, machine, saved.shares)?;
        let breaks_mounts = saved.shares && !state.ability().shares_survive_restore;
        let disk = state
            .disk(self.workspace, machine.disk)
            .map(|disk| disk.ticks);
        let Some(ram) = state.ram_mut(self.workspace, machine.memory) else {
            return Err(Failure::Lost);
        };
        let mangled = ram.ticks != saved.ticks || disk != Some(saved.ticks);
        ram.seeded = false;
        ram.clock = false;
        if breaks_mounts && ram.mount == Mount::Works {
            ram.mount = Mount::Dead;
        }
        if let Some(vmm) = state.vmms.get_mut(&key) {
            vmm.state = VmmState::Paused;
            vmm.machine = Some(*machine);
            vmm.mangled = mangled;
            vmm.shares = if saved.shares {
                Presence::Whole
            } else {
                Presence::Absent
            };
        }
        Ok(())
    }
}

impl VmmProcess {
    fn empty() -> Self {
        Self {
            state: VmmState::Empty,
            machine: None,
            shares: Presence::Absent,
            shares_spoilt: false,
            mangled: false,
            saving: None,
        }
    }
}

impl ShareDaemons {
    pub(super) fn serve(&self) -> bool {
        self.alive && self.listening == Presence::Whole
    }
}

#[async_trait]
impl Slots for Seams {
    async fn held(&self) -> Result<Option<Slot>> {
        self.look("slots.held", |state| {
            Ok(state
                .slots
                .iter()
                .find(|(_, holder)| **holder == self.workspace)
                .map(|(slot, _)| *slot))
        })
        .await
    }

    async fn free(&self) -> Result<Vec<Slot>> {
        self.look("slots.free", |state| {
            Ok(Slot::all()
                .filter(|slot| !state.slots.contains_key(slot))
                .collect())
        })
        .await
    }

    async fn claim(&self, wanted: &[Slot]) -> Result<Slot> {
        let mut claimed = None;
        let claim = |state: &mut State| {
            let mine = |slot: &Slot| {
                state
                    .slots
                    .get(slot)
                    .is_none_or(|holder| *holder == self.workspace)
            };
            claimed = wanted.iter().copied().find(mine);
            if let Some(slot) = claimed {
                state.slots.insert(slot, self.workspace);
            }
            Ok(())
        };
        self.act("slots.claim", vec![Box::new(claim)]).await?;
        claimed.map_or_else(|| refused("every slot is taken"), Ok)
    }

    async fn release(&self, slot: Slot) -> Result<()> {
        let release = move |state: &mut State| {
            if state.slots.get(&slot) == Some(&self.workspace) {
                state.slots.remove(&slot);
            }
            Ok(())
        };
        self.act("slots.release", vec![Box::new(release)]).await
    }
}

#[async_trait]
impl Network for Seams {
    async fn find(&self, slot: Slot) -> Result<Presence> {
        self.look("network.find", |state| {
            let mine = state
                .networks
                .get(&slot)
                .filter(|network| network.owner == self.workspace);
            Ok(mine.map_or(Presence::Absent, NetworkParts::presence))
        })
        .await
    }

    async fn build(&self, slot: Slot, _: Generation) -> Result<()> {
        let owner = self.workspace;
        let tap = move |state: &mut State| {
            let blank = NetworkParts {
                owner,
                tap: false,
                table: false,
                dhcp: false,
            };
            let network = state.networks.entry(slot).or_insert(blank);
            if network.owner != owner {
                return refused("the TAP is another's");
            }
            network.tap = true;
            Ok(())
        };
        let rest = move |state: &mut State| {
            if let Some(network) = state.networks.get_mut(&slot) {
                network.table = true;
                network.dhcp = true;
            }
            Ok(())
        };
        self.act("network.build", vec![Box::new(tap), Box::new(rest)])
            .await
    }

    async fn remove(&self, slot: Slot) -> Result<()> {
        let owner = self.workspace;
        let begin = move |state: &mut State| match state.networks.get_mut(&slot) {
            Some(network) if network.owner == owner => {
                network.dhcp = false;
                network.tap = false;
                Ok(())
            }
            _ => Ok(()),
        };
        let finish = move |state: &mut State| {
            if state
                .networks
                .get(&slot)
                .is_some_and(|network| network.owner == owner)
            {
                state.networks.remove(&slot);
            }
            Ok(())
        };
        self.act("network.remove", vec![Box::new(begin), Box::new(finish)])
            .await
    }
}

#[async_trait]
impl Shares for Seams {
    fn wanted(&self) -> bool {
        self.host.lock().shares_wanted
    }

    async fn find(&self, generation: Generation) -> Result<Presence> {
        let key = self.key(generation);
        self.look("shares.find", move |state| {
            Ok(match state.daemons.get(&key) {
                _ if !state.shares_wanted => Presence::Whole,
                None => Presence::Absent,
                Some(daemons) if daemons.serve() => Presence::Whole,
                Some(_) => Presence::Partial,
            })
        })
        .await
    }

    async fn start(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        if !self.wanted() {
            return Ok(());
        }
        let spawn = move |state: &mut State| {
            if !state.daemons.get(&key).is_some_and(ShareDaemons::serve) {
                state.daemons.insert(
                    key,
                    ShareDaemons {
                        listening: Presence::Partial,
                        alive: true,
                    },
                );
            }
            Ok(())
        };
        let listen = move |state: &mut State| {
            if let Some(daemons) = state.daemons.get_mut(&key) {
                daemons.listening = Presence::Whole;
            }
            Ok(())
        };
        self.act("shares.start", vec![Box::new(spawn), Box::new(listen)])
            .await
    }

    async fn stop(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        if !self.wanted() {
            return Ok(());
        }
        let end = move |state: &mut State| {
            state.end_daemons(key);
            Ok(())
        };
        let forget = move |state: &mut State| {
            state.daemons.remove(&key);
            Ok(())
        };
        self.act("shares.stop", vec![Box::new(end), Box::new(forget)])
            .await
    }
}

#[async_trait]
impl Disk for Seams {
    async fn find(&self, generation: Generation) -> Result<Presence> {
        self.look("disk.find", |state| {
            let directory = self.directory(state);
            Ok(match state.files.get(directory, &disk_name(generation)) {
                None => Presence::Absent,
                Some(Content::Disk(_)) => Presence::Whole,
                Some(_) => Presence::Partial,
            })
        })
        .await
    }

    async fn create(&self, generation: Generation, interrupt: &Interrupt) -> Result<()> {
        self.put_disk("disk.create", generation, interrupt, |_| {
            Ok(DiskImage::blank())
        })
        .await
    }

    async fn capture(
        &self,
        generation: Generation,
        into: SnapshotId,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let begin = |state: &mut State| {
            let staging = self.staging(state, into)?;
            state.files.create(staging, DISK, Content::Torn);
            Ok(())
        };
        let finish = |state: &mut State| {
            interrupt.check()?;
            let staging = self.staging(state, into)?;
            let Some(disk) = state.disk(self.workspace, generation).cloned() else {
                return refused("the disk image is not there");
            };
            if let Some(ino) = state.files.find(staging, DISK) {
                state.files.write_whole(ino, Content::Disk(disk));
            }
            Ok(())
        };
        self.act("disk.capture", vec![Box::new(begin), Box::new(finish)])
            .await
    }

    async fn fill(
        &self,
        from: SnapshotId,
        generation: Generation,
        interrupt: &Interrupt,
    ) -> Result<()> {
        self.put_disk("disk.fill", generation, interrupt, |state| {
            let directory = self.staged_or_listed(state, from)?;
            match state.files.get(directory, DISK) {
                Some(Content::Disk(disk)) => Ok(disk.clone()),
                _ => refused("the snapshot's disk is not whole"),
            }
        })
        .await
    }

    async fn remove(&self, generation: Generation) -> Result<()> {
        let remove = |state: &mut State| {
            let directory = self.directory(state);
            state.files.remove(directory, &disk_name(generation));
            Ok(())
        };
        let sync = |state: &mut State| {
            let directory = self.directory(state);
            state.files.sync_names(directory);
            Ok(())
        };
        self.act("disk.remove", vec![Box::new(remove), Box::new(sync)])
            .await
    }
}

impl Seams {
    /// A disk image of our own: whole, or known not to be, and on the medium when it is reported.
    async fn put_disk(
        &self,
        kind: &'static str,
        generation: Generation,
        interrupt: &Interrupt,
        image: impl FnOnce(&mut State) -> Result<DiskImage> + Send,
    ) -> Result<()> {
        let name = disk_name(generation);
        let begin = |state: &mut State| {
            let directory = self.directory(state);
            state.files.remove(directory, &name);
            state.files.create(directory, &name, Content::Torn);
            Ok(())
        };
        let finish = |state: &mut State| {
            interrupt.check()?;
            let image = image(state)?;
            let directory = self.directory(state);
            if let Some(ino) = state.files.find(directory, &name) {
                state.files.write_whole(ino, Content::Disk(image));
                state.files.sync(ino);
            }
            state.files.sync_names(directory);
            Ok(())
        };
        self.act(kind, vec![Box::new(begin), Box::new(finish)])
            .await
    }
}

#[async_trait]
impl Memory for Seams {
    async fn find(&self, generation: Generation) -> Result<Presence> {
        let key = self.key(generation);
        self.look("memory.find", move |state| {
            Ok(state
                .memories
                .get(&key)
                .map_or(Presence::Absent, |file| file.presence))
        })
        .await
    }

    async fn create(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let create = move |state: &mut State| {
            state.memories.entry(key).or_insert(RamFile {
                ram: None,
                presence: Presence::Whole,
            });
            Ok(())
        };
        self.act("memory.create", vec![Box::new(create)]).await
    }

    async fn capture(
        &self,
        generation: Generation,
        into: SnapshotId,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let begin = |state: &mut State| {
            let staging = self.staging(state, into)?;
            state.files.create(staging, RAM, Content::Torn);
            Ok(())
        };
        let finish = |state: &mut State| {
            interrupt.check()?;
            let staging = self.staging(state, into)?;
            let Some(ram) = state.ram(self.workspace, generation).cloned() else {
                return Err(Failure::Lost);
            };
            if let Some(ino) = state.files.find(staging, RAM) {
                state.files.write_whole(ino, Content::Ram(ram));
            }
            Ok(())
        };
        self.act("memory.capture", vec![Box::new(begin), Box::new(finish)])
            .await
    }

    async fn fill(
        &self,
        from: SnapshotId,
        generation: Generation,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let key = self.key(generation);
        let begin = move |state: &mut State| {
            state.memories.insert(
                key,
                RamFile {
                    ram: None,
                    presence: Presence::Partial,
                },
            );
            Ok(())
        };
        let finish = |state: &mut State| {
            interrupt.check()?;
            let directory = self.staged_or_listed(state, from)?;
            let Some(Content::Ram(ram)) = state.files.get(directory, RAM).cloned() else {
                return refused("the snapshot's RAM is not whole");
            };
            state.memories.insert(
                key,
                RamFile {
                    ram: Some(ram),
                    presence: Presence::Whole,
                },
            );
            Ok(())
        };
        self.act("memory.fill", vec![Box::new(begin), Box::new(finish)])
            .await
    }

    async fn remove(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let remove = move |state: &mut State| {
            state.memories.remove(&key);
            Ok(())
        };
        self.act("memory.remove", vec![Box::new(remove)]).await
    }
}

#[async_trait]
impl Guest for Seams {
    async fn ready(&self, machine: &Machine) -> Result<BootId> {
        self.look("guest.ready", |state| {
            Ok(BootId(self.guest(state, machine)?.boot))
        })
        .await
    }

    async fn inject(&self, machine: &Machine) -> Result<()> {
        let to_disk = |state: &mut State| {
            self.guest(state, machine)?;
            let secret = state.secret;
            state.change_disk(self.workspace, machine.disk, |disk| {
                let former = std::mem::take(&mut disk.secrets);
                disk.residue
                    .extend(former.into_iter().filter(|former| *former != secret));
                disk.secrets.insert(secret);
            });
            Ok(())
        };
        let to_ram = |state: &mut State| {
            let secret = state.secret;
            self.guest(state, machine)?.secrets.insert(secret);
            Ok(())
        };
        self.act("guest.inject", vec![Box::new(to_disk), Box::new(to_ram)])
            .await
    }

    async fn wipe(&self, machine: &Machine) -> Result<()> {
        let files = |state: &mut State| {
            self.guest(state, machine)?;
            state.change_disk(self.workspace, machine.disk, |disk| {
                let former = std::mem::take(&mut disk.secrets);
                disk.residue.extend(former);
            });
            Ok(())
        };
        let caches = |state: &mut State| {
            self.guest(state, machine)?.secrets.clear();
            state.change_disk(self.workspace, machine.disk, |disk| disk.residue.clear());
            Ok(())
        };
        self.act("guest.wipe", vec![Box::new(files), Box::new(caches)])
            .await
    }

    async fn mount(&self, machine: &Machine) -> Result<()> {
        let key = self.key(machine.vmm);
        let mount = |state: &mut State| {
            let wanted = state.shares_wanted;
            let serving = state.daemons.get(&key).is_some_and(ShareDaemons::serve)
                && state
                    .vmms
                    .get(&key)
                    .is_some_and(|vmm| vmm.shares == Presence::Whole);
            let ram = self.guest(state, machine)?;
            match ram.mount {
                _ if !wanted => Ok(()),
                Mount::Works => Ok(()),
                Mount::No if serving => {
                    ram.mount = Mount::Works;
                    Ok(())
                }
                Mount::No | Mount::Dead => refused("the share cannot be mounted"),
            }
        };
        self.act("guest.mount", vec![Box::new(mount)]).await
    }

    async fn unmount(&self, machine: &Machine) -> Result<()> {
        let unmount = |state: &mut State| {
            let ram = self.guest(state, machine)?;
            match ram.mount {
                Mount::Dead => refused("the share hangs"),
                Mount::Works | Mount::No => {
                    ram.mount = Mount::No;
                    Ok(())
                }
            }
        };
        self.act("guest.unmount", vec![Box::new(unmount)]).await
    }

    async fn equipped(&self, machine: &Machine) -> Result<Equipment> {
        self.look("guest.equipped", |state| {
            let (secret, wanted) = (state.secret, state.shares_wanted);
            let disk = state
                .disk(self.workspace, machine.disk)
                .cloned()
                .ok_or(Failure::Lost)?;
            let ram = self.guest(state, machine)?;
            let whole = disk.secrets.contains(&secret) && ram.secrets.contains(&secret);
            let absent =
                disk.secrets.is_empty() && disk.residue.is_empty() && ram.secrets.is_empty();
            let credentials = match (whole, absent) {
                (true, _) => Presence::Whole,
                (false, true) => Presence::Absent,
                (false, false) => Presence::Partial,
            };
            let mounts = match ram.mount {
                _ if !wanted => Presence::Whole,
                Mount::Works => Presence::Whole,
                Mount::No => Presence::Absent,
                Mount::Dead => Presence::Partial,
            };
            Ok(Equipment {
                credentials,
                mounts,
            })
        })
        .await
    }

    async fn settle(&self, machine: &Machine) -> Result<()> {
        let entropy = |state: &mut State| {
            self.guest(state, machine)?.seeded = true;
            Ok(())
        };
        let clock = |state: &mut State| {
            self.guest(state, machine)?.clock = true;
            Ok(())
        };
        self.act("guest.settle", vec![Box::new(entropy), Box::new(clock)])
            .await
    }

    async fn shut_down(&self, machine: &Machine) -> Result<()> {
        let key = self.key(machine.vmm);
        let shut_down = |state: &mut State| {
            self.guest(state, machine)?;
            state.end_vmm(key);
            Ok(())
        };
        self.act("guest.shut_down", vec![Box::new(shut_down)]).await
    }
}

#[async_trait]
impl Catalog for Seams {
    async fn list(&self) -> Result<Vec<Manifest>> {
        self.look("catalog.list", |state| {
            let snapshots = state.snapshots_directory(self.workspace);
            let listed = state
                .files
                .list(snapshots)
                .filter(|(name, _)| !name.starts_with('.'));
            let manifests = listed.filter_map(|(_, ino)| match state.files.get(ino, MANIFEST) {
                Some(Content::Manifest(manifest)) => Some(manifest.0.clone()),
                _ => None,
            });
            let mut manifests: Vec<_> = manifests.collect();
            manifests.sort_by_key(|manifest| manifest.id);
            Ok(manifests)
        })
        .await
    }

    async fn find(&self, id: SnapshotId) -> Result<Entry> {
        self.look("catalog.find", |state| {
            let snapshots = state.snapshots_directory(self.workspace);
            // What is reported is built upon, so that it has to be on the medium.
            state.files.sync_names(snapshots);
            let is = |name: String| state.files.find(snapshots, &name).is_some();
            Ok(
                match (is(id.to_string()), is(trash_name(id)), is(staging_name(id))) {
                    (true, ..) => Entry::Listed,
                    (_, true, _) => Entry::Trashed,
                    (_, _, true) => Entry::Staged,
                    _ => Entry::Absent,
                },
            )
        })
        .await
    }

    async fn stage(&self, id: SnapshotId) -> Result<()> {
        let make = |state: &mut State| {
            let snapshots = state.snapshots_directory(self.workspace);
            if state.files.find(snapshots, &staging_name(id)).is_none() {
                state
                    .files
                    .create(snapshots, &staging_name(id), Content::Directory);
            }
            Ok(())
        };
        self.act("catalog.stage", vec![Box::new(make)]).await
    }

    async fn holds_vmm_state(&self, id: SnapshotId) -> Result<bool> {
        self.look("catalog.holds_vmm_state", |state| {
            let Ok(directory) = self.staged_or_listed(state, id) else {
                return Ok(false);
            };
            Ok(matches!(
                state.files.get(directory, SAVED),
                Some(Content::State(_))
            ))
        })
        .await
    }

    async fn verify(&self, id: SnapshotId, _: &Interrupt) -> Result<()> {
        self.look("catalog.verify", |state| {
            let directory = self.staged_or_listed(state, id)?;
            match state.files.get(directory, MANIFEST) {
                Some(Content::Manifest(manifest))
                    if manifest.0.files == records(state, directory) =>
                {
                    Ok(())
                }
                _ => refused("a file is not what the manifest says"),
            }
        })
        .await
    }

    async fn commit(&self, manifest: Manifest) -> Result<()> {
        let id = manifest.id;
        let write = |state: &mut State| {
            let Ok(staging) = self.staging(state, id) else {
                return Ok(());
            };
            let content = Content::Manifest(Box::new(ManifestFile(manifest.clone())));
            match state.files.find(staging, MANIFEST) {
                Some(ino) => state.files.write_whole(ino, content),
                None => {
                    state.files.create(staging, MANIFEST, content);
                }
            }
            Ok(())
        };
        let sync = |state: &mut State| {
            let Ok(staging) = self.staging(state, id) else {
                return Ok(());
            };
            let files: Vec<Ino> = state.files.list(staging).map(|(_, ino)| ino).collect();
            files.into_iter().for_each(|ino| state.files.sync(ino));
            state.files.sync_names(staging);
            Ok(())
        };
        let rename = |state: &mut State| {
            let snapshots = state.snapshots_directory(self.workspace);
            state
                .files
                .rename(snapshots, &staging_name(id), &id.to_string());
            Ok(())
        };
        let sync_list = |state: &mut State| {
            let snapshots = state.snapshots_directory(self.workspace);
            state.files.sync_names(snapshots);
            Ok(())
        };
        let parts: Vec<Part<'_>> = vec![
            Box::new(write),
            Box::new(sync),
            Box::new(rename),
            Box::new(sync_list),
        ];
        self.act("catalog.commit", parts).await
    }

    async fn discard(&self, id: SnapshotId) -> Result<()> {
        self.remove_directory("catalog.discard", staging_name(id))
            .await
    }

    async fn trash(&self, id: SnapshotId) -> Result<()> {
        let rename = |state: &mut State| {
            let snapshots = state.snapshots_directory(self.workspace);
            state
                .files
                .rename(snapshots, &id.to_string(), &trash_name(id));
            Ok(())
        };
        let sync = |state: &mut State| {
            let snapshots = state.snapshots_directory(self.workspace);
            state.files.sync_names(snapshots);
            Ok(())
        };
        self.act("catalog.trash", vec![Box::new(rename), Box::new(sync)])
            .await
    }

    async fn purge(&self, id: SnapshotId) -> Result<()> {
        self.remove_directory("catalog.purge", trash_name(id)).await
    }

    async fn digest(&self, id: SnapshotId, _: &Interrupt) -> Result<Vec<FileRecord>> {
        self.look("catalog.digest", |state| {
            let directory = self.staging(state, id)?;
            Ok(records(state, directory))
        })
        .await
    }
}

impl Seams {
    async fn remove_directory(&self, kind: &'static str, name: String) -> Result<()> {
        let empty = |state: &mut State| {
            let snapshots = state.snapshots_directory(self.workspace);
            if let Some(directory) = state.files.find(snapshots, &name) {
                let first = state
                    .files
                    .list(directory)
                    .next()
                    .map(|(name, _)| name.to_owned());
                first
                    .into_iter()
                    .for_each(|first| state.files.remove(directory, &first));
            }
            Ok(())
        };
        let remove = |state: &mut State| {
            let snapshots = state.snapshots_directory(self.workspace);
            state.files.remove(snapshots, &name);
            state.files.sync_names(snapshots);
            Ok(())
        };
        self.act(kind, vec![Box::new(empty), Box::new(remove)])
            .await
    }
}

/// What a manifest says of the files of a directory, but for the manifest itself.
pub(super) fn records(state: &State, directory: Ino) -> Vec<FileRecord> {
    let files = state
        .files
        .list(directory)
        .filter(|(name, _)| *name != MANIFEST);
    files
        .map(|(name, ino)| {
            let mut hasher = DefaultHasher::new();
            state.files.content(ino).hash(&mut hasher);
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&hasher.finish().to_le_bytes());
            FileRecord {
                name: name.to_owned(),
                size: 1,
                hash,
            }
        })
        .collect()
}

#[async_trait]
impl Hooks for Seams {
    async fn run(&self, _: HookPoint, interrupt: &Interrupt) -> Result<()> {
        let run = |state: &mut State| {
            interrupt.check()?;
            state.hooks_run += 1;
            Ok(())
        };
        self.act("hooks.run", vec![Box::new(run)]).await
    }
}

impl Clock for Seams {
    fn unix_ms(&self) -> u64 {
        let mut state = self.host.lock();
        state.clock_ms += 1;
        state.clock_ms
    }
}
