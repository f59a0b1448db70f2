//! Upstream limits for the whole fleet: rate, concurrency, `Retry-After`, circuit breaker, token budget.
//!
//! Authority: one small state for each upstream in Redis, changed only by the scripts in `lua/`, in Redis's time. A
//! [`Gate`] is one worker's way there. It remembers why nothing is admitted, so that it can say so without asking; where
//! an upstream has no limits and is well, it asks nothing at all. What one gate finds out, the others hear over the
//! signal channel ([`Gate::refresh`]).
//!
//! On failure: a dead worker's permits are taken back ([`Gate::bury`]) by whoever finds it dead; if nobody does, they come
//! back by themselves, the upstream's timeout and [`GRACE`] after they were given. Without Redis nothing is admitted where limits are to be kept (reason `redis`), for nothing could be committed
//! either. After a flush the limits begin anew: what is in flight then is not counted. The tokens that a request may
//! cost are held for it while it is under way, and come back with its permit. Tokens that were spent and could not be
//! counted are kept here (`owed`); while any are, nothing that costs tokens is admitted.

use super::{Cost, FetchError, Spent};
pub use lately::Lately;

use crate::entry::JobName;
use crate::entry::Priority;
use crate::entry::duration;
use crate::job::Upstream;
use crate::protocol::Keys;
use crate::redis::Connection;
use crate::telemetry::metrics;
use redis::Script;
mod lately;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{AcquireError, Mutex as Line, Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;
use tracing::{debug, info, warn};

/// How much longer than the upstream's timeout a permit is believed to be in use; later a dead worker's come back.
const GRACE: Duration = Duration::from_secs(5);
/// Consecutive failures of the fleet that open the breaker.
const FAILURES: u32 = 10;
/// For how long the breaker opens first; twice as long each time that its probe fails.
const OPEN_FIRST: Duration = Duration::from_secs(5);
/// For how long the breaker opens at most, and so how long a recovered upstream may go unnoticed.
const OPEN_LONGEST: Duration = Duration::from_secs(120);
/// The same where the upstream refuses the account: a person must mend that, so one such answer opens the breaker.
const REFUSED_FIRST: Duration = Duration::from_secs(60);
const REFUSED_LONGEST: Duration = Duration::from_secs(3600);
/// How much of what an upstream said is told to the fleet, in characters.
const SAID: usize = 300;
/// How far into the rate limit's future a gate may take a place: so long may urgent requests have to wait for others.
const AHEAD: Duration = Duration::from_secs(1);
/// How soon a gate asks again for a permit when all are in use, at first and at most.
const POLL: (Duration, Duration) = (Duration::from_millis(15), Duration::from_millis(200));
/// When a caller that was refused for want of a permit, of a place in the line, or of Redis, should ask again.
const SOON: Duration = Duration::from_millis(500);
/// One of so many requests that may be in flight here is kept for what was named by itself.
const KEPT: usize = 16;
/// Permits handed back in one call.
const HANDED_BACK: usize = 100;
/// The most tokens that one worker keeps to be counted later; numbers up to there are whole in a script.
const MOST_OWED: u64 = 1 << 50;
/// Permits that wait to be handed back; more of them come back by expiry.
const ABANDONED: usize = 10_000;

/// How long an entry waits at most whose upstream admits nothing: a limit that was raised is noticed after that.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(600);

static ADMIT: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("lua/state.lua"), include_str!("lua/admit.lua"))));
static SETTLE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("lua/state.lua"), include_str!("lua/settle.lua"))));
static LOOK: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("lua/state.lua"), include_str!("lua/look.lua"))));

/// What the scripts answer: reason, microseconds, whether this request is the breaker's probe (of a look and of a
/// request that ended: what share of the budget is to be told, in percent), health.
type Verdict = (String, u64, u8, u8);

/// What `admit.lua` answers: a verdict, and the tokens that the answer is expected to cost.
type Admission = (String, u64, u8, u8, u64);

