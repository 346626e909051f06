//! The list of snapshots, and the names that a person may give to them.

use crate::cli::command::block_on;
use crate::cli::error::Problem;
use crate::cli::wiring::Wiring;
use crate::operations::Refusal;
use crate::world::{ListedSnapshot, SnapshotName};

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
