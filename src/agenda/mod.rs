//! The agenda: when which entry is due.
//!
//! One sorted set per job: member = entry key, score = [`Due`]. An entry is on it once, however many triggers and
//! workers name it. A claim moves the score and removes nothing: the entries of a worker that dies come due again.
//! Every later step compares the score that the one before left ([`Agenda::take`], [`Agenda::finish`]). A step that
//! comes too late, or that an invalidation has overtaken, changes nothing. No other module sends a command to an
//! agenda's key. Modules that batch such a command with their own take it from `ask_score` and similar functions.

mod claims;
mod refresh;
mod score;
mod wakeup;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{Cmd, RedisResult, Script};
use tracing::warn;
use ulid::Ulid;

use crate::entry::Trigger;
use crate::entry::duration::millis;
use crate::entry::{EntryKey, JobName};
use claims::Claimer;
pub(crate) use refresh::{Pace, keep};
pub use score::{Due, State};
pub use wakeup::Wakeup;

use crate::entry::Outcome;
use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime, is_of_keys, with_preludes};

/// Dead letters kept for each job; the oldest go first.
const DEAD_LETTERS: usize = 10_000;
/// Entries in one script call, so that no call holds Redis up.
const BATCH: usize = 250;
/// Entries of a band that come forward in one step.
const PAGE: isize = 250;
/// Entries that Redis looks at in one step of a scan.
const STEP: usize = 500;

static DUE: LazyLock<Script> = LazyLock::new(|| scored(include_str!("lua/due.lua")));
static CLAIM: LazyLock<Script> = LazyLock::new(|| scored(include_str!("lua/claim.lua")));
static TAKE: LazyLock<Script> = LazyLock::new(|| scored(include_str!("lua/take.lua")));
static CANCEL: LazyLock<Script> = LazyLock::new(|| scored(include_str!("lua/cancel.lua")));
static FINISH: LazyLock<Script> = LazyLock::new(|| scored(include_str!("lua/finish.lua")));

/// Returns a script that reads and writes scores.
fn scored(script: &str) -> Script {
    with_preludes(&[include_str!("lua/score.lua")], script)
}

/// The place of entries that are put on the agenda.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before all else.
    Urgent,
    /// Before all scheduled entries, as one of many; in order of this time (zero is now).
    Bulk(RedisTime),
    /// At this time (zero is now), unless earlier already.
    Due(RedisTime),
    /// At this time, unless on the agenda already.
    Keep(RedisTime),
    /// Now, if the entry is on the agenda; else it stays away.
    IfThere,
    /// Now, if the entry is due within this time; else it stays as it is.
    IfSoon(Duration),
}

impl When {
    /// Now, unless earlier already.
    pub const NOW: Self = Self::Due(RedisTime::ZERO);
    /// Now, before all scheduled entries, as one of many.
    pub const BULK_NOW: Self = Self::Bulk(RedisTime::ZERO);
}

/// An entry claimed for a task: its score compares and swaps.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Claimed {
    /// The entry.
    #[serde(rename = "k")]
    pub key: String,
    /// Its score while claimed.
    #[serde(rename = "c")]
    pub score: String,
    /// When it became due.
    #[serde(rename = "d")]
    pub since: RedisTime,
}

impl Claimed {
    /// Returns the decoded score.
    pub fn due(&self) -> Due {
        Due::from_score(self.score.parse().unwrap_or_default())
    }

    /// Returns true if an entry's present score is this claim's.
    pub fn is_at(&self, score: f64) -> bool {
        Due::from_score(score) == self.due()
    }
}

/// The result of one claim.
#[derive(Debug)]
pub struct Claims {
    /// The entries, in the order in which they are warmed.
    pub entries: Vec<Claimed>,
    /// The time until more may be due; `None` if the agenda is empty.
    pub next: Option<Duration>,
    /// The job is paused: nothing of it is claimed.
    pub paused: bool,
}

