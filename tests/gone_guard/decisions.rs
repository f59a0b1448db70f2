//! Persons see what is held back, and decide on it.

use std::time::Duration;

use samovar::entry::EntryKey;
use samovar::redis::RedisTime;
use serde_json::{Value, json};

use super::{
    GUARD, HOUR, MANY, all_held, all_noted, all_served, at_rest, client, has_all, has_none, health, held, many, run,
    served, tripped, warnings,
};
use crate::support::{Parts, Reply, both, eventually, job, samovar, talkative, worker};

#[tokio::test]
async fn what_is_held_back_is_told_everywhere() {
    let (redis, _upstream, jobs, mut worker) = tripped().await;
    let told = health(&mut worker).await;
    let reasons = told["reasons"].to_string();
    for said in ["held back until 2", " UTC, and the old values of 21 entries", "samovar gone art", "10 of"] {
        assert!(told["status"] == "degraded" && reasons.contains(said), "{said}: {told}");
    }
    let kept = redis.keys("art:*").await.remove(0);
    let shown = run(&redis, &jobs, &["get", &kept]).await.stdout;
    for said in [
        "held          its upstream answers that it is gone; the value is held, and served until 2",
        " UTC (in 59m",
        // It was invalidated.
        "), when it expires. `samovar gone art --accept` lets",
        "`samovar gone art --hold` holds",
        "deferred",
        "`gone_guard`",
    ] {
        assert!(shown.contains(said), "{said}: {shown}");
    }
    assert!(run(&redis, &jobs, &["jobs"]).await.stdout.contains("Removals of art: held back"));
    let state = run(&redis, &jobs, &["gone", "art"]).await;
    assert!(state.code == Some(0) && state.stdout.contains("of 21 entries are served"), "{state:?}");
    let state: Value = serde_json::from_str(&run(&redis, &jobs, &["gone", "art", "--json"]).await.stdout).unwrap();
    assert_eq!((&state["state"], &state["gone"], &state["held"]), (&json!("holding"), &json!(10), &json!(21)));
    assert_eq!(run(&redis, &jobs, &["gone", "nobody"]).await.code, Some(1));
    let all = run(&redis, &jobs, &["gone"]).await;
    assert!(all.code == Some(0) && all.stdout.contains("Removals of art: held back"), "{all:?}");
    let all: Value = serde_json::from_str(&run(&redis, &jobs, &["gone", "--json"]).await.stdout).unwrap();
    assert_eq!(all["art"]["state"], "holding", "{all}");
    assert_eq!(run(&redis, &jobs, &["gone", "--accept"]).await.code, Some(2), "of which job?");
    let metrics = client().get(format!("{}/metrics", worker.http().await)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains("samovar_gone_guard_holding{job=\"art\"} 1"), "{metrics}");
    let counted = metrics.lines().find_map(|line| line.strip_prefix("samovar_removals_held_total{job=\"art\"} "));
    assert!(counted.unwrap().parse::<u64>().unwrap() >= 21, "{counted:?}");
    assert_eq!(warnings(&worker), 1);
}

#[tokio::test]
async fn a_person_lets_removals_through_or_has_them_held() {
    let (redis, _upstream, jobs, mut worker) = tripped().await;
    let before: RedisTime = redis.ask(&["HGET", GUARD, "until"]).await;
    let longer = run(&redis, &jobs, &["gone", "art", "--hold"]).await;
    assert_eq!(longer.code, Some(0), "{longer:?}");
    assert_eq!(redis.ask::<RedisTime>(&["HGET", GUARD, "until"]).await, before + HOUR);
    // A guard that has held for long asks seldom.
    let (parts, now) = (Parts::of(&redis).await, Parts::of(&redis).await.now().await);
    redis.ask::<usize>(&["HSET", GUARD, "since", &(now - Duration::from_secs(3_000)).to_string()]).await;
    eventually("each entry is asked for again in minutes", async || {
        let keys: Vec<EntryKey> = redis.keys("art:*").await.into_iter().map(EntryKey::new).collect();
        let dues = parts.agenda.dues(&job(), &keys).await.unwrap();
        dues.iter().flatten().filter(|due| due.at > now + Duration::from_secs(120)).count() == MANY - 9
    })
    .await;
    worker.wait_for_log(&["a guard holds removals back"]).await;
    let accepted = run(&redis, &jobs, &["gone", "art", "--accept"]).await;
    for said in ["let through, as a person decided", "21 entries are asked for again at once"] {
        assert!(accepted.code == Some(0) && accepted.stdout.contains(said), "{said}: {accepted:?}");
    }
    let told = health(&mut worker).await;
    assert_eq!(told["status"], "healthy", "{told}");
    eventually("all are gone", async || served(&redis).await == 0).await;
    worker.wait_for_log(&["removals are not held back any more: a person let them through"]).await;
    eventually("the guard knows that", async || held(&redis).await == 0).await;
    let told = run(&redis, &jobs, &["jobs"]).await.stdout.replace('\n', " ");
    let lost = "takes that back. At the last count, at least 30 of 30 entries that it keeps warm had no value.";
    assert!(told.contains(lost), "{told}");
    let back = run(&redis, &jobs, &["gone", "art", "--hold"]).await;
    assert!(back.code == Some(0) && back.stdout.contains("none are held back. The guard counts again."), "{back:?}");
    assert_eq!(health(&mut worker).await["status"], "healthy");
    let nothing = run(&redis, &jobs, &["gone", "art", "--hold"]).await;
    assert!(nothing.code == Some(1) && nothing.stderr.contains("no removals of art are held back"), "{nothing:?}");
    assert_eq!(run(&redis, &jobs, &["gone", "art", "--accept", "--hold"]).await.code, Some(2));
    redis.ask::<usize>(&["DEL", GUARD]).await;
    let nothing = run(&redis, &jobs, &["gone", "art", "--hold"]).await;
    assert!(nothing.code == Some(1) && nothing.stderr.contains("no removals of art are held back"), "{nothing:?}");
}