/// The way to one upstream: admits a request or says how long to wait.
pub struct Gate {
    upstream: Arc<Upstream>,
    redis: Connection,
    /// State, permits, token window, tokens held.
    keys: [String; 4],
    signal: String,
    id: String,
    serial: AtomicU64,
    slots: Arc<Semaphore>,
    /// Kept free for what was named by itself, which waits for nobody else's answer then.
    kept: Arc<Semaphore>,
    local_concurrency: usize,
    /// One for each priority. Only the head of a line asks; so no request overtakes another of its kind.
    lines: [Line<()>; 3],
    /// How many wait in each.
    waiting: [AtomicUsize; 3],
    /// Something changed for the better, perhaps.
    news: Notify,
    known: Mutex<Known>,
    abandoned: Mutex<Vec<String>>,
    /// Tokens spent that Redis does not know of.
    owed: AtomicU64,
    fetches: Mutex<Fetches>,
    /// Where the fleet adds up what its requests took, and what of it this worker has told.
    fetched: String,
    told: Mutex<Lately>,
}

/// What one worker has fetched from an upstream since it began.
#[derive(Clone, Debug, Default)]
pub struct Fetches {
    /// How many requests ended, however they did.
    pub count: u64,
    /// How long they took together.
    pub took: Duration,
    /// How long the slowest took.
    pub slowest: Duration,
    /// AI tokens spent, by job.
    pub tokens: BTreeMap<JobName, u64>,
}

/// What a gate was told last.
#[derive(Default)]
struct Known {
    closed: Option<(Instant, &'static str)>,
    /// Why it refuses the account; empty where it does not.
    said: String,
    health: Health,
    /// When this gate last got what it wanted: the fleet's turns go by that.
    admitted: Option<Instant>,
    /// The reason of the last refusal, for those who did not even come to ask.
    refused: Option<&'static str>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Health {
    #[default]
    Well,
    /// Failures were counted just now; successes must be told.
    Shaky,
    /// The breaker is not closed: only Redis knows who may probe.
    Broken,
    /// Nor is it, because the upstream refuses the account.
    Refused,
}

impl Health {
    fn is_open(self) -> bool {
        matches!(self, Self::Broken | Self::Refused)
    }
}

/// Permission for one request; give it back with [`Permit::done`].
///
/// One that is dropped goes back with the gate's next call to Redis, at the latest with the next [`Gate::refresh`]; if the
/// worker dies, by expiry.
pub struct Permit {
    gate: Arc<Gate>,
    id: String,
    /// Whether Redis may know of it.
    registered: bool,
    cost: Cost,
    /// What the answer will cost, as far as answers of late tell.
    expected: u64,
    /// Whether the upstream is asked, and may take money for it.
    under_way: bool,
    tokens: u64,
    /// The answer's share of them; 0 where it is not known.
    answer: u64,
    /// What the upstream said when it asked to be left alone, or refused the account.
    said: String,
    _slot: OwnedSemaphorePermit,
}

/// How a request ended, as far as its upstream is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer that is of use.
    Ok,
    /// With an answer that is of no use, but the upstream is alive.
    Answer,
    /// Without a whole answer, or with one that says the upstream is ill. Counts against the breaker.
    UpstreamFailed,
    /// The upstream asks to be left alone for so long; all gates obey.
    Busy(Duration),
    /// The upstream refuses the account, which no waiting mends, and asks to be left alone for at least so long. Opens the
    /// breaker, for longer each time.
    Refused(Duration),
    /// Nothing was asked.
    Unused,
}

impl<T> From<&Result<T, FetchError>> for Ended {
    fn from(result: &Result<T, FetchError>) -> Self {
        match result {
            Ok(_) => Self::Ok,
            Err(FetchError::Answer(_)) => Self::Answer,
            Err(FetchError::Upstream(_)) => Self::UpstreamFailed,
            Err(FetchError::Busy(wait, _)) => Self::Busy(*wait),
            Err(FetchError::Refused(wait, _)) => Self::Refused(*wait),
        }
    }
}

/// Why a request is not admitted, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// When to ask again.
    pub wait: Duration,
    /// `rate`, `concurrency`, `reserved`, `retry-after`, `breaker`, `refused`, `tokens`; `redis` where the limits cannot
    /// be asked for.
    pub reason: &'static str,
}

impl Refusal {
    /// The reason as a sentence about the upstream.
    pub fn says(&self) -> &'static str {
        match self.reason {
            "breaker" => "failed too often and is left alone for a while (breaker)",
            "retry-after" => "asked to be left alone (Retry-After)",
            "refused" => "refuses this account, and is asked ever more rarely until somebody sees to it",
            "tokens" => "has its token budget spent",
            "reserved" => "has the rest of its token budget reserved for requests under way",
            "rate" | "concurrency" => "is asked as much as its limits allow",
            _ => "cannot be asked without Redis, which keeps its limits",
        }
    }
}

