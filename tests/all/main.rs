//! Black-box tests: they see the public face of the crate, and the fakes.

mod crashes;
mod format;
mod harness;
mod journal_bytes;
