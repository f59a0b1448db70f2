//! Warming entries now, and waiting for the result.

use std::collections::HashSet;
use std::io;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use redis::RedisResult;
use serde::Serialize;

use super::missing_input::MissingInput;
use super::{Ops, PAGE, status};
use crate::agenda::{Due, State, When};
use crate::entry::Outcome;
use crate::entry::Trigger;
use crate::entry::duration;
use crate::entry::{EntryKey, JobName, KeySet, LastOutcome};
use crate::job::{KnownJob, Params};
use crate::redis::requirements::explain;
use crate::redis::{RedisTime, passes};
use crate::store::Expiry;

/// The most entries whose inputs are read after a wait that was too short.
const EXAMINED: usize = 20;
/// The polling interval of a wait.
const POLL: Duration = Duration::from_millis(100);
/// The time after which a wait looks for what hinders it, and then again each time.
const EXPLAINED: Duration = Duration::from_millis(1_500);

/// The result of warming a set of entries.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct Done {
    /// Entries with a new value.
    pub warmed: usize,
    /// Entries whose value is unchanged.
    pub unchanged: usize,
    /// Entries that the upstream no longer has.
    pub gone: usize,
    /// Entries that were not fetched.
    pub failed: Vec<Failure>,
    /// The duration in seconds.
    pub seconds: f32,
}

impl AddAssign for Done {
    fn add_assign(&mut self, other: Self) {
        let Self { warmed, unchanged, gone, failed, seconds } = other;
        self.warmed += warmed;
        self.unchanged += unchanged;
        self.gone += gone;
        self.failed.extend(failed);
        self.seconds = self.seconds.max(seconds);
    }
}

/// The progress of a wait.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// The number of entries that are still waited for.
    Left(usize),
    /// The reason why one of them is not fetched yet; each reason is told once.
    Hindered(&'a EntryKey, &'a str),
    /// The reason why Redis does not answer now; it is told once each time.
    Unanswered(&'a str),
}

/// A request that entries be fetched, which put them on the agenda.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The trigger.
    pub trigger: Trigger,
    /// The time.
    pub at: RedisTime,
    /// Some of them may not be on the agenda: Redis did not answer, or has failed over since.
    pub may_be_lost: bool,
}

/// An entry that was not fetched.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Failure {
    /// The entry.
    pub key: String,
    /// Why.
    pub reason: String,
}

