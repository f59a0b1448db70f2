//! The whole path: job files, a worker process, an upstream, and what the API then reads.

mod support;

use std::time::Duration;

use serde_json::json;
use support::{JobsFolder, Reply, TestRedis, Upstream, WorkerProcess, eventually};

fn artworks(upstream: &Upstream, more: &str) -> JobsFolder {
    JobsFolder::new().upstreams(&format!("[museum]\nurl = \"{}\"\n", upstream.url())).job(
        "artwork_info",
        &format!(
            r#"
            key = "artwork_info:{{artwork_name}}"
            ttl = "1h"
            {more}
            [source]
            kind = "http"
            upstream = "museum"
            path = "/artworks/{{{{ artwork_name }}}}"
            select = "/data"
            [entries]
            list = ["Mona Lisa", "Kaplumbağa Terbiyecisi"]
            "#
        ),
    )
}

#[tokio::test]
async fn listed_entries_are_readable_as_plain_json_with_a_ttl() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    upstream.otherwise(|call, _| Reply::json(json!({"data": {"path": call.path()}})));
    let jobs = artworks(&upstream, "");
    let _worker = WorkerProcess::spawn(&redis, &jobs);
    for (name, path) in
        [("Mona Lisa", "/artworks/Mona%20Lisa"), ("Kaplumbağa Terbiyecisi", "/artworks/Kaplumba%C4%9Fa%20Terbiyecisi")]
    {
        let key = format!("artwork_info:{name}");
        let value = eventually(&key, async || redis.json(&key).await).await;
        assert_eq!(value, json!({"path": path}));
        let ttl = redis.ttl(&key).await.expect("a value has a TTL");
        assert!(ttl > Duration::from_secs(3_500) && ttl <= Duration::from_secs(3_600), "{ttl:?}");
        assert_eq!(upstream.calls(&format!("/artworks/{name}")), 1);
    }
}
