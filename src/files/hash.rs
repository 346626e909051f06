//! The hash of a file, computed block by block in any order, by several threads, while they read or copy it.
//!
//! There are two methods ([`HashMethod`]): the root over the file's pieces ([`pieces`]), in which holes cost nothing, and
//! BLAKE3 of the file as a whole ([`whole`]), which takes a second for some gigabytes of holes. Both take a hole for zeros,
//! so the hash does not say which of the two a range is.

pub mod pieces;
mod whole;

use self::pieces::BlockPieces;
use self::whole::PartHasher;
use super::extents::BLOCK;
use crate::world::{Failure, HashMethod, Interrupt};

/// One block of a file being hashed. What is left out of it is zeros.
#[derive(Debug)]
pub struct BlockHasher(BlockKind);

#[derive(Debug)]
enum BlockKind {
    Whole(Box<PartHasher>),
    Pieces(BlockPieces),
}

impl BlockHasher {
    /// The bytes at this offset of the file: after those that were given before, and within the block. They are whole
    /// pieces, or end with the file.
    pub fn bytes(&mut self, at: u64, bytes: &[u8]) {
        match &mut self.0 {
            BlockKind::Whole(part) => part.bytes(at, bytes),
            BlockKind::Pieces(pieces) => pieces.bytes(at, bytes),
        }
    }

    /// The block, all bytes of which were given.
    #[must_use]
    pub fn finish(self) -> HashedBlock {
        HashedBlock(match self.0 {
            BlockKind::Whole(part) => part.finish(),
            BlockKind::Pieces(pieces) => pieces.finish(),
        })
    }
}

/// A block that was hashed: its number, and the value that the method has for it.
#[derive(Debug)]
pub struct HashedBlock((u64, [u8; 32]));

/// What is known of the hash of a file, which is a hole until a block is added.
#[derive(Debug)]
pub struct ContentHash {
    method: HashMethod,
    size: u64,
    /// The numbers of the blocks that are not holes, and what the method makes of each.
    known: Vec<(u64, [u8; 32])>,
}

impl ContentHash {
    /// The hash of a file of this size in bytes.
    #[must_use]
    pub fn new(method: HashMethod, size: u64) -> Self {
        Self { method, size, known: Vec::new() }
    }

    /// Begins to hash the block that starts at this offset, a multiple of [`BLOCK`].
    #[must_use]
    pub fn block(&self, start: u64) -> BlockHasher {
        BlockHasher(match self.method {
            HashMethod::Whole => BlockKind::Whole(Box::new(PartHasher::new(self.size, start / BLOCK))),
            HashMethod::Pieces => BlockKind::Pieces(BlockPieces::new(self.size, start / BLOCK)),
        })
    }

    /// Adds a block of the same file.
    pub fn add(&mut self, block: HashedBlock) {
        self.known.push(block.0);
    }

    /// The hash of the file. It takes long only if holes are to be hashed as a whole.
    ///
    /// # Errors
    /// [`Failure::Interrupted`].
    pub fn finish(mut self, interrupt: &Interrupt) -> Result<[u8; 32], Failure> {
        self.known.sort_unstable();
        match self.method {
            HashMethod::Whole => whole::root(self.size, self.known, interrupt),
            HashMethod::Pieces => Ok(pieces::root(self.size, &self.known)),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
