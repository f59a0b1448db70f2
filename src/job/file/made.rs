//! Digests of what a job file says: a change of what values are made from is told from all other changes.
//!
//! They are taken of the TOML before environment variables are inserted. So a rotated token changes none of them, and
//! files can be compared without secrets. Comments, layout and the order of keys do not count.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use toml::de::{DeTable, DeValue};
use twox_hash::XxHash3_64;

use super::document::Field;
use crate::entry::compact;
use crate::job::Job;

/// The fields of a job file that its values are made from.
const MADE_FROM: [&str; 5] = ["key", "source", "tags", "version", "inputs"];
/// The fields of a source by which entries share requests: their values are the same.
const SHARING: [&str; 2] = ["bulk", "wait"];
/// The other fields that change how a job is kept warm.
const OTHERS: [&str; 3] = ["ttl", "entries", "warm"];
/// The fields of an upstream that answers depend on.
const OF_UPSTREAM: [&str; 2] = ["url", "headers"];

/// Returns the fields of a job file that its values are made from, as text.
pub(super) fn text(root: &DeTable<'_>) -> String {
    some_of(root, &MADE_FROM)
}

/// Returns the URL and the headers of an upstream, as text.
pub(super) fn upstream_text(upstream: &Field<'_>) -> String {
    upstream.written().as_table().map(|table| some_of(table, &OF_UPSTREAM)).unwrap_or_default()
}

/// Returns the digests of a job file's other fields, by name.
pub(super) fn parts(root: &DeTable<'_>) -> BTreeMap<&'static str, String> {
    let found = OTHERS.into_iter().filter_map(|name| Some((name, root.get(name)?)));
    found.map(|(name, value)| (name, short(&canonical(value.get_ref()).to_string()))).collect()
}

/// Returns the digest of what a job's values are made from; `job.made` holds its own part as text. `upstreams` holds
/// the texts of the named upstreams.
pub(super) fn digest(job: &Job, upstreams: &BTreeMap<String, String>) -> String {
    let asked = job.sources.iter().filter_map(|source| upstreams.get(source.upstream()?.as_str()));
    short(&json!((&job.made, asked.collect::<Vec<_>>())).to_string())
}

fn some_of(table: &DeTable<'_>, names: &[&str]) -> String {
    let found = names.iter().filter_map(|name| Some(((*name).to_owned(), canonical(table.get(*name)?.get_ref()))));
    let mut found: serde_json::Map<String, Value> = found.collect();
    if let Some(source) = found.get_mut("source").and_then(Value::as_object_mut) {
        let fallbacks = source.get_mut("fallback").and_then(Value::as_array_mut);
        fallbacks.into_iter().flatten().filter_map(Value::as_object_mut).for_each(forget_sharing);
        forget_sharing(source);
    }
    Value::Object(found).to_string()
}

/// Removes what tells how entries share requests.
fn forget_sharing(source: &mut serde_json::Map<String, Value>) {
    SHARING.iter().for_each(|name| _ = source.remove(*name));
}

/// Returns a value in a form that depends on its content alone.
fn canonical(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => json!(text),
        DeValue::Integer(number) => {
            number.to_string().parse::<i64>().map_or_else(|_| json!([number.to_string()]), Into::into)
        }
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Value::Null, Into::into),
        DeValue::Boolean(is_true) => json!(is_true),
        DeValue::Datetime(time) => json!([time.to_string()]),
        DeValue::Array(items) => items.iter().map(|item| canonical(item.get_ref())).collect(),
        DeValue::Table(table) => {
            let sorted: BTreeMap<_, _> =
                table.iter().map(|(name, value)| (name.get_ref().to_string(), canonical(value.get_ref()))).collect();
            Value::Object(sorted.into_iter().collect())
        }
    }
}

