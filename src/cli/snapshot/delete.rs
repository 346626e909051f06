//! `nixbox snapshot delete`: which snapshot is meant if none is named, and its deletion.

use super::find::list_snapshots;
use crate::cli::age::age;
use crate::cli::command::{LockedWorkspace, OutputOptions};
use crate::cli::consent;
use crate::cli::error::{self, CliError, Outcome, Problem};
use crate::cli::preflight::Preflight;
use crate::cli::{WorkspaceLocation, success};
use crate::operations::Refusal;
use crate::world::{ListedSnapshot, SnapshotReference};

pub(super) fn run(
    location: &WorkspaceLocation,
    wanted: Option<SnapshotReference>,
    output: OutputOptions,
) -> Outcome {
    let workspace = LockedWorkspace::open(location, "delete", Preflight::None, output)?;
    let wanted = match wanted {
        Some(wanted) => wanted,
        None => choose(&list_snapshots(&workspace.wiring)?, workspace.wiring.world.clock.unix_ms())?,
    };
    let (id, result) = workspace.run(async |session| Ok(session.delete(&wanted).await?))?;
    error::check_result(result)?;
    let json = serde_json::json!({ "result": "done", "id": id.0.0 });
    output.report(&json, &format!("snapshot {id} was deleted"))?;
    success()
}

/// The snapshot that is deleted if a person names none: the only one, or the newest if the person says so.
fn choose(listed: &[ListedSnapshot], now: u64) -> Result<SnapshotReference, Problem> {
    let newest = match listed {
        [] => return Err(Refusal::NoSnapshot.into()),
        [only] => only,
        [.., newest] if consent::may_ask() => newest,
        several => {
            let short = several.iter().map(short).collect::<Vec<_>>().join(", ");
            return Err(CliError::SnapshotsToChoose(short).into());
        }
    };
    if listed.len() > 1 {
        let question =
            format!("Delete the newest of {} snapshots, {}?", listed.len(), described(newest, now));
        if !consent::ask(&question).map_err(CliError::DeletionUnanswered)? {
            return Err(CliError::DeletionDeclined.into());
        }
    }
    Ok(newest.id.into())
}

/// The number, and the name if there is one.
fn short(listing: &ListedSnapshot) -> String {
    match listing.manifest.as_ref().ok().and_then(|manifest| manifest.name.as_ref()) {
        Some(name) => format!("{} ({name})", listing.id),
        None => listing.id.to_string(),
    }
}

fn described(listing: &ListedSnapshot, now: u64) -> String {
    match &listing.manifest {
        Ok(manifest) => {
            let bytes = manifest.files.iter().map(|file| file.size).sum();
            let (size, made) = (indicatif::HumanBytes(bytes), age(manifest.created_ms, now));
            format!("{}, made {made}, {size}", short(listing))
        }
        Err(_) => format!("{}, which is damaged", short(listing)),
    }
}
