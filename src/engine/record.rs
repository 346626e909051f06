//! Record types and their bytes. Sole owner of what `journal-format.md` says, and of bincode.
//!
//! A journal is a [`FileHeader`] and frames; a frame is a [`FrameHeader`], a payload that is one [`Record`], and zeros up
//! to the next multiple of 8. This module turns values into bytes and bytes into values; it reads no file.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::de::{DeserializeOwned, DeserializeSeed};
use serde::{Deserialize, Deserializer, Serialize};

use super::transition::Generation;

/// The first bytes of every journal.
pub const MAGIC: [u8; 8] = *b"nixbox\x00\x0a";
/// The version that this program writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// The bytes before the first frame.
pub const FILE_HEADER: usize = 64;
/// The bytes before a frame's payload.
pub const FRAME_HEADER: usize = 32;
/// The largest payload of a frame in bytes; checked before it is written, and before it is decoded.
pub const MAX_PAYLOAD: usize = 65_536;
/// The most that a record holds of bytes that are not its own, so that what [`encode_payload`] gives fits into any: an
/// end takes 24 bytes for itself, and the others less.
pub const MAX_VALUE: usize = MAX_PAYLOAD - 24;
/// No sequence number and no generation is larger, so that both can be counted on without care.
pub const MAX_NUMBER: u64 = i64::MAX as u64;
/// Frames begin at multiples of this.
pub const ALIGNMENT: usize = 8;

const CONFIGURATION: Configuration<LittleEndian, Fixint, Limit<MAX_PAYLOAD>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<MAX_PAYLOAD>();

/// Names a workspace: 16 random bytes, made by `nixbox init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkspaceId(pub [u8; 16]);

impl std::fmt::Display for WorkspaceId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ended {
    /// All of it was done.
    Done,
    /// All of it was taken back.
    RolledBack,
    /// It passed its commit point, and then its VM was gone or of no use: what is left is to be cleared away.
    Lost,
}

/// One record. The order of the variants and of their fields is part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record<'a> {
    /// First record of a file: what the files before it came to.
    Checkpoint {
        /// How the workspace stands; written and read by the operations.
        final_state: &'a [u8],
        /// Milliseconds since 1970, UTC.
        at_ms: u64,
    },
    /// An operation begins. Its generation is the frame's.
    Begin {
        /// Which one.
        operation: u16,
        /// What it was asked to do; written and read by the operations.
        parameters: &'a [u8],
        /// Milliseconds since 1970, UTC.
        at_ms: u64,
    },
    /// A transition is about to act.
    Intent {
        /// Its place in the operation's table.
        index: u16,
        /// Its name on disk.
        transition: u16,
        /// What it is about to do; written and read by the transition.
        payload: &'a [u8],
    },
    /// A transition has acted.
    Outcome {
        /// Its place in the operation's table.
        index: u16,
        /// What it did; written and read by the transition.
        payload: &'a [u8],
        /// How long it took, in microseconds; 0 if a probe found it done.
        micros: u64,
    },
    /// A transition is about to be taken back.
    UndoBegun {
        /// Its place in the operation's table.
        index: u16,
    },
    /// A transition has been taken back.
    Undone {
        /// Its place in the operation's table.
        index: u16,
        /// How long it took, in microseconds.
        micros: u64,
    },
    /// The operation has ended.
    End {
        /// How.
        ended: Ended,
        /// How the workspace stands now; written and read by the operations.
        final_state: &'a [u8],
        /// Milliseconds since 1970, UTC.
        at_ms: u64,
    },
}

/// A payload that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// More than [`MAX_PAYLOAD`], or than [`MAX_VALUE`] for a part of it.
    #[error("{size} bytes are too many for a record: at most {most} fit")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// How many there may be.
        most: usize,
    },
    /// Not a value of that type.
    #[error("the payload does not decode")]
    Undecodable(#[source] Box<bincode::error::DecodeError>),
    /// A value of that type, and bytes after it.
    #[error("{excess} bytes follow the payload's value")]
    Excess {
        /// How many.
        excess: usize,
    },
    /// A value that the encoding has no bytes for.
    #[error("the payload does not encode")]
    Unencodable(#[source] Box<bincode::error::EncodeError>),
}

/// The bytes of an intent, an outcome, an operation's parameters or a final_state.
///
/// # Errors
/// If it takes more than [`MAX_VALUE`] bytes.
pub fn encode_payload<T: Serialize>(value: &T) -> Result<Vec<u8>, PayloadError> {
    let bytes = bincode::serde::encode_to_vec(value, CONFIGURATION)
        .map_err(|error| PayloadError::Unencodable(Box::new(error)))?;
    if bytes.len() > MAX_VALUE {
        return Err(PayloadError::TooLarge { size: bytes.len(), most: MAX_VALUE });
    }
    Ok(bytes)
}

/// The value of bytes that [`encode_payload`] made.
///
/// # Errors
/// If they are not those of such a value and nothing else.
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
    /// Version of all that follows the header.
    pub version: u32,
    /// Whose journal it is.
    pub workspace: WorkspaceId,
    /// Mixed into the check of every frame, so that a frame of another file is none of this one's.
    pub salt: u64,
    /// The sequence number of the first frame.
    pub first_sequence: u64,
}

/// Bytes that do not begin a journal of this workspace that this program can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Too short, or without the magic.
    #[error("it does not begin like a nixbox journal")]
    NotAJournal,
    /// The check over the header fails.
    #[error("its header is corrupt: CRC-32C is {found:#010x}, should be {expected:#010x}")]
    Corrupt {
        /// Over the bytes that are there.
        found: u32,
        /// As written.
        expected: u32,
    },
    /// Written by a newer nixbox.
    #[error("it is of format version {version}, and this nixbox reads version {VERSION}")]
    Version {
        /// The file's.
        version: u32,
    },
    /// Of another workspace.
    #[error("it belongs to workspace {found}, not to {expected}")]
    OtherWorkspace {
        /// The file's.
        found: WorkspaceId,
        /// The one at hand.
        expected: WorkspaceId,
    },
}

impl FileHeader {
    /// Its bytes.
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
    /// If they are not that of a journal of `workspace` in a version that this program reads. `workspace` may be
    /// `None` for a reader that takes any.
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

/// What stands before a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The payload's size in bytes: 1 to [`MAX_PAYLOAD`].
    pub length: u32,
    /// CRC-32C over the file's salt, this header but for the check itself, and the payload.
    pub check: u32,
    /// One more than the frame before.
    pub sequence: u64,
    /// The operation that wrote it.
    pub generation: Generation,
    /// The last frame that was known to be on the medium when this one was written; 0 if none was.
    pub durable: u64,
}

impl FrameHeader {
    /// The header in these bytes, if its length can be one.
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

    /// Whether this is the check of a frame of these bytes (header, payload, padding) in the file of these checks.
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

/// The length and the check itself stand before what a check goes on with.
const CHECKED_FROM: usize = 8;

/// The checks of one file's frames. What they begin with, the salt and the length, it knows for short frames beforehand:
/// for those a CRC costs more by the call than by the byte.
#[derive(Debug, Clone)]
pub struct Checks {
    salt: u64,
    short: [u32; 256],
}

impl Checks {
    /// Those of a file of this salt.
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

/// What a check begins with.
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
/// If the record takes more than [`MAX_PAYLOAD`] bytes; `bytes` is then as it was.
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
/// If the payload is not a record and nothing else.
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

/// Where a record is decoded to. By value it would come out of two `Result`s of bincode's, by loads wider than the stores
/// that have just made it, for which a processor has to wait: a seventh of the time that opening a journal takes.
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
