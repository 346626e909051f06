//! `nixbox recover`: runs the recovery that every changing command also runs first.

use super::command::{LockedWorkspace, OpenWorkspace, OutputOptions, block_on, vm_state};
use super::error::{self, CliError, Outcome, Problem};
use super::preflight::Preflight;
use super::{WorkspaceLocation, success};
use crate::engine::executor::Ending;
use crate::operations::{self, DryRun, LossReason, Recovered, Refusal, VmCondition, WorkspaceState};
use crate::world::VmmState;

/// Complete or roll back what an earlier run left half done, and remove what belongs to no VM
///
/// Every command that changes something does this first. Running it twice changes nothing. If the operation can be
/// neither completed nor rolled back, it stays open in the journal, the cause is printed, and the exit status is 4.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox recover --dry-run && nixbox recover")]
pub(super) struct Arguments {
    /// Print what would be done and why, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputOptions,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let output = arguments.output;
    if arguments.dry_run {
        return dry_run(location, output);
    }
    let workspace = LockedWorkspace::open(location, "recover", Preflight::None, output)?;
    let recovered = workspace.run(async |session| RecoverySummary::of(session.recover().await?))?;
    let sentence = recovered.sentence();
    let word = if sentence.is_some() { "recovered" } else { "nothing" };
    let json = serde_json::json!({
        "result": word,
        "operation": recovered.operation,
        "ended": recovered.ended,
        "cleared": recovered.cleared.is_some(),
        "swept": recovered.swept,
        "times": workspace.progress.times(),
    });
    output.report(&json, sentence.as_deref().unwrap_or("there was nothing to recover"))?;
    success()
}

/// What a recovery did.
struct RecoverySummary {
    /// The operation that had been left open.
    operation: Option<&'static str>,
    /// How that operation ended.
    ended: Option<&'static str>,
    /// Why the remains of a VM were removed; `None` if there were none.
    cleared: Option<LossReason>,
    /// The resources that belonged to no VM and were removed.
    swept: Vec<String>,
}

impl RecoverySummary {
    fn of(recovered: Recovered) -> Result<Self, Problem> {
        if let Some(failure) = recovered.stuck {
            return Err(CliError::Stuck(failure).into());
        }
        let left_running = recovered.cleared.is_none();
        let ended = |ending| match ending {
            Ending::Done => "was finished",
            Ending::RolledBack(_) => "was rolled back",
            Ending::Lost(_) if left_running => {
                "could not be finished, and its VM was left running for you to look at"
            }
            Ending::Lost(_) => "had lost its VM",
            Ending::Stuck(_) => "is stuck",
        };
        let (operation, ended) =
            recovered.operation.map(|(operation, ending)| (operation, ended(ending))).unzip();
        let swept = recovered.swept.iter().map(ToString::to_string).collect();
        Ok(Self { operation, ended, cleared: recovered.cleared, swept })
    }

    /// The summary as people read it; `None` if there was nothing to do.
    fn sentence(&self) -> Option<String> {
        let operation = self
            .operation
            .zip(self.ended)
            .map(|(operation, ended)| format!("`{operation}`, which was left half done, {ended}"));
        let cleared = self.cleared.map(|reason| {
            match reason {
                LossReason::Gone => "what was left of a VM that is gone was cleared away",
                LossReason::Silent => "a VM whose VMM did not answer any more was ended and cleared away",
                LossReason::Condemned => {
                    "the VM, which its operation could not bring to SSH-ready, was ended and cleared away"
                }
            }
            .to_owned()
        });
        let swept = self.swept.iter().map(|what| format!("{what} belonged to no VM and was removed"));
        let parts: Vec<_> = operation.into_iter().chain(cleared).chain(swept).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

fn dry_run(location: &WorkspaceLocation, output: OutputOptions) -> Outcome {
    let workspace = OpenWorkspace::open(location)?;
    let journal = &workspace.journal;
    let planned = journal.open().map(operations::dry_run).transpose().map_err(CliError::DryRun)?.flatten();
    let state = match journal.state {
        WorkspaceState::Up(vm) if planned.is_none() && vm.condition == VmCondition::Condemned => {
            Some(VmmState::Gone)
        }
        WorkspaceState::Up(vm) if planned.is_none() => {
            let wiring = workspace.wire()?;
            Some(block_on(async {
                let found = vm_state(&wiring, vm.machine.vmm).await;
                found.map_err(|failure| Refusal::Look(failure).into())
            })?)
        }
        _ => None,
    };
    let silent = state == Some(VmmState::Silent);
    let lost = state.is_some_and(|state| !state.has_system() && !silent);
    let json = serde_json::json!({
        "result": "foreseen",
        "operation": planned,
        "lost": lost,
        "silent": silent,
    });
    if output.json {
        error::print_json(&json)?;
    } else {
        error::print(&text(planned.as_ref(), lost, silent))?;
    }
    success()
}

fn text(planned: Option<&DryRun>, lost: bool, silent: bool) -> String {
    let Some(planned) = planned else {
        return match (lost, silent) {
            (true, _) => "the VM of this workspace is gone: what is left of it would be cleared away",
            (_, true) => {
                "the VMM of this workspace does not answer: a recovery would wait for it, and end it and clear it away if it \
                 still does not answer"
            }
            _ => "there is no operation to recover; what belongs to no VM would be removed",
        }
        .to_owned();
    };
    let mut lines = vec![
        format!("`{}` of generation {} was left half done", planned.operation, planned.generation),
        match planned.direction {
            "probe decides" => format!("its direction is not known: {}", planned.why),
            direction => format!("it would go {direction}: {}", planned.why),
        },
    ];
    lines.extend(
        planned
            .transitions
            .iter()
            .map(|one| format!("  {:20} {:14} {}", one.label, one.status, one.decision)),
    );
    lines.join("\n")
}
