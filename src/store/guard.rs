//! The guard of a job's values against a bad deploy of an upstream, which answers that many entries are gone. Entries
//! that are gone with an input count as well, in the guard of their own job.
//!
//! It counts removals of values in the whole fleet. Once they exceed the job's share within a minute, and are ten or
//! more than half of a small job's entries, it holds further ones back for an hour. Then the next answer that an entry
//! is gone removes its value, unless a person has decided before. The guard is one hash in the job's slot
//! (`lua/guard.lua`) that names each entry that it holds back. The entry has the guard's end in its metadata as a mark
//! ([`super::LastAttempt::held_until`]), and is asked for again while it has a value and a mark.
//!
//! On failure: if Redis loses the guard, or its clock is set back, the mark of an entry sets it up again, for an hour
//! at most. Such a guard learns only later which other entries it holds back, so it does not end before its time. A
//! guard that has ended is kept for a day: the marks that it gave set up no other. If Redis does not answer, or the key
//! has another type, nothing is removed.
//!
//! A worker may die before it gives an entry its mark, another program may delete the value, Redis may evict the mark.
//! So a sweep ([`Store::sweep_guard`]) makes the guard forget entries that have none.
//!
//! Rolling upgrade: workers of builds before the guard remove values without asking it. They drop the marks of entries
//! that they fetch; such an entry then counts anew. They do not ask it for removals with an input. Builds before the
//! rule for small jobs count in the same guard, and need ten. The build before names counts entries without naming
//! them; a guard in which it did does not end before its time. It leaves the names of entries that are well; the sweep
//! finds these. The previous build names entries without the time, which the sweep takes for long ago.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{Cmd, RedisResult, Script};
use serde::Serialize;

use super::{Meta, Snapshot, Store};
use crate::entry::duration::millis;
use crate::entry::{EntryKey, JobName};
use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime, with_preludes};

/// The time in which removals are counted.
const MINUTE: Duration = Duration::from_secs(60);
/// So many removals in that time are enough to trip a guard.
const ENOUGH: usize = 10;
/// So many are enough in a small job, of whose entries they are more than half.
const ENOUGH_OF_FEW: usize = 3;
/// The time for which a guard holds removals back, or a person lets them through.
const HOLDS: Duration = Duration::from_secs(3_600);
/// The time from the guard's decision until the entry has its mark, at most.
const SETTLED: Duration = Duration::from_secs(300);
/// Held entries that are read in one step of a scan.
const STEP: usize = 500;
/// The longest time for which a person can have them held back.
const LONGEST: Duration = Duration::from_secs(24 * 3_600);

static REMOVAL: LazyLock<Script> = LazyLock::new(|| guarding(include_str!("lua/guard_removal.lua")));
static RECOVERY: LazyLock<Script> = LazyLock::new(|| guarding(include_str!("lua/guard_recovery.lua")));
static DECISION: LazyLock<Script> = LazyLock::new(|| guarding(include_str!("lua/guard_decision.lua")));

/// Returns a script that reads or writes guards.
fn guarding(script: &str) -> Script {
    with_preludes(&[include_str!("lua/guard.lua")], script)
}

/// A removal that is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// Redis's clock.
    pub now: RedisTime,
    /// Since when the guard holds removals back.
    pub since: RedisTime,
    /// Until when.
    pub until: RedisTime,
    /// Removals within a minute as the guard tripped, the first that was held back included.
    pub gone: u64,
    /// The job's entries then, about.
    pub of: u64,
    /// Entries whose removal is held back.
    pub held: u64,
    /// This removal tripped the guard.
    pub tripped: bool,
}

/// The state of a guard, as it decides on removals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GuardState {
    /// It holds them back; time or a person decides.
    Holding,
    /// It lets them through, as a person decided.
    Accepted,
}

