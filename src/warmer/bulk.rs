//! Groups of entries that share one request to their source.
//!
//! Responsibility: an attempt at an entry joins a [`Group`] where it would wait for a permit alone. The group gathers
//! members until it is full or its time is up, and gets one permit for all. Its members then take their leases by
//! themselves; those that have one are asked for together ([`Asker`]), and each commits its part of the answer by
//! itself.
//!
//! Invariant: a group depends on no member. Its steps are a task of their own, which ends with its last member. A
//! member that leaves, is cancelled or panics leaves its seat, and those with leases wait for the others only as long
//! as the time for their answer allows. The permit goes back in every case.
//!
//! On failure: a panic of the task fails the fetches of the members that wait for it.

mod group;
mod requests;
mod sizes;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tracing::error;

pub(super) use group::{Member, Unanswered, Wanted};

use super::SHORT_WAIT;
use super::ending::Ending;
use crate::agenda::Next;
use crate::entry::{JobName, Outcome, Priority, UpstreamName};
use crate::job::{Jobs, Params};
use crate::source::{Gate, Permit, Sources};
use group::{Admitted, Group, Joining, Running};
use requests::Asker;
use sizes::Sizes;

/// The longest time that may pass between two members who get their leases: then the others come too late.
pub(super) const DECISION: Duration = Duration::from_secs(2);
/// This time for members with high priority.
const HIGH_DECISION: Duration = Duration::from_millis(100);
/// The longest wait for entries that are on their way, beyond the job's.
const ON_THEIR_WAY: Duration = Duration::from_secs(1);
/// The longest wait of a member for others while it holds its lease, or has high priority.
const HASTY_WAIT: Duration = Duration::from_millis(20);

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
            let asker = Asker {
                job: Arc::clone(job),
                source: number,
                timeout: jobs.timeout(source),
                sources: sources.clone(),
                gate: Arc::clone(gate),
                drain: drain.clone(),
                sizes: Sizes::new(properties.at_once),
            };
            let gatherer = Gatherer { asker, wait, open: Mutex::default(), coming: Default::default() };
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
    asker: Asker,
    /// The longest time for which a group gathers members.
    wait: Duration,
    /// The groups that were opened last, as long as they have members.
    open: Mutex<Open>,
    /// The number of entries that are about to join a group.
    coming: AtomicUsize,
}

/// The groups that entries join.
#[derive(Default)]
struct Open {
    usual: Weak<Running>,
    /// The one of entries whose requests were refused, which would keep others out of a larger group.
    small: Weak<Running>,
}

/// An entry that is about to join a group, until it is dropped.
pub(super) struct Coming(Arc<Gatherer>);

impl Drop for Coming {
    fn drop(&mut self) {
        if self.0.coming.fetch_sub(1, Ordering::AcqRel) == 1 {
            let open = self.0.open();
            for running in [&open.usual, &open.small].into_iter().filter_map(Weak::upgrade) {
                running.group.all_came();
            }
        }
    }
}

impl std::fmt::Debug for Gatherer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Asker { job, source, .. } = &self.asker;
        f.debug_struct("Gatherer").field("job", &job.name).field("source", source).finish_non_exhaustive()
    }
}

impl Gatherer {
    /// Announces an entry that is about to join a group.
    pub(super) fn announce(self: &Arc<Self>) -> Coming {
        self.coming.fetch_add(1, Ordering::AcqRel);
        Coming(Arc::clone(self))
    }

    /// Waits until `until` for a permit that is shared with other entries; returns the ending of an entry that gets
    /// none. A member with high priority waits only for others that are on their way, and it and one with its lease
    /// only for a moment. A worker has such entries on a runtime of their own, so in groups of their own. `coming` is
    /// what announced the entry.
    pub(super) async fn admit(
        self: &Arc<Self>,
        params: &Params,
        priority: Priority,
        until: Instant,
        is_leased: bool,
        coming: Option<Coming>,
    ) -> Result<Member, Ending> {
        let (wait, longest) = match priority {
            Priority::High => (Duration::ZERO, HASTY_WAIT),
            Priority::Bulk | Priority::Normal if is_leased => (self.wait.min(HASTY_WAIT), HASTY_WAIT),
            Priority::Bulk | Priority::Normal => (self.wait, self.wait + ON_THEIR_WAY),
        };
        let now = Instant::now();
        // The rest is for the permit.
        let half = until.saturating_duration_since(now) / 2;
        let (size, is_small) = self.asker.sizes.of(params);
        let (gathers_until, latest) = (now + wait.min(half), now + longest.min(half));
        let (member, admitted) = self.join(is_small, Joining { size, priority, until, gathers_until, latest });
        drop(coming);
        let refused = |reason| Err(Ending::because(Outcome::Deferred, Next::In(SHORT_WAIT), reason));
        match timeout_at(until.into(), admitted).await {
            Ok(Ok(admitted)) => admitted.map(|()| member),
            Ok(Err(_)) => refused("the request that it was to share broke off: see the log".to_owned()),
            Err(_) => refused(format!("upstream {} admits no request in time", self.asker.gate.upstream().name)),
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the open group, or opens another one.
    fn join(self: &Arc<Self>, is_small: bool, joining: Joining) -> (Member, Admitted) {
        let mut open = self.open();
        let open = if is_small { &mut open.small } else { &mut open.usual };
        if let Some(running) = open.upgrade()
            && let Some((seat, admitted)) = running.group.join(joining)
        {
            return (Member::new(running, seat), admitted);
        }
        let (group, seat, admitted) = Group::open(joining);
        let group = Arc::new(group);
        let mut steps = JoinSet::new();
        steps.spawn(Arc::clone(self).run(Arc::clone(&group)));
        let running = Arc::new(Running { group, _steps: steps });
        *open = Arc::downgrade(&running);
        (Member::new(running, seat), admitted)
    }

    /// Takes a group through its steps.
    async fn run(self: Arc<Self>, group: Arc<Group>) {
        if AssertUnwindSafe(self.steps(&group)).catch_unwind().await.is_err() {
            error!(job = %self.asker.job.name, "a request for several entries panicked: please report this");
        }
        group.end();
    }

    async fn steps(&self, group: &Group) {
        tokio::select! {
            () = group.gathered(&self.coming) => {}
            () = self.asker.drain.cancelled() => {}
        }
        let (priority, until) = group.begin_to_wait();
        let permit = match self.asker.pass(priority, until).await {
            Ok(permit) => permit,
            Err(ending) => return group.tell(&Err(ending)),
        };
        group.tell(&Ok(()));
        let step = if priority == Priority::High { HIGH_DECISION } else { DECISION };
        group.decided(step, self.asker.timeout).await;
        self.asker.ask(group.ready(), permit, priority).await;
    }
}
