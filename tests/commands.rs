//! Commands: what they refuse, what they say about it, and what a demand of an absent entry costs.
use std::time::Duration;

use crate::support::{
    Art, Finished, JobsFolder, Parts, Reply, TestRedis, at_rest, both, eventually, readable, readable_key, samovar,
    talkative, worker,
};
use samovar::entry::{EntryKey, Outcome};
use samovar::store::{Fresh, LastAttempt, Leased};
use serde_json::{Value, json};

async fn run(redis: &TestRedis, jobs: &JobsFolder, args: &[&str]) -> Finished {
    samovar(args).redis(redis).jobs(jobs).run().await
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap()
}

async fn get(url: &str) -> String {
    client().get(url).send().await.unwrap().text().await.unwrap()
}

async fn messages(redis: &TestRedis) -> u64 {
    redis.ask(&["XLEN", "samovar:inbox"]).await
}

#[tokio::test]
async fn a_key_like_a_pattern_is_not_warmed_by_mistake() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a", "x*"]).folder();
    for key in ["art:*", "art:a*?", "art:[ab]"] {
        for args in [&["warm", key][..], &["warm", key, "--dry-run"]] {
            let refused = run(&redis, &jobs, args).await;
            assert_eq!(refused.code, Some(1), "{args:?}: {refused:?}");
            for said in ["literal key", "`samovar warm art`", &format!("--pattern '{key}'"), "--force"] {
                assert!(refused.stderr.contains(said), "{args:?}: {said}: {refused:?}");
            }
        }
        let refused = run(&redis, &jobs, &["invalidate", key]).await;
        assert_eq!((refused.code, messages(&redis).await), (Some(1), 0), "{refused:?}");
        assert!(refused.stderr.contains(&format!("--pattern '{key}'")), "{refused:?}");
    }
    assert_eq!(redis.ask::<u64>(&["ZCARD", "samovar:agenda:{art}"]).await, 0, "nothing is due");
    // A listed key, one that is there, one that is due, and one that is named with --force.
    redis.set("art:y*", "1", Duration::from_secs(60)).await;
    for args in [&["warm", "art:x*"][..], &["warm", "art:y*"], &["warm", "art:z*", "--force"], &["warm", "art:z*"]] {
        let warmed = run(&redis, &jobs, args).await;
        assert_eq!(warmed.code, Some(0), "{args:?}: {warmed:?}");
    }
    assert_eq!(redis.ask::<u64>(&["ZCARD", "samovar:agenda:{art}"]).await, 3);
    for args in [&["warm", "art:Who?"][..], &["invalidate", "art:Who?"], &["invalidate", "art:Who?", "--warm"]] {
        let taken = run(&redis, &jobs, args).await;
        assert_eq!(taken.code, Some(0), "{args:?}: {taken:?}");
    }
    assert_eq!(messages(&redis).await, 2);
}

#[tokio::test]
async fn an_invalidation_of_what_no_job_knows_is_refused() {
    let (redis, upstream) = both().await;
    let plain = Art::of(&upstream).folder();
    let tagged = Art::of(&upstream).top("tags = [\"t:{{ name }}\"]").folder();
    for (args, said) in [
        (&["arts:a", "art:a"][..], "the key `arts:a` matches no job"),
        (&["--tag", "t:a"], "the tag `t:a` matches no job"),
        (&["--pattern", "arts:*"], "the pattern `arts:*` matches no job"),
        (&["--pattern", ""], "the pattern `` matches no job"),
        (&["--job", "arts"], "the job `arts` matches no job"),
        (&["a:1", "a:2", "a:3", "a:4", "a:5", "a:6", "a:7"], "`a:5` and 2 more match no job"),
    ] {
        let refused = run(&redis, &plain, &[&["invalidate"][..], args].concat()).await;
        assert_eq!((refused.code, messages(&redis).await), (Some(1), 0), "{args:?}: {refused:?}");
        assert!(refused.stderr.contains(said) && refused.stderr.contains("--force"), "{args:?}: {refused:?}");
    }
    let forced = run(&redis, &plain, &["invalidate", "arts:a", "--tag", "t:a", "--force"]).await;
    assert_eq!((forced.code, messages(&redis).await), (Some(0), 1), "{forced:?}");
    let nowhere = samovar(["invalidate", "arts:a", "--job", "arts"]).redis(&redis).run().await;
    assert_eq!((nowhere.code, messages(&redis).await), (Some(0), 2), "no job files, so nothing is known: {nowhere:?}");
    for said in ["the names are not checked", "cannot be read"] {
        assert!(nowhere.stderr.contains(said), "{said}: {nowhere:?}");
    }
    assert!(!forced.stderr.contains("not checked"), "it was told not to: {forced:?}");
    for args in
        [&["art:a"][..], &["--tag", "t:nobody"], &["--pattern", "a*"], &["--pattern", "art:x?"], &["--job", "art"]]
    {
        let sent = run(&redis, &tagged, &[&["invalidate"][..], args].concat()).await;
        assert_eq!(sent.code, Some(0), "{args:?}: {sent:?}");
    }
    assert_eq!(messages(&redis).await, 7);
}

