//! Always fresh, never stale: tags, storms, foreign writers, failing sources, and what nobody heard.
#![cfg(test)]

mod support;

use std::time::Duration;

use futures_util::StreamExt;
use samovar::agenda::{Due, When};
use samovar::entry::EntryKey;
use samovar::entry::{Priority, Trigger};
use samovar::job::Jobs;
use samovar::protocol::inbox;
use samovar::store::Gap;
use samovar::store::{Fresh, Leased, Note, Removal, Written};
use samovar::telemetry::Telemetry;
use samovar::trigger::{Ack, At, Clock, Gone, Pipeline};
use serde_json::json;
use support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, art, at_rest, both, eventually, hasty_worker,
    job, publish, samovar, talkative, version, worker,
};

const CHANNEL: &str = "samovar:invalidate";
const LONG: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(600);
/// How a worker runs by fits and starts: how often it is let run, for how long, and for how long it is not.
const STARTS: usize = 40;
const FIT: Duration = Duration::from_millis(2);
const PAUSE: Duration = Duration::from_millis(25);

async fn evicted(redis: &TestRedis, name: &str) {
    eventually(&format!("{name} is gone"), async || redis.get(&format!("art:{name}")).await.is_none()).await;
}

// Tags

/// Two artists, three works each, tagged by artist.
async fn gallery() -> (TestRedis, Upstream, JobsFolder, WorkerProcess) {
    let (redis, upstream) = both().await;
    let names = ["f1", "f2", "f3", "d1", "d2", "d3"];
    for name in names {
        let artist = if name.starts_with('f') { "Frida {Kahlo}" } else { "Dürer" };
        upstream.publish(&format!("/art/{name}"), json!({"artist": artist, "version": 1}));
    }
    let jobs = Art::of(&upstream).list(names).top("tags = [\"artist:{{ value.artist }}\", \"all\"]").folder();
    let worker = worker(&redis, &jobs);
    for name in names {
        version(&redis, name, 1).await;
    }
    (redis, upstream, jobs, worker)
}

#[tokio::test]
async fn a_tag_invalidates_what_has_it_and_nothing_else() {
    let (redis, upstream, _jobs, _worker) = gallery().await;
    for name in ["f1", "f2", "f3", "d1"] {
        upstream.publish(&format!("/art/{name}"), json!({"artist": "Frida {Kahlo}", "version": 2}));
    }
    publish(&redis, r#"{"tags": ["artist:Frida {Kahlo}"]}"#).await;
    for name in ["f1", "f2", "f3"] {
        version(&redis, name, 2).await;
    }
    version(&redis, "d1", 1).await;
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"tags": ["artist:Dürer"], "action": "evict"}"#).await;
    for name in ["d1", "d2", "d3"] {
        assert_eq!(redis.get(&format!("art:{name}")).await, None);
    }
    version(&redis, "f1", 2).await;
}

#[tokio::test]
async fn an_entry_leaves_the_tags_that_its_new_value_does_not_have() {
    let (redis, upstream, _jobs, _worker) = gallery().await;
    let parts = Parts::of(&redis).await;
    upstream.publish("/art/d1", json!({"artist": "Frida {Kahlo}", "version": 2}));
    publish(&redis, "art:d1").await;
    version(&redis, "d1", 2).await;
    let tagged = async |tag: &str| -> Vec<String> {
        let (_, mut keys) = parts.store.tagged(tag, 0).await.unwrap();
        keys.sort();
        keys.iter().map(ToString::to_string).collect()
    };
    eventually("it has changed its tags", async || {
        (tagged("artist:Dürer").await, tagged("artist:Frida {Kahlo}").await.len())
            == (vec!["art:d2".to_owned(), "art:d3".to_owned()], 4)
    })
    .await;
}

/// While its value is fetched for the first time, nothing is known of its tags: the stamp fences it.
#[tokio::test]
async fn a_tag_fences_what_is_being_fetched_for_the_first_time() {
    for action in ["refresh", "evict"] {
        let (redis, upstream) = both().await;
        upstream.publish("/art/a", json!({"artist": "x", "version": 1}));
        let gate = upstream.gate("/art/a");
        let jobs = Art::of(&upstream).list(["a"]).top("tags = [\"artist:{{ value.artist }}\"]").folder();
        let _worker = worker(&redis, &jobs);
        gate.arrived(1).await;
        upstream.publish("/art/a", json!({"artist": "x", "version": 2}));
        let parts = Parts::of(&redis).await;
        parts.invalidate(&json!({"tags": ["artist:x"], "action": action}).to_string()).await;
        gate.let_one_out();
        if action == "refresh" {
            gate.arrived(2).await;
            assert_eq!(redis.get("art:a").await, None, "the old answer was not written");
            gate.open();
            version(&redis, "a", 2).await;
        } else {
            eventually("the old answer was dropped", async || parts.stat("fenced").await == 1).await;
            assert_eq!((redis.get("art:a").await, upstream.calls("/art/a")), (None, 1));
        }
    }
}

/// Publishes an invalidation by a tag, and waits until the tag is stamped with it.
async fn stamped(redis: &TestRedis, parts: &Parts, tag: &str) {
    let score = async |set: String, member: &str| redis.ask::<Option<f64>>(&["ZSCORE", &set, member]).await;
    // A tag that no entry has is stamped elsewhere.
    let stamp = async || (score(parts.keys.tag(tag), "").await, score(parts.keys.stamps(), tag).await);
    let before = stamp().await;
    parts.next_instant().await;
    parts.publish(&json!({"tags": [tag]}).to_string()).await;
    eventually("the tag is stamped", async || stamp().await != before).await;
}

#[tokio::test]
async fn a_tag_storm_does_not_starve_a_first_fetch() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"artist": "x", "version": 1}));
    let gate = upstream.gate("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).top("tags = [\"artist:{{ value.artist }}\", \"t\"]").folder();
    let parts = Parts::of(&redis).await;
    parts.mark().await;
    let _worker = worker(&redis, &jobs);
    for fetch in 1..=2 {
        gate.arrived(fetch).await;
        upstream.publish("/art/a", json!({"artist": "x", "version": fetch + 1}));
        stamped(&redis, &parts, "artist:x").await;
        stamped(&redis, &parts, "t").await;
        assert_eq!(redis.get("art:a").await, None);
        gate.let_one_out();
    }
    // The second began after an invalidation, and those that came since find the entry by themselves.
    gate.arrived(3).await;
    version(&redis, "a", 2).await;
    gate.open();
    version(&redis, "a", 3).await;
    parts.inbox_is_empty().await;
    assert_eq!(upstream.calls("/art/a"), 3);
}

/// The tags of the second answer are others, of which the first says nothing.
#[tokio::test]
async fn a_tag_that_an_earlier_round_did_not_have_still_fences() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"artist": "x", "version": 1}));
    let gate = upstream.gate("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).top("tags = [\"{{ value.artist }}\"]").folder();
    let parts = Parts::of(&redis).await;
    parts.mark().await;
    let _worker = worker(&redis, &jobs);
    gate.arrived(1).await;
    stamped(&redis, &parts, "x").await;
    upstream.publish("/art/a", json!({"artist": "y", "version": 2}));
    gate.let_one_out();
    gate.arrived(2).await;
    stamped(&redis, &parts, "y").await;
    gate.let_one_out();
    gate.arrived(3).await;
    assert_eq!(redis.get("art:a").await, None, "what is older than the invalidation of y is not written");
    gate.open();
    version(&redis, "a", 2).await;
    eventually("it has left the tag that it does not have", async || {
        parts.store.tagged("x", 0).await.unwrap().1.is_empty()
    })
    .await;
}

