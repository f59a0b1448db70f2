//! Asking the feeds of jobs at their warmups.
//!
//! A feed that fails leaves its warmup open: the tick is claimed again after a backoff, by any worker, until the feed
//! answers or the next tick comes. Meanwhile the entries that the feed named last are kept warm. The state of a feed is
//! kept in Redis, so each worker reports a feed that fails, whichever worker asked it.

use std::io;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use redis::{RedisError, RedisResult, Script};
use tracing::warn;

use super::cron::Cron;
use super::invalidation::WARMUP_SIGNAL;
use super::tick::Claim;
use crate::entry::{JobName, KeySet, Priority, UpstreamName};
use crate::job::{Feed, Job};
use crate::popularity::{FeedState, feed};
use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime};
use crate::source::{Fed, FetchError, Permit, Refusal};
use crate::telemetry::metrics;
use crate::warmer::retry_after;

/// An answer without entries, or with few among useless items, is suspicious after one that named so many.
const MANY: usize = 10;
/// The name of this step in messages.
const ASKING: &str = "asking a job's feed";

static HASTEN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/hasten.lua")));

/// The entries of a job's feed at a warmup.
#[derive(Clone, Debug, Default)]
pub(super) struct Named {
    /// The entries.
    pub(super) entries: KeySet,
    /// When to ask the feed again, if it failed.
    pub(super) ask_again: Option<Duration>,
    /// The state of the feed after it was asked.
    pub(super) state: FeedState,
}

/// Why a feed's answer is not used, and the least wait before the next request.
#[derive(Debug)]
struct Failure {
    reason: String,
    wait: Duration,
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        let wait = match &error {
            FetchError::Busy(wait, _) | FetchError::Refused(wait, _) => *wait,
            FetchError::Upstream(_) | FetchError::Answer(_) | FetchError::Cut(_) | FetchError::Unrenderable(_) => {
                Duration::ZERO
            }
        };
        Self { reason: format!("the feed {}", error.of_feed()), wait }
    }
}

/// Why a feed was not read: it has no usable answer, or Redis failed before it was asked.
enum Unread {
    Failure(Failure),
    Redis(RedisError),
}

impl<E: Into<Failure>> From<E> for Unread {
    fn from(error: E) -> Self {
        Self::Failure(error.into())
    }
}

/// Brings the next warmup of a job with a feed forward to now, so that a worker asks the feed. If a warmup is running,
/// the next one follows it.
///
/// # Errors
/// Redis's.
pub async fn warm_up_now(redis: &mut Connection, keys: &Keys, job: &JobName) -> RedisResult<()> {
    let _: u8 = HASTEN.key(keys.schedules()).key(keys.ticks()).arg(job.as_str()).invoke_async(redis).await?;
    let signal = format!("{WARMUP_SIGNAL} {job}");
    redis::cmd("PUBLISH").arg(keys.signal_channel()).arg(signal).exec_async(redis).await
}

impl Cron {
    /// Returns the entries that the job's feed names; if it fails, those of its last answer. Returns `None` if another
    /// worker takes the tick over, or once this one stops.
    ///
    /// # Errors
    /// Redis's.
    pub(super) async fn fed(&self, job: &Arc<Job>, claim: &mut Claim) -> RedisResult<Option<Named>> {
        let mut redis = self.redis.clone();
        let Some(asked) = &job.entries.feed else {
            feed::forget(&mut redis, &self.keys, job).await?;
            let forgotten = FeedState::forget(&mut redis, &self.keys, &job.name).await;
            self.troubles.of("forgetting the state of a feed").alone(job.name.as_str(), forgotten)?;
            return Ok(Some(Named::default()));
        };
        let Some(answer) = self.ask_and_hold(job, asked, claim).await? else { return Ok(None) };
        let answer = self.doubt(job, asked, answer).await?;
        // After this, no other worker writes the state for as long as the claim holds.
        if !self.hold(job, claim).await? {
            return Ok(None);
        }
        let kept = self.troubles.of("reading the state of a feed");
        let state = kept.alone(job.name.as_str(), FeedState::read(&mut redis, &self.keys, &job.name).await)?;
        let mut state = state.unwrap_or_default();
        let now = self.store.now().await?;
        let failure = match answer {
            Ok(fed) => return self.use_answer(job, fed, now).await.map(Some),
            Err(failure) => failure,
        };
        metrics::feed_failed(&job.name);
        state.fail(now, &failure.reason);
        self.tell_feed(job, &state);
        let wait = retry_after(state.failures).max(failure.wait);
        self.keep_state(job, &state).await?;
        let entries = feed::named_last(&mut redis, &self.keys, &job.name, &job.key).await?;
        Ok(Some(Named { entries, ask_again: Some(wait), state }))
    }

