//! The regular sample: asks Redis which entries were read since the last one, job by job.
//!
//! One worker of the fleet at a time samples a job: it claims the sample as a tick of cron is claimed, and whoever takes
//! over after a crash only counts some reads twice. A sample is a scan in bounded steps that rests four times as long as each
//! step took, and the next one waits ten times as long as the whole, so that even millions of keys cost Redis little. While
//! nobody has used a command that touches values since the last sample, none is taken; our own reads that go on while nothing
//! happens use `GETRANGE`. On its way it adopts what is read and not on the agenda: what the API wrote itself, above all.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::{RedisResult, Value};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::look::{Look, NEW, is_shared, reply, second};
use super::{BATCH, CLAIM, Fold, Popularity, Read, counted, half_life, millis};
use crate::agenda::keep;
use crate::agenda::{Agenda, Next, When};
use crate::entry::EntryKey;
use crate::entry::Trigger;
use crate::job::{Job, Jobs};
use crate::protocol::Keys;
use crate::redis::Troubles;
use crate::redis::{Backoff, Connection, Scan, is_of_keys};
use crate::store::Store;

/// How much longer than a step took the scan rests after it.
const REST: u32 = 4;
/// How much longer than a whole sample took the next one waits.
const PAUSE: u32 = 10;
/// The shortest pause, however short a TTL is.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest rest after a step, so that one slow answer does not draw the sample out.
const LONGEST_REST: Duration = Duration::from_secs(2);
/// Scripts under way at once.
const ABREAST: usize = 64;
/// Reports of reads taken out in one step, steps in one round, and the most that are left lying.
const REPORTS: usize = 500;
const ROUNDS: usize = 100;
const MOST_REPORTS: usize = 1_000_000;
/// How many samples pass before a worker looks again at what is most read.
const REMEMBER_EACH: u32 = 6;
/// The commands by which values are read or written, and which no worker uses while it has nothing to do: while nobody uses
/// them, a sample would find what the last one found.
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
    /// Where what is adopted becomes due.
    pub agenda: Agenda,
    /// Where reads are counted.
    pub popularity: Popularity,
    /// How often each job is sampled, at most.
    pub every: Duration,
    /// How long a claimed sample is left to its worker.
    pub claim: Duration,
    /// What fails in single jobs.
    pub troubles: Troubles,
}