/// Returns a digest of at most 6 letters and digits: it stands in the metadata of every value.
fn short(text: &str) -> String {
    compact(XxHash3_64::oneshot(text.as_bytes()) & u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::job::Jobs;

    const ART: &str = "key = \"art:{name}\"\nttl = \"1h\"\ntags = [\"all\"]\n[source]\nkind = \"http\"\n\
                       upstream = \"m\"\npath = \"/{{ name }}\"\nselect = \"/a\"\n";
    const MUSEUM: &str = "[m]\nurl = \"{{ env.URL }}\"\nrate = \"5/second\"\nheaders = { X = \"{{ env.TOKEN }}\" }\n";

    /// Returns the digests of the job `art` with these files, and with this value for each variable.
    fn read(art: &str, museum: &str, variable: &str) -> (String, BTreeMap<&'static str, String>) {
        let files =
            [("art.toml", art), ("upstreams.toml", museum)].map(|(name, text)| (name.to_owned(), text.to_owned()));
        let jobs = Jobs::parse(&files, Duration::from_secs(60), &|_| Some(variable.to_owned())).unwrap();
        let job = &jobs.jobs["art"];
        (job.made.clone(), job.parts.clone())
    }

    #[test]
    fn the_number_of_entries_in_a_request_changes_no_digest() {
        let fallback = "fallback = [{ kind = \"http\", url = \"http://b/{{ entries }}\", bulk = 2 }]\n";
        let art = ART.replace("/{{ name }}\"", "/{{ entries | length }}\"\nbulk = 100\nwait = \"1ms\"") + fallback;
        let (made, _) = read(&art, MUSEUM, "http://a");
        for (from, to) in [("= 100", "= 50"), ("1ms", "2ms"), ("wait = \"1ms\"", ""), ("bulk = 2 ", "bulk = 3 ")] {
            assert_eq!(read(&art.replace(from, to), MUSEUM, "http://a").0, made, "{to}");
        }
        assert_ne!(read(&art.replace("bulk = 100", "bulk = 100\nitems = \"/a\""), MUSEUM, "http://a").0, made);
    }

    #[test]
    fn only_what_values_are_made_from_changes_their_digest() {
        let (made, parts) = read(ART, MUSEUM, "http://a");
        assert!(made.len() <= 6, "{made}");
        assert_eq!(read(ART, MUSEUM, "http://rotated"), (made.clone(), parts.clone()), "a variable's value");
        for (from, to) in [
            ("ttl = \"1h\"", "# a comment\nttl = \"2h\""),
            (
                "[source]\nkind = \"http\"\nupstream = \"m\"",
                "[source] # moved\nupstream = 'm'\nkind = \"\"\"http\"\"\"",
            ),
            ("[source]", "description = \"new\"\n[warm]\nevery = \"5m\"\n[entries]\nlist = [\"a\"]\n[source]"),
        ] {
            assert_eq!(read(&ART.replace(from, to), MUSEUM, "http://a").0, made, "{to}");
        }
        let limits = MUSEUM.replace("rate = \"5/second\"", "timeout = \"3s\"");
        assert_eq!(read(ART, &limits, "http://a").0, made, "limits");
        for (from, to) in [
            ("\"/a\"", "\"/b\""),
            ("\"all\"", "\"some\""),
            ("\"/{{ name }}\"", "\"/{{ env.URL }}/{{ name }}\""),
            ("select", "value = \"{{ value }}\"\nselect"),
            ("[source]", "version = \"{{ value.v }}\"\n[source]"),
            ("select", "fallback = [{ kind = \"http\", url = \"http://b/{{ name }}\" }]\nselect"),
        ] {
            assert_ne!(read(&ART.replace(from, to), MUSEUM, "http://a").0, made, "{to}");
        }
        for (from, to) in [("X =", "Y ="), ("{{ env.URL }}", "http://a"), ("{{ env.TOKEN }}", "{{ env.URL }}")] {
            assert_ne!(read(ART, &MUSEUM.replace(from, to), "http://a").0, made, "{to}");
        }
        assert_eq!(parts.keys().copied().collect::<Vec<_>>(), ["ttl"]);
        assert_ne!(read(&ART.replace("1h", "2h"), MUSEUM, "http://a").1, parts);
    }
}
