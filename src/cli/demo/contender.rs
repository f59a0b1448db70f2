//! A contender: a Redis, a museum, and an API that reads the cache and fetches on a miss.
//!
//! The API is the same for all three: `GET`; on a miss it asks the museum and does `SET … EX ttl`. Its requests are
//! those of the jobs, so that requests and values are the same for all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use redis::RedisResult;
use serde_json::{Map, Value};
use tracing::debug;

use super::catalogue::{Catalogue, Entry, Kind, Shelf};
use super::scale;
use crate::cli::museum::Museum;
use crate::entry::EntryKey;
use crate::entry::duration;
use crate::job::{Job, Jobs, Params};
use crate::redis::{Connection, RedisUrl, ServerInfo};
use crate::source::{Answer, Ask, Sources};

/// The timeout of the API's cache.
const PATIENCE: Duration = Duration::from_secs(1);
/// Latencies are kept to three digits, in microseconds, up to a minute.
const DIGITS: u8 = 3;
const LONGEST: u64 = 60_000_000;

/// One way of keeping a cache.
pub(super) struct Contender {
    /// Its name.
    pub(super) name: &'static str,
    /// The source of its values.
    pub(super) museum: Museum,
    /// The sources of the jobs.
    pub(super) jobs: Jobs,
    /// The open clients of the sources.
    pub(super) sources: Sources,
    /// Its cache.
    pub(super) redis: Connection,
    /// The results of its readers.
    pub(super) tally: Tally,
    /// `true` while its killed Redis does not answer yet.
    pub(super) away: AtomicBool,
    /// The artworks with their last published versions: later reads should not be older.
    published: Vec<(String, AtomicU64)>,
    /// The version of each picture's URL, which is all that its entry contains.
    pictures: RwLock<HashMap<String, u64>>,
}

/// The results of readers during the measurement.
pub(super) struct Tally {
    pub(super) reads: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    /// Misses that the museum did not answer.
    pub(super) failed: AtomicU64,
    /// Reads while Redis was unreachable: neither hits nor misses.
    pub(super) away: AtomicU64,
    /// Stale reads: older than the version published before the read.
    pub(super) stale: AtomicU64,
    /// Stale reads because of the museum's lag: it had given the old content to a request after the edit.
    pub(super) stale_by_lag: AtomicU64,
    /// Stories of an older version; edits do not publish them.
    pub(super) stale_stories: AtomicU64,
    /// Stories read.
    pub(super) stories: AtomicU64,
    /// Latencies in microseconds.
    pub(super) latency: Mutex<Histogram<u64>>,
}

/// The result of one read.
enum Met {
    Hit(String),
    Miss(String),
    Failed,
    Away,
}

impl Contender {
    /// Creates a contender with a cache at `redis` and values of `museum`.
    pub(super) async fn new(
        name: &'static str,
        museum: Museum,
        redis: &RedisUrl,
        files: &[(String, String)],
        catalogue: &Catalogue,
    ) -> anyhow::Result<Self> {
        let jobs = scale::read(files, &museum.url())?;
        let pictures = catalogue.artworks.iter().filter_map(|work| Some((museum.image_url(work, 1)?, 1))).collect();
        Ok(Self {
            name,
            sources: Sources::new(&jobs)?,
            jobs,
            redis: redis.manager(PATIENCE).await?,
            tally: Tally::new()?,
            away: AtomicBool::new(false),
            published: catalogue.artworks.iter().map(|work| (work.clone(), AtomicU64::new(1))).collect(),
            pictures: RwLock::new(pictures),
            museum,
        })
    }

    /// Performs one read; it is counted if `counts`.
    pub(super) async fn read(&self, shelf: &Shelf, entry: &Entry, counts: bool) {
        let expected = entry.artwork.and_then(|artwork| self.published.get(artwork));
        let expected = expected.map(|(name, version)| (name.as_str(), version.load(Relaxed)));
        let begun = Instant::now();
        let met = if self.away.load(Relaxed) { Met::Away } else { self.get(&shelf.job.name, entry).await };
        let took = begun.elapsed();
        if !counts {
            return;
        }
        let tally = &self.tally;
        tally.reads.fetch_add(1, Relaxed);
        let text = match met {
            Met::Hit(text) => {
                tally.hits.fetch_add(1, Relaxed);
                text
            }
            Met::Miss(text) => {
                debug!(name = self.name, key = %entry.key, ms = took.as_millis(), "missed");
                tally.misses.fetch_add(1, Relaxed);
                text
            }
            Met::Failed => {
                tally.failed.fetch_add(1, Relaxed);
                return;
            }
            Met::Away => {
                tally.away.fetch_add(1, Relaxed);
                return;
            }
        };
        let micros = u64::try_from(took.as_micros()).unwrap_or(LONGEST);
        tally.latency.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(micros);
        // A biography is of no artwork.
        let Some((artwork, expected)) = expected else { return };
        let is_stale = self.version(shelf.kind, &text).is_none_or(|version| version < expected);
        if let Some(page) = shelf.kind.page() {
            let by_lag = is_stale && self.museum.lagged(page, artwork, expected);
            tally.stale.fetch_add(u64::from(is_stale), Relaxed);
            tally.stale_by_lag.fetch_add(u64::from(by_lag), Relaxed);
        } else {
            tally.stories.fetch_add(1, Relaxed);
            tally.stale_stories.fetch_add(u64::from(is_stale), Relaxed);
        }
    }

