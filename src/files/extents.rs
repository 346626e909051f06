//! Where a file has data, as its file system tells (`SEEK_DATA`, `SEEK_HOLE`), and where data is zeros.
//!
//! A sparse file is walked from data to data, so that the time grows with the data and not with the size. Some file systems
//! report zeros as data: ext4 by extents that were zeroed, tmpfs by huge pages. Those are found by comparing at the
//! speed of memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, PoisonError};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// The bytes that a thread takes at once, at a multiple of their number. A power of two.
pub const BLOCK: u64 = 1 << 20;
/// A run of this many zeros, at a multiple of this offset, becomes a hole.
pub const PAGE: usize = 4096;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Where the next data at or after `at` begins and ends, both at most `end`.
///
/// Several threads may call this for one file. The calls move the offset that the threads share, and no thread reads at
/// that offset.
///
/// # Errors
/// If the system cannot tell.
pub fn next_extent(file: &File, at: u64, end: u64) -> io::Result<Range<u64>> {
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data.min(end),
        // No data from here on.
        Err(Errno::NXIO) => end,
        // A file system without holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(at..end),
        Err(error) => return Err(error.into()),
    };
    if data == end {
        return Ok(end..end);
    }
    let hole = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
        Ok(hole) => hole.min(end),
        // The file has become shorter, and the next read reports it.
        Err(Errno::NXIO) => end,
        Err(error) => return Err(error.into()),
    };
    Ok(data..hole)
}

/// How many bytes of a file are data, as far as the file system can tell. Blocks that are reserved for the file and not
/// written yet are no data, although the file occupies them; those that were read lately may pass for data.
///
/// # Errors
/// If the system cannot tell.
pub fn data_bytes(file: &File) -> io::Result<u64> {
    // No file has so many extents.
    Ok(data_within(file, usize::MAX)?.unwrap_or_default())
}

/// An estimate of the same that is quick: a file with very many extents is taken at the room that it occupies.
///
/// # Errors
/// If the system cannot tell.
pub fn about_data_bytes(file: &File) -> io::Result<u64> {
    /// Finding so many takes some milliseconds.
    const MOST_EXTENTS: usize = 4096;
    let status = file.metadata()?;
    let occupied = status.len().min(status.blocks() * 512);
    Ok(data_within(file, MOST_EXTENTS)?.unwrap_or(occupied))
}

/// How many bytes of a file are data, if it has no more extents than that.
fn data_within(file: &File, extents: usize) -> io::Result<Option<u64>> {
    let end = file.metadata()?.len();
    let (mut at, mut bytes) = (0, 0);
    for _ in 0..extents {
        if at >= end {
            return Ok(Some(bytes));
        }
        let data = next_extent(file, at, end)?;
        bytes += data.end - data.start;
        at = data.end;
    }
    Ok(None)
}

/// A block of a file that has data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataBlock {
    /// From its first byte to its end. The last block of a file may be shorter than [`BLOCK`].
    pub range: Range<u64>,
    /// The first data in it.
    data: Range<u64>,
}

impl DataBlock {
    /// The next run of units that have data, at or after `at`, which is a multiple of the unit in the block. The run ends
    /// before the first unit without data, or with the block. A unit with a hole in it is read whole: finding the hole
    /// would take longer.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn next_run(&self, file: &File, at: u64, unit: u64) -> io::Result<Range<u64>> {
        let end = self.range.end;
        // Rounded to units; empty if there is no data.
        let data_from = |at: u64| -> io::Result<Range<u64>> {
            let known = self.data.start.max(at)..self.data.end;
            let data = if known.is_empty() { next_extent(file, at, end)? } else { known };
            let start = data.start / unit * unit;
            Ok(if data.is_empty() { end..end } else { start..end.min(data.end.next_multiple_of(unit)) })
        };
        let mut run = data_from(at)?;
        while run.end < end {
            let next = data_from(run.end)?;
            if next.is_empty() || next.start > run.end {
                break;
            }
            run.end = next.end;
        }
        Ok(run)
    }
}

/// The blocks of a file that have data, handed out to threads in the order of the file.
#[derive(Debug)]
pub struct DataBlocks {
    size: u64,
    position: Mutex<BlockPosition>,
}

#[derive(Debug)]
struct BlockPosition {
    next: u64,
    /// The data that was found last. The kernel looks for the end of data page by page, so it is asked once for each extent
    /// and not once for each block.
    data: Range<u64>,
}

impl DataBlocks {
    /// The blocks of a file of this size in bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { size, position: Mutex::new(BlockPosition { next: 0, data: 0..0 }) }
    }

    /// Takes the next block that no thread has taken. Returns `None` when all blocks are taken.
    ///
    /// # Errors
    /// If the system cannot tell where data is.
    pub fn take(&self, file: &File) -> io::Result<Option<DataBlock>> {
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        if position.data.end <= position.next {
            position.data = next_extent(file, position.next, self.size)?;
        }
        let BlockPosition { next, data } = &mut *position;
        if data.is_empty() {
            return Ok(None);
        }
        let start = (data.start / BLOCK * BLOCK).max(*next);
        let end = self.size.min(start + BLOCK);
        *next = end;
        Ok(Some(DataBlock { range: start..end, data: data.start.max(start)..data.end.min(end) }))
    }
}

/// Whether all of these bytes are zeros.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|bytes| bytes == &ZEROS[..bytes.len()])
}

