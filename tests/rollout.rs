//! Job files that change while workers run: in a rolling deploy, workers with an earlier file end nothing that belongs
//! to a newer one. And jobs that are removed and come back.
use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, WorkerProcess, at_rest, both, eventually, job, listening, readable_key,
    samovar, worker,
};
use samovar::entry::{EntryKey, Trigger};
use serde_json::{Value, json};

/// So many that a worker with the earlier file certainly gets some.
const ENTRIES: usize = 40;

fn names() -> Vec<String> {
    (0..ENTRIES).map(|n| n.to_string()).collect()
}

/// Two workers of which the first alone has read a newer file of the job `art`, and is stopped.
struct Rollout {
    redis: TestRedis,
    newer: WorkerProcess,
    older: WorkerProcess,
    _jobs: JobsFolder,
}

impl Rollout {
    async fn of(redis: TestRedis, base: &Art, newer_file: &str) -> Self {
        let jobs = base.folder();
        let mut newer = worker(&redis, &jobs);
        let older = worker(&redis, &jobs);
        listening(&redis, 2).await;
        let described = async || redis.ask::<Option<String>>(&["HGET", "samovar:jobs", "art"]).await;
        let before = eventually("the job is described", described).await;
        at_rest(&redis).await;
        jobs.write("art.toml", newer_file);
        newer.hangup();
        newer.wait_for_log(&["the new jobs are in use"]).await;
        let digest = |text: &str| serde_json::from_str::<Value>(text).unwrap()["digest"].to_string();
        eventually("the newer file is described", async || {
            described().await.is_some_and(|now| digest(&now) != digest(&before))
        })
        .await;
        // A command that is on its way must not follow those of the test.
        eventually("the newer worker has warmed the job up", async || {
            let warmed_up: String = redis.ask(&["HGET", "samovar:{schedules}:digests", "art"]).await;
            let time: Vec<String> = redis.ask(&["TIME"]).await;
            let due: usize = redis.ask(&["ZCOUNT", "samovar:{schedules}", "-inf", &format!("{}999", time[0])]).await;
            let is_newer = described().await.is_some_and(|now| digest(&now).contains(&warmed_up[..32]));
            is_newer && due == 0
        })
        .await;
        at_rest(&redis).await;
        newer.freeze();
        Self { redis, newer, older, _jobs: jobs }
    }

    /// Makes an entry due; the older worker alone can take it. Returns once it has left it to the newer one, which
    /// goes on then and fetches it.
    async fn left_by_older(&mut self, key: &str) {
        let (parts, due) = (Parts::of(&self.redis).await, samovar::agenda::When::Urgent);
        parts.agenda.put(&job(), [&EntryKey::new(key)], due, Trigger::Demand).await.unwrap();
        self.older.wait_for_log(&["outcome=deferred", key, "left to workers with a newer file"]).await;
        self.newer.thaw();
        readable_key(&self.redis, key).await;
    }
}

#[tokio::test]
async fn an_earlier_key_ends_no_entry_of_a_newer_key() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let base = Art::of(&upstream);
    let mut rollout = Rollout::of(redis, &base, &base.toml().replace("art:{name}", "work:{name}")).await;
    rollout.left_by_older("work:a").await;
    assert_eq!(upstream.calls("/art/a"), 1);
}

#[tokio::test]
async fn a_refresh_of_a_newer_key_is_fetched_at_once() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let base = Art::of(&upstream).list(["a"]);
    let mut rollout = Rollout::of(redis, &base, &base.clone().toml().replace("art:{name}", "work:{name}")).await;
    rollout.newer.thaw();
    readable_key(&rollout.redis, "work:a").await;
    at_rest(&rollout.redis).await;
    rollout.newer.freeze();
    let before = upstream.calls("/art/a");
    // The frozen worker still waits for one message, so the older one gets the other, whichever that is.
    for _ in 0..2 {
        rollout.redis.ask::<String>(&["XADD", "samovar:inbox", "*", "message", "{\"keys\": [\"work:a\"]}"]).await;
    }
    rollout.older.wait_for_log(&["outcome=deferred", "work:a", "left to workers with a newer file"]).await;
    rollout.newer.thaw();
    upstream.called("/art/a", before + 1).await;
    readable_key(&rollout.redis, "work:a").await;
}

#[tokio::test]
async fn a_404_of_an_earlier_source_ends_no_entry_of_a_newer() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| match call.path().starts_with("/new/") {
        true => Reply::json(json!({"path": call.path()})),
        false => Reply::status(404),
    });
    let base = Art::of(&upstream);
    let mut rollout = Rollout::of(redis, &base, &base.toml().replace("/art/", "/new/")).await;
    rollout.left_by_older("art:a").await;
}

