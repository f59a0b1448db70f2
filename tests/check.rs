//! `samovar check`: what it finds in listed entries, which entries it fetches to try a job, and what a change causes.
use crate::support::{Art, Finished, JobsFolder, Parts, Reply, Upstream, both, eventually, readable, samovar, worker};
use serde_json::{Value, json};

const ASKED: &str = "/v1/chat/completions";

async fn check(jobs: &JobsFolder, args: &[&str]) -> Finished {
    let args = [&["check"][..], args].concat();
    samovar(&args).jobs(jobs).env("APP_KEY", "sk-very-secret").run().await
}

async fn json(jobs: &JobsFolder, args: &[&str]) -> Value {
    let checked = check(jobs, &[&["--json"][..], args].concat()).await;
    serde_json::from_str(&checked.stdout).unwrap_or_else(|e| panic!("{e}: {checked:?}"))
}

/// A job `page` with these listed entries and this source.
fn pages(list: &[&str], source: &str) -> JobsFolder {
    let page = format!("key = \"page:{{slug}}\"\n{source}\n[entries]\nlist = {}\n", json!(list));
    JobsFolder::new().job("page", &page)
}

#[tokio::test]
async fn a_listed_entry_that_makes_no_request_is_told() {
    let http = "[source]\nkind = \"http\"\nurl = \"http://127.0.0.1:1/{{ slug | path }}?k={{ env.APP_KEY }}\"\n";
    let jobs = pages(&["guides/tea", "a//b", "..", "ok"], http);
    let checked = check(&jobs, &[]).await;
    assert_eq!(checked.code, Some(1), "{checked:?}");
    for said in [
        "failing   2 listed entries",
        "page:a//b: url `http://127.0.0.1:1/{{ slug | path }}?k={{ env.APP_KEY }}`: ",
        "page:..: url ",
        "which no URL can carry",
        "correct the name in `entries.list`, or the template",
        "1 job, no fault in the files; listed entries that fail: 2\n",
    ] {
        assert!(checked.stdout.contains(said), "{said}: {checked:?}");
    }
    let report = json(&jobs, &[]).await;
    let rendered = &report["jobs"][0]["rendered"];
    assert_eq!((&rendered["entries"], &rendered["failing"]), (&json!(4), &json!(2)), "{rendered}");
    let fault = &rendered["faults"][0];
    assert_eq!((&fault["key"], &fault["place"]), (&json!("page:a//b"), &json!("url")), "{fault}");
    assert!(fault["help"].as_str().is_some_and(|help| help.contains("entries.list")), "{fault}");
    for shown in [checked.stdout, report.to_string()] {
        assert!(!shown.contains("very-secret"), "{shown}");
    }
    assert_eq!(check(&pages(&["guides/tea", "ok"], http), &[]).await.code, Some(0));
}

#[tokio::test]
async fn each_template_that_needs_no_answer_is_rendered() {
    let url = "url = \"http://127.0.0.1:1/{{ slug }}\"";
    for (top, source, place) in [
        ("", format!("kind = \"http\"\n{url}\nheaders = {{ X-Year = \"{{{{ slug | int }}}}\" }}"), "header X-Year"),
        ("", format!("kind = \"http\"\n{url}\nbody = {{ a = [\"{{{{ slug | int }}}}\"] }}"), "body"),
        (
            "",
            format!(
                "kind = \"http\"\n{url}\n[[source.fallback]]\nkind = \"http\"\nurl = \"http://h/{{{{ slug | int }}}}\""
            ),
            "url of fallback 1",
        ),
        (
            "",
            "kind = \"ai\"\nurl = \"http://h/v1\"\nmodel = \"m\"\nsystem = \"{{ slug | int }}\"\nprompt = \"p\""
                .to_owned(),
            "system",
        ),
        ("tags = [\"all\", \"{{ slug | int }}\"]", format!("kind = \"http\"\n{url}"), "tag"),
        ("version = \"{{ slug }}\"", format!("kind = \"http\"\n{url}"), "version"),
    ] {
        let jobs = pages(&["x", "7"], &format!("{top}\n[source]\n{source}\n"));
        let report = json(&jobs, &[]).await;
        let rendered = &report["jobs"][0]["rendered"];
        assert_eq!((&rendered["failing"], &rendered["faults"][0]["place"]), (&json!(1), &json!(place)), "{report:#}");
        assert_eq!(rendered["faults"][0]["key"], "page:x", "{rendered}");
    }
    // Templates that name the answer or an input are left to `--fetch`.
    let art = "key = \"art:{slug}\"\n[source]\nkind = \"http\"\nurl = \"http://h/{{ slug }}\"\n";
    let page = "tags = [\"{{ value.artist | int }}\", \"{{ art.year | int }}\"]\n[inputs]\nart = \"art:{slug}\"\n\
                [source]\nkind = \"http\"\nurl = \"http://h/{{ art.path | path }}\"\n\
                body = { a = \"{{ art | int }}\" }\n";
    let jobs = pages(&["x"], page).job("art", art);
    assert_eq!(check(&jobs, &[]).await.code, Some(0));
}

