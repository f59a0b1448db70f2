use super::*;
use crate::entry::EntryKey;
use crate::job::{Jobs, Params};
use crate::source::{Answer, Ask, Sources};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

async fn open(options: Options) -> (Museum, reqwest::Client) {
    let museum = Museum::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    (museum, reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap())
}

fn path(museum: &Museum, kind: &str, name: &str, rest: &str) -> String {
    format!("{}/{kind}/{}{rest}", museum.url(), utf8_percent_encode(name, NON_ALPHANUMERIC))
}

async fn json(client: &reqwest::Client, url: &str) -> Value {
    client.get(url).send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
}

#[tokio::test]
async fn every_name_on_the_lists_has_its_pages() {
    let (museum, client) = open(Options::instant()).await;
    let names = json(&client, &format!("{}/popular", museum.url())).await["names"].as_array().unwrap().clone();
    assert!(names.len() >= 200);
    assert_eq!(names[0], "Mona Lisa");
    for name in &names {
        let name = name.as_str().unwrap();
        for (rest, kind) in [("", "title"), ("/image", "title")] {
            let answer = json(&client, &path(&museum, "artworks", name, rest)).await;
            assert_eq!(answer["data"][kind], name);
            assert_eq!(answer["data"]["version"], 1);
        }
        let similar = json(&client, &path(&museum, "artworks", name, "/similar")).await;
        assert_eq!(similar["data"].as_array().unwrap().len(), 6);
    }
    let artists =
        json(&client, &format!("{}/artists/popular", museum.url())).await["names"].as_array().unwrap().clone();
    assert!(artists.len() >= 60);
    for name in &artists {
        let answer = json(&client, &path(&museum, "artists", name.as_str().unwrap(), "")).await;
        assert_eq!(answer["data"]["name"], *name);
        assert!(!answer["data"]["works"].as_array().unwrap().is_empty(), "{name}");
    }
    let three = json(&client, &format!("{}/popular?limit=3", museum.url())).await;
    assert_eq!(three["names"].as_array().unwrap().len(), 3);
    museum.stop().await.unwrap();
}

#[tokio::test]
async fn many_artworks_are_answered_for_at_once() {
    let (museum, client) = open(Options::instant()).await;
    let (first, last) = (museum.names().remove(0), museum.names().pop().unwrap());
    let [one, other] = [&first, &last].map(|name| utf8_percent_encode(name, NON_ALPHANUMERIC));
    let answer = json(&client, &format!("{}/artworks?name={one}&name=nobody&name={other}", museum.url())).await;
    let titles: Vec<&Value> = answer["data"].as_array().unwrap().iter().map(|work| &work["title"]).collect();
    assert_eq!(titles, [first.as_str(), last.as_str()]);
    museum.stop().await.unwrap();
}

#[tokio::test]
async fn an_artwork_has_a_page_of_about_a_kilobyte_and_a_half() {
    let (museum, client) = open(Options::instant()).await;
    let text = client.get(path(&museum, "artworks", "Mona Lisa", "")).send().await.unwrap().text().await.unwrap();
    assert!((900..2000).contains(&text.len()), "{}", text.len());
}

#[tokio::test]
async fn unknown_names_are_not_found() {
    let (museum, client) = open(Options::instant()).await;
    for name in ["Nobody's Work", "...", "Mona Lisa ", "Mona%20Lisa"] {
        let response = client.get(path(&museum, "artworks", name, "")).send().await.unwrap();
        assert_eq!(response.status(), 404, "{name}");
    }
    assert_eq!(museum.edit("Nobody's Work"), None);
}

