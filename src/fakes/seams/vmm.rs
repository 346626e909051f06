//! The VMM.

use super::*;

#[async_trait]
impl Vmm for WorkspaceSeams {
    async fn ability(&self, of: Option<Generation>) -> Result<Ability> {
        let key = of.map(|of| self.key(of));
        self.query("vmm.ability", |state| Ok(FakeState::ability(state.version_of(key)?))).await
    }

    async fn version(&self, of: Option<Generation>) -> Result<VmmVersion> {
        let key = of.map(|of| self.key(of));
        self.query("vmm.version", |state| {
            let major = state.version_of(key)?;
            Ok(VmmVersion { major, text: format!("v{major}.0") })
        })
        .await
    }

    async fn find(&self, generation: Generation) -> Result<VmmState> {
        let key = self.key(generation);
        self.query("vmm.find", |state| {
            if state.answers(key).is_err() {
                return Ok(VmmState::Silent);
            }
            // The VMM completes the call of a nixbox that has died, and this call waits for that one.
            if let Some(id) = state.vmms.get_mut(&key).and_then(|vmm| vmm.saving.take()) {
                self.finish_save(state, key, id)?;
            }
            Ok(state.vmms.get(&key).map_or(VmmState::Never, |vmm| vmm.state))
        })
        .await
    }

    async fn start(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let start = move |state: &mut FakeState| {
            state.answers(key)?;
            if state.vmms.get(&key).is_none_or(|vmm| vmm.state.has_ended()) {
                let version = state.version;
                state.vmms.insert(key, VmmProcess::empty(version));
            }
            Ok(())
        };
        self.change("vmm.start", vec![Box::new(start), nothing()]).await
    }

    async fn boot(&self, machine: &Machine) -> Result<()> {
        let key = self.key(machine.vmm);
        let create = |state: &mut FakeState| {
            state.answers(key)?;
            match state.vmms.get_mut(&key) {
                Some(vmm) if vmm.state == VmmState::Empty => {
                    vmm.state = VmmState::Stopped;
                    vmm.machine = Some(*machine);
                    Ok(())
                }
                Some(vmm) if vmm.state.has_system() || vmm.state == VmmState::Stopped => Ok(()),
                _ => refused("no VMM listens"),
            }
        };
        let boot = |state: &mut FakeState| self.boot_now(state, machine);
        self.change("vmm.boot", vec![Box::new(create), Box::new(boot)]).await
    }

    async fn pause(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let pause = move |state: &mut FakeState| {
            state.answers(key)?;
            match state.vmms.get_mut(&key) {
                Some(vmm) if vmm.state.has_system() => {
                    vmm.state = VmmState::Paused;
                    Ok(())
                }
                Some(vmm) if vmm.state.has_ended() => Err(Failure::Lost),
                _ => refused("there is no VM to pause"),
            }
        };
        self.change("vmm.pause", vec![Box::new(pause)]).await
    }

    async fn resume(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        self.change("vmm.resume", vec![Box::new(move |state: &mut FakeState| self.resume_now(state, key))])
            .await
    }

    async fn save(&self, generation: Generation, into: SnapshotId) -> Result<()> {
        let key = self.key(generation);
        let begin = |state: &mut FakeState| {
            state.answers(key)?;
            let staging = self.staging(state, into)?;
            if state.files.find(staging, SAVED).is_some() {
                return refused("the VMM's files exist");
            }
            match state.vmms.get_mut(&key) {
                Some(vmm) if vmm.state == VmmState::Paused => vmm.saving = Some(into),
                Some(vmm) if vmm.state.has_ended() => return Err(Failure::Lost),
                _ => return refused("the VM is not paused"),
            }
            state.files.create(staging, SAVED, Content::Torn);
            Ok(())
        };
        let finish = |state: &mut FakeState| {
            state.answers(key)?;
            match state.vmms.get_mut(&key).and_then(|vmm| vmm.saving.take()) {
                Some(id) => self.finish_save(state, key, id),
                None => Err(Failure::Lost),
            }
        };
        self.change("vmm.save", vec![Box::new(begin), Box::new(finish)]).await
    }

    async fn saved_cpuid(&self, of: SnapshotId) -> Result<Option<Cpuid>> {
        self.query("vmm.saved_cpuid", |state| {
            let directory = self.staged_or_listed(state, of)?;
            match state.files.get(directory, SAVED) {
                Some(Content::State(saved)) => Ok(Some(Cpuid::of(&[(7, 0, [0, saved.leaf_7, 0, 0])]))),
                _ => refused("the saved state does not parse"),
            }
        })
        .await
    }

