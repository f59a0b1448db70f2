//! Overload: a backlog after a long outage, retries all at once, a burst of invalidations, tasks without end.
//!
//! Each test prints what it measured; `SAMOVAR_TORTURE_ENTRIES=1000000` makes a backlog of a million, and a million
//! tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::RngExt;
use redis::Value;
use samovar::agenda::{Claimed, Due, State};
use samovar::entry::{Priority, Trigger};
use samovar::queue::{Chunk, Queue};
use samovar::redis::RedisTime;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::killed::{museum, nothing_is_held};
use super::{Progress, both, choices, entries, factor, kills, version};
use crate::support::{Art, Parts, Reply, TestRedis, Versions, WorkerProcess, eventually, eventually_within, talkative};

/// The longest time that a command may block Redis, in µs, with room for a busy machine.
const SLOWEST: u64 = 100_000;
/// The most memory of a worker in a debug build, in bytes.
const RESIDENT: u64 = 400 << 20;

/// Returns Redis's slow log, the slowest first: µs and command.
async fn slowest(redis: &TestRedis) -> Vec<(u64, String)> {
    let log: Vec<Vec<Value>> = redis.ask(&["SLOWLOG", "GET", "-1"]).await;
    let read = |entry: &Vec<Value>| -> Option<(u64, String)> {
        let took: u64 = redis::from_redis_value_ref(&entry[2]).ok()?;
        let words: Vec<String> = redis::from_redis_value_ref(&entry[3]).ok()?;
        Some((took, words.into_iter().take(3).collect::<Vec<_>>().join(" ")))
    };
    // What the test itself does is none of Samovar's.
    let ours = |(_, words): &(u64, String)| !words.starts_with("KEYS") && !words.starts_with("ZADD");
    let mut slow: Vec<(u64, String)> = log.iter().filter_map(read).filter(ours).collect();
    slow.sort();
    slow.reverse();
    slow
}

async fn watch(redis: &TestRedis) {
    redis.ask::<()>(&["CONFIG", "SET", "slowlog-log-slower-than", "2000"]).await;
    redis.ask::<()>(&["CONFIG", "SET", "slowlog-max-len", "1000"]).await;
    redis.ask::<()>(&["SLOWLOG", "RESET"]).await;
}

async fn redis_is_responsive(redis: &TestRedis, worker: &WorkerProcess, what: &str) {
    let slow = slowest(redis).await;
    eprintln!("{what}: slowest {:?}; the worker holds {} MiB", slow.first(), worker.resident() >> 20);
    assert!(slow.first().is_none_or(|(took, _)| *took < SLOWEST), "{what}: {:?}", &slow[..slow.len().min(5)]);
    assert!(worker.resident() < RESIDENT, "{what}: {} bytes in RAM", worker.resident());
}

/// Puts entries on the agenda as an outage leaves them there.
async fn backlog(parts: &Parts, count: usize, at: impl Fn(usize) -> RedisTime) {
    let agenda = parts.keys.agenda(&crate::support::job());
    for from in (0..count).step_by(1_000) {
        let mut add = redis::cmd("ZADD");
        add.arg(&agenda);
        for n in from..(from + 1_000).min(count) {
            let due = Due { at: at(n), state: State::Scheduled, trigger: Trigger::Manual, priority: Priority::Normal };
            add.arg(format!("{:.6}", due.score())).arg(format!("art:{n}"));
        }
        add.exec_async(&mut parts.redis.clone()).await.unwrap();
    }
}

async fn waiting(redis: &TestRedis) -> usize {
    let now: RedisTime = redis.ask(&["TIME"]).await;
    let now = (now + Duration::from_millis(1)).to_string();
    redis.ask(&["ZCOUNT", "samovar:agenda:{art}", "0", &now]).await
}