impl Ops {
    /// Returns the entries that a job keeps warm, as [`Self::wanted`] does, by key, with their parameters.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn entries(&self, job: &KnownJob, fed: Option<KeySet>) -> RedisResult<Vec<(EntryKey, Params)>> {
        let wanted = self.wanted(job, fed).await?;
        let named = |key| Some((EntryKey::new(key), job.key.read(key)?));
        Ok(wanted.sorted().into_iter().filter_map(named).collect())
    }

    /// Waits until each of these entries was attempted since they were asked for. One that the request did not put on
    /// the agenda is put there.
    /// Entries that were not attempted within `timeout` count as failed. So do those that are not in flight when the
    /// job is paused, and those that have no value afterwards. While Redis does not answer, the wait goes on.
    ///
    /// # Errors
    /// Fails if Redis returns an error that does not pass by itself.
    pub async fn wait(
        &self,
        job: &KnownJob,
        keys: Vec<EntryKey>,
        mut asked: Asked,
        timeout: Duration,
        progress: impl Fn(Progress<'_>) + Send,
    ) -> RedisResult<Done> {
        let begun = Instant::now();
        let (mut explained, mut told) = (begun, HashSet::new());
        let (mut done, mut waiting) = (Done::default(), keys);
        // Why Redis does not answer, while it does not.
        let mut silent: Option<String> = None;
        while !waiting.is_empty() {
            let may_explain = silent.is_none() && explained.elapsed() >= EXPLAINED && begun.elapsed() < timeout;
            let looking = async {
                let (ended, still, lost) = self.look(job, &waiting, asked).await?;
                self.agenda.put(&job.name, &lost, When::NOW, asked.trigger).await?;
                let hindrances = if may_explain { self.hindrances(job, &still, asked.at).await? } else { Vec::new() };
                Ok((ended, still, hindrances))
            };
            let looked = match &silent {
                None => looking.await,
                // It may take longer than is left until a command fails.
                Some(_) => {
                    let left = timeout.saturating_sub(begun.elapsed());
                    let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut).into());
                    tokio::time::timeout(left, looking).await.unwrap_or_else(late)
                }
            };
            match looked {
                Ok((ended, still, hindrances)) => {
                    done += ended;
                    (waiting, silent, asked.may_be_lost) = (still, None, false);
                    progress(Progress::Left(waiting.len()));
                    for (key, reason) in hindrances {
                        // A remaining time or another key of the same kind makes no other reason.
                        let is_new =
                            told.len() < EXAMINED && told.insert(reason.replace(|c: char| c.is_ascii_digit(), ""));
                        if is_new {
                            progress(Progress::Hindered(&key, &reason));
                        }
                    }
                    if may_explain {
                        explained = Instant::now();
                    }
                }
                Err(e) if passes(&e) => {
                    if silent.is_none() {
                        let why = explain(&e);
                        progress(Progress::Unanswered(&why));
                        silent = Some(why);
                    }
                    asked.may_be_lost = true;
                }
                Err(e) => return Err(e),
            }
            if begun.elapsed() >= timeout {
                done.failed
                    .extend(self.not_fetched(job, std::mem::take(&mut waiting), silent.as_deref(), timeout).await?);
            }
            if !waiting.is_empty() {
                tokio::time::sleep(POLL).await;
            }
        }
        done.seconds = begun.elapsed().as_secs_f32();
        Ok(done)
    }

    /// Returns what became of those of these entries that were attempted or cannot be, then the others, then those of
    /// the others that are not on the agenda, if the request for them may be lost.
    async fn look(
        &self,
        job: &KnownJob,
        waiting: &[EntryKey],
        asked: Asked,
    ) -> RedisResult<(Done, Vec<EntryKey>, Vec<EntryKey>)> {
        let Asked { trigger, at: asked, may_be_lost } = asked;
        let (mut done, mut still) = (Done::default(), Vec::with_capacity(waiting.len()));
        let mut lost = Vec::new();
        let is_paused = self.paused(&job.name).await?.is_some();
        for page in waiting.chunks(PAGE) {
            // In this order: a value, or a dead letter, is there before its entry's attempt ends on the agenda.
            let dues = self.agenda.dues(&job.name, page).await?;
            let snapshots = self.store.snapshots(page).await?;
            let letters = self.died_since(&job.name, page, asked).await?;
            for (((key, snapshot), due), letter) in page.iter().zip(snapshots).zip(dues).zip(letters) {
                let is_absent = snapshot.expiry == Expiry::Absent;
                let refusal = snapshot.refusal().map(str::to_owned);
                let last_attempt = snapshot.meta.map(|meta| meta.last_attempt).unwrap_or_default();
                let attempted = last_attempt.attempted >= asked;
                let is_in_flight = due.is_some_and(|due| matches!(due.state, State::Claimed | State::Running));
                let mut fail = |reason| done.failed.push(Failure { key: key.to_string(), reason });
                let pending = due.is_some_and(|due| is_pending(due, asked, is_absent));
                match last_attempt.outcome {
                    Some(Outcome::Failed) if attempted => fail(last_attempt.reason.unwrap_or_default()),
                    Some(Outcome::Warmed) if attempted && !pending => done.warmed += 1,
                    // The upstream has it, and answered with what is older than the invalidation.
                    Some(Outcome::Gone) if attempted && !pending && refusal.is_some() => {
                        fail(refusal.unwrap_or_default());
                    }
                    Some(Outcome::Gone) if attempted && !pending => done.gone += 1,
                    _ if pending || due.is_some_and(|due| due.trigger == trigger) => match is_paused {
                        true if !is_in_flight => fail(paused_reason(job)),
                        _ => still.push(key.clone()),
                    },
                    _ if may_be_lost && due.is_none() && !attempted && letter.is_none() => {
                        still.push(key.clone());
                        lost.push(key.clone());
                    }
                    // Its attempt noted no failure in the metadata, as for a key of another type.
                    _ if letter.is_some() => fail(letter.unwrap_or_default()),
                    // The upstream was not asked again: see `absent_for`.
                    Some(Outcome::Gone) if is_absent => match refusal {
                        Some(refusal) => fail(refusal),
                        None => done.gone += 1,
                    },
                    _ if is_absent => fail("it has no value: it was removed meanwhile".to_owned()),
                    _ => done.unchanged += 1,
                }
            }
        }
        Ok((done, still, lost))
    }

    /// Returns these entries as failures: they were not fetched in time. `silent` is why Redis does not answer.
    async fn not_fetched(
        &self,
        job: &KnownJob,
        keys: Vec<EntryKey>,
        silent: Option<&str>,
        timeout: Duration,
    ) -> RedisResult<Vec<Failure>> {
        let reasons = match silent {
            Some(why) => vec![Some(format!("Redis: {why}")); keys.len()],
            None => match self.waits_for(job, &keys, None).await {
                Err(e) if passes(&e) => vec![Some(format!("Redis: {}", explain(&e))); keys.len()],
                reasons => reasons?,
            },
        };
        let within = duration::text(timeout);
        let failure = |(key, reason): (EntryKey, Option<String>)| {
            let reason = reason.unwrap_or_else(|| "`samovar get KEY` shows its state".to_owned());
            Failure { key: key.to_string(), reason: format!("not fetched within {within}: {reason}") }
        };
        Ok(keys.into_iter().zip(reasons).map(failure).collect())
    }

    /// Returns what hinders some of these due entries of a job, as far as it is known. Of entries that were not
    /// attempted since `asked` the last reason says nothing.
    async fn hindrances(
        &self,
        job: &KnownJob,
        keys: &[EntryKey],
        asked: RedisTime,
    ) -> RedisResult<Vec<(EntryKey, String)>> {
        let some = &keys[..keys.len().min(EXAMINED)];
        let reasons = self.waits_for(job, some, Some(asked)).await?;
        Ok(some.iter().zip(reasons).filter_map(|(key, reason)| Some((key.clone(), reason?))).collect())
    }

    /// Returns why each of these due entries of a job is not fetched, in order, if it is known: the state of the job
    /// and of its upstreams, an input of the entry, or its last reason, if that is not from before `since`. Only of
    /// some the inputs are read.
    async fn waits_for(
        &self,
        job: &KnownJob,
        keys: &[EntryKey],
        since: Option<RedisTime>,
    ) -> RedisResult<Vec<Option<String>>> {
        let now = self.store.now().await?;
        if self.paused(&job.name).await?.is_some() {
            return Ok(vec![Some(paused_reason(job)); keys.len()]);
        }
        // A request goes to the first upstream that takes it.
        let closed = status::closed(&self.redis, &self.keys, job).await?;
        let are_all = !closed.is_empty() && closed.len() == job.upstreams.len();
        let closed: Vec<String> = closed
            .iter()
            .filter_map(|upstream| Some(format!("upstream {}: {}", upstream.upstream, upstream.closed_text(now)?)))
            .collect();
        let closed = are_all.then(|| closed.join("; "));
        let mut reasons = self.last_reasons(&job.name, keys, since).await?;
        for (n, (key, reason)) in keys.iter().zip(&mut reasons).enumerate() {
            let missing = match job.key.read(key.as_str()).filter(|_| n < EXAMINED) {
                Some(params) => self.missing_inputs(job, &params, now).await?.into_iter().next(),
                None => None,
            };
            if let Some(MissingInput { key, reason: why }) = missing {
                *reason = Some(format!("its input {key} {why}"));
            } else if let Some(closed) = &closed {
                *reason = Some(closed.clone());
            }
        }
        Ok(reasons)
    }

    /// Returns the last reason of each of these entries of a job, in order, if it is known: that of a deferral stands
    /// only in the last outcome of the job. With `since`, only those of attempts since then, and deferrals.
    pub(super) async fn last_reasons(
        &self,
        job: &JobName,
        keys: &[EntryKey],
        since: Option<RedisTime>,
    ) -> RedisResult<Vec<Option<String>>> {
        let last: RedisResult<Option<String>> =
            redis::cmd("HGET").arg(self.keys.stats(job)).arg("last").query_async(&mut self.redis.clone()).await;
        // Statistics of another type are somebody else's.
        let last = last.ok().flatten().and_then(|last| serde_json::from_str::<LastOutcome>(&last).ok());
        let last = last.filter(|last| since.is_none() || last.outcome == Outcome::Deferred);
        let mut reasons = Vec::with_capacity(keys.len());
        for page in keys.chunks(PAGE) {
            for (key, snapshot) in page.iter().zip(self.store.snapshots(page).await?) {
                let told = last.as_ref().filter(|last| last.key == key.as_str()).and_then(|last| last.reason.clone());
                let noted = snapshot.meta.map(|meta| meta.last_attempt);
                let noted = noted.filter(|attempt| since.is_none_or(|since| attempt.attempted >= since));
                reasons.push(told.or_else(|| noted?.reason));
            }
        }
        Ok(reasons)
    }
}

/// Returns `true` if an entry that was put on the agenda at `asked` is to be fetched for that.
fn is_pending(due: Due, asked: RedisTime, is_absent: bool) -> bool {
    match due.state {
        State::Claimed | State::Running | State::Urgent => true,
        // A demand keeps a stronger trigger that the entry had, also when a limit defers the fetch.
        State::Scheduled => {
            let fetches = matches!(due.trigger, Trigger::Cron | Trigger::Invalidation | Trigger::Expiry);
            due.at <= asked || is_absent && fetches
        }
    }
}

fn paused_reason(job: &KnownJob) -> String {
    format!("the job is paused; `samovar resume {}` resumes it", job.name)
}
