//! Kills nixbox at a chosen event of its operations: `NIXBOX_KILL_AT=N` at the N-th of this process, recovery included.
//! `NIXBOX_KILL_AT=count` prints at the end how many there were. In builds with the feature `failpoints` only.

use std::sync::atomic::{AtomicU64, Ordering};

use super::report;
use crate::engine::executor::{Event, Observer};

const VARIABLE: &str = "NIXBOX_KILL_AT";
static SEEN: AtomicU64 = AtomicU64::new(0);

/// Counts events, and dies at the chosen one before anybody else hears of it.
pub(super) struct Failpoints<'a> {
    inner: &'a dyn Observer,
    at: Option<u64>,
}

impl<'a> Failpoints<'a> {
    pub(super) fn around(inner: &'a dyn Observer) -> Self {
        let at = std::env::var(VARIABLE).ok();
        Self { inner, at: at.and_then(|text| text.parse().ok()) }
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
        self.inner.event(event);
    }
}

/// Prints the count, if asked for.
pub(super) fn tell() {
    if std::env::var(VARIABLE).is_ok_and(|text| text == "count") {
        report::say(&format!("failpoints: {}\n", SEEN.load(Ordering::SeqCst)));
    }
}
