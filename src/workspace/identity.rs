//! The name of a workspace's directory, and the id of a workspace in its file.

use std::path::PathBuf;

use crate::files::{FileError, Folder};
use crate::world::WorkspaceId;

/// The directory that makes a directory a workspace.
pub const DIRECTORY: &str = ".nixbox";
/// The file with the id, in [`DIRECTORY`].
pub(super) const ID_FILE: &str = "workspace-id";

/// The file with the id that a copy is about to get, in [`DIRECTORY`].
pub(super) const NEXT_ID_FILE: &str = "next-workspace-id";

/// Why the id of a workspace cannot be told, or made.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum IdError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} does not hold 32 hexadecimal digits: it is not what `nixbox init` wrote", path.display())]
    Malformed { path: PathBuf },
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
}

/// The directory of a workspace is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the directory {} of the workspace is gone", path.display())]
pub struct DirectoryGone {
    /// Where it was.
    pub path: PathBuf,
}

/// Reads the id in a directory `.nixbox`. Returns `None` if the directory has no file for the id.
pub(super) fn read_id(nixbox: &Folder) -> Result<Option<WorkspaceId>, IdError> {
    read_id_in(nixbox, ID_FILE)
}

fn read_id_in(nixbox: &Folder, file: &str) -> Result<Option<WorkspaceId>, IdError> {
    let Some(text) = nixbox.read(file, 33)? else {
        return Ok(None);
    };
    parse_id(&text).map(Some).ok_or_else(|| IdError::Malformed { path: nixbox.path_of(file) })
}

/// The id that a copy is about to get, which is noted in its directory `.nixbox` if it is not yet.
pub(super) fn noted_id(nixbox: &Folder) -> Result<WorkspaceId, IdError> {
    if let Some(id) = read_id_in(nixbox, NEXT_ID_FILE)? {
        return Ok(id);
    }
    let id = fresh_id()?;
    nixbox.replace(NEXT_ID_FILE, format!("{id}\n").as_bytes())?;
    Ok(id)
}

/// The id in the text of its file: exactly as nixbox writes it, with or without a line break at its end.
pub(super) fn parse_id(text: &[u8]) -> Option<WorkspaceId> {
    std::str::from_utf8(text.strip_suffix(b"\n").unwrap_or(text)).ok()?.parse().ok()
}

/// An id that no other workspace has.
pub(super) fn fresh_id() -> Result<WorkspaceId, IdError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(IdError::Random)?;
    Ok(WorkspaceId(random))
}
