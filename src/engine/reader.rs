//! Reads a journal: from bytes to records, the length up to which they are valid, and whether the rest is torn or corrupt.
//!
//! Any bytes at all give a result or an error, never a panic, in memory bounded by [`WINDOW`].
//!
//! # Torn or corrupt
//!
//! Outcomes are not synced one by one, so a power cut may lose any part of what was appended since the last sync and
//! keep any other part. Good frames may therefore follow a bad one although nothing was damaged. Each frame says in
//! `durable` which frame was known to be on the medium when it was written, and that decides:
//!
//! - A good frame after the bad one says that the bad frame was on the medium: it was damaged there. This is corruption.
//! - No good frame says so: the bad frame and everything after it were never synced. This is a torn tail, which is cut
//!   off.

use std::io;

use super::record::{
    self, ALIGNMENT, Checks, FILE_HEADER, FRAME_HEADER, FileHeader, FrameHeader, HeaderError, MAX_NUMBER,
    MAX_PAYLOAD, PayloadError, Record, WorkspaceId,
};
use super::transition::Generation;

/// The most bytes of a file that are in memory at once.
pub const WINDOW: usize = 256 * 1024;
/// The size of the largest torn tail in bytes. One stage appends far less between two syncs, so that more bytes than
/// this after a bad frame were not left by a crash.
pub const MAX_TORN: u64 = 8 * 1024 * 1024;

const LARGEST_FRAME: usize = FRAME_HEADER + MAX_PAYLOAD;

/// A source of bytes that is read at offsets.
pub trait JournalBytes {
    /// Fills as much of `buffer` as there is at `offset`; less only at the end.
    ///
    /// # Errors
    /// The errors of the medium.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

impl JournalBytes for &[u8] {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let size = rest.len().min(buffer.len());
        buffer[..size].copy_from_slice(&rest[..size]);
        Ok(size)
    }
}

/// A record and where it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located<'a> {
    /// The offset of its frame in the file, in bytes.
    pub offset: u64,
    /// The sequence number of its frame.
    pub sequence: u64,
    /// The generation of the operation that wrote it.
    pub generation: Generation,
    /// The record.
    pub record: Record<'a>,
}

/// What follows the last good record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Clean,
    /// So many bytes that were never synced.
    Torn(u64),
}

/// The result of reading a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// Its header.
    pub header: FileHeader,
    /// The length up to which it is good, in bytes.
    pub valid: u64,
    /// The number of records.
    pub records: u64,
    /// The sequence number that the next record takes.
    pub next_sequence: u64,
    /// What follows.
    pub tail: Tail,
}

/// A journal that cannot be used, or whose records the visitor refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ReadError<E> {
    #[error("reading it at byte {offset} failed")]
    Io {
        offset: u64,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("it is corrupt: its first record is damaged or missing")]
    NoCheckpoint,
    #[error(
        "it is corrupt at byte {offset}: record {sequence} is damaged, and record {witness} was written after it"
    )]
    Corrupt { offset: u64, sequence: u64, witness: u64 },
    #[error("it is corrupt at byte {offset}: record {found} stands where record {expected} should be")]
    OutOfPlace { offset: u64, expected: u64, found: u64 },
    #[error(
        "it is corrupt at byte {offset}: sequence number {sequence} or generation {generation} is too large"
    )]
    NumberTooLarge { offset: u64, sequence: u64, generation: Generation },
    #[error("it is corrupt at byte {offset}: at least {size} bytes follow that are no records")]
    TailTooLong { offset: u64, size: u64 },
    #[error("record {sequence} at byte {offset} is not one that this nixbox knows")]
    Unknown {
        offset: u64,
        sequence: u64,
        #[source]
        source: PayloadError,
    },
    #[error("record {sequence} at byte {offset} cannot follow what comes before it")]
    Refused {
        offset: u64,
        sequence: u64,
        #[source]
        source: E,
    },
}

