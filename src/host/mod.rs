//! This machine: what `world`'s seams for network and slots are made of on Linux.
//!
//! Uses the kernel's interfaces, nft and dnsmasq; knows of `world`, and nothing of operations.

pub mod ioctl;
pub mod network;
pub mod slots;
