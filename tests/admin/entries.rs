//! Entries: cleared, invalidated, warmed and shown over HTTP.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Server, both, send};
use crate::support::{Art, Parts, Reply, art, eventually, readable_key as readable, samovar, version};

#[tokio::test]
async fn clearing_evicts_entries_and_leaves_what_is_not_ours() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a", "b"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    let hour = Duration::from_secs(3_600);
    let foreign = ["foreign", "artless:a", "sessions:1", "samovar:foreign"];
    let library = ["session:1", "user:2", "rate_limit:3"];
    for key in foreign.iter().chain(&library) {
        redis.set(key, "1", hour).await;
    }
    for key in ["art:a", "art:b"] {
        readable(&redis, key).await;
    }
    let control = async || {
        redis.keys("*samovar:*").await.into_iter().filter(|key| {
            // Metadata go with their entries, the queue's keys when it is empty, and what a new Cluster may have lost
            // when all is fresh.
            !key.contains(":meta:") && !key.starts_with("{samovar:queue}") && !key.starts_with("samovar:{suspect}")
        })
    };
    let before: BTreeSet<String> = control().await.collect();
    assert_eq!(server.delete("/redis/clear").await.ok(), json!({"deleted": 5}));
    for key in ["art:a", "art:b"].iter().chain(&library) {
        assert_eq!(redis.get(key).await, None, "{key}");
    }
    for key in foreign {
        assert!(redis.get(key).await.is_some(), "{key}");
    }
    let after: BTreeSet<String> = control().await.collect();
    let agenda = "samovar:agenda:{art}".to_owned();
    let gone: Vec<&String> = before.difference(&after).filter(|key| **key != agenda).collect();
    assert_eq!(gone, Vec::<&String>::new(), "control keys stay; the agenda is empty, as nothing is to be fetched");
    assert_eq!(redis.ask::<u64>(&["ZCARD", &agenda]).await, 0);
    // What is asked for afterwards passes through the whole worker; what was cleared would have been fetched before it.
    assert_eq!(server.post("/warm?wait=true", json!({"keys": ["art:c"]})).await.ok()["warmed"], 1);
    assert_eq!((upstream.calls("/art/a"), upstream.calls("/art/b")), (1, 1));
    // On demand it comes back.
    assert_eq!(server.post("/warm?wait=true", json!({"jobs": ["art"]})).await.ok()["warmed"], 2);
    assert!(redis.get("art:a").await.is_some());
}

#[tokio::test]
async fn a_fetch_in_flight_does_not_bring_back_what_was_cleared() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).limits("concurrency = 1").list(["a", "b", "c"]).folder();
    let gates = ["/art/a", "/art/b", "/art/c"].map(|path| upstream.gate(path));
    let server = Server::start(&redis, &jobs).await.ready().await;
    eventually("one is asked for, the others wait for their turn", async || upstream.in_flight() == 1).await;
    assert_eq!(server.delete("/redis/clear/art:*").await.ok(), json!({"deleted": 0}));
    for gate in gates {
        gate.open();
    }
    assert_eq!(server.post("/warm?wait=true", json!({"keys": ["art:d"]})).await.ok()["warmed"], 1);
    assert_eq!(redis.keys("art:*").await, ["art:d"]);
    assert_eq!(upstream.all_requests().len(), 2, "{:?}", upstream.all_requests());
}

