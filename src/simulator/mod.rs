//! A stand-in for Cloud Hypervisor, so that nixbox runs where there is no KVM: everything but the virtual processors.
//!
//! [`vmm`] is a process with the command line and the API of Cloud Hypervisor as far as nixbox uses them, with the states,
//! codes and error chains of the version that it is asked to be (a row of [`crate::world::capability`]); a conformance suite compares it with the
//! real one. RAM and disk of its guest are the files that the VM was given, with real bytes in them ([`ram`], [`disk`],
//! [`kernel`]): what is paused, copied and restored is what is in them. The guest speaks SSH ([`sshd`]); its programs are
//! this machine's, run by this machine's kernel as the user who runs nixbox, in a directory that stands for the guest's
//! root ([`translate`], [`programs`]). **It is no sandbox.** What it cannot show: a kernel that boots, what a virtual processor
//! costs, programs that go on in a restored guest (but for `keep` and `counter`), and a network.
//!
//! Uses `world`, `guest` for keys and for the scripts that it runs, and nothing else of nixbox. No command picks it unless
//! the configuration says `vmm = "simulator"`.

mod api;
mod disk;
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

/// Makes a disk image for a simulated guest, of `size` bytes, whose `user` is let in with `key`, a line of
/// `authorized_keys`.
///
/// # Errors
/// If it cannot be written, or is there.
pub fn make_disk(path: &Path, size: u64, user: &str, key: &str) -> io::Result<()> {
    let home = if user == "root" { "root".to_owned() } else { format!("home/{user}") };
    let keys = format!("{home}/.ssh/authorized_keys");
    disk::SimulatedDisk::make(
        path,
        size,
        &[("etc/hostname", 0o644, b"simulated\n"), (&keys, 0o600, key.as_bytes())],
    )
}
