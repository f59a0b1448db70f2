//! The codec of metadata: what is known of one entry's value, in one packed string beside it.
//!
//! The form is
//! `validated_at own_expiry invalidated stale_for hash/attempt~fetched_at@content_since#version!announced,at note`.
//! `lua/meta.lua` is the same codec for scripts, and no other file knows this form. Scripts read and write the head;
//! Rust reads the note, which is JSON. Of the note, `invalidate.lua` reads `h` and writes `u`.
//!
//! - `/attempt` is absent where it is empty. It is `trigger.storm.outcome.attempted.crashes`; a usual value is empty,
//!   and dots at the end are left out. Triggers and outcomes are numbers, as in [`Trigger::ALL`] and [`Outcome::ALL`].
//! - The head of an evicted entry, or of one that was invalidated while nothing was known of it, has no attempt and
//!   lives a minute: a fetch by then answers the invalidation.
//! - `#version` is absent where the job has no versions, and `!announced,at` where no higher one was announced (since
//!   `at`). A worker of the previous version takes metadata with them for none.
//! - `~fetched_at` is absent where it equals `validated_at`, and `@content_since` where it is not known.
//!
//! The note has the time of a doubt (`u`). The open invalidation is only a doubt if it has this very time. A worker of
//! the previous version takes such an invalidation for a certain one. It drops the time when it writes the note, and
//! its own invalidations leave it, which have other times. Its own doubts (`"q":true`) have no time, and an
//! invalidation that it handles after them leaves their mark: so they count as certain.
//!
//! The note of an entry that is gone because of an input says so (`i`, `v`). A worker of the previous version ignores
//! that, takes it for an entry that its upstream does not have, and drops these fields when it writes the note.
//!
//! Rolling upgrade: the previous version wrote the same form without `/attempt`, and those five fields into the note
//! (`t`, `s`, `o`, `a`, `d`). Both codecs read them there. If there is one, none is taken from the head, because such a
//! worker writes a new note and leaves the head as it is. It reads this form as well, and takes an attempt for a part
//! of the hash. Builds before that wrote outcomes and triggers as words, which Rust reads.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::rechecks::Rechecks;
use crate::entry::Outcome;
use crate::entry::Trigger;
use crate::entry::Validators;
use crate::entry::Version;
use crate::redis::RedisTime;

/// Metadata of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// When the fetch of the present value began, or when it was last found to be made from the same;
    /// zero if we fetched none.
    pub validated_at: RedisTime,
    /// When its content was last asked for, or confirmed by its source. An invalidation since then is not answered. It
    /// is before `validated_at` where the value was extended since with nobody asked.
    pub fetched_at: RedisTime,
    /// The `PEXPIRETIME` we gave the value; another one on the key means that somebody else wrote it.
    pub own_expiry: RedisTime,
    /// The time of an invalidation that is not yet answered.
    pub invalidated: Option<RedisTime>,
    /// The version that an invalidation announced, while the value's is lower.
    pub announced: Option<Version>,
    /// The time by which the value outlives its TTL, because its source fails; zero for none.
    pub stale_for: Duration,
    /// Hash of the value; `-` for none.
    pub hash: String,
    /// When this content became readable, or the entry was found to be gone; later fetches of the same content do not
    /// change it. Zero if unknown. An entry that was made from it before then may be made from other content.
    pub content_since: RedisTime,
    /// The last attempt, and what the value came with.
    pub last_attempt: LastAttempt,
}

