//! `nixbox share-daemon`: the supervisor of a share and the launcher of its daemons, which nixbox itself starts.

use std::ffi::OsString;

use super::error::{self, Outcome};
use crate::host::share_view;

/// Supervise the daemons of a share, which see no .nixbox
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What the daemon serves, and the daemon's program with its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// The reason why a share is refused is one line, because nixbox reads it from the daemon's log.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    match share_view::launch(&arguments.arguments) {
        Ok(status) => Ok(status),
        Err(refused) => {
            error::print_stderr(&format!("{}\n", error::chain(&refused)));
            Ok(share_view::REFUSED)
        }
    }
}
