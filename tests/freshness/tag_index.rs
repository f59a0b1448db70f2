//! The index of a tag, which Redis may evict: the entries of a tag without one are searched for.

use std::pin::pin;
use std::time::Instant;

use futures_util::FutureExt;
use samovar::entry::{EntryKey, Outcome, Trigger};
use samovar::protocol::Message;
use samovar::redis::RedisTime;
use samovar::store::LastAttempt;
use samovar::telemetry::Telemetry;
use samovar::trigger::{Ack, At, Pipeline};

use super::{LONG, TTL};
use crate::support::{Art, JobsFolder, Parts, TestRedis, Upstream, art, both, eventually};

/// Redis evicted the index. Since then one entry was put under the tag anew; another has lost its metadata, too.
#[tokio::test]
async fn a_tag_without_its_index_is_sought_in_all_that_may_have_it() {
    let redis = TestRedis::options().arg("--maxmemory-policy", "allkeys-random").start().await;
    let upstream = Upstream::start().await;
    let parts = Parts::of(&redis).await;
    let jobs = Art::of(&upstream).top("tags = [\"t\"]").folder();
    let invalidator = parts.invalidator(&jobs);
    let commit = async |name: &str, tag: &str| {
        let lease = parts.lease(name, LONG).await;
        let last_attempt = LastAttempt { tags: vec![tag.to_owned()], ..LastAttempt::default() };
        parts.store.commit(&art(name), &lease, "1", TTL, &last_attempt).await.unwrap();
    };
    let tagged = async || {
        parts.next_instant().await;
        let message = Message::parse(r#"{"tags": ["t"]}"#).unwrap();
        invalidator.handle(&message, parts.now().await).await.unwrap()
    };
    // Nothing was evicted, so an index names all, and nothing is looked for.
    commit("a", "t").await;
    assert_eq!(tagged().await.entries, 0);
    redis.ask::<String>(&["CONFIG", "SET", "maxmemory", "20mb"]).await;
    let mut n = 0;
    eventually("something is evicted", async || {
        n += 1;
        redis.set(&format!("junk {n}"), &"x".repeat(1 << 20), TTL).await;
        !redis.ask::<String>(&["INFO", "stats"]).await.contains("evicted_keys:0\r")
    })
    .await;
    redis.ask::<String>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    redis.flush().await;
    for (name, tag) in [("a", "t"), ("b", "t"), ("c", "t"), ("other", "o")] {
        commit(name, tag).await;
    }
    redis.ask::<usize>(&["DEL", &parts.keys.meta(&art("c"))]).await;
    parts.store.tag(&art("b"), &["t".to_owned()], LONG).await.unwrap();
    assert!(tagged().await.due >= 3);
    for name in ["a", "b", "c"] {
        assert!(parts.meta(name).await.unwrap().invalidated.is_some(), "{name}");
    }
    assert_eq!(parts.meta("other").await.unwrap().invalidated, None);
    // From now on the index is believed.
    let (_, mut named) = parts.store.tagged("t", 0).await.unwrap();
    named.sort();
    assert_eq!(named, [art("a"), art("b")]);
    assert_eq!(parts.store.may_lack(&["t", "o"]).await.unwrap(), ["o"]);
}

/// Parts for a user who may not ask for `INFO`, so that any index may have been evicted; and two jobs with tags. The
/// entries of one have no rechecks: what was fetched after a late message stays.
async fn without_info(redis: &TestRedis, upstream: &Upstream) -> (Parts, JobsFolder) {
    redis.ask::<()>(&["ACL", "SETUSER", "app", "on", "nopass", "~*", "&*", "+@all", "-info"]).await;
    let parts = Parts::at(&samovar::redis::RedisUrl::parse(&redis.url_of("app", "any"), None).unwrap()).await;
    let more = "key = \"more:{name}\"\nttl = \"1h\"\ntags = [\"more\"]\n[source]\nkind = \"http\"\n\
                upstream = \"museum\"\npath = \"/{{ name }}\"\n";
    let jobs = Art::of(upstream).top("tags = [\"t\"]").warm("recheck = []").folder().job("more", more);
    // What services loaded is sought once, whatever the tag.
    parts.invalidator(&jobs).handle(&tags(["first"]), parts.now().await).await.unwrap();
    (parts, jobs)
}

fn tags<T: ToString>(tags: impl IntoIterator<Item = T>) -> Message {
    let tags = tags.into_iter().map(|tag| tag.to_string()).collect();
    Message { tags, ..Default::default() }
}

async fn commit_with(parts: &Parts, name: &str, tags: &[&str]) {
    let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
    let lease = parts.lease(name, LONG).await;
    parts.store.tag(&art(name), &tags, TTL).await.unwrap();
    parts.store.commit(&art(name), &lease, "1", TTL, &LastAttempt { tags, ..LastAttempt::default() }).await.unwrap();
}

/// Returns the number of calls of `SCAN` while this was done.
async fn scans(redis: &TestRedis, done: impl Future<Output = ()>) -> u64 {
    redis.ask::<()>(&["CONFIG", "RESETSTAT"]).await;
    done.await;
    let stats: String = redis.ask(&["INFO", "commandstats"]).await;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_scan:calls="));
    calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn many_unknown_tags_cost_one_scan_and_leave_no_index() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = without_info(&redis, &upstream).await;
    let invalidator = parts.invalidator(&jobs);
    commit_with(&parts, "a", &["t"]).await;
    let unknown: Vec<String> = (0..100).map(|n| format!("unknown {n}")).collect();
    let mut handled = Default::default();
    let one = scans(&redis, async {
        handled = invalidator.handle(&tags(&unknown), parts.now().await).await.unwrap();
    });
    assert_eq!(one.await, 1);
    assert_eq!(handled, samovar::protocol::Handled::default());
    assert_eq!(redis.keys("samovar:tag:*").await, [parts.keys.tag("t")]);
    // An index that is there is looked for once and then believed.
    for scanned in [1, 0] {
        parts.next_instant().await;
        let at = parts.now().await;
        let known = scans(&redis, async { _ = invalidator.handle(&tags(["t"]), at).await.unwrap() });
        assert_eq!(known.await, scanned);
        assert_eq!(parts.meta("a").await.unwrap().invalidated, Some(at));
    }
}

#[tokio::test]
async fn evicted_indexes_of_one_message_are_all_made_again() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = without_info(&redis, &upstream).await;
    let invalidator = parts.invalidator(&jobs);
    for (name, tags) in [("a", &["t1"][..]), ("b", &["t2", "t3"]), ("c", &["t3"]), ("other", &["o"])] {
        commit_with(&parts, name, tags).await;
    }
    for tag in ["t1", "t2", "t3", "o"] {
        redis.ask::<u64>(&["DEL", &parts.keys.tag(tag)]).await;
    }
    let all = || tags((0..97).map(|n| format!("unknown {n}")).chain(["t1", "t2", "t3"].map(str::to_owned)));
    // An index that was made by a search is not believed yet.
    for scanned in [1, 1, 1] {
        parts.next_instant().await;
        let at = parts.now().await;
        let known = scans(&redis, async { _ = invalidator.handle(&all(), at).await.unwrap() });
        assert_eq!(known.await, scanned);
        for name in ["a", "b", "c"] {
            assert_eq!(parts.meta(name).await.unwrap().invalidated, Some(at), "{name}");
        }
    }
    assert_eq!(parts.meta("other").await.unwrap().invalidated, None);
    assert_eq!(redis.keys("samovar:tag:*").await, {
        let mut indexes = ["t1", "t2", "t3"].map(|tag| parts.keys.tag(tag));
        indexes.sort();
        indexes
    });
    assert_eq!(parts.store.may_lack(&["o", "t1", "t2", "t3"]).await.unwrap(), ["o"]);
    let (_, mut named) = parts.store.tagged("t3", 0).await.unwrap();
    named.sort();
    assert_eq!(named, [art("b"), art("c")]);
}