impl Gate {
    /// A worker's gate to an upstream; `local_concurrency` is the most this worker has in flight there, whatever the fleet
    /// may (at least 1).
    pub fn new(upstream: Arc<Upstream>, redis: Connection, names: &Keys, local_concurrency: usize) -> Self {
        let local_concurrency = local_concurrency.clamp(1, Semaphore::MAX_PERMITS);
        let keys = names.upstream(&upstream.name);
        let fetched = names.fetched(&upstream.name);
        Self {
            upstream,
            redis,
            keys,
            signal: names.signal_channel(),
            id: ulid::Ulid::generate().to_string(),
            serial: AtomicU64::new(0),
            slots: Arc::new(Semaphore::new(local_concurrency - local_concurrency / KEPT)),
            kept: Arc::new(Semaphore::new(local_concurrency / KEPT)),
            local_concurrency,
            lines: Default::default(),
            waiting: Default::default(),
            news: Notify::new(),
            known: Mutex::default(),
            abandoned: Mutex::default(),
            owed: AtomicU64::new(0),
            fetches: Mutex::default(),
            fetched,
            told: Mutex::default(),
        }
    }

    /// The same for the permits of this worker, a word without dashes: see [`Gate::bury`].
    #[must_use]
    pub fn held_by(mut self, worker: &str) -> Self {
        self.id = format!("{worker}-{}", self.id);
        self
    }

    /// Takes back the permits of a worker that is dead.
    ///
    /// # Errors
    /// Redis's; they come back by expiry.
    pub async fn rescue(&self, worker: &str) -> redis::RedisResult<()> {
        let [state, permits, _, held] = &self.keys;
        let (ids, probe, holders): (Vec<String>, Option<String>, Vec<String>) = redis::pipe()
            .cmd("ZRANGE")
            .arg(permits)
            .arg(0)
            .arg(-1)
            .cmd("HGET")
            .arg(state)
            .arg("probe")
            .cmd("HKEYS")
            .arg(held)
            .query_async(&mut self.redis.clone())
            .await?;
        let its = |id: &String| id.strip_prefix(worker).is_some_and(|rest| rest.starts_with('-'));
        let ids: Vec<String> = ids.into_iter().chain(probe).chain(holders).filter(its).collect();
        for some in ids.chunks(HANDED_BACK) {
            self.abandon(some.to_vec());
            self.refresh().await;
        }
        Ok(())
    }

    /// Waits for admission of a request that costs no tokens until `deadline`; see [`Gate::admit_for`].
    ///
    /// # Errors
    /// As [`Gate::admit_for`].
    pub async fn admit(self: &Arc<Self>, priority: Priority, deadline: Instant) -> Result<Permit, Refusal> {
        self.admit_for(priority, deadline, Cost::default()).await
    }

    /// Waits for admission until `deadline`, and until the budget has room for the cost; more urgent requests go first,
    /// before all but one of the others.
    ///
    /// # Errors
    /// A refusal with the time after which to ask again: at once where admission is known to come too late, otherwise at
    /// the deadline. Reason `redis` where Redis does not answer.
    pub async fn admit_for(
        self: &Arc<Self>,
        priority: Priority,
        deadline: Instant,
        cost: Cost,
    ) -> Result<Permit, Refusal> {
        if let Some(refusal) = self.closed().filter(|refusal| Instant::now() + refusal.wait > deadline) {
            return Err(refusal);
        }
        match timeout_at(deadline.into(), self.pass(priority, deadline, cost)).await {
            Ok(answer) => answer,
            Err(_) => {
                let reason = self.known().refused.unwrap_or("concurrency");
                Err(self.closed().unwrap_or(Refusal { wait: SOON, reason }))
            }
        }
    }

    /// How long the upstream is known to admit nothing (breaker, `Retry-After`, tokens spent), without asking Redis.
    pub fn closed_for(&self) -> Option<Duration> {
        self.closed().map(|refusal| refusal.wait)
    }

