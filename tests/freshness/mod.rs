//! Always fresh, never stale: tags, storms, foreign writers, failing sources, and what nobody heard.
mod clocks;
mod failing_sources;
mod foreign_writers;
mod gaps;
mod gone_inputs;
mod inputs;
mod lost_messages;
mod rechecks;
mod revalidation;
mod storms;
mod tag_index;
mod tags;
mod versions;

use std::time::Duration;

use samovar::job::Jobs;

use crate::support::{Art, JobsFolder, TestRedis, Upstream, WorkerProcess, both, eventually, version};

const CHANNEL: &str = "samovar:invalidate";
const LONG: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(600);

/// Starts a Redis, an upstream, and a worker that has warmed the first version of `art:a`, which its job lists.
async fn warmed_by(
    start: impl FnOnce(&TestRedis, &JobsFolder) -> WorkerProcess,
) -> (TestRedis, Upstream, JobsFolder, WorkerProcess) {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let worker = start(&redis, &jobs);
    version(&redis, "a", 1).await;
    (redis, upstream, jobs, worker)
}

async fn evicted(redis: &TestRedis, name: &str) {
    eventually(&format!("{name} is gone"), async || redis.get(&format!("art:{name}")).await.is_none()).await;
}

/// Returns the identity of the job of a folder.
fn identity(jobs: &JobsFolder) -> String {
    let jobs = Jobs::load(jobs.path(), TTL, &|_| None).unwrap();
    jobs.jobs.values().next().unwrap().identity()
}
