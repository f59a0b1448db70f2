//! A Redis that comes back older than it was, or without its inbox.

use serde_json::json;

use super::{AI, known, stories, story, story_is};
use crate::support::{JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, both, eventually, hasty_worker};

/// The story tells how often it was generated; the first of them is there.
async fn counted_stories(redis: &TestRedis, upstream: &Upstream) -> (JobsFolder, WorkerProcess) {
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = stories(upstream);
    upstream.answer(AI, |_, calls| {
        let message = json!({"role": "assistant", "content": calls.to_string()});
        Reply::json(json!({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"total_tokens": 2}}))
    });
    let worker = hasty_worker(redis, &jobs);
    story_is(redis, "1").await;
    (jobs, worker)
}

/// Another message may be in the inbox before the worker sees the restart, and it may have handled some before.
#[tokio::test]
async fn invalidations_since_a_restored_snapshot_generate_again() {
    for (overtaken, before) in [(false, false), (true, false), (true, true)] {
        let (mut redis, upstream) = both().await;
        let (_jobs, worker) = counted_stories(&redis, &upstream).await;
        let parts = Parts::of(&redis).await;
        if before {
            parts.invalidate("art:other").await;
            // Which the worker knows once it has seen to the next one.
            parts.invalidate("art:other").await;
        }
        redis.ask::<String>(&["SAVE"]).await;
        parts.invalidate("story:a").await;
        story_is(&redis, "2").await;
        parts.invalidate("art:other").await;
        redis.kill9();
        worker.freeze();
        redis.start_again().await;
        assert_eq!(redis.json("story:a").await, Some(json!("1")));
        if overtaken {
            Parts::of(&redis).await.publish("art:other").await;
        }
        worker.thaw();
        story_is(&redis, "3").await;
    }
}

#[tokio::test]
async fn a_restart_that_lost_nothing_generates_nothing_again() {
    let (mut redis, upstream) = tokio::join!(TestRedis::options().append_only().start(), Upstream::start());
    let (_jobs, mut worker) = counted_stories(&redis, &upstream).await;
    Parts::of(&redis).await.invalidate("story:a").await;
    story_is(&redis, "2").await;
    redis.restart().await;
    worker.wait_for_log(&["Redis was restarted"]).await;
    eventually("the gap is dealt with", async || redis.keys("samovar:{suspect}*").await.is_empty()).await;
    let meta = known(&Parts::of(&redis).await, &story()).await.unwrap();
    assert_eq!((meta.invalidated, redis.json("story:a").await), (None, Some(json!("2"))));
    assert_eq!(upstream.calls(AI), 2);
}

#[tokio::test]
async fn what_was_in_an_inbox_that_redis_evicted_may_be_lost() {
    let (redis, upstream) = both().await;
    let (_jobs, _worker) = counted_stories(&redis, &upstream).await;
    Parts::of(&redis).await.invalidate("story:a").await;
    story_is(&redis, "2").await;
    redis.ask::<usize>(&["DEL", "samovar:inbox"]).await;
    story_is(&redis, "3").await;
    eventually("the gap is dealt with", async || redis.keys("samovar:{suspect}*").await.is_empty()).await;
    assert_eq!(upstream.calls(AI), 3);
}
