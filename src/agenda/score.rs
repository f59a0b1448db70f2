//! Scores: the state of an entry on the agenda, as one number.

use crate::entry::{Priority, Trigger};

/// How near an entry is to being warmed.
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

/// A score, read.
///
/// A score is a time in milliseconds whose band tells the state (urgent ones lie below all times) and whose fraction, in
/// 64ths, holds the trigger (3 bits), how urgent it was when claimed (2 bits), and whether it is taken. Doubles are exact
/// for all of it, so that scripts can compare and swap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Due {
    /// Redis time, ms.
    pub at: i64,
    /// Claimed or not.
    pub state: State,
    /// Why.
    pub trigger: Trigger,
    /// What it goes before.
    pub priority: Priority,
    /// It took the place of a look ([`Trigger::Settle`]), which is still owed. Only for [`Trigger::Cron`] and
    /// [`Trigger::Manual`]: what others fetch is looked at once more in any case.
    pub look: bool,
}

/// Distance between the bands; more than twice any time until 2128, and small enough for 64ths to be exact.
const BAND: f64 = 1e13;

impl Due {
    /// Reads a score.
    pub fn from_score(score: f64) -> Self {
        let floor = score.floor();
        #[expect(clippy::cast_possible_truncation, reason = "scores are below 2^46")]
        let (floor, bits) = (floor as i64, ((score - floor) * 64.0) as usize);
        let look = bits % 8 >= Trigger::ALL.len();
        let trigger = Trigger::ALL.get(bits % 8).copied();
        let trigger = trigger.unwrap_or(if bits % 8 == 6 { Trigger::Cron } else { Trigger::Manual });
        let (at, state, priority) = if score < -3.5 * BAND {
            (floor + 40_000_000_000_000, State::Urgent, Priority::High)
        } else if score < -2.5 * BAND {
            (floor + 30_000_000_000_000, State::Urgent, Priority::Bulk)
        } else if score < -BAND {
            let state = if bits >= 32 { State::Running } else { State::Claimed };
            let priority = match bits / 8 % 4 {
                0 => Priority::Normal,
                1 => Priority::Bulk,
                _ => Priority::High,
            };
            (floor + 20_000_000_000_000, state, priority)
        } else {
            (floor, State::Scheduled, Priority::Normal)
        };
        Self { at, state, trigger, priority, look }
    }

    /// Writes it.
    #[expect(clippy::cast_precision_loss, reason = "times are below 2^46")]
    pub fn score(self) -> f64 {
        let (trigger, priority) = (number(self.trigger, self.look), self.priority as u8);
        let (band, bits) = match self.state {
            State::Urgent => (if self.priority == Priority::High { 4.0 } else { 3.0 }, trigger),
            State::Scheduled => (0.0, trigger),
            State::Claimed => (2.0, trigger + 8 * priority),
            State::Running => (2.0, trigger + 8 * priority + 32),
        };
        self.at as f64 - band * BAND + f64::from(bits) / 64.0
    }
}

/// The trigger's number in a score. `look`: see [`Due::look`].
fn number(trigger: Trigger, look: bool) -> u8 {
    match trigger {
        Trigger::Cron if look => 6,
        Trigger::Manual if look => 7,
        other => other as u8,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_due() -> impl Strategy<Value = Due> {
        let states =
            prop_oneof![Just(State::Urgent), Just(State::Scheduled), Just(State::Claimed), Just(State::Running)];
        let urgencies = prop_oneof![Just(Priority::Normal), Just(Priority::Bulk), Just(Priority::High)];
        (0_i64..5_000_000_000_000, states, 0_usize..8, urgencies).prop_map(|(at, state, trigger, priority)| Due {
            at,
            state,
            trigger: Trigger::ALL.get(trigger).copied().unwrap_or([Trigger::Cron, Trigger::Manual][trigger % 2]),
            look: trigger >= Trigger::ALL.len(),
            priority: match state {
                State::Urgent => priority.max(Priority::Bulk),
                State::Scheduled => Priority::Normal,
                State::Claimed | State::Running => priority,
            },
        })
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
