//! This machine: what the seams of [`crate::world`] are made of on Linux. Knows nothing of operations.

pub mod clock;
pub mod cpu;
pub mod disk;
pub mod hooks;
pub mod identity;
pub mod ioctl;
pub mod leftovers;
pub mod memory;
pub mod network;
pub mod process;
pub mod shares;
pub mod slots;
pub mod socket;
pub mod spawn;
pub mod sudo;
