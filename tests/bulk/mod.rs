//! One request for many entries: what each gets of its answer, and how many requests there are.

mod answers;
mod faults;
mod groups;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::support::{Call, JobsFolder, Reply, TestRedis, Upstream, both, eventually};

/// The path of a request for entries by name.
const BY_NAME: &str = "/artworks?ids={{ entries | map(attribute='name') | join(',') }}";

/// An upstream that answers for many entries at once: with an item of each that it has.
struct Museum {
    upstream: Upstream,
    versions: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Museum {
    /// The upstream has these entries in their first version.
    fn of(upstream: Upstream, names: impl IntoIterator<Item = String>) -> Self {
        let versions: BTreeMap<String, u64> = names.into_iter().map(|name| (name, 1)).collect();
        let versions = Arc::new(Mutex::new(versions));
        let shown = Arc::clone(&versions);
        upstream.answer("/artworks", move |call, _| answer_items(&asked(call), &shown));
        Self { upstream, versions }
    }

    /// The upstream has an entry in this version from now on.
    fn edit(&self, name: &str, version: u64) {
        self.versions.lock().unwrap().insert(name.to_owned(), version);
    }

    /// The upstream has an entry no more.
    fn remove(&self, name: &str) {
        self.versions.lock().unwrap().remove(name);
    }

    /// Returns the entries of each request, in order of arrival.
    fn groups(&self) -> Vec<Vec<String>> {
        self.upstream.all_requests().iter().map(asked).collect()
    }
}

/// Returns the answer for these entries, as far as the upstream has them.
fn answer_items(asked: &[String], versions: &Mutex<BTreeMap<String, u64>>) -> Reply {
    let shown = versions.lock().unwrap();
    let items = asked.iter().filter_map(|name| Some(item(name, *shown.get(name)?)));
    Reply::json(json!({ "data": items.collect::<Vec<_>>() }))
}

/// An item of an answer.
fn item(name: &str, version: u64) -> Value {
    json!({ "id": name, "version": version })
}

/// Returns the entries that a request asks for.
fn asked(call: &Call) -> Vec<String> {
    let list = call.target.split_once("ids=").map_or("", |(_, rest)| rest.split('&').next().unwrap_or_default());
    let list = percent_decode_str(list).decode_utf8().unwrap();
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// A folder with the job `art`, whose source has this path and these lines.
fn jobs(upstream: &Upstream, path: &str, source: &str, rest: &str) -> JobsFolder {
    JobsFolder::new().upstreams(&format!("[museum]\nurl = \"{}\"\n", upstream.url())).job(
        "art",
        &format!(
            "key = \"art:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\npath = \"{path}\"\n\
             {source}\n{rest}"
        ),
    )
}

/// The usual lines of a source for so many entries at once. An entry waits for company for longer than usual, since a
/// machine under load puts entries on the queue slowly.
fn bulk(size: usize) -> String {
    format!("bulk = {size}\nwait = \"300ms\"\nitems = \"/data\"\nitem = {{ name = \"{{{{ value.id }}}}\" }}")
}

/// The lines of a job that keeps these entries warm, and rechecks none of them during a test.
fn listed(names: &[String]) -> String {
    format!("[entries]\nlist = {}\n[warm]\nrecheck = [\"10m\"]\n", json!(names))
}

/// Returns so many names of entries.
fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("n{number}")).collect()
}

/// Waits until these entries are readable in this version.
async fn served(redis: &TestRedis, names: &[String], version: u64) {
    eventually("all are readable", async || {
        let mut keys = vec!["MGET".to_owned()];
        keys.extend(names.iter().map(|name| format!("art:{name}")));
        let words: Vec<&str> = keys.iter().map(String::as_str).collect();
        let values: Vec<Option<String>> = redis.ask(&words).await;
        let values = values.iter().map(|value| value.as_ref().and_then(|value| serde_json::from_str(value).ok()));
        let missing: Vec<_> =
            names.iter().zip(values).filter(|(name, value)| *value != Some(item(name, version))).collect();
        match missing.as_slice() {
            [] => Ok(()),
            [first, ..] => Err(format!("{} of {}, the first {first:?}", missing.len(), names.len())),
        }
    })
    .await;
}

/// A museum with so many entries, and a job that keeps them warm with so many in a request.
async fn museum(count: usize, size: usize) -> (TestRedis, Museum, JobsFolder) {
    let (redis, upstream) = both().await;
    let museum = Museum::of(upstream, names(count));
    let jobs = jobs(&museum.upstream, BY_NAME, &bulk(size), &listed(&names(count)));
    (redis, museum, jobs)
}
