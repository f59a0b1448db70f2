//! The revalidator: after a gap in invalidations, it makes everything due that was fetched before.
//!
//! A gap in what was heard, a restart and a failover are noted in Redis with a time, so that the note survives its
//! writer. One worker at a time handles the gap, for the jobs that it knows. The gap stays until that is done for all
//! jobs of the fleet. Leases that began before it are marked, except where a doubt asks for no request. Values fetched
//! before it become due, the most read first, at a bounded rate; they are served until new ones land. Values that other
//! programs wrote are left alone. If Redis fails, the gap is handled again. A worker with nothing left to do goes on
//! trying to close it, since a job of the fleet may vanish.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use redis::{ErrorKind, RedisResult, Script};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::walk::{Pace, Walk};
use crate::agenda::{Agenda, When};
use crate::entry::Trigger;
use crate::entry::duration;
use crate::entry::{Announced, EntryKey, JobName};
use crate::job::{Job, Jobs};
use crate::popularity::Popularity;
use crate::protocol::Handled;
use crate::protocol::Keys;
use crate::redis::Troubles;
use crate::redis::{Backoff, Connection, RedisTime, Scan, lead};
use crate::store::{Gap, InFlight, Snapshot, Store};
use crate::trigger::invalidation::{Debounced, Invalidator};

/// The most read entries that become due at the same millisecond.
const FINE: usize = 32;
/// The interval at which gaps are looked up without a signal.
const IDLE: Duration = Duration::from_secs(5);

/// The error of a worker that lost its lock.
const LOST_LOCK: &str = "the lock of the revalidator expired, and another worker took it";

static CLOSE_GAP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/close_gap.lua")));

/// Handles gaps. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Revalidator {
    /// The connection.
    pub redis: Connection,
    /// The key names.
    pub keys: Keys,
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// Where entries become due.
    pub agenda: Agenda,
    /// Tells which values Samovar wrote.
    pub store: Store,
    /// Marks leases and values.
    pub invalidator: Invalidator,
    /// Tells which entries are read most.
    pub popularity: Popularity,
    /// This worker's name.
    pub worker: Arc<str>,
    /// The time after which another worker takes over.
    pub claim: Duration,
    /// Notified when there may be a gap.
    pub wakeup: Arc<Notify>,
    /// The failures of single jobs.
    pub troubles: Troubles,
}

