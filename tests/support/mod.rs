//! The harness: real Redis servers, a programmable upstream, and Samovar as the process that users run.
//!
//! Everything starts on a free port or in a temporary folder and ends when its handle is dropped. Nothing here sleeps
//! until something happens: [`eventually`] waits for a state, [`Gate`] for an event.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test file is a crate of its own and uses a part of the harness"
)]

mod art;
mod clock;
mod cluster;
mod eventually;
mod jobs;
mod link;
mod parts;
mod process;
mod proxy;
mod redis;
mod replicas;
mod sentinels;
mod servers;
mod topology;
mod upstream;
mod versions;
mod waits;

pub use art::{Art, hasty_worker, talkative, worker};
pub use clock::OffsetClock;
pub use cluster::TestCluster;
pub use eventually::{State, eventually, eventually_within};
pub use jobs::JobsFolder;
pub use link::Link;
pub use parts::{Parts, art, job};
pub use process::{Finished, Samovar, WorkerProcess, number_from_environment, samovar};
pub use proxy::{Fault, Proxy};
pub use redis::{RedisOptions, TestRedis};
pub use replicas::{Replicas, Shown};
pub use sentinels::{SERVICE, TestSentinels, publish_safely};
pub use servers::both;
pub use topology::Topology;
pub use upstream::{Call, Gate, Reply, Upstream};
pub use versions::{Crowded, Versions};
pub use waits::{at_rest, give_to_a_dead_reader, http_get, listening, publish, readable, readable_key, version};
