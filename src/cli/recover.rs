//! `nixbox recover`: runs the recovery that every changing command also runs first.

use super::command::{LockedWorkspace, OpenWorkspace, OutputOptions, block_on, vm_state};
use super::error::{self, CliError, Outcome, Problem};
use super::preflight::Preflight;
use super::{WorkspaceLocation, success};
use crate::engine::executor::Ending;
use crate::operations::{
    self, DryRun, LossReason, NetworkRepair, Recovered, Refusal, VmCondition, WorkspaceState,
};
use crate::world::{NetworkFault, VmmState};

/// Complete or roll back what an earlier run left half done, and remove what belongs to no VM
///
/// Every command that changes something does this first. Running it twice changes nothing. The network of a VM that runs is
/// repaired, where daemons were ended, tables flushed or devices deleted; the exit status is 1 if something is left that
/// cannot be repaired while the VM runs. If the operation can be
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
        "network": {
            "repaired": recovered.network.repaired().collect::<Vec<_>>(),
            "left": recovered.network.left,
            "problem": recovered.network.failure.as_ref().map(|failure| error::chain(failure)),
        },
        "times": workspace.progress.times(),
    });
    output.report(&json, sentence.as_deref().unwrap_or("there was nothing to recover"))?;
    let NetworkRepair { left, failure, .. } = recovered.network;
    match failure {
        Some(failure) => Err(CliError::NetworkNotRepaired(failure).into()),
        None if left.is_empty() => success(),
        None => Err(CliError::NetworkBroken(left).into()),
    }
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
    /// What was repaired of the network of the VM that runs.
    network: NetworkRepair,
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
        let network = recovered.network;
        Ok(Self { operation, ended, cleared: recovered.cleared, swept, network })
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
                LossReason::PoweredOff => {
                    "what was left of a VM whose guest had powered off was cleared away, and its disk was kept"
                }
                LossReason::Silent => "a VM whose VMM did not answer any more was ended and cleared away",
                LossReason::Condemned => {
                    "the VM, which its operation could not bring to SSH-ready, was ended and cleared away"
                }
            }
            .to_owned()
        });
        let swept = self.swept.iter().map(|what| format!("{what} belonged to no VM and was removed"));
        let repaired =
            self.network.repaired().map(|fault| format!("the network of the VM was repaired: {fault}"));
        let parts: Vec<_> = operation.into_iter().chain(cleared).chain(swept).chain(repaired).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

fn dry_run(location: &WorkspaceLocation, output: OutputOptions) -> Outcome {
    let workspace = OpenWorkspace::open(location)?;
    let journal = &workspace.journal;
    let planned = journal.open().map(operations::dry_run).transpose().map_err(CliError::DryRun)?.flatten();
    let foreseen = match journal.state {
        WorkspaceState::Up(vm) if planned.is_none() && vm.condition == VmCondition::Condemned => {
            Foreseen { state: Some(VmmState::Gone), faults: Vec::new() }
        }
        WorkspaceState::Up(vm) if planned.is_none() => {
            let wiring = workspace.wire()?;
            block_on(async {
                let found = vm_state(&wiring, vm.machine.vmm).await;
                let state = found.map_err(Refusal::Look)?;
                let network = &wiring.world.network;
                let faults = match state.has_system() {
                    true => network.faults(vm.machine.slot).await.map_err(Refusal::Look)?,
                    false => Vec::new(),
                };
                Ok(Foreseen { state: Some(state), faults })
            })?
        }
        _ => Foreseen { state: None, faults: Vec::new() },
    };
    let json = serde_json::json!({
        "result": "foreseen",
        "operation": planned,
        "lost": foreseen.lost(),
        "silent": foreseen.silent(),
        "powered_off": foreseen.powered_off(),
        "network": foreseen.faults,
    });
    if output.json {
        error::print_json(&json)?;
    } else {
        error::print(&planned.as_ref().map_or_else(|| foreseen.sentence(), text))?;
    }
    success()
}

/// What a recovery would meet where no operation was left open.
struct Foreseen {
    /// The state of the VM. It is `None` if the journal says that the workspace has no VM, or that an operation did not end.
    state: Option<VmmState>,
    /// What is wrong with its network.
    faults: Vec<NetworkFault>,
}

impl Foreseen {
    fn silent(&self) -> bool {
        self.state == Some(VmmState::Silent)
    }

    fn powered_off(&self) -> bool {
        self.state == Some(VmmState::PoweredOff)
    }

    fn lost(&self) -> bool {
        self.state.is_some_and(|state| !state.has_system()) && !self.silent() && !self.powered_off()
    }

    /// What a recovery would do.
    fn sentence(&self) -> String {
        let words = match () {
            () if self.lost() => "the VM of this workspace is gone: what is left of it would be cleared away",
            () if self.silent() => {
                "the VMM of this workspace does not answer: a recovery would wait for it, and end it and clear it away if it \
                 still does not answer"
            }
            () if self.powered_off() => {
                "the guest has powered off: what is left of its VM would be cleared away, and its disk kept"
            }
            () if !self.faults.is_empty() => {
                let faults: Vec<_> = self.faults.iter().map(ToString::to_string).collect();
                return format!("the network of the VM would be repaired: {}", faults.join("; "));
            }
            () => "there is no operation to recover; what belongs to no VM would be removed",
        };
        words.to_owned()
    }
}

fn text(planned: &DryRun) -> String {
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
