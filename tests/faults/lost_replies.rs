//! Calls without an answer: what Redis carried out of them is known to nobody until the caller asks again.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use samovar::agenda::{Agenda, Claimed, Due, State, When};
use samovar::entry::Trigger;
use samovar::redis::{RedisTime, RedisUrl};
use samovar::store::{Fresh, Leased, Store};

use crate::support::{Art, Fault, Parts, Proxy, TestRedis, both, eventually, eventually_within, job, samovar, version};
use crate::support::{JobsFolder, Upstream, WorkerProcess, art, listening};

/// The time of a command.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Longer than any test: what comes due before has not waited for a claim's end.
const HOUR: Duration = Duration::from_secs(3_600);

/// A Redis with an entry that is due, the parts over a proxy before it, and the parts that see it as it is.
async fn behind_a_proxy() -> (TestRedis, Proxy, Parts, Agenda, Store) {
    let redis = TestRedis::start().await;
    let (proxy, parts) = (Proxy::before(redis.port()).await, Parts::of(&redis).await);
    let there = Parts::at(&RedisUrl::parse(&proxy.url(), None).unwrap()).await;
    let connection = there.redis.with_timeout(TIMEOUT);
    let (agenda, store) = (Agenda::new(connection.clone(), there.keys.clone()), Store::new(connection, there.keys));
    // Redis knows the scripts from now on.
    let none = Claimed { key: "art:none".to_owned(), score: "1".to_owned(), since: RedisTime::ZERO };
    agenda.take(&job(), &[none], HOUR, None).await.unwrap();
    let Leased::Yes(lease) = store.lease(&art("none"), HOUR, Fresh::default()).await.unwrap() else { panic!() };
    store.release(&art("none"), &lease.token, None).await.unwrap();
    assert!(agenda.claim(&job(), 10, 10, HOUR).await.unwrap().entries.is_empty());
    parts.agenda.put(&job(), &[art("a")], When::Urgent, Trigger::Invalidation).await.unwrap();
    (redis, proxy, parts, agenda, store)
}

async fn state(parts: &Parts) -> State {
    parts.agenda.dues(&job(), &[art("a")]).await.unwrap()[0].unwrap().state
}

#[tokio::test]
async fn a_claim_without_an_answer_is_claimed_anew_by_its_caller() {
    let (_redis, proxy, parts, agenda, _) = behind_a_proxy().await;
    proxy.set(Fault::Deaf);
    agenda.claim(&job(), 10, 10, HOUR).await.unwrap_err();
    assert_eq!(state(&parts).await, State::Claimed);
    assert!(parts.agenda.claim(&job(), 10, 10, HOUR).await.unwrap().entries.is_empty(), "another one leaves it alone");
    proxy.set(Fault::None);
    let claims = eventually("it asks again", async || agenda.claim(&job(), 10, 10, HOUR).await).await;
    assert_eq!(claims.entries.len(), 1);
    assert!(claims.entries[0].since <= parts.now().await, "it was due before");
    assert!(parts.agenda.take(&job(), &claims.entries, HOUR, None).await.unwrap()[0].is_some());
    assert!(agenda.claim(&job(), 10, 10, HOUR).await.unwrap().entries.is_empty(), "it runs now");
}

#[tokio::test]
async fn a_claim_that_redis_carries_out_late_is_claimed_anew() {
    let (redis, _proxy, parts, agenda, _) = behind_a_proxy().await;
    redis.freeze();
    agenda.claim(&job(), 10, 10, HOUR).await.unwrap_err();
    redis.thaw();
    eventually("redis carries it out", async || state(&parts).await == State::Claimed).await;
    let claims = eventually("it asks again", async || agenda.claim(&job(), 10, 10, HOUR).await).await;
    assert_eq!(claims.entries.len(), 1);
}

#[tokio::test]
async fn abandoned_claims_are_claimed_anew_all_at_once() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let entries: Vec<_> = (0..5).map(|n| art(&n.to_string())).collect();
    parts.agenda.put(&job(), &entries, When::NOW, Trigger::Cron).await.unwrap();
    let before = parts.agenda.claim(&job(), 10, 10, HOUR).await.unwrap().entries;
    assert_eq!(before.len(), 5);
    parts.next_instant().await;
    assert!(parts.agenda.claim(&job(), 10, 10, HOUR).await.unwrap().entries.is_empty());
    parts.agenda.abandon(&job());
    // They are in flight already: neither limit counts them.
    let again = parts.agenda.claim(&job(), 2, 5, HOUR).await.unwrap().entries;
    assert_eq!(again.len(), 5);
    assert_eq!(parts.agenda.take(&job(), &before, HOUR, None).await.unwrap(), vec![None; 5]);
    assert!(parts.agenda.take(&job(), &again, HOUR, None).await.unwrap().iter().all(Option::is_some));
}

#[tokio::test]
async fn entries_taken_without_an_answer_are_the_callers_own() {
    let (_redis, proxy, parts, agenda, _) = behind_a_proxy().await;
    let claimed = agenda.claim(&job(), 10, 10, HOUR).await.unwrap().entries;
    proxy.set(Fault::Deaf);
    agenda.take(&job(), &claimed, HOUR, None).await.unwrap_err();
    assert_eq!(state(&parts).await, State::Running);
    proxy.set(Fault::None);
    // A task that is handled twice asks for the first time.
    assert_eq!(parts.agenda.take(&job(), &claimed, HOUR, None).await.unwrap(), [None]);
    let begun = Instant::now();
    let ask = async || agenda.take(&job(), &claimed, HOUR, Some(TIMEOUT + begun.elapsed())).await;
    let taken = eventually("it asks again", ask).await;
    let own = taken[0].as_ref().map(|score| Due::from_score(score.parse().unwrap()));
    assert_eq!(own, parts.agenda.dues(&job(), &[art("a")]).await.unwrap()[0]);
}

