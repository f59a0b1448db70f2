//! Live updates: what they cost Redis, and that they go on after whatever happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use tokio::task::JoinSet;

use super::{Console, OWNER, both, filled, send, with_roles};
use crate::support::{Art, JobsFolder, Parts, TestRedis, Upstream, eventually, job, readable_key};

/// Some looks at the state, by Redis's clock: one comes every two seconds.
const WINDOW_MS: i64 = 7_000;
/// The looks that fit into a window.
const LOOKS: u64 = 4;

/// The updates of an open tab.
struct Tab(reqwest::Response);

impl Tab {
    async fn open(console: &Console, cookie: &str) -> Self {
        let answer = console.request("GET", "/console/events").header("cookie", cookie).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{answer:?}");
        Self(answer)
    }

    /// Returns the number of the next state; `None` when the updates have ended.
    async fn next(&mut self) -> Option<u64> {
        loop {
            let chunk = self.0.chunk().await.ok()??;
            let text = String::from_utf8(chunk.to_vec()).unwrap();
            if let Some(number) = text.lines().find_map(|line| line.strip_prefix("data: ")) {
                return Some(number.parse().unwrap());
            }
        }
    }
}

/// Counts the looks at the state of the job `art`, as Redis receives them.
struct Looks {
    seen: Arc<AtomicU64>,
    _watching: JoinSet<()>,
}