/// The next step of an entry after it was warmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Due at this time, when its TTL comes to an end.
    At(RedisTime),
    /// Due at this time for [`Trigger::Recheck`].
    Recheck(RedisTime),
    /// Due after this time, for the same trigger and with the same priority.
    In(Duration),
    /// Due after this time, for the same trigger, behind urgent entries.
    Aside(Duration),
    /// It leaves the agenda.
    Out,
    /// It leaves the agenda for the dead letters, for this reason.
    Dead(String),
}

/// An entry whose warming ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The entry.
    pub key: String,
    /// Its score while claimed or running.
    pub score: String,
    /// Its next step.
    pub next: Next,
    /// The outcome; `None` where the entry was only handed back.
    pub outcome: Option<Outcome>,
}

/// The agendas of all jobs.
#[derive(Clone, Debug)]
pub struct Agenda {
    redis: Connection,
    keys: Keys,
    claimer: Arc<Claimer>,
}

/// Returns the signal that makes dispatchers look at a job's agenda.
pub fn due_signal(job: &JobName) -> String {
    format!("due {job}")
}

impl Agenda {
    /// Returns the agendas under these keys.
    pub fn new(redis: Connection, keys: Keys) -> Self {
        let claimer = Claimer::of(&Ulid::generate().to_string());
        Self { redis, keys, claimer }
    }

    /// Claims under this name, which no other dispatcher has.
    #[must_use]
    pub fn claiming_as(self, name: &str) -> Self {
        Self { claimer: Claimer::of(name), ..self }
    }

    /// Makes entries due; returns how many moved. An invalidation and a manual request also overtake running entries,
    /// whose fetch may have begun before.
    ///
    /// # Errors
    /// Redis's; earlier batches may have moved.
    pub async fn put<'a, I>(&self, job: &JobName, entries: I, when: When, trigger: Trigger) -> RedisResult<u64>
    where
        I: IntoIterator<Item = &'a EntryKey>,
    {
        let (how, at) = match when {
            When::Urgent => ("urgent", RedisTime::ZERO),
            When::Bulk(at) => ("bulk", at),
            When::Due(at) => ("due", at),
            When::Keep(at) => ("keep", at),
            When::IfThere => ("there", RedisTime::ZERO),
            When::IfSoon(within) => ("soon", RedisTime::ZERO + within),
        };
        let agenda = self.keys.agenda(job);
        let signal = due_signal(job);
        let entries: Vec<&str> = entries.into_iter().map(EntryKey::as_str).collect();
        let mut moved = 0;
        for batch in entries.chunks(BATCH) {
            moved += DUE
                .key(&agenda)
                .arg(how)
                .arg(trigger as u8)
                .arg(at)
                .arg(u8::from(matches!(trigger, Trigger::Invalidation | Trigger::Manual)))
                .arg(self.keys.signal_channel())
                .arg(&signal)
                .arg(batch)
                .invoke_async::<u64>(&mut self.redis.clone())
                .await?;
        }
        Ok(moved)
    }

    /// Makes some entries due now that are due within this time, for any trigger: the first of each band. Those that
    /// are claimed or running stay. Returns how many were found; if none was, there are no more.
    ///
    /// # Errors
    /// Redis's.
    pub(crate) async fn bring_forward(&self, job: &JobName, within: Duration) -> RedisResult<usize> {
        let now: RedisTime = redis::cmd("TIME").query_async(&mut self.redis.clone()).await?;
        let mut ask = redis::pipe();
        // A running entry that was made due again is due in a millisecond, and stays: see due.lua.
        for (from, till) in score::waiting(now + Duration::from_millis(2), now + within) {
            ask.add_command(Cmd::zrangebyscore_limit(self.keys.agenda(job), from, till, 0, PAGE));
        }
        let found: Vec<Vec<String>> = ask.query_async(&mut self.redis.clone()).await?;
        let found: Vec<EntryKey> = found.into_iter().flatten().map(EntryKey::new).collect();
        self.put(job, &found, When::IfSoon(within), Trigger::Recheck).await?;
        Ok(found.len())
    }