/// An old master is a replica for a moment before its clients leave it.
#[tokio::test]
async fn an_invalidation_is_sent_once_redis_is_the_master_again() {
    let redis = TestRedis::options().direct().start().await;
    let () = redis.ask(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let sending = samovar(["invalidate", "art:a", "--force"]).redis(&redis).run();
    let mended = async {
        eventually("it is refused", async || {
            let errors: String = redis.ask(&["INFO", "errorstats"]).await;
            if errors.contains("errorstat_READONLY") { Ok(()) } else { Err(errors) }
        })
        .await;
        redis.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    };
    let (sent, ()) = tokio::join!(sending, mended);
    assert_eq!((sent.code, redis.ask::<usize>(&["XLEN", "samovar:inbox"]).await), (Some(0), 1), "{sent:?}");
}

#[tokio::test]
async fn a_key_of_no_job_that_a_service_loaded_is_invalidated() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    let (loaded, leased) = (EntryKey::new("report:loaded"), EntryKey::new("report:leased"));
    let lease = match parts.store.lease(&loaded, Duration::from_secs(60), Fresh::default()).await.unwrap() {
        Leased::Yes(lease) => lease,
        other => panic!("{other:?}"),
    };
    let hour = Duration::from_secs(3_600);
    parts.store.commit(&loaded, &lease, "1", hour, &LastAttempt::default()).await.unwrap();
    parts.store.lease(&leased, Duration::from_secs(60), Fresh::default()).await.unwrap();
    redis.set("report:theirs", "1", hour).await;
    for key in ["report:loaded", "report:leased"] {
        let sent = run(&redis, &jobs, &["invalidate", key]).await;
        assert_eq!(sent.code, Some(0), "{sent:?}");
    }
    let refused = run(&redis, &jobs, &["invalidate", "report:theirs", "report:loaded"]).await;
    assert_eq!((refused.code, messages(&redis).await), (Some(1), 2), "{refused:?}");
    assert!(refused.stderr.contains("the key `report:theirs` matches no job"), "{refused:?}");
}

#[tokio::test]
async fn a_key_that_is_a_path_asks_below_its_place_only() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"target": call.target})));
    let jobs = JobsFolder::new().job(
        "page",
        &format!(
            "key = \"page:{{slug}}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nurl = \"{}/pages/{{{{ slug | path }}}}\"\n\
             [entries]\nlist = [\"a\", \"guides/2024/çay?#%2F\", \"../admin\", \"a/../../admin\", \"a//b\", \"/a\"]\n\
             [warm]\nattempts = 1\n",
            upstream.url()
        ),
    );
    let _worker = talkative(&redis, &jobs).spawn();
    for (slug, target) in [("a", "/pages/a"), ("guides/2024/çay?#%2F", "/pages/guides/2024/%C3%A7ay%3F%23%252F")] {
        assert_eq!(readable_key(&redis, &format!("page:{slug}")).await["target"], target);
    }
    eventually("the others are given up", async || redis.ask::<usize>(&["ZCARD", "samovar:dead:{page}"]).await == 4)
        .await;
    assert_eq!(upstream.all_requests().len(), 2, "{:?}", upstream.all_requests());
    let shown = run(&redis, &jobs, &["get", "page:../admin"]).await.stdout;
    assert!(shown.contains("`..`, which no URL can carry"), "{shown}");
}

/// Demands an entry, and waits until it is off the agenda again.
async fn demand(redis: &TestRedis, parts: &Parts, key: &str) {
    parts.invalidate(&json!({"keys": [key], "action": "warm"}).to_string()).await;
    at_rest(redis).await;
}