/// The last attempt, and what the value came with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastAttempt {
    /// The validators of the value.
    #[serde(flatten)]
    pub validators: Validators,
    /// The value's tags.
    #[serde(rename = "g", default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The digest [`crate::job::Job::made`] of the job file that the value was made from or found unchanged under.
    /// `None` for a value of an earlier build, whose workers ignore this field and drop it with their next commit.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub made: Option<String>,
    /// AI tokens that the value cost.
    #[serde(rename = "c", default, skip_serializing_if = "is_none")]
    pub tokens: u64,
    /// The value's version, where the job tells it. In the head.
    #[serde(skip)]
    pub version: Option<Version>,
    /// The last attempt's outcome. In the head; empty where it warmed the value, which is usual.
    #[serde(rename = "o", default, skip_serializing, deserialize_with = "outcome")]
    pub outcome: Option<Outcome>,
    /// Why it was made. In the head; empty where the value's TTL came to an end, which is usual.
    #[serde(rename = "t", default, skip_serializing, deserialize_with = "trigger")]
    pub trigger: Option<Trigger>,
    /// When it began. In the head; empty where it is zero. Read, it is then when the fetch of the present value began.
    #[serde(rename = "a", default, skip_serializing)]
    pub attempted: RedisTime,
    /// The number of attempts that failed in a row.
    #[serde(rename = "n", default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// When it is tried again after the last of them, whatever brings it on before; zero for none.
    #[serde(rename = "w", default, skip_serializing_if = "is_never")]
    pub retry: RedisTime,
    /// Until when the removal of the value is held back, since it is gone at its upstream or with an input; zero for
    /// never. A build before the guard ignores it, and drops it where it fetches the entry. See `guard.rs`.
    #[serde(rename = "h", default, skip_serializing_if = "is_never")]
    pub held_until: RedisTime,
    /// The number of workers in a row that died while they fetched it. In the head.
    #[serde(rename = "d", default, skip_serializing)]
    pub crashes: u32,
    /// The value was fetched in a storm: for an invalidation that followed another. In the head.
    #[serde(rename = "s", default, skip_serializing, deserialize_with = "flag")]
    pub storm: bool,
    /// The rechecks to come.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub rechecks: Option<Rechecks>,
    /// Why the last one failed, for people; bounded.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The key of the input that is gone, if the entry is gone because of that.
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    pub gone_with: Option<String>,
    /// The entry had a value when it went with its input. It is made again when the input returns.
    #[serde(rename = "v", default, skip_serializing_if = "std::ops::Not::not")]
    pub had_value: bool,
    /// The time of a doubt: after a gap, an invalidation may have been missed. See [`Meta::is_in_doubt`].
    #[serde(rename = "u", default, skip_serializing_if = "is_never")]
    pub doubted: RedisTime,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_none(n: &u64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_never(time: &RedisTime) -> bool {
    *time == RedisTime::ZERO
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A number, or the word of builds before there were numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Packed<T> {
    Number(usize),
    Word(T),
}

impl<T: Copy> Packed<T> {
    fn one_of(self, all: &[T]) -> Option<T> {
        match self {
            Self::Number(number) => all.get(number).copied(),
            Self::Word(word) => Some(word),
        }
    }
}

fn outcome<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Outcome>, D::Error> {
    Ok(Packed::deserialize(from)?.one_of(&Outcome::ALL))
}

fn trigger<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Trigger>, D::Error> {
    Ok(Packed::deserialize(from)?.one_of(&Trigger::ALL))
}

fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    u8::deserialize(from).map(|number| number != 0)
}

impl Meta {
    /// Reads the packed form; `None` where it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(6, ' ');
        let mut time = || parts.next()?.parse().ok();
        let (validated_at, own_expiry, invalidated) = (time()?, time()?, time()?);
        let invalidated = Some(invalidated).filter(|at| *at > RedisTime::ZERO);
        let stale_for = Duration::from_millis(parts.next()?.parse().ok()?);
        let hash = parts.next()?;
        let version = |text: &str| Version::parse(text).ok();
        let (hash, announced) = hash.split_once('!').unwrap_or((hash, ""));
        let announced = announced.split_once(',').and_then(|(announced, _since)| version(announced));
        let (hash, version) = hash.split_once('#').map_or((hash, None), |(hash, text)| (hash, version(text)));
        let (hash, content_since) = hash.split_once('@').unwrap_or((hash, "0"));
        let (hash, fetched_at) = hash.split_once('~').map_or((hash, None), |(hash, at)| (hash, Some(at)));
        let (hash, attempt) = hash.split_once('/').unwrap_or((hash, ""));
        let fetched_at = fetched_at.map_or(Ok(validated_at), str::parse).ok()?;
        let (hash, content_since) = (hash.to_owned(), content_since.parse().ok()?);
        let packed = serde_json::from_str(parts.next()?).ok();
        let known = packed.is_some();
        let mut last_attempt: LastAttempt = packed.unwrap_or_default();
        if !last_attempt.has_attempt() {
            last_attempt.read_attempt(attempt);
        }
        if last_attempt.attempted == RedisTime::ZERO {
            last_attempt.attempted = validated_at;
        }
        if known && last_attempt.attempted > RedisTime::ZERO {
            last_attempt.outcome.get_or_insert(Outcome::Warmed);
            last_attempt.trigger.get_or_insert(Trigger::Expiry);
        }
        last_attempt.version = version;
        Some(Self {
            validated_at,
            fetched_at,
            own_expiry,
            invalidated,
            announced,
            stale_for,
            hash,
            content_since,
            last_attempt,
        })
    }

    /// Returns `true` if nothing is known of the entry but an invalidation.
    pub(super) fn is_blank(&self) -> bool {
        let mut note = self.last_attempt.clone();
        (note.doubted, note.version) = (RedisTime::ZERO, None);
        self.validated_at == RedisTime::ZERO && note == LastAttempt::default()
    }

    /// Returns `true` if the open invalidation is only a doubt.
    pub fn is_in_doubt(&self) -> bool {
        self.invalidated == Some(self.last_attempt.doubted)
    }

    /// Returns `true` if a higher version was announced than the value has.
    pub fn is_behind(&self) -> bool {
        self.announced > self.last_attempt.version
    }

    /// Returns `true` if the upstream answered within `time` before `now` that it does not have the entry, requests are
    /// still made from `requests`, and no invalidation came since. An entry that is gone because of an input does not
    /// count: the input may be back.
    pub fn is_absent(&self, requests: &str, time: Duration, now: RedisTime) -> bool {
        self.is_gone(requests, time, now) && self.last_attempt.gone_with.is_none()
    }

    /// Returns `true` if the entry was found to be gone within `time` before `now`, requests are still made from
    /// `requests`, and no invalidation came since.
    pub fn is_gone(&self, requests: &str, time: Duration, now: RedisTime) -> bool {
        let attempted = self.last_attempt.attempted;
        let is_recent = attempted <= now && now < attempted + time;
        self.last_attempt.is_gone(requests) && is_recent && self.invalidated.is_none() && !self.is_behind()
    }

    /// Returns `true` if the value was made from another job file than `made` tells. A value that does not tell counts
    /// as made from `base`.
    pub fn is_outdated(&self, made: &str, base: &str) -> bool {
        self.last_attempt.made.as_deref().unwrap_or(base) != made
    }

    /// Returns when the entry was found to be gone, if nothing was fetched since; `None` if that is unknown.
    pub fn gone_since(&self) -> Option<RedisTime> {
        Some(self.content_since).filter(|since| self.hash == "-" && *since > RedisTime::ZERO)
    }

    /// Returns when the upstream last answered for the entry, whether or not its answer was stored.
    pub fn answered_at(&self) -> RedisTime {
        match self.last_attempt.outcome {
            Some(Outcome::Warmed | Outcome::Unchanged | Outcome::Gone) => {
                self.fetched_at.max(self.last_attempt.attempted)
            }
            _ => self.fetched_at,
        }
    }
}

