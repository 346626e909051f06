//! Record types and their bytes, as `journal-format.md` specifies them. The only module that uses bincode.
//!
//! A journal is a [`FileHeader`] and frames; a frame is a [`FrameHeader`], a payload that is one [`Record`], and zeros up
//! to the next multiple of 8. This module turns values into bytes and bytes into values; it reads no file.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::de::{DeserializeOwned, DeserializeSeed};
use serde::{Deserialize, Deserializer, Serialize};

use super::ids::Generation;
pub use super::ids::WorkspaceId;

/// The first bytes of every journal.
pub const MAGIC: [u8; 8] = *b"nixbox\x00\x0a";
/// The version that this program writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// The size of the file header in bytes.
pub const FILE_HEADER: usize = 64;
/// The size of a frame's header in bytes.
pub const FRAME_HEADER: usize = 32;
/// The largest payload of a frame in bytes. It is checked before a payload is written, and before one is decoded.
pub const MAX_PAYLOAD: usize = 65_536;
/// The largest byte string in a record. What [`encode_payload`] returns is never larger, so that it fits into any record:
/// the fields of an end take 24 bytes, and those of the others less.
pub const MAX_VALUE: usize = MAX_PAYLOAD - 24;
/// The largest sequence number and generation. Both can be incremented without a check for overflow.
pub const MAX_NUMBER: u64 = i64::MAX as u64;
/// Frames begin at multiples of this.
pub const ALIGNMENT: usize = 8;

const CONFIGURATION: Configuration<LittleEndian, Fixint, Limit<MAX_PAYLOAD>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<MAX_PAYLOAD>();

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ended {
    /// All of it was done.
    Done,
    /// All of it was undone.
    RolledBack,
    /// It failed after its commit point: its VM is gone or cannot be used, and what is left is to be cleared away.
    Lost,
}

/// One record. The order of the variants and of their fields is part of the format.
///
/// Byte strings are written and read by the operations and their transitions; times are in milliseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record<'a> {
    /// The first record of a file: the state that the files before it lead to.
    Checkpoint {
        /// The state of the workspace.
        final_state: &'a [u8],
        /// When.
        at_ms: u64,
    },
    /// An operation begins. Its generation is the frame's.
    Begin {
        /// Which one.
        operation: u16,
        /// Its parameters.
        parameters: &'a [u8],
        /// When.
        at_ms: u64,
    },
    /// A transition is about to act.
    Intent {
        /// Its index in the operation's table.
        index: u16,
        /// Its name on disk.
        transition: u16,
        /// What it is about to do.
        payload: &'a [u8],
    },
    /// A transition has acted.
    Outcome {
        /// Its index in the operation's table.
        index: u16,
        /// What it did.
        payload: &'a [u8],
        /// How long it took; 0 if a probe found it done.
        micros: u64,
    },
    /// A transition is about to be undone.
    UndoBegun {
        /// Its index in the operation's table.
        index: u16,
    },
    /// A transition has been undone.
    Undone {
        /// Its index in the operation's table.
        index: u16,
        /// How long it took.
        micros: u64,
    },
    /// The operation has ended.
    End {
        /// How it ended.
        ended: Ended,
        /// The state of the workspace now.
        final_state: &'a [u8],
        /// When.
        at_ms: u64,
    },
}

/// A payload that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PayloadError {
    #[error("{size} bytes are too many for a record: at most {most} fit")]
    TooLarge { size: usize, most: usize },
    #[error("the payload does not decode")]
    Undecodable(#[source] Box<bincode::error::DecodeError>),
    #[error("{excess} bytes follow the payload's value")]
    Excess { excess: usize },
    #[error("the payload does not encode")]
    Unencodable(#[source] Box<bincode::error::EncodeError>),
}

/// The bytes of an intent, an outcome, an operation's parameters or a final state.
///
/// # Errors
/// If they are more than [`MAX_VALUE`].
pub fn encode_payload<T: Serialize>(value: &T) -> Result<Vec<u8>, PayloadError> {
    let bytes = bincode::serde::encode_to_vec(value, CONFIGURATION)
        .map_err(|error| PayloadError::Unencodable(Box::new(error)))?;
    if bytes.len() > MAX_VALUE {
        return Err(PayloadError::TooLarge { size: bytes.len(), most: MAX_VALUE });
    }
    Ok(bytes)
}

/// The value whose bytes [`encode_payload`] made.
///
/// # Errors
/// If the bytes are not those of one such value.
pub fn decode_payload<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, PayloadError> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, CONFIGURATION)
        .map_err(|error| PayloadError::Undecodable(Box::new(error)))?;
    if used != bytes.len() {
        return Err(PayloadError::Excess { excess: bytes.len() - used });
    }
    Ok(value)
}

