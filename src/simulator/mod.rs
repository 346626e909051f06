//! A stand-in for Cloud Hypervisor, so that nixbox runs where there is no KVM: everything but the virtual processors.
//!
//! [`vmm`] is a process with the command line and the API of Cloud Hypervisor as far as nixbox uses them, with the states,
//! codes and error chains of the version that it is asked to be ([`SimulatedVersion`]); a conformance suite compares it with the
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
pub mod share;
mod sshd;
mod syscalls;
mod translate;
mod vm;
pub mod vmm;

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

/// The version that the simulator behaves like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SimulatedVersion {
    /// v51.1: shares lose what was known of them in a restore.
    V51,
    /// v52.0: shares hang after a resume in place.
    V52,
    /// v53.0: as v52.0.
    V53,
    /// v54.0: nothing of the kind.
    V54,
}

impl SimulatedVersion {
    /// As the program calls itself: never without saying what it is.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::V51 => "v51.1-simulator",
            Self::V52 => "v52.0-simulator",
            Self::V53 => "v53.0-simulator",
            Self::V54 => "v54.0-simulator",
        }
    }
}

/// A number that is no version's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of 51, 52, 53, 54")]
pub struct NoSuchVersion(String);

impl FromStr for SimulatedVersion {
    type Err = NoSuchVersion;

    fn from_str(text: &str) -> Result<Self, NoSuchVersion> {
        match text {
            "51" => Ok(Self::V51),
            "52" => Ok(Self::V52),
            "53" => Ok(Self::V53),
            "54" => Ok(Self::V54),
            other => Err(NoSuchVersion(other.to_owned())),
        }
    }
}

impl fmt::Display for SimulatedVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V51 => "51",
            Self::V52 => "52",
            Self::V53 => "53",
            Self::V54 => "54",
        })
    }
}

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
