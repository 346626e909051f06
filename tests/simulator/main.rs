//! The built program on the simulator: real processes, files, sockets and SSH, but no VM.
//!
//! nixbox and its daemons are killed, interrupted and stopped, and everything that must hold afterwards is checked from
//! outside (`workspace.rs`). `guest.rs` tests what the simulator promises, and `conformance.rs` compares its answers with those
//! of Cloud Hypervisor. The tests need no root and no KVM. Kills at chosen events need the feature `failpoints`.

// clippy.toml lets tests unwrap, and does not see that all of this file is one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod commands;
mod completions;
mod conformance;
mod cp;
mod credentials;
mod demo;
mod edits;
mod events;
mod fit;
mod forward;
mod forward_background;
mod given_back;
mod guest;
mod identity;
mod kept_disks;
#[cfg(feature = "failpoints")]
mod kills;
mod leaks;
mod masks;
mod network;
mod rebooted;
mod scripts;
mod side_by_side;
mod signals;
mod snapshots;
mod ssh_programs;
mod state;
mod trace;
mod trust;
mod unanswered;
mod unrest;
mod workspace;
