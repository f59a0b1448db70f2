//! An upstream whose documents are version numbers, and whose answers come late, out of order, broken, or not at all.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use futures_util::stream::{self, StreamExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// No common answer takes longer, ms.
const LATENCY: u64 = 300;
/// A rare one does.
const SLOW: Duration = Duration::from_millis(1_500);

/// A server on a free port. `/art/7` answers `{"v": n}` with the version of `art:7`; the rest of the path comes back as
/// `"of"`: `/story/7/4` answers `{"v": n, "of": 4}` for `story:7`. Versions begin with 1.
///
/// The version is read at some moment between the arrival and the end of the answer, so answers are old by the time
/// they come, in any order. Some fail, some are cut off. Answers have an `ETag`, and a request that names it gets 304.
#[derive(Debug)]
pub struct Versions {
    url: String,
    shelf: Arc<Shelf>,
    _server: JoinSet<()>,
}

/// The requests so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    pub fetches: u64,
    pub not_modified: u64,
    pub failed: u64,
}

/// Two fetches of a key at a time.
#[derive(Clone, Debug)]
pub struct Crowded {
    pub key: String,
    /// When the first one arrived, and then the second.
    pub arrived: [Instant; 2],
}

#[derive(Debug)]
struct Shelf {
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    random: StdRng,
    calm: bool,
    versions: HashMap<String, u64>,
    /// When each fetch in flight arrived.
    in_flight: HashMap<String, Vec<Instant>>,
    crowded: Vec<Crowded>,
    asked: Asked,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Whole,
    Refused,
    Cut,
}

/// The time before the version is read, the time of the answer from then on, and its end.
#[derive(Clone, Copy, Debug)]
struct Fate {
    before: Duration,
    after: Duration,
    ending: Ending,
}

impl Versions {
    pub async fn start(seed: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let book = Book {
            random: StdRng::seed_from_u64(seed),
            calm: false,
            versions: HashMap::new(),
            in_flight: HashMap::new(),
            crowded: Vec::new(),
            asked: Asked::default(),
        };
        let shelf = Arc::new(Shelf { book: Mutex::new(book) });
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shelf));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shelf, _server: server }
    }

    /// Its base URL, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A new version of `art:7`.
    pub fn edit(&self, key: &str) {
        *self.shelf.book().versions.entry(key.to_owned()).or_insert(1) += 1;
    }

    /// The present version.
    pub fn version(&self, key: &str) -> u64 {
        self.shelf.book().version(key)
    }

    /// From now on it answers soon and always.
    pub fn calm_down(&self) {
        self.shelf.book().calm = true;
    }

    /// Fetches that began while others of their keys were in flight.
    pub fn crowded(&self) -> Vec<Crowded> {
        self.shelf.book().crowded.clone()
    }

    pub fn asked(&self) -> Asked {
        self.shelf.book().asked
    }
}

impl Shelf {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }
}

impl Book {
    fn version(&self, key: &str) -> u64 {
        self.versions.get(key).copied().unwrap_or(1)
    }

    fn fate(&mut self) -> Fate {
        let random = &mut self.random;
        if self.calm {
            return Fate { before: Duration::ZERO, after: Duration::from_millis(5), ending: Ending::Whole };
        }
        let whole =
            if random.random_bool(0.02) { SLOW } else { Duration::from_millis(random.random_range(0..=LATENCY)) };
        let before = match random.random_range(0..3) {
            0 => Duration::ZERO,
            1 => whole,
            _ => whole.mul_f64(random.random_range(0.0..1.0)),
        };
        let ending = match random.random_range(0..100) {
            0..5 => Ending::Refused,
            5..8 => Ending::Cut,
            _ => Ending::Whole,
        };
        Fate { before, after: whole - before, ending }
    }
}

/// A fetch that is being answered; over when it is dropped, also because the client went away.
struct InFlight {
    shelf: Arc<Shelf>,
    key: String,
    arrived: Instant,
}

impl InFlight {
    fn begin(shelf: &Arc<Shelf>, key: &str) -> (Self, Fate) {
        let mut book = shelf.book();
        book.asked.fetches += 1;
        let now = Instant::now();
        let others = book.in_flight.entry(key.to_owned()).or_default();
        let crowded: Vec<Crowded> =
            others.iter().map(|first| Crowded { key: key.to_owned(), arrived: [*first, now] }).collect();
        others.push(now);
        book.crowded.extend(crowded);
        (Self { shelf: Arc::clone(shelf), key: key.to_owned(), arrived: now }, book.fate())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(arrived) = self.shelf.book().in_flight.get_mut(&self.key)
            && let Some(nth) = arrived.iter().position(|arrived| *arrived == self.arrived)
        {
            arrived.swap_remove(nth);
        }
    }
}

async fn serve(State(shelf): State<Arc<Shelf>>, request: Request) -> Response {
    let mut parts = request.uri().path().trim_start_matches('/').splitn(3, '/');
    let (kind, name, of) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next());
    let key = format!("{kind}:{name}");
    let (in_flight, fate) = InFlight::begin(&shelf, &key);
    tokio::time::sleep(fate.before).await;
    let version = shelf.book().version(&key);
    tokio::time::sleep(fate.after).await;

    let body = Bytes::from(match of {
        Some(of) => format!("{{\"v\": {version}, \"of\": {of}}}"),
        None => format!("{{\"v\": {version}}}"),
    });
    let tag = format!("\"{version}/{}\"", of.unwrap_or_default());
    let known = request.headers().get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let answer = Response::builder().header(header::ETAG, &tag);
    let (status, pieces) = match fate.ending {
        Ending::Refused => (StatusCode::INTERNAL_SERVER_ERROR, vec![]),
        Ending::Whole if known => (StatusCode::NOT_MODIFIED, vec![]),
        Ending::Whole => (StatusCode::OK, vec![Ok(body.clone())]),
        Ending::Cut => {
            let cut = Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by the test"));
            (StatusCode::OK, vec![Ok(body.slice(..body.len() / 2)), cut])
        }
    };
    {
        let mut book = shelf.book();
        book.asked.not_modified += u64::from(status == StatusCode::NOT_MODIFIED);
        book.asked.failed += u64::from(!matches!(fate.ending, Ending::Whole));
    }
    let answer = if status == StatusCode::OK { answer.header(header::CONTENT_LENGTH, body.len()) } else { answer };
    // The body is part of the answer: it is in flight until its last byte is handed over.
    let pieces = stream::iter(pieces).map(move |piece| {
        let _ = &in_flight;
        piece
    });
    answer.status(status).body(Body::from_stream(pieces)).unwrap()
}