    async fn load(&self, machine: &Machine, from: SnapshotId) -> Result<()> {
        let load = |state: &mut FakeState| self.load_now(state, machine, from, true);
        self.change("vmm.load", vec![nothing(), Box::new(load)]).await
    }

    async fn load_without_shares(&self, machine: &Machine, from: SnapshotId) -> Result<()> {
        let load = |state: &mut FakeState| self.load_now(state, machine, from, false);
        self.change("vmm.load_without_shares", vec![nothing(), Box::new(load)]).await
    }

    async fn power_button(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let press = move |state: &mut FakeState| {
            state.answers(key)?;
            state.ask_to_go(key);
            Ok(())
        };
        let gone = move |state: &mut FakeState| {
            state.answers(key)?;
            state.power_off(key);
            Ok(())
        };
        self.change("vmm.power_button", vec![Box::new(press), Box::new(gone)]).await
    }

    async fn ends(&self, generation: Generation, _: Duration) -> Result<bool> {
        let key = self.key(generation);
        self.query("vmm.ends", |state| {
            state.pass_time();
            Ok(state.vmms.get(&key).is_none_or(|vmm| vmm.state.has_ended()))
        })
        .await
    }

    async fn stop(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let end = move |state: &mut FakeState| {
            let running = state.vmms.get(&key).is_some_and(|vmm| vmm.state == VmmState::Running);
            state.cut_off += u64::from(running);
            state.end_vmm(key);
            Ok(())
        };
        let forget = move |state: &mut FakeState| {
            state.vmms.remove(&key);
            Ok(())
        };
        self.change("vmm.stop", vec![Box::new(end), Box::new(forget)]).await
    }

    async fn attach_shares(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let attach = move |state: &mut FakeState| {
            state.answers(key)?;
            if !self.spec.shares {
                return Ok(());
            }
            let serving = state.daemons.get(&key).is_some_and(ShareDaemons::serve);
            match state.vmms.get_mut(&key) {
                Some(vmm) if vmm.state.has_system() && serving => {
                    vmm.shares = Presence::Whole;
                    vmm.shares_spoilt = false;
                    Ok(())
                }
                Some(vmm) if vmm.state.has_ended() => Err(Failure::Lost),
                _ => refused("no share daemon listens"),
            }
        };
        self.change("vmm.attach_shares", vec![Box::new(attach)]).await
    }

    async fn detach_shares(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let detach = move |state: &mut FakeState| {
            state.answers(key)?;
            let memory = state.vmms.get(&key).and_then(|vmm| vmm.machine).map(|machine| machine.memory);
            let mounted = memory
                .and_then(|memory| state.ram(self.workspace, memory))
                .is_some_and(|ram| ram.mount != FakeMount::No);
            if mounted {
                return refused("the share is mounted in the guest");
            }
            if let Some(vmm) = state.vmms.get_mut(&key) {
                vmm.shares = Presence::Absent;
            }
            // The daemons wait for the next connection of the VMM.
            Ok(())
        };
        self.change("vmm.detach_shares", vec![Box::new(detach)]).await
    }

    async fn shares_attached(&self, generation: Generation) -> Result<Presence> {
        let key = self.key(generation);
        self.query("vmm.shares_attached", move |state| {
            state.answers(key)?;
            Ok(match state.vmms.get(&key) {
                Some(_) if !self.spec.shares => Presence::Whole,
                Some(vmm) => vmm.shares,
                None => Presence::Absent,
            })
        })
        .await
    }
}

impl WorkspaceSeams {
    fn boot_now(&self, state: &mut FakeState, machine: &Machine) -> Result<()> {
        let key = self.key(machine.vmm);
        state.answers(key)?;
        match state.vmms.get(&key).map(|vmm| vmm.state) {
            Some(VmmState::Running) => return Ok(()),
            Some(VmmState::Stopped) => {}
            _ => return Err(Failure::Lost),
        }
        let disk = state.disk(self.workspace, machine.disk);
        let Some((ticks, history)) = disk.map(|disk| (disk.ticks, disk.history.clone())) else {
            return refused("the disk image is not there");
        };
        self.check_parts(state, machine, machine.shares)?;
        state.boots += 1;
        let boot = state.boots;
        let Some(file) = state.memories.get_mut(&self.key(machine.memory)) else {
            return refused("the RAM file is not there");
        };
        let awaits_scripts = state.guest_scripts;
        file.ram = Some(FakeRam { ticks, awaits_scripts, ..FakeRam::booted(boot, &history) });
        let shares = if machine.shares { Presence::Whole } else { Presence::Absent };
        if let Some(vmm) = state.vmms.get_mut(&key) {
            vmm.state = VmmState::Running;
            vmm.shares = shares;
        }
        Ok(())
    }