    async fn get(&self, name: &crate::entry::JobName, entry: &Entry) -> Met {
        let Some(job) = self.jobs.jobs.get(name) else { return Met::Failed };
        match self.value(&entry.key).await {
            Ok(Some(text)) => Met::Hit(text),
            Ok(None) => match self.fill(job, &entry.key, &entry.params).await {
                Ok(Some(text)) => Met::Miss(text),
                Ok(None) => Met::Failed,
                Err(_) => Met::Away,
            },
            Err(_) => Met::Away,
        }
    }

    /// Reads the cached value.
    pub(super) async fn value(&self, key: &EntryKey) -> RedisResult<Option<String>> {
        redis::cmd("GET").arg(key.as_str()).query_async(&mut self.redis.clone()).await
    }

    /// Fetches a value and writes it with `SET key value EX ttl`. `None` without a usable answer.
    pub(super) async fn fill(&self, job: &Arc<Job>, key: &EntryKey, params: &Params) -> RedisResult<Option<String>> {
        let mut inputs = Map::new();
        for (name, of) in &job.inputs {
            let Some(input) = of.key.write(params) else { return Ok(None) };
            let Some((owner, params)) = self.jobs.owner(input.as_str()) else { return Ok(None) };
            let text = match self.value(&input).await? {
                Some(text) => text,
                None => match Box::pin(self.fill(owner, &input, &params)).await? {
                    Some(text) => text,
                    None => return Ok(None),
                },
            };
            let Ok(value) = serde_json::from_str(&text) else { return Ok(None) };
            inputs.insert(name.clone(), value);
        }
        let timeout = job.sources.first().and_then(|source| self.jobs.upstreams.get(source.upstream()?));
        let deadline = Instant::now() + timeout.map_or(PATIENCE, |upstream| upstream.timeout);
        let ask = Ask { job, source: 0, key, params, inputs: &inputs, known: None, deadline };
        let Ok(Answer::Value(fetched)) = self.sources.fetch(&ask).await else { return Ok(None) };
        let ttl = duration::millis(job.ttl);
        let () = redis::cmd("SET")
            .arg(key.as_str())
            .arg(&fetched.json)
            .arg("PX")
            .arg(ttl)
            .query_async(&mut self.redis.clone())
            .await?;
        Ok(Some(fetched.json))
    }

    /// Edits an artwork in this contender's museum and returns its new version.
    pub(super) fn edit(&self, artwork: &str) -> Option<u64> {
        let version = self.museum.edit(artwork)?;
        let picture = self.museum.image_url(artwork, version)?;
        self.pictures.write().unwrap_or_else(PoisonError::into_inner).insert(picture, version);
        Some(version)
    }

    /// Sets the version that readers expect from now on.
    pub(super) fn expect(&self, artwork: usize, version: u64) {
        if let Some((_, published)) = self.published.get(artwork) {
            published.fetch_max(version, Relaxed);
        }
    }

    /// Returns the version of a value.
    pub(super) fn version(&self, kind: Kind, text: &str) -> Option<u64> {
        let value: Value = serde_json::from_str(text).ok()?;
        match kind {
            Kind::Info => value["version"].as_u64(),
            Kind::Similar => value[0]["version"].as_u64(),
            Kind::Image => {
                let pictures = self.pictures.read().unwrap_or_else(PoisonError::into_inner);
                pictures.get(value["url"].as_str()?).copied()
            }
            Kind::Story => {
                // The museum's model ends its text with the version.
                let text = value.as_str()?.trim_end_matches(|c: char| !c.is_ascii_digit());
                let digits = text.rsplit(|c: char| !c.is_ascii_digit()).next()?;
                digits.parse().ok()
            }
            Kind::Biography => None,
        }
    }

    /// Waits until its Redis answers again, all masters of it.
    pub(super) async fn back(&self) {
        while redis::cmd("DBSIZE").query_async::<u64>(&mut self.redis.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.away.store(false, Relaxed);
    }

    /// Returns the memory of its Redis, in bytes.
    pub(super) async fn memory(&self) -> RedisResult<Option<u64>> {
        let info: String = redis::cmd("INFO").arg("memory").query_async(&mut self.redis.clone()).await?;
        Ok(ServerInfo::parse(&info).used_memory())
    }
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        let [reads, hits, misses, failed, away, stale, stale_by_lag, stale_stories, stories] =
            [(); 9].map(|()| AtomicU64::new(0));
        let latency = Mutex::new(Histogram::new_with_max(LONGEST, DIGITS)?);
        Ok(Self { reads, hits, misses, failed, away, stale, stale_by_lag, stale_stories, stories, latency })
    }

    /// Returns the share of hits among answered reads, from 0 to 1; `None` before the first.
    pub(super) fn hit_rate(&self) -> Option<f64> {
        let (hits, others) = (self.hits.load(Relaxed), self.misses.load(Relaxed) + self.failed.load(Relaxed));
        (hits + others > 0).then(|| hits as f64 / (hits + others) as f64)
    }

    /// Returns the latency percentile of this share.
    pub(super) fn latency(&self, share: f64) -> Duration {
        let latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::from_micros(latency.value_at_quantile(share))
    }
}
