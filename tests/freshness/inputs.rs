//! Inputs: entries made from another follow it.

use serde_json::json;

use crate::support::{Art, Reply, both, eventually, publish, version, worker};

/// One artwork, and stories about it in several languages: the input's key says less than theirs.
#[tokio::test]
async fn an_input_of_many_wakes_them_all() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let job = "key = \"story:{lang}:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n[source]\nkind = \"http\"\n\
               upstream = \"museum\"\npath = \"/story/{{ lang }}/{{ art.version }}\"\n[entries]\n\
               list = [{ lang = \"tr\", name = \"a\" }, { lang = \"en\", name = \"a\" }]\n";
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let jobs = Art::of(&upstream).list(["a"]).folder().job("story", job);
    let _worker = worker(&redis, &jobs);
    let told = async |version: u64| {
        for lang in ["tr", "en"] {
            let key = format!("story:{lang}:a");
            eventually(&format!("{key} tells of version {version}"), async || {
                let story = redis.json(&key).await;
                if story == Some(json!({"path": format!("/story/{lang}/{version}")})) { Ok(()) } else { Err(story) }
            })
            .await;
        }
    };
    told(1).await;
    upstream.edit("/art/a");
    publish(&redis, "art:a").await;
    told(2).await;
}

/// The dependant is readable, and nobody keeps it warm: no agenda names it.
#[tokio::test]
async fn an_input_of_many_wakes_what_is_off_the_agenda_too() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let job = "key = \"story:{lang}:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n[source]\nkind = \"http\"\n\
               upstream = \"museum\"\npath = \"/story/{{ lang }}/{{ art.version }}\"\n\
               [warm]\nahead = \"0s\"\nrecheck = []\n";
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let jobs = Art::of(&upstream).list(["a"]).folder().job("story", job);
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let told = async |version: u64| {
        eventually(&format!("it tells of version {version}"), async || {
            let story = redis.json("story:tr:a").await;
            if story == Some(json!({"path": format!("/story/tr/{version}")})) { Ok(()) } else { Err(story) }
        })
        .await;
    };
    publish(&redis, r#"{"keys": ["story:tr:a"], "action": "warm"}"#).await;
    told(1).await;
    eventually("it is off the agenda", async || redis.ask::<usize>(&["ZCARD", "samovar:agenda:{story}"]).await == 0)
        .await;
    upstream.edit("/art/a");
    publish(&redis, "art:a").await;
    told(2).await;
}