#[tokio::test]
async fn what_the_upstream_does_not_have_is_not_asked_for_again() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let http = worker.http().await;
    let client = client();
    let warm = async |key: &str| {
        let asked = client.post(format!("{http}/warm?wait=true")).json(&json!({"keys": [key]})).send().await.unwrap();
        asked.json::<Value>().await.unwrap()
    };
    demand(&redis, &parts, "art:new").await;
    assert_eq!(upstream.calls("/art/new"), 1);
    for _ in 0..3 {
        demand(&redis, &parts, "art:new").await;
        assert_eq!(warm("art:new").await["gone"], 1);
    }
    assert_eq!(upstream.calls("/art/new"), 1, "it is absent for a minute");
    // A person and an invalidation ask at once.
    let asked = run(&redis, &jobs, &["warm", "art:new", "--wait"]).await;
    assert!(asked.code == Some(0) && asked.stdout.contains("1 gone"), "{asked:?}");
    assert_eq!(upstream.calls("/art/new"), 2);
    upstream.edit("/art/new");
    demand(&redis, &parts, "art:new").await;
    assert_eq!(upstream.calls("/art/new"), 2);
    parts.invalidate("art:new").await;
    assert_eq!(readable(&redis, "new").await["version"], 1);
}

#[tokio::test]
async fn absent_entries_are_asked_for_again_in_time() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).warm("absent_for = \"1s\"\nrecheck = [\"3s\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    // A recheck goes on although demands come in between.
    parts.invalidate("art:late").await;
    demand(&redis, &parts, "art:late").await;
    upstream.called("/art/late", 1).await;
    upstream.edit("/art/late");
    demand(&redis, &parts, "art:late").await;
    demand(&redis, &parts, "art:late").await;
    assert_eq!(readable(&redis, "late").await["version"], 1);
    demand(&redis, &parts, "art:new").await;
    upstream.edit("/art/new");
    eventually("a demand asks again after a second", async || {
        demand(&redis, &parts, "art:new").await;
        redis.get("art:new").await.is_some()
    })
    .await;
    let [first, second] = &upstream.requests("/art/new")[..] else { panic!("{:?}", upstream.requests("/art/new")) };
    assert!(second.at - first.at >= Duration::from_millis(900), "{:?}", second.at - first.at);
}

#[tokio::test]
async fn an_absence_holds_only_for_what_was_asked() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| match (call.path(), call.header("x-key")) {
        ("/art/a", "right") => Reply::json(json!(1)),
        _ => Reply::status(404),
    });
    let art = Art::of(&upstream).warm("absent_for = \"1h\"").limits("headers = { X-Key = \"{{ env.APP_KEY }}\" }");
    let jobs = art.folder();
    jobs.write("art.toml", &art.toml().replace("/art/", "/arts/"));
    let keys = jobs.write("keys.env", "APP_KEY=wrong\n").display().to_string();
    let parts = Parts::of(&redis).await;
    let worker = samovar(["worker", "--env-file", &keys]).redis(&redis).jobs(&jobs).spawn();
    let asked_once = async |path: &str| {
        eventually("the upstream is asked", async || {
            demand(&redis, &parts, "art:a").await;
            upstream.calls(path) == 1
        })
        .await;
        demand(&redis, &parts, "art:a").await;
        assert_eq!((upstream.calls(path), redis.get("art:a").await), (1, None));
    };
    asked_once("/arts/a").await;
    jobs.write("art.toml", &art.toml());
    worker.hangup();
    asked_once("/art/a").await;
    jobs.write("keys.env", "APP_KEY=right\n");
    worker.hangup();
    eventually("the corrected key has it fetched", async || {
        demand(&redis, &parts, "art:a").await;
        redis.get("art:a").await.is_some()
    })
    .await;
}

/// The input of a demanded entry is demanded, too.
#[tokio::test]
async fn an_absent_input_is_not_asked_for_by_each_dependant() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| match call.path() {
        "/art/none" => Reply::status(404),
        path => Reply::json(json!(path)),
    });
    let story = "key = \"story:{n}:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n\
                 [source]\nkind = \"compose\"\nvalue = \"{{ art }}\"\n[warm]\nattempts = 1\n";
    let jobs = Art::of(&upstream).folder().job("story", story);
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    for n in 0..3 {
        let key = format!("story:{n}:none");
        demand(&redis, &parts, &key).await;
        eventually("the entry is gone as well", async || {
            let snapshot = parts.store.snapshot(&EntryKey::new(key.as_str())).await.unwrap();
            snapshot.meta.is_some_and(|meta| meta.last_attempt.outcome == Some(Outcome::Gone))
        })
        .await;
    }
    assert_eq!(upstream.calls("/art/none"), 1);
}

