//! Disks and RAM.

use super::*;

#[async_trait]
impl BuiltRecords for WorkspaceSeams {
    async fn find(&self, generation: Generation) -> Result<Presence> {
        self.query("records.find", |state| {
            let directory = self.directory(state);
            Ok(match state.files.get(directory, &record_name(generation)) {
                None => Presence::Absent,
                Some(Content::Built(_)) => Presence::Whole,
                Some(_) => Presence::Partial,
            })
        })
        .await
    }

    async fn write(&self, generation: Generation) -> Result<()> {
        let name = record_name(generation);
        let write = |state: &mut FakeState| {
            let directory = self.directory(state);
            let unfinished = format!(".{name}");
            let ino = state.files.create(directory, &unfinished, Content::Built(self.spec.clone()));
            state.files.sync(ino);
            state.files.rename(directory, &unfinished, &name);
            Ok(())
        };
        let sync = |state: &mut FakeState| {
            let directory = self.directory(state);
            state.files.sync_names(directory);
            Ok(())
        };
        self.change("records.write", vec![Box::new(write), Box::new(sync)]).await
    }

    async fn remove(&self, generation: Generation) -> Result<()> {
        let remove = |state: &mut FakeState| {
            let directory = self.directory(state);
            state.files.remove(directory, &record_name(generation));
            state.files.sync_names(directory);
            Ok(())
        };
        self.change("records.remove", vec![Box::new(remove)]).await
    }

    async fn generations(&self) -> Result<BTreeSet<Generation>> {
        self.query("records.generations", |state| {
            let directory = self.directory(state);
            let names = state.files.list(directory).map(|(name, _)| name);
            Ok(names
                .filter_map(|name| Some(Generation(name.strip_prefix("built-")?.parse().ok()?)))
                .collect())
        })
        .await
    }
}

#[async_trait]
impl Disk for WorkspaceSeams {
    async fn find(&self, generation: Generation) -> Result<Presence> {
        self.query("disk.find", |state| {
            let directory = self.directory(state);
            Ok(match state.files.get(directory, &disk_name(generation)) {
                None => Presence::Absent,
                Some(Content::Disk(_)) => Presence::Whole,
                Some(_) => Presence::Partial,
            })
        })
        .await
    }

    async fn weight(&self, _: Generation) -> Result<u64> {
        self.query("disk.weight", |_| Ok(1)).await
    }

    async fn flush(&self, generation: Generation, interrupt: &Interrupt) -> Result<()> {
        let flush = |state: &mut FakeState| {
            interrupt.check()?;
            let directory = self.directory(state);
            if let Some(ino) = state.files.find(directory, &disk_name(generation)) {
                state.files.sync(ino);
            }
            Ok(())
        };
        self.change("disk.flush", vec![Box::new(flush)]).await
    }

    async fn create(&self, generation: Generation, interrupt: &Interrupt) -> Result<()> {
        self.put_disk("disk.create", generation, interrupt, |_| Ok(DiskImage::blank())).await
    }

    /// The copy of a guest that runs is torn until the capture.
    async fn precopy(&self, _: Generation, into: SnapshotId, interrupt: &Interrupt) -> Result<()> {
        let begin = |state: &mut FakeState| {
            interrupt.check()?;
            let staging = self.staging(state, into)?;
            state.files.create(staging, DISK, Content::Torn);
            Ok(())
        };
        self.change("disk.precopy", vec![Box::new(begin)]).await
    }

    async fn capture(&self, generation: Generation, into: SnapshotId, interrupt: &Interrupt) -> Result<()> {
        let begin = |state: &mut FakeState| {
            let staging = self.staging(state, into)?;
            state.files.create(staging, DISK, Content::Torn);
            Ok(())
        };
        let finish = |state: &mut FakeState| {
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
        self.change("disk.capture", vec![Box::new(begin), Box::new(finish)]).await
    }

    async fn fill(&self, from: SnapshotId, generation: Generation, interrupt: &Interrupt) -> Result<()> {
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
        let remove = |state: &mut FakeState| {
            let directory = self.directory(state);
            state.files.remove(directory, &disk_name(generation));
            Ok(())
        };
        let sync = |state: &mut FakeState| {
            let directory = self.directory(state);
            state.files.sync_names(directory);
            Ok(())
        };
        self.change("disk.remove", vec![Box::new(remove), Box::new(sync)]).await
    }

    async fn kept(&self) -> Result<Vec<KeptDisk>> {
        self.query("disk.kept", |state| {
            let kept = state.kept_disks(self.workspace);
            Ok(kept.into_iter().map(|id| KeptDisk { id, bytes: 1, written_ms: 0 }).collect())
        })
        .await
    }

    async fn keep(&self, kept: KeptDiskId) -> Result<()> {
        self.rename_disk("disk.keep", disk_name(kept.disk), kept_name(kept)).await
    }

    async fn take(&self, kept: KeptDiskId) -> Result<()> {
        self.rename_disk("disk.take", kept_name(kept), disk_name(kept.disk)).await
    }

    async fn retire(&self, kept: KeptDiskId) -> Result<()> {
        let keep = move |state: &mut FakeState| {
            let directory = self.directory(state);
            state.files.rename(directory, &disk_name(kept.disk), &kept_name(kept));
            state.files.sync_names(directory);
            Ok(())
        };
        let prune = |state: &mut FakeState| {
            let directory = self.directory(state);
            let kept = state.kept_disks(self.workspace);
            let surplus = kept.len().saturating_sub(state.keep_disks);
            kept.iter().take(surplus).for_each(|id| state.files.remove(directory, &kept_name(*id)));
            Ok(())
        };
        let sync = |state: &mut FakeState| {
            let directory = self.directory(state);
            state.files.sync_names(directory);
            Ok(())
        };
        self.change("disk.retire", vec![Box::new(keep), Box::new(prune), Box::new(sync)]).await
    }
}

impl WorkspaceSeams {
    /// Gives a disk another name, unless it has that name already.
    async fn rename_disk(&self, kind: &'static str, from: String, to: String) -> Result<()> {
        let rename = |state: &mut FakeState| {
            let directory = self.directory(state);
            state.files.rename(directory, &from, &to);
            Ok(())
        };
        let sync = |state: &mut FakeState| {
            let directory = self.directory(state);
            state.files.sync_names(directory);
            Ok(())
        };
        self.change(kind, vec![Box::new(rename), Box::new(sync)]).await
    }