/// The guard of a job's values, while it holds removals back or lets them through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct GoneGuard {
    /// The guard's decision on removals.
    pub state: GuardState,
    /// When it tripped (Redis time, ms since the epoch).
    #[schema(value_type = i64)]
    pub since_ms: RedisTime,
    /// Until when removals are held back, or let through.
    #[schema(value_type = i64)]
    pub until_ms: RedisTime,
    /// Values that were to be removed within a minute as it tripped; 0 if a person let removals through before.
    pub gone: u64,
    /// The job's entries then, about.
    pub of: u64,
    /// Entries whose removal was held back since then and that were neither fetched again nor evicted. Some may be
    /// invalidated and expired by now, or deleted by another program.
    pub held: u64,
}

impl GoneGuard {
    /// Reads a job's guard; `None` if it neither holds nor lets through anything at `now`.
    ///
    /// # Errors
    /// Redis's.
    pub async fn read(redis: &mut Connection, keys: &Keys, job: &JobName, now: RedisTime) -> RedisResult<Option<Self>> {
        let fields: Vec<Option<Vec<u8>>> = Self::ask(keys, job).query_async(redis).await?;
        Ok(Self::of(&fields, now))
    }

    /// Reads the guards of jobs in one round trip, each as [`Self::read`] does.
    ///
    /// # Errors
    /// Redis's; a key of another type has an error of its own.
    pub async fn read_all(
        redis: &mut Connection,
        keys: &Keys,
        jobs: &[&JobName],
        now: RedisTime,
    ) -> RedisResult<Vec<RedisResult<Option<Self>>>> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let mut ask = redis::pipe();
        for job in jobs {
            ask.add_command(Self::ask(keys, job));
        }
        let replies: Vec<RedisResult<Vec<Option<Vec<u8>>>>> = ask.ignore_errors().query_async(redis).await?;
        Ok(replies.into_iter().map(|fields| Ok(Self::of(&fields?, now))).collect())
    }

    fn ask(keys: &Keys, job: &JobName) -> Cmd {
        let mut ask = redis::cmd("HMGET");
        ask.arg(keys.gone(job)).arg(&["since", "until", "accepted", "gone", "of", "held"]);
        ask
    }

    fn of(fields: &[Option<Vec<u8>>], now: RedisTime) -> Option<Self> {
        let number = |i: usize| -> i64 {
            let text = fields.get(i).and_then(Option::as_deref).and_then(|text| str::from_utf8(text).ok());
            text.and_then(|text| text.parse().ok()).unwrap_or_default()
        };
        let count = |i| u64::try_from(number(i)).unwrap_or_default();
        let (since_ms, until_ms) = (RedisTime::from_millis(number(0)), RedisTime::from_millis(number(1)));
        let state = if number(2) == 1 { GuardState::Accepted } else { GuardState::Holding };
        let is_active = since_ms <= now && now < until_ms;
        is_active.then(|| Self { state, since_ms, until_ms, gone: count(3), of: count(4), held: count(5) })
    }

    /// Returns the state of a job's guard that holds removals back, as a sentence that stays true until its end.
    pub fn notice(&self, job: &JobName) -> String {
        let Self { until_ms, gone, of, .. } = self;
        let (until, served) = (until_ms.utc(), self.served());
        let what = match self.held {
            0 => format!("no removal of {job} is held back any more, and its guard watches until {until}"),
            _ => format!("removals of {job} are held back until {until}, and {served}"),
        };
        format!(
            "{what}: within a minute {gone} of about {of} entries were gone; `samovar gone {job}` shows it and lets a \
             person decide"
        )
    }

    /// Returns what becomes of the values that it holds back, as a part of a sentence.
    pub fn served(&self) -> String {
        let which = match self.held {
            0 => return "no value is held back at present".to_owned(),
            1 => "the old value of 1 entry is served".to_owned(),
            held => format!("the old values of {held} entries are served"),
        };
        format!("{which}, and what was invalidated ends with its TTL")
    }

    /// Returns true while removals are held back.
    pub fn is_holding(&self) -> bool {
        self.state == GuardState::Holding
    }
}

