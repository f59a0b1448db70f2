//! The obvious hundred-line solution: a prefetch every half TTL, and `DEL` on publish.
//!
//! Museum pages are fetched each time, eight at once, so that none expires. AI texts are only fetched if missing,
//! because they cost money. A broken subscription is restored. Two problems remain unsolved: a fetch that started
//! before a `DEL` may write the old value after it, and messages published while the subscription is down are lost.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::RedisResult;

use super::catalogue::Shelf;
use super::contender::Contender;

/// Concurrent fetches for each kind of content.
const ABREAST: usize = 8;
/// The wait before the next attempt to subscribe.
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps one kind of content warm without end; reports the end of the first round.
pub(super) async fn prefetch(contender: &Contender, shelf: &Shelf, once: &AtomicBool) {
    let half = shelf.job.ttl / 2;
    let Some(job) = contender.jobs.jobs.get(&shelf.job.name) else { return };
    let mut cron = tokio::time::interval(half);
    cron.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        cron.tick().await;
        // The popular works; if the museum does not answer, the next round asks again.
        let Ok(fed) = contender.sources.feed(job).await else { continue };
        let mut all: Vec<_> = fed.entries.iter().filter_map(|key| job.key.read(key)).collect();
        let more: Vec<_> = job.entries.list.iter().filter(|one| !all.contains(one)).cloned().collect();
        all.extend(more);
        futures_util::stream::iter(all)
            .for_each_concurrent(ABREAST, async |params| {
                let Some(key) = job.key.write(&params) else { return };
                if job.is_paid_for() && !matches!(contender.value(&key).await, Ok(None)) {
                    return;
                }
                // Failed entries are fetched in the next round.
                let _ = contender.fill(job, &key, &params).await;
            })
            .await;
        once.store(true, Relaxed);
    }
}

/// Deletes published keys without end.
pub(super) async fn delete_on_publish(contender: &Contender, channel: &str) {
    loop {
        // A broken subscription is restored; messages in between are lost.
        let _ = subscribed(contender, channel).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn subscribed(contender: &Contender, channel: &str) -> RedisResult<()> {
    let mut subscribed = contender.redis.subscribe(channel).await?;
    while let Some(message) = subscribed.messages.next().await {
        let key: String = message.get_payload()?;
        let () = redis::cmd("DEL").arg(key).query_async(&mut contender.redis.clone()).await?;
    }
    Ok(())
}
