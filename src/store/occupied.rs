//! What the files of snapshots occupy, and how many snapshots a workspace has. Reads no manifest, so that a damaged snapshot
//! counts too.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::layout;
use crate::files::{FileError, Folder};

/// The snapshots of a workspace.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct SnapshotTotals {
    /// How many there are.
    pub count: usize,
    /// What their files occupy, in bytes. Blocks that files share count for each of them.
    pub occupied_bytes: u64,
}

/// The listed snapshots in the directory `snapshots` of a state, which may be missing. A snapshot that another nixbox deletes
/// meanwhile counts as far as it was there.
///
/// # Errors
/// If a directory cannot be read.
pub fn snapshots_in(directory: &Path) -> Result<SnapshotTotals, FileError> {
    let mut totals = SnapshotTotals::default();
    let snapshots = match Folder::open(directory) {
        Err(error) if error.is(io::ErrorKind::NotFound) => return Ok(totals),
        opened => opened?,
    };
    for name in snapshots.names()? {
        let listed = layout::id_of(&name, "").map(|_| snapshots.folder(&name)).transpose()?.flatten();
        let Some(snapshot) = listed else { continue };
        totals.count += 1;
        totals.occupied_bytes = totals.occupied_bytes.saturating_add(bytes_in(&snapshot)?);
    }
    Ok(totals)
}

/// What the files of this directory occupy, in bytes. A file that is removed meanwhile counts as nothing.
pub(super) fn bytes_in(snapshot: &Folder) -> Result<u64, FileError> {
    let mut bytes: u64 = 0;
    for file in snapshot.names()? {
        // st_blocks counts units of 512 bytes (stat(2)).
        let blocks = snapshot.examine(&file)?.map_or(0, |status| status.st_blocks.unsigned_abs());
        bytes = bytes.saturating_add(blocks.saturating_mul(512));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_that_are_listed_are_counted_with_what_they_occupy() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(snapshots_in(&state.path().join("snapshots")).unwrap(), SnapshotTotals::default());
        let snapshots = state.path().join("snapshots");
        for name in ["3", "12", ".staging-13", ".trash-2"] {
            std::fs::create_dir_all(snapshots.join(name)).unwrap();
            std::fs::write(snapshots.join(name).join("memory.img"), [7; 8192]).unwrap();
            let sparse = std::fs::File::create(snapshots.join(name).join("disk-0.img")).unwrap();
            sparse.set_len(1 << 30).unwrap();
        }
        std::fs::write(snapshots.join(".seen-12.json"), "{}").unwrap();
        let SnapshotTotals { count, occupied_bytes } = snapshots_in(&state.path().join("snapshots")).unwrap();
        assert_eq!(count, 2);
        assert!((16_384..1 << 20).contains(&occupied_bytes), "{occupied_bytes}");
    }
}
