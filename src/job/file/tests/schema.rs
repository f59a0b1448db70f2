//! The schemas and the parser: they know the same fields, accept the same files, and refuse the same ones, except for
//! the faults in [`BEYOND`].

mod walk;

use super::*;
use jsonschema::{Validator, error::ValidationErrorKind};
use serde_json::Value;
use std::sync::LazyLock;
use toml::de::DeValue;
use walk::{Walk, to_be_used};

/// A field that no table has, and that is like no other.
const STRAY: &str = "zzzzzzzzzzzz";

/// Files that use every field. A field that is added to a schema is added here, too.
const RIGHT: [(&str, &str); 5] = [
    (
        "art.toml",
        r#"
description = "All there is for HTTP"
key = "art:{lang}:{name}"
ttl = "1h 30m"
tags = ["artist:{{ value.artist }}"]
version = "{{ value.updated_at }}"
[inputs]
bio = "bio:{name}"
often = { key = "often:{name}", optional = true }
[source]
kind = "http"
upstream = "museum"
path = "/artworks/{{ name }}"
headers = { Accept-Language = "{{ lang }}" }
body = { query = ["{{ name }}", 1, 2026-01-01] }
select = "/data/0"
accept = "{{ value.ok }}"
value = { title = "{{ value.title }}" }
[[source.fallback]]
kind = "http"
url = "http://other.test/?ids={{ entries | map(attribute='name') | join(',') }}"
bulk = 100
items = "/data"
item = { lang = "{{ value.lang }}", name = "{{ name }}" }
absent = "failed"
wait = "50ms"
[entries]
list = [{ lang = "tr", name = 7 }]
popular = 5
[entries.feed]
upstream = "museum"
path = "/popular"
select = "/items"
item = { name = "{{ value.id }}" }
with = { lang = ["tr", "en"] }
next = "/next"
next_param = "after"
max_bytes = "2MiB"
empty = "ok"
[warm]
schedule = "*/30 * * * *"
timezone = "Europe/Istanbul"
refetch = true
ahead = "10m"
attempts = 3
stale_if_error = "1.5h"
recheck = ["50ms", "1s"]
absent_for = "0s"
version_patience = "1 minute"
"#,
    ),
    (
        "often.toml",
        r#"
key = "often:{name}"
[source]
kind = "http"
url = "http://other.test/often/{{ name }}"
[warm]
gone_guard = "25%"
audit = "5 per 2 hours"
[[warm.schedules]]
schedule = "0 4 * * *"
timezone = "Europe/Istanbul"
refetch = true
[[warm.schedules]]
every = "15m"
"#,
    ),
    (
        "bio.toml",
        r#"
key = "bio:{name}"
[source]
kind = "ai"
url = "https://ai.test/v1/chat/completions"
model = "m"
system = "Be brief."
prompt = "{{ name }}"
temperature = 0.5
max_tokens = 100
format = "json"
options = { stream = false, n = 1, user = "samovar" }
[[source.fallback]]
kind = "ai"
upstream = "museum"
model = "m"
prompt = "{{ name }}"
options = { max_completion_tokens = 100, temperature = 1 }
[entries]
list = ["Mona Lisa", 7, 1.5]
feed = { url = "http://museum.test/artists" }
[warm]
every = "30m"
"#,
    ),
    (
        "page.toml",
        r#"
key = "page"
[inputs]
bio = "bio:x"
[source]
kind = "compose"
value = ["{{ bio }}"]
fallback = []
"#,
    ),
    (
        "upstreams.toml",
        r#"
[museum]
url = "http://museum.test/api"
headers = { Authorization = "Bearer x" }
rate = "5 per 2 hours"
concurrency = 2
timeout = "1s"
max_bytes = "200KB"
tokens = "200_000/day"
redirects = "public"
"#,
    ),
];

