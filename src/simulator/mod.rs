//! A stand-in for Cloud Hypervisor and its guest, for machines without KVM. It has everything of a VM except virtual CPUs.
//!
//! [`vmm`] is a process with the command line and the HTTP API of Cloud Hypervisor, as far as nixbox uses them. Its states,
//! status codes and error chains ([`api`], [`refusal`]) are those of one version, a row of [`crate::world::capability`]:
//! no code here compares version numbers. A conformance suite (`tests/simulator/conformance.rs`) compares its answers with
//! those of the real versions word for word.
//!
//! [`vm`] opens what the VM's configuration names. RAM and disk of the guest are the files that nixbox gave the VM
//! ([`ram`], [`disk`]). [`kernel`] keeps the guest's files in them as a real kernel does, in a page cache and in blocks,
//! so that a copy of RAM and disk is all that a restore needs. [`guest`] adds the processes, which stop while the VM is
//! paused ([`pausable_stream`]). The guest speaks SSH ([`sshd`], [`forwarding`]). Its programs are those of this machine: they run as the
//! user who runs nixbox, in a directory that stands for the root of the guest ([`translate`]). Programs that would act
//! upon this machine's kernel are replaced ([`programs`]) and ask the simulated kernel ([`syscalls`]). [`share`] stands in
//! for virtiofsd, [`network`] for the network.
//!
//! **It is no sandbox.** It does not show how a kernel boots, what virtual CPUs cost, programs that continue in a restored
//! guest (except `keep` and `counter`), or a network that filters.
//!
//! This module uses `world`, and of `guest` the keys and the form of scripts. Nothing uses it unless the configuration
//! says `vmm = "simulator"`, or `simulator-v52` for a certain version.

mod api;
mod disk;
mod forwarding;
mod guest;
mod kernel;
pub mod network;
mod pausable_stream;
pub mod programs;
mod ram;
mod refusal;
pub mod share;
mod sshd;
mod syscalls;
mod translate;
mod vm;
pub mod vmm;

use std::io;
use std::path::Path;

/// Makes a disk image of `size` bytes for a simulated guest. `user` can log in to it with `key`, a line of
/// `authorized_keys`.
///
/// # Errors
/// If `path` exists or cannot be written.
pub fn make_disk(path: &Path, size: u64, user: &str, key: &str) -> io::Result<()> {
    let home = if user == "root" { "root".to_owned() } else { format!("home/{user}") };
    let keys = format!("{home}/.ssh/authorized_keys");
    disk::SimulatedDisk::make(
        path,
        size,
        &[("etc/hostname", 0o644, b"simulated\n"), (&keys, 0o600, key.as_bytes())],
    )
}
