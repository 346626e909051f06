//! The list of snapshots, and the names that a person may give to them.

use crate::cli::command::block_on;
use crate::cli::error::{CliError, Problem};
use crate::cli::wiring::Wiring;
use crate::operations::{Refusal, find_snapshot};
use crate::world::{
    self, Failure, ListedSnapshot, Manifest, SnapshotId, SnapshotLabel, SnapshotName, SnapshotReference,
};

/// A name that a person may give to a snapshot.
pub(super) fn parse_name(text: &str) -> Result<SnapshotName, String> {
    let name = SnapshotName::try_from(text.to_owned()).map_err(|error| error.to_string())?;
    if name.is_number() {
        Err("a name of digits only would be taken for a snapshot's number".to_owned())
    } else {
        Ok(name)
    }
}

pub(super) fn list_snapshots(wiring: &Wiring) -> Result<Vec<ListedSnapshot>, Problem> {
    block_on(async { wiring.world.catalog.list().await.map_err(|failure| Refusal::Look(failure).into()) })
}

/// Takes the snapshot that is meant out of the list: its manifest, and its label or why that cannot be read.
pub(super) fn take_snapshot(
    listed: &mut Vec<ListedSnapshot>,
    wanted: &SnapshotReference,
) -> Result<(Manifest, world::Result<SnapshotLabel>), Problem> {
    let id = find_snapshot(listed, wanted)?;
    let place = listed.iter().position(|listing| listing.id == id);
    let Some(ListedSnapshot { manifest, label, .. }) = place.map(|place| listed.remove(place)) else {
        return Err(Refusal::NoSuchSnapshot(wanted.clone()).into());
    };
    Ok((manifest.map_err(|failure| damaged(id, failure))?, label))
}

pub(super) fn damaged(id: SnapshotId, failure: Failure) -> Problem {
    if matches!(failure, Failure::Interrupted) {
        Refusal::Look(failure).into()
    } else {
        CliError::DamagedSnapshot(id, failure).into()
    }
}
