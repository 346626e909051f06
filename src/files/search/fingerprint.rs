//! What is kept of a pattern instead of the pattern itself.
//!
//! A [`Fingerprint`] has the length of the pattern, a keyed BLAKE3 of all of it, and 20 bits that follow from the 6 bytes at
//! one place of it, its *anchor*. The search computes such bits at every byte ([`WindowMixer`]), so they are cheap;
//! BLAKE3 decides where they fit.
//!
//! The upper 16 of the 20 bits are the *mixed* window, a number. At the anchor it is not greater than at the byte before and at
//! the byte after. So a search that takes windows by pairs, and of each pair the one with the smaller number, takes the anchor
//! however the pattern lies among the pairs, and looks up half of the windows. A pattern that has no such place, which is
//! rare from 12 bytes on, has its anchor at its first byte, and the search has to look up every window.

use fearless_simd::prelude::*;
use fearless_simd::{u8x32, u16x16};

/// The length of the shortest pattern in bytes.
pub const SHORTEST: usize = 8;
/// How many bytes the 20 bits follow from.
pub(super) const WINDOW: usize = 6;
/// The last place that an anchor may have. Few patterns have none before it, and nobody who has fingerprints learns anything of
/// what lies behind its window.
const LAST_ANCHOR: u8 = 8;
/// How many bits follow from a window.
pub(super) const BITS: u32 = 20;
/// How many of them are the mixed window.
const MIXED_BITS: u32 = u16::BITS;
/// How many bytes of BLAKE3 are kept: enough that no chance gives the same.
pub const TAG: usize = 16;
/// How many windows are mixed together.
pub(super) const BLOCK: usize = 512;
/// How many of them are mixed at once.
const LANES: usize = 16;

/// The key of all fingerprints of a workspace.
#[derive(Clone, PartialEq, Eq)]
pub struct SearchKey([u8; 32]);

/// What is kept of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint {
    /// 20 bits that follow from the window at the anchor.
    pub window: u32,
    /// Where the anchor is, in bytes from the beginning. Zero if the window is no smaller than its neighbours.
    pub anchor: u8,
    /// Its length in bytes.
    pub length: u16,
    /// The first bytes of its keyed BLAKE3.
    pub tag: [u8; TAG],
}

impl SearchKey {
    /// A key of these random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn mixer(&self) -> WindowMixer {
        let random = blake3::keyed_hash(&self.0, b"factors of windows");
        let (random, _) = random.as_bytes().as_chunks::<2>();
        // An odd factor loses no bit of what is multiplied by it.
        let factor = |at: usize| u16::from_le_bytes(random[at]) | 1;
        WindowMixer {
            upper: std::array::from_fn(factor),
            lower: std::array::from_fn(|at| factor(PARTS + at)),
        }
    }

    pub(super) fn tag(&self, pattern: &[u8]) -> [u8; TAG] {
        let mut tag = [0; TAG];
        tag.copy_from_slice(&blake3::keyed_hash(&self.0, pattern).as_bytes()[..TAG]);
        tag
    }

    /// The fingerprint of a pattern; `None` if it is shorter than [`SHORTEST`] or too long to be searched for. Zeros at the
    /// beginning are left out, because most of a memory is zeros.
    #[must_use]
    pub fn fingerprint(&self, pattern: &[u8]) -> Option<Fingerprint> {
        let zeros = pattern.iter().take_while(|byte| **byte == 0).count();
        let pattern = &pattern[zeros..];
        let length = u16::try_from(pattern.len()).ok().filter(|length| usize::from(*length) >= SHORTEST)?;
        let mixer = self.mixer();
        let anchor = mixer.anchor(pattern);
        let window = pattern.get(usize::from(anchor)..)?.first_chunk()?;
        Some(Fingerprint { window: mixer.bits(window), anchor, length, tag: self.tag(pattern) })
    }
}

/// A window is mixed by parts of two bytes, because processors multiply eight of them at once.
const PARTS: usize = WINDOW / 2;

/// Computes the bits of windows.
#[derive(Clone)]
pub(super) struct WindowMixer {
    /// What the parts of a window are multiplied by for the mixed window.
    upper: [u16; PARTS],
    /// What they are multiplied by for the other bits.
    lower: [u16; PARTS],
}

/// The mixed windows of a block, by pairs of neighbours.
pub(super) struct MixedPairs {
    /// The smaller one of each pair.
    pub(super) smaller: [u16; BLOCK / 2],
    /// The larger one of each pair, if that is asked for.
    pub(super) larger: [u16; BLOCK / 2],
}

impl MixedPairs {
    pub(super) const fn new() -> Self {
        Self { smaller: [0; BLOCK / 2], larger: [0; BLOCK / 2] }
    }
}

fn mixed(window: &[u8; WINDOW], factors: &[u16; PARTS]) -> u16 {
    let (parts, _) = window.as_chunks::<2>();
    let products =
        parts.iter().zip(factors).map(|(part, factor)| u16::from_le_bytes(*part).wrapping_mul(*factor));
    products.fold(0, u16::wrapping_add)
}

impl WindowMixer {
    /// The 20 bits of a window.
    pub(super) fn bits(&self, window: &[u8; WINDOW]) -> u32 {
        let lower = mixed(window, &self.lower) >> (u16::BITS - (BITS - MIXED_BITS));
        u32::from(mixed(window, &self.upper)) << (BITS - MIXED_BITS) | u32::from(lower)
    }

    /// The mixed window that the 20 bits begin with.
    pub(super) fn mixed_of(bits: u32) -> u16 {
        (bits >> (BITS - MIXED_BITS)) as u16
    }

