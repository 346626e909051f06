//! `nixbox snapshot`, and the commands on existing snapshots: `list`, `inspect`, `diff`, `verify`, `rename`, `note`,
//! `delete`.

use self::find::{damaged, list_snapshots, parse_name, take_snapshot};
use super::command::{LockedWorkspace, OpenWorkspace, OutputOptions};
use super::error::{self, CliError, ExitKind, Outcome, Problem};
use super::preflight::Preflight;
use super::wiring::Wiring;
use super::{WorkspaceLocation, completions, receipt, success};
use crate::config::SnapshotTable;
use crate::engine::transition::Interrupt;
use crate::operations::{Refusal, Retention, SnapshotRequest, SnapshotResult, find_snapshot};
use crate::world::{
    ByteSize, Depth, FileRecord, Receipt, RetentionTime, SnapshotId, SnapshotLabel, SnapshotName,
    SnapshotReference,
};

mod delete;
mod diff;
mod find;
mod fitness;
mod label;
mod list;
mod summary;

pub(super) use self::summary::{SnapshotSummary, snapshot_label};

/// Save this workspace's VM as a snapshot: disk, RAM and devices at one instant, without credentials
///
/// nixbox removes the injected credentials, histories, the files of credentials.wipe, and usual credential files that hold
/// one of the injected values from the guest, pauses the VM while it copies, and gives all of that and the shares back. The
/// VM runs on afterwards, unless --stop is given. If a snapshot fails or is interrupted, it leaves no files, and the VM
/// runs as before. Once it is made, older snapshots without a name are deleted as snapshot.keep, keep-for and keep-size of
/// the configuration say.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Example: nixbox snapshot --name warm && nixbox down && nixbox up --snapshot warm")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<SnapshotCommand>,
    /// Name the snapshot: 1 to 64 characters of a-z A-Z 0-9 . _ -, not only digits
    #[arg(long, value_parser = parse_name)]
    name: Option<SnapshotName>,
    /// Leave the VM down instead of resuming it
    #[arg(long)]
    stop: bool,
    /// The same as `nixbox snapshot list`
    #[arg(long, conflicts_with_all = ["name", "stop", "delete", "quiet"])]
    list: bool,
    /// The same as `nixbox snapshot delete`
    #[arg(
        long,
        value_name = "SNAPSHOT",
        num_args = 0..=1,
        conflicts_with_all = ["name", "stop"],
        add = completions::of_snapshots()
    )]
    delete: Option<Option<SnapshotReference>>,
    #[command(flatten)]
    output: OutputOptions,
}

