//! Whether `nixbox up --snapshot` would take a snapshot today, in words and as JSON. Nothing is started for the answer.

use serde::Serialize;

use crate::cli::command::block_on;
use crate::cli::error;
use crate::cli::wiring::Wiring;
use crate::engine::transition::Interrupt;
use crate::operations::fitness;
use crate::world::Manifest;

/// Whether a snapshot fits this host and the configuration of today. Its files are not read, so it may be damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Fitness {
    /// `None` if that is not known.
    pub(super) fits: Option<bool>,
    /// Why it does not fit, or why that is not known.
    pub(super) why: Option<String>,
}

impl Fitness {
    /// The same in words that go on from the name of a snapshot.
    pub(super) fn words(&self) -> String {
        let why = self.why.as_deref().unwrap_or_default();
        match self.fits {
            Some(true) => "fits this host and the configuration".to_owned(),
            Some(false) => format!("does not fit: {why}"),
            None => format!("may fit, which cannot be told: {why}"),
        }
    }
}

/// Says of each snapshot in `manifests`, in the same order, whether it fits. `today` is the world that the configuration
/// describes, or the reason why the configuration describes none.
pub(super) fn of_snapshots(today: &Result<Wiring, String>, manifests: &[&Manifest]) -> Vec<Fitness> {
    if manifests.is_empty() {
        return Vec::new();
    }
    let unknown =
        |why: String| manifests.iter().map(|_| Fitness { fits: None, why: Some(why.clone()) }).collect();
    let wiring = match today {
        Ok(wiring) => wiring,
        Err(why) => return unknown(why.clone()),
    };
    let found = block_on(async {
        // The command takes no lock and listens to no signal: Ctrl-C ends the process.
        let found = fitness(&wiring.world, manifests, &Interrupt::new()).await;
        Ok(found.map_err(|failure| error::chain(&failure)))
    });
    match found {
        Ok(Ok(found)) => found
            .into_iter()
            .map(|fits| Fitness { fits: Some(fits.is_ok()), why: fits.err().map(|why| error::chain(&why)) })
            .collect(),
        Ok(Err(why)) => unknown(why),
        Err(problem) => unknown(problem.one_line()),
    }
}
