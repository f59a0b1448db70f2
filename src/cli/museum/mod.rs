//! The bundled museum: an upstream for trials of Samovar, slow and sometimes failing like a real one.
//!
//! It serves artworks and artists as JSON, generates stories over an OpenAI-compatible endpoint, and counts requests
//! and their cost. Artworks can be edited: each edit is a new `version`, shown in every answer about the work, at once
//! or after a lag. It can be made to fail. Everything is in memory, and the same at each start. It is for
//! demonstrations and tests, and has no authentication.
//!
//! | request | answer |
//! |---|---|
//! | `GET /artworks/{name}` | `{"data": {"title", "artist", "year", …, "description", "version"}}` |
//! | `GET /artworks?name=…&name=…` | `{"data": [{"title", …}, …]}`: those of these works that there are |
//! | `GET /artworks/{name}/image` | `{"data": {"title", "image_id", "url", …, "version"}}` |
//! | `GET /artworks/{name}/similar` | `{"data": [{"title", "artist", …, "version"}]}`; the requested work's version |
//! | `POST` or `PUT /artworks/{name}` | edits it: `{"name", "version"}` |
//! | `GET /artists/{name}` | `{"data": {"name", "born", …, "works", "version"}}` |
//! | `GET /popular`, `GET /artists/popular` | `{"names": […]}`, the most popular first; `?limit=` for fewer |
//! | `POST /v1/chat/completions` | a completion whose text depends on the prompt |
//! | `GET /stats` | calls by endpoint, AI tokens, dollars, edits, answers from before an edit |
//! | `GET /versions` | `{"Mona Lisa": 1, …}` |
//! | `POST /faults` | `{"mode": "down"}`: 503; `"slow"`: ten times slower; `"ok"` |

mod answers;
mod collection;
pub(super) mod command;
mod ledger;
mod story;

use answers::Hall;
use anyhow::Context as _;
use collection::Collection;
use rand_distr::{Distribution as _, LogNormal};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(super) use ledger::Endpoint;
pub use ledger::{DOLLARS_PER_MILLION_IN, DOLLARS_PER_MILLION_OUT, PRICES_FROM};

/// The time that `stop` waits for pending requests.
const DRAIN: Duration = Duration::from_secs(2);
/// The factor of latencies in mode `slow`.
const SLOWER: f64 = 10.0;

/// The museum's options.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The latency of answers (from, to): log-normal, with nine of ten between the two before both ends are cut off.
    pub latency: (Duration, Duration),
    /// The latency of completions.
    pub ai_latency: (Duration, Duration),
    /// The factor of all latencies; 0 answers at once.
    pub latency_factor: f64,
    /// The share of answers that are a 500, from 0 to 1.
    pub failures: f64,
    /// The longest lag of pages behind edits, as of a read replica. The lag of an edit is a part of it that depends on
    /// the work and its version.
    pub lag: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            latency: (Duration::from_millis(200), Duration::from_secs(2)),
            ai_latency: (Duration::from_secs(1), Duration::from_secs(4)),
            latency_factor: 1.0,
            failures: 0.0,
            lag: Duration::ZERO,
        }
    }
}

impl Options {
    /// Returns options without latency and failures.
    pub fn instant() -> Self {
        Self { latency_factor: 0.0, ..Self::default() }
    }
}

/// A running museum. Dropping it stops it.
#[derive(Debug)]
pub struct Museum {
    address: SocketAddr,
    hall: Arc<Hall>,
    closing: CancellationToken,
    server: JoinSet<std::io::Result<()>>,
}

