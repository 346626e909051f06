//! `nixbox confined-daemon`: the launcher of daemons that can open their own files only, which nixbox itself starts.

use std::ffi::OsString;

use super::error::{self, Outcome};
use crate::host::confinement;

/// Returns only if the daemon cannot be started. The reason is one line, because nixbox reads it from the daemon's log.
pub(super) fn run(arguments: &[OsString]) -> Outcome {
    let refused = confinement::launch(arguments);
    error::print_stderr(&format!("{}\n", error::chain(&refused)));
    Ok(confinement::REFUSED)
}
