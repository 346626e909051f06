//! The guest.

use super::*;

#[async_trait]
impl Guest for WorkspaceSeams {
    async fn ready(&self, machine: &Machine) -> Result<BootId> {
        self.query("guest.ready", |state| Ok(BootId(self.guest(state, machine)?.boot))).await
    }

    async fn resolve_credentials(&self, interrupt: &Interrupt, _: &WaitObserver<'_>) -> Result<()> {
        interrupt.check()?;
        self.query("guest.resolve_credentials", |state| self.hold(state)).await
    }

    async fn examine(&self, machine: &Machine) -> Result<u64> {
        self.query("guest.examine", |state| {
            self.hold(state)?;
            self.guest(state, machine)?;
            Self::works(state, &[Loss::Root, Loss::Entropy, Loss::Targets])?;
            Ok(u64::from(!self.history(state, machine).is_empty()))
        })
        .await
    }

    async fn inject(&self, machine: &Machine) -> Result<()> {
        let to_disk = |state: &mut FakeState| {
            self.hold(state)?;
            self.guest(state, machine)?;
            Self::works(state, &[Loss::Targets])?;
            let secret = state.secret;
            state.known.insert((self.workspace, secret));
            state.change_disk(self.workspace, machine.disk, |disk| {
                disk.leaked.insert(secret);
                let former = std::mem::take(&mut disk.secrets);
                disk.residue.extend(former.into_iter().filter(|former| *former != secret));
                disk.secrets.insert(secret);
            });
            Ok(())
        };
        let to_ram = |state: &mut FakeState| {
            let secret = state.secret;
            let ram = self.guest(state, machine)?;
            ram.secrets.insert(secret);
            ram.leaked.insert(secret);
            ram.swap = true;
            Ok(())
        };
        self.change("guest.inject", vec![Box::new(to_disk), Box::new(to_ram)]).await
    }

    async fn back_up(&self, machine: &Machine) -> Result<Option<Secret>> {
        self.query("guest.back_up", |state| {
            self.guest(state, machine)?;
            let history = self.history(state, machine);
            Ok((!history.is_empty()).then(|| history.to_backup()))
        })
        .await
    }

    async fn audit(&self, machine: &Machine, _: Option<&Secret>) -> Result<GuestAudit> {
        self.query("guest.audit", |state| self.guest(state, machine).map(|_| GuestAudit::default())).await
    }

    async fn switch_off_swap(&self, machine: &Machine) -> Result<Vec<UnprovenPlace>> {
        let switch_off = |state: &mut FakeState| {
            self.guest(state, machine)?.swap = false;
            Ok(())
        };
        self.change("guest.switch_off_swap", vec![Box::new(switch_off)]).await?;
        Ok(Vec::new())
    }

    async fn wipe(&self, machine: &Machine, backup: Option<&Secret>) -> Result<bool> {
        let kept = backup.map(FakeHistory::of_backup).unwrap_or_default();
        let same = AtomicBool::new(false);
        let compare = |state: &mut FakeState| {
            let lines = self.guest(state, machine)?.lines;
            Self::works(state, &[Loss::Root])?;
            same.store(self.history(state, machine) == kept, Ordering::Relaxed);
            if same.load(Ordering::Relaxed) {
                // The guest compares and removes at once.
                self.guest(state, machine)?.wiped_lines = lines;
                state.change_disk(self.workspace, machine.disk, |disk| disk.history = FakeHistory::default());
            }
            Ok(())
        };
        let files = |state: &mut FakeState| {
            self.guest(state, machine)?;
            if same.load(Ordering::Relaxed) {
                state.change_disk(self.workspace, machine.disk, |disk| {
                    let former = std::mem::take(&mut disk.secrets);
                    disk.residue.extend(former);
                });
            }
            Ok(())
        };
        let caches = |state: &mut FakeState| {
            let ram = self.guest(state, machine)?;
            if same.load(Ordering::Relaxed) {
                ram.secrets.clear();
                state.change_disk(self.workspace, machine.disk, |disk| disk.residue.clear());
            }
            Ok(())
        };
        self.change("guest.wipe", vec![Box::new(compare), Box::new(files), Box::new(caches)]).await?;
        Ok(same.load(Ordering::Relaxed))
    }

    async fn give_back(&self, machine: &Machine, backup: &Secret) -> Result<()> {
        let give_back = |state: &mut FakeState| {
            self.guest(state, machine)?;
            Self::works(state, &[Loss::Root])?;
            let backup = FakeHistory::of_backup(backup);
            state.change_disk(self.workspace, machine.disk, |disk| disk.history.give_back(backup));
            Ok(())
        };
        self.change("guest.give_back", vec![Box::new(give_back)]).await
    }

    async fn mount(&self, machine: &Machine) -> Result<()> {
        let key = self.key(machine.vmm);
        let mount = |state: &mut FakeState| {
            let wanted = self.spec.shares;
            let serving = state.daemons.get(&key).is_some_and(ShareDaemons::serve);
            let attached = state.vmms.get(&key).is_some_and(|vmm| vmm.shares == Presence::Whole);
            let ram = self.guest(state, machine)?;
            match ram.mount {
                _ if !wanted => Ok(()),
                FakeMount::Works => Ok(()),
                FakeMount::No | FakeMount::Forgotten if attached => {
                    // The guest's kernel mounts a share without a daemon; accesses hang (measured on v53.0).
                    ram.mount = if serving { FakeMount::Works } else { FakeMount::Dead };
                    Ok(())
                }
                FakeMount::No | FakeMount::Dead | FakeMount::Forgotten => {
                    refused("the share cannot be mounted")
                }
            }
        };
        self.change("guest.mount", vec![Box::new(mount)]).await
    }

