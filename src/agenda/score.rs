//! The codec of scores: the state of an entry on the agenda, as one number.
//!
//! A score is a time in milliseconds. Its band tells the state, and its fraction holds the rest in 64ths.
//! `lua/score.lua` is the same codec for scripts, and no other file knows this form.
//!
//! | entry | score | fraction, in 64ths |
//! |---|---|---|
//! | urgent, high priority | `at` − 4·10¹³ | trigger |
//! | urgent, bulk | `at` − 3·10¹³ | trigger |
//! | claimed | `at` − 2·10¹³ | trigger + 8 · priority |
//! | running | `at` − 2·10¹³ | trigger + 8 · priority + 32 |
//! | scheduled | `at` | trigger |
//!
//! Doubles are exact for all of it, so that scripts can compare and swap. A band ends halfway to the next one.
//!
//! Rolling upgrade: the previous version wrote triggers 6 and 7 for a cron and a manual one that owed a recheck.

use std::time::Duration;

use crate::entry::{Priority, Trigger};
use crate::redis::RedisTime;

/// The state of an entry on the agenda.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Due before all that is scheduled, since `at`.
    Urgent,
    /// Due at `at`.
    Scheduled,
    /// On the queue; due again at `at`.
    Claimed,
    /// Being warmed; due again at `at`.
    Running,
}

/// A decoded score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Due {
    /// When the entry is due; see [`State`].
    pub at: RedisTime,
    /// Its state.
    pub state: State,
    /// Why it is due.
    pub trigger: Trigger,
    /// Its priority; [`Priority::Normal`] where it is scheduled.
    pub priority: Priority,
}

/// Distance between the bands; more than twice any time until 2128, and small enough for 64ths to be exact.
const BAND: f64 = 1e13;
/// The distance between the bands, for times.
const WHOLE: i64 = 10_000_000_000_000;

impl Due {
    /// Decodes a score.
    pub fn from_score(score: f64) -> Self {
        let floor = score.floor();
        #[expect(clippy::cast_possible_truncation, reason = "scores are below 2^46")]
        let (floor, bits) = (floor as i64, ((score - floor) * 64.0) as usize);
        let trigger = Trigger::ALL.get(bits % 8).copied();
        let trigger = trigger.unwrap_or(if bits % 8 == 6 { Trigger::Cron } else { Trigger::Manual });
        let (at, state, priority) = if score < -3.5 * BAND {
            (floor + 4 * WHOLE, State::Urgent, Priority::High)
        } else if score < -2.5 * BAND {
            (floor + 3 * WHOLE, State::Urgent, Priority::Bulk)
        } else if score < -BAND {
            let state = if bits >= 32 { State::Running } else { State::Claimed };
            let priority = match bits / 8 % 4 {
                0 => Priority::Normal,
                1 => Priority::Bulk,
                _ => Priority::High,
            };
            (floor + 2 * WHOLE, state, priority)
        } else {
            (floor, State::Scheduled, Priority::Normal)
        };
        Self { at: RedisTime::from_millis(at), state, trigger, priority }
    }

    /// Returns the score.
    #[expect(clippy::cast_precision_loss, reason = "times are below 2^46")]
    pub fn score(self) -> f64 {
        let (trigger, priority) = (self.trigger as u8, self.priority as u8);
        let (band, bits) = match self.state {
            State::Urgent => (if self.priority == Priority::High { 4.0 } else { 3.0 }, trigger),
            State::Scheduled => (0.0, trigger),
            State::Claimed => (2.0, trigger + 8 * priority),
            State::Running => (2.0, trigger + 8 * priority + 32),
        };
        self.at.as_millis() as f64 - band * BAND + f64::from(bits) / 64.0
    }
}

/// A range of scores, in the words of `ZCOUNT`.
pub(super) type Range = (String, String);

/// Returns the scores of entries that are due by `now`: scheduled ones, urgent ones of high priority, bulk.
pub(super) fn due_by(now: RedisTime) -> [Range; 3] {
    let soon = now + Duration::from_millis(1);
    let urgent = |priority| Due { at: soon, state: State::Urgent, trigger: Trigger::Cron, priority };
    [
        ("0".to_owned(), format!("({}", soon)),
        ("-inf".to_owned(), format!("({}", urgent(Priority::High).score())),
        ((-3.5 * BAND).to_string(), format!("({}", urgent(Priority::Bulk).score())),
    ]
}

