//! `[source]` and its fallbacks: what is asked for, and where.

use super::bulk::{bulk, check_entries};
use super::document::{Field, Table, Text, short};
use super::pointer::pointer;
use super::scope::Scope;
use super::spelling::closest;
use super::upstreams::{Base, Upstreams, check_header_names, checked_url, header_value_fault};
use crate::entry::UpstreamName;
use crate::job::template::is_dot_segment;
use crate::job::{AiFormat, AiSource, ComposeSource, HttpSource, KeyPattern, Source, Template};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// The kinds of a source.
const KINDS: [&str; 3] = ["http", "ai", "compose"];
/// More would never be reached before the lease ends.
const MOST_FALLBACKS: usize = 10;
/// The allowed length of an AI answer, in tokens.
const MAX_TOKENS: RangeInclusive<u64> = 1..=1_000_000;

/// Fields that say what a server is asked, how its answer is read, and its limits.
const ASKING: [&str; 25] = [
    "url",
    "upstream",
    "path",
    "headers",
    "body",
    "select",
    "accept",
    "bulk",
    "items",
    "item",
    "absent",
    "wait",
    "model",
    "system",
    "prompt",
    "temperature",
    "max_tokens",
    "options",
    "format",
    "rate",
    "concurrency",
    "timeout",
    "max_bytes",
    "tokens",
    "redirects",
];

/// The server asked, and the absolute URL.
pub(super) struct Target {
    pub(super) upstream: UpstreamName,
    pub(super) url: Template,
}

/// The source and its fallbacks, in the order they are tried.
pub(super) fn sources(
    field: &Field<'_>,
    key: Option<&KeyPattern>,
    scope: &Scope,
    upstreams: &Upstreams,
) -> Vec<Source> {
    let Some(table) = field.table("[source]") else { return Vec::new() };
    let mut sources: Vec<Source> = Vec::new();
    let fallbacks = table.field("fallback");
    sources.extend(source(table, key, scope, upstreams));
    let Some((fallbacks, items)) = fallbacks.and_then(|field| field.items().map(|items| (field, items))) else {
        return sources;
    };
    if items.len() > MOST_FALLBACKS {
        fallbacks.fault(format!("{} fallbacks are too many; the most is {MOST_FALLBACKS}", items.len()));
    }
    for item in items {
        if let Some(table) = item.table("a fallback") {
            sources.extend(source(table, key, scope, upstreams));
        }
    }
    sources
}

fn source(table: Table<'_>, key: Option<&KeyPattern>, scope: &Scope, upstreams: &Upstreams) -> Option<Source> {
    let kind = table.required("kind", "kind = \"http\"")?;
    let text = kind.filled()?;
    let written = text.value.as_str();
    let meant = closest(written, KINDS.into_iter());
    if !KINDS.contains(&written) {
        let help = meant.map(|meant| format!("did you mean `{meant}`?"));
        let message = format!("there is no source of kind `{written}`; it is \"http\", \"ai\" or \"compose\"");
        table.doc.fault_with_help(text.at.clone(), message, help);
    }
    // A misspelt kind hides no other fault of its table.
    let source = match meant? {
        "http" => http(&table, key, scope, upstreams).map(|source| Source::Http(Box::new(source))),
        "ai" => ai(&table, scope, upstreams).map(|source| Source::Ai(Box::new(source))),
        _ => compose(&table, scope).map(|source| Source::Compose(Box::new(source))),
    };
    table.finish();
    source
}