/// Faults that the schemas do not refuse, with the reason: each a part of the message.
const BEYOND: [(&str, &[&str]); 8] = [
    ("there is no value to compare with the schema", &["not TOML"]),
    (
        "a template is text to a schema",
        &[
            "is not defined",
            "is text and has no",
            "is a template, and a key",
            "`env` must be followed by",
            "syntax error",
            "unknown filter",
            "`{% include %}` needs other templates",
            "the filter `path` is for URLs only",
            "the scheme and host of a URL must be known",
            "neither the URL nor `body` has `entries`",
        ],
    ),
    ("a schema knows neither the environment nor the name of the file", &["environment variable", "named after its"]),
    (
        "only all files together show it",
        &["jobs wait for each other", "no job warms", "there is no upstream", "claim the same keys"],
    ),
    (
        "a schema compares no field or name with another one",
        &[
            "is no placeholder of the key",
            "has the name of a placeholder",
            "the entry has no",
            "has no key: in",
            "`item` has no",
            "is in both `item` and `with`",
            "`with` gives all placeholders",
            "stands twice; upper and lower case are the same",
            "must be shorter than `ttl`",
            "must come before",
            "have the same times",
            "a key without placeholders has one",
        ],
    ),
    ("a pattern compares no amounts", &["must be at least", "must be at most"]),
    (
        "a pattern of the calendar would be beyond reading, and the list of time zones changes each year",
        &["is no minute", "never comes", "there is no time zone"],
    ),
    ("JSON has neither dates nor NaN, so editors validate something else", &["is a date", "nan is not a JSON number"]),
];

struct Schema {
    document: Value,
    validator: Validator,
}

impl Schema {
    fn read(text: &str) -> Self {
        let document: Value = serde_json::from_str(text).unwrap();
        let validator = jsonschema::draft7::new(&document).unwrap();
        Self { document, validator }
    }

    fn of(file: &str) -> &'static Self {
        static JOB: LazyLock<Schema> = LazyLock::new(|| Schema::read(JOB_SCHEMA));
        static UPSTREAMS: LazyLock<Schema> = LazyLock::new(|| Schema::read(UPSTREAMS_SCHEMA));
        if file.ends_with(super::UPSTREAMS) { &UPSTREAMS } else { &JOB }
    }

    /// Returns a validator of the part at a JSON Pointer.
    fn part(&self, pointer: &str) -> Validator {
        let part = self.document.pointer(pointer).unwrap();
        jsonschema::draft7::new(&json!({ "definitions": self.document["definitions"], "allOf": [part] })).unwrap()
    }
}

/// Returns the JSON that editors validate in place of a TOML value.
fn as_json(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => json!(text),
        toml::Value::Integer(number) => json!(number),
        toml::Value::Float(number) => json!(number),
        toml::Value::Boolean(value) => json!(value),
        toml::Value::Datetime(date) => json!(date.to_string()),
        toml::Value::Array(items) => items.iter().map(as_json).collect(),
        toml::Value::Table(table) => {
            Value::Object(table.iter().map(|(name, value)| (name.clone(), as_json(value))).collect())
        }
    }
}

fn instance(text: &str) -> Option<Value> {
    Some(as_json(&toml::Value::Table(text.parse().ok()?)))
}

/// The schemas accept what the parser accepts.
pub(super) fn assert_accepted(files: &[(&str, &str)]) {
    for (name, text) in files.iter().filter(|(name, _)| name.ends_with(".toml")) {
        let instance = instance(text).unwrap();
        let errors: Vec<String> = Schema::of(name)
            .validator
            .iter_errors(&instance)
            .map(|error| format!("{error} at {}", error.instance_path()))
            .collect();
        assert_eq!(errors, [""; 0], "{name}:\n{text}");
    }
}

/// Returns the names on the way to what stands at a byte of a file.
fn path_at(value: &DeValue<'_>, at: usize) -> Option<Vec<String>> {
    let children: Vec<_> = match value {
        DeValue::Table(table) => {
            table.iter().map(|(key, value)| (key.get_ref().to_string(), key.span(), value)).collect()
        }
        DeValue::Array(items) => {
            items.iter().enumerate().map(|(index, value)| (index.to_string(), value.span(), value)).collect()
        }
        _ => Vec::new(),
    };
    children.into_iter().find_map(|(name, key, value)| match path_at(value.get_ref(), at) {
        Some(below) => Some([vec![name], below].concat()),
        None => (key.contains(&at) || value.span().contains(&at)).then(|| vec![name]),
    })
}

