//! The fold of records into the status of every transition. An illegal sequence is an error.
//!
//! ```text
//!              intent              outcome           undo begun          undone
//! never started ────► intent only ─────────► done ────────────► undo begun ─────► undone
//!                          └────────────────────────────────────────▲
//! ```
//!
//! Pure. Memory is bounded by the one operation that is open.

use super::record::Record;
use super::transition::{Generation, OperationId, TransitionId};

/// More transitions than any operation has; a bound for what a hostile journal can make us hold.
pub const MAX_TRANSITIONS: u16 = 256;

/// How far a transition got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// No record of it.
    NeverStarted,
    /// It may or may not have acted.
    IntentOnly,
    /// It has acted, and what it did is known.
    Done,
    /// It may or may not have been taken back.
    UndoBegun,
    /// It has been taken back.
    Undone,
}

/// What the journal holds of one transition of the open operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name on disk, once it has an intent.
    pub id: TransitionId,
    /// How far it got.
    pub status: Status,
    /// Its intent.
    pub intent: Vec<u8>,
    /// Its outcome.
    pub outcome: Vec<u8>,
}

static BLANK: Entry = Entry {
    id: TransitionId(0),
    status: Status::NeverStarted,
    intent: Vec::new(),
    outcome: Vec::new(),
};

/// An operation that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Open {
    /// Which one.
    pub operation: Option<OperationId>,
    /// Its generation.
    pub generation: Generation,
    /// What it was asked to do.
    pub parameters: Vec<u8>,
    /// When it began: milliseconds since 1970, UTC.
    pub begun_ms: u64,
    entries: Vec<Entry>,
    /// Entries beyond this are of operations that ended; they keep their memory for the next one.
    used: usize,
}

impl Open {
    /// What is known of the transition at this place of the table.
    #[must_use]
    pub fn entry(&self, index: usize) -> &Entry {
        self.entries[..self.used].get(index).unwrap_or(&BLANK)
    }

    /// What is known of the transitions, up to the last that has a record.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries[..self.used]
    }

    fn begin(
        &mut self,
        operation: OperationId,
        generation: Generation,
        parameters: &[u8],
        begun_ms: u64,
    ) {
        self.operation = Some(operation);
        self.generation = generation;
        self.parameters.clear();
        self.parameters.extend_from_slice(parameters);
        self.begun_ms = begun_ms;
        self.used = 0;
    }

    fn entry_mut(&mut self, index: u16) -> Result<&mut Entry, IllegalHistory> {
        if index >= MAX_TRANSITIONS {
            return Err(IllegalHistory::NoSuchPlace { index });
        }
        let index = usize::from(index);
        while self.used <= index {
            match self.entries.get_mut(self.used) {
                Some(entry) => {
                    entry.id = TransitionId(0);
                    entry.status = Status::NeverStarted;
                    entry.intent.clear();
                    entry.outcome.clear();
                }
                None => self.entries.push(BLANK.clone()),
            }
            self.used += 1;
        }
        Ok(&mut self.entries[index])
    }
}

/// A record that cannot follow those before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IllegalHistory {
    /// Only the first record of a file is a checkpoint, and it always is.
    #[error("a checkpoint must be the first record of the file and nothing else")]
    MisplacedCheckpoint,
    /// An operation began while another was open.
    #[error("an operation begins while that of generation {open} has not ended")]
    StillOpen {
        /// The open one.
        open: Generation,
    },
    /// A record of an operation, and none is open.
    #[error("it is of an operation, and none is open")]
    NoneOpen,
    /// A record of another operation than the open one, or an operation that does not come later than the last.
    #[error("it is of generation {found}, which cannot follow {expected}")]
    WrongGeneration {
        /// The open operation's, or the last one's.
        expected: Generation,
        /// The record's.
        found: Generation,
    },
    /// No operation has so many transitions.
    #[error("it speaks of transition {index}, and no operation has more than {MAX_TRANSITIONS}")]
    NoSuchPlace {
        /// The place it names.
        index: u16,
    },
    /// From this status this record does not lead on.
    #[error("transition {index} is {from:?} and cannot become {to:?}")]
    WrongStatus {
        /// Its place in the table.
        index: u16,
        /// How far it got.
        from: Status,
        /// What the record would make of it.
        to: Status,
    },
    /// An undo while others go forward, or the other way round.
    #[error("transition {index} goes forward after the operation has begun to roll back")]
    ForwardAfterBack {
        /// Its place in the table.
        index: u16,
    },
}

