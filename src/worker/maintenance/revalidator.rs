//! Revalidator: after a gap in what was heard, a restart or a failover, nothing fetched before is trusted.
//!
//! A note in Redis says up to which time everything is suspect, so that it outlives whoever wrote it; one worker at a time
//! deals with it, for the jobs that it knows, and the note stays until that was done for all jobs of the fleet. Leases begun
//! before are void; values fetched before are made due, the most read first, and are served until the new ones land. What
//! somebody else wrote is left to them.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use redis::{ErrorKind, RedisResult, Script};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::agenda::{Agenda, When};
use crate::entry::EntryKey;
use crate::entry::Trigger;
use crate::entry::duration;
use crate::job::{Job, Jobs};
use crate::popularity::Popularity;
use crate::protocol::Handled;
use crate::protocol::Keys;
use crate::redis::Troubles;
use crate::redis::{Backoff, Connection, Scan, lead};
use crate::store::{Gap, Snapshot, Store};
use crate::trigger::invalidation::{Debounced, Invalidator};

/// Entries of a job that are looked at in the order in which they are read.
const MOST_READ: usize = 10_000;
/// Of these, how many are due at the same moment.
const FINE: usize = 32;
/// Entries that become due at once, and those that follow in a second: what is suspect is looked at behind all else,
/// and who can make the fleet deaf must not bring all its upstreams down.
const AT_ONCE: u32 = 2_000;
const A_SECOND: u32 = 500;
/// How often the note is looked for when nobody says that there is one.
const IDLE: Duration = Duration::from_secs(5);

static ABSOLVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/absolve.lua")));

/// Raises suspicions and deals with them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Revalidator {
    /// The connection.
    pub redis: Connection,
    /// The names.
    pub keys: Keys,
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// Where entries become due.
    pub agenda: Agenda,
    /// Where is seen whose values are ours.
    pub store: Store,
    /// Who voids leases and marks values.
    pub invalidator: Invalidator,
    /// What is looked at first.
    pub popularity: Popularity,
    /// This worker.
    pub worker: Arc<str>,
    /// How long one worker is left to it.
    pub claim: Duration,
    /// Rung when there is something to do.
    pub wakeup: Arc<Notify>,
    /// What fails in single jobs.
    pub troubles: Troubles,
}

