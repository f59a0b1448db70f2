//! One attempt to warm an entry: a pipeline of steps with one exit.
//!
//! ```text
//! prepare → admit → lease → confirm → fetch → commit
//! ```
//!
//! A step returns what the next one needs, or a [`Stop`] that ends the attempt.
//!
//! Invariant: when [`Warmer::attempt`] returns, the attempt holds neither permit nor lease. A commit and a noted
//! failure end the lease themselves, and a request gives its permit back; [`Attempt::give_back`] gives back what is
//! left after an early end, an error of Redis or a panic.
//!
//! On failure: a cancelled attempt is dropped. Its permit then goes back with the next
//! [`crate::source::Gate::refresh`], its lease with [`Warmer::hand_back`]. While Redis does not answer, the permit
//! waits for that refresh too, and the lease is given back with a later task, or expires. A permit that nobody gives
//! back expires 5 s after its upstream's timeout.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use redis::{RedisError, RedisResult};
use serde_json::{Map, Value};
use tokio::sync::MutexGuard;
use tracing::error;

use super::bulk::{Admission, Coming, Gatherer};
use super::ending::Ending;
use super::freshness::fresh;
use super::inputs::{Lack, Missing};
use super::recheck::{Needs, with_next_recheck};
use super::{INPUT_WAIT, Running, SHORT_WAIT, Warmer};
use crate::agenda::{Next, Pace, When, keep};
use crate::entry::{EntryKey, Outcome, Priority, Trigger, Validators};
use crate::job::{Job, Params};
use crate::redis::RedisTime;
use crate::source::{Answer, Ended};
use crate::store::{Fresh, HeldBack, Lease, Leased, Rechecks, Removal, Versions};
use crate::store::{POISON_CRASHES, SUSPECT_CRASHES, poison_reason};

/// Rounds of fetch and commit under one lease; each invalidation costs one. After the last, the entry is due again.
const ROUNDS: usize = 5;

/// The cause that ends an attempt before its commit.
#[derive(Debug)]
pub(super) enum Stop {
    /// This ending, of which the entry's metadata note nothing.
    End(Ending),
    /// A fetch without a value, which the entry's metadata must note: see [`Attempt::note_failure`].
    NoValue(Ending),
    /// An answer that is not stored since it is old, and the rechecks that are then to come, if they are others.
    Refused(Ending, Option<Rechecks>),
    /// An answer that the entry is gone, whose removal the job's guard holds back.
    HeldBack(Ending, HeldBack),
    /// An error of Redis.
    Redis(RedisError),
}

impl From<RedisError> for Stop {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

/// The result of a step.
pub(super) type Step<T> = Result<T, Stop>;

/// An attempt under way, with what it holds.
pub(super) struct Attempt<'a> {
    pub(super) warmer: &'a Warmer,
    pub(super) job: &'a Arc<Job>,
    pub(super) entry: &'a Running,
    /// The values of the key's placeholders.
    pub(super) params: Params,
    /// The values of the inputs by name.
    pub(super) inputs: Map<String, Value>,
    /// An input that is gone, and with it the entry.
    pub(super) gone_input: Option<EntryKey>,
    /// The number of the source that is asked first, and its admission.
    pub(super) admission: Option<(usize, Admission)>,
    /// Announces the entry to those that it may be asked for with, until it is admitted.
    pub(super) coming: Option<Coming>,
    /// The pace of the entries that this one was asked for with.
    pub(super) pace: Option<Pace>,
    /// The token of the lease, while the attempt holds one or may hold one.
    pub(super) token: Option<String>,
    /// An entry that is evicted meanwhile stays away.
    keeps_absent: bool,
    /// Held by an attempt at an entry that may crash the worker: only one such attempt runs at a time.
    pub(super) suspect: Option<MutexGuard<'a, ()>>,
}

impl Warmer {
    /// Makes one attempt to warm an entry. Whatever ends it, the permit and the lease are given back.
    pub(super) async fn attempt(&self, job: &Arc<Job>, entry: &Running) -> Ending {
        let mut attempt = Attempt {
            warmer: self,
            job,
            entry,
            params: Params::new(),
            inputs: Map::new(),
            gone_input: None,
            admission: None,
            coming: self.gatherer(job, 0).map(Gatherer::announce),
            pace: None,
            token: None,
            keeps_absent: false,
            suspect: None,
        };
        let ended = AssertUnwindSafe(attempt.run()).catch_unwind().await;
        attempt.give_back().await;
        let draw = attempt.draw();
        drop(attempt);
        match ended {
            Ok(
                Ok(ending)
                | Err(Stop::End(ending) | Stop::NoValue(ending) | Stop::Refused(ending, _) | Stop::HeldBack(ending, _)),
            ) => {
                let kept =
                    async { self.keep_stale(job, entry, self.before_expiry(job, entry, ending).await, draw).await };
                let kept = AssertUnwindSafe(kept).catch_unwind().await;
                kept.unwrap_or_else(|_| panicked(job, entry))
            }
            Ok(Err(Stop::Redis(e))) => Ending::because(Outcome::Deferred, Next::In(SHORT_WAIT), format!("redis: {e}")),
            Err(_) => panicked(job, entry),
        }
    }
}

