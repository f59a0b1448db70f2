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

/// The first and the longest interval between attempts.
const TRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// The TTL of the last number, which keeps numbers growing if Redis's clock is set back.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);
/// The shortest TTL that can be renewed in time.
const SHORTEST: Duration = Duration::from_millis(100);

static LOCK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/lock.lua")));
static RENEW_LOCK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/renew_lock.lua")));

/// A lock that one holder in the fleet has at a time.
///
/// **Guarantees**: while Redis keeps its data, the lock has one holder at a time by Redis's clock; only its holder
/// releases it; it expires when its holder dies; and each acquisition has a larger [number](Held::number) than all
/// before.
///
/// **Limits**: a holder that is stopped longer than the TTL (a pause of the process, the machine or the network) learns
/// only afterwards that the lock has another holder, and its late writes may still arrive. Redis may lose a held lock
/// in a failover to a replica or a flush. So where two holders would do harm, pass the number to the protected
/// resource, and let it refuse a smaller number than it has seen. Use the lock alone only to save work.
///
/// ```no_run
/// # async fn example(cache: samovar::cache::Cache) -> Result<(), samovar::cache::Error> {
/// use samovar::cache::Lock;
/// use std::time::Duration;
///
/// let held = Lock::new(&cache, "reindex").ttl(Duration::from_secs(10)).acquire(Duration::from_secs(3)).await?;
/// tokio::select! { () = reindex(held.number()) => held.release().await?, () = held.lost() => println!("another holder
/// may have it now"), }
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
    /// Creates a lock by this name, over the cache's connection. The cache's prefix does not apply.
    pub fn new(cache: &Cache, name: impl Into<String>) -> Self {
        Self { link: Arc::clone(cache.link()), name: name.into(), ttl: Duration::from_secs(10) }
    }

    /// Sets how long the lock remains after its holder dies. Default 10 s, at least 100 ms. While held, it is renewed
    /// every third of that.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl.max(SHORTEST);
        self
    }

    /// Acquires the lock, waiting for at most `wait`; zero tries once.
    ///
    /// # Errors
    /// [`Error::Taken`] if others hold it all the time; [`Error::Unavailable`] without waiting; [`Error::Redis`].
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
        let mut take = LOCK.key(&lock);
        take.key(number).arg(token).arg(millis(self.ttl)).arg(millis(REMEMBERED));
        let answer: Vec<redis::Value> =
            self.link.at(&lock).ask(async |mut redis| take.invoke_async(&mut redis).await).await?;
        let number = answer.first().and_then(|number| redis::from_redis_value_ref::<String>(number).ok());
        Ok(number.and_then(|number| number.parse().ok()))
    }

    /// Renews (`Some`) or releases (`None`) the lock; returns whether the token still held it.
    async fn hold(&self, token: &str, ttl: Option<Duration>) -> Result<bool, Error> {
        let [lock, _] = self.link.names.lock(&self.name);
        let mut hold = RENEW_LOCK.key(&lock);
        hold.arg(token).arg(ttl.map_or(0, millis));
        self.link.insist(async |mut redis| hold.invoke_async(&mut redis).await).await
    }

    fn release_afterwards(&self, token: String) {
        let lock = self.clone();
        afterwards(async move {
            // If this fails, the lock expires.
            let _ = lock.hold(&token, None).await;
        });
    }
}

/// Releases a lock that an attempt may have acquired without receiving the answer.
struct Attempt<'a> {
    lock: &'a Lock,
    token: Option<String>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.lock.release_afterwards(token);
        }
    }
}

/// A held lock, renewed until this is dropped, which releases it.
#[derive(Debug)]
#[must_use = "dropping it releases the lock"]
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
    /// The lock is held until then by the local clock, counted from before the request.
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
        keeper.spawn(renew(lock.clone(), token.clone(), Arc::clone(&state)));
        Self { lock: lock.clone(), token: Some(token), number, state, _keeper: keeper }
    }

    /// Returns the fencing number: larger than that of every earlier holder.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns whether the lock is still held, as far as is known without asking Redis.
    pub fn is_held(&self) -> bool {
        !self.state.lost.is_cancelled() && Instant::now() < self.state.until()
    }

    /// Completes when the lock is lost: another holder has it, or Redis was unreachable for longer than the TTL.
    pub async fn lost(&self) {
        self.state.lost.cancelled().await;
    }

    /// Releases the lock.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was not held any more; [`Error::Unavailable`] or [`Error::Redis`], after which it expires.
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
            self.lock.release_afterwards(token);
        }
    }
}

/// Renews a lock until it is lost.
async fn renew(lock: Lock, token: String, state: Arc<State>) {
    let mut pause = lock.ttl / 3;
    let why = loop {
        let until = state.until();
        tokio::select! {
            () = sleep(pause) => {}
            () = sleep_until(until) => break "it could not be renewed in time".to_owned(),
        }
        let begun = Instant::now();
        let extended = tokio::select! {
            extended = lock.hold(&token, Some(lock.ttl)) => extended,
            () = sleep_until(until) => break "it could not be renewed in time".to_owned(),
        };
        match extended {
            Ok(true) => {
                state.extended(begun + lock.ttl);
                pause = lock.ttl / 3;
            }
            Ok(false) => break "it has another holder, or is gone".to_owned(),
            Err(e) if e.is_unavailable() => pause = lock.ttl / 20,
            Err(e) => break e.to_string(),
        }
    };
    warn!(lock = lock.name, "the lock was lost: {why}");
    state.lost.cancel();
}
