//! The journal's files: opened, rotated and written with a crash or an error at every call of the storage.

use std::io::ErrorKind;

use nixbox::engine::history::{IllegalHistory, TransitionStatus};
use nixbox::engine::journal::{Journal, JournalError, Name, ROTATE_AT, Storage, inspect};
use nixbox::engine::reader::{ReadError, Scan, Tail};
use nixbox::engine::record::{
    Ended, FILE_HEADER, FileHeader, FrameHeader, MAX_PAYLOAD, PayloadError, Record, encode_frame,
};
use nixbox::engine::transition::{Generation, OperationId, TransitionId};
use nixbox::fakes::{Crash, FakeStorage, Fault, Host, Survival};

use crate::harness::{Command, Said, WORKSPACE, host_after, run, run_with};

const CRASHES: [Crash; 8] = [
    Crash::Death,
    Crash::PowerCut(Survival::Nothing),
    Crash::PowerCut(Survival::Everything),
    Crash::PowerCut(Survival::Some(1)),
    Crash::PowerCut(Survival::Some(2)),
    Crash::PowerCut(Survival::Some(3)),
    Crash::PowerCut(Survival::Some(4)),
    Crash::PowerCut(Survival::Some(5)),
];

fn open(host: &Host) -> Result<Journal<FakeStorage>, JournalError> {
    Journal::open(host.storage(WORKSPACE), WORKSPACE, Generation(6), 1)
}

fn read(host: &Host) -> Scan {
    inspect(&mut host.storage(WORKSPACE), Some(WORKSPACE), |_| {}).unwrap().unwrap().0
}

fn whole(host: &Host, name: Name) -> Option<Vec<u8>> {
    let mut storage = host.storage(WORKSPACE);
    let mut bytes = vec![0; storage.size(name).unwrap()? as usize];
    assert_eq!(storage.read_at(name, 0, &mut bytes).unwrap(), bytes.len());
    Some(bytes)
}

fn intent(index: u16, size: usize) -> (u16, TransitionId, Vec<u8>) {
    (index, TransitionId(9), vec![7; size])
}

/// A host with a journal of this size, in which one operation has ended. Its final state is `stands`.
fn host_with_journal(size: u64) -> Host {
    let host = Host::new(53, false);
    let mut journal = open(&host).unwrap();
    journal.begin(OperationId(1), b"", 2).unwrap();
    for index in 0.. {
        if whole(&host, Name::Current).unwrap().len() as u64 >= size {
            break;
        }
        journal.intents(&[intent(index, 60_000)]).unwrap();
    }
    journal.end(Ended::Done, b"stands", 3).unwrap();
    host
}

/// A run that begins an operation and gets as far as its first intent.
fn begin_one(host: &Host) -> Result<Generation, JournalError> {
    let mut journal = open(host)?;
    let generation = journal.begin(OperationId(2), b"p", 4)?;
    journal.intents(&[intent(0, 5)])?;
    Ok(generation)
}

#[test]
fn creating_a_journal_may_be_interrupted_anywhere() {
    for crash in CRASHES {
        for point in 0.. {
            let host = Host::new(53, false);
            host.set_fault(Fault::CrashAt(point, crash), None);
            let opened = open(&host).map(drop);
            if !host.died() {
                assert!(opened.is_ok() && point > 10, "{crash:?}: {point} points");
                break;
            }
            host.set_fault(Fault::None, None);
            let journal = open(&host).unwrap();
            assert_eq!(journal.history().generation, Generation(6));
            assert_eq!(journal.history().final_state, b"");
            assert_eq!(read(&host).records, 1, "{crash:?} at {point}");
            assert_eq!(whole(&host, Name::Next), None, "{crash:?} at {point}");
        }
    }
}

#[test]
fn a_rotation_interrupted_anywhere_leaves_one_whole_journal() {
    let before = host_with_journal(ROTATE_AT);
    let (old, old_bytes) = (read(&before), whole(&before, Name::Current).unwrap());
    let mut new_ones = 0;
    for crash in CRASHES {
        for point in 0.. {
            let host = before.fork();
            host.set_fault(Fault::CrashAt(point, crash), None);
            let begun = begin_one(&host);
            if !host.died() {
                assert!(begun.is_ok() && point > 25, "{crash:?}: {point} points");
                break;
            }
            let context = format!("{crash:?} at {point}");
            host.set_fault(Fault::None, None);
            let journal = open(&host).unwrap();
            let history = journal.history();
            let begun = u64::from(history.open().is_some());
            assert_eq!(history.generation, Generation(7 + begun), "{context}");
            assert_eq!(history.final_state, b"stands", "{context}");
            drop(journal);
            let scan = read(&host);
            if scan.header == old.header {
                assert_eq!(scan, old, "{context}");
                assert_eq!(whole(&host, Name::Current).unwrap(), old_bytes, "{context}");
            } else {
                new_ones += 1;
                assert_ne!(scan.header.salt, old.header.salt, "{context}");
                assert_eq!(scan.header.first_sequence, old.next_sequence, "{context}");
                assert_eq!(scan.tail, Tail::Clean, "{context}");
            }
            assert_eq!(whole(&host, Name::Next), None, "{context}");
            again_the_same(&host, &context);
            what_is_synced_stays(&host, &context);
        }
    }
    assert!(new_ones > 20, "{new_ones} crashes came after the rename");
}

