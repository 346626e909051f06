//! The root over the hashes of a file's pieces: what a manifest of the third format has of each file.
//!
//! # Definition
//!
//! A file is cut into pieces of [`PIECE`] = 65,536 bytes. The last piece has the rest; an empty file has one piece without
//! bytes. A hole is zeros. All hashes have 32 bytes, `‖` joins bytes, and `derive_key(context, material)` is BLAKE3's
//! mode of that name, so that no piece can pass for a node and no node for a root:
//!
//! ```text
//! hash(piece)           = BLAKE3(the bytes of the piece)
//! top(one piece)        = hash(piece)
//! top(n pieces)         = derive_key("nixbox snapshot: node of pieces", top(the first k) ‖ top(the others)),
//!                         where k is the largest power of two that is less than n
//! root(file)            = derive_key("nixbox snapshot: root of pieces", top(all pieces) ‖ length),
//!                         where the length in bytes is a number of 8 bytes, lowest byte first
//! ```
//!
//! Three vectors, which a test recomputes from this definition:
//!
//! ```text
//! an empty file
//!   1daa108dd558c6f3e59d77e95753bd89b6d6b52af662a6eb515e4fbe1333eef4
//! the 3 bytes "abc"
//!   68998dc4c2232e8da95c30625a709e982f1440f98f7167c7c75433a441cdeb05
//! 2^40 + 5 bytes, all of them zeros except byte 65,536, which is 1
//!   13efb9aa44c604f68357cb9a572db47f7d8873a8c255e465f1acaa05b51e1755
//! ```
//!
//! # Holes
//!
//! The hash of a piece does not depend on its place, so all pieces of zeros have one hash, and so have all full subtrees of
//! zeros of one height. There are at most 49 of those, which are computed once. The root over a file takes time for its
//! data, and for the height of the tree, which is at most 48.
//!
//! The pieces of a block are a subtree, because a block has 16 pieces and begins at a multiple of 16. So the threads that
//! read blocks compute their tops, and 32 bytes are kept for a megabyte of data.

use std::sync::LazyLock;

use super::super::extents::{BLOCK, is_zero};

/// The bytes of a piece. It is a part of the format.
///
/// Pieces are small, so that a page of data in a hole costs little, and large enough for BLAKE3 to use all lanes of a
/// processor's vectors, which takes 16 KiB.
pub const PIECE: u64 = 64 << 10;

const NODE: &str = "nixbox snapshot: node of pieces";
const ROOT: &str = "nixbox snapshot: root of pieces";

/// The tops over 1, 2, 4 … 2^48 pieces of zeros. A file has less than 2^64 bytes.
static TOPS_OF_ZEROS: LazyLock<[[u8; 32]; 49]> = LazyLock::new(|| {
    let mut tops = [*blake3::hash(&[0; PIECE as usize]).as_bytes(); 49];
    for height in 1..tops.len() {
        tops[height] = node(&tops[height - 1], &tops[height - 1]);
    }
    tops
});

/// Each hasher of a context hashes the context first, so it is made once.
static NODE_HASHER: LazyLock<blake3::Hasher> = LazyLock::new(|| blake3::Hasher::new_derive_key(NODE));

fn node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    *NODE_HASHER.clone().update(left).update(right).finalize().as_bytes()
}

/// The hash of a piece; `None` if it is zeros.
#[must_use]
pub fn hash_of_piece(piece: &[u8]) -> Option<[u8; 32]> {
    (!is_zero(piece)).then(|| *blake3::hash(piece).as_bytes())
}

/// The root over a file of this size in bytes, from the hashes of its pieces that are not zeros, in the order of their
/// numbers.
#[must_use]
pub fn root_of_pieces(size: u64, known: &[(u64, [u8; 32])]) -> [u8; 32] {
    let block = |piece: u64| piece / (BLOCK / PIECE);
    let blocks = known.chunk_by(|(piece, _), (next, _)| block(*piece) == block(*next));
    let tops = blocks.filter_map(|pieces| {
        let number = block(pieces.first()?.0);
        Some((number, top_of_block(size, number, pieces)))
    });
    root(size, &tops.collect::<Vec<_>>())
}

/// One block being hashed: the hashes of its pieces that are not zeros, with the numbers of the pieces in the file.
#[derive(Debug)]
pub(super) struct BlockPieces {
    size: u64,
    number: u64,
    known: Vec<(u64, [u8; 32])>,
}

impl BlockPieces {
    /// The block of this number in a file of this size in bytes.
    pub(super) fn new(size: u64, number: u64) -> Self {
        Self { size, number, known: Vec::with_capacity((BLOCK / PIECE) as usize) }
    }

    /// The bytes at this offset of the file, a multiple of [`PIECE`]: whole pieces, or the last one of the file.
    pub(super) fn bytes(&mut self, at: u64, bytes: &[u8]) {
        for (number, piece) in (at / PIECE..).zip(bytes.chunks(PIECE as usize)) {
            self.known.extend(hash_of_piece(piece).map(|hash| (number, hash)));
        }
    }

    /// The number of the block, and the top over its pieces.
    pub(super) fn finish(self) -> (u64, [u8; 32]) {
        (self.number, top_of_block(self.size, self.number, &self.known))
    }
}

fn top_of_block(size: u64, number: u64, known: &[(u64, [u8; 32])]) -> [u8; 32] {
    let first = number * (BLOCK / PIECE);
    let count = (size.div_ceil(PIECE) - first).clamp(1, BLOCK / PIECE);
    let last_zeros = || *blake3::hash(&vec![0; (size % PIECE) as usize]).as_bytes();
    top(Units { full: size / PIECE, height: 0, last_zeros: &last_zeros }, first, count, known)
}

/// The root over a file of this size in bytes, from the tops of its blocks that are not holes, in the order of their
/// numbers.
#[must_use]
pub(super) fn root(size: u64, known: &[(u64, [u8; 32])]) -> [u8; 32] {
    let count = size.div_ceil(BLOCK).max(1);
    let last_zeros = || top_of_block(size, count - 1, &[]);
    let height = (BLOCK / PIECE).trailing_zeros();
    let top = top(Units { full: size / BLOCK, height, last_zeros: &last_zeros }, 0, count, known);
    let mut hasher = blake3::Hasher::new_derive_key(ROOT);
    *hasher.update(&top).update(&size.to_le_bytes()).finalize().as_bytes()
}

/// What a file is seen as while a top is computed: pieces, or blocks.
#[derive(Clone, Copy)]
struct Units<'a> {
    /// How many of them are full: all, or all except the last one.
    full: u64,
    /// The height of the subtree over the pieces of one.
    height: u32,
    /// The top over the last one if it is not full and is zeros.
    last_zeros: &'a dyn Fn() -> [u8; 32],
}

/// The top over `count` units from `first` on. Those of which no top is known are zeros.
fn top(units: Units<'_>, first: u64, count: u64, known: &[(u64, [u8; 32])]) -> [u8; 32] {
    match known {
        [] if first + count <= units.full && count.is_power_of_two() => {
            TOPS_OF_ZEROS[(units.height + count.trailing_zeros()) as usize]
        }
        [] if count == 1 => (units.last_zeros)(),
        [(_, alone)] if count == 1 => *alone,
        known => {
            let left = 1 << (count - 1).ilog2();
            let (before, after) = known.split_at(known.partition_point(|(number, _)| *number < first + left));
            node(&top(units, first, left, before), &top(units, first + left, count - left, after))
        }
    }
}
