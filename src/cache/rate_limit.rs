//! Rate limits for the whole fleet.
//!
//! Authority: a log of admissions in Redis for each limited id, changed only by `lua/admit_within.lua`, in Redis's
//! time. Within any period of that length, at most the limit is admitted, and of a burst exactly the limit.
//!
//! Without Redis each process applies the limit in its own memory (GCRA, by `governor`): M processes then admit up to M
//! times the limit.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter as Governor};
use redis::Script;

use super::link::Link;
use super::session::RATE_LIMIT;
use super::{Cache, Error, Ttl};

use crate::entry::duration;

/// The largest limit. The log takes about ten bytes for each admitted request of the period.
const MOST: u32 = 100_000;
/// The longest period.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3_600);
/// Local decisions between two cleanups of expired state.
const CLEAN: u32 = 1_000;

static ADMIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/admit_within.lua")));

/// A number of requests in a period, parsed from text such as `10/minute`, `100 per second` or `5 per 2 hours`.
///
/// ```
/// use samovar::cache::Limit;
/// use std::time::Duration;
///
/// let limit: Limit = "5 per 2 hours".parse()?;
/// assert_eq!((limit.requests(), limit.period()), (5, Duration::from_secs(7_200)));
/// # Ok::<(), samovar::cache::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    requests: NonZeroU32,
    period: Duration,
}

impl Limit {
    /// Creates a limit of 1 to 100,000 requests in a period of 1 ms to 366 days.
    ///
    /// # Errors
    /// [`Error::Invalid`] outside these ranges.
    pub fn new(requests: u32, period: Duration) -> Result<Self, Error> {
        let Some(requests) = NonZeroU32::new(requests).filter(|requests| requests.get() <= MOST) else {
            let remedy = "for more, give a shorter period";
            return Err(Error::Invalid(format!("a limit of {requests} requests: write 1 to {MOST}; {remedy}")));
        };
        if period < Duration::from_millis(1) || period > LONGEST {
            return Err(Error::Invalid(format!("a limit within {}: write 1ms to 366d", duration::text(period))));
        }
        Ok(Self { requests, period })
    }

    /// Returns the number of requests.
    pub fn requests(&self) -> u32 {
        self.requests.get()
    }

    /// Returns the period.
    pub fn period(&self) -> Duration {
        self.period
    }
}

impl FromStr for Limit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fault = |why: &str| {
            let form = "write it as `10/minute`, `100 per second` or `5 per 2 hours` (second, minute, hour, day)";
            Error::Invalid(format!("the rate limit `{text}` {why}; {form}"))
        };
        let lower = text.trim().to_ascii_lowercase();
        let (requests, within) = lower
            .split_once('/')
            .or_else(|| lower.split_once(" per "))
            .ok_or_else(|| fault("has no `/` or `per` between number and time"))?;
        let requests = requests.trim().parse::<u32>().map_err(|_| fault("does not begin with a whole number"))?;
        let within = within.trim();
        let unit_at = within.find(|c: char| !c.is_ascii_digit()).ok_or_else(|| fault("names no unit of time"))?;
        let (many, unit) = within.split_at(unit_at);
        let many = match many {
            "" => 1,
            many => many.parse::<u64>().map_err(|_| fault("has too long a time"))?,
        };
        let seconds = match unit.trim() {
            "s" | "sec" | "second" | "seconds" => 1,
            "m" | "min" | "minute" | "minutes" => 60,
            "h" | "hour" | "hours" => 3_600,
            "d" | "day" | "days" => 24 * 3_600,
            _ => return Err(fault("has an unknown unit of time")),
        };
        Self::new(requests, Duration::from_secs(many.saturating_mul(seconds)))
    }
}

/// The decision on a request, and what to tell its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// `true` if the request is admitted.
    pub allowed: bool,
    /// The number of requests of the limit.
    pub limit: u32,
    /// Requests that would still be admitted now.
    pub remaining: u32,
    /// The time until the full limit is available again, without further requests.
    pub reset_after: Duration,
    /// The time until a request would be admitted; zero if one would be now.
    pub retry_after: Duration,
    /// `true` if this process decided alone, because Redis was unreachable.
    pub local: bool,
}