    /// Whether the upstream's breaker is open.
    pub fn is_broken(&self) -> bool {
        self.known().health.is_open()
    }

    /// A refusal as a sentence about the upstream, with what it said.
    pub fn says(&self, refusal: &Refusal) -> String {
        match (refusal.reason, self.known().said.as_str()) {
            ("refused", said) if !said.is_empty() => format!("{}: {said}", refusal.says()),
            _ => refusal.says().to_owned(),
        }
    }

    /// Why nothing is admitted for now, and for how long, without asking Redis.
    pub fn refusal(&self) -> Option<Refusal> {
        self.closed()
    }

    /// What this worker has fetched there.
    pub fn fetches(&self) -> Fetches {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The upstream behind it.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// How many requests this worker has in flight there.
    pub fn in_flight(&self) -> usize {
        self.local_concurrency - self.slots.available_permits() - self.kept.available_permits()
    }

    /// Asks Redis how the upstream is, and hands back dropped permits. To be called when the signal channel says
    /// `upstream <name>`, and regularly, for what pub/sub loses. Without Redis everything stays as it was.
    pub async fn refresh(&self) {
        let (returned, owed) = (self.returned(), self.owed.swap(0, Ordering::AcqRel));
        let mut call = self.call(&LOOK);
        call.arg(self.budget())
            .arg(self.window())
            .arg(owed)
            .arg(&self.signal)
            .arg(format!("upstream {}", self.upstream.name))
            .arg(&returned);
        // Given back where this call is given up, too.
        let mut carried = Owed { gate: self, tokens: owed };
        match call.invoke_async::<Verdict>(&mut self.redis.clone()).await {
            Ok(verdict) => {
                carried.tokens = 0;
                self.learn(&verdict);
                self.tell_spent(&verdict);
            }
            Err(error) => {
                debug!(upstream = %self.upstream.name, %error, "cannot ask for the upstream's state");
                self.abandon(returned);
            }
        }
        self.news.notify_waiters();
    }

    async fn pass(self: &Arc<Self>, priority: Priority, deadline: Instant, cost: Cost) -> Result<Permit, Refusal> {
        let began = Instant::now();
        let _place = Place::of(self, priority);
        let _line = self.lines[priority as usize].lock().await;
        let mut poll = POLL.0;
        loop {
            self.let_more_urgent_pass(priority).await;
            let Ok(slot) = self.slot(priority).await else {
                return Err(Refusal { wait: SOON, reason: "concurrency" });
            };
            let refusal = match self.ask(slot, began, deadline, cost).await {
                Ok(permit) => return Ok(permit),
                Err(refusal) => refusal,
            };
            self.known().refused = Some(refusal.reason);
            let pause = match refusal.reason {
                "redis" => return Err(refusal),
                "concurrency" | "reserved" => {
                    poll = (poll * 2).min(POLL.1);
                    poll.mul_f64(rand::random_range(0.5..1.0))
                }
                _ if Instant::now() + refusal.wait > deadline => return Err(refusal),
                // Early enough to take a place.
                "rate" => refusal.wait.saturating_sub(AHEAD / 2),
                _ => refusal.wait,
            };
            tokio::select! {
                () = tokio::time::sleep(pause.max(Duration::from_millis(1))) => {}
                () = self.news.notified() => {}
            }
        }
    }

    /// Waits until one more request may be in flight here.
    async fn slot(&self, priority: Priority) -> Result<OwnedSemaphorePermit, AcquireError> {
        let (slots, kept) = (Arc::clone(&self.slots), Arc::clone(&self.kept));
        if priority < Priority::High {
            return slots.acquire_owned().await;
        }
        tokio::select! {
            biased;
            slot = slots.acquire_owned() => slot,
            slot = kept.acquire_owned() => slot,
        }
    }

    async fn ask(
        self: &Arc<Self>,
        slot: OwnedSemaphorePermit,
        began: Instant,
        deadline: Instant,
        cost: Cost,
    ) -> Result<Permit, Refusal> {
        if self.owed.load(Ordering::Acquire) > 0 {
            self.refresh().await;
        }
        if let Some(refusal) = self.closed() {
            return Err(refusal);
        }
        if cost.prompt > 0 && self.owed.load(Ordering::Acquire) > 0 {
            return Err(Refusal { wait: SOON, reason: "redis" });
        }
        let upstream = &self.upstream;
        let (broken, admitted) = {
            let known = self.known();
            (known.health.is_open(), known.admitted)
        };
        let waited = admitted.map_or(began, |admitted| admitted.max(began)).elapsed();
        let mut permit = Permit {
            id: format!("{}-{}", self.id, self.serial.fetch_add(1, Ordering::Relaxed)),
            gate: self.clone(),
            registered: false,
            cost,
            expected: 0,
            under_way: false,
            tokens: 0,
            answer: 0,
            said: String::new(),
            _slot: slot,
        };
        if upstream.rate.is_none() && upstream.concurrency.is_none() && upstream.tokens.is_none() && !broken {
            return Ok(permit);
        }
        // From here on Redis may know it, even if the answer never comes.
        permit.registered = upstream.concurrency.is_some() || broken || (upstream.tokens.is_some() && cost.prompt > 0);
        let (interval, early) = upstream.rate.map_or((0, 0), |rate| pace(rate.count, rate.per));
        let ahead = deadline.saturating_duration_since(Instant::now()).min(AHEAD);
        let returned = self.returned();
        let mut call = self.call(&ADMIT);
        call.arg(&permit.id)
            .arg(millis(upstream.timeout + GRACE))
            .arg(upstream.concurrency.unwrap_or(0))
            .arg(interval)
            .arg(early)
            .arg(millis(ahead))
            .arg(self.budget())
            .arg(&self.id)
            .arg(millis(waited))
            .arg(cost.prompt)
            .arg(cost.answer.unwrap_or(0))
            .arg(&returned);
        let (verdict, expected) = match call.invoke_async::<Admission>(&mut self.redis.clone()).await {
            Ok((reason, wait, probe, health, expected)) => ((reason, wait, probe, health), expected),
            Err(error) => {
                debug!(upstream = %upstream.name, %error, "cannot ask for admission");
                self.abandon(returned);
                return Err(Refusal { wait: SOON, reason: "redis" });
            }
        };
        self.learn(&verdict);
        let (reason, wait) = (reason(&verdict.0), Duration::from_micros(verdict.1));
        if let Some(reason) = reason {
            permit.registered = false;
            return Err(Refusal { wait, reason });
        }
        self.known().admitted = Some(Instant::now());
        permit.registered |= verdict.2 == 1;
        permit.expected = expected;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            // The upstream may have asked to be left alone meanwhile.
            if let Some(refusal) = self.closed() {
                return Err(refusal);
            }
        }
        Ok(permit)
    }

