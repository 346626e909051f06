//! Kills or interrupts nixbox at a chosen event of its operations, for tests. This module exists only with the feature
//! `failpoints`.
//!
//! Events are counted over all operations of the process, recovery included. `NIXBOX_KILL_AT=N` sends SIGKILL at event
//! N, and `NIXBOX_KILL_AT=count` prints at the end how many events there were. `NIXBOX_INTERRUPT_AT=N` sends SIGINT at
//! event N, and with `NIXBOX_INTERRUPT=twice` also at the event after it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error;
use crate::engine::executor::{Event, Observer, TransitionFailure};

const VARIABLE: &str = "NIXBOX_KILL_AT";
static SEEN: AtomicU64 = AtomicU64::new(0);

/// Counts events, and kills nixbox at the chosen one before the inner observer sees it.
pub(super) struct Failpoints<'a> {
    inner: &'a dyn Observer,
    at: Option<u64>,
    interrupt_at: Option<u64>,
    twice: bool,
}

impl<'a> Failpoints<'a> {
    pub(super) fn around(inner: &'a dyn Observer) -> Self {
        let number = |variable| std::env::var(variable).ok().and_then(|text| text.parse().ok());
        Self {
            inner,
            at: number(VARIABLE),
            interrupt_at: number("NIXBOX_INTERRUPT_AT"),
            twice: std::env::var("NIXBOX_INTERRUPT").is_ok_and(|text| text == "twice"),
        }
    }
}

impl Observer for Failpoints<'_> {
    fn event(&self, event: Event) {
        let seen = SEEN.fetch_add(1, Ordering::SeqCst) + 1;
        if self.at == Some(seen) {
            let this = rustix::process::getpid();
            while rustix::process::kill_process(this, rustix::process::Signal::KILL).is_ok() {
                // The signal arrives before the call returns. The loop makes sure that nothing runs after it.
            }
        }
        let second = self.interrupt_at.filter(|_| self.twice).map(|at| at + 1);
        if [self.interrupt_at, second].contains(&Some(seen)) {
            let this = rustix::process::getpid();
            // An error is impossible, because a process may always send a signal to itself.
            rustix::process::kill_process(this, rustix::process::Signal::INT).ok();
        }
        self.inner.event(event);
    }

    fn failure(&self, failure: &TransitionFailure) {
        self.inner.failure(failure);
    }

    fn waits(&self, why: &str) {
        self.inner.waits(why);
    }
}

/// Prints the number of events, if `NIXBOX_KILL_AT` asks for it.
pub(super) fn print_count() {
    if std::env::var(VARIABLE).is_ok_and(|text| text == "count") {
        error::print_stderr(&format!("failpoints: {}\n", SEEN.load(Ordering::SeqCst)));
    }
}