    /// Tells whether an entry is a dead letter, also while it is tried again.
    ///
    /// # Errors
    /// Redis's. A key of another type is somebody else's, and has none.
    pub(crate) async fn is_dead(&self, job: &JobName, key: &EntryKey) -> RedisResult<bool> {
        let mut ask = redis::cmd("ZSCORE");
        let asked = ask.arg(self.keys.dead(job)).arg(key.as_str()).query_async(&mut self.redis.clone()).await;
        match asked {
            Err(e) if is_of_keys(&e) => Ok(false),
            score => score.map(|score: Option<f64>| score.is_some()),
        }
    }

    /// Returns those of these entries that are dead letters whose reason contains `reason`.
    ///
    /// # Errors
    /// Redis's. Reasons under a key of another type are somebody else's, and count as none.
    pub(crate) async fn died_of(
        &self,
        job: &JobName,
        entries: Vec<EntryKey>,
        reason: &str,
    ) -> RedisResult<Vec<EntryKey>> {
        if entries.is_empty() {
            return Ok(entries);
        }
        let names: Vec<&str> = entries.iter().map(EntryKey::as_str).collect();
        let mut ask = redis::cmd("HMGET");
        let asked = ask.arg(self.keys.dead_reasons(job)).arg(names).query_async(&mut self.redis.clone()).await;
        let reasons: Vec<Option<String>> = match asked {
            Err(e) if is_of_keys(&e) => Vec::new(),
            reasons => reasons?,
        };
        let died = entries.into_iter().zip(reasons);
        Ok(died.filter_map(|(key, of)| of.is_some_and(|of| of.contains(reason)).then_some(key)).collect())
    }

    /// Claims at most `most` due entries for `claim`, while at most `cap` are claimed or running; for bulk ones twice,
    /// for ones of high priority three times as many. If this agenda's last call for the job was not answered, or was
    /// abandoned ([`Self::abandon`]), this one claims anew what that has claimed, and nothing else; so make one call
    /// for a job at a time.
    ///
    /// # Errors
    /// Redis's. What the call has claimed all the same, the next one claims anew.
    pub async fn claim(&self, job: &JobName, most: usize, cap: usize, claim: Duration) -> RedisResult<Claims> {
        let (number, answered) = self.claimer.call(job);
        let reply: Vec<String> = CLAIM
            .key(self.keys.agenda(job))
            .key(self.keys.paused(job))
            .key(self.keys.last_claim(job, &self.claimer.name))
            .arg(most.min(1_000))
            .arg(cap)
            .arg(millis(claim))
            .arg(number)
            .arg(answered)
            .invoke_async(&mut self.redis.clone())
            .await?;
        let told = |i: usize| reply.get(i).and_then(|text| text.parse::<i64>().ok()).unwrap_or(-1);
        let (now, next) = (told(0), told(1));
        let entries: Vec<Claimed> = reply[2.min(reply.len())..]
            .chunks_exact(3)
            .map(|entry| Claimed {
                key: entry[0].clone(),
                score: entry[1].clone(),
                // When an entry that is claimed anew was due is not known: before now.
                since: Due::from_score(entry[2].parse().unwrap_or_default()).at.min(RedisTime::from_millis(now)),
            })
            .collect();
        // A call without entries leaves the number of an earlier one in Redis.
        if !entries.is_empty() {
            self.claimer.answered(job, number);
        }
        let next = (next >= 0).then(|| Duration::from_millis(u64::try_from(next - now).unwrap_or(0)));
        Ok(Claims { entries, next, paused: told(1) == -2 })
    }

    /// Has the next [`Self::claim`] of a job claim anew what the last one claimed, as far as it is still claimed: it
    /// may be neither on the queue nor handed back. What is on the queue all the same is handled once, since only one
    /// task can take it.
    pub fn abandon(&self, job: &JobName) {
        self.claimer.forget(job);
    }

