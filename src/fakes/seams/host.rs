//! Slots, networks, shares.

use std::path::PathBuf;

use super::*;

#[async_trait]
impl Slots for WorkspaceSeams {
    async fn held(&self) -> Result<Option<Slot>> {
        self.query("slots.held", |state| {
            Ok(state.slots.iter().find(|(_, holder)| **holder == self.workspace).map(|(slot, _)| *slot))
        })
        .await
    }

    async fn free(&self) -> Result<Vec<Slot>> {
        self.query("slots.free", |state| {
            Ok(Slot::all().filter(|slot| !state.slots.contains_key(slot)).collect())
        })
        .await
    }

    async fn claim(&self, wanted: &[Slot]) -> Result<Slot> {
        let mut claimed = None;
        let claim = |state: &mut FakeState| {
            let mine = |slot: &Slot| state.slots.get(slot).is_none_or(|holder| *holder == self.workspace);
            claimed = wanted.iter().copied().find(mine);
            if let Some(slot) = claimed {
                state.slots.insert(slot, self.workspace);
            }
            Ok(())
        };
        self.change("slots.claim", vec![Box::new(claim)]).await?;
        claimed.map_or_else(|| refused("every slot is taken"), Ok)
    }

    async fn release(&self, slot: Slot) -> Result<()> {
        let release = move |state: &mut FakeState| {
            if state.slots.get(&slot) == Some(&self.workspace) {
                state.slots.remove(&slot);
            }
            Ok(())
        };
        self.change("slots.release", vec![Box::new(release)]).await
    }
}

#[async_trait]
impl Network for WorkspaceSeams {
    async fn find(&self, slot: Slot) -> Result<Presence> {
        self.query("network.find", |state| {
            let mine = state.networks.get(&slot).filter(|network| network.owner == self.workspace);
            Ok(mine.map_or(Presence::Absent, NetworkParts::presence))
        })
        .await
    }

    async fn build(&self, slot: Slot, _: Generation) -> Result<()> {
        let owner = self.workspace;
        let tap = move |state: &mut FakeState| {
            let network = state.networks.entry(slot).or_insert(NetworkParts::none(owner));
            if network.owner != owner {
                return refused("the TAP is another's");
            }
            network.tap = true;
            Ok(())
        };
        let rest = move |state: &mut FakeState| {
            if let Some(network) = state.networks.get_mut(&slot) {
                *network = NetworkParts::all(owner);
            }
            Ok(())
        };
        self.change("network.build", vec![Box::new(tap), Box::new(rest)]).await
    }

    async fn faults(&self, slot: Slot) -> Result<Vec<NetworkFault>> {
        self.query("network.faults", |state| {
            let mine = state.networks.get(&slot).filter(|network| network.owner == self.workspace);
            Ok(mine.cloned().unwrap_or(NetworkParts::none(self.workspace)).faults())
        })
        .await
    }

    /// A TAP that is gone stays so, as the VMM has the old one open.
    async fn repair(&self, slot: Slot, _: Generation) -> Result<()> {
        let mend = |part: fn(&mut NetworkParts)| {
            let mend = move |state: &mut FakeState| {
                let own = state.networks.get_mut(&slot).filter(|network| network.owner == self.workspace);
                own.map_or_else(
                    || refused("there is no network to repair"),
                    |own| {
                        part(own);
                        Ok(())
                    },
                )
            };
            Box::new(mend) as EffectPart<'_>
        };
        let parts = vec![
            mend(|network| network.table = true),
            mend(|network| network.uplink = true),
            mend(|network| network.keeper = true),
            mend(|network| network.dhcp = true),
        ];
        self.change("network.repair", parts).await
    }

    /// No operation asks for it.
    async fn refused_traffic(&self, _: Slot) -> Result<RefusedTraffic> {
        self.query("network.refused_traffic", |_| Ok(RefusedTraffic::default())).await
    }

    async fn remove(&self, slot: Slot) -> Result<()> {
        let owner = self.workspace;
        let begin = move |state: &mut FakeState| match state.networks.get_mut(&slot) {
            Some(network) if network.owner == owner => {
                network.dhcp = false;
                network.tap = false;
                Ok(())
            }
            _ => Ok(()),
        };
        let finish = move |state: &mut FakeState| {
            if state.networks.get(&slot).is_some_and(|network| network.owner == owner) {
                state.networks.remove(&slot);
            }
            Ok(())
        };
        self.change("network.remove", vec![Box::new(begin), Box::new(finish)]).await
    }
}

#[async_trait]
impl Shares for WorkspaceSeams {
    fn wanted(&self) -> bool {
        self.spec.shares
    }

    async fn find(&self, generation: Generation) -> Result<Presence> {
        let key = self.key(generation);
        self.query("shares.find", move |state| {
            Ok(match state.daemons.get(&key) {
                _ if !self.spec.shares => Presence::Whole,
                None => Presence::Absent,
                Some(daemons) if daemons.serve() => Presence::Whole,
                Some(_) => Presence::Partial,
            })
        })
        .await
    }

    async fn rehearse(&self) -> Result<()> {
        Ok(())
    }

    async fn exposed(&self, _: Generation) -> Result<Vec<PathBuf>> {
        // The fake host has no directories that a share could show.
        Ok(Vec::new())
    }

    async fn start(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        if !self.wanted() {
            return Ok(());
        }
        let spawn = move |state: &mut FakeState| {
            if !state.daemons.get(&key).is_some_and(ShareDaemons::serve) {
                state.daemons.insert(key, ShareDaemons { listening: Presence::Partial, alive: true });
            }
            Ok(())
        };
        let listen = move |state: &mut FakeState| {
            if let Some(daemons) = state.daemons.get_mut(&key) {
                daemons.listening = Presence::Whole;
            }
            Ok(())
        };
        self.change("shares.start", vec![Box::new(spawn), Box::new(listen)]).await
    }

    async fn stop(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        // Daemons of a VM that was built from another configuration are stopped too.
        if !self.wanted() && !self.host.lock().daemons.contains_key(&key) {
            return Ok(());
        }
        let end = move |state: &mut FakeState| {
            state.end_daemons(key);
            Ok(())
        };
        let forget = move |state: &mut FakeState| {
            state.daemons.remove(&key);
            Ok(())
        };
        self.change("shares.stop", vec![Box::new(end), Box::new(forget)]).await
    }
}

#[async_trait]
impl Leftovers for WorkspaceSeams {
    async fn generations(&self) -> Result<BTreeSet<Generation>> {
        self.query("leftovers.generations", |state| {
            let directory = self.directory(state);
            let disks: Vec<Generation> = state
                .files
                .list(directory)
                .filter_map(|(name, _)| Some(Generation(name.strip_prefix("disk-")?.parse().ok()?)))
                .collect();
            let keys = state.vmms.keys().chain(state.daemons.keys()).chain(state.memories.keys());
            let ours = keys.filter(|(of, _)| *of == self.workspace).map(|(_, generation)| *generation);
            Ok(ours.chain(disks).collect())
        })
        .await
    }
}
