//! A group of entries that share a request, and the seats of its members.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::agenda::Pace;
use crate::entry::Priority;
use crate::job::Params;
use crate::redis::RedisTime;
use crate::source::{FetchError, Part};
use crate::warmer::ending::Ending;

/// The longest time that may pass between two members who join, while others are on their way.
const STEP: Duration = Duration::from_secs(1);
/// The longest time in which the members of a group take their leases. Its permit holds for a second longer than that
/// beyond the time for the answer.
const ALL_DECIDED: Duration = Duration::from_secs(4);

/// Why a member has no part of an answer.
#[derive(Clone, Debug)]
pub(in crate::warmer) enum Unanswered {
    /// The upstream admits no request; this is the ending of the entry.
    Refused(Ending),
    /// There is no usable answer.
    Failed(FetchError),
}

/// The part of a member in an answer, and the pace of those that were asked for together.
pub(in crate::warmer) type Told = (Result<Part, Unanswered>, Pace);

/// The request that a member makes with the others of its group.
pub(in crate::warmer) struct Wanted {
    pub(in crate::warmer) params: Params,
    pub(in crate::warmer) inputs: Map<String, Value>,
    /// When its lease began.
    pub(in crate::warmer) fetched_at: RedisTime,
    /// When its answer must be there.
    pub(in crate::warmer) deadline: Instant,
}

/// A member with its lease that waits for its part of an answer.
pub(super) type Waiting = (Wanted, oneshot::Sender<Told>);

/// Tells a member that it is admitted, or how it ends.
pub(super) type Admitted = oneshot::Receiver<Result<(), Ending>>;

/// Entries that share a request.
pub(super) struct Group {
    state: Mutex<State>,
    /// A member came, went or decided.
    changed: Notify,
    /// Cancelled when its steps have ended.
    over: CancellationToken,
}

/// A group and the task that takes it through its steps, which ends with the last member.
pub(super) struct Running {
    pub(super) group: Arc<Group>,
    pub(super) _steps: JoinSet<()>,
}

struct State {
    stage: Stage,
    /// The most members.
    size: usize,
    /// The highest priority of the members, until a permit is waited for.
    priority: Priority,
    /// The latest time at which a permit is of use to a member.
    until: Instant,
    /// When a permit is asked for, whether the group is full or not, unless others are on their way.
    gathers_until: Instant,
    /// When a permit is asked for in any case.
    latest: Instant,
    joined_at: Instant,
    /// When the last member got its lease or left.
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
    wanted: Option<Waiting>,
}

/// The terms on which an entry joins a group.
#[derive(Clone, Copy)]
pub(super) struct Joining {
    /// The most members.
    pub(super) size: usize,
    pub(super) priority: Priority,
    /// The latest time at which a permit is of use to it.
    pub(super) until: Instant,
    /// When it needs company no more.
    pub(super) gathers_until: Instant,
    /// When it waits no more for others that are on their way.
    pub(super) latest: Instant,
}

/// A member of a group. It leaves the group when it is dropped.
pub(in crate::warmer) struct Member {
    running: Arc<Running>,
    seat: u64,
}

