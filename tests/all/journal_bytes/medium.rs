//! Files of any length, media that return a byte at a time, and media that fail.

use super::*;

/// A file that is larger than memory: the same frames again and again, made when they are read.
struct Endless<'b> {
    bytes: &'b [u8],
    zeros: u64,
    largest: usize,
}

impl JournalBytes for Endless<'_> {
    fn read_at(&mut self, offset: u64, mut buffer: &mut [u8]) -> io::Result<usize> {
        self.largest = self.largest.max(buffer.len());
        let size = self.bytes.read_at(offset, buffer)?;
        if size > 0 {
            return Ok(size);
        }
        let rest = (self.bytes.len() as u64 + self.zeros).saturating_sub(offset);
        let size = buffer.len().min(rest as usize);
        buffer = &mut buffer[..size];
        buffer.fill(0);
        Ok(size)
    }
}

impl Endless<'_> {
    fn read_at_most_a_window(mut self) -> Result<Scan, ReadError<Infallible>> {
        let scan = reader::scan(&mut self, None, |_| Ok(()));
        assert!((1..=WINDOW).contains(&self.largest), "{} bytes at once", self.largest);
        scan
    }
}

#[test]
fn memory_is_bounded_by_the_window() {
    // Large frames, a large tail, and one that is too large by far.
    let mut bytes = header(1);
    bytes.extend(forged(1, 0, 0, &CHECKPOINT));
    let payload = vec![9; MAX_PAYLOAD - 16];
    for sequence in 2..100 {
        let record = Record::Intent { index: 0, transition: 1, payload: &payload };
        encode_frame(&mut bytes, SALT, sequence, Generation(1), 1, &record).unwrap();
    }
    let of = |zeros| Endless { bytes: &bytes, zeros, largest: 0 }.read_at_most_a_window();
    assert_eq!(of(0).unwrap().records, 99);
    assert_eq!(of(MAX_TORN).unwrap().tail, Tail::Torn(MAX_TORN));
    assert!(matches!(of(1 << 50), Err(ReadError::TailTooLong { .. })));
}

/// A medium that returns a byte at a time, and an interrupted error before each.
struct Dribble<'b>(&'b [u8], bool);

impl JournalBytes for Dribble<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let size = buffer.len().min(1);
        self.0.read_at(offset, &mut buffer[..size])
    }
}

#[test]
fn short_and_interrupted_reads_change_nothing() {
    let bytes = sample();
    let scan = reader::scan(&mut Dribble(&bytes, false), None, |_| Ok::<_, Infallible>(())).unwrap();
    assert_eq!(scan, read(&bytes).0.unwrap());
}

struct Failing<'b>(&'b [u8], u64);

impl JournalBytes for Failing<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if offset >= self.1 {
            return Err(io::ErrorKind::Other.into());
        }
        let size = buffer.len().min((self.1 - offset) as usize);
        self.0.read_at(offset, &mut buffer[..size])
    }
}

#[test]
fn a_medium_that_cannot_be_read_is_no_end_of_the_file() {
    let bytes = sample();
    for fails_at in 0..bytes.len() as u64 {
        let verdict = reader::scan(&mut Failing(&bytes, fails_at), None, |_| Ok::<_, Infallible>(()));
        assert!(matches!(verdict, Err(ReadError::Io { .. })), "at {fails_at}: {verdict:?}");
    }
}