/// The oldest go first, what is urgent before all; and what comes due in the same second does no more harm.
#[tokio::test]
async fn a_backlog_is_worked_off_in_order_and_holds_up_nothing_urgent() {
    for (what, spread) in [("a backlog", 1_000_u64), ("retries of one second", 0)] {
        let count = entries(20_000);
        let (redis, upstream) = both().await;
        // So slow that there is a backlog still when the urgent ones have been answered.
        upstream.otherwise(|_, _| Reply::json(json!({"version": 1})).after(Duration::from_millis(20)));
        let jobs = Art::of(&upstream).limits("concurrency = 16").folder();
        let parts = Parts::of(&redis).await;
        let now = parts.now().await;
        backlog(&parts, count, |n| now - Duration::from_millis(1 + spread * (count - n) as u64)).await;
        watch(&redis).await;
        let worker = talkative(&redis, &jobs).env("SAMOVAR_LOG", "info").env("SAMOVAR_CONCURRENCY", "16").spawn();
        eventually("it has begun", async || waiting(&redis).await < count - 500).await;
        for n in 0..5 {
            let name = format!("urgent {n}");
            let edited = upstream.edit(&format!("/art/{name}"));
            parts.publish(&json!({"keys": [format!("art:{name}")], "action": "warm"}).to_string()).await;
            version(&redis, &name, edited).await;
        }
        let left = waiting(&redis).await;
        assert!(left > count / 4, "{left} of {count} are left: it was no backlog any more");
        redis_is_responsive(&redis, &worker, &format!("{what} of {count}, {left} left")).await;
        if spread > 0 {
            // The first of them went before the last.
            let of = |call: &crate::support::Call| call.path().strip_prefix("/art/")?.parse::<usize>().ok();
            let asked: Vec<usize> = upstream.all_requests().iter().filter_map(of).collect();
            let newest = *asked.iter().max().unwrap();
            assert!(newest < asked.len() + 1_000, "{newest} was fetched among the first {}", asked.len());
        }
        assert!(redis.ask::<usize>(&["LLEN", "{samovar:queue}:active"]).await <= 1_000);
    }
}

#[tokio::test]
async fn a_burst_of_invalidations_is_handled_and_holds_up_nobody() {
    let count = 2_000 * factor().min(50);
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({"version": 1})));
    upstream.edit("/art/last");
    let jobs = Art::of(&upstream).list(["last"]).folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LOG", "info").spawn();
    version(&redis, "last", 1).await;
    watch(&redis).await;
    let parts = Parts::of(&redis).await;
    let edited = upstream.edit("/art/last");
    let begun = Instant::now();
    let messages: Vec<String> = (0..count).map(|n| format!("art:{}", n % 500)).chain(["art:last".to_owned()]).collect();
    for some in messages.chunks(1_000) {
        let mut publish = redis::pipe();
        for message in some {
            publish.cmd("PUBLISH").arg("samovar:invalidate").arg(message).ignore();
        }
        publish.exec_async(&mut parts.redis.clone()).await.unwrap();
    }
    version(&redis, "last", edited).await;
    eprintln!("{count} invalidations handled in {:?}", begun.elapsed());
    redis_is_responsive(&redis, &worker, &format!("a burst of {count}")).await;
    assert!(worker.is_running());
    assert!(!worker.log().iter().any(|line| line.contains("nobody was listening")), "it was heard all the while");
}

/// The memory that Samovar's work takes.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Bytes that Redis gives to Samovar's own keys, the queue's included.
    own: u64,
    /// Bytes that Redis has in use.
    redis: u64,
    /// Bytes that one worker has in RAM.
    worker: u64,
}

impl Held {
    async fn now(redis: &TestRedis, parts: &Parts, worker: u64) -> Self {
        let mut usage = redis::pipe();
        for key in redis.keys("*samovar:*").await {
            usage.cmd("MEMORY").arg("USAGE").arg(key).arg("SAMPLES").arg(0);
        }
        let own: Vec<Option<u64>> = usage.query_async(&mut parts.redis.clone()).await.unwrap();
        let memory: String = redis.ask(&["INFO", "memory"]).await;
        let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
        Self { own: own.into_iter().flatten().sum(), redis: used.trim().parse().unwrap(), worker }
    }