/// The first 64 bytes of a journal. Their layout is the same in every version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// The version of everything after the header.
    pub version: u32,
    /// The workspace that the journal belongs to.
    pub workspace: WorkspaceId,
    /// Part of the check of every frame, so that a frame copied from another file fails its check.
    pub salt: u64,
    /// The sequence number of the first frame.
    pub first_sequence: u64,
}

/// Bytes that do not begin a journal of this workspace that this program can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum HeaderError {
    #[error("it does not begin like a nixbox journal")]
    NotAJournal,
    #[error("its header is corrupt: CRC-32C is {found:#010x}, should be {expected:#010x}")]
    Corrupt { found: u32, expected: u32 },
    #[error("it is of format version {version}, and this nixbox reads version {VERSION}")]
    Version { version: u32 },
    #[error("it belongs to workspace {found}, not to {expected}")]
    OtherWorkspace { found: WorkspaceId, expected: WorkspaceId },
}

impl FileHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FILE_HEADER] {
        let mut bytes = [0; FILE_HEADER];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.workspace.0);
        bytes[32..40].copy_from_slice(&self.salt.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.first_sequence.to_le_bytes());
        let check = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// The header in these bytes.
    ///
    /// # Errors
    /// If the bytes are not the header of a journal of `workspace` in a version that this program reads. A reader that
    /// takes the journal of any workspace passes `None`.
    pub fn decode(bytes: &[u8], workspace: Option<WorkspaceId>) -> Result<Self, HeaderError> {
        let bytes: &[u8; FILE_HEADER] =
            bytes.first_chunk().filter(|bytes| bytes[..8] == MAGIC).ok_or(HeaderError::NotAJournal)?;
        let (found, expected) = (crc32c::crc32c(&bytes[..60]), u32_at(bytes, 60));
        if found != expected {
            return Err(HeaderError::Corrupt { found, expected });
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(HeaderError::Version { version });
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[16..32]);
        let header = Self {
            version,
            workspace: WorkspaceId(id),
            salt: u64_at(bytes, 32),
            first_sequence: u64_at(bytes, 40),
        };
        match workspace {
            Some(expected) if expected != header.workspace => {
                Err(HeaderError::OtherWorkspace { found: header.workspace, expected })
            }
            _ => Ok(header),
        }
    }
}

/// The header of a frame, which is followed by the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The payload's size in bytes: 1 to [`MAX_PAYLOAD`].
    pub length: u32,
    /// CRC-32C over the file's salt, this header without the check itself, and the payload.
    pub check: u32,
    /// One more than that of the frame before.
    pub sequence: u64,
    /// The operation that wrote it.
    pub generation: Generation,
    /// The sequence number of the last frame that was known to be on the medium when this frame was written; 0 if none
    /// was.
    pub durable: u64,
}

impl FrameHeader {
    /// The header in these bytes, if its length is one that a payload can have.
    #[must_use]
    #[inline(always)]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; FRAME_HEADER] = bytes.first_chunk()?;
        let header = Self {
            length: u32_at(bytes, 0),
            check: u32_at(bytes, 4),
            sequence: u64_at(bytes, 8),
            generation: Generation(u64_at(bytes, 16)),
            durable: u64_at(bytes, 24),
        };
        (1..=MAX_PAYLOAD).contains(&(header.length as usize)).then_some(header)
    }

    /// The frame's size in bytes, header and padding included.
    #[must_use]
    pub fn frame_size(&self) -> usize {
        frame_size(self.length as usize)
    }

    /// Whether the check is that of these bytes (header, payload, padding).
    #[must_use]
    #[inline(always)]
    pub fn matches(&self, checks: &Checks, frame: &[u8]) -> bool {
        let rest = frame.get(CHECKED_FROM..self.frame_size());
        rest.is_some_and(|rest| crc32c::crc32c_append(checks.begun(self.length), rest) == self.check)
    }
}

