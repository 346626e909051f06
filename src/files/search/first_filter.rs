//! The filter that the windows of a block go through before they are looked up in a table.
//!
//! A look-up in a table takes one load for each window, and the processor does only two of them at a time. The filter answers
//! for 32 windows at once, with a few instructions on vectors, and passes nearly none of them on. It may pass a window that no
//! pattern has, and never holds back one that a pattern has.
//!
//! A mixed window has 16 bits, which are 4 *nibbles* of 4 bits. The patterns are divided into 16 *buckets*. For each of the 4
//! nibbles there is a table: for each of the 16 values of the nibble it has the set of the buckets in which a pattern has this
//! value there. A window passes if a bucket is in all 4 sets that the tables have for its nibbles. For example, a bucket with
//! two patterns:
//!
//! ```text
//!               nibbles       0x12a7 passes, though no pattern has it: all of its nibbles are in the bucket.
//! pattern       1 2 a 4       0x1237 does not pass: no pattern of the bucket has a 3 for its third nibble.
//! pattern       1 3 0 7
//! ```
//!
//! A set of 8 buckets is a byte, and a table of 16 bytes is what a byte shuffle (`pshufb`) looks up in, for 16 or 32 nibbles at
//! once. So there are two tables for each nibble, each with 8 of the buckets. The patterns of a bucket are neighbours when all
//! are sorted, so that they have one or two values of the uppermost nibble, and few of the next one ([`divide`]). With the 56
//! patterns of 8 values, about one pair of windows in 90 passes.
//!
//! With many patterns each bucket has nearly all nibbles, and everything would pass. How much of random bytes passes follows
//! from the tables; if it is too much, there is no filter, and the search looks up every window.
//!
//! [`super::fingerprint`] gives the windows by pairs. The larger one of a pair can only be of a pattern that has no anchor, so
//! the filter has other tables for those patterns, of which there are few.

use fearless_simd::prelude::*;
use fearless_simd::{Level, u8x16, u8x32, u16x16};

use super::fingerprint::{BLOCK, Fingerprint, MixedPairs, WindowMixer};

const NIBBLES: usize = 4;
const NIBBLE_BITS: usize = 4;
/// How many values a nibble has.
const VALUES: usize = 1 << NIBBLE_BITS;
/// How many buckets a byte has a bit for.
const BUCKETS: usize = u8::BITS as usize;
/// How many windows are filtered at once, in two vectors of 16.
const LANES: usize = 32;
/// How many pairs the bits of one number are of.
const PAIRS: usize = u64::BITS as usize;
/// The largest share of random pairs that may pass. If more do, it takes less time to look up all windows.
const MOST_PASSING: f64 = 0.06;

/// With more patterns nearly everything would pass, and to divide them would take long.
const MOST_PATTERNS: usize = 512;

/// How many windows a window of zeros counts for when the patterns are divided. A memory has many.
const ZEROS: u32 = 1 << 13;

/// One bit for each pair of a block, set if the pair passes. [`place_of`] has the order of the bits.
pub(super) type PassingPairs = [u64; BLOCK / 2 / PAIRS];

/// Where the pair of a bit begins, in bytes from the first pair whose bit is in the same number.
#[inline(always)]
pub(super) fn place_of(bit: u32) -> u32 {
    // The even ones of 32 bits are of the first 16 pairs and the odd ones of the second 16: see `filter_lanes`.
    bit & 0b1_1110 | (bit & 1) << 5 | (bit & 0b10_0000) << 1
}

/// The filter for the patterns of a search.
pub(super) struct FirstFilter {
    /// For the smaller window of each pair: of all patterns.
    smaller: NibbleTables,
    /// For the larger one: of the patterns that have no anchor.
    larger: NibbleTables,
}

impl FirstFilter {
    /// The filter for these patterns; `None` if it would cost more than it saves.
    pub(super) fn new<'a>(
        level: Level,
        fingerprints: impl Iterator<Item = &'a Fingerprint> + Clone,
    ) -> Option<Self> {
        let tables = |fingerprints: &mut dyn Iterator<Item = &'a Fingerprint>| {
            NibbleTables::new(fingerprints.map(|one| WindowMixer::mixed_of(one.window)).collect())
        };
        if fingerprints.clone().count() > MOST_PATTERNS {
            return None;
        }
        let smaller = tables(&mut fingerprints.clone());
        let larger = tables(&mut fingerprints.filter(|one| one.anchor == 0));
        // How many of all pairs of two windows have this one for their smaller one, and how many for their larger one.
        let is_smaller = |window: u16| 2 * u64::from(u16::MAX - window) + 1;
        let is_larger = |window: u16| 2 * u64::from(window) + 1;
        let pairs = smaller.passing_pairs(is_smaller) + larger.passing_pairs(is_larger);
        let share = pairs as f64 / f64::from(u16::MAX).powi(2);
        (has_byte_shuffles(level) && share < MOST_PASSING).then_some(Self { smaller, larger })
    }

    /// Which pairs of a block pass: for their smaller window, or, if `EVERY`, for one of both.
    #[inline(always)]
    pub(super) fn passing<S: Simd, const EVERY: bool>(&self, simd: S, pairs: &MixedPairs) -> PassingPairs {
        let mut passing = self.smaller.filter(simd, &pairs.smaller);
        if EVERY {
            for (passing, larger) in passing.iter_mut().zip(self.larger.filter(simd, &pairs.larger)) {
                *passing |= larger;
            }
        }
        passing
    }
}

