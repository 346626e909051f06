//! `nixbox confined-daemon`: the launcher of daemons that can open their own files only, which nixbox itself starts.

use std::ffi::OsString;

use super::error::{self, Outcome};
use crate::host::confinement;

/// Become a daemon that can open its own files only
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The files of the daemon, and the daemon's program with its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Returns only if the daemon cannot be started. The reason is one line, because nixbox reads it from the daemon's log.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let refused = confinement::launch(&arguments.arguments);
    error::print_stderr(&format!("{}\n", error::chain(&refused)));
    Ok(confinement::REFUSED)
}
