//! Admission of one request: the worker's line first, then the fleet's limits.

use std::sync::{Arc, LazyLock, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::Script;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;
use tracing::debug;

use super::gate::{Gate, LastResults};
use super::millis;
use super::permit::Permit;
use super::refusal::{REDIS, Refusal, reason};
use crate::entry::Priority;
use crate::redis::is_of_keys;
use crate::source::Cost;

pub(super) static TAKE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("lua/state.lua"), include_str!("lua/take_permit.lua"))));

/// The time by which a permit outlives the upstream's timeout before it expires.
const GRACE: Duration = Duration::from_secs(5);
/// The furthest place ahead in the rate limit that a gate may take; high-priority requests may wait that long.
const AHEAD: Duration = Duration::from_secs(1);
/// The time after which a gate asks again for a permit when all are in use, at first and at most.
const POLL: (Duration, Duration) = (Duration::from_millis(15), Duration::from_millis(200));

/// The answer of `take_permit.lua`: a verdict, and the tokens that the answer is expected to cost. The flag of a
/// refusal is the share of the budget to log, as in the other scripts.
type Admission = (String, u64, u8, u8, u64);

impl Gate {
    /// Waits until `deadline` for admission of a request that costs no tokens; see [`Gate::admit_for`].
    ///
    /// # Errors
    /// As [`Gate::admit_for`].
    pub async fn admit(self: &Arc<Self>, priority: Priority, deadline: Instant) -> Result<Permit, Refusal> {
        self.admit_for(priority, deadline, Cost::default()).await
    }

    /// Waits until `deadline` for admission, and until the budget has room for the cost. A request of higher priority
    /// overtakes all waiting requests but the one that asks at that moment.
    ///
    /// # Errors
    /// A refusal with the time after which to ask again. It comes at once if admission is known to come too late,
    /// otherwise at the deadline. The reason is `redis` if Redis does not answer, also by then.
    pub async fn admit_for(
        self: &Arc<Self>,
        priority: Priority,
        deadline: Instant,
        cost: Cost,
    ) -> Result<Permit, Refusal> {
        if let Some(refusal) = self.refusal().filter(|refusal| Instant::now() + refusal.wait > deadline) {
            return Err(refusal);
        }
        match timeout_at(deadline.into(), self.pass(priority, deadline, cost)).await {
            Ok(answer) => answer,
            Err(_) => {
                let reason = self.last().refused.unwrap_or("concurrency");
                Err(self.refusal().unwrap_or_else(|| Refusal::soon(reason)))
            }
        }
    }

    async fn pass(self: &Arc<Self>, priority: Priority, deadline: Instant, cost: Cost) -> Result<Permit, Refusal> {
        let began = Instant::now();
        let _place = self.line.enter(priority).await;
        let (mut poll, mut refused) = (POLL.0, None);
        loop {
            self.line.let_higher_pass(priority).await;
            let Ok(slot) = self.line.slot(priority).await else { return Err(Refusal::soon("concurrency")) };
            let refusal = match self.ask(slot, began, (deadline, refused), cost).await {
                Ok(permit) => return Ok(permit),
                Err(refusal) => refusal,
            };
            self.last().refused = Some(refusal.reason);
            refused = Some(refusal.reason);
            let pause = match refusal.reason {
                REDIS | "limits" => return Err(refusal),
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
                () = self.line.news() => {}
            }
        }
    }

    /// Asks for admission once, and waits until the rate limit lets the request begin. An answer that does not come by
    /// the deadline is a refusal for the reason before, or because of Redis.
    async fn ask(
        self: &Arc<Self>,
        slot: OwnedSemaphorePermit,
        began: Instant,
        (deadline, refused): (Instant, Option<&'static str>),
        cost: Cost,
    ) -> Result<Permit, Refusal> {
        if self.budget.owes() {
            self.refresh().await;
        }
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        if cost.prompt > 0 && self.budget.owes() {
            return Err(Refusal::soon(REDIS));
        }
        let (upstream, broken) = (&self.upstream, self.is_broken());
        let mut permit = Permit::new(self, slot, cost);
        if upstream.rate.is_none() && upstream.concurrency.is_none() && upstream.tokens.is_none() && !broken {
            return Ok(permit);
        }
        // From here on Redis may know it, even if the answer never comes.
        permit.registered = upstream.concurrency.is_some() || broken || (upstream.tokens.is_some() && cost.prompt > 0);
        let taken = timeout_at(deadline.into(), self.take(&permit, began, deadline)).await;
        let (why, wait, flag, health, expected) =
            taken.unwrap_or_else(|_| Err(Refusal::soon(refused.unwrap_or(REDIS))))?;
        let verdict = (why, wait, flag, health);
        self.learn(&verdict);
        let wait = Duration::from_micros(wait);
        if let Some(reason) = reason(&verdict.0) {
            self.budget.tell_spent(&verdict);
            permit.registered = false;
            return Err(Refusal { wait, reason });
        }
        self.last().admitted = Some(Instant::now());
        permit.registered |= flag == 1;
        permit.expected = expected;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            // The upstream may have asked for a pause meanwhile.
            if let Some(refusal) = self.refusal() {
                return Err(refusal);
            }
        }
        Ok(permit)
    }

    /// Sends the request for admission.
    async fn take(&self, permit: &Permit, began: Instant, deadline: Instant) -> Result<Admission, Refusal> {
        let upstream = &self.upstream;
        let (interval, early) = upstream.rate.map_or((0, 0), |rate| pace(rate.count, rate.per));
        let ahead = deadline.saturating_duration_since(Instant::now()).min(AHEAD);
        let waited = self.last().admitted.map_or(began, |admitted| admitted.max(began)).elapsed();
        let returned = self.returned_alone();
        let mut call = self.call(&TAKE);
        call.arg(&permit.id)
            .arg(millis(upstream.timeout + GRACE))
            .arg(upstream.concurrency.unwrap_or(0))
            .arg(interval)
            .arg(early)
            .arg(millis(ahead))
            .arg(self.budget.tokens())
            .arg(&self.id)
            .arg(millis(waited))
            .arg(permit.cost.prompt)
            .arg(permit.cost.answer.unwrap_or(0))
            .arg(returned.ids());
        let answer = call.invoke_async(&mut self.redis.clone()).await.map_err(|error| {
            debug!(upstream = %upstream.name, %error, "cannot ask for admission; the request is refused");
            Refusal::soon(if is_of_keys(&error) { "limits" } else { REDIS })
        })?;
        returned.arrived();
        Ok(answer)
    }

    fn last(&self) -> MutexGuard<'_, LastResults> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the time between two requests and how early one may come, in microseconds (GCRA, as in ITU-T I.371). Never
/// more than `count` requests begin in any `per`: a burst of a tenth, and the rest evenly.
pub(super) fn pace(count: u32, per: Duration) -> (u64, u64) {
    let count = u64::from(count.max(1));
    let burst = (count / 10).max(1);
    let per = u64::try_from(per.as_micros()).unwrap_or(u64::MAX);
    let interval = per.div_ceil(count - burst + 1).max(1);
    (interval, interval * (burst - 1))
}