#[derive(Debug, clap::Subcommand)]
enum SnapshotCommand {
    /// List the snapshots, oldest first
    ///
    /// SIZE is what the files of a snapshot hold, with their holes, and OCCUPIES what they take on the disk; blocks that files
    /// share on a file system with reflinks count for each of them. The JSON also says whether each snapshot fits this host and
    /// the configuration of today.
    #[command(after_help = "Example: nixbox snapshot list --json | jq -r '.[].id'")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a snapshot, also a damaged one
    #[command(after_help = "Example: nixbox snapshot delete warm")]
    Delete {
        /// The snapshot's name or number; without it the only snapshot, or the newest after a question on a terminal
        #[arg(add = completions::of_snapshots())]
        snapshot: Option<SnapshotReference>,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Show a snapshot's manifest: its origin, the shape of its VM, its files, and what was searched for credentials
    #[command(after_help = "Example: nixbox snapshot inspect warm")]
    Inspect {
        /// The snapshot's name or number
        #[arg(add = completions::of_snapshots())]
        snapshot: SnapshotReference,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Diff(diff::DiffArguments),
    Rename(label::RenameArguments),
    Note(label::NoteArguments),
    /// Read every byte of a snapshot and compare its files with the hashes in its manifest
    #[command(after_help = "Example: nixbox snapshot verify warm --deep")]
    Verify {
        /// The snapshot's name or number
        #[arg(add = completions::of_snapshots())]
        snapshot: SnapshotReference,
        /// Search the snapshot again for every credential that was ever injected, and for those of the present configuration
        #[arg(long)]
        deep: bool,
        #[command(flatten)]
        output: OutputOptions,
    },
}

pub(super) fn run(location: &WorkspaceLocation, arguments: Arguments) -> Outcome {
    let Arguments { command, name, stop, list: list_flag, delete: delete_flag, output } = arguments;
    match command {
        Some(SnapshotCommand::List { json }) => list::run(location, json),
        Some(SnapshotCommand::Delete { snapshot, output }) => delete::run(location, snapshot, output),
        Some(SnapshotCommand::Diff(arguments)) => diff::run(location, &arguments),
        Some(SnapshotCommand::Rename(arguments)) => label::rename(location, arguments),
        Some(SnapshotCommand::Note(arguments)) => label::note(location, arguments),
        Some(SnapshotCommand::Inspect { snapshot, json }) => inspect(location, &snapshot, json),
        Some(SnapshotCommand::Verify { snapshot, deep, output }) => verify(location, &snapshot, deep, output),
        None if list_flag => list::run(location, output.json),
        None => match delete_flag {
            Some(snapshot) => delete::run(location, snapshot, output),
            None => create(location, name, stop, output),
        },
    }
}

fn create(
    location: &WorkspaceLocation,
    name: Option<SnapshotName>,
    stop: bool,
    output: OutputOptions,
) -> Outcome {
    let workspace = LockedWorkspace::open(location, "snapshot", Preflight::Snapshot, output)?;
    let retention =
        workspace.config.as_ref().map_or_else(Retention::default, |config| retention(&config.snapshot));
    let request = SnapshotRequest { name, stop, retention };
    let result = workspace.run(async |session| Ok(session.snapshot(request).await?))?;
    let SnapshotResult { report, snapshot, pruned, above_limit, afterwards } = result;
    error::check_result(report)?;
    let times = workspace.progress.times();
    let mut sentence = match &snapshot {
        Some(manifest) => format!("{} was made", snapshot_label(manifest)),
        None => "the snapshot was made, but its manifest cannot be read back".to_owned(),
    };
    sentence += match times.paused_ms {
        Some(ms) => format!("; the VM was paused for {ms} ms and runs on"),
        None if stop => "; the VM is down".to_owned(),
        None => String::new(),
    }
    .as_str();
    let receipt = snapshot.as_ref().and_then(|manifest| manifest.receipt.as_ref());
    if let Some(restarted) = receipt::to_be_restarted(receipt) {
        sentence += &format!("; {restarted}");
    }
    if !pruned.is_empty() {
        sentence += &format!("; pruned {}", numbers(&pruned));
    }
    if let Some(bytes) = above_limit {
        sentence += &format!(
            "; the snapshots occupy {}, more than snapshot.keep-size, and none of them may be pruned",
            indicatif::HumanBytes(bytes)
        );
    }
    let json = serde_json::json!({
        "result": "done",
        "snapshot": snapshot.as_ref().map(SnapshotSummary::from),
        "stopped": stop,
        "restart": receipt.map(|receipt| &receipt.processes),
        "pruned": pruned.iter().map(|id| id.0.0).collect::<Vec<_>>(),
        "above_keep_size": above_limit,
        "times": times,
    });
    output.report(&json, &sentence)?;
    let Some(refusal) = afterwards else {
        return success();
    };
    // The snapshot exists, so the command succeeds even if listing or pruning snapshots failed afterwards.
    let problem = Problem::from(refusal).or_hint("the snapshot was made; older ones were not pruned");
    if problem.exit() == ExitKind::Stuck {
        return Err(problem);
    }
    problem.print();
    success()
}

/// Which snapshots the configuration keeps.
fn retention(table: &SnapshotTable) -> Retention {
    let SnapshotTable { keep, keep_for, keep_size, keep_disks: _, on_leak: _ } = table;
    Retention {
        keep: keep.map(std::num::NonZeroU32::get),
        keep_for: keep_for.map(RetentionTime::duration),
        keep_bytes: keep_size.map(ByteSize::bytes),
    }
}

fn numbers(ids: &[SnapshotId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn inspect(location: &WorkspaceLocation, wanted: &SnapshotReference, json: bool) -> Outcome {
    let mut listed = list_snapshots(&OpenWorkspace::open(location)?.wire()?)?;
    let (manifest, label) = take_snapshot(&mut listed, wanted)?;
    let (summary, origin) = (SnapshotSummary::from(&manifest), &manifest.origin);
    if json {
        error::print_json(&serde_json::json!({
            "snapshot": summary,
            "note": label.as_ref().ok().and_then(|label| label.note.as_ref()),
            "damaged_label": label.as_ref().err().map(|failure| error::chain(failure)),
            "shape": origin.shape,
            "cpu": origin.cpu,
            "receipt": manifest.receipt,
            "files": manifest.files.iter().map(|file| serde_json::json!({
                "name": file.name, "bytes": file.size, (file.method.name()): hex(file),
            })).collect::<Vec<_>>(),
        }))?;
        return success();
    }
    let mut lines = vec![
        snapshot_label(&manifest),
        match &label {
            Ok(SnapshotLabel { note: Some(note), .. }) => format!("  note      {note}"),
            Ok(SnapshotLabel { note: None, .. }) => "  note      none".to_owned(),
            Err(failure) => format!("  damaged   {}", error::chain(failure)),
        },
        format!("  created   {}", summary.created),
        format!("  VMM       {}", summary.vmm),
        format!("  slot      {}", summary.slot),
        format!("  shares    {}", if summary.shares { "attached" } else { "attached after the restore" }),
        format!("  processor {} features", origin.cpu.len()),
    ];
    lines.extend(origin.shape.iter().map(|(key, value)| format!("  {key} = {value}")));
    let line = |file: &FileRecord| format!("  {:>14} bytes  {}  {}", file.size, hex(file), file.name);
    lines.extend(manifest.files.iter().map(line));
    lines
        .extend(receipt::sentences(manifest.receipt.as_ref()).iter().map(|sentence| format!("  {sentence}")));
    error::print(&lines.join("\n"))?;
    success()
}

/// The hash of a file as hexadecimal digits.
fn hex(file: &FileRecord) -> String {
    blake3::Hash::from_bytes(file.hash).to_string()
}

fn verify(
    location: &WorkspaceLocation,
    wanted: &SnapshotReference,
    deep: bool,
    output: OutputOptions,
) -> Outcome {
    // The command holds the lock, so that no other nixbox deletes the snapshot meanwhile.
    let workspace = LockedWorkspace::open(location, "snapshot verify", Preflight::None, output)?;
    let id = find_snapshot(&list_snapshots(&workspace.wiring)?, wanted)?;
    workspace.interruptible(async |interrupt| {
        let verified = workspace.wiring.world.catalog.verify(id, Depth::All, interrupt).await;
        verified.map_err(|failure| damaged(id, failure))
    })?;
    let mut json = serde_json::json!({ "result": "whole", "id": id.0.0 });
    let mut sentence = format!("snapshot {id} is whole: every file has the hash in its manifest");
    if deep {
        let found =
            workspace.interruptible(async |interrupt| search(&workspace.wiring, id, interrupt).await)?;
        sentence += &format!("; {}", receipt::searched(&found));
        json["receipt"] = serde_json::json!(found);
    }
    output.report(&json, &sentence)?;
    success()
}

/// Searches a snapshot for every credential of which nixbox has a fingerprint, and for those of the configuration.
async fn search(wiring: &Wiring, id: SnapshotId, interrupt: &Interrupt) -> Result<Receipt, Problem> {
    let look = |failure| Problem::from(Refusal::Look(failure));
    let values =
        wiring.guest.values().await.map_err(|failure| Problem::from(Refusal::Credentials(failure)))?;
    let receipt = wiring.snapshots.search(id, &values, interrupt).await.map_err(look)?;
    if receipt.found.is_empty() {
        return Ok(receipt);
    }
    let leaks = receipt.found.iter().map(receipt::found).collect::<Vec<_>>().join(", ");
    Err(CliError::LeakySnapshot(id, leaks).into())
}
