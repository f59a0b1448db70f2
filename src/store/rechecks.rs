//! The rule of rechecks: which answers replace a value after an invalidation, and which rechecks are left.
//!
//! An upstream that lags may answer with the value from before the invalidation, and its replicas may lag differently.
//! docs/rechecks.md gives the rule, its promise, and what it costs; `benches/rechecks.rs` compares it with others.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::redis::RedisTime;

/// The rechecks of an entry that are to come after its last invalidation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Packed", into = "Packed")]
pub struct Rechecks {
    /// When the invalidation came; their times count from then.
    pub since: RedisTime,
    /// The hash of the value from before the invalidation; `-` for none, and empty if it cannot be compared.
    pub before: String,
    /// No other invalidation was open when it came, so the value from before is old for certain.
    pub lone: bool,
    /// The answer had the version that the invalidation announced. Only the last recheck asks the upstream, since
    /// another edit may have announced none; the others look for old values that other programs stored.
    pub verified: bool,
    /// The last answer was refused.
    refused: bool,
    /// Two answers in a row were the same new value: only the last recheck is left.
    confirmed: bool,
    /// The last recheck went back to the value from before: one more follows, at twice its time.
    doubled: bool,
    /// It is that of a doubt, which stands for no invalidation (`invalidate.lua`).
    of_doubt: bool,
}

/// The form in metadata: since, before, and the flags as bits.
#[derive(Serialize, Deserialize)]
struct Packed(RedisTime, String, u8);

impl From<Packed> for Rechecks {
    fn from(Packed(since, before, flags): Packed) -> Self {
        let flag = |bit: u8| flags & bit != 0;
        Self {
            since,
            before,
            lone: flag(1),
            refused: flag(2),
            confirmed: flag(4),
            doubled: flag(8),
            verified: flag(16),
            of_doubt: flag(32),
        }
    }
}

impl From<Rechecks> for Packed {
    fn from(rechecks: Rechecks) -> Self {
        let Rechecks { since, before, lone, verified, refused, confirmed, doubled, of_doubt } = rechecks;
        let flags = [(lone, 1), (refused, 2), (confirmed, 4), (doubled, 8), (verified, 16), (of_doubt, 32)];
        Self(since, before, flags.into_iter().map(|(set, bit)| u8::from(set) * bit).sum())
    }
}

/// The decision about an answer, with the rechecks that are then to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It replaces the value.
    Take(Option<Rechecks>),
    /// It is the value from before the invalidation and does not replace the newer one.
    Refuse(Rechecks),
}

impl Rechecks {
    /// Returns the rechecks after an invalidation at `since`.
    pub fn new(since: RedisTime, before: String, lone: bool) -> Self {
        let (verified, refused, confirmed, doubled, of_doubt) = Default::default();
        Self { since, before, lone, verified, refused, confirmed, doubled, of_doubt }
    }

    /// Forgets the value from before: it was made from another job file, so its hash says nothing of an answer. No
    /// answer is refused then, and none confirms another.
    #[must_use]
    pub fn without_before(self) -> Self {
        Self { before: String::new(), lone: false, ..self }
    }

    /// Returns when the invalidation came that they follow; `None` for those of a doubt.
    pub fn since_invalidation(&self) -> Option<RedisTime> {
        (!self.of_doubt).then_some(self.since)
    }

    /// Leaves only the last recheck, as after a doubt.
    #[must_use]
    pub fn after_doubt(self) -> Self {
        Self { confirmed: true, of_doubt: true, ..self }
    }

    /// Returns the list after a doubt, if a fetch at `after` leaves some of it: an edit may have been missed as well,
    /// so the invalidation is not lone. One more recheck follows, no sooner than the last one after the doubt would.
    pub fn with_doubt(&self, times: &[Duration], after: RedisTime) -> Option<Self> {
        let is_left = !self.confirmed && times.last().is_some_and(|last| self.since + *last > after);
        is_left.then(|| Self { lone: false, doubled: true, ..self.clone() })
    }