fn http(table: &Table<'_>, key: Option<&KeyPattern>, scope: &Scope, upstreams: &Upstreams) -> Option<HttpSource> {
    let answered = scope.with_value();
    let bulk_field = table.field("bulk");
    let asked = if bulk_field.is_some() { scope.of_many() } else { scope.clone() };
    let target = target(table, &asked, upstreams, None);
    let headers = table.field("headers").map(|field| headers(&field, &asked)).unwrap_or_default();
    let body = table.field("body").and_then(|field| field.shape(&asked));
    let select = table.field("select").and_then(|field| pointer(&field)).unwrap_or_default();
    let accept = table.field("accept").and_then(|field| accept(&field, &answered));
    let value = table.field("value").and_then(|field| field.shape(&answered));
    let bulk = bulk(table, bulk_field.as_ref(), key);
    let Target { upstream, url } = target?;
    let url = match &bulk_field {
        Some(field) => {
            check_entries(field, &url, body.as_ref());
            url.of_many().ok()?
        }
        None => url,
    };
    Some(HttpSource { upstream, url, headers, body, select, accept, value, bulk })
}

fn ai(table: &Table<'_>, scope: &Scope, upstreams: &Upstreams) -> Option<AiSource> {
    let target = target(table, scope, upstreams, Some("/chat/completions"));
    let model = table.required("model", "model = \"gpt-4o-mini\"").and_then(|field| field.filled());
    let system = table.field("system").and_then(|field| field.template(scope));
    let prompt = table.required("prompt", "prompt = \"…\"").and_then(|field| {
        let text = field.text()?;
        if text.value.trim().is_empty() {
            text.fault("`prompt` is empty");
        }
        text.template(scope)
    });
    let (temperature, max_tokens) = (table.field("temperature"), table.field("max_tokens"));
    let own: Vec<&str> = [&temperature, &max_tokens].into_iter().flatten().map(|field| field.name.as_str()).collect();
    let options = table.field("options").map(|field| options(&field, &own)).unwrap_or_default();
    let temperature = temperature.and_then(|field| field.float(0.0..=2.0));
    let max_tokens = max_tokens.and_then(|field| field.integer(MAX_TOKENS));
    let format = table.field("format").and_then(|field| {
        field.parsed(|text| match text {
            "text" => Ok(AiFormat::Text),
            "json" => Ok(AiFormat::Json),
            _ => Err(format!("`format` is \"text\" or \"json\", not \"{text}\"")),
        })
    });
    let Target { upstream, url } = target?;
    Some(AiSource {
        upstream,
        url,
        model: model?.value,
        system,
        prompt: prompt?,
        temperature,
        max_tokens: max_tokens.and_then(|number| u32::try_from(number).ok()),
        options,
        format: format.unwrap_or(AiFormat::Text),
    })
}

fn compose(table: &Table<'_>, scope: &Scope) -> Option<ComposeSource> {
    if !scope.has_inputs() {
        table.doc.fault_with_help(
            table.at(),
            "a source of kind `compose` makes its value from the job's inputs, and the job has none",
            Some("add [inputs], such as artwork = \"artwork_info:{artwork_name}\"".to_owned()),
        );
    }
    for name in ASKING {
        let help = "remove it; the value is made from the job's inputs alone";
        table.refuse(name, "a source of kind `compose` asks no server", help);
    }
    let value = table.required("value", "value = { artwork = \"{{ artwork }}\" }").and_then(|field| field.shape(scope));
    Some(ComposeSource { value: value? })
}

/// `options` of an AI source: fields of the request's body beside those that the source has `own` names for, and sets.
fn options(field: &Field<'_>, own: &[&str]) -> Map<String, Value> {
    let Some(table) = field.table("`options`") else { return Map::new() };
    let mut options = Map::new();
    let mut limit = own.contains(&"max_tokens").then(|| "`max_tokens` of the source".to_owned());
    for field in table.all() {
        let name = field.name.as_str();
        let refuse = |message: &str, help: &str| {
            field.doc.fault_with_help(field.key.clone(), format!("option `{name}` {message}"), Some(help.to_owned()));
        };
        let Some(value) = field.json() else { continue };
        match name {
            "model" => refuse("is a field of the source", "write `model = …` beside `kind`"),
            "messages" => refuse("is made of `system` and `prompt`", "write those instead"),
            "stream" if value != false => refuse("cannot be set: an answer is read as a whole", "leave it out"),
            "n" if value != 1 => refuse("can only be 1: every answer is paid for, and one is stored", "leave it out"),
            "temperature" if own.contains(&name) => refuse("is set twice", "keep it here or beside `kind`"),
            _ => {}
        }
        if AiSource::LIMITS.contains(&name) {
            let _ = field.integer(MAX_TOKENS);
            if let Some(other) = &limit {
                refuse(&format!("limits the answer, as does {other}"), "keep the one that the model knows");
            }
            limit = Some(format!("option `{name}`"));
        }
        options.insert(field.name, value);
    }
    options
}