#[tokio::test]
async fn what_is_made_from_a_held_value_and_invalidated_is_told_of_it() {
    let (redis, upstream) = both().await;
    has_all(&upstream, 1);
    let plate = "key = \"plate:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n[source]\n\
                 kind = \"compose\"\nvalue = { of = \"{{ art }}\" }\n[entries]\nlist = [\"1\"]\n";
    let jobs = many(&upstream, MANY, "").folder().job("plate", plate);
    let _worker = worker(&redis, &jobs);
    eventually("the plate is there", async || redis.get("plate:1").await).await;
    at_rest(&redis).await;
    upstream.otherwise(|call, _| match call.path() {
        "/art/1" => Reply::json(json!({ "version": 1 })),
        _ => Reply::status(404),
    });
    let parts = Parts::of(&redis).await;
    parts.invalidate("{\"jobs\": [\"art\"]}").await;
    all_held(&redis, MANY - 10).await;
    has_none(&upstream);
    let quiet = run(&redis, &jobs, &["invalidate", "plate:1"]).await;
    assert!(!quiet.stderr.contains("held back"), "{quiet:?}");
    let told = run(&redis, &jobs, &["invalidate", "art:1"]).await;
    for said in ["Removals of art are held back, since ", "`samovar gone art` shows it"] {
        assert!(told.stderr.contains(said), "{said}: {told:?}");
    }
    eventually("the plate's input is told", async || {
        let shown = run(&redis, &jobs, &["get", "plate:1"]).await.stdout;
        let is_told = shown.contains("art:1 is gone, and its removal is held back for ")
            && shown.contains("see `samovar gone art`");
        if is_told { Ok(()) } else { Err(shown) }
    })
    .await;
    let shown: Value = serde_json::from_str(&run(&redis, &jobs, &["get", "plate:1", "--json"]).await.stdout).unwrap();
    assert_eq!((&shown["held_inputs"][0]["key"], &shown["held_inputs"][0]["job"]), (&json!("art:1"), &json!("art")));
}

/// A person lets the removals of a planned clean-up through before it.
#[tokio::test]
async fn removals_accepted_before_are_not_held_back() {
    let (redis, upstream) = both().await;
    has_all(&upstream, 1);
    let jobs = many(&upstream, MANY, "").folder();
    let worker = worker(&redis, &jobs);
    all_served(&redis, MANY).await;
    assert_eq!(run(&redis, &jobs, &["gone", "art", "--accept"]).await.code, Some(0));
    has_none(&upstream);
    Parts::of(&redis).await.invalidate("{\"jobs\": [\"art\"]}").await;
    eventually("all are gone", async || served(&redis).await == 0).await;
    assert_eq!(warnings(&worker), 0);
}