    /// Waits while more urgent requests wait.
    async fn let_more_urgent_pass(&self, priority: Priority) {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            if self.waiting[priority as usize + 1..].iter().all(|waiting| waiting.load(Ordering::Acquire) == 0) {
                return;
            }
            news.await;
        }
    }

    fn call(&self, script: &'static Script) -> redis::ScriptInvocation<'static> {
        let mut call = script.prepare_invoke();
        for key in &self.keys {
            call.key(key);
        }
        call
    }

    fn budget(&self) -> u64 {
        self.upstream.tokens.map_or(0, |budget| budget.tokens)
    }

    /// The budget's window in milliseconds.
    fn window(&self) -> u64 {
        self.upstream.tokens.map_or(0, |budget| millis(budget.per))
    }

    /// Keeps tokens that could not be counted for the next call.
    fn owe(&self, tokens: u64) {
        if tokens > 0 && self.upstream.tokens.is_some() {
            let add = |owed: u64| Some(owed.saturating_add(tokens).min(MOST_OWED));
            let _ = self.owed.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        }
    }

    fn learn(&self, (why, wait, _, health): &Verdict) {
        let (why, said) = why.split_once(": ").unwrap_or((why, ""));
        let wait = Duration::from_micros(*wait);
        let mut known = self.known();
        let before = known.health;
        known.health = match health {
            0 => Health::Well,
            1 => Health::Shaky,
            2 => Health::Broken,
            _ => Health::Refused,
        };
        if known.health != Health::Refused || !said.is_empty() {
            known.said = said.to_owned();
        }
        let upstream = &self.upstream.name;
        match (before, known.health) {
            (Health::Well | Health::Shaky, Health::Broken) => warn!(
                %upstream,
                "{FAILURES} failures in a row: its breaker is open, and only a probe is sent from time to time"
            ),
            (Health::Well | Health::Shaky | Health::Broken, Health::Refused) => warn!(
                %upstream,
                "it refuses this account, which no waiting mends: its entries are deferred, and it is asked again in {}, \
                 then ever more rarely; see to its quota, its billing, and the upstream's `headers`: {said}",
                duration::seconds(wait),
            ),
            (Health::Broken | Health::Refused, Health::Well | Health::Shaky) => {
                info!(%upstream, "it answers again: its breaker is closed");
            }
            (Health::Well | Health::Shaky, Health::Well | Health::Shaky)
            | (Health::Broken | Health::Refused, Health::Broken)
            | (Health::Refused, Health::Refused) => {}
        }
        // The rate limit and the permits' end concern one request; the others close the gate.
        known.closed = reason(why)
            .filter(|reason| !matches!(*reason, "rate" | "concurrency" | "reserved"))
            .map(|reason| (Instant::now() + wait, reason));
    }

    /// Says that a budget comes to its end: one worker of the fleet, once in a window.
    fn tell_spent(&self, (_, wait, share, _): &Verdict) {
        let Some(budget) = self.upstream.tokens else { return };
        let upstream = &self.upstream.name;
        match share {
            80 => warn!(%upstream, "80 % of its budget of {budget} is spent; at 100 % its entries are deferred"),
            100 => {
                let wait = duration::seconds(Duration::from_micros(*wait));
                warn!(%upstream, "its budget of {budget} is spent: its entries are deferred for {wait}, and old values stay as long as they may");
            }
            _ => {}
        }
    }

    fn closed(&self) -> Option<Refusal> {
        let (until, reason) = self.known().closed?;
        let wait = until.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())?;
        Some(Refusal { wait, reason })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn returned(&self) -> Vec<String> {
        let mut abandoned = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        let keep = abandoned.len().saturating_sub(HANDED_BACK);
        abandoned.split_off(keep)
    }

    fn abandon(&self, ids: Vec<String>) {
        let mut abandoned = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        let room = ABANDONED.saturating_sub(abandoned.len());
        abandoned.extend(ids.into_iter().take(room));
    }
}

