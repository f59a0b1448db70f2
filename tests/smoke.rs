//! The harness itself.
use crate::support::{Reply, TestRedis, Upstream, eventually};
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn a_redis_keeps_its_data_over_a_restart_if_it_is_asked_to() {
    let mut redis = TestRedis::options().append_only().start().await;
    redis.set("artwork_info:Mona Lisa", "{}", Duration::from_secs(60)).await;
    redis.restart().await;
    assert_eq!(redis.get("artwork_info:Mona Lisa").await.as_deref(), Some("{}"));
    assert!(redis.ttl("artwork_info:Mona Lisa").await.unwrap() <= Duration::from_secs(60));
}

#[tokio::test]
async fn a_redis_that_is_killed_comes_back_empty_on_the_same_port() {
    let mut redis = TestRedis::start().await;
    let url = redis.url();
    redis.set("key", "1", Duration::from_secs(60)).await;
    redis.kill9();
    redis.start_again().await;
    assert_eq!((redis.url(), redis.get("key").await), (url, None));
}

#[tokio::test]
async fn servers_of_two_tests_know_nothing_of_each_other() {
    let (one, other) = tokio::join!(TestRedis::start(), TestRedis::start());
    one.set("key", "1", Duration::from_secs(60)).await;
    assert_eq!(other.keys("*").await, Vec::<String>::new());
}

#[tokio::test]
async fn an_upstream_answers_as_it_is_told() {
    let upstream = Upstream::start().await;
    upstream.on_each("/flaky", [Reply::status(500), Reply::json(json!([1]))]);
    let ask = async |path: &str| client().get(format!("{}{path}", upstream.url())).send().await.unwrap();
    assert_eq!(ask("/flaky").await.status(), 500);
    assert_eq!(ask("/flaky").await.text().await.unwrap(), "[1]");
    assert_eq!(ask("/flaky").await.status(), 200);
    assert_eq!(ask("/unknown").await.status(), 404);
    upstream.on("/art/Mona Lisa", Reply::text("hm"));
    assert_eq!(ask("/art/Mona%20Lisa?size=big").await.status(), 200);
    assert_eq!(upstream.requests("/art/Mona Lisa")[0].target, "/art/Mona%20Lisa?size=big");
    assert_eq!((upstream.calls("/flaky"), upstream.calls("/art/Mona%20Lisa")), (3, 1));
}

#[tokio::test]
async fn an_upstream_knows_versions() {
    let upstream = Upstream::start().await;
    upstream.edit("/a");
    let url = format!("{}/a", upstream.url());
    let first = client().get(&url).send().await.unwrap();
    let tag = first.headers()["etag"].clone();
    let again = async || client().get(&url).header("If-None-Match", tag.clone()).send().await.unwrap();
    assert_eq!(again().await.status(), 304);
    assert_eq!(upstream.edit("/a"), 2);
    assert_eq!(again().await.text().await.unwrap(), json!({ "path": "/a", "version": 2 }).to_string());
}

#[tokio::test]
async fn an_answer_behind_a_gate_is_the_old_one_when_it_is_let_out() {
    let upstream = Upstream::start().await;
    upstream.edit("/a");
    let gate = upstream.gate("/a");
    let url = format!("{}/a", upstream.url());
    let old = async { client().get(&url).send().await.unwrap().text().await.unwrap() };
    let edit = async {
        gate.arrived(1).await;
        upstream.edit("/a");
        gate.open();
    };
    let (old, ()) = tokio::join!(old, edit);
    assert_eq!(old, json!({ "path": "/a", "version": 1 }).to_string());
    assert_eq!(upstream.most_in_flight("/a"), 1);
}

#[tokio::test]
async fn an_upstream_breaks_off_stalls_and_never_ends() {
    let upstream = Upstream::start().await;
    upstream.on("/cut", Reply::json(json!({ "long": "enough" })).cut_after(5));
    upstream.on("/stall", Reply::json(json!({ "long": "enough" })).stall_after(5));
    upstream.on("/silence", Reply::silence());
    let client = reqwest::Client::builder().timeout(Duration::from_millis(200)).build().unwrap();
    let ask = async |path: &str| client.get(format!("{}{path}", upstream.url())).send().await?.bytes().await;
    assert!(!ask("/cut").await.unwrap_err().is_timeout());
    assert!(ask("/stall").await.unwrap_err().is_timeout());
    assert!(ask("/silence").await.unwrap_err().is_timeout());
    eventually("nothing is in flight any more", async || upstream.in_flight() == 0).await;
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap()
}
