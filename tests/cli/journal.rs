//! `nixbox journal` on journals that are empty, whole, torn and damaged.

use std::fs;

use nixbox::engine::journal::Journal;
use nixbox::engine::record::Ended;
use nixbox::engine::transition::{OperationId, TransitionId};
use nixbox::store::journal_files::FileStorage;
use nixbox::world::{Generation, WorkspaceId};

use super::TestDirectory;

/// Writes a journal with a `down` that is done and an `up` that is not. Returns its path.
fn written(directory: &TestDirectory, workspace: WorkspaceId) -> std::path::PathBuf {
    let directory = directory.state().join("journal");
    let storage = FileStorage::new(&directory).unwrap();
    let mut journal = Journal::open(storage, workspace, Generation(6), 1_000).unwrap();
    journal.begin(OperationId(2), &[], 2_000).unwrap();
    journal.intents(&[(0, TransitionId(25), vec![1, 2])]).unwrap();
    journal.outcome(0, &[], 1_500).unwrap();
    journal.end(Ended::Done, &[], 3_000).unwrap();
    // `up` without a disk of before and without shares, as operations/up.rs encodes its plan.
    journal.begin(OperationId(1), &[0, 0], 4_000).unwrap();
    journal.intents(&[(0, TransitionId(8), vec![])]).unwrap();
    directory.join("journal")
}

fn id(directory: &TestDirectory) -> WorkspaceId {
    directory.found().id()
}

#[test]
fn a_missing_journal_is_shown_as_absent() {
    let directory = TestDirectory::workspace();
    let before = directory.listing();
    let listing = directory.ok(&["journal", "--json"]).json();
    assert_eq!(listing["verdict"]["kind"], "absent");
    assert_eq!(listing["operations"].as_array().unwrap().len(), 0);
    assert_eq!(directory.listing(), before);
}

#[test]
fn operations_are_shown_with_labels_statuses_and_durations() {
    let directory = TestDirectory::workspace();
    written(&directory, id(&directory));
    let before = directory.listing();
    let listing = directory.ok(&["journal", "--json"]).json();
    assert_eq!(listing["verdict"]["kind"], "clean");
    let operations = listing["operations"].as_array().unwrap();
    assert_eq!(operations.len(), 2);
    let (down, up) = (&operations[0], &operations[1]);
    assert_eq!(down["generation"], 7);
    assert_eq!(down["operation"], "down");
    assert_eq!((&down["begun_ms"], &down["ended_ms"]), (&2_000.into(), &3_000.into()));
    assert_eq!(down["ended"], "done");
    assert_eq!(down["transitions"][0]["status"], "done");
    assert_eq!(down["transitions"][0]["micros"], 1_500);
    assert_eq!(up["operation"], "up");
    assert_eq!(up["ended"], "open");
    assert_eq!(up["transitions"][0]["label"], "pre-up scripts");
    assert_eq!(up["transitions"][0]["status"], "intent only");
    let text = directory.ok(&["journal"]).stdout;
    for words in
        ["1970-01-01T00:00:02Z  down: done after 1.0 s", "up: open", "pre-up scripts: intent only", "clean"]
    {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(directory.listing(), before);
    let status = directory.ok(&["status"]).stdout;
    assert!(status.contains("`up` was left half done"), "{status}");
}

#[test]
fn a_torn_tail_is_named_and_not_cut_off() {
    let directory = TestDirectory::workspace();
    let path = written(&directory, id(&directory));
    let mut bytes = fs::read(&path).unwrap();
    let whole = bytes.len();
    bytes.extend_from_slice(&[7; 13]);
    fs::write(&path, &bytes).unwrap();
    let before = directory.listing();
    let listing = directory.ok(&["journal", "--json"]).json();
    assert_eq!(listing["verdict"]["kind"], "torn");
    assert_eq!(listing["verdict"]["bytes"], bytes.len() - whole);
    assert_eq!(directory.listing(), before);
}

#[test]
fn a_damaged_journal_is_named_and_no_operation_begins() {
    let directory = TestDirectory::workspace();
    let path = written(&directory, id(&directory));
    let mut bytes = fs::read(&path).unwrap();
    // In the record of the first Begin: behind the header of 64 bytes and the checkpoint.
    bytes[64 + 32 + 8 + 32 + 2] ^= 0x40;
    fs::write(&path, &bytes).unwrap();
    let before = directory.listing();
    let said = directory.run(&["journal", "--json"]);
    assert_eq!(said.code, Some(4), "{said:?}");
    let listing = said.json();
    assert_eq!(listing["verdict"]["kind"], "corrupt");
    assert!(listing["verdict"]["byte"].as_u64().unwrap() >= 64);
    directory.run(&["recover"]).failed(4, &["corrupt at byte", "nixbox journal"]);
    // No VM runs, and `down` would end one without the journal.
    let down = directory.run(&["down"]);
    assert_eq!(down.code, Some(0), "{down:?}");
    assert!(down.stderr.contains("corrupt at byte") && down.stderr.contains("left as it is"), "{down:?}");
    assert_eq!(directory.listing(), before);
}

#[test]
fn a_journal_of_another_workspace_or_a_newer_format_is_named() {
    let directory = TestDirectory::workspace();
    let path = written(&directory, WorkspaceId([9; 16]));
    let said = directory.run(&["journal", "--json"]);
    assert_eq!(said.code, Some(4));
    assert_eq!(said.json()["verdict"]["kind"], "other-workspace");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    let check = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&check.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let said = directory.run(&["journal", "--json"]);
    assert_eq!(said.code, Some(4));
    assert_eq!(said.json()["verdict"]["kind"], "newer-version");
    let down = directory.run(&["down"]);
    assert!(down.code == Some(0) && down.stderr.contains("format version 2"), "{down:?}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}
