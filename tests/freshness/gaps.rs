//! Gaps: what was published bare while nobody listened is made good.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use samovar::agenda::State;
use samovar::entry::{EntryKey, JobName};
use samovar::store::{LastAttempt, Removal, Terms};

use super::{CHANNEL, identity, warmed_by};
use crate::support::{
    Art, JobsFolder, Parts, TestRedis, Upstream, art, both, eventually, hasty_worker, talkative, version, worker,
};

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn what_is_published_bare_while_nobody_listens_is_made_good() {
    let (redis, upstream, jobs, mut first) = warmed_by(worker).await;
    has_heard(&redis).await;
    first.kill9();
    first.wait().await;
    let edited = upstream.edit("/art/a");
    redis.publish(CHANNEL, "art:a").await;
    let _second = worker(&redis, &jobs);
    version(&redis, "a", edited).await;
}

/// Waits until one worker has said what it hears.
async fn has_heard(redis: &TestRedis) {
    eventually("it has said what it hears", async || {
        let records = records(redis).await;
        records.len() == 1 && !records[0].starts_with("0 ")
    })
    .await;
}

/// Returns what workers recorded.
async fn records(redis: &TestRedis) -> Vec<String> {
    let mut all: BTreeMap<String, String> = redis.ask(&["HGETALL", "samovar:ears"]).await;
    all.remove("clock");
    all.into_values().collect()
}

/// Waits until so many workers have said that they heard everything for some seconds.
async fn have_listened(redis: &TestRedis, workers: usize) {
    eventually("they have listened for a while", async || {
        let records = records(redis).await;
        let times = records.iter().map(|record| record.split(' ').take(3).map(|time| time.parse().unwrap()).collect());
        let times: Vec<Vec<i64>> = times.collect();
        if times.len() == workers && times.iter().all(|times| times[2] - times[0] > 4_500) {
            Ok(())
        } else {
            Err(records)
        }
    })
    .await;
}

/// Somebody else has heard it all: nothing is suspect.
#[tokio::test]
async fn a_worker_that_comes_anew_into_a_fleet_suspects_nothing() {
    let (redis, upstream, jobs, _first) = warmed_by(worker).await;
    has_heard(&redis).await;
    let _second = worker(&redis, &jobs);
    have_listened(&redis, 2).await;
    assert_eq!(upstream.calls("/art/a"), 1);
}

#[tokio::test]
async fn a_cut_subscription_of_the_only_worker_revalidates_everything() {
    let (redis, upstream, _jobs, _worker) = warmed_by(worker).await;
    has_heard(&redis).await;
    let edited = upstream.edit("/art/a");
    // In one step, so that it cannot be subscribed again in between.
    let mut connection = redis.connection().await;
    let heard: Vec<usize> = redis::pipe()
        .atomic()
        .cmd("CLIENT")
        .arg(&["KILL", "TYPE", "pubsub"])
        .cmd("PUBLISH")
        .arg(CHANNEL)
        .arg("art:a")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(heard, [1, 0]);
    version(&redis, "a", edited).await;
}

