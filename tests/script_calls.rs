//! The model of the scripts' callers (`model/src/calls.rs`) sends what the callers send: the same scripts, as many keys
//! and arguments, and the same numbers and words.
#[path = "../model/src/calls.rs"]
#[allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "a part of another crate")]
mod calls;
#[path = "../model/src/scripts.rs"]
#[allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "a part of another crate")]
mod scripts;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{Parts, TestRedis, art, job};
use calls::{Attempt, Call, Limits};
use samovar::agenda::{Finished, Next, When};
use samovar::cache::{Cache, RateLimiter};
use samovar::entry::{Announced, Outcome, Priority, Trigger, UpstreamName, Version};
use samovar::job::{Redirects, TokenBudget, Upstream};
use samovar::redis::RedisTime;
use samovar::source::{Cost, Ended, Gate};
use samovar::store::{Fresh, LastAttempt, Lease, Leased, Removal, Terms, Versions};

const fn ms(time: i64) -> Duration {
    Duration::from_millis(time.unsigned_abs())
}

/// The commands that a server gets, as `MONITOR` tells them.
struct Monitor {
    lines: BufReader<TcpStream>,
}

impl Monitor {
    fn of(redis: &TestRedis) -> Self {
        let mut link = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
        link.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        link.write_all(b"MONITOR\r\n").unwrap();
        let mut lines = BufReader::new(link);
        lines.read_line(&mut String::new()).unwrap();
        Self { lines }
    }

    /// Returns the scripts that ran since the last call: digest, keys and arguments.
    async fn scripts(&mut self, redis: &TestRedis) -> Vec<(String, Vec<String>, Vec<String>)> {
        let _: String = redis.ask(&["ECHO", "so far"]).await;
        let mut scripts = Vec::new();
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            let words = words(&line);
            match words.first().map(String::as_str) {
                Some("ECHO") => return scripts,
                Some("EVALSHA") => {
                    let keys = words[2].parse::<usize>().unwrap();
                    scripts.push((words[1].clone(), words[3..3 + keys].to_vec(), words[3 + keys..].to_vec()));
                }
                _ => {}
            }
        }
    }

    /// Checks that the last call of this script was as the model has it; numbers at `other` differ on purpose.
    async fn expect(&mut self, redis: &TestRedis, model: &[(Call, &[usize])]) {
        let scripts = self.scripts(redis).await;
        for (model, other) in model {
            let digest = redis::Script::new(&model.script.for_redis()).get_hash().to_owned();
            let sent = scripts.iter().rfind(|(of, ..)| *of == digest);
            let (_, keys, args) =
                sent.unwrap_or_else(|| panic!("{} did not run as the model has it", model.script.path()));
            let wrong =
                |what: &str| panic!("{}: {what}\nmodel: {model:?}\nsent: {keys:?} {args:?}", model.script.path());
            if keys.len() != model.keys.len() || args.len() != model.args.len() {
                wrong("another number of keys or arguments");
            }
            for (n, (model, sent)) in model.args.iter().zip(args).enumerate() {
                if !other.contains(&n) && !is_same(model, sent) {
                    wrong(&format!("argument {}", n + 1));
                }
            }
        }
    }
}

/// Compares what does not depend on names, tokens and the time.
fn is_same(model: &str, sent: &str) -> bool {
    const NAMES: [&str; 6] = ["a", "b", "T", "art", "signal", "changed"];
    if NAMES.contains(&model) {
        return !sent.is_empty();
    }
    match (model.parse::<f64>(), sent.parse::<f64>()) {
        // Both are times, or scores.
        (Ok(a), Ok(b)) if a.abs() > 1e11 && b.abs() > 1e11 => true,
        (Ok(a), Ok(b)) => a == b,
        (Err(_), Err(_)) if model.is_empty() || model.bytes().all(|byte| byte.is_ascii_alphabetic()) => model == sent,
        (Err(_), Err(_)) => !sent.is_empty(),
        _ => false,
    }
}

