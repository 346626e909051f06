//! `nixbox recover`: what every changing command does first, by itself.

use super::error::{self, ExitKind, Outcome, Problem};
use super::session::{self, OutputOptions};
use super::{WorkspaceLocation, done, journal_state};
use crate::operations::{self, DryRun, WorkspaceState};
use crate::world::VmmState;

/// Finish or take back what an earlier run left half done, and sweep up what belongs to no VM
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox recover --dry-run && nixbox recover")]
pub(super) struct Arguments {
    /// Say what would be done and why, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    manner: OutputOptions,
}

pub(super) fn run(place: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let manner = arguments.manner;
    if arguments.dry_run {
        return dry_run(place, manner);
    }
    let held = session::hold(place, "recover", manner)?;
    let assembly = held.assemble()?;
    let recovered = held.run(&assembly, async |session| session::recovered(session.recover().await?))?;
    let sentence = recovered.sentence();
    let word = if sentence.is_some() { "recovered" } else { "nothing" };
    let json = serde_json::json!({
        "result": word,
        "operation": recovered.operation,
        "ended": recovered.ended,
        "cleared": recovered.cleared.is_some(),
        "swept": recovered.swept,
        "times": held.show.times(),
    });
    manner.report(&json, sentence.as_deref().unwrap_or("there was nothing to recover"))?;
    done()
}

#[derive(Debug, thiserror::Error)]
#[error("cannot foresee what a recovery would do")]
struct Unforeseen(#[source] crate::operations::DryRunError);

fn dry_run(place: &WorkspaceLocation, manner: OutputOptions) -> Outcome {
    let held = session::look(place)?;
    let history = journal_state::history(&held.workspace)?;
    let open = history.as_ref().and_then(|history| history.open());
    let planned = open
        .map(operations::dry_run)
        .transpose()
        .map_err(|error| Problem::new(ExitKind::Stuck, Unforeseen(error)))?
        .flatten();
    let state = match journal_state::peek(&held.workspace)?.standing {
        WorkspaceState::Up(vm) if planned.is_none() && vm.condemned => Some(VmmState::Gone),
        WorkspaceState::Up(vm) if planned.is_none() => {
            let assembly = held.assemble()?;
            Some(session::block_on(async {
                let found = session::glance(&assembly, vm.machine.vmm).await;
                found.map_err(|failure| crate::operations::Refusal::Look(failure).into())
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
    if manner.json {
        error::print_json(&json)?;
    } else {
        error::print(&text(planned.as_ref(), lost, silent))?;
    }
    done()
}

fn text(planned: Option<&DryRun>, lost: bool, silent: bool) -> String {
    let Some(planned) = planned else {
        return match (lost, silent) {
            (true, _) => "the VM of this workspace is gone: what is left of it would be cleared away",
            (_, true) => {
                "the VMM of this workspace does not answer: it would be waited for, and unless it answers be ended and \
                 cleared away"
            }
            _ => "there is no operation to recover; what belongs to no VM would be swept up",
        }
        .to_owned();
    };
    let mut lines = vec![
        format!("`{}` of generation {} was left half done", planned.operation, planned.generation),
        match planned.direction {
            "probe decides" => format!("its direction is open: {}", planned.why),
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
