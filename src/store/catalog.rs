//! The list of snapshots, and the renames by which one comes into it and out of it.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::de::IgnoredAny;

use super::manifest::{self, FILE};
use super::verified::VerifiedFiles;
use super::{Result, StoreError, id_of, scan, staging_name, trash_name};
use crate::files::Folder;
use crate::files::copy::{self, Named, Progress};
use crate::world::{
    self, Catalog, Depth, Failure, FileRecord, Interrupt, ListedSnapshot, Manifest, SnapshotId, SnapshotState,
};

/// What `vm.snapshot` writes for RAM that it does not own: some hundred kilobytes. More than this is not it.
const VMM_STATE_LIMIT: u64 = 64 << 20;
const VMM_STATE: [&str; 2] = ["config.json", "state.json"];

/// The snapshots of one workspace.
pub struct Snapshots {
    /// `.nixbox/snapshots`.
    pub root: PathBuf,
    /// Hears how far hashing is.
    pub progress: Arc<dyn Progress>,
}

/// One directory of `.nixbox/snapshots`, whatever its state.
#[derive(Debug)]
pub struct Found {
    /// Its snapshot.
    pub id: SnapshotId,
    /// Where it stands.
    pub entry: SnapshotState,
    /// Its manifest, for a listed one; what is wrong with it if it is damaged.
    pub manifest: Option<Result<Manifest>>,
}

impl Snapshots {
    fn root(&self) -> Result<Folder> {
        Ok(Folder::open(&self.root)?)
    }