#[tokio::test]
async fn of_many_listed_entries_the_first_are_rendered_and_shown() {
    let http = "[source]\nkind = \"http\"\nurl = \"http://127.0.0.1:1/{{ slug | path }}\"\n";
    let names: Vec<String> = (0..6_000).map(|n| if n < 150 { format!("{n}//") } else { n.to_string() }).collect();
    let jobs = pages(&Vec::from_iter(names.iter().map(String::as_str)), http);
    let shown = check(&jobs, &[]).await.stdout;
    for said in ["rendered  the first 5000 of 6000 listed entries", "failing   150 listed entries", "and 140 more"] {
        assert!(shown.contains(said), "{said}: {shown}");
    }
    let report = json(&jobs, &[]).await;
    let rendered = &report["jobs"][0]["rendered"];
    let faults = rendered["faults"].as_array().map(Vec::len);
    assert_eq!((&rendered["failing"], faults), (&json!(150), Some(100)));
}

/// The upstream's first entries are gone, or answer with what cannot be used.
#[tokio::test]
async fn check_fetch_passes_over_single_bad_entries() {
    let upstream = Upstream::start().await;
    upstream.on("/art/odd", Reply::json(json!({"year": null})));
    upstream.on("/art/fine", Reply::json(json!({"year": 1906})));
    let art = Art::of(&upstream).source("accept = \"{{ value.year }}\"");
    let jobs = art.clone().list(["gone", "odd", "fine", "never"]).folder();
    let checked = check(&jobs, &["--fetch"]).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    for said in [
        "✓ art: art:fine: ",
        "tried before: art:gone: art:gone does not exist (404 or 410)",
        "tried before: art:odd: ",
        "is refused by `accept`",
    ] {
        assert!(checked.stdout.contains(said), "{said}: {checked:?}");
    }
    assert_eq!(upstream.calls("/art/never"), 0);
    let report = json(&jobs, &["--fetch"]).await;
    let keys: Vec<&Value> =
        report["fetched"][0]["passed_over"].as_array().unwrap().iter().map(|one| &one["key"]).collect();
    assert_eq!(keys, ["art:gone", "art:odd"], "{report:#}");
    // None of five can be stored.
    let asked = upstream.all_requests().len();
    let checked = check(&art.list(["a", "b", "c", "d", "e", "fine"]).folder(), &["--fetch"]).await;
    assert_eq!((checked.code, upstream.all_requests().len() - asked), (Some(1), 5), "{checked:?}");
    for said in ["✗ art: art:e: art:e does not exist", "tried before: art:a: ", "tried before: art:d: "] {
        assert!(checked.stdout.contains(said), "{said}: {checked:?}");
    }
}

#[tokio::test]
async fn check_fetch_shows_tags_and_version() {
    let upstream = Upstream::start().await;
    upstream.on("/art/a", Reply::json(json!({"genres": ["portre", "yağlıboya"], "version": 12})));
    let top = "tags = [\"art:{{ name }}\", \"{{ value.genres }}\"]\nversion = \"{{ value.version }}\"";
    let jobs = Art::of(&upstream).top(top).list(["a"]).folder();
    let checked = check(&jobs, &["--fetch"]).await;
    for said in ["\n  tags: art:a, portre, yağlıboya\n", "\n  version: 12\n"] {
        assert!(checked.stdout.contains(said), "{said}: {checked:?}");
    }
    let fetched = &json(&jobs, &["--fetch"]).await["fetched"][0];
    assert_eq!((&fetched["tags"], &fetched["version"]), (&json!(["art:a", "portre", "yağlıboya"]), &json!(12)));
}

