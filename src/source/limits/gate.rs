//! One worker's access to an upstream and to the fleet's state of it.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::{RedisResult, Script};
use tracing::debug;

use super::breaker::{Breaker, UpstreamMemory, Verdict};
use super::budget::Budget;
use super::line::Line;
use super::refusal::Refusal;
use super::requests::{Fetches, Lately, Requests};
use crate::entry::duration;
use crate::job::Upstream;
use crate::protocol::Keys;
use crate::redis::Connection;

pub(super) static INSPECT: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("lua/state.lua"), include_str!("lua/inspect.lua"))));

/// Permits handed back in one command.
const HANDED_BACK: usize = 100;
/// Permits that wait to be handed back. More of them expire.
const ABANDONED: usize = 10_000;

/// One worker's access to an upstream: admits a request, or refuses it for a time.
pub struct Gate {
    pub(super) upstream: Arc<Upstream>,
    pub(super) redis: Connection,
    /// State, permits, token window, reserved tokens.
    keys: [String; 4],
    pub(super) signal: String,
    /// Begins the ids of its permits.
    pub(super) id: String,
    pub(super) serial: AtomicU64,
    pub(super) breaker: Breaker,
    pub(super) budget: Budget,
    pub(super) line: Line,
    pub(super) requests: Requests,
    pub(super) last: Mutex<LastResults>,
    abandoned: Mutex<Vec<String>>,
}

/// The results of this gate's last requests for admission.
#[derive(Clone, Copy, Default)]
pub(super) struct LastResults {
    /// When one was admitted; the turns of the fleet's gates go by that.
    pub(super) admitted: Option<Instant>,
    /// Why one was refused, for requests that did not come to ask.
    pub(super) refused: Option<&'static str>,
}

impl Gate {
    /// Returns a worker's gate to an upstream. `local_concurrency` is the most requests that this worker has in flight
    /// there, at least 1, whatever the fleet's limit is.
    pub fn new(upstream: Arc<Upstream>, redis: Connection, names: &Keys, local_concurrency: usize) -> Self {
        Self {
            redis,
            keys: names.upstream(&upstream.name),
            signal: names.signal_channel(),
            id: ulid::Ulid::generate().to_string(),
            serial: AtomicU64::new(0),
            breaker: Breaker::default(),
            budget: Budget::of(&upstream),
            line: Line::new(local_concurrency),
            requests: Requests::new(names.fetched(&upstream.name)),
            last: Mutex::default(),
            abandoned: Mutex::default(),
            upstream,
        }
    }

    /// Names the worker that holds the gate's permits, a word without dashes, for [`Gate::rescue`].
    #[must_use]
    pub fn held_by(mut self, worker: &str) -> Self {
        self.id = format!("{worker}-{}", self.id);
        self
    }

    /// Shares with other gates, also of the generations before, what the process remembers of the upstream.
    #[must_use]
    pub fn remembering(mut self, memory: &UpstreamMemory) -> Self {
        self.breaker.remember(&self.upstream.name, memory);
        self.budget.remember(memory);
        self
    }

