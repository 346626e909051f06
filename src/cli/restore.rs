//! `nixbox restore`, and the report that it shares with `nixbox up --snapshot`.

use super::command::{LockedWorkspace, OutputOptions};
use super::consent::TrustOption;
use super::error::{self, Outcome};
use super::preflight::Preflight;
use super::snapshot::{SnapshotSummary, snapshot_label};
use super::{WorkspaceLocation, completions, receipt, success};
use crate::operations::{OperationResult, PassedOver, RestoreResult, VmCondition};
use crate::world::SnapshotReference;

/// Start a VM from a snapshot, on copies of its files
///
/// Without an argument, the newest snapshot that fits this host and this configuration is restored. The snapshot itself
/// is never changed. The disk that the workspace had before is kept when the restored VM goes down, as the key
/// snapshot.keep-disks says, and `nixbox up --disk` goes back to it. A restore that is refused changes nothing. A restore
/// that fails leaves the workspace down, with its former disk.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox restore warm --replace")]
pub(super) struct Arguments {
    /// The snapshot's name or number
    #[arg(add = completions::of_snapshots())]
    snapshot: Option<SnapshotReference>,
    /// Bring a running VM down first, once it is known that the snapshot fits
    #[arg(long)]
    replace: bool,
    /// Restore this snapshot although the processor lacks features that its guest was given, or a file or key of the
    /// configuration has changed that a restore does not need
    ///
    /// These keys are the kernel, the initramfs, the command line, the guest's user, and what a disk or a mount is made
    /// from: the VM keeps what it was saved with. What is certain to fail is refused as before: a damaged snapshot, another
    /// major version of Cloud Hypervisor, another size of RAM, another number of processors, disks or mounts, a mount whose
    /// source is missing, and a slot that another VM has. A restore that fails leaves the workspace down, with its former
    /// disk.
    #[arg(long, requires = "snapshot")]
    force: bool,
    /// Leave the VM running if its guest does not become SSH-ready, to look at it; `nixbox down` ends it
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    trust: TrustOption,
    #[command(flatten)]
    output: OutputOptions,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let workspace = LockedWorkspace::open_trusting(
        location,
        "restore",
        Preflight::Restore,
        arguments.output,
        arguments.trust,
    )?;
    let wanted = arguments.snapshot.as_ref();
    let result = workspace.run(async |session| {
        session.keep = arguments.keep;
        Ok(session.restore(wanted, arguments.replace, arguments.force).await?)
    })?;
    report(&workspace, arguments.output, result)
}

/// Prints how the workspace came up, from which snapshot, and which snapshots could not be restored.
pub(super) fn report(workspace: &LockedWorkspace, output: OutputOptions, result: RestoreResult) -> Outcome {
    let RestoreResult { report, restored, passed_over, condition, former_disk } = result;
    let why: Vec<_> = passed_over
        .iter()
        .map(|(id, reason)| serde_json::json!({ "id": id.0.0, "why": error::chain(reason) }))
        .collect();
    let already = matches!(report, OperationResult::Already);
    let passed = (!passed_over.is_empty()).then(|| PassedOver(passed_over).to_string());
    if let Some(passed) = &passed
        && !output.silent()
    {
        workspace.progress.print(&format!("passed over: {passed}"));
    }
    error::check_result(report).map_err(|problem| match restored {
        Some(_) => {
            problem.or_hint("`nixbox snapshot verify` reads all of a snapshot; `nixbox up` boots without one")
        }
        None => problem,
    })?;
    let times = workspace.progress.times();
    let ready = times.ready_ms.map_or_else(String::new, |ms| format!(" after {ms} ms"));
    let (word, sentence) = match &restored {
        _ if already => ("already", "the VM is running already".to_owned()),
        Some(manifest) => {
            ("restored", format!("{} was restored, and its VM is SSH-ready{ready}", snapshot_label(manifest)))
        }
        None if passed.is_some() => {
            ("booted", format!("no snapshot fits: the VM was booted and is SSH-ready{ready}"))
        }
        None => ("booted", format!("there is no snapshot: the VM was booted and is SSH-ready{ready}")),
    };
    let sentence = sentence
        + match condition {
            VmCondition::NoClock => "; its clock could not be set, and may be wrong",
            VmCondition::NoEntropy => "; it could not be given fresh entropy, and its clock may be wrong",
            VmCondition::Good | VmCondition::Condemned | VmCondition::LeftRunning => "",
        };
    let receipt = restored.as_ref().filter(|_| !already).and_then(|manifest| manifest.receipt.as_ref());
    let sentence = match receipt::to_be_restarted(receipt) {
        Some(restarted) => format!("{sentence}; {restarted}"),
        None => sentence,
    };
    let former_disk = former_disk.filter(|_| restored.is_some());
    let keeps = workspace.config.as_ref().is_none_or(|config| config.snapshot.keep_disks > 0);
    let sentence = match former_disk {
        Some(disk) if keeps => format!(
            "{sentence}; the disk of the session before, generation {disk}, is kept: after `nixbox down`, `nixbox up \
             --disk {disk}` goes back to it"
        ),
        _ => sentence,
    };
    let json = serde_json::json!({
        "former_disk": former_disk.map(|disk| disk.0),
        "clock_set": !matches!(condition, VmCondition::NoClock | VmCondition::NoEntropy),
        "entropy_given": condition != VmCondition::NoEntropy,
        "result": word,
        "restored": restored.as_ref().map(SnapshotSummary::from),
        "passed_over": why,
        "restart": receipt.map(|receipt| &receipt.processes),
        "times": times,
    });
    output.report(&json, &sentence)?;
    success()
}
