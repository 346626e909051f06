//! `nixbox down`.

use super::command::{LockedWorkspace, OutputOptions};
use super::error::{self, Outcome};
use super::preflight::Preflight;
use super::{WorkspaceLocation, success};

/// Shut down this workspace's VM and keep its disk
///
/// nixbox asks the guest to shut down, then presses its power button, and ends the VMM if neither helps. What the guest
/// has only in RAM is lost; the disk and the snapshots stay.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox down")]
pub(super) struct Arguments {
    #[command(flatten)]
    output: OutputOptions,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let workspace = LockedWorkspace::open(location, "down", Preflight::EndVm, arguments.output)?;
    let stopped = workspace.run(async |session| error::check_result(session.down().await?))?;
    let (word, sentence) = if stopped { ("done", "the VM is down") } else { ("already", "no VM is running") };
    arguments.output.report(&serde_json::json!({ "result": word }), sentence)?;
    success()
}