impl Permit {
    /// Notes AI tokens spent by this request, wanted or not; they are counted by [`Permit::done`].
    pub fn spend(&mut self, tokens: u64) {
        self.tokens += tokens;
    }

    /// Notes that the upstream is asked now. Where nobody says how that ended, what it may have cost is counted.
    pub(super) fn begin(&mut self) {
        self.under_way = true;
    }

    /// Notes what the request cost, and returns it in tokens.
    pub(super) fn spent(&mut self, spent: Spent) -> u64 {
        self.under_way = false;
        let tokens = match spent {
            Spent::Nothing => 0,
            Spent::Tokens { prompt, all } => {
                self.answer = all.saturating_sub(prompt).max(1);
                all
            }
            Spent::Untold { prompt } => prompt + self.expected,
        };
        self.spend(tokens);
        tokens
    }

    /// Counts the request: for which job it was made, how it ended, and how long it took.
    pub(super) fn fetched(&self, job: &JobName, ended: Ended, took: Duration) {
        let result = match ended {
            Ended::Ok => "answer",
            Ended::Answer => "unusable",
            Ended::UpstreamFailed => "failed",
            Ended::Busy(_) => "busy",
            Ended::Refused(_) => "refused",
            Ended::Unused => return,
        };
        metrics::fetched(&self.gate.upstream.name, job, result, took, self.tokens);
        let mut fetches = self.gate.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        fetches.count += 1;
        fetches.took += took;
        fetches.slowest = fetches.slowest.max(took);
        if self.tokens > 0 {
            *fetches.tokens.entry(job.clone()).or_default() += self.tokens;
        }
    }

    /// Gives the permit back with the result of its request.
    pub async fn end<T>(mut self, result: &Result<T, FetchError>) {
        if let Err(FetchError::Busy(_, said) | FetchError::Refused(_, said)) = result {
            self.said = said.chars().take(SAID).collect();
        }
        self.done(Ended::from(result)).await;
    }

