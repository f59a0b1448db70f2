//! Commands ask Redis what the fleet knows of its jobs: they need no job files and no secrets.
use std::time::Duration;

use crate::support::{
    Art, Finished, JobsFolder, Parts, Reply, Samovar, TestRedis, Upstream, WorkerProcess, both, eventually,
    hasty_worker, readable, samovar, talkative, worker,
};
use samovar::entry::EntryKey;
use samovar::store::Removal;
use serde_json::{Value, json};

const FEED: &str = "feed = { upstream = \"museum\", path = \"/popular\", select = \"/names\" }";
const KEY: &str = "headers = { X-Key = \"{{ env.APP_KEY }}\" }";

/// A machine on which commands run.
type Place<'a> = dyn Fn(&[&str]) -> Samovar + 'a;

/// A command on another machine: without job files and their secrets.
fn elsewhere(redis: &TestRedis, args: &[&str]) -> Samovar {
    samovar(args).redis(redis).env("SAMOVAR_JOBS", "/nowhere")
}

async fn run(redis: &TestRedis, args: &[&str]) -> Finished {
    elsewhere(redis, args).run().await
}

/// Waits until a worker has described a job.
async fn described(redis: &TestRedis, job: &str) -> Value {
    eventually(&format!("{job} is described"), async || {
        let text: Option<String> = redis.ask(&["HGET", "samovar:jobs", job]).await;
        text.and_then(|text| serde_json::from_str(&text).ok())
    })
    .await
}

/// Returns all jobs as `samovar jobs --json` shows them elsewhere; none before a worker has described them.
async fn jobs(redis: &TestRedis) -> Vec<Value> {
    let shown = run(redis, &["jobs", "--json"]).await;
    serde_json::from_str(&shown.stdout).unwrap_or_default()
}

/// Waits until a job has this TTL elsewhere.
async fn has_ttl(redis: &TestRedis, seconds: u64) {
    eventually(&format!("the TTL is {seconds} s"), async || {
        let all = jobs(redis).await;
        let art = all.iter().find(|job| job["job"] == "art").cloned();
        if art.as_ref().is_some_and(|art| art["ttl_seconds"] == seconds) { Ok(()) } else { Err(all) }
    })
    .await;
}

fn upstreams(jobs: &JobsFolder) -> String {
    std::fs::read_to_string(jobs.path().join("upstreams.toml")).unwrap()
}

fn with_secret(redis: &TestRedis, jobs: &JobsFolder) -> WorkerProcess {
    talkative(redis, jobs).env("APP_KEY", "hunter22").spawn()
}

#[tokio::test]
async fn commands_need_neither_job_files_nor_secrets() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a", "x*"]).limits(KEY).folder();
    let _worker = with_secret(&redis, &jobs);
    readable(&redis, "a").await;
    described(&redis, "art").await;
    eventually("the list is there", async || redis.keys("samovar:list:*").await.len() == 1).await;
    let broken = JobsFolder::new().job("art", "this is no TOML");
    let same = jobs;
    let places: [&Place<'_>; 3] = [
        &|args| elsewhere(&redis, args),
        &|args| samovar(args).redis(&redis).jobs(&broken),
        // The secret is not set.
        &|args| samovar(args).redis(&redis).jobs(&same),
    ];
    for place in places {
        for args in [
            &["jobs"][..],
            &["get", "art:a"],
            &["dead"],
            &["dead", "--retry", "art"],
            &["pause", "art"],
            &["resume", "art"],
            &["warm", "art:a", "--wait"],
            &["warm", "art:x*"],
            &["warm", "art"],
            &["warm", "art", "--dry-run"],
            &["invalidate", "art:a"],
            &["invalidate", "--job", "art"],
        ] {
            let done = place(args).run().await;
            assert_eq!((done.code, &*done.stderr), (Some(0), ""), "{args:?}: {done:?}");
        }
        let due: Value = serde_json::from_str(&place(&["warm", "art", "--json"]).run().await.stdout).unwrap();
        assert_eq!(due["due"], 2, "{due}");
        for args in [
            &["invalidate", "arts:a"][..],
            &["pause", "arts"],
            &["resume", "arts"],
            &["gone", "arts"],
            &["warm", "arts"],
            &["warm", "art:y*"],
            &["dead", "arts"],
            &["watch", "--job", "arts"],
        ] {
            assert_eq!(place(args).run().await.code, Some(1), "{args:?}");
        }
        let watch = place(&["watch", "--job", "art"]).spawn();
        eventually("it shows what is warmed", async || {
            redis.publish("samovar:invalidate", "art:a").await;
            watch.printed().iter().any(|line| line.contains("art:a"))
        })
        .await;
        assert_eq!(place(&["check"]).run().await.code, Some(78), "check reads files");
    }
    let known: Vec<String> = redis.ask(&["HGETALL", "samovar:jobs"]).await;
    assert!(!known.join(" ").contains("hunter22"), "{known:?}");
}

