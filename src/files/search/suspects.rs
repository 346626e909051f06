//! The pairs of windows of some blocks that are to be looked at closely, because a pattern may have its anchor there.
//!
//! Few pairs pass the first filter, and the processor cannot guess which. Each wrong guess costs it as much as some dozens of
//! instructions. So pairs are added without a branch that depends on them, and those of many blocks are looked at together.

use super::fingerprint::BLOCK;
use super::first_filter::{PassingPairs, place_of};

/// How many bytes are filtered before the suspects in them are looked at.
pub(super) const RUN: usize = 8 * BLOCK;
/// How many pairs of one number are added without a branch. Seldom more of them pass.
const EXPECTED: usize = 2;

/// The pairs of a run in which a pattern may have its anchor.
pub(super) struct Suspects {
    /// Where the block begins whose pairs are added, from the beginning of the run.
    block: usize,
    /// Where each pair begins, from the beginning of the run. A place is written also for a pair that does not pass, and the
    /// next one takes its room. So there is room for one more place than a run has pairs.
    places: [u16; RUN / 2 + 1],
    count: usize,
}

impl Suspects {
    pub(super) fn new() -> Self {
        Self { block: 0, places: [0; _], count: 0 }
    }

    /// Begins a run.
    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    /// Begins the block at this place of the run. Each pair of a block is added once.
    pub(super) fn begin_block(&mut self, at: usize) {
        self.block = at;
    }

    /// Where the pairs begin, from the beginning of the run.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.places[..self.count].iter().map(|place| usize::from(*place))
    }

    /// Adds the pair that begins at this place of the block.
    pub(super) fn add(&mut self, place: usize) {
        self.places[self.count] = (self.block + place) as u16;
        self.count += 1;
    }

    /// Adds the pairs of the block that passed.
    #[inline(always)]
    pub(super) fn add_passing(&mut self, passing: &PassingPairs) {
        for (number, passing) in passing.iter().enumerate() {
            let from = self.block + number * 2 * u64::BITS as usize;
            let mut passing = *passing;
            for _ in 0..EXPECTED {
                passing = self.add_first(from, passing);
            }
            while passing != 0 {
                passing = self.add_first(from, passing);
            }
        }
    }

    /// Adds the pair of the first bit, if one is set, and returns the other bits.
    #[inline(always)]
    fn add_first(&mut self, from: usize, passing: u64) -> u64 {
        self.places[self.count] = (from + place_of(passing.trailing_zeros()) as usize) as u16;
        self.count += usize::from(passing != 0);
        passing & passing.wrapping_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_that_passed_is_added_once() {
        let mut random = fastrand::Rng::with_seed(2);
        for shift in 0..7 {
            // Each shift leaves fewer bits set.
            let passing: PassingPairs =
                std::array::from_fn(|_| (0..shift).fold(u64::MAX, |bits, _| bits & random.u64(..)));
            let mut suspects = Suspects::new();
            for block in (0..RUN).step_by(BLOCK) {
                suspects.begin_block(block);
                suspects.add_passing(&passing);
            }
            let mut expected = Vec::new();
            for block in (0..RUN).step_by(BLOCK) {
                for (number, passing) in passing.iter().enumerate() {
                    let set = (0..u64::BITS).filter(|bit| passing >> bit & 1 != 0);
                    expected.extend(set.map(|bit| block + 128 * number + place_of(bit) as usize));
                }
            }
            let mut places: Vec<usize> = suspects.iter().collect();
            assert_eq!(places, expected);
            places.dedup();
            assert_eq!(places.len(), expected.len());
            assert!(places.iter().all(|place| place % 2 == 0 && *place < RUN));
        }
    }
}