    /// Returns `true` if it follows a doubt, and no invalidation: messages or data may have been lost.
    pub fn is_of_doubt(&self) -> bool {
        self.of_doubt
    }

    /// Returns `true` if the last answer was refused.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    /// Returns the times that are to come after `after`; `times` are the job's.
    pub fn after(&self, times: &[Duration], after: RedisTime) -> impl Iterator<Item = RedisTime> {
        let kept = if self.confirmed { times.len().saturating_sub(1) } else { 0 };
        let doubled = times.last().filter(|_| self.doubled).map(|last| *last * 2);
        let times: Vec<RedisTime> =
            times[kept..].iter().copied().chain(doubled).map(|time| self.since + time).collect();
        times.into_iter().filter(move |at| *at > after)
    }

    /// Returns the next time after `after`.
    pub fn next(&self, times: &[Duration], after: RedisTime) -> Option<RedisTime> {
        self.after(times, after).next()
    }

    /// Returns the next time after `after` at which the upstream is asked.
    pub fn next_fetch(&self, times: &[Duration], after: RedisTime) -> Option<RedisTime> {
        if self.verified { self.after(times, after).last() } else { self.next(times, after) }
    }

    /// Returns the next time after `after` at which any answer replaces the present one, if one was refused.
    pub fn next_taken(&self, times: &[Duration], after: RedisTime) -> Option<RedisTime> {
        if self.lone { self.after(times, after).last() } else { self.next(times, after) }
    }

