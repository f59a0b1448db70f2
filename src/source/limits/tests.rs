mod budget;

use super::admission::pace;
use super::breaker::FAILURES;
use super::*;
use crate::entry::Priority;
use crate::entry::UpstreamName;
use crate::job::Upstream;
use crate::job::{Rate, TokenBudget};
use crate::protocol::Keys;
use crate::redis::server::Server;
use crate::source::FetchError;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

impl Server {
    /// One worker's gate.
    async fn gate(&self, upstream: &Upstream) -> Arc<Gate> {
        Arc::new(Gate::new(Arc::new(upstream.clone()), self.connect().await, &Keys::new("test", "test:invalidate"), 64))
    }

    /// Fills it under `volatile-lru` with what has no TTL, until nothing is left that it may evict.
    async fn evict_what_has_a_ttl(&self) {
        let mut redis = self.connect().await;
        let info: String = redis::cmd("INFO").arg("memory").query_async(&mut redis).await.unwrap();
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")?.parse::<u64>().ok()).unwrap();
        let mut full = redis::pipe();
        full.cmd("SET").arg("cold").arg("").arg("EX").arg(3600);
        full.cmd("CONFIG").arg("SET").arg("maxmemory-policy").arg("volatile-lru");
        full.cmd("CONFIG").arg("SET").arg("maxmemory").arg(used + (4 << 20));
        full.exec_async(&mut redis).await.unwrap();
        let filler = "x".repeat(64 << 10);
        let error = loop {
            let pushed = redis::cmd("RPUSH").arg("filler").arg(&filler).query_async::<u64>(&mut redis).await;
            if let Err(error) = pushed {
                break error;
            }
        };
        assert_eq!(error.code(), Some("OOM"), "{error}");
        assert_eq!(redis::cmd("EXISTS").arg("cold").query_async::<u8>(&mut redis).await, Ok(0));
    }

    /// Makes the breaker's next probe due.
    async fn let_probe_go(&self) {
        let mut redis = self.connect().await;
        redis::cmd("HSET").arg("test:limit:{museum}").arg("open").arg(1).exec_async(&mut redis).await.unwrap();
    }

    async fn commands(&self) -> u64 {
        let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut self.connect().await).await.unwrap();
        let calls = |line: &str| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok();
        info.lines().filter(|line| line.starts_with("cmdstat_eval")).filter_map(calls).sum()
    }
}

fn upstream() -> Upstream {
    Upstream {
        name: UpstreamName::new("museum"),
        url: "http://museum.test".into(),
        headers: BTreeMap::new(),
        rate: None,
        concurrency: None,
        timeout: Duration::from_secs(10),
        max_bytes: 1 << 20,
        tokens: None,
        redirects: crate::job::Redirects::SameHost,
    }
}

