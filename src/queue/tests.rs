use std::collections::BTreeSet;

use super::*;
use crate::agenda::{Due, State};
use crate::entry::Trigger;
use crate::redis::RedisTime;
use crate::redis::server::Server;

const DEAD_AFTER: Duration = Duration::from_secs(60);

fn single(key: &str) -> Chunk {
    let (at, state, trigger) = (RedisTime::from_millis(1), State::Claimed, Trigger::Invalidation);
    let due = Due { at, state, trigger, priority: Priority::High };
    Chunk {
        job: "art".to_owned(),
        entries: vec![Claimed { key: key.to_owned(), score: format!("{:.6}", due.score()), since: at }],
    }
}

#[tokio::test]
async fn a_running_worker_pulls_high_priority_tasks_as_it_pushes() {
    let server = Server::start().await;
    let queue = Queue::new(server.connect().await, &Keys::new("test", "test:invalidate"), "host-1");
    let waiting = async || -> usize {
        let list = queue.layout.active_jobs_list().to_owned();
        redis::cmd("LLEN").arg(list).query_async(&mut queue.redis.clone()).await.unwrap()
    };

    // No worker runs: the task waits.
    assert_eq!(queue.push(&[single("early")], true).await.unwrap(), 1);
    assert_eq!(waiting().await, 1);

    let (stop, (done, mut ended)) = (CancellationToken::new(), mpsc::unbounded_channel());
    let handle = move |chunk: Chunk| {
        let _ = done.send(chunk.entries[0].key.clone());
        std::future::ready(())
    };
    let pushing = async {
        let mut keys: BTreeSet<String> = (0..MOST_IN_FLIGHT * 2).map(|n| n.to_string()).collect();
        assert_eq!(ended.recv().await.unwrap(), "early");
        let singles: Vec<Chunk> = keys.iter().map(|key| single(key)).collect();
        // At once, so that slots run out and some tasks wait for one.
        let pushes = singles.chunks(3).map(|some| queue.push(some, true));
        futures_util::future::try_join_all(pushes).await.unwrap();
        while !keys.is_empty() {
            assert!(keys.remove(&ended.recv().await.unwrap()), "each is handled once");
        }
        stop.cancel();
    };
    let (ran, ()) = tokio::join!(queue.run(handle, stop.clone()), pushing);
    ran.unwrap();
    assert!(ended.recv().await.is_none());

    // No worker runs any more: the task waits for another one.
    assert_eq!(queue.push(&[single("late")], true).await.unwrap(), 1);
    assert_eq!(waiting().await, 1);
    assert_eq!(queue.tasks_in_flight("host-1").await.unwrap(), []);
    queue.leave(DEAD_AFTER).await.unwrap();
}

#[tokio::test]
async fn tasks_of_a_pull_without_a_reply_are_handled() {
    let server = Server::start().await;
    let redis = server.connect().await.with_timeout(Duration::from_millis(500));
    let queue = Queue::new(redis.clone(), &Keys::new("test", "test:invalidate"), "host-1");
    let (stop, (done, mut ended)) = (CancellationToken::new(), mpsc::unbounded_channel());
    let handle = move |chunk: Chunk| {
        let _ = done.send(chunk.entries[0].key.clone());
        std::future::ready(())
    };
    let recovering = async {
        while queue.slots.tasks().is_none() {
            tokio::task::yield_now().await;
        }
        // The state after a pull whose reply is lost, and after one whose data are lost too.
        for script in [&PUSH, &PULL_SCRIPT] {
            script.load_async(&mut redis.clone()).await.unwrap();
        }
        for key in ["one", "two", "without data"] {
            let pushed = queue.push_call(&[single(key)], true).unwrap();
            let mut lost = redis::pipe();
            lost.atomic().invoke_script(&pushed).invoke_script(&queue.pull_call(1));
            lost.exec_async(&mut redis.clone()).await.unwrap();
        }
        let lost: Vec<(String, Option<Chunk>)> = queue.tasks_in_flight("host-1").await.unwrap();
        assert_eq!(lost.len(), 3);
        let is_bare = |(_, chunk): &&(String, Option<Chunk>)| *chunk == Some(single("without data"));
        let bare = &lost.iter().find(is_bare).unwrap().0;
        let () = redis::cmd("HDEL")
            .arg(queue.layout.job_data_hash())
            .arg(bare)
            .query_async(&mut redis.clone())
            .await
            .unwrap();
        // A held task is not lost.
        queue.push(&[single("held")], true).await.unwrap();
        let mut keys = BTreeSet::new();
        while keys.len() < 3 {
            queue.recover().await.unwrap();
            while let Ok(key) = ended.try_recv() {
                assert!(keys.insert(key), "each is handled once");
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(keys, BTreeSet::from(["held", "one", "two"].map(str::to_owned)));
        while !server_keys(&redis).await.is_empty() {
            queue.recover().await.unwrap();
        }
        stop.cancel();
    };
    let (ran, ()) = tokio::join!(queue.run(handle, stop.clone()), recovering);
    ran.unwrap();
    assert_eq!(queue.slots.held().len(), 0);
}

/// Returns the keys of tasks: all but the workers' set.
async fn server_keys(redis: &Connection) -> Vec<String> {
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis.clone()).await.unwrap();
    keys.into_iter().filter(|key| !key.ends_with(":workers")).collect()
}

#[tokio::test]
async fn a_pull_that_fails_takes_nothing_from_the_list() {
    let server = Server::start().await;
    let mut redis = server.connect().await;
    let queue = Queue::new(redis.clone(), &Keys::new("test", "test:invalidate"), "host-1");
    let layout = &queue.layout;
    for key in [layout.job_data_hash(), queue.in_flight("host-1"), layout.workers_set()] {
        let () = redis::cmd("FLUSHALL").query_async(&mut redis).await.unwrap();
        assert_eq!(queue.push(&[single("one")], true).await.unwrap(), 1);
        let () = redis::pipe().del(&key).ignore().set(&key, "a stranger's").query_async(&mut redis).await.unwrap();
        let e = queue.pull_once(1).await.unwrap_err();
        assert_eq!(e.code(), Some("WRONGTYPE"), "{key}: {e}");
        let waiting: usize = redis::cmd("LLEN").arg(layout.active_jobs_list()).query_async(&mut redis).await.unwrap();
        assert_eq!(waiting, 1, "{key}");
    }
}

/// Redis's clock was set back by an hour.
#[tokio::test]
async fn a_dead_worker_whose_last_beat_is_in_the_future_is_found() {
    let server = Server::start().await;
    let queue = Queue::new(server.connect().await, &Keys::new("test", "test:invalidate"), "host-1");
    let (seconds, _): (i64, i64) = redis::cmd("TIME").query_async(&mut queue.redis.clone()).await.unwrap();
    let mut beat = redis::cmd("ZADD");
    beat.arg(queue.layout.workers_set()).arg(seconds + 3_600).arg("host-dead");
    beat.exec_async(&mut queue.redis.clone()).await.unwrap();
    let dead_after = Duration::from_secs(1);
    assert_eq!(queue.beat(dead_after).await.unwrap(), (2, vec![]), "it still counts as alive");
    loop {
        let (living, dead) = queue.beat(dead_after).await.unwrap();
        if living == 1 {
            assert_eq!(dead, ["host-dead"]);
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(queue.forget("host-dead", &[], dead_after).await.unwrap(), 0);
}