#[tokio::test]
async fn a_pattern_clears_what_matches_it_whatever_is_in_it() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a", "b", "x?y", "d/e"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    let all = ["art:a", "art:b", "art:d/e", "art:x?y"];
    for key in all {
        readable(&redis, key).await;
    }
    for odd in ["%00", "%0d%0aFLUSHALL%0d%0a", "%2e%2e%2f%2e%2e", "art:%5b", "samovar:*", "%7bsamovar*", "%ff"] {
        let answer = server.delete(&format!("/redis/clear/{odd}")).await;
        assert!(answer.status != StatusCode::OK || answer.json()["deleted"] == 0, "{odd}: {answer:?}");
        assert!(!answer.status.is_server_error(), "{odd}: {answer:?}");
    }
    assert_eq!(redis.keys("art:*").await, all);
    assert_eq!(server.delete("/redis/clear/art:x%5C%3Fy").await.ok(), json!({"deleted": 1}));
    assert_eq!(server.delete("/redis/clear?pattern=art:d/*").await.ok(), json!({"deleted": 1}));
    assert_eq!(server.delete("/redis/clear/art:%5Ba-b%5D").await.ok(), json!({"deleted": 2}));
    assert!(server.delete("/redis/clear?pattern=").await.problem(422).contains("empty"));
    let long = "*".repeat(257);
    assert!(server.delete(&format!("/redis/clear?pattern={long}")).await.problem(422).contains("257 bytes"));
    assert!(server.post("/invalidate", json!({"patterns": [long]})).await.problem(422).contains("257 bytes"));
    assert!(server.delete("/redis/clear?patern=art:a").await.problem(400).contains("patern"));
}

