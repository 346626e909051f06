//! Any sequence of records into the fold, and any statuses into the planner: no panic, and what they say is consistent.

#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nixbox::engine::history::{History, TransitionStatus};
use nixbox::engine::planner::{CommitSide, Decision, Direction, NoPlan, TableShape, decide, plan};
use nixbox::engine::record::{Ended, Record};
use nixbox::engine::transition::{Generation, TransitionId};

#[derive(Debug, arbitrary::Arbitrary)]
enum Push {
    Checkpoint,
    Begin,
    Intent(u8),
    Outcome(u8),
    UndoBegun(u8),
    Undone(u8),
    End(u8),
    /// A record of any other generation.
    Other(u64, u16),
}

#[derive(Debug, arbitrary::Arbitrary)]
struct Input {
    before: Vec<u8>,
    after: Vec<u8>,
    pushes: Vec<Push>,
}

impl Push {
    fn record(&self, current: u64) -> (u64, Record<'static>) {
        let place = |index: &u8| u16::from(*index % 12);
        match self {
            Self::Checkpoint => (current, Record::Checkpoint { final_state: b"s", at_ms: 0 }),
            Self::Begin => {
                (current.wrapping_add(1), Record::Begin { operation: 1, parameters: b"p", at_ms: 0 })
            }
            Self::Intent(index) => {
                let index = place(index);
                (current, Record::Intent { index, transition: 100 + index, payload: b"i" })
            }
            Self::Outcome(index) => {
                (current, Record::Outcome { index: place(index), payload: b"o", micros: 1 })
            }
            Self::UndoBegun(index) => (current, Record::UndoBegun { index: place(index) }),
            Self::Undone(index) => (current, Record::Undone { index: place(index), micros: 1 }),
            Self::End(ended) => {
                let ended = [Ended::Done, Ended::RolledBack, Ended::Lost][usize::from(*ended % 3)];
                (current, Record::End { ended, final_state: b"e", at_ms: 0 })
            }
            Self::Other(generation, index) => {
                (*generation, Record::Intent { index: *index, transition: *index, payload: b"" })
            }
        }
    }
}

/// Up to three stages of up to three transitions, the commit point, and up to two more stages.
fn shape(input: &Input) -> TableShape {
    let mut ids = (100..).map(TransitionId);
    let mut stage = |size: &u8| -> Vec<_> { ids.by_ref().take(usize::from(size % 4)).collect() };
    let before = input.before.iter().take(3).map(&mut stage).collect();
    let commit = stage(&1)[0];
    TableShape::new(before, commit, input.after.iter().take(2).map(&mut stage).collect())
}

fn look(shape: &TableShape, history: &History) {
    let Some(open) = history.open() else {
        return;
    };
    let found: Vec<_> = open.entries().iter().map(|entry| (entry.id, entry.status)).collect();
    let (size, commit) = (shape.transitions().count(), shape.commit());
    let status =
        |index: usize| found.get(index).map_or(TransitionStatus::NeverStarted, |(_, status)| *status);
    let back = |index: usize| matches!(status(index), TransitionStatus::UndoBegun | TransitionStatus::Undone);
    match plan(shape, &found) {
        Ok(plan) => {
            assert_eq!(plan.decisions.len(), size);
            for (index, decision) in plan.decisions.iter().enumerate() {
                assert_eq!(*decision, decide(CommitSide::of(index, commit), status(index)));
                assert_ne!(*decision, Decision::Illegal);
            }
            let committed = status(commit) == TransitionStatus::Done;
            assert_eq!(plan.direction == Direction::Forward, committed);
            if committed {
                assert!(!(0..size).any(back));
                assert!((0..commit).all(|index| status(index) == TransitionStatus::Done));
            }
        }
        Err(NoPlan::OtherTable { index, expected, found: id }) => {
            assert_eq!(shape.transitions().nth(index), expected);
            assert_eq!(found[index].0, id);
            assert_ne!(expected, Some(id));
        }
        Err(NoPlan::BackPastCommit { index }) => assert!(back(index)),
        Err(NoPlan::ForwardPastGap { index, unfinished }) => {
            assert!(unfinished < index);
            assert_ne!(status(index), TransitionStatus::NeverStarted);
            assert!(matches!(
                status(unfinished),
                TransitionStatus::NeverStarted | TransitionStatus::IntentOnly
            ));
        }
    }
}

fuzz_target!(|input: Input| {
    let shape = shape(&input);
    let mut history = History::default();
    for push in &input.pushes {
        let (generation, record) = push.record(history.generation.0);
        let mut next = history.clone();
        // A refused record changes nothing, so the fuzzer goes on with the history before it.
        if next.push(Generation(generation), &record).is_ok() {
            history = next;
            look(&shape, &history);
        }
    }
});
