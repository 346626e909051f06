//! Reads every file of a snapshot: to learn its hashes before the commit, and to verify them afterwards.

use std::sync::Arc;

use super::error::{Result, StoreError};
use super::layout::{UNFINISHED, check_files};
use super::manifest::{FILE, ManifestError, is_file_name};
use super::verified::VerifiedFiles;
use crate::files::copy::{self, CopyError, NamedFile, Progress};
use crate::files::{FileError, Folder};
use crate::world::{Depth, FileRecord, Interrupt, Manifest, SnapshotId};

/// Compares the files of a listed snapshot with its manifest, and keeps in `root` how they look if they were read.
pub(super) async fn verify(
    root: &Folder,
    snapshot: &Folder,
    manifest: &Manifest,
    depth: Depth,
    progress: &Arc<dyn Progress>,
    interrupt: &Interrupt,
) -> Result<()> {
    let id = manifest.id;
    check_files(snapshot, manifest)?;
    let now = VerifiedFiles::now(snapshot, &manifest.files)?;
    let then = VerifiedFiles::read(root, id)?;
    let unread = |record: &&FileRecord| depth == Depth::All || !then.agrees(&now, &record.name);
    let mut read = false;
    for record in manifest.files.iter().filter(unread) {
        read = true;
        let missing = || StoreError::Missing { id, name: record.name.clone() };
        let file = snapshot.file(&record.name)?.ok_or_else(missing)?;
        let file = NamedFile { file, path: snapshot.path_of(&record.name) };
        if hash_file(file, progress, interrupt).await? != record.hash {
            return Err(StoreError::Content { id, name: record.name.clone() });
        }
    }
    if read { now.write(root, id) } else { Ok(()) }
}

/// Syncs and hashes every file of a staging directory.
pub(super) async fn digest(
    staging: &Folder,
    id: SnapshotId,
    progress: &Arc<dyn Progress>,
    interrupt: &Interrupt,
) -> Result<Vec<FileRecord>> {
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
        copy::sync(NamedFile { file: same, path: path.clone() }, interrupt).await?;
        let hash = hash_file(NamedFile { file, path }, progress, interrupt).await?;
        records.push(FileRecord { name, size, hash });
    }
    Ok(records)
}

async fn hash_file(file: NamedFile, progress: &Arc<dyn Progress>, interrupt: &Interrupt) -> Result<[u8; 32]> {
    let what = file.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let hashes = copy::hash(what, file, Arc::clone(progress), interrupt).await?;
    let watched = interrupt.clone();
    // Hashing the holes of a large file takes seconds of computing, so a thread of its own does it.
    let hash = copy::answering(interrupt, move || hashes.finish(&watched)).await?;
    // An interrupt is the only reason why it can fail.
    hash.map_err(|_| CopyError::Interrupted.into())
}
