//! `nixbox scope-daemon`: the launcher of a daemon that gets into a systemd scope, which nixbox itself starts.

use std::ffi::OsString;

use super::error::{self, Outcome};
use super::success;
use crate::host::systemd::{SystemdError, scope};

/// Returns only if no daemon was started. The reason goes to stderr, which is the daemon's log.
pub(super) fn run(arguments: &[OsString]) -> Outcome {
    let stays = |error: &SystemdError| {
        error::print_stderr(&format!("this process ends with its caller: {}\n", error::chain(error)));
    };
    match scope::launch(arguments, stays) {
        Ok(()) => success(),
        Err(failed) => {
            error::print_stderr(&format!("{}\n", error::chain(&failed)));
            Ok(scope::FAILED)
        }
    }
}