#[tokio::test]
async fn a_worker_with_an_earlier_file_leaves_the_warmup() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let base = Art::of(&upstream).warm("every = \"30m\"");
    let mut rollout = Rollout::of(redis, &base, &base.clone().list(["a"]).toml()).await;
    let redis = &rollout.redis;
    redis.ask::<u8>(&["DEL", "art:a"]).await;
    redis.ask::<u8>(&["ZADD", "samovar:{schedules}", "1", "art"]).await;
    redis.publish("samovar:signal", "warmup art").await;
    rollout.older.wait_for_log(&["a worker with a newer file of the job runs the warmup"]).await;
    rollout.newer.thaw();
    readable_key(&rollout.redis, "art:a").await;
}

#[tokio::test]
async fn an_earlier_list_ends_no_entry_that_a_newer_one_names() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let base = Art::of(&upstream).ttl("4s").warm("every = \"30m\"");
    let jobs = base.folder();
    let first = worker(&redis, &jobs);
    let second = worker(&redis, &jobs);
    listening(&redis, 2).await;
    jobs.write("art.toml", &base.list(names()).toml());
    first.hangup();
    for name in names() {
        upstream.called(&format!("/art/{name}"), 2).await;
    }
    drop(second);
}

#[tokio::test]
async fn a_job_that_comes_back_is_warmed_up_as_was_told() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let names = ["a", "b", "c", "d"];
    let base = Art::of(&upstream).list(names).warm("every = \"30m\"");
    let other = base.toml().replace("art:", "other:").replace("/art/", "/other/");
    let jobs = base.folder().job("other", &other);
    let worker = worker(&redis, &jobs);
    for name in names {
        readable_key(&redis, &format!("other:{name}")).await;
    }
    let removed = jobs.path().join("other.toml");
    std::fs::remove_file(&removed).unwrap();
    worker.hangup();
    eventually("it is noted that no worker knows the job", async || {
        let warmed_up: Vec<String> = redis.ask(&["HKEYS", "samovar:{schedules}:digests"]).await;
        if warmed_up == ["art"] { Ok(()) } else { Err(warmed_up) }
    })
    .await;
    redis.ask::<u8>(&["DEL", "other:a"]).await;
    redis.ask::<u8>(&["DEL", "other:b"]).await;
    jobs.write("other.toml", &other);
    let told = samovar(["check", "--diff", "--json"]).redis(&redis).jobs(&jobs).run().await;
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    let told = told["jobs"].as_array().unwrap().iter().find(|job| job["job"] == "other").unwrap();
    assert_eq!((&told["state"], &told["missing"]), (&json!("returned"), &json!(2)), "{told}");
    assert_eq!(told["fetches"], 4, "{told}");
    assert!(told["notes"].to_string().contains("its 2 values may be old"), "{told}");
    worker.hangup();
    for name in names {
        readable_key(&redis, &format!("other:{name}")).await;
        upstream.called(&format!("/other/{name}"), 2).await;
    }
}

#[tokio::test]
async fn values_of_a_removed_job_are_told_to_be_lost() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let names = ["a", "b", "c"];
    let base = Art::of(&upstream).list(names).warm("every = \"30m\"");
    let jobs = base.folder().job("other", &base.toml().replace("art:", "other:"));
    let worker = worker(&redis, &jobs);
    for name in names {
        readable_key(&redis, &format!("other:{name}")).await;
    }
    let run = async |args: &[&str]| samovar(args).redis(&redis).run().await;
    let kept = run(&["invalidate", "--job", "other", "--dry-run"]).await;
    assert!(kept.stdout.contains("3 entries of other: 3 fetches") && kept.stderr.is_empty(), "{kept:?}");
    std::fs::remove_file(jobs.path().join("other.toml")).unwrap();
    worker.hangup();
    for args in [&["--job", "other"][..], &["--pattern", "other:*"], &["other:a", "other:b", "other:c"]] {
        for evict in [&[][..], &["--evict"]] {
            eventually(&format!("{args:?} {evict:?} would fetch nothing"), async || {
                let told = run(&[&["invalidate", "--dry-run"], args, evict].concat()).await;
                let is_counted = told.stdout.contains("3 entries of other: 0 fetches, 3 values removed");
                let is_warned = told.stderr.contains("no running worker knows other");
                if is_counted && is_warned { Ok(()) } else { Err(told) }
            })
            .await;
        }
    }
    let json = run(&["invalidate", "--job", "other", "--dry-run", "--json"]).await.stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["removed"], &json["jobs"]["other"]["fetches"]), (&json!({"other": 3}), &json!(0)), "{json}");
    assert!(redis.json("other:a").await.is_some(), "a dry run removes nothing");
    let lost = run(&["invalidate", "other:a"]).await;
    assert!(lost.code == Some(0) && lost.stderr.contains("no running worker knows other"), "{lost:?}");
    let lost = run(&["invalidate", "--job", "other", "--json"]).await;
    let lost: Value = serde_json::from_str(&lost.stdout).unwrap();
    assert_eq!(lost["jobs_left"], json!(["other"]), "{lost}");
    eventually("all are removed", async || redis.keys("other:*").await.is_empty()).await;
}