#[tokio::test]
async fn a_lease_without_an_answer_can_be_given_back() {
    let (_redis, proxy, parts, _, store) = behind_a_proxy().await;
    let (token, then) = (store.token(), redis::cmd("PING"));
    proxy.set(Fault::Deaf);
    let leased = store.lease_and::<String>(&art("a"), token.clone(), HOUR, Fresh::default(), &then).await;
    leased.map(|_| ()).unwrap_err();
    assert!(matches!(parts.store.lease(&art("a"), HOUR, Fresh::default()).await.unwrap(), Leased::Busy(_)));
    proxy.set(Fault::None);
    eventually("it is given back", async || store.release(&art("a"), &token, None).await).await;
    assert!(matches!(parts.store.lease(&art("a"), HOUR, Fresh::default()).await.unwrap(), Leased::Yes(_)));
}

/// A worker over a proxy, whose claims hold for an hour: it has made `art:a` in its first version, and the second is at
/// the upstream.
async fn worker_over_a_proxy() -> (TestRedis, Proxy, Upstream, JobsFolder, WorkerProcess) {
    let (redis, upstream) = both().await;
    let proxy = Proxy::before(redis.port()).await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    upstream.edit("/art/a");
    let worker = samovar(["worker"]).redis_at(&proxy.url()).jobs(&jobs).env("SAMOVAR_CLAIM", "1h").spawn();
    version(&redis, "a", 1).await;
    listening(&redis, 1).await;
    upstream.edit("/art/a");
    (redis, proxy, upstream, jobs, worker)
}

async fn is_second(redis: &TestRedis) -> bool {
    redis.json("art:a").await.is_some_and(|value| value["version"] == 2)
}

#[tokio::test]
async fn a_worker_finds_what_it_claimed_without_an_answer() {
    let (redis, proxy, _upstream, _jobs, _worker) = worker_over_a_proxy().await;
    let parts = Parts::of(&redis).await;
    eventually("it is scheduled", async || state(&parts).await == State::Scheduled).await;
    proxy.set(Fault::Deaf);
    parts.agenda.put(&job(), &[art("a")], When::Urgent, Trigger::Manual).await.unwrap();
    eventually("it is claimed, and nobody hears of it", async || state(&parts).await == State::Claimed).await;
    proxy.set(Fault::None);
    eventually_within(Duration::from_secs(60), "it is fetched", async || is_second(&redis).await).await;
}

/// Another worker would take it over after an hour.
#[tokio::test]
async fn a_worker_finds_a_message_that_it_was_given_without_an_answer() {
    let (redis, proxy, _upstream, _jobs, _worker) = worker_over_a_proxy().await;
    proxy.set(Fault::Deaf);
    redis.ask::<String>(&["XADD", "samovar:inbox", "*", "message", "art:a"]).await;
    let pending = ["XPENDING", "samovar:inbox", "samovar", "-", "+", "1"];
    eventually("it is given the message, and does not hear of it", async || {
        !redis.ask::<Vec<redis::Value>>(&pending).await.is_empty()
    })
    .await;
    proxy.set(Fault::None);
    eventually_within(Duration::from_secs(60), "it is handled", async || is_second(&redis).await).await;
}

#[tokio::test]
async fn edits_while_redis_is_frozen_are_fresh_soon_after() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    names.iter().for_each(|name| _ = upstream.edit(&format!("/art/{name}")));
    let jobs = Art::of(&upstream).list(&names).folder();
    let start = || samovar(["worker"]).redis(&redis).jobs(&jobs).env("SAMOVAR_CLAIM", "1h").spawn();
    let _workers = [start(), start()];
    join_all(names.iter().map(|name| version(&redis, name, 1))).await;
    listening(&redis, 2).await;
    // Commands end after five seconds.
    let mut frozen = tokio::time::interval(Duration::from_millis(200));
    let mut telling = tokio::task::JoinSet::new();
    for (n, name) in names.iter().enumerate() {
        frozen.tick().await;
        upstream.edit(&format!("/art/{name}"));
        let (client, message) = (redis.client(), format!("{{\"keys\":[\"art:{name}\"]}}"));
        telling.spawn(async move {
            let mut connection = client.get_multiplexed_async_connection_with_config(&patient()).await.unwrap();
            let mut add = redis::cmd("XADD");
            add.arg("samovar:inbox").arg("*").arg("message").arg(message);
            add.exec_async(&mut connection).await.unwrap();
        });
        if n == 10 {
            redis.freeze();
        }
    }
    frozen.tick().await;
    redis.thaw();
    telling.join_all().await;
    eventually_within(Duration::from_secs(60), "all are fresh", async || {
        let values = join_all(names.iter().map(async |name| redis.json(&format!("art:{name}")).await)).await;
        let old = values.iter().filter(|value| value.as_ref().is_none_or(|value| value["version"] != 2)).count();
        if old == 0 { Ok(()) } else { Err(old) }
    })
    .await;
}

/// Returns the configuration of a client that waits as long as Redis is frozen.
fn patient() -> redis::AsyncConnectionConfig {
    redis::AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None)
}
