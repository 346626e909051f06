//! Finds patterns in bytes, of which it knows fingerprints alone.
//!
//! The search computes 16 of 20 bits at every byte, as [`super::fingerprint`] describes. [`super::first_filter`] passes few of
//! them on, unless there are many patterns. A table of 2^16 bytes and one of 2^20 bits, which stay in the caches of a
//! processor, pass fewer places on; there BLAKE3 decides.
//!
//! For the 56 forms of 8 tokens, the 20 bits fit at 41,373 places of a GiB of random bytes, and at 59,693 of a GiB of the files
//! below `/usr` of a Debian (tests/bench/search.rs, 4 GiB of each). BLAKE3 agreed at none of them.

use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch};

use super::fingerprint::{BITS, BLOCK, Fingerprint, MixedPairs, SearchKey, TAG, WINDOW, WindowMixer};
use super::first_filter::FirstFilter;
use super::forms::Form;
use super::suspects::{RUN, Suspects};

/// How many pairs of windows are looked up before the answers are.
const GROUP: usize = 8;
/// The most pairs of a block that are looked up one by one after the first filter. If more pass, all are looked up by groups.
const MOST_ALONE: u32 = 48;

/// A pattern that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    /// Where it begins.
    pub at: usize,
    /// Its length in bytes.
    pub length: usize,
    /// The number of the value that it is of.
    pub value: u32,
    /// The form of the value.
    pub form: Form,
}

/// A pattern to be searched for: its fingerprint, the number of its value, and the form of the value that it is.
pub type WantedPattern = (Fingerprint, u32, Form);

/// Searches for patterns.
pub struct Searcher {
    key: SearchKey,
    mixer: WindowMixer,
    /// Which instructions this processor has.
    level: Level,
    /// `None` if it would pass too much.
    filter: Option<FirstFilter>,
    /// One byte for each mixed window: not zero if a pattern has it.
    mixed: Box<[u8; 1 << u16::BITS]>,
    /// One bit for each value of the 20 bits.
    exact: Box<[u64]>,
    /// Sorted.
    wanted: Vec<WantedPattern>,
    longest: usize,
    /// The anchor that is farthest from the beginning of its pattern.
    farthest: usize,
    /// Whether a pattern has an anchor that is no smaller than its neighbours.
    every_window: bool,
}

/// The pattern that BLAKE3 was last computed of. Where one pattern follows itself, it is not computed again.
type LastPattern<'a> = Option<(&'a [u8], [u8; TAG])>;

impl Searcher {
    /// A search for these patterns, whose fingerprints were taken with this key.
    #[must_use]
    pub fn new(key: SearchKey, mut wanted: Vec<WantedPattern>) -> Self {
        wanted.sort();
        let mut mixed = Box::new([0; 1 << u16::BITS]);
        let mut exact = vec![0_u64; 1 << (BITS - u64::BITS.ilog2())].into_boxed_slice();
        for (Fingerprint { window, .. }, ..) in &wanted {
            mixed[usize::from(WindowMixer::mixed_of(*window))] = 1;
            exact[(window / u64::BITS) as usize] |= 1 << (window % u64::BITS);
        }
        let fingerprints = || wanted.iter().map(|(fingerprint, ..)| fingerprint);
        let level = Level::new();
        Self {
            filter: FirstFilter::new(level, fingerprints()),
            level,
            mixer: key.mixer(),
            key,
            mixed,
            exact,
            longest: fingerprints().map(|one| usize::from(one.length)).max().unwrap_or(0),
            farthest: fingerprints().map(|one| usize::from(one.anchor)).max().unwrap_or(0),
            every_window: fingerprints().any(|one| one.anchor == 0),
            wanted,
        }
    }

