//! Random records, and random damage to them.

use std::convert::Infallible;

use nixbox::engine::reader::{self, ReadError, Scan, Tail};
use nixbox::engine::record::{Checks, Ended, FrameHeader, MAX_PAYLOAD, PayloadError, Record, encode_frame};
use nixbox::engine::transition::Generation;
use proptest::prelude::*;

use super::{SALT, header};
use crate::harness::{WORKSPACE, cases};

/// A record that owns its byte strings.
#[derive(Debug, Clone)]
enum Owned {
    Checkpoint(Vec<u8>, u64),
    Begin(u16, Vec<u8>, u64),
    Intent(u16, u16, Vec<u8>),
    Outcome(u16, Vec<u8>, u64),
    UndoBegun(u16),
    Undone(u16, u64),
    End(Ended, Vec<u8>, u64),
}

impl Owned {
    fn record(&self) -> Record<'_> {
        match self {
            Self::Checkpoint(final_state, at_ms) => Record::Checkpoint { final_state, at_ms: *at_ms },
            Self::Begin(operation, parameters, at_ms) => {
                Record::Begin { operation: *operation, parameters, at_ms: *at_ms }
            }
            Self::Intent(index, transition, payload) => {
                Record::Intent { index: *index, transition: *transition, payload }
            }
            Self::Outcome(index, payload, micros) => {
                Record::Outcome { index: *index, payload, micros: *micros }
            }
            Self::UndoBegun(index) => Record::UndoBegun { index: *index },
            Self::Undone(index, micros) => Record::Undone { index: *index, micros: *micros },
            Self::End(ended, final_state, at_ms) => Record::End { ended: *ended, final_state, at_ms: *at_ms },
        }
    }
}

fn any_record() -> impl Strategy<Value = Owned> {
    let bytes = || {
        prop_oneof![
            8 => proptest::collection::vec(any::<u8>(), 0..80),
            1 => (MAX_PAYLOAD - 64..MAX_PAYLOAD + 64).prop_map(|size| vec![0xA5; size]),
        ]
    };
    let ended = prop_oneof![Just(Ended::Done), Just(Ended::RolledBack), Just(Ended::Lost)];
    prop_oneof![
        (bytes(), any::<u64>()).prop_map(|(final_state, at)| Owned::Checkpoint(final_state, at)),
        (any::<u16>(), bytes(), any::<u64>()).prop_map(|(id, bytes, at)| Owned::Begin(id, bytes, at)),
        (any::<u16>(), any::<u16>(), bytes()).prop_map(|(index, id, bytes)| Owned::Intent(index, id, bytes)),
        (any::<u16>(), bytes(), any::<u64>())
            .prop_map(|(index, bytes, took)| Owned::Outcome(index, bytes, took)),
        any::<u16>().prop_map(Owned::UndoBegun),
        (any::<u16>(), any::<u64>()).prop_map(|(index, took)| Owned::Undone(index, took)),
        (ended, bytes(), any::<u64>()).prop_map(|(ended, bytes, at)| Owned::End(ended, bytes, at)),
    ]
}

/// The bytes of the records that fit into a frame, each with a `durable` that a writer may have written.
fn written(records: &[(Owned, u64)], first: u64) -> (Vec<u8>, Vec<String>) {
    let (mut bytes, mut kept, mut sequence, mut durable) = (header(first), Vec::new(), first, first - 1);
    for (record, back) in records {
        durable = durable.max((sequence - 1).saturating_sub(*back));
        let before = bytes.len();
        match encode_frame(&mut bytes, SALT, sequence, Generation(sequence % 3), durable, &record.record()) {
            Ok(()) => {
                kept.push(format!("{sequence} {:?}", record.record()));
                sequence += 1;
            }
            Err(PayloadError::TooLarge { size, .. }) => {
                assert!(size > MAX_PAYLOAD && bytes.len() == before);
            }
            Err(error) => panic!("{error}"),
        }
    }
    (bytes, kept)
}