/// Splits a line of `MONITOR` into its words.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.split_once("] ").map_or("", |(_, rest)| rest);
    while let Some(begun) = rest.strip_prefix('"') {
        let (mut word, mut chars) = (String::new(), begun.char_indices());
        let end = loop {
            match chars.next() {
                Some((_, '\\')) => word.extend(chars.next().map(|(_, next)| next)),
                Some((at, '"')) => break at,
                Some((_, other)) => word.push(other),
                None => return words,
            }
        };
        words.push(word);
        rest = begun[end + 1..].trim_start();
    }
    words
}

async fn lease(parts: &Parts, name: &str, fresh: Fresh) -> Lease {
    match parts.store.lease(&art(name), ms(calls::LEASE), fresh).await.unwrap() {
        Leased::Yes(lease) => *lease,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_store_sends_what_the_model_sends() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let (store, mut monitor) = (&parts.store, Monitor::of(&redis));
    let (now, then) = (RedisTime::from_millis(1_700_000_000_000), 1_700_000_000_000);
    let wary = Fresh { since: Some(now), most_crashes: Some(2), ..Fresh::default() };
    let mut held = lease(&parts, "a", wary).await;
    let model = calls::Fresh { since: Some(then), crashes: Some(2), ..calls::Fresh::default() };
    monitor.expect(&redis, &[(calls::lease("a", "t-1", model), &[])]).await;

    let versions = Versions { patience: Some(ms(calls::PATIENCE)), look: true };
    let kept = calls::Versions { kept: true, look: true };
    held.versions = versions;
    let warmed = LastAttempt {
        trigger: Some(Trigger::Manual),
        outcome: Some(Outcome::Warmed),
        version: Some(Version::new(7)),
        tags: vec!["T".into()],
        ..LastAttempt::default()
    };
    let attempt = Attempt { trigger: 4, version: Some(7), tagged: true, ..Attempt::default() };
    assert_eq!((warmed.attempt(), warmed.to_json()), (attempt.packed(), attempt.note()));
    store.commit(&art("a"), &held, "{}", ms(calls::TTL), &warmed).await.unwrap();
    monitor.expect(&redis, &[(calls::commit("a", "t-1", "{}", &attempt, then, kept), &[])]).await;

    for asked in [true, false] {
        let mut held = lease(&parts, "a", Fresh::default()).await;
        held.versions = versions;
        match asked {
            true => store.extend(&art("a"), &held, ms(calls::TTL), &warmed).await.unwrap(),
            false => store.extend_unasked(&art("a"), &held, ms(calls::TTL), &warmed).await.unwrap(),
        };
        monitor.expect(&redis, &[(calls::extend("a", "t-1", then, &attempt, asked, then, kept), &[])]).await;
    }
    store.extend_stale(&art("a"), ms(700), ms(calls::STALE)).await.unwrap();
    monitor.expect(&redis, &[(calls::extend_stale("a", 700), &[])]).await;

    let held = lease(&parts, "a", Fresh::default()).await;
    let failed = LastAttempt {
        trigger: Some(Trigger::Invalidation),
        outcome: Some(Outcome::Failed),
        attempted: now,
        failures: 2,
        crashes: 1,
        storm: true,
        ..LastAttempt::default()
    };
    let attempt =
        Attempt { trigger: 1, outcome: 7, began: then, failures: 2, crashes: 1, storm: true, ..Attempt::default() };
    assert_eq!((failed.attempt(), failed.to_json()), (attempt.packed(), attempt.note()));
    store.release(&art("a"), &held.token, Some(&failed)).await.unwrap();
    monitor.expect(&redis, &[(calls::release("a", "t-1", Some(&attempt)), &[])]).await;
    store.release(&art("a"), &held.token, None).await.unwrap();
    monitor.expect(&redis, &[(calls::release("a", "t-1", None), &[])]).await;

    let held = lease(&parts, "a", Fresh::default()).await;
    store.gone(&art("a"), &held, &failed).await.unwrap();
    monitor.expect(&redis, &[(calls::gone("a", "t-1", &attempt, then, calls::Versions::default()), &[])]).await;

    let announced = [(Announced::None, ""), (Announced::AtLeast(Version::new(9)), "9"), (Announced::Any, "any")];
    for ((version, text), is_paid_for) in announced.into_iter().zip([false, true, false]) {
        let terms = Terms { version, is_paid_for, rechecked_for: ms(calls::RECHECK), ..Terms::default() };
        for removal in [Removal::Refresh, Removal::Evict] {
            store.invalidate_on(&art("a"), now, removal, terms).await.unwrap();
            let pauses = if is_paid_for { calls::PAUSE } else { (calls::PAUSE.0, calls::PAUSE.0) };
            let evict = removal == Removal::Evict;
            monitor
                .expect(&redis, &[(calls::invalidate("a", then, evict, pauses, (60_000, calls::RECHECK), text), &[])])
                .await;
        }
    }
}

#[tokio::test]
async fn the_guard_gets_what_the_model_sends() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let (store, mut monitor) = (&parts.store, Monitor::of(&redis));
    let (marked, then) = (RedisTime::from_millis(1_700_000_000_000), 1_700_000_000_000);
    for (are_all_due, of_few) in [(true, 3), (false, 10)] {
        store.guard_removal(&job(), &art("a"), 10, are_all_due, marked).await.unwrap();
        monitor.expect(&redis, &[(calls::guard_removal("a", then, (10, of_few)), &[])]).await;
    }
    store.note_recovery(&job(), &art("a")).await.unwrap();
    monitor.expect(&redis, &[(calls::guard_recovery("a", ""), &[])]).await;
    store.accept_removals(&job()).await.unwrap();
    monitor.expect(&redis, &[(calls::guard_decision("accept"), &[])]).await;
    store.hold_removals(&job()).await.unwrap();
    monitor.expect(&redis, &[(calls::guard_decision("hold"), &[])]).await;
}