impl Revalidator {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new("the revalidator");
        while !stop.is_cancelled() {
            match self.revalidate().await {
                Ok(()) => backoff.well(),
                Err(e) if e.kind() == ErrorKind::Client && e.to_string().contains(LOST_LOCK) => {
                    backoff.well();
                    info!("the lock of the revalidation expired; the worker that took it continues");
                }
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

    /// Handles the gap, if there is one and no other worker handles it.
    ///
    /// # Errors
    /// Redis's; a worker handles the gap again when the lock has expired.
    pub async fn revalidate(&self) -> RedisResult<()> {
        let [gap, lock, done] = self.keys.revalidation();
        let mut redis = self.redis.clone();
        loop {
            // `GETRANGE` instead of `GET`, which the sampler takes for a read by an API.
            let known: String = redis::cmd("GETRANGE").arg(&gap).arg(0).arg(-1).query_async(&mut redis).await?;
            if known.is_empty() {
                return Ok(());
            }
            // Jobs unknown to this worker are left to the workers that know them.
            let handled: HashMap<String, String> = redis::cmd("HGETALL").arg(&done).query_async(&mut redis).await?;
            let jobs = self.jobs.jobs.values().filter(|job| handled.get(&job.identity()) != Some(&known));
            let mut jobs: Vec<&Arc<Job>> = jobs.collect();
            if jobs.is_empty() {
                // The last job that was left may have vanished since.
                if self.close(&known, "", &jobs).await? {
                    return Ok(());
                }
                continue;
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
                // A lock ends later than that only where Redis's clock was set back.
                let claim = duration::millis(self.claim);
                let () = redis::cmd("PEXPIRE").arg(&lock).arg(claim).arg("LT").query_async(&mut redis).await?;
                let holder: RedisResult<String> =
                    redis::cmd("GETRANGE").arg(&lock).arg(0).arg(-1).query_async(&mut redis).await;
                // A round of this worker that failed left its own lock behind.
                if holder.as_deref().ok() != Some(&*self.worker) {
                    return Ok(());
                }
            }
            let mut failed = false;
            if let Some(gap) = NotedGap::read(&known) {
                let begun = Instant::now();
                let all = jobs.len();
                let (leases, values) = self.examine(&mut jobs, gap).await?;
                failed = jobs.len() < all;
                if leases + values > 0 {
                    let seconds = duration::logged(begun.elapsed());
                    warn!(leases, values, seconds, "what was fetched before the gap is being revalidated");
                }
            }
            // The next round handles the jobs that failed.
            if self.close(&known, &self.worker, &jobs).await? || failed {
                return Ok(());
            }
        }
    }

    /// Notes that these jobs are done with the gap that was read as `known`, drops the lock of `holder`, and closes the
    /// gap if it is the present one and all jobs of the fleet are done. Returns `false` if there is another gap.
    async fn close(&self, known: &str, holder: &str, jobs: &[&Arc<Job>]) -> RedisResult<bool> {
        let [gap, lock, done] = self.keys.revalidation();
        let mut call = CLOSE_GAP.key(gap);
        call.key(lock).key(done).key(self.keys.clock()).arg(known).arg(holder).arg(2 * jobs.len());
        for job in jobs {
            call.arg(job.name.as_str()).arg(job.identity());
        }
        call.arg(Vec::from_iter(self.store.fleet().await?));
        call.invoke_async(&mut self.redis.clone()).await
    }

    /// Marks leases and makes the values of these jobs due; returns how many of each. Jobs that fail are removed
    /// from `jobs`.
    async fn examine(&self, jobs: &mut Vec<&Arc<Job>>, gap: NotedGap) -> RedisResult<(usize, usize)> {
        let mut leases = 0;
        let mut scan = Scan::new(self.keys.lease_glob("*"));
        while let Some(found) = scan.next(&mut self.redis.clone()).await? {
            let keys = found.iter().filter_map(|lease| self.keys.entry_of_lease(lease)).map(EntryKey::new);
            let keys: Vec<EntryKey> = keys.collect();
            leases += self.mark_leases(keys, jobs, gap).await?;
            self.renew().await?;
        }
        jobs.sort_by_key(|job| job.may_hold_unasked() || job.waits_for_inputs());
        let mut pace = Pace::begin();
        for job in std::mem::take(jobs) {
            let examined = self.examine_job(job, gap, &mut pace).await;
            if self.troubles.alone(job.name.as_str(), examined)?.is_some() {
                jobs.push(job);
            }
        }
        Ok((leases, pace.values))
    }

    /// Marks leases; returns how many the gap affects.
    ///
    /// If invalidations may only have been missed, the fetch of a value that may be kept without a request is not
    /// marked: a mark would make its worker send a request, and so would one on the value. The entry becomes due again
    /// once for each of `jobs`, and its prompt is compared after the fetch. An evicted fetch writes nothing, and a
    /// fetch that has ended left a value, which is examined later. Workers of the previous build mark all these leases.
    async fn mark_leases(&self, keys: Vec<EntryKey>, jobs: &[&Arc<Job>], gap: NotedGap) -> RedisResult<usize> {
        let fetches = self.store.in_flight(&keys).await?;
        let now = self.store.now().await?;
        let (mut marked, mut compared) = (Vec::new(), BTreeMap::<&JobName, Vec<EntryKey>>::new());
        for (key, fetch) in keys.into_iter().zip(fetches) {
            let is_affected = |fetch: &InFlight| !fetch.is_evicted && (fetch.began <= gap.at || fetch.began > now);
            let Some(fetch) = fetch.filter(is_affected) else { continue };
            let owner = self.jobs.owner(key.as_str()).map(|(job, _)| job).filter(|job| job.may_hold_unasked());
            match owner {
                Some(job) if !fetch.is_load && !gap.lost(fetch.began) => {
                    if jobs.iter().any(|known| known.name == job.name) {
                        compared.entry(&job.name).or_default().push(key);
                    }
                }
                _ => marked.push(key),
            }
        }
        let affected = marked.len() + compared.values().map(Vec::len).sum::<usize>();
        self.invalidate(marked, gap.at, When::BULK_NOW).await?;
        for (job, keys) in compared {
            self.agenda.put(job, &keys, When::NOW, Trigger::Invalidation).await?;
        }
        Ok(affected)
    }

    /// Makes the values of a job due, at a bounded rate.
    async fn examine_job(&self, job: &Arc<Job>, gap: NotedGap, pace: &mut Pace) -> RedisResult<()> {
        // Earlier entries are due a millisecond sooner.
        let mut due = self.store.now().await?;
        let mut walk = Walk::begin(job, &self.popularity, FINE).await?;
        while let Some(mut keys) = walk.next(&self.redis).await? {
            keys.retain(|key| !self.keys.is_own(key.as_str()) && job.key.read(key.as_str()).is_some());
            due = due + Duration::from_millis(1);
            let stale = self.mark_stale(job, keys, gap, due).await?;
            self.pause(pace.add(stale)).await?;
        }
        Ok(())
    }

    /// Makes the entries due that the gap affects, at `due`; returns how many.
    async fn mark_stale(&self, job: &Job, keys: Vec<EntryKey>, gap: NotedGap, due: RedisTime) -> RedisResult<usize> {
        let mut lost = self.affected(keys, gap).await?;
        let count = lost.len();
        let mut missed = Vec::new();
        let mut when = When::Bulk(due);
        if job.may_hold_unasked() {
            missed.extend(lost.extract_if(.., |(_, kind)| *kind == Gap::Missed).map(|(key, _)| key));
            when = When::Due(due);
        }
        self.invalidate(lost.into_iter().map(|(key, _)| key).collect(), gap.at, when).await?;
        self.agenda.put(&job.name, &missed, When::Due(due), Trigger::Invalidation).await?;
        self.renew().await?;
        Ok(count)
    }

    /// Returns the entries with a value of Samovar's that was fetched before the gap, or in the future, and was not
    /// invalidated since; and the kind of gap for each. If invalidations may only have been missed, a validation since
    /// is enough, too.
    async fn affected(&self, keys: Vec<EntryKey>, gap: NotedGap) -> RedisResult<Vec<(EntryKey, Gap)>> {
        let snapshots = self.store.snapshots(&keys).await?;
        let now = self.store.now().await?;
        let affected = |(key, snapshot): (EntryKey, Snapshot)| {
            let meta = snapshot.into_ours().filter(|meta| meta.invalidated <= Some(gap.at))?;
            let (since, kind) =
                if gap.lost(meta.fetched_at) { (meta.fetched_at, Gap::Lost) } else { (meta.validated_at, Gap::Missed) };
            (since <= gap.at || since > now).then_some((key, kind))
        };
        Ok(keys.into_iter().zip(snapshots).filter_map(affected).collect())
    }

    async fn invalidate(&self, keys: Vec<EntryKey>, at: RedisTime, when: When) -> RedisResult<()> {
        let entry = |key: EntryKey| {
            let job = Arc::clone(self.jobs.owner(key.as_str())?.0);
            Some(Debounced { job, key, at, version: Announced::None, when, wait: Duration::ZERO })
        };
        let invalidator = self.invalidator.in_doubt();
        let mut entries: Vec<Debounced> = keys.into_iter().filter_map(entry).collect();
        while !entries.is_empty() {
            entries = invalidator.again(entries, &mut Handled::default()).await?;
            if let Some(wait) = entries.iter().map(|entry| entry.wait).min() {
                self.pause(wait).await?;
            }
        }
        Ok(())
    }

    /// Waits, and renews the lock meanwhile.
    async fn pause(&self, time: Duration) -> RedisResult<()> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(self.claim / 4)).await;
            self.renew().await?;
        }
    }

    /// Renews the lock.
    ///
    /// # Errors
    /// Redis's, or another worker has taken the lock and handles the gap.
    async fn renew(&self) -> RedisResult<()> {
        let [_, lock, _] = self.keys.revalidation();
        match lead(&self.redis, &lock, &self.worker, self.claim).await? {
            true => Ok(()),
            false => Err((ErrorKind::Client, LOST_LOCK).into()),
        }
    }
}

