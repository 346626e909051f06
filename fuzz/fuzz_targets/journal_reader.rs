//! Any bytes as a journal: no panic, no memory beyond the window, the same answer twice, and nothing promised is lost.

#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use nixbox::engine::history::{History, IllegalHistory};
use nixbox::engine::reader::{self, JournalBytes, ReadError, Scan, Tail, WINDOW};
use nixbox::engine::record::{Checks, FILE_HEADER, FRAME_HEADER, FrameHeader};

struct Measured<'b>(&'b [u8]);

impl JournalBytes for Measured<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(buffer.len() <= WINDOW);
        self.0.read_at(offset, buffer)
    }
}

fn read(bytes: &[u8]) -> (Result<Scan, ReadError<IllegalHistory>>, History) {
    let mut history = History::default();
    let scan =
        reader::scan(&mut Measured(bytes), None, |located| history.push(located.generation, &located.record));
    (scan, history)
}

fuzz_target!(|data: (bool, &[u8])| {
    let (mend, bytes) = data;
    let mut bytes = bytes.to_vec();
    if mend {
        // No fuzzer guesses a CRC: the checks are put right, so that it gets to what is behind them.
        mend_checks(&mut bytes);
    }
    let (scan, history) = read(&bytes);
    let (again, same) = read(&bytes);
    assert_eq!(format!("{scan:?}"), format!("{again:?}"));
    assert_eq!(history, same);
    let Ok(scan) = scan else {
        return;
    };
    let valid = scan.valid as usize;
    let tail = match scan.tail {
        Tail::Clean => 0,
        Tail::Torn(size) => size as usize,
    };
    assert_eq!(valid + tail, bytes.len());
    // Cut off, it is a journal with the same records and nothing behind them.
    let (cut, kept) = read(&bytes[..valid]);
    assert_eq!(cut.unwrap(), Scan { tail: Tail::Clean, ..scan });
    assert_eq!(kept, history);
    let checks = Checks::new(scan.header.salt);
    for at in (valid + 8..bytes.len()).step_by(8) {
        let good = FrameHeader::decode(&bytes[at..]).filter(|frame| frame.matches(&checks, &bytes[at..]));
        if let Some(frame) = good {
            assert!(frame.durable < scan.next_sequence || frame.durable >= frame.sequence);
        }
    }
});

fn mend_checks(bytes: &mut [u8]) {
    if bytes.len() < FILE_HEADER {
        return;
    }
    bytes[..12].copy_from_slice(b"nixbox\0\n\x01\0\0\0");
    let check = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&check.to_le_bytes());
    let salt: [u8; 8] = bytes[32..40].try_into().unwrap();
    let mut at = FILE_HEADER;
    while let Some(frame) = bytes.get(at..).and_then(FrameHeader::decode) {
        let end = at + frame.frame_size();
        let Some(whole) = bytes.get_mut(at..end) else {
            return;
        };
        let check = crc32c::crc32c(
            &[&salt[..], &whole[..4], &whole[8..FRAME_HEADER], &whole[FRAME_HEADER..]].concat(),
        );
        // A frame that is odd here stays damaged.
        if whole[4] % 8 != 7 {
            whole[4..8].copy_from_slice(&check.to_le_bytes());
        }
        at = end;
    }
}
