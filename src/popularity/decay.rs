//! The arithmetic of decayed counts, as `lua/half_lives.lua` and `lua/fold.lua` do it.
//!
//! Each read counts 1 and halves with every half-life, so recency and frequency both matter (LRFU; Lee and others,
//! "LRFU: A Spectrum of Policies", IEEE Transactions on Computers 50(12), 2001). Stored as forward decay (Cormode and
//! others, ICDE 2009): a score is log2 of the sum over reads of 2^(half-lives passed at the read), so that scores of
//! different times are comparable.

use std::time::Duration;

use crate::job::Job;

/// The shortest half-life: a shorter one cannot tell habit from chance.
const SHORTEST: Duration = Duration::from_secs(10);
/// The longest half-life: reads of months ago mean little.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Returns the half-life of a read of this job's entries: twice the TTL, from ten seconds to thirty days.
pub(crate) fn half_life(job: &Job) -> Duration {
    half_life_of(job.ttl)
}

/// Returns the half-life of a read of entries with this TTL.
pub(super) fn half_life_of(ttl: Duration) -> Duration {
    ttl.saturating_mul(2).clamp(SHORTEST, LONGEST)
}

/// Returns the count of a score after this many half-lives.
pub(super) fn count(score: f64, passed: f64) -> f64 {
    (score - passed).min(1_000.0).exp2()
}

/// Returns the score after this many further reads.
#[cfg(test)]
fn add(score: Option<f64>, reads: f64, passed: f64) -> f64 {
    let new = passed + reads.log2();
    let Some(old) = score else { return new };
    let (high, low) = (old.max(new), old.min(new));
    high + (1.0 + (low - high).exp2()).log2()
}

/// Returns the expected number of reads within a time if the rate stays the same: a stable count gains as much as it
/// loses.
pub(super) fn expected(count: f64, time: Duration, half_life: Duration) -> f64 {
    count * std::f64::consts::LN_2 * time.as_secs_f64() / half_life.as_secs_f64()
}

/// Returns the count of a single read after this time.
pub(super) fn once(time: Duration, half_life: Duration) -> f64 {
    (-time.as_secs_f64() / half_life.as_secs_f64()).exp2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The shortest half-life, and how many of them pass from 1970 to 2128.
    const HALVINGS: f64 = 4_986_144_000.0 / 10.0;

    /// Reads as half-lives since some time, and weights.
    fn reads() -> impl Strategy<Value = Vec<(f64, f64)>> {
        prop::collection::vec((0.0..30.0_f64, 0.01..1_000.0_f64), 1..40)
    }

    fn scored(reads: &[(f64, f64)], from: f64) -> f64 {
        reads.iter().fold(None, |score, (at, weight)| Some(add(score, *weight, from + at))).unwrap()
    }

    proptest! {
        #[test]
        fn a_count_is_the_sum_of_halved_reads_at_any_time_until_2128(reads in reads(), from in 0.0..HALVINGS) {
            let wanted: f64 = reads.iter().map(|(at, weight)| weight * (at - 30.0).exp2()).sum();
            let found = count(scored(&reads, from), from + 30.0);
            prop_assert!((found / wanted - 1.0).abs() < 1e-4, "{found} for {wanted}");
        }

        #[test]
        fn the_order_of_reads_does_not_matter(reads in reads(), from in 0.0..HALVINGS) {
            let mut backwards = reads.clone();
            backwards.reverse();
            prop_assert!((scored(&reads, from) - scored(&backwards, from)).abs() < 1e-4);
        }

        #[test]
        fn a_read_is_never_lost_beside_a_thousand(count_then in 1.0..1_000.0_f64, from in 0.0..HALVINGS) {
            let before = add(None, count_then, from);
            prop_assert!(add(Some(before), 1.0, from) > before);
        }

        #[test]
        fn of_two_the_one_with_more_reads_of_late_is_ahead(
            reads in reads(), more in 0.1..100.0_f64, from in 0.0..HALVINGS,
        ) {
            let one = scored(&reads, from);
            prop_assert!(add(Some(one), more, from + 30.0) > one);
        }
    }

    #[test]
    fn steady_reads_are_expected_to_go_on() {
        let (half, ttl) = (Duration::from_secs(7_200), Duration::from_secs(3_600));
        // Five in each TTL, for fifty of them.
        let score = (0..250).fold(None, |score, n| Some(add(score, 1.0, f64::from(n) / 10.0)));
        let expected = expected(count(score.unwrap(), 25.0), ttl, half);
        assert!((expected - 5.0).abs() < 0.3, "{expected}");
    }

    #[test]
    fn what_is_absurd_does_not_overflow() {
        assert!(count(1e300, 0.0).is_finite());
        assert!(count(-1e300, 0.0).abs() < f64::EPSILON);
    }
}