#[tokio::test]
async fn before_the_first_worker_commands_read_job_files() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    for args in [&["jobs"][..], &["get", "art:a"], &["pause", "art"], &["resume", "art"], &["warm", "art"], &["dead"]] {
        let done = samovar(args).redis(&redis).jobs(&jobs).run().await;
        assert_ne!(done.code, Some(78), "{args:?}: {done:?}");
        let failed = run(&redis, args).await;
        assert_eq!(failed.code, Some(78), "{args:?}: {failed:?}");
        for said in ["no worker has described its jobs in Redis", "/nowhere"] {
            assert!(failed.stderr.contains(said), "{args:?}: {failed:?}");
        }
    }
}

#[tokio::test]
async fn the_worker_that_started_last_describes_the_jobs() {
    let (redis, upstream) = both().await;
    let (old, new) = (Art::of(&upstream).folder(), Art::of(&upstream).ttl("2h").folder());
    let first = worker(&redis, &old);
    has_ttl(&redis, 3_600).await;
    let mut second = worker(&redis, &new);
    has_ttl(&redis, 7_200).await;
    let since = described(&redis, "art").await["since_ms"].clone();
    // The old one runs on, and both describe what is lost.
    redis.flush().await;
    eventually("it is the last one's again", async || {
        let text: Option<String> = redis.ask(&["HGET", "samovar:jobs", "art"]).await;
        text.is_some_and(|text| serde_json::from_str::<Value>(&text).unwrap()["since_ms"] == since)
    })
    .await;
    has_ttl(&redis, 7_200).await;
    // A rollback is a start, too.
    second.kill9();
    let _third = worker(&redis, &old);
    has_ttl(&redis, 3_600).await;
    drop(first);
}

#[tokio::test]
async fn a_canary_that_has_ended_describes_nothing_any_more() {
    let (redis, upstream) = both().await;
    let list = |art: Art, name: &str| art.list([name]).warm("every = \"366d\"").folder();
    let (old, new) = (list(Art::of(&upstream), "a"), list(Art::of(&upstream).ttl("2h"), "b"));
    let listed = async || redis.ask::<Vec<String>>(&["HVALS", "samovar:list:{art}"]).await.concat();
    let (_first, _second) = (hasty_worker(&redis, &old), hasty_worker(&redis, &old));
    has_ttl(&redis, 3_600).await;
    let canary = hasty_worker(&redis, &new);
    has_ttl(&redis, 7_200).await;
    eventually("its list is there", async || listed().await.contains("art:b")).await;
    drop(canary);
    has_ttl(&redis, 3_600).await;
    eventually("the list is the old one", async || listed().await.contains("art:a")).await;
    assert!(!listed().await.contains("art:b"));
}

#[tokio::test]
async fn a_canary_that_has_ended_owns_no_key_of_another_job() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let old = Art::of(&upstream).folder();
    let renamed = JobsFolder::new().upstreams(&upstreams(&old)).job("works", &Art::of(&upstream).toml());
    let _first = worker(&redis, &old);
    described(&redis, "art").await;
    let canary = worker(&redis, &renamed);
    let owner = async |name: &str| {
        eventually(&format!("{name} owns the key"), async || {
            let warmed = run(&redis, &["warm", "art:a", "--json"]).await;
            let shown: Value = serde_json::from_str(&warmed.stdout).unwrap_or_default();
            if shown["job"] == name { Ok(()) } else { Err(warmed) }
        })
        .await;
    };
    owner("works").await;
    drop(canary);
    owner("art").await;
}