/// It is told to stop, and has no time to handle what it heard.
#[tokio::test]
async fn what_a_worker_did_not_handle_by_its_end_is_made_good() {
    let hurried = |redis: &_, jobs: &_| talkative(redis, jobs).env("SAMOVAR_DRAIN", "0").spawn();
    let (redis, upstream, jobs, mut first) = warmed_by(hurried).await;
    has_heard(&redis).await;
    first.freeze();
    let edited = upstream.edit("/art/a");
    let mut publish = redis::pipe();
    for _ in 0..5_000 {
        publish.cmd("PUBLISH").arg(CHANNEL).arg(r#"{"keys": ["art:none"], "action": "evict"}"#);
    }
    publish.cmd("PUBLISH").arg(CHANNEL).arg("art:a");
    let heard: Vec<usize> = publish.query_async(&mut redis.connection().await).await.unwrap();
    assert!(heard.iter().all(|heard| *heard == 1));
    first.term();
    first.thaw();
    assert_eq!(first.wait().await.code(), Some(0));
    let mut second = worker(&redis, &jobs);
    second.wait_for_log(&["nobody was listening"]).await;
    version(&redis, "a", edited).await;
}

/// Another worker heard all the while, and died a moment later with what it had heard.
#[tokio::test]
async fn messages_a_dead_worker_only_heard_do_not_count_as_handled() {
    let (redis, upstream, jobs, mut first) = warmed_by(worker).await;
    first.kill9();
    first.wait().await;
    let edited = upstream.edit("/art/a");
    let now = Parts::of(&redis).await.now().await;
    redis.ask::<usize>(&["DEL", "samovar:ears"]).await;
    let heard = format!("{} {now} {} {}", now - Duration::from_secs(60), now - Duration::from_secs(1), identity(&jobs));
    redis.ask::<usize>(&["HSET", "samovar:ears", "dead", &heard]).await;
    let mut second = worker(&redis, &jobs);
    second.wait_for_log(&["nobody was listening"]).await;
    version(&redis, "a", edited).await;
}

/// Nobody ran for a day. Another worker began a moment sooner, and dies before it has found out that nobody listened.
#[tokio::test]
async fn a_worker_that_has_not_checked_vouches_for_nothing() {
    let (redis, upstream, jobs, mut first) = warmed_by(worker).await;
    first.kill9();
    first.wait().await;
    let edited = upstream.edit("/art/a");
    let parts = Parts::of(&redis).await;
    let (known, began) = (identity(&jobs), parts.now().await);
    redis.ask::<usize>(&["DEL", "samovar:ears"]).await;
    let ended = began - Duration::from_secs(90_000);
    let heard = format!("{} {ended} {ended} {known}", ended - Duration::from_secs(60));
    redis.ask::<usize>(&["HSET", "samovar:ears", "long gone", &heard]).await;
    let mut third = worker(&redis, &jobs);
    eventually("the second one hears longer than the third", async || {
        let now = parts.now().await;
        let records = records(&redis).await;
        redis.ask::<usize>(&["HSET", "samovar:ears", "second", &format!("{began} {now} {now} {known} 0")]).await;
        let since = |record: &String| record.split(' ').next().unwrap().parse::<i64>().unwrap();
        records.iter().any(|record| since(record) > began.as_millis() && since(record) < now.as_millis())
    })
    .await;
    version(&redis, "a", edited).await;
    let told = third.wait_for_log(&["nobody was listening"]).await;
    assert!(told.contains("for 900"), "for 90,000 s, whatever the second one heard: {told}");
    assert!(redis.ask::<bool>(&["HEXISTS", "samovar:ears", "long gone"]).await, "the second one needs it");
}

/// Two begin at once where there was nobody: neither vouches for the other.
#[tokio::test]
async fn workers_that_begin_together_where_none_was_trust_nothing() {
    let (redis, upstream, jobs, mut first) = warmed_by(worker).await;
    has_heard(&redis).await;
    first.kill9();
    first.wait().await;
    let edited = upstream.edit("/art/a");
    redis.publish(CHANNEL, "art:a").await;
    let _others = [worker(&redis, &jobs), worker(&redis, &jobs)];
    version(&redis, "a", edited).await;
}

/// Ends a subscription and publishes bare, in one step, so that it cannot be subscribed again in between.
async fn cut_and_publish(redis: &TestRedis, client: &str, message: &str) -> usize {
    let mut cut = redis::pipe();
    cut.atomic().cmd("CLIENT").arg(&["KILL", "ID", client]).cmd("PUBLISH").arg(CHANNEL).arg(message);
    let [_, heard]: [usize; 2] = cut.query_async(&mut redis.connection().await).await.unwrap();
    heard
}

/// Returns a folder with this job alone.
fn folder(upstream: &Upstream, name: &str, toml: &str) -> JobsFolder {
    JobsFolder::new().upstreams(&format!("[museum]\nurl = \"{}\"\n", upstream.url())).job(name, toml)
}

/// Waits until no gap is open, and the entry is warm and not due.
async fn settled(redis: &TestRedis, job: &JobName, key: &EntryKey) {
    let parts = Parts::of(redis).await;
    eventually("the entry is settled", async || {
        let gap: usize = redis.ask(&["EXISTS", "samovar:{suspect}"]).await;
        let due = parts.agenda.dues(job, std::slice::from_ref(key)).await.unwrap().remove(0);
        let now = parts.store.now().await.unwrap();
        // Workers with other keys under the job's name take an entry off its agenda.
        let is_settled = due.is_none_or(|due| due.state == State::Scheduled && due.at > now);
        if gap == 0 && is_settled { Ok(()) } else { Err((gap, due)) }
    })
    .await;
}

/// The other one hears it, and drops what it does not know.
#[tokio::test]
async fn a_worker_does_not_vouch_for_jobs_that_it_does_not_know() {
    for (name, key) in [("poem", "poem:{name}"), ("art", "painting:{name}")] {
        let (redis, upstream, _jobs, _worker) = warmed_by(hasty_worker).await;
        upstream.edit("/other/p");
        let clients: String = redis.ask(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
        let client = clients.split([' ', '=']).nth(1).unwrap();
        let toml = Art::of(&upstream).list(["p"]).toml().replace("art:{name}", key).replace("/art/", "/other/");
        let others = folder(&upstream, name, &toml);
        let _other = hasty_worker(&redis, &others);
        have_listened(&redis, 2).await;
        let own = EntryKey::new(key.replace("{name}", "p"));
        settled(&redis, &JobName::new(name), &own).await;
        let (edited, calls) = (upstream.edit("/art/a"), upstream.calls("/other/p"));
        assert_eq!(cut_and_publish(&redis, client, "art:a").await, 1, "the other one hears it");
        if name == "art" {
            // Whichever of them takes it up: to the other it is an entry that the job has no more.
            let old = async || redis.json("art:a").await.is_none_or(|value| value["version"] == edited);
            eventually("the old value is there no more", old).await;
        } else {
            version(&redis, "a", edited).await;
        }
        assert_eq!(upstream.calls("/other/p"), calls, "its own jobs are not in doubt");
    }
}

#[tokio::test]
async fn what_only_workers_of_other_jobs_heard_is_made_good() {
    let (redis, upstream, jobs, mut first) = warmed_by(hasty_worker).await;
    let other = Art::of(&upstream).toml().replace("art:{name}", "poem:{name}");
    let others = folder(&upstream, "poem", &other);
    let _other = hasty_worker(&redis, &others);
    have_listened(&redis, 2).await;
    first.term();
    first.wait().await;
    let edited = upstream.edit("/art/a");
    assert_eq!(redis.publish(CHANNEL, "art:a").await, 1);
    let _second = hasty_worker(&redis, &jobs);
    version(&redis, "a", edited).await;
}

/// A listener on the channel of signals knows all that was ever sent there.
#[tokio::test]
async fn a_forged_canary_hides_no_gap() {
    let (redis, upstream, jobs, mut first) = warmed_by(worker).await;
    let mut signals = redis.client().get_async_pubsub().await.unwrap();
    signals.subscribe("samovar:signal").await.unwrap();
    let mut signals = signals.into_on_message();
    let future = 99_999_999_999_999_i64;
    let mut canaries = 0;
    while canaries < 3 {
        let signal: String = signals.next().await.unwrap().get_payload().unwrap();
        let Some(canary) = signal.strip_prefix("canary ").filter(|canary| !canary.ends_with(&future.to_string()))
        else {
            continue;
        };
        let words: Vec<&str> = canary.split(' ').collect();
        canaries += 1;
        let [worker, nonce] = [words[0], words[1]];
        for forged in
            [format!("{worker} {future}"), format!("{worker} {nonce} {future}"), format!("{worker} 0 {future}")]
        {
            redis.publish("samovar:signal", &format!("canary {forged}")).await;
        }
    }
    have_listened(&redis, 1).await;
    let records = records(&redis).await;
    assert!(!records[0].contains(&future.to_string()), "{records:?}");
    first.kill9();
    let edited = upstream.edit("/art/a");
    assert_eq!(redis.publish(CHANNEL, "art:a").await, 0);
    let _second = worker(&redis, &jobs);
    version(&redis, "a", edited).await;
}

/// As a worker leaves it that ended just before Redis's clock was set back.
#[tokio::test]
async fn a_worker_from_the_future_vouches_for_nothing() {
    let (redis, upstream, jobs, mut first) = warmed_by(worker).await;
    first.kill9();
    let edited = upstream.edit("/art/a");
    let later = Parts::of(&redis).await.now().await + Duration::from_millis(600_000);
    redis.ask::<usize>(&["DEL", "samovar:ears"]).await;
    let heard = format!("{} {later} {later} {}", later - Duration::from_secs(1_200), identity(&jobs));
    redis.ask::<usize>(&["HSET", "samovar:ears", "dead", &heard]).await;
    redis.ask::<usize>(&["HSET", "samovar:ears", "long dead", &format!("1 2 2 {}", identity(&jobs))]).await;
    let _second = worker(&redis, &jobs);
    version(&redis, "a", edited).await;
    assert!(!redis.ask::<bool>(&["HEXISTS", "samovar:ears", "dead"]).await, "it does not come true later");
}

#[tokio::test]
async fn a_gap_hides_no_invalidation() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let key = art("a");
    let lease = parts.lease("a", Duration::from_secs(60)).await;
    parts.store.commit(&key, &lease, "1", HOUR, &LastAttempt::default()).await.unwrap();
    let doubt = Terms { is_doubt: true, ..Terms::default() };
    let at = parts.now().await;
    let invalidated = async |at, terms| {
        parts.store.invalidate_on(&key, at, Removal::Refresh, terms).await.unwrap();
        let meta = parts.meta("a").await.unwrap();
        (meta.invalidated, meta.is_in_doubt())
    };
    let later = at + Duration::from_millis(1);
    parts.next_instant().await;
    assert_eq!(invalidated(at, doubt).await, (Some(at), true));
    assert_eq!(invalidated(later, doubt).await, (Some(later), true));
    let ttl = redis.ttl("art:a").await.unwrap();
    parts.store.extend_held(&key, 2 * HOUR).await.unwrap();
    assert!(redis.ttl("art:a").await.unwrap() > ttl);
    assert_eq!(parts.store.extend_stale(&key, 3 * HOUR, 3 * HOUR).await.unwrap(), None);
    assert_eq!(invalidated(later, Terms::default()).await, (Some(later), false));
    assert_eq!(invalidated(later + Duration::from_millis(1), doubt).await, (Some(later), false));
    let ttl = redis.ttl("art:a").await.unwrap();
    parts.store.extend_held(&key, 5 * HOUR).await.unwrap();
    assert!(ttl <= HOUR && redis.ttl("art:a").await.unwrap() <= ttl, "it ends with its TTL");
}

#[tokio::test]
async fn a_gap_replaces_no_invalidation_of_an_absent_entry() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let (key, at) = (art("a"), parts.now().await);
    let doubt = Terms { is_doubt: true, ..Terms::default() };
    let invalidated = async |at, removal, terms| {
        parts.store.invalidate_on(&key, at, removal, terms).await.unwrap();
        let meta = parts.meta("a").await.unwrap();
        (meta.invalidated, meta.is_in_doubt())
    };
    let [second, third, last] = [1, 2, 3].map(|n| at + Duration::from_millis(n));
    assert_eq!(invalidated(at, Removal::Refresh, doubt).await, (Some(at), true));
    assert_eq!(invalidated(second, Removal::Refresh, doubt).await, (Some(second), true));
    assert_eq!(invalidated(third, Removal::Evict, Terms::default()).await, (Some(third), false));
    assert_eq!(invalidated(last, Removal::Refresh, doubt).await, (Some(third), false), "its rechecks count from it");
    let older = invalidated(second, Removal::Refresh, Terms::default()).await;
    assert_eq!(older, (Some(third), false), "as of a tag's stamp that is found again");
}