    /// Fails unless there is everything that a VMM opens or connects to when it makes a VM.
    fn check_parts(&self, state: &FakeState, machine: &Machine, shares: bool) -> Result<()> {
        if shares && !state.daemons.get(&self.key(machine.vmm)).is_some_and(ShareDaemons::serve) {
            return refused("no share daemon listens");
        }
        let tap = state.networks.get(&machine.slot).is_some_and(|net| net.owner == self.workspace && net.tap);
        if !tap {
            return refused("the TAP is not there");
        }
        match state.memories.get(&self.key(machine.memory)) {
            Some(file) if file.presence == Presence::Whole => Ok(()),
            _ => refused("the RAM file is not there"),
        }
    }

    fn resume_now(&self, state: &mut FakeState, key: Key) -> Result<()> {
        state.answers(key)?;
        let tap = |state: &FakeState, machine: Machine| {
            state.networks.get(&machine.slot).is_some_and(|net| net.owner == self.workspace && net.tap)
        };
        let (machine, spoilt) = match state.vmms.get(&key) {
            Some(vmm) if vmm.state == VmmState::Running => return Ok(()),
            Some(VmmProcess { state: VmmState::Paused, machine: Some(machine), shares_spoilt, .. }) => {
                (*machine, *shares_spoilt)
            }
            Some(vmm) if vmm.state.has_ended() => return Err(Failure::Lost),
            _ => return refused("there is no VM to resume"),
        };
        // A transmit error on a TAP that is down has killed a VM (Cloud Hypervisor issue 8722).
        let mangled = !tap(state, machine);
        if let Some(vmm) = state.vmms.get_mut(&key) {
            vmm.state = VmmState::Running;
            vmm.mangled |= mangled;
        }
        if let Some(ram) = state
            .ram_mut(self.workspace, machine.memory)
            .filter(|ram| spoilt && ram.mount == FakeMount::Works)
        {
            ram.mount = FakeMount::Dead;
        }
        Ok(())
    }

    fn finish_save(&self, state: &mut FakeState, key: Key, into: SnapshotId) -> Result<()> {
        let survives = FakeState::ability(state.version_of(Some(key))?).shares_survive_resume;
        let Some(vmm) = state.vmms.get_mut(&key).filter(|vmm| vmm.state == VmmState::Paused) else {
            return Err(Failure::Lost);
        };
        let shares = vmm.shares == Presence::Whole;
        vmm.shares_spoilt |= shares && !survives;
        let memory = vmm.machine.map(|machine| machine.memory).unwrap_or_default();
        let ticks = state.ram(self.workspace, memory).map_or(0, |ram| ram.ticks);
        let leaf_7 = state.leaf_7.unwrap_or_default();
        let Ok(staging) = self.staging(state, into) else {
            return Ok(());
        };
        if let Some(ino) = state.files.find(staging, SAVED) {
            state.files.write_whole(ino, Content::State(SavedState { ticks, shares, leaf_7 }));
        }
        Ok(())
    }

    fn load_now(
        &self,
        state: &mut FakeState,
        machine: &Machine,
        from: SnapshotId,
        with_shares: bool,
    ) -> Result<()> {
        let key = self.key(machine.vmm);
        state.answers(key)?;
        match state.vmms.get(&key).map(|vmm| vmm.state) {
            Some(VmmState::Empty) => {}
            Some(VmmState::Paused) => return Ok(()),
            Some(VmmState::Gone | VmmState::PoweredOff) | None => return Err(Failure::Lost),
            Some(_) => return refused("there is a VM already"),
        }
        if state.refuses_to_load(self.workspace, from, with_shares) {
            return refused("the VM could not be restored");
        }
        let directory = self.staged_or_listed(state, from)?;
        let Some(Content::State(saved)) = state.files.get(directory, SAVED).cloned() else {
            return refused("the saved state does not parse");
        };
        let shares = saved.shares && with_shares;
        self.check_parts(state, machine, shares)?;
        let survive = shares && FakeState::ability(state.version_of(Some(key))?).shares_survive_restore;
        let disk = state.disk(self.workspace, machine.disk).map(|disk| disk.ticks);
        let Some(ram) = state.ram_mut(self.workspace, machine.memory) else {
            return Err(Failure::Lost);
        };
        let mangled = ram.ticks != saved.ticks || disk != Some(saved.ticks);
        ram.seeded = false;
        ram.clock = false;
        if !survive && ram.mount == FakeMount::Works {
            ram.mount = FakeMount::Dead;
        }
        if let Some(vmm) = state.vmms.get_mut(&key) {
            vmm.state = VmmState::Paused;
            vmm.machine = Some(*machine);
            vmm.mangled = mangled;
            vmm.shares = if shares { Presence::Whole } else { Presence::Absent };
        }
        Ok(())
    }
}