#[tokio::test]
async fn what_ai_makes_in_a_tag_storm_lands_and_is_then_held_off() {
    let (redis, upstream) = both().await;
    let asked = "/v1/chat/completions";
    upstream.answer(asked, |_, count| {
        let message = json!({"role": "assistant", "content": format!("Story {count}")});
        Reply::json(json!({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"total_tokens": 2}}))
    });
    let gate = upstream.gate(asked);
    let story = EntryKey::new("story:a");
    let jobs = JobsFolder::new().upstreams(&format!("[openai]\nurl = \"{}/v1\"\n", upstream.url())).job(
        "story",
        "key = \"story:{name}\"\nttl = \"1h\"\ntags = [\"t\"]\n[source]\nkind = \"ai\"\nupstream = \"openai\"\n\
         model = \"tiny\"\nprompt = \"Tell\"\n[entries]\nlist = [\"a\"]\n",
    );
    let parts = Parts::of(&redis).await;
    parts.mark().await;
    let _worker = worker(&redis, &jobs);
    for call in 1..=2 {
        gate.arrived(call).await;
        stamped(&redis, &parts, "t").await;
        gate.let_one_out();
    }
    eventually("the second answer is stored", async || redis.json("story:a").await == Some(json!("Story 2"))).await;
    for _ in 0..5 {
        stamped(&redis, &parts, "t").await;
    }
    parts.next_instant().await;
    let held = parts.store.invalidate_paid(&story, parts.now().await, Removal::Refresh).await.unwrap().debounced;
    assert!(held.is_some_and(|time| time > Duration::from_secs(1)), "{held:?}");
    assert_eq!(upstream.calls(asked), 2);
    // In the end it is answered.
    gate.open();
    parts.inbox_is_empty().await;
    eventually("it is generated anew", async || upstream.calls(asked) == 3).await;
}

#[tokio::test]
async fn a_tag_keeps_what_is_extended_and_drops_what_has_died() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let short = Duration::from_millis(1);
    for n in 0..3_000 {
        parts.store.tag(&EntryKey::new(format!("art:{n}")), &["t".to_owned()], short).await.unwrap();
    }
    parts.next_instant().await;
    parts.store.tag(&art("kept"), &["t".to_owned()], LONG).await.unwrap();
    parts.store.stamp("t", parts.now().await, Removal::Refresh).await.unwrap();
    parts.store.sweep_tags().await.unwrap();
    let (_, left) = parts.store.tagged("t", 0).await.unwrap();
    assert_eq!(left, [art("kept")]);
    assert_eq!(redis.keys("samovar:tag:*").await.len(), 1);
}

/// The members of a tag are read in pages while entries are put under it.
#[tokio::test]
async fn a_tag_misses_no_entry_that_is_put_under_it_meanwhile() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).top("tags = [\"t\"]").folder();
    let parts = Parts::of(&redis).await;
    let tag = ["t".to_owned()];
    let invalidator = parts.invalidator(&jobs);
    for n in 0..2_000 {
        parts.store.tag(&art(&n.to_string()), &tag, LONG).await.unwrap();
    }
    for round in 0..20 {
        let name = format!("content_since {round}");
        let lease = parts.lease(&name, LONG).await;
        parts.next_instant().await;
        let at = parts.now().await;
        let message = samovar::protocol::Message::parse(r#"{"tags": ["t"]}"#).unwrap();
        let commit = async {
            let stamps = parts.store.tag(&art(&name), &tag, LONG).await.unwrap();
            if let Some(stamp) = stamps[0].filter(|stamp| stamp.at >= lease.start) {
                parts.store.fence(&art(&name), stamp).await.unwrap();
            }
            parts.store.commit(&art(&name), &lease, "1", TTL, &Note::default()).await.unwrap()
        };
        let (handled, written) = tokio::join!(invalidator.handle(&message, at), commit);
        handled.unwrap();
        let due = parts.meta(&name).await.is_some_and(|meta| meta.invalidated > 0);
        assert!(matches!(written, Written::Again(_)) || due, "{round}: {written:?}");
        parts.store.release(&art(&name), &lease.token, None).await.unwrap();
    }
}

/// Redis evicted the index, and since then one entry was put under the tag anew; of another, what was known went as well.
#[tokio::test]
async fn a_tag_without_its_index_is_sought_in_all_that_may_have_it() {
    let redis = TestRedis::options().arg("--maxmemory-policy", "allkeys-random").start().await;
    let upstream = Upstream::start().await;
    let parts = Parts::of(&redis).await;
    let jobs = Art::of(&upstream).top("tags = [\"t\"]").folder();
    let invalidator = parts.invalidator(&jobs);
    let commit = async |name: &str, tag: &str| {
        let lease = parts.lease(name, LONG).await;
        let note = Note { tags: vec![tag.to_owned()], ..Note::default() };
        parts.store.commit(&art(name), &lease, "1", TTL, &note).await.unwrap();
    };
    let tagged = async || {
        parts.next_instant().await;
        let message = samovar::protocol::Message::parse(r#"{"tags": ["t"]}"#).unwrap();
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
        assert!(parts.meta(name).await.unwrap().invalidated > 0, "{name}");
    }
    assert_eq!(parts.meta("other").await.unwrap().invalidated, 0);
    // From now on the index is believed.
    let (_, mut named) = parts.store.tagged("t", 0).await.unwrap();
    named.sort();
    assert_eq!(named, [art("a"), art("b")]);
    assert_eq!(parts.store.may_lack(&["t", "o"]).await.unwrap(), ["o"]);
}

/// Parts for a user who may not ask for `INFO`, so that any index may have been evicted; and two jobs with tags.
async fn without_info(redis: &TestRedis, upstream: &Upstream) -> (Parts, JobsFolder) {
    redis.ask::<()>(&["ACL", "SETUSER", "app", "on", "nopass", "~*", "&*", "+@all", "-info"]).await;
    let url = format!("redis://app:any@127.0.0.1:{}/0", redis.port());
    let parts = Parts::at(&samovar::redis::RedisUrl::parse(&url, None).unwrap()).await;
    let more = "key = \"more:{name}\"\nttl = \"1h\"\ntags = [\"more\"]\n[source]\nkind = \"http\"\n\
                upstream = \"museum\"\npath = \"/{{ name }}\"\n";
    let jobs = Art::of(upstream).top("tags = [\"t\"]").folder().job("more", more);
    // What services loaded is sought once, whatever the tag.
    parts.invalidator(&jobs).handle(&tags(["first"]), parts.now().await).await.unwrap();
    (parts, jobs)
}

fn tags<T: ToString>(tags: impl IntoIterator<Item = T>) -> samovar::protocol::Message {
    let tags = tags.into_iter().map(|tag| tag.to_string()).collect();
    samovar::protocol::Message { tags, ..Default::default() }
}

async fn commit_with(parts: &Parts, name: &str, tags: &[&str]) {
    let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
    let lease = parts.lease(name, LONG).await;
    parts.store.tag(&art(name), &tags, TTL).await.unwrap();
    parts.store.commit(&art(name), &lease, "1", TTL, &Note { tags, ..Note::default() }).await.unwrap();
}

/// How many times `SCAN` was called while this was done.
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
        assert_eq!(parts.meta("a").await.unwrap().invalidated, at);
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
            assert_eq!(parts.meta(name).await.unwrap().invalidated, at, "{name}");
        }
    }
    assert_eq!(parts.meta("other").await.unwrap().invalidated, 0);
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
    messages.insert(70, samovar::protocol::Message { patterns: vec!["no:*".to_owned()], ..Default::default() });
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
    assert_eq!(parts.meta("a").await.unwrap().invalidated, at);
}

/// One names an entry that the user may not touch.
#[tokio::test]
async fn a_message_that_fails_holds_up_none_that_it_waits_with() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = without_info(&redis, &upstream).await;
    redis.ask::<()>(&["ACL", "SETUSER", "app", "resetkeys", "~samovar:*", "~art:*"]).await;
    parts.store.tag(&EntryKey::new("more:1"), &["more".to_owned()], LONG).await.unwrap();
    let (pipeline, pipeline_loop) = Pipeline::new(parts.invalidator(&jobs), Telemetry::default());
    let (done, mut handled) = tokio::sync::mpsc::unbounded_channel();
    for tag in ["more", "a", "b"] {
        pipeline.take(tags([tag]), At::Redis(1), "inbox", Ack::new(tag.to_owned(), done.clone())).await;
    }
    let cut = tokio_util::sync::CancellationToken::new();
    let others = async {
        let mut next = async || tokio::time::timeout(LONG, handled.recv()).await.unwrap().unwrap();
        let mut others = [next().await, next().await];
        others.sort();
        assert_eq!(others, ["a", "b"]);
        cut.cancel();
    };
    tokio::join!(pipeline_loop.run(cut.clone()), others);
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
    let evict = |tag: &str| samovar::protocol::Message { action: samovar::protocol::Action::Evict, ..tags([tag]) };
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

