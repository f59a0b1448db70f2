//! What is heard from workers, and what a look at Redis shows.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::{Client, RedisResult};
use tokio::sync::mpsc::Sender;
use tokio::time::{MissedTickBehavior, interval};

use super::super::session::Session;
use super::filter::Filter;
use crate::job::Jobs;
use crate::ops::status::{self, JobStatus, UpstreamStatus};
use crate::telemetry::Told;

/// How often Redis is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How soon it is tried again to subscribe.
const AGAIN: Duration = Duration::from_millis(500);
/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Something new.
#[derive(Debug)]
pub(super) enum News {
    /// Workers are heard.
    Hears,
    /// Workers are not heard, for this reason.
    Deaf(String),
    /// What a worker did.
    Told(Told),
    /// How things stand.
    Look(Box<Look>),
    /// That cannot be seen, for this reason.
    Blind(String),
}

/// How things stand.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    /// Redis's clock, ms.
    pub(super) now_ms: i64,
    /// Workers that live.
    pub(super) workers: usize,
    /// The jobs that are shown.
    pub(super) jobs: Vec<JobStatus>,
    /// All upstreams.
    pub(super) upstreams: Vec<UpstreamStatus>,
    /// Reads that Redis has counted before this look, which is none of them.
    pub(super) before: Reads,
    /// And after it.
    pub(super) after: Reads,
}

/// Reads by anybody, since Redis was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reads {
    /// That found a key.
    pub(super) hits: u64,
    /// That found none.
    pub(super) misses: u64,
}

/// Hears what workers tell, for ever.
pub(super) async fn hear(client: Client, channel: String, tell: Sender<News>) {
    loop {
        let why = match subscribed(&client, &channel, &tell).await {
            Ok(()) => "the connection ended".to_owned(),
            Err(e) => e.to_string(),
        };
        if tell.send(News::Deaf(why)).await.is_err() {
            // Nobody listens; whoever held the other end says how it ends.
            return pending().await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn subscribed(client: &Client, channel: &str, tell: &Sender<News>) -> RedisResult<()> {
    let connecting = async {
        let mut subscription = client.get_async_pubsub().await?;
        subscription.subscribe(channel).await?;
        RedisResult::Ok(subscription)
    };
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    let mut subscription = tokio::time::timeout(PATIENCE, connecting).await.map_err(late)??;
    let mut messages = subscription.on_message();
    let _ = tell.send(News::Hears).await;
    while let Some(message) = messages.next().await {
        // What another version says that is not understood here is left out.
        if let Ok(told) = serde_json::from_slice(message.get_payload_bytes()) {
            let _ = tell.send(News::Told(told)).await;
        }
    }
    Ok(())
}

/// Looks at Redis, for ever.
pub(super) async fn look(session: &Session, jobs: &Arc<Jobs>, filter: &Filter, tell: Sender<News>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let news = match once(session, jobs, filter).await {
            Ok(look) => News::Look(Box::new(look)),
            Err(e) => News::Blind(e.to_string()),
        };
        let _ = tell.send(news).await;
    }
}

async fn once(session: &Session, jobs: &Arc<Jobs>, filter: &Filter) -> RedisResult<Look> {
    let before = reads(session).await?;
    let now_ms = session.store.now().await?;
    let workers = session.count_workers().await?;
    let mut statuses = Vec::new();
    for job in jobs.jobs.values().filter(|job| filter.job(job.name.as_str())) {
        statuses.push(status::of_job(&session.redis, &session.keys, job, None).await?);
    }
    let upstreams = status::upstreams(&session.redis, &session.keys, jobs).await?;
    let after = reads(session).await?;
    Ok(Look { now_ms, workers, jobs: statuses, upstreams, before, after })
}

async fn reads(session: &Session) -> RedisResult<Reads> {
    // Without it no hit rate is shown.
    let info = session.redis.clone().info(&["stats"]).await?.unwrap_or_default();
    Ok(Reads { hits: info.hits().unwrap_or_default(), misses: info.misses().unwrap_or_default() })
}