    /// Makes the disk image of a generation. It is torn until it is whole, and durable when this returns.
    async fn put_disk(
        &self,
        kind: &'static str,
        generation: Generation,
        interrupt: &Interrupt,
        image: impl FnOnce(&mut FakeState) -> Result<DiskImage> + Send,
    ) -> Result<()> {
        let name = disk_name(generation);
        let begin = |state: &mut FakeState| {
            let directory = self.directory(state);
            state.files.remove(directory, &name);
            state.files.create(directory, &name, Content::Torn);
            Ok(())
        };
        let finish = |state: &mut FakeState| {
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
        self.change(kind, vec![Box::new(begin), Box::new(finish)]).await
    }
}

#[async_trait]
impl Memory for WorkspaceSeams {
    async fn find(&self, generation: Generation) -> Result<Presence> {
        let key = self.key(generation);
        self.query("memory.find", move |state| {
            Ok(state.memories.get(&key).map_or(Presence::Absent, |file| file.presence))
        })
        .await
    }

    async fn weight(&self, _: Generation) -> Result<u64> {
        self.query("memory.weight", |_| Ok(1)).await
    }

    async fn promised(&self) -> Result<u64> {
        self.query("memory.promised", |state| Ok(state.promised)).await
    }

    async fn create(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let create = move |state: &mut FakeState| {
            state.memories.entry(key).or_insert(RamFile { ram: None, presence: Presence::Whole });
            Ok(())
        };
        self.change("memory.create", vec![Box::new(create)]).await
    }

    /// The copy of a guest that runs is torn until the capture.
    async fn precopy(&self, _: Generation, into: SnapshotId, interrupt: &Interrupt) -> Result<()> {
        let begin = |state: &mut FakeState| {
            interrupt.check()?;
            let staging = self.staging(state, into)?;
            state.files.create(staging, RAM, Content::Torn);
            Ok(())
        };
        self.change("memory.precopy", vec![Box::new(begin)]).await
    }

    async fn capture(&self, generation: Generation, into: SnapshotId, interrupt: &Interrupt) -> Result<()> {
        let begin = |state: &mut FakeState| {
            let staging = self.staging(state, into)?;
            state.files.create(staging, RAM, Content::Torn);
            Ok(())
        };
        let finish = |state: &mut FakeState| {
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
        self.change("memory.capture", vec![Box::new(begin), Box::new(finish)]).await
    }

    async fn fill(&self, from: SnapshotId, generation: Generation, interrupt: &Interrupt) -> Result<()> {
        let key = self.key(generation);
        let begin = move |state: &mut FakeState| {
            state.memories.insert(key, RamFile { ram: None, presence: Presence::Partial });
            Ok(())
        };
        let finish = |state: &mut FakeState| {
            interrupt.check()?;
            let directory = self.staged_or_listed(state, from)?;
            let Some(Content::Ram(mut ram)) = state.files.get(directory, RAM).cloned() else {
                return refused("the snapshot's RAM is not whole");
            };
            // The snapshot has what the guest has written since the wipe.
            ram.first_line = ram.wiped_lines;
            ram.awaits_scripts = state.guest_scripts;
            state.memories.insert(key, RamFile { ram: Some(ram), presence: Presence::Whole });
            Ok(())
        };
        self.change("memory.fill", vec![Box::new(begin), Box::new(finish)]).await
    }

    async fn remove(&self, generation: Generation) -> Result<()> {
        let key = self.key(generation);
        let remove = move |state: &mut FakeState| {
            state.memories.remove(&key);
            state.backups.remove(&key);
            Ok(())
        };
        self.change("memory.remove", vec![Box::new(remove)]).await
    }
}

#[async_trait]
impl Backups for WorkspaceSeams {
    async fn examine(&self, of: Generation, _: u64) -> Result<()> {
        let key = self.key(of);
        self.query("backups.examine", move |state| {
            if state.memories.contains_key(&key) { Ok(()) } else { refused("there is no RAM") }
        })
        .await
    }

    async fn find(&self, of: Generation) -> Result<Presence> {
        let key = self.key(of);
        self.query("backups.find", move |state| {
            Ok(if state.backups.contains_key(&key) { Presence::Whole } else { Presence::Absent })
        })
        .await
    }

    async fn write(&self, of: Generation, backup: &Secret) -> Result<()> {
        let key = self.key(of);
        let write = move |state: &mut FakeState| {
            state.backups.insert(key, FakeHistory::of_backup(backup));
            Ok(())
        };
        self.change("backups.write", vec![Box::new(write)]).await
    }

    async fn read(&self, of: Generation) -> Result<Option<Secret>> {
        let key = self.key(of);
        self.query("backups.read", move |state| Ok(state.backups.get(&key).map(FakeHistory::to_backup))).await
    }

    async fn remove(&self, of: Generation) -> Result<()> {
        let key = self.key(of);
        let remove = move |state: &mut FakeState| {
            state.backups.remove(&key);
            Ok(())
        };
        self.change("backups.remove", vec![Box::new(remove)]).await
    }
}
