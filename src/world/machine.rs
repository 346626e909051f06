//! A VM as the seams name it: its parts and their generations, its state, and what of it is there.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ByteSize, Generation, HostPath, Slot};

/// What the guest's kernel calls this boot: `/proc/sys/kernel/random/boot_id`, which lives in RAM alone. A restored
/// guest still has it, a rebooted one has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId(pub [u8; 16]);

/// What of a VM is decided when it is booted or loaded, and by which generation its parts are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Machine {
    /// The VMM process and the share daemons.
    pub vmm: Generation,
    /// The disk images.
    pub disk: Generation,
    /// The RAM file.
    pub memory: Generation,
    /// TAP, addresses, firewall table, DHCP.
    pub slot: Slot,
    /// Whether the shares are devices of the VM from the start; if not, they are attached later.
    pub shares: bool,
}

/// A disk of a VM: from a template, or empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskSpec {
    /// The template, which is never written.
    pub image: Option<HostPath>,
    /// Its size; without one, the template's.
    pub size: Option<ByteSize>,
}

/// What is known of the VMM of a generation, and of the VM in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmmState {
    /// No VMM of this generation was ever started, as far as can be told; after a reboot of the host nothing can.
    Never,
    /// One was started, and lives no more.
    Gone,
    /// It answers and has no VM.
    Empty,
    /// Its VM has not been booted, or has shut down.
    Stopped,
    /// Its VM runs.
    Running,
    /// Its VM is paused.
    Paused,
    /// It lives, does nothing that can be seen, and has not answered for as long as it was waited for: it counts as lost.
    Silent,
}

impl fmt::Display for VmmState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Never => "not started",
            Self::Gone => "gone",
            Self::Empty => "not created",
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Silent => "not answering",
        })
    }
}

impl VmmState {
    /// Whether there is a VM that holds a running system, paused or not.
    #[must_use]
    pub fn has_system(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// Whether something that has several parts is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Presence {
    /// No part of it.
    Absent,
    /// Some of it, or all of it but not in order.
    Partial,
    /// All of it.
    Whole,
}

/// What the guest has of what it should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Equipment {
    /// Its credentials.
    pub credentials: Presence,
    /// Its mounted shares.
    pub mounts: Presence,
}
