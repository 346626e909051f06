//! The status of every transition, folded from the records. A sequence that no run can have written is an error.
//!
//! ```text
//!              intent              outcome           undo begun          undone
//! never started ────► intent only ─────────► done ────────────► undo begun ─────► undone
//!                          └────────────────────────────────────────▲
//! ```
//!
//! Pure. Memory is bounded by the one operation that is open.
//!
//! Opening a journal folds every record that it has, a hundred thousand in `cargo bench --bench journal`. Two things here
//! are for that alone. The entries of an operation that ended keep their memory for the next one: without that, reading
//! and folding those records takes about a quarter longer. The functions that every record goes through are marked
//! `#[inline(always)]`, so that they are compiled into the reader's loop: without that, it takes about a tenth longer.

use super::record::Record;
use super::transition::{Generation, OperationId, TransitionId};

/// More transitions than any operation has. It bounds the memory that a damaged or hostile journal can make nixbox use.
pub const MAX_TRANSITIONS: u16 = 256;

/// How far a transition got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransitionStatus {
    /// The journal has no record of it.
    NeverStarted,
    /// It may or may not have acted.
    IntentOnly,
    /// It has acted, and its outcome is known.
    Done,
    /// It may or may not have been undone.
    UndoBegun,
    /// It has been undone.
    Undone,
}

/// What the journal holds of one transition of the open operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransitionEntry {
    /// Its id, once it has an intent.
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
    /// Its id.
    pub operation: Option<OperationId>,
    /// Its generation.
    pub generation: Generation,
    /// Its parameters.
    pub parameters: Vec<u8>,
    /// When it began: milliseconds since 1970, UTC.
    pub begun_ms: u64,
    entries: Vec<TransitionEntry>,
    /// How many of the entries belong to this operation. Those behind are from operations that ended.
    used: usize,
}

impl OpenOperation {
    /// What the journal holds of the transition with this index in the table.
    #[must_use]
    pub fn entry(&self, index: usize) -> &TransitionEntry {
        self.entries[..self.used].get(index).unwrap_or(&BLANK)
    }

    /// What the journal holds of the transitions, up to the last that has a record.
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
#[allow(missing_docs, reason = "the messages say it")]
pub enum IllegalHistory {
    #[error("a checkpoint must be the first record of the file and nothing else")]
    MisplacedCheckpoint,
    #[error("an operation begins while that of generation {open} has not ended")]
    StillOpen { open: Generation },
    #[error("it is of an operation, and none is open")]
    NoneOpen,
    #[error("it is of generation {found}, which cannot follow {expected}")]
    WrongGeneration { expected: Generation, found: Generation },
    #[error("it speaks of transition {index}, and no operation has more than {MAX_TRANSITIONS}")]
    NoSuchPlace { index: u16 },
    #[error("transition {index} is {from:?} and cannot become {to:?}")]
    WrongStatus { index: u16, from: TransitionStatus, to: TransitionStatus },
    #[error("transition {index} goes forward after the operation has begun to roll back")]
    ForwardAfterBack { index: u16 },
}

/// What the records so far lead to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// The generation of the last operation that began.
    pub generation: Generation,
    /// The state of the workspace when the last operation ended.
    pub final_state: Vec<u8>,
    open: OpenOperation,
    checkpointed: bool,
    rolling_back: bool,
}

impl History {
    /// An empty history, whose first operation will have a later generation than this.
    #[must_use]
    pub fn above(generation: Generation) -> Self {
        Self { generation, ..Self::default() }
    }

    /// The operation that has not ended.
    #[must_use]
    pub fn open(&self) -> Option<&OpenOperation> {
        self.open.operation.is_some().then_some(&self.open)
    }

    /// Adds a record.
    ///
    /// # Errors
    /// If the record cannot follow those before it. The history must not be used any more then.
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
                let entry = self.advance(index, TransitionStatus::IntentOnly)?;
                entry.id = TransitionId(transition);
                entry.intent.extend_from_slice(payload);
            }
            Record::Outcome { index, payload, .. } => {
                self.advance(index, TransitionStatus::Done)?.outcome.extend_from_slice(payload);
            }
            Record::UndoBegun { index } => {
                self.advance(index, TransitionStatus::UndoBegun)?;
            }
            Record::Undone { index, .. } => {
                self.advance(index, TransitionStatus::Undone)?;
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
    fn advance(&mut self, index: u16, to: TransitionStatus) -> Result<&mut TransitionEntry, IllegalHistory> {
        let forward = matches!(to, TransitionStatus::IntentOnly | TransitionStatus::Done);
        // When a transition fails, the others of its stage still write their outcomes, but not once undoing has begun.
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
    fn nothing_goes_forward_once_undoing_has_begun() {
        for (record, index) in [(intent(2), 2), (outcome(0), 0)] {
            let mut history = with(TransitionStatus::IntentOnly);
            history.push(OPEN, &Record::UndoBegun { index: 1 }).unwrap();
            let expected = IllegalHistory::ForwardAfterBack { index };
            assert_eq!(history.push(OPEN, &record), Err(expected));
        }
        // The next operation goes forward again.
        let mut history = with(TransitionStatus::Undone);
        history.push(OPEN, &END).unwrap();
        history.push(Generation(8), &BEGIN).unwrap();
        assert_eq!(history.push(Generation(8), &intent(0)), Ok(()));
    }

    #[test]
    fn every_record_while_no_operation_is_open() {
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
    fn indices_are_bounded() {
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
    fn an_operation_has_its_own_parameters_and_entries() {
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
