//! Groups of entries that share one request to their source.
//!
//! Responsibility: an attempt at an entry joins a [`Group`] where it would wait for a permit alone. The group gathers
//! members until it is full or its time is up, and gets one permit for all. Its members then take their leases by
//! themselves; those that have one are asked for together, and each commits its part of the answer by itself. A group
//! that is refused because of one of its entries is asked for in halves.
//!
//! Invariant: a group depends on no member. Its steps are a task of their own, which ends with its last member. A member
//! that leaves, is cancelled or panics leaves its seat, and those with leases wait for the others only as long as the time
//! for their answer allows. The permit goes back in every case.
//!
//! On failure: a panic of the task fails the fetches of the members that wait for it.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::{Map, Value};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::SHORT_WAIT;
use super::admission::pass;
use super::ending::Ending;
use crate::agenda::{Next, Pace};
use crate::entry::{JobName, Outcome, Priority, UpstreamName};
use crate::job::{Job, Jobs, Params};
use crate::redis::RedisTime;
use crate::source::{Cost, Ended, FetchError, Gate, Many, Part, Permit, Sources};

/// The longest time that may pass between two members who get their leases: then the others come too late.
pub(super) const DECISION: Duration = Duration::from_secs(2);
/// The longest time that may pass between two members who join, while others are on their way.
const STEP: Duration = Duration::from_secs(1);
/// The longest wait of a member for others while it holds its lease.
const LEASED_WAIT: Duration = Duration::from_millis(20);

/// The gatherers of a warmer, by job and number of the source.
pub(super) type Gatherers = BTreeMap<(JobName, usize), Arc<Gatherer>>;

/// Returns the gatherers of jobs whose sources ask for many entries at once.
pub(super) fn gatherers(
    jobs: &Jobs,
    sources: &Sources,
    gates: &BTreeMap<UpstreamName, Arc<Gate>>,
    drain: &CancellationToken,
) -> Gatherers {
    let mut gatherers = Gatherers::new();
    for job in jobs.jobs.values() {
        for (number, source) in job.sources.iter().enumerate() {
            let properties = source.properties();
            let gate = properties.upstream.and_then(|upstream| gates.get(upstream));
            let Some((gate, wait)) = gate.zip(properties.gathers) else { continue };
            let gatherer = Gatherer {
                job: Arc::clone(job),
                source: number,
                size: properties.at_once,
                wait,
                timeout: jobs.timeout(source),
                sources: sources.clone(),
                gate: Arc::clone(gate),
                drain: drain.clone(),
                open: Mutex::default(),
                coming: AtomicUsize::new(0),
            };
            gatherers.insert((job.name.clone(), number), Arc::new(gatherer));
        }
    }
    gatherers
}

/// The admission of a request to a source.
pub(super) enum Admission {
    /// Of a request for one entry, with the permit of its upstream. A source without a server needs none.
    Alone(Option<Permit>),
    /// Of a request that other entries share.
    Together(Member),
}

/// Brings entries of a job together that are to be asked for in one request.
pub(super) struct Gatherer {
    job: Arc<Job>,
    source: usize,
    /// The most members of a group.
    size: usize,
    /// The longest time for which a group gathers them.
    wait: Duration,
    timeout: Duration,
    sources: Sources,
    gate: Arc<Gate>,
    drain: CancellationToken,
    /// The group that was opened last, as long as it has members.
    open: Mutex<Weak<Running>>,
    /// The number of entries that are about to join a group.
    coming: AtomicUsize,
}

/// An entry that is about to join a group, until it is dropped.
pub(super) struct Coming(Arc<Gatherer>);

impl Drop for Coming {
    fn drop(&mut self) {
        if self.0.coming.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(running) = self.0.open().upgrade()
        {
            running.group.changed.notify_waiters();
        }
    }
}

impl std::fmt::Debug for Gatherer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gatherer").field("job", &self.job.name).field("source", &self.source).finish_non_exhaustive()
    }
}

/// Why a member has no part of an answer.
#[derive(Clone, Debug)]
pub(super) enum Unanswered {
    /// The group was asked for before this member had its lease.
    Late,
    /// The upstream admits no request; this is the ending of the entry.
    Refused(Ending),
    /// There is no usable answer.
    Failed(FetchError),
}

/// The part of a member in an answer, and the pace of those that were asked for together.
pub(super) type Told = (Result<Part, Unanswered>, Pace);

/// The request that a member makes with the others of its group.
pub(super) struct Wanted {
    pub(super) params: Params,
    pub(super) inputs: Map<String, Value>,
    /// When its lease began.
    pub(super) fetched_at: RedisTime,
    /// When its answer must be there.
    pub(super) deadline: Instant,
}