/// Opens a journal twice, which has to be the same as opening it once.
fn again_the_same(host: &Host, context: &str) {
    let once = host.fingerprint();
    drop(open(host).unwrap());
    assert_eq!(once, host.fingerprint(), "{context}: opened twice");
}

/// An intent that is synced is there after a power cut, whatever happened before.
fn what_is_synced_stays(host: &Host, context: &str) {
    let host = host.fork();
    let mut journal = open(&host).unwrap();
    if journal.open_operation().is_some() {
        journal.end(Ended::RolledBack, b"stands", 5).unwrap();
    }
    let generation = journal.begin(OperationId(3), b"q", 6).unwrap();
    journal.intents(&[intent(0, 4)]).unwrap();
    host.power_cut(Survival::Nothing);
    let journal = open(&host).unwrap();
    let open = journal.open_operation().expect(context);
    assert_eq!((open.generation, open.parameters.as_slice()), (generation, &b"q"[..]), "{context}");
    assert_eq!(open.entry(0).status, TransitionStatus::IntentOnly, "{context}");
}

#[test]
fn a_rotation_keeps_the_file_before_and_goes_on_counting() {
    let host = host_with_journal(ROTATE_AT);
    let (old, old_bytes) = (read(&host), whole(&host, Name::Current).unwrap());
    assert_eq!(begin_one(&host).unwrap(), Generation(8));
    assert_eq!(whole(&host, Name::Previous).unwrap(), old_bytes);
    let new = read(&host);
    assert_eq!((new.records, new.next_sequence), (3, old.next_sequence + 3));
    let expected = FileHeader { salt: new.header.salt, first_sequence: old.next_sequence, ..old.header };
    assert_eq!(new.header, expected);
}

#[test]
fn a_shorter_journal_is_not_rotated() {
    let host = host_with_journal(ROTATE_AT / 2);
    let old = read(&host);
    begin_one(&host).unwrap();
    assert_eq!(read(&host).header, old.header);
    assert_eq!(whole(&host, Name::Previous), None);
}

/// A rotation never forgets an open operation.
#[test]
fn nothing_begins_while_an_operation_is_open() {
    for size in [0, ROTATE_AT] {
        let host = host_with_journal(size);
        let mut journal = open(&host).unwrap();
        let generation = journal.begin(OperationId(2), b"", 4).unwrap();
        let sizes = (0..20).map(|index| intent(index, if size == 0 { 1 } else { 60_000 }));
        journal.intents(&sizes.collect::<Vec<_>>()).unwrap();
        let refused = journal.begin(OperationId(3), b"", 5);
        assert!(
            matches!(&refused, Err(JournalError::Illegal { source: IllegalHistory::StillOpen { open }, .. })
                if *open == generation),
            "{refused:?}"
        );
        drop(journal);
        assert_eq!(open(&host).unwrap().open_operation().unwrap().entries().len(), 20);
    }
}

#[test]
fn a_torn_tail_is_cut_off_whenever_the_cutting_is_interrupted() {
    let mut torn = 0;
    for seed in 0..200 {
        let host = host_with_journal(0);
        let mut journal = open(&host).unwrap();
        journal.begin(OperationId(2), b"", 4).unwrap();
        journal.intents(&[intent(0, 10), intent(1, 10), intent(2, 10)]).unwrap();
        for index in [2, 0, 1] {
            journal.outcome(index, b"done", 1).unwrap();
        }
        journal.undo_begun(2).unwrap();
        drop(journal);
        host.power_cut(Survival::Some(seed));
        let Tail::Torn(_) = read(&host).tail else {
            continue;
        };
        torn += 1;
        for crash in [Crash::Death, Crash::PowerCut(Survival::Some(seed)), Crash::PowerCut(Survival::Nothing)]
        {
            for point in 0.. {
                let again = host.fork();
                again.set_fault(Fault::CrashAt(point, crash), None);
                let opened = open(&again).map(drop);
                if !again.died() {
                    assert!(opened.is_ok());
                    break;
                }
                let context = format!("{seed}: {crash:?} at {point}");
                again.set_fault(Fault::None, None);
                let journal = open(&again).unwrap();
                assert_eq!(journal.open_operation().unwrap().entries().len(), 3, "{context}");
                assert_eq!(read(&again).tail, Tail::Clean, "{context}");
                again_the_same(&again, &context);
                what_is_synced_stays(&again, &context);
            }
        }
    }
    assert!(torn > 50, "only {torn} torn tails");
}

