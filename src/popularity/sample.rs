//! The regular sample: asks Redis which entries were read since the last one, job by job.
//!
//! One worker of the fleet at a time samples a job. It claims the sample like a tick of cron; a takeover after a crash
//! only counts some reads twice. A sample is a scan in bounded steps that rests four times as long as each step took.
//! The next sample waits ten times as long as the whole, so that even millions of keys cost Redis little. If no client
//! has used a command that accesses values since the last sample, none is taken; Samovar's own idle reads use
//! `GETRANGE`. The sample also adopts entries that are read but not on the agenda, mainly those that the API wrote
//! itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::{RedisResult, Value};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::access::{Access, NEW, is_shared, reply, second};
use super::{BATCH, CLAIM, Fold, Popularity, Read, counted, half_life, millis};
use crate::agenda::keep;
use crate::agenda::{Agenda, Next, When};
use crate::entry::EntryKey;
use crate::entry::Trigger;
use crate::job::{Job, Jobs};
use crate::protocol::Keys;
use crate::redis::Troubles;
use crate::redis::{Backoff, Connection, RedisTime, Scan, is_of_keys};
use crate::store::Store;

/// The rest after a step, as a multiple of its duration.
const REST: u32 = 4;
/// The pause after a sample, as a multiple of its duration.
const PAUSE: u32 = 10;
/// The shortest pause between samples, whatever the TTL.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest rest after a step, so that one slow answer does not delay the sample.
const LONGEST_REST: Duration = Duration::from_secs(2);
/// Concurrent script calls.
const ABREAST: usize = 64;
/// Reported reads taken in one step, steps in one round, and the most reports that may wait.
const REPORTS: usize = 500;
const ROUNDS: usize = 100;
const MOST_REPORTS: usize = 1_000_000;
/// The number of samples after which a worker reads the most read entries again.
const REMEMBER_EACH: u32 = 6;
/// The commands that access values and that an idle worker does not use. If no client used one, a sample would find
/// what the last one found.
const TOUCHING: [&str; 28] = [
    "append",
    "bitcount",
    "bitfield",
    "bitfield_ro",
    "bitpos",
    "copy",
    "decr",
    "decrby",
    "get",
    "getbit",
    "getdel",
    "getex",
    "getset",
    "incr",
    "incrby",
    "incrbyfloat",
    "lcs",
    "mget",
    "mset",
    "msetnx",
    "psetex",
    "rename",
    "restore",
    "set",
    "setex",
    "setnx",
    "strlen",
    "touch",
];

/// Samples all jobs.
#[derive(Clone, Debug)]
pub struct Sampler {
    /// The connection.
    pub redis: Connection,
    /// The names.
    pub keys: Keys,
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// The agenda of adopted entries.
    pub agenda: Agenda,
    /// The counts of reads.
    pub popularity: Popularity,
    /// The shortest interval between samples of a job.
    pub every: Duration,
    /// The TTL of a claim of a sample.
    pub claim: Duration,
    /// Failures of single jobs.
    pub troubles: Troubles,
}

/// The result of a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampled {
    /// Values of the job.
    pub entries: usize,
    /// Of these, read since the last sample.
    pub read: usize,
    /// Put on the agenda because they were read.
    pub adopted: usize,
}