    /// Judges the answer of a fetch that began at `fetched_at`. `present` and `answer` are hashes.
    pub fn judge(&self, times: &[Duration], present: Option<&str>, answer: &str, fetched_at: RedisTime) -> Verdict {
        let goes_back = answer == self.before && present.is_some_and(|present| present != self.before);
        let is_last = self.next(times, fetched_at).is_none();
        if goes_back && !is_last && (self.lone || !self.refused) {
            return Verdict::Refuse(Self { refused: true, ..self.clone() });
        }
        let is_confirmed = self.lone && !self.refused && present == Some(answer) && answer != self.before;
        let taken = Self {
            refused: false,
            confirmed: self.confirmed || is_confirmed,
            doubled: self.doubled || goes_back && is_last,
            ..self.clone()
        };
        Verdict::Take(taken.next(times, fetched_at).map(|_| taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: [Duration; 4] =
        [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10), Duration::from_secs(30)];

    /// Returns which of these answers are stored, and when fetches begin, s: each at the next time, the last where no
    /// time is left. The first answers the invalidation, and `A` is the value from before.
    fn stored(lone: bool, answers: &str) -> (String, Vec<u64>) {
        let (mut shown, mut began) = (String::new(), Vec::new());
        let mut present = answers[..1].to_owned();
        let mut rechecks = Some(Rechecks::new(RedisTime::from_millis(0), "A".to_owned(), lone));
        let mut at = RedisTime::from_millis(0);
        shown.push_str(&present);
        for answer in answers[1..].chars().map(String::from) {
            let Some(next) = rechecks.as_ref().and_then(|rechecks| rechecks.next(&TIMES, at)) else { break };
            at = next;
            began.push(u64::try_from(at.as_millis()).unwrap() / 1_000);
            match rechecks.take().unwrap().judge(&TIMES, Some(&present), &answer, at) {
                Verdict::Take(left) => (present, rechecks) = (answer, left),
                Verdict::Refuse(left) => rechecks = Some(left),
            }
            shown.push_str(&present);
        }
        (shown, began)
    }

    #[test]
    fn answers_are_taken_or_refused_by_the_rule() {
        for (lone, answers, shows, times) in [
            // Nothing lags: the second equal answer leaves only the last recheck.
            (true, "BBBB", "BBB", vec![1, 30]),
            // Nothing changed, or all of it lags: the whole list.
            (true, "AAAAA", "AAAAA", vec![1, 3, 10, 30]),
            (true, "AABBB", "AABBB", vec![1, 3, 10, 30]),
            (true, "ABBB", "ABBB", vec![1, 3, 30]),
            // A replica that lags is refused; the last recheck is believed, and checked once more.
            (true, "BABAB", "BBBBB", vec![1, 3, 10, 30]),
            (true, "BAAAAB", "BBBBAB", vec![1, 3, 10, 30, 60]),
            (true, "BAAAAA", "BBBBAA", vec![1, 3, 10, 30, 60]),
            // Of several edits one may have gone back: the second such answer in a row is believed.
            (false, "BAAAA", "BBAAA", vec![1, 3, 10, 30]),
            (false, "BABAB", "BBBBB", vec![1, 3, 10, 30]),
            (false, "BBBBB", "BBBBB", vec![1, 3, 10, 30]),
            // Other content is never refused.
            (true, "BCBCB", "BCBCB", vec![1, 3, 10, 30]),
        ] {
            assert_eq!(stored(lone, answers), (shows.to_owned(), times), "{lone} {answers}");
        }
    }

    #[test]
    fn a_value_that_was_removed_is_replaced_by_any_answer() {
        let rechecks = Rechecks::new(RedisTime::from_millis(0), "A".to_owned(), true);
        let at = RedisTime::from_millis(1_000);
        assert!(matches!(rechecks.judge(&TIMES, None, "A", at), Verdict::Take(Some(_))));
        assert_eq!(rechecks.judge(&[], Some("B"), "A", at), Verdict::Take(None));
    }

    #[test]
    fn without_the_value_from_before_no_answer_is_judged_by_it() {
        let mut rechecks = Rechecks::new(RedisTime::from_millis(0), "A".to_owned(), true).without_before();
        for (present, answer) in [("A", "B"), ("B", "A"), ("A", "A"), ("A", "-")] {
            let Verdict::Take(Some(left)) =
                rechecks.judge(&TIMES, Some(present), answer, RedisTime::from_millis(1_000))
            else {
                panic!("{answer} is refused, or ends the rechecks")
            };
            assert!(!left.confirmed, "{answer}");
            rechecks = left;
        }
    }

    #[test]
    fn a_doubt_leaves_what_is_to_come_and_adds_one() {
        let at = |s: i64| RedisTime::from_millis(1_000 * s);
        let left = |rechecks: &Rechecks, after| {
            let doubted = rechecks.with_doubt(&TIMES, at(after))?;
            Some(doubted.after(&TIMES, at(after)).map(|at| at.as_millis() / 1_000).collect::<Vec<_>>())
        };
        let rechecks = Rechecks::new(at(100), "A".to_owned(), true);
        assert_eq!(left(&rechecks, 102), Some(vec![103, 110, 130, 160]));
        assert_eq!(left(&rechecks, 129), Some(vec![130, 160]), "the last comes 30 s after the doubt, or later");
        assert_eq!(left(&rechecks, 130), None, "a doubt has a list of its own then");
        assert_eq!(left(&rechecks.clone().after_doubt(), 102), None);
        let doubted = rechecks.with_doubt(&TIMES, at(102)).unwrap();
        let Verdict::Refuse(refused) = doubted.judge(&TIMES, Some("B"), "A", at(102)) else { panic!("it is older") };
        let taken = refused.judge(&TIMES, Some("B"), "A", at(103));
        assert!(matches!(taken, Verdict::Take(_)), "the missed edit may have gone back: {taken:?}");
    }

    #[test]
    fn metadata_hold_them_as_an_array() {
        let all = Rechecks {
            since: RedisTime::from_millis(17),
            before: "h".to_owned(),
            lone: true,
            verified: false,
            refused: false,
            confirmed: true,
            doubled: true,
            of_doubt: true,
        };
        let text = serde_json::to_string(&all).unwrap();
        // No `"a":1`: meta.lua takes that for metadata of the previous version.
        assert_eq!(text, r#"[17,"h",45]"#);
        assert_eq!(serde_json::from_str::<Rechecks>(&text).unwrap(), all);
    }
}
