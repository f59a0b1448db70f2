//! The bundled museum: an upstream to try Samovar on, slow and at times unwell like a real one.
//!
//! It shows artworks and artists as JSON, tells stories over an OpenAI-compatible endpoint, counts what it is asked and what
//! that would have cost, lets artworks be edited (each edit is a new `version`, seen in all that is said about the work), and
//! can be made to fail. Everything is in memory, and the same at each start. It is for demonstrations and tests; it asks
//! nobody who they are.
//!
//! | request | answer |
//! |---|---|
//! | `GET /artworks/{name}` | `{"data": {"title", "artist", "year", …, "description", "version"}}` |
//! | `GET /artworks/{name}/image` | `{"data": {"title", "image_id", "url", …, "version"}}` |
//! | `GET /artworks/{name}/similar` | `{"data": [{"title", "artist", …, "version"}]}`; the version is that of the work asked for |
//! | `POST` or `PUT /artworks/{name}` | edits it: `{"name", "version"}` |
//! | `GET /artists/{name}` | `{"data": {"name", "content_since", …, "works", "version"}}` |
//! | `GET /popular`, `GET /artists/popular` | `{"names": […]}`, the most popular first; `?limit=` for fewer |
//! | `POST /v1/chat/completions` | a completion whose text depends on the prompt |
//! | `GET /stats` | calls by endpoint, AI tokens, dollars |
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

pub use ledger::{DOLLARS_PER_MILLION_IN, DOLLARS_PER_MILLION_OUT, PRICES_FROM};

/// How long `stop` waits for requests that are being answered.
const DRAIN: Duration = Duration::from_secs(2);
/// How much slower the museum is in mode `slow`.
const SLOWER: f64 = 10.0;

/// How the museum behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long most answers take (from, to): log-normal, nine of ten between the two, none outside.
    pub latency: (Duration, Duration),
    /// The same for completions.
    pub ai_latency: (Duration, Duration),
    /// Multiplies all latencies; 0 answers at once.
    pub latency_factor: f64,
    /// The share of answers that are a 500, from 0 to 1.
    pub failures: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            latency: (Duration::from_millis(200), Duration::from_secs(2)),
            ai_latency: (Duration::from_secs(1), Duration::from_secs(4)),
            latency_factor: 1.0,
            failures: 0.0,
        }
    }
}

impl Options {
    /// Answers at once and never fails.
    pub fn instant() -> Self {
        Self { latency_factor: 0.0, ..Self::default() }
    }
}

/// A running museum; dropped, it lets nobody in any more.
#[derive(Debug)]
pub struct Museum {
    address: SocketAddr,
    hall: Arc<Hall>,
    closing: CancellationToken,
    server: JoinSet<std::io::Result<()>>,
}

impl Museum {
    /// Opens a museum; port 0 for any that is free.
    ///
    /// # Errors
    /// The address cannot be listened on, or an option makes no sense.
    pub async fn start(address: SocketAddr, options: Options) -> anyhow::Result<Self> {
        let hall = Arc::new(Hall::new(Collection::new(), options)?);
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a base URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Edits an artwork: its description changes, its version grows by one. The new version; `None` for an unknown name.
    pub fn edit(&self, name: &str) -> Option<u64> {
        self.hall.collection.edit(name)
    }

    /// An artwork's version now, 1 at the start; `None` for an unknown name.
    pub fn version(&self, name: &str) -> Option<u64> {
        self.hall.collection.version(name)
    }

    /// Where an artwork's picture is in one of its versions, as `GET /artworks/{name}/image` says; `None` for an unknown name.
    pub fn image_url(&self, name: &str, version: u64) -> Option<String> {
        let work = self.hall.collection.artwork(name)?;
        Collection::image(work, version)["url"].as_str().map(str::to_owned)
    }

    /// The artworks' names, the most popular first.
    pub fn names(&self) -> Vec<String> {
        self.hall.collection.artworks.iter().map(|work| work.title.to_owned()).collect()
    }

    /// What `GET /stats` answers: calls by endpoint, AI tokens, dollars.
    pub fn stats(&self) -> serde_json::Value {
        self.hall.ledger.to_json()
    }

    /// Answers everything but the controls with 503 from now on, or no longer.
    pub fn set_down(&self, down: bool) {
        self.hall.set_mode(if down { answers::Mode::Down } else { answers::Mode::Ok });
    }

    /// Closes: what is being answered has two seconds to end.
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

/// Keeps a museum open until `shutdown`.
///
/// # Errors
/// As [`Museum::start`], and when the server fails.
pub async fn serve(address: SocketAddr, options: Options, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut museum = Museum::start(address, options).await?;
    tracing::info!(address = %museum.address(), artworks = museum.names().len(), "the museum is open");
    tokio::select! {
        () = shutdown => museum.stop().await,
        ended = museum.server.join_next() => match ended {
            Some(ended) => Ok(ended??),
            None => Ok(()),
        },
    }
}

/// Draws latencies: log-normal, as those of real services are, cut off at both ends.
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
            "latencies must go from less to more, not below 0"
        );
        if from <= 0.0 || to <= 0.0 {
            return Ok(Self { range: (from, to), curve: None });
        }
        // 1.645 standard deviations to both sides hold nine of ten.
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