/// A run dies, the next run goes on from records that the first had not synced, and then the power fails.
#[test]
fn opening_syncs_what_an_earlier_run_left() {
    for seed in 0..500 {
        let host = host_with_journal(0);
        begin_one(&host).unwrap();
        let mut journal = open(&host).unwrap();
        journal.outcome(0, b"done", 1).unwrap();
        drop(journal);
        let mut journal = open(&host).unwrap();
        journal.undo_begun(0).unwrap();
        journal.undone(0, 1).unwrap();
        drop(journal);
        host.power_cut(Survival::Some(seed));
        let journal = open(&host).unwrap();
        assert!(journal.open_operation().unwrap().entry(0).status >= TransitionStatus::Done, "seed {seed}");
    }
}

#[test]
fn a_refused_record_is_not_written() {
    let host = host_with_journal(0);
    let mut journal = open(&host).unwrap();
    let before = whole(&host, Name::Current);
    let refused = journal.begin(OperationId(1), &[0; MAX_PAYLOAD], 1);
    assert!(
        matches!(&refused, Err(JournalError::Payload { source: PayloadError::TooLarge { .. }, .. })),
        "{refused:?}"
    );
    assert_eq!(whole(&host, Name::Current), before);
    journal.begin(OperationId(1), b"", 1).unwrap();
    let begun = whole(&host, Name::Current);
    let refused = journal.outcome(0, b"", 1);
    assert!(matches!(&refused, Err(JournalError::Illegal { .. })), "{refused:?}");
    assert_eq!(whole(&host, Name::Current), begun);
    assert_poisoned(&mut journal);
}

fn assert_poisoned(journal: &mut Journal<FakeStorage>) {
    let refusals = [
        journal.begin(OperationId(1), b"", 1).map(drop),
        journal.intents(&[intent(0, 1)]),
        journal.outcome(0, b"", 1),
        journal.undo_begun(0),
        journal.undone(0, 1),
        journal.end(Ended::Done, b"", 1),
        journal.sync(),
    ];
    for refused in refusals {
        assert!(matches!(refused, Err(JournalError::Poisoned { .. })), "{refused:?}");
    }
}

/// A full disk, a broken disk, and a read-only one.
fn kinds() -> [ErrorKind; 3] {
    [ErrorKind::StorageFull, std::io::Error::from_raw_os_error(5).kind(), ErrorKind::ReadOnlyFilesystem]
}

/// Everything that a run may do with a journal, up to its end or the first error.
fn all_of_it(journal: &mut Journal<FakeStorage>) -> Result<(), JournalError> {
    journal.begin(OperationId(2), b"p", 4)?;
    journal.intents(&[intent(0, 5), intent(1, 5)])?;
    journal.outcome(0, b"x", 1)?;
    journal.undo_begun(1)?;
    journal.undone(1, 1)?;
    journal.undo_begun(0)?;
    journal.undone(0, 1)?;
    journal.end(Ended::RolledBack, b"stands", 9)
}

#[test]
fn after_an_error_nothing_more_is_written_and_the_next_run_goes_on() {
    let before = host_with_journal(ROTATE_AT);
    for kind in kinds() {
        for write in 0.. {
            let host = before.fork();
            let mut journal = open(&host).unwrap();
            host.set_fault(Fault::StorageFails(write, kind), None);
            let done = all_of_it(&mut journal);
            if host.counts().writes <= write {
                assert!(done.is_ok() && write > 15, "{write} writes");
                break;
            }
            let error = done.unwrap_err();
            let JournalError::Io { path, source, .. } = &error else {
                panic!("write {write}: {error:?}");
            };
            assert_eq!(source.kind(), kind);
            assert!(path.contains("/journal"), "{error}");
            host.set_fault(Fault::None, None);
            assert_poisoned(&mut journal);
            drop(journal);
            let journal = open(&host).unwrap();
            assert_eq!(journal.history().final_state, b"stands", "write {write}");
            drop(journal);
            again_the_same(&host, "after an error");
            what_is_synced_stays(&host, "after an error");
        }
    }
}

