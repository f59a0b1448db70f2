//! A sorted set.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use super::Bytes;

/// Members from which on each member's score has an index of its own.
const INDEXED: usize = 64;

/// A score of a sorted set; never NaN.
#[derive(Clone, Copy, Debug)]
pub struct Score(pub f64);

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.0.total_cmp(&other.0).is_eq()
    }
}

impl Eq for Score {}

impl Hash for Score {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// Members in the order of scores, then of their bytes.
#[derive(Clone, Debug, Default)]
pub struct Sorted {
    order: Vec<(Score, Bytes)>,
    /// The score of each member; empty while there are few.
    scores: BTreeMap<Bytes, f64>,
}

impl PartialEq for Sorted {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Sorted {}

impl Hash for Sorted {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.order.hash(state);
    }
}

fn compare(one: (f64, &[u8]), other: (f64, &[u8])) -> Ordering {
    one.0.total_cmp(&other.0).then_with(|| one.1.cmp(other.1))
}

impl Sorted {
    /// Returns the members in order.
    pub fn members(&self) -> &[(Score, Bytes)] {
        &self.order
    }

    fn place(&self, score: f64, member: &[u8]) -> Result<usize, usize> {
        self.order.binary_search_by(|(at, of)| compare((at.0, of), (score, member)))
    }

    /// Returns a member's rank.
    pub fn rank(&self, member: &[u8]) -> Option<usize> {
        if self.scores.is_empty() {
            return self.order.iter().position(|(_, of)| **of == *member);
        }
        self.place(*self.scores.get(member)?, member).ok()
    }

    /// Returns a member's score.
    pub fn score(&self, member: &[u8]) -> Option<f64> {
        if self.scores.is_empty() {
            return self.order.iter().find(|(_, of)| **of == *member).map(|(score, _)| score.0);
        }
        self.scores.get(member).copied()
    }

    /// Sets a member's score, and adds the member if it is not there.
    pub fn set(&mut self, score: f64, member: &Bytes) {
        // There is one zero.
        let score = if score == 0.0 { 0.0 } else { score };
        if let Some(rank) = self.rank(member) {
            self.order.remove(rank);
        }
        if let Err(at) = self.place(score, member) {
            self.order.insert(at, (Score(score), member.clone()));
        }
        if !self.scores.is_empty() {
            self.scores.insert(member.clone(), score);
        } else if self.order.len() > INDEXED {
            self.scores = self.order.iter().map(|(score, member)| (member.clone(), score.0)).collect();
        }
    }

    /// Removes a member; returns false where it is not there.
    pub fn remove(&mut self, member: &[u8]) -> bool {
        let Some(rank) = self.rank(member) else { return false };
        self.order.remove(rank);
        self.scores.remove(member);
        true
    }

    /// Removes the members of these ranks, and returns them in order.
    pub fn take(&mut self, ranks: std::ops::Range<usize>) -> Vec<(Score, Bytes)> {
        let taken: Vec<_> = self.order.drain(ranks).collect();
        for (_, member) in &taken {
            self.scores.remove(member);
        }
        taken
    }

    /// Returns the number of members whose score is before a bound.
    pub fn before(&self, is_before: impl Fn(f64) -> bool) -> usize {
        self.order.partition_point(|(score, _)| is_before(score.0))
    }
}
