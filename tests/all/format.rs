//! `journal-format.md` is correct: its worked example is what nixbox writes, nixbox reads it as the document says, and a
//! decoder that was written from the document alone reads it too.

use std::fmt::Write;

use nixbox::engine::journal::Journal;
use nixbox::engine::reader::{self, Tail};
use nixbox::engine::record::{Ended, Record, WorkspaceId};
use nixbox::engine::transition::{Generation, OperationId, TransitionId};
use nixbox::fakes::Host;

const DOCUMENT: &str = include_str!("../../journal-format.md");
const WORKSPACE: WorkspaceId =
    WorkspaceId(*b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff");
const NOW: u64 = 1_800_000_000_000;

/// The lines between `<!-- name -->` and the next marker or heading, without what Markdown puts around them.
fn block(name: &str) -> Vec<&'static str> {
    let marker = format!("<!-- {name} -->\n");
    let start = DOCUMENT.find(&marker).unwrap() + marker.len();
    let lines = DOCUMENT[start..].lines().skip_while(|line| line.is_empty());
    lines.skip(1).take_while(|line| !line.starts_with("```")).collect()
}

fn bytes_of_dump() -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in block("dump") {
        let Some((offset, rest)) = line.split_once("  ") else {
            assert!(line.is_empty(), "{line}");
            continue;
        };
        assert_eq!(usize::from_str_radix(offset, 16).unwrap(), bytes.len(), "{line}");
        let hex = rest.split("  ").next().unwrap();
        bytes.extend(hex.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What nixbox itself writes: the deletion of snapshot 6 in a workspace without a VM.
fn written_by_nixbox() -> Vec<u8> {
    let host = Host::new(53, false);
    let down: &[u8] = &[0, 0, 0, 0, 0];
    let snapshot: &[u8] = &6_u64.to_le_bytes();
    let parameters = [snapshot, down].concat();
    let mut journal = Journal::open(host.storage(WORKSPACE), WORKSPACE, Generation(6), NOW).unwrap();
    journal.begin(OperationId(5), &parameters, NOW + 10).unwrap();
    journal.intents(&[(0, TransitionId(26), snapshot.to_vec())]).unwrap();
    journal.outcome(0, &[], 800).unwrap();
    journal.sync().unwrap();
    journal.intents(&[(1, TransitionId(18), snapshot.to_vec())]).unwrap();
    journal.outcome(1, &[], 95_000).unwrap();
    journal.end(Ended::Done, down, NOW + 120).unwrap();
    host.journal_bytes(WORKSPACE).unwrap()
}

#[test]
fn the_example_is_what_nixbox_writes() {
    let written = written_by_nixbox();
    let (dump, _) = by_the_document(&written);
    assert_eq!(bytes_of_dump(), written, "the dump should be:\n{}", dump.join("\n"));
}

#[test]
fn nixbox_reads_the_example_as_listed() {
    let bytes = bytes_of_dump();
    let mut rows = Vec::new();
    let scan = reader::scan(&mut bytes.as_slice(), Some(WORKSPACE), |located| {
        let mut text = String::new();
        match located.record {
            Record::Checkpoint { final_state, at_ms } => {
                write!(text, "Checkpoint final_state={} at_ms={at_ms}", hex(final_state))
            }
            Record::Begin { operation, parameters, at_ms } => {
                write!(text, "Begin operation={operation} parameters={} at_ms={at_ms}", hex(parameters))
            }
            Record::Intent { index, transition, payload } => {
                write!(text, "Intent index={index} transition={transition} payload={}", hex(payload))
            }
            Record::Outcome { index, payload, micros } => {
                write!(text, "Outcome index={index} payload={} micros={micros}", hex(payload))
            }
            Record::UndoBegun { index } => write!(text, "UndoBegun index={index}"),
            Record::Undone { index, micros } => {
                write!(text, "Undone index={index} micros={micros}")
            }
            Record::End { ended, final_state, at_ms } => {
                write!(text, "End ended={ended:?} final_state={} at_ms={at_ms}", hex(final_state))
            }
        }
        .unwrap();
        rows.push(format!("{:04x}  {}  {}  {text}", located.offset, located.sequence, located.generation));
        Ok::<_, std::convert::Infallible>(())
    })
    .unwrap();
    assert_eq!(rows, block("records"));
    assert_eq!((scan.valid, scan.tail), (bytes.len() as u64, Tail::Clean));
}

#[test]
fn a_decoder_written_from_the_document_agrees() {
    let (dump, rows) = by_the_document(&bytes_of_dump());
    assert_eq!(rows, block("records"));
    assert_eq!(dump, block("dump"));
}

/// The document names each cut of its example, and what is left of it.
#[test]
fn the_example_cut_short_leaves_what_is_listed() {
    let bytes = bytes_of_dump();
    let mut cuts = 0;
    for line in block("cuts") {
        let mut words = line.split_whitespace().map(|word| usize::from_str_radix(word, 16).unwrap());
        let (size, valid, records) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let scan =
            reader::scan(&mut &bytes[..size], None, |_| Ok::<_, std::convert::Infallible>(())).unwrap();
        assert_eq!((scan.valid, scan.records), (valid as u64, records as u64), "{line}");
        cuts += 1;
    }
    assert!(cuts > 2, "{cuts} cuts");
}

// Everything below is written from the document alone and uses nothing of nixbox.

/// CRC-32C, one bit at a time.
fn crc(parts: &[&[u8]]) -> u32 {
    let mut register = u32::MAX;
    for byte in parts.iter().flat_map(|part| part.iter()) {
        register ^= u32::from(*byte);
        for _ in 0..8 {
            register = (register >> 1) ^ if register & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !register
}

#[test]
fn the_check_is_standard_crc_32c() {
    assert_eq!(crc(&[b"123456789"]), 0xE306_9283);
}

/// Takes bytes from the front, and writes down what they are.
struct Dump<'b> {
    bytes: &'b [u8],
    at: usize,
    lines: Vec<String>,
}

impl<'b> Dump<'b> {
    fn take(&mut self, size: usize, note: impl FnOnce(&[u8]) -> String) -> &'b [u8] {
        let taken = &self.bytes[self.at..self.at + size];
        let note = note(taken);
        for (row, chunk) in taken.chunks(16).enumerate() {
            let hex: Vec<_> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
            let note = if row == 0 { note.as_str() } else { "" };
            let line = format!("{:04x}  {:<47}  {note}", self.at + 16 * row, hex.join(" "));
            self.lines.push(line.trim_end().to_owned());
        }
        self.at += size;
        taken
    }

    fn number(&mut self, size: usize, name: &str) -> u64 {
        number(self.take(size, |bytes| {
            let value = number(bytes);
            if name == "check" { format!("{name} {value:#010x}") } else { format!("{name} {value}") }
        }))
    }

    /// A byte string: its length, then its bytes.
    fn string(&mut self, name: &str) -> String {
        let size = self.number(8, &format!("length of {name}"));
        if size == 0 {
            return "-".to_owned();
        }
        hex(self.take(size as usize, |_| name.to_owned()))
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Decodes a whole journal. Returns the annotated dump, and a line for every record.
fn by_the_document(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
    let mut dump = Dump { bytes, at: 0, lines: Vec::new() };
    let magic = dump.take(8, |_| "magic \"nixbox\\0\\n\"".to_owned());
    assert_eq!(magic, b"nixbox\0\n");
    assert_eq!(dump.number(4, "version"), 1);
    dump.take(4, |_| "reserved".to_owned());
    dump.take(16, |_| "workspace".to_owned());
    let salt = dump.take(8, |bytes| format!("salt {:#x}", number(bytes)));
    let mut sequence = dump.number(8, "first sequence");
    dump.take(12, |_| "reserved".to_owned());
    assert_eq!(dump.number(4, "check"), u64::from(crc(&[&bytes[..60]])));
    let mut rows = Vec::new();
    while dump.at < bytes.len() {
        let start = dump.at;
        assert_eq!(start % 8, 0);
        dump.lines.push(String::new());
        let length = dump.number(4, "length") as usize;
        let check = dump.number(4, "check");
        assert_eq!(dump.number(8, "sequence"), sequence);
        let generation = dump.number(8, "generation");
        assert!(dump.number(8, "durable") < sequence);
        let end = start + 32 + length;
        let padded = end.next_multiple_of(8);
        let covered = [salt, &bytes[start..start + 4], &bytes[start + 8..padded]];
        assert_eq!(check, u64::from(crc(&covered)));
        rows.push(format!("{start:04x}  {sequence}  {generation}  {}", payload(&mut dump)));
        assert_eq!(dump.at, end);
        if padded > end {
            let padding = dump.take(padded - end, |_| "padding".to_owned());
            assert!(padding.iter().all(|byte| *byte == 0));
        }
        sequence += 1;
    }
    (dump.lines, rows)
}

fn payload(dump: &mut Dump<'_>) -> String {
    const KINDS: [&str; 7] = ["Checkpoint", "Begin", "Intent", "Outcome", "UndoBegun", "Undone", "End"];
    const ENDINGS: [&str; 3] = ["Done", "RolledBack", "Lost"];
    let kind = number(dump.take(4, |bytes| KINDS[number(bytes) as usize].to_owned()));
    let text = match kind {
        0 => format!("final_state={} at_ms={}", dump.string("final_state"), dump.number(8, "at_ms")),
        1 => format!(
            "operation={} parameters={} at_ms={}",
            dump.number(2, "operation"),
            dump.string("parameters"),
            dump.number(8, "at_ms")
        ),
        2 => format!(
            "index={} transition={} payload={}",
            dump.number(2, "index"),
            dump.number(2, "transition"),
            dump.string("payload")
        ),
        3 => format!(
            "index={} payload={} micros={}",
            dump.number(2, "index"),
            dump.string("payload"),
            dump.number(8, "micros")
        ),
        4 => format!("index={}", dump.number(2, "index")),
        5 => format!("index={} micros={}", dump.number(2, "index"), dump.number(8, "micros")),
        _ => {
            let ended = dump.take(4, |bytes| format!("ended {}", ENDINGS[number(bytes) as usize]));
            let ended = ENDINGS[number(ended) as usize];
            format!(
                "ended={ended} final_state={} at_ms={}",
                dump.string("final_state"),
                dump.number(8, "at_ms")
            )
        }
    };
    format!("{} {text}", KINDS[kind as usize])
}