// Storms

#[tokio::test]
async fn a_storm_of_invalidations_costs_few_fetches_and_stays_fresh() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    publish(&redis, "art:a").await;
    let calls = upstream.calls("/art/a");
    let began = std::time::Instant::now();
    let mut connection = redis.connection().await;
    let (mut last, mut landed) = (1, 0);
    let mut seen = 1;
    let on = |landed: u64| {
        // On a loaded machine two seconds may see no more than one fetch.
        let longest = if landed < 2 { Duration::from_secs(15) } else { Duration::from_secs(2) };
        began.elapsed() < longest
    };
    while on(landed) {
        last = upstream.edit("/art/a");
        let mut storm = redis::pipe();
        for _ in 0..50 {
            storm.cmd("PUBLISH").arg(CHANNEL).arg("art:a").ignore();
            storm.cmd("XADD").arg("samovar:inbox").arg("*").arg("message").arg("art:a").ignore();
        }
        storm.query_async::<()>(&mut connection).await.unwrap();
        let version = redis.json("art:a").await.unwrap()["version"].as_u64().unwrap();
        assert!(version >= seen, "it never goes back");
        landed += u64::from(version > seen);
        seen = version;
    }
    version(&redis, "a", last).await;
    let fetches = upstream.calls("/art/a") - calls;
    let seconds = began.elapsed().as_secs() + 1;
    assert!(landed >= 2, "new versions land while it goes on: {landed}");
    assert!(fetches as u64 <= 8 * seconds, "{fetches} fetches in {seconds} s for {last} edits");
    Parts::of(&redis).await.inbox_is_empty().await;
}