    /// The length of the longest pattern in bytes. It is zero if there are no patterns.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Calls `found` for each pattern that begins at an index below `end` and is in `bytes` to its last byte, in any order.
    /// Returns how many places had the 20 bits of a pattern.
    pub fn search(&self, bytes: &[u8], end: usize, mut found: impl FnMut(Hit)) -> u64 {
        if self.wanted.is_empty() {
            return 0;
        }
        let windows = (bytes.len() + 1).saturating_sub(WINDOW).min(end.saturating_add(self.farthest));
        let (mut at, mut fitting) = (0, 0);
        let (mut pairs, mut suspects, mut last) =
            ([const { MixedPairs::new() }; RUN / BLOCK], Suspects::new(), None);
        while at + BLOCK <= windows && at + BLOCK + WINDOW <= bytes.len() {
            suspects.clear();
            let run = &bytes[at..];
            let ended = dispatch!(self.level, simd => self.suspect_run(simd, run, windows - at, &mut pairs, &mut suspects));
            for place in suspects.iter() {
                let (pairs, pair) = (&pairs[place / BLOCK], place % BLOCK / 2);
                if self.has(pairs.smaller[pair]) || self.every_window && self.has(pairs.larger[pair]) {
                    fitting += self.examine(bytes, at + place, end, &mut last, &mut found);
                    fitting += self.examine(bytes, at + place + 1, end, &mut last, &mut found);
                }
            }
            at += ended;
        }
        for place in at..windows {
            fitting += self.examine(bytes, place, end, &mut last, &mut found);
        }
        fitting
    }

    /// Looks for suspects in the first blocks of `bytes`: in a run of them, or in as many as have no more than `windows` windows.
    /// Returns where the last one ends.
    #[inline(always)]
    fn suspect_run<S: Simd>(
        &self,
        simd: S,
        bytes: &[u8],
        windows: usize,
        pairs: &mut [MixedPairs; RUN / BLOCK],
        suspects: &mut Suspects,
    ) -> usize {
        let mut at = 0;
        for pairs in pairs {
            let Some(block) = bytes[at..].first_chunk() else { break };
            if at + BLOCK > windows {
                break;
            }
            // No pattern has its anchor there.
            if !is_zeros(block) {
                suspects.begin_block(at);
                if self.every_window {
                    self.suspect::<S, true>(simd, block, pairs, suspects);
                } else {
                    self.suspect::<S, false>(simd, block, pairs, suspects);
                }
            }
            at += BLOCK;
        }
        at
    }

    /// Adds to `suspects` the pairs of a block that the filter passes, or else those that the first table has.
    #[inline(always)]
    fn suspect<S: Simd, const EVERY: bool>(
        &self,
        simd: S,
        block: &[u8; BLOCK + WINDOW],
        pairs: &mut MixedPairs,
        suspects: &mut Suspects,
    ) {
        self.mixer.mix::<S, EVERY>(simd, block, pairs);
        if let Some(filter) = &self.filter {
            let passing = filter.passing::<S, EVERY>(simd, pairs);
            let [first, second, third, fourth] = passing.map(u64::count_ones);
            match first + second + third + fourth {
                0 => return,
                1..=MOST_ALONE => return suspects.add_passing(&passing),
                // Bytes that repeat themselves may pass everywhere.
                _ => {}
            }
        }
        self.suspect_groups::<EVERY>(pairs, suspects);
    }

    /// Looks up all pairs of a block in the first table.
    #[inline(never)]
    fn suspect_groups<const EVERY: bool>(&self, pairs: &MixedPairs, suspects: &mut Suspects) {
        let ((smaller, _), (larger, _)) = (pairs.smaller.as_chunks(), pairs.larger.as_chunks());
        for (number, (smaller, larger)) in smaller.iter().zip(larger).enumerate() {
            if self.has_any(smaller) || EVERY && self.has_any(larger) {
                self.suspect_pairs::<EVERY>(smaller, larger, number * 2 * GROUP, suspects);
            }
        }
    }

    /// Whether the first table has any of these. It is not asked about one after the other, because the processor would often
    /// guess wrong what follows.
    #[inline(always)]
    fn has_any(&self, mixed: &[u16; GROUP]) -> bool {
        mixed.iter().fold(0, |any, mixed| any | self.mixed[usize::from(*mixed)]) != 0
    }

    fn has(&self, mixed: u16) -> bool {
        self.mixed[usize::from(mixed)] != 0
    }

    #[inline(never)]
    fn suspect_pairs<const EVERY: bool>(
        &self,
        smaller: &[u16; GROUP],
        larger: &[u16; GROUP],
        from: usize,
        suspects: &mut Suspects,
    ) {
        for (pair, (smaller, larger)) in smaller.iter().zip(larger).enumerate() {
            if self.has(*smaller) || EVERY && self.has(*larger) {
                suspects.add(from + 2 * pair);
            }
        }
    }

