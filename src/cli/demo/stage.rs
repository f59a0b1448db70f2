//! The stage: everything that the demo runs. Dropping it stops all.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use redis::RedisResult;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::catalogue::Catalogue;
use super::contender::Contender;
use super::editors::{self, Desk, Freshness};
use super::fleet::Fleet;
use super::hundred_lines;
use super::minder::Minder;
use super::readers::{self, Window};
use super::scale::{self, Scale};
use super::site::{Site, Topology};
use crate::cli::museum::{Museum, Options};
use crate::protocol::Keys;
use crate::redis::{Connection, RedisUrl};

/// The contenders, in this order everywhere.
pub(super) const NAMES: [&str; 3] = ["Samovar", "hundred lines", "cache-aside"];
/// Reads a second for each contender, as many as two cores can serve.
pub(super) const READS: f64 = 300.0;
/// Edits a second.
pub(super) const EDITS: f64 = 1.5;
/// The timeout of Redis for status queries on a busy machine.
const EYE: Duration = Duration::from_secs(10);
/// The delay before a window starts or ends, so that no reader is late for it.
const AHEAD: Duration = Duration::from_millis(200);

/// Everything that runs. Fields end in this order.
pub(super) struct Stage {
    loops: JoinSet<anyhow::Result<()>>,
    /// Loops that end with the window.
    crowd: JoinSet<anyhow::Result<()>>,
    /// Samovar's workers.
    pub(super) fleet: Fleet,
    sites: Vec<Site>,
    /// The servers of each site.
    pub(super) topology: Topology,
    /// In the order of [`NAMES`].
    pub(super) contenders: Vec<Arc<Contender>>,
    /// The results of the edits, in the same order.
    pub(super) freshness: Vec<Arc<Freshness>>,
    /// The catalogue.
    pub(super) catalogue: Arc<Catalogue>,
    /// The number of edits.
    pub(super) edits: Arc<AtomicU64>,
    /// The scale of time.
    pub(super) scale: Scale,
    /// When readers started.
    pub(super) begin: Instant,
    /// A connection to Samovar's Redis for status queries, with a longer timeout than the API's.
    eye: Connection,
    keys: Keys,
    window: Arc<Window>,
    closing: Arc<AtomicBool>,
    prefetched: Vec<Arc<AtomicBool>>,
    seed: u64,
    _minder: Minder,
    folder: TempDir,
}

impl Stage {
    /// Starts servers, museums, workers and readers.
    pub(super) async fn set(
        program: &'static str,
        topology: Topology,
        scale: Scale,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("samovar-demo-").tempdir().context("no temporary folder")?;
        let minder = Minder::start(folder.path())?;
        let files = scale.files()?;
        let jobs = folder.path().join("jobs");
        std::fs::create_dir(&jobs)?;
        for (name, text) in &files {
            std::fs::write(jobs.join(name), text)?;
        }
        let catalogue = {
            let museum = Museum::start(([127, 0, 0, 1], 0).into(), Options::instant()).await?;
            Arc::new(Catalogue::read(&scale::read(&files, &museum.url())?, &museum).await?)
        };
        let (mut sites, mut contenders) = (Vec::new(), Vec::new());
        for name in NAMES {
            let place = folder.path().join(name.replace(' ', "-"));
            std::fs::create_dir(&place)?;
            let site = Site::start(program, topology, &place, &minder).await?;
            let options = Options { latency_factor: scale.latency, lag: scale.lag(), ..Options::default() };
            let museum = Museum::start(([127, 0, 0, 1], 0).into(), options).await?;
            contenders.push(Arc::new(Contender::new(name, museum, &site.url()?, &files, &catalogue).await?));
            sites.push(site);
        }
        let redis = sites.first().context("no server")?.url()?;
        let museum = contenders.first().map(|contender| contender.museum.url()).unwrap_or_default();
        let mut stage = Self {
            loops: JoinSet::new(),
            crowd: JoinSet::new(),
            fleet: Fleet::new(&jobs, folder.path(), redis.to_string(), museum, &minder),
            sites,
            topology,
            freshness: contenders.iter().map(|_| Arc::default()).collect(),
            contenders,
            catalogue,
            edits: Arc::default(),
            scale,
            begin: Instant::now(),
            eye: redis.manager(EYE).await?,
            keys: Keys::of("samovar"),
            window: Arc::default(),
            closing: Arc::default(),
            prefetched: Vec::new(),
            seed,
            _minder: minder,
            folder,
        };
        stage.open()?;
        Ok(stage)
    }