    /// Returns the entries that a job's feed names now; if it fails, those of its last answer. The state of the feed
    /// stays as the last warmup left it.
    ///
    /// # Errors
    /// Redis's.
    pub(crate) async fn entries_of_feed(&self, job: &Job, asked: &Feed) -> RedisResult<KeySet> {
        let answer = tokio::select! {
            answer = self.ask_feed(job, asked) => answer?,
            () = self.stop.cancelled() => Err(Failure { reason: "the worker stops".to_owned(), wait: Duration::ZERO }),
        };
        match self.doubt(job, asked, answer).await? {
            Ok(fed) => Ok(fed.entries),
            Err(Failure { reason, .. }) => {
                warn!(job = %job.name, "a request takes the entries of the feed's last usable answer: {reason}");
                feed::named_last(&mut self.redis.clone(), &self.keys, &job.name, &job.key).await
            }
        }
    }

    /// Makes an answer a failure that names nothing, or next to nothing, after one that named many entries, unless the
    /// feed may be empty.
    async fn doubt(&self, job: &Job, asked: &Feed, answer: Result<Fed, Failure>) -> RedisResult<Result<Fed, Failure>> {
        let doubted = |fed: &Fed| fed.entries.is_empty() || 2 * fed.useless > fed.items;
        if asked.may_be_empty || !answer.as_ref().is_ok_and(doubted) {
            return Ok(answer);
        }
        let last = feed::named_last(&mut self.redis.clone(), &self.keys, &job.name, &job.key).await?.len();
        let Ok(fed) = &answer else { return Ok(answer) };
        let Fed { entries, items, useless, first_skipped, .. } = fed;
        if last < MANY || 2 * entries.len() >= last {
            return Ok(answer);
        }
        let reason = match first_skipped {
            None => format!(
                "the feed answered without an entry, and named {last} before; write `empty = \"ok\"` if it may be empty"
            ),
            Some(first) => format!(
                "{useless} of the {items} items in the feed's answer name no entry, and the last one named {last} \
                 entries; write `empty = \"ok\"` if that is right; the first: {first}"
            ),
        };
        Ok(Err(Failure { reason, wait: Duration::ZERO }))
    }

    async fn use_answer(&self, job: &Job, fed: Fed, now: RedisTime) -> RedisResult<Named> {
        if let Some(why) = &fed.first_skipped {
            warn!(
                job = %job.name, skipped = fed.skipped,
                "items of the job's feed name no entry, with some constants or at all, and are skipped; the first: \
                 {why}"
            );
        }
        feed::remember(&mut self.redis.clone(), &self.keys, job, &fed.entries).await?;
        let state = FeedState {
            answered_ms: Some(now),
            entries: fed.entries.len(),
            skipped: fed.skipped,
            first_skipped: fed.first_skipped,
            ..FeedState::default()
        };
        self.tell_feed(job, &state);
        self.keep_state(job, &state).await?;
        Ok(Named { entries: fed.entries, ask_again: None, state })
    }

    /// Keeps the state of a job's feed. If it cannot be kept, the warmup goes on.
    pub(super) async fn keep_state(&self, job: &Job, state: &FeedState) -> RedisResult<()> {
        let kept = state.keep(&mut self.redis.clone(), &self.keys, &job.name).await;
        self.troubles.of("keeping the state of a feed").alone(job.name.as_str(), kept).map(|_| ())
    }