impl Group {
    /// Returns a group of one member, and what tells this one.
    pub(super) fn open(Joining { size, priority, until, gathers_until, latest }: Joining) -> (Self, u64, Admitted) {
        let now = Instant::now();
        let mut state = State {
            stage: Stage::Gathering,
            size,
            priority,
            until,
            gathers_until,
            latest,
            joined_at: now,
            decided_at: now,
            seats: BTreeMap::new(),
            last_seat: 0,
            undecided: 0,
        };
        let (seat, admitted) = state.take_seat();
        (Self { state: Mutex::new(state), changed: Notify::new(), over: CancellationToken::new() }, seat, admitted)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a seat for another member, and what tells it; `None` if the group takes it no more. A group that waits
    /// for its permit with a lower priority would hold up the member.
    pub(super) fn join(&self, joining: Joining) -> Option<(u64, Admitted)> {
        let mut state = self.state();
        let is_open = match state.stage {
            Stage::Gathering => true,
            Stage::Waiting => state.priority >= joining.priority,
            Stage::Admitted | Stage::Over => false,
        };
        let size = state.size.min(joining.size);
        if !is_open || state.seats.len() >= size {
            return None;
        }
        let is_hastened = joining.gathers_until < state.gathers_until || joining.latest < state.latest;
        state.size = size;
        state.priority = state.priority.max(joining.priority);
        state.until = state.until.max(joining.until);
        state.gathers_until = state.gathers_until.min(joining.gathers_until);
        state.latest = state.latest.min(joining.latest);
        state.joined_at = Instant::now();
        let taken = state.take_seat();
        if is_hastened || state.seats.len() >= size {
            self.changed.notify_waiters();
        }
        Some(taken)
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

    /// Wakes the group once no more members are on their way.
    pub(super) fn all_came(&self) {
        self.changed.notify_waiters();
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

    /// Waits until the group is full or has gathered long enough. While entries are `coming`, it gathers on for a time.
    pub(super) async fn gathered(&self, coming: &AtomicUsize) {
        self.wait_until(|state| {
            let end = match coming.load(Ordering::Acquire) {
                0 => state.gathers_until,
                _ => state.gathers_until.max(state.joined_at + STEP).min(state.latest),
            };
            (state.seats.len() < state.size).then_some(end)
        })
        .await;
    }

    /// Returns the priority of the group, and how long a permit is of use to it.
    pub(super) fn begin_to_wait(&self) -> (Priority, Instant) {
        let mut state = self.state();
        state.stage = Stage::Waiting;
        (state.priority, state.until)
    }

    /// Tells all members that they are admitted, or how they end.
    pub(super) fn tell(&self, admitted: &Result<(), Ending>) {
        let mut state = self.state();
        state.stage = if admitted.is_ok() { Stage::Admitted } else { Stage::Over };
        state.decided_at = Instant::now();
        for told in state.seats.values_mut().filter_map(|seat| seat.admitted.take()) {
            let _ = told.send(admitted.clone());
        }
    }

    /// Waits until each member has its lease or has left, at most for `step` after the last one who did, and as long as
    /// the answer may take its whole time, `timeout`.
    pub(super) async fn decided(&self, step: Duration, timeout: Duration) {
        let latest = Instant::now() + ALL_DECIDED;
        self.wait_until(|state| {
            let ready = state.seats.values().filter_map(|seat| seat.wanted.as_ref());
            let last = ready.map(|(wanted, _)| wanted.deadline - timeout).min().unwrap_or(latest);
            (state.undecided > 0).then_some(last.min(state.decided_at + step).min(latest))
        })
        .await;
    }

    /// Returns the members with leases. The others come too late.
    pub(super) fn ready(&self) -> Vec<Waiting> {
        let mut state = self.state();
        state.stage = Stage::Over;
        state.undecided = 0;
        std::mem::take(&mut state.seats).into_values().filter_map(|seat| seat.wanted).collect()
    }

    /// Ends the group: who still waits hears nothing more.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.stage = Stage::Over;
        state.undecided = 0;
        state.seats.clear();
        self.over.cancel();
    }
}

impl State {
    fn take_seat(&mut self) -> (u64, Admitted) {
        let (sender, admitted) = oneshot::channel();
        self.last_seat += 1;
        self.undecided += 1;
        self.seats.insert(self.last_seat, Seat { admitted: Some(sender), wanted: None });
        (self.last_seat, admitted)
    }
}

impl Member {
    pub(super) fn new(running: Arc<Running>, seat: u64) -> Self {
        Self { running, seat }
    }

    /// Waits for the part of this member, which has its lease now; returns `None` if the group was asked for before.
    pub(in crate::warmer) async fn answer(self, wanted: Wanted) -> Option<Told> {
        let pace = Pace { last: wanted.fetched_at, told: Instant::now(), draw: rand::random() };
        let (sender, told) = oneshot::channel();
        {
            let mut state = self.running.group.state();
            let seat = state.seats.get_mut(&self.seat)?;
            seat.wanted = Some((wanted, sender));
            state.decided_at = Instant::now();
            state.undecided -= 1;
            self.running.group.notify_if_decided(&state);
        }
        Some(told.await.unwrap_or_else(|_| {
            let reason =
                "a request for several entries broke off, which is a bug in Samovar: see the log, and report it";
            (Err(Unanswered::Failed(FetchError::Answer(reason.to_owned()))), pace)
        }))
    }

    /// Leaves the group. The last member to leave gives its permit back.
    pub(in crate::warmer) async fn leave(self) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(600);

    fn joining(size: usize, gathers: Duration, latest: Duration) -> Joining {
        let now = Instant::now();
        let (until, gathers_until, latest) = (now + LONG, now + gathers, now + latest);
        Joining { size, priority: Priority::Normal, until, gathers_until, latest }
    }

    fn member(group: &Arc<Group>, seat: u64) -> Member {
        Member::new(Arc::new(Running { group: Arc::clone(group), _steps: JoinSet::new() }), seat)
    }

    fn wanted() -> Wanted {
        let (params, inputs, fetched_at) = (Params::new(), Map::new(), RedisTime::ZERO);
        Wanted { params, inputs, fetched_at, deadline: Instant::now() + LONG + LONG }
    }

    #[tokio::test]
    async fn a_member_without_a_lease_holds_up_the_others_for_a_step_only() {
        let (group, first, _admitted) = Group::open(joining(10, SOON, SOON));
        let group = Arc::new(group);
        let (late, _also_admitted) = group.join(joining(10, SOON, SOON)).unwrap();
        let (first, late) = (member(&group, first), member(&group, late));
        group.gathered(&AtomicUsize::new(0)).await;
        group.begin_to_wait();
        group.tell(&Ok(()));
        let mut answer = JoinSet::new();
        answer.spawn(first.answer(wanted()));
        group.decided(SOON, LONG).await;
        // The step may have ended before the task ran.
        while group.state().undecided == 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(group.ready().len(), 1);
        assert!(late.answer(wanted()).await.is_none(), "it joins another group");
        group.end();
        let (part, _) = answer.join_next().await.unwrap().unwrap().expect("it was asked for");
        assert!(matches!(part, Err(Unanswered::Failed(_))), "nobody told it its part");
    }

    #[tokio::test]
    async fn a_group_waits_for_entries_on_their_way_until_its_latest_time() {
        let coming = AtomicUsize::new(1);
        let (group, ..) = Group::open(joining(10, Duration::ZERO, SOON));
        group.gathered(&coming).await;
        let (group, ..) = Group::open(joining(10, Duration::ZERO, LONG));
        tokio::join!(group.gathered(&coming), async {
            coming.store(0, Ordering::Release);
            group.all_came();
        });
    }

    #[test]
    fn a_group_is_no_larger_than_its_smallest_member_allows() {
        let (group, ..) = Group::open(joining(3, LONG, LONG));
        assert!(group.join(joining(1, LONG, LONG)).is_none(), "it is asked for alone");
        assert!(group.join(joining(2, LONG, LONG)).is_some());
        assert!(group.join(joining(3, LONG, LONG)).is_none(), "that one allows two");
    }
}