fn headers(field: &Field<'_>, scope: &Scope) -> BTreeMap<String, Template> {
    let Some(table) = field.table("`headers`") else { return BTreeMap::new() };
    let fields = table.all();
    check_header_names(&fields);
    let value = |field: Field<'_>| {
        let text = field.text()?;
        if let Some(message) = header_value_fault(&text.value) {
            field.fault(format!("header `{}` {message}", field.name));
            return None;
        }
        Some((field.name.clone(), text.template(scope)?))
    };
    fields.into_iter().filter_map(value).collect()
}

fn accept(field: &Field<'_>, scope: &Scope) -> Option<Template> {
    let template = field.template(scope)?;
    if template.is_literal() {
        let text = template.source().trim();
        field.fault_with_help(
            format!("`accept` inserts nothing, so that it says the same of every answer: `{}`", short(text)),
            "write an expression in braces, such as \"{{ value.error is undefined }}\"",
        );
        return None;
    }
    Some(template)
}

pub(super) fn target(
    table: &Table<'_>,
    scope: &Scope,
    upstreams: &Upstreams,
    usual_path: Option<&str>,
) -> Option<Target> {
    let (url, upstream, path) = (table.field("url"), table.field("upstream"), table.field("path"));
    match (url, upstream) {
        (Some(url), None) => {
            if let Some(path) = path {
                path.doc.fault_with_help(
                    path.key.clone(),
                    "`path` beside `url`: an absolute URL has its path already",
                    Some("write both into `url`, or give the `upstream` instead of the `url`".to_owned()),
                );
            }
            absolute(&url, scope, upstreams)
        }
        (Some(_), Some(upstream)) => {
            upstream.doc.fault_with_help(
                upstream.key.clone(),
                "`url` and `upstream` both say which server is asked",
                Some("keep `url`, or `upstream` and `path`".to_owned()),
            );
            None
        }
        (None, Some(field)) => {
            let name = field.filled()?;
            let upstream = upstreams.named(&field.doc, name.value.trim(), field.at());
            let before = upstream.as_ref().map_or("", |upstream| upstream.url.as_str());
            let url = match (path, usual_path) {
                (Some(path), _) => relative(&path, before, scope),
                (None, Some(usual)) => Template::parse(&format!("{before}{usual}")).ok(),
                (None, None) => table.required("path", "path = \"/artworks/{{ artwork_name }}\"").and(None),
            };
            Some(Target { upstream: upstream?.name.clone(), url: url? })
        }
        (None, None) => {
            table.doc.fault_with_help(
                table.at(),
                "nothing says which server is asked",
                Some("add `upstream`, a name from upstreams.toml, and `path`; or an absolute `url`".to_owned()),
            );
            None
        }
    }
}

fn relative(field: &Field<'_>, before: &str, scope: &Scope) -> Option<Template> {
    let text = field.text()?;
    if !text.value.starts_with('/') {
        text.fault_with_help(
            format!("`path` must begin with `/`: `{}`", short(&text.value)),
            &format!("write \"/{}\"", short(&text.value)),
        );
        return None;
    }
    check_literal_path(&text, 0);
    text.template_after(before, 0, scope)
}