#[tokio::test]
async fn tags_are_sent_as_the_model_sends_them() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let (store, mut monitor) = (&parts.store, Monitor::of(&redis));
    let (now, then) = (RedisTime::from_millis(1_700_000_000_000), 1_700_000_000_000);
    store.stamp("T", now, Removal::Refresh).await.unwrap();
    monitor.expect(&redis, &[(calls::stamp(then, false), &[]), (calls::stamp_unknown("T", then, false), &[3])]).await;
    store.tag(&art("a"), &["T".to_owned()], ms(calls::TTL + calls::STALE + calls::LEASE)).await.unwrap();
    monitor.expect(&redis, &[(calls::tag("a"), &[]), (calls::read_unknown(), &[])]).await;
    store.stamp("T", now, Removal::Evict).await.unwrap();
    monitor.expect(&redis, &[(calls::stamp(then, true), &[])]).await;
    store.untag(&art("a"), &["T".to_owned()], now).await.unwrap();
    monitor.expect(&redis, &[(calls::untag("a", then), &[])]).await;
    store.sweep_tags().await.unwrap();
    monitor.expect(&redis, &[(calls::sweep(), &[])]).await;
}

#[tokio::test]
async fn the_agenda_sends_what_the_model_sends() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let (agenda, mut monitor) = (&parts.agenda, Monitor::of(&redis));
    let (now, then) = (RedisTime::from_millis(1_700_000_000_000), 1_700_000_000_000);
    for (when, trigger, how, at) in [
        (When::Urgent, Trigger::Invalidation, "urgent", 0),
        (When::Urgent, Trigger::Demand, "urgent", 0),
        (When::BULK_NOW, Trigger::Invalidation, "bulk", 0),
        (When::NOW, Trigger::Cron, "due", 0),
        (When::Keep(now), Trigger::Recheck, "keep", then),
        (When::IfThere, Trigger::Invalidation, "there", 0),
        (When::Urgent, Trigger::Manual, "urgent", 0),
    ] {
        agenda.put(&job(), &[art("a")], when, trigger).await.unwrap();
        monitor.expect(&redis, &[(calls::due(how, trigger as u8, at, &["a"]), &[])]).await;
    }
    let claimed = agenda.claim(&job(), 1, calls::CAP, ms(calls::CLAIM)).await.unwrap().entries;
    monitor.expect(&redis, &[(calls::claim(0, 1, 1, 0), &[3, 4])]).await;
    let score = agenda.take(&job(), &claimed, ms(calls::RUN), None).await.unwrap().remove(0).unwrap();
    monitor.expect(&redis, &[(calls::take("a", &claimed[0].score, None), &[])]).await;
    for (next, outcome, what, arg) in [
        (Next::At(now), Some(Outcome::Warmed), "at", "1700000000000"),
        (Next::Recheck(now), Some(Outcome::Unchanged), "recheck", "1700000000000"),
        (Next::In(ms(50)), None, "in", "50"),
        (Next::Out, Some(Outcome::Gone), "out", ""),
        (Next::Dead("reason".into()), Some(Outcome::Failed), "dead", "reason"),
    ] {
        let key = art("a").as_str().to_owned();
        let finished = Finished { key, score: score.clone(), next, outcome };
        let counter = outcome.map_or("", Outcome::as_str);
        let last = if counter.is_empty() { String::new() } else { format!(r#"{{"outcome":"{counter}"}}"#) };
        agenda.finish(&job(), &[finished], &last).await.unwrap();
        // Fewer dead letters are kept there.
        monitor.expect(&redis, &[(calls::finish("a", &score, counter, (what, arg)), &[0])]).await;
    }
    agenda.cancel(&job(), &[art("a")], now).await.unwrap();
    monitor.expect(&redis, &[(calls::cancel("a", then), &[])]).await;
}

#[tokio::test]
async fn the_library_sends_what_the_model_sends() {
    let redis = TestRedis::start().await;
    let builder = Cache::builder(redis.redis_url()).bound(Duration::from_secs(10));
    let cache = builder.prefix("art").default_ttl(ms(calls::TTL)).build().await.unwrap();
    let mut monitor = Monitor::of(&redis);
    let ttl = calls::TTL.to_string();
    // The library announces only where it is told to.
    let quiet = [2, 3];
    cache.set("a", &1).await.unwrap();
    monitor.expect(&redis, &[(calls::set("a", "1", &ttl), &quiet)]).await;
    cache.delete("a").await.unwrap();
    monitor.expect(&redis, &[(calls::delete("a"), &[0, 1])]).await;
    cache.increment_with("n", 2, ms(20_000)).await.unwrap();
    monitor.expect(&redis, &[(calls::increment("n", 2, "20000"), &quiet)]).await;
    let _: u8 = cache.get_or_load("a", async || Ok::<u8, String>(1)).await.unwrap();
    let load = [(calls::begin_load("a", "t-1"), &[1][..]), (calls::commit_load("a", "t-1", "1", &ttl), &[3, 4][..])];
    monitor.expect(&redis, &load).await;
    RateLimiter::new(&cache, "3/second").unwrap().check("sender").await.unwrap();
    monitor.expect(&redis, &[(calls::admit(3, 1_000_000), &[])]).await;
}

#[tokio::test]
async fn a_gate_sends_what_the_model_sends() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let upstream = Upstream {
        name: UpstreamName::new("museum"),
        url: "http://museum.test".into(),
        headers: BTreeMap::new(),
        rate: None,
        concurrency: Some(3),
        timeout: ms(2_000),
        max_bytes: 1 << 20,
        tokens: Some(TokenBudget { tokens: 100, per: ms(10_000) }),
        redirects: Redirects::SameHost,
    };
    let limits = Limits { hold: 7_000, most: 3, interval: 0, early: 0, ahead: 1_000, budget: 100, window: 10_000 };
    let gate = Arc::new(Gate::new(Arc::new(upstream), parts.redis.clone(), &parts.keys, 8));
    let mut monitor = Monitor::of(&redis);
    let cost = Cost { prompt: 20, answer: Some(30) };
    let mut permit = gate.admit_for(Priority::Normal, Instant::now() + ms(60_000), cost).await.unwrap();
    // For how long it has waited.
    monitor.expect(&redis, &[(calls::take_permit("g-1", ("g-0", 0), limits, (20, 30), &[]), &[8])]).await;
    permit.spend(45);
    permit.done(Ended::Ok).await;
    let ended = calls::Ended { word: "answered", busy: 0, answer: 0 };
    let told = |spent, counted| calls::Told { process: "g-0", spent, counted };
    monitor.expect(&redis, &[(calls::return_permit("g-1", limits, ended, told(45, 0), &[]), &[])]).await;
    gate.refresh().await;
    monitor.expect(&redis, &[(calls::inspect(limits, told(45, 45), &[]), &[])]).await;
}
