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

    async fn examine(&self, machine: &Machine) -> Result<()> {
        self.query("guest.examine", |state| {
            self.hold(state)?;
            self.guest(state, machine)?;
            Self::works(state, &[Loss::Root, Loss::Entropy, Loss::Targets])
        })
        .await
    }

    async fn inject(&self, machine: &Machine) -> Result<()> {
        let to_disk = |state: &mut FakeState| {
            self.hold(state)?;
            self.guest(state, machine)?;
            Self::works(state, &[Loss::Targets])?;
            let secret = state.secret;
            state.change_disk(self.workspace, machine.disk, |disk| {
                let former = std::mem::take(&mut disk.secrets);
                disk.residue.extend(former.into_iter().filter(|former| *former != secret));
                disk.secrets.insert(secret);
            });
            Ok(())
        };
        let to_ram = |state: &mut FakeState| {
            let secret = state.secret;
            self.guest(state, machine)?.secrets.insert(secret);
            Ok(())
        };
        self.change("guest.inject", vec![Box::new(to_disk), Box::new(to_ram)]).await
    }

    async fn wipe(&self, machine: &Machine) -> Result<()> {
        let files = |state: &mut FakeState| {
            self.guest(state, machine)?;
            Self::works(state, &[Loss::Root])?;
            state.change_disk(self.workspace, machine.disk, |disk| {
                let former = std::mem::take(&mut disk.secrets);
                disk.residue.extend(former);
            });
            Ok(())
        };
        let caches = |state: &mut FakeState| {
            self.guest(state, machine)?.secrets.clear();
            state.change_disk(self.workspace, machine.disk, |disk| disk.residue.clear());
            Ok(())
        };
        self.change("guest.wipe", vec![Box::new(files), Box::new(caches)]).await
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
                FakeMount::No if attached => {
                    // The guest's kernel mounts a share without a daemon; accesses hang (measured on v53.0).
                    ram.mount = if serving { FakeMount::Works } else { FakeMount::Dead };
                    Ok(())
                }
                FakeMount::No | FakeMount::Dead => refused("the share cannot be mounted"),
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
            if !attached {
                ram.mount = FakeMount::No;
            }
            Ok(())
        };
        self.change("guest.forget_shares", vec![Box::new(forget)]).await
    }

    async fn unmount(&self, machine: &Machine) -> Result<()> {
        let unmount = |state: &mut FakeState| {
            let ram = self.guest(state, machine)?;
            match ram.mount {
                FakeMount::Dead => refused("the share hangs"),
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
            let whole = disk.secrets.contains(&secret) && ram.secrets.contains(&secret);
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

    fn ready_timeout(&self) -> ReadyTimeout {
        ReadyTimeout::DEFAULT
    }

    fn requires_entropy(&self) -> bool {
        self.host.lock().requires_entropy
    }

    async fn shut_down(&self, machine: &Machine) -> Result<()> {
        let key = self.key(machine.vmm);
        let shut_down = |state: &mut FakeState| {
            self.guest(state, machine)?;
            state.ask_to_go(key);
            Ok(())
        };
        let gone = |state: &mut FakeState| {
            state.answers(key)?;
            state.end_vmm(key);
            Ok(())
        };
        self.change("guest.shut_down", vec![Box::new(shut_down), Box::new(gone)]).await
    }
}
