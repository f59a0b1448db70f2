//! Permission for one request, from its admission to the report of how it ended.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::Script;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, info};

use super::breaker::{FAILURES, Verdict};
use super::gate::Gate;
use super::millis;
use crate::entry::{JobName, excerpt};
use crate::source::{Cost, FetchError, Spent};
use crate::telemetry::metrics;

pub(super) static RETURN: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("lua/state.lua"), include_str!("lua/return_permit.lua"))));

/// The time for which the breaker opens first; it doubles each time that a probe fails.
const OPEN_FIRST: Duration = Duration::from_secs(5);
/// The longest time for which the breaker opens, and so for which a recovered upstream may go unnoticed.
const OPEN_LONGEST: Duration = Duration::from_secs(120);
/// Both times for a refused account. A person must fix that, so one such answer opens the breaker.
const REFUSED_FIRST: Duration = Duration::from_secs(60);
const REFUSED_LONGEST: Duration = Duration::from_secs(3600);
/// The longest part of an upstream's message that the fleet is told, in characters.
const SAID: usize = 300;

/// Permission for one request; give it back with [`Permit::done`].
///
/// A dropped permit is returned with the gate's next command, at the latest with the next [`Gate::refresh`]. If the
/// worker dies, other workers free the permit, or it expires.
pub struct Permit {
    gate: Arc<Gate>,
    pub(super) id: String,
    /// Redis may know of it.
    pub(super) registered: bool,
    pub(super) cost: Cost,
    /// The tokens that the answer will cost, judged by recent answers.
    pub(super) expected: u64,
    /// The request is sent, and the upstream may charge for it.
    in_flight: bool,
    tokens: u64,
    /// The answer's share of `tokens`; 0 if it is not known.
    answer: u64,
    /// The upstream's message when it asked for a pause or refused the account.
    said: String,
    _slot: OwnedSemaphorePermit,
}

/// The end of a request, for its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer that can be used.
    Ok,
    /// With an answer that cannot be used. The upstream is alive.
    Answer,
    /// Without a complete answer, or with one that says that the upstream is ill. Counts against the breaker.
    UpstreamFailed,
    /// The upstream asks for a pause of this length; all gates obey.
    Busy(Duration),
    /// The upstream refuses the account, and asks for a pause of at least this length. Opens the breaker, for longer
    /// each time.
    Refused(Duration),
    /// Nothing was sent.
    Unused,
}

impl<T> From<&Result<T, FetchError>> for Ended {
    fn from(result: &Result<T, FetchError>) -> Self {
        match result {
            Ok(_) => Self::Ok,
            Err(FetchError::Answer(_) | FetchError::Cut(_)) => Self::Answer,
            Err(FetchError::Unrenderable(_)) => Self::Unused,
            Err(FetchError::Upstream(_)) => Self::UpstreamFailed,
            Err(FetchError::Busy(wait, _)) => Self::Busy(*wait),
            Err(FetchError::Refused(wait, _)) => Self::Refused(*wait),
        }
    }
}

impl Permit {
    /// Returns a permit that Redis does not know of.
    pub(super) fn new(gate: &Arc<Gate>, slot: OwnedSemaphorePermit, cost: Cost) -> Self {
        Self {
            id: format!("{}-{}", gate.id, gate.serial.fetch_add(1, Ordering::Relaxed)),
            gate: Arc::clone(gate),
            registered: false,
            cost,
            expected: 0,
            in_flight: false,
            tokens: 0,
            answer: 0,
            said: String::new(),
            _slot: slot,
        }
    }

    /// Notes AI tokens spent by this request, for an answer of use or not. [`Permit::done`] counts them.
    pub fn spend(&mut self, tokens: u64) {
        self.tokens += tokens;
    }

    /// Notes that the request is sent now. If nothing reports its end, the tokens that it may have cost are counted.
    pub(in crate::source) fn begin(&mut self) {
        self.in_flight = true;
    }

