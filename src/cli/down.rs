//! `nixbox down`.

use super::command::{LockedWorkspace, OutputOptions};
use super::error::{self, CliError, Outcome};
use super::forward::ended;
use super::preflight::Preflight;
use super::{WorkspaceLocation, success};
use crate::operations;
use crate::world::WorkspaceId;

/// Shut down this workspace's VM and keep its disk
///
/// nixbox asks the guest to shut down, then presses its power button, and ends the VMM if neither helps. What the guest
/// has only in RAM is lost; the disk and the snapshots stay. This works with a configuration that cannot be read, without
/// credentials, after an operation that is stuck, and with a journal that cannot be used.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox down")]
pub(super) struct Arguments {
    /// End the VM of the workspace with this id, of which the directory may be gone; `nixbox list` shows the ids
    #[arg(long, value_name = "ID")]
    id: Option<WorkspaceId>,
    #[command(flatten)]
    output: OutputOptions,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let of_id =
        arguments.id.map(|id| WorkspaceLocation { directory: location.directory.clone(), id: Some(id) });
    let location = of_id.as_ref().unwrap_or(location);
    let workspace = match LockedWorkspace::open(location, "down", Preflight::EndVm, arguments.output) {
        Err(problem) if location.id.is_some() && problem.is_not_running() => {
            location.id.into_iter().for_each(end_forwards);
            return report(false, arguments.output);
        }
        opened => opened?,
    };
    if let Some(problem) = &workspace.journal_problem {
        return end_without_journal(&workspace, &problem.one_line(), arguments.output);
    }
    let stopped = workspace.run(async |session| error::check_result(session.down().await?))?;
    end_forwards(workspace.id());
    report(stopped, arguments.output)
}

fn report(stopped: bool, output: OutputOptions) -> Outcome {
    let (word, sentence) = if stopped { ("done", "the VM is down") } else { ("already", "no VM is running") };
    output.report(&serde_json::json!({ "result": word }), sentence)?;
    success()
}

/// Ends the processes that forward ports of the VM in the background. They end by themselves, but the ports of this host are
/// free when the command returns. The VM is down if that fails, so the command does not fail.
fn end_forwards(workspace: WorkspaceId) {
    if let Err(problem) = ended::end_all(workspace) {
        error::print_stderr(&format!("nixbox: no VM is running any more; {}\n", problem.one_line()));
    }
}

/// Ends the VM by what can be found of it on this host. The journal stays as it is.
fn end_without_journal(workspace: &LockedWorkspace, why: &str, output: OutputOptions) -> Outcome {
    let ended = workspace.interruptible(async |_| {
        operations::end_without_journal(&workspace.wiring.world)
            .await
            .map_err(|failure| CliError::End(failure).into())
    })?;
    end_forwards(workspace.id());
    let removed: Vec<String> = ended.iter().map(ToString::to_string).collect();
    let what = if removed.is_empty() { "nothing was running".to_owned() } else { removed.join(", ") };
    let json = serde_json::json!({ "result": "without-journal", "why": why, "removed": removed });
    let sentence = format!(
        "the journal cannot be used and was left as it is ({why}); what belonged to the VM was ended and removed: {what}. \
         All disk images and snapshots are kept"
    );
    output.report(&json, &sentence)?;
    success()
}
