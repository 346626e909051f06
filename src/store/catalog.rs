//! The list of snapshots, and the renames by which a snapshot comes into it and out of it.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::de::IgnoredAny;

use super::error::{Result, StoreError};
use super::label::{self, LabelError};
use super::layout::{self, STAGING, TRASH, id_of, staging_name, trash_name};
use super::leaks::LeakSearch;
use super::manifest::{self, FILE};
use super::occupied;
use super::scan;
use super::verified::VerifiedFiles;
use crate::files::Folder;
use crate::files::copy::{self, NamedFile, Progress};
use crate::files::search::value::NamedValue;
use crate::world::{
    self, Catalog, Depth, Failure, FileRecord, GuestAudit, Interrupt, ListedSnapshot, Manifest, Receipt,
    SnapshotId, SnapshotLabel, SnapshotName, SnapshotNote, SnapshotState,
};

/// More than a VMM's state takes: `vm.snapshot` writes some hundred kilobytes beside RAM.
const VMM_STATE_LIMIT: u64 = 64 << 20;
const VMM_STATE: [&str; 2] = ["config.json", "state.json"];

/// The snapshots of one workspace.
pub struct Snapshots {
    /// The directory of the snapshots.
    pub root: PathBuf,
    /// Hears how far hashing is.
    pub progress: Arc<dyn Progress>,
    /// What its files are searched for.
    pub leaks: Arc<LeakSearch>,
}

/// One directory of the snapshots.
#[derive(Debug)]
struct SnapshotDirectory {
    id: SnapshotId,
    state: SnapshotState,
    /// The manifest of a listed snapshot, or what is wrong with it.
    manifest: Option<Result<Manifest>>,
    /// The label of a listed snapshot, or what is wrong with it.
    label: Result<SnapshotLabel>,
}

impl Snapshots {
    fn root(&self) -> Result<Folder> {
        Ok(Folder::open(&self.root)?)
    }

    /// All snapshots that are there, damaged and unlisted ones included, in the order of their numbers. Entries that
    /// nixbox did not make are left out.
    fn survey(&self) -> Result<Vec<SnapshotDirectory>> {
        let root = self.root()?;
        let mut found = Vec::new();
        let states =
            [("", SnapshotState::Listed), (STAGING, SnapshotState::Staged), (TRASH, SnapshotState::Trashed)];
        for name in root.names()? {
            let known = states.iter().find_map(|(prefix, state)| Some((id_of(&name, prefix)?, *state)));
            if let Some((id, state)) = known {
                found.push(if state == SnapshotState::Listed {
                    let (manifest, label) = self.labelled(&root, id);
                    SnapshotDirectory { id, state, manifest: Some(manifest), label }
                } else {
                    SnapshotDirectory { id, state, manifest: None, label: Ok(SnapshotLabel::default()) }
                });
            }
        }
        found.sort_by_key(|directory| directory.id);
        Ok(found)
    }

    /// The manifest of a listed snapshot, as it was written when the snapshot was made: a later name is in the label.
    ///
    /// # Errors
    /// If the snapshot is not listed, or damaged.
    pub fn manifest(&self, id: SnapshotId) -> Result<Manifest> {
        Ok(self.listed(&self.root()?, id)?.1)
    }

    /// Gives a listed snapshot another name. A damaged label is replaced, and its note is lost with it.
    ///
    /// The caller holds the lock of the workspace. If the process is killed, the snapshot has its old name or the new one.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`], or if the snapshot is not listed, is damaged, has a label of a newer nixbox, or if the label
    /// cannot be written. The earlier label stays then.
    pub fn rename(&self, id: SnapshotId, name: SnapshotName) -> Result<()> {
        let root = self.root()?;
        let (snapshot, manifest) = self.listed(&root, id)?;
        let named = Manifest { name: Some(name), ..manifest };
        self.check_name(&named)?;
        let label = match layout::read_label(&snapshot, id) {
            Ok(label) => label.unwrap_or_default(),
            Err(newer @ StoreError::Label { source: LabelError::Version(_), .. }) => return Err(newer),
            Err(_) => SnapshotLabel::default(),
        };
        self.write_label(&snapshot, id, &SnapshotLabel { name: named.name, ..label })
    }

    /// Writes down a note about a listed snapshot, in place of an earlier one, or removes the note.
    ///
    /// The caller holds the lock of the workspace. If the process is killed, the old note or the new one is there.
    ///
    /// # Errors
    /// If the snapshot is not listed, is damaged, or has a damaged label, whose name would be lost; or if the label cannot be
    /// written. The earlier label stays then.
    pub fn annotate(&self, id: SnapshotId, note: Option<SnapshotNote>) -> Result<()> {
        let (snapshot, manifest) = self.listed(&self.root()?, id)?;
        let name = layout::read_label(&snapshot, id)?.map_or(manifest.name, |label| label.name);
        self.write_label(&snapshot, id, &SnapshotLabel { name, note })
    }