    fn open(&mut self) -> anyhow::Result<()> {
        self.begin = Instant::now();
        for number in [1, 2] {
            self.fleet.start(number)?;
        }
        let hundred = self.contenders[1].clone();
        for place in 0..self.catalogue.shelves.len() {
            let (contender, catalogue, once) =
                (hundred.clone(), self.catalogue.clone(), Arc::new(AtomicBool::new(false)));
            self.prefetched.push(once.clone());
            self.loops.spawn(async move {
                if let Some(shelf) = catalogue.shelves.get(place) {
                    hundred_lines::prefetch(&contender, shelf, &once).await;
                }
                Ok(())
            });
        }
        let channel = self.keys.invalidate_channel();
        self.loops.spawn(async move {
            hundred_lines::delete_on_publish(&hundred, &channel).await;
            Ok(())
        });
        for contender in &self.contenders {
            let trace = (READS, self.seed);
            let (contender, catalogue) = (contender.clone(), self.catalogue.clone());
            self.crowd.spawn(readers::run(contender, catalogue, trace, self.begin, self.window.clone()));
        }
        Ok(())
    }

    /// Starts counting reads, and starts the editors.
    pub(super) fn count(&mut self) {
        let _ = self.window.from.set(self.begin.elapsed() + AHEAD);
        let desks = self.contenders.iter().zip(&self.freshness).map(|(contender, freshness)| Desk {
            contender: contender.clone(),
            channel: self.keys.invalidate_channel(),
            heard: contender.name != "cache-aside",
            freshness: freshness.clone(),
        });
        let trace = (EDITS, self.seed);
        let (catalogue, edits, closing) = (self.catalogue.clone(), self.edits.clone(), self.closing.clone());
        self.crowd.spawn(editors::run(desks.collect(), catalogue, trace, edits, closing));
    }

    /// Stops readers and editors, waits for them, and returns how long reads were counted.
    pub(super) async fn close(&mut self) -> anyhow::Result<Duration> {
        let to = self.begin.elapsed() + AHEAD;
        let _ = self.window.to.set(to);
        self.closing.store(true, Relaxed);
        while let Some(ended) = self.crowd.join_next().await {
            ended??;
        }
        Ok(to.saturating_sub(self.window.from.get().copied().unwrap_or(to)))
    }

    /// Checks that everything runs.
    ///
    /// # Errors
    /// Something ended; the error tells why.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        self.fleet.check()?;
        if let Some(ended) = self.loops.try_join_next().or_else(|| self.crowd.try_join_next()) {
            ended??;
            anyhow::bail!("a part of the demo ended unexpectedly");
        }
        Ok(())
    }

    /// Returns the number of Samovar's warm entries.
    pub(super) async fn warm(&self) -> RedisResult<usize> {
        let mut command = redis::cmd("EXISTS");
        for entry in self.catalogue.shelves.iter().flat_map(|shelf| &shelf.entries) {
            command.arg(self.keys.meta(&entry.key));
        }
        command.query_async(&mut self.eye.clone()).await
    }

    /// Returns how many entries Samovar's workers have fetched, or found unchanged, since the start.
    pub(super) async fn refreshed(&self) -> RedisResult<u64> {
        let mut pipe = redis::pipe();
        for shelf in &self.catalogue.shelves {
            pipe.cmd("HMGET").arg(self.keys.stats(&shelf.job.name)).arg("warmed").arg("unchanged");
        }
        let counts: Vec<Vec<Option<u64>>> = pipe.query_async(&mut self.eye.clone()).await?;
        Ok(counts.into_iter().flatten().flatten().sum())
    }

    /// Returns `true` once the hundred lines have fetched everything.
    pub(super) fn prefetched(&self) -> bool {
        self.prefetched.iter().all(|once| once.load(Relaxed))
    }

    /// Kills a Redis server of each contender that clients use, and restarts or replaces it; returns the time until
    /// each had an answer.
    pub(super) async fn restart(&mut self) -> anyhow::Result<Vec<Duration>> {
        let begun = Instant::now();
        for (site, contender) in self.sites.iter_mut().zip(&self.contenders) {
            contender.away.store(site.is_away_as_a_whole(), Relaxed);
            site.kill9();
        }
        let back = self.sites.iter_mut().zip(&self.contenders).map(async |(site, contender)| {
            site.recover().await?;
            contender.back().await;
            let back = begun.elapsed();
            site.replenish().await?;
            anyhow::Ok(back)
        });
        futures_util::future::try_join_all(back).await
    }

    /// Returns the URL of Samovar's Redis, and the options of `redis-cli` that lead there.
    pub(super) fn redis(&self) -> Option<(RedisUrl, String)> {
        let site = self.sites.first()?;
        Some((site.url().ok()?, site.redis_cli()))
    }

    /// Returns the URL of the console of a worker.
    pub(super) fn console(&self) -> Option<String> {
        self.fleet.console()
    }

    /// Returns the folder of scaled jobs.
    pub(super) fn jobs(&self) -> std::path::PathBuf {
        self.folder().join("jobs")
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }
}