#[tokio::test]
async fn an_edit_shows_everywhere_and_only_there() {
    let (museum, client) = open(Options::instant()).await;
    let name = "Jimson Weed/White Flower No. 1";
    let before = client.get(path(&museum, "artworks", name, "")).send().await.unwrap();
    let tag = before.headers()["etag"].clone();
    let before: Value = before.json().await.unwrap();
    let asked = async |tag: &reqwest::header::HeaderValue| {
        client.get(path(&museum, "artworks", name, "")).header("If-None-Match", tag).send().await.unwrap()
    };
    assert_eq!(asked(&tag).await.status(), 304);

    assert_eq!(museum.edit(name), Some(2));
    let again: Value = client.put(path(&museum, "artworks", name, "")).send().await.unwrap().json().await.unwrap();
    assert_eq!(again, json!({ "name": name, "version": 3 }));

    let after = asked(&tag).await;
    assert_eq!(after.status(), 200);
    let after: Value = after.json().await.unwrap();
    assert_eq!(after["data"]["version"], 3);
    assert_ne!(after["data"]["description"], before["data"]["description"]);
    assert_eq!(json(&client, &path(&museum, "artworks", name, "/image")).await["data"]["version"], 3);
    assert_eq!(json(&client, &path(&museum, "artworks", name, "/similar")).await["data"][0]["version"], 3);
    let versions = json(&client, &format!("{}/versions", museum.url())).await;
    assert_eq!((&versions[name], &versions["Mona Lisa"]), (&json!(3), &json!(1)));
    let stats = museum.stats();
    assert_eq!(stats["endpoints"]["artwork"], json!({ "calls": 3, "not_modified": 1, "not_found": 0, "failed": 0 }));
}

#[tokio::test]
async fn a_lagging_museum_shows_an_edit_later() {
    let (museum, client) = open(Options { lag: Duration::from_secs(3_600), ..Options::instant() }).await;
    let version = async |rest: &str| json(&client, &path(&museum, "artworks", "Mona Lisa", rest)).await;
    let lagged = |version| museum.lagged(Endpoint::Artwork, "Mona Lisa", version);
    assert_eq!((version("").await["data"]["version"].clone(), lagged(1), lagged(2)), (json!(1), false, false));

    assert_eq!(museum.edit("Mona Lisa"), Some(2));
    assert_eq!(museum.version("Mona Lisa"), Some(2));
    assert!(!lagged(2), "nobody asked since the edit");
    assert_eq!(version("").await["data"]["version"], 1);
    assert_eq!((lagged(1), lagged(2), lagged(3)), (false, true, false));
    assert!(!museum.lagged(Endpoint::Similar, "Mona Lisa", 2), "nobody asked for that page");
    assert_eq!(version("/similar").await["data"][0]["version"], 1);
    assert_eq!(museum.stats()["outdated"], 2);
}

#[tokio::test]
async fn a_completion_depends_on_the_prompt_and_is_paid() {
    let (museum, client) = open(Options::instant()).await;
    let tell = async |prompt: &str, most: u64| -> Value {
        let body =
            json!({ "model": "gpt-4o-mini", "messages": [{ "role": "user", "content": prompt }], "max_tokens": most });
        client
            .post(format!("{}/v1/chat/completions", museum.url()))
            .json(&body)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    };
    let one = tell("Kaplumbağa Terbiyecisi hakkında bir hikâye yaz.", 300).await;
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text(&one).starts_with("Kaplumbağa Terbiyecisi: "), "{one}");
    assert_eq!(one["choices"][0]["finish_reason"], "stop");
    assert_eq!(one["model"], "gpt-4o-mini");
    assert_eq!(text(&one), text(&tell("Kaplumbağa Terbiyecisi hakkında bir hikâye yaz.", 300).await));
    assert_ne!(text(&one), text(&tell("Write about The Scream by Edvard Munch.", 300).await));
    assert_eq!(tell("Write about The Scream.", 3).await["choices"][0]["finish_reason"], "length");
    let document = text(&tell("Describe The Scream as JSON.", 300).await);
    assert_eq!(serde_json::from_str::<Value>(&document).unwrap()["title"], "The Scream");
    let stats = json(&client, &format!("{}/stats", museum.url())).await;
    assert_eq!(stats["ai"]["calls"], 5);
    let (tokens_in, tokens_out) =
        (stats["ai"]["tokens_in"].as_f64().unwrap(), stats["ai"]["tokens_out"].as_f64().unwrap());
    assert!(tokens_out > 100.0);
    let dollars = tokens_in * 0.15 / 1e6 + tokens_out * 0.60 / 1e6;
    assert!((stats["ai"]["dollars"].as_f64().unwrap() - dollars).abs() < 1e-12);
}