#[tokio::test]
async fn check_fetch_refuses_what_a_worker_could_not_store() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({"name": "a", "at": "yesterday"})));
    for (top, said) in [
        ("tags = [\"by:{{ value.artist }}\"]", "the tag `by:{{ value.artist }}`: `value.artist` is undefined"),
        ("version = \"{{ value.at }}\"", "the version `{{ value.at }}`"),
    ] {
        let jobs = Art::of(&upstream).list(["a"]).top(top).folder();
        let checked = run(&redis, &jobs, &["check", "--fetch"]).await;
        assert_eq!(checked.code, Some(1), "{checked:?}");
        assert!(checked.stdout.contains("✗ art: art:a: ") && checked.stdout.contains(said), "{checked:?}");
    }
    let jobs = Art::of(&upstream).list(["a"]).top("tags = [\"by:{{ value.name }}\"]").folder();
    assert_eq!(run(&redis, &jobs, &["check", "--fetch"]).await.code, Some(0));
}

#[tokio::test]
async fn a_summary_has_numbers_in_fields_and_times_all_fetches() {
    let (redis, upstream) = both().await;
    upstream.answer("/art/a", |call, _| match call.header("if-none-match") {
        "" => Reply::json(json!(1)).header("ETag", "\"1\""),
        _ => Reply::status(304).after(Duration::from_millis(150)),
    });
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = samovar(["worker"]).redis(&redis).jobs(&jobs).env("SAMOVAR_LOG_FORMAT", "json").spawn();
    readable(&redis, "a").await;
    let warmed = run(&redis, &jobs, &["warm", "art:a", "--wait"]).await;
    assert!(warmed.stdout.contains("1 unchanged"), "{warmed:?}");
    worker.term();
    worker.wait().await;
    let lines = worker.log();
    let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let summaries: Vec<Value> = lines.filter(|line| line["slowest_ms"] != Value::Null).collect();
    let sum = |field: &str| summaries.iter().filter_map(|line| line[field].as_u64()).sum::<u64>();
    assert_eq!((sum("warmed"), sum("unchanged"), sum("failed")), (1, 1, 0), "{summaries:?}");
    assert!(summaries.iter().any(|line| line["slowest_ms"].as_u64() >= Some(150)), "{summaries:?}");
}

#[tokio::test]
async fn a_worker_has_one_name_in_health_log_and_watch() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let http = worker.http().await;
    readable(&redis, "a").await;
    let health = async || serde_json::from_str::<Value>(&get(&format!("{http}/health")).await).unwrap();
    let name = health().await["worker"].as_str().unwrap().to_owned();
    worker.wait_for_log(&[&format!("worker=\"{name}\"")]).await;
    let watch = samovar(["watch", "--json"]).redis(&redis).jobs(&jobs).spawn();
    let parts = Parts::of(&redis).await;
    let seen = async |name: &str| {
        eventually("watch names it", async || {
            parts.invalidate("art:a").await;
            let lines = watch.printed();
            let found = lines.iter().any(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                line["event"] == "ended" && line["worker"] == name
            });
            if found { Ok(()) } else { Err(lines) }
        })
        .await;
    };
    seen(&name).await;
    // A reload is a new worker, with a name of its own.
    worker.hangup();
    worker.wait_for_log(&["the new jobs are in use"]).await;
    let next = health().await["worker"].as_str().unwrap().to_owned();
    assert_ne!(next, name);
    seen(&next).await;
}

#[tokio::test]
async fn a_time_without_a_unit_is_refused_with_the_remedy() {
    let useless = samovar(["warm", "art", "--timeout", "3s"]).run().await;
    assert!(useless.code == Some(2) && useless.stderr.contains("--wait"), "{useless:?}");
    let negative = samovar(["warm", "art", "--wait", "--timeout", "-3s"]).run().await;
    assert!(negative.code == Some(2) && negative.stderr.contains("is not a time; write `30s`"), "{negative:?}");
    let refused = samovar(["warm", "art", "--wait", "--timeout", "3"]).run().await;
    assert!(refused.code == Some(2) && refused.stderr.contains("has no unit; write `3s`"), "{refused:?}");
}

#[tokio::test]
async fn options_of_the_museum_say_what_to_write() {
    for (args, said) in [
        (["--failures", "7"], "must be a number from 0 to 1, such as 0.1"),
        (["--latency", "-1"], "must be a number from 0 on, such as 0.5"),
        (["--latency", "inf"], "must be a number from 0 on, such as 0.5"),
        (["--listen", "8080"], "is not an address; write 127.0.0.1:8080"),
    ] {
        let refused = samovar([&["museum"][..], &args].concat()).run().await;
        assert!(refused.code == Some(2) && refused.stderr.contains(said), "{args:?}: {refused:?}");
        assert_eq!(refused.stdout, "", "it is not open");
    }
}