impl LastAttempt {
    /// Returns the note, the JSON part of the packed form: everything except [`Self::attempt`].
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }

    /// Returns the last attempt as it stands in the head; empty for the usual one.
    pub fn attempt(&self) -> String {
        let number = |number: i64, usual: i64| if number == usual { String::new() } else { number.to_string() };
        let trigger = number(self.trigger.unwrap_or(Trigger::Expiry) as i64, Trigger::Expiry as i64);
        let outcome = number(self.outcome.unwrap_or(Outcome::Warmed) as i64, Outcome::Warmed as i64);
        let (storm, attempted) = (number(self.storm.into(), 0), number(self.attempted.as_millis(), 0));
        let fields = [trigger, storm, outcome, attempted, number(self.crashes.into(), 0)];
        fields.join(".").trim_end_matches('.').to_owned()
    }

    /// Returns `true` if the note itself describes the last attempt, as the previous version wrote it. The head then
    /// describes an earlier attempt.
    fn has_attempt(&self) -> bool {
        self.trigger.is_some()
            || self.outcome.is_some()
            || self.storm
            || self.attempted != RedisTime::ZERO
            || self.crashes != 0
    }

    /// Returns `true` if the entry is gone: its upstream answered that it does not have it, or an input is gone.
    /// Requests were then made from `requests`.
    pub fn is_gone(&self, requests: &str) -> bool {
        self.outcome == Some(Outcome::Gone) && self.validators.prompt.as_deref() == Some(requests)
    }

    /// Returns `true` if the entry was gone, and the upstream's last answer was refused: it had the content from before
    /// the invalidation.
    pub fn is_refused(&self) -> bool {
        self.outcome == Some(Outcome::Gone) && self.rechecks.as_ref().is_some_and(Rechecks::is_refused)
    }

    /// Reads the last attempt from the head.
    fn read_attempt(&mut self, packed: &str) {
        let mut fields = packed.split('.');
        let mut number = || fields.next()?.parse::<i64>().ok();
        let (trigger, storm, outcome, attempted, crashes) = (number(), number(), number(), number(), number());
        let index = |number: Option<i64>| usize::try_from(number?).ok();
        self.trigger = index(trigger).and_then(|number| Trigger::ALL.get(number).copied());
        self.outcome = index(outcome).and_then(|number| Outcome::ALL.get(number).copied());
        self.storm = storm == Some(1);
        self.attempted = attempted.map_or(RedisTime::ZERO, RedisTime::from_millis);
        self.crashes = crashes.and_then(|crashes| u32::try_from(crashes).ok()).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> RedisTime {
        RedisTime::from_millis(millis)
    }

    #[test]
    fn a_head_without_a_readable_note_still_tells_whose_value_it_is() {
        let meta = Meta::parse("1732270000123 1732277200123 0 0 abc {broken").unwrap();
        assert_eq!((meta.validated_at, meta.own_expiry), (at(1_732_270_000_123), at(1_732_277_200_123)));
        assert_eq!(meta.last_attempt, LastAttempt { attempted: meta.validated_at, ..LastAttempt::default() });
        assert_eq!(Meta::parse("garbage"), None);
    }

    #[test]
    fn content_dates_from_the_head_or_else_from_its_fetch() {
        let asked = |head: &str| {
            let meta = Meta::parse(&format!("{head} {{}}"))?;
            Some([meta.validated_at, meta.fetched_at, meta.content_since].map(RedisTime::as_millis))
        };
        assert_eq!(asked("20 30 0 0 abc@7"), Some([20, 20, 7]));
        assert_eq!(asked("20 30 0 0 abc~10@7"), Some([20, 10, 7]));
        assert_eq!(asked("20 30 0 0 abc~10"), Some([20, 10, 0]));
        assert_eq!(asked("20 30 0 0 -"), Some([20, 20, 0]));
        assert_eq!(asked("20 30 0 0 abc~x@7"), None);
    }

    #[test]
    fn a_note_round_trips() {
        let last_attempt = LastAttempt {
            validators: Validators { etag: Some("\"v1\"".into()), ..Validators::default() },
            tags: vec!["artist:Frida".into()],
            made: Some("1a2B3c".into()),
            tokens: 1_200,
            version: None,
            outcome: Some(Outcome::Failed),
            trigger: Some(Trigger::Invalidation),
            attempted: at(17),
            failures: 3,
            retry: at(18),
            held_until: at(20),
            crashes: 1,
            storm: true,
            rechecks: Some(Rechecks::new(at(19), "h0".into(), true)),
            reason: Some("503 Service Unavailable".into()),
            gone_with: Some("art:a".into()),
            had_value: true,
            doubted: at(21),
        };
        let packed = format!("1 2 3 0 h/{} {}", last_attempt.attempt(), last_attempt.to_json());
        assert_eq!(Meta::parse(&packed).unwrap().last_attempt, last_attempt);
        assert_eq!(last_attempt.attempt(), "1.1.7.17.1");
    }

    #[test]
    fn outcomes_and_triggers_round_trip_and_usual_ones_are_empty() {
        let last_attempt = |outcome, trigger| LastAttempt { outcome, trigger, ..LastAttempt::default() };
        let read = |last_attempt: LastAttempt| {
            Meta::parse(&format!("1 2 0 0 h/{} {}", last_attempt.attempt(), last_attempt.to_json()))
                .unwrap()
                .last_attempt
        };
        for outcome in Outcome::ALL {
            assert_eq!(read(last_attempt(Some(outcome), None)).outcome, Some(outcome));
        }
        for trigger in Trigger::ALL {
            assert_eq!(read(last_attempt(None, Some(trigger))).trigger, Some(trigger));
        }
        let usual = last_attempt(Some(Outcome::Warmed), Some(Trigger::Expiry));
        assert_eq!((usual.attempt(), usual.to_json()), (String::new(), "{}".to_owned()));
        // Somebody marked it before anybody fetched it.
        assert_eq!(Meta::parse("0 0 17 0 - {}").unwrap().last_attempt, LastAttempt::default());
    }

    #[test]
    fn what_was_only_invalidated_is_blank() {
        for (packed, is_blank) in [
            ("0 0 17 0 - {}", true),
            (r#"0 0 17 0 h!8,17 {"u":17}"#, true),
            ("0 0 17 0 -/..7.16 {}", false),
            (r#"0 0 17 0 - {"n":1}"#, false),
            ("1 2 17 0 h {}", false),
        ] {
            assert_eq!(Meta::parse(packed).unwrap().is_blank(), is_blank, "{packed}");
        }
    }

    #[test]
    fn metadata_of_the_previous_version_are_read() {
        let packed = r#"1 2 0 0 h/1.1~5@6 {"o":7,"t":4,"a":17,"n":3,"d":2,"s":0}"#;
        for packed in [packed.to_owned(), packed.replace("/1.1", "")] {
            let meta = Meta::parse(&packed).unwrap();
            assert_eq!((meta.hash.as_str(), meta.fetched_at, meta.content_since), ("h", at(5), at(6)));
            let LastAttempt { outcome, trigger, attempted, failures, crashes, .. } = meta.last_attempt;
            assert_eq!((outcome, trigger), (Some(Outcome::Failed), Some(Trigger::Manual)));
            assert_eq!((attempted, failures, crashes), (at(17), 3, 2));
        }
    }
}