/// Redis evicts an index during a search, and another search begins meanwhile.
#[tokio::test]
async fn a_search_vouches_for_no_index_that_was_evicted_meanwhile() {
    let (redis, upstream) = both().await;
    let (parts, _jobs) = without_info(&redis, &upstream).await;
    let store = &parts.store;
    let t = std::collections::HashSet::from(["t"]);
    let put = async || _ = store.tag(&art("a"), &["t".to_owned()], LONG).await.unwrap();
    put().await;
    let first = store.seek(&t).await.unwrap();
    redis.ask::<u64>(&["DEL", &parts.keys.tag("t")]).await;
    put().await;
    let second = store.seek(&t).await.unwrap();
    store.sought(first).await.unwrap();
    assert_eq!(store.may_lack(&["t"]).await.unwrap(), ["t"]);
    store.sought(second).await.unwrap();
    assert_eq!(store.may_lack(&["t"]).await.unwrap(), [""; 0]);
    let absent = store.seek(&std::collections::HashSet::from(["absent"])).await.unwrap();
    store.sought(absent).await.unwrap();
    assert_eq!(redis.keys("samovar:tag:*").await, [parts.keys.tag("t")]);
}

/// Handles an invalidation by the tag `t`, which the entries `a` and `b` have. It rests after this command while
/// `meanwhile` runs, and invalidates both entries all the same.
async fn interrupted_after(
    command: &str,
    redis: &TestRedis,
    parts: &Parts,
    jobs: &JobsFolder,
    meanwhile: impl AsyncFnOnce(),
) {
    let (invalidator, message) = (parts.invalidator(jobs), tags(["t"]));
    parts.next_instant().await;
    let at = parts.now().await;
    let mut handling = pin!(invalidator.handle(&message, at));
    let last = format!(" cmd={command} user=app ");
    eventually("the command is executed", async || {
        // Each poll sends one command at most, since the next one waits for its reply.
        let early = handling.as_mut().now_or_never();
        assert!(early.is_none(), "it ended before: {early:?}");
        let clients: String = redis.ask(&["CLIENT", "LIST"]).await;
        if clients.contains(&last) { Ok(()) } else { Err(clients) }
    })
    .await;
    meanwhile().await;
    handling.await.unwrap();
    for name in ["a", "b"] {
        assert_eq!(parts.meta(name).await.unwrap().invalidated, Some(at), "{name}");
    }
}

