//! An upstream of replicas that lag: each shows an edit only some time after it was made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// No answer takes longer, ms.
const LATENCY: u64 = 80;

/// A server on a free port. `/art/7` answers `{"v": n}` with the content of `art:7`, which is 1 at first; an edit makes
/// it the next number.
///
/// A random replica answers each request. A replica shows the edits of a document in their order, each after a lag of
/// its own. Answers have an `ETag`, and a request that names it gets 304.
#[derive(Debug)]
pub struct Replicas {
    url: String,
    shelf: Arc<Shelf>,
    _server: JoinSet<()>,
}

/// An edit of a document.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// The content from the edit on.
    pub content: u64,
    /// When all replicas show it.
    pub everywhere: Instant,
}

#[derive(Debug)]
struct Shelf {
    book: Mutex<Book>,
    begun: Instant,
    replicas: usize,
    longest_lag: Duration,
}

#[derive(Debug)]
struct Book {
    random: StdRng,
    edits: HashMap<String, Vec<Edit>>,
    history: HashMap<String, Vec<String>>,
    fetches: u64,
}

#[derive(Debug)]
struct Edit {
    content: u64,
    /// When each replica shows it.
    shown: Vec<Instant>,
}

impl Replicas {
    /// Starts `replicas` replicas that show an edit after `longest_lag` at most.
    pub async fn start(seed: u64, replicas: usize, longest_lag: Duration) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let random = StdRng::seed_from_u64(seed);
        let book = Book { random, edits: HashMap::new(), history: HashMap::new(), fetches: 0 };
        let shelf = Arc::new(Shelf { book: Mutex::new(book), begun: Instant::now(), replicas, longest_lag });
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shelf));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shelf, _server: server }
    }

    /// Its base URL, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Gives a document content that it never had.
    pub fn edit(&self, key: &str) -> Shown {
        let content = self.shelf.book().edits.get(key).map_or(0, Vec::len) as u64 + 2;
        self.shelf.show(key, content)
    }

    /// Gives a document the content from before its last edit.
    pub fn restore(&self, key: &str) -> Shown {
        let content = match self.shelf.book().edits.get(key).map(Vec::as_slice) {
            Some([.., before, _]) => before.content,
            _ => 1,
        };
        self.shelf.show(key, content)
    }

    /// Returns the number of requests so far.
    pub fn fetches(&self) -> u64 {
        self.shelf.book().fetches
    }

    /// Adds a line to the history of a document.
    pub fn note(&self, key: &str, what: &str) {
        self.shelf.note(&mut self.shelf.book(), key, what);
    }

    /// Returns the last lines of the history of a document: its edits, the answers, and [`Self::note`].
    pub fn history(&self, key: &str) -> String {
        let book = self.shelf.book();
        let lines = book.history.get(key).map(Vec::as_slice).unwrap_or_default();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Shelf {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    fn note(&self, book: &mut Book, key: &str, what: &str) {
        let line = format!("    {:.3} s: {what}", self.begun.elapsed().as_secs_f32());
        book.history.entry(key.to_owned()).or_default().push(line);
    }

    fn show(&self, key: &str, content: u64) -> Shown {
        let (now, mut book) = (Instant::now(), self.book());
        let lags: Vec<Duration> =
            (0..self.replicas).map(|_| self.longest_lag.mul_f64(book.random.random_range(0.0..=1.0))).collect();
        let edits = book.edits.entry(key.to_owned()).or_default();
        let before = edits.last().map(|edit| edit.shown.as_slice()).unwrap_or_default();
        let shown = lags.iter().enumerate().map(|(replica, lag)| {
            let after = before.get(replica).copied().unwrap_or(now);
            after.max(now + *lag)
        });
        let shown: Vec<Instant> = shown.collect();
        let everywhere = shown.iter().copied().max().unwrap_or(now);
        edits.push(Edit { content, shown });
        self.note(&mut book, key, &format!("edit: {content}, shown after {lags:.3?}"));
        Shown { content, everywhere }
    }

    /// Returns the number of a random replica, and the content that it shows.
    fn ask(&self, key: &str) -> (usize, u64) {
        let (now, mut book) = (Instant::now(), self.book());
        let replica = book.random.random_range(0..self.replicas);
        let edits = book.edits.get(key).map(Vec::as_slice).unwrap_or_default();
        let content = edits.iter().rev().find(|edit| edit.shown[replica] <= now).map_or(1, |edit| edit.content);
        (replica, content)
    }
}

async fn serve(State(shelf): State<Arc<Shelf>>, request: Request) -> Response {
    let key = request.uri().path().trim_start_matches('/').replace('/', ":");
    let latency = {
        let mut book = shelf.book();
        book.fetches += 1;
        Duration::from_millis(book.random.random_range(0..=LATENCY))
    };
    tokio::time::sleep(latency / 2).await;
    let (replica, content) = shelf.ask(&key);
    let tag = format!("\"{content}\"");
    let known = request.headers().get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    shelf.note(&mut shelf.book(), &key, &format!("replica {replica}: {content}{}", if known { ", 304" } else { "" }));
    tokio::time::sleep(latency / 2).await;
    let answer = Response::builder().header(header::ETAG, &tag);
    match known {
        true => answer.status(StatusCode::NOT_MODIFIED).body(Body::empty()).unwrap(),
        false => answer.body(Body::from(format!("{{\"v\": {content}}}"))).unwrap(),
    }
}