#[tokio::test]
async fn descriptions_that_did_not_change_are_not_sent_again() {
    let (redis, upstream) = both().await;
    let folder = Art::of(&upstream).folder();
    redis.ask::<()>(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]).await;
    redis.ask::<()>(&["CONFIG", "SET", "slowlog-max-len", "100000"]).await;
    let (_first, _second) = (worker(&redis, &folder), worker(&redis, &folder));
    eventually("workers compare a digest only", async || {
        let log: Vec<redis::Value> = redis.ask(&["SLOWLOG", "GET", "-1"]).await;
        let calls = log.iter().filter_map(|call| match call {
            redis::Value::Array(call) => redis::from_redis_value::<Vec<Vec<u8>>>(call.get(3)?.clone()).ok(),
            _ => None,
        });
        // A digest is asked for without arguments; descriptions are sent with the publisher's time and their jobs. On
        // a Cluster, each call has one argument more.
        let calls = calls.filter(|call| call.get(3).is_some_and(|key| key == b"samovar:jobs"));
        let (digests, sent): (Vec<_>, Vec<_>) =
            calls.partition(|call| call.len() == 4 + usize::from(redis.is_cluster()));
        if digests.len() >= sent.len() + 2 { Ok(()) } else { Err((digests.len(), sent.len())) }
    })
    .await;
}

#[tokio::test]
async fn a_job_that_no_worker_knows_any_more_is_told() {
    let (redis, upstream) = both().await;
    let poem = Art::of(&upstream).warm("every = \"1h\"").toml().replace("art:{name}", "poem:{name}");
    let both_jobs = Art::of(&upstream).folder().job("poem", &poem);
    let first = worker(&redis, &both_jobs);
    described(&redis, "poem").await;
    let told = run(&redis, &["jobs"]).await.stdout;
    assert!(!told.contains("No running worker knows"), "{told}");
    std::fs::remove_file(both_jobs.path().join("poem.toml")).unwrap();
    first.hangup();
    eventually("it is told", async || {
        let told = run(&redis, &["jobs"]).await.stdout;
        if told.contains("No running worker knows poem: its file was removed") { Ok(()) } else { Err(told) }
    })
    .await;
    let all = jobs(&redis).await;
    let faults = |name: &str| all.iter().find(|job| job["job"] == name).unwrap()["faults"].to_string();
    assert!(faults("poem").contains("no running worker knows"), "{all:?}");
    assert_eq!(faults("art"), "null", "{all:?}");
    let poem = all.iter().find(|job| job["job"] == "poem").unwrap();
    assert_eq!(poem["next_warmup_ms"], Value::Null, "nobody warms it up: {poem}");
    for args in [&["warm", "poem"][..], &["warm", "poem:a"], &["warm", "poem:a", "--wait"]] {
        let warmed = run(&redis, args).await;
        assert_eq!((warmed.code, &*warmed.stdout), (Some(1), ""), "{warmed:?}");
        assert!(warmed.stderr.contains("No running worker knows poem"), "{warmed:?}");
    }
    assert!(run(&redis, &["warm", "art:a"]).await.stderr.is_empty());
    for (key, is_left) in [("poem:a", true), ("art:a", false), ("nobody:a", false)] {
        let text = run(&redis, &["get", key]).await.stdout;
        let json = run(&redis, &["get", key, "--json"]).await.stdout;
        assert_eq!(text.contains("no running worker knows the job"), is_left, "{text}");
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["job_is_left"], is_left, "{json}");
    }
    let paused = run(&redis, &["pause", "poem"]).await;
    assert_eq!(paused.code, Some(0), "{paused:?}");
    assert!(paused.stderr.contains("No running worker knows poem"), "{paused:?}");
    // Its workers may only be restarting.
    let published = run(&redis, &["invalidate", "--job", "poem", "--job", "art"]).await;
    assert_eq!(published.code, Some(0), "{published:?}");
}

