//! `upstreams.toml`: servers, and which of them holds for a URL.

use super::document::{Document, Field, Table};
use super::made;
use crate::entry::UpstreamName;
use crate::job::template::is_dot_segment;
use crate::job::{Rate, Redirects, TokenBudget, Upstream};
use bytesize::ByteSize;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_MAX_BYTES: u64 = 1 << 20;
const LEAST_TIMEOUT: Duration = Duration::from_millis(1);
const MOST_TIMEOUT: Duration = Duration::from_secs(3600);
/// Redis keeps no longer string.
const MOST_BYTES: u64 = 512 << 20;

/// The upstreams of all files.
#[derive(Default)]
pub(super) struct Upstreams {
    /// `None` for one that has faults of its own.
    named: BTreeMap<String, Option<Arc<Upstream>>>,
    /// The file could not be read as TOML, so that any name may be right.
    unreadable: bool,
    /// The URL and the headers of each as they are written: see [`made`].
    written: BTreeMap<String, String>,
    /// Of absolute URLs below no other.
    implicit: RefCell<BTreeMap<UpstreamName, Arc<Upstream>>>,
}

/// The part of an absolute URL before the first template.
pub(super) struct Base {
    pub(super) url: Url,
    /// The path as written, up to the first template, `?` or `#`.
    pub(super) path: String,
    /// True if the path goes on with a template.
    pub(super) open: bool,
}

impl Upstreams {
    /// With a file that cannot be read.
    pub(super) fn unreadable() -> Self {
        Self { unreadable: true, ..Self::default() }
    }

    pub(super) fn read(table: &Table<'_>) -> Self {
        let fields = table.all();
        let written = fields.iter().map(|field| (field.name.clone(), made::upstream_text(field))).collect();
        let named = fields.into_iter().map(|field| (field.name.clone(), upstream(&field))).collect();
        Self { named, written, ..Self::default() }
    }

    /// The upstream of this name; where there is none a fault.
    pub(super) fn named(&self, doc: &Document<'_>, name: &str, at: Range<usize>) -> Option<Arc<Upstream>> {
        if let Some(upstream) = self.named.get(name) {
            return upstream.clone();
        }
        if !self.unreadable {
            let help = match super::spelling::closest(name, self.named.keys().map(String::as_str)) {
                Some(close) => format!("did you mean `{close}`?"),
                None if self.named.is_empty() => format!("add [{name}] with its `url` to upstreams.toml"),
                None => {
                    let known: Vec<&str> = self.named.keys().map(String::as_str).collect();
                    format!("add [{name}] with its `url` to upstreams.toml, which has {}", known.join(", "))
                }
            };
            doc.fault_with_help(at, format!("there is no upstream `{name}`"), Some(help));
        }
        None
    }

    /// The upstream that holds for an absolute URL: the one whose URL reaches furthest, or else one of its origin.
    pub(super) fn of_url(&self, base: &Base) -> Result<UpstreamName, String> {
        let origin = base.url.origin();
        let mut best: Vec<(usize, &Arc<Upstream>)> = Vec::new();
        for upstream in self.named.values().flatten() {
            let Ok(url) = Url::parse(&upstream.url) else { continue };
            let path = url.path().trim_end_matches('/');
            let below = match base.path.strip_prefix(path) {
                Some("") => !base.open || path.is_empty(),
                Some(rest) => rest.starts_with('/'),
                None => false,
            };
            if url.origin() == origin && below {
                best.push((path.len(), upstream));
            }
        }
        best.sort_by_key(|(length, upstream)| (std::cmp::Reverse(*length), upstream.name.clone()));
        match best.as_slice() {
            [(first, one), (second, other), ..] if first == second => Err(format!(
                "the upstreams `{}` and `{}` both hold for this URL; choose one with `upstream` and `path`",
                one.name, other.name
            )),
            [(_, upstream), ..] => Ok(upstream.name.clone()),
            [] => {
                let origin = origin.ascii_serialization();
                let name = UpstreamName::new(origin.as_str());
                self.implicit.borrow_mut().entry(name.clone()).or_insert_with(|| {
                    Arc::new(Upstream {
                        name: name.clone(),
                        url: origin,
                        headers: BTreeMap::new(),
                        rate: None,
                        concurrency: None,
                        timeout: DEFAULT_TIMEOUT,
                        max_bytes: DEFAULT_MAX_BYTES,
                        tokens: None,
                        redirects: Redirects::SameHost,
                    })
                });
                Ok(name)
            }
        }
    }

    /// Returns all upstreams, and the URL and the headers of the named ones as they are written.
    pub(super) fn into_all(self) -> (BTreeMap<UpstreamName, Arc<Upstream>>, BTreeMap<String, String>) {
        let named = self.named.into_values().flatten().map(|upstream| (upstream.name.clone(), upstream));
        (named.chain(self.implicit.into_inner()).collect(), self.written)
    }
}

