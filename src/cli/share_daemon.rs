//! `nixbox share-daemon`: the supervisor of a share and the launcher of its daemons, which nixbox itself starts.

use std::ffi::OsString;

use super::error::{self, Outcome};
use crate::host::share_view;

/// The reason why a share is refused is one line, because nixbox reads it from the daemon's log.
pub(super) fn run(arguments: &[OsString]) -> Outcome {
    match share_view::launch(arguments) {
        Ok(status) => Ok(status),
        Err(refused) => {
            error::print_stderr(&format!("{}\n", error::chain(&refused)));
            Ok(share_view::REFUSED)
        }
    }
}
