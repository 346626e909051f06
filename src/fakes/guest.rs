//! What is in the RAM, on the disk and in the saved state of a guest, and what its VM was built from, as far as it makes a
//! difference to nixbox.

use std::collections::{BTreeMap, BTreeSet};

use crate::world::Secret;

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
    /// The same, and the guest's kernel removes the device: it waits until the share is attached again.
    Forgotten,
}

/// The lines of a history, as the ranges of their numbers: each line has a number of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct FakeHistory(Vec<(u64, u64)>);

impl FakeHistory {
    /// The lines from one number up to another.
    pub(super) fn of(from: u64, to: u64) -> Self {
        Self(if from == to { Vec::new() } else { vec![(from, to)] })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of the first line.
    pub(super) fn first(&self) -> Option<u64> {
        self.0.first().map(|(from, _)| *from)
    }

    /// The number after that of the last line.
    pub(super) fn end(&self) -> u64 {
        self.0.last().map_or(0, |(_, to)| *to)
    }

    /// Whether all of its lines were written after those below this number.
    pub(super) fn is_after(&self, line: u64) -> bool {
        self.0.iter().all(|(from, _)| *from >= line)
    }

    pub(super) fn append(&mut self, other: &Self) {
        for (from, to) in &other.0 {
            match self.0.last_mut() {
                Some(last) if last.1 == *from => last.1 = *to,
                _ => self.0.push((*from, *to)),
            }
        }
    }

    fn begins_with(&self, other: &Self) -> bool {
        let Some((last, whole)) = other.0.split_last() else {
            return true;
        };
        let place = self.0.get(whole.len());
        self.0.starts_with(whole) && place.is_some_and(|(from, to)| *from == last.0 && *to >= last.1)
    }

    /// Puts the lines of the backup before these, unless they are there already.
    pub(super) fn give_back(&mut self, backup: Self) {
        if !self.begins_with(&backup) {
            let since = std::mem::replace(self, backup);
            self.append(&since);
        }
    }

    pub(super) fn to_backup(&self) -> Secret {
        Secret::new(self.0.iter().flat_map(|(from, to)| [*from, *to]).flat_map(u64::to_le_bytes).collect())
    }

    pub(super) fn of_backup(backup: &Secret) -> Self {
        let (numbers, _) = backup.expose().as_chunks::<8>();
        let numbers: Vec<_> = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        Self(numbers.chunks_exact(2).map(|range| (range[0], range[1])).collect())
    }
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
    /// Credentials that a program of the guest keeps, whatever is wiped.
    pub(super) leaked: BTreeSet<FakeSecret>,
    pub(super) mount: FakeMount,
    /// Whether its swap is on.
    pub(super) swap: bool,
    /// How many lines the guest's programs have written to the history.
    pub(super) lines: u64,
    /// The first of the lines that the guest had when it was booted or restored, and has written since.
    pub(super) first_line: u64,
    /// How many lines had been written when the guest was last wiped.
    pub(super) wiped_lines: u64,
    /// Whether the random pool was reseeded since the guest was last restored.
    pub(super) seeded: bool,
    /// Whether the clock was set since the guest was last restored.
    pub(super) clock: bool,
    /// Whether scripts are to run in it, since it was booted or restored, and have not.
    pub(super) awaits_scripts: bool,
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
    /// Credentials that a program of the guest has written to files of its own.
    pub(super) leaked: BTreeSet<FakeSecret>,
    /// The history of a shell.
    pub(super) history: FakeHistory,
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
        Self {
            ticks: 0,
            secrets: BTreeSet::new(),
            residue: BTreeSet::new(),
            leaked: BTreeSet::new(),
            history: FakeHistory::default(),
        }
    }
}

impl FakeRam {
    pub(super) fn booted(boot: u64, history: &FakeHistory) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&boot.to_le_bytes());
        let lines = history.end();
        let first_line = history.first().unwrap_or(lines);
        Self {
            boot: id,
            ticks: 0,
            secrets: BTreeSet::new(),
            leaked: BTreeSet::new(),
            mount: FakeMount::No,
            swap: true,
            lines,
            first_line,
            wiped_lines: first_line,
            seeded: true,
            clock: true,
            awaits_scripts: false,
        }
    }
}
