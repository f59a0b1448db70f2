//! The hundred lines that anybody would write: a prefetch each half TTL, and `DEL` on publish.
//!
//! Museum pages are fetched anew each time, eight at once, so that none expires; what a language model writes is only
//! fetched where it is missing, for it costs. The subscription is made again when it breaks. What it does not have, and
//! what takes the other thousands of lines: nothing keeps a fetch that began before a `DEL` from writing the old value after
//! it, and what is published while nobody listens is lost.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::RedisResult;

use super::catalogue::Shelf;
use super::contender::Contender;
use crate::redis::RedisUrl;

/// Fetches at once, for each kind of content.
const ABREAST: usize = 8;
/// Before the subscription is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps one kind of content warm, without end; says when it has been through once.
pub(super) async fn prefetch(contender: &Contender, shelf: &Shelf, once: &AtomicBool) {
    let half = shelf.job.ttl / 2;
    let Some(job) = contender.jobs.jobs.get(&shelf.job.name) else { return };
    let mut cron = tokio::time::interval(half);
    cron.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        cron.tick().await;
        // What is popular now; if the museum does not say, the next round will.
        let Ok(mut all) = contender.sources.feed(&contender.jobs, job).await else { continue };
        let more: Vec<_> = job.entries.list.iter().filter(|one| !all.contains(one)).cloned().collect();
        all.extend(more);
        futures_util::stream::iter(all)
            .for_each_concurrent(ABREAST, async |params| {
                let Some(key) = job.key.write(&params) else { return };
                if job.is_paid_for() && !matches!(contender.value(&key).await, Ok(None)) {
                    return;
                }
                // What fails is fetched next time.
                let _ = contender.fill(job, &key, &params).await;
            })
            .await;
        once.store(true, Relaxed);
    }
}

/// Deletes what is published, without end.
pub(super) async fn delete_on_publish(contender: &Contender, redis: &RedisUrl, channel: &str) {
    loop {
        // A subscription that breaks is made again; what was published meanwhile is lost.
        let _ = subscribed(contender, redis, channel).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn subscribed(contender: &Contender, redis: &RedisUrl, channel: &str) -> RedisResult<()> {
    let mut pubsub = redis.client()?.get_async_pubsub().await?;
    pubsub.subscribe(channel).await?;
    let mut messages = pubsub.into_on_message();
    while let Some(message) = messages.next().await {
        let key: String = message.get_payload()?;
        let () = redis::cmd("DEL").arg(key).query_async(&mut contender.redis.clone()).await?;
    }
    Ok(())
}
