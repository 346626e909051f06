//! Implements seams of [`crate::world`] on Linux: processes, network, shares, disks, RAM files, slots, hooks.
//!
//! May use `world`, `files` and `store`, and knows nothing of operations.

pub mod clock;
pub mod confinement;
pub mod contents;
pub mod cpu;
pub mod disk;
pub mod forwards;
pub mod hooks;
pub mod ioctl;
pub mod leftovers;
pub mod lifetime;
pub mod memory;
pub mod network;
mod own_thread;
pub mod process;
pub mod program;
pub mod share_view;
pub mod shares;
pub mod slots;
pub mod socket;
pub mod spawn;
pub mod sudo;
pub mod systemd;
