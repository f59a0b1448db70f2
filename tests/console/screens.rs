//! The content of the screens, and the effect of actions, with a real worker behind them.

use serde_json::json;

use super::{Console, OWNER, VIEWER, both, encoded, send, with_roles};
use crate::support::{Art, Parts, Reply, eventually, readable_key};

#[tokio::test]
async fn a_viewer_sees_reasons_and_only_if_allowed_values() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"by": "Frida Kahlo"})));
    upstream.answer("/art/bad", |_, _| Reply::text("account of Diego").with_status(400));
    let jobs = Art::of(&upstream).list(["a", "bad"]).warm("attempts = 1").folder();
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let shows = Console::of(with_roles(&redis, &jobs).env("SAMOVAR_VIEWER_VALUES", "on")).await;
    let open = Console::at("0.0.0.0:0", crate::support::talkative(&redis, &jobs)).await;
    readable_key(&redis, "art:a").await;
    let (owner, viewer) = (console.log_in(OWNER).await, console.log_in(VIEWER).await);
    eventually("it is given up", async || console.page(&owner, "/console/dead").await.contains("art:bad")).await;
    let entry = "/console/entry?key=art:a";
    assert!(console.page(&owner, entry).await.contains("Frida Kahlo"));
    assert!(!console.page(&viewer, entry).await.contains("Frida Kahlo"));
    assert!(shows.page(&viewer, entry).await.contains("Frida Kahlo"));
    assert!(!open.page("", entry).await.contains("Frida Kahlo"));
    for path in ["/console/dead", "/console/entry?key=art:bad"] {
        assert!(console.page(&viewer, path).await.contains("account of Diego"), "{path}");
        assert!(!open.page("", path).await.contains("account of Diego"), "{path}");
    }
    // No button that would be refused.
    assert!(
        console.page(&owner, entry).await.contains("/console/ask/")
            && !console.page(&viewer, entry).await.contains("/console/ask/")
    );
}

#[tokio::test]
async fn what_is_changed_is_in_the_audit_log_and_happens() {
    let (redis, upstream) = both().await;
    upstream.answer("/art/bad", |_, count| match count {
        1 => Reply::status(500),
        _ => Reply::json(json!({"count": count})),
    });
    let jobs = Art::of(&upstream).list(["a", "bad"]).warm("attempts = 1\nevery = \"1h\"").folder();
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let owner = console.log_in(OWNER).await;
    readable_key(&redis, "art:a").await;
    eventually("it is given up", async || console.page(&owner, "/console/dead").await.contains("art:bad")).await;

    let asked = console.page(&owner, "/console/ask/invalidate?job=art").await;
    assert!(asked.contains("art: 2 entries, 2 requests"), "{asked}");
    console.act(&owner, "pause", &[("job", "art"), ("note", "moving <house>")]).await;
    let paused = console.page(&owner, "/console/jobs/art").await;
    assert!(paused.contains("moving &lt;house&gt;") && paused.contains("/console/ask/resume?job=art"), "{paused}");
    console.act(&owner, "resume", &[("job", "art")]).await;
    assert!(!console.page(&owner, "/console/jobs/art").await.contains("moving"));

    let parts = Parts::of(&redis).await;
    let job = &crate::support::job();
    let cause = parts_cause(&parts, job).await;
    let asked = console.page(&owner, &format!("/console/ask/retry?job=art&cause={}", encoded(&cause))).await;
    assert!(asked.contains("1 entry is tried again"), "{asked}");
    console.act(&owner, "retry", &[("job", "art"), ("cause", &cause)]).await;
    readable_key(&redis, "art:bad").await;

    let before = upstream.calls("/art/a");
    console.act(&owner, "invalidate", &[("key", "art:a")]).await;
    eventually("it is fetched again", async || upstream.calls("/art/a") > before).await;
    console.act(&owner, "evict", &[("key", "art:a")]).await;
    eventually("it is removed", async || redis.get("art:a").await.is_none()).await;
    console.act(&owner, "warm", &[("job", "art")]).await;
    readable_key(&redis, "art:a").await;

    let program = send(console.request("POST", "/jobs/art/resume").bearer_auth(OWNER)).await;
    assert_eq!(program.status, 200, "{program:?}");
    let log = console.page(&owner, "/console/audit").await;
    for action in ["pause", "resume", "retry", "invalidate", "evict", "warm", "/jobs/art/resume"] {
        assert!(log.contains(action), "{action}: {log}");
    }
    assert_eq!(redis.ask::<usize>(&["XLEN", "samovar:audit-log"]).await, 7);
}

async fn parts_cause(parts: &Parts, job: &samovar::entry::JobName) -> String {
    let reasons: Vec<String> =
        redis::cmd("HVALS").arg(parts.keys.dead_reasons(job)).query_async(&mut parts.redis.clone()).await.unwrap();
    // The path of the URL names the entry.
    let reason = reasons[0].split(' ').map(|word| match word.starts_with("http://") {
        true => format!("{}/…", word.splitn(4, '/').take(3).collect::<Vec<_>>().join("/")),
        false => word.to_owned(),
    });
    reason.collect::<Vec<_>>().join(" ")
}