    /// Looks whether patterns have their anchor at this place. Returns how many have its 20 bits.
    fn examine<'a>(
        &self,
        bytes: &'a [u8],
        at: usize,
        end: usize,
        last: &mut LastPattern<'a>,
        found: &mut impl FnMut(Hit),
    ) -> u64 {
        let Some(window) = bytes[at..].first_chunk::<WINDOW>() else { return 0 };
        let window = self.mixer.bits(window);
        if self.exact[(window / u64::BITS) as usize] >> (window % u64::BITS) & 1 == 0 {
            return 0;
        }
        let from = self.wanted.partition_point(|(fingerprint, ..)| fingerprint.window < window);
        let wanted = self.wanted[from..].iter().take_while(|(fingerprint, ..)| fingerprint.window == window);
        for (Fingerprint { anchor, length, tag, .. }, value, form) in wanted {
            let length = usize::from(*length);
            let Some(start) = at.checked_sub(usize::from(*anchor)).filter(|start| *start < end) else {
                continue;
            };
            let Some(pattern) = bytes.get(start..start + length) else { continue };
            let of_pattern = match last {
                Some((same, tag)) if *same == pattern => *tag,
                _ => self.key.tag(pattern),
            };
            *last = Some((pattern, of_pattern));
            if of_pattern == *tag {
                found(Hit { at: start, length, value: *value, form: *form });
            }
        }
        1
    }
}

