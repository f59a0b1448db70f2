//! Somebody else's key of another type stands at each of Samovar's own names, one after the other, during work: the key
//! is told with the remedy, everything that does not need it goes on, and all is well again once it is deleted.

use std::time::Duration;

use samovar::entry::{EntryKey, JobName, UpstreamName};
use samovar::protocol::Keys;
use serde_json::{Value, json};

use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, eventually, eventually_within, samovar,
    talkative,
};

/// The longest time until the fault is reported, and until recovery: claims and leases of a few seconds expire.
const SOON: Duration = Duration::from_secs(60);

/// A worker with the job `art` of the upstream `museum`, whose keys are replaced, and the job `song` of another.
struct Stage {
    redis: TestRedis,
    museum: Upstream,
    radio: Upstream,
    worker: WorkerProcess,
    http: String,
    client: reqwest::Client,
    parts: Parts,
    jobs: JobsFolder,
}

impl Stage {
    async fn begin() -> Self {
        let stage = Self::on(TestRedis::start().await).await;
        stage.works("at first").await;
        stage
    }

    async fn on(redis: TestRedis) -> Self {
        let (museum, radio) = tokio::join!(Upstream::start(), Upstream::start());
        let art = Art::of(&museum)
            .top("tags = [\"tag {{ name }}\"]")
            .entries("popular = 10")
            .warm("every = \"1s\"\nrecheck = [\"100ms\"]")
            .list(["1", "2"]);
        let song = art
            .clone()
            .top("")
            .toml()
            .replace("art:{name}", "song:{name}")
            .replace("museum", "radio")
            .replace("/art/", "/song/");
        let limits = "concurrency = 8\nrate = \"1000/second\"\ntimeout = \"2s\"\ntokens = \"1000/day\"";
        let upstream = |name: &str, url: &str| format!("[{name}]\nurl = \"{url}\"\n{limits}\n");
        let upstreams = [upstream("museum", museum.url()), upstream("radio", radio.url())].concat();
        let jobs = JobsFolder::new().upstreams(&upstreams).job("art", &art.toml()).job("song", &song);
        for name in ["1", "2"] {
            museum.edit(&format!("/art/{name}"));
            radio.edit(&format!("/song/{name}"));
        }
        let worker = talkative(&redis, &jobs).env("SAMOVAR_CLAIM", "2s").env("SAMOVAR_SAMPLE", "500ms");
        let mut worker = worker.env("SAMOVAR_MISSES", "on").env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
        let http = worker.http().await;
        let client = reqwest::Client::builder().timeout(SOON).build().unwrap();
        let parts = Parts::of(&redis).await;
        Self { redis, museum, radio, worker, http, client, parts, jobs }
    }

