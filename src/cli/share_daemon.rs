//! `nixbox share-daemon`: the launcher of a share daemon, which nixbox itself starts.

use std::ffi::OsString;

use super::error::{self, Outcome};
use super::success;
use crate::host::share_view;

/// Become the daemon of a share, which sees no .nixbox
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What the daemon serves, and the daemon's program with its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Returns only if the share is refused, or the start of a daemon is rehearsed. The reason is one line, because nixbox reads it from the daemon's log.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    match share_view::launch(&arguments.arguments) {
        Ok(()) => success(),
        Err(refused) => {
            error::print_stderr(&format!("{}\n", error::chain(&refused)));
            Ok(share_view::REFUSED)
        }
    }
}