/// Whether a block has only zeros, apart from the bytes that belong to the next one.
#[inline(always)]
fn is_zeros(block: &[u8; BLOCK + WINDOW]) -> bool {
    let (lines, _) = block[..BLOCK].as_chunks::<64>();
    for line in lines {
        let mut any = 0;
        for byte in line {
            any |= byte;
        }
        if any != 0 {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::files::search::fingerprint::SHORTEST;

    fn key() -> SearchKey {
        SearchKey::new([7; 32])
    }

    fn searcher(patterns: &[&[u8]]) -> Searcher {
        let wanted = patterns
            .iter()
            .enumerate()
            .filter_map(|(value, pattern)| Some((key().fingerprint(pattern)?, value as u32, Form::Plain)));
        Searcher::new(key(), wanted.collect())
    }

    /// The search with the instructions of older processors too, and with and without the filter.
    fn variants(patterns: &[&[u8]]) -> Vec<Searcher> {
        let best = Level::new();
        #[cfg(target_arch = "x86_64")]
        let older = [best.as_sse4_2().map(Level::Sse4_2), best.as_sse2().map(Level::Sse2)];
        #[cfg(not(target_arch = "x86_64"))]
        let older = [None];
        let mut searchers = Vec::new();
        for level in older.into_iter().flatten().chain([best]) {
            searchers.push(Searcher { level, ..searcher(patterns) });
            searchers.push(Searcher { level, filter: None, ..searcher(patterns) });
        }
        searchers
    }

    fn found(searcher: &Searcher, bytes: &[u8]) -> Vec<(usize, u32)> {
        let mut found = Vec::new();
        searcher.search(bytes, usize::MAX, |hit| found.push((hit.at, hit.value)));
        found.sort_unstable();
        found
    }

    fn naive(patterns: &[&[u8]], bytes: &[u8]) -> Vec<(usize, u32)> {
        let mut found = Vec::new();
        for at in 0..bytes.len() {
            for (value, pattern) in patterns.iter().enumerate() {
                if bytes[at..].starts_with(pattern) {
                    found.push((at, value as u32));
                }
            }
        }
        found
    }

    /// A small alphabet, so that patterns begin often and overlap.
    fn some_bytes(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0_u8), Just(b'a'), Just(b'b')];
        proptest::collection::vec(byte, length)
    }

    /// Patterns of any length, and those that are so long that hardly one of them has no anchor.
    fn some_patterns() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let long = proptest::collection::vec(some_bytes(16..40), 0..6);
        prop_oneof![proptest::collection::vec(some_bytes(SHORTEST..14), 0..6), long]
    }

    proptest! {
        #[test]
        fn it_finds_what_a_naive_search_finds(
            patterns in some_patterns(),
            bytes in prop_oneof![some_bytes(0..3 * BLOCK), some_bytes(RUN - BLOCK..RUN + 2 * BLOCK)],
            zeros in (0..3 * BLOCK, 0..2 * BLOCK),
            planted in proptest::collection::vec((0..6_usize, 0..RUN + BLOCK), 0..12),
            at_edges in proptest::collection::vec((0..6_usize, 1..=RUN / BLOCK, 0..20_usize), 0..6),
        ) {
            let patterns: Vec<&[u8]> =
                patterns.iter().map(Vec::as_slice).filter(|pattern| pattern[0] != 0).collect();
            let mut bytes = bytes;
            bytes.iter_mut().skip(zeros.0).take(zeros.1).for_each(|byte| *byte = 0);
            let at_edges = at_edges.into_iter().map(|(pattern, block, before)| (pattern, block * BLOCK - before));
            for (pattern, at) in planted.into_iter().chain(at_edges) {
                if let Some(pattern) = patterns.get(pattern) && at + pattern.len() <= bytes.len() {
                    bytes[at..at + pattern.len()].copy_from_slice(pattern);
                }
            }
            let expected = naive(&patterns, &bytes);
            for searcher in variants(&patterns) {
                prop_assert_eq!(&found(&searcher, &bytes), &expected);
            }
        }
    }

    /// One pattern with an anchor, with which the search looks up half of the windows, and one without.
    fn with_and_without_anchor() -> [Vec<u8>; 2] {
        let has_none = |pattern: &Vec<u8>| key().fingerprint(pattern).unwrap().anchor == 0;
        let mut short = (10_000_000_u32..).map(|number| number.to_string().into_bytes());
        [b"a-token-of-20-bytes!".to_vec(), short.find(has_none).unwrap()]
    }

    #[test]
    fn a_pattern_is_found_at_every_place_and_among_zeros() {
        for (pattern, every_window) in with_and_without_anchor().iter().zip([false, true]) {
            let searcher = searcher(&[pattern]);
            assert_eq!(searcher.every_window, every_window);
            for length in [pattern.len(), 21, 35, 36, 37, BLOCK + 5, 2 * BLOCK, 3 * BLOCK + 7] {
                for at in 0..=length - pattern.len() {
                    for around in [0, b'.'] {
                        let mut bytes = vec![around; length];
                        bytes[at..at + pattern.len()].copy_from_slice(pattern);
                        assert_eq!(found(&searcher, &bytes), [(at, 0)], "{length}");
                    }
                }
            }
        }
    }

    #[test]
    fn only_what_is_whole_and_begins_before_the_end_is_found() {
        for pattern in with_and_without_anchor() {
            let searcher = searcher(&[&pattern]);
            assert!(found(&searcher, &pattern[..pattern.len() - 1]).is_empty());
            for before in [2, BLOCK - 4, 2 * BLOCK] {
                let bytes = [&vec![b'.'; before], pattern.as_slice(), &[b'.'; BLOCK]].concat();
                let mut hits = 0;
                searcher.search(&bytes, before, |_| hits += 1);
                assert_eq!(hits, 0);
                searcher.search(&bytes, before + 1, |_| hits += 1);
                assert_eq!(hits, 1);
            }
        }
    }

    #[test]
    fn a_value_of_one_repeated_byte_is_found_at_every_place() {
        let value = [b'x'; 100];
        let searcher = searcher(&[&value]);
        let bytes = vec![b'x'; 5000];
        let all: Vec<(usize, u32)> = (0..=bytes.len() - value.len()).map(|at| (at, 0)).collect();
        assert_eq!(found(&searcher, &bytes), all);
    }

    #[test]
    fn random_bytes_hold_none_of_many_patterns() {
        for count in [20, 2000] {
            let mut random = fastrand::Rng::with_seed(1);
            let patterns: Vec<Vec<u8>> =
                (0..count).map(|_| (0..40).map(|_| random.u8(..)).collect()).collect();
            let patterns: Vec<&[u8]> = patterns.iter().map(Vec::as_slice).collect();
            let searcher = searcher(&patterns);
            assert_eq!(searcher.filter.is_some(), count == 20);
            let mut bytes = vec![0; 16 << 20];
            random.fill(&mut bytes);
            let mut hits = 0;
            let fitting = searcher.search(&bytes, usize::MAX, |_| hits += 1);
            // About as often as 20 bits fit by chance: 16 times for each pattern, if all places were looked at.
            assert!(hits == 0 && fitting < 20 * count, "{fitting}");
            let last = patterns[patterns.len() - 1];
            bytes[1_000_003..1_000_043].copy_from_slice(last);
            assert_eq!(found(&searcher, &bytes), [(1_000_003, patterns.len() as u32 - 1)]);
        }
    }
}
