//! What a search finds in one file that is read chunk by chunk, by several threads and in any order.
//!
//! A chunk is read with some bytes before it and after it, as many as the longest pattern may have there. So a value that
//! lies across chunks is found, counted in the chunk that it begins in, and overwritten in each of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::forms::Form;
use super::searcher::{Hit, Searcher};
use super::token_kinds::{REACH, TokenKind, TokenKindSearch};

/// What a value is overwritten with. It is valid wherever a text is.
pub const MARK: u8 = b'*';
/// The most places that are kept of one file.
const MOST_PLACES: usize = 1 << 20;

/// A run of bytes of a file that is of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FoundPlace {
    /// Where it begins.
    pub at: u64,
    /// Its length in bytes.
    pub length: usize,
    /// The number of the value.
    pub value: u32,
}

/// What was found in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// How often each value was found in each form.
    pub counts: BTreeMap<(u32, Form), u64>,
    /// Where, as far as there is room for it.
    pub places: Vec<FoundPlace>,
    /// How often something looks like a kind of token, where that was counted.
    pub token_kinds: BTreeMap<TokenKind, u64>,
}

impl Findings {
    /// What was found of the values for which this is true, and of the others. What looks like a token is among the others.
    #[must_use]
    pub fn split(self, of: impl Fn(u32) -> bool) -> (Self, Self) {
        let (counts, other_counts) = self.counts.into_iter().partition(|((value, _), _)| of(*value));
        let (places, other_places) = self.places.into_iter().partition(|place| of(place.value));
        let others = Self { counts: other_counts, places: other_places, token_kinds: self.token_kinds };
        (Self { counts, places, ..Self::default() }, others)
    }

    /// Adds what was found elsewhere in the same file. Places for which there is no room are left out.
    pub fn add(&mut self, other: Self) {
        for (pattern, count) in other.counts {
            *self.counts.entry(pattern).or_default() += count;
        }
        for (kind, count) in other.token_kinds {
            *self.token_kinds.entry(kind).or_default() += count;
        }
        let room = MOST_PLACES.saturating_sub(self.places.len());
        self.places.extend(other.places.into_iter().take(room));
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.token_kinds.is_empty()
    }

    /// How often a value was found, in whatever form.
    #[must_use]
    pub fn of(&self, value: u32) -> u64 {
        self.counts.iter().filter(|((of, _), _)| *of == value).map(|(_, count)| count).sum()
    }
}

/// A search in the chunks of a file.
pub struct FileSearch {
    searcher: Arc<Searcher>,
    /// The numbers of the values that are overwritten in what is read.
    overwritten: Vec<u32>,
    token_kinds: Option<Arc<TokenKindSearch>>,
}

impl FileSearch {
    /// A search that overwrites these values in the chunks that it is given. The numbers are in ascending order.
    #[must_use]
    pub fn new(searcher: Arc<Searcher>, overwritten: Vec<u32>) -> Self {
        Self { searcher, overwritten, token_kinds: None }
    }

    /// Counts what looks like a token as well, in what is left of the bytes when the values were overwritten.
    #[must_use]
    pub fn with_token_kinds(self, token_kinds: Arc<TokenKindSearch>) -> Self {
        Self { token_kinds: Some(token_kinds), ..self }
    }

    /// Whether it overwrites a value.
    #[must_use]
    pub fn overwrites(&self, value: u32) -> bool {
        self.overwritten.binary_search(&value).is_ok()
    }

    /// How many bytes before a chunk, and after it, are read with it.
    #[must_use]
    pub fn margin(&self) -> usize {
        let reach = if self.token_kinds.is_some() { REACH } else { 0 };
        self.searcher.longest().saturating_sub(1).max(reach)
    }

    /// Searches a chunk, which is the range `chunk` of `bytes`, and overwrites in it what is to be. The bytes begin at
    /// `offset` of the file. Returns what begins in the chunk.
    pub fn chunk(&self, bytes: &mut [u8], chunk: Range<usize>, offset: u64) -> Findings {
        let part = chunk.len().max(1);
        self.parts(bytes, chunk, offset, part).pop().unwrap_or_default()
    }

