//! Upstreams fail in every way: values stay, and other sources are not delayed by a sick one.

use std::time::Duration;

use serde_json::json;

use super::{both, version};
use crate::support::{Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, eventually, talkative};

const TIMEOUT: &str = "timeout = \"2s\"\nconcurrency = 4";

/// A sick upstream with the job `sick`, and a healthy one with the job `art`, each with a list of entries.
struct Two {
    redis: TestRedis,
    sick: Upstream,
    well: Upstream,
    _jobs: JobsFolder,
    worker: WorkerProcess,
}

impl Two {
    async fn start(reply: Reply) -> Self {
        let ((redis, sick), well) = tokio::join!(both(), Upstream::start());
        sick.otherwise(move |_, _| reply.clone());
        well.edit("/art/a");
        let names: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let jobs = Art::of(&well).list(["a"]).folder();
        jobs.write(
            "upstreams.toml",
            &format!("[museum]\nurl = \"{}\"\n{TIMEOUT}\n[sick]\nurl = \"{}\"\n{TIMEOUT}\n", well.url(), sick.url()),
        );
        jobs.write(
            "sick.toml",
            &format!(
                "key = \"sick:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"sick\"\n\
                 path = \"/{{{{ name }}}}\"\n[entries]\nlist = {}\n",
                json!(names)
            ),
        );
        // What was there before stays.
        redis.set("sick:0", "\"old\"", Duration::from_secs(600)).await;
        let worker = talkative(&redis, &jobs).env("SAMOVAR_CONCURRENCY", "4").spawn();
        Self { redis, sick, well, _jobs: jobs, worker }
    }

    /// While the sick one is asked, all goes well with the other; and nothing but a good answer replaces a value.
    async fn other_is_not_delayed(&mut self) {
        eventually("the sick one is asked", async || !self.sick.all_requests().is_empty()).await;
        let parts = Parts::of(&self.redis).await;
        for _ in 0..5 {
            let edited = self.well.edit("/art/a");
            parts.publish("art:a").await;
            // The sick one takes two seconds for each four of a hundred: a wait behind it would miss the deadline.
            version(&self.redis, "a", edited).await;
        }
        assert_eq!(self.redis.get("sick:0").await.as_deref(), Some("\"old\""));
        assert_eq!(self.redis.keys("sick:*").await, ["sick:0"]);
        assert!(self.worker.is_running());
        assert!(self.sick.most_at_once() <= 4, "{} at once", self.sick.most_at_once());
        assert!(self.sick.most_in_flight_for_any() <= 1);
    }

    async fn recovers(&self) {
        self.sick.otherwise(|_, _| Reply::json(json!("new")));
        eventually("it is asked again", async || self.redis.keys("sick:*").await.len() > 1).await;
    }
}

#[tokio::test]
async fn one_that_hangs_delays_no_other() {
    Two::start(Reply::silence()).await.other_is_not_delayed().await;
}

#[tokio::test]
async fn one_that_stops_in_the_middle_delays_no_other() {
    Two::start(Reply::json(json!({"long": "x".repeat(1_000)})).stall_after(10)).await.other_is_not_delayed().await;
}

#[tokio::test]
async fn one_that_trickles_a_byte_a_second_delays_no_other() {
    let reply = Reply::json(json!({"long": "x".repeat(1_000)})).trickling(Duration::from_secs(1));
    Two::start(reply).await.other_is_not_delayed().await;
}

#[tokio::test]
async fn one_that_is_cut_off_delays_no_other() {
    let mut two = Two::start(Reply::json(json!({"long": "x".repeat(1_000)})).cut_after(500)).await;
    two.other_is_not_delayed().await;
    two.recovers().await;
}

#[tokio::test]
async fn one_that_fails_with_500_delays_no_other_and_is_left_alone() {
    let mut two = Two::start(Reply::status(500)).await;
    two.other_is_not_delayed().await;
    two.worker.wait_for_log(&["its breaker is open"]).await;
    let asked = two.sick.all_requests().len();
    assert!(asked < 40, "asked {asked} times though it fails each time");
    two.recovers().await;
}

#[tokio::test]
async fn one_that_asks_to_wait_is_left_alone_for_that_time() {
    let mut two = Two::start(Reply::status(429).header("Retry-After", "2")).await;
    two.other_is_not_delayed().await;
    let requests = two.sick.all_requests();
    assert!(requests.len() <= 4 * (2 + requests.last().unwrap().at.duration_since(requests[0].at).as_secs() as usize));
    two.recovers().await;
}

#[tokio::test]
async fn one_that_answers_nonsense_delays_no_other() {
    for nonsense in ["", "<html>", "{\"a\": ", "\u{0}\u{1}", "NaN", "{} {}"] {
        Two::start(Reply::text(nonsense)).await.other_is_not_delayed().await;
    }
}

#[tokio::test]
async fn one_that_refuses_connections_delays_no_other() {
    let (redis, well) = both().await;
    well.edit("/art/a");
    let names: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let jobs = Art::of(&well).list(["a"]).folder();
    jobs.write(
        "upstreams.toml",
        &format!("[museum]\nurl = \"{}\"\n[sick]\nurl = \"http://127.0.0.1:1\"\n", well.url()),
    );
    jobs.write(
        "sick.toml",
        &format!(
            "key = \"sick:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"sick\"\n\
             path = \"/{{{{ name }}}}\"\n[entries]\nlist = {}\n",
            json!(names)
        ),
    );
    let mut worker = talkative(&redis, &jobs).spawn();
    worker.wait_for_log(&["its breaker is open"]).await;
    let parts = Parts::of(&redis).await;
    for _ in 0..5 {
        let edited = well.edit("/art/a");
        parts.publish("art:a").await;
        version(&redis, "a", edited).await;
    }
    assert!(worker.is_running());
}

/// The lease ended, and somebody else fetched it meanwhile.
#[tokio::test]
async fn an_answer_after_the_lease_has_ended_is_dropped() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let gate = upstream.gate("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = talkative(&redis, &jobs).spawn();
    gate.arrived(1).await;
    let lease = redis.keys("samovar:lease:*").await.remove(0);
    redis.ask::<u64>(&["DEL", &lease]).await;
    gate.open();
    worker.wait_for_log(&["fenced"]).await;
    version(&redis, "a", 1).await;
    assert!(upstream.calls("/art/a") >= 2, "it was fetched again");
}
