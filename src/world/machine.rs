//! A VM as the seams name it: its parts and their generations, its disks, its state, and how much of it is there.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ByteSize, Generation, HostPath, Slot};

/// The guest kernel's name for its boot: `/proc/sys/kernel/random/boot_id`. It is kept in RAM only, so a restored guest
/// still has it, and a rebooted guest has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId(pub [u8; 16]);

/// The numbers of a user of the guest, and of the group of that user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserIds {
    /// The user's.
    pub uid: u32,
    /// The group's.
    pub gid: u32,
}

impl UserIds {
    /// The highest number of a user or a group: the two above it mean "nobody" and "no change".
    pub const MAX: u32 = u32::MAX - 2;

    /// Whether files can belong to them.
    #[must_use]
    pub fn can_own(self) -> bool {
        self.uid <= Self::MAX && self.gid <= Self::MAX
    }
}

impl fmt::Display for UserIds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.uid, self.gid)
    }
}

/// What is decided about a VM when it is booted or loaded: the generation that each of its parts carries, and its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Machine {
    /// The VMM process and the share daemons.
    pub vmm: Generation,
    /// The disk images.
    pub disk: Generation,
    /// The RAM file.
    pub memory: Generation,
    /// The place that decides its TAP, addresses, firewall table and DHCP.
    pub slot: Slot,
    /// Whether the shares are devices of the VM from the start. If not, they are attached later.
    pub shares: bool,
}

/// A disk of a VM: from a template, or empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DiskSpec {
    /// The template, which is never written.
    pub image: Option<HostPath>,
    /// Its size; without one, the template's.
    pub size: Option<ByteSize>,
}

/// The name of a kept disk. The disks of a workspace are ordered by when they were kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeptDiskId {
    /// The operation that kept it.
    pub kept_by: Generation,
    /// The generation that the disk has, and has again when a VM gets it.
    pub disk: Generation,
}

/// The disk of an earlier session, which another disk has taken the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptDisk {
    /// Which one.
    pub id: KeptDiskId,
    /// How much space it occupies.
    pub bytes: u64,
    /// When it was last written, in milliseconds since 1970, UTC.
    pub written_ms: u64,
}

/// The state of the VMM of one generation, and of the VM in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmmState {
    /// No trace of a VMM of this generation. After a reboot of the host none can be found.
    Never,
    /// A VMM was started and has ended.
    Gone,
    /// The same, and it ended in order, as it does when its guest powers off.
    PoweredOff,
    /// The VMM answers and has no VM.
    Empty,
    /// Its VM has not been booted yet, or has shut down.
    Stopped,
    /// Its VM runs.
    Running,
    /// Its VM is paused.
    Paused,
    /// The VMM lives and does not answer within the time limit. It counts as lost.
    Silent,
}

impl fmt::Display for VmmState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Never => "not started",
            Self::Gone => "gone",
            Self::PoweredOff => "powered off",
            Self::Empty => "not created",
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Silent => "not answering",
        })
    }
}

impl VmmState {
    /// Whether a VMM was started and has ended.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Gone | Self::PoweredOff)
    }

    /// Whether there is a VM with a booted system, paused or not.
    #[must_use]
    pub fn has_system(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// What a guest was given of the two things that it needs when it goes on from a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// Whether its kernel got fresh entropy.
    pub entropy: bool,
    /// Whether its clock was set.
    pub clock: bool,
}

impl Settlement {
    /// Both.
    pub const WHOLE: Self = Self { entropy: true, clock: true };
}

/// How much of something that has several parts is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Presence {
    /// None of it.
    Absent,
    /// Some of it, or all of it but not in order.
    Partial,
    /// All of it.
    Whole,
}

/// How much of its credentials and shares a guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Equipment {
    /// The credentials.
    pub credentials: Presence,
    /// The mounted shares.
    pub mounts: Presence,
}
