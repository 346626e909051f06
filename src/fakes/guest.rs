//! What is in the RAM, on the disk and in the saved state of a guest, and what its VM was built from, as far as it makes a
//! difference to nixbox.

use std::collections::{BTreeMap, BTreeSet};

/// A secret, as the configuration has it at the time of an injection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FakeSecret(pub(super) u64);

/// What a VM is built from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FakeSpec {
    pub(super) shares: bool,
    /// The values that shape a VM.
    pub(super) shape: BTreeMap<String, String>,
}

/// The state of a share's mount in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum FakeMount {
    /// Not mounted.
    No,
    /// Mounted, and every access works.
    Works,
    /// Mounted, and every access fails or hangs.
    Dead,
}

/// A guest's RAM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FakeRam {
    /// The boot id.
    pub(super) boot: [u8; 16],
    /// A counter that grows while the guest runs, and only then.
    pub(super) ticks: u64,
    /// Credentials in processes and in the page cache.
    pub(super) secrets: BTreeSet<FakeSecret>,
    pub(super) mount: FakeMount,
    /// Whether the random pool was reseeded since the guest was last restored.
    pub(super) seeded: bool,
    /// Whether the clock was set since the guest was last restored.
    pub(super) clock: bool,
}

/// A guest's disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct DiskImage {
    /// The counter in RAM when the disk was last written.
    pub(super) ticks: u64,
    /// Credentials in files.
    pub(super) secrets: BTreeSet<FakeSecret>,
    /// Credentials in blocks of removed files that were not trimmed.
    pub(super) residue: BTreeSet<FakeSecret>,
}

/// What the VMM saves of a VM: the state of vCPUs and devices.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SavedState {
    /// The counter in the RAM that it belongs to.
    pub(super) ticks: u64,
    /// Whether the shares are among the devices.
    pub(super) shares: bool,
    /// EBX of the first subleaf of leaf 7 of CPUID in the guest.
    pub(super) leaf_7: u32,
}

impl DiskImage {
    pub(super) fn blank() -> Self {
        Self { ticks: 0, secrets: BTreeSet::new(), residue: BTreeSet::new() }
    }
}

impl FakeRam {
    pub(super) fn booted(boot: u64) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&boot.to_le_bytes());
        Self { boot: id, ticks: 0, secrets: BTreeSet::new(), mount: FakeMount::No, seeded: true, clock: true }
    }
}