    /// The same, and returns what begins in each part of the chunk. All parts have `part` bytes, which is not zero; the last
    /// one has the rest.
    pub fn parts(&self, bytes: &mut [u8], chunk: Range<usize>, offset: u64, part: usize) -> Vec<Findings> {
        let mut findings = vec![Findings::default(); chunk.len().div_ceil(part)];
        let mut hits: Vec<Hit> = Vec::new();
        self.searcher.search(bytes, chunk.end, |hit| hits.push(hit));
        hits.retain(|hit| hit.at + hit.length > chunk.start);
        for hit in hits.iter().filter(|hit| self.overwrites(hit.value)) {
            bytes[hit.at.max(chunk.start)..(hit.at + hit.length).min(chunk.end)].fill(MARK);
        }
        if let Some(search) = &self.token_kinds {
            for (number, found) in findings.iter_mut().enumerate() {
                let start = chunk.start + number * part;
                search.count(bytes, start..chunk.end.min(start + part), &mut found.token_kinds);
            }
        }
        hits.sort_unstable();
        for hit in hits.into_iter().filter(|hit| hit.at >= chunk.start) {
            let found = &mut findings[(hit.at - chunk.start) / part];
            *found.counts.entry((hit.value, hit.form)).or_default() += 1;
            found.places.push(FoundPlace {
                at: offset + hit.at as u64,
                length: hit.length,
                value: hit.value,
            });
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::files::search::fingerprint::SearchKey;

    fn searcher(patterns: &[Vec<u8>]) -> Arc<Searcher> {
        let key = SearchKey::new([3; 32]);
        let wanted = (0..)
            .zip(patterns)
            .filter_map(|(value, pattern)| Some((key.fingerprint(pattern)?, value, Form::Plain)));
        Arc::new(Searcher::new(key.clone(), wanted.collect()))
    }

    const EXAMPLE: &[u8] = b" glpat-16C7e42F292c6912E771 ";

    proptest! {
        /// Whatever the chunks are, what is found and what is overwritten is the same as in the file as a whole.
        #[test]
        fn chunks_of_any_size_find_what_the_whole_file_holds(
            bytes in proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'a'), Just(b'b')], 0..300),
            patterns in proptest::collection::vec(proptest::collection::vec(b'a'..=b'b', 8..40), 1..4),
            planted in proptest::collection::vec((0..4_usize, 0..300_usize), 0..8),
            cuts in proptest::collection::btree_set(1..300_usize, 0..12),
            token_at in proptest::option::of(0..280_usize),
            part in 1..400_usize,
        ) {
            let mut bytes = bytes;
            for (pattern, at) in planted {
                if let Some(pattern) = patterns.get(pattern) && at + pattern.len() <= bytes.len() {
                    bytes[at..at + pattern.len()].copy_from_slice(pattern);
                }
            }
            let overwritten: Vec<u32> = vec![0, 2];
            let token_kinds = Arc::new(TokenKindSearch::new().unwrap());
            let search = |overwritten| FileSearch::new(searcher(&patterns), overwritten).with_token_kinds(Arc::clone(&token_kinds));
            let whole = search(overwritten.clone());
            if let Some(place) = token_at.and_then(|at| bytes.get_mut(at..at + EXAMPLE.len())) {
                place.copy_from_slice(EXAMPLE);
            }
            let mut expected = bytes.clone();
            let found = whole.chunk(&mut expected, 0..bytes.len(), 0);

            let chunked = search(overwritten);
            let (mut written, mut found_in_chunks) = (Vec::new(), Findings::default());
            let ends: Vec<usize> = cuts.into_iter().filter(|cut| *cut < bytes.len()).chain([bytes.len()]).collect();
            let mut start = 0;
            for end in ends {
                let from = start - start.min(chunked.margin());
                let to = bytes.len().min(end + chunked.margin());
                let mut buffer = bytes[from..to].to_vec();
                for part in chunked.parts(&mut buffer, start - from..end - from, from as u64, part) {
                    found_in_chunks.add(part);
                }
                written.extend_from_slice(&buffer[start - from..end - from]);
                start = end;
            }
            prop_assert_eq!(written, expected);
            prop_assert_eq!(&found_in_chunks, &found);
            // And no less than a naive search finds.
            for (value, pattern) in (0..).zip(&patterns) {
                let naive = bytes.windows(pattern.len()).filter(|window| window == pattern).count();
                prop_assert_eq!(found.of(value), naive as u64);
            }
        }
    }
}
