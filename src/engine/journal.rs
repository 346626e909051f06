//! The journal: it appends records, syncs and rotates, on a [`Storage`] of a few methods.
//!
//! `journal-format.md` says what is written, when, and what a crash leaves of it. After any error of the storage the
//! journal is poisoned: it accepts no more records, because what the file holds is not known until it is opened again.

use std::io;

use super::history::{History, IllegalHistory, OpenOperation};
use super::reader::{self, JournalBytes, ReadError, Scan, Tail};
use super::record::{Ended, FileHeader, PayloadError, Record, VERSION, WorkspaceId, encode_frame};
use super::transition::{Generation, OperationId, TransitionId};

/// A journal of at least this size in bytes is rotated before the next operation begins.
pub const ROTATE_AT: u64 = 1024 * 1024;

/// The space that is reserved before an operation begins, in bytes, so that a full disk does not stop it half-way.
pub const RESERVE: u64 = 256 * 1024;

/// The files of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// The journal.
    Current,
    /// The file that is about to take its place. It is ignored and removed when it is found.
    Next,
    /// The journal before the last rotation. It is kept for people, and nixbox never reads it.
    Previous,
}

impl Name {
    /// The file's name in the journal's directory.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Current => "journal",
            Self::Next => "journal.next",
            Self::Previous => "journal.previous",
        }
    }
}

/// A directory that holds a journal's files. The engine does all of its I/O through it.
pub trait Storage: Send {
    /// The size of a file in bytes; `None` if there is none.
    ///
    /// # Errors
    /// The errors of the medium, for this method and all others.
    fn size(&mut self, name: Name) -> io::Result<Option<u64>>;
    /// Fills as much of `buffer` as there is at `offset`.
    fn read_at(&mut self, name: Name, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Appends all of `bytes` to a file, which is created if there is none.
    fn append(&mut self, name: Name, bytes: &[u8]) -> io::Result<()>;
    /// Makes sure that this many bytes can be appended even if the disk is full by then. The file keeps its size.
    fn reserve(&mut self, name: Name, bytes: u64) -> io::Result<()>;
    /// Returns when everything that was appended, and the file's size, is on the medium.
    fn sync(&mut self, name: Name) -> io::Result<()>;
    /// Cuts the file to `size` bytes.
    fn truncate(&mut self, name: Name, size: u64) -> io::Result<()>;
    /// Removes a file, if it is there.
    fn remove(&mut self, name: Name) -> io::Result<()>;
    /// Gives a file a second name, which must be free.
    fn link(&mut self, from: Name, to: Name) -> io::Result<()>;
    /// Renames a file over another, atomically.
    fn rename(&mut self, from: Name, to: Name) -> io::Result<()>;
    /// Returns when the names of all files are on the medium as they are now.
    fn sync_names(&mut self) -> io::Result<()>;
    /// The path of a file, for messages.
    fn path(&self, name: Name) -> String;
    /// 64 random bits.
    fn salt(&mut self) -> io::Result<u64>;
}

/// A journal that cannot be opened or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum JournalError {
    #[error("cannot {what} {path}")]
    Io {
        path: String,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the journal {path} cannot be used; nothing was changed")]
    Unusable {
        path: String,
        #[source]
        source: Box<ReadError<IllegalHistory>>,
    },
    #[error("the journal {path} takes nothing more after an earlier error; the next run reads it anew")]
    Poisoned { path: String },
    #[error("a record was not written to the journal {path}")]
    Payload {
        path: String,
        #[source]
        source: PayloadError,
    },
    #[error("a record was not written to the journal {path}")]
    Illegal {
        path: String,
        #[source]
        source: IllegalHistory,
    },
}

/// A journal open for writing. Its owner holds the workspace's lock.
pub struct Journal<S> {
    storage: S,
    header: FileHeader,
    history: History,
    size: u64,
    next_sequence: u64,
    /// The last frame that is known to be on the medium.
    durable: u64,
    poisoned: bool,
    buffer: Vec<u8>,
}

struct CurrentFile<'s, S>(&'s mut S);

impl<S: Storage> JournalBytes for CurrentFile<'_, S> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(Name::Current, offset, buffer)
    }
}