impl Sampler {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new("the sample");
        let mut remembered: Option<Instant> = None;
        while !stop.is_cancelled() {
            let wait = tokio::select! {
                done = self.round(&mut remembered) => done,
                () = stop.cancelled() => return,
            };
            match wait {
                Ok(wait) => {
                    backoff.well();
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => {}
                    }
                }
                Err(e) => backoff.ill(&e, &stop).await,
            }
        }
    }

    /// Counts reported reads, takes due samples, and at intervals remembers the most read entries. Returns when to run
    /// again.
    async fn round(&self, remembered: &mut Option<Instant>) -> RedisResult<Duration> {
        // Also on workers that never sample: it tells how to inspect an entry.
        self.is_lfu().await?;
        self.take_reports().await?;
        let mut wait = self.every;
        for job in self.jobs.jobs.values() {
            wait = wait.min(match self.sample_if_due(job).await {
                Err(e) if is_of_keys(&e) => self.troubles.ill(job.name.as_str(), e).max(self.every),
                next => next?,
            });
        }
        let interval = self.every * REMEMBER_EACH;
        let remembering = self.troubles.of("remembering what is read").every(interval);
        if remembered.is_none_or(|at| at.elapsed() >= interval) {
            for job in self.jobs.jobs.values() {
                remembering.alone(job.name.as_str(), self.popularity.remember(job).await)?;
            }
            *remembered = Some(Instant::now());
        }
        Ok(wait.max(self.every.min(SHORTEST) / 2))
    }

    /// Samples a job if it is due and unclaimed; returns when it is due next.
    async fn sample_if_due(&self, job: &Arc<Job>) -> RedisResult<Duration> {
        let (now, wait, last): (RedisTime, u64, RedisTime) = CLAIM
            .key(self.keys.sample(&job.name))
            .arg(millis(self.claim))
            .invoke_async(&mut self.redis.clone())
            .await?;
        if wait > 0 {
            return Ok(Duration::from_millis(wait));
        }
        let begun = Instant::now();
        let since = if last < RedisTime::ZERO { now - job.ttl } else { last };
        let every = self.every.min((job.ttl / 4).max(SHORTEST));
        let touches = self.touches().await?;
        if touches.is_some() && self.popularity.touches().insert(job.name.clone(), touches.unwrap_or(0)) == touches {
            let () = redis::cmd("HSET")
                .arg(self.keys.sample(&job.name))
                .arg("next")
                .arg(now + every)
                .query_async(&mut self.redis.clone())
                .await?;
            return Ok(every);
        }
        let sampled = match self.sample(job, since).await {
            Ok(sampled) => sampled,
            Err(e) => {
                self.popularity.touches().remove(&job.name);
                return Err(e);
            }
        };
        let pause = every.max(begun.elapsed() * PAUSE);
        let () = redis::cmd("HSET")
            .arg(self.keys.sample(&job.name))
            .arg("last")
            .arg(now)
            .arg("next")
            .arg(now + pause)
            .arg("every")
            .arg(millis(pause))
            .query_async(&mut self.redis.clone())
            .await?;
        self.troubles.well(job.name.as_str());
        let Sampled { entries, read, adopted } = sampled;
        debug!(job = %job.name, entries, read, adopted, ms = begun.elapsed().as_millis(), "sample");
        Ok(pause)
    }

    /// Examines all values of a job: counts those read since `since`, and adopts the read ones.
    ///
    /// # Errors
    /// Fails if Redis returns an error; the sample is retried when its claim expires.
    pub async fn sample(&self, job: &Arc<Job>, since: RedisTime) -> RedisResult<Sampled> {
        let lfu = self.is_lfu().await?;
        let [frequencies, next_frequencies] = self.keys.frequencies(&job.name);
        if lfu {
            let () = redis::cmd("DEL").arg(&next_frequencies).query_async(&mut self.redis.clone()).await?;
        }
        let mut total = Sampled::default();
        let mut held = Instant::now();
        // A wait for news of the slots would count as work of Redis, and delay the next sample.
        let mut scan = Scan::new(job.key.glob()).roughly();
        let mut begun = Instant::now();
        while let Some(found) = scan.next(&mut self.redis.clone()).await? {
            let found = found.into_iter().filter(|key| !self.keys.is_own(key) && job.key.read(key).is_some());
            let entries: Vec<EntryKey> = found.map(EntryKey::new).collect();
            let Sampled { entries, read, adopted } = self.page(job, &entries, since, lfu).await?;
            total.entries += entries;
            total.read += read;
            total.adopted += adopted;
            if scan.is_complete() {
                break;
            }
            if held.elapsed() > self.claim / 4 {
                self.hold(job).await?;
                held = Instant::now();
            }
            tokio::time::sleep((begun.elapsed() * REST).min(LONGEST_REST)).await;
            begun = Instant::now();
        }
        if lfu {
            let renamed: RedisResult<()> = redis::cmd("RENAME")
                .arg(&next_frequencies)
                .arg(&frequencies)
                .query_async(&mut self.redis.clone())
                .await;
            // Without values there is nothing to rename.
            if let Err(e) = renamed
                && e.kind() != redis::ErrorKind::Server(redis::ServerErrorKind::ResponseError)
            {
                return Err(e);
            }
        }
        Ok(total)
    }

    /// Returns `true` if Redis's policy is an LFU one. Read from `INFO`, which is allowed where `CONFIG` is not;
    /// without it, from the error of `OBJECT IDLETIME`, which fails under such a policy.
    async fn is_lfu(&self) -> RedisResult<bool> {
        let mut redis = self.redis.clone();
        let lfu = match redis.info(&["memory"]).await? {
            Some(info) => info.is_lfu(),
            None => {
                let idle: RedisResult<Option<i64>> =
                    redis::cmd("OBJECT").arg("IDLETIME").arg(self.keys.gap_detectors()).query_async(&mut redis).await;
                match idle {
                    Err(e) if e.is_io_error() => return Err(e),
                    answer => answer.is_err_and(|e| e.to_string().contains("LFU")),
                }
            }
        };
        self.popularity.lfu.store(lfu, Ordering::Relaxed);
        Ok(lfu)
    }

    /// Returns the number of accesses to values since Redis started. `None` if Redis does not tell, and under LFU
    /// policies, where frequencies change by themselves.
    async fn touches(&self) -> RedisResult<Option<u64>> {
        if self.popularity.lfu.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(info) = self.redis.clone().info(&["commandstats"]).await? else { return Ok(None) };
        Ok(info.calls(&TOUCHING))
    }

    /// Renews the claim of a long sample.
    async fn hold(&self, job: &Job) -> RedisResult<()> {
        let now: RedisTime = redis::cmd("TIME").query_async(&mut self.redis.clone()).await?;
        redis::cmd("HSET")
            .arg(self.keys.sample(&job.name))
            .arg("next")
            .arg(now + self.claim)
            .query_async(&mut self.redis.clone())
            .await
    }

    /// Examines some entries.
    async fn page(&self, job: &Arc<Job>, entries: &[EntryKey], since: RedisTime, lfu: bool) -> RedisResult<Sampled> {
        let mut pipe = redis::pipe();
        pipe.cmd("TIME");
        for key in entries {
            Access::ask(&mut pipe, &self.keys, key, lfu);
        }
        let replies: Vec<RedisResult<Value>> = pipe.ignore_errors().query_async(&mut self.redis.clone()).await?;
        let Some((time, replies)) = replies.split_first() else { return Ok(Sampled::default()) };
        let Some(now) = reply::<RedisTime>(time) else { return Ok(Sampled::default()) };
        let accesses: Vec<(&EntryKey, Access)> = entries
            .iter()
            .zip(replies.chunks_exact(Access::COMMANDS))
            .filter_map(|(key, replies)| Some((key, Access::read(now, lfu, replies)?)))
            .filter(|(_, access)| access.snapshot.has_value())
            .collect();
        let read = if lfu { self.more_frequent(job, &accesses, since).await? } else { recent(job, &accesses, since) };
        let adopted = self.count_and_adopt(job, &read).await?;
        Ok(Sampled { entries: accesses.len(), read: read.len(), adopted })
    }

    /// Returns the entries read under an LFU policy, with an estimated number: those whose frequency rose since the
    /// last sample.
    async fn more_frequent<'a>(
        &self,
        job: &Job,
        accesses: &'a [(&'a EntryKey, Access)],
        since: RedisTime,
    ) -> RedisResult<Vec<(&'a EntryKey, &'a Access, f64)>> {
        if accesses.is_empty() {
            return Ok(Vec::new());
        }
        let [frequencies, next_frequencies] = self.keys.frequencies(&job.name);
        let keys: Vec<&str> = accesses.iter().map(|(key, _)| key.as_str()).collect();
        let (before, kept): (Vec<Option<u32>>, usize) = redis::pipe()
            .cmd("HMGET")
            .arg(&frequencies)
            .arg(keys)
            .cmd("HLEN")
            .arg(&next_frequencies)
            .query_async(&mut self.redis.clone())
            .await?;
        let mut set = redis::cmd("HSET");
        set.arg(&next_frequencies);
        let mut read = Vec::new();
        let mut room = counted(job).saturating_sub(kept);
        let mut any = false;
        for ((key, access), before) in accesses.iter().zip(before) {
            let Some(frequency) = access.frequency else { continue };
            if room > 0 {
                set.arg(key.as_str()).arg(frequency);
                (room, any) = (room - 1, true);
            }
            let reads = reads_between(before.unwrap_or(NEW), frequency, access.is_touched_by_us(job.ttl, since));
            if reads > 0.0 {
                read.push((*key, access, reads));
            }
        }
        if any {
            let () = set.query_async(&mut self.redis.clone()).await?;
        }
        Ok(read)
    }

    /// Counts reads, and puts read entries that are not on the agenda there, to be refreshed before they expire. Their
    /// values stay as they are. An entry without a TTL is not adopted, and a dead letter returns only on request.
    async fn count_and_adopt(&self, job: &Arc<Job>, read: &[(&EntryKey, &Access, f64)]) -> RedisResult<usize> {
        if read.is_empty() {
            return Ok(0);
        }
        let mut pipe = redis::pipe();
        pipe.add_command(self.agenda.ask_scores(&job.name, read.iter().map(|(key, ..)| *key)));
        for (key, ..) in read {
            pipe.cmd("OBJECT").arg("REFCOUNT").arg(key.as_str());
        }
        let replies: Vec<RedisResult<Value>> = pipe.ignore_errors().query_async(&mut self.redis.clone()).await?;
        let Some((scores, refcounts)) = replies.split_first() else { return Ok(0) };
        let scores: Vec<Option<f64>> = reply(scores).unwrap_or_default();
        let mut reads = Vec::new();
        let mut orphans = Vec::new();
        for (n, (key, access, weight)) in read.iter().enumerate() {
            if refcounts.get(n).is_some_and(is_shared) {
                continue;
            }
            reads.push(((*key).clone(), *weight));
            let given_up =
                access.snapshot.meta.as_ref().is_some_and(|meta| meta.last_attempt.failures >= job.warm.attempts);
            if scores.get(n).is_some_and(Option::is_none)
                && !given_up
                && let Some(expires) = access.snapshot.expiry.at()
                && let Next::At(at) = keep(job, key, access.snapshot.expiry)
            {
                orphans.push((*key, at.max(access.now), expires.saturating_since(access.now)));
            }
        }
        self.popularity.fold(job, &reads, Fold::Sampled).await?;
        for abreast in orphans.chunks(ABREAST) {
            let puts = abreast
                .iter()
                .map(async |(key, at, _)| self.agenda.put(&job.name, [*key], When::Keep(*at), Trigger::Expiry).await);
            futures_util::future::try_join_all(puts).await?;
        }
        self.remember(job, &orphans).await?;
        Ok(orphans.len())
    }

    /// Records the adopted entries as dependants of their inputs, as the warmer does.
    async fn remember(&self, job: &Job, adopted: &[(&EntryKey, RedisTime, Duration)]) -> RedisResult<()> {
        let store = Store::new(self.redis.clone(), self.keys.clone());
        for (key, _, life) in adopted {
            let inputs = job.key.read(key.as_str()).map(|params| job.inputs_of_many(&params)).unwrap_or_default();
            if !inputs.is_empty() {
                store.add_dependant(key, &inputs, *life).await?;
            }
        }
        Ok(())
    }

    /// Counts the reads that APIs report. A report is removed before it is counted, so a crash in between loses some
    /// and counts none twice.
    ///
    /// # Errors
    /// Fails if Redis returns an error; at most one step's reports are lost.
    pub async fn take_reports(&self) -> RedisResult<()> {
        let set = self.keys.reads();
        for _ in 0..ROUNDS {
            let popped = redis::cmd("ZPOPMAX").arg(&set).arg(REPORTS).query_async(&mut self.redis.clone()).await;
            let reports: Vec<(Vec<u8>, f64)> = match popped {
                Ok(reports) => {
                    self.troubles.well("reported reads");
                    reports
                }
                Err(e) if is_of_keys(&e) => {
                    self.troubles.ill("reported reads", e);
                    return Ok(());
                }
                Err(e) => return Err(e),
            };
            self.troubles.well("reported reads");
            let all = reports.len() < REPORTS;
            let mut by_job: Vec<(&Arc<Job>, Vec<Read>)> = Vec::new();
            for (key, reads) in reports {
                let Ok(key) = String::from_utf8(key) else { continue };
                // Keys of no job are dropped.
                let Some((job, _)) = self.jobs.owner(&key).filter(|_| reads > 0.0) else { continue };
                let read = (EntryKey::new(key), reads);
                match by_job.iter_mut().find(|(known, _)| known.name == job.name) {
                    Some((_, reads)) => reads.push(read),
                    None => by_job.push((job, vec![read])),
                }
            }
            for (job, reads) in by_job {
                let folded = self.popularity.fold(job, &reads, Fold::Reported).await;
                self.troubles.of("counting reported reads").alone(job.name.as_str(), folded)?;
            }
            if all {
                return Ok(());
            }
        }
        // Reports arrive faster than they are counted: the least read ones are dropped.
        let left: usize = redis::cmd("ZCARD").arg(&set).query_async(&mut self.redis.clone()).await?;
        let mut spare = left.saturating_sub(MOST_REPORTS);
        while spare > 0 {
            let some = spare.min(4 * BATCH);
            let () = redis::cmd("ZPOPMIN")
                .arg(&set)
                .arg(some)
                .query_async::<Value>(&mut self.redis.clone())
                .await
                .map(drop)?;
            spare -= some;
        }
        Ok(())
    }
}