/// Logs a panic, and returns the ending of its entry.
fn panicked(job: &Job, entry: &Running) -> Ending {
    let (job, key) = (&job.name, &entry.key);
    error!(%job, %key, "warming panicked; the entry becomes a dead letter: please report this");
    Ending::dead("warming panicked, which is a bug in Samovar: see the log, and report it".to_owned())
}

impl Attempt<'_> {
    /// Gives back what the attempt still holds: the one exit of all its paths.
    async fn give_back(&mut self) {
        self.return_permit().await;
        let Some(token) = self.token.take() else { return };
        // An invalidation that marked the lease has marked the value too, or has taken the entry off the agenda.
        let until = Instant::now() + self.warmer.lease_time(self.job);
        self.warmer.give_back(self.entry.key.clone(), token, until).await;
    }

    /// Gives the permit back unused, which says nothing about the upstream.
    pub(super) async fn return_permit(&mut self) {
        match self.admission.take() {
            Some((_, Admission::Alone(Some(permit)))) => permit.done(Ended::Unused).await,
            Some((_, Admission::Together(member))) => member.leave().await,
            Some((_, Admission::Alone(None))) | None => {}
        }
    }

    /// Returns a random number from 0 to 1 for the wait before a retry: the same for entries that were asked for
    /// together.
    pub(super) fn draw(&self) -> f64 {
        self.pace.map_or_else(rand::random, |pace| pace.draw)
    }

    /// Runs the steps.
    async fn run(&mut self) -> Step<Ending> {
        self.prepare().await?;
        self.admit().await?;
        self.coming = None;
        let (mut lease, score) = self.lease().await?;
        match self.run_under(&mut lease, score).await {
            Err(Stop::NoValue(failure)) => Ok(self.note_failure(&lease, failure).await?),
            Err(Stop::Refused(refused, rechecks)) => Ok(self.note_refusal(&lease, refused, rechecks).await?),
            Err(Stop::HeldBack(ending, held)) => Ok(self.note_held_back(&lease, ending, held).await?),
            ended => ended,
        }
    }

    /// Runs the steps that need the lease. `score` is the entry's on the agenda when the lease began.
    async fn run_under(&mut self, lease: &mut Lease, score: Option<f64>) -> Step<Ending> {
        self.confirm(lease, score).await?;
        let mut round = self.first_round(lease);
        for _ in 0..ROUNDS {
            let known = self.known(lease, &round);
            let answer = self.answer(lease, known.as_ref()).await?;
            if let Some(ending) = self.commit(lease, &mut round, &answer, known).await? {
                return Ok(ending);
            }
        }
        Err(Stop::End(Ending::overtaken()))
    }

    /// Returns the answer of a source. If an input is gone, so is the entry, and none is asked.
    async fn answer(&mut self, lease: &mut Lease, known: Option<&Validators>) -> Step<Answer> {
        // No version is waited for then.
        lease.versions = if self.gone_input.is_some() { Versions::default() } else { self.versions() };
        if self.gone_input.is_none() {
            return self.fetch(lease, known).await;
        }
        self.return_permit().await;
        Ok(Answer::Gone)
    }

    /// Reads the inputs at `now`; returns one that the entry has to wait for, or whose fetch was given up.
    pub(super) async fn read_inputs(&mut self, now: RedisTime) -> RedisResult<Option<Missing>> {
        let found = self.warmer.inputs(self.job, &self.params, self.entry, now).await?;
        (self.inputs, self.gone_input) = (Map::new(), None);
        match found {
            Ok(inputs) => self.inputs = inputs,
            Err(Missing { key, lack: Lack::Gone }) => self.gone_input = Some(key),
            Err(missing) => return Ok(Some(missing)),
        }
        Ok(None)
    }

    /// Reads the key's parameters and the inputs; ends the attempt where no fetch is needed or possible.
    async fn prepare(&mut self) -> Step<()> {
        let (warmer, job, key) = (self.warmer, self.job, &self.entry.key);
        let Some(params) = job.key.read(key.as_str()) else {
            // A newer file may have the key.
            if let Some(at) = warmer.invalidated(key).await?
                && warmer.store.newer_file(job).await?.is_none()
            {
                match warmer.jobs.owner(key.as_str()) {
                    Some((owner, _)) => {
                        warmer.agenda.put(&owner.name, [key], When::NOW, Trigger::Invalidation).await?;
                    }
                    // No job fetches it anew, so an open invalidation can only remove it.
                    None => _ = warmer.store.invalidate(key, at, Removal::Evict).await?,
                }
            }
            let reason = "the job's key pattern has changed and does not match it, so nothing makes it anew";
            return Err(Stop::End(Ending::because(Outcome::Unowned, Next::Out, reason)));
        };
        if !job.entries.lists(&params)
            && self.may_be_unwanted().await?
            && !warmer.popularity.wanted(job, key).await?
            && !warmer.is_unsettled(key).await?
        {
            let reason = match self.entry.trigger {
                Trigger::Cron => "neither a list nor a feed names it any more, and it is read too rarely to be fetched",
                _ => "it is read too rarely: it is left to expire",
            };
            return Err(Stop::End(Ending::because(Outcome::Unread, Next::Out, reason)));
        }
        if let Some(absent) = warmer.known_absent(job, self.entry).await? {
            return Err(Stop::End(absent));
        }
        if self.entry.trigger == Trigger::Recheck {
            match warmer.recheck(job, self.entry).await? {
                Needs::Nothing { outcome, next, reason } => {
                    let reason = reason.map(str::to_owned);
                    return Err(Stop::End(Ending { reason, ..Ending::new(outcome, next) }));
                }
                Needs::Fetch { absent } => self.keeps_absent = !absent,
            }
        }
        warmer.remember(job, key, &params).await?;
        self.params = params;
        let now = self.entry.since + self.entry.late;
        match self.read_inputs(now).await? {
            None => Ok(()),
            Some(Missing { key: input, lack: Lack::GivenUp(why) }) => {
                Err(Stop::End(self.give_up_input(&input, &why).await?))
            }
            Some(missing) => Err(Stop::End(Ending::input_missing(&missing, now))),
        }
    }

    /// Tells that an entry that its job does not list may be wanted no more: its value is about to expire, or it has
    /// none and waits since a warmup that may not be the last one.
    async fn may_be_unwanted(&self) -> RedisResult<bool> {
        let (warmer, entry) = (self.warmer, self.entry);
        match entry.trigger {
            Trigger::Expiry => Ok(true),
            // One of a higher priority was asked for besides.
            Trigger::Cron
                if entry.priority == Priority::Normal
                    && !warmer.popularity.is_of_last_answer(&self.job.name, entry.since) =>
            {
                let there = warmer.store.snapshot(&entry.key).await?.has_value();
                // A dead letter that is tried again need not be named: it may have been asked for.
                Ok(!there && !warmer.agenda.is_dead(&self.job.name, &entry.key).await?)
            }
            _ => Ok(false),
        }
    }

    /// Waits for a permit of the first source that admits a request, unless the value may be kept without a request.
    async fn admit(&mut self) -> Step<()> {
        let (warmer, job) = (self.warmer, self.job);
        if self.gone_input.is_some() || self.is_kept_unasked().await? {
            return Ok(());
        }
        if job.may_hold_unasked() && warmer.store.leased(std::slice::from_ref(&self.entry.key)).await? == [true] {
            // A permit would spend a request of the upstream's rate, and the entry may be kept after the other fetch.
            return Err(Stop::End(Ending::new(Outcome::Busy, Next::In(SHORT_WAIT))));
        }
        let now = self.entry.since + self.entry.late;
        if let Some(input) = warmer.awaited_input(job, &self.params, now).await? {
            let reason = format!("waits for its input {input}, which was invalidated");
            return Err(Stop::End(Ending::because(Outcome::Deferred, Next::In(INPUT_WAIT), reason)));
        }
        // Other entries of such a job may need no request while the upstream is closed: this one makes room for them.
        let is_futile = job.may_hold_unasked() && warmer.is_closed(job);
        let wait = if is_futile { Duration::ZERO } else { warmer.admission_wait };
        self.admission = Some(self.admit_any(Instant::now() + wait).await.map_err(Stop::End)?);
        Ok(())
    }

    /// Takes the lease; ends the attempt where another worker has it or the value is fresh. Returns the lease and the
    /// entry's score on the agenda, read in the same round trip.
    async fn lease(&mut self) -> Step<(Box<Lease>, Option<f64>)> {
        let (warmer, job, key) = (self.warmer, self.job, &self.entry.key);
        let is_outdated = warmer.is_outdated(job, key, &self.params).await?;
        let fresh = if is_outdated { Fresh::default() } else { fresh(job, self.entry) };
        let fresh = Fresh { absent: self.keeps_absent, ..fresh };
        let mut wary = Fresh { most_crashes: Some(SUSPECT_CRASHES), ..fresh };
        let (mut leased, mut score) = self.ask_lease(wary).await?;
        if let Leased::Fresh { found, .. } = &leased
            && found.was_held_back()
        {
            // However long such a value may live, its source must be asked again.
            wary = Fresh { most_crashes: wary.most_crashes, absent: self.keeps_absent, ..Fresh::default() };
            (leased, score) = self.ask_lease(wary).await?;
        }
        // A suspect takes its lease when its turn comes: a crash counts for every entry that has a lease then.
        if let Leased::Poison = leased {
            self.suspect = warmer.suspect.try_lock().ok();
        }
        if self.suspect.is_some() {
            (leased, score) = self.ask_lease(Fresh { most_crashes: None, ..wary }).await?;
        }
        match leased {
            Leased::Yes(lease) => Ok((lease, score)),
            refused => Err(Stop::End(self.without_lease(refused).await?)),
        }
    }

    /// Asks for the lease, and for the entry's score on the agenda. If the answer is lost, the token is noted all the
    /// same: the attempt gives back what it may hold.
    pub(super) async fn ask_lease(&mut self, fresh: Fresh) -> RedisResult<(Leased, Option<f64>)> {
        let (warmer, key) = (self.warmer, &self.entry.key);
        let (time, ask_score) = (warmer.lease_time(self.job), warmer.agenda.ask_score(&self.job.name, key));
        let token = warmer.store.token();
        self.hold(Some(token.clone()));
        let (leased, score) = warmer.store.lease_and(key, token, time, fresh, &ask_score).await?;
        if !matches!(leased, Leased::Yes(_)) {
            self.hold(None);
        }
        Ok((leased, score))
    }

    /// Notes the token of the lease that the attempt holds or may hold.
    fn hold(&mut self, token: Option<String>) {
        self.token.clone_from(&token);
        self.warmer.in_flight.hold(self.entry.place(self.job), token);
    }

    /// Returns the ending of an entry that got no lease.
    async fn without_lease(&mut self, refused: Leased) -> RedisResult<Ending> {
        // Others may use the permit while dependants are woken.
        self.return_permit().await;
        let (warmer, job, entry) = (self.warmer, self.job, self.entry);
        Ok(match refused {
            // The agenda's entry is ours, so the lease's holder cannot end it there.
            Leased::Busy(left) => Ending::new(Outcome::Busy, Next::In(left.min(SHORT_WAIT))),
            Leased::WrongType(kind) => Ending::wrong_type(&format!("a {kind}")),
            Leased::Absent => {
                let snapshot = warmer.store.snapshot(&entry.key).await?;
                let (next, reason) = warmer.next_without_value(job, &snapshot).await?;
                Ending::because(Outcome::Unchanged, next, reason)
            }
            Leased::Fresh { now, found } => {
                if let Some(meta) = found.ours() {
                    warmer.wake_outdated(&entry.key, meta.content_since).await?;
                }
                if entry.trigger == Trigger::Demand {
                    // Another writer has written what entries made from it wait for.
                    warmer.wake_waiting(&entry.key).await?;
                }
                let next = keep(job, &entry.key, found.expiry);
                let next = match &found.meta {
                    Some(meta) => with_next_recheck(job, meta, now, next),
                    None => next,
                };
                Ending::new(Outcome::Unchanged, next)
            }
            Leased::Poison | Leased::Yes(_) => {
                let reason = "its worker crashed while it was fetched: it waits for its turn to be fetched alone";
                Ending::because(Outcome::Deferred, Next::In(SHORT_WAIT), reason)
            }
        })
    }

    /// Confirms under the lease that the entry is still to be fetched, and reads its inputs again: both may have
    /// changed while it waited for its upstream. The value counts as made when the lease began, so no input may be
    /// older.
    async fn confirm(&mut self, lease: &Lease, score: Option<f64>) -> Step<()> {
        let (warmer, job, entry) = (self.warmer, self.job, self.entry);
        let crashes = lease.before.meta.as_ref().map_or(0, |meta| meta.last_attempt.crashes);
        if crashes >= POISON_CRASHES && entry.trigger != Trigger::Manual {
            return Err(Stop::End(Ending::dead(poison_reason(crashes))));
        }
        if !entry.is_wanted(score) {
            // The eviction found no lease to mark. Fetched now, the entry would be back before the next warmup or
            // demand.
            let reason = "evicted while it waited for its upstream";
            return Err(Stop::End(Ending::because(Outcome::Fenced, Next::Out, reason)));
        }
        if job.inputs.is_empty() {
            return Ok(());
        }
        let awaited = match &self.admission {
            Some(_) => warmer.awaited_input(job, &self.params, lease.fetched_at).await?,
            None => None,
        };
        let missing = match awaited {
            Some(key) => Some(Missing { key, lack: Lack::Unfetched }),
            None => self.read_inputs(lease.fetched_at).await?,
        };
        match missing {
            Some(missing) => Err(Stop::NoValue(Ending::input_missing(&missing, lease.fetched_at))),
            None => Ok(()),
        }
    }
}
