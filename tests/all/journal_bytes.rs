//! The journal reader on arbitrary bytes: it never panics, it holds no more than its window in memory, and it never drops
//! a record without an error if a later record says that it was on the medium.

mod medium;
mod random;

use std::convert::Infallible;
use std::io;

use nixbox::engine::history::{History, IllegalHistory};
use nixbox::engine::journal::Journal;
use nixbox::engine::reader::{self, JournalBytes, MAX_TORN, ReadError, Scan, Tail, WINDOW};
use nixbox::engine::record::{
    Ended, FILE_HEADER, FRAME_HEADER, FileHeader, FrameHeader, HeaderError, MAX_NUMBER, MAX_PAYLOAD,
    MAX_VALUE, PayloadError, Record, VERSION, WorkspaceId, decode_payload, decode_record, encode_frame,
    encode_payload,
};
use nixbox::engine::transition::{Generation, OperationId, TransitionId};
use nixbox::fakes::Host;

use crate::harness::WORKSPACE;

const SALT: u64 = 0x1234_5678_9abc_def0;

/// A journal with a record of every kind: one operation that goes forward, one that is undone, one that is open.
fn sample() -> Vec<u8> {
    let host = Host::new(53, false);
    let mut journal = Journal::open(host.storage(WORKSPACE), WORKSPACE, Generation(0), 1).unwrap();
    journal.begin(OperationId(5), b"what", 2).unwrap();
    journal.intents(&[intent(0), intent(1)]).unwrap();
    journal.outcome(1, b"did this", 30).unwrap();
    journal.outcome(0, b"", 40).unwrap();
    journal.sync().unwrap();
    journal.end(Ended::Done, b"stands", 3).unwrap();
    journal.begin(OperationId(1), b"", 4).unwrap();
    journal.intents(&[intent(0), intent(1)]).unwrap();
    journal.outcome(0, b"7", 10).unwrap();
    journal.undo_begun(1).unwrap();
    journal.undone(1, 5).unwrap();
    journal.undo_begun(0).unwrap();
    journal.undone(0, 6).unwrap();
    journal.end(Ended::RolledBack, b"stood", 5).unwrap();
    journal.begin(OperationId(2), b"more", 6).unwrap();
    journal.intents(&[intent(0)]).unwrap();
    journal.outcome(0, b"a tail", 1).unwrap();
    journal.undo_begun(0).unwrap();
    host.journal_bytes(WORKSPACE).unwrap()
}

fn intent(index: u16) -> (u16, TransitionId, Vec<u8>) {
    (index, TransitionId(20 + index), vec![0xC0; 3 + usize::from(index)])
}

/// Reads as nixbox does, the history included. Returns the scan, and the records that were visited.
fn read(bytes: &[u8]) -> (Result<Scan, ReadError<IllegalHistory>>, Vec<String>) {
    let mut history = History::default();
    let mut shown = Vec::new();
    let scan = reader::scan(&mut &*bytes, Some(WORKSPACE), |located| {
        history.push(located.generation, &located.record)?;
        shown.push(format!("{:?} {:?}", located.sequence, located.record));
        Ok(())
    });
    (scan, shown)
}

struct Frame {
    at: usize,
    end: usize,
    header: FrameHeader,
}

fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut at = FILE_HEADER;
    while at < bytes.len() {
        let header = FrameHeader::decode(&bytes[at..]).unwrap();
        let end = at + header.frame_size();
        frames.push(Frame { at, end, header });
        at = end;
    }
    frames
}

/// The result for a journal in which only frame `bad` is damaged, computed from the frames around it.
fn assert_damaged(bytes: &[u8], whole: &[Frame], bad: usize, records: &[String], context: &str) {
    let (verdict, shown) = read(bytes);
    let frame = &whole[bad];
    let witness = whole[bad + 1..].iter().find(|later| later.header.durable >= frame.header.sequence);
    match (bad, witness, verdict) {
        (0, _, Err(ReadError::NoCheckpoint)) => assert!(shown.is_empty(), "{context}"),
        (1.., Some(by), Err(ReadError::Corrupt { offset, sequence, witness })) => {
            assert_eq!(
                (offset, sequence, witness),
                (frame.at as u64, frame.header.sequence, by.header.sequence),
                "{context}"
            );
        }
        (1.., None, Ok(scan)) => {
            assert_eq!(scan.valid, frame.at as u64, "{context}");
            assert_eq!(scan.tail, Tail::Torn((bytes.len() - frame.at) as u64), "{context}");
            assert_eq!(shown, records[..bad], "{context}");
        }
        (_, _, verdict) => {
            panic!("{context}: record {bad} is damaged, and the reader says {verdict:?}")
        }
    }
}

