//! This machine: what the seams of `world` are on a real host.

pub mod copy;
pub mod disk;
pub mod files;
pub mod hash;
pub mod memory;
