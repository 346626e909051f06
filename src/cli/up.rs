//! `nixbox up`.

use super::error::{self, Outcome};
use super::session::{self, OpenWorkspace, OutputOptions};
use super::{WorkspaceLocation, done, journal_state, preflight, restore};
use crate::operations::WorkspaceState;
use crate::world::SnapshotReference;

/// Bring this workspace's VM up, and wait until it is SSH-ready
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox up --snapshot && nixbox shell")]
pub(super) struct Arguments {
    /// Restore this snapshot, by name or number, or the newest that fits; boot if none fits
    #[arg(long, value_name = "SNAPSHOT", num_args = 0..=1)]
    snapshot: Option<Option<SnapshotReference>>,
    #[command(flatten)]
    manner: OutputOptions,
}

pub(super) fn run(place: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let held = session::hold(place, "up", arguments.manner)?;
    let down = matches!(journal_state::peek(&held.workspace)?.standing, WorkspaceState::Down { .. });
    if down {
        preflight::files(&held.config)?;
    }
    let assembly = held.assemble()?;
    if down {
        session::block_on(preflight::host(&assembly))?;
    }
    match &arguments.snapshot {
        Some(wanted) => {
            let warm = held.run(&assembly, async |session| Ok(session.warm_up(wanted.as_ref()).await?))?;
            restore::tell(&held, arguments.manner, warm)
        }
        None => {
            let begun = held.run(&assembly, async |session| error::ended(session.up().await?))?;
            tell(&held, arguments.manner, begun)
        }
    }
}

fn tell(held: &OpenWorkspace, manner: OutputOptions, begun: bool) -> Outcome {
    let times = held.show.times();
    let (word, sentence) = match times.ready_ms {
        _ if !begun => ("already", "the VM is running already".to_owned()),
        Some(ms) => ("done", format!("the VM is SSH-ready after {ms} ms")),
        None => ("done", "the VM is SSH-ready".to_owned()),
    };
    manner.report(&serde_json::json!({ "result": word, "times": times }), &sentence)?;
    done()
}