/// Whether the processor has byte shuffles. Without them the look-ups would be made one after the other.
fn has_byte_shuffles(level: Level) -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = level.as_sse4_2().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    let has = !level.is_fallback();
    has
}

/// The tables of 8 buckets: the lowest nibble first.
type BucketTables = [[u8; VALUES]; NIBBLES];

/// The tables of all 16 buckets.
struct NibbleTables([BucketTables; 2]);

/// For each nibble, the lowest first, the set of the values that the patterns of a bucket have.
#[derive(Clone, Copy)]
struct Bucket([u16; NIBBLES]);

impl Bucket {
    fn of(window: u16) -> Self {
        Self(std::array::from_fn(|nibble| 1 << (usize::from(window >> (NIBBLE_BITS * nibble)) % VALUES)))
    }

    fn with(self, other: Self) -> Self {
        Self(std::array::from_fn(|nibble| self.0[nibble] | other.0[nibble]))
    }

    /// How many windows pass for this bucket. Zeros, which mix to zero, count for many.
    fn passing(self) -> u32 {
        let windows: u32 = self.0.iter().map(|values| values.count_ones()).product();
        if self.0.iter().all(|values| values & 1 != 0) { windows + ZEROS } else { windows }
    }
}

/// Divides patterns that have these windows, which are sorted, into buckets. Each has a bucket of its own at first. Then two
/// neighbours become one, again and again: those for which the fewest windows pass that did not pass before.
fn divide(windows: &[u16]) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = windows.iter().map(|window| Bucket::of(*window)).collect();
    while buckets.len() > 2 * BUCKETS {
        let more = |at: &usize| {
            let (one, other) = (buckets[*at], buckets[at + 1]);
            one.with(other).passing().saturating_sub(one.passing() + other.passing())
        };
        let Some(at) = (0..buckets.len() - 1).min_by_key(more) else { break };
        let other = buckets.remove(at + 1);
        buckets[at] = buckets[at].with(other);
    }
    buckets
}

impl NibbleTables {
    /// The tables for patterns that have these windows.
    fn new(mut windows: Vec<u16>) -> Self {
        windows.sort_unstable();
        windows.dedup();
        let mut tables = [[[0; VALUES]; NIBBLES]; 2];
        for (number, Bucket(nibbles)) in divide(&windows).into_iter().enumerate() {
            for (table, values) in tables[number / BUCKETS].iter_mut().zip(nibbles) {
                for (value, set) in table.iter_mut().enumerate() {
                    *set |= u8::from(values >> value & 1 != 0) << (number % BUCKETS);
                }
            }
        }
        Self(tables)
    }

    /// The sum of what `pairs` gives for the windows that pass.
    fn passing_pairs(&self, pairs: impl Fn(u16) -> u64) -> u64 {
        // The buckets that are in the sets of both nibbles of a byte, of which the lower one has the number `low`.
        let of_byte = |byte: usize, low: usize| {
            self.0.each_ref().map(|tables| tables[low][byte % VALUES] & tables[low + 1][byte / VALUES])
        };
        let lower: Vec<[u8; 2]> = (0..=usize::from(u8::MAX)).map(|byte| of_byte(byte, 0)).collect();
        let mut sum = 0;
        for upper_byte in 0..=u8::MAX {
            let upper = of_byte(usize::from(upper_byte), 2);
            if upper == [0, 0] {
                continue;
            }
            let passing =
                (0..=u8::MAX).zip(&lower).filter(|(_, lower)| upper[0] & lower[0] | upper[1] & lower[1] != 0);
            sum += passing.map(|(lower, _)| pairs(u16::from_be_bytes([upper_byte, lower]))).sum::<u64>();
        }
        sum
    }

    /// Which windows pass.
    #[inline(always)]
    fn filter<S: Simd>(&self, simd: S, windows: &[u16; BLOCK / 2]) -> PassingPairs {
        let tables = [load_tables(simd, &self.0[0]), load_tables(simd, &self.0[1])];
        let (groups, _) = windows.as_chunks::<PAIRS>();
        let mut passing = [0; _];
        for (passing, group) in passing.iter_mut().zip(groups) {
            *passing = filter_lanes(simd, &tables, &group[..LANES])
                | filter_lanes(simd, &tables, &group[LANES..]) << LANES;
        }
        passing
    }
}

/// Tables in vectors, once for each 16 bytes.
type LoadedTables<S> = [u8x32<S>; NIBBLES];

// The compiler uses the instructions of a level only in what is inlined where the level is chosen. It may not inline a closure,
// so there are none here.