#[tokio::test]
async fn what_names_many_does_not_hold_up_what_is_named_by_itself() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/single");
    let jobs = Art::of(&upstream).limits("concurrency = 2").folder();
    let parts = Parts::of(&redis).await;
    let worker = worker(&redis, &jobs);
    parts.invalidate(r#"{"keys": ["art:single"], "action": "warm"}"#).await;
    version(&redis, "single", 1).await;
    upstream.otherwise(|_, _| Reply::json(json!({})).after(Duration::from_millis(50)));
    let mut connection = redis.connection().await;
    let mut fill = redis::pipe();
    for n in 0..5_000 {
        fill.cmd("SET").arg(format!("art:{n}")).arg("{}").arg("EX").arg(600).ignore();
    }
    fill.query_async::<()>(&mut connection).await.unwrap();
    publish(&redis, r#"{"patterns": ["art:[0-9]*"]}"#).await;
    eventually("the mass is under way", async || upstream.in_flight() == 2).await;
    let edited = upstream.edit("/art/single");
    publish(&redis, "art:single").await;
    version(&redis, "single", edited).await;
    let before = upstream.all_requests().len();
    assert!(before < 1_000, "{before} of 5,000 went before");
    drop(worker);
}

/// A fetch for an invalidation is under way that followed another: refreshes are held off.
async fn debounced(redis: &TestRedis, parts: &Parts, name: &str) {
    let lease = format!("somebody {} +", parts.now().await - 1);
    redis.ask::<String>(&["SET", &parts.keys.lease(&art(name)), &lease]).await;
}

#[tokio::test]
async fn debounced_bulk_stays_behind_high_priority() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    let invalidator = parts.invalidator(&jobs);
    let named = [("a", "art:a", Priority::High), ("b", r#"{"patterns": ["art:b"]}"#, Priority::Bulk)];
    for (name, message, priority) in named {
        redis.set(&format!("art:{name}"), "1", TTL).await;
        debounced(&redis, &parts, name).await;
        let message = samovar::protocol::Message::parse(message).unwrap();
        let (mut handled, held) = invalidator.begin(&message, parts.now().await, true).await.unwrap();
        assert_eq!((held.is_empty(), parts.score(name).await), (false, None));
        redis.ask::<usize>(&["DEL", &parts.keys.lease(&art(name))]).await;
        assert!(invalidator.again(held, &mut handled).await.unwrap().is_empty());
        assert_eq!(Due::from_score(parts.score(name).await.unwrap()).priority, priority);
    }
}

/// The same where the pipeline waits; what is named by itself meanwhile does not wait behind the many.
#[tokio::test]
async fn the_pipeline_keeps_the_priority_of_what_it_debounced() {
    for (messages, priority) in [
        (&[r#"{"patterns": ["art:a"]}"#][..], Priority::Bulk),
        (&[r#"{"patterns": ["art:a"]}"#, "art:a"][..], Priority::High),
    ] {
        let (redis, upstream) = both().await;
        let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
        redis.set("art:a", "1", TTL).await;
        debounced(&redis, &parts, "a").await;
        let (pipeline, pipeline_loop) = Pipeline::new(parts.invalidator(&jobs), Telemetry::default());
        let published = async {
            let (done, mut handled) = tokio::sync::mpsc::unbounded_channel();
            for message in messages {
                let ack = Ack::new((*message).to_owned(), done.clone());
                let message = samovar::protocol::Message::parse(message).unwrap();
                pipeline.take(message, At::Redis(parts.now().await), "inbox", ack).await;
            }
            // It sees the lease some times.
            let _ = tokio::time::timeout(Duration::from_millis(300), handled.recv()).await;
            assert_eq!(parts.score("a").await, None);
            redis.ask::<usize>(&["DEL", &parts.keys.lease(&art("a"))]).await;
            for _ in messages {
                handled.recv().await.unwrap();
            }
            drop(pipeline);
        };
        tokio::join!(pipeline_loop.run(tokio_util::sync::CancellationToken::new()), published);
        assert_eq!(Due::from_score(parts.score("a").await.unwrap()).priority, priority);
    }
}

// Foreign writers

#[tokio::test]
async fn an_old_value_written_aside_after_a_refresh_is_replaced() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).warm("settle = \"500ms\"").folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let edited = upstream.edit("/art/a");
    publish(&redis, "art:a").await;
    version(&redis, "a", edited).await;
    // It had read this before the edit.
    redis.set("art:a", r#"{"version": 1}"#, TTL).await;
    version(&redis, "a", edited).await;
}

#[tokio::test]
async fn an_old_value_written_aside_after_an_eviction_is_replaced() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).warm("settle = \"500ms\"").folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let edited = upstream.edit("/art/a");
    Parts::of(&redis).await.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    redis.set("art:a", r#"{"version": 1}"#, TTL).await;
    version(&redis, "a", edited).await;
    // Where nothing is written, nothing is fetched.
    let calls = upstream.calls("/art/a");
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    eventually("it was looked at once more", async || parts.score("a").await.is_none()).await;
    assert_eq!((redis.get("art:a").await, upstream.calls("/art/a")), (None, calls));
}

/// A warmup, or a person, comes between an invalidation and its look.
#[tokio::test]
async fn a_fetch_in_the_place_of_a_look_is_itself_looked_at_once_more() {
    for (trigger, when) in [(Trigger::Cron, When::Due(0)), (Trigger::Manual, When::Urgent)] {
        let (redis, upstream) = both().await;
        upstream.edit("/art/a");
        let jobs = Art::of(&upstream).warm("settle = \"3s\"").folder();
        let parts = Parts::of(&redis).await;
        parts.mark().await;
        let look = When::Keep(parts.now().await + 600_000);
        parts.agenda.put(&job(), &[art("a")], look, Trigger::Settle).await.unwrap();
        parts.agenda.put(&job(), &[art("a")], when, trigger).await.unwrap();
        let due = Due::from_score(parts.score("a").await.unwrap());
        assert_eq!((due.trigger, due.look), (trigger, true));
        let _worker = worker(&redis, &jobs);
        version(&redis, "a", 1).await;
        redis.set("art:a", r#"{"version": 0}"#, TTL).await;
        version(&redis, "a", 1).await;
    }
}

/// A warmup, or a person, has claimed what is evicted, and fetches it after.
#[tokio::test]
async fn the_look_after_an_eviction_is_not_lost_to_a_claim() {
    for (trigger, when) in [(Trigger::Cron, When::Due(0)), (Trigger::Manual, When::Urgent)] {
        let (redis, upstream) = both().await;
        upstream.edit("/art/a");
        let jobs = Art::of(&upstream).warm("settle = \"3s\"").folder();
        let parts = Parts::of(&redis).await;
        parts.mark().await;
        let lease = parts.lease("a", LONG).await;
        parts.store.commit(&art("a"), &lease, r#"{"version": 0}"#, TTL, &Note::default()).await.unwrap();
        parts.agenda.put(&job(), &[art("a")], when, trigger).await.unwrap();
        // By a worker that dies.
        parts.agenda.claim(&job(), 1, 1, Duration::from_millis(500)).await.unwrap();
        parts.next_instant().await;
        let evict = samovar::protocol::Message::parse(r#"{"keys": ["art:a"], "action": "evict"}"#).unwrap();
        parts.invalidator(&jobs).handle(&evict, parts.now().await).await.unwrap();
        assert_eq!(redis.get("art:a").await, None);
        let _worker = worker(&redis, &jobs);
        version(&redis, "a", 1).await;
        redis.set("art:a", r#"{"version": 0}"#, TTL).await;
        version(&redis, "a", 1).await;
    }
}

// Failing sources

#[tokio::test]
async fn an_old_value_outlives_its_ttl_while_its_source_fails() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs =
        Art::of(&upstream).ttl("2s").list(["a"]).warm("ahead = \"1s\"\nstale_if_error = \"1h\"\nattempts = 2").folder();
    let mut worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let given: i64 = redis.ask(&["PEXPIRETIME", "art:a"]).await;
    upstream.on("/art/a", Reply::status(500));
    let parts = Parts::of(&redis).await;
    eventually("its TTL is over", async || parts.now().await > given + 500).await;
    version(&redis, "a", 1).await;
    let meta = parts.meta("a").await.unwrap();
    assert!(meta.outlived > 0, "{meta:?}");
    worker.wait_for_log(&["outlives its TTL"]).await;
    let shown = samovar(["get", "art:a"]).redis(&redis).jobs(&jobs).run().await;
    assert!(format!("{shown:?}").contains("outlives its TTL"), "{shown:?}");
    // Given up is only what nobody is served any more.
    assert_eq!(redis.keys("samovar:dead:*").await, Vec::<String>::new());
    upstream.edit("/art/a");
    // By itself it would be tried again in some minutes.
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    assert_eq!(parts.meta("a").await.unwrap().outlived, 0);
}

#[tokio::test]
async fn an_old_value_that_was_invalidated_does_not_outlive_its_ttl() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).ttl("3s").list(["a"]).warm("ahead = \"1s\"\nstale_if_error = \"1h\"").folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    upstream.on("/art/a", Reply::status(500));
    publish(&redis, "art:a").await;
    evicted(&redis, "a").await;
}

#[tokio::test]
async fn an_invalidation_ends_what_outlives_its_ttl() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).ttl("1s").list(["a"]).warm("ahead = \"500ms\"\nstale_if_error = \"1h\"").folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let given: i64 = redis.ask(&["PEXPIRETIME", "art:a"]).await;
    upstream.on("/art/a", Reply::status(500));
    let parts = Parts::of(&redis).await;
    eventually("its TTL is over", async || parts.now().await > given).await;
    version(&redis, "a", 1).await;
    parts.invalidate("art:a").await;
    assert_eq!(redis.get("art:a").await, None);
}

/// The breaker opens, so nobody even asks.
#[tokio::test]
async fn old_values_outlive_their_ttl_while_the_breaker_is_open() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    for name in &names {
        upstream.edit(&format!("/art/{name}"));
    }
    let jobs = Art::of(&upstream).ttl("3s").list(&names).warm("ahead = \"1500ms\"\nstale_if_error = \"1h\"").folder();
    let _worker = hasty_worker(&redis, &jobs);
    for name in &names {
        version(&redis, name, 1).await;
    }
    for name in &names {
        upstream.on(&format!("/art/{name}"), Reply::status(500));
    }
    let parts = Parts::of(&redis).await;
    let then = parts.now().await + 5_000;
    eventually("their TTLs are over", async || parts.now().await > then).await;
    for name in &names {
        assert!(redis.get(&format!("art:{name}")).await.is_some(), "art:{name}");
    }
    assert!(redis.ask::<Option<String>>(&["HGET", "samovar:limit:{museum}", "open"]).await.is_some());
}

#[tokio::test]
async fn what_outlives_its_ttl_is_fresh_to_nobody() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", Duration::from_secs(1), &Note::default()).await.unwrap();
    let fresh = samovar::store::Fresh { since: Some(1), ..Default::default() };
    assert!(matches!(parts.store.lease(&art("a"), LONG, fresh).await.unwrap(), Leased::Fresh { .. }));
    let lives = parts.store.extend_stale(&art("a"), LONG, Duration::from_secs(30)).await.unwrap().unwrap();
    assert_eq!(lives.expires - lives.ends, 30_000, "as long as its job allows");
    let again = parts.store.extend_stale(&art("a"), LONG, Duration::from_secs(30)).await.unwrap().unwrap();
    assert_eq!(again, lives);
    assert!(matches!(parts.store.lease(&art("a"), LONG, fresh).await.unwrap(), Leased::Yes(_)));
    // What somebody else wrote is theirs.
    redis.set("art:a", "2", TTL).await;
    assert_eq!(parts.store.extend_stale(&art("a"), LONG, LONG).await.unwrap(), None);
}

// What nobody heard

#[tokio::test]
async fn what_is_published_bare_while_nobody_listens_is_made_good() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut first = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    eventually("it has said what it hears", async || redis.ask::<usize>(&["HLEN", "samovar:ears"]).await == 1).await;
    first.kill9();
    first.wait().await;
    let edited = upstream.edit("/art/a");
    redis.publish(CHANNEL, "art:a").await;
    let _second = worker(&redis, &jobs);
    version(&redis, "a", edited).await;
}

/// Waits until so many workers have said that they heard everything for some seconds.
async fn have_listened(redis: &TestRedis, workers: usize) {
    eventually("they have listened for a while", async || {
        let ears: Vec<String> = redis.ask(&["HVALS", "samovar:ears"]).await;
        let times = ears.iter().map(|ear| ear.split(' ').take(3).map(|time| time.parse().unwrap()).collect());
        let times: Vec<Vec<i64>> = times.collect();
        if times.len() == workers && times.iter().all(|times| times[2] - times[0] > 4_500) { Ok(()) } else { Err(ears) }
    })
    .await;
}

/// Somebody else has heard it all: nothing is suspect.
#[tokio::test]
async fn a_worker_that_comes_anew_into_a_fleet_suspects_nothing() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _first = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    eventually("it has said what it hears", async || redis.ask::<usize>(&["HLEN", "samovar:ears"]).await == 1).await;
    let _second = worker(&redis, &jobs);
    have_listened(&redis, 2).await;
    assert_eq!(upstream.calls("/art/a"), 1);
}