impl Snapshot {
    /// Returns true if the entry has a value whose removal is held back, or was until that time ended: only an answer
    /// of its source, or an input that is back, settles what becomes of it.
    pub fn was_held_back(&self) -> bool {
        let is_marked = |meta: &Meta| meta.last_attempt.held_until > RedisTime::ZERO;
        self.has_value() && self.meta.as_ref().is_some_and(is_marked)
    }

    /// Returns true if the entry has a value whose removal is held back at `now`. A later end than any can be was noted
    /// by a clock that ran ahead.
    pub fn is_removal_held(&self, now: RedisTime) -> bool {
        let held_until = self.meta.as_ref().map_or(RedisTime::ZERO, |meta| meta.last_attempt.held_until);
        self.has_value() && now < held_until && held_until <= now + LONGEST
    }
}

impl Store {
    /// Decides on the removal of a value that is gone at its upstream, or with an input: `None` lets it through.
    /// `share` is the job's, in per cent; `marked` is the [`super::LastAttempt::held_until`] of `entry`. `are_all_due`
    /// tells that the agenda has about all entries of the job with a value; otherwise nothing tells a small job.
    ///
    /// # Errors
    /// Redis's; the removal may have been counted.
    pub async fn guard_removal(
        &self,
        job: &JobName,
        entry: &EntryKey,
        share: u8,
        are_all_due: bool,
        marked: RedisTime,
    ) -> RedisResult<Option<HeldBack>> {
        let reply: Vec<i64> = REMOVAL
            .key(self.keys.gone(job))
            .key(self.keys.agenda(job))
            .arg(share)
            .arg(ENOUGH)
            .arg(millis(MINUTE))
            .arg(millis(HOLDS))
            .arg(millis(LONGEST))
            .arg(marked)
            .arg(if are_all_due { ENOUGH_OF_FEW } else { ENOUGH })
            .arg(entry.as_str())
            .invoke_async(&mut self.redis.clone())
            .await?;
        let number = |i: usize| reply.get(i).copied().unwrap_or_default();
        let (time, count) = (|i| RedisTime::from_millis(number(i)), |i| u64::try_from(number(i)).unwrap_or_default());
        Ok((number(0) > 0).then(|| HeldBack {
            now: time(1),
            since: time(2),
            until: time(3),
            gone: count(4),
            of: count(5),
            held: count(6),
            tripped: number(0) == 2,
        }))
    }

    /// Notes that an entry is well again, or has no value any more, whose removal was held back.
    ///
    /// # Errors
    /// Redis's; the guard then counts the entry until it ends.
    pub async fn note_recovery(&self, job: &JobName, entry: &EntryKey) -> RedisResult<()> {
        self.forget_held(job, entry, "").await.map(|_| ())
    }

    /// Makes a job's guard forget an entry that was last held back then; empty for whenever that was. Returns `true` if
    /// it knew the entry.
    async fn forget_held(&self, job: &JobName, entry: &EntryKey, noted: &str) -> RedisResult<bool> {
        let mut call = RECOVERY.key(self.keys.gone(job));
        call.arg(entry.as_str()).arg(millis(MINUTE)).arg(noted).invoke_async(&mut self.redis.clone()).await
    }

    /// Makes a job's guard forget the entries that have no value, or no mark, a while after their removal was held
    /// back. Returns how many these are.
    ///
    /// # Errors
    /// Redis's; the next sweep does the rest.
    pub async fn sweep_guard(&self, job: &JobName) -> RedisResult<usize> {
        let (mut swept, mut cursor) = (0, 0);
        loop {
            let mut held;
            (cursor, held) = self.scan_held(job, cursor).await?;
            // Read after the page, the clock is not behind what was noted meanwhile.
            let now = self.now().await?;
            held.retain(|(_, noted)| {
                let at: RedisTime = noted.parse().unwrap_or_default();
                // One of the future is by a clock that ran ahead.
                at + SETTLED < now || at > now
            });
            let (keys, noted): (Vec<EntryKey>, Vec<String>) = held.into_iter().unzip();
            let snapshots = self.snapshots(&keys).await?;
            for ((key, noted), _) in keys.iter().zip(&noted).zip(snapshots).filter(|(_, found)| !found.was_held_back())
            {
                swept += usize::from(self.forget_held(job, key, noted).await?);
            }
            if cursor == 0 {
                return Ok(swept);
            }
        }
    }