fn within(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

#[test]
fn pace_admits_no_more_than_the_rate_in_any_window() {
    for (count, seconds) in [(1, 1), (5, 7200), (9, 1), (10, 1), (20, 1), (33, 2), (200, 1), (1000, 60)] {
        let per = Duration::from_secs(seconds);
        let (interval, early) = pace(count, per);
        // The greediest client: takes each place as soon as there is one.
        let (mut tat, mut now, mut begun) = (1 << 40, 1 << 40, Vec::new());
        for _ in 0..3 * count {
            now = now.max(tat - early);
            begun.push(now);
            tat = tat.max(now) + interval;
        }
        let window = u64::try_from(per.as_micros()).unwrap();
        let most = (0..begun.len()).map(|i| begun[i..].iter().filter(|at| **at < begun[i] + window).count()).max();
        assert!(most.unwrap() <= count as usize, "{count} per {seconds} s: {most:?}");
        assert!(most.unwrap() * 10 >= count as usize * 9, "{count} per {seconds} s wastes: {most:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleet_never_has_more_in_flight_than_allowed() {
    let server = Server::start().await;
    let limited = Upstream { concurrency: Some(3), ..upstream() };
    let (now, most, all) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let gate = server.gate(&limited).await;
        for i in 0..15 {
            let (gate, now, most, all) = (gate.clone(), now.clone(), most.clone(), all.clone());
            tasks.spawn(async move {
                let permit = gate
                    .admit(if i % 5 == 0 { Priority::High } else { Priority::Normal }, within(30_000))
                    .await
                    .unwrap();
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                all.fetch_add(1, Ordering::SeqCst);
                permit.done(Ended::Ok).await;
            });
        }
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert_eq!(all.load(Ordering::SeqCst), 60);
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleet_never_begins_more_than_the_rate() {
    let server = Server::start().await;
    let per = Duration::from_millis(500);
    let limited = Upstream { rate: Some(Rate { count: 20, per }), ..upstream() };
    let begun = Arc::new(Mutex::new(Vec::new()));
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let gate = server.gate(&limited).await;
        for _ in 0..20 {
            let (gate, begun) = (gate.clone(), begun.clone());
            tasks.spawn(async move {
                let permit = gate.admit(Priority::Normal, within(30_000)).await.unwrap();
                begun.lock().unwrap().push(Instant::now());
                permit.done(Ended::Ok).await;
            });
        }
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let mut begun = begun.lock().unwrap().clone();
    begun.sort();
    assert_eq!(begun.len(), 60);
    // Lateness only helps; 20 in each time from the beginning is what a machine under load keeps, too.
    for (index, at) in (0_u32..).zip(&begun) {
        assert!(*at + Duration::from_millis(2) >= start + per * (index / 20), "{index} after {:?}", *at - start);
    }
}

#[tokio::test]
async fn refusal_comes_at_once_where_admission_would_be_too_late() {
    let server = Server::start().await;
    let limited = Upstream { rate: Some(Rate { count: 1, per: Duration::from_secs(3600) }), ..upstream() };
    let gate = server.gate(&limited).await;
    gate.admit(Priority::Normal, within(1000)).await.unwrap().done(Ended::Ok).await;
    let refusal = gate.admit(Priority::Normal, within(600_000)).await.unwrap_err();
    assert_eq!(refusal.reason, "rate");
    assert!(refusal.wait > Duration::from_secs(3500) && refusal.wait <= Duration::from_secs(3600), "{refusal:?}");
}

#[tokio::test]
async fn permits_of_a_dead_worker_come_back() {
    let server = Server::start().await;
    let limited = Upstream { concurrency: Some(1), timeout: Duration::ZERO, ..upstream() };
    let dead = server.gate(&limited).await;
    let permit = dead.admit(Priority::Normal, within(1000)).await.unwrap();
    let other = server.gate(&limited).await;
    assert_eq!(other.admit(Priority::Normal, within(200)).await.unwrap_err().reason, "concurrency");
    std::mem::forget(permit);
    other.admit(Priority::Normal, within(30_000)).await.expect("comes back after the grace").done(Ended::Ok).await;
}

#[tokio::test]
async fn dropped_permits_come_back_with_the_next_call() {
    let server = Server::start().await;
    let limited = Upstream { concurrency: Some(1), ..upstream() };
    let (gate, other) = (server.gate(&limited).await, server.gate(&limited).await);
    drop(gate.admit(Priority::Normal, within(1000)).await.unwrap());
    drop(gate.admit(Priority::Normal, within(1000)).await.expect("the gate itself knows"));
    assert_eq!(other.admit(Priority::Normal, within(100)).await.unwrap_err().reason, "concurrency");
    gate.refresh().await;
    other.admit(Priority::Normal, within(1000)).await.expect("handed back").done(Ended::Ok).await;
}

/// A call is cancelled while its connection is renewed: Redis never sees the ids that it took.
#[tokio::test]
async fn permits_that_a_cancelled_call_took_come_back() {
    let server = Server::start().await;
    let limited = Upstream { concurrency: Some(1), ..upstream() };
    let (gate, other) = (server.gate(&limited).await, server.gate(&limited).await);
    drop(gate.admit(Priority::Normal, within(1000)).await.unwrap());
    drop(gate.returned());
    gate.refresh().await;
    other.admit(Priority::Normal, within(1000)).await.expect("handed back").done(Ended::Ok).await;
}

#[tokio::test]
async fn cancelled_waiting_leaves_nothing_taken() {
    let server = Server::start().await;
    let limited = Upstream { concurrency: Some(2), ..upstream() };
    let gate = server.gate(&limited).await;
    for _ in 0..50 {
        let mut admission = Box::pin(gate.admit(Priority::Normal, within(10_000)));
        tokio::select! {
            biased;
            _ = &mut admission => {}
            () = tokio::task::yield_now() => {}
        }
    }
    let first = gate.admit(Priority::Normal, within(2000)).await.unwrap();
    let second = gate.admit(Priority::Normal, within(2000)).await.unwrap();
    assert_eq!(gate.in_flight(), 2);
    first.done(Ended::Ok).await;
    second.done(Ended::Ok).await;
    assert_eq!(gate.in_flight(), 0);
}

#[tokio::test]
async fn busy_upstream_is_left_alone_by_all() {
    let server = Server::start().await;
    let mut listener = redis::Client::open(server.url.as_str()).unwrap().get_async_pubsub().await.unwrap();
    listener.subscribe("test:signal").await.unwrap();
    let (gate, other) = (server.gate(&upstream()).await, server.gate(&upstream()).await);
    gate.admit(Priority::Normal, within(1000)).await.unwrap().done(Ended::Busy(Duration::from_secs(2))).await;
    assert!(gate.closed_for().is_some());
    let message = futures_util::StreamExt::next(&mut listener.on_message()).await.unwrap();
    assert_eq!(message.get_payload::<String>().unwrap(), "upstream museum");
    other.refresh().await;
    let refusal = other.admit(Priority::High, within(500)).await.unwrap_err();
    assert_eq!(refusal.reason, "retry-after");
    let asked = Instant::now();
    other.admit(Priority::Normal, within(20_000)).await.expect("after the time asked for").done(Ended::Ok).await;
    assert!(asked.elapsed() >= refusal.wait - Duration::from_millis(100));
}

#[tokio::test]
async fn breaker_opens_probes_once_and_closes() {
    let server = Server::start().await;
    let (gate, other) = (server.gate(&upstream()).await, server.gate(&upstream()).await);
    for _ in 0..FAILURES {
        assert_eq!(gate.closed_for(), None);
        gate.admit(Priority::Normal, within(1000)).await.unwrap().done(Ended::UpstreamFailed).await;
    }
    other.refresh().await;
    assert!(other.closed_for().unwrap() > Duration::from_secs(4));
    assert_eq!(other.admit(Priority::High, within(1000)).await.unwrap_err().reason, "breaker");

    let probe = gate.admit(Priority::Normal, within(20_000)).await.unwrap();
    let refusal = other.admit(Priority::Normal, within(100)).await.unwrap_err();
    assert_eq!(refusal.reason, "breaker", "one probe at a time");
    probe.done(Ended::UpstreamFailed).await;
    other.refresh().await;
    assert!(other.closed_for().unwrap() > Duration::from_secs(9), "twice as long");

    let _: () = redis::cmd("HSET")
        .arg("test:limit:{museum}")
        .arg("open")
        .arg(1)
        .query_async(&mut server.connect().await)
        .await
        .unwrap();
    gate.refresh().await;
    other.refresh().await;
    drop(other.admit(Priority::Normal, within(1000)).await.unwrap());
    other.refresh().await;
    let probe = gate.admit(Priority::Normal, within(1000)).await.expect("a dropped probe lets another one go");
    probe.done(Ended::Answer).await;
    other.refresh().await;
    assert_eq!(other.closed_for(), None);
    let (one, two) = (
        other.admit(Priority::Normal, within(1000)).await.unwrap(),
        other.admit(Priority::Normal, within(1000)).await.unwrap(),
    );
    one.done(Ended::Ok).await;
    two.done(Ended::Ok).await;
}

#[tokio::test]
async fn a_refused_account_closes_the_gate_for_longer_each_time() {
    let server = Server::start().await;
    let (gate, other) = (server.gate(&upstream()).await, server.gate(&upstream()).await);
    let refused: Result<(), _> = Err(FetchError::Refused(Duration::ZERO, "insufficient_quota".into()));
    let (first, second) = (
        gate.admit(Priority::Normal, within(1000)).await.unwrap(),
        gate.admit(Priority::Normal, within(1000)).await.unwrap(),
    );
    first.end(&refused).await;
    // It was under way already, and tells nothing new.
    second.end(&refused).await;
    for (at_least, at_most) in
        [(59, 60), (119, 120), (239, 240), (479, 480), (959, 960), (1919, 1920), (3599, 3600), (3599, 3600)]
    {
        for gate in [&gate, &other] {
            gate.refresh().await;
            let refusal = gate.admit(Priority::High, within(1000)).await.unwrap_err();
            assert_eq!(refusal.reason, "refused");
            assert!((at_least..=at_most).contains(&refusal.wait.as_secs()), "{refusal:?}");
            assert!(gate.says(&refusal).ends_with("until a person fixes that: insufficient_quota"));
            assert!(gate.is_broken());
        }
        server.let_probe_go().await;
        gate.refresh().await;
        gate.admit(Priority::Normal, within(1000)).await.unwrap().end(&refused).await;
    }
    server.let_probe_go().await;
    gate.refresh().await;
    gate.admit(Priority::Normal, within(1000)).await.unwrap().done(Ended::Ok).await;
    other.refresh().await;
    assert_eq!((other.closed_for(), other.is_broken()), (None, false));
    // It begins anew, and leaves it alone for as long as it asks.
    let asked = Err::<(), _>(FetchError::Refused(Duration::from_secs(600), "x".into()));
    gate.admit(Priority::Normal, within(1000)).await.unwrap().end(&asked).await;
    assert!(gate.closed_for().unwrap() > Duration::from_secs(590));
    server.let_probe_go().await;
    gate.refresh().await;
    gate.admit(Priority::Normal, within(1000)).await.unwrap().done(Ended::UpstreamFailed).await;
    assert_eq!(gate.refusal().unwrap().reason, "breaker");
}

#[tokio::test]
async fn failures_of_one_worker_do_not_close_a_healthy_upstream() {
    let server = Server::start().await;
    let (ill, well) = (server.gate(&upstream()).await, server.gate(&upstream()).await);
    for _ in 0..3 * FAILURES {
        ill.admit(Priority::Normal, within(1000)).await.unwrap().done(Ended::UpstreamFailed).await;
        well.refresh().await;
        well.admit(Priority::Normal, within(1000)).await.unwrap().done(Ended::Ok).await;
    }
    assert_eq!(ill.closed_for(), None);
}

#[tokio::test]
async fn well_upstream_without_limits_costs_no_round_trip() {
    let server = Server::start().await;
    let gate = server.gate(&upstream()).await;
    let before = server.commands().await;
    for _ in 0..100 {
        gate.admit(Priority::Normal, within(1000)).await.unwrap().done(Ended::Ok).await;
    }
    assert_eq!(server.commands().await, before);
}

#[tokio::test]
async fn spent_tokens_close_the_gate_until_the_window_ends() {
    let server = Server::start().await;
    let budget = TokenBudget { tokens: 1000, per: Duration::from_secs(2) };
    let limited = Upstream { tokens: Some(budget), ..upstream() };
    let (gate, other) = (server.gate(&limited).await, server.gate(&limited).await);
    for _ in 0..2 {
        let mut permit = gate.admit(Priority::Normal, within(1000)).await.unwrap();
        permit.spend(600);
        permit.done(Ended::Answer).await;
    }
    let refusal = other.admit(Priority::High, within(10)).await.unwrap_err();
    assert_eq!(refusal.reason, "tokens");
    assert!(refusal.wait <= budget.per);
    other.admit(Priority::Normal, within(20_000)).await.expect("a new window").done(Ended::Ok).await;
    other.refresh().await;
    let (mut redis, window) = (server.connect().await, "test:budget:{museum}");
    let mut fields: Vec<String> = redis::cmd("HKEYS").arg(window).query_async(&mut redis).await.unwrap();
    fields.retain(|field| !field.starts_with("process:"));
    fields.sort();
    assert_eq!(fields, ["ends", "long"], "the count of a window that is over is gone");
    // As if Redis's clock was set back.
    let now: (u64, u64) = redis::cmd("TIME").query_async(&mut redis).await.unwrap();
    redis::cmd("HSET").arg(window).arg("ends").arg(now.0 * 1000 + 1500).exec_async(&mut redis).await.unwrap();
    other.admit(Priority::Normal, within(1000)).await.expect("no window is spent").done(Ended::Ok).await;
    // The sums of processes are kept for an hour longer.
    for (ends, left) in [(now.0 - 3000, 1), (now.0 - 3601, 0)] {
        redis::cmd("HSET").arg(window).arg("ends").arg(ends * 1000).exec_async(&mut redis).await.unwrap();
        other.refresh().await;
        let found: u32 = redis::cmd("EXISTS").arg(window).query_async(&mut redis).await.unwrap();
        assert_eq!(found, left, "{ends}");
    }
}

#[tokio::test]
async fn spent_tokens_stay_spent_when_redis_evicts_all_that_has_a_ttl() {
    let server = Server::start().await;
    let budget = TokenBudget { tokens: 1000, per: Duration::from_secs(3600) };
    let limited = Upstream { tokens: Some(budget), ..upstream() };
    let mut permit = server.gate(&limited).await.admit(Priority::Normal, within(1000)).await.unwrap();
    permit.spend(1200);
    permit.done(Ended::Ok).await;
    server.evict_what_has_a_ttl().await;
    let refusal = server.gate(&limited).await.admit(Priority::Normal, within(1000)).await.unwrap_err();
    assert_eq!(refusal.reason, "tokens");
    assert!(refusal.wait > Duration::from_secs(3000) && refusal.wait <= budget.per, "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urgent_requests_overtake_a_long_line() {
    let server = Server::start().await;
    for limited in [upstream(), Upstream { concurrency: Some(1), ..upstream() }] {
        let gate = Arc::new(Gate::new(
            Arc::new(limited),
            server.connect().await,
            &Keys::new("urgent", "urgent:invalidate"),
            1,
        ));
        let order = Arc::new(Mutex::new(Vec::new()));
        let first = gate.admit(Priority::Normal, within(10_000)).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        use Priority::{Bulk, High, Normal};
        for priority in [Normal, Normal, Normal, Bulk, Bulk, High, High] {
            let (gate, order) = (gate.clone(), order.clone());
            tasks.spawn(async move {
                let permit = gate.admit(priority, within(30_000)).await.unwrap();
                order.lock().unwrap().push(priority);
                permit.done(Ended::Ok).await;
            });
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        first.done(Ended::Ok).await;
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        let order = order.lock().unwrap().clone();
        let place = |of| order.iter().rposition(|priority| *priority == of);
        // The first of each line was at the gate already.
        assert!(place(High) <= Some(3) && place(Bulk) <= Some(4), "{order:?}");
    }
}

#[tokio::test]
async fn without_redis_limited_requests_are_refused_and_others_go() {
    let server = Server::start().await;
    let limited = server.gate(&Upstream { concurrency: Some(1), ..upstream() }).await;
    let free = server.gate(&upstream()).await;
    drop(server);
    let refusal = limited.admit(Priority::Normal, within(60_000)).await.unwrap_err();
    assert_eq!(refusal.reason, "redis");
    free.admit(Priority::Normal, within(1000)).await.unwrap().done(Ended::Ok).await;
    limited.refresh().await;
}

/// A worker that waits for Redis must not say that the upstream admits nothing.
#[tokio::test]
async fn a_refusal_names_redis_or_the_keys_that_cannot_be_used() {
    let server = Server::start().await;
    let gate = server.gate(&Upstream { concurrency: Some(1), ..upstream() }).await;
    let mut redis = server.connect().await;
    redis::cmd("SET").arg("test:limit:{museum}").arg("a stranger's").exec_async(&mut redis).await.unwrap();
    let refusal = gate.admit(Priority::Normal, within(60_000)).await.unwrap_err();
    assert!(refusal.reason == "limits" && !refusal.is_of_redis(), "{refusal:?}");
    redis::cmd("CLIENT").arg(&["PAUSE", "60000", "ALL"]).exec_async(&mut redis).await.unwrap();
    let refusal = gate.admit(Priority::Normal, within(300)).await.unwrap_err();
    assert!(refusal.is_of_redis(), "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_worker_does_not_starve_another() {
    let server = Server::start().await;
    let limited = Upstream { concurrency: Some(1), ..upstream() };
    let (busy, other) = (server.gate(&limited).await, server.gate(&limited).await);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let busy = busy.clone();
        tasks.spawn(async move {
            loop {
                if let Ok(permit) = busy.admit(Priority::Normal, within(60_000)).await {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    permit.done(Ended::Ok).await;
                }
            }
        });
    }
    let mut redis = server.connect().await;
    for _ in 0..3 {
        while redis::cmd("ZCARD").arg("test:permits:{museum}").query_async::<u32>(&mut redis).await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        other.admit(Priority::Normal, within(6000)).await.expect("its turn comes").done(Ended::Ok).await;
    }
}

#[tokio::test]
async fn tokens_of_answers_of_no_use_are_counted() {
    let server = Server::start().await;
    let museum = crate::cli::museum::Museum::start(([127, 0, 0, 1], 0).into(), crate::cli::museum::Options::instant())
        .await
        .unwrap();
    let files = [
        ("upstreams.toml".to_owned(), format!("[ai]\nurl = \"{}/v1\"\ntokens = \"10/hour\"\n", museum.url())),
        (
            "story.toml".to_owned(),
            "key = \"story:{name}\"\nttl = \"1h\"\n[source]\nkind = \"ai\"\nupstream = \"ai\"\nmodel = \"m\"\n\
             prompt = \"Tell of {{ name }}\"\nmax_tokens = 5\n"
                .to_owned(),
        ),
    ];
    let jobs = crate::job::Jobs::parse(&files, Duration::from_secs(3600), &|_| None).unwrap();
    let sources = crate::source::Sources::new(&jobs).unwrap();
    let gate = server.gate(jobs.upstreams.values().next().unwrap()).await;
    let permit = gate.admit(Priority::Normal, within(5000)).await.unwrap();
    let ask = crate::source::Ask {
        job: jobs.jobs.values().next().unwrap(),
        source: 0,
        key: &crate::entry::EntryKey::new("story:Mona Lisa"),
        params: &[("name".to_owned(), "Mona Lisa".to_owned())].into(),
        inputs: &serde_json::Map::new(),
        known: None,
        deadline: within(5000),
    };
    let (refused, tokens) = sources.fetch_with(&ask, Some(permit)).await;
    let refused = refused.unwrap_err();
    assert!(tokens > 0, "{refused}");
    assert!(matches!(refused, FetchError::Cut(_)), "{refused}");
    assert_eq!(gate.admit(Priority::Normal, within(5000)).await.unwrap_err().reason, "tokens");
    assert_eq!(gate.in_flight(), 0);
}

/// As after Redis's clock was set back by ten hours: what lies in the future was put there before.
#[tokio::test]
async fn limits_of_the_future_keep_nobody_waiting() {
    let server = Server::start().await;
    let limited = Upstream {
        rate: Some(Rate { count: 5, per: Duration::from_secs(1) }),
        concurrency: Some(2),
        timeout: Duration::from_secs(1),
        tokens: Some(TokenBudget { tokens: 10, per: Duration::from_secs(1) }),
        ..upstream()
    };
    let [state, permits, budget, _] = Keys::new("test", "test:invalidate").upstream(&limited.name);
    let mut redis = server.connect().await;
    let (seconds, _): (i64, i64) = redis::cmd("TIME").query_async(&mut redis).await.unwrap();
    let future = (seconds + 36_000) * 1_000;
    let tat = future * 1_000;
    let gate = server.gate(&limited).await;
    let put: [(&str, &[(&str, i64)]); 4] = [
        ("pace", &[("tat", tat)]),
        ("breaker", &[("open", future), ("open_for", 100)]),
        ("probe", &[("open", 1), ("open_for", 100), ("probe_until", future)]),
        ("turn", &[("turn_until", future)]),
    ];
    for (what, fields) in put {
        let mut set = redis::pipe();
        set.del(&state).ignore().hset(&state, "turn", "a dead gate").ignore();
        for (field, value) in fields {
            set.hset(&state, *field, *value).ignore();
        }
        // The other permit is in use, so that turns matter.
        set.del(&permits).ignore().zadd(&permits, "other", future - 36_000_000 + 60_000).ignore();
        set.exec_async(&mut redis).await.unwrap();
        gate.refresh().await;
        let permit = gate.admit(Priority::Normal, within(20_000)).await;
        permit.unwrap_or_else(|refusal| panic!("{what}: {refusal:?}")).done(Ended::Ok).await;
    }
    redis::pipe().del(&state).zadd(&permits, "dead", future).exec_async(&mut redis).await.unwrap();
    let permit = gate.admit(Priority::Normal, within(20_000)).await.expect("the permits of the dead come back");
    permit.done(Ended::Ok).await;
    // All is spent, in a window of a second.
    let mut spent = redis::pipe();
    spent.hset(&budget, "tokens", 20).hset(&budget, "ends", future).hset(&budget, "long", 1_000);
    spent.exec_async(&mut redis).await.unwrap();
    gate.refresh().await;
    gate.admit(Priority::Normal, within(20_000)).await.expect("the window ends in time").done(Ended::Ok).await;
    // The upstream asked to be left alone, for an hour at most.
    redis::cmd("HSET").arg(&state).arg("blocked").arg(future).exec_async(&mut redis).await.unwrap();
    gate.refresh().await;
    assert!(gate.closed_for().unwrap() <= Duration::from_secs(3_600));
}
