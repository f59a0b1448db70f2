//! Invalidations: once one is handled, nothing fetched before it can be read anew.
mod actions;
mod fences;
mod foreign_values;
mod kept;
mod messages;
mod names;

use std::time::Duration;

use crate::support::{Art, JobsFolder, TestRedis, Upstream, WorkerProcess, at_rest, version, worker};

const LONG: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(600);

/// Redis, an upstream and a worker on the job `art`.
async fn warmed(names: &[&str]) -> (TestRedis, Upstream, JobsFolder, WorkerProcess) {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    for name in names {
        upstream.edit(&format!("/art/{name}"));
    }
    let jobs = Art::of(&upstream).list(names).folder();
    let worker = worker(&redis, &jobs);
    for name in names {
        version(&redis, name, 1).await;
    }
    at_rest(&redis).await;
    (redis, upstream, jobs, worker)
}
