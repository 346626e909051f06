//! `nixbox snapshot rename` and `nixbox snapshot note`: what a person may change about a snapshot.
//!
//! Neither of them runs an operation: each is one atomic replacement of a small file under the lock of the workspace.

use super::find::{list_snapshots, parse_name};
use crate::cli::command::{LockedWorkspace, OpenWorkspace, OutputOptions};
use crate::cli::error::{self, CliError, Outcome, Problem};
use crate::cli::preflight::Preflight;
use crate::cli::{WorkspaceLocation, completions, success};
use crate::operations::{Refusal, find_snapshot};
use crate::store::StoreError;
use crate::world::{SnapshotId, SnapshotName, SnapshotNote, SnapshotReference};

/// Give a snapshot another name; nothing prunes a snapshot that has one
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox snapshot rename 12 before-upgrade")]
pub(super) struct RenameArguments {
    /// The snapshot's name or number
    #[arg(add = completions::of_snapshots())]
    snapshot: SnapshotReference,
    /// The new name: 1 to 64 characters of a-z A-Z 0-9 . _ -, not only digits
    #[arg(value_parser = parse_name)]
    name: SnapshotName,
    #[command(flatten)]
    output: OutputOptions,
}

/// Write down a note about a snapshot, or print it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox snapshot note warm 'after the update of Docker'")]
pub(super) struct NoteArguments {
    /// The snapshot's name or number
    #[arg(add = completions::of_snapshots())]
    snapshot: SnapshotReference,
    /// The note: one line of 1 to 1,000 characters; without it, the note is printed
    text: Option<SnapshotNote>,
    /// Remove the note
    #[arg(long, conflicts_with = "text")]
    clear: bool,
    #[command(flatten)]
    output: OutputOptions,
}

pub(super) fn rename(location: &WorkspaceLocation, arguments: RenameArguments) -> Outcome {
    let RenameArguments { snapshot, name, output } = arguments;
    let workspace = LockedWorkspace::open(location, "snapshot rename", Preflight::None, output)?;
    let id = find_snapshot(&list_snapshots(&workspace.wiring)?, &snapshot)?;
    workspace.wiring.snapshots.rename(id, name.clone()).map_err(|error| unchanged(id, error))?;
    let json = serde_json::json!({ "result": "done", "id": id.0.0, "name": name });
    output.report(&json, &format!("snapshot {id} is named {name}"))?;
    success()
}

pub(super) fn note(location: &WorkspaceLocation, arguments: NoteArguments) -> Outcome {
    let NoteArguments { snapshot, text, clear, output } = arguments;
    if text.is_none() && !clear {
        return print_note(location, &snapshot, output);
    }
    let workspace = LockedWorkspace::open(location, "snapshot note", Preflight::None, output)?;
    let id = find_snapshot(&list_snapshots(&workspace.wiring)?, &snapshot)?;
    let json = serde_json::json!({ "result": "done", "id": id.0.0, "note": text });
    workspace.wiring.snapshots.annotate(id, text).map_err(|error| unchanged(id, error))?;
    let done = if clear { "has no note" } else { "has this note" };
    output.report(&json, &format!("snapshot {id} {done}"))?;
    success()
}

fn print_note(location: &WorkspaceLocation, wanted: &SnapshotReference, output: OutputOptions) -> Outcome {
    let mut listed = list_snapshots(&OpenWorkspace::open(location)?.wire()?)?;
    let id = find_snapshot(&listed, wanted)?;
    listed.retain(|listing| listing.id == id);
    let label = match listed.pop() {
        // A label beside a damaged manifest is of no snapshot.
        Some(listing) => listing.manifest.and(listing.label),
        None => return Err(Refusal::NoSuchSnapshot(wanted.clone()).into()),
    };
    let note = label.map_err(|failure| Problem::from(Refusal::Look(failure)))?.note;
    if output.json {
        error::print_json(&serde_json::json!({ "id": id.0.0, "note": note }))?;
    } else if let Some(note) = note {
        error::print(note.as_str())?;
    } else {
        error::print_stderr(&format!("nixbox: snapshot {id} has no note\n"));
    }
    success()
}

fn unchanged(id: SnapshotId, error: StoreError) -> Problem {
    match error {
        StoreError::NameTaken { name, .. } => Refusal::NameTaken(name).into(),
        error => CliError::SnapshotLabel(id, error.into()).into(),
    }
}