/// Another worker handles an earlier message, which `a` is too new for, and finds all entries of the tag meanwhile.
#[tokio::test]
async fn an_index_that_another_search_completes_hides_no_entry() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = without_info(&redis, &upstream).await;
    let earlier = parts.now().await;
    parts.next_instant().await;
    commit_with(&parts, "a", &["t"]).await;
    redis.ask::<u64>(&["DEL", &parts.keys.tag("t")]).await;
    commit_with(&parts, "b", &["t"]).await;
    interrupted_after("zscan", &redis, &parts, &jobs, async || {
        parts.invalidator(&jobs).handle(&tags(["t"]), earlier).await.unwrap();
        assert_eq!(parts.store.may_lack(&["t"]).await.unwrap(), [""; 0], "the index is complete");
        assert_eq!(parts.meta("a").await.unwrap().invalidated, None);
    })
    .await;
}

/// The index is complete at first, and names only one of its entries when it is read.
#[tokio::test]
async fn an_index_evicted_just_before_it_is_read_hides_no_entry() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = without_info(&redis, &upstream).await;
    commit_with(&parts, "a", &["t"]).await;
    commit_with(&parts, "b", &["t"]).await;
    parts.invalidator(&jobs).handle(&tags(["t"]), RedisTime::from_millis(1)).await.unwrap();
    assert_eq!(parts.store.may_lack(&["t"]).await.unwrap(), [""; 0], "the index is complete");
    interrupted_after("zscore", &redis, &parts, &jobs, async || {
        redis.ask::<u64>(&["DEL", &parts.keys.tag("t")]).await;
        parts.store.tag(&art("b"), &["t".to_owned()], LONG).await.unwrap();
    })
    .await;
}

