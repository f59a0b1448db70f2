//! Survival of faults of workers, Redis, upstreams and clocks, with real processes and a real Redis.
//!
//! In CI each test runs once, short. `make torture` runs them long: `SAMOVAR_TORTURE` multiplies the work (by 1 where
//! it is unset). `SAMOVAR_TORTURE_ENTRIES` sets the number of entries and tasks, `SAMOVAR_TORTURE_KILLS` that of kills.
//! `SAMOVAR_TEST_SEED` repeats a run's choices, though not its timing.
mod clocks;
mod endings;
mod input;
mod killed;
mod load;
mod lost_keys;
mod lost_replies;
mod outage;
mod poison;
mod sources;
mod wrong_types;

use std::time::Instant;

use crate::support::{Parts, TestRedis, Upstream, both, eventually, number_from_environment, readable, version};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

/// Returns the factor of the work, which is 1 in CI.
fn factor() -> usize {
    usize::try_from(number_from_environment("SAMOVAR_TORTURE").unwrap_or(1)).unwrap().max(1)
}

/// Returns the number of entries or tasks.
fn entries(short: usize) -> usize {
    named("SAMOVAR_TORTURE_ENTRIES").unwrap_or(short * factor())
}

/// Returns the number of workers to kill.
fn kills(short: usize) -> usize {
    named("SAMOVAR_TORTURE_KILLS").unwrap_or(short * factor())
}

fn named(variable: &str) -> Option<usize> {
    number_from_environment(variable).map(|number| usize::try_from(number).unwrap())
}

/// The choices of one test; says which.
fn choices(test: &str) -> StdRng {
    let seed = number_from_environment("SAMOVAR_TEST_SEED").unwrap_or_else(|| rand::rng().random());
    eprintln!("{test}: SAMOVAR_TEST_SEED={seed} SAMOVAR_TORTURE={}", factor());
    StdRng::seed_from_u64(seed)
}

/// Says how far a long test is, twenty times.
struct Progress {
    what: &'static str,
    all: usize,
    begun: Instant,
    told: usize,
}

impl Progress {
    fn of(what: &'static str, all: usize) -> Self {
        Self { what, all, begun: Instant::now(), told: 0 }
    }

    /// So many are done.
    fn done(&mut self, done: usize) {
        let twentieth = done * 20 / self.all.max(1);
        if twentieth > self.told {
            self.told = twentieth;
            let rate = done as f64 / self.begun.elapsed().as_secs_f64();
            eprintln!("{}: {done} of {} after {:.0?}, {rate:.1} a second", self.what, self.all, self.begun.elapsed());
        }
    }
}

/// Everything a worker does still works: the inbox, the channel, the agenda, the queue.
async fn works(redis: &TestRedis, upstream: &Upstream, name: &str) {
    let parts = Parts::of(redis).await;
    let path = format!("/art/{name}");
    let first = upstream.edit(&path);
    parts.invalidate(&json!({"keys": [format!("art:{name}")], "action": "warm"}).to_string()).await;
    version(redis, name, first).await;
    let second = upstream.edit(&path);
    // A subscription that stayed with a former master hears through its replication.
    eventually("the channel is heard", async || {
        redis.publish("samovar:invalidate", &format!("art:{name}")).await;
        redis.json(&format!("art:{name}")).await.is_some_and(|value| value["version"] == second)
    })
    .await;
}
