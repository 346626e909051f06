//! `nixbox down`.

use super::error::{self, Outcome};
use super::session::{self, OutputOptions};
use super::{WorkspaceLocation, done};

/// Shut this workspace's VM down; its disk stays
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox down")]
pub(super) struct Arguments {
    #[command(flatten)]
    manner: OutputOptions,
}

pub(super) fn run(place: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let manner = arguments.manner;
    let held = session::hold(place, "down", manner)?;
    let assembly = held.assemble()?;
    let begun = held.run(&assembly, async |session| error::ended(session.down().await?))?;
    if begun {
        manner.result("done", "the VM is down")?;
    } else {
        manner.result("already", "no VM is running")?;
    }
    done()
}