impl Decision {
    /// Returns the headers `X-RateLimit-Limit`, `-Remaining`, `-Reset` (seconds from now, rounded up), and
    /// `Retry-After` if the request is refused.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let seconds = |time: Duration| (time.as_secs() + u64::from(time.subsec_nanos() > 0)).to_string();
        let retry = (!self.allowed).then(|| ("retry-after", seconds(self.retry_after)));
        [
            ("x-ratelimit-limit", self.limit.to_string()),
            ("x-ratelimit-remaining", self.remaining.to_string()),
            ("x-ratelimit-reset", seconds(self.reset_after)),
        ]
        .into_iter()
        .chain(retry)
    }
}

type Local = Governor<String, DefaultKeyedStateStore<String>, DefaultClock, StateInformationMiddleware>;

/// A rate limiter: each sender has one limit across all instances. Cheap to clone.
///
/// ```no_run
/// # async fn example(cache: samovar::cache::Cache) -> Result<(), samovar::cache::Error> {
/// use samovar::cache::RateLimiter;
///
/// let limiter = RateLimiter::new(&cache, "10/minute")?;
/// let decision = limiter.check("login:203.0.113.7").await?;
/// if !decision.allowed {
///     println!("try again in {:?}", decision.retry_after);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RateLimiter {
    link: Arc<Link>,
    limit: Limit,
    local: Arc<Local>,
    /// Local decisions since the last cleanup.
    decided: Arc<AtomicU32>,
}

impl std::fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimiter").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl RateLimiter {
    /// Creates a limiter over the cache's connection; [`Limit`] shows the text's format.
    ///
    /// # Errors
    /// [`Error::Invalid`], with a remedy.
    pub fn new(cache: &Cache, limit: &str) -> Result<Self, Error> {
        Ok(Self::with_limit(cache, limit.parse()?))
    }

    /// Creates a limiter with a parsed limit.
    pub fn with_limit(cache: &Cache, limit: Limit) -> Self {
        let each = (limit.period / limit.requests()).max(Duration::from_nanos(1));
        // `with_period` refuses zero only.
        let quota = Quota::with_period(each).unwrap_or_else(|| Quota::per_second(limit.requests));
        let quota = quota.allow_burst(limit.requests);
        let local = Governor::keyed(quota).with_middleware::<StateInformationMiddleware>();
        Self { link: Arc::clone(cache.link()), limit, local: Arc::new(local), decided: Arc::default() }
    }

    /// Returns the limit.
    pub fn limit(&self) -> Limit {
        self.limit
    }

    /// Returns the Redis key of a sender's log: `rate_limit:REQUESTS/MILLISECONDS:ID`. A sender under two limits is
    /// counted for each.
    pub fn key(&self, id: &str) -> String {
        format!("{RATE_LIMIT}:{}/{}:{id}", self.limit.requests(), self.limit.period.as_millis())
    }

    /// Decides on a request of this sender. Without Redis this process decides alone.
    ///
    /// # Errors
    /// [`Error::Redis`], such as a missing right; never [`Error::Unavailable`].
    pub async fn check(&self, id: &str) -> Result<Decision, Error> {
        let period = self.limit.period.as_micros();
        let key = self.key(id);
        let mut admit = ADMIT.key(&key);
        admit.arg(self.limit.requests()).arg(period.to_string());
        let answer = self
            .link
            .at(&key)
            .ask(async |mut redis| admit.invoke_async::<(bool, u32, u64, u64)>(&mut redis).await)
            .await;
        match answer {
            Ok((allowed, remaining, wait, all)) => Ok(Decision {
                allowed,
                limit: self.limit.requests(),
                remaining,
                reset_after: Duration::from_micros(all),
                retry_after: Duration::from_micros(wait),
                local: false,
            }),
            Err(e) if e.drops_writes() => Ok(self.check_locally(id)),
            Err(e) => Err(e),
        }
    }

    fn check_locally(&self, id: &str) -> Decision {
        self.link.counts.local_limits.add(1);
        if self.decided.fetch_add(1, Ordering::Relaxed) >= CLEAN {
            self.decided.store(0, Ordering::Relaxed);
            self.local.retain_recent();
        }
        let limit = self.limit.requests();
        let each = self.limit.period / limit;
        match self.local.check_key(&id.to_owned()) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                Decision {
                    allowed: true,
                    limit,
                    remaining,
                    reset_after: each * (limit - remaining),
                    retry_after: if remaining > 0 { Duration::ZERO } else { each },
                    local: true,
                }
            }
            Err(refused) => Decision {
                allowed: false,
                limit,
                remaining: 0,
                reset_after: self.limit.period,
                retry_after: refused.wait_time_from(DefaultClock::default().now()),
                local: true,
            },
        }
    }
}

