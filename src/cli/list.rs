//! `nixbox list`: the workspaces of this user on this host. The command only reads, and takes no lock.

use std::path::Path;

use indicatif::HumanBytes;
use serde::Serialize;

use super::age::lapse;
use super::error::{self, CliError, Outcome, Problem};
use super::status::{self, MemoryReport, StatusReport};
use super::{WorkspaceLocation, success};
use crate::host::process;
use crate::store::occupied::{self, SnapshotTotals};
use crate::workspace::Workspace;
use crate::workspace::places::StatePlaces;
use crate::workspace::registry::{RegisteredWorkspace, Registry};
use crate::world::WorkspaceName;

/// List the workspaces of this user on this host: their VMs, RAM and snapshots
///
/// The state is one of `nixbox status`, or `gone` if the directory was deleted or moved and no command has run in it
/// since. `nixbox down --id` ends the VM of such a workspace, and `nixbox forget` removes what nixbox keeps of it. The column
/// UP shows how long ago a VM was booted or restored. MEMORY shows how much of the RAM of a VM is in use, and how much the host
/// has promised to the VM. The size of the snapshots is what their files occupy; blocks that files share on a file system with
/// reflinks count for each of them. This works from every directory. All other commands take a name or an id of this list with `-C`.
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
    name: String,
    directory: String,
    /// Where its state is, if it is not in the directory.
    state_directory: Option<String>,
    /// One of the states of `nixbox status`, `gone`, or `unknown`.
    state: &'static str,
    /// How long its VM has been up, in milliseconds, if it has one.
    up_for_ms: Option<u64>,
    /// The RAM of its VM, if it has one.
    memory: Option<MemoryReport>,
    /// `None` if they cannot be read.
    snapshots: Option<SnapshotTotals>,
    /// The generations of its processes that live.
    processes: Vec<u64>,
    /// Why the state or the snapshots are not known.
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
    let (status, problem) = match status_at(&entry.path, entry, places) {
        Some(Ok(status)) => (Some(status), None),
        Some(Err(problem)) => (None, Some(problem.one_line())),
        None if processes.is_empty() && state_directory.is_none() => return Ok(None),
        None => (None, None),
    };
    let state = match (&status, &problem) {
        (Some(status), _) => status.state,
        (None, Some(_)) => "unknown",
        (None, None) => "gone",
    };
    let (snapshots, unread) = match occupied::snapshots_in(&entry.snapshots()) {
        Ok(totals) => (Some(totals), None),
        Err(error) => (None, Some(error::chain(&error))),
    };
    let of_directory = || WorkspaceName::of_directory(&entry.path).as_str().to_owned();
    Ok(Some(ListedWorkspace {
        id: entry.id.to_string(),
        name: status.as_ref().map_or_else(of_directory, |status| status.name.clone()),
        directory: entry.path.display().to_string(),
        state_directory: state_directory.map(|state| state.display().to_string()),
        state,
        up_for_ms: status.as_ref().and_then(|status| status.vm.as_ref()?.up_for_ms),
        memory: status.and_then(|status| status.vm).map(|vm| vm.memory),
        snapshots,
        processes,
        problem: problem.or(unread),
    }))
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
    let head = ["NAME", "STATE", "UP", "MEMORY", "SNAPSHOTS", "ID", "DIRECTORY"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(listed.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |row: &[String; 7]| {
        let padded = row.iter().zip(widths).map(|(text, width)| format!("{text:<width$}  "));
        padded.collect::<String>() + &row[6]
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn row(one: &ListedWorkspace) -> [String; 7] {
    let memory = one.memory.map_or_else(String::new, |memory| {
        let promised = HumanBytes(memory.promised_bytes).to_string();
        memory
            .occupied_bytes
            .map_or(promised.clone(), |occupied| format!("{} of {promised}", HumanBytes(occupied)))
    });
    let snapshots = match &one.snapshots {
        None => "?".to_owned(),
        Some(SnapshotTotals { count: 0, .. }) => String::new(),
        Some(SnapshotTotals { count, occupied_bytes }) => format!("{count}, {}", HumanBytes(*occupied_bytes)),
    };
    let problem = one.problem.as_ref().map(|problem| format!("  ({problem})")).unwrap_or_default();
    let directory = format!("{}{problem}", one.directory);
    let up = one.up_for_ms.map_or_else(String::new, lapse);
    [one.name.clone(), one.state.to_owned(), up, memory, snapshots, one.id.clone(), directory]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_text() {
        let workspace = |name: &str, up_for_ms, memory| ListedWorkspace {
            id: "0f6a1c8e2d4b5a69788796a5b4c3d2e1".to_owned(),
            name: name.to_owned(),
            directory: format!("/home/x/{name}"),
            state_directory: None,
            state: "down",
            up_for_ms,
            memory,
            snapshots: Some(SnapshotTotals { count: 2, occupied_bytes: 3 << 30 }),
            processes: Vec::new(),
            problem: None,
        };
        let memory = MemoryReport { promised_bytes: 8 << 30, occupied_bytes: Some(512 << 20) };
        let shown =
            table(&[workspace("a", None, None), workspace("a-longer-name", Some(7_300_000), Some(memory))]);
        assert_eq!(
            shown,
            "\
NAME           STATE  UP   MEMORY                  SNAPSHOTS    ID                                DIRECTORY\n\
a              down                                2, 3.00 GiB  0f6a1c8e2d4b5a69788796a5b4c3d2e1  /home/x/a\n\
a-longer-name  down   2 h  512.00 MiB of 8.00 GiB  2, 3.00 GiB  0f6a1c8e2d4b5a69788796a5b4c3d2e1  /home/x/a-longer-name"
        );
    }
}
