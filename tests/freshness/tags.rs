//! Tags: what has them is invalidated, and what is being fetched is fenced.

use std::time::Duration;

use samovar::entry::EntryKey;
use samovar::store::{LastAttempt, Removal, Terms, Written};
use serde_json::json;

use super::{LONG, TTL};
use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, art, both, eventually, publish, version, worker,
};

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

/// An earlier build made one tag of the whole list.
#[tokio::test]
async fn a_304_corrects_the_tags_of_its_value() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"genres": ["nude", "oil"], "version": 1}));
    let jobs = Art::of(&upstream).list(["a"]).top("tags = [\"{{ value.genres }}\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let key = parts.keys.meta(&art("a"));
    let meta: String = redis.ask(&["GET", &key]).await;
    let earlier = meta.replace(r#"["nude","oil"]"#, r#"["[\"nude\",\"oil\"]"]"#);
    assert_ne!(meta, earlier);
    redis.ask::<String>(&["SET", &key, &earlier, "KEEPTTL"]).await;
    publish(&redis, "art:a").await;
    eventually("it is found unchanged", async || parts.stat("unchanged").await >= 1).await;
    assert_eq!(parts.meta("a").await.unwrap().last_attempt.tags, ["nude", "oil"]);
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
    let paid = Terms { is_paid_for: true, ..Terms::default() };
    let held = parts.store.invalidate_on(&story, parts.now().await, Removal::Refresh, paid).await.unwrap().debounced;
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
        let name = format!("born {round}");
        let lease = parts.lease(&name, LONG).await;
        parts.next_instant().await;
        let at = parts.now().await;
        let message = samovar::protocol::Message::parse(r#"{"tags": ["t"]}"#).unwrap();
        let commit = async {
            let stamps = parts.store.tag(&art(&name), &tag, LONG).await.unwrap();
            if let Some(stamp) = stamps[0].filter(|stamp| stamp.at >= lease.fetched_at) {
                parts.store.fence(&art(&name), stamp).await.unwrap();
            }
            parts.store.commit(&art(&name), &lease, "1", TTL, &LastAttempt::default()).await.unwrap()
        };
        let (handled, written) = tokio::join!(invalidator.handle(&message, at), commit);
        handled.unwrap();
        let due = parts.meta(&name).await.is_some_and(|meta| meta.invalidated.is_some());
        assert!(matches!(written, Written::Again(_)) || due, "{round}: {written:?}");
        parts.store.release(&art(&name), &lease.token, None).await.unwrap();
    }
}

/// The tag's stamp is found again when the fetch for the key fails.
#[tokio::test]
async fn a_key_that_follows_its_tag_keeps_its_own_time() {
    let (redis, upstream, _jobs, _worker) = gallery().await;
    let parts = Parts::of(&redis).await;
    upstream.on("/art/f1", Reply::status(500));
    let failed = async |message: &str| {
        let (since, calls) = (parts.now().await, upstream.calls("/art/f1"));
        parts.invalidate(message).await;
        eventually("its fetch has failed", async || {
            upstream.calls("/art/f1") > calls && upstream.in_flight() == 0 && parts.score("f1").await.is_some()
        })
        .await;
        (since, parts.meta("f1").await.unwrap().invalidated)
    };
    let (since, invalidated) = failed(r#"{"tags": ["artist:Frida {Kahlo}"]}"#).await;
    assert!(invalidated >= Some(since), "{invalidated:?} after {since:?}");
    let (since, invalidated) = failed("art:f1").await;
    assert!(invalidated >= Some(since), "{invalidated:?} after {since:?}");
}