#[tokio::test]
async fn a_failing_upstream_is_asked_by_check_once() {
    let upstream = Upstream::start().await;
    upstream.otherwise(|_, _| Reply::status(500));
    let checked = check(&Art::of(&upstream).list(["a", "b", "c"]).folder(), &["--fetch"]).await;
    assert_eq!((checked.code, upstream.all_requests().len()), (Some(1), 1), "{checked:?}");
}

/// Another answer would be paid for as well.
#[tokio::test]
async fn an_unusable_ai_answer_is_paid_for_by_check_once() {
    let upstream = Upstream::start().await;
    upstream.on("/art/b", Reply::json(json!({"title": "one"})));
    upstream.on("/art/c", Reply::json(json!({"title": "two"})));
    upstream.on(ASKED, Reply::json(json!({"choices": [{"message": {"content": "no JSON"}, "finish_reason": "stop"}]})));
    let limits = format!("[openai]\nurl = \"{}/v1\"\n", upstream.url());
    let story = "key = \"story:{name}\"\n[inputs]\nart = \"art:{name}\"\n[source]\nkind = \"ai\"\n\
                 upstream = \"openai\"\nmodel = \"tiny\"\nformat = \"json\"\nprompt = \"Of {{ art.title }}\"\n\
                 [entries]\nlist = [\"a\", \"b\", \"c\"]\n";
    let jobs = Art::of(&upstream).limits(&limits).folder().job("story", story);
    let checked = check(&jobs, &["--fetch"]).await;
    // The artwork of the first does not exist, so nothing is asked for it.
    assert_eq!((checked.code, upstream.calls(ASKED)), (Some(1), 1), "{checked:?}");
    for said in ["✗ story: story:b: ", "tried before: story:a: its input art:a is gone", "✓ art: art:b: "] {
        assert!(checked.stdout.contains(said), "{said}: {checked:?}");
    }
}

/// A value that is made without it can be stored.
#[tokio::test]
async fn an_optional_input_that_is_gone_does_not_fail_a_check() {
    let upstream = Upstream::start().await;
    let page = "key = \"page:{name}\"\n[inputs]\nart = { key = \"art:{name}\", optional = true }\n[source]\n\
                kind = \"compose\"\nvalue = { art = \"{{ art }}\" }\n[entries]\nlist = [\"a\"]\n";
    let jobs = Art::of(&upstream).folder().job("page", page);
    let checked = check(&jobs, &["--fetch"]).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    for said in ["✓ page: page:a: ", "– art: not fetched: art:a does not exist (404 or 410)"] {
        assert!(checked.stdout.contains(said), "{said}: {checked:?}");
    }
}

#[tokio::test]
async fn check_diff_counts_the_values_that_a_rename_hands_over() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let folder = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &folder);
    let described = async || redis.ask::<bool>(&["HEXISTS", "samovar:jobs", "art"]).await;
    eventually("it is described", described).await;
    readable(&redis, "a").await;
    let renamed = Art::of(&upstream).toml().replace("{name}", "{title}").replace("{{ name }}", "{{ title }}");
    folder.write("works.toml", &renamed);
    std::fs::remove_file(folder.path().join("art.toml")).unwrap();
    let diff = async |name: &str| {
        let done = samovar(["check", "--diff", "--json"]).redis(&redis).jobs(&folder).run().await;
        let document: Value = serde_json::from_str(&done.stdout).unwrap();
        document["jobs"].as_array().unwrap().iter().find(|job| job["job"] == name).cloned().unwrap()
    };
    let (works, art) = (diff("works").await, diff("art").await);
    assert_eq!((&works["state"], &works["fetches"]), (&json!("new"), &json!(1)), "{works}");
    assert!(works["notes"].to_string().contains("takes over 1 value and revalidates"), "{works}");
    assert!(art["notes"].to_string().contains("its 1 value is taken over by works"), "{art}");
    Parts::of(&redis).await.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    let (works, art) = (diff("works").await, diff("art").await);
    assert_eq!(works["fetches"], 0, "{works}");
    assert!(art["notes"].to_string().contains("its 0 values expire"), "{art}");
}