/// Returns the entries that other clients accessed since `since`, each once, with the decay since then.
fn recent<'a>(
    job: &Job,
    accesses: &'a [(&'a EntryKey, Access)],
    since: RedisTime,
) -> Vec<(&'a EntryKey, &'a Access, f64)> {
    let half_life = half_life(job);
    accesses
        .iter()
        .filter_map(|(key, access)| {
            let last = access.touched_in()?;
            // An access in the second of the last sample may have been counted then. By the access clock: early in a
            // second of `TIME`, that sample saw the second before.
            if last <= second(since) || access.read_by_others(job.ttl) != Some(true) {
                return None;
            }
            let ago = access.now.saturating_since(RedisTime::from_millis(last * 1_000));
            Some((*key, access, super::decay::once(ago, half_life)))
        })
        .collect()
}

/// Returns about how many reads raise `OBJECT FREQ` to this value (`lfu-log-factor` 10, the default): each of the first
/// reads counts, and above 5 one in (n − 5) · 10 + 1.
fn reads_between(before: u32, now: u32, touched: bool) -> f64 {
    let reads = |frequency: u32| {
        let above = f64::from(frequency.saturating_sub(NEW));
        f64::from(frequency) + 10.0 * above * (above - 1.0).max(0.0) / 2.0
    };
    // A refresh by Samovar is two accesses, which rarely count above 7.
    let before = if touched { before.max((before + 2).min(NEW + 2)) } else { before };
    (reads(now) - reads(before)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_higher_frequency_means_the_more_reads_the_higher_it_is() {
        assert!((reads_between(0, 1, false) - 1.0).abs() < f64::EPSILON);
        assert!((reads_between(5, 6, false) - 1.0).abs() < f64::EPSILON);
        assert!((reads_between(6, 7, false) - 11.0).abs() < f64::EPSILON);
        assert!(reads_between(17, 18, false) > 100.0);
        assert!(reads_between(9, 8, false).abs() < f64::EPSILON, "it fades");
    }

    #[test]
    fn what_a_refresh_of_ours_adds_is_no_read() {
        for before in 0..=7 {
            let after = (before + 2).min(7).max(before);
            assert!(reads_between(before, after, true).abs() < f64::EPSILON, "{before}");
        }
    }
}