#[tokio::test]
async fn absent_entries_are_told_with_their_reasons() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    upstream.on("/art/b", Reply::status(404));
    upstream.on("/art/c", Reply::status(400));
    let names: Vec<String> = ["a", "b", "c"].map(str::to_owned).into_iter().collect();
    let folder = Art::of(&upstream).list(&names).warm("attempts = 1").folder();
    let _worker = worker(&redis, &folder);
    readable(&redis, "a").await;
    described(&redis, "art").await;
    let absent = ["jobs", "art", "--absent"];
    let page = eventually("all were tried", async || {
        let text = run(&redis, &[&absent[..], &["--json"]].concat()).await.stdout;
        let page: Value = serde_json::from_str(&text).unwrap_or_default();
        let is_over = page["absent"].as_array().is_some_and(|all| {
            all.len() == 2
                && all.iter().all(|one| !one["reason"].as_str().unwrap().contains("fetched"))
                && all[1]["reason"].as_str().unwrap().starts_with("dead letter: ")
        });
        if is_over { Ok(page) } else { Err(text) }
    })
    .await;
    assert_eq!((&page["wanted"], &page["total"]), (&json!(3), &json!(2)), "{page}");
    let one = run(&redis, &["jobs", "art"]).await.stdout.replace('\n', " ");
    assert!(
        one.contains("2 of 3 entries that art keeps warm have no value. `samovar jobs art --absent` lists"),
        "{one}"
    );
    assert_eq!(page["absent"][0], json!({"key": "art:b", "reason": "gone"}), "{page}");
    let shown = run(&redis, &absent).await.stdout;
    assert!(
        shown.starts_with("2 of 3 entries that art keeps warm have no value.\nart:b  gone\nart:c  dead"),
        "{shown}"
    );
    let rest = run(&redis, &[&absent[..], &["--from", "art:b"]].concat()).await.stdout;
    assert!(!rest.contains("art:b  gone") && rest.contains("art:c  dead letter"), "{rest}");
    let art = &jobs(&redis).await[0];
    assert_eq!((&art["warm"], &art["wanted"]), (&json!(1), &json!(3)), "{art}");
    assert!(run(&redis, &["jobs"]).await.stdout.contains("WANTED"));
    run(&redis, &["invalidate", "art:a", "--evict"]).await;
    // Its refresh would come in its time.
    redis.ask::<u8>(&["ZREM", "samovar:agenda:{art}", "art:a"]).await;
    eventually("an evicted entry is told", async || {
        let shown = run(&redis, &absent).await.stdout;
        if shown.contains("art:a  not due, and its job has no schedule: `samovar warm 'art:a'`") {
            Ok(())
        } else {
            Err(shown)
        }
    })
    .await;
    run(&redis, &["pause", "art"]).await;
    assert!(run(&redis, &absent).await.stdout.contains("art:b  its job is paused"));
    assert_eq!(run(&redis, &["jobs", "arts", "--absent"]).await.code, Some(1));
}