    /// Takes claimed entries, which then run for at most `time`; returns the score of each while it runs, in order.
    /// `None` stands for an entry that is not ours any more. A caller that asks `again`, so long after its first call,
    /// gets what that took.
    ///
    /// # Errors
    /// Redis's; the entries are due again when their claims run out, or that time if they run.
    pub async fn take(
        &self,
        job: &JobName,
        entries: &[Claimed],
        time: Duration,
        again: Option<Duration>,
    ) -> RedisResult<Vec<Option<String>>> {
        // A script is sent up to three times where Redis was started anew, and each command has a timeout of its own.
        let within = again.map_or(Duration::ZERO, |after| after + self.redis.timeout() * 3);
        let mut taken = Vec::with_capacity(entries.len());
        for batch in entries.chunks(BATCH) {
            let mut call = TAKE.key(self.keys.agenda(job));
            call.arg(millis(time)).arg(millis(within.min(time)));
            for entry in batch {
                call.arg(&entry.key).arg(&entry.score);
            }
            let scores: Vec<String> = call.invoke_async(&mut self.redis.clone()).await?;
            taken.extend(scores.into_iter().map(|score| (!score.is_empty()).then_some(score)));
        }
        Ok(taken)
    }

    /// Ends the warming of entries, counts outcomes, and keeps `last` for people.
    ///
    /// # Errors
    /// As of [`Self::finish_counting`].
    pub async fn finish(&self, job: &JobName, entries: &[Finished], last: &str) -> RedisResult<()> {
        self.finish_counting(job, entries, last, &[]).await
    }