fn absolute(field: &Field<'_>, scope: &Scope, upstreams: &Upstreams) -> Option<Target> {
    let text = field.text()?;
    let (before, skip) = origin(&text)?;
    let rest = text.value.get(skip..).unwrap_or_default();
    let before = if rest.starts_with('/') { before.trim_end_matches('/') } else { before.as_str() };
    let literal = rest.find("{{").into_iter().chain(rest.find("{%")).chain(rest.find("{#")).min();
    let written = format!("{before}{}", rest.get(..literal.unwrap_or(rest.len())).unwrap_or_default());
    let url = match checked_url(&written) {
        Ok(url) => url,
        Err(message) => {
            text.fault(message);
            return None;
        }
    };
    check_literal_path(&text, skip);
    let after_scheme = written.find("://").map_or(0, |at| at + 3);
    let beyond = written.get(after_scheme..).unwrap_or_default();
    let path = beyond.find('/').map_or("", |at| beyond.get(at..).unwrap_or_default());
    let end = path.find(['?', '#']);
    let base = Base {
        url,
        path: path.get(..end.unwrap_or(path.len())).unwrap_or_default().to_owned(),
        open: literal.is_some() && end.is_none(),
    };
    let template = text.template_after(before, skip, scope);
    match upstreams.of_url(&base) {
        Ok(upstream) => Some(Target { upstream, url: template? }),
        Err(message) => {
            text.fault(message);
            None
        }
    }
}

/// The text up to where a template may stand, with environment variables as they are, and how much of the value it is.
///
/// A URL's scheme and host say which upstream it belongs to, and so they must be known when the file is loaded.
fn origin(text: &Text<'_>) -> Option<(String, usize)> {
    let mut before = String::new();
    let mut skip = 0;
    loop {
        let rest = text.value.get(skip..).unwrap_or_default();
        let complete = |url: &str| url.split_once("://").is_some_and(|(_, host)| host.contains(['/', '?', '#']));
        let tag = rest.find("{{").into_iter().chain(rest.find("{%")).chain(rest.find("{#")).min();
        let literal = rest.get(..tag.unwrap_or(rest.len())).unwrap_or_default();
        if tag.is_none() || complete(&format!("{before}{literal}")) {
            return Some((before, skip));
        }
        if complete(&before) {
            return Some((before, skip));
        }
        before.push_str(literal);
        skip += literal.len();
        let tag = rest.get(literal.len()..).unwrap_or_default();
        let inner = tag.strip_prefix("{{").and_then(|inner| inner.split_once("}}")).map(|(inner, _)| inner);
        let variable = inner.and_then(|inner| {
            let name = inner.trim_matches(['-', '+']).trim().strip_prefix("env.")?;
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_').then_some(name)
        });
        let length = inner.map_or(tag.len(), |inner| inner.len() + 4);
        let at = text.place(skip..skip + length);
        let Some(variable) = variable else {
            if !before.is_empty() && !before.contains("://") {
                text.fault_with_help(
                    format!("`{}` is no absolute URL", short(&text.value)),
                    "begin it with http:// or https://",
                );
                return None;
            }
            text.doc.fault_with_help(
                at,
                "the scheme and host of a URL must be known when the file is loaded",
                Some("write them out, or as `{{ env.NAME }}`".to_owned()),
            );
            return None;
        };
        before.push_str(text.doc.env(variable, at)?.trim());
        skip += length;
    }
}

/// Literal text in a path must reach the server as it is written.
fn check_literal_path(text: &Text<'_>, skip: usize) {
    let value = text.value.get(skip..).unwrap_or_default();
    let mut outside = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((literal, tag)) = rest.split_once("{{") {
        outside.push_str(literal);
        outside.push('x');
        rest = tag.split_once("}}").map_or("", |(_, after)| after);
    }
    outside.push_str(rest);
    if outside.contains('#') {
        text.fault_with_help("what follows `#` in a URL is never sent", "write `%23` for the character itself");
    }
    if outside.contains(|c: char| c.is_control() || c == '\\') {
        text.fault("a URL cannot hold a backslash, a line break or another control character");
    }
    let path = outside.split(['?', '#']).next().unwrap_or_default();
    if let Some(segment) = path.split('/').find(|segment| is_dot_segment(segment)) {
        text.fault(format!("URL parsers cut the path segment `{segment}` out; write the path without it"));
    }
}
