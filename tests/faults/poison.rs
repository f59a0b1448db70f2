//! Entries that bring their worker down: contained, counted for that entry alone, and given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{both, readable};
use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, WorkerProcess, eventually, eventually_within, samovar, talkative,
};

/// So many workers die of an entry before it is given up.
const POISON_CRASHES: usize = 3;

fn worker(redis: &TestRedis, jobs: &JobsFolder) -> WorkerProcess {
    talkative(redis, jobs).env("SAMOVAR_CLAIM", "10s").spawn()
}

/// An entry crashes each worker that fetches it, and a supervisor starts another.
#[tokio::test]
async fn poison_is_given_up_and_its_neighbours_are_warmed() {
    let (redis, upstream) = both().await;
    let victim = Arc::new(AtomicI32::new(0));
    let crashes = Arc::new(AtomicUsize::new(0));
    upstream.otherwise(|_, _| Reply::json(json!({"version": 1})).after(Duration::from_millis(50)));
    let (pid, count) = (Arc::clone(&victim), Arc::clone(&crashes));
    upstream.answer("/art/poison", move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
        let _ = kill(Pid::from_raw(pid.load(Ordering::Relaxed)), Signal::SIGKILL);
        Reply::silence()
    });
    let mut names: Vec<String> = (0..99).map(|n| n.to_string()).collect();
    names.insert(50, "poison".to_owned());
    let jobs = Art::of(&upstream).limits("timeout = \"120s\"").list(&names).folder();
    let mut minded = worker(&redis, &jobs);
    let give_up = eventually_within(DEATHS_TAKE, "it is given up", async || {
        victim.store(minded.pid().cast_signed(), Ordering::Relaxed);
        if !minded.is_running() {
            minded = worker(&redis, &jobs);
            victim.store(minded.pid().cast_signed(), Ordering::Relaxed);
        }
        let dead: Vec<String> = redis.ask(&["ZRANGE", "samovar:dead:{art}", "0", "-1"]).await;
        if dead == ["art:poison"] { Ok(()) } else { Err(format!("{dead:?}, {crashes:?}")) }
    });
    give_up.await;
    assert_eq!(crashes.load(Ordering::Relaxed), POISON_CRASHES);
    for name in names.iter().filter(|name| *name != "poison") {
        readable(&redis, name).await;
    }
    let reason: String = redis.ask(&["HGET", "samovar:dead-reasons:{art}", "art:poison"]).await;
    assert!(reason.contains("workers in a row died"), "{reason}");
    assert_eq!(redis.ask::<usize>(&["ZCARD", "samovar:dead:{art}"]).await, 1, "its neighbours are not counted");
    // Who only wants it does not get it tried, a person does.
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["art:poison"], "action": "warm"}"#).await;
    eventually("it is off the agenda again", async || parts.score("poison").await.is_none()).await;
    assert_eq!(crashes.load(Ordering::Relaxed), POISON_CRASHES);
    upstream.on("/art/poison", Reply::json(json!({"version": 2})));
    assert_eq!(redis.ask::<usize>(&["ZCARD", "samovar:dead:{art}"]).await, 1);
    let retried = samovar(["dead", "--retry"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!(retried.code, Some(0), "{retried:?}");
    readable(&redis, "poison").await;
    assert!(minded.is_running());
}

/// The most memory of a worker while several templates grow at once, in bytes.
const MOST: u64 = 700 << 20;
/// As long as several crashes take.
const DEATHS_TAKE: Duration = Duration::from_secs(90);

/// Templates that ask for all the memory there is, if the answer says so: each takes an answer of its own.
const BOMBS: [&str; 14] = [
    "{{ 'x' * value.n }}",
    "{{ range(0, 99999)|list|string * 9999 }}",
    "{% for i in range(99999) %}{% for j in range(10000) %}{{ j }}{% endfor %}{% endfor %}",
    "{{ value.text|indent(value.n) }}",
    "{{ value.text|indent(9223372036854775807) }}",
    "{{ value.text|replace('a', value.text) }}",
    "{{ range(99999)|join(value.text) }}",
    "{{ ('%' ~ value.n ~ 'd')|format(1) }}",
    "{{ ('%s' * 9999)|format(value.text) }}",
    "{{ [1]|slice(value.n)|list }}",
    "{{ [1]|batch(value.n, 'x')|list }}",
    "{{ ([1] * 99999999)|list }}",
    "{{ ([1] * 99999999)|map('string')|join }}",
    "{{ [['x' * 9999999] * 1000] }}",
];

/// Without end, deeper than anything, longer than allowed: each is a failed answer of that entry alone.
#[tokio::test]
async fn templates_and_answers_that_explode_are_contained() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({"bomb": -1, "version": 1})));
    upstream.on("/art/deep", Reply::text(&format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000))));
    let mut bad = vec!["deep".to_owned()];
    let mut template = "{% if value.bomb == -1 %}fine".to_owned();
    for (n, bomb) in BOMBS.iter().enumerate() {
        let answer = json!({"bomb": n, "n": 1_000_000_000_000_000_u64, "text": "a\n".repeat(100_000)});
        upstream.on(&format!("/art/bomb {n}"), Reply::json(answer));
        template.push_str(&format!("{{% elif value.bomb == {n} %}}{bomb}"));
        bad.push(format!("bomb {n}"));
    }
    template.push_str("{% endif %}");
    let good: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let jobs = Art::of(&upstream)
        .source(&format!("value = {{ text = {} }}", json!(template)))
        .warm("attempts = 1")
        .list(bad.iter().chain(&good))
        .folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_CLAIM", "10s").spawn();
    eventually_within(DEATHS_TAKE, "the others are readable", async || {
        let there = redis.keys("art:*").await.len();
        if there == good.len() { Ok(()) } else { Err(format!("{there}")) }
    })
    .await;
    eventually_within(DEATHS_TAKE, "all that explodes is given up", async || {
        assert!(worker.is_running(), "it brought the worker down");
        let mut dead: Vec<String> = redis.ask(&["ZRANGE", "samovar:dead:{art}", "0", "-1"]).await;
        dead.sort();
        let mut all: Vec<String> = bad.iter().map(|name| format!("art:{name}")).collect();
        all.sort();
        if dead == all { Ok(()) } else { Err(format!("{dead:?}")) }
    })
    .await;
    eprintln!("it held at most {} MiB", worker.most_resident() >> 20);
    assert!(worker.most_resident() < MOST, "{} bytes in RAM", worker.most_resident());
    eventually("it is at rest", async || redis.keys("samovar:lease:*").await.is_empty()).await;
}
