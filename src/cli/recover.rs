//! `nixbox recover`: what every changing command does first, by itself.

use super::report::Outcome;
use super::session::{self, Manner};
use super::{Place, done};

/// Finish or take back what an earlier run left half done
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox recover && nixbox status")]
pub(super) struct Arguments {
    #[command(flatten)]
    manner: Manner,
}

pub(super) fn run(place: &Place, arguments: &Arguments) -> Outcome {
    let manner = arguments.manner;
    let held = session::hold(place, "recover")?;
    let assembly = held.assemble()?;
    let recovered =
        held.run(&assembly, manner, async |session| session::recovered(session.recover().await?))?;
    match recovered {
        Some(sentence) => manner.result("recovered", &sentence)?,
        None => manner.result("nothing", "there was nothing to recover")?,
    }
    done()
}
