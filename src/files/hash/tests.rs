use proptest::prelude::*;

use super::pieces::PIECE;
use super::*;

const METHODS: [HashMethod; 2] = [HashMethod::Whole, HashMethod::Pieces];

/// The root over the pieces of these bytes, straight from the definition of the format.
pub(crate) fn root_of(bytes: &[u8]) -> [u8; 32] {
    let mut pieces: Vec<[u8; 32]> =
        bytes.chunks(PIECE as usize).map(|piece| *blake3::hash(piece).as_bytes()).collect();
    if pieces.is_empty() {
        pieces.push(*blake3::hash(b"").as_bytes());
    }
    let length = (bytes.len() as u64).to_le_bytes();
    blake3::derive_key("nixbox snapshot: root of pieces", &[&top_of(&pieces)[..], &length].concat())
}

fn top_of(pieces: &[[u8; 32]]) -> [u8; 32] {
    if let [alone] = pieces {
        return *alone;
    }
    let mut left = 1;
    while left * 2 < pieces.len() {
        left *= 2;
    }
    let (left, right) = pieces.split_at(left);
    blake3::derive_key("nixbox snapshot: node of pieces", &[top_of(left), top_of(right)].concat())
}

fn expected(method: HashMethod, bytes: &[u8]) -> [u8; 32] {
    match method {
        HashMethod::Whole => *blake3::hash(bytes).as_bytes(),
        HashMethod::Pieces => root_of(bytes),
    }
}

/// The hash of a file of this size that has these bytes at these offsets, each a run of pieces within a block.
fn hash_of_runs(method: HashMethod, size: u64, runs: &[(u64, &[u8])]) -> [u8; 32] {
    let mut hash = ContentHash::new(method, size);
    let mut blocks: Vec<u64> = runs.iter().map(|(at, _)| at / BLOCK * BLOCK).collect();
    blocks.dedup();
    // The threads add their blocks in any order.
    for block in blocks.into_iter().rev() {
        let mut hasher = hash.block(block);
        for (at, bytes) in runs.iter().filter(|(at, _)| at / BLOCK * BLOCK == block) {
            hasher.bytes(*at, bytes);
        }
        hash.add(hasher.finish());
    }
    hash.finish(&Interrupt::new()).unwrap()
}

/// All pieces of these bytes, without those that are holes.
fn runs<'a>(bytes: &'a [u8], holes: &[bool]) -> Vec<(u64, &'a [u8])> {
    let pieces = (0..).zip(bytes.chunks(PIECE as usize)).zip(holes.iter().chain(std::iter::repeat(&false)));
    pieces.filter(|(_, hole)| !**hole).map(|((number, piece), _)| (number * PIECE, piece)).collect()
}

#[test]
fn files_of_every_shape_of_tree_are_hashed_by_their_definition() {
    let (piece, block) = (PIECE as usize, BLOCK as usize);
    let lengths = [0, 1, 1024, 1025, block - 1, block, block + 1, 2 * block, 3 * block, 5 * block + 700];
    for length in lengths.into_iter().chain((1..9).flat_map(|n| [n * piece - 1, n * piece, n * piece + 1])) {
        let bytes: Vec<u8> = (0..length).map(|at| (at * 31 % 251) as u8).collect();
        for method in METHODS {
            let found = hash_of_runs(method, length as u64, &runs(&bytes, &[]));
            assert_eq!(found, expected(method, &bytes), "{length} bytes, {method:?}");
            let (zeros, hole) = (vec![0; length], hash_of_runs(method, length as u64, &[]));
            assert_eq!(hole, expected(method, &zeros), "a hole of {length} bytes, {method:?}");
        }
    }
}

