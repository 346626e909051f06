//! BLAKE3 of a file as a whole: `b3sum FILE` prints the same.
//!
//! BLAKE3 is a tree, and a part of [`BLOCK`] bytes at a multiple of [`BLOCK`] is a subtree of it (`blake3::hazmat`). So
//! threads can hash parts in any order. The place of a part goes into its value, so that every hole has to be hashed:
//! [`root`] does that for parts that are holes from end to end.

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

use super::super::extents::BLOCK;
use crate::world::{Failure, Interrupt};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// One part being hashed, from its first byte to its last.
#[derive(Debug)]
pub(super) struct PartHasher {
    hasher: blake3::Hasher,
    number: u64,
    /// The offset of the next byte in the file.
    next: u64,
    end: u64,
    alone: bool,
}

impl PartHasher {
    /// The part of this number in a file of this size in bytes.
    pub(super) fn new(size: u64, number: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        let start = number * BLOCK;
        hasher.set_input_offset(start);
        Self { hasher, number, next: start, end: size.min(start.saturating_add(BLOCK)), alone: size <= BLOCK }
    }

    /// The bytes at this offset of the file. Those between the last ones and these are zeros.
    pub(super) fn bytes(&mut self, at: u64, bytes: &[u8]) {
        self.zeros_until(at);
        self.hasher.update(bytes);
        self.next += bytes.len() as u64;
    }

    fn zeros_until(&mut self, at: u64) {
        while self.next < at {
            let some = (at - self.next).min(ZEROS.len() as u64);
            self.hasher.update(&ZEROS[..some as usize]);
            self.next += some;
        }
    }

    /// The number of the part, and its value.
    pub(super) fn finish(mut self) -> (u64, ChainingValue) {
        self.zeros_until(self.end);
        let value =
            if self.alone { *self.hasher.finalize().as_bytes() } else { self.hasher.finalize_non_root() };
        (self.number, value)
    }
}

/// BLAKE3 of a file of this size from the values of its parts, in the order of their numbers. Hashes those that are
/// missing as holes.
pub(super) fn root(
    size: u64,
    known: Vec<(u64, ChainingValue)>,
    interrupt: &Interrupt,
) -> Result<[u8; 32], Failure> {
    let mut known = known.into_iter().peekable();
    let mut values = Vec::new();
    // An empty file has one part without bytes.
    for number in 0..size.div_ceil(BLOCK).max(1) {
        values.push(match known.next_if(|(known, _)| *known == number) {
            Some((_, value)) => value,
            None => {
                interrupt.check()?;
                PartHasher::new(size, number).finish().1
            }
        });
    }
    Ok(match values.as_slice() {
        [alone] => *alone,
        values => {
            let (left, right) = halves(values, size);
            *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
        }
    })
}

/// The values of the two subtrees over these parts, which are `length` bytes together.
fn halves(values: &[ChainingValue], length: u64) -> (ChainingValue, ChainingValue) {
    let left_length = left_subtree_len(length);
    let (left, right) = values.split_at((left_length / BLOCK) as usize);
    (subtree(left, left_length), subtree(right, length - left_length))
}

fn subtree(values: &[ChainingValue], length: u64) -> ChainingValue {
    match values {
        [alone] => *alone,
        values => {
            let (left, right) = halves(values, length);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    }
}
