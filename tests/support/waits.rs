//! Waits for states of entries.

use std::time::Duration;

use serde_json::Value;

use super::{TestRedis, eventually};

/// Waits until an entry of the job `art` is readable, and returns its value.
pub async fn readable(redis: &TestRedis, name: &str) -> Value {
    readable_key(redis, &format!("art:{name}")).await
}

/// Waits until a key is readable, and returns its value.
pub async fn readable_key(redis: &TestRedis, key: &str) -> Value {
    eventually(&format!("{key} is readable"), async || redis.json(key).await).await
}

/// Waits until an entry of the job `art` is readable in this version.
pub async fn version(redis: &TestRedis, name: &str, version: u64) {
    let key = format!("art:{name}");
    eventually(&format!("version {version} of {key} is readable"), async || match redis.json(&key).await {
        Some(value) if value["version"] == version => Ok(()),
        other => Err(other),
    })
    .await;
}

/// Waits until no warmup runs and no entry of the job `art` is urgent, claimed or running.
pub async fn at_rest(redis: &TestRedis) {
    eventually("no warmup runs and nothing is being warmed", async || {
        let ticks: usize = redis.ask(&["HLEN", "samovar:{schedules}:ticks"]).await;
        let busy: Vec<String> = redis.ask(&["ZRANGEBYSCORE", "samovar:agenda:{art}", "-inf", "(0"]).await;
        if ticks == 0 && busy.is_empty() { Ok(()) } else { Err((ticks, busy)) }
    })
    .await;
}

/// Waits until so many workers listen, or more. A worker that starts subscribes to one channel at a time to check its
/// rights; a worker that listens is subscribed to all three over one connection.
pub async fn listening(redis: &TestRedis, workers: usize) {
    eventually(&format!("{workers} workers listen"), async || {
        let clients: String = redis.ask(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
        if clients.matches(" sub=3 ").count() >= workers { Ok(()) } else { Err(clients) }
    })
    .await;
}

/// Publishes an invalidation on the channel, once a worker listens.
pub async fn publish(redis: &TestRedis, message: &str) {
    listening(redis, 1).await;
    eventually("a worker hears the channel", async || redis.publish("samovar:invalidate", message).await > 0).await;
}

/// Publishes to the inbox, and has a reader that disappears read the message: tried until it is the one that gets it.
pub async fn give_to_a_dead_reader(server: &TestRedis, message: &str) {
    let mut connection = server.connection().await;
    let mut read = redis::cmd("XREADGROUP");
    read.arg(&["GROUP", "samovar", "crashed", "COUNT", "1", "STREAMS", "samovar:inbox", ">"]);
    loop {
        let mut both = redis::pipe();
        both.atomic();
        both.cmd("XADD").arg(&["samovar:inbox", "*", "message", message]).ignore();
        both.add_command(read.clone());
        let (reply,): (redis::Value,) = both.query_async(&mut connection).await.unwrap();
        if reply != redis::Value::Nil {
            return;
        }
    }
}

/// Returns the answer to a `GET` of this URL.
pub async fn http_get(url: &str) -> reqwest::Response {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
    client.get(url).send().await.unwrap()
}