#[tokio::test]
async fn a_renamed_job_is_told_in_a_short_line() {
    let (redis, upstream) = both().await;
    let poem = Art::of(&upstream).toml().replace("art:{name}", "poem:{name}");
    let folder = Art::of(&upstream).folder().job("poem", &poem);
    let first = worker(&redis, &folder);
    described(&redis, "poem").await;
    std::fs::rename(folder.path().join("poem.toml"), folder.path().join("verse.toml")).unwrap();
    first.hangup();
    eventually("it is told", async || {
        let told = run(&redis, &["jobs"]).await.stdout;
        if told.contains("\npoem was renamed: verse has its values.\n") { Ok(()) } else { Err(told) }
    })
    .await;
    assert!(jobs(&redis).await.iter().all(|job| job["faults"].is_null()), "it is no fault");
    let refused = run(&redis, &["invalidate", "--job", "poem", "--job", "art"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let said = "no running worker knows the job `poem`, which was renamed to `verse`";
    assert!(refused.stderr.contains(said), "{refused:?}");
    let forced = run(&redis, &["invalidate", "--job", "poem", "--force"]).await;
    assert_eq!(forced.code, Some(0), "{forced:?}");
}

#[tokio::test]
async fn a_reload_that_has_not_reached_all_workers_is_no_fault() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let folder = Art::of(&upstream).list(["a"]).folder();
    let (first, _second) = (worker(&redis, &folder), worker(&redis, &folder));
    readable(&redis, "a").await;
    eventually("both announce their files", async || {
        redis.ask::<usize>(&["HLEN", "samovar:{schedules}:files"]).await == 2
    })
    .await;
    folder.write("art.toml", &Art::of(&upstream).list(["a"]).toml().replace("/art/", "/arts/"));
    first.hangup();
    eventually("the change waits", async || {
        let told = run(&redis, &["jobs"]).await.stdout;
        assert!(!told.contains("Fault:"), "{told}");
        if told.contains("The change of art waits for workers with the old file:") { Ok(()) } else { Err(told) }
    })
    .await;
    assert_eq!(jobs(&redis).await[0]["faults"], Value::Null);
}

#[tokio::test]
async fn a_guard_that_cannot_be_read_is_told_alone() {
    let (redis, upstream) = both().await;
    let poem = Art::of(&upstream).toml().replace("art:{name}", "poem:{name}");
    let folder = Art::of(&upstream).folder().job("poem", &poem);
    let _worker = worker(&redis, &folder);
    described(&redis, "poem").await;
    let now = Parts::of(&redis).await.now().await.as_millis();
    let (since, until) = ((now - 1).to_string(), (now + 600_000).to_string());
    let guard = ["since", &since, "until", &until, "gone", "10", "of", "20", "held", "5"];
    let set: Vec<&str> = ["HSET", "samovar:gone:{poem}"].into_iter().chain(guard).collect();
    redis.ask::<u64>(&set).await;
    for key in ["samovar:gone:{art}", "samovar:dead:{poem}"] {
        redis.ask::<()>(&["SET", key, "theirs"]).await;
    }
    let shown = run(&redis, &["gone"]).await;
    assert!(shown.code == Some(1) && shown.stdout.contains("Removals of poem: held back for another"), "{shown:?}");
    assert!(shown.stderr.contains("the guard of art, samovar:gone:{art}, cannot be read"), "{shown:?}");
    let shown = run(&redis, &["gone", "art"]).await;
    assert!(shown.code == Some(1) && shown.stderr.contains("the guard of art, samovar:gone:{art}"), "{shown:?}");
    let shown = run(&redis, &["gone", "--json"]).await;
    assert!(shown.stdout.contains("\"poem\"") && !shown.stdout.contains("\"art\""), "{shown:?}");
    let accepted = run(&redis, &["gone", "poem", "--accept"]).await;
    assert!(accepted.code == Some(0) && accepted.stdout.contains("0 entries are asked for again"), "{accepted:?}");
}

#[tokio::test]
async fn descriptions_that_cannot_be_read_are_told_and_replaced() {
    let (redis, upstream) = both().await;
    let folder = Art::of(&upstream).folder();
    let later = json!({"job": "later", "key": "later:{x}", "since_ms": 1, "new": {"field": []}}).to_string();
    redis.ask::<u64>(&["HSET", "samovar:jobs", "art", "gar\x1bbage", "later", &later, "huge", "{}"]).await;
    let shown = run(&redis, &["jobs"]).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stdout.contains("later:{x}"), "{shown:?}");
    for name in ["art", "huge"] {
        let said = format!("the description of the job `{name}` in Redis cannot be read");
        assert!(shown.stderr.contains(&said) && !shown.stderr.contains('\x1b'), "{shown:?}");
    }
    let first = worker(&redis, &folder);
    has_ttl(&redis, 3_600).await;
    drop(first);
    redis.ask::<u64>(&["DEL", "samovar:jobs"]).await;
    redis.set("samovar:jobs", "a stranger's", Duration::from_secs(600)).await;
    let failed = run(&redis, &["jobs"]).await;
    assert_eq!(failed.code, Some(78), "{failed:?}");
    for said in ["the descriptions of jobs in Redis cannot be read", "/nowhere"] {
        assert!(failed.stderr.contains(said), "{failed:?}");
    }
    let _second = worker(&redis, &folder);
    readable_from_files(&redis, &folder).await;
    redis.ask::<u64>(&["DEL", "samovar:jobs"]).await;
    has_ttl(&redis, 3_600).await;
}

async fn readable_from_files(redis: &TestRedis, jobs: &JobsFolder) {
    let shown = samovar(["jobs"]).redis(redis).jobs(jobs).run().await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stdout.contains("art:{name}") && shown.stdout.contains("samovar:jobs"), "{shown:?}");
}

#[tokio::test]
async fn a_renamed_job_owns_its_keys_by_its_new_name() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let folder = Art::of(&upstream).folder();
    let first = worker(&redis, &folder);
    described(&redis, "art").await;
    drop(first);
    let renamed = Art::of(&upstream).folder().job("works", &Art::of(&upstream).toml());
    std::fs::remove_file(renamed.path().join("art.toml")).unwrap();
    let _second = worker(&redis, &renamed);
    described(&redis, "works").await;
    let warmed = run(&redis, &["warm", "art:a", "--wait"]).await;
    assert_eq!(warmed.code, Some(0), "{warmed:?}");
    let shown: Value = serde_json::from_str(&run(&redis, &["get", "art:a", "--json"]).await.stdout).unwrap();
    assert_eq!(shown["job"], "works");
}