#[tokio::test]
async fn a_refused_reload_shows_in_health_and_metrics() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let good = std::fs::read_to_string(jobs.path().join("art.toml")).unwrap();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let http = worker.http().await;
    readable(&redis, "a").await;
    let get = async |path: &str| get(&format!("{http}{path}")).await;
    eventually("it is healthy", async || get("/health").await.contains("\"healthy\"")).await;
    assert!(get("/metrics").await.contains("samovar_reload_refused 0\n"));
    jobs.write("art.toml", &good.replace("ttl = \"1h\"", "ttl = \"hunter2\""));
    worker.hangup();
    worker.wait_for_log(&["the old ones stay"]).await;
    let health = get("/health").await;
    for said in ["\"degraded\"", "reload", "1 fault, at ", "art.toml:2:7"] {
        assert!(health.contains(said), "{said}: {health}");
    }
    assert!(!health.contains("hunter2"), "{health}");
    assert!(get("/metrics").await.contains("samovar_reload_refused 1\n"));
    jobs.write("art.toml", &good);
    worker.hangup();
    worker.wait_for_log(&["the new jobs are in use"]).await;
    eventually("it is healthy again", async || get("/health").await.contains("\"healthy\"")).await;
    assert!(get("/metrics").await.contains("samovar_reload_refused 0\n"));
}

#[tokio::test]
async fn a_refused_reload_is_told_by_jobs_anywhere() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let good = std::fs::read_to_string(jobs.path().join("art.toml")).unwrap();
    let mut refusing = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let http = refusing.http().await;
    readable(&redis, "a").await;
    let mut other = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let elsewhere = other.http().await;
    let health: Value = serde_json::from_str(&get(&format!("{http}/health")).await).unwrap();
    let name = health["worker"].as_str().unwrap().to_owned();
    let told = async || {
        let shown = samovar(["jobs", "--json"]).redis(&redis).env("SAMOVAR_JOBS", "/nowhere").run().await.stdout;
        serde_json::from_str::<Value>(&shown).unwrap_or_default()[0].clone()
    };
    eventually("both workers are counted", async || told().await["workers"] == 2).await;
    assert_eq!(told().await["refused_reloads"], Value::Null);
    jobs.write("art.toml", &good.replace("ttl = \"1h\"", "ttl = \"hunter2\""));
    refusing.hangup();
    let refused = eventually("it is told", async || told().await["refused_reloads"].as_array().cloned()).await;
    assert_eq!((refused.len(), &refused[0]["worker"]), (1, &json!(name)), "{refused:?}");
    assert!(refused[0]["reason"].as_str().unwrap().contains("1 fault, at ") && refused[0]["at_ms"].is_i64());
    for url in [&http, &elsewhere] {
        for path in ["/jobs", "/jobs/art"] {
            let shown = get(&format!("{url}{path}")).await;
            assert!(shown.contains(&format!("\"refused_reloads\":[{{\"worker\":\"{name}\"")), "{shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
    let shown = run(&redis, &jobs, &["jobs"]).await.stdout.replace('\n', " ");
    assert!(shown.contains(&format!("Fault: the worker {name} refused its last reload")), "{shown}");
    // The same fault again is another refusal.
    refusing.hangup();
    let first = refused[0]["at_ms"].as_i64();
    eventually("the last one is told", async || told().await["refused_reloads"][0]["at_ms"].as_i64() > first).await;
    jobs.write("art.toml", &good);
    refusing.hangup();
    eventually("it is taken back", async || told().await["refused_reloads"].is_null()).await;
    eventually("nothing is left", async || redis.keys("samovar:refused:*").await.is_empty()).await;
}

#[tokio::test]
async fn a_key_of_a_refusal_that_another_program_uses_stays() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let good = std::fs::read_to_string(jobs.path().join("art.toml")).unwrap();
    let mut worker = worker(&redis, &jobs);
    readable(&redis, "a").await;
    jobs.write("art.toml", "key = 7");
    worker.hangup();
    let key = eventually("it is told", async || redis.keys("samovar:refused:*").await.pop()).await;
    redis.ask::<String>(&["SET", &key, "theirs"]).await;
    worker.wait_for_log(&["another program uses this key", &key]).await;
    assert_eq!(redis.get(&key).await.as_deref(), Some("theirs"));
    redis.ask::<u8>(&["RPUSH", "theirs", "1"]).await;
    redis.ask::<String>(&["RENAME", "theirs", &key]).await;
    jobs.write("art.toml", &good);
    worker.hangup();
    worker.wait_for_log(&["INFO", " ended worker="]).await;
    assert_eq!(redis.ask::<String>(&["TYPE", &key]).await, "list");
}

#[tokio::test]
async fn get_says_that_a_job_is_paused_and_that_an_input_changed() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let story = "key = \"story:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n\
                 [source]\nkind = \"compose\"\nvalue = \"{{ art }}\"\n[entries]\nlist = [\"a\"]\n";
    let jobs = Art::of(&upstream).folder().job("story", story);
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    readable_key(&redis, "story:a").await;
    assert_eq!(run(&redis, &jobs, &["pause", "story"]).await.code, Some(0));
    upstream.edit("/art/a");
    parts.invalidate("art:a").await;
    eventually("it tells", async || {
        let shown = run(&redis, &jobs, &["get", "story:a"]).await.stdout;
        let paused = shown.contains("paused") && shown.contains("`samovar resume story`");
        if paused && shown.contains("for a change of an input") { Ok(()) } else { Err(shown) }
    })
    .await;
    let shown = run(&redis, &jobs, &["get", "story:a", "--json"]).await.stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert!(shown["job_paused_ms"].is_u64() && shown["due_for_input"] == true, "{shown}");
    let shown = run(&redis, &jobs, &["get", "art:a"]).await.stdout;
    assert!(!shown.contains("paused") && shown.contains("for invalidation"), "{shown}");
}

