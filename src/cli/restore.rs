//! `nixbox restore`, and what it has in common with `nixbox up --snapshot`.

use super::error::{self, Outcome, Problem};
use super::session::{self, OpenWorkspace, OutputOptions};
use super::snapshot::{Shown, called};
use super::{WorkspaceLocation, done, journal_state, preflight};
use crate::operations::{OperationResult, PassedOver, RestoreResult, WorkspaceState};
use crate::world::SnapshotReference;

/// Bring a snapshot back to life, on clones of its files
///
/// Without a name: the newest snapshot that fits this host and this configuration. The disk of the VM that ran before is
/// given up for the snapshot's.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox restore warm --replace")]
pub(super) struct Arguments {
    /// Its name or number
    snapshot: Option<SnapshotReference>,
    /// Bring a VM that runs down first, once it is known that the snapshot fits
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    manner: OutputOptions,
}

pub(super) fn run(place: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let manner = arguments.manner;
    let held = session::hold(place, "restore", manner)?;
    let assembly = held.assemble()?;
    let down = matches!(journal_state::peek(&held.workspace)?.standing, WorkspaceState::Down { .. });
    preflight::kvm(&held.config)?;
    if down {
        session::block_on(preflight::host(&assembly))?;
    }
    let wanted = arguments.snapshot.as_ref();
    let warm = held.run(&assembly, async |session| Ok(session.restore(wanted, arguments.replace).await?))?;
    tell(&held, manner, warm)
}

/// Says what came of it, and of which snapshot.
pub(super) fn tell(held: &OpenWorkspace, manner: OutputOptions, warm: RestoreResult) -> Outcome {
    let RestoreResult { report, restored, passed_over } = warm;
    let why: Vec<_> = passed_over
        .iter()
        .map(|(id, unfit)| serde_json::json!({ "id": id.0.0, "why": error::chain(unfit) }))
        .collect();
    let already = matches!(report, OperationResult::Already);
    let passed = (!passed_over.is_empty()).then(|| PassedOver(passed_over).to_string());
    if let Some(passed) = &passed
        && !manner.silent()
    {
        held.show.say(&format!("passed over: {passed}"));
    }
    error::ended(report).map_err(|problem| in_vain(problem, restored.is_some()))?;
    let times = held.show.times();
    let ready = times.ready_ms.map_or_else(String::new, |ms| format!(" after {ms} ms"));
    let (word, sentence) = match &restored {
        _ if already => ("already", "the VM is running already".to_owned()),
        Some(manifest) => ("restored", format!("{} is back, and SSH-ready{ready}", called(manifest))),
        None if passed.is_some() => {
            ("booted", format!("no snapshot fits: the VM was booted, and is SSH-ready{ready}"))
        }
        None => ("booted", format!("there is no snapshot: the VM was booted, and is SSH-ready{ready}")),
    };
    let json = serde_json::json!({
        "result": word,
        "restored": restored.as_ref().map(Shown::from),
        "passed_over": why,
        "times": times,
    });
    manner.report(&json, &sentence)?;
    done()
}

fn in_vain(problem: Problem, restoring: bool) -> Problem {
    if restoring {
        problem.or_with("`nixbox snapshot verify` reads all of a snapshot; `nixbox up` boots without one")
    } else {
        problem
    }
}
