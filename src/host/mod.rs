//! This machine: its processes, sockets, shares. Implements seams of [`crate::world`]; knows nothing of operations.
pub mod identity;
pub mod process;
pub mod shares;
pub mod socket;
pub mod spawn;
