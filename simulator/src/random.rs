//! The simulator's own random decisions.

use std::ops::RangeInclusive;

use crate::machine::next_random;

/// A sequence of random numbers that depends on its seed only.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Returns the sequence of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x5A_A0_5A_A0)
    }

    /// Returns a number below `end`; 0 if that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(next_random(&mut self.0) % (end.max(1) as u64)).unwrap_or(0)
    }

    /// Returns a number within the range.
    pub(crate) fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let width = range.end().saturating_sub(*range.start()).saturating_add(1).max(1);
        range.start() + next_random(&mut self.0) % width
    }

    /// Returns true with this probability, in thousandths.
    pub(crate) fn chance(&mut self, thousandths: u64) -> bool {
        next_random(&mut self.0) % 1_000 < thousandths
    }

    /// Returns one of these.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}
