//! Cloud Hypervisor, from v51 on: one VMM process for each VM, which nixbox starts, speaks to and stops.
//!
//! [`cloud_hypervisor`] implements [`crate::world::Vmm`] on the other modules. [`client`] makes the HTTP calls of the
//! API. [`config`] is the body of `vm.create`. [`state`] handles the files that `vm.snapshot` writes and `vm.restore`
//! reads, and [`restore`] rewrites the paths in one of them. What differs between versions stands in the table of
//! [`crate::world::capability`]; every module here takes a row of it, or does what is right under all versions.
//!
//! The API behaviour that nixbox relies on:
//! - The VMM has one thread for its API. A call waits for the one before it, and during `vm.snapshot` of RAM that the
//!   VMM allocated itself nothing is answered for as long as it writes.
//! - `vm.create` stores a configuration and opens the serial file; devices are opened by `vm.boot` and `vm.restore`.
//! - `vm.snapshot` needs a paused VM and an existing directory. It overwrites no file, and it syncs nothing.
//! - `vm.restore` takes all paths from the `config.json` of the snapshot and leaves the VM paused. A failed one leaves
//!   no VM.
//! - `vm.remove-device` returns when the guest has been asked. The device stays in `vm.info` until the guest lets go.
//! - Under every version the VMM process ends when its guest powers off.
//!
//! This module uses `world`, and `host` for processes and sockets. It knows nothing of operations.

pub mod client;
pub mod cloud_hypervisor;
pub mod config;
pub mod error;
mod live_vmm;
pub mod restore;
pub mod state;
