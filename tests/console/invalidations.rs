//! The console on invalidations, and on the work under way for an entry.

use serde_json::json;

use super::{Console, OWNER, VIEWER, both, filled, send, with_roles};
use crate::support::{Art, Parts, eventually, readable, samovar};

impl Console {
    async fn text(&self, cookie: &str, path: &str) -> String {
        let answer = send(self.request("GET", path).header("cookie", cookie)).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.text
    }
}

#[tokio::test]
async fn invalidations_are_listed_with_their_way_and_effect() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let consoles = [Console::of(with_roles(&redis, &jobs)).await, Console::of(with_roles(&redis, &jobs)).await];
    let [console, _] = &consoles;
    readable(&redis, "a").await;
    crate::support::listening(&redis, 2).await;
    redis.publish("samovar:invalidate", "art:a").await;
    redis.publish("samovar:invalidate", r#"{"keyz": ["art:<a>"]}"#).await;
    let parts = Parts::of(&redis).await;
    parts.publish(&json!({"keys": ["poem:1"], "tags": ["loan"], "action": "evict"}).to_string()).await;
    let owner = console.log_in(OWNER).await;
    let path = "/console/invalidations";
    eventually("both workers noted the two, and one noted that of the inbox", async || {
        let count = redis.ask::<usize>(&["XLEN", "samovar:heard"]).await;
        if count == 5 { Ok(()) } else { Err(count) }
    })
    .await;
    let page = console.text(&owner, path).await;
    assert_eq!(page.matches("key art:a<").count(), 1, "two workers heard one message: {page}");
    assert!(page.contains("key poem:1; tag loan") && page.contains("<td>inbox</td>"), "{page}");
    assert!(page.contains("malformed</span>") && page.contains("art:&lt;a&gt;"), "{page}");
    let inbox = console.text(&owner, &format!("{path}?way=inbox")).await;
    assert!(inbox.contains("poem:1") && !inbox.contains("art:a"), "{inbox}");
    let foreign = console.text(&owner, &format!("{path}?only=foreign")).await;
    assert!(foreign.contains("poem:1") && !foreign.contains("art:a"), "{foreign}");
    let viewer = console.log_in(VIEWER).await;
    assert!(!console.text(&viewer, path).await.contains("/console/compose"), "no form that would be refused");
}

#[tokio::test]
async fn an_invalidation_is_previewed_before_it_is_sent() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a", "b"]).folder();
    let console = Console::of(with_roles(&redis, &jobs)).await;
    readable(&redis, "a").await;
    readable(&redis, "b").await;
    let owner = console.log_in(OWNER).await;
    let path = "/console/compose?kind=pattern&name=art:*&action=evict";
    let composed = send(console.request("GET", path).header("cookie", &owner)).await;
    assert_eq!(composed.header("location"), "/console/ask/evict?pattern=art%3A%2A", "{composed:?}");
    let asked = console.text(&owner, composed.header("location")).await;
    assert!(asked.contains("the values of 2 entries are removed"), "{asked}");
    assert!(redis.get("art:a").await.is_some(), "nothing is sent before somebody says so");
    let request = filled(console.request("POST", "/console/do/evict"), &[("pattern", "art:*")]);
    let sent = send(request.header("cookie", &owner).header("sec-fetch-site", "same-origin")).await;
    assert_eq!((sent.status.as_u16(), sent.header("location")), (303, "/console/invalidations"), "{sent:?}");
    eventually("the values are removed", async || redis.get("art:a").await.is_none()).await;
    let empty = send(console.request("GET", "/console/compose?kind=key&name=").header("cookie", &owner)).await;
    assert_eq!(empty.status, 422);
}

#[tokio::test]
async fn an_entry_tells_who_fetches_it_and_since_when() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let console = Console::of(with_roles(&redis, &jobs)).await;
    readable(&redis, "a").await;
    let gate = upstream.gate("/art/a");
    let parts = Parts::of(&redis).await;
    parts.publish(&json!({"keys": ["art:a"]}).to_string()).await;
    gate.arrived(1).await;
    let owner = console.log_in(OWNER).await;
    let page = console.text(&owner, "/console/entry?key=art:a").await;
    assert!(page.contains("fetches it, since") && page.contains("fetch began, which is under way"), "{page}");
    let told = samovar(["get", "art:a"]).redis(&redis).run().await.stdout;
    assert!(told.contains("lease ") && told.contains("fetches it, since"), "{told}");
    parts.publish(&json!({"keys": ["art:a"], "action": "evict"}).to_string()).await;
    eventually("its lease is marked", async || {
        let told = samovar(["get", "art:a", "--json"]).redis(&redis).run().await.stdout;
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        told["under_way"]["lease"]["mark"] == "evict"
    })
    .await;
    gate.open();
}
