//! Hostile keys, values, reasons and notes, on every screen that shows them.

use serde_json::json;

use super::{Console, OWNER, both, encoded, with_roles};
use crate::support::{Art, Reply, eventually, readable_key};

/// Markup, a sequence of a terminal, and a character that turns the direction of text.
const HOSTILE: &str = "<script>alert(1)</script>\u{1b}[31m\u{202e}";
/// Too much for a page.
const LONG: usize = 1_000_000;
const LONGEST_PAGE: usize = 150_000;

#[tokio::test]
async fn nothing_hostile_is_shown_but_as_text() {
    let (redis, upstream) = both().await;
    let (long, reason) = ("x".repeat(LONG), format!("{HOSTILE} {}", "y".repeat(LONG)));
    upstream.otherwise(move |_, _| {
        Reply::json(json!({"hostile": "</pre><img src=x onerror=alert(1)>\u{1b}[2J\u{202e}", "long": long}))
    });
    upstream.answer("/art/bad", move |_, _| Reply::text(&reason).with_status(400));
    let description = format!("description = {}\n", json!("</p><img src=x onerror=alert(1)>\u{202e}"));
    let jobs = Art::of(&upstream).top(&description).list([HOSTILE, "bad"]).warm("attempts = 1").folder();
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let owner = console.log_in(OWNER).await;
    let key = format!("art:{HOSTILE}");
    readable_key(&redis, &key).await;
    eventually("it is given up", async || console.page(&owner, "/console/dead").await.contains("art:bad")).await;
    let letters = console.page(&owner, "/console/dead").await;
    let retry = letters.split("href=\"").find_map(|link| link.strip_prefix("/console/ask/retry")).unwrap();
    let retry = format!("/console/ask/retry{}", retry.split('"').next().unwrap().replace("&amp;", "&"));
    console.act(&owner, "invalidate", &[("key", &key)]).await;
    console.act(&owner, "pause", &[("job", "art"), ("note", HOSTILE)]).await;

    let entry = format!("/console/entry?key={}", encoded(&key));
    let [refresh, evict] = ["invalidate", "evict"].map(|name| format!("/console/ask/{name}?key={}", encoded(&key)));
    let name = format!("/console/jobs?name={}", encoded(HOSTILE));
    let screens = [
        "/",
        "/console/jobs",
        &name,
        "/console/jobs/art",
        &entry,
        "/console/entry?key=art:bad",
        "/console/agenda",
        "/console/upstreams",
        "/console/dead",
        &retry,
        "/console/fleet",
        "/console/audit",
        &refresh,
        &evict,
        "/console/ask/pause?job=art",
    ];
    for path in screens {
        // What a form sends back must be exact; it is an attribute of what nobody sees.
        let page = console.page(&owner, path).await;
        let parts = page.split("<input type=\"hidden\"").enumerate();
        let seen = parts.map(|(nth, part)| if nth == 0 { part } else { part.split_once('>').unwrap().1 });
        let (page, length) = (seen.collect::<String>(), page.len());
        for never in ["<script>alert", "<img", "\u{1b}", "\u{202e}"] {
            assert!(!page.contains(never), "{path} has {never:?}: {page}");
        }
        assert!(length < LONGEST_PAGE, "{path} has {length} bytes");
    }
    // They were there to be shown.
    for path in [entry.as_str(), "/console/audit", "/console/dead", "/console/jobs/art", &refresh, &retry] {
        let page = console.page(&owner, path).await;
        assert!(page.contains("&lt;script&gt;alert(1)"), "{path}: {page}");
    }
    let page = console.page(&owner, &entry).await;
    assert!(page.contains("&lt;img src=x") && page.contains("The beginning; the whole has 1,000,"), "{page}");
    assert!(console.page(&owner, "/console/jobs/art").await.contains("&lt;/p&gt;&lt;img src=x"));
    assert!(console.page(&owner, "/console/audit").await.matches("&lt;script&gt;alert(1)").count() >= 2);
    // Nor in what cannot be shown.
    for path in [format!("/console/jobs/{}", encoded(HOSTILE)), format!("/console/ask/{}", encoded(HOSTILE))] {
        let answer = super::send(console.request("GET", &path).header("cookie", &owner)).await;
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        assert!(answer.text.contains("&lt;script&gt;") && !answer.text.contains("<script>"), "{path}: {answer:?}");
    }
}
