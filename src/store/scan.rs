//! Reads every file of a snapshot: to learn its hashes before the commit, and to verify them afterwards.

use std::sync::Arc;

use super::error::{Result, StoreError};
use super::layout::{UNFINISHED, check_files};
use super::leaks::{Inspection, LeakSearch};
use super::manifest::{FILE, ManifestError, is_file_name};
use super::verified::VerifiedFiles;
use crate::files::copy::{self, NamedFile, Progress};
use crate::files::{FileError, Folder, extents};
use crate::world::{
    Depth, FileRecord, HashMethod, Interrupt, Manifest, Receipt, SnapshotId, zeroes_freed_memory,
};

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
        let (hash, _) =
            copy::hash(shown(&file), file, record.method, None, Arc::clone(progress), interrupt).await?;
        if hash != record.hash {
            return Err(StoreError::Content { id, name: record.name.clone() });
        }
    }
    if read { now.write(root, id) } else { Ok(()) }
}

/// Searches, hashes and syncs every file of a staging directory. A file for which that was done while it was copied
/// there is not read again.
pub(super) async fn digest(
    staging: &Folder,
    id: SnapshotId,
    leaks: &LeakSearch,
    progress: &Arc<dyn Progress>,
    interrupt: &Interrupt,
) -> Result<Vec<FileRecord>> {
    let method = HashMethod::default();
    let mut inspection = leaks.begin(id)?;
    let mut records = Vec::new();
    for name in staging.names()? {
        if name == FILE || name == UNFINISHED {
            continue;
        }
        let path = staging.path_of(&name);
        let name = name.into_string().ok().filter(|name| is_file_name(name)).ok_or_else(|| {
            StoreError::Unwritable { id, source: ManifestError::FileName(path.display().to_string()) }
        })?;
        let file =
            staging.file_to_write(&name)?.ok_or_else(|| StoreError::Missing { id, name: name.clone() })?;
        let failed = |error| FileError::system("examine", &path)(error);
        let size = file.metadata().map_err(failed)?.len();
        let same = || -> Result<NamedFile> {
            let file = file.try_clone().map_err(FileError::system("open", &path))?;
            Ok(NamedFile { file, path: path.clone() })
        };
        let known = match leaks.copied_file(id, staging, &name)? {
            Some(copied) => inspection.known_hash(&name, &same()?, copied)?,
            None => None,
        };
        let hash = loop {
            if let Some(known) = known {
                break known;
            }
            let (named, progress) = (same()?, Arc::clone(progress));
            let search = Some(inspection.search());
            let (hash, findings) =
                copy::hash(shown(&named), named, method, search, progress, interrupt).await?;
            if inspection.judge(&name, &file, &findings)? {
                break hash;
            }
        };
        // What is overwritten is on the medium as such.
        copy::sync(same()?, interrupt).await?;
        inspection.searched(extents::data_bytes(&file).map_err(failed)?);
        records.push(FileRecord { name, size, hash, method });
    }
    leaks.finish(inspection, saved_vm_zeroes(staging)?)?;
    Ok(records)
}

/// Searches every file of a listed snapshot for what was ever injected and for `values`. What the receipt says to be found
/// was not overwritten.
pub(super) async fn search(
    snapshot: &Folder,
    manifest: &Manifest,
    mut inspection: Inspection,
    progress: &Arc<dyn Progress>,
    interrupt: &Interrupt,
) -> Result<Receipt> {
    let id = manifest.id;
    for record in &manifest.files {
        let missing = || StoreError::Missing { id, name: record.name.clone() };
        let file = snapshot.file(&record.name)?.ok_or_else(missing)?;
        let path = snapshot.path_of(&record.name);
        inspection.searched(extents::data_bytes(&file).map_err(FileError::system("examine", &path))?);
        let same = file.try_clone().map_err(FileError::system("open", &path))?;
        let named = NamedFile { file: same, path };
        let searching =
            copy::search(shown(&named), named, inspection.search(), Arc::clone(progress), interrupt);
        let findings = searching.await?;
        inspection.judge(&record.name, &file, &findings)?;
    }
    Ok(inspection.receipt(saved_vm_zeroes(snapshot)?))
}

/// Whether the kernel of the VM that the VMM has saved was told to zero the memory that it frees.
fn saved_vm_zeroes(staging: &Folder) -> Result<bool> {
    /// More than a VMM's configuration takes.
    const LIMIT: u64 = 16 << 20;
    let config = staging.read("config.json", LIMIT)?.unwrap_or_default();
    // A configuration of another form does not say it.
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
    let cmdline = config.pointer("/payload/cmdline").and_then(serde_json::Value::as_str).unwrap_or_default();
    Ok(zeroes_freed_memory(cmdline))
}

/// The name of a file for the progress.
fn shown(file: &NamedFile) -> String {
    file.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