impl Museum {
    /// Starts a museum; port 0 means any free port.
    ///
    /// # Errors
    /// The address cannot be bound, or an option is invalid.
    pub async fn start(address: SocketAddr, options: Options) -> anyhow::Result<Self> {
        let hall = Arc::new(Hall::new(Collection::new(options.lag), options)?);
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("the museum cannot listen on {address}"))?;
        let address = listener.local_addr()?;
        let closing = CancellationToken::new();
        let server = axum::serve(listener, answers::routes(hall.clone()))
            .with_graceful_shutdown(closing.clone().cancelled_owned());
        let mut tasks = JoinSet::new();
        tasks.spawn(server.into_future());
        Ok(Self { address, hall, closing, server: tasks })
    }

    /// Returns its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its base URL, without a trailing slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Edits an artwork: its description changes, its version increases by one. Pages show it after the lag. Returns
    /// the new version; `None` for an unknown name.
    pub fn edit(&self, name: &str) -> Option<u64> {
        self.hall.collection.edit(name)
    }

    /// Returns an artwork's version, 1 at the start; `None` for an unknown name.
    pub fn version(&self, name: &str) -> Option<u64> {
        self.hall.collection.version(name)
    }

    /// Returns the picture's URL in one version of an artwork, as in `GET /artworks/{name}/image`; `None` for an
    /// unknown name.
    pub fn image_url(&self, name: &str, version: u64) -> Option<String> {
        let work = self.hall.collection.artwork(name)?;
        Collection::image(work, version)["url"].as_str().map(str::to_owned)
    }

    /// Returns `true` if the page was requested after the edit that made this version, and its answer was older because
    /// of the lag.
    pub(super) fn lagged(&self, page: Endpoint, name: &str, version: u64) -> bool {
        let work = self.hall.collection.artwork(name);
        work.is_some_and(|work| self.hall.ledger.lacked(page, work.title, version))
    }

    /// Returns the artworks' names, the most popular first.
    pub fn names(&self) -> Vec<String> {
        self.hall.collection.artworks.iter().map(|work| work.title.to_owned()).collect()
    }

    /// Returns the answer of `GET /stats`.
    pub fn stats(&self) -> serde_json::Value {
        self.hall.ledger.to_json()
    }

    /// Starts or ends answering everything but the controls with 503.
    pub fn set_down(&self, down: bool) {
        self.hall.set_mode(if down { answers::Mode::Down } else { answers::Mode::Ok });
    }

    /// Runs until `shutdown`, then stops.
    ///
    /// # Errors
    /// The server fails.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        tokio::select! {
            () = shutdown => self.stop().await,
            ended = self.server.join_next() => match ended {
                Some(ended) => Ok(ended??),
                None => Ok(()),
            },
        }
    }

    /// Stops; pending requests have two seconds to finish.
    ///
    /// # Errors
    /// The server had failed.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.closing.cancel();
        match tokio::time::timeout(DRAIN, self.server.join_next()).await {
            Ok(Some(ended)) => Ok(ended??),
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

/// Draws log-normal latencies, cut off at both ends.
#[derive(Clone, Copy, Debug)]
struct Latency {
    range: (f64, f64),
    curve: Option<LogNormal<f64>>,
}

impl Latency {
    fn new(range: (Duration, Duration), factor: f64) -> anyhow::Result<Self> {
        let (from, to) = (range.0.as_secs_f64() * factor, range.1.as_secs_f64() * factor);
        anyhow::ensure!(
            factor.is_finite() && from >= 0.0 && to >= from,
            "latencies must not be negative, and the first must not exceed the second"
        );
        if from <= 0.0 || to <= 0.0 {
            return Ok(Self { range: (from, to), curve: None });
        }
        // Nine of ten are within 1.645 standard deviations.
        let (middle, spread) = ((from.ln() + to.ln()) / 2.0, (to.ln() - from.ln()) / 2.0 / 1.645);
        Ok(Self { range: (from, to), curve: Some(LogNormal::new(middle, spread)?) })
    }

    fn draw(&self) -> Duration {
        let (from, to) = self.range;
        self.curve
            .map_or(Duration::ZERO, |curve| Duration::from_secs_f64(curve.sample(&mut rand::rng()).clamp(from, to)))
    }
}

#[cfg(test)]
mod tests;