    /// Reports the feeds of this worker's jobs, whichever worker asked them.
    ///
    /// # Errors
    /// Redis's.
    pub(super) async fn tell_feeds(&self) -> RedisResult<()> {
        for job in self.jobs.jobs.values().filter(|job| job.entries.feed.is_some()) {
            let state = FeedState::read(&mut self.redis.clone(), &self.keys, &job.name).await;
            if let Some(state) = self.troubles.of("reading the state of a feed").alone(job.name.as_str(), state)? {
                self.tell_feed(job, &state);
            }
        }
        Ok(())
    }

    fn tell_feed(&self, job: &Job, state: &FeedState) {
        if let Some(at) = state.answered_ms {
            self.popularity.note_answer(&job.name, at);
        }
        let feeds = self.troubles.of(ASKING);
        match &state.reason {
            Some(reason) => {
                feeds.ill(job.name.as_str(), format!("the entries of its last usable answer are kept warm: {reason}"));
            }
            None => feeds.well(job.name.as_str()),
        }
    }

    /// Asks a job's feed, and renews the claim on the tick meanwhile. Returns `None` if another worker takes the tick
    /// over. Once this worker stops, leaves the tick to others and returns `None` as well.
    async fn ask_and_hold(
        &self,
        job: &Job,
        feed: &Feed,
        claim: &mut Claim,
    ) -> RedisResult<Option<Result<Fed, Failure>>> {
        {
            let asking = self.ask_feed(job, feed);
            tokio::pin!(asking);
            loop {
                tokio::select! {
                    answer = &mut asking => return answer.map(Some),
                    () = tokio::time::sleep(self.claim / 3) => if !self.hold(job, claim).await? {
                        return Ok(None);
                    },
                    () = self.stop.cancelled() => break,
                }
            }
        }
        self.leave_open(job, *claim, Duration::ZERO).await?;
        Ok(None)
    }

    /// Asks a job's feed.
    ///
    /// # Errors
    /// Redis's, which holds the upstream's limits: they are no failure of the feed.
    async fn ask_feed(&self, job: &Job, feed: &Feed) -> RedisResult<Result<Fed, Failure>> {
        match self.read_feed(job, feed).await {
            Ok(fed) => Ok(Ok(fed)),
            Err(Unread::Failure(failure)) => Ok(Err(failure)),
            Err(Unread::Redis(error)) => Err(error),
        }
    }

    /// Reads a job's feed, each page within its upstream's limits and with high priority, since a whole warmup depends
    /// on it.
    async fn read_feed(&self, job: &Job, feed: &Feed) -> Result<Fed, Unread> {
        let mut reading = self.sources.read_feed(job, feed)?;
        while !reading.is_over() {
            let permit = self.permit(&feed.upstream).await?;
            let page = reading.read_page().await;
            if let Some(permit) = permit {
                permit.end(&page).await;
            }
            page?;
        }
        Ok(reading.finish()?)
    }

    /// Waits for a permit of a feed's upstream. While Redis does not answer, asks for it again, for the claim time.
    async fn permit(&self, upstream: &UpstreamName) -> Result<Option<Permit>, Unread> {
        let Some(gate) = self.gates.get(upstream) else { return Ok(None) };
        let began = Instant::now();
        loop {
            let refusal = match gate.admit(Priority::High, Instant::now() + self.claim / 2).await {
                Ok(permit) => return Ok(Some(permit)),
                Err(refusal) => refusal,
            };
            if !refusal.is_of_redis() {
                let Refusal { reason, wait } = refusal;
                return Err(Failure { reason: format!("upstream {upstream} admits nothing: {reason}"), wait }.into());
            }
            if began.elapsed() >= self.claim {
                let what = format!("a feed waits, because {upstream} {}", refusal.says());
                return Err(Unread::Redis(io::Error::new(io::ErrorKind::NotConnected, what).into()));
            }
            tokio::time::sleep(refusal.wait).await;
        }
    }
}