/// A gap as Redis holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NotedGap {
    /// The time up to which everything fetched is affected.
    at: RedisTime,
    kind: Gap,
    /// Invalidations were lost of what was fetched after this, since Redis's clock was set back.
    lost_from: Option<RedisTime>,
}

impl NotedGap {
    /// Tells that invalidations of what was fetched at `fetched_at` were lost, and not only missed perhaps.
    fn lost(&self, fetched_at: RedisTime) -> bool {
        self.kind == Gap::Lost || self.lost_from.is_some_and(|from| fetched_at > from)
    }

    fn read(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let at = words.next()?.parse().ok()?;
        let kind = if words.next()? == "1" { Gap::Missed } else { Gap::Lost };
        Some(Self { at, kind, lost_from: words.next().and_then(|from| from.parse().ok()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Outcome;
    use crate::redis::server::Server;
    use crate::store::{Fresh, LastAttempt, Leased, Removal};

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
        store.commit(&key, &lease().await, "1", MINUTE, &LastAttempt::default()).await.unwrap();
        let at = store.now().await.unwrap();
        store.invalidate(&key, at, Removal::Refresh).await.unwrap();
        let failed = LastAttempt { outcome: Some(Outcome::Failed), attempted: at, ..LastAttempt::default() };
        store.release(&key, &lease().await.token, Some(&failed)).await.unwrap();
        let [_, lock, _] = keys.revalidation();
        redis::cmd("SET").arg(&lock).arg("a test").arg("PX").arg(600).exec_async(&mut redis.clone()).await.unwrap();
        revalidator.invalidate(vec![key], at, When::BULK_NOW).await.unwrap();
        let held: bool = redis::cmd("EXISTS").arg(&lock).query_async(&mut redis.clone()).await.unwrap();
        assert!(held, "another worker begins the same meanwhile");
    }
}