    /// Gives the permit back and says how the request ended. Where Redis does not answer, a permit comes back later and a
    /// failure goes uncounted.
    pub async fn done(mut self, ended: Ended) {
        let gate = self.gate.clone();
        let (word, busy) = match ended {
            Ended::Ok | Ended::Answer => ("answered", Duration::ZERO),
            Ended::UpstreamFailed => ("failed", Duration::ZERO),
            Ended::Busy(wait) => ("busy", wait),
            Ended::Refused(wait) => ("refused", wait),
            Ended::Unused => ("dropped", Duration::ZERO),
        };
        let (first, longest, told) = match ended {
            Ended::Refused(_) => (REFUSED_FIRST, REFUSED_LONGEST, format!("{word}: {}", self.said)),
            Ended::Ok | Ended::Answer | Ended::UpstreamFailed | Ended::Busy(_) | Ended::Unused => {
                (OPEN_FIRST, OPEN_LONGEST, word.to_owned())
            }
        };
        let spent = self.tokens > 0 && gate.upstream.tokens.is_some();
        let nothing_to_tell = match word {
            "answered" => gate.known().health == Health::Well,
            "dropped" => true,
            _ => false,
        };
        if nothing_to_tell && !self.registered && !spent {
            return;
        }
        let returned = gate.returned();
        let mut call = gate.call(&SETTLE);
        call.arg(&self.id)
            .arg(told)
            .arg(millis(busy))
            .arg(self.tokens)
            .arg(gate.window())
            .arg(gate.budget())
            .arg(FAILURES)
            .arg(millis(first))
            .arg(millis(longest))
            .arg(&gate.signal)
            .arg(format!("upstream {}", gate.upstream.name))
            .arg(self.answer)
            .arg(&returned);
        match call.invoke_async::<Verdict>(&mut gate.redis.clone()).await {
            Ok(verdict) => {
                self.registered = false;
                self.tokens = 0;
                if let Ended::Busy(wait) = ended
                    && gate.closed().is_none()
                {
                    let wait = duration::seconds(wait);
                    info!(upstream = %gate.upstream.name, "it asks to be left alone for {wait}: {}", self.said);
                }
                gate.learn(&verdict);
                gate.tell_spent(&verdict);
            }
            Err(error) => {
                debug!(upstream = %gate.upstream.name, %error, "cannot give a permit back; it expires");
                gate.abandon(returned);
                if !busy.is_zero() {
                    gate.known().closed = Some((Instant::now() + busy, "retry-after"));
                }
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let unknown = if self.under_way && self.cost.prompt > 0 { self.cost.prompt + self.expected } else { 0 };
        self.gate.owe(self.tokens + unknown);
        if self.registered {
            self.gate.abandon(vec![std::mem::take(&mut self.id)]);
        }
        self.gate.news.notify_waiters();
    }
}

/// Tokens on their way to Redis: those that do not arrive are owed still.
struct Owed<'a> {
    gate: &'a Gate,
    tokens: u64,
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.gate.owe(self.tokens);
    }
}

/// A request that waits: less urgent ones let it pass.
struct Place<'a>(&'a Gate, Priority);

impl<'a> Place<'a> {
    fn of(gate: &'a Gate, priority: Priority) -> Self {
        gate.waiting[priority as usize].fetch_add(1, Ordering::AcqRel);
        Self(gate, priority)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting[self.1 as usize].fetch_sub(1, Ordering::AcqRel);
        if self.1 > Priority::Normal {
            self.0.news.notify_waiters();
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("upstream", &self.upstream.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("upstream", &self.gate.upstream.name)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The time between two requests and how early one may come, in microseconds (GCRA, as in ITU-T I.371), such that never
/// more than `count` begin in any `per`: a burst of a tenth, and the rest evenly.
fn pace(count: u32, per: Duration) -> (u64, u64) {
    let count = u64::from(count.max(1));
    let burst = (count / 10).max(1);
    let per = u64::try_from(per.as_micros()).unwrap_or(u64::MAX);
    let interval = per.div_ceil(count - burst + 1).max(1);
    (interval, interval * (burst - 1))
}

fn reason(word: &str) -> Option<&'static str> {
    let word = word.split_once(':').map_or(word, |(word, _)| word);
    ["rate", "concurrency", "reserved", "retry-after", "breaker", "refused", "tokens"]
        .into_iter()
        .find(|known| *known == word)
}

/// Whole milliseconds, rounded up: nothing ends before its time.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