/// Reads a journal without changing it. `visit` is called for every record that counts: none of a torn tail.
///
/// # Errors
/// If the storage fails, or the file cannot be used. If there is no file, it returns `Ok(None)`.
pub fn inspect<S: Storage>(
    storage: &mut S,
    workspace: Option<WorkspaceId>,
    mut visit: impl FnMut(reader::Located<'_>),
) -> Result<Option<(Scan, History)>, JournalError> {
    let path = storage.path(Name::Current);
    let io = |source| JournalError::Io { path: path.clone(), what: "read", source };
    if storage.size(Name::Current).map_err(io)?.is_none() {
        return Ok(None);
    }
    let mut history = History::default();
    let scan = reader::scan(&mut CurrentFile(storage), workspace, |located| {
        history.push(located.generation, &located.record)?;
        visit(located);
        Ok(())
    })
    .map_err(|source| JournalError::Unusable { path, source: Box::new(source) })?;
    Ok(Some((scan, history)))
}

impl<S: Storage> Journal<S> {
    /// Opens the journal, or creates one whose first operation will have a generation above `floor`. A torn tail is cut
    /// off. What is left is on the medium when this returns, because nothing must depend on records that a power cut
    /// could take.
    ///
    /// # Errors
    /// If the storage fails, or the file cannot be used. The file is then as it was.
    pub fn open(
        mut storage: S,
        workspace: WorkspaceId,
        floor: Generation,
        at_ms: u64,
    ) -> Result<Self, JournalError> {
        let Some((scan, history)) = inspect(&mut storage, Some(workspace), |_| {})? else {
            let salt = storage.salt().map_err(|source| JournalError::Io {
                path: storage.path(Name::Current),
                what: "choose a salt for",
                source,
            })?;
            let header = FileHeader { version: VERSION, workspace, salt, first_sequence: 1 };
            let history = History::above(floor);
            let mut journal = Self::over(storage, header, history, 0, 1);
            journal.replace(at_ms)?;
            return Ok(journal);
        };
        let mut journal = Self::over(storage, scan.header, history, scan.valid, scan.next_sequence);
        journal.guard("remove", Name::Next, |storage| storage.remove(Name::Next))?;
        if let Tail::Torn(_) = scan.tail {
            journal
                .guard("truncate", Name::Current, |storage| storage.truncate(Name::Current, scan.valid))?;
        }
        journal.sync()?;
        // The file may have been renamed into place shortly before a crash, and its name may not be on the medium yet.
        journal.guard("sync the directory of", Name::Current, Storage::sync_names)?;
        Ok(journal)
    }

    fn over(storage: S, header: FileHeader, history: History, size: u64, next_sequence: u64) -> Self {
        let durable = next_sequence - 1;
        Self { storage, header, history, size, next_sequence, durable, poisoned: false, buffer: Vec::new() }
    }

    /// What the records so far lead to.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The operation that has not ended.
    #[must_use]
    pub fn open_operation(&self) -> Option<&OpenOperation> {
        self.history.open()
    }

    /// Begins an operation of a new generation. If the file has grown, it is rotated first. The record is not synced here:
    /// the sync of the first stage's intents covers it, and nothing acts before that.
    ///
    /// # Errors
    /// If the storage fails, the journal is poisoned, or an operation is open. Nothing is written then.
    pub fn begin(
        &mut self,
        operation: OperationId,
        parameters: &[u8],
        at_ms: u64,
    ) -> Result<Generation, JournalError> {
        self.usable()?;
        // A rotation would forget the open operation.
        if let Some(open) = self.history.open() {
            return Err(JournalError::Illegal {
                path: self.storage.path(Name::Current),
                source: IllegalHistory::StillOpen { open: open.generation },
            });
        }
        if self.size >= ROTATE_AT {
            self.rotate(at_ms)?;
        }
        self.guard("reserve room for", Name::Current, |storage| storage.reserve(Name::Current, RESERVE))?;
        let generation = Generation(self.history.generation.0 + 1);
        self.append(generation, &[Record::Begin { operation: operation.0, parameters, at_ms }])?;
        Ok(generation)
    }

    /// Writes the intents of a stage and syncs them. Only then may the stage act.
    ///
    /// # Errors
    /// If the storage fails or the journal is poisoned.
    pub fn intents(&mut self, intents: &[(u16, TransitionId, Vec<u8>)]) -> Result<(), JournalError> {
        let records: Vec<_> = intents
            .iter()
            .map(|(index, id, payload)| Record::Intent { index: *index, transition: id.0, payload })
            .collect();
        self.append(self.history.generation, &records)?;
        self.sync()
    }

    /// Writes an outcome. It is not synced: an outcome that is lost costs a probe.
    ///
    /// # Errors
    /// If the storage fails or the journal is poisoned.
    pub fn outcome(&mut self, index: u16, payload: &[u8], micros: u64) -> Result<(), JournalError> {
        self.append(self.history.generation, &[Record::Outcome { index, payload, micros }])
    }

    /// Writes that a transition is about to be undone. It is not synced, because undoing is idempotent.
    ///
    /// # Errors
    /// If the storage fails or the journal is poisoned.
    pub fn undo_begun(&mut self, index: u16) -> Result<(), JournalError> {
        self.append(self.history.generation, &[Record::UndoBegun { index }])
    }

    /// Writes that a transition has been undone. It is not synced.
    ///
    /// # Errors
    /// If the storage fails or the journal is poisoned.
    pub fn undone(&mut self, index: u16, micros: u64) -> Result<(), JournalError> {
        self.append(self.history.generation, &[Record::Undone { index, micros }])
    }

    /// Writes that the operation has ended, and syncs.
    ///
    /// # Errors
    /// If the storage fails or the journal is poisoned.
    pub fn end(&mut self, ended: Ended, final_state: &[u8], at_ms: u64) -> Result<(), JournalError> {
        self.append(self.history.generation, &[Record::End { ended, final_state, at_ms }])?;
        self.sync()
    }

    /// Returns when everything that was written is on the medium.
    ///
    /// # Errors
    /// If the storage fails or the journal is poisoned.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        self.guard("sync", Name::Current, |storage| storage.sync(Name::Current))?;
        self.durable = self.next_sequence - 1;
        Ok(())
    }

    fn append(&mut self, generation: Generation, records: &[Record<'_>]) -> Result<(), JournalError> {
        self.usable()?;
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        let written = self.append_from(&mut bytes, generation, records);
        self.buffer = bytes;
        written
    }

    fn append_from(
        &mut self,
        bytes: &mut Vec<u8>,
        generation: Generation,
        records: &[Record<'_>],
    ) -> Result<(), JournalError> {
        let mut sequence = self.next_sequence;
        for record in records {
            encode_frame(bytes, self.header.salt, sequence, generation, self.durable, record)
                .map_err(|source| JournalError::Payload { path: self.storage.path(Name::Current), source })?;
            sequence += 1;
        }
        for record in records {
            // The history is in memory alone: once it has refused a record, it may not match the file any more.
            self.history.push(generation, record).map_err(|source| {
                self.poisoned = true;
                JournalError::Illegal { path: self.storage.path(Name::Current), source }
            })?;
        }
        self.guard("write", Name::Current, |storage| storage.append(Name::Current, bytes))?;
        self.size += bytes.len() as u64;
        self.next_sequence = sequence;
        Ok(())
    }

    /// Replaces the journal by a file that holds a checkpoint alone. The file before is kept for people.
    fn rotate(&mut self, at_ms: u64) -> Result<(), JournalError> {
        self.guard("remove", Name::Previous, |storage| storage.remove(Name::Previous))?;
        self.guard("link", Name::Previous, |storage| storage.link(Name::Current, Name::Previous))?;
        let salt = self.guard("choose a salt for", Name::Next, Storage::salt)?;
        self.header = FileHeader { salt, first_sequence: self.next_sequence, ..self.header };
        self.replace(at_ms)
    }

    /// Writes `header` and a checkpoint to a new file, and renames it over the current one. If this is interrupted at any
    /// point, the current file is either the old one or the new one, complete.
    fn replace(&mut self, at_ms: u64) -> Result<(), JournalError> {
        let mut bytes = self.header.encode().to_vec();
        let record = Record::Checkpoint { final_state: &self.history.final_state, at_ms };
        let sequence = self.header.first_sequence;
        encode_frame(&mut bytes, self.header.salt, sequence, self.history.generation, sequence - 1, &record)
            .map_err(|source| JournalError::Payload { path: self.storage.path(Name::Next), source })?;
        let mut history = History::default();
        history
            .push(self.history.generation, &record)
            .map_err(|source| JournalError::Illegal { path: self.storage.path(Name::Next), source })?;
        self.guard("remove", Name::Next, |storage| storage.remove(Name::Next))?;
        self.guard("write", Name::Next, |storage| storage.append(Name::Next, &bytes))?;
        self.guard("sync", Name::Next, |storage| storage.sync(Name::Next))?;
        self.guard("rename", Name::Next, |storage| storage.rename(Name::Next, Name::Current))?;
        self.guard("sync the directory of", Name::Current, Storage::sync_names)?;
        self.history = history;
        self.size = bytes.len() as u64;
        self.next_sequence = sequence + 1;
        self.durable = sequence;
        Ok(())
    }

    fn guard<T>(
        &mut self,
        what: &'static str,
        name: Name,
        call: impl FnOnce(&mut S) -> io::Result<T>,
    ) -> Result<T, JournalError> {
        self.usable()?;
        call(&mut self.storage).map_err(|source| {
            self.poisoned = true;
            JournalError::Io { path: self.storage.path(name), what, source }
        })
    }

    fn usable(&self) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned { path: self.storage.path(Name::Current) });
        }
        Ok(())
    }
}
