//! The disks of earlier sessions that are kept: `run/kept-<generation>-<kept by>/`, the images and all that lies with them.
//!
//! The rename of `disk-<generation>` to this name keeps a disk, and the rename back takes it for a VM again, so that after a
//! crash a disk is one of the two. The second number is the generation of the operation that kept it: these numbers grow,
//! so that they say which disk was kept first.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::files::{FileError, Folder};
use crate::world::{Generation, KeptDisk, KeptDiskId};

type Result<T, E = FileError> = std::result::Result<T, E>;

/// The name of a kept disk's directory.
pub(super) fn name(id: KeptDiskId) -> String {
    format!("kept-{}-{}", id.disk, id.kept_by)
}

/// The kept disk of that name; `None` if nixbox would not have written the name like this.
fn id(text: &str) -> Option<KeptDiskId> {
    let (disk, kept_by) = text.strip_prefix("kept-")?.split_once('-')?;
    let number = |digits: &str| Some(Generation(digits.parse().ok()?));
    let id = KeptDiskId { kept_by: number(kept_by)?, disk: number(disk)? };
    (name(id) == text).then_some(id)
}

/// The kept disks in a directory, first the one that was kept first.
pub(super) fn list(run: &Folder) -> Result<Vec<KeptDisk>> {
    let mut kept = Vec::new();
    for id in run.names()?.iter().filter_map(|name| id(name.to_str()?)) {
        let Some(folder) = run.folder(name(id))? else { continue };
        kept.push(describe(&folder, id)?);
    }
    kept.sort_by_key(|disk| disk.id);
    Ok(kept)
}

/// The kept disks of a workspace, for commands that describe no VM.
///
/// # Errors
/// If the directory cannot be read.
pub fn in_directory(run: &Path) -> Result<Vec<KeptDisk>> {
    list(&Folder::open(run)?)
}

/// How much space the files of a disk occupy, and when one of them was last written.
fn describe(folder: &Folder, id: KeptDiskId) -> Result<KeptDisk> {
    let (mut bytes, mut written_ms) = (0_u64, 0);
    for name in folder.names()? {
        let Some(file) = folder.file(&name)? else { continue };
        let status = file.metadata().map_err(FileError::system("examine", folder.path_of(&name)))?;
        bytes = bytes.saturating_add(status.blocks().saturating_mul(512));
        // A file system without times says nothing.
        let since = status.modified().unwrap_or(SystemTime::UNIX_EPOCH).duration_since(UNIX_EPOCH);
        let since = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        written_ms = written_ms.max(since);
    }
    Ok(KeptDisk { id, bytes, written_ms })
}
