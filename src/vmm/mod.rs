//! Cloud Hypervisor, from v51 on: one VMM process for each VM, which nixbox starts, speaks to and stops.
//!
//! [`cloud_hypervisor`] implements [`crate::world::Vmm`] with the other modules. [`client`] makes the HTTP calls of the
//! API. [`config`] is the body of `vm.create`. [`state`] handles the files that `vm.snapshot` writes and `vm.restore`
//! reads, [`restore`] rewrites the paths in one of them, [`saved`] leaves out devices in the other, [`boot_files`] copies
//! what a guest could replace, [`confined`] says which files the process can open, and
//! [`events`] reads what it reports of itself. The table of [`crate::world::capability`] lists the
//! differences between versions. A module here either takes a row of that table, or works the same way for all
//! versions.
//!
//! The API behaviour that nixbox relies on:
//! - The VMM has one thread for its API, so a call waits for the call before it. During a `vm.snapshot` of RAM that the
//!   VMM allocated itself, the VMM answers no other call until it has written all RAM.
//! - `vm.create` stores a configuration and opens the serial file. `vm.boot` and `vm.restore` open the devices.
//! - `vm.snapshot` needs a paused VM and an existing directory. It overwrites no file, and it syncs nothing.
//! - `vm.restore` takes all paths from the `config.json` of the snapshot and leaves the VM paused. A failed restore
//!   leaves no VM.
//! - `vm.remove-device` returns when the guest has been asked. The device stays in `vm.info` until the guest has
//!   released it.
//! - Under every version the VMM process ends when its guest powers off.
//!
//! This module uses `world`, and `host` for processes and sockets. It does not depend on operations.

pub mod boot_files;
pub mod client;
pub mod cloud_hypervisor;
pub mod config;
pub mod confined;
pub mod error;
pub mod events;
mod installed;
mod live_vmm;
pub mod restore;
pub mod saved;
mod settings;
pub mod state;
