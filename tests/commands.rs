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

