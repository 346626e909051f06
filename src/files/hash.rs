//! BLAKE3 of a file, computed piece by piece in any order.
//!
//! The hash is that of the file's bytes, with holes as zeros: `b3sum FILE` prints the same. BLAKE3 is a tree, and a piece
//! of [`PIECE`] bytes at a multiple of [`PIECE`] is a subtree of it (`blake3::hazmat`). So threads can hash pieces while
//! they read or copy them. Pieces that are holes from end to end are hashed by [`PieceHashes::finish`].

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

use crate::world::{Failure, Interrupt};

/// The bytes of a piece: a power of two, and small enough to be interrupted after one.
pub const PIECE: u64 = 8 << 20;

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// How many pieces a file of this size has. An empty file has one piece without bytes.
#[must_use]
pub fn pieces(size: u64) -> u64 {
    size.div_ceil(PIECE).max(1)
}

/// One piece being hashed, fed from its first byte to its last.
#[derive(Debug)]
pub struct PieceHasher {
    hasher: blake3::Hasher,
    alone: bool,
}

impl PieceHasher {
    /// The piece of this number in a file of this size in bytes.
    #[must_use]
    pub fn new(size: u64, piece: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(piece * PIECE);
        Self { hasher, alone: size <= PIECE }
    }

    /// The next bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// That many zeros come next.
    pub fn zeros(&mut self, mut count: u64) {
        while count > 0 {
            let some = count.min(ZEROS.len() as u64);
            self.hasher.update(&ZEROS[..some as usize]);
            count -= some;
        }
    }

    /// The value of the piece, from which the hash of the file is computed.
    #[must_use]
    pub fn finish(self) -> ChainingValue {
        if self.alone { *self.hasher.finalize().as_bytes() } else { self.hasher.finalize_non_root() }
    }
}

/// The hashes of a file's pieces: `None` for a piece that is a hole from end to end and was not hashed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceHashes {
    size: u64,
    pieces: Vec<Option<ChainingValue>>,
}

impl PieceHashes {
    /// The hashes of a file of this size in bytes, which is a hole until a piece is set.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { size, pieces: vec![None; pieces(size) as usize] }
    }

    /// Sets what [`PieceHasher::finish`] returned for a piece.
    pub fn set(&mut self, piece: u64, value: ChainingValue) {
        self.pieces[piece as usize] = Some(value);
    }

    /// BLAKE3 of the file. Hashes the holes, which takes a second for some gigabytes.
    ///
    /// # Errors
    /// [`Failure::Interrupted`].
    pub fn finish(self, interrupt: &Interrupt) -> Result<[u8; 32], Failure> {
        let mut values = Vec::with_capacity(self.pieces.len());
        for (number, known) in self.pieces.iter().enumerate() {
            let number = number as u64;
            values.push(match known {
                Some(value) => *value,
                None => {
                    interrupt.check()?;
                    let mut hasher = PieceHasher::new(self.size, number);
                    hasher.zeros(PIECE.min(self.size - number * PIECE));
                    hasher.finish()
                }
            });
        }
        Ok(match values.as_slice() {
            [alone] => *alone,
            values => {
                let left = (left_subtree_len(self.size) / PIECE) as usize;
                let (left, right) = values.split_at(left);
                let left = subtree(left, (left.len() as u64) * PIECE);
                let right = subtree(right, self.size - (values.len() - right.len()) as u64 * PIECE);
                *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
            }
        })
    }
}

/// The value of the subtree over these pieces, which are `length` bytes together.
fn subtree(values: &[ChainingValue], length: u64) -> ChainingValue {
    match values {
        [alone] => *alone,
        values => {
            let left_length = left_subtree_len(length);
            let (left, right) = values.split_at((left_length / PIECE) as usize);
            let (left, right) = (subtree(left, left_length), subtree(right, length - left_length));
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_up_the_plain_hash_of_the_bytes() {
        let piece = PIECE as usize;
        let sizes = [
            0,
            1,
            1024,
            1025,
            piece - 1,
            piece,
            piece + 1,
            2 * piece,
            2 * piece + 5,
            3 * piece,
            5 * piece + 700,
        ];
        for size in sizes {
            let mut bytes = vec![0_u8; size];
            for (at, byte) in bytes.iter_mut().enumerate() {
                // Piece 1 stays zeros and is left to `finish`.
                *byte = if at / piece == 1 { 0 } else { (at * 31 % 251) as u8 };
            }
            let mut hashes = PieceHashes::new(size as u64);
            for number in (0..pieces(size as u64)).rev().filter(|&number| number != 1) {
                let at = number as usize * piece;
                let mut hasher = PieceHasher::new(size as u64, number);
                for part in bytes[at..size.min(at + piece)].chunks(100_000) {
                    hasher.bytes(part);
                }
                hashes.set(number, hasher.finish());
            }
            let found = hashes.finish(&Interrupt::new()).unwrap();
            assert_eq!(found, *blake3::hash(&bytes).as_bytes(), "{size} bytes");
        }
    }

    #[test]
    fn hashing_holes_can_be_interrupted() {
        let interrupt = Interrupt::new();
        interrupt.request();
        assert!(matches!(PieceHashes::new(1 << 50 >> 8).finish(&interrupt), Err(Failure::Interrupted)));
    }
}