/// A schema's refusal: the names on the way to it, and whether it is about exactly this.
type Refusal = (Vec<String>, bool);

fn refusals(name: &str, instance: &Value) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for error in Schema::of(name).validator.iter_errors(instance) {
        let pointer = error.instance_path().as_str();
        let names: Vec<String> =
            pointer.split('/').skip(1).map(|name| name.replace("~1", "/").replace("~0", "~")).collect();
        let below = |name: &str| ([names.as_slice(), &[name.to_owned()]].concat(), true);
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                refusals.extend(unexpected.iter().map(|name| below(name)));
            }
            ValidationErrorKind::PropertyNames { error } => {
                refusals.push(below(error.instance().as_str().unwrap_or_default()));
            }
            _ => refusals.push((names, false)),
        }
    }
    refusals
}

/// Returns the faults of files that no schema refuses where they are.
fn missed(files: &[(&str, &str)]) -> Vec<String> {
    let mut missed = Vec::new();
    for fault in parse(files).unwrap_err().0 {
        let (name, text) = files.iter().find(|(name, _)| *name == fault.file).unwrap();
        let refused = instance(text).is_some_and(|instance| {
            let (table, _) = DeTable::parse_recoverable(text);
            let place = path_at(&DeValue::Table(table.into_inner()), fault.span.start).unwrap_or_default();
            let parent = place.split_last().map(|(_, parent)| parent);
            refusals(name, &instance)
                .iter()
                .any(|(names, exact)| *names == place || (!exact && parent == Some(names.as_slice())))
        });
        if !refused {
            missed.push(fault.message);
        }
    }
    missed
}

/// The schemas refuse the faults of these files, except for those in [`BEYOND`], of which it returns the parts.
pub(super) fn assert_refused(files: &[(&str, &str)]) -> BTreeSet<&'static str> {
    let parts = || BEYOND.iter().flat_map(|(_, parts)| *parts);
    let missed = missed(files);
    let beyond = |message: &String| parts().find(|part| message.contains(**part)).copied();
    let unlisted: Vec<&String> = missed.iter().filter(|message| beyond(message).is_none()).collect();
    assert!(unlisted.is_empty(), "no schema refuses {unlisted:?}:\n{files:?}");
    missed.iter().filter_map(beyond).collect()
}

