//! An HTTP service that does what a test tells it to.

use super::eventually::{DEADLINE, eventually};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use futures_util::stream::{self, StreamExt};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// A server on a free port. What it is not told to answer is 404.
///
/// A path may be written as it is sent (`/artworks/Mona%20Lisa?size=big`), without the query, or decoded
/// (`/artworks/Mona Lisa`).
#[derive(Debug)]
pub struct Upstream {
    url: String,
    desk: Arc<Desk>,
    _server: JoinSet<()>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: String,
    /// Path and query as they were sent, still percent-encoded.
    pub target: String,
    pub headers: HeaderMap,
    pub body: String,
    pub at: Instant,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
    after: Duration,
    ending: Ending,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Whole,
    CutAfter(usize),
    StallAfter(usize),
    Trickle(Duration),
    Endless,
    Silence,
}

type Behaviour = Arc<dyn Fn(&Call, usize) -> Reply + Send + Sync>;

#[derive(Default)]
struct Desk {
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    behaviours: HashMap<String, Behaviour>,
    otherwise: Option<Behaviour>,
    versions: HashMap<String, u64>,
    gates: HashMap<String, Gate>,
    calls: Vec<Call>,
    /// The number of calls for each name of a path.
    counts: HashMap<String, usize>,
    in_flight: HashMap<String, usize>,
    most_in_flight: HashMap<String, usize>,
    all_in_flight: usize,
    most_at_once: usize,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Upstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let desk = Arc::new(Desk::default());
        let router = Router::new().fallback(serve).with_state(Arc::clone(&desk));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, desk, _server: server }
    }

    /// Its base URL, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on, this answer.
    pub fn on(&self, path: &str, reply: Reply) {
        self.answer(path, move |_, _| reply.clone());
    }

    /// These answers in turn; the last one stays.
    pub fn on_each(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        let replies: Vec<_> = replies.into_iter().collect();
        let done = self.calls(path);
        self.answer(path, move |_, call| replies[(call - 1 - done).min(replies.len() - 1)].clone());
    }

    /// Answers by a function of the request and of how many there were, with this one, for the path.
    pub fn answer(&self, path: &str, behaviour: impl Fn(&Call, usize) -> Reply + Send + Sync + 'static) {
        self.desk.book().behaviours.insert(path.into(), Arc::new(behaviour));
    }

    /// Sets the answer for all other paths.
    pub fn otherwise(&self, behaviour: impl Fn(&Call, usize) -> Reply + Send + Sync + 'static) {
        self.desk.book().otherwise = Some(Arc::new(behaviour));
    }

    /// A document with an `ETag`; another call is a new version. Conditional requests get 304 where they should.
    pub fn publish(&self, path: &str, document: Value) {
        let version = self.next_version(path);
        let tag = format!("\"v{version}\"");
        self.answer(path, move |call, _| {
            let known = call.headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
            let reply = if known { Reply::status(304) } else { Reply::json(document.clone()) };
            reply.header("ETag", &tag)
        });
    }

    /// Publishes `{"path": …, "version": n}` with the next number, which it returns; the first is 1.
    pub fn edit(&self, path: &str) -> u64 {
        let version = self.desk.book().versions.get(path).copied().unwrap_or_default() + 1;
        self.publish(path, json!({ "path": path, "version": version }));
        version
    }

    /// The number that the last [`Upstream::edit`] of a path gave; 0 where there was none.
    pub fn version(&self, path: &str) -> u64 {
        self.desk.book().versions.get(path).copied().unwrap_or_default()
    }

    /// Holds back the answers of a path. They are made when the requests arrive, so an answer behind the gate is old by
    /// the time it is let out.
    pub fn gate(&self, path: &str) -> Gate {
        let gate = Gate(Arc::new(GateState { waiting: Mutex::new(0), permits: Semaphore::new(0) }));
        self.desk.book().gates.insert(path.into(), gate.clone());
        gate
    }

    /// Returns the number of requests for a path.
    pub fn calls(&self, path: &str) -> usize {
        self.desk.book().counts.get(path).copied().unwrap_or_default()
    }

    /// The requests for a path, in order of arrival.
    pub fn requests(&self, path: &str) -> Vec<Call> {
        self.desk.book().calls.iter().filter(|call| call.is_for(path)).cloned().collect()
    }

    /// All requests, in order of arrival.
    pub fn all_requests(&self) -> Vec<Call> {
        self.desk.book().calls.clone()
    }

    /// The most requests for a path that were in flight at once; a path as it was sent.
    pub fn most_in_flight(&self, path: &str) -> usize {
        self.desk.book().most_in_flight.get(path).copied().unwrap_or_default()
    }

    /// The most requests for the same path that were in flight at once, whatever the path.
    pub fn most_in_flight_for_any(&self) -> usize {
        self.desk.book().most_in_flight.values().copied().max().unwrap_or_default()
    }

    /// The most requests that were in flight at once.
    pub fn most_at_once(&self) -> usize {
        self.desk.book().most_at_once
    }

    /// Requests that are in flight now.
    pub fn in_flight(&self) -> usize {
        self.desk.book().all_in_flight
    }

    /// Waits until a path has been asked for so often.
    pub async fn called(&self, path: &str, times: usize) {
        eventually(&format!("{path} is asked for {times} times"), async || {
            let calls = self.calls(path);
            if calls >= times { Ok(()) } else { Err(calls) }
        })
        .await;
    }

    fn next_version(&self, path: &str) -> u64 {
        let mut book = self.desk.book();
        let version = book.versions.entry(path.into()).or_default();
        *version += 1;
        *version
    }
}