/// Builds before there were numbers wrote outcomes and triggers as words.
#[tokio::test]
async fn a_search_finds_entries_that_older_builds_described() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = without_info(&redis, &upstream).await;
    commit_with(&parts, "a", &["t"]).await;
    redis.ask::<u64>(&["DEL", &parts.keys.tag("t")]).await;
    let meta = parts.keys.meta(&art("a"));
    let now: String = redis.ask(&["GET", &meta]).await;
    let head = now.split(['/', '{']).next().unwrap().trim_end();
    let before = format!(r#"{head} {{"g":["t"],"o":"failed","t":"manual","a":17,"n":3}}"#);
    redis.ask::<String>(&["SET", &meta, &before, "KEEPTTL"]).await;
    let note = parts.meta("a").await.unwrap().last_attempt;
    assert_eq!((note.outcome, note.trigger, note.failures), (Some(Outcome::Failed), Some(Trigger::Manual), 3));
    parts.next_instant().await;
    let at = parts.now().await;
    parts.invalidator(&jobs).handle(&tags(["t"]), at).await.unwrap();
    assert_eq!(parts.meta("a").await.unwrap().invalidated, Some(at));
}

/// A job that is unknown here has tags, and the user has no right to its keys.
#[tokio::test]
async fn loaded_values_that_the_user_may_not_touch_stop_no_tag() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = without_info(&redis, &upstream).await;
    commit_with(&parts, "a", &["t"]).await;
    redis.set("poem:a", "a service's", TTL).await;
    redis.ask::<u64>(&["ZADD", &parts.keys.tagged(), "0", "poem:*"]).await;
    redis.ask::<()>(&["ACL", "SETUSER", "app", "resetkeys", "~samovar:*", "~art:*", "~more:*"]).await;
    parts.next_instant().await;
    let at = parts.now().await;
    parts.invalidator(&jobs).handle(&tags(["t"]), at).await.unwrap();
    assert_eq!(parts.meta("a").await.unwrap().invalidated, Some(at));
    assert!(redis.get("poem:a").await.is_some());
}

#[tokio::test]
async fn messages_that_wait_with_unknown_tags_share_a_scan() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = without_info(&redis, &upstream).await;
    commit_with(&parts, "a", &["t"]).await;
    redis.ask::<u64>(&["DEL", &parts.keys.tag("t")]).await;
    let (pipeline, pipeline_loop) = Pipeline::new(parts.invalidator(&jobs), Telemetry::default());
    let (done, mut handled) = tokio::sync::mpsc::unbounded_channel();
    parts.next_instant().await;
    let at = parts.now().await;
    let mut messages: Vec<_> = (0..100).map(|n| tags([format!("unknown {n}")])).collect();
    messages.insert(50, tags(["t"]));
    messages.insert(70, Message { patterns: vec!["no:*".to_owned()], ..Default::default() });
    for (n, message) in messages.iter().enumerate() {
        pipeline.take(message.clone(), At::Redis(at), "inbox", Ack::new(n.to_string(), done.clone())).await;
    }
    drop((pipeline, done));
    let pattern = scans(&redis, Box::pin(pipeline_loop.run(tokio_util::sync::CancellationToken::new()))).await;
    assert_eq!(pattern, 1 + 2, "the pattern takes two");
    let mut all = Vec::new();
    while let Some(id) = handled.recv().await {
        all.push(id);
    }
    assert_eq!(all.len(), messages.len());
    assert_eq!(parts.meta("a").await.unwrap().invalidated, Some(at));
}