/// Returns the fields that the parser knows in a table of one of the files.
fn known_to_the_parser(file: &str, path: &[String]) -> BTreeSet<String> {
    let files: Vec<(String, String)> = RIGHT
        .iter()
        .map(|(name, text)| {
            let mut root = toml::Value::Table(text.parse().unwrap());
            if *name == file {
                let table = path.iter().fold(&mut root, |value, name| match value {
                    toml::Value::Array(items) => &mut items[name.parse::<usize>().unwrap()],
                    other => &mut other[name.as_str()],
                });
                table.as_table_mut().unwrap().insert(STRAY.to_owned(), toml::Value::Boolean(true));
            }
            ((*name).to_owned(), toml::to_string(&root).unwrap())
        })
        .collect();
    let faults = Jobs::parse(&files, HOUR, &environment).unwrap_err();
    let [fault] = faults.0.as_slice() else { panic!("{file} {path:?}: {faults}") };
    assert!(fault.message.starts_with(&format!("unknown field `{STRAY}`")), "{file} {path:?}: {fault}");
    let known = fault.help.as_ref().unwrap().strip_prefix("known here: ").unwrap();
    known.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_schemas_and_the_parser_know_the_same_fields() {
    let mut used: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    parse(&RIGHT).unwrap();
    for (name, text) in RIGHT {
        let schema = Schema::of(name);
        let walk = Walk::over(schema, &instance(text).unwrap());
        used.entry(schema.document["title"].as_str().unwrap()).or_default().extend(walk.used);
        for (path, names) in walk.tables {
            assert_eq!(names, known_to_the_parser(name, &path), "the fields of {path:?} in {name}");
        }
    }
    for file in ["art.toml", super::UPSTREAMS] {
        let schema = &Schema::of(file).document;
        let mut wanted = BTreeSet::new();
        to_be_used(schema, "", &mut wanted);
        let unused: Vec<_> = wanted.difference(&used[schema["title"].as_str().unwrap()]).collect();
        assert!(unused.is_empty(), "no example in RIGHT uses {unused:?}");
    }
}

/// Calls a check with each part of a schema that describes a value, and its JSON Pointer.
fn for_each_field(schema: &Value, pointer: &str, check: &mut impl FnMut(&str, &Value)) {
    for (name, part) in schema.as_object().into_iter().flatten() {
        let pointer = format!("{pointer}/{name}");
        if matches!(name.as_str(), "properties" | "definitions") {
            for (name, field) in part.as_object().unwrap() {
                let pointer = format!("{pointer}/{name}");
                check(&pointer, field);
                for_each_field(field, &pointer, check);
            }
        } else if name == "items" || name == "additionalProperties" {
            for_each_field(part, &pointer, check);
        }
    }
}

#[test]
fn each_field_is_described_with_values_that_are_right() {
    for file in ["art.toml", super::UPSTREAMS] {
        let schema = Schema::of(file);
        assert!(jsonschema::draft7::meta::is_valid(&schema.document));
        let mut count = 0;
        for_each_field(&schema.document, "", &mut |pointer, field| {
            count += 1;
            let examples = field["examples"].as_array().into_iter().flatten();
            for value in examples.chain(field.get("default")) {
                assert!(schema.part(pointer).is_valid(value), "{pointer}: {value}");
            }
            // Only the options that a schema limits are in it, and a fallback is a source.
            let needs_none = pointer.contains("/options/") || pointer == "/definitions/fallback";
            let is_described = field["description"].is_string() || field["$ref"].is_string();
            assert!(needs_none || is_described, "{pointer} has no description");
        });
        assert!(count >= 9, "{count}");
    }
}

#[test]
fn the_defaults_of_the_schemas_are_those_of_the_parser() {
    let table = |schema: &Value, pointer: &str| {
        let fields = schema.pointer(pointer).unwrap().as_object().unwrap().iter();
        let defaults = fields.filter_map(|(name, field)| Some(format!("{name} = {}\n", field.get("default")?)));
        // UTC is the default of a schedule alone.
        defaults.filter(|line| !line.starts_with("timezone")).collect::<String>()
    };
    let job = &Schema::of("art.toml").document;
    let written = [
        format!("{GOOD}[warm]\n{}", table(job, "/definitions/warm/properties")),
        format!("[entries]\n{}", table(job, "/definitions/entries/properties")),
    ];
    assert!(written.iter().all(|text| text.ends_with('\n') && text.lines().count() >= 2), "{written:?}");
    let upstream = &table(&Schema::of(super::UPSTREAMS).document, "/definitions/upstream/properties");
    assert_eq!(upstream.lines().count(), 3, "{upstream}");
    let read = |job: &str, upstreams: &str| {
        let jobs = parse(&[("a.toml", job), ("upstreams.toml", upstreams)]).unwrap();
        let (job, museum) = (&jobs.jobs["a"], &jobs.upstreams["museum"]);
        format!(
            "{:?} {} {:?} {} {:?}",
            job.warm, job.entries.popular, museum.timeout, museum.max_bytes, museum.redirects
        )
    };
    assert_eq!(read(&written.concat(), &format!("{UPSTREAM}{upstream}")), read(GOOD, UPSTREAM));
}

#[test]
fn shipped_files_name_their_schema_and_are_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for entry in std::fs::read_dir(root.join("jobs")).unwrap() {
        let path = entry.unwrap().path();
        let (text, name) = (std::fs::read_to_string(&path).unwrap(), path.file_name().unwrap().to_str().unwrap());
        // Tombi requires the empty line.
        let line = text.strip_prefix("#:schema ").and_then(|rest| rest.split_once("\n\n")).unwrap().0;
        let named = std::fs::read_to_string(root.join("jobs").join(line)).unwrap();
        assert_eq!(named, if name == super::UPSTREAMS { UPSTREAMS_SCHEMA } else { JOB_SCHEMA }, "{name}");
        assert_accepted(&[(name, &text)]);
        count += 1;
    }
    assert!(count >= 6, "{count}");
}