/// Entries that share a request.
struct Group {
    state: Mutex<State>,
    /// A member came, went or decided.
    changed: Notify,
    /// Cancelled when its steps have ended.
    over: CancellationToken,
}

/// A group and the task that takes it through its steps, which ends with the last member.
struct Running {
    group: Arc<Group>,
    _steps: JoinSet<()>,
}

struct State {
    stage: Stage,
    /// The highest priority of the members, until a permit is waited for.
    priority: Priority,
    /// The latest time at which a permit is of use to a member.
    until: Instant,
    /// When it is asked for at the latest, whether it is full or not.
    gathers_until: Instant,
    /// When a member joined last.
    joined_at: Instant,
    /// When a member took its lease or left last.
    decided_at: Instant,
    seats: BTreeMap<u64, Seat>,
    last_seat: u64,
    /// The number of members without a lease.
    undecided: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Gathering,
    /// It waits for its permit, and may still grow.
    Waiting,
    /// It has its permit, and its members take their leases.
    Admitted,
    /// Its request is sent, or it was refused.
    Over,
}

/// The place of a member in its group.
struct Seat {
    admitted: Option<oneshot::Sender<Result<(), Ending>>>,
    wanted: Option<(Wanted, oneshot::Sender<Told>)>,
}

/// A member of a group. It leaves the group when it is dropped.
pub(super) struct Member {
    running: Arc<Running>,
    seat: u64,
}

impl Gatherer {
    /// Announces an entry that is about to join a group.
    pub(super) fn announce(self: &Arc<Self>) -> Coming {
        self.coming.fetch_add(1, Ordering::AcqRel);
        Coming(Arc::clone(self))
    }