    /// Everything that is there, damaged snapshots and left-overs included, in the order of their numbers: for `list`,
    /// for deleting what is damaged, and for sweeping up what belongs to no operation. Entries that are none of ours
    /// are left out.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn survey(&self) -> Result<Vec<Found>> {
        let root = self.root()?;
        let mut found = Vec::new();
        for name in root.names()? {
            let states = [
                ("", SnapshotState::Listed),
                (".staging-", SnapshotState::Staged),
                (".trash-", SnapshotState::Trashed),
            ];
            let Some((id, entry)) =
                states.iter().find_map(|(prefix, entry)| Some((id_of(&name, prefix)?, *entry)))
            else {
                continue;
            };
            let manifest = (entry == SnapshotState::Listed)
                .then(|| self.listed(&root, id).map(|(_, manifest)| manifest));
            found.push(Found { id, entry, manifest });
        }
        found.sort_by_key(|found| found.id);
        Ok(found)
    }

    /// The manifest of a listed snapshot.
    ///
    /// # Errors
    /// If it is not listed, or damaged.
    pub fn manifest(&self, id: SnapshotId) -> Result<Manifest> {
        Ok(self.listed(&self.root()?, id)?.1)
    }

    /// The path of the directory that holds a snapshot, listed or else staged: for the VMM, which takes paths.
    ///
    /// # Errors
    /// If it is neither.
    pub fn directory(&self, id: SnapshotId) -> Result<PathBuf> {
        super::open(&self.root()?, id)?.map(|folder| folder.path().to_owned()).ok_or(StoreError::Absent(id))
    }

    pub(super) fn listed(&self, root: &Folder, id: SnapshotId) -> Result<(Folder, Manifest)> {
        let folder = root.folder(id.to_string())?.ok_or(StoreError::Absent(id))?;
        let manifest = manifest::read(&folder, id)?.ok_or(StoreError::NoManifest(id))?;
        Ok((folder, manifest))
    }

    fn staged(&self, root: &Folder, id: SnapshotId) -> Result<Folder> {
        root.folder(staging_name(id))?.ok_or(StoreError::NotStaged(id))
    }

    fn place(&self, id: SnapshotId) -> Result<SnapshotState> {
        let root = self.root()?;
        for (name, entry) in [
            (id.to_string(), SnapshotState::Listed),
            (staging_name(id), SnapshotState::Staged),
            (trash_name(id), SnapshotState::Trashed),
        ] {
            if root.folder(name)?.is_some() {
                return Ok(entry);
            }
        }
        Ok(SnapshotState::Absent)
    }

    fn begin(&self, id: SnapshotId) -> Result<()> {
        if matches!(self.place(id)?, SnapshotState::Listed | SnapshotState::Trashed) {
            return Err(StoreError::Exists(id));
        }
        let root = self.root()?;
        root.make_folder(staging_name(id))?;
        Ok(root.sync()?)
    }

    fn vmm_state(&self, id: SnapshotId) -> Result<bool> {
        let Some(staging) = self.root()?.folder(staging_name(id))? else {
            return Ok(false);
        };
        for name in VMM_STATE {
            let whole = staging
                .read(name, VMM_STATE_LIMIT)?
                .is_some_and(|bytes| serde_json::from_slice::<IgnoredAny>(&bytes).is_ok());
            if !whole {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn check_name(&self, manifest: &Manifest) -> Result<()> {
        let Some(name) = &manifest.name else {
            return Ok(());
        };
        let same = |other: &Manifest| other.id != manifest.id && other.name.as_ref() == Some(name);
        // One that is damaged has no name that could be known.
        let listed = self.survey()?.into_iter().filter_map(|found| found.manifest?.ok());
        match listed.into_iter().find(same) {
            Some(other) => Err(StoreError::NameTaken { name: name.clone(), id: other.id }),
            None => Ok(()),
        }
    }

    async fn bring_in(&self, manifest: Manifest) -> Result<()> {
        let (root, id) = (self.root()?, manifest.id);
        if root.folder(id.to_string())?.is_some() {
            // Renamed already by an attempt that did not live to say so, or another operation's.
            let (_, listed) = self.listed(&root, id)?;
            if listed != manifest {
                return Err(StoreError::Exists(id));
            }
            return Ok(root.sync()?);
        }
        let staging = self.staged(&root, id)?;
        self.check_name(&manifest)?;
        scan::check_files(&staging, &manifest)?;
        let encoded = manifest::encode(&manifest).map_err(|source| StoreError::Unwritable { id, source })?;
        // Nobody interrupts a commit point.
        let never = Interrupt::new();
        for record in &manifest.files {
            let file = staging
                .file(&record.name)?
                .ok_or_else(|| StoreError::Missing { id, name: record.name.clone() })?;
            copy::sync(Named { file, path: staging.path_of(&record.name) }, &never).await?;
        }
        staging.replace(FILE, &encoded)?;
        staging.sync()?;
        // Its hashes were taken from what is there now. The rename changes no file.
        VerifiedFiles::now(&staging, &manifest.files)?.write(&root, id)?;
        root.rename(staging_name(id), id.to_string())?;
        root.sync()?;
        Ok(())
    }

    fn throw_away(&self, id: SnapshotId) -> Result<()> {
        let root = self.root()?;
        if root.folder(id.to_string())?.is_none() {
            VerifiedFiles::forget(&root, id)?;
        }
        Ok(root.remove_tree(staging_name(id))?)
    }

    fn remove(&self, id: SnapshotId) -> Result<()> {
        let root = self.root()?;
        VerifiedFiles::forget(&root, id)?;
        Ok(root.remove_tree(trash_name(id))?)
    }

    fn take_out(&self, id: SnapshotId) -> Result<()> {
        let root = self.root()?;
        if root.folder(id.to_string())?.is_some() {
            root.rename(id.to_string(), trash_name(id))?;
        }
        Ok(root.sync()?)
    }
}

#[async_trait]
impl Catalog for Snapshots {
    async fn list(&self) -> world::Result<Vec<ListedSnapshot>> {
        let listing = |found: Found| {
            let manifest = found.manifest?.map_err(Failure::from);
            Some(ListedSnapshot { id: found.id, manifest })
        };
        Ok(self.survey()?.into_iter().filter_map(listing).collect())
    }

    async fn unlisted(&self) -> world::Result<Vec<SnapshotId>> {
        let unlisted = self.survey()?.into_iter().filter(|found| found.entry != SnapshotState::Listed);
        Ok(unlisted.map(|found| found.id).collect())
    }

    async fn free(&self) -> world::Result<u64> {
        Ok(self.root()?.free_bytes().map_err(StoreError::from)?)
    }

    async fn find(&self, id: SnapshotId) -> world::Result<SnapshotState> {
        Ok(self.place(id)?)
    }

    async fn stage(&self, id: SnapshotId) -> world::Result<()> {
        Ok(self.begin(id)?)
    }

    /// Tells whether `config.json` and `state.json` are whole. RAM that the VMM writes itself has no mark of its end:
    /// of that only `vm.snapshot`'s answer can tell.
    async fn holds_vmm_state(&self, id: SnapshotId) -> world::Result<bool> {
        Ok(self.vmm_state(id)?)
    }

    async fn verify(&self, id: SnapshotId, depth: Depth, interrupt: &Interrupt) -> world::Result<()> {
        Ok(self.compare(id, depth, interrupt).await?)
    }

    async fn commit(&self, manifest: Manifest) -> world::Result<()> {
        Ok(self.bring_in(manifest).await?)
    }

    async fn discard(&self, id: SnapshotId) -> world::Result<()> {
        Ok(self.throw_away(id)?)
    }

    async fn trash(&self, id: SnapshotId) -> world::Result<()> {
        Ok(self.take_out(id)?)
    }

    async fn purge(&self, id: SnapshotId) -> world::Result<()> {
        Ok(self.remove(id)?)
    }

    /// Also syncs every file, so that little is left to do for [`Catalog::commit`], which nobody can interrupt.
    async fn digest(&self, id: SnapshotId, interrupt: &Interrupt) -> world::Result<Vec<FileRecord>> {
        Ok(self.hash_staged(id, interrupt).await?)
    }
}

#[cfg(test)]
mod tests;