#[tokio::test]
async fn a_cut_subscription_of_the_only_worker_revalidates_everything() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    eventually("it has said what it hears", async || redis.ask::<usize>(&["HLEN", "samovar:ears"]).await == 1).await;
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
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut first = talkative(&redis, &jobs).env("SAMOVAR_DRAIN", "0").spawn();
    version(&redis, "a", 1).await;
    eventually("it has said what it hears", async || redis.ask::<usize>(&["HLEN", "samovar:ears"]).await == 1).await;
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
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut first = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    first.kill9();
    first.wait().await;
    let edited = upstream.edit("/art/a");
    let now = Parts::of(&redis).await.now().await;
    redis.ask::<usize>(&["DEL", "samovar:ears"]).await;
    let heard = format!("{} {now} {} {}", now - 60_000, now - 1_000, identity(&jobs));
    redis.ask::<usize>(&["HSET", "samovar:ears", "dead", &heard]).await;
    let mut second = worker(&redis, &jobs);
    second.wait_for_log(&["nobody was listening"]).await;
    version(&redis, "a", edited).await;
}

#[tokio::test]
async fn a_trimmed_inbox_says_so_and_everything_is_made_anew() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut first = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    first.kill9();
    first.wait().await;
    let edited = upstream.edit("/art/a");
    let parts = Parts::of(&redis).await;
    parts.publish("art:a").await;
    for n in 0..50 {
        parts.publish(&format!("art:other {n}")).await;
    }
    inbox::bound(&mut parts.redis.clone(), &parts.keys, 10).await.unwrap();
    let left: usize = redis.ask(&["XLEN", "samovar:inbox"]).await;
    assert!(left < 15, "{left} are left");
    // Whoever else is bound to hear of it is not asked here: its own canaries would do that.
    redis.ask::<usize>(&["DEL", "samovar:ears"]).await;
    let mut second = worker(&redis, &jobs);
    second.wait_for_log(&["dropped from the inbox"]).await;
    version(&redis, "a", edited).await;
    parts.inbox_is_empty().await;
    eventually("the revalidator is dealt with", async || redis.keys("samovar:{suspect}*").await.is_empty()).await;
}

#[tokio::test]
async fn an_inbox_within_its_bound_loses_nothing() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    for n in 0..9 {
        parts.publish(&format!("art:{n}")).await;
    }
    inbox::bound(&mut parts.redis.clone(), &parts.keys, 10).await.unwrap();
    assert_eq!(redis.ask::<usize>(&["XLEN", "samovar:inbox"]).await, 9);
}

#[tokio::test]
async fn revalidation_takes_the_most_read_first_and_pays_for_nothing() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    for name in &names {
        upstream.edit(&format!("/art/{name}"));
    }
    upstream.on(
        "/v1/chat/completions",
        Reply::json(json!({"choices": [{"message": {"content": "Once"}, "finish_reason": "stop"}],
            "usage": {"total_tokens": 7}})),
    );
    let ai = format!(
        "key = \"tale:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"ai\"\nurl = \"{}/v1/chat/completions\"\nmodel = \"m\"\n\
         prompt = \"Tell of {{{{ name }}}}\"\n[entries]\nlist = [\"a\"]\n",
        upstream.url()
    );
    // Without looking once more, which would mix in.
    let art = Art::of(&upstream).limits("concurrency = 1").list(&names).warm("settle = \"0s\"");
    let jobs = art.folder().job("tale", &ai);
    let _worker = talkative(&redis, &jobs).env("SAMOVAR_SAMPLE", "1s").spawn();
    // To read them would make them popular.
    eventually("all is warm", async || {
        redis.ask::<usize>(&["DBSIZE"]).await > 61 && upstream.all_requests().len() == 61
    })
    .await;
    at_rest(&redis).await;
    redis.ask::<f64>(&["ZINCRBY", "samovar:reads", "100", "art:37"]).await;
    eventually("its reads are counted", async || {
        redis.ask::<Option<f64>>(&["ZSCORE", "samovar:popular:{art}", "art:37"]).await.is_some()
    })
    .await;
    let parts = Parts::of(&redis).await;
    for (doubt, calls) in [(Gap::Missed, 1), (Gap::Lost, 2)] {
        let before = upstream.all_requests().len();
        parts.next_instant().await;
        parts.store.note_gap(parts.now().await, doubt).await.unwrap();
        eventually("everything was asked for again", async || {
            let mut asked: Vec<String> =
                upstream.all_requests()[before..].iter().map(|call| call.path().to_owned()).collect();
            asked.retain(|path| path.starts_with("/art/"));
            if asked.len() < names.len() { Err(asked.len()) } else { Ok(()) }
        })
        .await;
        let first = upstream.all_requests()[before..].iter().find(|call| call.path().starts_with("/art/")).cloned();
        assert_eq!(first.unwrap().path(), "/art/37");
        eventually("the revalidator is dealt with", async || redis.keys("samovar:{suspect}*").await.is_empty()).await;
        eventually("the tale is at rest", async || {
            redis.ask::<Vec<String>>(&["ZRANGEBYSCORE", "samovar:agenda:{tale}", "-inf", "(0"]).await.is_empty()
                && upstream.calls("/v1/chat/completions") == calls
        })
        .await;
    }
}

/// Whoever publishes more than workers read is told, and not left to believe that it cannot be lost.
#[tokio::test]
async fn a_message_too_long_to_be_read_is_refused() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let long = json!({"keys": ["a".repeat(inbox::LARGEST)]}).to_string();
    let refused = inbox::publish(&mut parts.redis.clone(), &parts.keys, &long).await.unwrap_err();
    assert!(refused.to_string().contains("publish several"), "{refused}");
    assert_eq!(redis.ask::<usize>(&["XLEN", "samovar:inbox"]).await, 0);
}

/// A master whose clock ran ahead wrote it; after the failover, its time lies in the future.
#[tokio::test]
async fn a_value_from_the_future_is_not_safe_from_invalidations() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let future = parts.now().await + 3_600_000;
    let expires = future + 3_600_000;
    redis.ask::<String>(&["SET", "art:a", "1", "PXAT", &expires.to_string()]).await;
    let meta = format!("{future} {expires} 0 0 abc {{}}");
    redis.ask::<String>(&["SET", &parts.keys.meta(&art("a")), &meta]).await;
    let handled = parts.store.invalidate(&art("a"), parts.now().await, Removal::Refresh).await.unwrap();
    assert!(handled.due);
    let token = format!("somebody {future} -");
    redis.ask::<String>(&["SET", &parts.keys.lease(&art("b")), &token]).await;
    let handled = parts.store.invalidate(&art("b"), parts.now().await, Removal::Refresh).await.unwrap();
    assert!(handled.fenced);
}

/// As after Redis's clock was set back by an hour.
#[tokio::test]
async fn a_stamp_of_the_future_fences_once_and_hides_no_other() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let (tag, tags) = (parts.keys.tag("t"), ["t".to_owned()]);
    let stamped = async || parts.store.tag(&art("a"), &tags, LONG).await.unwrap()[0].unwrap();
    for removal in [Removal::Refresh, Removal::Evict] {
        let future = parts.now().await + 3_600_000;
        parts.store.stamp("t", future, removal).await.unwrap();
        let begun = parts.now().await;
        let first = stamped().await;
        assert!(first.at >= begun && first.at < future && first.removal == removal, "{first:?}");
        parts.next_instant().await;
        assert!(stamped().await.at < parts.now().await, "what begins from now on is not fenced by it");
        // One that comes before anybody has looked.
        redis.ask::<u64>(&["ZADD", &tag, &format!("-{future}"), ""]).await;
        parts.next_instant().await;
        let at = parts.now().await;
        parts.store.stamp("t", at, Removal::Refresh).await.unwrap();
        let found = stamped().await;
        assert!(found.at >= at && found.at < future, "{found:?}");
        redis.ask::<u64>(&["DEL", &tag]).await;
    }
}

/// As after Redis's clock was set back by an hour.
#[tokio::test]
async fn a_lease_of_the_future_ends_in_time() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let future = parts.now().await + 3_600_000;
    let lease = format!("dead-1 {future} -");
    redis.set(&parts.keys.lease(&art("a")), &lease, 100 * LONG).await;
    let short = Duration::from_millis(200);
    eventually("it has ended", async || {
        matches!(parts.store.lease(&art("a"), short, Fresh::default()).await.unwrap(), Leased::Yes(_))
    })
    .await;
}

