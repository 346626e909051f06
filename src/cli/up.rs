//! `nixbox up`.

use super::command::{LockedWorkspace, OutputOptions};
use super::consent::TrustOption;
use super::error::{self, Outcome};
use super::preflight::Preflight;
use super::{WorkspaceLocation, completions, restore, success};
use crate::world::{Generation, SnapshotReference};

/// Start this workspace's VM and wait until it is SSH-ready
///
/// The VM boots from the disk of its last session. A VM that runs already is left as it is. If the boot fails or is
/// interrupted, all that was set up for the VM is removed again, and the disk is kept. A guest that does not answer within
/// the time of the key guest.ready-timeout, and no longer writes to its console, is shut down, unless --keep is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox up --snapshot && nixbox shell")]
pub(super) struct Arguments {
    /// Restore this snapshot (a name or number), or the newest that fits; boot if none fits
    #[arg(long, value_name = "SNAPSHOT", num_args = 0..=1, add = completions::of_snapshots())]
    snapshot: Option<Option<SnapshotReference>>,
    /// Boot from this disk of an earlier session, which `nixbox status` lists; the present disk is kept in its place
    #[arg(long, value_name = "GENERATION", conflicts_with = "snapshot")]
    disk: Option<u64>,
    /// Leave the VM running if its guest does not become SSH-ready, to look at it; `nixbox down` ends it
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    trust: TrustOption,
    #[command(flatten)]
    output: OutputOptions,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let workspace =
        LockedWorkspace::open_trusting(location, "up", Preflight::Boot, arguments.output, arguments.trust)?;
    if let Some(wanted) = &arguments.snapshot {
        let result = workspace.run(async |session| {
            session.keep = arguments.keep;
            Ok(session.warm_up(wanted.as_ref()).await?)
        })?;
        return restore::report(&workspace, arguments.output, result);
    }
    let started = workspace.run(async |session| {
        session.keep = arguments.keep;
        let result = match arguments.disk {
            Some(disk) => session.up_on(Generation(disk)).await?,
            None => session.up().await?,
        };
        error::check_result(result)
    })?;
    let times = workspace.progress.times();
    let (word, sentence) = match times.ready_ms {
        _ if !started => ("already", "the VM is running already".to_owned()),
        Some(ms) => ("done", format!("the VM is SSH-ready after {ms} ms")),
        None => ("done", "the VM is SSH-ready".to_owned()),
    };
    arguments.output.report(&serde_json::json!({ "result": word, "times": times }), &sentence)?;
    success()
}
