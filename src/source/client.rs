//! One exchange with an upstream: a request, its redirects, a bounded body, and what the status means.
//!
//! Secrets go to the upstream's host only: a redirect to another one is not followed, or, where the upstream allows it,
//! followed without the headers of the upstream and the source. Where only public hosts are allowed, neither a URL nor
//! a name leads to a private address. Messages name an upstream by its URL without user, query
//! and fragment, and show a body's first characters; secrets are blotted out of all of it ([`Secrets`]).
//!
//! A body counts only if it is whole: to the end of its frame, and to the end of its content coding ([`Decoder`]).

use super::addresses::{PublicOnly, is_private};
use super::coding::{self, Broken, Decoder};
use super::secrets::Secrets;
use super::{FetchError, account, busy};
use crate::entry::Validators;
use crate::entry::duration;
use crate::job::{EnvValues, Redirects, Upstream};
use anyhow::Context as _;
use chrono::Utc;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Method, Response, StatusCode, Url, Version};
use serde_json::Value;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};

/// The most redirects that are followed.
const HOPS: usize = 5;
/// The part of a body that messages show, in characters, and the bytes that it is taken from.
const EXCERPT: usize = 200;
const EXCERPT_OF: usize = 4096;
/// The part of a refusal's body that is read, in bytes, and the longest time for that. The status says the most
/// already.
const REFUSAL_READ: u64 = 16 << 10;
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// The client for one upstream.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    /// For other hosts than the upstream's.
    away: reqwest::Client,
    upstream: Arc<Upstream>,
    headers: HeaderMap,
    secrets: Secrets,
}

/// One request.
pub(super) struct Request<'a> {
    pub(super) url: &'a str,
    pub(super) headers: &'a [(&'a str, String)],
    /// Sent with POST; GET where absent.
    pub(super) body: Option<&'a Value>,
    /// Makes a GET conditional.
    pub(super) known: Option<&'a Validators>,
    pub(super) deadline: Instant,
}

/// An answer that can be used.
pub(super) enum Received {
    Body(Body),
    Unchanged,
    Gone,
}

/// The progress of an exchange, failed ones included: the last answer's status, or a request without an answer.
#[derive(Default)]
pub(super) struct Reached {
    status: AtomicU16,
    refusal: OnceLock<Vec<u8>>,
}

impl Reached {
    const NO_ANSWER: u16 = 1;