#[tokio::test]
async fn json_tells_what_the_text_tells() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let json = async |args: &[&str]| {
        let shown = run(&redis, &jobs, &[args, &["--json"]].concat()).await;
        assert_eq!(shown.code, Some(0), "{args:?}: {shown:?}");
        serde_json::from_str::<Value>(&shown.stdout).unwrap()
    };
    assert_eq!(json(&["invalidate", "art:a"]).await["names_checked"], true);
    assert_eq!(json(&["invalidate", "art:a", "--force"]).await["names_checked"], false);
    run(&redis, &jobs, &["pause", "art"]).await;
    let warmed = json(&["warm", "art"]).await;
    let notes = warmed["notes"].as_array().unwrap();
    assert!(notes[0].as_str().unwrap().contains("`samovar resume art`"), "{warmed}");
    assert!(notes[1].as_str().unwrap().contains("No worker is running"), "{warmed}");
    let due = run(&redis, &jobs, &["get", "art:a", "--json"]).await.stdout;
    let due: Value = serde_json::from_str(&due).unwrap();
    assert_eq!((&due["due_state"], &due["due_priority"]), (&json!("scheduled"), &json!("normal")), "{due}");
    assert_eq!((&due["due_for_input"], &due["closed_upstreams"]), (&json!(false), &json!([])), "{due}");
    assert_eq!(json(&["gone", "art", "--accept"]).await["due"], 0);
    let () = redis.ask(&["SET", "samovar:{schedules}:ticks", "1"]).await;
    let shown = json(&["jobs"]).await;
    assert_eq!(shown[0]["workers"], 0, "{shown}");
    assert!(shown[0]["faults"].to_string().contains("samovar:{schedules}:ticks holds a string"), "{shown}");
    assert_eq!(json(&["check", "--diff"]).await["at_most"], true);
}