#[test]
fn the_sample_has_records_with_and_without_a_witness() {
    let bytes = sample();
    let whole = frames(&bytes);
    let most = whole.iter().map(|frame| frame.header.durable).max().unwrap();
    let without = whole.iter().filter(|frame| frame.header.sequence > most).count();
    assert_eq!((whole.len(), without), (20, 2));
    assert_eq!(read(&bytes).1.len(), whole.len());
}

#[test]
fn truncated_at_every_length() {
    let bytes = sample();
    let whole = frames(&bytes);
    let records = read(&bytes).1;
    for size in 0..=bytes.len() {
        let (verdict, shown) = read(&bytes[..size]);
        let kept = whole.iter().take_while(|frame| frame.end <= size).count();
        if kept == 0 {
            let refused = match verdict {
                Err(ReadError::Header(HeaderError::NotAJournal)) => size < FILE_HEADER,
                Err(ReadError::NoCheckpoint) => size >= FILE_HEADER,
                _ => false,
            };
            assert!(refused, "{size} bytes");
            continue;
        }
        let (scan, end) = (verdict.unwrap(), whole[kept - 1].end);
        assert_eq!((scan.valid, shown.as_slice()), (end as u64, &records[..kept]), "{size} bytes");
        let tail = if size == end { Tail::Clean } else { Tail::Torn((size - end) as u64) };
        assert_eq!(scan.tail, tail, "{size} bytes");
    }
}

#[test]
fn every_single_bit_flipped() {
    let bytes = sample();
    let whole = frames(&bytes);
    let records = read(&bytes).1;
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let context = format!("bit {} of byte {:#x}", bit % 8, bit / 8);
        match whole.iter().position(|frame| frame.end > bit / 8) {
            _ if bit / 8 < FILE_HEADER => {
                let (verdict, shown) = read(&flipped);
                assert!(matches!(verdict, Err(ReadError::Header(_))) && shown.is_empty(), "{context}");
            }
            Some(bad) => assert_damaged(&flipped, &whole, bad, &records, &context),
            None => unreachable!(),
        }
    }
}

#[test]
fn every_length_field_made_huge() {
    let bytes = sample();
    let whole = frames(&bytes);
    let records = read(&bytes).1;
    for (bad, frame) in whole.iter().enumerate() {
        for length in [0, 1 << 15, MAX_PAYLOAD as u32, MAX_PAYLOAD as u32 + 1, 1 << 31, u32::MAX] {
            let mut changed = bytes.clone();
            changed[frame.at..frame.at + 4].copy_from_slice(&length.to_le_bytes());
            assert_damaged(&changed, &whole, bad, &records, &format!("length {length} in frame {bad}"));
        }
    }
}

#[test]
fn frames_of_another_file_fail_their_check() {
    let bytes = sample();
    let whole = frames(&bytes);
    let records = read(&bytes).1;
    let mut other = bytes.clone();
    other[32..40].copy_from_slice(&SALT.to_le_bytes());
    for frame in &whole {
        let check = check(SALT, &bytes[frame.at..frame.end]);
        other[frame.at + 4..frame.at + 8].copy_from_slice(&check.to_le_bytes());
    }
    let check = crc32c::crc32c(&other[..60]);
    other[60..64].copy_from_slice(&check.to_le_bytes());
    assert_eq!(read(&other).1, records, "the other file is as good as this one");
    for (bad, frame) in whole.iter().enumerate() {
        let mut spliced = bytes.clone();
        spliced[frame.at..frame.end].copy_from_slice(&other[frame.at..frame.end]);
        assert_damaged(&spliced, &whole, bad, &records, &format!("frame {bad} of another file"));
    }
}

