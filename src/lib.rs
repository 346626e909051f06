//! nixbox runs a developer's sandbox as one Cloud Hypervisor microVM per workspace, and makes warm starts near-instant:
//! freeze a VM after the slow part, restore it in seconds, over and over, with no credential in the image and no
//! half-finished operation left behind, whatever was killed when.
//!
//! The heart is [`engine`]: every change of the world is a transition that is journaled before it is made, so that the
//! next run can always tell what was going on, and roll it forward or back. [`operations`] is what nixbox does, in tables;
//! read [`operations::snapshot`] for the largest. [`world`] is where what nixbox does meets what it does it with.
//!
//! ```text
//! engine/       pure, generic over the world
//!   record.rs       record types and their bytes; sole owner of what journal-format.md says
//!   reader.rs       bytes → records, valid length, verdict on the tail; total: any bytes at all
//!   journal.rs      append, sync, rotate, poison, over a storage seam of a handful of methods
//!   history.rs      fold of records → status of every transition; an illegal sequence is an error
//!   planner.rs      the recovery decision table
//!   transition.rs   Transition, Stage, Operation, Probe, undo policy, failures
//!   executor.rs     the only loop that runs anything, for fresh runs and for recovery alike, and what it says
//! operations/   up, down, snapshot, restore, delete: the stage table first, then one struct per transition
//! world/        the seams (VMM, network, shares, disk, memory, guest, catalog, clock) and the values that cross them
//! files/        directories opened without following links, copies of large files, their hashes
//! host/         this machine: processes, network, shares, disks, RAM files
//! vmm/          Cloud Hypervisor: its processes, its API, the configuration of a VM, the saved state of one
//! guest/        the system in the VM, over SSH: credentials, entropy, clock, mounts
//! store/        the journal's files, and snapshots on disk
//! config.rs  workspace.rs
//! fakes/        the whole world in memory; it crashes at any point, and keeps only what was durable
//! simulator/    a stand-in for Cloud Hypervisor and its guest, for machines without KVM
//! cli/          the command line; sole printer of errors, hints and exit codes
//! ```
//!
//! Who may use whom: `cli` → `operations` → `engine` and the seams in `world`; `host`, `vmm`, `guest` and `store`
//! implement the seams and know nothing of `operations`; `engine` knows nothing of VMs, and does no I/O but through its
//! storage seam. A test holds the imports to this.

pub mod cli;
pub mod config;
pub mod engine;
#[doc(hidden)]
pub mod fakes;
pub mod files;
pub mod guest;
pub mod host;
pub mod operations;
pub mod simulator;
pub mod store;
#[cfg(test)]
mod testing;
pub mod vmm;
pub mod workspace;
pub mod world;
