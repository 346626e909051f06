//! The snapshots.

use super::*;

#[async_trait]
impl Catalog for WorkspaceSeams {
    async fn list(&self) -> Result<Vec<ListedSnapshot>> {
        self.query("catalog.list", |state| {
            let snapshots = state.snapshots_directory(self.workspace);
            let listed: Vec<(SnapshotId, Ino)> = state
                .files
                .list(snapshots)
                .filter_map(|(name, ino)| Some((SnapshotId(Generation(name.parse().ok()?)), ino)))
                .collect();
            let mut listings: Vec<ListedSnapshot> = listed
                .into_iter()
                .map(|(id, ino)| ListedSnapshot {
                    id,
                    manifest: match state.files.get(ino, MANIFEST) {
                        Some(Content::Manifest(manifest)) => Ok(manifest.0.clone()),
                        _ => refused("the manifest is damaged"),
                    },
                    label: Ok(crate::world::SnapshotLabel::default()),
                    // Disk and RAM take one byte each.
                    occupied: Ok([RAM, DISK]
                        .iter()
                        .map(|name| u64::from(state.files.find(ino, name).is_some()))
                        .sum()),
                })
                .collect();
            listings.sort_by_key(|listing| listing.id);
            Ok(listings)
        })
        .await
    }

    async fn unlisted(&self) -> Result<Vec<SnapshotId>> {
        self.query("catalog.unlisted", |state| {
            let snapshots = state.snapshots_directory(self.workspace);
            let names = state.files.list(snapshots).map(|(name, _)| name);
            let number = |name: &str| {
                let digits = name.strip_prefix(".staging-").or_else(|| name.strip_prefix(".trash-"))?;
                Some(SnapshotId(Generation(digits.parse().ok()?)))
            };
            Ok(names.filter_map(number).collect())
        })
        .await
    }

    async fn free(&self) -> Result<u64> {
        self.query("catalog.free", |state| Ok(state.room)).await
    }

    async fn find(&self, id: SnapshotId) -> Result<SnapshotState> {
        self.query("catalog.find", |state| {
            let snapshots = state.snapshots_directory(self.workspace);
            // The caller acts on the answer, so the names have to be durable.
            state.files.sync_names(snapshots);
            let is = |name: String| state.files.find(snapshots, &name).is_some();
            Ok(match (is(id.to_string()), is(trash_name(id)), is(staging_name(id))) {
                (true, ..) => SnapshotState::Listed,
                (_, true, _) => SnapshotState::Trashed,
                (_, _, true) => SnapshotState::Staged,
                _ => SnapshotState::Absent,
            })
        })
        .await
    }

    async fn stage(&self, id: SnapshotId) -> Result<()> {
        let make = |state: &mut FakeState| {
            let snapshots = state.snapshots_directory(self.workspace);
            if state.files.find(snapshots, &staging_name(id)).is_none() {
                state.files.create(snapshots, &staging_name(id), Content::Directory);
            }
            Ok(())
        };
        self.change("catalog.stage", vec![Box::new(make)]).await
    }

    async fn holds_vmm_state(&self, id: SnapshotId) -> Result<bool> {
        self.query("catalog.holds_vmm_state", |state| {
            let Ok(directory) = self.staged_or_listed(state, id) else {
                return Ok(false);
            };
            Ok(matches!(state.files.get(directory, SAVED), Some(Content::State(_))))
        })
        .await
    }

    async fn verify(&self, id: SnapshotId, _: Depth, _: &Interrupt) -> Result<()> {
        self.query("catalog.verify", |state| {
            let directory = self.staged_or_listed(state, id)?;
            match state.files.get(directory, MANIFEST) {
                Some(Content::Manifest(manifest)) if manifest.0.files == state.records(directory) => Ok(()),
                _ => refused("a file is not what the manifest says"),
            }
        })
        .await
    }

