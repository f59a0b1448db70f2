//! The inputs of `samovar watch`: the workers' events, and the polled state of Redis.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::RedisResult;
use tokio::sync::mpsc::Sender;
use tokio::time::{MissedTickBehavior, interval};

use super::super::session::Session;
use super::filter::Filter;
use crate::job::KnownJobs;
use crate::ops::status::{self, JobStatus, UpstreamStatus};
use crate::redis::{Connection, RedisTime};
use crate::telemetry::WorkerReport;

/// The polling interval of Redis.
const POLL: Duration = Duration::from_secs(1);
/// The wait before the next attempt to subscribe.
const AGAIN: Duration = Duration::from_millis(500);

/// A new input.
#[derive(Debug)]
pub(super) enum News {
    /// The subscription to the workers' events is up.
    Connected,
    /// The subscription is down, for this reason.
    Disconnected(String),
    /// Events of a worker.
    Report(WorkerReport),
    /// The polled state.
    Polled(Box<Poll>),
    /// Redis cannot be polled, for this reason.
    Unreachable(String),
}

/// The polled state.
#[derive(Clone, Debug, Default)]
pub(super) struct Poll {
    /// Redis's clock.
    pub(super) now: RedisTime,
    /// Live workers.
    pub(super) workers: usize,
    /// The jobs that are shown.
    pub(super) jobs: Vec<JobStatus>,
    /// All upstreams.
    pub(super) upstreams: Vec<UpstreamStatus>,
    /// Reads counted by Redis before this poll; `None` if Redis does not tell.
    pub(super) before: Option<Reads>,
    /// Reads counted by Redis after this poll.
    pub(super) after: Option<Reads>,
}

/// Reads by all clients since Redis started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reads {
    /// Reads that found a key.
    pub(super) hits: u64,
    /// Reads that found none.
    pub(super) misses: u64,
}

/// Receives the workers' events without end.
pub(super) async fn receive(redis: Connection, channel: String, sender: Sender<News>) {
    loop {
        let why = match subscribed(&redis, &channel, &sender).await {
            Ok(()) => "the connection ended".to_owned(),
            Err(e) => e.to_string(),
        };
        if sender.send(News::Disconnected(why)).await.is_err() {
            // The receiver is gone; its owner reports how the command ends.
            return pending().await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn subscribed(redis: &Connection, channel: &str, sender: &Sender<News>) -> RedisResult<()> {
    let mut subscribed = redis.subscribe(channel).await?;
    let _ = sender.send(News::Connected).await;
    while let Some(message) = subscribed.messages.next().await {
        // Events of another version that cannot be read are ignored.
        if let Ok(report) = serde_json::from_slice(message.get_payload_bytes()) {
            let _ = sender.send(News::Report(report)).await;
        }
    }
    Ok(())
}

/// Polls Redis without end.
pub(super) async fn poll(session: &Session, jobs: &Arc<KnownJobs>, filter: &Filter, sender: Sender<News>) {
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let news = match once(session, jobs, filter).await {
            Ok(poll) => News::Polled(Box::new(poll)),
            Err(e) => News::Unreachable(e.to_string()),
        };
        let _ = sender.send(news).await;
    }
}

async fn once(session: &Session, jobs: &Arc<KnownJobs>, filter: &Filter) -> RedisResult<Poll> {
    let before = reads(session).await?;
    let now = session.store.now().await?;
    let workers = session.count_workers().await?;
    let mut statuses = Vec::new();
    for job in jobs.jobs.values().filter(|job| filter.job(job.name.as_str())) {
        statuses.push(status::of_job(&session.redis, &session.keys, job, None).await?);
    }
    let upstreams = status::upstreams(&session.redis, &session.keys, jobs).await?;
    let after = reads(session).await?;
    Ok(Poll { now, workers, jobs: statuses, upstreams, before, after })
}

async fn reads(session: &Session) -> RedisResult<Option<Reads>> {
    // Without `INFO` no hit rate is shown.
    let info = session.redis.clone().info(&["stats"]).await?.unwrap_or_default();
    Ok(info.hits().zip(info.misses()).map(|(hits, misses)| Reads { hits, misses }))
}
