//! Kills nixbox at a chosen event of its operations: `NIXBOX_KILL_AT=N` at the N-th of this process, recovery included.
//! `NIXBOX_KILL_AT=count` prints at the end how many there were. `NIXBOX_INTERRUPT_AT=N` sends it SIGINT instead, and with
//! `NIXBOX_INTERRUPT=twice` again at the event after that. In builds with the feature `failpoints` only.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error;
use crate::engine::executor::{Event, Observer, TransitionFailure};

const VARIABLE: &str = "NIXBOX_KILL_AT";
static SEEN: AtomicU64 = AtomicU64::new(0);

/// Counts events, and dies at the chosen one before anybody else hears of it.
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
                // It arrives before the call returns; a loop that never ends keeps what must not happen from happening.
            }
        }
        let second = self.interrupt_at.filter(|_| self.twice).map(|at| at + 1);
        if [self.interrupt_at, second].contains(&Some(seen)) {
            let this = rustix::process::getpid();
            // A process may always signal itself.
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

/// Prints the count, if asked for.
pub(super) fn tell() {
    if std::env::var(VARIABLE).is_ok_and(|text| text == "count") {
        error::say(&format!("failpoints: {}\n", SEEN.load(Ordering::SeqCst)));
    }
}