    async fn commit(&self, manifest: Manifest) -> Result<()> {
        let id = manifest.id;
        let write = |state: &mut FakeState| {
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
        let sync = |state: &mut FakeState| {
            let Ok(staging) = self.staging(state, id) else {
                return Ok(());
            };
            let files: Vec<Ino> = state.files.list(staging).map(|(_, ino)| ino).collect();
            files.into_iter().for_each(|ino| state.files.sync(ino));
            state.files.sync_names(staging);
            Ok(())
        };
        let rename = |state: &mut FakeState| {
            let snapshots = state.snapshots_directory(self.workspace);
            state.files.rename(snapshots, &staging_name(id), &id.to_string());
            Ok(())
        };
        let sync_list = |state: &mut FakeState| {
            let snapshots = state.snapshots_directory(self.workspace);
            state.files.sync_names(snapshots);
            Ok(())
        };
        let parts: Vec<EffectPart<'_>> =
            vec![Box::new(write), Box::new(sync), Box::new(rename), Box::new(sync_list)];
        self.change("catalog.commit", parts).await
    }

    async fn discard(&self, id: SnapshotId) -> Result<()> {
        self.remove_directory("catalog.discard", staging_name(id)).await
    }

    async fn trash(&self, id: SnapshotId) -> Result<()> {
        let rename = |state: &mut FakeState| {
            let snapshots = state.snapshots_directory(self.workspace);
            state.files.rename(snapshots, &id.to_string(), &trash_name(id));
            Ok(())
        };
        let sync = |state: &mut FakeState| {
            let snapshots = state.snapshots_directory(self.workspace);
            state.files.sync_names(snapshots);
            Ok(())
        };
        self.change("catalog.trash", vec![Box::new(rename), Box::new(sync)]).await
    }

    async fn purge(&self, id: SnapshotId) -> Result<()> {
        self.remove_directory("catalog.purge", trash_name(id)).await
    }

    async fn digest(&self, id: SnapshotId, _: &Interrupt) -> Result<Vec<FileRecord>> {
        let in_ram = |state: &mut FakeState| self.redact(state, id, RAM);
        let on_disk = |state: &mut FakeState| self.redact(state, id, DISK);
        self.change("catalog.digest", vec![Box::new(in_ram), Box::new(on_disk)]).await?;
        let mut state = self.host.lock();
        let staging = self.staging(&mut state, id)?;
        Ok(state.records(staging))
    }

    async fn keep_audit(&self, _: SnapshotId, _: GuestAudit) -> Result<()> {
        Ok(())
    }

    async fn receipt(&self, _: SnapshotId) -> Result<Option<Receipt>> {
        Ok(None)
    }
}

impl WorkspaceSeams {
    /// Takes the credentials that were ever injected out of a file of the staging directory, or refuses.
    fn redact(&self, state: &mut FakeState, id: SnapshotId, name: &str) -> Result<()> {
        let staging = self.staging(state, id)?;
        let Some(ino) = state.files.find(staging, name) else {
            return Ok(());
        };
        let mut content = state.files.content(ino).clone();
        let leaked = match &mut content {
            Content::Ram(ram) => &mut ram.leaked,
            Content::Disk(disk) => &mut disk.leaked,
            _ => return Ok(()),
        };
        let kept = leaked.iter().filter(|secret| !state.known.contains(&(self.workspace, **secret)));
        let kept: BTreeSet<FakeSecret> = kept.copied().collect();
        if *leaked == kept {
            return Ok(());
        }
        if state.fails_on_leak {
            return refused("the snapshot would hold a credential");
        }
        *leaked = kept;
        state.files.write_whole(ino, content);
        Ok(())
    }

    async fn remove_directory(&self, kind: &'static str, name: String) -> Result<()> {
        let empty = |state: &mut FakeState| {
            let snapshots = state.snapshots_directory(self.workspace);
            if let Some(directory) = state.files.find(snapshots, &name) {
                let first = state.files.list(directory).next().map(|(name, _)| name.to_owned());
                first.into_iter().for_each(|first| state.files.remove(directory, &first));
            }
            Ok(())
        };
        let remove = |state: &mut FakeState| {
            let snapshots = state.snapshots_directory(self.workspace);
            state.files.remove(snapshots, &name);
            state.files.sync_names(snapshots);
            Ok(())
        };
        self.change(kind, vec![Box::new(empty), Box::new(remove)]).await
    }
}
