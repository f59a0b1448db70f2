//! The dashboard and the alert rules: every series that they select is one that a worker exposes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use samovar::entry::Outcome;
use serde_json::{Value, json};

use super::promql::{self, Query, Selector};
use super::{checked, only, root, text, yaml};
use crate::support::{Art, Parts, Reply, TestRedis, Upstream, eventually, talkative};

const DASHBOARD: &str = "deploy/grafana/samovar.json";
const ALERTS: &str = "deploy/prometheus/alerts.yaml";

/// The labels that Prometheus adds.
const OF_PROMETHEUS: [&str; 1] = ["instance"];

/// The labels of a worker's series, by name.
type Series = BTreeMap<String, BTreeSet<String>>;

fn dashboard() -> Value {
    serde_json::from_str(&text(DASHBOARD)).unwrap()
}

/// Returns the panels that show data.
fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row").collect()
}

fn rules() -> Vec<Value> {
    let alerts = yaml(ALERTS);
    let groups = alerts["groups"].as_array().unwrap().clone();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn string<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field}: {value}"))
}

/// Returns all expressions: of panels with their legends, and of alerts.
fn expressions() -> Vec<(String, Option<String>)> {
    let dashboard = dashboard();
    let targets = panels(&dashboard).into_iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let of_panels = targets.map(|one| (string(one, "expr").to_owned(), Some(string(one, "legendFormat").to_owned())));
    let of_panels: Vec<_> = of_panels.collect();
    let of_alerts = rules().into_iter().map(|rule| (string(&rule, "expr").to_owned(), None));
    of_panels.into_iter().chain(of_alerts).collect()
}

/// Returns what a worker exposes that has done some of everything.
async fn exposed() -> Series {
    let (redis, upstream) = tokio::join!(TestRedis::start(), Upstream::start());
    upstream.on("/art/bad", Reply::status(500));
    upstream.on("/names", Reply::status(500));
    // A recheck finds another value than the invalidation's fetch.
    upstream.answer("/art/a", |_, call| Reply::json(json!({ "call": call })));
    upstream.answer("/v1/chat/completions", |_, _| {
        let choice = json!({"message": {"content": "x"}, "finish_reason": "stop"});
        Reply::json(json!({"choices": [choice], "usage": {"total_tokens": 9}}))
    });
    let limits = format!("[openai]\nurl = \"{}/v1\"\ntokens = \"1000/day\"\n", upstream.url());
    let art = Art::of(&upstream).list(["a", "bad"]).limits(&limits);
    let art = art.entries("feed = { upstream = \"museum\", path = \"/names\" }");
    let story = "key = \"story:{name}\"\nttl = \"1h\"\n[source]\nkind = \"ai\"\nupstream = \"openai\"\n\
                 model = \"tiny\"\nprompt = \"{{ name }}\"\n[entries]\nlist = [\"a\"]\n";
    let jobs = art.warm("attempts = 1\nrecheck = [\"500ms\", \"2s\", \"5s\"]").folder().job("story", story);
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let url = worker.http().await;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
    let parts = Parts::of(&redis).await;
    eventually("the entry is warm", async || redis.json("art:a").await).await;
    parts.invalidate("art:a").await;
    let wanted: BTreeSet<String> = selectors().into_iter().map(|selector| selector.metric).collect();
    let scrape = async || {
        let answer = client.get(format!("{url}/metrics")).send().await.unwrap();
        series(&answer.text().await.unwrap())
    };
    eventually("all series are there", async || {
        let series = scrape().await;
        let missing: Vec<&String> = wanted.iter().filter(|name| !series.contains_key(*name)).collect();
        if missing.is_empty() { Ok(series) } else { Err(format!("{missing:?}")) }
    })
    .await
}