    /// Returns the status and the body of the worker's `/health`.
    async fn health(&self) -> (u16, Value) {
        let answer = self.client.get(format!("{}/health", self.http)).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// An edit of an entry gets through, by the channel.
    async fn refreshes(&self, job: &str, upstream: &Upstream, when: &str) {
        let new = upstream.edit(&format!("/{job}/1"));
        let key = format!("{job}:1");
        eventually_within(SOON, &format!("{key} is refreshed {when}"), async || {
            self.redis.publish("samovar:invalidate", &key).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            let value = self.redis.json(&key).await;
            if value.as_ref().is_some_and(|value| value["version"] == new) { Ok(()) } else { Err(value) }
        })
        .await;
    }

    /// The worker is well, and both jobs' entries are refreshed.
    async fn works(&self, when: &str) {
        self.refreshes("song", &self.radio, when).await;
        self.refreshes("art", &self.museum, when).await;
        eventually_within(SOON, &format!("it is healthy {when}"), async || match self.health().await {
            (200, health) if health["status"] == "healthy" => Ok(()),
            health => Err(health),
        })
        .await;
    }

    /// A key of another type stands at this name, and goes again.
    async fn survives(&mut self, key: &str, others_go_on: bool) {
        let begun = std::time::Instant::now();
        let expected = self.parts.keys.type_of(key).unwrap();
        let plant = match expected {
            "set" | "list" => "redis.call('DEL', KEYS[1]) return redis.call('SET', KEYS[1], 'x')",
            _ => "redis.call('DEL', KEYS[1]) return redis.call('SADD', KEYS[1], 'x')",
        };
        self.redis.ask::<redis::Value>(&["EVAL", plant, "1", key]).await;
        // What needs no look at the present one is written over.
        let is_there = async || ![expected, "none"].contains(&&*self.redis.ask::<String>(&["TYPE", key]).await);
        let touch = async || {
            // Entries and tags are looked at where somebody asks.
            for message in [json!({"keys": ["art:1"]}), json!({"tags": ["tag 1"]})] {
                self.redis.publish("samovar:invalidate", &message.to_string()).await;
            }
        };
        let (code, health) = eventually_within(SOON, &format!("{key} is named"), async || {
            touch().await;
            let (code, health) = self.health().await;
            assert!(!health.to_string().contains("wrong kind of value"), "{health}");
            let named = health["reasons"].as_array().unwrap().iter().any(|reason| {
                let reason = reason.as_str().unwrap();
                reason.contains(&format!("key {key} holds a")) && reason.contains("delete or rename it")
            });
            if named || !is_there().await { Ok((code, health)) } else { Err(health) }
        })
        .await;
        if is_there().await {
            let of_all = [self.parts.keys.inbox(), self.parts.keys.agenda(&JobName::new("art"))];
            assert_eq!(code == 503, !others_go_on || *key == of_all[0], "{key}: {health}");
            let names = self.parts.keys.all_fixed([&JobName::new("art")], [&UpstreamName::new("museum")]);
            if names.iter().any(|name| name == key) {
                let printed = samovar(["jobs"]).redis(&self.redis).jobs(&self.jobs).run().await;
                assert_eq!(printed.code, Some(0), "{key}: {}", printed.stderr);
                let printed = printed.stdout;
                let printed = printed.split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(printed.contains(key), "{key}: {printed}");
            }
        }
        if others_go_on {
            self.refreshes("song", &self.radio, &format!("beside {key}")).await;
        }
        eprintln!("{key}: told after {:?}", begun.elapsed());
        let named = self.worker.log().iter().filter(|line| line.contains("WARN") && line.contains(key)).count();
        assert!(named <= 3, "{key} is told {named} times");
        if is_there().await {
            self.redis.ask::<u64>(&["DEL", key]).await;
        }
        self.works(&format!("after {key} went")).await;
        eprintln!("{key}: over after {:?}", begun.elapsed());
        assert!(self.worker.is_running(), "it ended over {key}");
    }
}

fn keys() -> Keys {
    Keys::new("samovar", "samovar:invalidate")
}

#[tokio::test]
async fn a_wrong_type_at_a_job_s_key_is_told_and_hurts_no_other() {
    let mut stage = Stage::begin().await;
    for key in keys().all_of(&JobName::new("art")) {
        stage.survives(&key, true).await;
    }
}

#[tokio::test]
async fn a_wrong_type_at_an_upstream_or_entry_hurts_no_other() {
    let mut stage = Stage::begin().await;
    let (keys, art, museum) = (keys(), EntryKey::new("art:1"), UpstreamName::new("museum"));
    for key in keys.upstream(&museum).into_iter().chain([keys.fetched(&museum)]) {
        stage.survives(&key, true).await;
    }
    for key in [keys.lease(&art), keys.meta(&art), keys.tag("tag 1")] {
        stage.survives(&key, true).await;
    }
}

#[tokio::test]
async fn a_wrong_type_at_a_key_of_the_fleet_stops_no_refresh() {
    let mut stage = Stage::begin().await;
    for key in keys().all_fixed([], []).into_iter().filter(|key| !keys().is_of_queue(key)) {
        stage.survives(&key, true).await;
    }
}

#[tokio::test]
async fn wrong_types_that_a_worker_starts_among_hurt_no_other_job() {
    let redis = TestRedis::start().await;
    let fixed = keys().all_fixed([&JobName::new("art")], [&UpstreamName::new("museum")]);
    // Without the fleet's schedules nothing is warmed up, whichever job it is.
    for key in fixed.iter().filter(|key| !keys().is_of_queue(key) && !key.contains("{schedules}")) {
        redis.ask::<u64>(&["LPUSH", key, "x"]).await;
    }
    let stage = Stage::on(redis).await;
    stage.refreshes("song", &stage.radio, "at first").await;
    redis_has_all(&stage, &["song:1", "song:2"]).await;
    stage.redis.ask::<u64>(&[&["DEL"], &*fixed.iter().map(String::as_str).collect::<Vec<_>>()].concat()).await;
    stage.works("after all went").await;
    redis_has_all(&stage, &["art:1", "art:2"]).await;
}

/// The log names the entry and why it was given up, since no dead letter can.
#[tokio::test]
async fn a_letter_that_cannot_be_kept_is_in_the_log() {
    let (redis, museum) = tokio::join!(TestRedis::start(), Upstream::start());
    museum.on("/art/1", Reply::status(500));
    redis.ask::<u64>(&["SADD", &keys().dead(&JobName::new("art")), "x"]).await;
    let jobs = Art::of(&museum).list(["1"]).warm("attempts = 1").folder();
    let mut worker = talkative(&redis, &jobs).spawn();
    worker.wait_for_log(&["WARN", "art:1", "failed 1 times", "no dead letter", "WRONGTYPE"]).await;
    let agenda = keys().agenda(&JobName::new("art"));
    eventually("it has left the agenda", async || redis.ask::<u64>(&["ZCARD", &agenda]).await == 0).await;
}

async fn redis_has_all(stage: &Stage, keys: &[&str]) {
    eventually_within(SOON, "all are warm", async || {
        let there: usize = stage.redis.ask(&[&["EXISTS"], keys].concat()).await;
        if there == keys.len() { Ok(()) } else { Err(there) }
    })
    .await;
}

#[tokio::test]
async fn a_wrong_type_at_the_queue_s_keys_makes_it_unready() {
    let mut stage = Stage::begin().await;
    for key in keys().all_fixed([], []).into_iter().filter(|key| keys().is_of_queue(key)) {
        stage.survives(&key, false).await;
    }
    let worker = eventually("its name", async || stage.health().await.1["worker"].as_str().map(str::to_owned)).await;
    stage.survives(&format!("{{samovar:queue}}:inflight:{worker}"), false).await;
}
