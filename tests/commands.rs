//! Commands: what they refuse, what they say about it, and what a demand of an absent entry costs.
#![cfg(test)]

mod support;

use std::time::Duration;

use samovar::entry::{EntryKey, Outcome};
use serde_json::json;
use support::{
    Art, Finished, JobsFolder, Parts, Reply, TestRedis, at_rest, both, eventually, readable, readable_key, samovar,
    talkative, worker,
};

async fn run(redis: &TestRedis, jobs: &JobsFolder, args: &[&str]) -> Finished {
    samovar(args).redis(redis).jobs(jobs).run().await
}

async fn messages(redis: &TestRedis) -> u64 {
    redis.ask(&["XLEN", "samovar:inbox"]).await
}

#[tokio::test]
async fn a_key_like_a_pattern_is_not_warmed_by_mistake() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a", "x*"]).folder();
    for key in ["art:*", "art:a?", "art:[ab]"] {
        for args in [&["warm", key][..], &["warm", key, "--dry-run"]] {
            let refused = run(&redis, &jobs, args).await;
            assert_eq!(refused.code, Some(2), "{args:?}: {refused:?}");
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
    for args in
        [&["art:a"][..], &["--tag", "t:nobody"], &["--pattern", "a*"], &["--pattern", "art:x?"], &["--job", "art"]]
    {
        let sent = run(&redis, &tagged, &[&["invalidate"][..], args].concat()).await;
        assert_eq!(sent.code, Some(0), "{args:?}: {sent:?}");
    }
    assert_eq!(messages(&redis).await, 7);
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
    let client = reqwest::Client::new();
    let warm = async |key: &str| {
        let asked = client.post(format!("{http}/warm?wait=true")).json(&json!({"keys": [key]})).send().await.unwrap();
        asked.json::<serde_json::Value>().await.unwrap()
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
    let jobs = Art::of(&upstream).warm("absent_for = \"1s\"\nrecheck = [\"300ms\"]").folder();
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
        eventually("the entry fails", async || {
            let snapshot = parts.store.snapshot(&EntryKey::new(key.as_str())).await.unwrap();
            snapshot.meta.is_some_and(|meta| meta.last_attempt.outcome == Some(Outcome::Failed))
        })
        .await;
    }
    assert_eq!(upstream.calls("/art/none"), 1);
}