impl Call {
    /// A header's value; empty where it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.body))
    }

    /// The path as it was sent, without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The names that a path may go by, the most exact first.
    fn names(&self) -> [String; 3] {
        let decoded = percent_decode_str(self.path()).decode_utf8_lossy().into_owned();
        [self.target.clone(), self.path().to_owned(), decoded]
    }

    fn is_for(&self, path: &str) -> bool {
        self.names().iter().any(|name| name == path)
    }
}

impl Reply {
    /// 200 with a JSON body.
    pub fn json(value: Value) -> Self {
        Self::body(200, value.to_string()).header("Content-Type", "application/json")
    }

    /// 200 with any body.
    pub fn text(body: &str) -> Self {
        Self::body(200, body.to_owned())
    }

    /// A status without a body.
    pub fn status(status: u16) -> Self {
        Self::body(status, String::new())
    }

    /// Headers and spaces without an end.
    pub fn endless() -> Self {
        Self { ending: Ending::Endless, ..Self::text("") }
    }

    /// Not even headers, ever.
    pub fn silence() -> Self {
        Self { ending: Ending::Silence, ..Self::text("") }
    }

    /// With another status.
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Only after this time.
    pub fn after(mut self, latency: Duration) -> Self {
        self.after = latency;
        self
    }

    /// The connection breaks after so many bytes of the body.
    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.ending = Ending::CutAfter(bytes);
        self
    }

    /// Nothing more comes after so many bytes of the body.
    pub fn stall_after(mut self, bytes: usize) -> Self {
        self.ending = Ending::StallAfter(bytes);
        self
    }

    /// The body comes a byte at a time, so far apart.
    pub fn trickling(mut self, pause: Duration) -> Self {
        self.ending = Ending::Trickle(pause);
        self
    }

    fn body(status: u16, body: String) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), after: Duration::ZERO, ending: Ending::Whole }
    }

    async fn send(self) -> Response {
        tokio::time::sleep(self.after).await;
        let part = |bytes: usize| self.body.slice(..bytes.min(self.body.len()));
        let mut length = Some(self.body.len());
        let body = match self.ending {
            Ending::Whole => Body::from(self.body.clone()),
            Ending::CutAfter(bytes) => {
                let cut = Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by the test"));
                Body::from_stream(stream::iter([Ok(part(bytes)), cut]))
            }
            Ending::StallAfter(bytes) => {
                Body::from_stream(stream::iter([io::Result::Ok(part(bytes))]).chain(stream::pending()))
            }
            Ending::Trickle(pause) => {
                let bytes = self.body.clone();
                Body::from_stream(stream::iter(0..bytes.len()).then(move |n| {
                    let byte = bytes.slice(n..=n);
                    async move {
                        tokio::time::sleep(pause).await;
                        io::Result::Ok(byte)
                    }
                }))
            }
            Ending::Endless => {
                length = None;
                Body::from_stream(stream::repeat_with(|| io::Result::Ok(Bytes::from_static(&[b' '; 16 * 1024]))))
            }
            Ending::Silence => std::future::pending().await,
        };
        let mut response = Response::builder().status(StatusCode::from_u16(self.status).unwrap());
        for (name, value) in &self.headers {
            response = response.header(name, value);
        }
        if let Some(length) = length.filter(|length| *length > 0) {
            response = response.header(header::CONTENT_LENGTH, length);
        }
        response.body(body).unwrap()
    }
}