/// Reads the names and labels of the text format.
fn series(metrics: &str) -> Series {
    let mut series = Series::new();
    for line in metrics.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let labels = line.split_once('{').map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
        let labels = labels.split("\",").filter_map(|label| label.split_once('=')).map(|(label, _)| label.to_owned());
        series.entry(name.to_owned()).or_default().extend(labels);
    }
    series
}

/// Returns the selectors of all expressions and of the dashboard's variables.
fn selectors() -> Vec<Selector> {
    expressions().iter().flat_map(|(expression, _)| promql::read(expression).selectors).collect()
}

/// The words that a label may have, if they are a closed set.
fn words(label: &str) -> BTreeSet<String> {
    match label {
        "outcome" => Outcome::ALL.iter().map(|outcome| outcome.as_str().to_owned()).collect(),
        "trigger" => {
            let page = text("docs/http.md");
            let row = page.lines().find(|row| row.starts_with("| `samovar_entries_total`")).unwrap();
            row.split('`').skip(3).step_by(2).map(str::to_owned).collect()
        }
        other => panic!("a worker's own words are not known for the label {other}"),
    }
}

#[tokio::test]
async fn each_series_in_queries_is_exposed_with_its_labels() {
    let series = exposed().await;
    for (expression, legend) in expressions() {
        let Query { selectors, grouping } = promql::read(&expression);
        let own = |label: &&String| !OF_PROMETHEUS.contains(&label.as_str());
        for Selector { metric, matchers } in &selectors {
            let labels = &series[metric];
            let is_bucket = |label: &&String| *label != "le" || metric.ends_with("_bucket");
            let named = grouping.iter().filter(own).filter(is_bucket).chain(matchers.iter().map(|(label, ..)| label));
            for label in named {
                assert!(labels.contains(label), "{metric} has no label {label}: {expression}");
            }
            for (label, _, value) in matchers.iter().filter(|(.., value)| !value.starts_with('$')) {
                let words = words(label);
                assert!(value.split('|').all(|word| words.contains(word)), "{label}: {value} in {expression}");
            }
        }
        // What a legend shows is left after grouping.
        let legend = legend.unwrap_or_default();
        for label in legend.split("{{").skip(1).map(|rest| rest.split_once("}}").unwrap().0) {
            let is_of_prometheus = OF_PROMETHEUS.contains(&label) && !expression.contains(" by (");
            assert!(is_of_prometheus || grouping.contains(label), "the legend {legend} of {expression}");
        }
    }
    for variable in dashboard()["templating"]["list"].as_array().unwrap().iter().filter(|one| one["type"] == "query") {
        let query = string(&variable["query"], "query");
        let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
        let (metric, label) = inside.split_once(", ").unwrap();
        assert!(series[metric].contains(label), "{query}");
        assert_eq!((string(variable, "name"), string(variable, "definition")), (label, query));
    }
}

#[test]
fn each_expression_is_promql() {
    let all: Vec<String> = expressions()
        .into_iter()
        .map(|(expression, _)| expression.replace("$__rate_interval", "5m"))
        .chain(["sum by (job".to_owned()])
        .collect();
    let Some((is_right, said)) = checked(&["promql"], &json!(all).to_string()) else { return };
    assert!(!is_right, "the last one is broken");
    assert_eq!(said.trim(), "sum by (job: unclosed left parenthesis");
}

#[test]
fn the_dashboard_belongs_to_no_installation() {
    let dashboard = dashboard();
    assert_eq!((&dashboard["uid"], &dashboard["id"]), (&json!("samovar"), &Value::Null));
    let source = json!({"type": "prometheus", "uid": "${datasource}"});
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert_eq!((&variables[0]["name"], &variables[0]["type"]), (&json!("datasource"), &json!("datasource")));
    assert!(variables.iter().skip(1).all(|variable| variable["datasource"] == source));
    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "twice: {panel}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|field| panel["gridPos"][field].as_u64().unwrap());
        assert!(x + w <= 24, "{panel}");
        assert!((x..x + w).all(|x| (y..y + h).all(|y| places.insert((x, y)))), "over another: {panel}");
    }
    for panel in panels(&dashboard) {
        assert!(string(panel, "title").len() > 2 && string(panel, "description").ends_with('.'), "{panel}");
        assert!(!string(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{panel}");
        assert_eq!(panel["datasource"], source, "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"], source, "{target}");
            let rates = string(target, "expr").split("rate(").skip(1);
            let mut ranges = rates.map(|rest| rest.split_once('[').unwrap().1.split_once(']').unwrap().0);
            assert!(ranges.all(|range| range == "$__rate_interval"), "{target}");
        }
    }
}

