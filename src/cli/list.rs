//! `nixbox list`: the workspaces of this user on this host. The command only reads, and takes no lock.

use std::path::Path;

use serde::Serialize;

use super::error::{self, CliError, Outcome, Problem};
use super::status::{self, StatusReport};
use super::{WorkspaceLocation, success};
use crate::host::process;
use crate::workspace::Workspace;
use crate::workspace::places::StatePlaces;
use crate::workspace::registry::{RegisteredWorkspace, Registry};

/// List the workspaces of this user on this host, and which of them have a VM
///
/// The state is one of `nixbox status`, or `gone` if the directory was deleted or moved and no command has run in it
/// since. `nixbox down --id` ends the VM of such a workspace, and `nixbox forget` removes what nixbox keeps of it. This works
/// from every directory.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: nixbox list --json | jq -r '.[] | select(.state == \"running\") | .directory'"
)]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct ListedWorkspace {
    id: String,
    directory: String,
    /// Where its state is, if it is not in the directory.
    state_directory: Option<String>,
    /// One of the states of `nixbox status`, `gone`, or `unknown`.
    state: &'static str,
    /// The generations of its processes that live.
    processes: Vec<u64>,
    /// Why the state is not known.
    problem: Option<String>,
}

pub(super) fn run(_: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let (mut listed, mut problems) = (Vec::new(), Vec::new());
    let places = WorkspaceLocation::places()?;
    let registry = Registry::open(&places)?;
    for entry in registry.list()? {
        match entry {
            Ok(entry) => listed.extend(list(&entry, &places)?),
            Err(error) => problems.push(error::chain(&error)),
        }
    }
    for problem in problems {
        error::print_stderr(&format!("nixbox: {problem}\n"));
    }
    if arguments.json {
        error::print_json(&listed)?;
    } else {
        error::print(&table(&listed))?;
    }
    success()
}

/// The row of a workspace; `None` if nothing is left of it.
fn list(entry: &RegisteredWorkspace, places: &StatePlaces) -> Result<Option<ListedWorkspace>, Problem> {
    let generations = process::generations(entry.id).map_err(CliError::Processes)?;
    let processes: Vec<u64> = generations.iter().map(|generation| generation.0).collect();
    let state_directory = entry.state.as_ref().filter(|state| state.exists());
    let (state, problem) = match status_at(&entry.path, entry, places) {
        Some(Ok(status)) => (status.state, None),
        Some(Err(problem)) => ("unknown", Some(problem.one_line())),
        None if processes.is_empty() && state_directory.is_none() => return Ok(None),
        None => ("gone", None),
    };
    let (id, directory) = (entry.id.to_string(), entry.path.display().to_string());
    let state_directory = state_directory.map(|state| state.display().to_string());
    Ok(Some(ListedWorkspace { id, directory, state_directory, state, processes, problem }))
}

/// The status of the workspace, if it is still at its path.
fn status_at(
    path: &Path,
    entry: &RegisteredWorkspace,
    places: &StatePlaces,
) -> Option<Result<StatusReport, Problem>> {
    let there =
        Workspace::find(path, places).ok().filter(|there| there.root() == path && there.id() == entry.id)?;
    drop(there);
    Some(status::read_status(&WorkspaceLocation::of_directory(path.to_owned())))
}

fn table(listed: &[ListedWorkspace]) -> String {
    if listed.is_empty() {
        return "there is no workspace: `nixbox init` makes one".to_owned();
    }
    let row = |one: &ListedWorkspace| {
        let problem = one.problem.as_ref().map(|problem| format!("  ({problem})")).unwrap_or_default();
        format!("{:<32}  {:<8}  {}{problem}", one.id, one.state, one.directory)
    };
    let rows = listed.iter().map(row);
    std::iter::once(format!("{:<32}  {:<8}  DIRECTORY", "ID", "STATE"))
        .chain(rows)
        .collect::<Vec<_>>()
        .join("\n")
}