    /// Returns the entries whose removal a job's guard holds back, as far as it knows them.
    ///
    /// # Errors
    /// Redis's.
    pub async fn held_entries(&self, job: &JobName) -> RedisResult<BTreeSet<EntryKey>> {
        let (mut all, mut cursor) = (BTreeSet::new(), 0);
        loop {
            let held;
            (cursor, held) = self.scan_held(job, cursor).await?;
            all.extend(held.into_iter().map(|(key, _)| key));
            if cursor == 0 {
                return Ok(all);
            }
        }
    }

    /// Returns the next cursor of a scan, and some entries that a job's guard holds back, each with the time.
    async fn scan_held(&self, job: &JobName, cursor: u64) -> RedisResult<(u64, Vec<(EntryKey, String)>)> {
        let mut ask = redis::cmd("HSCAN");
        ask.arg(self.keys.gone(job)).arg(cursor).arg("MATCH").arg("=*").arg("COUNT").arg(STEP);
        let fields: Vec<(Vec<u8>, Vec<u8>)>;
        let next: u64;
        (next, fields) = ask.query_async(&mut self.redis.clone()).await?;
        let held = fields.into_iter().filter_map(|(name, noted)| {
            let name = String::from_utf8(name).ok()?;
            Some((EntryKey::new(name.strip_prefix('=')?), String::from_utf8(noted).ok()?))
        });
        Ok((next, held.collect()))
    }

    /// Lets the removals through that a job's guard holds back, and all others for an hour.
    ///
    /// # Errors
    /// Redis's.
    pub async fn accept_removals(&self, job: &JobName) -> RedisResult<()> {
        self.decide(job, "accept").await.map(|_| ())
    }

    /// Has removals held back for another hour, a day from now at most; returns `false` if none are. If a person has
    /// accepted removals before any was held back, the guard counts again.
    ///
    /// # Errors
    /// Redis's.
    pub async fn hold_removals(&self, job: &JobName) -> RedisResult<bool> {
        self.decide(job, "hold").await
    }

    /// Forgets a job's guard: the job has none by now. A key of another type stays.
    ///
    /// # Errors
    /// Redis's.
    pub async fn forget_guard(&self, job: &JobName) -> RedisResult<()> {
        self.decide(job, "forget").await.map(|_| ())
    }

    async fn decide(&self, job: &JobName, decision: &str) -> RedisResult<bool> {
        let mut call = DECISION.key(self.keys.gone(job));
        call.arg(decision).arg(millis(HOLDS)).arg(millis(LONGEST));
        Ok(call.invoke_async::<u8>(&mut self.redis.clone()).await? == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_tells_the_end_as_a_time_and_does_not_contradict_itself() {
        let until_ms = RedisTime::from_millis(1_732_277_200_123);
        let (state, since_ms) = (GuardState::Holding, until_ms - HOLDS);
        let guard = |held| GoneGuard { state, since_ms, until_ms, gone: 10, of: 30, held }.notice(&JobName::new("art"));
        let (some, none) = (guard(2), guard(0));
        let held = "removals of art are held back until 2024-11-22 12:06:40 UTC, and the old values of 2 entries are";
        assert!(some.starts_with(held), "{some}");
        let watches = "no removal of art is held back any more, and its guard watches until 2024-11-22 12:06:40 UTC:";
        assert!(none.starts_with(watches) && none.contains("10 of about 30 entries were gone"), "{none}");
    }
}
