//! Reading every file of a snapshot: to learn its hashes before it is committed, and to verify it afterwards.

use std::sync::Arc;

use super::manifest::{FILE, ManifestError, is_file_name};
use super::verified::VerifiedFiles;
use super::{Result, Snapshots, StoreError, staging_name};
use crate::files::copy::{self, CopyError, Named};
use crate::files::hash::PieceHashes;
use crate::files::{FileError, Folder};
use crate::world::{Depth, FileRecord, Interrupt, Manifest, SnapshotId};

/// A manifest being replaced has this name until it is whole.
const UNFINISHED: &str = ".manifest.json.unfinished";

/// Makes sure that an open snapshot has exactly the files of the manifest, in their sizes.
pub(super) fn check_files(snapshot: &Folder, manifest: &Manifest) -> Result<()> {
    let id = manifest.id;
    for record in &manifest.files {
        let name = || record.name.clone();
        let file = snapshot.file(&record.name)?.ok_or_else(|| StoreError::Missing { id, name: name() })?;
        let found =
            file.metadata().map_err(FileError::system("examine", snapshot.path_of(&record.name)))?.len();
        if found != record.size {
            return Err(StoreError::Size { id, name: name(), found, expected: record.size });
        }
    }
    let known = |name: &std::ffi::OsString| {
        name == FILE || name == UNFINISHED || manifest.files.iter().any(|record| *name == *record.name)
    };
    match snapshot.names()?.into_iter().find(|name| !known(name)) {
        Some(name) => Err(StoreError::Extra { id, name }),
        None => Ok(()),
    }
}

impl Snapshots {
    /// [`crate::world::Catalog::verify`].
    pub(super) async fn compare(&self, id: SnapshotId, depth: Depth, interrupt: &Interrupt) -> Result<()> {
        let root = Folder::open(&self.root)?;
        let (snapshot, manifest) = self.listed(&root, id)?;
        check_files(&snapshot, &manifest)?;
        let now = VerifiedFiles::now(&snapshot, &manifest.files)?;
        let then = VerifiedFiles::read(&root, id)?;
        let unread = |record: &&FileRecord| depth == Depth::All || !then.agrees(&now, &record.name);
        let mut read = false;
        for record in manifest.files.iter().filter(unread) {
            read = true;
            let missing = || StoreError::Missing { id, name: record.name.clone() };
            let file = snapshot.file(&record.name)?.ok_or_else(missing)?;
            let hash =
                self.hash_file(Named { file, path: snapshot.path_of(&record.name) }, interrupt).await?;
            if hash != record.hash {
                return Err(StoreError::Content { id, name: record.name.clone() });
            }
        }
        if read { now.write(&root, id) } else { Ok(()) }
    }

    /// [`crate::world::Catalog::digest`].
    pub(super) async fn hash_staged(&self, id: SnapshotId, interrupt: &Interrupt) -> Result<Vec<FileRecord>> {
        let staging = Folder::open(&self.root)?.folder(staging_name(id))?.ok_or(StoreError::NotStaged(id))?;
        let mut records = Vec::new();
        for name in staging.names()? {
            if name == FILE || name == UNFINISHED {
                continue;
            }
            let path = staging.path_of(&name);
            let name = name.into_string().ok().filter(|name| is_file_name(name)).ok_or_else(|| {
                StoreError::Unwritable { id, source: ManifestError::FileName(path.display().to_string()) }
            })?;
            let file = staging.file(&name)?.ok_or_else(|| StoreError::Missing { id, name: name.clone() })?;
            let failed = |error| FileError::system("examine", &path)(error);
            let size = file.metadata().map_err(failed)?.len();
            let same = file.try_clone().map_err(failed)?;
            copy::sync(Named { file: same, path: path.clone() }, interrupt).await?;
            let hash = self.hash_file(Named { file, path }, interrupt).await?;
            records.push(FileRecord { name, size, hash });
        }
        Ok(records)
    }

    async fn hash_file(&self, file: Named, interrupt: &Interrupt) -> Result<[u8; 32]> {
        let what = file.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        finish(copy::hash(what, file, Arc::clone(&self.progress), interrupt).await?, interrupt).await
    }
}

/// Hashing the holes of a large file takes seconds of computing, hence a thread of its own.
async fn finish(hashes: PieceHashes, interrupt: &Interrupt) -> Result<[u8; 32]> {
    let watched = interrupt.clone();
    let hash = copy::answering(interrupt, move || hashes.finish(&watched)).await?;
    // It fails of nothing else.
    hash.map_err(|_| CopyError::Interrupted.into())
}
