//! The RAM of a simulated guest: a file in pages of 4 KiB.
//!
//! Page 0 holds a counter that grows while the guest runs, and the instant at which the guest was paused. The state of the
//! kernel follows as JSON. All other pages hold the page cache and the memory of programs. A page that is freed keeps its
//! bytes until it is used again, unless the guest was booted with `init_on_free=1`, as under Linux.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The size of a page, and of a block of the disk, in bytes.
pub(super) const PAGE: u64 = 4096;
/// The page at which the state of the kernel begins, and how many pages it may have.
const STATE: u64 = 1;
const STATE_PAGES: u64 = 1024;
const MAGIC: &[u8; 16] = b"nixbox-sim-ram-1";
const COUNTER: u64 = 16;
const INSTANT: u64 = 24;
const STATE_LENGTH: u64 = 40;

/// Which pages or blocks are in use.
#[derive(Default)]
pub(super) struct AllocationMap {
    used: Vec<bool>,
    /// Where the search for a free one begins, so that what was freed last is used again last.
    cursor: usize,
}

impl AllocationMap {
    pub(super) fn new(count: u64, reserved: u64) -> Self {
        let bound = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self { used: (0..bound(count)).map(|at| at < bound(reserved)).collect(), cursor: bound(reserved) }
    }

    pub(super) fn mark(&mut self, numbers: &[u64], used: bool) {
        for number in numbers {
            if let Some(place) = usize::try_from(*number).ok().and_then(|at| self.used.get_mut(at)) {
                *place = used;
            }
        }
    }

    /// Takes one that is free, and for which `also_free` holds.
    pub(super) fn take(&mut self, also_free: impl Fn(u64) -> bool) -> io::Result<u64> {
        let count = self.used.len();
        let at =
            (self.cursor..count).chain(0..self.cursor).find(|at| !self.used[*at] && also_free(*at as u64));
        let at = at.ok_or(io::ErrorKind::StorageFull)?;
        self.used[at] = true;
        self.cursor = at + 1;
        Ok(at as u64)
    }

    pub(super) fn is_used(&self, number: u64) -> bool {
        usize::try_from(number).ok().and_then(|at| self.used.get(at)).is_some_and(|used| *used)
    }

    /// Runs of free ones: the first, and how many.
    pub(super) fn holes(&self) -> Vec<(u64, u64)> {
        let mut holes: Vec<(u64, u64)> = Vec::new();
        for (at, _) in self.used.iter().enumerate().filter(|(_, used)| !**used) {
            match holes.last_mut() {
                Some((first, count)) if *first + *count == at as u64 => *count += 1,
                _ => holes.push((at as u64, 1)),
            }
        }
        holes
    }
}

/// The RAM of one guest.
pub(super) struct SimulatedRam {
    file: File,
    map: AllocationMap,
    zero_freed: bool,
}

impl SimulatedRam {
    /// The RAM that is a file of `size` bytes.
    pub(super) fn new(file: File, size: u64) -> Self {
        Self { file, map: AllocationMap::new(size / PAGE, STATE + STATE_PAGES), zero_freed: false }
    }

    /// Prepares RAM for a kernel that boots. Other pages keep what was in them before.
    pub(super) fn start(&mut self, zero_freed: bool) -> io::Result<()> {
        self.zero_freed = zero_freed;
        self.file.write_all_at(MAGIC, 0)?;
        self.file.write_all_at(&[0; 24], COUNTER)
    }

    /// The state of the kernel; `None` if RAM holds no simulated guest.
    pub(super) fn state(&self) -> io::Result<Option<Vec<u8>>> {
        let mut magic = [0; 16];
        self.file.read_exact_at(&mut magic, 0)?;
        let length = self.word(STATE_LENGTH)?;
        if magic != *MAGIC || length > STATE_PAGES * PAGE {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        self.file.read_exact_at(&mut bytes, STATE * PAGE)?;
        Ok(Some(bytes))
    }

    /// Says which pages are in use by the kernel whose state was read.
    pub(super) fn adopt(&mut self, pages: &[u64], zero_freed: bool) {
        self.zero_freed = zero_freed;
        self.map.mark(pages, true);
    }

    pub(super) fn write_state(&self, bytes: &[u8]) -> io::Result<()> {
        let before = self.word(STATE_LENGTH)?;
        let length = bytes.len() as u64;
        if length > STATE_PAGES * PAGE {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(bytes, STATE * PAGE)?;
        if before > length && before <= STATE_PAGES * PAGE {
            let rest = vec![0; usize::try_from(before - length).unwrap_or_default()];
            self.file.write_all_at(&rest, STATE * PAGE + length)?;
        }
        self.file.write_all_at(&length.to_le_bytes(), STATE_LENGTH)
    }

    fn word(&self, at: u64) -> io::Result<u64> {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, at)?;
        Ok(u64::from_le_bytes(word))
    }

    pub(super) fn counter(&self) -> io::Result<u64> {
        self.word(COUNTER)
    }

    pub(super) fn tick(&self) -> io::Result<()> {
        self.file.write_all_at(&(self.counter()? + 1).to_le_bytes(), COUNTER)
    }

    /// The instant at which the guest was paused; all zero while it runs.
    pub(super) fn instant(&self) -> io::Result<[u8; 16]> {
        let mut instant = [0; 16];
        self.file.read_exact_at(&mut instant, INSTANT)?;
        Ok(instant)
    }

    pub(super) fn set_instant(&self, instant: [u8; 16]) -> io::Result<()> {
        self.file.write_all_at(&instant, INSTANT)
    }

    /// Writes bytes into pages, first into those of `old`; surplus ones are freed. Returns the pages.
    pub(super) fn store(&mut self, mut old: Vec<u64>, bytes: &[u8]) -> io::Result<Vec<u64>> {
        let chunks: Vec<_> = bytes.chunks(PAGE as usize).collect();
        let surplus = old.split_off(old.len().min(chunks.len()));
        self.free(&surplus)?;
        while old.len() < chunks.len() {
            match self.map.take(|_| true) {
                Ok(page) => old.push(page),
                Err(error) => {
                    self.free(&old)?;
                    return Err(error);
                }
            }
        }
        for (page, chunk) in old.iter().zip(chunks) {
            self.file.write_all_at(chunk, page * PAGE)?;
        }
        Ok(old)
    }

    pub(super) fn load(&self, pages: &[u64], size: u64) -> io::Result<Vec<u8>> {
        load(&self.file, pages, size)
    }

    pub(super) fn free(&mut self, pages: &[u64]) -> io::Result<()> {
        self.map.mark(pages, false);
        if self.zero_freed {
            for page in pages {
                self.file.write_all_at(&[0; PAGE as usize], page * PAGE)?;
            }
        }
        Ok(())
    }

    /// The file, to be copied.
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

/// Reads `size` bytes from pages or blocks of a file.
pub(super) fn load(file: &File, numbers: &[u64], size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
    for (chunk, number) in bytes.chunks_mut(PAGE as usize).zip(numbers) {
        file.read_exact_at(chunk, number * PAGE)?;
    }
    Ok(bytes)
}
