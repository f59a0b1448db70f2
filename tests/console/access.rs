//! Each route and each role, over the router's own list.

use std::collections::BTreeSet;

use samovar::admin::console::{Needs, ROUTES};

use super::{Answer, Console, OWNER, VIEWER, both, filled, send, with_roles};
use crate::support::{Art, readable_key, talkative};

/// The fields of a form.
type Fields = &'static [(&'static str, &'static str)];

/// Each route with a path that leads to it, the fields of its form, and the right that it needs.
const EXPECTED: &[(&str, &str, &str, Fields, Needs)] = &[
    ("GET", "/console/style.css", "/console/style.css", &[], Needs::Nothing),
    ("GET", "/console/script.js", "/console/script.js", &[], Needs::Nothing),
    ("GET", "/console/icon.svg", "/console/icon.svg", &[], Needs::Nothing),
    ("GET", "/console/login", "/console/login", &[], Needs::Nothing),
    ("POST", "/console/login", "/console/login", &[("token", OWNER)], Needs::Nothing),
    ("POST", "/console/logout", "/console/logout", &[], Needs::Nothing),
    ("GET", "/console/events", "/console/events", &[], Needs::Look),
    ("GET", "/", "/", &[], Needs::Look),
    ("GET", "/console/find", "/console/find?key=art:a", &[], Needs::Look),
    ("GET", "/console/jobs", "/console/jobs?state=look", &[], Needs::Look),
    ("GET", "/console/jobs/{job}", "/console/jobs/art", &[], Needs::Look),
    ("GET", "/console/entry", "/console/entry?key=art:a", &[], Needs::Look),
    ("GET", "/console/agenda", "/console/agenda", &[], Needs::Look),
    ("GET", "/console/invalidations", "/console/invalidations?only=foreign", &[], Needs::Look),
    ("GET", "/console/upstreams", "/console/upstreams", &[], Needs::Look),
    ("GET", "/console/dead", "/console/dead?job=art", &[], Needs::Look),
    ("GET", "/console/fleet", "/console/fleet", &[], Needs::Look),
    ("GET", "/console/audit", "/console/audit", &[], Needs::Look),
    ("GET", "/console/compose", "/console/compose?kind=job&name=art&action=evict", &[], Needs::Act),
    ("GET", "/console/ask/{action}", "/console/ask/pause?job=art", &[], Needs::Act),
    ("POST", "/console/do/{action}", "/console/do/pause", &[("job", "art"), ("note", "x")], Needs::Act),
];

async fn ask(console: &Console, nth: usize, cookie: Option<&str>) -> Answer {
    let (method, _, path, form, _) = EXPECTED[nth];
    let mut request = console.request(method, path).header("sec-fetch-site", "same-origin");
    if let Some(cookie) = cookie {
        request = request.header("cookie", cookie);
    }
    send(if method == "POST" { filled(request, form) } else { request }).await
}

#[test]
fn each_route_is_expected_with_the_right_that_it_needs() {
    let routes: BTreeSet<String> = ROUTES.iter().map(|route| format!("{route:?}")).collect();
    let expected: BTreeSet<String> =
        EXPECTED.iter().map(|(method, path, _, _, needs)| format!("{method} {path} needs {needs:?}")).collect();
    assert_eq!(routes, expected);
}

#[tokio::test]
async fn each_role_reaches_what_it_may_and_nothing_else() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let frozen = Console::of(with_roles(&redis, &jobs).env("SAMOVAR_READ_ONLY", "on")).await;
    readable_key(&redis, "art:a").await;
    let (owner, viewer) = (console.log_in(OWNER).await, console.log_in(VIEWER).await);
    for (nth, (method, _, path, _, needs)) in EXPECTED.iter().enumerate() {
        let nobody = ask(&console, nth, None).await;
        match needs {
            Needs::Nothing => assert!(nobody.status.as_u16() < 400, "{path}: {nobody:?}"),
            _ if *method == "GET" => {
                assert_eq!(nobody.status, 303, "{path}: {nobody:?}");
                assert!(nobody.header("location").starts_with("/console/login?to="), "{path}: {nobody:?}");
            }
            _ => assert_eq!(nobody.status, 401, "{path}: {nobody:?}"),
        }
        // A session of one worker counts at another; one that was changed at none.
        for console in [&console, &frozen] {
            let forged = ask(console, nth, Some(&viewer.replace("=viewer", "=owner"))).await;
            assert_eq!(forged.status, nobody.status, "{path}: {forged:?}");
            let looks = ask(console, nth, Some(&viewer)).await;
            assert_eq!(looks.status == 403, *needs == Needs::Act, "{path}: {looks:?}");
        }
        let acts = ask(&console, nth, Some(&owner)).await;
        assert!(acts.status.as_u16() < 400, "{path}: {acts:?}");
        let reads = ask(&frozen, nth, Some(&owner)).await;
        assert_eq!(reads.status == 403, *needs == Needs::Act, "{path}: {reads:?}");
    }
    let log = console.worker.log().join("\n");
    assert!(!log.contains(OWNER) && !log.contains(VIEWER) && !log.contains(&owner[20..]), "{log}");
}

