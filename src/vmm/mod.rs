//! Cloud Hypervisor: its API, its configuration, what its versions can do, and the seam [`crate::world::Vmm`] over
//! these. Uses `host` for processes and sockets; knows nothing of operations.
pub mod client;
pub mod cloud_hypervisor;
pub mod config;
pub mod error;
mod live;
pub mod restore;
pub mod state;
