//! Copies of a VM's files into a staging directory, searched and hashed on the way, and what is remembered of them.
//!
//! A file that cannot be cloned is copied in several passes: by [`LeakSearch::precopy`] while the guest runs, and by
//! [`LeakSearch::capture`] while it stands still. Both have to happen in one process, which remembers the earlier passes. If
//! that process ends in between, the operation rolls back, and the copy goes with the staging directory.

use std::sync::Arc;

use super::{LeakSearch, Result, is_memory};
use crate::files::Folder;
use crate::files::copy::{
    self, Copied, CopyMethod, CopyRequest, NamedFile, Precopy, PrecopyRequest, Progress,
};
use crate::files::search::findings::{FileSearch, Findings};
use crate::files::search::known::KnownValue;
use crate::files::search::token_kinds::TokenKindSearch;
use crate::files::search::value::Treatment;
use crate::store::error::StoreError;
use crate::store::verified::FileStatus;
use crate::world::{self, HashMethod, Interrupt, SnapshotId};

/// A file of a VM that is to be captured.
pub struct CaptureRequest {
    /// For people: "disk 0", "memory".
    pub what: String,
    /// Opened for reading.
    pub source: NamedFile,
    /// The name of the copy in the snapshot.
    pub name: String,
    /// Whether to share blocks where the file system can.
    pub reflink: bool,
    /// How many zeros become a hole of the copy, in bytes: see [`copy::IMAGE_HOLE`].
    pub smallest_hole: usize,
}

/// The search of a file that is copied into a snapshot.
pub(super) struct CopySearch {
    /// What the copy is to be made with; `None` if nothing was ever injected.
    pub(super) search: Option<Arc<FileSearch>>,
    /// How many values it searches for.
    values: usize,
}

/// A file that was copied while the guest ran, and what it was searched for.
pub(super) struct PrecopiedFile {
    precopy: Precopy,
    searching: CopySearch,
}

/// A file of a staging directory that was searched and hashed while it was copied there.
#[derive(Debug, Clone)]
pub(in crate::store) struct CopiedFile {
    pub(in crate::store) hash: [u8; 32],
    /// How the copy looked when it was made.
    status: FileStatus,
    /// How many values it was searched for. No value is ever forgotten, so a search for as many is the same.
    pub(super) values: usize,
    /// What was found in the source and is not in the copy.
    pub(super) overwritten: Findings,
    /// What was found and is in the copy.
    pub(super) left: Findings,
    pub(super) seams: Vec<u64>,
}

impl LeakSearch {
    /// Makes the passes of a capture before the last one, while the guest runs. A copy of an earlier try is replaced.
    ///
    /// # Errors
    /// [`CopyError`](copy::CopyError), or if the fingerprints cannot be read.
    pub async fn precopy(
        &self,
        id: SnapshotId,
        staging: &Folder,
        capture: CaptureRequest,
        progress: Arc<dyn Progress>,
        interrupt: &Interrupt,
    ) -> world::Result<()> {
        let CaptureRequest { what, source, name, smallest_hole, reflink: _ } = capture;
        let searching = self.while_copying(&name)?;
        let target = new_file(staging, &name)?;
        let request =
            PrecopyRequest { what, source, target, smallest_hole, search: searching.search.clone() };
        let precopy = copy::precopy(request, progress, interrupt).await?;
        self.memory().precopied.insert((id, name), PrecopiedFile { precopy, searching });
        Ok(())
    }

    /// Captures a file that nothing writes to: by a last pass, if there were others, or else as a whole. A copy that
    /// shares no blocks is searched and hashed on the way.
    ///
    /// # Errors
    /// As [`Self::precopy`].
    pub async fn capture(
        &self,
        id: SnapshotId,
        staging: &Folder,
        capture: CaptureRequest,
        progress: Arc<dyn Progress>,
        interrupt: &Interrupt,
    ) -> world::Result<CopyMethod> {
        let CaptureRequest { what, source, name, reflink, smallest_hole } = capture;
        let precopied = self.memory().precopied.remove(&(id, name.clone()));
        let (copied, searching) = if let Some(PrecopiedFile { precopy, searching }) = precopied {
            (precopy.finish(progress, interrupt).await?, searching)
        } else {
            let searching = self.while_copying(&name)?;
            let (target, search) = (new_file(staging, &name)?, searching.search.clone());
            let hash = Some(HashMethod::default());
            let request = CopyRequest { what, source, target, reflink, smallest_hole, hash, search };
            (copy::copy(request, progress, interrupt).await?, searching)
        };
        let method = copied.method;
        self.copied(id, staging, &name, copied, &searching)?;
        Ok(method)
    }

    /// A search for a copy into this file of a snapshot. In RAM it overwrites every token.
    pub(super) fn while_copying(&self, name: &str) -> Result<CopySearch> {
        let Some(known) = self.known()? else {
            return Ok(CopySearch { search: None, values: 0 });
        };
        let is_overwritten = |value: &KnownValue| is_memory(name) && value.treatment == Treatment::Token;
        let numbers = (0..).zip(known.values()).filter(|(_, value)| is_overwritten(value));
        let numbers = numbers.map(|(number, _)| number).collect();
        let token_kinds = Arc::new(TokenKindSearch::new().map_err(StoreError::TokenKinds)?);
        let search = FileSearch::new(Arc::new(known.searcher()), numbers).with_token_kinds(token_kinds);
        Ok(CopySearch { search: Some(Arc::new(search)), values: known.values().len() })
    }

    /// Remembers a copy that was searched and hashed on the way, so that it is not read again. A copy that shares blocks was
    /// neither, and is not remembered.
    pub(super) fn copied(
        &self,
        id: SnapshotId,
        staging: &Folder,
        name: &str,
        copied: Copied,
        CopySearch { search, values }: &CopySearch,
    ) -> Result<()> {
        let key = (id, name.to_owned());
        let Some(hash) = copied.hash else {
            self.memory().copied.remove(&key);
            return Ok(());
        };
        let missing = || StoreError::Missing { id, name: name.to_owned() };
        let status = FileStatus::of(staging, name)?.ok_or_else(missing)?;
        let overwrites = |value| search.as_ref().is_some_and(|search| search.overwrites(value));
        let (overwritten, left) = copied.findings.split(overwrites);
        let file = CopiedFile { hash, status, values: *values, overwritten, left, seams: copied.seams };
        self.memory().copied.insert(key, file);
        Ok(())
    }

    /// What is known of a file of a staging directory, if the file has not changed since it was copied there.
    pub(in crate::store) fn copied_file(
        &self,
        id: SnapshotId,
        staging: &Folder,
        name: &str,
    ) -> Result<Option<CopiedFile>> {
        let known = self.memory().copied.get(&(id, name.to_owned())).cloned();
        let now = FileStatus::of(staging, name)?;
        Ok(known.filter(|known| Some(known.status) == now))
    }
}

/// A new file of a staging directory, in the place of one that an earlier try has left.
fn new_file(staging: &Folder, name: &str) -> Result<NamedFile> {
    staging.remove_file(name)?;
    Ok(NamedFile { file: staging.new_file(name)?, path: staging.path_of(name) })
}