/// And is not written again by each worker that starts.
#[tokio::test]
async fn a_long_list_is_published_and_warmed() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let art = Art::of(&upstream).list((0..20_000).map(|n| format!("Kaplumbağa {n}"))).warm("every = \"366d\"");
    let folder = art.folder();
    let _paused: () = redis.ask(&["SET", "samovar:paused:{art}", "1"]).await;
    let first = worker(&redis, &folder);
    eventually("the list is there", async || redis.keys("samovar:list:{art}").await.len() == 1).await;
    let due: Value = serde_json::from_str(&run(&redis, &["warm", "art", "--json"]).await.stdout).unwrap();
    assert_eq!(due["due"], 20_000, "{due}");
    let most: u64 = redis.ask(&["HSTRLEN", "samovar:jobs", "art"]).await;
    assert!(most < 1_000, "the list is no part of the description, which has {most} bytes");
    drop(first);
    redis.ask::<u64>(&["HSET", "samovar:list:{art}", "zz", "[\"art:kept\"]"]).await;
    let since = described(&redis, "art").await["since_ms"].clone();
    let second = worker(&redis, &folder);
    let republished = async || described(&redis, "art").await["since_ms"] != since;
    eventually("another worker is in charge", republished).await;
    assert_eq!(redis.ask::<Vec<String>>(&["HMGET", "samovar:list:{art}", "zz"]).await, ["[\"art:kept\"]"]);
    drop(second);
    // A list that became empty goes.
    let unlisted = Art::of(&upstream).folder();
    let _third = worker(&redis, &unlisted);
    eventually("it is gone", async || redis.keys("samovar:list:*").await.is_empty()).await;
}

async fn feed_of(upstream: &Upstream, names: &[&str]) {
    upstream.on("/popular", Reply::json(json!({ "names": names })));
}

#[tokio::test]
async fn warming_a_job_has_a_worker_ask_its_feed() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let folder = Art::of(&upstream).entries(FEED).limits(KEY).warm("every = \"366d\"").folder();
    // The first answer is a former one: it is held back until the job is warmed.
    feed_of(&upstream, &["a"]).await;
    let gate = upstream.gate("/popular");
    let _worker = with_secret(&redis, &folder);
    gate.arrived(1).await;
    described(&redis, "art").await;
    feed_of(&upstream, &["a", "b"]).await;
    let warmed: Value = serde_json::from_str(&run(&redis, &["warm", "art", "--json"]).await.stdout).unwrap();
    assert_eq!((&warmed["due"], &warmed["asks_feed"]), (&json!(0), &json!(true)), "{warmed}");
    gate.open();
    readable(&redis, "b").await;
    let ended = async || {
        let next: Option<f64> = redis.ask(&["ZSCORE", "samovar:{schedules}", "art"]).await;
        let ticks: u64 = redis.ask(&["HLEN", "samovar:{schedules}:ticks"]).await;
        let now = Parts::of(&redis).await.now().await.as_millis();
        #[expect(clippy::cast_possible_truncation, reason = "a time in ms")]
        let is_next = next.is_some_and(|next| next as i64 > now + 3_600_000);
        if is_next && ticks == 0 { Ok(()) } else { Err((next, ticks)) }
    };
    eventually("the warmup has ended, and the next is scheduled", ended).await;
    assert!(upstream.requests("/popular").iter().all(|call| call.header("x-key") == "hunter22"));
    feed_of(&upstream, &["c"]).await;
    let warmed = run(&redis, &["warm", "art"]).await;
    assert!(warmed.stdout.contains("2 entries of art due now; a worker asks its feed"), "{warmed:?}");
    readable(&redis, "c").await;
    eventually("the warmup has ended again", ended).await;
    let asked = upstream.calls("/popular");
    let one = run(&redis, &["warm", "art:a", "--wait"]).await;
    assert_eq!((one.code, upstream.calls("/popular")), (Some(0), asked), "{one:?}");
}

/// `samovar warm` must not starve the warmup of a job whose feed takes longer than the time between two calls.
#[tokio::test]
async fn warming_a_job_uses_the_answer_that_its_feed_prepares() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let folder = Art::of(&upstream).entries(FEED).limits(KEY).warm("every = \"366d\"").folder();
    feed_of(&upstream, &["a"]).await;
    let gate = upstream.gate("/popular");
    let _worker = with_secret(&redis, &folder);
    gate.arrived(1).await;
    described(&redis, "art").await;
    // It names the first as well, which is else fetched only if that comes before the second answer.
    feed_of(&upstream, &["a", "b"]).await;
    for _ in 0..2 {
        let warmed = run(&redis, &["warm", "art"]).await;
        assert_eq!(warmed.code, Some(0), "{warmed:?}");
    }
    gate.open();
    readable(&redis, "a").await;
    readable(&redis, "b").await;
    eventually("no warmup is left", async || redis.ask::<usize>(&["HLEN", "samovar:{schedules}:ticks"]).await == 0)
        .await;
    assert_eq!(upstream.calls("/popular"), 2, "one more warmup follows, for both calls");
}

