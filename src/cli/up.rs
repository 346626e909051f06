//! `nixbox up`.

use super::report::{self, Outcome};
use super::session::{self, Manner};
use super::{Place, done, preflight, standing};
use crate::operations::Standing;

/// Boot this workspace's VM and wait until it is ready
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox up && nixbox shell")]
pub(super) struct Arguments {
    #[command(flatten)]
    manner: Manner,
}

pub(super) fn run(place: &Place, arguments: &Arguments) -> Outcome {
    let manner = arguments.manner;
    let held = session::hold(place, "up")?;
    let down = matches!(standing::peek(&held.workspace)?.standing, Standing::Down { .. });
    if down {
        preflight::files(&held.config)?;
    }
    let assembly = held.assemble()?;
    if down {
        session::block_on(preflight::host(&assembly))?;
    }
    let begun = held.run(&assembly, manner, async |session| report::ended(session.up().await?))?;
    if begun {
        manner.result("done", "the VM is ready")?;
    } else {
        manner.result("already", "the VM is running already")?;
    }
    done()
}