fn frame_size(payload: usize) -> usize {
    (FRAME_HEADER + payload).next_multiple_of(ALIGNMENT)
}

/// A check covers the salt and the length, and then the frame from this offset on: behind the length and the check.
const CHECKED_FROM: usize = 8;

/// Computes the checks of one file's frames. It keeps the CRC of salt and length for every length of a short frame,
/// because for short frames the call of the CRC takes longer than its bytes.
#[derive(Debug, Clone)]
pub struct Checks {
    salt: u64,
    short: [u32; 256],
}

impl Checks {
    /// For a file with this salt.
    #[must_use]
    pub fn new(salt: u64) -> Self {
        let mut short = [0; 256];
        for (length, check) in (0..).zip(&mut short) {
            *check = begun(salt, length);
        }
        Self { salt, short }
    }

    fn begun(&self, length: u32) -> u32 {
        self.short.get(length as usize).copied().unwrap_or_else(|| begun(self.salt, length))
    }
}

/// The CRC of salt and length, which every check begins with.
#[cold]
fn begun(salt: u64, length: u32) -> u32 {
    let mut first = [0; 12];
    first[..8].copy_from_slice(&salt.to_le_bytes());
    first[8..].copy_from_slice(&length.to_le_bytes());
    crc32c::crc32c(&first)
}

/// Appends the frame of a record to `bytes`.
///
/// # Errors
/// If the record takes more than [`MAX_PAYLOAD`] bytes. `bytes` is then unchanged.
pub fn encode_frame(
    bytes: &mut Vec<u8>,
    salt: u64,
    sequence: u64,
    generation: Generation,
    durable: u64,
    record: &Record<'_>,
) -> Result<(), PayloadError> {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; FRAME_HEADER]);
    let encoded = bincode::serde::encode_into_std_write(record, bytes, CONFIGURATION);
    let size = bytes.len() - start - FRAME_HEADER;
    let fault = match encoded {
        Err(error) => Some(PayloadError::Unencodable(Box::new(error))),
        Ok(_) if size > MAX_PAYLOAD => Some(PayloadError::TooLarge { size, most: MAX_PAYLOAD }),
        Ok(_) => None,
    };
    if let Some(fault) = fault {
        bytes.truncate(start);
        return Err(fault);
    }
    bytes.resize(start + frame_size(size), 0);
    let frame = &mut bytes[start..];
    frame[0..4].copy_from_slice(&(size as u32).to_le_bytes());
    frame[8..16].copy_from_slice(&sequence.to_le_bytes());
    frame[16..24].copy_from_slice(&generation.0.to_le_bytes());
    frame[24..32].copy_from_slice(&durable.to_le_bytes());
    let check = crc32c::crc32c_append(begun(salt, size as u32), &frame[CHECKED_FROM..]);
    frame[4..8].copy_from_slice(&check.to_le_bytes());
    Ok(())
}

/// The record in a payload. Byte strings are borrowed, not copied.
///
/// # Errors
/// If the payload is not exactly one record.
#[inline(always)]
pub fn decode_record(payload: &[u8]) -> Result<Record<'_>, PayloadError> {
    let mut record = Record::UndoBegun { index: 0 };
    let ((), used) = bincode::serde::seed_decode_from_slice(RecordSlot(&mut record), payload, CONFIGURATION)
        .map_err(|error| PayloadError::Undecodable(Box::new(error)))?;
    if used != payload.len() {
        return Err(PayloadError::Excess { excess: payload.len() - used });
    }
    Ok(record)
}

/// The place that a record is decoded into. Returned by value, a record would be moved out of two `Result`s of bincode by
/// loads that are wider than the stores before them, and the processor would have to wait for the stores: that was a
/// seventh of the time that opening a journal takes.
struct RecordSlot<'p, 'a>(&'p mut Record<'a>);

impl<'a> DeserializeSeed<'a> for RecordSlot<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        Record::deserialize_in_place(deserializer, self.0)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}