    /// Returns whether the upstream may take money for it: it answered with success, or may have made an answer that
    /// did not arrive.
    pub(super) fn may_be_paid(&self) -> bool {
        matches!(self.status.load(Ordering::Relaxed), Self::NO_ANSWER | 200..=299)
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

/// A whole answer whose status says that it is the resource's value.
pub(super) struct Body {
    url: Box<Url>,
    status: StatusCode,
    headers: HeaderMap,
    bytes: Vec<u8>,
    /// `bytes` are only the beginning.
    cut: bool,
    secrets: Secrets,
}

impl Client {
    /// A client that keeps connections to the upstream open between exchanges.
    pub(super) fn new(upstream: &Arc<Upstream>, env: &EnvValues) -> anyhow::Result<Self> {
        let name = &upstream.name;
        let client = |public: bool| {
            let client = reqwest::Client::builder()
                .user_agent(concat!("samovar/", env!("CARGO_PKG_VERSION")))
                .redirect(Policy::none())
                .referer(false);
            let client = if public { client.dns_resolver(PublicOnly::resolver()).no_proxy() } else { client };
            // So that a request that timed out has been sent: see [`Reached`].
            let client = client.connect_timeout(upstream.timeout.mul_f32(0.9));
            // It has no time-out of its own, which would cost a timer each time: `exchange` ends a request in time.
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

    /// A message without the secrets of the upstream and of the job files.
    pub(super) fn hide(&self, message: &str) -> String {
        self.secrets.blot(message, false)
    }

    /// The longest body read.
    pub(super) fn max_bytes(&self) -> u64 {
        self.upstream.max_bytes
    }

    /// Returns how long a whole answer may take.
    pub(super) fn timeout(&self) -> Duration {
        self.upstream.timeout
    }

    /// Sends a request and reads the whole answer, within the upstream's timeout and before the deadline.
    pub(super) async fn exchange(&self, request: Request<'_>) -> Result<Received, FetchError> {
        self.exchange_noting(request, &Reached::default()).await
    }

    /// Does the same, and notes how far it came.
    pub(super) async fn exchange_noting(
        &self,
        request: Request<'_>,
        reached: &Reached,
    ) -> Result<Received, FetchError> {
        let now = Instant::now();
        let until = request.deadline.min(now + self.upstream.timeout);
        let url = request.url;
        match timeout_at(until.into(), self.send(request, until, reached)).await {
            Ok(answer) => answer,
            Err(_) => {
                reached.no_answer();
                let patience = duration::rough(until.saturating_duration_since(now));
                Err(FetchError::Upstream(format!("{} gave no whole answer within {patience}", shown(url))))
            }
        }
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
        // Keys are also sent as `?key=…`, and errors like to repeat what was asked.
        url.query_pairs().for_each(|(_, text)| secrets.add(&text));
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
            let response = asked.headers(own.clone()).headers(conditions.clone()).send().await.map_err(|error| {
                if !error.is_connect() && !error.is_builder() {
                    reached.no_answer();
                }
                let built = !error.is_builder();
                let reason = format!("{} cannot be asked: {}", shown(url.as_str()), chain(error));
                if built { FetchError::Upstream(reason) } else { FetchError::Answer(reason) }
            })?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                reached.status(status);
                let asked = Asked { url: &url, conditional: !conditions.is_empty(), posted: body.is_some(), until };
                return self.receive(asked, response, secrets, reached).await;
            }
            let next = response.headers().get(header::LOCATION).and_then(|to| std::str::from_utf8(to.as_bytes()).ok());
            let next = next.and_then(|to| url.join(to).ok()).filter(|to| to.has_host());
            let Some(next) = next else {
                return Err(answer_error(url.as_str(), &format!("redirects nowhere (status {})", status.as_u16())));
            };
            if !same_host(&origin, &next) {
                let to = shown(next.as_str());
                let refused = match self.upstream.redirects {
                    Redirects::SameHost => {
                        Some(format!("redirects to another host: {to}; ask there, or set `redirects = \"public\"`"))
                    }
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
            secrets,
        };
        let status = body.status.as_u16();
        match status {
            304 if asked.conditional => Ok(Received::Unchanged),
            304 => Err(body.error("comes without having been asked for")),
            404 | 410 if !asked.posted => Ok(Received::Gone),
            // 203: as a proxy on the way has changed it. 201: what a request with a body made.
            200 | 203 => self.whole(body, response).await,
            201 if asked.posted => self.whole(body, response).await,
            _ => {
                let left = asked.until.saturating_duration_since(Instant::now());
                // Never all that is left, so that the status is not forgotten over its body.
                body.begin(response, REFUSAL_TIME.min(left.mul_f32(0.9))).await;
                let answer = if matches!(status, 404 | 410) { Ok(Received::Gone) } else { Err(body.refusal()) };
                let _ = reached.refusal.set(body.bytes);
                answer
            }
        }
    }

    /// Reads the body to its end.
    async fn whole(&self, mut body: Body, mut response: Response) -> Result<Received, FetchError> {
        let most = self.upstream.max_bytes;
        let too_long = |is: &str| format!("{is} more than `max_bytes` ({})", bytesize::ByteSize(most));
        let mut decoder = Decoder::new(&body.headers, most).map_err(|reason| body.error(&reason))?;
        if response.content_length().is_some_and(|length| length > decoder.most_sent()) {
            return Err(body.error(&too_long("announces")));
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
                Broken::TooLong => body.error(&format!("is longer than `max_bytes` ({})", bytesize::ByteSize(most))),
                Broken::Malformed | Broken::Incomplete => {
                    body.error("is not the gzip that its Content-Encoding names, or has something else after it")
                }
            })?;
        }
        body.bytes = decoder.finish().map_err(|_| {
            body.failure("does not end with whole gzip data: it is cut off, damaged, or has something else after it")
        })?;
        let is_number = body.bytes.trim_ascii().first().is_some_and(|first| *first == b'-' || first.is_ascii_digit());
        if !framed && is_number {
            return Err(body.error(
                "is a bare number that may be cut off: send Content-Length, or chunks, so that its end can be told",
            ));
        }
        Ok(Received::Body(body))
    }
}

/// The request that a response answers.
struct Asked<'a> {
    url: &'a Url,
    conditional: bool,
    /// It was a POST.
    posted: bool,
    until: Instant,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("upstream", &self.upstream.name).finish_non_exhaustive()
    }
}