#[test]
fn frames_deleted_repeated_and_swapped_are_out_of_place() {
    let bytes = sample();
    let whole = frames(&bytes);
    let out_of_place = |bytes: &[u8], at: usize, context: &str| {
        let verdict = read(bytes).0;
        let found = matches!(verdict, Err(ReadError::OutOfPlace { offset, .. }) if offset == at as u64);
        assert!(found, "{context}: {verdict:?}");
    };
    for (index, frame) in whole.iter().enumerate() {
        let (before, this, behind) = (&bytes[..frame.at], &bytes[frame.at..frame.end], &bytes[frame.end..]);
        out_of_place(&[before, this, this, behind].concat(), frame.end, &format!("{index} repeated"));
        let Some(next) = whole.get(index + 1) else {
            continue;
        };
        out_of_place(&[before, behind].concat(), frame.at, &format!("{index} deleted"));
        let swapped = [before, &bytes[next.at..next.end], this, &bytes[next.end..]].concat();
        out_of_place(&swapped, frame.at, &format!("{index} swapped with the next"));
    }
}

#[test]
fn another_version_and_another_workspace_are_named() {
    let mut bytes = sample();
    let header = FileHeader::decode(&bytes, None).unwrap();
    for version in [0, VERSION + 1, u32::MAX] {
        let newer = FileHeader { version, ..header };
        bytes[..FILE_HEADER].copy_from_slice(&newer.encode());
        let verdict = read(&bytes).0;
        assert!(
            matches!(verdict, Err(ReadError::Header(HeaderError::Version { version: found })) if found == version),
            "{verdict:?}"
        );
    }
    let workspace = WorkspaceId([0x22; 16]);
    bytes[..FILE_HEADER].copy_from_slice(&FileHeader { workspace, ..header }.encode());
    let verdict = read(&bytes).0;
    let named = HeaderError::OtherWorkspace { found: workspace, expected: WORKSPACE };
    assert!(matches!(&verdict, Err(ReadError::Header(found)) if *found == named), "{verdict:?}");
}

#[test]
fn a_tail_of_zeros_or_garbage_is_torn_up_to_a_size() {
    let bytes = sample();
    let records = read(&bytes).1;
    let mut noise = SALT;
    for size in (1..200).chain([4096, 65_536, WINDOW, MAX_TORN as usize]) {
        for zeros in [true, false] {
            let mut longer = bytes.clone();
            longer.extend((0..size).map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if zeros { 0 } else { (noise >> 56) as u8 }
            }));
            let (verdict, shown) = read(&longer);
            assert_eq!(verdict.unwrap().tail, Tail::Torn(size as u64), "{size} bytes");
            assert_eq!(shown, records);
        }
    }
    let mut longer = bytes.clone();
    longer.resize(bytes.len() + MAX_TORN as usize + 8, 0);
    assert!(matches!(read(&longer).0, Ok(scan) if scan.tail == Tail::Torn(MAX_TORN + 8)));
    longer.push(0);
    assert!(
        matches!(read(&longer).0, Err(ReadError::TailTooLong { offset, .. }) if offset == bytes.len() as u64)
    );
}

/// A power cut takes every subset of the pieces that were not synced. The journal is never called corrupt, and nothing
/// that was synced is lost.
#[test]
fn what_a_power_cut_leaves_is_never_corrupt() {
    const PIECE: usize = 40;
    let bytes = sample();
    let whole = frames(&bytes);
    let records = read(&bytes).1;
    let mut syncs: Vec<u64> = whole.iter().map(|frame| frame.header.durable).collect();
    syncs.dedup();
    for synced in syncs.into_iter().filter(|synced| *synced > 0) {
        let promised = whole.iter().filter(|frame| frame.header.sequence <= synced).count();
        // What was written until the next sync.
        let written = whole.iter().filter(|frame| frame.header.durable <= synced).count();
        let (from, to) = (whole[promised - 1].end, whole[written - 1].end);
        let pieces = (to - from).div_ceil(PIECE);
        assert!(pieces <= 12, "{pieces} pieces");
        for lost in 0..1_u32 << pieces {
            let mut left = bytes[..to].to_vec();
            for piece in (0..pieces).filter(|piece| lost >> piece & 1 == 1) {
                let end = to.min(from + (piece + 1) * PIECE);
                left[from + piece * PIECE..end].fill(0);
            }
            let (verdict, shown) = read(&left);
            assert!(verdict.is_ok(), "synced up to {synced}, lost {lost:b}: {verdict:?}");
            assert!(shown.len() >= promised, "synced up to {synced}, lost {lost:b}");
            assert_eq!(shown, records[..shown.len()]);
        }
    }
}

