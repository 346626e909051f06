//! What a guest is made of, as far as nixbox can tell the difference.

use std::collections::BTreeSet;

/// A secret value. Each injection brings the one that the configuration has at that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FakeSecret(pub(super) u64);

/// How a share looks from within the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum FakeMount {
    /// Not mounted.
    No,
    /// Mounted, and every open file works.
    Works,
    /// Mounted, and dead: every access fails or hangs.
    Dead,
}

/// A guest's RAM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FakeRam {
    /// Made once in a boot.
    pub(super) boot: [u8; 16],
    /// Grows while the guest runs, and only then.
    pub(super) ticks: u64,
    /// Credentials in processes and in the page cache.
    pub(super) secrets: BTreeSet<FakeSecret>,
    /// The shares.
    pub(super) mount: FakeMount,
    /// Whether the kernel's pool had fresh entropy since the guest was last loaded.
    pub(super) seeded: bool,
    /// Whether the clock was set since the guest was last loaded.
    pub(super) clock: bool,
}

/// A guest's disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct DiskImage {
    /// That of the RAM when it was last written.
    pub(super) ticks: u64,
    /// Credentials in files.
    pub(super) secrets: BTreeSet<FakeSecret>,
    /// Credentials in blocks that files left behind and nobody trimmed.
    pub(super) residue: BTreeSet<FakeSecret>,
}

/// What the VMM saves of a VM: registers and devices.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SavedState {
    /// That of the RAM it belongs to.
    pub(super) ticks: u64,
    /// Whether the shares are among the devices.
    pub(super) shares: bool,
}