/// Returns the scores of entries that wait until a time from `from` to before `till`: scheduled ones, urgent ones of
/// high priority, bulk.
pub(super) fn waiting(from: RedisTime, till: RedisTime) -> [Range; 3] {
    let bands =
        [(State::Scheduled, Priority::Normal), (State::Urgent, Priority::High), (State::Urgent, Priority::Bulk)];
    bands.map(|(state, priority)| {
        let edge = |at| Due { at, state, trigger: Trigger::Cron, priority }.score();
        (edge(from).to_string(), format!("({}", edge(till)))
    })
}

/// Returns the scores of entries that are claimed or running.
pub(super) fn in_flight() -> Range {
    ((-2.5 * BAND).to_string(), format!("({}", -BAND))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_due() -> impl Strategy<Value = Due> {
        let states =
            prop_oneof![Just(State::Urgent), Just(State::Scheduled), Just(State::Claimed), Just(State::Running)];
        let urgencies = prop_oneof![Just(Priority::Normal), Just(Priority::Bulk), Just(Priority::High)];
        (0_i64..5_000_000_000_000, states, 0..Trigger::ALL.len(), urgencies).prop_map(
            |(at, state, trigger, priority)| Due {
                at: RedisTime::from_millis(at),
                state,
                trigger: Trigger::ALL[trigger],
                priority: match state {
                    State::Urgent => priority.max(Priority::Bulk),
                    State::Scheduled => Priority::Normal,
                    State::Claimed | State::Running => priority,
                },
            },
        )
    }

    #[test]
    fn ranges_count_the_entries_of_their_states() {
        let now = 1_732_270_000_123;
        let within = |(from, to): &Range, score: f64| {
            let bound = |text: &str| text.trim_start_matches('(').parse::<f64>().unwrap();
            score >= bound(from) && if to.starts_with('(') { score < bound(to) } else { score <= bound(to) }
        };
        let due = |at, state, priority| {
            let at = RedisTime::from_millis(at);
            Due { at, state, trigger: Trigger::Recheck, priority }.score()
        };
        let first = |state, priority| {
            Due { at: RedisTime::from_millis(now + 1), state, trigger: Trigger::Cron, priority }.score()
        };
        let [scheduled, high, bulk] = due_by(RedisTime::from_millis(now));
        let all = [
            (State::Scheduled, Priority::Normal, &scheduled),
            (State::Urgent, Priority::High, &high),
            (State::Urgent, Priority::Bulk, &bulk),
        ];
        for (state, priority, of) in all {
            for range in [&scheduled, &high, &bulk, &in_flight()] {
                assert_eq!(
                    within(range, due(now - 1, state, priority)),
                    range == of,
                    "{state:?} {priority:?} {range:?}"
                );
            }
            assert!(within(of, due(now, state, priority)), "{state:?}: now");
            assert!(!within(of, first(state, priority)), "{state:?}: in a millisecond");
        }
        for state in [State::Claimed, State::Running] {
            assert!(within(&in_flight(), due(now + 60_000, state, Priority::High)));
        }
    }

    #[test]
    fn each_trigger_has_a_word_of_its_own_wherever_it_is_told() {
        let words: std::collections::BTreeSet<&str> = Trigger::ALL.iter().map(|trigger| trigger.as_str()).collect();
        assert_eq!(words.len(), Trigger::ALL.len());
        for trigger in Trigger::ALL {
            let text = serde_json::to_string(&trigger).unwrap();
            assert_eq!(text, format!("\"{trigger}\""));
            assert_eq!(serde_json::from_str::<Trigger>(&text).unwrap(), trigger);
            assert_eq!(trigger as usize, Trigger::ALL.iter().position(|of| *of == trigger).unwrap());
        }
    }

    proptest! {
        #[test]
        fn a_score_reads_back_as_what_was_written(due in any_due()) {
            prop_assert_eq!(Due::from_score(due.score()), due);
        }

        #[test]
        fn a_score_survives_text_with_six_decimals(due in any_due()) {
            prop_assert_eq!(format!("{:.6}", due.score()).parse::<f64>().unwrap(), due.score());
        }

        #[test]
        fn urgent_comes_before_all_times(a in any_due(), b in any_due()) {
            let rank = |due: Due| if due.state == State::Urgent { due.priority } else { Priority::Normal };
            if rank(a) > rank(b) {
                prop_assert!(a.score() < b.score());
            }
        }
    }
}