#[tokio::test]
async fn what_was_fetched_in_the_future_is_fresh_to_nobody() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let future = parts.now().await + 3_600_000;
    let expires = (future + 3_600_000).to_string();
    redis.ask::<String>(&["SET", "art:a", "1", "PXAT", &expires]).await;
    redis.ask::<String>(&["SET", &parts.keys.meta(&art("a")), &format!("{future} {expires} 0 0 abc {{}}")]).await;
    let fresh = Fresh { since: Some(parts.now().await), until: Some(1), ..Fresh::default() };
    let leased = parts.store.lease(&art("a"), LONG, fresh).await.unwrap();
    assert!(matches!(leased, Leased::Yes(_)), "{leased:?}");
}

/// What a revalidator from before a clock was set back has marked is older than any invalidation.
#[tokio::test]
async fn what_was_marked_in_the_future_is_older_than_anything() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &Note::default()).await.unwrap();
    let future = parts.now().await + 3_600_000;
    assert!(parts.store.invalidate(&art("a"), future, Removal::Refresh).await.unwrap().due);
    let meta = parts.meta("a").await.unwrap();
    assert_eq!((meta.start, meta.asked, meta.invalidated, meta.written), (1, 1, future, meta.written));
    assert!(meta.is_of(redis.ask(&["PEXPIRETIME", "art:a"]).await), "it is ours as before");
    assert!(parts.store.invalidate(&art("a"), lease.start - 60, Removal::Evict).await.unwrap().removed);
}

#[tokio::test]
async fn the_lock_of_a_suspicion_ends_in_time_whatever_the_clock_did() {
    let (redis, upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let revalidator = parts.revalidator(&Art::of(&upstream).folder());
    parts.store.note_gap(parts.now().await, Gap::Missed).await.unwrap();
    let [_, lock, _] = parts.keys.revalidation();
    redis.set(&lock, "somebody", 100 * LONG).await;
    revalidator.look().await.unwrap();
    assert!(redis.ttl(&lock).await.unwrap() <= revalidator.claim);
}

/// The worker was held up for longer than its claim.
#[tokio::test]
async fn a_lock_that_another_worker_took_is_not_extended() {
    let (redis, upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let revalidator = parts.revalidator(&Art::of(&upstream).folder());
    let [note, lock, _] = parts.keys.revalidation();
    // More than become due at once, so that it takes a while.
    for batch in 0..3 {
        let mut fill = redis::pipe();
        let (start, expires) = (parts.now().await, parts.now().await + 600_000);
        for n in 0..1_000 {
            let key = art(&format!("{batch}-{n}"));
            fill.cmd("SET").arg(key.as_str()).arg("1").arg("PXAT").arg(expires).ignore();
            fill.cmd("SET").arg(parts.keys.meta(&key)).arg(format!("{start} {expires} 0 0 abc {{}}")).ignore();
        }
        fill.exec_async(&mut redis.connection().await).await.unwrap();
    }
    parts.next_instant().await;
    parts.store.note_gap(parts.now().await, Gap::Missed).await.unwrap();
    let (looked, ()) = tokio::join!(revalidator.look(), async {
        eventually("it has the lock", async || redis.get(&lock).await).await;
        redis.set(&lock, "another", revalidator.claim / 2).await;
    });
    assert!(looked.unwrap_err().to_string().contains("another worker took it"));
    assert_eq!(redis.get(&lock).await.as_deref(), Some("another"));
    assert!(redis.ttl(&lock).await.unwrap() <= revalidator.claim / 2);
    assert!(redis.get(&note).await.is_some(), "the revalidator is left to the other");
}

/// Its latest time is later than the present one.
#[tokio::test]
async fn a_clock_set_back_is_noted_once() {
    let (redis, _upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let clock = || Clock::new(parts.redis.clone(), parts.keys.clone());
    let [note, ..] = parts.keys.revalidation();
    let (mut first, mut second) = (clock(), clock());
    assert_eq!((first.look().await.unwrap(), second.look().await.unwrap()), (Gone::On, Gone::On));
    assert_eq!(redis.get(&note).await, None);
    let high = parts.now().await + 3_600_000;
    redis.ask::<u64>(&["HSET", &parts.keys.clock(), "high", &high.to_string()]).await;
    assert_eq!(first.look().await.unwrap(), Gone::Back);
    let noted = redis.get(&note).await.unwrap();
    let words: Vec<i64> = noted.split(' ').map(|word| word.parse().unwrap()).collect();
    assert!(words[0] >= high && words[1] == 1 && words[2] <= parts.now().await, "{noted}");
    assert_eq!((second.look().await.unwrap(), first.look().await.unwrap()), (Gone::Back, Gone::On));
    assert_eq!(redis.get(&note).await.as_deref(), Some(noted.as_str()), "nobody notes it again");
    assert_eq!(clock().look().await.unwrap(), Gone::On);
    assert_eq!(redis.ask::<u64>(&["HGET", &parts.keys.clock(), "set_back"]).await, 1);
    // Another doubt leaves it as it is.
    parts.store.note_gap(1, Gap::Missed).await.unwrap();
    assert_eq!(redis.get(&note).await.as_deref(), Some(noted.as_str()));
}

#[tokio::test]
async fn a_restarted_redis_is_not_believed() {
    let mut redis = TestRedis::options().append_only().start().await;
    let upstream = Upstream::start().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let edited = upstream.edit("/art/a");
    redis.restart().await;
    version(&redis, "a", edited).await;
    let parts = Parts::of(&redis).await;
    eventually("it waits for its expiry again", async || {
        parts.score("a").await.map(|score| Due::from_score(score).trigger) == Some(Trigger::Expiry)
    })
    .await;
}

/// A fetch of an entry failed just now, or long ago, and is tried again then.
async fn failed(parts: &Parts, name: &str, attempted: i64, retry: i64) {
    let lease = parts.lease(name, LONG).await;
    let written = parts.store.commit(&art(name), &lease, "1", TTL, &Note::default()).await.unwrap();
    assert!(matches!(written, Written::Done { .. }));
    parts.next_instant().await;
    assert!(parts.store.invalidate(&art(name), parts.now().await, Removal::Refresh).await.unwrap().due);
    let lease = parts.lease(name, LONG).await;
    let outcome = Some(samovar::entry::Outcome::Failed);
    let note = Note { attempted, retry, outcome, failures: 3, ..Note::default() };
    parts.store.release(&art(name), &lease.token, Some(&note)).await.unwrap();
}

#[tokio::test]
async fn a_storm_does_not_hit_a_failing_source_with_each_invalidation() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let now = parts.now().await;
    // On a busy machine a second may pass before it is asked.
    eventually("a failure just now holds the next refresh off", async || {
        failed(&parts, "just now", parts.now().await, now + 600_000).await;
        parts.next_instant().await;
        let handled = parts.store.invalidate(&art("just now"), parts.now().await, Removal::Refresh).await.unwrap();
        handled.debounced.is_some() && !handled.due
    })
    .await;
    // One of the future is of a clock that ran ahead.
    for (name, attempted) in [("before", now - 5_000), ("after", now + 600_000)] {
        failed(&parts, name, attempted, now + 600_000).await;
        parts.next_instant().await;
        let handled = parts.store.invalidate(&art(name), parts.now().await, Removal::Refresh).await.unwrap();
        assert!(handled.due && handled.debounced.is_none(), "{name}: {handled:?}");
    }
    // What is still served beyond its TTL is not, once it is invalidated.
    failed(&parts, "unmarked", parts.now().await, 0).await;
    let meta = redis.ask::<String>(&["GET", &parts.keys.meta(&art("unmarked"))]).await;
    let mut head: Vec<&str> = meta.splitn(4, ' ').collect();
    head[2] = "0";
    redis.ask::<String>(&["SET", &parts.keys.meta(&art("unmarked")), &head.join(" ")]).await;
    let handled = parts.store.invalidate(&art("unmarked"), parts.now().await, Removal::Refresh).await.unwrap();
    assert!(handled.due && handled.debounced.is_none(), "{handled:?}");
}

#[tokio::test]
async fn a_fetch_for_an_invalidation_uses_no_try_and_moves_no_retry() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::status(500));
    let jobs = Art::of(&upstream).warm("attempts = 4").folder();
    let parts = Parts::of(&redis).await;
    parts.mark().await;
    let retry = parts.now().await + 600_000;
    failed(&parts, "a", parts.now().await - 5_000, retry).await;
    let _worker = worker(&redis, &jobs);
    publish(&redis, "art:a").await;
    upstream.called("/art/a", 1).await;
    at_rest_until(&parts, "a", retry - 60_000).await;
    let note = parts.meta("a").await.unwrap().note;
    assert_eq!((note.failures, note.retry), (3, retry));
    assert_eq!(redis.keys("samovar:dead:*").await, Vec::<String>::new());
}