    /// Ends the warming of entries as [`Self::finish`] does, and adds to more of the job's counters.
    ///
    /// # Errors
    /// Redis's; the entries are due again when their time runs out, and some may have been counted. Where only keys of
    /// another type are in the way, the rest was done, and the log names entries that may have no dead letter.
    pub async fn finish_counting(
        &self,
        job: &JobName,
        entries: &[Finished],
        last: &str,
        more: &[(&'static str, u64)],
    ) -> RedisResult<()> {
        let mut more = more.to_vec();
        let mut trouble = Ok(());
        for batch in entries.chunks(BATCH) {
            let mut counts = std::mem::take(&mut more);
            for outcome in batch.iter().filter_map(|entry| entry.outcome) {
                match counts.iter_mut().find(|(of, _)| *of == outcome.as_str()) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((outcome.as_str(), 1)),
                }
            }
            let mut call = FINISH.key(self.keys.agenda(job));
            call.key(self.keys.dead(job))
                .key(self.keys.dead_reasons(job))
                .key(self.keys.stats(job))
                .arg(DEAD_LETTERS)
                .arg(last)
                .arg(self.keys.signal_channel())
                .arg(due_signal(job))
                .arg(counts.len());
            for (name, count) in counts {
                call.arg(name).arg(count);
            }
            for Finished { key, score, next, .. } in batch {
                let (what, argument) = match next {
                    Next::At(at) => ("at", at.to_string()),
                    Next::Recheck(at) => ("recheck", at.to_string()),
                    Next::In(wait) => ("in", millis(*wait).to_string()),
                    Next::Aside(wait) => ("aside", millis(*wait).to_string()),
                    Next::Out => ("out", String::new()),
                    Next::Dead(reason) => ("dead", reason.clone()),
                };
                call.arg(key).arg(score).arg(what).arg(argument);
            }
            if let Err(e) = call.invoke_async::<u64>(&mut self.redis.clone()).await {
                if !is_of_keys(&e) {
                    return Err(e);
                }
                for Finished { key, next, .. } in batch {
                    if let Next::Dead(reason) = next {
                        warn!(%job, key, reason, "given up, and may have no dead letter: {e}");
                    }
                }
                trouble = Err(e);
            }
        }
        trouble
    }

    /// Returns the entries on a job's agenda that match a glob, in any state; each once or more. The agenda is scanned
    /// in steps.
    ///
    /// # Errors
    /// Redis's.
    pub async fn matching(&self, job: &JobName, glob: &str) -> RedisResult<Vec<EntryKey>> {
        let (mut entries, mut cursor) = (Vec::new(), 0);
        loop {
            let (next, found) = self.scan(job, glob, cursor).await?;
            entries.extend(found);
            cursor = next;
            if cursor == 0 {
                return Ok(entries);
            }
        }
    }

    /// Takes the entries that match a glob off the agenda, in any state. The agenda is scanned in steps.
    ///
    /// # Errors
    /// Redis's; some may have left.
    pub async fn remove_matching(&self, job: &JobName, glob: &str) -> RedisResult<()> {
        let mut cursor = 0;
        loop {
            let (next, found) = self.scan(job, glob, cursor).await?;
            self.remove(job, &found).await?;
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Returns one of a job's entries on the agenda, picked at random; `None` if there is none.
    ///
    /// # Errors
    /// Redis's.
    pub(crate) async fn at_random(&self, job: &JobName) -> RedisResult<Option<EntryKey>> {
        let redis = &mut self.redis.clone();
        let size: usize = self.ask_size(job).query_async(redis).await?;
        if size == 0 {
            return Ok(None);
        }
        let at = rand::random_range(0..size);
        let found: Vec<String> =
            redis::cmd("ZRANGE").arg(self.keys.agenda(job)).arg(at).arg(at).query_async(redis).await?;
        Ok(found.into_iter().next().map(EntryKey::new))
    }

    /// Returns a page of entries in the order in which they are due, what is in flight included: `most` from the offset
    /// `from` on.
    ///
    /// # Errors
    /// Redis's.
    pub async fn page(&self, job: &JobName, from: usize, most: usize) -> RedisResult<Vec<(EntryKey, Due)>> {
        let mut ask = redis::cmd("ZRANGE");
        ask.arg(self.keys.agenda(job)).arg(from).arg(from + most.max(1) - 1).arg("WITHSCORES");
        let found: Vec<(String, f64)> = ask.query_async(&mut self.redis.clone()).await?;
        Ok(found.into_iter().map(|(key, score)| (EntryKey::new(key), Due::from_score(score))).collect())
    }

    /// Counts the entries that are due in each of so many periods of this length from `now` on. What is due already
    /// counts for the first one; what is in flight does not count.
    ///
    /// # Errors
    /// Redis's.
    pub async fn forecast(
        &self,
        job: &JobName,
        now: RedisTime,
        period: Duration,
        periods: u32,
    ) -> RedisResult<Vec<u64>> {
        let mut ask = redis::pipe();
        let [_, due @ ..] = score::due_by(now + period);
        let starts = (0..periods).map(|n| if n == 0 { RedisTime::ZERO } else { now + period * n });
        let scheduled = starts.zip(1..).map(|(from, n)| score::waiting(from, now + period * n)[0].clone());
        for (from, to) in scheduled.chain(due) {
            ask.add_command(Cmd::zcount(self.keys.agenda(job), from, to));
        }
        let mut counts: Vec<u64> = ask.query_async(&mut self.redis.clone()).await?;
        let urgent: u64 = counts.drain(usize::try_from(periods).unwrap_or(usize::MAX).min(counts.len())..).sum();
        if let Some(first) = counts.first_mut() {
            *first += urgent;
        }
        Ok(counts)
    }

    /// Returns the next cursor and some entries that match a glob; the cursor begins and ends with 0.
    pub(crate) async fn scan(&self, job: &JobName, glob: &str, cursor: u64) -> RedisResult<(u64, Vec<EntryKey>)> {
        let mut scan = redis::cmd("ZSCAN");
        scan.arg(self.keys.agenda(job)).arg(cursor).arg("MATCH").arg(glob).arg("COUNT").arg(STEP);
        let (next, found): (u64, Vec<(String, f64)>) = scan.query_async(&mut self.redis.clone()).await?;
        Ok((next, found.into_iter().map(|(key, _)| EntryKey::new(key)).collect()))
    }

    /// Returns the command that asks for an entry's score, for a pipeline of the caller; [`Due::from_score`] decodes
    /// the reply.
    pub(crate) fn ask_score(&self, job: &JobName, key: &EntryKey) -> Cmd {
        let mut ask = redis::cmd("ZSCORE");
        ask.arg(self.keys.agenda(job)).arg(key.as_str());
        ask
    }

    /// Returns the command that asks for the scores of entries, for a pipeline of the caller.
    pub(crate) fn ask_scores<'a>(&self, job: &JobName, entries: impl IntoIterator<Item = &'a EntryKey>) -> Cmd {
        let mut ask = redis::cmd("ZMSCORE");
        ask.arg(self.keys.agenda(job)).arg(Vec::from_iter(entries.into_iter().map(EntryKey::as_str)));
        ask
    }

    /// Returns the command that asks for how many entries are on the agenda, for a pipeline of the caller.
    pub(crate) fn ask_size(&self, job: &JobName) -> Cmd {
        Cmd::zcard(self.keys.agenda(job))
    }

    /// Returns the commands that count entries, for a pipeline of the caller: of due ones at `now` those that are
    /// scheduled, of high priority, and bulk; then those that are claimed or running.
    pub(crate) fn ask_counts(&self, job: &JobName, now: RedisTime) -> [Cmd; 4] {
        let [scheduled, high, bulk] = score::due_by(now);
        [scheduled, high, bulk, score::in_flight()].map(|(from, to)| Cmd::zcount(self.keys.agenda(job), from, to))
    }

    /// Returns the scores of entries, as they compare and swap; `None` for an entry that is not on the agenda.
    ///
    /// # Errors
    /// Redis's.
    pub async fn scores(&self, job: &JobName, entries: &[EntryKey]) -> RedisResult<Vec<Option<String>>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        self.ask_scores(job, entries).query_async(&mut self.redis.clone()).await
    }

    /// Returns the decoded scores of entries; `None` for an entry that is not on the agenda.
    ///
    /// # Errors
    /// Redis's.
    pub async fn dues(&self, job: &JobName, entries: &[EntryKey]) -> RedisResult<Vec<Option<Due>>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let scores: Vec<Option<f64>> = self.ask_scores(job, entries).query_async(&mut self.redis.clone()).await?;
        Ok(scores.into_iter().map(|score| score.map(Due::from_score)).collect())
    }