    /// Notes what the request cost, and returns that in tokens.
    pub(in crate::source) fn spent(&mut self, spent: Spent) -> u64 {
        self.in_flight = false;
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

    /// Counts the request: its job, how it ended, and how long it took.
    pub(in crate::source) fn fetched(&self, job: &JobName, ended: Ended, took: Duration) {
        let result = match ended {
            Ended::Ok => "answer",
            Ended::Answer => "unusable",
            Ended::UpstreamFailed => "failed",
            Ended::Busy(_) => "busy",
            Ended::Refused(_) => "refused",
            Ended::Unused => return,
        };
        metrics::fetched(&self.gate.upstream.name, job, result, took, self.tokens);
        self.gate.requests.count(job, took, self.tokens);
    }

    /// Gives the permit back with the result of its request.
    pub async fn end<T>(mut self, result: &Result<T, FetchError>) {
        if let Err(FetchError::Busy(_, said) | FetchError::Refused(_, said)) = result {
            self.said = excerpt(said, SAID);
        }
        self.done(Ended::from(result)).await;
    }

    /// Returns the permit and reports the end of the request. If Redis fails, the permit and its tokens are returned
    /// with the gate's next command, and a failure is not counted.
    pub async fn done(mut self, ended: Ended) {
        let gate = self.gate.clone();
        let (word, busy) = match ended {
            Ended::Ok | Ended::Answer => ("answered", Duration::ZERO),
            Ended::UpstreamFailed => ("failed", Duration::ZERO),
            Ended::Busy(wait) => ("busy", wait),
            Ended::Refused(wait) => ("refused", wait),
            Ended::Unused => ("dropped", Duration::ZERO),
        };
        let (first, longest, end) = match ended {
            Ended::Refused(_) => (REFUSED_FIRST, REFUSED_LONGEST, format!("{word}: {}", self.said)),
            Ended::Ok | Ended::Answer | Ended::UpstreamFailed | Ended::Busy(_) | Ended::Unused => {
                (OPEN_FIRST, OPEN_LONGEST, word.to_owned())
            }
        };
        let spent = (self.tokens > 0 || gate.budget.owes()) && gate.budget.is_limited();
        let nothing_to_tell = match word {
            "answered" => gate.breaker.is_well(),
            "dropped" => true,
            _ => false,
        };
        if nothing_to_tell && !self.registered && !spent {
            return;
        }
        // With the permits that go back, what their requests cost: else others could spend it once more.
        let returned = gate.returned();
        let told = gate.budget.spend(std::mem::take(&mut self.tokens));
        let mut call = gate.call(&RETURN);
        call.arg(&self.id)
            .arg(end)
            .arg(millis(busy))
            .arg(told.args())
            .arg(gate.budget.window())
            .arg(gate.budget.tokens())
            .arg(FAILURES)
            .arg(millis(first))
            .arg(millis(longest))
            .arg(&gate.signal)
            .arg(format!("upstream {}", gate.upstream.name))
            .arg(self.answer)
            .arg(returned.ids());
        match call.invoke_async::<Verdict>(&mut gate.redis.clone()).await {
            Ok(verdict) => {
                returned.arrived();
                told.heard();
                self.registered = false;
                if let Ended::Busy(wait) = ended
                    && gate.breaker.is_first_of_pause(wait)
                {
                    let wait = crate::entry::duration::seconds(wait);
                    info!(upstream = %gate.upstream.name, "it asks to be left alone for {wait}: {}", self.said);
                }
                gate.learn(&verdict);
                gate.budget.tell_spent(&verdict);
            }
            Err(error) => {
                debug!(upstream = %gate.upstream.name, %error, "cannot return a permit; the next command returns it");
                if !busy.is_zero() {
                    gate.breaker.pause(busy);
                }
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let unknown = if self.in_flight && self.cost.prompt > 0 { self.cost.prompt + self.expected } else { 0 };
        self.gate.budget.owe(self.tokens + unknown);
        if self.registered {
            self.gate.abandon(vec![std::mem::take(&mut self.id)]);
        }
        self.gate.line.wake();
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