impl Looks {
    /// Begins to count commands that name this key; each look sends one.
    async fn at(redis: &TestRedis, key: &str) -> Self {
        let (seen, word) = (Arc::new(AtomicU64::new(0)), format!("\"{key}\""));
        let monitor = redis.client().get_async_monitor().await.unwrap();
        let (mut watching, count) = (JoinSet::new(), Arc::clone(&seen));
        watching.spawn(async move {
            let mut lines = monitor.into_on_message::<String>();
            while let Some(line) = lines.next().await {
                // Not those of scripts.
                if line.contains(&word) && line.contains("HGETALL") && !line.contains(" lua]") {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { seen, _watching: watching }
    }

    fn so_far(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Returns the looks within a window.
    async fn in_a_window(&self, redis: &TestRedis) -> u64 {
        let (before, from) = (self.so_far(), time_ms(redis).await);
        eventually("the window is over", async || time_ms(redis).await - from >= WINDOW_MS).await;
        self.so_far() - before
    }
}

async fn time_ms(redis: &TestRedis) -> i64 {
    let (seconds, micros): (i64, i64) = redis.ask(&["TIME"]).await;
    seconds * 1_000 + micros / 1_000
}

/// Returns the number of these commands that Redis has carried out.
async fn calls(redis: &TestRedis, command: &str) -> u64 {
    let stats = redis.ask::<String>(&["INFO", "commandstats"]).await;
    let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
    line.and_then(|line| line.split_once("calls=")?.1.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// Returns the key of the job's audits, which only a look reads by itself.
async fn audit(redis: &TestRedis) -> String {
    Parts::of(redis).await.keys.audit(&job())
}

async fn stage() -> (TestRedis, Upstream, JobsFolder) {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    (redis, upstream, jobs)
}

#[tokio::test]
async fn nothing_is_read_while_nobody_looks() {
    let (redis, _upstream, jobs) = stage().await;
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let owner = console.log_in(OWNER).await;
    readable_key(&redis, "art:a").await;
    let looks = Looks::at(&redis, &audit(&redis).await).await;
    assert_eq!(looks.in_a_window(&redis).await, 0, "before the first tab");
    let tab = Tab::open(&console, &owner).await;
    let before = looks.so_far();
    eventually("the state is read again and again", async || looks.so_far() >= before + 3).await;
    drop(tab);
    // The worker notices it when it has something to send.
    eventually("nothing is read any more", async || looks.in_a_window(&redis).await == 0).await;
}

#[tokio::test]
async fn ten_tabs_cost_redis_as_much_as_one() {
    let (redis, _upstream, jobs) = stage().await;
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let owner = console.log_in(OWNER).await;
    readable_key(&redis, "art:a").await;
    let looks = Looks::at(&redis, &audit(&redis).await).await;
    let mut tabs = vec![Tab::open(&console, &owner).await];
    tabs[0].next().await.unwrap();
    let one = looks.in_a_window(&redis).await;
    for _ in 0..9 {
        tabs.push(Tab::open(&console, &owner).await);
    }
    let ten = looks.in_a_window(&redis).await;
    assert!((1..=LOOKS).contains(&one) && (1..=LOOKS).contains(&ten), "{one} with one tab, {ten} with ten");
    // A page is made once for all who ask within one state.
    let before = calls(&redis, "xrevrange").await;
    futures_util::future::join_all((0..10).map(|_| console.page(&owner, "/console/audit"))).await;
    let made = calls(&redis, "xrevrange").await - before;
    assert!((1..=3).contains(&made), "{made}");
}

#[tokio::test]
async fn wrong_logins_and_new_tabs_have_nothing_read() {
    let (redis, _upstream, jobs) = stage().await;
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let owner = console.log_in(OWNER).await;
    readable_key(&redis, "art:a").await;
    let looks = Looks::at(&redis, &audit(&redis).await).await;
    let _tab = Tab::open(&console, &owner).await;
    let (before, from) = (looks.so_far(), time_ms(&redis).await);
    let mut asked = 0;
    while time_ms(&redis).await - from < WINDOW_MS {
        send(filled(console.request("POST", "/console/login"), &[("token", "wrong")])).await;
        send(console.request("POST", "/console/logout")).await;
        Tab::open(&console, &owner).await.next().await.unwrap();
        asked += 1;
    }
    let seen = looks.so_far() - before;
    assert!(asked > 20 && seen <= LOOKS, "{seen} looks for {asked} of each");
}

/// Reports of hit rates tell when they were read, which is no change.
#[tokio::test]
async fn an_idle_fleet_has_no_new_state() {
    let (redis, _upstream, jobs) = stage().await;
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let owner = console.log_in(OWNER).await;
    readable_key(&redis, "art:a").await;
    let looks = Looks::at(&redis, &audit(&redis).await).await;
    let reported = Parts::of(&redis).await.keys.reported(&job());
    redis.ask::<u64>(&["HSET", &reported, "hits", "3", "misses", "1"]).await;
    let mut tab = Tab::open(&console, &owner).await;
    tab.next().await.unwrap();
    // All pages are made anew every ten seconds, as times on them are relative: a window may be without.
    eventually("a window brings nothing new", async || {
        let before = looks.so_far();
        tokio::select! {
            number = tab.next() => Err(number),
            () = eventually("two more looks", async || looks.so_far() >= before + 2) => Ok(()),
        }
    })
    .await;
}

#[tokio::test]
async fn tabs_follow_a_restart_of_redis() {
    let (mut redis, _upstream, jobs) = stage().await;
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let owner = console.log_in(OWNER).await;
    readable_key(&redis, "art:a").await;
    let mut tab = Tab::open(&console, &owner).await;
    let status = async || send(console.request("GET", "/console/jobs").header("cookie", &owner)).await.status.as_u16();
    let mut last = tab.next().await.unwrap();
    redis.stop().await;
    for (wanted, back) in [(503, false), (200, true)] {
        if back {
            redis.start_again().await;
        }
        loop {
            let next = tab.next().await.expect("the updates go on");
            assert!(next > last, "{next} after {last}");
            last = next;
            if status().await == wanted {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_worker_ends_although_tabs_are_open() {
    let (redis, upstream, _jobs) = stage().await;
    let jobs = Art::of(&upstream).list(["a", "slow"]).folder();
    let gate = upstream.gate("/art/slow");
    let mut console = Console::of(with_roles(&redis, &jobs).env("SAMOVAR_DRAIN", "60s")).await;
    let owner = console.log_in(OWNER).await;
    upstream.called("/art/slow", 1).await;
    let mut tab = Tab::open(&console, &owner).await;
    tab.next().await.unwrap();
    console.worker.term();
    // The tab is sent away while the worker drains, and gets no updates that end at once.
    while tab.next().await.is_some() {}
    let refused = send(console.request("GET", "/console/events").header("cookie", &owner)).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(console.request("GET", "/health/live").send().await.unwrap().status(), 200);
    gate.open();
    assert!(console.worker.wait().await.success());
}

/// Behind a balancer, pages and updates come from different workers.
#[tokio::test]
async fn two_workers_serve_one_page() {
    let (redis, _upstream, jobs) = stage().await;
    let (one, other) = (Console::of(with_roles(&redis, &jobs)).await, Console::of(with_roles(&redis, &jobs)).await);
    let owner = one.log_in(OWNER).await;
    readable_key(&redis, "art:a").await;
    let (mut tab, mut tab_of_other) = (Tab::open(&one, &owner).await, Tab::open(&other, &owner).await);
    let (first, first_of_other) = (tab.next().await.unwrap(), tab_of_other.next().await.unwrap());
    assert!(first.abs_diff(first_of_other) > 100, "a page of one is never taken for a page of the other");
    other.act(&owner, "pause", &[("job", "art"), ("note", "moving house")]).await;
    loop {
        tab.next().await.unwrap();
        if one.page(&owner, "/console/jobs/art").await.contains("moving house") {
            break;
        }
    }
}

/// A page is kept for all tabs while the state is the same; what could not be shown is not.
#[tokio::test]
async fn a_failure_is_kept_for_nobody_else() {
    let (redis, _upstream, jobs) = stage().await;
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let owner = console.log_in(OWNER).await;
    readable_key(&redis, "art:a").await;
    let mut tab = Tab::open(&console, &owner).await;
    // The second one comes with the first look.
    tab.next().await.unwrap();
    tab.next().await.unwrap();
    let get = async |path: &str| send(console.request("GET", path).header("cookie", &owner)).await;
    let agenda = "samovar:agenda:{art}";
    redis.ask::<String>(&["RENAME", agenda, "kept:{art}"]).await;
    redis.ask::<String>(&["SET", agenda, "of another program"]).await;
    let refused = get("/console/jobs/art").await;
    assert_eq!(refused.status, 500, "{refused:?}");
    assert!(refused.text.contains("Redis refuses it") && !refused.text.contains("data-waits"), "{refused:?}");
    redis.ask::<String>(&["RENAME", "kept:{art}", agenda]).await;
    assert_eq!(get("/console/jobs/art").await.status, 200);
    assert_eq!(get("/console/jobs/nobody").await.status, 404);
    let bad = get("/console/jobs/art?from=x").await;
    assert_eq!((bad.status.as_u16(), bad.header("content-type")), (400, "text/html; charset=utf-8"), "{bad:?}");
}
