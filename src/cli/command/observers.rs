//! What a person is told of a world while an operation goes on.

use std::sync::Arc;

use crate::cli::error;
use crate::cli::progress::ProgressDisplay;
use crate::cli::wiring::Observers;

/// Creates the observers of a world. They print why a script of the user failed, on the host or in the guest, for scripts
/// without which the operation continues, and what a guest was not given when it went on, and why. `progress` shows what is
/// waited for.
pub(super) fn observers(progress: Option<&Arc<ProgressDisplay>>) -> Observers {
    let progress = progress.cloned();
    Observers {
        failed_script: Arc::new(|error| {
            error::print_stderr(&format!("nixbox: {}; the operation goes on\n", error::chain(error)));
        }),
        guest_script: Arc::new(|notice| {
            error::print_stderr(&format!("nixbox: {}; the operation goes on\n", error::chain(notice)));
        }),
        guest_user: Arc::new(|words| error::print_stderr(&format!("nixbox: {words}\n"))),
        no_swap: Arc::new(|stays_off| {
            error::print_stderr(&format!(
                "nixbox: swap of the guest cannot be switched on again, so it stays off: {stays_off}\n"
            ));
        }),
        unsettled: Arc::new(|unsettled| {
            error::print_stderr(&format!("nixbox: the guest was not settled: {}\n", error::chain(unsettled)));
        }),
        remounted: Arc::new(|| {
            error::print_stderr(
                "nixbox: the VM went on without its shares, and they were mounted anew: programs of the guest that had files \
                 of a share open get errors, and have to be started again\n",
            );
        }),
        silent_guest: Arc::new(move |guest| {
            if let Some(progress) = &progress {
                progress.waits_for(guest);
            }
        }),
    }
}