#[tokio::test]
async fn a_dry_run_counts_ai_calls_by_the_prompts_or_at_most() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| {
        Reply::json(json!({
            "choices": [{"message": {"content": "Story"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }))
    });
    let story = |prompt: &str| {
        format!(
            "key = \"story:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"ai\"\nupstream = \"museum\"\n\
             model = \"tiny\"\nprompt = \"{prompt} {{{{ name }}}}\"\n[entries]\nlist = [\"a\", \"b\"]\n"
        )
    };
    let folder = Art::of(&upstream).limits(KEY).folder().job("story", &story("Tell of"));
    let _worker = with_secret(&redis, &folder);
    eventually("both are there", async || redis.keys("story:*").await.len() == 2).await;
    described(&redis, "story").await;
    let args = ["warm", "story", "--dry-run"];
    let exact = samovar(args).redis(&redis).jobs(&folder).env("APP_KEY", "x").run().await;
    assert!(exact.stdout.contains(", 0 AI calls") && exact.stderr.is_empty(), "{exact:?}");
    let args_json = ["warm", "story", "--dry-run", "--json"];
    let exact = samovar(args_json).redis(&redis).jobs(&folder).env("APP_KEY", "x");
    for (place, calls, at_most) in [(exact, 0, false), (elsewhere(&redis, &args_json), 2, true)] {
        let shown = place.run().await.stdout;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!((&shown["ai_calls"], &shown["at_most"]), (&json!(calls), &json!(at_most)), "{shown}");
        assert_eq!(shown["notes"].to_string().contains("counts as an AI call"), at_most, "{shown}");
    }
    let other = Art::of(&upstream).folder().job("story", &story("Sing of"));
    let (unset, changed) = (samovar(args).redis(&redis).jobs(&folder), samovar(args).redis(&redis).jobs(&other));
    for (place, why) in [(elsewhere(&redis, &args), "/nowhere"), (unset, "APP_KEY"), (changed, "another than")] {
        let bound = place.run().await;
        assert_eq!(bound.code, Some(0), "{bound:?}");
        assert!(bound.stdout.contains("at most 2 AI calls"), "{bound:?}");
        let said = bound.stderr.contains("every entry of story counts as an AI call") && bound.stderr.contains(why);
        assert!(said, "{why}: {bound:?}");
    }
}

#[tokio::test]
async fn a_dry_run_counts_what_an_invalidation_would_take() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| {
        Reply::json(json!({ "choices": [{"message": {"content": "Story"}, "finish_reason": "stop"}] }))
    });
    let story = "key = \"story:{name}\"\nttl = \"1h\"\ntags = [\"of:{{ name }}\"]\n\
                 [inputs]\nart = \"art:{name}\"\n[source]\nkind = \"ai\"\nupstream = \"museum\"\n\
                 model = \"tiny\"\nprompt = \"Tell of {{ name }}\"\n[entries]\nlist = [\"a\", \"b\"]\n";
    let jobs = Art::of(&upstream).list(["a", "b"]).folder().job("story", story);
    let _worker = worker(&redis, &jobs);
    eventually("all are there", async || redis.keys("story:*").await.len() + redis.keys("art:*").await.len() == 4)
        .await;
    described(&redis, "story").await;
    let asked = upstream.calls("/art/a");
    let dry = async |args: &[&str]| {
        let args: Vec<&str> = ["invalidate", "--dry-run"].into_iter().chain(args.iter().copied()).collect();
        let done = elsewhere(&redis, &args).run().await;
        assert_eq!(done.code, Some(0), "{done:?}");
        done.stdout
    };
    for (args, said) in [
        (&["art:a"][..], "1 entry of art: 1 fetch, 0 AI calls\nEntries made from these come in addition"),
        (&["story:a", "--pattern", "story:*"], "2 entries of story: 0 fetches, 2 AI calls\n"),
        (&["--tag", "of:a"], "1 entry of story: 0 fetches, 1 AI call\n"),
        (
            &["--job", "art", "--evict"],
            "removed at once. What warmups and demands would fetch anew, at most:\n2 entries",
        ),
        (&["art:c", "art:a", "--warm"], "1 entry of art: 1 fetch,"),
        (&["art:c"], "It concerns no entry.\n"),
    ] {
        let told = dry(args).await;
        assert!(told.contains(said), "{args:?}: {told}");
    }
    let shown: Value = serde_json::from_str(&dry(&["--pattern", "*:a", "--json"]).await).unwrap();
    let (art, story) = (&shown["jobs"]["art"], &shown["jobs"]["story"]);
    assert_eq!((&art["entries"], &art["fetches"], &story["ai_calls"]), (&json!(1), &json!(1), &json!(1)), "{shown}");
    assert_eq!(shown["dependants"], json!(["story"]), "{shown}");
    assert_eq!(elsewhere(&redis, &["invalidate", "arts:a", "--dry-run"]).run().await.code, Some(1));
    let entry: Value =
        serde_json::from_str(&elsewhere(&redis, &["get", "art:a", "--json"]).run().await.stdout).unwrap();
    assert_eq!((&entry["invalidated_ms"], upstream.calls("/art/a")), (&Value::Null, asked), "nothing is published");
}

