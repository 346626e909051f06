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
pub enum TransitionStatus {
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
pub struct TransitionEntry {
    /// Its name on disk, once it has an intent.
    pub id: TransitionId,
    /// How far it got.
    pub status: TransitionStatus,
    /// Its intent.
    pub intent: Vec<u8>,
    /// Its outcome.
    pub outcome: Vec<u8>,
}

static BLANK: TransitionEntry = TransitionEntry {
    id: TransitionId(0),
    status: TransitionStatus::NeverStarted,
    intent: Vec::new(),
    outcome: Vec::new(),
};

/// An operation that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenOperation {
    /// Which one.
    pub operation: Option<OperationId>,
    /// Its generation.
    pub generation: Generation,
    /// What it was asked to do.
    pub parameters: Vec<u8>,
    /// When it began: milliseconds since 1970, UTC.
    pub begun_ms: u64,
    entries: Vec<TransitionEntry>,
    /// Entries beyond this are of operations that ended; they keep their memory for the next one.
    used: usize,
}

impl OpenOperation {
    /// What is known of the transition at this place of the table.
    #[must_use]
    pub fn entry(&self, index: usize) -> &TransitionEntry {
        self.entries[..self.used].get(index).unwrap_or(&BLANK)
    }

    /// What is known of the transitions, up to the last that has a record.
    #[must_use]
    pub fn entries(&self) -> &[TransitionEntry] {
        &self.entries[..self.used]
    }

    fn begin(&mut self, operation: OperationId, generation: Generation, parameters: &[u8], begun_ms: u64) {
        self.operation = Some(operation);
        self.generation = generation;
        self.parameters.clear();
        self.parameters.extend_from_slice(parameters);
        self.begun_ms = begun_ms;
        self.used = 0;
    }

