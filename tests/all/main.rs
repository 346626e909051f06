//! Black-box tests: they see the public face of the crate, and the fakes.

// A test that cannot go on should say where.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod architecture;
mod crashes;
mod edits;
mod executor;
mod faults;
mod format;
mod harness;
mod in_progress;
mod journal_bytes;
mod journal_files;
mod kept_disks;
mod leaks;
mod model;
mod names;
mod pictures;
mod rebooted;
mod repair;
mod roll_over;
mod sources;
mod storage;
mod unanswered;
mod warm;
