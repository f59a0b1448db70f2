//! The words for a person if something cannot be read or done.

use super::{Console, OWNER, VIEWER, both, encoded, send, with_roles};
use crate::support::{Art, eventually, readable_key, talkative};

const LOG: &str = "samovar:audit-log";

#[tokio::test]
async fn what_cannot_be_noted_is_not_done() {
    let (redis, upstream) = both().await;
    let console = Console::of(with_roles(&redis, &Art::of(&upstream).list(["a"]).folder())).await;
    let owner = console.log_in(OWNER).await;
    readable_key(&redis, "art:a").await;
    redis.ask::<String>(&["SET", LOG, "of another program"]).await;
    for (action, form) in [("pause", [("job", "art")]), ("evict", [("key", "art:a")]), ("evict", [("job", "art")])] {
        let answer = console.try_to_act(&owner, action, &form).await;
        assert_eq!(answer.status, 503, "{action}: {answer:?}");
        assert!(answer.text.contains("Nothing was changed"), "{action}: {answer:?}");
        assert!(!answer.text.contains("data-waits"), "no script sends it again: {answer:?}");
    }
    assert!(!console.page(&owner, "/console/jobs/art").await.contains("Paused"));
    assert!(redis.get("art:a").await.is_some() && redis.ask::<usize>(&["EXISTS", "samovar:paused:{art}"]).await == 0);
    let log = console.page(&owner, "/console/audit").await;
    assert!(log.contains("cannot be read") && !log.contains("Nothing was changed yet"), "{log}");
    redis.ask::<usize>(&["DEL", LOG]).await;
    console.act(&owner, "pause", &[("job", "art")]).await;
    assert_eq!(redis.ask::<usize>(&["XLEN", LOG]).await, 1);
}

/// A page is asked for again while Redis is away; an action never is.
#[tokio::test]
async fn only_a_page_waits_for_redis() {
    let (mut redis, upstream) = both().await;
    let console = Console::of(with_roles(&redis, &Art::of(&upstream).list(["a"]).folder())).await;
    let owner = console.log_in(OWNER).await;
    redis.stop().await;
    let page = send(console.request("GET", "/").header("cookie", &owner)).await;
    assert_eq!((page.status.as_u16(), page.text.contains("data-waits")), (503, true), "{page:?}");
    let port = redis.port().to_string();
    assert!(page.text.contains("<li>") && page.text.contains(&port), "the health of the worker is told: {page:?}");
    let action = console.try_to_act(&owner, "pause", &[("job", "art")]).await;
    assert_eq!((action.status.as_u16(), action.text.contains("data-waits")), (503, false), "{action:?}");
    redis.start_again().await;
    eventually("it works again", async || {
        send(console.request("GET", "/").header("cookie", &owner)).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn an_action_that_names_two_things_changes_neither() {
    let (redis, upstream) = both().await;
    let console = Console::of(with_roles(&redis, &Art::of(&upstream).list(["a"]).folder())).await;
    let owner = console.log_in(OWNER).await;
    readable_key(&redis, "art:a").await;
    let both_named = [("job", "art"), ("key", "art:a")];
    for action in ["warm", "pause", "resume", "invalidate", "evict", "retry"] {
        let answer = console.try_to_act(&owner, action, &both_named).await;
        assert_eq!(answer.status, 422, "{action}: {answer:?}");
        let asked = console.request("GET", &format!("/console/ask/{action}?job=art&key=art:a"));
        assert_eq!(send(asked.header("cookie", &owner)).await.status, 422, "{action}");
    }
    for action in ["pause", "resume", "retry"] {
        let answer = console.try_to_act(&owner, action, &[("key", "art:a")]).await;
        assert_eq!(answer.status, 422, "{action}: {answer:?}");
    }
    assert_eq!(redis.ask::<usize>(&["EXISTS", LOG, "samovar:paused:{art}"]).await, 0);
    assert!(redis.get("art:a").await.is_some());
}

#[tokio::test]
async fn a_fault_of_an_address_is_told_on_a_page() {
    let (redis, upstream) = both().await;
    let console = Console::of(with_roles(&redis, &Art::of(&upstream).list(["a"]).folder())).await;
    let owner = console.log_in(OWNER).await;
    for path in [
        "/console/jobs/art?from=x",
        "/console/jobs/art?from=9223372036854775808",
        "/console/jobs/art?from=18446744073709551615",
        "/console/dead?from=-1",
        "/console/audit?before=-",
        "/console/audit?before=x",
    ] {
        let answer = send(console.request("GET", path).header("cookie", &owner)).await;
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        assert!(answer.header("content-type").starts_with("text/html"), "{path}: {answer:?}");
        assert!(answer.text.contains("The address cannot be read"), "{path}: {answer:?}");
    }
    assert!(console.page(&owner, "/console/jobs/art?from=4294967295").await.contains("None on this page"));
    // What is refused before it reaches a screen is a page, too.
    let foreign = send(console.request("GET", "/console/jobs").header("host", "evil.example")).await;
    assert_eq!((foreign.status.as_u16(), foreign.header("x-frame-options")), (403, "DENY"), "{foreign:?}");
    assert!(foreign.text.contains("<h1>Forbidden"), "{foreign:?}");
    let api = send(console.request("GET", "/jobs").header("host", "evil.example")).await;
    assert_eq!(api.header("content-type"), "application/problem+json", "{api:?}");
}

#[tokio::test]
async fn what_programs_change_is_noted_with_its_answer() {
    let (redis, upstream) = both().await;
    let console = Console::of(with_roles(&redis, &Art::of(&upstream).list(["a"]).folder())).await;
    let owner = console.log_in(OWNER).await;
    readable_key(&redis, "art:a").await;
    for (method, path, status) in [("DELETE", "/redis/clear?pattern=art:*", 200), ("POST", "/jobs/nobody/pause", 404)] {
        let answer = send(console.request(method, path).bearer_auth(OWNER)).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    let log = console.page(&owner, "/console/audit").await;
    assert!(log.contains("/redis/clear?pattern=art:*") && log.contains("refused: 404"), "{log}");
    assert_eq!(redis.ask::<usize>(&["XLEN", LOG]).await, 3);
}

/// Where everybody may look, notes, reasons and validators are for nobody.
#[tokio::test]
async fn everybody_sees_no_notes_and_no_audit_log() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).top("tags = [\"secret-tag\"]").list(["a"]).folder();
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let open = Console::at("0.0.0.0:0", talkative(&redis, &jobs)).await;
    let (owner, viewer) = (console.log_in(OWNER).await, console.log_in(VIEWER).await);
    readable_key(&redis, "art:a").await;
    console.act(&owner, "pause", &[("job", "art"), ("note", "moving house")]).await;
    let entry = format!("/console/entry?key={}", encoded("art:a"));
    for (path, told) in
        [("/console/jobs/art", "moving house"), ("/console/audit", "moving house"), (entry.as_str(), "secret-tag")]
    {
        assert!(console.page(&viewer, path).await.contains(told), "{path}");
        let page = open.page("", path).await;
        assert!(!page.contains(told) && !page.contains("<td>pause</td>"), "{path}: {page}");
    }
}