    /// The first place of a pattern whose mixed window is not greater than those next to it. Returns zero if the pattern has no
    /// such place. The window has a byte that is not zero, and so does the beginning of the pattern, which is near. So no block
    /// of zeros has an anchor.
    fn anchor(&self, pattern: &[u8]) -> u8 {
        let mixed_at = |at: usize| Some(mixed(pattern.get(at..)?.first_chunk()?, &self.upper));
        let is_anchor = |at: usize| {
            let [before, here, after] = [mixed_at(at - 1)?, mixed_at(at)?, mixed_at(at + 1)?];
            let zeros = pattern[at..].iter().take(WINDOW).all(|byte| *byte == 0);
            Some(!zeros && here <= before && here <= after)
        };
        (1..=LAST_ANCHOR).find(|at| is_anchor(usize::from(*at)) == Some(true)).unwrap_or(0)
    }

    /// Mixes the windows that begin in a block. The larger ones of the pairs are computed only if `BOTH`.
    #[inline(always)]
    pub(super) fn mix<S: Simd, const BOTH: bool>(
        &self,
        simd: S,
        block: &[u8; BLOCK + WINDOW],
        pairs: &mut MixedPairs,
    ) {
        let MixedPairs { smaller, larger } = pairs;
        let (smaller, larger) = (smaller.as_chunks_mut::<LANES>().0, larger.as_chunks_mut::<LANES>().0);
        for (number, (smaller, larger)) in smaller.iter_mut().zip(larger).enumerate() {
            // The parts of the second window of a pair are those of the first one, each a byte further.
            let first = number * 2 * LANES;
            let (one, other) = (self.mix_lanes(simd, block, first), self.mix_lanes(simd, block, first + 1));
            one.min(other).store_array(smaller);
            if BOTH {
                one.max(other).store_array(larger);
            }
        }
    }

    /// The mixed windows at this place and at every second one after it.
    #[inline(always)]
    fn mix_lanes<S: Simd>(&self, simd: S, block: &[u8; BLOCK + WINDOW], at: usize) -> u16x16<S> {
        parts(simd, block, at) * self.upper[0]
            + parts(simd, block, at + 2) * self.upper[1]
            + parts(simd, block, at + 4) * self.upper[2]
    }
}

/// The part of two bytes at this place and those after it. The lower byte is the first one in memory, as [`mixed`] has it, on
/// all processors that VMs run on.
#[inline(always)]
fn parts<S: Simd>(simd: S, block: &[u8; BLOCK + WINDOW], at: usize) -> u16x16<S> {
    u8x32::from_slice(simd, &block[at..at + 2 * LANES]).bitcast()
}

#[cfg(test)]
mod tests {
    use fearless_simd::{Level, dispatch};

    use super::*;
    use crate::files::search::forms::forms_of;

    fn key() -> SearchKey {
        SearchKey::new([7; 32])
    }

    #[test]
    fn zeros_before_a_pattern_are_no_part_of_it_and_short_ones_have_no_fingerprint() {
        assert_eq!(key().fingerprint(b"\0\0abcdefgh"), key().fingerprint(b"abcdefgh"));
        assert_eq!(key().fingerprint(b"abcdefg"), None);
        assert_eq!(key().fingerprint(b"\0abcdefg"), None);
        assert_eq!(key().fingerprint(&[0; 100]), None);
        assert_eq!(key().fingerprint(&[1; 1 << 16]), None);
        assert_ne!(SearchKey::new([8; 32]).fingerprint(b"abcdefgh"), key().fingerprint(b"abcdefgh"));
    }

    #[test]
    fn the_window_at_an_anchor_is_the_smaller_one_of_both_its_pairs() {
        let mut random = fastrand::Rng::with_seed(3);
        let mixer = key().mixer();
        let mut pairs = MixedPairs::new();
        let mut without = 0;
        for _ in 0..200 {
            let token: Vec<u8> = (0..24).map(|_| random.alphanumeric() as u8).collect();
            for (form, pattern) in forms_of(&token) {
                let fingerprint = key().fingerprint(&pattern).unwrap();
                let at = usize::from(fingerprint.anchor);
                let first = WindowMixer::mixed_of(fingerprint.window);
                if at == 0 {
                    without += 1;
                    continue;
                }
                assert!(at <= usize::from(LAST_ANCHOR) && at + WINDOW < pattern.len(), "{form:?}");
                for before in [100, 101] {
                    let mut block = [b'.'; BLOCK + WINDOW];
                    block[before..before + pattern.len()].copy_from_slice(&pattern);
                    dispatch!(Level::new(), simd => mixer.mix::<_, true>(simd, &block, &mut pairs));
                    let pair = (before + at) / 2;
                    assert_eq!(pairs.smaller[pair], first, "{form:?}");
                    assert!(pairs.larger[pair] >= pairs.smaller[pair]);
                }
            }
        }
        assert!(without < 10, "{without} of 200 tokens have a form without an anchor");
    }

    #[test]
    fn what_a_fingerprint_follows_from_lies_in_the_first_bytes_of_a_value() {
        let value = b"ghp_16C7e42F292c6912E7710c838347Ae178B4a";
        let changed = b"ghp_16C7e42F292-------------------------";
        for (form, pattern) in forms_of(value) {
            let other = key().fingerprint(&pattern).unwrap();
            let same = |bytes: &[u8]| {
                let one = key().fingerprint(bytes).unwrap();
                (one.window, one.anchor) == (other.window, other.anchor)
            };
            let of_changed = forms_of(changed);
            assert!(of_changed.iter().any(|(of, bytes)| *of == form && same(bytes)), "{form:?}");
        }
    }
}