#[tokio::test]
async fn a_misspelt_setting_is_told_with_its_remedy() {
    let source = "[source]\nkind = \"http\"\nurl = \"http://127.0.0.1:1/{{ name }}\"\n";
    let jobs = JobsFolder::new().job("art", &format!("key = \"art:{{name}}\"\n{source}"));
    for (filter, said) in [("inf0", "`inf0`"), ("debug,tarce", ": `tarce` is no level"), ("samovar=inf0", "directive")]
    {
        let refused = samovar(["check"]).jobs(&jobs).env("SAMOVAR_LOG", filter).run().await;
        assert_eq!(refused.code, Some(78), "{filter}: {refused:?}");
        for said in ["SAMOVAR_LOG", "module=level", said] {
            assert!(refused.stderr.contains(said), "{said}: {refused:?}");
        }
    }
    for filter in ["debug", "samovar", "samovar::warmer=trace,hyper=off", "off", "samovar[warm{job,key}]=debug"] {
        let taken = samovar(["check"]).jobs(&jobs).env("SAMOVAR_LOG", filter).run().await;
        assert_eq!(taken.code, Some(0), "{filter}: {taken:?}");
    }
    let warned =
        samovar(["check"]).jobs(&jobs).env("SAMOVAR_TOKNE", "hunter22").dot_env("SAMOVAR_LISTENS=x\n").run().await;
    assert_eq!(warned.code, Some(0), "{warned:?}");
    for said in ["SAMOVAR_TOKNE is no setting", "SAMOVAR_TOKEN?", "SAMOVAR_LISTENS is no setting", "SAMOVAR_LISTEN?"] {
        assert!(warned.stderr.contains(said), "{said}: {warned:?}");
    }
    assert!(!warned.stderr.contains("hunter22"), "{warned:?}");
    // A misspelt name of the folder is the cause of what fails then.
    let redis = TestRedis::start().await;
    let failed = samovar(["jobs"]).redis(&redis).env("SAMOVAR_JOB", "/etc/jobs").run().await;
    assert_eq!(failed.code, Some(78), "{failed:?}");
    let told = ["did you mean SAMOVAR_JOBS?", "cannot be read"].map(|said| failed.stderr.find(said));
    assert!(matches!(told, [Some(warned), Some(failed)] if warned < failed), "{failed:?}");
}

#[tokio::test]
async fn settings_come_from_the_named_files_instead_of_dot_env() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!(1)));
    let jobs = Art::of(&upstream).list(["a"]).limits("headers = { X-Key = \"{{ env.APP_KEY }}\" }").folder();
    let [base, local] = [("base.env", "APP_KEY='$base'\nSAMOVAR_LOG=off\n"), ("local.env", "APP_KEY=local # ours\n")]
        .map(|(name, text)| jobs.write(name, text).display().to_string());
    let fetch = async |args: &[&str]| {
        let args = [&["check", "--fetch"][..], args].concat();
        samovar(&args).redis(&redis).jobs(&jobs).dot_env("APP_KEY=default\n").run().await
    };
    for (args, sent) in [
        (&[][..], "default"),
        (&["--env-file", &base], "$base"),
        (&["--env-file", &base, "--env-file", &local], "local"),
    ] {
        let fetched = fetch(args).await;
        assert_eq!(fetched.code, Some(0), "{fetched:?}");
        assert_eq!(upstream.all_requests().last().unwrap().header("x-key"), sent, "{args:?}");
    }
    let missing = fetch(&["--env-file", &base, "--env-file", "nowhere.env"]).await;
    assert_eq!(missing.code, Some(78), "{missing:?}");
    assert!(missing.stderr.contains("nowhere.env: cannot be read"), "{missing:?}");
    // A reload reads the same files.
    let args = ["worker", "--env-file", &base];
    let worker = samovar(args).redis(&redis).jobs(&jobs).env("SAMOVAR_LOG", "info");
    let mut worker = worker.env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let http = worker.http().await;
    readable(&redis, "a").await;
    jobs.write("base.env", "APP_KEY=rotated\n");
    worker.hangup();
    worker.wait_for_log(&["the new jobs are in use"]).await;
    assert_eq!(run_with(&redis, &jobs, &base, &["warm", "art:a", "--wait"]).await.code, Some(0));
    assert_eq!(upstream.all_requests().last().unwrap().header("x-key"), "rotated");
    jobs.write("base.env", "APP_KEY rotated\n");
    worker.hangup();
    worker.wait_for_log(&["the old ones stay"]).await;
    let health = get(&format!("{http}/health")).await;
    assert!(health.contains(&format!("1 fault, at {base}")), "{health}");
}

async fn run_with(redis: &TestRedis, jobs: &JobsFolder, env_file: &str, args: &[&str]) -> Finished {
    run(redis, jobs, &[args, &["--env-file", env_file]].concat()).await
}

#[test]
fn faults_of_job_files_end_with_a_line_break() {
    let jobs = JobsFolder::new().job("art", "key = 1\n");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_samovar"));
    let ended = command.arg("worker").env_clear().env("SAMOVAR_JOBS", jobs.path()).output().unwrap();
    let told = String::from_utf8(ended.stderr).unwrap();
    assert!(told.ends_with("no job was loaded\n"), "{told:?}");
}