/// Holds back answers until it is opened, or dropped by the test.
#[derive(Clone, Debug)]
pub struct Gate(Arc<GateState>);

#[derive(Debug)]
struct GateState {
    waiting: Mutex<usize>,
    permits: Semaphore,
}

impl Gate {
    /// Waits until so many requests have arrived at the gate since it was set up.
    pub async fn arrived(&self, requests: usize) {
        eventually(&format!("{requests} requests are at the gate"), async || {
            let waiting = *self.0.waiting.lock().unwrap();
            if waiting >= requests { Ok(()) } else { Err(waiting) }
        })
        .await;
    }

    /// Lets one answer out.
    pub fn let_one_out(&self) {
        self.0.permits.add_permits(1);
    }

    /// Lets all answers out, also those to come.
    pub fn open(&self) {
        self.0.permits.close();
    }

    async fn pass(&self) {
        *self.0.waiting.lock().unwrap() += 1;
        match tokio::time::timeout(3 * DEADLINE, self.0.permits.acquire()).await {
            Ok(Ok(permit)) => permit.forget(),
            Ok(Err(_)) => {}
            Err(_) => panic!("a gate that no test opened"),
        }
    }
}

impl Desk {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }
}

/// A request that is being answered; counts as in flight until it is dropped, also when the client goes away.
struct InFlight {
    desk: Arc<Desk>,
    path: String,
}

impl InFlight {
    fn begin(desk: &Arc<Desk>, path: &str) -> Self {
        let mut book = desk.book();
        book.all_in_flight += 1;
        book.most_at_once = book.most_at_once.max(book.all_in_flight);
        let now = book.in_flight.entry(path.into()).or_default();
        *now += 1;
        let now = *now;
        let most = book.most_in_flight.entry(path.into()).or_default();
        *most = now.max(*most);
        Self { desk: Arc::clone(desk), path: path.into() }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut book = self.desk.book();
        book.all_in_flight -= 1;
        if let Some(now) = book.in_flight.get_mut(&self.path) {
            *now -= 1;
        }
    }
}

async fn serve(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let in_flight = InFlight::begin(&desk, &path);
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let call = Call {
        method: head.method.to_string(),
        target: head.uri.path_and_query().map_or(path, ToString::to_string),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
        at: Instant::now(),
    };
    let names = call.names();
    let (behaviour, name, gate) = {
        let mut book = desk.book();
        book.calls.push(call.clone());
        for name in names.iter().collect::<std::collections::BTreeSet<_>>() {
            *book.counts.entry(name.clone()).or_default() += 1;
        }
        let known =
            names.iter().find_map(|name| book.behaviours.get(name).map(|found| (Arc::clone(found), name.clone())));
        let (behaviour, name) = match known {
            Some((behaviour, name)) => (Some(behaviour), name),
            None => (book.otherwise.clone(), call.path().to_owned()),
        };
        let gate = names.iter().find_map(|name| book.gates.get(name)).cloned();
        (behaviour, name, gate)
    };
    let so_many = desk.book().counts.get(&name).copied().unwrap_or_default();
    let reply = behaviour.map_or_else(|| Reply::status(404), |behaviour| behaviour(&call, so_many));
    if let Some(gate) = gate {
        gate.pass().await;
    }
    let (head, body) = reply.send().await.into_parts();
    // The body is part of the answer: it is in flight until its last byte is handed over.
    let body = body.into_data_stream().map(move |piece| {
        let _ = &in_flight;
        piece
    });
    Response::from_parts(head, Body::from_stream(body))
}