/// A message with its name, its time and its way.
type Sent<'a> = (&'a str, Message, At, &'static str);

/// Passes messages to a pipeline whose user may not touch the entry under the tag `more`; returns the names of the
/// first two that are done.
async fn first_two_done<'a>(messages: impl IntoIterator<Item = Sent<'a>>) -> [String; 2] {
    let (redis, upstream) = both().await;
    let (parts, jobs) = without_info(&redis, &upstream).await;
    redis.ask::<()>(&["ACL", "SETUSER", "app", "resetkeys", "~samovar:*", "~art:*"]).await;
    parts.store.tag(&EntryKey::new("more:1"), &["more".to_owned()], LONG).await.unwrap();
    let (pipeline, pipeline_loop) = Pipeline::new(parts.invalidator(&jobs), Telemetry::default());
    let (done, mut handled) = tokio::sync::mpsc::unbounded_channel();
    for (name, message, at, way) in messages {
        pipeline.take(message, at, way, Ack::new(name.to_owned(), done.clone())).await;
    }
    let cut = tokio_util::sync::CancellationToken::new();
    let first_two = async {
        let mut next = async || tokio::time::timeout(LONG, handled.recv()).await.unwrap().unwrap();
        let first_two = [next().await, next().await];
        cut.cancel();
        first_two
    };
    tokio::join!(pipeline_loop.run(cut.clone()), first_two).1
}

#[tokio::test]
async fn a_message_that_fails_holds_up_none_that_it_waits_with() {
    let at = At::Redis(RedisTime::from_millis(1));
    let mut done = Box::pin(first_two_done(["more", "a", "b"].map(|tag| (tag, tags([tag]), at, "inbox")))).await;
    done.sort();
    assert_eq!(done, ["a", "b"]);
}

/// The message comes over the channel and through the inbox, and has too many tags for both to be handled together. The
/// second is merged with the first, which failed, and is handled by itself as well: `late` does not fail with it.
#[tokio::test]
async fn a_message_that_failed_drags_none_along_once_it_is_merged() {
    let at = At::Redis(RedisTime::from_millis(1));
    let failing = tags((0..509).map(|n| format!("unknown {n}")).chain(["more".to_owned()]));
    let many = |of: &str| tags((0..300).map(|n| format!("{of} {n}")));
    let done = first_two_done([
        ("heard", failing.clone(), At::Received(Instant::now()), "channel"),
        ("read", failing, at, "inbox"),
        ("with it", many("with it"), at, "inbox"),
        ("late", many("late"), at, "inbox"),
    ]);
    assert_eq!(Box::pin(done).await, ["late", "with it"]);
}

/// One came before the value, the other after it.
#[tokio::test]
async fn messages_that_are_handled_together_keep_their_times() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = without_info(&redis, &upstream).await;
    let before = parts.now().await;
    parts.next_instant().await;
    commit_with(&parts, "a", &["early"]).await;
    commit_with(&parts, "b", &["late"]).await;
    parts.next_instant().await;
    let evict = |tag: &str| Message { action: samovar::protocol::Action::Evict, ..tags([tag]) };
    let (early, late) = (evict("early"), evict("late"));
    for evicted in [false, true] {
        if evicted {
            redis.ask::<u64>(&["DEL", &parts.keys.tag("early"), &parts.keys.tag("late")]).await;
            commit_with(&parts, "b", &["other"]).await;
        }
        let messages = [(&early, before, true), (&late, parts.now().await, true)];
        let begun = parts.invalidator(&jobs).begin_tags(&messages).await.unwrap();
        assert_eq!(begun[0].0.removed, 0);
        assert_eq!(begun[1].0.removed, u64::from(!evicted));
        assert!(redis.get("art:a").await.is_some());
    }
}