impl Revalidator {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new("looking at what is suspect");
        while !stop.is_cancelled() {
            match self.look().await {
                Ok(()) => backoff.well(),
                Err(e) => {
                    backoff.ill(&e, &stop).await;
                    continue;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(IDLE) => {}
                () = self.wakeup.notified() => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Deals with a revalidator if there is one and nobody does yet.
    ///
    /// # Errors
    /// Redis's; it is dealt with again, by whoever comes first when the lock has run out.
    pub async fn look(&self) -> RedisResult<()> {
        let [note, lock, dealt] = self.keys.revalidation();
        let mut redis = self.redis.clone();
        loop {
            // Not with `GET`, by which APIs read: see [`crate::popularity::Sampler`].
            let known: String = redis::cmd("GETRANGE").arg(&note).arg(0).arg(-1).query_async(&mut redis).await?;
            if known.is_empty() {
                return Ok(());
            }
            // Jobs that it does not know are left to workers that do.
            let done: HashMap<String, String> = redis::cmd("HGETALL").arg(&dealt).query_async(&mut redis).await?;
            let jobs = self.jobs.jobs.values().filter(|job| done.get(&job.identity()) != Some(&known));
            let mut jobs: Vec<&Arc<Job>> = jobs.collect();
            if jobs.is_empty() && !self.jobs.jobs.is_empty() {
                return Ok(());
            }
            let locked: Option<String> = redis::cmd("SET")
                .arg(&lock)
                .arg(&*self.worker)
                .arg("NX")
                .arg("PX")
                .arg(duration::millis(self.claim))
                .query_async(&mut redis)
                .await?;
            if locked.is_none() {
                // No lock ends later, unless Redis's clock was set back meanwhile.
                let claim = duration::millis(self.claim);
                return redis::cmd("PEXPIRE").arg(&lock).arg(claim).arg("LT").exec_async(&mut redis).await;
            }
            let mut failed = false;
            if let Some(suspect) = Suspect::read(&known) {
                let begun = Instant::now();
                let all = jobs.len();
                let (leases, values) = self.examine(&mut jobs, suspect).await?;
                failed = jobs.len() < all;
                if leases + values > 0 {
                    let seconds = begun.elapsed().as_secs_f32();
                    warn!(leases, values, seconds, "invalidations may have been missed: all is looked at anew");
                }
            }
            let mut call = ABSOLVE.key(&note);
            call.key(&lock).key(&dealt).arg(&known).arg(&*self.worker).arg(2 * jobs.len());
            for job in &jobs {
                call.arg(job.name.as_str()).arg(job.identity());
            }
            call.arg(Vec::from_iter(self.store.fleet().await?));
            let clear: u8 = call.invoke_async(&mut redis).await?;
            // What failed is looked at again with the next round.
            if clear == 1 || failed {
                return Ok(());
            }
        }
    }

    /// Voids leases and makes values of these jobs due; returns how many of each. Jobs in which that failed are dropped.
    async fn examine(&self, jobs: &mut Vec<&Arc<Job>>, suspect: Suspect) -> RedisResult<(usize, usize)> {
        let mut leases = 0;
        let mut scan = Scan::new(self.keys.lease_glob("*"));
        while let Some(found) = scan.next(&mut self.redis.clone()).await? {
            let keys = found.iter().filter_map(|lease| self.keys.entry_of_lease(lease)).map(EntryKey::new);
            let keys: Vec<EntryKey> = keys.collect();
            leases += keys.len();
            self.invalidate(keys, suspect.at, When::Bulk(0)).await?;
            self.hold().await?;
        }
        jobs.sort_by_key(|job| job.may_hold_unasked() || job.waits_for_inputs());
        let mut pace = Pace { begun: Instant::now(), values: 0 };
        for job in std::mem::take(jobs) {
            let examined = self.examine_job(job, suspect, &mut pace).await;
            if self.troubles.alone(job.name.as_str(), examined)?.is_some() {
                jobs.push(job);
            }
        }
        Ok((leases, pace.values))
    }

    /// Makes the values of a job due, at a bounded pace.
    async fn examine_job(&self, job: &Arc<Job>, suspect: Suspect, pace: &mut Pace) -> RedisResult<()> {
        // What comes first is due a moment sooner.
        let mut due = self.store.now().await?;
        let top = self.popularity.top(job, MOST_READ).await?;
        for page in top.chunks(FINE) {
            due += 1;
            let keys = page.iter().map(|(key, _)| key.clone()).filter(|key| job.key.read(key.as_str()).is_some());
            pace.values += self.mark_stale(job, keys.collect(), suspect, due).await?;
            self.pause(pace.rest()).await?;
        }
        let mut scan = Scan::new(job.key.glob());
        while let Some(found) = scan.next(&mut self.redis.clone()).await? {
            let found = found.into_iter().filter(|key| !self.keys.is_own(key) && job.key.read(key).is_some());
            due += 1;
            pace.values += self.mark_stale(job, found.map(EntryKey::new).collect(), suspect, due).await?;
            self.pause(pace.rest()).await?;
        }
        Ok(())
    }

    /// Makes those of these entries due that are suspect, in the order of `due` (Redis time, ms); returns how many.
    async fn mark_stale(&self, job: &Job, keys: Vec<EntryKey>, suspect: Suspect, due: i64) -> RedisResult<usize> {
        let mut lost = self.suspects(keys, suspect).await?;
        let count = lost.len();
        let mut missed = Vec::new();
        let mut when = When::Bulk(due);
        if job.may_hold_unasked() {
            missed.extend(lost.extract_if(.., |(_, gap)| *gap == Gap::Missed).map(|(key, _)| key));
            when = When::Due(due);
        }
        self.invalidate(lost.into_iter().map(|(key, _)| key).collect(), suspect.at, when).await?;
        self.agenda.put(&job.name, &missed, When::Due(due), Trigger::Invalidation).await?;
        self.hold().await?;
        Ok(count)
    }

    /// Of these entries, those with a value of ours that was fetched by then, or in the future, and that nobody has doubted
    /// since; and how bad it is. Where a look will do, to have been looked at since will, too.
    async fn suspects(&self, keys: Vec<EntryKey>, suspect: Suspect) -> RedisResult<Vec<(EntryKey, Gap)>> {
        let snapshots = self.store.snapshots(&keys).await?;
        let now = self.store.now().await?;
        let doubted = |(key, snapshot): (EntryKey, Snapshot)| {
            let meta = snapshot.into_ours().filter(|meta| meta.invalidated <= suspect.at)?;
            let lost = suspect.gap == Gap::Lost || suspect.from.is_some_and(|from| meta.fetched_at > from);
            let since = if lost { meta.fetched_at } else { meta.validated_at };
            let gap = if lost { Gap::Lost } else { Gap::Missed };
            (since <= suspect.at || since > now).then_some((key, gap))
        };
        Ok(keys.into_iter().zip(snapshots).filter_map(doubted).collect())
    }

    async fn invalidate(&self, keys: Vec<EntryKey>, at: i64, when: When) -> RedisResult<()> {
        let held = |key: EntryKey| {
            let job = Arc::clone(self.jobs.owner(key.as_str())?.0);
            Some(Debounced { job, key, at, when, wait: Duration::ZERO })
        };
        let mut held: Vec<Debounced> = keys.into_iter().filter_map(held).collect();
        while !held.is_empty() {
            held = self.invalidator.again(held, &mut Handled::default()).await?;
            if let Some(wait) = held.iter().map(|held| held.wait).min() {
                self.pause(wait).await?;
            }
        }
        Ok(())
    }

    /// Waits, and keeps the lock.
    async fn pause(&self, time: Duration) -> RedisResult<()> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(self.claim / 4)).await;
            self.hold().await?;
        }
    }