#[tokio::test]
async fn a_person_decides_over_http() {
    let (redis, _upstream, _jobs, mut worker) = tripped().await;
    let (client, url) = (client(), worker.http().await);
    let post = async |path: &str| {
        let answer = client.post(format!("{url}/jobs/{path}")).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let shown: Value = client.get(format!("{url}/jobs/art")).send().await.unwrap().json().await.unwrap();
    let guard = &shown["gone_guard"];
    assert_eq!((&guard["state"], &guard["held"], &guard["of"]), (&json!("holding"), &json!(21), &json!(30)));
    let (code, longer) = post("art/gone/hold").await;
    let later = guard["until_ms"].as_i64().unwrap() + 3_600_000;
    assert_eq!((code, longer["gone_guard"]["until_ms"].as_i64()), (200, Some(later)));
    let (code, accepted) = post("art/gone/accept").await;
    assert_eq!((code, &accepted["gone_guard"]["state"]), (200, &json!("accepted")));
    assert!(accepted["due"].as_u64().is_some_and(|due| due <= 21), "{accepted}");
    eventually("all are gone", async || served(&redis).await == 0).await;
    assert_eq!(post("nobody/gone/accept").await.0, 404);
    redis.ask::<usize>(&["DEL", GUARD]).await;
    assert_eq!(post("art/gone/hold").await.0, 409);
}

#[tokio::test]
async fn a_guard_that_is_switched_off_holds_nothing_any_more() {
    let (redis, upstream, jobs, mut worker) = tripped().await;
    assert_eq!(health(&mut worker).await["status"], "degraded");
    jobs.write("art.toml", &many(&upstream, MANY, "gone_guard = \"off\"").toml());
    worker.hangup();
    eventually("all are gone", async || served(&redis).await == 0).await;
    eventually("the worker is healthy", async || {
        let health = health(&mut worker).await;
        if health["status"] == "healthy" { Ok(()) } else { Err(health) }
    })
    .await;
    assert_eq!(redis.keys("samovar:gone:*").await, Vec::<String>::new());
}

#[tokio::test]
async fn removals_are_accepted_of_entries_off_the_agenda() {
    let (redis, _upstream, jobs, _worker) = tripped().await;
    at_rest(&redis).await;
    redis.ask::<usize>(&["DEL", "samovar:agenda:{art}"]).await;
    let accepted = run(&redis, &jobs, &["gone", "art", "--accept"]).await;
    assert!(accepted.stdout.contains("21 entries are asked for again at once"), "{accepted:?}");
    eventually("all are gone", async || served(&redis).await == 0).await;
}

#[tokio::test]
async fn an_acceptance_of_nothing_can_be_taken_back() {
    let (redis, upstream) = both().await;
    has_all(&upstream, 1);
    let jobs = many(&upstream, MANY, "").folder();
    let worker = worker(&redis, &jobs);
    all_served(&redis, MANY).await;
    at_rest(&redis).await;
    assert_eq!(run(&redis, &jobs, &["gone", "art", "--accept"]).await.code, Some(0));
    let back = run(&redis, &jobs, &["gone", "art", "--hold"]).await;
    assert!(back.code == Some(0) && back.stdout.contains("none are held back"), "{back:?}");
    assert_eq!(run(&redis, &jobs, &["gone", "art", "--hold"]).await.code, Some(1));
    has_none(&upstream);
    let parts = Parts::of(&redis).await;
    parts.invalidate("art:1").await;
    all_served(&redis, MANY - 1).await;
    assert_eq!(warnings(&worker), 0);
    parts.invalidate("{\"jobs\": [\"art\"]}").await;
    all_noted(&parts, MANY, MANY - 9).await;
    assert_eq!(warnings(&worker), 1);
}

#[tokio::test]
async fn nobody_decides_for_a_job_without_a_guard() {
    let (redis, upstream) = both().await;
    has_all(&upstream, 1);
    let jobs = many(&upstream, 3, "gone_guard = \"off\"").folder();
    redis.set(GUARD, "somebody else's", HOUR).await;
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    all_served(&redis, 3).await;
    let url = worker.http().await;
    for decision in ["accept", "hold"] {
        let refused = run(&redis, &jobs, &["gone", "art", &format!("--{decision}")]).await;
        assert!(refused.code == Some(1) && refused.stderr.contains("art has no guard"), "{refused:?}");
        let answer = client().post(format!("{url}/jobs/art/gone/{decision}")).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 409);
    }
    assert_eq!(redis.get(GUARD).await.as_deref(), Some("somebody else's"));
}

/// Otherwise the command would be silent for ten minutes.
#[tokio::test]
async fn warm_tells_what_it_waits_for_once() {
    let (redis, upstream, jobs, _worker) = tripped().await;
    let mut waits = samovar(["warm", "art", "--wait"]).redis(&redis).jobs(&jobs).spawn();
    let said = waits.wait_for_log(&["is not fetched yet: ", "held back"]).await;
    assert!(said.starts_with("art:"), "{said}");
    has_all(&upstream, 2);
    assert_eq!(run(&redis, &jobs, &["gone", "art", "--accept"]).await.code, Some(0));
    assert_eq!(waits.wait().await.code(), Some(0), "{:?}", waits.log());
    // All of them wait for the same.
    let told = waits.log().iter().filter(|line| line.contains("is not fetched yet: ")).count();
    assert_eq!(told, 1, "{:?}", waits.log());
}
