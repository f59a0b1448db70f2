//! The state of the whole fleet, read part by part: a part that cannot be read hides no other.
//!
//! Jobs and upstreams are read side by side. Each has a time of its own, so that a master of a Cluster that is away
//! costs no more than that. What was not read is missing from the state, and named; it is never empty or zero.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use redis::RedisResult;

use super::Parts;
use crate::entry::duration;
use crate::job::{KnownJob, KnownUpstream};
use crate::ops::Census;
use crate::ops::status::{self, JobStatus, Outdated, UpstreamStatus};
use crate::redis::requirements::explain;

/// The jobs that are read at once.
const AT_ONCE: usize = 64;

/// The part of a fleet that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of<'a> {
    /// All jobs and upstreams.
    All,
    /// The job of this name, and its upstreams.
    Job(&'a str),
    /// The upstreams.
    Upstreams,
}

/// The state of the fleet, as far as it can be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// The jobs that were read, in the order of their names.
    pub(crate) jobs: Vec<JobStatus>,
    /// The jobs that cannot be read, each with the reason.
    pub(crate) unread_jobs: BTreeMap<String, String>,
    /// The upstreams that were read, in the order of their names.
    pub(crate) upstreams: Vec<UpstreamStatus>,
    /// The upstreams that cannot be read, each with the reason.
    pub(crate) unread_upstreams: BTreeMap<String, String>,
    /// The parts that all jobs share and that cannot be read, each as a sentence.
    pub(crate) unread: Vec<String>,
}

/// Reads one part in its time; the error tells why it cannot be read.
pub(crate) async fn in_time<T>(patience: Duration, read: impl Future<Output = RedisResult<T>>) -> Result<T, String> {
    match tokio::time::timeout(patience, read).await {
        Ok(read) => read.map_err(|error| format!("Redis: {}", explain(&error))),
        Err(_) => Err(format!("Redis does not answer within {}", duration::text(patience))),
    }
}

/// Reads some parts at once, and returns them in their order.
async fn side_by_side<T>(parts: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    stream::iter(parts).buffered(AT_ONCE).collect().await
}

/// Divides what was read from what was not.
fn divided<T>(read: Vec<(String, Result<T, String>)>) -> (Vec<T>, BTreeMap<String, String>) {
    let (mut there, mut unread) = (Vec::new(), BTreeMap::new());
    for (name, part) in read {
        match part {
            Ok(part) => there.push(part),
            Err(why) => _ = unread.insert(name, why),
        }
    }
    (there, unread)
}

impl State {
    /// Reads the state of this part, with the keys of the last count, if there was one. Each job and each upstream has
    /// so much time.
    pub(crate) async fn read(parts: &Parts, of: Of<'_>, census: Option<&Census>, patience: Duration) -> Self {
        let ops = &parts.ops;
        let jobs = ops.jobs.jobs.values().filter(|job| match of {
            Of::All => true,
            Of::Job(name) => job.name.as_str() == name,
            Of::Upstreams => false,
        });
        let jobs: Vec<&Arc<KnownJob>> = jobs.collect();
        let asks = |upstream: &&KnownUpstream| {
            let is_asked = || jobs.iter().any(|job| job.upstreams.iter().any(|own| own.name == upstream.name));
            !matches!(of, Of::Job(_)) || is_asked()
        };
        let upstreams: Vec<&KnownUpstream> = ops.jobs.upstreams.values().filter(asks).collect();
        // Of what is read of a job, a part may be on another master, which then does not use up the job's time.
        let redis = ops.redis.clone().with_timeout(ops.redis.timeout().min(patience / 2));
        let jobs = jobs.into_iter().map(|job| {
            let read = in_time(patience, status::of_job(&redis, &ops.keys, job, census));
            read.map(|read| (job.name.to_string(), read)).boxed()
        });
        let upstreams = upstreams.into_iter().map(|upstream| {
            let read = in_time(patience, status::upstream(&redis, &ops.keys, upstream));
            read.map(|read| (upstream.name.to_string(), read)).boxed()
        });
        let (jobs, upstreams) = tokio::join!(side_by_side(jobs.collect()), side_by_side(upstreams.collect()));
        let ((jobs, unread_jobs), (upstreams, unread_upstreams)) = (divided(jobs), divided(upstreams));
        let mut state = Self { jobs, unread_jobs, upstreams, unread_upstreams, unread: Vec::new() };
        status::assign(&mut state.jobs, &ops.jobs, &state.upstreams);
        if of != Of::Upstreams {
            state.add_shared(parts, census, patience).await;
        }
        state
    }

    /// Returns why a part cannot be read, if there is one.
    pub(crate) fn fault(&self) -> Option<&str> {
        let parts = self.unread_jobs.values().chain(self.unread_upstreams.values()).chain(&self.unread);
        parts.map(String::as_str).next()
    }

    /// Adds values of earlier files, and the state that all jobs share.
    async fn add_shared(&mut self, parts: &Parts, census: Option<&Census>, patience: Duration) {
        let ops = &parts.ops;
        let living = tokio::time::timeout(patience, parts.queue.living(parts.dead_after));
        let (living, failing) = tokio::join!(living, in_time(patience, ops.failing()));
        let living = living.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
        let fleet = in_time(patience, ops.fleet(living.clone()));
        let outdated = async {
            let Some(census) = census else { return Ok(()) };
            let added = in_time(patience, ops.add_outdated(&mut self.jobs, census, &living)).await;
            add_counted(&mut self.jobs, census);
            added
        };
        let (fleet, outdated) = tokio::join!(fleet, outdated);
        self.note("what values of earlier files wait for", outdated);
        let told = failing.map(|mut failing| {
            let jobs = self.jobs.iter_mut();
            jobs.for_each(|status| status.faults.extend(failing.remove(status.job.as_str())));
        });
        self.note("of which jobs most is given up", told);
        let added = fleet.map(|fleet| status::add_fleet(&mut self.jobs, &fleet));
        self.note("which workers live", added);
        let remaker = parts.health.troubles.of("the remaker");
        for status in &mut self.jobs {
            // A change that waits long for other workers.
            status.faults.extend(remaker.notice_of(&status.job));
        }
    }

    fn note(&mut self, what: &str, read: Result<(), String>) {
        if let Err(why) = read {
            self.unread.push(format!("it is not known {what}: {why}"));
        }
    }
}

/// Adds the numbers of values of earlier files where it could not be read what they wait for.
fn add_counted(jobs: &mut [JobStatus], census: &Census) {
    for status in jobs.iter_mut().filter(|status| status.outdated.is_none()) {
        let values = census.jobs.get(&status.job).map_or(0, |counted| counted.outdated);
        if values > 0 {
            let waits_for = "what cannot be read now".to_owned();
            status.outdated = Some(Outdated { values, waits_for, reason: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_answer_is_unread() {
        let late = in_time(Duration::from_secs(2), std::future::pending::<RedisResult<()>>()).await;
        assert_eq!(late, Err("Redis does not answer within 2s".to_owned()));
    }
}