fn check(salt: u64, frame: &[u8]) -> u32 {
    crc32c::crc32c(&[&salt.to_le_bytes()[..], &frame[..4], &frame[8..]].concat())
}

/// A frame around a payload that may be no record.
fn forged(sequence: u64, generation: u64, durable: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; (FRAME_HEADER + payload.len()).next_multiple_of(8)];
    frame[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    frame[8..16].copy_from_slice(&sequence.to_le_bytes());
    frame[16..24].copy_from_slice(&generation.to_le_bytes());
    frame[24..32].copy_from_slice(&durable.to_le_bytes());
    frame[FRAME_HEADER..FRAME_HEADER + payload.len()].copy_from_slice(payload);
    let check = check(SALT, &frame);
    frame[4..8].copy_from_slice(&check.to_le_bytes());
    frame
}

fn header(first_sequence: u64) -> Vec<u8> {
    let header = FileHeader { version: VERSION, workspace: WORKSPACE, salt: SALT, first_sequence };
    header.encode().to_vec()
}

/// A checkpoint with an empty final state.
const CHECKPOINT: [u8; 20] = [0; 20];

#[test]
fn payloads_that_are_no_records_are_named_and_nothing_is_changed() {
    let checkpoint = forged(1, 0, 0, &CHECKPOINT);
    let string_of = |size: u64| [&[2, 0, 0, 0, 0, 0, 1, 0][..], &size.to_le_bytes()].concat();
    let begin = |size: u64| [&[1, 0, 0, 0, 1, 0][..], &size.to_le_bytes(), &[0; 8]].concat();
    for payload in [
        vec![0],
        vec![7, 0, 0, 0],
        vec![4, 0, 0, 0, 0, 0, 0],
        u32::MAX.to_le_bytes().to_vec(),
        string_of(1),
        string_of(1 << 16),
        string_of(1 << 40),
        string_of(u64::MAX),
        begin(9),
        begin(u64::MAX),
        [&begin(0)[..], &[0]].concat(),
        [&[6, 0, 0, 0, 3, 0, 0, 0][..], &[0; 16]].concat(),
    ] {
        let bytes = [header(1), checkpoint.clone(), forged(2, 1, 1, &payload)].concat();
        let verdict = read(&bytes).0;
        assert!(matches!(verdict, Err(ReadError::Unknown { sequence: 2, .. })), "{payload:?}: {verdict:?}");
    }
}

#[test]
fn numbers_that_are_too_large_are_refused() {
    for (sequence, generation) in
        [(u64::MAX, 0), (MAX_NUMBER + 1, 0), (1, MAX_NUMBER + 1), (1, u64::MAX), (0, 0)]
    {
        let durable = sequence.saturating_sub(1);
        let bytes = [header(sequence), forged(sequence, generation, durable, &CHECKPOINT)].concat();
        let verdict = read(&bytes).0;
        assert!(
            matches!(verdict, Err(ReadError::NumberTooLarge { .. } | ReadError::OutOfPlace { .. })),
            "{sequence}, {generation}: {verdict:?}"
        );
    }
    let bytes = [header(MAX_NUMBER), forged(MAX_NUMBER, MAX_NUMBER, 0, &CHECKPOINT)].concat();
    assert!(read(&bytes).0.is_ok());
}