#[test]
fn opening_on_a_bad_medium_is_an_error_that_names_the_file() {
    let torn = host_with_journal(0);
    let mut journal = open(&torn).unwrap();
    journal.begin(OperationId(2), b"", 4).unwrap();
    journal.outcome(0, b"", 1).unwrap_err();
    drop(journal);
    torn.power_cut(Survival::Some(1));
    for before in [Host::new(53, false), torn] {
        for kind in kinds() {
            for write in 0.. {
                let host = before.fork();
                host.set_fault(Fault::StorageFails(write, kind), None);
                let opened = open(&host).map(drop);
                if host.counts().writes <= write {
                    assert!(opened.is_ok() && write > 1);
                    break;
                }
                let text = opened.unwrap_err().to_string();
                assert!(text.starts_with("cannot ") && text.contains("/journal"), "{text}");
                host.set_fault(Fault::None, None);
                open(&host).unwrap();
            }
        }
    }
}

/// A run whose journal fails at some write stops and names the file, and the next run recovers.
fn every_failing_write(before: &Host, command: Command) {
    for kind in kinds() {
        for write in 0.. {
            let host = before.fork();
            let said = run_with(&host, command, Fault::StorageFails(write, kind));
            if host.counts().writes <= write {
                assert!(said.done() && write > 15, "{write} writes, and it said {said:?}");
                break;
            }
            let text = text_of(&said);
            assert!(text.starts_with("cannot ") && text.contains("/journal"), "write {write}: {text}");
            let recovered = run(&host, Command::Recover);
            assert!(!recovered.stuck(), "{kind:?} at write {write}: {recovered:?}");
            assert_eq!(host.violations(WORKSPACE), [], "{kind:?} at write {write}");
            let once = host.fingerprint();
            run(&host, Command::Recover);
            assert_eq!(once, host.fingerprint(), "{kind:?} at write {write}");
        }
    }
}

fn text_of(said: &Said) -> String {
    said.journal_error().map_or_else(|| format!("{said:?}"), ToString::to_string)
}

#[test]
fn up_on_a_failing_medium() {
    every_failing_write(&Host::new(53, true), Command::Up);
    every_failing_write(&host_after(53, true, &[Command::Up, Command::Down]), Command::Up);
}

#[test]
fn snapshot_on_a_failing_medium() {
    every_failing_write(&host_after(53, true, &[Command::Up]), Command::Snapshot);
    every_failing_write(&host_after(53, true, &[Command::Up]), Command::SnapshotStop);
}

/// The `durable` of the next frame is the last frame in the file, also if an earlier run wrote it.
#[test]
fn the_next_frame_says_that_opened_and_rotated_records_are_durable() {
    let promised = |bytes: &[u8], at: usize| FrameHeader::decode(&bytes[at..]).unwrap().durable;
    let host = host_with_journal(0);
    let old = read(&host);
    begin_one(&host).unwrap();
    let bytes = whole(&host, Name::Current).unwrap();
    assert_eq!(promised(&bytes, old.valid as usize), old.next_sequence - 1);

    let host = host_with_journal(ROTATE_AT);
    let old = read(&host);
    begin_one(&host).unwrap();
    let bytes = whole(&host, Name::Current).unwrap();
    assert_eq!(promised(&bytes, FILE_HEADER), old.next_sequence - 1);
}

/// A journal counts the bytes that it writes, and starts from zero with each file.
#[test]
fn a_journal_that_stays_open_is_rotated_when_it_has_grown() {
    let host = Host::new(53, false);
    let mut journal = open(&host).unwrap();
    let mut rotated = Vec::new();
    for _ in 0..60 {
        let (before, size) = (read(&host).header, whole(&host, Name::Current).unwrap().len() as u64);
        journal.begin(OperationId(1), &[7; 60_000], 1).unwrap();
        assert_eq!(read(&host).header != before, size >= ROTATE_AT, "{size} bytes");
        rotated.extend((size >= ROTATE_AT).then_some(size));
        journal.end(Ended::Done, b"stands", 1).unwrap();
    }
    assert_eq!(rotated.len(), 3, "{rotated:?}");
}

/// A journal of good records, one of which cannot follow the one before: it is not opened, and nothing is changed.
#[test]
fn an_illegal_history_is_not_opened_and_its_record_is_named() {
    let host = host_with_journal(0);
    let (scan, mut bytes) = (read(&host), whole(&host, Name::Current).unwrap());
    let record = Record::Outcome { index: 3, payload: b"", micros: 1 };
    let (sequence, generation) = (scan.next_sequence, Generation(7));
    encode_frame(&mut bytes, scan.header.salt, sequence, generation, sequence - 1, &record).unwrap();
    let mut storage = host.storage(WORKSPACE);
    storage.append(Name::Current, &bytes[scan.valid as usize..]).unwrap();
    let Err(JournalError::Unusable { source, .. }) = open(&host).map(drop) else {
        panic!("it was opened");
    };
    let ReadError::Refused { offset, sequence: named, source } = *source else { panic!("{source}") };
    assert_eq!((offset, named, source), (scan.valid, sequence, IllegalHistory::NoneOpen));
    assert_eq!(whole(&host, Name::Current).unwrap(), bytes);
}