/// Waits until an entry is due no sooner than then (Redis time, ms).
async fn at_rest_until(parts: &Parts, name: &str, then: i64) {
    eventually("it waits for its retry", async || match parts.score(name).await.map(Due::from_score) {
        Some(due) if due.at >= then => Ok(()),
        other => Err(other),
    })
    .await;
}

// Jobs that not everybody knows

/// While workers with new job files replace old ones, a message may be read by one that does not know the job.
#[tokio::test]
async fn a_message_read_by_a_worker_without_its_job_is_not_lost() {
    for message in [
        r#"{"keys": ["new:a"]}"#,
        r#"{"patterns": ["new:*"]}"#,
        r#"{"jobs": ["new"]}"#,
        r#"{"tags": ["t"]}"#,
        r#"{"keys": ["new:a"], "action": "evict"}"#,
    ] {
        let (redis, upstream) = both().await;
        upstream.edit("/new/a");
        let job = "key = \"new:{name}\"\nttl = \"1h\"\ntags = [\"t\"]\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
                   path = \"/new/{{ name }}\"\n[entries]\nlist = [\"a\"]\n";
        let new = Art::of(&upstream).folder().job("new", job);
        let mut knowing = worker(&redis, &new);
        eventually("it is warm", async || redis.get("new:a").await.is_some()).await;
        knowing.term();
        knowing.wait().await;
        let old = Art::of(&upstream).folder();
        let _unknowing = worker(&redis, &old);
        redis.set("new:foreign", "{}", TTL).await;
        Parts::of(&redis).await.invalidate(message).await;
        assert_eq!(redis.get("new:a").await, None, "{message}");
        assert!(redis.get("new:foreign").await.is_some(), "what is not ours stays: {message}");
    }
}

/// One artwork, and stories about it in several languages: the input's key says less than theirs.
#[tokio::test]
async fn an_input_of_many_wakes_them_all() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let job = "key = \"story:{lang}:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n[source]\nkind = \"http\"\n\
               upstream = \"museum\"\npath = \"/story/{{ lang }}/{{ art.version }}\"\n[entries]\n\
               list = [{ lang = \"tr\", name = \"a\" }, { lang = \"en\", name = \"a\" }]\n";
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let jobs = Art::of(&upstream).list(["a"]).folder().job("story", job);
    let _worker = worker(&redis, &jobs);
    let told = async |version: u64| {
        for lang in ["tr", "en"] {
            let key = format!("story:{lang}:a");
            eventually(&format!("{key} tells of version {version}"), async || {
                let story = redis.json(&key).await;
                if story == Some(json!({"path": format!("/story/{lang}/{version}")})) { Ok(()) } else { Err(story) }
            })
            .await;
        }
    };
    told(1).await;
    upstream.edit("/art/a");
    publish(&redis, "art:a").await;
    told(2).await;
}

/// The dependant is readable, and nobody keeps it warm: no agenda names it.
#[tokio::test]
async fn an_input_of_many_wakes_what_is_off_the_agenda_too() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let job = "key = \"story:{lang}:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n[source]\nkind = \"http\"\n\
               upstream = \"museum\"\npath = \"/story/{{ lang }}/{{ art.version }}\"\n[warm]\nahead = \"0s\"\nsettle = \"0s\"\n";
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let jobs = Art::of(&upstream).list(["a"]).folder().job("story", job);
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let told = async |version: u64| {
        eventually(&format!("it tells of version {version}"), async || {
            let story = redis.json("story:tr:a").await;
            if story == Some(json!({"path": format!("/story/tr/{version}")})) { Ok(()) } else { Err(story) }
        })
        .await;
    };
    publish(&redis, r#"{"keys": ["story:tr:a"], "action": "warm"}"#).await;
    told(1).await;
    eventually("it is off the agenda", async || redis.ask::<usize>(&["ZCARD", "samovar:agenda:{story}"]).await == 0)
        .await;
    upstream.edit("/art/a");
    publish(&redis, "art:a").await;
    told(2).await;
}

/// What Redis has sent is there when the worker is told to stop, and none of it is read; it then runs by fits and starts, as on a
/// machine that has no time for it.
#[tokio::test]
async fn what_was_heard_before_the_end_is_handled() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_DRAIN", "10m").spawn();
    let names: Vec<String> = (0..2_000).map(|n| format!("art:{n}")).collect();
    let mut connection = redis.connection().await;
    let mut fill = redis::pipe();
    for name in &names {
        fill.cmd("SET").arg(name).arg("{}").arg("EX").arg(600).ignore();
    }
    fill.query_async::<()>(&mut connection).await.unwrap();
    publish(&redis, r#"{"keys": ["art:0"], "action": "evict"}"#).await;
    evicted(&redis, "0").await;
    worker.freeze();
    let mut evict = redis::pipe();
    for name in &names {
        evict.cmd("PUBLISH").arg(CHANNEL).arg(json!({"keys": [name], "action": "evict"}).to_string());
    }
    let heard: Vec<usize> = evict.query_async(&mut connection).await.unwrap();
    assert!(heard.iter().all(|heard| *heard == 1));
    worker.term();
    for _ in 0..STARTS {
        worker.thaw();
        tokio::time::sleep(FIT).await;
        worker.freeze();
        tokio::time::sleep(PAUSE).await;
    }
    worker.thaw();
    worker.wait().await;
    assert_eq!(redis.keys("art:*").await, Vec::<String>::new());
}

// Replies that are lost

/// The fence renews the lease and says so, and nobody hears it: the same answer is offered again.
#[tokio::test]
async fn an_answer_that_was_refused_is_refused_again() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    parts.next_instant().await;
    assert!(parts.store.invalidate(&art("a"), parts.now().await, Removal::Refresh).await.unwrap().fenced);
    parts.next_instant().await;
    for _ in 0..3 {
        let written = parts.store.commit(&art("a"), &lease, "1", TTL, &Note::default()).await.unwrap();
        assert!(matches!(written, Written::Again(start) if start > lease.start), "{written:?}");
    }
    assert_eq!(redis.get("art:a").await, None);
    let Written::Again(start) = parts.store.gone(&art("a"), &lease, &Note::default()).await.unwrap() else {
        panic!("what was fetched before removes nothing, either");
    };
    let renewed = samovar::store::Lease { start, ..lease };
    let written = parts.store.commit(&art("a"), &renewed, "2", TTL, &Note::default()).await.unwrap();
    assert!(matches!(written, Written::Done { .. }), "{written:?}");
}

/// Two begin at once where there was nobody: neither vouches for the other.
#[tokio::test]
async fn workers_that_begin_together_where_none_was_trust_nothing() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut first = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    eventually("it has said what it hears", async || redis.ask::<usize>(&["HLEN", "samovar:ears"]).await == 1).await;
    first.kill9();
    first.wait().await;
    let edited = upstream.edit("/art/a");
    redis.publish(CHANNEL, "art:a").await;
    let _others = [worker(&redis, &jobs), worker(&redis, &jobs)];
    version(&redis, "a", edited).await;
}