    #[inline(always)]
    fn entry_mut(&mut self, index: u16) -> Result<&mut TransitionEntry, IllegalHistory> {
        if index >= MAX_TRANSITIONS {
            return Err(IllegalHistory::NoSuchPlace { index });
        }
        let index = usize::from(index);
        while self.used <= index {
            match self.entries.get_mut(self.used) {
                Some(entry) => {
                    entry.id = TransitionId(0);
                    entry.status = TransitionStatus::NeverStarted;
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
        from: TransitionStatus,
        /// What the record would make of it.
        to: TransitionStatus,
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
    pub final_state: Vec<u8>,
    open: OpenOperation,
    checkpointed: bool,
    rolling_back: bool,
}

impl History {
    /// The history of a workspace whose first operation will be of a later generation than this.
    #[must_use]
    pub fn above(generation: Generation) -> Self {
        Self { generation, ..Self::default() }
    }

    /// The operation that has not ended.
    #[must_use]
    pub fn open(&self) -> Option<&OpenOperation> {
        self.open.operation.is_some().then_some(&self.open)
    }

    /// Takes one more record.
    ///
    /// # Errors
    /// If it cannot follow those before it; the history is of no use then.
    #[inline(always)]
    pub fn push(&mut self, generation: Generation, record: &Record<'_>) -> Result<(), IllegalHistory> {
        if matches!(record, Record::Checkpoint { .. }) == self.checkpointed {
            return Err(IllegalHistory::MisplacedCheckpoint);
        }
        match *record {
            Record::Checkpoint { final_state, .. } => {
                self.checkpointed = true;
                self.generation = generation;
                final_state.clone_into(&mut self.final_state);
                return Ok(());
            }
            Record::Begin { operation, parameters, at_ms } => {
                return self.begin(generation, OperationId(operation), parameters, at_ms);
            }
            _ => {}
        }
        if self.open.operation.is_none() {
            return Err(IllegalHistory::NoneOpen);
        }
        if generation != self.generation {
            return Err(IllegalHistory::WrongGeneration { expected: self.generation, found: generation });
        }
        match *record {
            Record::Intent { index, transition, payload } => {
                let entry = self.lead(index, TransitionStatus::IntentOnly)?;
                entry.id = TransitionId(transition);
                entry.intent.extend_from_slice(payload);
            }
            Record::Outcome { index, payload, .. } => {
                self.lead(index, TransitionStatus::Done)?.outcome.extend_from_slice(payload);
            }
            Record::UndoBegun { index } => {
                self.lead(index, TransitionStatus::UndoBegun)?;
            }
            Record::Undone { index, .. } => {
                self.lead(index, TransitionStatus::Undone)?;
            }
            Record::End { final_state, .. } => {
                self.open.operation = None;
                final_state.clone_into(&mut self.final_state);
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
            return Err(IllegalHistory::StillOpen { open: self.generation });
        }
        if generation <= self.generation {
            return Err(IllegalHistory::WrongGeneration { expected: self.generation, found: generation });
        }
        self.generation = generation;
        self.rolling_back = false;
        self.open.begin(operation, generation, parameters, at_ms);
        Ok(())
    }

    #[inline(always)]
    fn lead(&mut self, index: u16, to: TransitionStatus) -> Result<&mut TransitionEntry, IllegalHistory> {
        let forward = matches!(to, TransitionStatus::IntentOnly | TransitionStatus::Done);
        // An outcome may still come in from a stage-mate of the transition that failed, but not once undoing began.
        if forward && self.rolling_back {
            return Err(IllegalHistory::ForwardAfterBack { index });
        }
        self.rolling_back |= !forward;
        let entry = self.open.entry_mut(index)?;
        let legal = matches!(
            (entry.status, to),
            (TransitionStatus::NeverStarted, TransitionStatus::IntentOnly)
                | (TransitionStatus::IntentOnly, TransitionStatus::Done | TransitionStatus::UndoBegun)
                | (TransitionStatus::Done, TransitionStatus::UndoBegun)
                | (TransitionStatus::UndoBegun, TransitionStatus::Undone)
        );
        if !legal {
            return Err(IllegalHistory::WrongStatus { index, from: entry.status, to });
        }
        entry.status = to;
        Ok(entry)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::record::Ended;
    use super::*;

    const OPEN: Generation = Generation(7);
    const STATUSES: [TransitionStatus; 5] = [
        TransitionStatus::NeverStarted,
        TransitionStatus::IntentOnly,
        TransitionStatus::Done,
        TransitionStatus::UndoBegun,
        TransitionStatus::Undone,
    ];

    const CHECKPOINT: Record<'_> = Record::Checkpoint { final_state: b"stood", at_ms: 1 };
    const BEGIN: Record<'_> = Record::Begin { operation: 3, parameters: b"what", at_ms: 2 };
    const END: Record<'_> = Record::End { ended: Ended::Done, final_state: b"stands", at_ms: 3 };

    fn intent(index: u16) -> Record<'static> {
        Record::Intent { index, transition: index.wrapping_add(40), payload: b"intent" }
    }

    fn outcome(index: u16) -> Record<'static> {
        Record::Outcome { index, payload: b"outcome", micros: 5 }
    }

    /// An operation is open in which transition 0 is of this status, and 1 is done.
    fn with(status: TransitionStatus) -> History {
        let mut history = History::default();
        history.push(Generation(6), &CHECKPOINT).unwrap();
        for record in [BEGIN, intent(1), outcome(1)] {
            history.push(OPEN, &record).unwrap();
        }
        let path =
            [intent(0), outcome(0), Record::UndoBegun { index: 0 }, Record::Undone { index: 0, micros: 1 }];
        for record in &path[..status as usize] {
            history.push(OPEN, record).unwrap();
        }
        assert_eq!(history.open().unwrap().entry(0).status, status);
        history
    }

    #[test]
    fn every_record_in_every_status() {
        use IllegalHistory::{ForwardAfterBack, MisplacedCheckpoint, StillOpen, WrongStatus};
        for from in STATUSES {
            let back = matches!(from, TransitionStatus::UndoBegun | TransitionStatus::Undone);
            let wrong = |to| Err(WrongStatus { index: 0, from, to });
            let forward = |legal: bool, to| match (back, legal) {
                (true, _) => Err(ForwardAfterBack { index: 0 }),
                (false, true) => Ok(to),
                (false, false) => wrong(to),
            };
            let cases: [(Record<'_>, Result<TransitionStatus, IllegalHistory>); 7] = [
                (CHECKPOINT, Err(MisplacedCheckpoint)),
                (BEGIN, Err(StillOpen { open: OPEN })),
                (intent(0), forward(from == TransitionStatus::NeverStarted, TransitionStatus::IntentOnly)),
                (outcome(0), forward(from == TransitionStatus::IntentOnly, TransitionStatus::Done)),
                (
                    Record::UndoBegun { index: 0 },
                    match from {
                        TransitionStatus::IntentOnly | TransitionStatus::Done => {
                            Ok(TransitionStatus::UndoBegun)
                        }
                        _ => wrong(TransitionStatus::UndoBegun),
                    },
                ),
                (
                    Record::Undone { index: 0, micros: 1 },
                    match from {
                        TransitionStatus::UndoBegun => Ok(TransitionStatus::Undone),
                        _ => wrong(TransitionStatus::Undone),
                    },
                ),
                (END, Ok(TransitionStatus::NeverStarted)),
            ];
            for (record, expected) in cases {
                let mut history = with(from);
                let found = history.push(OPEN, &record);
                match expected {
                    Err(illegal) => assert_eq!(found, Err(illegal), "{record:?} from {from:?}"),
                    Ok(_) if record == END => {
                        assert_eq!(found, Ok(()));
                        assert_eq!(history.open(), None);
                        assert_eq!(history.final_state, b"stands");
                    }
                    Ok(to) => {
                        assert_eq!(found, Ok(()), "{record:?} from {from:?}");
                        assert_eq!(history.open().unwrap().entry(0).status, to);
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_goes_forward_once_another_was_taken_back() {
        for (record, index) in [(intent(2), 2), (outcome(0), 0)] {
            let mut history = with(TransitionStatus::IntentOnly);
            history.push(OPEN, &Record::UndoBegun { index: 1 }).unwrap();
            let expected = IllegalHistory::ForwardAfterBack { index };
            assert_eq!(history.push(OPEN, &record), Err(expected));
        }
        // The next operation is another matter.
        let mut history = with(TransitionStatus::Undone);
        history.push(OPEN, &END).unwrap();
        history.push(Generation(8), &BEGIN).unwrap();
        assert_eq!(history.push(Generation(8), &intent(0)), Ok(()));
    }

    #[test]
    fn every_record_while_none_is_open() {
        let every = [
            CHECKPOINT,
            BEGIN,
            intent(0),
            outcome(0),
            Record::UndoBegun { index: 0 },
            Record::Undone { index: 0, micros: 1 },
            END,
        ];
        for record in every {
            let mut fresh = History::default();
            let first = fresh.push(OPEN, &record);
            if record == CHECKPOINT {
                assert_eq!(first, Ok(()));
                assert_eq!((fresh.generation, fresh.final_state.as_slice()), (OPEN, &b"stood"[..]));
            } else {
                assert_eq!(first, Err(IllegalHistory::MisplacedCheckpoint), "{record:?}");
            }
            let mut ended = with(TransitionStatus::Done);
            ended.push(OPEN, &END).unwrap();
            let expected = match record {
                Record::Checkpoint { .. } => Err(IllegalHistory::MisplacedCheckpoint),
                Record::Begin { .. } => Ok(()),
                _ => Err(IllegalHistory::NoneOpen),
            };
            assert_eq!(ended.push(Generation(8), &record), expected, "{record:?}");
        }
    }

    #[test]
    fn generations_only_grow() {
        let records = [intent(0), outcome(0), Record::UndoBegun { index: 1 }, END];
        for found in [Generation(0), Generation(6), Generation(8), Generation(u64::MAX)] {
            for record in records {
                let expected = IllegalHistory::WrongGeneration { expected: OPEN, found };
                assert_eq!(with(TransitionStatus::IntentOnly).push(found, &record), Err(expected));
            }
        }
        for found in [0, 6, 7, 8, 9, u64::MAX].map(Generation) {
            let mut history = with(TransitionStatus::Done);
            history.push(OPEN, &END).unwrap();
            let expected = if found > OPEN {
                Ok(())
            } else {
                Err(IllegalHistory::WrongGeneration { expected: OPEN, found })
            };
            assert_eq!(history.push(found, &BEGIN), expected);
        }
    }

    #[test]
    fn places_are_bounded() {
        for index in [MAX_TRANSITIONS, u16::MAX] {
            let expected = Err(IllegalHistory::NoSuchPlace { index });
            assert_eq!(with(TransitionStatus::Done).push(OPEN, &intent(index)), expected);
        }
        let mut history = with(TransitionStatus::Done);
        history.push(OPEN, &intent(MAX_TRANSITIONS - 1)).unwrap();
        let open = history.open().unwrap();
        assert_eq!(open.entries().len(), usize::from(MAX_TRANSITIONS));
        assert_eq!(open.entry(100).status, TransitionStatus::NeverStarted);
        assert_eq!(open.entry(300).status, TransitionStatus::NeverStarted);
    }

    #[test]
    fn an_operation_remembers_what_it_was_and_nothing_of_the_one_before() {
        let mut history = with(TransitionStatus::Done);
        let entry = history.open().unwrap().entry(0).clone();
        assert_eq!(
            (entry.id, entry.intent.as_slice(), entry.outcome.as_slice()),
            (TransitionId(40), &b"intent"[..], &b"outcome"[..])
        );
        history.push(OPEN, &END).unwrap();
        let again = Record::Begin { operation: 4, parameters: b"", at_ms: 9 };
        history.push(Generation(9), &again).unwrap();
        history.push(Generation(9), &intent(1)).unwrap();
        let open = history.open().unwrap();
        assert_eq!(
            (open.operation, open.generation, open.begun_ms),
            (Some(OperationId(4)), Generation(9), 9)
        );
        assert_eq!(open.parameters, b"");
        assert_eq!(*open.entry(0), BLANK);
        assert_eq!(
            (open.entry(1).status, open.entry(1).outcome.as_slice()),
            (TransitionStatus::IntentOnly, &b""[..])
        );
    }
}