/// Counters under `rate_limit:`, for custom limits. A key that begins with `rate_limit:` is used unchanged.
#[derive(Clone, Debug)]
pub struct RateLimitCache(Cache);

impl RateLimitCache {
    /// Creates it with the connection of another cache.
    pub fn new(cache: &Cache) -> Self {
        Self(cache.known(RATE_LIMIT))
    }

    /// Increments a counter and returns its count. It restarts `ttl` after its first increment.
    ///
    /// # Errors
    /// As [`Cache::increment`].
    pub async fn increment(&self, key: &str, ttl: impl Into<Ttl>) -> Result<i64, Error> {
        self.0.increment_with(key, 1, ttl).await
    }

    /// Returns the count; 0 if there is no counter. Without Redis: 0.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub async fn count(&self, key: &str) -> Result<i64, Error> {
        Ok(self.0.get(key).await?.unwrap_or(0))
    }

    /// Resets a counter.
    ///
    /// # Errors
    /// As [`Cache::delete`].
    pub async fn reset(&self, key: &str) -> Result<bool, Error> {
        self.0.delete(key).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> (u32, u64) {
        let limit: Limit = text.parse().unwrap();
        (limit.requests(), limit.period().as_secs())
    }

    #[test]
    fn the_usual_spellings_are_read() {
        for (text, expected) in [
            ("10/minute", (10, 60)),
            ("10 / Minute", (10, 60)),
            ("100 per second", (100, 1)),
            ("5 per 2 hours", (5, 7_200)),
            ("5/2h", (5, 7_200)),
            ("1000/day", (1_000, 86_400)),
            (" 3 PER 30 seconds ", (3, 30)),
            ("7/15min", (7, 900)),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_value_and_a_remedy() {
        for (text, why) in [
            ("", "no `/` or `per`"),
            ("ten/minute", "whole number"),
            ("10", "no `/` or `per`"),
            ("10/", "no unit"),
            ("10/60", "no unit"),
            ("10/fortnight", "unknown unit"),
            ("-1/second", "whole number"),
            ("0/second", "1 to 100000"),
            ("1000000/day", "shorter period"),
            ("10/0 seconds", "1ms"),
            ("10/99999999999999999999 days", "too long"),
        ] {
            let said = text.parse::<Limit>().unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
        assert!("x/minute".parse::<Limit>().unwrap_err().to_string().contains("`x/minute`"));
    }

    #[test]
    fn headers_are_whole_seconds_rounded_up() {
        let mut decision = Decision {
            allowed: false,
            limit: 10,
            remaining: 0,
            reset_after: Duration::from_millis(1_001),
            retry_after: Duration::from_secs(1),
            local: false,
        };
        let headers: Vec<_> = decision.headers().collect();
        assert_eq!(headers[2..], [("x-ratelimit-reset", "2".into()), ("retry-after", "1".into())]);
        decision.allowed = true;
        assert_eq!(decision.headers().count(), 3);
    }
}