    /// Waits until `until` for a permit that is shared with other entries; returns the ending of an entry that gets
    /// none. A member with high priority waits for no others, and one with its lease only for a moment. `coming` is what
    /// announced the entry.
    pub(super) async fn admit(
        self: &Arc<Self>,
        priority: Priority,
        until: Instant,
        is_leased: bool,
        coming: Option<Coming>,
    ) -> Result<Member, Ending> {
        let wait = match priority {
            Priority::High => Duration::ZERO,
            Priority::Bulk | Priority::Normal if is_leased => self.wait.min(LEASED_WAIT),
            Priority::Bulk | Priority::Normal => self.wait,
        };
        let (member, admitted) = self.join(priority, until, Instant::now() + wait);
        drop(coming);
        match timeout_at(until.into(), admitted).await {
            Ok(Ok(admitted)) => admitted.map(|()| member),
            // The task panicked, or Redis and the upstream let it wait for too long.
            Ok(Err(_)) | Err(_) => {
                let reason = format!("upstream {} admits no request in time", self.gate.upstream().name);
                Err(Ending::because(Outcome::Deferred, Next::In(SHORT_WAIT), reason))
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, Weak<Running>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the open group, or opens another one.
    fn join(
        self: &Arc<Self>,
        priority: Priority,
        until: Instant,
        gathers_until: Instant,
    ) -> (Member, oneshot::Receiver<Result<(), Ending>>) {
        let mut open = self.open();
        let (sender, admitted) = oneshot::channel();
        let mut sender = Some(sender);
        if let Some(running) = open.upgrade()
            && let Some(seat) = running.group.seat(self.size, priority, (until, gathers_until), &mut sender)
        {
            return (Member { running, seat }, admitted);
        }
        let group = Arc::new(Group::new(priority, until, gathers_until));
        // Before others may fill it up.
        let seat = group.seat(self.size, priority, (until, gathers_until), &mut sender).unwrap_or_default();
        let mut steps = JoinSet::new();
        steps.spawn(Arc::clone(self).run(Arc::clone(&group)));
        let running = Arc::new(Running { group, _steps: steps });
        *open = Arc::downgrade(&running);
        (Member { running, seat }, admitted)
    }

    /// Takes a group through its steps.
    async fn run(self: Arc<Self>, group: Arc<Group>) {
        if AssertUnwindSafe(self.steps(&group)).catch_unwind().await.is_err() {
            error!(job = %self.job.name, "a request for several entries panicked: please report this");
        }
        group.end();
    }

    async fn steps(&self, group: &Group) {
        tokio::select! {
            () = group.gathered(self.size, &self.coming) => {}
            () = self.drain.cancelled() => {}
        }
        let (priority, until) = group.begin_to_wait();
        let permit = match self.pass(priority, until).await {
            Ok(permit) => permit,
            Err(ending) => return group.tell(&Err(ending)),
        };
        group.tell(&Ok(()));
        group.decided(self.timeout).await;
        self.ask(group.wanted(), permit, priority).await;
    }

    async fn pass(&self, priority: Priority, until: Instant) -> Result<Permit, Ending> {
        let is_last = self.source + 1 == self.job.sources.len();
        pass(&self.gate, &self.drain, is_last, Cost::default(), priority, until).await
    }

    /// Waits for another permit of the same group. The time left must suffice for the answer.
    async fn pass_again(&self, priority: Priority, until: Instant) -> Result<Permit, Ending> {
        if Instant::now() < until {
            return self.pass(priority, until).await;
        }
        let reason = "the requests for entries that were to be asked for with it took too long";
        Err(Ending::because(Outcome::Deferred, Next::In(SHORT_WAIT), reason))
    }

    /// Asks for these entries, and tells each its part of the answer. A request that may be refused because of one of
    /// them is made again in halves, each under a permit of its own.
    async fn ask(&self, wanted: Vec<(Wanted, oneshot::Sender<Told>)>, permit: Permit, priority: Priority) {
        let mut permit = Some(permit);
        let leased = || wanted.iter().map(|(wanted, _)| wanted.fetched_at);
        let (since, last) = (leased().min().unwrap_or_default(), leased().max().unwrap_or_default());
        let pace = Pace { since, last, told: Instant::now(), draw: rand::random() };
        let mut parts = VecDeque::from([wanted]);
        while let Some(mut part) = parts.pop_front() {
            part.retain(|(_, told)| !told.is_closed());
            part.sort_by(|(one, _), (other, _)| one.params.cmp(&other.params));
            let Some(deadline) = part.iter().map(|(wanted, _)| wanted.deadline).min() else { continue };
            let entries: Vec<_> = part.iter().map(|(wanted, _)| (&wanted.params, &wanted.inputs)).collect();
            let is_lone = entries.len() == 1;
            let answer = match self.sources.request_many(&self.job, self.source, &entries) {
                Ok(request) if !request.is_too_long() => {
                    let admitted = match permit.take() {
                        Some(permit) => Ok(permit),
                        None => self.pass_again(priority, deadline - self.timeout).await,
                    };
                    match admitted {
                        Ok(permit) => match self.sources.fetch_many(&request, permit, deadline).await {
                            Many { is_divisible: true, .. } if !is_lone => None,
                            Many { parts, .. } => Some(parts.map_err(Unanswered::Failed)),
                        },
                        Err(ending) => Some(Err(Unanswered::Refused(ending))),
                    }
                }
                Err(error) if is_lone => Some(Err(Unanswered::Failed(error))),
                Ok(_) | Err(_) => None,
            };
            match answer {
                Some(answer) => tell_parts(part, answer, Pace { told: Instant::now(), ..pace }),
                None => {
                    let half = part.split_off(part.len() / 2);
                    parts.push_front(half);
                    parts.push_front(part);
                }
            }
        }
        if let Some(permit) = permit {
            permit.done(Ended::Unused).await;
        }
    }
}

/// Tells each of these members its part of an answer.
fn tell_parts(wanted: Vec<(Wanted, oneshot::Sender<Told>)>, answer: Result<Vec<Part>, Unanswered>, pace: Pace) {
    let (mut parts, error) = match answer {
        Ok(parts) => (parts.into_iter(), Unanswered::Late),
        Err(error) => (Vec::new().into_iter(), error),
    };
    for (_, told) in wanted {
        let part = parts.next().ok_or_else(|| error.clone());
        // A member that was cancelled hears nothing.
        let _ = told.send((part, pace));
    }
}

impl Group {
    fn new(priority: Priority, until: Instant, gathers_until: Instant) -> Self {
        let (stage, now, seats) = (Stage::Gathering, Instant::now(), BTreeMap::new());
        let (joined_at, decided_at) = (now, now);
        let state =
            State { stage, priority, until, gathers_until, joined_at, decided_at, seats, last_seat: 0, undecided: 0 };
        Self { state: Mutex::new(state), changed: Notify::new(), over: CancellationToken::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a seat for another member; `None` if the group takes it no more. A group that waits for its permit with
    /// a lower priority would hold up the member.
    fn seat(
        &self,
        size: usize,
        priority: Priority,
        (until, gathers_until): (Instant, Instant),
        admitted: &mut Option<oneshot::Sender<Result<(), Ending>>>,
    ) -> Option<u64> {
        let mut state = self.state();
        let is_open = match state.stage {
            Stage::Gathering => true,
            Stage::Waiting => state.priority >= priority,
            Stage::Admitted | Stage::Over => false,
        };
        if !is_open || state.seats.len() >= size {
            return None;
        }
        let is_hastened = gathers_until < state.gathers_until || priority > state.priority;
        state.priority = state.priority.max(priority);
        state.until = state.until.max(until);
        state.gathers_until = state.gathers_until.min(gathers_until);
        state.joined_at = Instant::now();
        state.last_seat += 1;
        state.undecided += 1;
        let seat = state.last_seat;
        state.seats.insert(seat, Seat { admitted: admitted.take(), wanted: None });
        if is_hastened || state.seats.len() >= size {
            self.changed.notify_waiters();
        }
        Some(seat)
    }

    /// Takes a member off its seat, if it still has one; returns `true` if the group has its permit and nobody is left.
    fn leave(&self, seat: u64) -> bool {
        let mut state = self.state();
        if let Some(seat) = state.seats.remove(&seat) {
            state.decided_at = Instant::now();
            state.undecided -= usize::from(seat.wanted.is_none());
            self.notify_if_decided(&state);
        }
        state.seats.is_empty() && state.stage == Stage::Admitted
    }

    /// Wakes the group once all its members have decided. A change that only prolongs its wait does not.
    fn notify_if_decided(&self, state: &State) {
        if state.undecided == 0 {
            self.changed.notify_waiters();
        }
    }

    /// Waits until the time that the group's state tells; `None` stands for now.
    async fn wait_until(&self, end: impl Fn(&State) -> Option<Instant>) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let Some(end) = end(&self.state()).filter(|end| *end > Instant::now()) else { return };
            tokio::select! {
                () = changed => {}
                () = sleep_until(end.into()) => {}
            }
        }
    }

    /// Waits until the group is full or has gathered long enough. While entries are `coming`, it gathers on, unless a
    /// member has high priority.
    async fn gathered(&self, size: usize, coming: &AtomicUsize) {
        self.wait_until(|state| {
            let gathers_on = state.priority < Priority::High && coming.load(Ordering::Acquire) > 0;
            let end = if gathers_on { state.gathers_until.max(state.joined_at + STEP) } else { state.gathers_until };
            (state.seats.len() < size).then_some(end)
        })
        .await;
    }

    /// Returns the priority of the group, and how long a permit is of use to it.
    fn begin_to_wait(&self) -> (Priority, Instant) {
        let mut state = self.state();
        state.stage = Stage::Waiting;
        (state.priority, state.until)
    }

    /// Tells all members that they are admitted, or how they end.
    fn tell(&self, admitted: &Result<(), Ending>) {
        let mut state = self.state();
        state.stage = if admitted.is_ok() { Stage::Admitted } else { Stage::Over };
        state.decided_at = Instant::now();
        for told in state.seats.values_mut().filter_map(|seat| seat.admitted.take()) {
            let _ = told.send(admitted.clone());
        }
    }

    /// Waits until each member has its lease or has left, as long as one after the other does, and the answer may take
    /// its whole time.
    async fn decided(&self, timeout: Duration) {
        self.wait_until(|state| {
            let ready = state.seats.values().filter_map(|seat| seat.wanted.as_ref());
            let last = ready.map(|(wanted, _)| wanted.deadline - timeout).min();
            let end = state.decided_at + DECISION;
            (state.undecided > 0).then_some(last.map_or(end, |last| last.min(end)))
        })
        .await;
    }

    /// Returns what the members with leases ask for. The others come too late.
    fn wanted(&self) -> Vec<(Wanted, oneshot::Sender<Told>)> {
        let mut state = self.state();
        state.stage = Stage::Over;
        state.undecided = 0;
        std::mem::take(&mut state.seats).into_values().filter_map(|seat| seat.wanted).collect()
    }

    /// Ends the group: who still waits hears nothing more.
    fn end(&self) {
        let mut state = self.state();
        state.stage = Stage::Over;
        state.undecided = 0;
        state.seats.clear();
        self.over.cancel();
    }
}

impl Member {
    /// Waits for the part of this member, which has its lease now.
    pub(super) async fn answer(self, wanted: Wanted) -> Told {
        let (since, last) = (wanted.fetched_at, wanted.fetched_at);
        let pace = Pace { since, last, told: Instant::now(), draw: rand::random() };
        let (sender, told) = oneshot::channel();
        {
            let mut state = self.running.group.state();
            let Some(seat) = state.seats.get_mut(&self.seat) else { return (Err(Unanswered::Late), pace) };
            seat.wanted = Some((wanted, sender));
            state.decided_at = Instant::now();
            state.undecided -= 1;
            self.running.group.notify_if_decided(&state);
        }
        told.await.unwrap_or_else(|_| {
            let reason =
                "a request for several entries panicked, which is a bug in Samovar: see the log, and report it";
            (Err(Unanswered::Failed(FetchError::Answer(reason.to_owned()))), pace)
        })
    }

    /// Leaves the group. The last member to leave gives its permit back.
    pub(super) async fn leave(self) {
        if self.running.group.leave(self.seat) {
            self.running.group.over.cancelled().await;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.running.group.leave(self.seat);
    }
}