/// The runs of pages that are not all zeros, as ranges within these bytes. Fewer zeros than `smallest_hole` bytes do
/// not end a run.
pub fn runs_of_data(bytes: &[u8], smallest_hole: usize) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let zero = |at: usize| is_zero(&bytes[at..bytes.len().min(at + PAGE)]);
        while from < bytes.len() && zero(from) {
            from += PAGE;
        }
        let (start, mut end) = (from, from);
        while from < bytes.len() && (from == end || from - end < smallest_hole) {
            let page = from;
            from += PAGE;
            if !zero(page) {
                end = from;
            }
        }
        let run = start..end.min(bytes.len());
        (!run.is_empty()).then_some(run)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// A file with data at these pages.
    fn with_data(size: u64, pages: &[u64]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for page in pages {
            file.write_all_at(&[1; PAGE], page * PAGE as u64).unwrap();
        }
        file
    }

    #[test]
    fn runs_of_data_are_whole_pages_except_the_last() {
        let mut bytes = vec![0; 5 * PAGE + 10];
        assert_eq!(runs_of_data(&bytes, PAGE).count(), 0);
        bytes[PAGE] = 1;
        bytes[2 * PAGE + 5] = 1;
        bytes[5 * PAGE + 9] = 1;
        let runs = |smallest_hole| runs_of_data(&bytes, smallest_hole).collect::<Vec<_>>();
        assert_eq!(runs(PAGE), [PAGE..3 * PAGE, 5 * PAGE..5 * PAGE + 10]);
        assert_eq!(runs(2 * PAGE), [PAGE..3 * PAGE, 5 * PAGE..5 * PAGE + 10]);
        assert_eq!(runs_of_data(&bytes, 3 * PAGE).next(), Some(PAGE..5 * PAGE + 10));
    }

    #[test]
    fn zeros_of_any_length_are_zeros() {
        for length in [0, 1, ZEROS.len(), ZEROS.len() + 1, 3 * ZEROS.len() - 1] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            if let Some(last) = bytes.last_mut() {
                *last = 1;
                assert!(!is_zero(&bytes), "{length}");
            }
        }
    }

    fn blocks_of(file: &File, size: u64) -> Vec<DataBlock> {
        let blocks = DataBlocks::new(size);
        let taken = std::iter::from_fn(|| blocks.take(file).unwrap()).collect();
        assert_eq!(blocks.take(file).unwrap(), None);
        taken
    }

    #[test]
    fn blocks_without_data_are_passed_over_however_large_the_file_is() {
        // The largest file that an ext4 with blocks of 4 KiB has is 16 TiB.
        const TIB: u64 = 1 << 40;
        let pages = [0, 1, 300, (TIB / 2) / PAGE as u64, TIB / PAGE as u64 - 1];
        let file = with_data(TIB + 5, &pages);
        let taken = blocks_of(&file, TIB + 5);
        let starts: Vec<u64> = taken.iter().map(|block| block.range.start).collect();
        assert_eq!(starts, [0, BLOCK, TIB / 2, TIB - BLOCK]);
        assert!(taken.iter().all(|block| block.range.end - block.range.start == BLOCK));
        assert_eq!(data_bytes(&file).unwrap(), pages.len() as u64 * PAGE as u64);
    }

    #[test]
    fn a_file_of_very_many_extents_is_taken_at_the_room_that_it_occupies() {
        for (count, exact) in [(3, true), (5000, false)] {
            let pages: Vec<u64> = (0..count).map(|number| 2 * number).collect();
            let file = with_data(2 * count * PAGE as u64, &pages);
            let (data, about) = (data_bytes(&file).unwrap(), about_data_bytes(&file).unwrap());
            assert_eq!(data, count * PAGE as u64);
            assert!(about == data || !exact && (data..=2 * data).contains(&about), "{about} for {data}");
        }
    }

    #[test]
    fn a_file_full_of_data_has_all_its_blocks_and_an_empty_one_has_none() {
        let size = 2 * BLOCK + 5;
        let file = with_data(size, &[]);
        assert_eq!(blocks_of(&file, size), []);
        file.write_all_at(&vec![1; size as usize], 0).unwrap();
        let ranges: Vec<_> = blocks_of(&file, size).into_iter().map(|block| block.range).collect();
        assert_eq!(ranges, [0..BLOCK, BLOCK..2 * BLOCK, 2 * BLOCK..size]);
        assert_eq!(blocks_of(&with_data(0, &[]), 0), []);
    }

    #[test]
    fn a_run_has_the_units_with_data_that_lie_side_by_side() {
        const UNIT: u64 = 4 * PAGE as u64;
        // In the units 1 and 2, and in unit 5 and the last, which is cut.
        let size = 7 * UNIT + 100;
        let file = with_data(size, &[5, 9, 20]);
        file.write_all_at(&[1], size - 1).unwrap();
        let [block] = &blocks_of(&file, size)[..] else { panic!("it has one block") };
        let run = |at| block.next_run(&file, at, UNIT).unwrap();
        assert_eq!([0, UNIT, 2 * UNIT].map(run), [UNIT..3 * UNIT, UNIT..3 * UNIT, 2 * UNIT..3 * UNIT]);
        assert_eq!([3 * UNIT, 5 * UNIT].map(run), [5 * UNIT..6 * UNIT, 5 * UNIT..6 * UNIT]);
        assert_eq!(run(6 * UNIT), 7 * UNIT..size);
        let file = with_data(size, &[5]);
        let [block] = &blocks_of(&file, size)[..] else { panic!("it has one block") };
        assert!(block.next_run(&file, 2 * UNIT, UNIT).unwrap().is_empty());
    }
}