    /// No more than before, but for what comes and goes.
    fn is_no_more_than(self, before: Self) {
        assert!(self.own <= before.own + before.own / 20 + 2_000, "our own keys grow: {before:?}, {self:?}");
        assert!(self.redis <= before.redis + before.redis / 10 + (2 << 20), "Redis grows: {before:?}, {self:?}");
        assert!(self.worker <= before.worker + before.worker / 4 + (32 << 20), "a worker grows: {before:?}, {self:?}");
    }
}

/// A fleet warms one set of entries again and again, and some workers are killed. The memory of Redis and of a worker
/// does not grow.
#[tokio::test]
async fn entries_without_end_leave_nothing_behind() {
    const FLEET: usize = 3;
    /// With a kill: as long as the dead one's message waits for somebody, and its entries.
    const ROUND: Duration = Duration::from_secs(90);
    let mut random = choices("entries without end");
    let (total, kills) = (entries(3_000), kills(1));
    let listed = if total < 20_000 { 500 } else { 1_000 };
    let half = (total / listed / 2).max(1);
    let (redis, upstream) = tokio::join!(TestRedis::start(), Versions::start(random.random()));
    upstream.calm_down();
    let keys: Vec<String> = (0..listed).map(|n| format!("art:{n}")).collect();
    let names: Vec<&str> = keys.iter().map(|key| key.strip_prefix("art:").unwrap()).collect();
    let jobs = museum(&upstream, &names, "recheck = []");
    // Samples would take the test's own looks for reads, and begin to count them somewhere in the middle.
    let settings = [("SAMOVAR_CLAIM", "10s"), ("SAMOVAR_LOG", "info"), ("SAMOVAR_SAMPLE", "1h")];
    let worker =
        || settings.iter().fold(talkative(&redis, &jobs), |worker, (name, value)| worker.env(name, value)).spawn();
    let mut fleet: Vec<WorkerProcess> = (0..FLEET).map(|_| worker()).collect();
    let parts = Parts::of(&redis).await;
    let newest = async || {
        eventually_within(ROUND, "all are as new as can be, and nothing is under way", async || {
            let under_way: usize = redis.ask(&["ZCOUNT", "samovar:agenda:{art}", "-inf", "(0"]).await;
            let queued: usize = redis.ask(&["HLEN", "{samovar:queue}:data"]).await;
            let unread: usize = redis.ask(&["XLEN", "samovar:inbox"]).await;
            if (under_way, queued, unread) != (0, 0, 0) {
                return Err(format!("{under_way} under way, {queued} queued, {unread} unread"));
            }
            let values: Vec<Option<String>> =
                redis::cmd("MGET").arg(&keys).query_async(&mut parts.redis.clone()).await.unwrap();
            let is_newest = |(key, value): (&String, &Option<String>)| {
                let value = value.as_deref().and_then(|value| serde_json::from_str::<serde_json::Value>(value).ok());
                value.is_some_and(|value| value["v"] == upstream.version(key))
            };
            let old = keys.iter().zip(&values).filter(|pair| !is_newest(*pair)).count();
            if old == 0 { Ok(()) } else { Err(format!("{old} are old")) }
        })
        .await;
    };
    newest().await;
    let mut held = vec![Held::now(&redis, &parts, fleet[0].resident()).await];
    let (mut progress, mut killed) = (Progress::of("entries", 2 * half * listed), 0);
    let begun = Instant::now();
    for round in 1..=2 * half {
        keys.iter().for_each(|key| upstream.edit(key));
        parts.publish(r#"{"jobs": ["art"]}"#).await;
        while killed < kills * round / (2 * half) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..500))).await;
            // The first one lives on, to see whether it grows.
            let victim = random.random_range(1..FLEET);
            fleet[victim].kill9();
            fleet[victim] = worker();
            killed += 1;
        }
        newest().await;
        progress.done(round * listed);
        if round % half == 0 {
            held.push(Held::now(&redis, &parts, fleet[0].resident()).await);
        }
    }
    let each = held[2].own / u64::try_from(listed).unwrap();
    let rate = (2 * half * listed) as f64 / begun.elapsed().as_secs_f64();
    eprintln!("{} entries, {killed} kills, {rate:.0} a second, {each} bytes for each: {held:?}", 2 * half * listed);
    nothing_is_held(&redis, FLEET).await;
    assert!(upstream.asked().fetches >= u64::try_from((2 * half + 1) * listed).unwrap(), "each was fetched each time");
    assert!(upstream.crowded().is_empty(), "fetched by two at once: {:?}", upstream.crowded());
    assert_eq!(redis.ask::<usize>(&["ZCARD", "samovar:dead:{art}"]).await, 0);
    held[2].is_no_more_than(held[1]);
    assert!(each < 1_000, "{each} bytes for each warm entry");
    assert!(held[2].worker < RESIDENT);
    assert!(fleet.iter_mut().all(WorkerProcess::is_running));
}