/// A worker of the previous build leaves the doubt of before in the note, and its own doubts have no time.
#[tokio::test]
async fn a_doubt_does_not_stand_for_another_invalidation() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let key = art("a");
    let lease = parts.lease("a", Duration::from_secs(60)).await;
    parts.store.commit(&key, &lease, "1", HOUR, &LastAttempt::default()).await.unwrap();
    let meta = &redis.keys("samovar:meta:*").await.remove(0);
    parts.next_instant().await;
    let at = parts.now().await;
    let doubt = Terms { is_doubt: true, ..Terms::default() };
    parts.store.invalidate_on(&key, at, Removal::Refresh, doubt).await.unwrap();
    let packed: String = redis.ask(&["GET", meta]).await;
    assert!(parts.meta("a").await.unwrap().is_in_doubt(), "{packed}");
    let later = packed.replace(&format!(" {at} "), &format!(" {} ", at + Duration::from_millis(1)));
    assert_ne!(later, packed);
    for left in [later, packed.replace(&format!("\"u\":{at}"), "\"q\":true")] {
        redis.ask::<String>(&["SET", meta, &left, "KEEPTTL"]).await;
        assert!(!parts.meta("a").await.unwrap().is_in_doubt(), "{left}");
        parts.store.extend_held(&key, 2 * HOUR).await.unwrap();
        assert!(redis.ttl("art:a").await.unwrap() <= HOUR, "it ends with its TTL: {left}");
    }
    // The next invalidation takes the mark away, which the previous build would go by.
    parts.store.invalidate(&key, at + Duration::from_millis(2), Removal::Refresh).await.unwrap();
    assert!(redis.ask::<String>(&["GET", meta]).await.ends_with(" {}"));
}
