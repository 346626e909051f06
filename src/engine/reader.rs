//! Bytes → records, the valid length, and a verdict on the tail. Total: any bytes at all give an answer, in memory
//! bounded by [`WINDOW`], without a panic.
//!
//! # Torn or corrupt
//!
//! Outcomes are not synced one by one, so a power cut may lose any part of what was appended since the last sync and
//! keep any other part. Behind a frame that is bad, good ones may therefore stand although nothing was damaged. Each
//! frame says in `durable` which frame was known to be on the medium when it was written; that decides:
//!
//! - a good frame behind the bad one says that the bad one was on the medium: it was damaged there. Corruption.
//! - none says so: the bad frame and all behind it were never synced. A torn tail, to be cut off.

use std::io;

use super::record::{
    self, ALIGNMENT, Checks, FILE_HEADER, FRAME_HEADER, FileHeader, FrameHeader, HeaderError, MAX_NUMBER,
    MAX_PAYLOAD, PayloadError, Record, WorkspaceId,
};
use super::transition::Generation;

/// How much of a file is in memory at once, in bytes.
pub const WINDOW: usize = 256 * 1024;
/// What an unsynced tail can hold at most, in bytes: what one stage appends is far below it. More than this behind a
/// bad frame was not left by a crash.
pub const MAX_TORN: u64 = 8 * 1024 * 1024;

const LARGEST_FRAME: usize = FRAME_HEADER + MAX_PAYLOAD;

/// Something to read at offsets.
pub trait JournalBytes {
    /// Fills as much of `buffer` as there is at `offset`; less only at the end.
    ///
    /// # Errors
    /// Those of the medium.
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
    /// Of its frame, in bytes from the beginning of the file.
    pub offset: u64,
    /// Of its frame.
    pub sequence: u64,
    /// Of the operation that wrote it.
    pub generation: Generation,
    /// The record.
    pub record: Record<'a>,
}

/// What stands behind the last good record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Clean,
    /// This many bytes that never were a whole record on the medium.
    Torn(u64),
}

/// What a journal came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// Its header.
    pub header: FileHeader,
    /// Up to where it is good, in bytes.
    pub valid: u64,
    /// How many records it has.
    pub records: u64,
    /// The sequence number that the next record takes.
    pub next_sequence: u64,
    /// What comes behind.
    pub tail: Tail,
}

/// A journal that cannot be relied on, or whose records the visitor refused.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    /// The medium.
    #[error("reading it at byte {offset} failed")]
    Io {
        /// Where, in bytes from the beginning.
        offset: u64,
        /// What the medium says.
        #[source]
        source: io::Error,
    },
    /// It does not begin as it should.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The first record is damaged or missing. It was on the medium before the file had its name.
    #[error("it is corrupt: its first record is damaged or missing")]
    NoCheckpoint,
    /// A frame that was on the medium is damaged.
    #[error(
        "it is corrupt at byte {offset}: record {sequence} is damaged, and record {witness} was written after it"
    )]
    Corrupt {
        /// Where, in bytes from the beginning.
        offset: u64,
        /// The damaged record.
        sequence: u64,
        /// A good record behind it, which says that the damaged one was on the medium.
        witness: u64,
    },
    /// A good frame that does not belong where it stands.
    #[error("it is corrupt at byte {offset}: record {found} stands where record {expected} should be")]
    OutOfPlace {
        /// Where, in bytes from the beginning.
        offset: u64,
        /// The number that belongs there.
        expected: u64,
        /// The number that stands there.
        found: u64,
    },
    /// A good frame with a number that no journal gets to.
    #[error(
        "it is corrupt at byte {offset}: sequence number {sequence} or generation {generation} is too large"
    )]
    NumberTooLarge {
        /// Where, in bytes from the beginning.
        offset: u64,
        /// The frame's number.
        sequence: u64,
        /// The frame's generation.
        generation: Generation,
    },
    /// More behind a bad frame than a crash can leave.
    #[error("it is corrupt at byte {offset}: at least {size} bytes follow that are no records")]
    TailTooLong {
        /// Where, in bytes from the beginning.
        offset: u64,
        /// How many bytes follow, as far as it was looked.
        size: u64,
    },
    /// A good frame whose payload is no record.
    #[error("record {sequence} at byte {offset} is not one that this nixbox knows")]
    Unknown {
        /// Where, in bytes from the beginning.
        offset: u64,
        /// Its number.
        sequence: u64,
        /// What the decoder says.
        #[source]
        source: PayloadError,
    },
    /// The visitor refused a record.
    #[error("record {sequence} at byte {offset} cannot follow what comes before it")]
    Refused {
        /// Where, in bytes from the beginning.
        offset: u64,
        /// Its number.
        sequence: u64,
        /// What the visitor says.
        #[source]
        source: E,
    },
}

/// Reads a journal from its beginning and shows each record to `visit`. Of a torn tail nothing is shown.
///
/// It is compiled where it is used, once for each visitor. What it does for each record is marked `#[inline(always)]`, so
/// as to be compiled with it: out of line, records and errors go through memory, which takes half as long again.
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

/// The size of the torn tail that begins at `offset`, unless a frame behind it says that it is none.
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
        // What it promises is looked at first: that saves taking the check over what is no witness.
        let witness = FrameHeader::decode(bytes)
            .filter(|frame| (expected..frame.sequence).contains(&frame.durable))
            .filter(|frame| frame.matches(checks, bytes));
        if let Some(frame) = witness {
            return Err(ReadError::Corrupt { offset, sequence: expected, witness: frame.sequence });
        }
        at += ALIGNMENT as u64;
    }
}

/// A view of a [`JournalBytes`] that moves forward.
struct Window<'s, S> {
    source: &'s mut S,
    /// [`WINDOW`] bytes, of which the first `filled` are those of the source from `start` on.
    bytes: Vec<u8>,
    filled: usize,
    start: u64,
    ended: bool,
}

impl<S: JournalBytes> Window<'_, S> {
    /// At least `size` bytes at `offset`, which never goes back; fewer only at the end of the file.
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