#[tokio::test]
async fn warm_does_not_wait_for_a_paused_job() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    assert_eq!(run(&redis, &jobs, &["pause", "art"]).await.code, Some(0));
    let refused = run(&redis, &jobs, &["warm", "art:a", "--wait"]).await;
    assert_eq!((refused.code, &*refused.stdout), (Some(1), ""), "{refused:?}");
    assert!(
        refused.stderr.contains("art was paused ") && refused.stderr.contains("`samovar resume art`"),
        "{refused:?}"
    );
    let refused = run(&redis, &jobs, &["warm", "art", "--wait", "--json"]).await;
    assert!(refused.code == Some(1) && refused.stdout.contains("\"error\": \"art was paused "), "{refused:?}");
    assert_eq!(redis.ask::<u64>(&["ZCARD", "samovar:agenda:{art}"]).await, 0, "nothing is due");
    // Nor for one that is paused during the wait. No worker runs.
    assert_eq!(run(&redis, &jobs, &["resume", "art"]).await.code, Some(0));
    let mut waits = samovar(["warm", "art:a", "--wait"]).redis(&redis).jobs(&jobs).spawn();
    eventually("it is due", async || redis.ask::<u64>(&["ZCARD", "samovar:agenda:{art}"]).await == 1).await;
    assert_eq!(run(&redis, &jobs, &["pause", "art"]).await.code, Some(0));
    assert_eq!(waits.wait().await.code(), Some(1));
    let said = waits.log().join(" ");
    assert!(said.contains("art:a: the job is paused; `samovar resume art` resumes it"), "{said}");
}

#[tokio::test]
async fn many_keys_like_patterns_are_looked_up_together() {
    let (redis, upstream) = both().await;
    let keys: Vec<String> = (0..1_000).map(|n| format!("art:x*{n}")).collect();
    let jobs = Art::of(&upstream).list(["x*0"]).folder();
    let values: Vec<&str> = keys.iter().skip(1).flat_map(|key| [key, "1"]).collect();
    redis.ask::<String>(&[&["MSET"], &values[..]].concat()).await;
    let reads = async || -> u64 {
        let stats: String = redis.ask(&["INFO", "stats"]).await;
        stats.lines().find_map(|line| line.strip_prefix("total_reads_processed:")?.trim().parse().ok()).unwrap()
    };
    let before = reads().await;
    let args: Vec<&str> = ["invalidate"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    let sent = run(&redis, &jobs, &args).await;
    assert_eq!((sent.code, messages(&redis).await), (Some(0), 1), "{:?}", sent.stderr);
    let took = reads().await - before;
    assert!(took < 200, "{took} reads for {} keys", keys.len());
    let refused = run(&redis, &jobs, &[&args[..], &["art:y*"]].concat()).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("`art:y*` is a literal key"), "{:?}", refused.stderr);
}

#[tokio::test]
async fn a_long_outcome_is_cut_among_all_jobs_and_whole_for_one() {
    let (redis, upstream) = both().await;
    let base = Art::of(&upstream);
    let jobs = base.folder().job("song", &base.toml().replace("art:", "song:"));
    let reason = "r".repeat(150);
    let last = json!({"key": "art:a", "outcome": "failed", "trigger": "cron", "reason": reason}).to_string();
    redis.ask::<u8>(&["HSET", "samovar:stats:{art}", "last", &last]).await;
    let shown = run(&redis, &jobs, &["jobs"]).await.stdout;
    assert!(shown.contains("rrrr…") && !shown.contains(&reason), "{shown}");
    let shown = run(&redis, &jobs, &["jobs", "art"]).await.stdout;
    assert!(shown.contains(&reason) && !shown.contains("song:"), "{shown}");
    for job in ["art", "song"] {
        assert_eq!(run(&redis, &jobs, &["gone", job, "--accept"]).await.code, Some(0));
    }
    let shown = run(&redis, &jobs, &["gone"]).await.stdout;
    let blocks: Vec<&str> = shown.split("\n\n").collect();
    let is_of = |(block, job): (&&str, &str)| block.starts_with(&format!("Removals of {job}: "));
    assert!(blocks.len() == 2 && blocks.iter().zip(["art", "song"]).all(is_of), "{shown}");
}

#[tokio::test]
async fn a_flush_that_ends_a_pause_is_logged() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = worker(&redis, &jobs);
    readable(&redis, "a").await;
    assert_eq!(run(&redis, &jobs, &["pause", "art"]).await.code, Some(0));
    worker.wait_for_log(&["the job is paused", "job=art"]).await;
    redis.flush().await;
    worker.wait_for_log(&["WARN", "With the data went dead letters, pauses", "token budgets"]).await;
    worker.wait_for_log(&["the job is no longer paused", "Redis lost the pause", "job=art"]).await;
}