/// What the records so far come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// The generation of the last operation that began.
    pub generation: Generation,
    /// How the workspace stood when the last operation ended.
    pub standing: Vec<u8>,
    open: Open,
    checkpointed: bool,
    rolling_back: bool,
}

impl History {
    /// The history of a workspace whose first operation will be of a later generation than this.
    #[must_use]
    pub fn above(generation: Generation) -> Self {
        Self {
            generation,
            ..Self::default()
        }
    }

    /// The operation that has not ended.
    #[must_use]
    pub fn open(&self) -> Option<&Open> {
        self.open.operation.is_some().then_some(&self.open)
    }

    /// Takes one more record.
    ///
    /// # Errors
    /// If it cannot follow those before it; the history is of no use then.
    pub fn push(
        &mut self,
        generation: Generation,
        record: &Record<'_>,
    ) -> Result<(), IllegalHistory> {
        if matches!(record, Record::Checkpoint { .. }) == self.checkpointed {
            return Err(IllegalHistory::MisplacedCheckpoint);
        }
        match *record {
            Record::Checkpoint { standing, .. } => {
                self.checkpointed = true;
                self.generation = generation;
                standing.clone_into(&mut self.standing);
                return Ok(());
            }
            Record::Begin {
                operation,
                parameters,
                at_ms,
            } => {
                return self.begin(generation, OperationId(operation), parameters, at_ms);
            }
            _ => {}
        }
        if self.open.operation.is_none() {
            return Err(IllegalHistory::NoneOpen);
        }
        if generation != self.generation {
            return Err(IllegalHistory::WrongGeneration {
                expected: self.generation,
                found: generation,
            });
        }
        match *record {
            Record::Intent {
                index,
                transition,
                payload,
            } => {
                let entry = self.lead(index, Status::IntentOnly)?;
                entry.id = TransitionId(transition);
                entry.intent.extend_from_slice(payload);
            }
            Record::Outcome { index, payload, .. } => {
                self.lead(index, Status::Done)?
                    .outcome
                    .extend_from_slice(payload);
            }
            Record::UndoBegun { index } => {
                self.lead(index, Status::UndoBegun)?;
            }
            Record::Undone { index, .. } => {
                self.lead(index, Status::Undone)?;
            }
            Record::End { standing, .. } => {
                self.open.operation = None;
                standing.clone_into(&mut self.standing);
            }
            Record::Checkpoint { .. } | Record::Begin { .. } => {}
        }
        Ok(())
    }

    fn begin(
        &mut self,
        generation: Generation,
        operation: OperationId,
        parameters: &[u8],
        at_ms: u64,
    ) -> Result<(), IllegalHistory> {
        if self.open.operation.is_some() {
            return Err(IllegalHistory::StillOpen {
                open: self.generation,
            });
        }
        if generation <= self.generation {
            return Err(IllegalHistory::WrongGeneration {
                expected: self.generation,
                found: generation,
            });
        }
        self.generation = generation;
        self.rolling_back = false;
        self.open.begin(operation, generation, parameters, at_ms);
        Ok(())
    }

    fn lead(&mut self, index: u16, to: Status) -> Result<&mut Entry, IllegalHistory> {
        let forward = matches!(to, Status::IntentOnly | Status::Done);
        // An outcome may still come in from a stage-mate of the transition that failed, but not once undoing began.
        if forward && self.rolling_back {
            return Err(IllegalHistory::ForwardAfterBack { index });
        }
        self.rolling_back |= !forward;
        let entry = self.open.entry_mut(index)?;
        let legal = matches!(
            (entry.status, to),
            (Status::NeverStarted, Status::IntentOnly)
                | (Status::IntentOnly, Status::Done | Status::UndoBegun)
                | (Status::Done, Status::UndoBegun)
                | (Status::UndoBegun, Status::Undone)
        );
        if !legal {
            return Err(IllegalHistory::WrongStatus {
                index,
                from: entry.status,
                to,
            });
        }
        entry.status = to;
        Ok(entry)
    }
}