#[inline(always)]
fn load_tables<S: Simd>(simd: S, [first, second, third, fourth]: &BucketTables) -> LoadedTables<S> {
    [load_table(simd, first), load_table(simd, second), load_table(simd, third), load_table(simd, fourth)]
}

#[inline(always)]
fn load_table<S: Simd>(simd: S, table: &[u8; VALUES]) -> u8x32<S> {
    u8x32::block_splat(u8x16::load_array_ref(simd, table))
}

/// One bit for each of 32 windows.
#[inline(always)]
fn filter_lanes<S: Simd>(simd: S, tables: &[LoadedTables<S>; 2], windows: &[u16]) -> u64 {
    let (first, second) = windows.split_at(LANES / 2);
    let (first, second) = (u16x16::from_slice(simd, first), u16x16::from_slice(simd, second));
    let lower = (first & 0x00ff | second << 8).to_bytes();
    let upper = (first >> 8 | second & 0xff00).to_bytes();
    let nibbles = [lower & 0x0f, lower >> 4, upper & 0x0f, upper >> 4];
    let buckets = buckets_in(&tables[0], &nibbles) | buckets_in(&tables[1], &nibbles);
    buckets.simd_ne(u8x32::splat(simd, 0)).to_bitmask()
}

/// The buckets that are in all sets which the tables have for the nibbles.
#[inline(always)]
fn buckets_in<S: Simd>(tables: &LoadedTables<S>, nibbles: &[u8x32<S>; NIBBLES]) -> u8x32<S> {
    tables[0].swizzle_dyn_within_blocks(nibbles[0])
        & tables[1].swizzle_dyn_within_blocks(nibbles[1])
        & (tables[2].swizzle_dyn_within_blocks(nibbles[2]) & tables[3].swizzle_dyn_within_blocks(nibbles[3]))
}

#[cfg(test)]
mod tests {
    use fearless_simd::dispatch;

    use super::*;

    fn random_windows(count: usize) -> Vec<u16> {
        let mut random = fastrand::Rng::with_seed(5);
        (0..count).map(|_| random.u16(..).min(random.u16(..))).collect()
    }

    fn fingerprints(windows: &[u16], anchor: u8) -> Vec<Fingerprint> {
        let of =
            |window: &u16| Fingerprint { window: u32::from(*window) << 4, anchor, length: 40, tag: [0; _] };
        windows.iter().map(of).collect()
    }

    /// The buckets of patterns that have these windows.
    fn buckets(mut windows: Vec<u16>) -> Vec<Bucket> {
        windows.sort_unstable();
        windows.dedup();
        divide(&windows)
    }

    /// Whether a window passes, as the definition says.
    fn passes(buckets: &[Bucket], window: u16) -> bool {
        let Bucket(nibbles) = Bucket::of(window);
        buckets.iter().any(|bucket| bucket.0.iter().zip(nibbles).all(|(values, value)| values & value != 0))
    }

    #[test]
    fn what_passes_is_what_the_definition_says() {
        for count in [0, 1, 7, 16, 56, 300] {
            let windows = random_windows(count);
            let (tables, buckets) = (NibbleTables::new(windows.clone()), buckets(windows.clone()));
            let mut passed = 0;
            for first in (0..=u16::MAX).step_by(BLOCK / 2) {
                let block: [u16; BLOCK / 2] = std::array::from_fn(|at| first + at as u16);
                let passing = dispatch!(Level::new(), simd => tables.filter(simd, &block));
                for (number, passing) in passing.iter().enumerate() {
                    for bit in 0..u64::BITS {
                        let window = block[number * PAIRS + place_of(bit) as usize / 2];
                        assert_eq!(
                            passing >> bit & 1 != 0,
                            passes(&buckets, window),
                            "{count}: {window:04x}"
                        );
                        passed += passing >> bit & 1;
                    }
                }
            }
            assert_eq!(tables.passing_pairs(|_| 1), passed);
            assert!(windows.iter().all(|window| passes(&buckets, *window)));
        }
    }

    #[test]
    fn the_larger_windows_are_filtered_for_patterns_without_an_anchor_alone() {
        let (with, without) = (random_windows(7), [0xabcd]);
        let all = [fingerprints(&with, 1), fingerprints(&without, 0)].concat();
        let filter = FirstFilter::new(Level::new(), all.iter()).unwrap();
        let passing = |tables: &NibbleTables, of: u16| tables.passing_pairs(|window| u64::from(window == of));
        assert_eq!(filter.larger.passing_pairs(|_| 1), 1);
        assert_eq!(passing(&filter.larger, 0xabcd), 1);
        assert!(all.iter().all(|one| passing(&filter.smaller, WindowMixer::mixed_of(one.window)) == 1));
    }

    #[test]
    fn there_is_no_filter_where_much_would_pass() {
        for (count, expected) in [(1, true), (56, true), (300, false), (2000, false)] {
            let fingerprints = fingerprints(&random_windows(count), 1);
            assert_eq!(FirstFilter::new(Level::new(), fingerprints.iter()).is_some(), expected, "{count}");
        }
    }
}