#[test]
fn a_subtree_of_holes_is_computed_in_closed_form() {
    const TIB: u64 = 1 << 40;
    // The definition, for a file that has one piece of data: one branch of the tree, and zeros beside it.
    let zeros = |height: u32| {
        let leaf = *blake3::hash(&[0; PIECE as usize]).as_bytes();
        (0..height).fold(leaf, |top, _| top_of(&[top, top]))
    };
    let mut one = [0; PIECE as usize];
    one[0] = 1;
    let mut top = top_of(&[zeros(0), *blake3::hash(&one).as_bytes()]);
    for height in 1..24 {
        top = top_of(&[top, zeros(height)]);
    }
    // 2^24 pieces are followed by one of five zeros.
    let top = top_of(&[top, *blake3::hash(&[0; 5]).as_bytes()]);
    let length = (TIB + 5).to_le_bytes();
    let expected = blake3::derive_key("nixbox snapshot: root of pieces", &[&top[..], &length].concat());
    assert_eq!(hash_of_runs(HashMethod::Pieces, TIB + 5, &[(PIECE, &one)]), expected);
    assert_eq!(hex::encode(expected), "13efb9aa44c604f68357cb9a572db47f7d8873a8c255e465f1acaa05b51e1755");
}

/// What `files/hash/pieces.rs` gives for other programs to compare with.
#[test]
fn the_vectors_of_the_format_are_as_documented() {
    assert_eq!(hex::encode(root_of(b"")), "1daa108dd558c6f3e59d77e95753bd89b6d6b52af662a6eb515e4fbe1333eef4");
    assert_eq!(
        hex::encode(root_of(b"abc")),
        "68998dc4c2232e8da95c30625a709e982f1440f98f7167c7c75433a441cdeb05"
    );
}

#[test]
fn the_largest_file_is_hashed() {
    let size = u64::MAX;
    let last = size / PIECE * PIECE;
    let ends_with =
        |byte| hash_of_runs(HashMethod::Pieces, size, &[(last, &vec![byte; (size - last) as usize])]);
    assert_eq!(ends_with(0), hash_of_runs(HashMethod::Pieces, size, &[]));
    assert_ne!(ends_with(0), ends_with(1));
}

#[test]
fn hashing_holes_as_a_whole_can_be_interrupted() {
    let interrupt = Interrupt::new();
    interrupt.request();
    let hash = ContentHash::new(HashMethod::Whole, 1 << 42);
    assert!(matches!(hash.finish(&interrupt), Err(Failure::Interrupted)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Zeros are holes or data, as it comes; the hash is that of the bytes.
    #[test]
    fn the_hash_does_not_tell_a_hole_from_zeros(
        pieces in proptest::collection::vec((0..3_u8, any::<bool>()), 1..40), cut in 0..PIECE as usize,
        place in any::<prop::sample::Index>(), bit in 0..8_u32,
    ) {
        let mut bytes: Vec<u8> = pieces.iter().flat_map(|(byte, _)| vec![*byte; PIECE as usize]).collect();
        bytes.truncate(bytes.len() - cut);
        let holes: Vec<bool> = pieces.iter().map(|(byte, hole)| *byte == 0 && *hole).collect();
        let size = bytes.len() as u64;
        for method in METHODS {
            let hash = hash_of_runs(method, size, &runs(&bytes, &holes));
            prop_assert_eq!(hash, expected(method, &bytes));
        }
        // A changed bit, one byte less and one more are other files.
        let hash = hash_of_runs(HashMethod::Pieces, size, &runs(&bytes, &holes));
        let mut changed = bytes.clone();
        let at = place.index(bytes.len());
        changed[at] ^= 1 << bit;
        prop_assert_ne!(hash_of_runs(HashMethod::Pieces, size, &runs(&changed, &[])), hash);
        changed.clone_from(&bytes);
        changed.push(0);
        prop_assert_ne!(hash_of_runs(HashMethod::Pieces, size + 1, &runs(&changed, &[])), hash);
        changed.truncate(bytes.len() - 1);
        prop_assert_ne!(hash_of_runs(HashMethod::Pieces, size - 1, &runs(&changed, &[])), hash);
    }
}
