//! One exchange with an upstream: a request, its redirects, a bounded body, and the meaning of the status.
//!
//! Secrets go to the upstream's host only. A redirect to another host is followed only if the upstream's `redirects`
//! allows it, and then without the headers of the upstream and the source. If only public hosts are allowed, neither a
//! URL nor a name leads to a private address. Messages name an upstream by its URL without user, query and fragment,
//! and show the first characters of a body; secrets in them are hidden ([`Secrets`]).
//!
//! A body counts only if it is complete, to the end of its frame and of its content coding ([`Decoder`]).

use super::addresses::{PublicOnly, is_private};
use super::coding::{self, Broken, Decoder};
use super::secrets::Secrets;
#[cfg(feature = "simulation")]
use super::simulated::transmit;
use super::{FetchError, account, busy};
use crate::entry::Validators;
use crate::entry::duration;
use crate::job::{EnvValues, Redirects, Upstream};
use crate::telemetry::metrics;
use anyhow::Context as _;
use chrono::Utc;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Method, Response, StatusCode, Url, Version};
use serde_json::Value;
use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};

/// The most redirects that are followed.
const HOPS: usize = 5;
/// The part of a body that messages show, in characters, and the bytes that it is taken from.
const EXCERPT: usize = 200;
const EXCERPT_OF: usize = 4096;
/// The part of a refusal's body that is read, in bytes, and the longest time for that. The status is what matters.
const REFUSAL_READ: u64 = 16 << 10;
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// The client for one upstream.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    /// Sends redirected requests to hosts other than the upstream's.
    away: reqwest::Client,
    upstream: Arc<Upstream>,
    headers: HeaderMap,
    secrets: Secrets,
}

/// One request.
pub(super) struct Request<'a> {
    pub(super) url: &'a str,
    pub(super) headers: &'a [(&'a str, String)],
    /// The body of a POST; `None` for a GET.
    pub(super) body: Option<&'a Value>,
    /// The validators that make a GET conditional.
    pub(super) known: Option<&'a Validators>,
    /// Values in the URL of many entries, which name them: they stand in keys, so they are no secrets.
    pub(super) named: Option<&'a HashSet<&'a str>>,
    /// The longest body of an answer, in bytes; `None` for the upstream's `max_bytes`.
    pub(super) max_bytes: Option<u64>,
    pub(super) deadline: Instant,
}

/// An answer that can be used.
pub(super) enum Received {
    Body(Body),
    Unchanged,
    Gone,
}

/// The progress of an exchange, also of a failed one: the last answer's status, or a request without an answer.
#[derive(Default)]
pub(super) struct Reached {
    status: AtomicU16,
    refusal: OnceLock<Vec<u8>>,
    too_long: AtomicBool,
}

impl Reached {
    const NO_ANSWER: u16 = 1;

    /// Returns `true` if the upstream may charge for the request: it answered with success, or its answer may have been
    /// lost.
    pub(super) fn may_be_paid(&self) -> bool {
        matches!(self.status.load(Ordering::Relaxed), Self::NO_ANSWER | 200..=299)
    }

    /// Returns the last answer's status; `None` if there was no answer.
    pub(super) fn answered(&self) -> Option<u16> {
        Some(self.status.load(Ordering::Relaxed)).filter(|status| *status > Self::NO_ANSWER)
    }

    /// Returns `true` if the last answer is longer than the upstream's `max_bytes`.
    pub(super) fn is_too_long(&self) -> bool {
        self.too_long.load(Ordering::Relaxed)
    }