fn upstream(field: &Field<'_>) -> Option<Arc<Upstream>> {
    let name = &field.name;
    if !field.is_table() {
        field.doc.fault_with_help(
            field.key.clone(),
            format!("`{name}` is no upstream"),
            Some(format!("begin an upstream with its name in brackets, such as [{name}], and write `url` below it")),
        );
        return None;
    }
    if let Err(message) = super::check_file_name(name) {
        field.doc.fault(field.key.clone(), message);
    }
    let table = field.table(&format!("[{name}]"))?;
    let url = table.required("url", "url = \"https://museum.example\"").and_then(|field| field.parsed(base_url));
    let headers = table.field("headers").map(|field| headers(&field)).unwrap_or_default();
    let rate = table.field("rate").and_then(|field| field.parsed(Rate::parse));
    let concurrency = table.field("concurrency").and_then(|field| field.integer(1..=10_000));
    let timeout = table.field("timeout").and_then(|field| field.duration(LEAST_TIMEOUT..=MOST_TIMEOUT));
    let max_bytes = table.field("max_bytes").and_then(|field| field.parsed(size));
    let tokens = table.field("tokens").and_then(|field| field.parsed(TokenBudget::parse));
    let redirects = table.field("redirects").and_then(|field| field.parsed(read_redirects));
    table.finish();
    Some(Arc::new(Upstream {
        name: UpstreamName::new(name.as_str()),
        url: url?,
        headers,
        rate,
        concurrency: concurrency.and_then(|number| u32::try_from(number).ok()),
        timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
        max_bytes: max_bytes.unwrap_or(DEFAULT_MAX_BYTES),
        tokens,
        redirects: redirects.unwrap_or_default(),
    }))
}

fn headers(field: &Field<'_>) -> BTreeMap<String, String> {
    let Some(table) = field.table(&format!("`{}`", field.name)) else { return BTreeMap::new() };
    let fields = table.all();
    check_header_names(&fields);
    let value = |field: Field<'_>| {
        let text = field.plain()?;
        if let Some(message) = header_value_fault(&text.value) {
            field.fault(format!("header `{}` {message}", field.name));
            return None;
        }
        Some((field.name, text.value))
    };
    fields.into_iter().filter_map(value).collect()
}

/// Names must be RFC 9110's tokens (section 5.6.2), each once, and not those that belong to the connection.
pub(super) fn check_header_names(fields: &[Field<'_>]) {
    for (at, field) in fields.iter().enumerate() {
        let name = &field.name;
        let fault = |message: String| field.doc.fault(field.key.clone(), message);
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)) {
            fault(format!("`{name}` is no header name"));
        }
        if ["content-length", "transfer-encoding", "connection"].contains(&name.to_ascii_lowercase().as_str()) {
            fault(format!("header `{name}` is set by the HTTP client and cannot be given"));
        }
        if fields.iter().take(at).any(|other| other.name.eq_ignore_ascii_case(name)) {
            fault(format!("header `{name}` stands twice; upper and lower case are the same"));
        }
    }
}

/// Returns what is wrong with a header's value (RFC 9110, section 5.5).
pub(super) fn header_value_fault(value: &str) -> Option<&'static str> {
    value
        .chars()
        .any(|c| c.is_control() && c != '\t')
        .then_some("has a line break or another control character in its value")
}

pub(super) fn size(text: &str) -> Result<u64, String> {
    let size: ByteSize =
        text.parse().map_err(|_| format!("`{text}` is no size; write one such as \"1MiB\" or \"200KB\""))?;
    match size.as_u64() {
        0 => Err("`max_bytes` must be at least 1B".to_owned()),
        bytes if bytes > MOST_BYTES => Err(format!("`max_bytes` ({text}) must be at most 512MiB")),
        bytes => Ok(bytes),
    }
}

fn read_redirects(text: &str) -> Result<Redirects, String> {
    match text {
        "same-host" => Ok(Redirects::SameHost),
        "public" => Ok(Redirects::Public),
        "any" => Ok(Redirects::Any),
        _ => Err(format!("`redirects` is \"same-host\", \"public\" or \"any\", not \"{text}\"")),
    }
}

/// An upstream's URL without its trailing slash.
fn base_url(text: &str) -> Result<String, String> {
    let url = checked_url(text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("an upstream's URL has no `?` or `#`; they belong in a source's `path`".to_owned());
    }
    if let Some(segment) = text.split('/').find(|segment| is_dot_segment(segment)) {
        return Err(format!("URL parsers cut the path segment `{segment}` out; write the URL without it"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// An absolute http or https URL that holds no secret and reaches its server as it is written.
///
/// The messages do not quote it, since it may come from the environment.
pub(super) fn checked_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("no absolute URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("only http and https are spoken, not {}", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL must not hold a user or password, since URLs are logged; send them in `headers`, \
                    such as Authorization = \"Basic …\""
            .to_owned());
    }
    if text.contains(['{', '}', '\\']) || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("the URL has a brace, a backslash or white space in it; percent-encode them".to_owned());
    }
    Ok(url)
}