#[tokio::test]
async fn a_dry_run_counts_absent_entries_that_are_kept_warm() {
    let (redis, upstream) = both().await;
    upstream.publish("/popular", json!({"names": ["fed"]}));
    upstream.edit("/art/fed");
    let jobs = Art::of(&upstream).entries(FEED).folder();
    let worker = worker(&redis, &jobs);
    readable(&redis, "fed").await;
    described(&redis, "art").await;
    drop(worker);
    let dry = async |key: &str| {
        let done = elsewhere(&redis, &["invalidate", "--dry-run", key]).run().await;
        assert_eq!(done.code, Some(0), "{done:?}");
        done.stdout
    };
    redis.ask::<u8>(&["DEL", "art:fed"]).await;
    for meta in redis.keys("samovar:meta:*").await {
        redis.ask::<u8>(&["DEL", &meta]).await;
    }
    assert!(dry("art:fed").await.contains("1 entry of art: 1 fetch,"));
    // Of this one only an invalidation is known, and nothing keeps it warm.
    let parts = Parts::of(&redis).await;
    let (key, now) = (EntryKey::new("art:other"), parts.now().await);
    parts.store.invalidate(&key, now, Removal::Evict).await.unwrap();
    assert_eq!(redis.keys("samovar:meta:*").await.len(), 1);
    assert_eq!(dry("art:other").await, "It concerns no entry.\n");
}

#[tokio::test]
async fn what_is_refused_is_told_as_json_to_programs() {
    let (redis, upstream) = both().await;
    let folder = Art::of(&upstream).folder();
    for args in [
        &["warm", "arts"][..],
        &["warm", "art:*"],
        &["invalidate", "arts:a"],
        &["invalidate", "art:*"],
        &["invalidate", "--tag", ""],
        &["dead", "arts"],
        &["gone", "arts"],
        &["gone", "art", "--hold"],
        &["watch", "--job", "arts"],
        &["health"],
    ] {
        let refuse = async |more: &[&str]| {
            let refused = samovar([args, more].concat()).redis(&redis).jobs(&folder).run().await;
            // A name that the fleet does not know is no fault of the command line.
            let code = if args.contains(&"--tag") { 2 } else { 1 };
            assert_eq!(refused.code, Some(code), "{args:?}: {refused:?}");
            refused
        };
        let (text, json) = (refuse(&[]).await, refuse(&["--json"]).await);
        let error: Value = serde_json::from_str(&json.stdout).unwrap_or_else(|e| panic!("{e}: {json:?}"));
        assert_eq!((&*text.stdout, &*json.stderr), ("", ""), "{args:?}");
        assert_eq!(format!("samovar: {}\n", error["error"].as_str().unwrap()), text.stderr, "{args:?}");
    }
}

#[tokio::test]
async fn variables_of_the_workers_job_files_are_no_misspelt_settings() {
    let (redis, upstream) = both().await;
    let folder = Art::of(&upstream).limits("headers = { X-Key = \"{{ env.SAMOVAR_TOKENS }}\" }").folder();
    let _worker = talkative(&redis, &folder).env("SAMOVAR_TOKENS", "hunter22").spawn();
    described(&redis, "art").await;
    let shown = elsewhere(&redis, &["jobs"]).env("SAMOVAR_TOKENS", "x").env("SAMOVAR_TOKNE", "x").run().await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stderr.contains("SAMOVAR_TOKNE is no setting"), "{shown:?}");
    assert!(!shown.stderr.contains("SAMOVAR_TOKENS"), "{shown:?}");
}