#[tokio::test]
async fn faults_can_be_switched() {
    let (museum, client) = open(Options::instant()).await;
    let switch = async |mode: &str| {
        let url = format!("{}/faults", museum.url());
        client.post(url).json(&json!({ "mode": mode })).send().await.unwrap().status()
    };
    let status = async || client.get(path(&museum, "artworks", "Mona Lisa", "")).send().await.unwrap().status();
    assert_eq!(switch("down").await, 200);
    assert_eq!(status().await, 503);
    assert_eq!(switch("upside").await, 422);
    assert_eq!(switch("ok").await, 200);
    assert_eq!(status().await, 200);
    museum.set_down(true);
    assert_eq!(status().await, 503);
}

#[tokio::test]
async fn some_answers_fail_where_that_is_wanted() {
    let (museum, client) = open(Options { failures: 1.0, ..Options::instant() }).await;
    assert_eq!(client.get(format!("{}/popular", museum.url())).send().await.unwrap().status(), 500);
    let refused = Options { failures: 2.0, ..Options::instant() };
    assert!(Museum::start(([127, 0, 0, 1], 0).into(), refused).await.is_err());
}

#[test]
fn latencies_are_log_normal_within_their_range() {
    let (from, to) = (Duration::from_millis(200), Duration::from_secs(2));
    let latency = Latency::new((from, to), 1.0).unwrap();
    let mut drawn: Vec<Duration> = (0..10_000).map(|_| latency.draw()).collect();
    drawn.sort();
    assert!(drawn.iter().all(|one| (from..=to).contains(one)));
    assert!((550..720).contains(&drawn[5000].as_millis()), "the median is the geometric mean: {:?}", drawn[5000]);
    assert_eq!(Latency::new((from, to), 0.0).unwrap().draw(), Duration::ZERO);
    assert!(Latency::new((to, from), 1.0).is_err());
}

#[tokio::test]
async fn the_example_asks_for_all_labels_in_few_requests() {
    let (museum, _) = open(Options::instant()).await;
    let url = museum.url().to_owned();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bulk");
    let env = |name: &str| (name == "MUSEUM_URL").then(|| url.clone());
    let jobs = Jobs::load(&folder, Duration::from_secs(3_600), &env).unwrap();
    let (job, sources, none) = (&jobs.jobs["artwork_label"], Sources::new(&jobs).unwrap(), serde_json::Map::new());
    let fed = sources.feed(job).await.unwrap().entries;
    let mut all: Vec<Params> = fed.iter().filter_map(|key| job.key.read(key)).collect();
    all.sort();
    for group in all.chunks(100) {
        let entries: Vec<_> = group.iter().map(|params| (params, &none)).collect();
        let request = sources.request_many(job, 0, &entries).unwrap();
        assert!(!request.is_too_long(), "{} bytes", request.url_length());
        let key = EntryKey::new(job.key.write(&group[0]).unwrap().as_str());
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let ask = Ask { job, source: 0, key: &key, params: &group[0], inputs: &none, known: None, deadline };
        let Answer::Value(label) = sources.fetch_among(&ask, group).await.unwrap() else { panic!("it has a value") };
        assert_eq!(label.value()["title"], group[0]["artwork_name"]);
    }
    assert!(all.len() > 200, "{}", all.len());
    museum.stop().await.unwrap();
}
