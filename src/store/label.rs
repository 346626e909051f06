//! What a person may change about a snapshot: its name and a note, in `label.json` beside the manifest.
//!
//! A manifest is never written again, because a check covers its bytes. So a later name and a note are in a file of their
//! own, which is there only if somebody renamed the snapshot or wrote a note, and which then has the last word on the name:
//!
//! ```text
//! { "format": 1, "name": "warm", "note": "after the update of Docker" }
//! ```
//!
//! One change of a label is one atomic replacement of this file, under the lock of the workspace. A process that is killed
//! leaves the old label or the new one, and an unfinished file that the next change removes. So a label is no transition of
//! an operation, and the journal does not mention it. Deleting a snapshot removes the label with its directory.
//!
//! The file is read as if somebody else had written it. A label that cannot be parsed is an error of the label alone: the
//! snapshot is listed, found by its number, and never pruned, because it may have had a name.

use serde::{Deserialize, Serialize};

use crate::world::{InvalidValue, SnapshotLabel, SnapshotName, SnapshotNote};

/// The name of a label in the directory of its snapshot.
pub(super) const FILE: &str = "label.json";
/// The name of a label that is being written; see [`Folder::replace`](crate::files::Folder::replace).
pub(super) const UNFINISHED: &str = ".label.json.unfinished";
/// More bytes than a name and 1,000 characters take, each of them escaped.
pub(super) const LIMIT: u64 = 32 << 10;
const FORMAT: u64 = 1;

/// Why a label cannot be read.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    #[error("it is not a label")]
    Json(#[source] serde_json::Error),
    #[error("its format is {0}, and this nixbox knows {FORMAT}: a newer nixbox wrote it")]
    Version(u64),
    #[error("it holds what this nixbox would not write")]
    Value(#[source] InvalidValue),
    #[error("its name has digits only, and would be taken for a number")]
    Number,
}

/// What every format of a label has.
#[derive(Deserialize)]
struct AnyLabel {
    format: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelText {
    format: u64,
    name: Option<String>,
    note: Option<String>,
}

/// The bytes of a label.
pub(super) fn encode(label: &SnapshotLabel) -> serde_json::Result<Vec<u8>> {
    let SnapshotLabel { name, note } = label.clone();
    let text = LabelText { format: FORMAT, name: name.map(String::from), note: note.map(String::from) };
    serde_json::to_vec_pretty(&text)
}

/// The label that these bytes are.
pub(super) fn decode(bytes: &[u8]) -> Result<SnapshotLabel, LabelError> {
    let AnyLabel { format } = serde_json::from_slice(bytes).map_err(LabelError::Json)?;
    if format != FORMAT {
        return Err(LabelError::Version(format));
    }
    let text: LabelText = serde_json::from_slice(bytes).map_err(LabelError::Json)?;
    let name = text.name.map(SnapshotName::try_from).transpose().map_err(LabelError::Value)?;
    let note = text.note.map(SnapshotNote::try_from).transpose().map_err(LabelError::Value)?;
    if name.as_ref().is_some_and(SnapshotName::is_number) {
        return Err(LabelError::Number);
    }
    Ok(SnapshotLabel { name, note })
}

#[cfg(test)]
mod tests;