#[test]
fn the_examples_of_the_documentation_are_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut count = 0;
    for page in pages.chain([root.join("README.md")]) {
        let text = std::fs::read_to_string(&page).unwrap();
        for block in text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            let file = if block.starts_with("# jobs/upstreams.toml") { super::UPSTREAMS } else { "example.toml" };
            let is_whole_job = block.contains("key = ") && block.contains("\n[source]\n");
            if is_whole_job || file == super::UPSTREAMS {
                assert_accepted(&[(file, block)]);
                count += 1;
            }
        }
    }
    assert!(count >= 6, "{count}");
}

#[test]
fn the_schemas_refuse_the_faults_that_they_can_express() {
    let mut used = assert_refused(&[("a.toml", GOOD), ("b c.toml", GOOD)]);
    for (change, _) in faults::cases() {
        used.extend(assert_refused(&[("jobs/a.toml", &change.text()), ("jobs/upstreams.toml", UPSTREAM)]));
    }
    let listed = BEYOND.iter().flat_map(|(_, parts)| parts.iter().copied());
    let unused: Vec<&str> = listed.filter(|part| !used.contains(part)).collect();
    assert!(unused.is_empty(), "the schemas refuse these, or nothing has them: {unused:?}");
}

/// Faults that the parser finds in one field each, and that no schema may miss.
#[test]
fn the_schemas_refuse_zero_reserved_names_and_leading_space() {
    let job = |key: &str, ttl: &str, url: &str| {
        format!("key = \"{key}\"\nttl = \"{ttl}\"\n[source]\nkind = \"http\"\nurl = \"{url}\"\n")
    };
    let (key, ttl, url) = ("art:{name}", "1h", "http://h.test/{{ name }}");
    assert_accepted(&[("art.toml", &job("art:{{value}}:{values}", "0h 10s", url))]);
    for (file, text) in [
        ("art.toml", job(key, "0s", url)),
        ("art.toml", job(key, "0h 00.0 s", url)),
        ("art.toml", job("art:{value}", ttl, "http://h.test/")),
        ("art.toml", job("art:{{{Env}", ttl, "http://h.test/")),
        ("art.toml", job("art:{id}:{in}", ttl, "http://h.test/")),
        ("art.toml", job(key, ttl, " http://h.test/{{ name }}")),
        ("art.toml", job(key, ttl, url) + "[warm]\nevery = \"0s\"\n"),
        ("art.toml", job(key, ttl, url) + "[inputs]\nbio = \"bio:{value}\"\n"),
        ("upstreams.toml", "[museum]\nurl = \"http://h.test\"\ntimeout = \"0 ms\"\n".to_owned()),
        ("art.toml", job(key, ttl, url) + "[entries.feed]\nurl = \" http://h.test/all\"\n"),
    ] {
        let right = job(key, ttl, url);
        let files = [("art.toml", right.as_str()), (file, text.as_str())];
        let files = if file == "art.toml" { &files[1..] } else { &files[..] };
        assert!(parse(files).is_err(), "{text}");
        assert_eq!(missed(files), [""; 0], "{text}");
    }
}

#[test]
fn the_line_that_names_a_schema_is_a_comment() {
    for line in ["#:schema ../schemas/job.json", "#:schema {{ name }} \\ \"", "#:schema"] {
        let [with, without] = [format!("{line}\n\n{GOOD}"), GOOD.to_owned()].map(|text| {
            let jobs = parse(&[("a.toml", &text)]).unwrap();
            format!("{:?}", Job { digest: String::new(), requests: String::new(), ..jobs.jobs["a"].as_ref().clone() })
        });
        assert_eq!(with, without, "{line}");
    }
}
