//! The program itself on the simulator: real processes, files, sockets and SSH, and no VM. What it is killed at and by,
//! and what must hold afterwards; what the simulator promises; and whether it is like the real thing.
//!
//! Needs no root and no KVM. Kills at chosen events need the feature `failpoints`.

// clippy.toml lets tests unwrap, and does not see that all of this file is one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod conformance;
mod demo;
mod guest;
#[cfg(feature = "failpoints")]
mod kills;
mod room;
mod signals;