    /// Takes entries off the agenda, in any state.
    ///
    /// # Errors
    /// Redis's; some may have left.
    pub async fn remove(&self, job: &JobName, entries: &[EntryKey]) -> RedisResult<()> {
        for batch in entries.chunks(BATCH) {
            let keys: Vec<&str> = batch.iter().map(EntryKey::as_str).collect();
            let () =
                redis::cmd("ZREM").arg(self.keys.agenda(job)).arg(keys).query_async(&mut self.redis.clone()).await?;
        }
        Ok(())
    }

    /// Takes entries off the agenda that were evicted at `at`, or that the job does not own since then, unless somebody
    /// asked for them since. What may be a later invalidation becomes a recheck, which fetches only a value that is
    /// there and invalidated. Returns how many left or became rechecks.
    ///
    /// # Errors
    /// Redis's; some may have left.
    pub async fn cancel(&self, job: &JobName, entries: &[EntryKey], at: RedisTime) -> RedisResult<usize> {
        let mut cancelled = 0;
        for batch in entries.chunks(BATCH) {
            let keys: Vec<&str> = batch.iter().map(EntryKey::as_str).collect();
            cancelled += CANCEL
                .key(self.keys.agenda(job))
                .arg(at)
                .arg(keys)
                .invoke_async::<usize>(&mut self.redis.clone())
                .await?;
        }
        Ok(cancelled)
    }
}
