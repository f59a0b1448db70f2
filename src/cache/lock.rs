//! Locks for the fleet.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use redis::Script;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::link::{Link, afterwards, millis, token};
use super::{Cache, Error};

/// How often a taken lock is tried, at first and at most.
const TRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// How long the last number is remembered: against a clock of Redis that is set back.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);
/// The shortest a lock may hold, so that it can be held on to.
const SHORTEST: Duration = Duration::from_millis(100);

static LOCK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/lock.lua")));
static HOLD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/hold.lua")));

/// A lock that one holder in the fleet has at a time.
///
/// **What it promises**: while Redis keeps its data, no two holders have it at once as far as Redis's clock tells; it is
/// released by its holder only; it ends by itself when its holder dies; and each taking has a larger
/// [number](Held::number) than all before.
///
/// **What it does not**: a holder that was stopped (a pause of the process, of the machine, of the network) longer than the
/// TTL learns only afterwards that somebody else has it, and what it had begun may still arrive. A Redis that fails over to
/// a replica, or is flushed, may forget a lock that is held. So where two at once would do harm, hand the number to what
/// is protected, and let that refuse a smaller number than it has seen; use the lock alone only to save work.
///
/// ```no_run
/// # async fn example(cache: samovar::cache::Cache) -> Result<(), samovar::cache::Error> {
/// use samovar::cache::Lock;
/// use std::time::Duration;
///
/// let held = Lock::new(&cache, "reindex").ttl(Duration::from_secs(10)).acquire(Duration::from_secs(3)).await?;
/// tokio::select! {
///     () = reindex(held.number()) => held.release().await?,
///     () = held.lost() => println!("somebody else may have it now"),
/// }
/// # Ok(())
/// # }
/// # async fn reindex(_: u64) {}
/// ```
#[derive(Clone, Debug)]
pub struct Lock {
    link: Arc<Link>,
    name: String,
    ttl: Duration,
}

impl Lock {
    /// By this name, over the cache's connection; the cache's prefix plays no part.
    pub fn new(cache: &Cache, name: impl Into<String>) -> Self {
        Self { link: Arc::clone(cache.link()), name: name.into(), ttl: Duration::from_secs(10) }
    }

    /// How long it outlives a holder that dies. Default 10 s, at least 100 ms. While it is held it is extended every third
    /// of that.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl.max(SHORTEST);
        self
    }

    /// Takes it, waiting for at most so long; zero tries once.
    ///
    /// # Errors
    /// [`Error::Taken`] where somebody else has it throughout; [`Error::Unavailable`] at once, and what Redis has against it.
    pub async fn acquire(&self, wait: Duration) -> Result<Held, Error> {
        let until = Instant::now() + wait;
        let mut pause = TRY.0;
        let mut attempt = Attempt { lock: self, token: Some(token()) };
        loop {
            let begun = Instant::now();
            if let Some(number) = self.take(attempt.token.as_deref().unwrap_or_default()).await? {
                return Ok(Held::new(self, attempt.token.take().unwrap_or_default(), number, begun + self.ttl));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                attempt.token = None;
                return Err(Error::Taken(self.name.clone()));
            }
            sleep(pause.mul_f64(rand::random_range(0.5..=1.0)).min(left)).await;
            pause = TRY.1.min(pause * 2);
        }
    }

    async fn take(&self, token: &str) -> Result<Option<u64>, Error> {
        let [lock, number] = self.link.names.lock(&self.name);
        let mut take = LOCK.key(lock);
        take.key(number).arg(token).arg(millis(self.ttl)).arg(millis(REMEMBERED));
        let answer: Vec<redis::Value> = self.link.ask(async |mut redis| take.invoke_async(&mut redis).await).await?;
        let number = answer.first().and_then(|number| redis::from_redis_value_ref::<String>(number).ok());
        Ok(number.and_then(|number| number.parse().ok()))
    }

    /// Extends it (`Some`) or lets it go (`None`); says whether it was still the token's.
    async fn hold(&self, token: &str, ttl: Option<Duration>) -> Result<bool, Error> {
        let [lock, _] = self.link.names.lock(&self.name);
        let mut hold = HOLD.key(lock);
        hold.arg(token).arg(ttl.map_or(0, millis));
        self.link.insist(async |mut redis| hold.invoke_async(&mut redis).await).await
    }

    fn let_go_afterwards(&self, token: String) {
        let lock = self.clone();
        afterwards(async move {
            // Else it ends by itself.
            let _ = lock.hold(&token, None).await;
        });
    }
}

/// Lets go what an attempt may have taken whose answer nobody got.
struct Attempt<'a> {
    lock: &'a Lock,
    token: Option<String>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.lock.let_go_afterwards(token);
        }
    }
}

/// A lock that is held, and extended for as long as this lives; dropped, it is let go.
#[derive(Debug)]
#[must_use = "dropping it lets the lock go"]
pub struct Held {
    lock: Lock,
    token: Option<String>,
    number: u64,
    state: Arc<State>,
    /// Ends when this is dropped.
    _keeper: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    /// Until then it is ours by our own clock, which counts from before Redis was asked.
    until: Mutex<Instant>,
    lost: CancellationToken,
}

impl State {
    fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn extended(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

impl Held {
    fn new(lock: &Lock, token: String, number: u64, until: Instant) -> Self {
        let state = Arc::new(State { until: Mutex::new(until), lost: CancellationToken::new() });
        let mut keeper = JoinSet::new();
        keeper.spawn(keep(lock.clone(), token.clone(), Arc::clone(&state)));
        Self { lock: lock.clone(), token: Some(token), number, state, _keeper: keeper }
    }

    /// Larger than that of everybody who had the lock before: for what is protected, to refuse the late.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether it is still held, as far as can be known without asking.
    pub fn is_held(&self) -> bool {
        !self.state.lost.is_cancelled() && Instant::now() < self.state.until()
    }

    /// Ends when the lock is lost: somebody took it away, or Redis was away for longer than the TTL.
    pub async fn lost(&self) {
        self.state.lost.cancelled().await;
    }

    /// Lets it go.
    ///
    /// # Errors
    /// [`Error::Lost`]: it was not held any more. [`Error::Unavailable`], and what Redis has against it: it ends by itself.
    pub async fn release(mut self) -> Result<(), Error> {
        let token = self.token.take().unwrap_or_default();
        match self.lock.hold(&token, None).await? {
            true => Ok(()),
            false => Err(Error::Lost(self.lock.name.clone())),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.lock.let_go_afterwards(token);
        }
    }
}

/// Extends a lock until it is lost.
async fn keep(lock: Lock, token: String, state: Arc<State>) {
    let mut pause = lock.ttl / 3;
    let why = loop {
        let until = state.until();
        tokio::select! {
            () = sleep(pause) => {}
            () = sleep_until(until) => break "it could not be extended in time".to_owned(),
        }
        let begun = Instant::now();
        let extended = tokio::select! {
            extended = lock.hold(&token, Some(lock.ttl)) => extended,
            () = sleep_until(until) => break "it could not be extended in time".to_owned(),
        };
        match extended {
            Ok(true) => {
                state.extended(begun + lock.ttl);
                pause = lock.ttl / 3;
            }
            Ok(false) => break "it is somebody else's, or gone".to_owned(),
            Err(e) if e.is_unavailable() => pause = lock.ttl / 20,
            Err(e) => break e.to_string(),
        }
    };
    warn!(lock = lock.name, "a lock was lost: {why}");
    state.lost.cancel();
}