    /// Returns the permits of a worker that is dead to the fleet.
    ///
    /// # Errors
    /// Redis's; the permits then expire.
    pub async fn rescue(&self, worker: &str) -> RedisResult<()> {
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

    /// Returns how long the upstream is known to admit nothing (breaker, `Retry-After`, tokens spent), without a
    /// command.
    pub fn closed_for(&self) -> Option<Duration> {
        self.refusal().map(|refusal| refusal.wait)
    }

    /// Returns why nothing is admitted for now, and for how long, without a command.
    pub fn refusal(&self) -> Option<Refusal> {
        self.breaker.closed()
    }

    /// Returns `true` once if the upstream opened long before the end that was told, so that what was deferred until
    /// then can be fetched now.
    pub fn has_opened_early(&self) -> bool {
        self.breaker.has_opened_early()
    }

    /// Returns why a person should know of the upstream, as a sentence without what the upstream said: its breaker is
    /// open, it refuses the account, or its token budget is spent. Sends no command.
    pub fn trouble(&self) -> Option<String> {
        let refusal = self.breaker.trouble()?;
        let text = format!("upstream {} {}", self.upstream.name, refusal.says());
        match refusal.wait {
            Duration::ZERO => Some(text),
            wait => Some(format!("{text}; no requests for {}", duration::rough(wait))),
        }
    }

    /// Returns whether the upstream's breaker is open.
    pub fn is_broken(&self) -> bool {
        self.breaker.is_open()
    }

    /// Returns a refusal as a sentence about the upstream, with what the upstream said.
    pub fn says(&self, refusal: &Refusal) -> String {
        self.breaker.says(refusal)
    }

    /// Returns this worker's requests to the upstream.
    pub fn fetches(&self) -> Fetches {
        self.requests.fetches()
    }

    /// Adds this worker's requests since the last call to the fleet's sums.
    ///
    /// # Errors
    /// Redis's; they are added with the next call.
    pub async fn tell(&self) -> RedisResult<()> {
        self.requests.tell(&self.redis).await
    }

    /// Returns the fleet's requests of late.
    ///
    /// # Errors
    /// Redis's.
    pub async fn lately(&self) -> RedisResult<Lately> {
        self.requests.lately(&self.redis).await
    }

    /// Returns the upstream behind the gate.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Returns how many requests this worker has in flight there.
    pub fn in_flight(&self) -> usize {
        self.line.in_flight()
    }

    /// Reads the upstream's state, hands dropped permits back, and counts owed tokens. Call it when the signal channel
    /// says `upstream <name>`, and regularly, because pub/sub may lose that. Without Redis nothing changes.
    pub async fn refresh(&self) {
        let returned = self.returned();
        // After the permits: what their requests cost is in the sum.
        let told = self.budget.spend(0);
        let mut call = self.call(&INSPECT);
        call.arg(self.budget.tokens())
            .arg(self.budget.window())
            .arg(told.args())
            .arg(&self.signal)
            .arg(format!("upstream {}", self.upstream.name))
            .arg(returned.ids());
        match call.invoke_async::<Verdict>(&mut self.redis.clone()).await {
            Ok(verdict) => {
                told.heard();
                returned.arrived();
                self.learn(&verdict);
                self.budget.tell_spent(&verdict);
            }
            Err(error) => {
                debug!(upstream = %self.upstream.name, %error, "cannot read the upstream's state; it stays as it was");
            }
        }
        self.line.wake();
    }

    /// Returns a call of a script with the upstream's keys.
    pub(super) fn call(&self, script: &'static Script) -> redis::ScriptInvocation<'static> {
        let mut call = script.prepare_invoke();
        for key in &self.keys {
            call.key(key);
        }
        call
    }

    /// Remembers a script's answer.
    pub(super) fn learn(&self, verdict: &Verdict) {
        self.breaker.learn(&self.upstream.name, verdict);
    }

    /// Takes ids of permits that the next command hands back. They stay abandoned unless that command is answered.
    pub(super) fn returned(&self) -> Returned<'_> {
        let mut abandoned = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        let keep = abandoned.len().saturating_sub(HANDED_BACK);
        Returned { gate: self, ids: abandoned.split_off(keep) }
    }

    /// Takes such ids for a command that counts no tokens: none while there are tokens to be counted, which these
    /// permits still hold.
    pub(super) fn returned_alone(&self) -> Returned<'_> {
        let returned = self.returned();
        if self.budget.owes() { Returned { gate: self, ids: Vec::new() } } else { returned }
    }

    /// Keeps ids of permits for a later command to hand back.
    pub(super) fn abandon(&self, ids: Vec<String>) {
        let mut abandoned = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        let room = ABANDONED.saturating_sub(abandoned.len());
        abandoned.extend(ids.into_iter().take(room));
    }
}

/// Ids of permits on their way back. If the command fails or is cancelled, a later command hands them back.
pub(super) struct Returned<'a> {
    gate: &'a Gate,
    ids: Vec<String>,
}

impl Returned<'_> {
    /// Returns the ids.
    pub(super) fn ids(&self) -> &[String] {
        &self.ids
    }

    /// Notes that Redis has them back.
    pub(super) fn arrived(mut self) {
        self.ids.clear();
    }
}

impl Drop for Returned<'_> {
    fn drop(&mut self) {
        if !self.ids.is_empty() {
            self.gate.abandon(std::mem::take(&mut self.ids));
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("upstream", &self.upstream.name).finish_non_exhaustive()
    }
}