    /// Keeps the lock while it takes long.
    ///
    /// # Errors
    /// Redis's, or another worker has the lock by now and deals with the revalidator.
    async fn hold(&self) -> RedisResult<()> {
        let [_, lock, _] = self.keys.revalidation();
        match lead(&self.redis, &lock, &self.worker, self.claim).await? {
            true => Ok(()),
            false => Err((ErrorKind::Client, "the lock of the revalidator ran out, and another worker took it").into()),
        }
    }
}

/// How many entries have become due, and since when.
struct Pace {
    begun: Instant,
    values: usize,
}

impl Pace {
    /// Returns how long to wait before more entries become due.
    fn rest(&self) -> Duration {
        rest(self.values, self.begun.elapsed())
    }
}

/// How long to wait before more entries become due, where so many did within this time.
fn rest(values: usize, passed: Duration) -> Duration {
    let paced = u32::try_from(values).unwrap_or(u32::MAX).saturating_sub(AT_ONCE);
    (Duration::from_secs(1) * paced / A_SECOND).saturating_sub(passed)
}

/// What a note says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspect {
    /// Up to when everything is suspect (Redis time, ms).
    at: i64,
    /// How bad it is.
    gap: Gap,
    /// Of what was fetched after this (Redis time, ms), invalidations were lost, since Redis's clock was set back.
    from: Option<i64>,
}

impl Suspect {
    fn read(note: &str) -> Option<Self> {
        let mut words = note.split(' ');
        let at = words.next()?.parse().ok()?;
        let gap = if words.next()? == "1" { Gap::Missed } else { Gap::Lost };
        Some(Self { at, gap, from: words.next().and_then(|from| from.parse().ok()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Outcome;
    use crate::redis::server::Server;
    use crate::store::{Fresh, Leased, Note, Removal};

    /// The entry's fetch failed just now, so the next is held off for a second, longer than the lock holds by itself.
    #[tokio::test]
    async fn a_wait_for_what_is_held_off_keeps_the_lock() {
        const MINUTE: Duration = Duration::from_secs(60);
        let server = Server::start().await;
        let (redis, keys) = (server.connect().await, Keys::new("test", "test:invalidate"));
        let text = "key = \"art:{name}\"\n[source]\nkind = \"http\"\nurl = \"http://127.0.0.1/{{ name }}\"\n";
        let jobs = Arc::new(Jobs::parse(&[("art.toml".to_owned(), text.to_owned())], MINUTE, &|_| None).unwrap());
        let store = Store::new(redis.clone(), keys.clone());
        let agenda = Agenda::new(redis.clone(), keys.clone());
        let invalidator =
            Invalidator::new(redis.clone(), keys.clone(), Arc::clone(&jobs), store.clone(), agenda.clone());
        let revalidator = Revalidator {
            popularity: Popularity::new(redis.clone(), keys.clone()),
            redis: redis.clone(),
            keys: keys.clone(),
            jobs,
            agenda,
            store: store.clone(),
            invalidator,
            worker: Arc::from("a test"),
            claim: Duration::from_millis(600),
            wakeup: Arc::default(),
            troubles: Troubles::default(),
        };
        let key = EntryKey::new("art:a");
        let lease = async || match store.lease(&key, MINUTE, Fresh::default()).await.unwrap() {
            Leased::Yes(lease) => *lease,
            other => panic!("no lease: {other:?}"),
        };
        store.commit(&key, &lease().await, "1", MINUTE, &Note::default()).await.unwrap();
        let at = store.now().await.unwrap();
        store.invalidate(&key, at, Removal::Refresh).await.unwrap();
        let failed = Note { outcome: Some(Outcome::Failed), attempted: at, ..Note::default() };
        store.release(&key, &lease().await.token, Some(&failed)).await.unwrap();
        let [_, lock, _] = keys.revalidation();
        redis::cmd("SET").arg(&lock).arg("a test").arg("PX").arg(600).exec_async(&mut redis.clone()).await.unwrap();
        revalidator.invalidate(vec![key], at, When::Bulk(0)).await.unwrap();
        let held: bool = redis::cmd("EXISTS").arg(&lock).query_async(&mut redis.clone()).await.unwrap();
        assert!(held, "another worker begins the same meanwhile");
    }

    #[test]
    fn what_is_suspect_becomes_due_at_a_bounded_rate() {
        let seconds = Duration::from_secs;
        assert_eq!(rest(2_000, seconds(0)), seconds(0));
        assert_eq!(rest(7_000, seconds(4)), seconds(6));
        assert_eq!(rest(7_000, seconds(11)), seconds(0));
        assert_eq!(rest(302_000, seconds(0)), seconds(600));
    }
}
