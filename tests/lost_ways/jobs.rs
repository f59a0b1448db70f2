//! Jobs that not every worker knows, and jobs that are no more.

use std::sync::Arc;

use samovar::agenda::When;
use samovar::entry::{EntryKey, JobName, Trigger};
use samovar::job::Jobs;
use samovar::store::Gap;
use samovar::worker::maintenance::JobCleaner;
use serde_json::json;

use super::{HOUR, commit, stories, story};
use crate::support::{Art, JobsFolder, Parts, art, both, eventually, job, worker};

#[tokio::test]
async fn a_worker_does_not_absolve_what_it_does_not_know() {
    let (redis, upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let (art_only, both) = (Art::of(&upstream).folder(), stories(&upstream));
    redis.ask::<usize>(&["HSET", &parts.keys.digests(), "story", "x", "art", "x"]).await;
    for key in [story(), art("a")] {
        commit(&parts, &key, &json!("one")).await;
    }
    parts.next_instant().await;
    let (unknowing, knowing) = (parts.revalidator(&art_only), parts.revalidator(&both));
    parts.store.note_gap(parts.now().await, Gap::Lost).await.unwrap();
    let suspected = async |key: EntryKey| parts.store.snapshot(&key).await.unwrap().meta.unwrap().invalidated.is_some();
    for _ in 0..2 {
        unknowing.revalidate().await.unwrap();
        assert_eq!((suspected(art("a")).await, suspected(story()).await), (true, false));
        assert_eq!(redis.keys("samovar:{suspect}*").await, ["samovar:{suspect}", "samovar:{suspect}:dealt"]);
    }
    knowing.revalidate().await.unwrap();
    assert!(suspected(story()).await);
    assert_eq!(redis.keys("samovar:{suspect}*").await, Vec::<String>::new());
}

/// Two workers, of which one does not know the job `story`, and some rounds without the other.
#[tokio::test]
async fn a_jobs_state_goes_when_long_unknown_and_not_before() {
    let (redis, upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let jobs = |folder: &JobsFolder| Arc::new(Jobs::load(folder.path(), HOUR, &|_| None).unwrap());
    let (without, with) = (jobs(&Art::of(&upstream).folder()), jobs(&stories(&upstream)));
    let job_cleaner = |jobs: &Arc<Jobs>| JobCleaner::new(parts.redis.clone(), parts.keys.clone(), Arc::clone(jobs));
    let (without, with) = (job_cleaner(&without), job_cleaner(&with));
    let name = JobName::new("story");
    parts.agenda.put(&name, &[story()], When::NOW, Trigger::Cron).await.unwrap();
    parts.agenda.put(&job(), &[art("a")], When::NOW, Trigger::Cron).await.unwrap();
    redis.ask::<usize>(&["ZADD", &parts.keys.schedules(), "1", "story", "1", "art"]).await;
    redis.ask::<usize>(&["HSET", &parts.keys.digests(), "story", "x", "art", "x"]).await;
    for key in &parts.keys.all_of(&name)[2..] {
        redis.set(key, "kept", HOUR).await;
    }
    let kept = async || redis.keys("samovar:*:{story}").await.len();
    let all = parts.keys.all_of(&name).len();
    let described = async || redis.ask::<Vec<String>>(&["HKEYS", "samovar:jobs"]).await;
    // What no worker ever said to know was left by one that did not say so.
    assert_eq!((without.round(0).await.unwrap(), kept().await), (0, all - 1));
    redis.ask::<usize>(&["HSET", "samovar:jobs", "story", "x", "art", "x", "never", "x"]).await;
    for _ in 0..3 {
        with.know().await.unwrap();
        for _ in 0..2 {
            assert_eq!((without.round(2).await.unwrap(), kept().await), (0, all));
        }
    }
    assert_eq!(described().await, ["story", "art"], "nobody ever knew the third");
    assert_eq!((without.round(2).await.unwrap(), kept().await), (1, 0));
    assert_eq!(described().await, ["art"]);
    assert_eq!(redis.ask::<Vec<String>>(&["ZRANGE", &parts.keys.schedules(), "0", "-1"]).await, ["art"]);
    assert_eq!(redis.ask::<Vec<String>>(&["HKEYS", &parts.keys.digests()]).await, ["art"]);
    assert!(parts.score("a").await.is_some());
}

#[tokio::test]
async fn key_patterns_of_jobs_that_nobody_knows_are_forgotten() {
    let (redis, upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let job_cleaner = |name: &str| {
        let toml = Art::of(&upstream).top("tags = [\"t\"]").toml().replace("art:{name}", &format!("{name}:{{name}}"));
        let folder = Art::of(&upstream).folder();
        folder.write("art.toml", &toml);
        let jobs = Jobs::load(folder.path(), HOUR, &|_| None).unwrap();
        JobCleaner::new(parts.redis.clone(), parts.keys.clone(), Arc::new(jobs))
    };
    let (art, poem) = (job_cleaner("art"), job_cleaner("poem"));
    let noted = async || redis.ask::<Vec<String>>(&["ZRANGE", "samovar:tagged", "0", "-1"]).await;
    for _ in 0..3 {
        poem.know().await.unwrap();
        for _ in 0..2 {
            art.round(2).await.unwrap();
            assert_eq!(noted().await, ["art:*", "poem:*"]);
        }
    }
    art.round(2).await.unwrap();
    assert_eq!(noted().await, ["art:*"]);
    redis.ask::<u64>(&["DEL", "samovar:tagged"]).await;
    redis.set("samovar:tagged", "a stranger's", HOUR).await;
    art.know().await.unwrap();
    art.round(2).await.unwrap();
}

/// Somebody dropped it who did not know the job, at the moment when this worker took it up.
#[tokio::test]
async fn a_schedule_that_is_missing_is_set_up_again() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).warm("schedule = \"0 0 1 1 *\"").folder();
    let mut worker = worker(&redis, &jobs);
    let scheduled = async || redis.ask::<Option<f64>>(&["ZSCORE", "samovar:{schedules}", "art"]).await.is_some();
    // Its end sets the next one.
    worker.wait_for_log(&["warmup", "entries=1"]).await;
    assert!(scheduled().await);
    redis.ask::<usize>(&["ZADD", "samovar:{schedules}", "9e15", "another"]).await;
    redis.ask::<usize>(&["ZREM", "samovar:{schedules}", "art"]).await;
    redis.ask::<usize>(&["HDEL", "samovar:{schedules}:digests", "art"]).await;
    eventually("it is scheduled again", scheduled).await;
}