    /// Returns the beginning of the body of an answer whose status brings no value.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.refusal.get().and_then(|body| std::str::from_utf8(body).ok())
    }

    fn status(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Ordering::Relaxed);
    }

    fn no_answer(&self) {
        let _ = self.status.compare_exchange(0, Self::NO_ANSWER, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// An answer with its body.
pub(super) struct Body {
    url: Box<Url>,
    status: StatusCode,
    headers: HeaderMap,
    bytes: Vec<u8>,
    /// `true` if `bytes` is only the beginning.
    cut: bool,
    /// `true` if `bytes` is one item of the answer.
    is_item: bool,
    /// Shared by all items of an answer.
    secrets: Arc<Secrets>,
}

impl Client {
    /// Returns a client that keeps connections to the upstream open between exchanges.
    pub(super) fn new(upstream: &Arc<Upstream>, env: &EnvValues) -> anyhow::Result<Self> {
        let name = &upstream.name;
        let client = |public: bool| {
            #[cfg(feature = "simulation")]
            if let Some(client) = super::simulated::client() {
                return Ok(client);
            }
            let client = reqwest::Client::builder()
                .user_agent(concat!("samovar/", env!("CARGO_PKG_VERSION")))
                .redirect(Policy::none())
                .referer(false);
            let client = if public { client.dns_resolver(PublicOnly::resolver()).no_proxy() } else { client };
            // Shorter than the whole timeout, so that a request that times out has been sent: see [`Reached`].
            let client = client.connect_timeout(upstream.timeout.mul_f32(0.9));
            // The client has no timeout, which would cost a second timer: `exchange` limits the whole request.
            client.build().with_context(|| format!("upstream `{name}`: no HTTP client"))
        };
        let http = client(false)?;
        let away = if upstream.redirects == Redirects::Public { client(true)? } else { http.clone() };
        let mut headers = HeaderMap::new();
        for (key, text) in &upstream.headers {
            let (key, mut value) =
                header_line(key, text).map_err(|reason| anyhow::anyhow!("upstream `{name}`: {reason}"))?;
            value.set_sensitive(true);
            headers.insert(key, value);
        }
        Ok(Self { http, away, upstream: upstream.clone(), headers, secrets: Secrets::new(Some(upstream), env) })
    }

    /// Returns a message without the secrets of the upstream and of the job files.
    pub(super) fn hide(&self, message: &str) -> String {
        self.secrets.blot(message, false)
    }

    /// Returns the length of the longest body that is read, in bytes.
    pub(super) fn max_bytes(&self) -> u64 {
        self.upstream.max_bytes
    }

    /// Returns the time for a whole answer.
    pub(super) fn timeout(&self) -> Duration {
        self.upstream.timeout
    }

    /// Sends a request and reads the whole answer, within the upstream's timeout and before the deadline.
    pub(super) async fn exchange(&self, request: Request<'_>) -> Result<Received, FetchError> {
        self.exchange_noting(request, &Reached::default()).await
    }

    /// Like [`Client::exchange`], and records the progress in `reached`.
    pub(super) async fn exchange_noting(
        &self,
        request: Request<'_>,
        reached: &Reached,
    ) -> Result<Received, FetchError> {
        let now = Instant::now();
        let until = request.deadline.min(now + self.upstream.timeout);
        let url = request.url;
        let answer = match timeout_at(until.into(), self.send(request, until, reached)).await {
            Ok(answer) => answer,
            Err(_) => {
                reached.no_answer();
                let limit = duration::rough(until.saturating_duration_since(now));
                Err(FetchError::Upstream(format!("{} gave no complete answer within {limit}", shown(url))))
            }
        };
        if matches!(answer, Err(FetchError::Upstream(_))) && reached.answered().is_none() {
            metrics::answered(&self.upstream.name, None);
        }
        answer
    }

    async fn send(&self, request: Request<'_>, until: Instant, reached: &Reached) -> Result<Received, FetchError> {
        let mut url = whole(request.url)?;
        let origin = url.clone();
        let mut body = match request.body {
            Some(body) => Some(serde_json::to_vec(body).map_err(|error| FetchError::Answer(format!("body: {error}")))?),
            None => None,
        };
        let mut own = self.headers.clone();
        let mut secrets = self.secrets.clone();
        for (name, text) in request.headers {
            let (key, mut value) = header_line(name, text).map_err(FetchError::Answer)?;
            value.set_sensitive(true);
            own.insert(key, value);
            secrets.add(text);
        }
        // API keys are also sent as `?key=…`, and error texts often repeat the query.
        url.query_pairs().for_each(|(_, text)| secrets.add_except(&text, request.named));
        let conditions = conditions(request.known.filter(|_| body.is_none()));
        let mut hops = 0;
        loop {
            let method = if body.is_some() { Method::POST } else { Method::GET };
            let http = if same_host(&origin, &url) { &self.http } else { &self.away };
            let mut asked = http
                .request(method, url.clone())
                .header(header::ACCEPT, "application/json")
                .header(header::ACCEPT_ENCODING, coding::ACCEPTED);
            if let Some(body) = &body {
                asked = asked.header(header::CONTENT_TYPE, "application/json").body(body.clone());
            }
            let asked = asked.headers(own.clone()).headers(conditions.clone());
            let response = transmit(asked).await.map_err(|error| {
                if !error.is_connect() && !error.is_builder() {
                    reached.no_answer();
                }
                let built = !error.is_builder();
                let reason = format!("{} cannot be reached: {}", shown(url.as_str()), chain(error));
                if built { FetchError::Upstream(reason) } else { FetchError::Answer(reason) }
            })?;
            let status = response.status();
            metrics::answered(&self.upstream.name, Some(status.as_u16()));
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                reached.status(status);
                let (conditional, posted) = (!conditions.is_empty(), body.is_some());
                let asked = Asked { url: &url, conditional, posted, max_bytes: request.max_bytes, until };
                return self.receive(asked, response, secrets, reached).await;
            }
            let next = response.headers().get(header::LOCATION).and_then(|to| std::str::from_utf8(to.as_bytes()).ok());
            let next = next.and_then(|to| url.join(to).ok()).filter(|to| to.has_host());
            let Some(next) = next else {
                return Err(answer_error(
                    url.as_str(),
                    &format!("redirects without a usable Location (status {})", status.as_u16()),
                ));
            };
            if !same_host(&origin, &next) {
                let to = shown(next.as_str());
                let refused = match self.upstream.redirects {
                    Redirects::SameHost => Some(format!(
                        "redirects to another host: {to}; write that URL, or set `redirects = \"public\"`"
                    )),
                    Redirects::Public if is_private(&next) => {
                        Some(format!("redirects to a private address: {to}; `redirects = \"any\"` allows that"))
                    }
                    Redirects::Public | Redirects::Any => None,
                };
                if let Some(reason) = refused {
                    return Err(answer_error(url.as_str(), &reason));
                }
                own.clear();
            }
            hops += 1;
            if hops > HOPS {
                return Err(answer_error(origin.as_str(), &format!("redirects more than {HOPS} times")));
            }
            if matches!(status.as_u16(), 301..=303) {
                body = None;
            }
            url = next;
        }
    }

    async fn receive(
        &self,
        asked: Asked<'_>,
        response: Response,
        secrets: Secrets,
        reached: &Reached,
    ) -> Result<Received, FetchError> {
        let mut body = Body {
            url: Box::new(asked.url.clone()),
            status: response.status(),
            headers: response.headers().clone(),
            bytes: Vec::new(),
            cut: false,
            is_item: false,
            secrets: Arc::new(secrets),
        };
        let status = body.status.as_u16();
        match status {
            304 if asked.conditional => Ok(Received::Unchanged),
            304 => Err(body.error("is an answer to a conditional request, and this request had no validators")),
            404 | 410 if !asked.posted => Ok(Received::Gone),
            // 203: changed by a proxy. 201: made by a request with a body.
            200 | 203 => self.whole(body, response, asked.max_bytes, reached).await,
            201 if asked.posted => self.whole(body, response, asked.max_bytes, reached).await,
            _ => {
                let left = asked.until.saturating_duration_since(Instant::now());
                // Not all of the remaining time, so that a slow body does not hide the status.
                body.begin(response, REFUSAL_TIME.min(left.mul_f32(0.9))).await;
                let answer = if matches!(status, 404 | 410) { Ok(Received::Gone) } else { Err(body.refusal()) };
                let _ = reached.refusal.set(body.bytes);
                answer
            }
        }
    }

    /// Reads the whole body.
    async fn whole(
        &self,
        mut body: Body,
        mut response: Response,
        max_bytes: Option<u64>,
        reached: &Reached,
    ) -> Result<Received, FetchError> {
        let most = max_bytes.unwrap_or(self.upstream.max_bytes);
        let whose = if max_bytes.is_some() { "the feed's " } else { "" };
        let too_long = |is: &str| {
            reached.too_long.store(true, Ordering::Relaxed);
            format!("{is} longer than {whose}`max_bytes` ({})", bytesize::ByteSize(most))
        };
        let mut decoder = Decoder::new(&body.headers, most).map_err(|reason| body.error(&reason))?;
        if response.content_length().is_some_and(|length| length > decoder.most_sent()) {
            return Err(body.error(&too_long("has a Content-Length")));
        }
        let framed = response.version() >= Version::HTTP_2
            || [header::CONTENT_LENGTH, header::TRANSFER_ENCODING].iter().any(|name| body.headers.contains_key(name))
            || decoder.is_coded();
        let mut read = 0;
        loop {
            let chunk = response
                .chunk()
                .await
                .map_err(|error| body.failure(&format!("was cut off after {read} bytes: {}", chain(error))))?;
            let Some(chunk) = chunk else { break };
            read += chunk.len();
            decoder.feed(&chunk).map_err(|broken| match broken {
                Broken::TooLong => body.error(&too_long("is")),
                Broken::Malformed | Broken::Incomplete => {
                    body.error("is not valid gzip, although its Content-Encoding says so, or has other data after it")
                }
            })?;
        }
        body.bytes = decoder.finish().map_err(|_| {
            body.failure("has incomplete gzip data: it is cut off, damaged, or has other data after it")
        })?;
        let is_number = body.bytes.trim_ascii().first().is_some_and(|first| *first == b'-' || first.is_ascii_digit());
        if !framed && is_number {
            return Err(body.error(
                "is a bare number that may be cut off: let the server send Content-Length or chunks to mark its end",
            ));
        }
        Ok(Received::Body(body))
    }
}

/// Sends a request.
#[cfg(not(feature = "simulation"))]
async fn transmit(request: reqwest::RequestBuilder) -> reqwest::Result<Response> {
    request.send().await
}

/// The request that a response answers.
struct Asked<'a> {
    url: &'a Url,
    conditional: bool,
    /// `true` for a POST.
    posted: bool,
    max_bytes: Option<u64>,
    until: Instant,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("upstream", &self.upstream.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("status", &self.status).field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl Body {
    /// Reads the beginning of a refusal's body: all that arrives and can be decoded within this time.
    async fn begin(&mut self, mut response: Response, time: Duration) {
        let Ok(mut decoder) = Decoder::new(&self.headers, REFUSAL_READ) else { return };
        let reading = async {
            while let Some(chunk) = response.chunk().await.ok()? {
                decoder.feed(&chunk).ok()?;
            }
            Some(())
        };
        let ended = timeout(time, reading).await;
        self.cut = !matches!(ended, Ok(Some(())));
        self.bytes = decoder.so_far();
    }

    /// Returns the meaning of a status without a value.
    fn refusal(&self) -> FetchError {
        let status = self.status.as_u16();
        let wait = (status >= 400).then(|| busy::wait(status, &self.headers, Utc::now())).flatten();
        if account::is_refused(status, &self.bytes) {
            let reason = self.describe("refuses this account until a person acts: check its quota and billing");
            return FetchError::Refused(wait.unwrap_or_default(), reason);
        }
        if let Some(wait) = wait {
            let reason = self.describe(&format!("asks to wait {}", duration::rough(wait)));
            return FetchError::Busy(wait, reason);
        }
        match status {
            200..=299 => self.error("is not the resource's value: only 200, 203, and 201 after a `body` are"),
            // A wrong API key affects all requests, so ten of these in a row open the breaker.
            401 => self.failure("refuses Samovar: check the upstream's `headers`"),
            403 => self.error("refuses Samovar: check the upstream's `headers`"),
            408 | 500..=599 => self.failure("is an error of the server"),
            _ => self.error("is not an answer with a value"),
        }
    }

    /// Returns the body as text, without a byte order mark.
    pub(super) fn text(&self) -> Result<&str, FetchError> {
        let bytes = self.bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&self.bytes);
        std::str::from_utf8(bytes)
            .map_err(|error| self.error(&format!("is not UTF-8 from byte {} on", error.valid_up_to())))
    }

    /// Returns one item of the answer.
    pub(super) fn item(&self, json: &str) -> Self {
        let (mut url, secrets) = (self.url.clone(), Arc::clone(&self.secrets));
        // It names all entries of the request, and is not shown.
        url.set_query(url.query().map(|_| ""));
        Self {
            url,
            status: self.status,
            headers: HeaderMap::new(),
            bytes: json.into(),
            cut: false,
            is_item: true,
            secrets,
        }
    }

    /// Returns a header that is a text and not empty.
    pub(super) fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name)?.to_str().ok().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// Returns the reason why the answer cannot be used, in one line.
    pub(super) fn error(&self, reason: &str) -> FetchError {
        FetchError::Answer(self.describe(reason))
    }

    /// Returns such a reason as a failure of the upstream.
    fn failure(&self, reason: &str) -> FetchError {
        FetchError::Upstream(self.describe(reason))
    }

    fn describe(&self, reason: &str) -> String {
        let what = if self.is_item { "item in the answer" } else { "answer" };
        let told = format!("{what} of {} (status {}) {reason}", shown(self.url.as_str()), self.status.as_u16());
        let told = self.secrets.blot(&told, false);
        let beginning = &self.bytes[..self.bytes.len().min(EXCERPT_OF)];
        let cut = self.cut || beginning.len() < self.bytes.len();
        let excerpt = one_line(&self.secrets.blot(&String::from_utf8_lossy(beginning), cut), EXCERPT);
        if excerpt.is_empty() { told } else { format!("{told}; it begins: {excerpt}") }
    }
}