#[tokio::test]
async fn an_invalidation_is_published_and_a_senseless_one_refused() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    assert_eq!(readable(&redis, "art:a").await["count"], 1);
    let published = server.post("/invalidate", json!({"keys": ["art:a"]})).await;
    assert_eq!(published.status, StatusCode::ACCEPTED);
    assert!(published.json()["id"].as_str().unwrap().contains('-'));
    eventually("it is fetched anew", async || redis.json("art:a").await.is_some_and(|value| value["count"] == 2)).await;
    let refused = [
        (json!({}), 422, "names nothing"),
        (json!({"key": "art:a"}), 422, "unknown field"),
        (json!({"keys": ["art:a"], "action": "explode"}), 422, "explode"),
        (json!({"keys": ["a".repeat(2_049)]}), 422, "2049 bytes"),
        (json!({"tags": (0..1_001).map(|n| n.to_string()).collect::<Vec<_>>()}), 422, "1001 tags"),
        (json!({"jobs": (0..65).map(|n| n.to_string()).collect::<Vec<_>>()}), 422, "65 jobs"),
        (json!({"keys": "art:a"}), 422, "expected a sequence at line 1 column 15"),
        (json!({"keys": [], "version": -1}), 422, "version"),
        (json!(["art:a"]), 400, "not the expected JSON object"),
    ];
    for (message, status, reason) in refused {
        let said = server.post("/invalidate", message.clone()).await.problem(status);
        assert!(said.contains(reason), "{message}: {said}");
    }
    let post = |body: String| server.request(Method::POST, "/invalidate").body(body);
    assert!(send(post(r#"{"keys": ["art:a"]}"#.into())).await.problem(415).contains("application/json"));
    let json = |body: String| post(body).header("content-type", "application/json; charset=utf-8");
    send(json(r#"{"keys": "#.into())).await.problem(400);
    assert!(send(json("x".repeat((1 << 20) + 1))).await.problem(413).contains("bytes"));
    assert_eq!(upstream.calls("/art/a"), 2);
}

#[tokio::test]
async fn names_that_match_nothing_are_refused_unless_forced() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    readable(&redis, "art:a").await;
    let published = async || {
        let stream: HashMap<String, redis::Value> = redis.ask(&["XINFO", "STREAM", "samovar:inbox"]).await;
        redis::from_redis_value_ref::<u64>(&stream["entries-added"]).unwrap()
    };
    let before = published().await;
    for (message, status, said) in [
        (json!({"keys": ["arts:a", "art:a"]}), 404, "the key `arts:a` matches no job that the fleet knows"),
        (json!({"tags": ["by:a"], "jobs": ["arts"]}), 404, "the tag `by:a`, the job `arts` match no job"),
        (json!({"patterns": ["arts:*"], "action": "evict"}), 404, "the pattern `arts:*` matches no job"),
        (json!({"keys": ["art:*"]}), 422, "`art:*` is a literal key"),
    ] {
        let refused = server.post("/invalidate", message.clone()).await;
        let (problem, detail) = (refused.json(), refused.problem(status));
        assert!(detail.contains(said) && detail.contains("?force=true"), "{message}: {detail}");
        assert_eq!(problem["unknown"].is_array(), status == 404, "{problem}");
    }
    let two = server.post("/invalidate", json!({"tags": ["by:a"], "jobs": ["arts"]})).await.json();
    assert_eq!(two["unknown"], json!(["the tag `by:a`", "the job `arts`"]));
    let dry = server.post("/invalidate?dry_run=true", json!({"patterns": ["art:*"], "jobs": ["art"]})).await;
    assert_eq!(dry.status, StatusCode::OK);
    let entries = json!({"entries": 1, "fetches": 1, "ai_calls": 0, "fallback_ai_calls": 0, "inputs_missing": 0});
    let effect = json!({"action": "refresh", "jobs": {"art": entries}, "dependants": [], "at_most": false});
    assert_eq!(dry.json(), effect);
    server.post("/invalidate?dry_run=true", json!({"keys": ["arts:a"]})).await.problem(404);
    server.post("/invalidate?frce=true", json!({"keys": ["arts:a"]})).await.problem(400);
    assert_eq!(published().await, before, "nothing of a refused message is published");
    for message in [json!({"keys": ["arts:a", "art:a"]}), json!({"keys": ["art:*"]})] {
        assert_eq!(server.post("/invalidate?force=true", message).await.status, StatusCode::ACCEPTED);
    }
    // A job of another worker.
    let () = redis.ask(&["HSET", "samovar:jobs", "other", r#"{"job": "other", "key": "other:{x}"}"#]).await;
    let () = redis.ask(&["HSET", "samovar:jobs", "old", r#"{"job": "old", "key": "art:{x}"}"#]).await;
    assert_eq!(server.post("/invalidate", json!({"keys": ["other:1"]})).await.status, StatusCode::ACCEPTED);
    eventually("the worker says which jobs it knows", async || {
        let records: Vec<String> = redis.ask(&["HKEYS", "samovar:ears"]).await;
        if records.iter().any(|worker| worker != "clock") { Ok(()) } else { Err(records) }
    })
    .await;
    let left = server.post("/invalidate", json!({"jobs": ["old", "art"]})).await;
    let problem = left.json();
    assert!(left.problem(404).contains("the job `old`, which was renamed to `art`"));
    assert_eq!(problem["unknown"], json!(["the job `old`, which was renamed to `art`"]));
    assert_eq!(published().await, before + 3);

    assert!(server.delete("/redis/clear/arts:*").await.problem(404).contains("the pattern `arts:*`"));
    assert_eq!(server.delete("/redis/clear/arts:*?force=true").await.ok(), json!({"deleted": 0}));
    assert_eq!(server.delete("/redis/clear?pattern=arts:*&force=true").await.ok(), json!({"deleted": 0}));
    for known in ["other:*", "session:*", "[a-b]rt:none", "art:none"] {
        assert_eq!(
            server.delete(&format!("/redis/clear?pattern={known}")).await.ok(),
            json!({"deleted": 0}),
            "{known}"
        );
    }

    let calls = upstream.all_requests().len();
    assert!(server.post("/warm", json!({"keys": ["art:b", "art:[x]"]})).await.problem(422).contains("literal key"));
    assert_eq!(server.post("/warm?wait=true", json!({"keys": ["art:c"]})).await.ok()["warmed"], 1);
    assert_eq!(upstream.all_requests().len(), calls + 1, "nothing of a refused request is fetched");
    assert_eq!(server.post("/warm?wait=true&force=true", json!({"keys": ["art:[x]"]})).await.ok()["warmed"], 1);
}

#[tokio::test]
async fn a_client_that_waits_hears_of_the_value_or_why_there_is_none() {
    let (redis, upstream) = both().await;
    upstream.on("/art/bad", Reply::status(500));
    upstream.on("/art/none", Reply::status(404));
    let slow = upstream.gate("/art/slow");
    let jobs = Art::of(&upstream).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    let warm = async |query: &str, key: &str| server.post(&format!("/warm{query}"), json!({"keys": [key]})).await;
    assert_eq!(warm("?wait=true", "art:a").await.ok()["warmed"], 1);
    assert!(redis.get("art:a").await.is_some());
    assert_eq!(warm("?wait=true", "art:a").await.ok()["unchanged"], 1);
    assert_eq!(upstream.calls("/art/a"), 1);
    assert_eq!(warm("?wait=true", "art:none").await.ok()["gone"], 1);
    let bad = warm("?wait=true", "art:bad").await;
    assert!(bad.json()["result"]["failed"][0]["reason"].as_str().unwrap().contains("500"), "{bad:?}");
    bad.problem(502);
    // A plain number counts as seconds.
    for timeout in ["1", "1s", "1000ms"] {
        let late = warm(&format!("?wait=true&timeout={timeout}"), "art:slow").await;
        let failed = &late.json()["result"]["failed"][0];
        assert_eq!(failed["key"], "art:slow");
        assert!(failed["reason"].as_str().unwrap().contains("within 1s"), "{failed}");
        late.problem(504);
    }
    slow.open();
    assert_eq!(warm("", "art:b").await.status, StatusCode::ACCEPTED);
    readable(&redis, "art:b").await;
    assert!(warm("", "elsewhere:b").await.problem(404).contains("no job has the key"));
    assert!(server.post("/warm", json!({"jobs": ["nobody"]})).await.problem(404).contains("no job"));
    assert!(server.post("/warm", json!({})).await.problem(422).contains("names nothing"));
    assert!(warm("?wait=perhaps", "art:b").await.problem(400).contains("wait: write `true` or `false`"));
    assert!(warm("?timeout=5s", "art:b").await.problem(400).contains("no effect without `wait=true`"));
    for (timeout, said) in
        [("0", "between 1s and 10m"), ("11m", "between 1s and 10m"), ("soon", "`soon` is not a time")]
    {
        let refused = warm(&format!("?timeout={timeout}"), "art:b").await.problem(400);
        assert!(refused.contains("`timeout`") && refused.contains(said), "{refused}");
    }
}

#[tokio::test]
async fn a_paused_job_is_fetched_by_no_worker_until_it_is_resumed() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a", "b"]).folder();
    let mut first = Server::start(&redis, &jobs).await.ready().await;
    let mut second = Server::start(&redis, &jobs).await.ready().await;
    for key in ["art:a", "art:b"] {
        readable(&redis, key).await;
    }
    let pause = first.post("/jobs/art/pause", json!({})).await.ok();
    assert_eq!(pause, json!({"job": "art", "paused": true, "changed": true}));
    assert_eq!(second.post("/jobs/art/pause", json!({})).await.ok()["changed"], false);
    assert!(second.get("/jobs/art").await.ok()["paused_ms"].as_i64().unwrap() > 0);
    let parts = Parts::of(&redis).await;
    parts.invalidate("art:a").await;
    parts.invalidate(r#"{"keys": ["art:b"], "action": "evict"}"#).await;
    parts.invalidate(r#"{"keys": ["art:c"], "action": "warm"}"#).await;
    for server in [&mut first, &mut second] {
        server.worker.wait_for_log(&["WARN", "paused", "art"]).await;
    }
    let told = samovar(["jobs"]).redis(&redis).jobs(&jobs).run().await.stdout;
    assert!(told.contains("Paused") && told.contains("art ("), "{told}");
    // An eviction goes through, a refresh is marked, and nothing is fetched.
    assert_eq!(redis.get("art:b").await, None);
    assert!(parts.meta("a").await.unwrap().invalidated.is_some());
    assert!(first.post("/warm?wait=true", json!({"keys": ["art:c"]})).await.problem(409).contains("paused"));
    assert_eq!(upstream.all_requests().len(), 2);
    let resumed = samovar(["resume", "art"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!((resumed.code, resumed.stdout.as_str()), (Some(0), "art is resumed\n"));
    assert_eq!(readable(&redis, "art:c").await["count"], 1);
    eventually("what was invalidated is fetched anew", async || {
        redis.json("art:a").await.is_some_and(|value| value["count"] == 2)
    })
    .await;
    assert_eq!(first.get("/jobs/art").await.ok()["paused_ms"], Value::Null);
    let paused = samovar(["pause", "art"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!(paused.code, Some(0), "{paused:?}");
    assert_eq!(second.post("/jobs/art/resume", json!({})).await.ok()["changed"], true);
    assert!(second.post("/jobs/nobody/pause", json!({})).await.problem(404).contains("nobody"));
    assert_eq!(samovar(["pause", "nobody"]).redis(&redis).jobs(&jobs).run().await.code, Some(1));
}

#[tokio::test]
async fn an_entry_is_shown_with_its_metadata_and_no_foreign_key_is() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["Mona Lisa"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    readable(&redis, "art:Mona Lisa").await;
    redis.set("secret", "1", Duration::from_secs(600)).await;
    let entry = server.get("/entries?key=art:Mona%20Lisa").await.ok();
    assert_eq!((&entry["job"], &entry["value"]["count"]), (&json!("art"), &json!(1)));
    assert_eq!((&entry["written_by_samovar"], &entry["last_outcome"]), (&json!(true), &json!("warmed")));
    assert_eq!(server.get("/entries?key=art:none").await.ok()["value"], Value::Null);
    for key in ["secret", "samovar:marker", "", "%00", "..", "samovar:lease:%7B*%7D:art:a"] {
        server.get(&format!("/entries?key={key}")).await.problem(404);
    }
    server.get("/entries").await.problem(400);
}

#[tokio::test]
async fn a_value_too_long_to_be_shown_is_not_loaded() {
    let (redis, upstream) = both().await;
    let server = Server::start(&redis, &Art::of(&upstream).folder()).await.ready().await;
    redis.ask::<u64>(&["SETRANGE", "art:long", "9000000", "x"]).await;
    assert!(server.get("/entries?key=art:long").await.problem(422).contains("9000001 bytes"));
    redis.ask::<u64>(&["HSET", "art:hash", "a", "b"]).await;
    assert_eq!(server.get("/entries?key=art:hash").await.ok()["value"], Value::Null);
}

#[tokio::test]
async fn an_invalidated_entry_shows_its_rechecks() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"10m\", \"20m\"]").folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    // The first warmup may have fetched it already.
    assert_eq!(server.post("/warm?wait=true", json!({"keys": ["art:a"]})).await.ok()["failed"], json!([]));
    let entry = server.get("/entries?key=art:a").await.ok();
    assert_eq!((&entry["due_for"], &entry["rechecks_ms"]), (&json!("expiry"), &json!([])), "nobody invalidated it");
    upstream.edit("/art/a");
    Parts::of(&redis).await.invalidate("art:a").await;
    version(&redis, "a", 2).await;
    eventually("it is due for its recheck", async || {
        server.get("/entries?key=art:a").await.ok()["due_for"] == json!("recheck")
    })
    .await;
    let entry = server.get("/entries?key=art:a").await.ok();
    let (due, now) = (entry["due_ms"].as_i64().unwrap(), entry["now_ms"].as_i64().unwrap());
    assert!((550_000..=600_000).contains(&(due - now)), "{entry}");
    assert_eq!(entry["rechecks_ms"], json!([due, due + 600_000]));
    let told = samovar(["get", "art:a"]).redis(&redis).jobs(&jobs).run().await.stdout;
    assert!(told.contains("for recheck: ") && told.contains("rechecks      in 9m"), "{told}");
    assert!(told.contains("after the invalidation") && !told.contains("may have been lost"), "{told}");

    redis.flush().await;
    let told = eventually("it is there again, and due for a recheck", async || {
        let told = samovar(["get", "art:a"]).redis(&redis).jobs(&jobs).run().await.stdout;
        if told.contains("for recheck: ") { Ok(told) } else { Err(told) }
    })
    .await;
    assert!(told.contains("may have been lost") && !told.contains("after the invalidation"), "{told}");
}

/// SIGTERM while somebody waits: the answer comes, and the process ends in order.
#[tokio::test]
async fn who_waits_is_answered_when_the_worker_ends() {
    let (redis, upstream) = both().await;
    let gate = upstream.gate("/art/slow");
    let jobs = Art::of(&upstream).folder();
    let mut server = Server::start(&redis, &jobs).await.ready().await;
    let request = server.request(Method::POST, "/warm?wait=true").json(&json!({"keys": ["art:slow"]}));
    let tell = async {
        gate.arrived(1).await;
        server.worker.term();
    };
    let (asked, ()) = tokio::join!(send(request), tell);
    assert!(asked.problem(503).contains("shutting down"));
    let state = server.get("/health/ready").await;
    assert!(state.json()["reasons"].to_string().contains("told to stop"), "{state:?}");
    gate.open();
    assert!(server.worker.wait().await.success());
    assert!(redis.get("art:slow").await.is_some());
}

/// An entry that its worker has taken and that waits for its upstream's limits has no lease yet that could be marked.
#[tokio::test]
async fn an_entry_evicted_while_it_waits_for_a_permit_is_not_fetched() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).limits("concurrency = 1").folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    let gate = upstream.gate("/art/first");
    server.post("/warm", json!({"keys": ["art:first"]})).await.ok();
    gate.arrived(1).await;
    server.post("/warm", json!({"keys": ["art:second"]})).await.ok();
    let parts = Parts::of(&redis).await;
    eventually("it is taken", async || {
        let score = parts.score("second").await;
        score.map(samovar::agenda::Due::from_score).is_some_and(|due| due.state == samovar::agenda::State::Running)
    })
    .await;
    server.delete("/redis/clear?pattern=art:second").await.ok();
    gate.open();
    server.post("/warm?wait=true", json!({"keys": ["art:third"]})).await.ok();
    assert_eq!((upstream.calls("/art/second"), redis.get(art("second").as_str()).await), (0, None));
}

#[tokio::test]
async fn values_under_a_key_of_no_job_are_told_to_be_lost() {
    let (redis, upstream) = both().await;
    let base = Art::of(&upstream).list(["a", "b", "c"]);
    let jobs = base.folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    readable(&redis, "art:c").await;
    jobs.write("art.toml", &base.toml().replace("art:{name}", "work:{name}"));
    server.worker.hangup();
    readable(&redis, "work:a").await;
    let run = async |args: &[&str]| samovar(args).redis(&redis).run().await;
    let dry = async |args: &[&str]| run(&[&["invalidate", "--dry-run"], args].concat()).await.stdout;
    eventually("the fleet knows the new key", async || match dry(&["art:a"]).await {
        told if told.starts_with("It concerns no entry of a job.\n1 value of no job is removed") => Ok(()),
        told => Err(told),
    })
    .await;
    let told = dry(&["--pattern", "*:a", "--evict"]).await;
    assert!(told.contains("1 entry of art") && told.contains("1 value of no job is removed"), "{told}");
    let told = dry(&["--job", "art", "art:a", "art:b"]).await;
    assert!(told.contains("3 entries of art") && told.contains("2 values of no job are removed"), "{told}");
    let (named, over_http) = (json!({"keys": ["art:a"]}), "/invalidate?dry_run=true");
    assert_eq!(server.post(over_http, named.clone()).await.ok()["unowned"], 1);
    assert_eq!(server.post("/invalidate?dry_run=true", json!({"keys": ["work:a"]})).await.ok()["unowned"], json!(null));

    let kept = run(&["get", "art:a"]).await.stdout;
    assert!(kept.contains("nothing makes the value anew") && !kept.contains("samovar warm"), "{kept}");
    assert_eq!(server.post("/invalidate", named).await.ok()["unowned"], 1);
    let lost = run(&["invalidate", "art:b"]).await;
    assert!(lost.code == Some(0) && lost.stderr.contains("1 value of no job is removed"), "{lost:?}");
    eventually("they are removed", async || redis.keys("art:*").await == ["art:c"]).await;
    let absent = run(&["get", "art:a"]).await.stdout;
    assert!(absent.contains("not fetched again, as no job has the key"), "{absent}");
    assert!(!absent.contains("samovar warm"), "{absent}");
    let lost: Value = serde_json::from_str(&run(&["invalidate", "art:c", "--json"]).await.stdout).unwrap();
    assert_eq!(lost["unowned"], 1, "{lost}");
}