impl Body {
    /// Reads the beginning of a refusal's body, as far as it comes and can be decoded within this time.
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
            let reason = self.describe("refuses this account, which no waiting mends: see its quota and billing");
            return FetchError::Refused(wait.unwrap_or_default(), reason);
        }
        if let Some(wait) = wait {
            let reason = self.describe(&format!("asks to wait {}", duration::rough(wait)));
            return FetchError::Busy(wait, reason);
        }
        match status {
            200..=299 => self.error("is not the resource's value: only 200, 203, and 201 to a `body` are"),
            // A wrong key is so for all requests; ten in a row are enough.
            401 => self.failure("refuses us: see the upstream's `headers`"),
            403 => self.error("refuses us: see the upstream's `headers`"),
            408 | 500..=599 => self.failure("comes instead of an answer"),
            _ => self.error("comes instead of an answer"),
        }
    }

    /// The body without a byte order mark.
    pub(super) fn text(&self) -> Result<&str, FetchError> {
        let bytes = self.bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&self.bytes);
        std::str::from_utf8(bytes)
            .map_err(|error| self.error(&format!("is not UTF-8 from byte {} on", error.valid_up_to())))
    }

    /// A header, if it is text.
    pub(super) fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name)?.to_str().ok().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// Why the answer cannot be used, in one line.
    pub(super) fn error(&self, reason: &str) -> FetchError {
        FetchError::Answer(self.describe(reason))
    }

    /// Returns the same as an error of the upstream.
    fn failure(&self, reason: &str) -> FetchError {
        FetchError::Upstream(self.describe(reason))
    }

    fn describe(&self, reason: &str) -> String {
        let told = format!("answer of {} (status {}) {reason}", shown(self.url.as_str()), self.status.as_u16());
        let told = self.secrets.blot(&told, false);
        let beginning = &self.bytes[..self.bytes.len().min(EXCERPT_OF)];
        let cut = self.cut || beginning.len() < self.bytes.len();
        let excerpt = one_line(&self.secrets.blot(&String::from_utf8_lossy(beginning), cut), EXCERPT);
        if excerpt.is_empty() { told } else { format!("{told}; it begins: {excerpt}") }
    }
}

/// An answer, known by its URL only, that cannot be used.
pub(super) fn answer_error(url: &str, reason: &str) -> FetchError {
    FetchError::Answer(format!("{} {reason}", shown(url)))
}

/// A URL as it was rendered. Rendering has refused segments that are only dots, which the parser would resolve;
/// anything else that it was given it keeps.
fn whole(text: &str) -> Result<Url, FetchError> {
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host()).ok_or_else(|| {
        answer_error(text, "is not a URL that can be asked: it must begin with http:// or https:// and a host")
    })
}

/// Returns whether secrets of one URL's server may be sent to the other's: same host and port, or the same host's TLS.
fn same_host(one: &Url, other: &Url) -> bool {
    let port = one.port_or_known_default() == other.port_or_known_default();
    let same = one.scheme() == other.scheme() && port;
    let upgraded =
        one.scheme() == "http" && other.scheme() == "https" && one.port().is_none() && other.port().is_none();
    one.host() == other.host() && (same || upgraded)
}

fn header_line(name: &str, text: &str) -> Result<(HeaderName, HeaderValue), String> {
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

/// A URL for messages: without user, password, query and fragment.
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

/// An error and its causes; reqwest's own message for most is only `error sending request`.
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