/// Returns the error of an answer that is known by its URL only.
pub(super) fn answer_error(url: &str, reason: &str) -> FetchError {
    FetchError::Answer(format!("{} {reason}", shown(url)))
}

/// Parses a rendered URL. The parser would resolve segments of dots, which the template has refused; it keeps the rest.
pub(super) fn whole(text: &str) -> Result<Url, FetchError> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| answer_error(text, "is not a usable URL: it must begin with http:// or https:// and a host"))
}

/// Returns `true` if the secrets for one URL may be sent to the other: same host and port, or TLS on the same host.
fn same_host(one: &Url, other: &Url) -> bool {
    let port = one.port_or_known_default() == other.port_or_known_default();
    let same = one.scheme() == other.scheme() && port;
    let upgraded =
        one.scheme() == "http" && other.scheme() == "https" && one.port().is_none() && other.port().is_none();
    one.host() == other.host() && (same || upgraded)
}

pub(super) fn header_line(name: &str, text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is not a header's name"))?;
    let value = HeaderValue::from_bytes(text.as_bytes())
        .map_err(|_| format!("header `{name}` holds a line break or another control character"))?;
    Ok((key, value))
}

fn conditions(known: Option<&Validators>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let Some(known) = known else { return headers };
    let texts = [(header::IF_NONE_MATCH, &known.etag), (header::IF_MODIFIED_SINCE, &known.last_modified)];
    for (name, text) in texts {
        if let Some(value) = text.as_ref().and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(name, value);
        }
    }
    headers
}

/// Returns a URL for messages, without user, password, query and fragment.
pub(super) fn shown(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (base, rest) = url.split_at(end);
    let base = match base.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = host.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => base.to_owned(),
    };
    let query = if rest.starts_with('?') { "?…" } else { "" };
    format!("{}{query}", one_line(&base, 300))
}

fn one_line(text: &str, longest: usize) -> String {
    let mut line = String::new();
    let mut length = 0;
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        for c in (!line.is_empty()).then_some(' ').into_iter().chain(word.chars()) {
            if length == longest {
                line.push('…');
                return line;
            }
            line.push(c);
            length += 1;
        }
    }
    line
}

/// Returns an error with its causes. Reqwest's own message is mostly `error sending request`.
fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    one_line(&text, 300)
}