fn shown(bytes: &[u8]) -> (Result<Scan, ReadError<Infallible>>, Vec<String>) {
    let mut shown = Vec::new();
    let scan = reader::scan(&mut &*bytes, Some(WORKSPACE), |located| {
        shown.push(format!("{} {:?}", located.sequence, located.record));
        Ok(())
    });
    (scan, shown)
}

#[derive(Debug, Clone)]
enum Damage {
    Flip(usize),
    Set(usize, u8),
    Cut(usize),
    Delete(usize, usize),
    Insert(usize, Vec<u8>),
    Repeat(usize, usize),
    Zero(usize, usize),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let size = bytes.len().max(1);
        let range = |at: usize, length: usize| {
            let at = at % size;
            at.min(bytes.len())..(at + length % 300).min(bytes.len())
        };
        match self {
            Self::Flip(bit) => {
                if let Some(byte) = bytes.get_mut(bit / 8 % size) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            Self::Set(at, value) => {
                if let Some(byte) = bytes.get_mut(at % size) {
                    *byte = *value;
                }
            }
            Self::Cut(at) => bytes.truncate(at % size),
            Self::Delete(at, length) => {
                let range = range(*at, *length);
                bytes.drain(range);
            }
            Self::Insert(at, more) => {
                let at = at % (bytes.len() + 1);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Repeat(at, length) => {
                let range = range(*at, *length);
                let copy = bytes[range.clone()].to_vec();
                bytes.splice(range.end..range.end, copy);
            }
            Self::Zero(at, length) => {
                let range = range(*at, *length);
                bytes[range].fill(0);
            }
        }
    }
}

fn any_damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        any::<usize>().prop_map(Damage::Flip),
        (any::<usize>(), any::<u8>()).prop_map(|(at, value)| Damage::Set(at, value)),
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), any::<usize>()).prop_map(|(at, length)| Damage::Delete(at, length)),
        (any::<usize>(), proptest::collection::vec(any::<u8>(), 1..60))
            .prop_map(|(at, more)| Damage::Insert(at, more)),
        (any::<usize>(), any::<usize>()).prop_map(|(at, length)| Damage::Repeat(at, length)),
        (any::<usize>(), any::<usize>()).prop_map(|(at, length)| Damage::Zero(at, length)),
    ]
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn records_come_back_as_they_went(
        records in proptest::collection::vec((any_record(), 0..9_u64), 1..40),
        first in 1..1_u64 << 40,
    ) {
        let (bytes, kept) = written(&records, first);
        prop_assume!(!kept.is_empty());
        let (scan, shown) = shown(&bytes);
        let scan = scan.unwrap();
        prop_assert_eq!(scan.tail, Tail::Clean);
        prop_assert_eq!(scan.valid, bytes.len() as u64);
        prop_assert_eq!(scan.next_sequence, first + kept.len() as u64);
        prop_assert_eq!(shown, kept);
    }

    #[test]
    fn damage_never_makes_records_up_and_never_loses_a_promised_one(
        records in proptest::collection::vec((any_record(), 0..9_u64), 1..30),
        damage in proptest::collection::vec(any_damage(), 1..5),
    ) {
        let (mut bytes, kept) = written(&records, 1);
        damage.iter().for_each(|damage| damage.apply(&mut bytes));
        let (scan, shown) = shown(&bytes);
        prop_assert!(shown.len() <= kept.len());
        prop_assert_eq!(&shown, &kept[..shown.len()]);
        if let Ok(scan) = scan {
            prop_assert_eq!(scan.records, shown.len() as u64);
            // Frames are looked for where they were: damage may have moved them from their alignment, or away.
            let checks = Checks::new(SALT);
            for at in (scan.valid as usize..bytes.len()).step_by(8) {
                let good = FrameHeader::decode(&bytes[at..]).filter(|frame| frame.matches(&checks, &bytes[at..]));
                if let Some(frame) = good {
                    prop_assert!(frame.durable < scan.next_sequence, "record {} was lost", scan.next_sequence);
                }
            }
        }
    }

    #[test]
    fn any_bytes_behind_a_good_header(tail in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let (scan, shown) = shown(&[header(1), tail].concat());
        prop_assert!(scan.is_err() && shown.is_empty());
    }
}