    async fn share_users(&self, machine: &Machine) -> Result<Vec<String>> {
        self.query("guest.share_users", |state| {
            let users = state.share_users.clone();
            self.guest(state, machine).map(|_| users)
        })
        .await
    }

    async fn forget_shares(&self, machine: &Machine) -> Result<()> {
        let key = self.key(machine.vmm);
        let forget = |state: &mut FakeState| {
            let attached = state.vmms.get(&key).is_some_and(|vmm| vmm.shares != Presence::Absent);
            let ram = self.guest(state, machine)?;
            if !attached && ram.mount != FakeMount::No {
                ram.mount = FakeMount::Forgotten;
            }
            Ok(())
        };
        self.change("guest.forget_shares", vec![Box::new(forget)]).await
    }

    async fn unmount(&self, machine: &Machine) -> Result<()> {
        let unmount = |state: &mut FakeState| {
            let ram = self.guest(state, machine)?;
            match ram.mount {
                FakeMount::Dead | FakeMount::Forgotten => refused("the share hangs"),
                FakeMount::Works | FakeMount::No => {
                    ram.mount = FakeMount::No;
                    Ok(())
                }
            }
        };
        self.change("guest.unmount", vec![Box::new(unmount)]).await
    }

    async fn equipped(&self, machine: &Machine) -> Result<Equipment> {
        self.query("guest.equipped", |state| {
            self.hold(state)?;
            let (secret, wanted) = (state.secret, self.spec.shares);
            let disk = state.disk(self.workspace, machine.disk).cloned().ok_or(Failure::Lost)?;
            let ram = self.guest(state, machine)?;
            let whole = disk.secrets.contains(&secret) && ram.secrets.contains(&secret) && ram.swap;
            let absent = disk.secrets.is_empty() && disk.residue.is_empty() && ram.secrets.is_empty();
            let credentials = match (whole, absent) {
                (true, _) => Presence::Whole,
                (false, true) => Presence::Absent,
                (false, false) => Presence::Partial,
            };
            let mounts = match ram.mount {
                _ if !wanted => Presence::Whole,
                // The table of mounts in the guest does not show that a mount hangs.
                FakeMount::Works | FakeMount::Dead => Presence::Whole,
                FakeMount::Forgotten => Presence::Partial,
                FakeMount::No => Presence::Absent,
            };
            Ok(Equipment { credentials, mounts })
        })
        .await
    }

    async fn settle(&self, machine: &Machine) -> Result<Settlement> {
        let mut settlement = Settlement::WHOLE;
        let entropy = |state: &mut FakeState| {
            self.guest(state, machine)?;
            Self::works(state, &[Loss::Root])?;
            if state.lost.contains(&Loss::Entropy) && !state.requires_entropy {
                return Ok(());
            }
            Self::works(state, &[Loss::Entropy])?;
            self.guest(state, machine)?.seeded = true;
            Ok(())
        };
        let clock = |state: &mut FakeState| {
            self.guest(state, machine)?;
            // The clock is set after the entropy was given, and not without it.
            settlement.entropy = !state.lost.contains(&Loss::Entropy);
            settlement.clock = settlement.entropy && !state.lost.contains(&Loss::Clock);
            if settlement.clock {
                self.guest(state, machine)?.clock = true;
            }
            Ok(())
        };
        self.change(SETTLE, vec![Box::new(entropy), Box::new(clock)]).await?;
        Ok(settlement)
    }

    async fn keep_time(&self, machine: &Machine) -> Result<()> {
        let keep_time = |state: &mut FakeState| {
            let settable = !state.lost.contains(&Loss::Clock) && !state.lost.contains(&Loss::Root);
            let ram = self.guest(state, machine)?;
            ram.clock |= settable;
            Ok(())
        };
        self.change("guest.keep_time", vec![Box::new(keep_time)]).await
    }

    fn ready_timeout(&self) -> ReadyTimeout {
        ReadyTimeout::DEFAULT
    }

    fn requires_entropy(&self) -> bool {
        self.host.lock().requires_entropy
    }

    fn has_scripts(&self, _: GuestScriptPoint) -> bool {
        self.host.lock().guest_scripts
    }

    async fn run_scripts(
        &self,
        machine: &Machine,
        point: GuestScriptPoint,
        _: Duration,
        interrupt: &Interrupt,
    ) -> Result<GuestScriptsOutcome> {
        let run = |state: &mut FakeState| {
            interrupt.check()?;
            self.guest(state, machine)?;
            Ok(())
        };
        let done = |state: &mut FakeState| {
            let ram = self.guest(state, machine)?;
            if point != GuestScriptPoint::BeforeSnapshot {
                ram.awaits_scripts = false;
            }
            Ok(())
        };
        self.change(SCRIPTS, vec![Box::new(run), Box::new(done)]).await?;
        Ok(GuestScriptsOutcome::Succeeded)
    }

    fn tell_of_rerun(&self, _: GuestScriptPoint) {}

    async fn shut_down(&self, machine: &Machine) -> Result<()> {
        let key = self.key(machine.vmm);
        let shut_down = |state: &mut FakeState| {
            self.guest(state, machine)?;
            state.ask_to_go(key);
            Ok(())
        };
        let gone = |state: &mut FakeState| {
            state.answers(key)?;
            state.power_off(key);
            Ok(())
        };
        self.change("guest.shut_down", vec![Box::new(shut_down), Box::new(gone)]).await
    }
}

impl WorkspaceSeams {
    /// The history on the guest's disk.
    fn history(&self, state: &FakeState, machine: &Machine) -> FakeHistory {
        state.disk(self.workspace, machine.disk).map(|disk| disk.history.clone()).unwrap_or_default()
    }
}
