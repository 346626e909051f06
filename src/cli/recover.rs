//! `nixbox recover`: what every changing command does first, by itself.

use super::error::{self, Exit, Outcome, Problem};
use super::session::{self, Manner};
use super::{Place, done, journal_state};
use crate::operations::{Foresight, Standing, foresee};
use crate::world::VmmState;

/// Finish or take back what an earlier run left half done, and sweep up what belongs to no VM
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox recover --dry-run && nixbox recover")]
pub(super) struct Arguments {
    /// Say what would be done and why, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    manner: Manner,
}

pub(super) fn run(place: &Place, arguments: &Arguments) -> Outcome {
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
struct Unforeseen(#[source] crate::operations::Blind);

fn dry_run(place: &Place, manner: Manner) -> Outcome {
    let held = session::look(place)?;
    let history = journal_state::history(&held.workspace)?;
    let open = history.as_ref().and_then(|history| history.open());
    let foresight = open
        .map(foresee)
        .transpose()
        .map_err(|blind| Problem::new(Exit::Stuck, Unforeseen(blind)))?
        .flatten();
    let state = match journal_state::peek(&held.workspace)?.standing {
        Standing::Up(vm) if foresight.is_none() && vm.condemned => Some(VmmState::Gone),
        Standing::Up(vm) if foresight.is_none() => {
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
        "operation": foresight,
        "lost": lost,
        "silent": silent,
    });
    if manner.json {
        error::print_json(&json)?;
    } else {
        error::print(&text(foresight.as_ref(), lost, silent))?;
    }
    done()
}

fn text(foresight: Option<&Foresight>, lost: bool, silent: bool) -> String {
    let Some(foresight) = foresight else {
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
        format!("`{}` of generation {} was left half done", foresight.operation, foresight.generation),
        match foresight.direction {
            "probe decides" => format!("its direction is open: {}", foresight.why),
            direction => format!("it would go {direction}: {}", foresight.why),
        },
    ];
    lines.extend(
        foresight
            .transitions
            .iter()
            .map(|one| format!("  {:20} {:14} {}", one.label, one.status, one.decision)),
    );
    lines.join("\n")
}