#[tokio::test]
async fn no_page_of_another_site_changes_anything() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let open = Console::of(talkative(&redis, &jobs)).await;
    let cookie = console.log_in(OWNER).await;
    for (method, _, path, form, needs) in EXPECTED.iter().filter(|expected| expected.0 == "POST") {
        let request = |console: &Console| filled(console.request(method, path).header("cookie", &cookie), form);
        for site in ["cross-site", "same-site", "none"] {
            for console in [&console, &open] {
                let answer = send(request(console).header("sec-fetch-site", site)).await;
                assert_eq!(answer.status, 403, "{path} {site}: {answer:?}");
            }
        }
        // No browser said where it comes from.
        let answer = send(request(&console)).await;
        assert_eq!(answer.status == 403, *needs == Needs::Act, "{path}: {answer:?}");
        let foreign = request(&console).header("sec-fetch-site", "same-origin").header("origin", "http://evil.example");
        assert_eq!(send(foreign).await.status, 403, "{path}");
        // A program with the token is no page.
        let program = send(filled(console.request(method, path).bearer_auth(OWNER), form)).await;
        assert!(program.status.as_u16() < 400, "{path}: {program:?}");
    }
}

#[tokio::test]
async fn pages_run_no_code_but_their_own_in_no_frame() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let console = Console::of(with_roles(&redis, &jobs).env("SAMOVAR_TITLE", "tea <room>")).await;
    let cookie = console.log_in(OWNER).await;
    for (nth, (_, _, path, _, _)) in EXPECTED.iter().enumerate() {
        let answer = ask(&console, nth, Some(&cookie)).await;
        let policy = answer.header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{path}: {policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        if answer.header("content-type").starts_with("text/html") {
            assert!(!answer.text.contains("style=") && !answer.text.contains(" onclick"), "{path}: {answer:?}");
            assert!(answer.text.contains("tea &lt;room&gt;") && !answer.text.contains("tea <room>"), "{path}");
            assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        }
    }
}

#[tokio::test]
async fn a_session_is_a_cookie_that_no_script_and_no_site_can_use() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let console = Console::of(with_roles(&redis, &jobs)).await;
    let log_in = |token: &'static str| filled(console.request("POST", "/console/login"), &[("token", token)]);
    let plain = send(log_in(OWNER)).await;
    let cookie = plain.header("set-cookie");
    for part in ["HttpOnly", "SameSite=Strict", "Max-Age=43200", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Secure") && !cookie.contains(OWNER), "{cookie}");
    let over_tls = send(log_in(OWNER).header("x-forwarded-proto", "https")).await;
    assert!(over_tls.header("set-cookie").contains("; Secure"), "{over_tls:?}");
    for wrong in ["", "owner", "owner-owner-ownes"] {
        let refused = send(log_in(wrong)).await;
        assert_eq!((refused.status.as_u16(), refused.header("set-cookie")), (401, ""), "{refused:?}");
    }
    let elsewhere = filled(console.request("POST", "/console/login"), &[("token", OWNER), ("to", "//evil.example")]);
    assert_eq!(send(elsewhere).await.header("location"), "/");
}

/// As of the API: without a token everybody may act on this machine, and only look from others.
#[tokio::test]
async fn without_a_token_the_rule_of_the_api_holds() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let (local, open) =
        (Console::of(talkative(&redis, &jobs)).await, Console::at("0.0.0.0:0", talkative(&redis, &jobs)).await);
    for (nth, (_, _, path, _, needs)) in
        EXPECTED.iter().enumerate().filter(|(_, expected)| expected.0 == "GET" || expected.4 == Needs::Act)
    {
        let acts = ask(&local, nth, None).await;
        assert!(acts.status.as_u16() < 400, "{path}: {acts:?}");
        let looks = ask(&open, nth, None).await;
        assert_eq!(looks.status == 403, *needs == Needs::Act, "{path}: {looks:?}");
    }
}