/// What a sample found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampled {
    /// Values of the job.
    pub entries: usize,
    /// Of these, read since the last sample.
    pub read: usize,
    /// Put on the agenda because they were read and not on it.
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

    /// Takes in what APIs report, samples what is due, and now and then looks what is most read; returns when to look again.
    async fn round(&self, remembered: &mut Option<Instant>) -> RedisResult<Duration> {
        // Also for those who never get to sample: it says how to look at an entry.
        self.is_lfu().await?;
        self.take_reports().await?;
        let mut wait = self.every;
        for job in self.jobs.jobs.values() {
            wait = wait.min(match self.sample_if_due(job).await {
                Err(e) if is_of_keys(&e) => self.troubles.ill(job.name.as_str(), e).max(self.every),
                next => next?,
            });
        }
        let remembering = self.troubles.of("remembering what is read");
        if remembered.is_none_or(|at| at.elapsed() >= self.every * REMEMBER_EACH) {
            for job in self.jobs.jobs.values() {
                remembering.alone(job.name.as_str(), self.popularity.remember(job).await)?;
            }
            *remembered = Some(Instant::now());
        }
        Ok(wait.max(self.every.min(SHORTEST) / 2))
    }

    /// Samples a job if it is due and nobody does; returns when it is due next.
    async fn sample_if_due(&self, job: &Arc<Job>) -> RedisResult<Duration> {
        let (now, wait, last): (i64, u64, i64) = CLAIM
            .key(self.keys.sample(&job.name))
            .arg(millis(self.claim))
            .invoke_async(&mut self.redis.clone())
            .await?;
        if wait > 0 {
            return Ok(Duration::from_millis(wait));
        }
        let begun = Instant::now();
        let since = if last < 0 { now - millis(job.ttl) } else { last };
        let every = self.every.min((job.ttl / 4).max(SHORTEST));
        let touches = self.touches().await?;
        if touches.is_some() && self.popularity.touches().insert(job.name.clone(), touches.unwrap_or(0)) == touches {
            let () = redis::cmd("HSET")
                .arg(self.keys.sample(&job.name))
                .arg("next")
                .arg(now + millis(every))
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
            .arg(now + millis(pause))
            .arg("every")
            .arg(millis(pause))
            .query_async(&mut self.redis.clone())
            .await?;
        self.troubles.well(job.name.as_str());
        let Sampled { entries, read, adopted } = sampled;
        debug!(job = %job.name, entries, read, adopted, ms = begun.elapsed().as_millis(), "sample");
        Ok(pause)
    }

    /// Looks at all values of a job: counts those that were read since `since` (Redis time, ms), and adopts what is read.
    ///
    /// # Errors
    /// Fails if Redis returns an error; the sample is taken again when its claim runs out.
    pub async fn sample(&self, job: &Arc<Job>, since: i64) -> RedisResult<Sampled> {
        let lfu = self.is_lfu().await?;
        let [frequencies, next_frequencies] = self.keys.frequencies(&job.name);
        if lfu {
            let () = redis::cmd("DEL").arg(&next_frequencies).query_async(&mut self.redis.clone()).await?;
        }
        let mut total = Sampled::default();
        let mut held = Instant::now();
        let mut scan = Scan::new(job.key.glob());
        let mut begun = Instant::now();
        while let Some(found) = scan.next(&mut self.redis.clone()).await? {
            let found = found.into_iter().filter(|key| !self.keys.is_own(key) && job.key.read(key).is_some());
            let entries: Vec<EntryKey> = found.map(EntryKey::new).collect();
            let Sampled { entries, read, adopted } = self.page(job, &entries, since, lfu).await?;
            total.entries += entries;
            total.read += read;
            total.adopted += adopted;
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
            // There is nothing to rename where there are no values.
            if let Err(e) = renamed
                && e.kind() != redis::ErrorKind::Server(redis::ServerErrorKind::ResponseError)
            {
                return Err(e);
            }
        }
        Ok(total)
    }

    /// Whether Redis's policy is an LFU one. Read from `INFO`, which is allowed where `CONFIG` is not, else from how
    /// Redis answers to a question that has no answer under such a policy.
    async fn is_lfu(&self) -> RedisResult<bool> {
        let mut redis = self.redis.clone();
        let lfu = match redis.info(&["memory"]).await? {
            Some(info) => info.is_lfu(),
            None => {
                let idle: RedisResult<Option<i64>> =
                    redis::cmd("OBJECT").arg("IDLETIME").arg(self.keys.ears()).query_async(&mut redis).await;
                match idle {
                    Err(e) if e.is_io_error() => return Err(e),
                    answer => answer.is_err_and(|e| e.to_string().contains("LFU")),
                }
            }
        };
        self.popularity.lfu.store(lfu, Ordering::Relaxed);
        Ok(lfu)
    }

    /// How often values were touched since Redis was started, by whatever command; `None` where Redis does not say, and
    /// under LFU policies, where they change by themselves.
    async fn touches(&self) -> RedisResult<Option<u64>> {
        if self.popularity.lfu.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(info) = self.redis.clone().info(&["commandstats"]).await? else { return Ok(None) };
        Ok(info.calls(&TOUCHING))
    }

    /// A long sample stays ours.
    async fn hold(&self, job: &Job) -> RedisResult<()> {
        let (seconds, _): (i64, i64) = redis::cmd("TIME").query_async(&mut self.redis.clone()).await?;
        redis::cmd("HSET")
            .arg(self.keys.sample(&job.name))
            .arg("next")
            .arg(seconds * 1_000 + millis(self.claim))
            .query_async(&mut self.redis.clone())
            .await
    }

    /// Looks at some entries.
    async fn page(&self, job: &Arc<Job>, entries: &[EntryKey], since: i64, lfu: bool) -> RedisResult<Sampled> {
        let mut pipe = redis::pipe();
        pipe.cmd("TIME");
        for key in entries {
            Look::ask(&mut pipe, &self.keys, key, lfu);
        }
        let replies: Vec<RedisResult<Value>> = pipe.ignore_errors().query_async(&mut self.redis.clone()).await?;
        let Some((time, replies)) = replies.split_first() else { return Ok(Sampled::default()) };
        let Some((seconds, micros)) = reply::<(i64, i64)>(time) else { return Ok(Sampled::default()) };
        let now = seconds * 1_000 + micros / 1_000;
        let looks: Vec<(&EntryKey, Look)> = entries
            .iter()
            .zip(replies.chunks_exact(Look::COMMANDS))
            .filter_map(|(key, replies)| Some((key, Look::read(now, lfu, replies)?)))
            .filter(|(_, look)| look.snapshot.has_value())
            .collect();
        let read = if lfu { self.more_frequent(job, &looks, since).await? } else { recent(job, &looks, since) };
        let adopted = self.count_and_adopt(job, &read).await?;
        Ok(Sampled { entries: looks.len(), read: read.len(), adopted })
    }

    /// What was read under an LFU policy, and about how often: what has a higher frequency than at the last sample.
    async fn more_frequent<'a>(
        &self,
        job: &Job,
        looks: &'a [(&'a EntryKey, Look)],
        since: i64,
    ) -> RedisResult<Vec<(&'a EntryKey, &'a Look, f64)>> {
        if looks.is_empty() {
            return Ok(Vec::new());
        }
        let [frequencies, next_frequencies] = self.keys.frequencies(&job.name);
        let keys: Vec<&str> = looks.iter().map(|(key, _)| key.as_str()).collect();
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
        for ((key, look), before) in looks.iter().zip(before) {
            let Some(frequency) = look.frequency else { continue };
            if room > 0 {
                set.arg(key.as_str()).arg(frequency);
                (room, any) = (room - 1, true);
            }
            let reads = reads_between(before.unwrap_or(NEW), frequency, look.is_touched_by_us(job.ttl, since));
            if reads > 0.0 {
                read.push((*key, look, reads));
            }
        }
        if any {
            let () = set.query_async(&mut self.redis.clone()).await?;
        }
        Ok(read)
    }

    /// Counts reads, and puts what is read and not on the agenda there, to be refreshed before it expires. Its value stays as
    /// it is. What has no TTL needs nobody, and what was given up comes back when somebody says so.
    async fn count_and_adopt(&self, job: &Arc<Job>, read: &[(&EntryKey, &Look, f64)]) -> RedisResult<usize> {
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
        for (n, (key, look, weight)) in read.iter().enumerate() {
            if refcounts.get(n).is_some_and(is_shared) {
                continue;
            }
            reads.push(((*key).clone(), *weight));
            let given_up = look.snapshot.meta.as_ref().is_some_and(|meta| meta.note.failures >= job.warm.attempts);
            if scores.get(n).is_some_and(Option::is_none)
                && !given_up
                && let Some(expires) = look.snapshot.expiry.at()
                && let Next::At(at) = keep(job, key, look.snapshot.expiry)
            {
                orphans.push((*key, at.max(look.now), expires - look.now));
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

    /// Remembers what was adopted beside the inputs that it is made from, as the warmer does.
    async fn remember(&self, job: &Job, adopted: &[(&EntryKey, i64, i64)]) -> RedisResult<()> {
        let store = Store::new(self.redis.clone(), self.keys.clone());
        for (key, _, life) in adopted {
            let inputs = job.key.read(key.as_str()).map(|params| job.inputs_of_many(&params)).unwrap_or_default();
            if !inputs.is_empty() {
                let life = Duration::from_millis(u64::try_from(*life).unwrap_or(0));
                store.make_from(key, &inputs, life).await?;
            }
        }
        Ok(())
    }

    /// Counts the reads that APIs report. A report is taken out before it is counted, so a crash in between loses some and
    /// counts none twice.
    ///
    /// # Errors
    /// Fails if Redis returns an error; at most one step's reports are lost.
    pub async fn take_reports(&self) -> RedisResult<()> {
        let set = self.keys.reads();
        for _ in 0..ROUNDS {
            let popped = redis::cmd("ZPOPMAX").arg(&set).arg(REPORTS).query_async(&mut self.redis.clone()).await;
            let reports: Vec<(Vec<u8>, f64)> = match popped {
                Ok(reports) => reports,
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
                // What belongs to no job is dropped.
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
        // Reported faster than it is counted: the least read go.
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

/// What was touched by others since `since` (Redis time, ms), each once, less what it faded by since.
fn recent<'a>(job: &Job, looks: &'a [(&'a EntryKey, Look)], since: i64) -> Vec<(&'a EntryKey, &'a Look, f64)> {
    let half_life = half_life(job);
    looks
        .iter()
        .filter_map(|(key, look)| {
            let last = look.touched_in()?;
            // What was touched in the very second of the last sample was perhaps counted then. By the clock of touches: early in
            // a second of `TIME`, that sample saw the second before.
            if last <= second(since) || look.read_by_others(job.ttl) != Some(true) {
                return None;
            }
            let ago = Duration::from_millis(u64::try_from(look.now - last * 1_000).unwrap_or(0));
            Some((*key, look, super::decay::once(ago, half_life)))
        })
        .collect()
}

/// About how many reads raise `OBJECT FREQ` so far (Redis's `LFULogIncr` with the usual `lfu-log-factor` of 10): each of the
/// first counts, and of those above 5 one in (n − 5) · 10 + 1.
fn reads_between(before: u32, now: u32, touched: bool) -> f64 {
    let reads = |frequency: u32| {
        let above = f64::from(frequency.saturating_sub(NEW));
        f64::from(frequency) + 10.0 * above * (above - 1.0).max(0.0) / 2.0
    };
    // A refresh of ours is two touches, which above 7 hardly ever count.
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