/// What is only looked at once more asks for nothing where there is no value: neither upstreams nor inputs.
#[tokio::test]
async fn looking_once_more_brings_back_nothing_that_was_evicted() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let job = "key = \"story:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n[source]\nkind = \"http\"\n\
               upstream = \"museum\"\npath = \"/story/{{ art.version }}\"\n[entries]\nlist = [\"a\"]\n[warm]\nsettle = \"300ms\"\n";
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let jobs = Art::of(&upstream).list(["a"]).warm("settle = \"300ms\"").folder().job("story", job);
    let _worker = worker(&redis, &jobs);
    eventually("the story is there", async || redis.get("story:a").await.is_some()).await;
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["story:a", "art:a"], "action": "evict"}"#).await;
    let calls = upstream.all_requests().len();
    eventually("both were looked at once more", async || {
        redis.ask::<usize>(&["ZCARD", "samovar:agenda:{art}"]).await
            + redis.ask::<usize>(&["ZCARD", "samovar:agenda:{story}"]).await
            == 0
    })
    .await;
    assert_eq!((redis.get("story:a").await, redis.get("art:a").await), (None, None));
    assert_eq!(upstream.all_requests().len(), calls);
}

/// An API had read the old row before the edit, and writes it after the invalidation of a key that nobody knew.
#[tokio::test]
async fn an_old_value_written_aside_to_an_unknown_key_is_replaced() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).warm("settle = \"500ms\"").folder();
    let _worker = worker(&redis, &jobs);
    let edited = upstream.edit("/art/a");
    Parts::of(&redis).await.invalidate("art:a").await;
    redis.set("art:a", r#"{"version": 1}"#, TTL).await;
    version(&redis, "a", edited).await;
}

/// What the job of a folder is told apart by.
fn identity(jobs: &JobsFolder) -> String {
    let jobs = Jobs::load(jobs.path(), TTL, &|_| None).unwrap();
    jobs.jobs.values().next().unwrap().identity()
}

/// Ends a subscription and publishes bare, in one step, so that it cannot be subscribed again in between.
async fn cut_and_publish(redis: &TestRedis, client: &str, message: &str) -> usize {
    let mut cut = redis::pipe();
    cut.atomic().cmd("CLIENT").arg(&["KILL", "ID", client]).cmd("PUBLISH").arg(CHANNEL).arg(message);
    let [_, heard]: [usize; 2] = cut.query_async(&mut redis.connection().await).await.unwrap();
    heard
}

/// The other one hears it, and drops what it does not know.
#[tokio::test]
async fn a_worker_does_not_vouch_for_jobs_that_it_does_not_know() {
    for (name, key) in [("poem", "poem:{name}"), ("art", "painting:{name}")] {
        let (redis, upstream) = both().await;
        upstream.edit("/art/a");
        upstream.edit("/other/p");
        let jobs = Art::of(&upstream).list(["a"]).folder();
        let _worker = hasty_worker(&redis, &jobs);
        version(&redis, "a", 1).await;
        let clients: String = redis.ask(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
        let client = clients.split([' ', '=']).nth(1).unwrap();
        let toml = Art::of(&upstream).list(["p"]).toml().replace("art:{name}", key).replace("/art/", "/other/");
        let others = JobsFolder::new().upstreams(&format!("[museum]\nurl = \"{}\"\n", upstream.url())).job(name, &toml);
        let _other = hasty_worker(&redis, &others);
        have_listened(&redis, 2).await;
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
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut first = hasty_worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let other = Art::of(&upstream).toml().replace("art:{name}", "poem:{name}");
    let others = JobsFolder::new().upstreams(&format!("[museum]\nurl = \"{}\"\n", upstream.url())).job("poem", &other);
    let _other = hasty_worker(&redis, &others);
    have_listened(&redis, 2).await;
    first.term();
    first.wait().await;
    let edited = upstream.edit("/art/a");
    assert_eq!(redis.publish(CHANNEL, "art:a").await, 1);
    let _second = hasty_worker(&redis, &jobs);
    version(&redis, "a", edited).await;
}

/// Whoever listens on the channel of signals knows all that was ever said there.
#[tokio::test]
async fn a_forged_canary_hides_no_gap() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut first = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let mut signals = redis.redis_url().client().unwrap().get_async_pubsub().await.unwrap();
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
    let ears: Vec<String> = redis.ask(&["HVALS", "samovar:ears"]).await;
    assert!(!ears[0].contains(&future.to_string()), "{ears:?}");
    first.kill9();
    let edited = upstream.edit("/art/a");
    assert_eq!(redis.publish(CHANNEL, "art:a").await, 0);
    let _second = worker(&redis, &jobs);
    version(&redis, "a", edited).await;
}

/// As a worker leaves it that ended just before Redis's clock was set back.
#[tokio::test]
async fn a_worker_from_the_future_vouches_for_nothing() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut first = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    first.kill9();
    let edited = upstream.edit("/art/a");
    let later = Parts::of(&redis).await.now().await + 600_000;
    redis.ask::<usize>(&["DEL", "samovar:ears"]).await;
    let heard = format!("{} {later} {later} {}", later - 1_200_000, identity(&jobs));
    redis.ask::<usize>(&["HSET", "samovar:ears", "dead", &heard]).await;
    redis.ask::<usize>(&["HSET", "samovar:ears", "long dead", &format!("1 2 2 {}", identity(&jobs))]).await;
    let _second = worker(&redis, &jobs);
    version(&redis, "a", edited).await;
    assert!(!redis.ask::<bool>(&["HEXISTS", "samovar:ears", "dead"]).await, "it does not come true later");
}

/// A doubt from another clock is dealt with already, but for a job that nobody here knows.
#[tokio::test]
async fn a_doubt_from_the_future_swallows_no_other() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &Note::default()).await.unwrap();
    parts.next_instant().await;
    let note = "99999999999999 1";
    redis.ask::<String>(&["SET", "samovar:{suspect}", note]).await;
    redis.ask::<u8>(&["HSET", "samovar:{suspect}:dealt", "art", note, &identity(&jobs), note]).await;
    redis.ask::<u8>(&["HSET", "samovar:{schedules}:digests", "unknown", "x"]).await;
    let revalidator = parts.revalidator(&jobs);
    revalidator.look().await.unwrap();
    assert_eq!(parts.score("a").await, None);
    parts.store.note_gap(parts.now().await, Gap::Missed).await.unwrap();
    revalidator.look().await.unwrap();
    assert!(parts.score("a").await.is_some(), "it is looked at");
    let note: String = redis.ask(&["GET", "samovar:{suspect}"]).await;
    assert_eq!(redis.ask::<String>(&["HGET", "samovar:{suspect}:dealt", "art"]).await, note);
}

/// A doubt about some jobs leaves what was done for the others.
#[tokio::test]
async fn a_doubt_about_some_jobs_spares_the_others() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    let known = Jobs::load(jobs.path(), TTL, &|_| None).unwrap();
    let revalidator = parts.revalidator(&jobs);
    redis.ask::<u8>(&["HSET", "samovar:{schedules}:digests", "art", "x", "poem", "x", "song", "x"]).await;
    let dealt = async |job: &str| redis.ask::<Option<String>>(&["HGET", "samovar:{suspect}:dealt", job]).await;
    let note = async || redis.ask::<Option<String>>(&["GET", "samovar:{suspect}"]).await;
    parts.store.note_gap_for(&[&known.jobs["art"]], parts.now().await, Gap::Missed).await.unwrap();
    assert_eq!((dealt("art").await, dealt("poem").await), (None, note().await));
    revalidator.look().await.unwrap();
    assert_eq!(note().await, None, "nothing is left to do");
    // Of all jobs, of which one is dealt with.
    parts.store.note_gap(parts.now().await, Gap::Lost).await.unwrap();
    redis.ask::<u8>(&["HSET", "samovar:{suspect}:dealt", "poem", &note().await.unwrap()]).await;
    parts.next_instant().await;
    parts.store.note_gap_for(&[&known.jobs["art"]], parts.now().await, Gap::Missed).await.unwrap();
    assert_eq!((dealt("poem").await, dealt("song").await), (note().await, None));
}