/// Waits until so many tasks are done, however long they take, as long as one after the other ends.
async fn worked_off(done: &AtomicUsize, tasks: usize) {
    loop {
        let before = done.load(Ordering::Relaxed);
        if before >= tasks {
            return;
        }
        eventually("another task is done", async || done.load(Ordering::Relaxed) > before).await;
    }
}

/// The queue alone, with one entry a task.
#[tokio::test]
async fn tasks_without_end_leave_nothing_on_the_queue() {
    let total = entries(20_000);
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let (stop, done) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    // A pull whose reply comes too late leaves tasks that only a worker's heartbeat takes up. Here none comes too late.
    let patient = parts.redis.clone().with_timeout(Duration::from_secs(600));
    let queues: Vec<Queue> = (0..3).map(|n| Queue::new(patient.clone(), &parts.keys, &format!("w-{n}"))).collect();
    let mut fleet = JoinSet::new();
    for queue in queues.clone() {
        let (stop, done) = (stop.clone(), Arc::clone(&done));
        fleet.spawn(async move {
            let count = move |chunk: Chunk| {
                done.fetch_add(chunk.entries.len(), Ordering::Relaxed);
                std::future::ready(())
            };
            queue.run(count, stop).await.unwrap();
        });
    }
    let (mut held, mut pushed, mut progress) = (Vec::new(), 0, Progress::of("tasks", total));
    let task = |n: usize| {
        let entry = Claimed { key: format!("art:{}", n % 1_000), score: n.to_string(), since: RedisTime::ZERO };
        Chunk { job: "art".to_owned(), entries: vec![entry] }
    };
    for half in [total / 2, total] {
        while pushed < half {
            let some: Vec<Chunk> = (pushed..half.min(pushed + 1_000)).map(task).collect();
            assert_eq!(queues[0].push(&some, false).await.unwrap(), some.len(), "there is room");
            pushed += some.len();
            queues.iter().for_each(Queue::wake);
            // There is room again.
            worked_off(&done, pushed.saturating_sub(5_000)).await;
            progress.done(pushed);
        }
        worked_off(&done, half).await;
        eventually("nothing is left of them", async || {
            let mut left = redis.keys("{samovar:queue}*").await;
            left.retain(|key| key != "{samovar:queue}:workers");
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        assert_eq!(done.load(Ordering::Relaxed), half, "each is done once");
        held.push(Held::now(&redis, &parts, 0).await);
    }
    eprintln!("{total} tasks: {held:?}");
    held[1].is_no_more_than(held[0]);
    stop.cancel();
    while fleet.join_next().await.is_some() {}
}