/// Reads a journal from its beginning and calls `visit` for each record. Records in a torn tail are not visited.
///
/// The function is generic, and so compiled once for each visitor. What runs for each record is marked
/// `#[inline(always)]` and compiled into it: out of line, records and errors are passed through memory, and opening a
/// journal takes half as long again.
///
/// # Errors
/// If it is not a journal of `workspace`, if a record that was on the medium is damaged, or if `visit` refuses one.
pub fn scan<S: JournalBytes, E>(
    source: &mut S,
    workspace: Option<WorkspaceId>,
    mut visit: impl FnMut(Located<'_>) -> Result<(), E>,
) -> Result<Scan, ReadError<E>> {
    let mut window = Window { source, bytes: vec![0; WINDOW], filled: 0, start: 0, ended: false };
    let header = FileHeader::decode(window.at(0, FILE_HEADER)?, workspace)?;
    let checks = Checks::new(header.salt);
    let mut scan = Scan {
        header,
        valid: FILE_HEADER as u64,
        records: 0,
        next_sequence: header.first_sequence,
        tail: Tail::Clean,
    };
    loop {
        let (offset, expected) = (scan.valid, scan.next_sequence);
        let bytes = window.at(offset, LARGEST_FRAME)?;
        let good = good_frame(&checks, bytes);
        if scan.records == 0 && good.is_none() {
            return Err(ReadError::NoCheckpoint);
        }
        if bytes.is_empty() {
            return Ok(scan);
        }
        let Some((frame, payload)) = good else {
            scan.tail = Tail::Torn(torn_tail(&mut window, &checks, offset, expected)?);
            return Ok(scan);
        };
        if frame.sequence != expected || frame.durable >= expected {
            return Err(ReadError::OutOfPlace { offset, expected, found: frame.sequence });
        }
        let generation = frame.generation;
        if expected > MAX_NUMBER || generation.0 > MAX_NUMBER {
            return Err(ReadError::NumberTooLarge { offset, sequence: expected, generation });
        }
        let record = record::decode_record(payload).map_err(|source| ReadError::Unknown {
            offset,
            sequence: expected,
            source,
        })?;
        visit(Located { offset, sequence: expected, generation, record })
            .map_err(|source| ReadError::Refused { offset, sequence: expected, source })?;
        scan.valid += frame.frame_size() as u64;
        scan.records += 1;
        scan.next_sequence = expected + 1;
    }
}

#[inline(always)]
fn good_frame<'b>(checks: &Checks, bytes: &'b [u8]) -> Option<(FrameHeader, &'b [u8])> {
    let frame = FrameHeader::decode(bytes)?;
    frame.matches(checks, bytes).then(|| (frame, &bytes[FRAME_HEADER..FRAME_HEADER + frame.length as usize]))
}

/// The size of the torn tail that begins at `offset`. A frame after it that says otherwise makes it an error.
fn torn_tail<S: JournalBytes, E>(
    window: &mut Window<'_, S>,
    checks: &Checks,
    offset: u64,
    expected: u64,
) -> Result<u64, ReadError<E>> {
    let mut at = offset + ALIGNMENT as u64;
    loop {
        let bytes = window.at(at, LARGEST_FRAME)?;
        if bytes.is_empty() {
            return Ok(window.end() - offset);
        }
        if at - offset > MAX_TORN {
            return Err(ReadError::TailTooLong { offset, size: window.end() - offset });
        }
        // The header's numbers are compared first, because that is cheaper than the check.
        let witness = FrameHeader::decode(bytes)
            .filter(|frame| (expected..frame.sequence).contains(&frame.durable))
            .filter(|frame| frame.matches(checks, bytes));
        if let Some(frame) = witness {
            return Err(ReadError::Corrupt { offset, sequence: expected, witness: frame.sequence });
        }
        at += ALIGNMENT as u64;
    }
}

/// A window on a [`JournalBytes`] that only moves forward.
struct Window<'s, S> {
    source: &'s mut S,
    /// [`WINDOW`] bytes. The first `filled` of them are the source's bytes from `start` on.
    bytes: Vec<u8>,
    filled: usize,
    start: u64,
    ended: bool,
}

impl<S: JournalBytes> Window<'_, S> {
    /// At least `size` bytes at `offset`, which never decreases; fewer only at the end of the file.
    fn at<E>(&mut self, offset: u64, size: usize) -> Result<&[u8], ReadError<E>> {
        let mut from = (offset - self.start) as usize;
        if from + size > self.filled && !self.ended {
            self.refill(offset).map_err(|source| ReadError::Io { offset, source })?;
            from = (offset - self.start) as usize;
        }
        Ok(self.bytes[..self.filled].get(from..).unwrap_or_default())
    }

    #[cold]
    fn refill(&mut self, offset: u64) -> io::Result<()> {
        let passed = (offset - self.start).min(self.filled as u64) as usize;
        self.bytes.copy_within(passed..self.filled, 0);
        self.start += passed as u64;
        self.filled -= passed;
        while self.filled < WINDOW {
            match self.source.read_at(self.end(), &mut self.bytes[self.filled..]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(size) => self.filled += size,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn end(&self) -> u64 {
        self.start + self.filled as u64
    }
}