    fn write_label(&self, snapshot: &Folder, id: SnapshotId, label: &SnapshotLabel) -> Result<()> {
        let encoded = label::encode(label).map_err(|source| StoreError::UnwritableLabel { id, source })?;
        self.leaks.check_text(id, &encoded, "the label")?;
        Ok(snapshot.replace(label::FILE, &encoded)?)
    }

    /// The manifest and the label of a snapshot. The label has the last word on the name.
    fn labelled(&self, root: &Folder, id: SnapshotId) -> (Result<Manifest>, Result<SnapshotLabel>) {
        let (snapshot, manifest) = match self.listed(root, id) {
            Ok(listed) => listed,
            // Without a manifest the label is of no snapshot.
            Err(error) => return (Err(error), Ok(SnapshotLabel::default())),
        };
        let label = match layout::read_label(&snapshot, id) {
            Ok(Some(label)) => Ok(label),
            Ok(None) => Ok(SnapshotLabel { name: manifest.name.clone(), note: None }),
            Err(error) => Err(error),
        };
        let name = label.as_ref().ok().and_then(|label| label.name.clone());
        (Ok(Manifest { name, ..manifest }), label)
    }

    /// The path of the directory that holds a snapshot, listed or else staged: for the VMM, which takes paths.
    ///
    /// # Errors
    /// If the snapshot is neither listed nor staged.
    pub fn directory(&self, id: SnapshotId) -> Result<PathBuf> {
        layout::open(&self.root()?, id)?.map(|folder| folder.path().to_owned()).ok_or(StoreError::Absent(id))
    }

    /// Searches a listed snapshot for every value that a guest of the workspace was ever given, and for these. What is
    /// found is left as it is.
    ///
    /// # Errors
    /// If the snapshot is not listed, or cannot be read.
    pub async fn search(
        &self,
        id: SnapshotId,
        values: &[NamedValue],
        interrupt: &Interrupt,
    ) -> world::Result<Receipt> {
        let (snapshot, manifest) = self.listed(&self.root()?, id)?;
        let inspection = self.leaks.begin_again(id, values)?;
        Ok(scan::search(&snapshot, &manifest, inspection, &self.progress, interrupt).await?)
    }

    fn listed(&self, root: &Folder, id: SnapshotId) -> Result<(Folder, Manifest)> {
        let folder = root.folder(id.to_string())?.ok_or(StoreError::Absent(id))?;
        let manifest = layout::read_manifest(&folder, id)?.ok_or(StoreError::NoManifest(id))?;
        Ok((folder, manifest))
    }

    fn staged(&self, root: &Folder, id: SnapshotId) -> Result<Folder> {
        root.folder(staging_name(id))?.ok_or(StoreError::NotStaged(id))
    }