#[test]
fn a_frame_that_says_it_is_durable_itself_is_out_of_place() {
    let checkpoint = forged(1, 0, 0, &CHECKPOINT);
    let begin = [&[1, 0, 0, 0, 1, 0][..], &[0; 16]].concat();
    for durable in [2, 3, u64::MAX] {
        let bytes = [header(1), checkpoint.clone(), forged(2, 1, durable, &begin)].concat();
        let verdict = read(&bytes).0;
        assert!(matches!(verdict, Err(ReadError::OutOfPlace { .. })), "{durable}: {verdict:?}");
    }
}

/// A good record after a damaged one is the witness that the damaged one was on the medium. Each of these is good except
/// for one thing, and so is no witness.
#[test]
fn a_frame_that_nixbox_cannot_have_written_is_no_witness() {
    let begin = [&[1, 0, 0, 0, 1, 0][..], &[0; 16]].concat();
    let damaged = [0xFF; 56];
    let witness = forged(3, 1, 2, &begin);
    let behind = |tail: &[u8]| {
        let bytes = [&header(1)[..], &forged(1, 0, 0, &CHECKPOINT), &damaged, tail].concat();
        (read(&bytes).0, bytes.len() as u64)
    };
    assert!(matches!(behind(&witness).0, Err(ReadError::Corrupt { sequence: 2, witness: 3, .. })));
    // It promises itself, or what comes after it; it begins at no multiple of 8; it is empty, or too long.
    for tail in [
        forged(3, 1, 3, &begin),
        forged(3, 1, 4, &begin),
        [&[0xFF; 4][..], &witness].concat(),
        forged(3, 1, 2, &[]),
        forged(3, 1, 2, &[0; MAX_PAYLOAD + 1]),
    ] {
        let (verdict, size) = behind(&tail);
        let torn = size - FILE_HEADER as u64 - 56;
        assert!(matches!(&verdict, Ok(scan) if scan.tail == Tail::Torn(torn)), "{verdict:?}");
    }
}

#[test]
fn a_payload_out_of_range_is_no_record() {
    let checkpoint = forged(1, 0, 0, &CHECKPOINT);
    for payload in [vec![], vec![0; MAX_PAYLOAD + 1]] {
        let frame = forged(2, 1, 1, &payload);
        let verdict = read(&[&header(1)[..], &checkpoint, &frame].concat()).0;
        assert!(matches!(&verdict, Ok(scan) if scan.tail == Tail::Torn(frame.len() as u64)), "{verdict:?}");
    }
}

/// The largest value fits into the record with the largest fields of its own, and one byte more fits into no record.
#[test]
fn an_encoded_value_fits_into_any_record_and_is_read_back() {
    // A byte string is eight bytes longer than its bytes.
    let largest = encode_payload(&vec![7_u8; MAX_VALUE - 8]).unwrap();
    assert_eq!(largest.len(), MAX_VALUE);
    let refused = encode_payload(&vec![7_u8; MAX_VALUE - 7]);
    assert!(
        matches!(refused, Err(PayloadError::TooLarge { size, most: MAX_VALUE }) if size == MAX_VALUE + 1)
    );
    for record in [
        Record::Checkpoint { final_state: &largest, at_ms: 1 },
        Record::Begin { operation: 1, parameters: &largest, at_ms: 1 },
        Record::Intent { index: 0, transition: 1, payload: &largest },
        Record::Outcome { index: 0, payload: &largest, micros: 1 },
        Record::End { ended: Ended::Done, final_state: &largest, at_ms: 1 },
    ] {
        let mut bytes = Vec::new();
        encode_frame(&mut bytes, SALT, 1, Generation(1), 0, &record).unwrap();
        let length = FrameHeader::decode(&bytes).unwrap().length as usize;
        assert_eq!(decode_record(&bytes[FRAME_HEADER..FRAME_HEADER + length]).unwrap(), record);
    }
    assert_eq!(decode_payload::<Vec<u8>>(&largest).unwrap(), vec![7; MAX_VALUE - 8]);
    let longer = [&largest[..], &[0]].concat();
    assert!(matches!(decode_payload::<Vec<u8>>(&longer), Err(PayloadError::Excess { excess: 1 })));
}