#[test]
fn each_alert_says_what_to_do_and_where_to_read() {
    let mut names = BTreeSet::new();
    only(&yaml(ALERTS), &["groups"]);
    only(&yaml(ALERTS)["groups"][0], &["name", "rules"]);
    for rule in rules() {
        let name = string(&rule, "alert");
        only(&rule, &["alert", "expr", "for", "labels", "annotations"]);
        only(&rule["annotations"], &["summary", "description"]);
        assert!(name.starts_with("Samovar") && names.insert(name.to_owned()), "{name}");
        // What is held back is removed after an hour, so a person must know at once.
        let waits = if name == "SamovarRemovalsHeld" { Duration::ZERO } else { Duration::from_secs(300) };
        assert!(super::time(string(&rule, "for")) >= waits, "{name}");
        assert!(["critical", "warning"].contains(&string(&rule["labels"], "severity")), "{name}");
        let (summary, description) =
            (string(&rule["annotations"], "summary"), string(&rule["annotations"], "description"));
        assert!(!summary.ends_with('.') && description.ends_with('.'), "{name}");
        let (_, page) = description.rsplit_once("See ").unwrap_or_else(|| panic!("{name} names no page"));
        let (page, heading) = page.trim_end_matches('.').split_once(", ").unwrap_or((page.trim_end_matches('.'), ""));
        assert!(root(page).exists(), "{name}: {page}");
        let heading = heading.trim_matches('"');
        let is_heading = |line: &str| line.starts_with('#') && line.trim_start_matches('#').trim() == heading;
        assert!(heading.is_empty() || text(page).lines().any(is_heading), "{name}: {page} has no section {heading}");
        let grouping = promql::read(string(&rule, "expr")).grouping;
        for text in [summary, description] {
            for label in text.split("$labels.").skip(1).map(|rest| rest.split([' ', '}']).next().unwrap()) {
                let is_left = grouping.contains(label) || (grouping.is_empty() && OF_PROMETHEUS.contains(&label));
                assert!(is_left, "{name} has no label {label}");
            }
        }
    }
    assert!(names.len() > 8, "{names:?}");
}

/// After a deploy that removes or renames a job, programs that follow within the hour still publish its keys.
#[test]
fn a_deploy_that_removes_a_job_alerts_nobody() {
    let rule = rules().into_iter().find(|rule| rule["alert"] == "SamovarInvalidationsForeign").unwrap();
    let range = string(&rule, "expr").split_once('[').unwrap().1.split_once(']').unwrap().0;
    assert!(super::time(string(&rule, "for")) > super::time(range) + Duration::from_secs(3_600), "{rule}");
}

/// Without it, Prometheus renames Samovar's label `job`.
#[test]
fn the_scrape_configuration_honours_labels() {
    let scrape = yaml("deploy/prometheus/scrape.yaml");
    let one = &scrape["scrape_configs"][0];
    only(&scrape, &["scrape_configs"]);
    only(one, &["job_name", "honor_labels", "metrics_path", "static_configs"]);
    assert_eq!((&one["honor_labels"], &one["metrics_path"]), (&json!(true), &json!("/metrics")));
    let port = samovar::config::DEFAULT_PORT;
    assert_eq!(one["static_configs"][0]["targets"], json!([format!("127.0.0.1:{port}")]));
}