    /// Makes sure that no other listed snapshot has the name. The name of a damaged snapshot is not known.
    fn check_name(&self, manifest: &Manifest) -> Result<()> {
        let Some(name) = &manifest.name else {
            return Ok(());
        };
        let same = |other: &Manifest| other.id != manifest.id && other.name.as_ref() == Some(name);
        let listed = self.survey()?.into_iter().filter_map(|directory| directory.manifest?.ok());
        match listed.into_iter().find(same) {
            Some(other) => Err(StoreError::NameTaken { name: name.clone(), id: other.id }),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Catalog for Snapshots {
    async fn list(&self) -> world::Result<Vec<ListedSnapshot>> {
        let root = self.root()?;
        let occupied = |id: SnapshotId| {
            let folder = root.folder(id.to_string())?;
            Ok(folder.map_or(Ok(0), |folder| occupied::bytes_in(&folder))?)
        };
        let listing = |SnapshotDirectory { id, manifest, label, .. }: SnapshotDirectory| {
            let (manifest, label) = (manifest?.map_err(Failure::from), label.map_err(Failure::from));
            let occupied = occupied(id).map_err(|error: StoreError| error.into());
            Some(ListedSnapshot { id, manifest, label, occupied })
        };
        Ok(self.survey()?.into_iter().filter_map(listing).collect())
    }

    async fn unlisted(&self) -> world::Result<Vec<SnapshotId>> {
        let unlisted =
            self.survey()?.into_iter().filter(|directory| directory.state != SnapshotState::Listed);
        Ok(unlisted.map(|directory| directory.id).collect())
    }

    async fn free(&self) -> world::Result<u64> {
        Ok(self.root()?.free_bytes()?)
    }

    async fn find(&self, id: SnapshotId) -> world::Result<SnapshotState> {
        let root = self.root()?;
        for (name, state) in [
            (id.to_string(), SnapshotState::Listed),
            (staging_name(id), SnapshotState::Staged),
            (trash_name(id), SnapshotState::Trashed),
        ] {
            if root.folder(name)?.is_some() {
                return Ok(state);
            }
        }
        Ok(SnapshotState::Absent)
    }

    async fn stage(&self, id: SnapshotId) -> world::Result<()> {
        if matches!(self.find(id).await?, SnapshotState::Listed | SnapshotState::Trashed) {
            return Err(StoreError::Exists(id).into());
        }
        let root = self.root()?;
        root.make_folder(staging_name(id))?;
        Ok(root.sync()?)
    }

    /// Tells whether `config.json` and `state.json` are whole. A file of RAM that the VMM writes itself has no mark of
    /// its end, so only the answer to `vm.snapshot` tells whether that file is whole.
    async fn holds_vmm_state(&self, id: SnapshotId) -> world::Result<bool> {
        let Some(staging) = self.root()?.folder(staging_name(id))? else {
            return Ok(false);
        };
        for name in VMM_STATE {
            let Some(bytes) = staging.read(name, VMM_STATE_LIMIT)? else {
                return Ok(false);
            };
            if serde_json::from_slice::<IgnoredAny>(&bytes).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn verify(&self, id: SnapshotId, depth: Depth, interrupt: &Interrupt) -> world::Result<()> {
        let root = self.root()?;
        let (snapshot, manifest) = self.listed(&root, id)?;
        Ok(scan::verify(&root, &snapshot, &manifest, depth, &self.progress, interrupt).await?)
    }

    async fn commit(&self, manifest: Manifest) -> world::Result<()> {
        let (root, id) = (self.root()?, manifest.id);
        if root.folder(id.to_string())?.is_some() {
            // An attempt that was killed after the rename, or a snapshot of another operation.
            let (_, listed) = self.listed(&root, id)?;
            // What the guest was given is found out anew by each attempt.
            let found_anew =
                Manifest { given: listed.given.clone(), receipt: listed.receipt.clone(), ..manifest };
            if found_anew != listed {
                return Err(StoreError::Exists(id).into());
            }
            return Ok(root.sync()?);
        }
        let staging = self.staged(&root, id)?;
        self.check_name(&manifest)?;
        layout::check_files(&staging, &manifest)?;
        let encoded = manifest::encode(&manifest).map_err(|source| StoreError::Unwritable { id, source })?;
        self.leaks.check_text(id, &encoded, "the manifest")?;
        // A commit point is not interrupted.
        let never = Interrupt::new();
        for record in &manifest.files {
            let file = staging
                .file(&record.name)?
                .ok_or_else(|| StoreError::Missing { id, name: record.name.clone() })?;
            copy::sync(NamedFile { file, path: staging.path_of(&record.name) }, &never).await?;
        }
        staging.replace(FILE, &encoded)?;
        staging.sync()?;
        // The manifest has the hashes of these files, and the rename does not change a file.
        VerifiedFiles::now(&staging, &manifest.files)?.write(&root, id)?;
        root.rename(staging_name(id), id.to_string())?;
        Ok(root.sync()?)
    }

    async fn discard(&self, id: SnapshotId) -> world::Result<()> {
        let root = self.root()?;
        if root.folder(id.to_string())?.is_none() {
            VerifiedFiles::forget(&root, id)?;
        }
        Ok(root.remove_tree(staging_name(id))?)
    }

    async fn trash(&self, id: SnapshotId) -> world::Result<()> {
        let root = self.root()?;
        if root.folder(id.to_string())?.is_some() {
            root.rename(id.to_string(), trash_name(id))?;
        }
        Ok(root.sync()?)
    }

    async fn purge(&self, id: SnapshotId) -> world::Result<()> {
        let root = self.root()?;
        VerifiedFiles::forget(&root, id)?;
        Ok(root.remove_tree(trash_name(id))?)
    }

    /// Also syncs every file, so that little is left to do for [`Catalog::commit`], which is not interrupted.
    async fn digest(&self, id: SnapshotId, interrupt: &Interrupt) -> world::Result<Vec<FileRecord>> {
        let staging = self.staged(&self.root()?, id)?;
        Ok(scan::digest(&staging, id, &self.leaks, &self.progress, interrupt).await?)
    }

    async fn keep_audit(&self, id: SnapshotId, audit: GuestAudit) -> world::Result<()> {
        self.leaks.keep_audit(id, audit);
        Ok(())
    }

    async fn receipt(&self, id: SnapshotId) -> world::Result<Option<Receipt>> {
        Ok(self.leaks.receipt(id))
    }
}

#[cfg(test)]
mod tests;
