//! The museum's answers, their latency and their failures.

use super::collection::Collection;
use super::ledger::{Answered, Endpoint, Ledger};
use super::{Latency, Options, SLOWER, story};
use axum::extract::{Path, Query, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

#[derive(Debug)]
pub(super) struct Hall {
    pub(super) collection: Collection,
    pub(super) ledger: Ledger,
    latency: Latency,
    ai_latency: Latency,
    failures: f64,
    mode: AtomicU8,
    completions: AtomicU64,
}

/// The mode of the museum, set by `POST /faults`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    Ok,
    Slow,
    Down,
}

#[derive(Deserialize)]
struct Faults {
    mode: Mode,
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct Chat {
    model: String,
    messages: Vec<Message>,
    #[serde(alias = "max_completion_tokens")]
    max_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Message {
    content: String,
}

impl Hall {
    pub(super) fn new(collection: Collection, options: Options) -> anyhow::Result<Self> {
        anyhow::ensure!((0.0..=1.0).contains(&options.failures), "the share of failures must be from 0 to 1");
        Ok(Self {
            collection,
            ledger: Ledger::default(),
            latency: Latency::new(options.latency, options.latency_factor)?,
            ai_latency: Latency::new(options.ai_latency, options.latency_factor)?,
            failures: options.failures,
            mode: AtomicU8::new(Mode::Ok as u8),
            completions: AtomicU64::new(0),
        })
    }

    pub(super) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Release);
    }

    /// Waits for the latency; returns an error answer if the museum is failing.
    async fn wait(&self, endpoint: Endpoint) -> Result<(), Response> {
        let mode = self.mode.load(Ordering::Acquire);
        let failed = |status: StatusCode, why: &str| {
            self.ledger.count(endpoint, Answered::Failed);
            (status, Json(json!({ "error": why }))).into_response()
        };
        if mode == Mode::Down as u8 {
            return Err(failed(StatusCode::SERVICE_UNAVAILABLE, "the museum is closed"));
        }
        let latency = if endpoint == Endpoint::Completion { self.ai_latency.draw() } else { self.latency.draw() };
        let slower = if mode == Mode::Slow as u8 { SLOWER } else { 1.0 };
        if !latency.is_zero() {
            tokio::time::sleep(latency.mul_f64(slower)).await;
        }
        if self.failures > 0.0 && rand::random_bool(self.failures) {
            return Err(failed(StatusCode::INTERNAL_SERVER_ERROR, "somebody tripped over a cable"));
        }
        Ok(())
    }

    /// Returns an answer with an `ETag`, or 304 if the client has this version.
    fn tagged(&self, endpoint: Endpoint, asked: &HeaderMap, version: u64, answer: impl FnOnce() -> Value) -> Response {
        let tag = format!("W/\"{}-{version}\"", endpoint as u8);
        let known = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let known = known.flat_map(|list| list.split(',')).any(|one| {
            let one = one.trim();
            // Weak comparison: RFC 9110, section 8.8.3.2.
            one == "*" || one.trim_start_matches("W/") == tag.trim_start_matches("W/")
        });
        let mut response = if known {
            self.ledger.count(endpoint, Answered::Unchanged);
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            self.ledger.count(endpoint, Answered::Fully);
            Json(answer()).into_response()
        };
        if let Ok(tag) = HeaderValue::try_from(tag) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }

    fn unknown(&self, endpoint: Endpoint, name: &str) -> Response {
        self.ledger.count(endpoint, Answered::Unknown);
        (StatusCode::NOT_FOUND, Json(json!({ "error": format!("nothing here is called {name}") }))).into_response()
    }
}

pub(super) fn routes(hall: Arc<Hall>) -> Router {
    Router::new()
        .route("/artworks", get(artworks))
        .route("/artworks/{name}", get(artwork).post(edit).put(edit))
        .route("/artworks/{name}/image", get(image))
        .route("/artworks/{name}/similar", get(similar))
        .route("/artists/popular", get(popular_artists))
        .route("/artists/{name}", get(artist))
        .route("/popular", get(popular))
        .route("/v1/chat/completions", post(completion))
        .route("/stats", get(async |State(hall): State<Arc<Hall>>| Json(hall.ledger.to_json())))
        .route("/versions", get(async |State(hall): State<Arc<Hall>>| Json(hall.collection.versions())))
        .route("/faults", post(faults))
        .with_state(hall)
}

async fn artwork(State(hall): State<Arc<Hall>>, Path(name): Path<String>, asked: HeaderMap) -> Response {
    about(&hall, Endpoint::Artwork, &name, &asked).await
}

/// Answers for many artworks at once. Those that are not known are left out.
async fn artworks(State(hall): State<Arc<Hall>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let names = url::form_urlencoded::parse(query.as_bytes()).filter(|(field, _)| field == "name");
    let works = names.filter_map(|(_, name)| hall.collection.artwork(&name));
    let works: Vec<_> = works.map(|work| (work, work.shown())).collect();
    if let Err(response) = hall.wait(Endpoint::Artwork).await {
        return response;
    }
    let described = works.into_iter().map(|(work, (version, last))| {
        if version < last {
            hall.ledger.count_outdated(Endpoint::Artwork, work.title, version, last);
        }
        hall.collection.describe(work, version)
    });
    let data: Vec<Value> = described.collect();
    hall.ledger.count(Endpoint::Artwork, Answered::Fully);
    Json(json!({ "data": data })).into_response()
}

async fn image(State(hall): State<Arc<Hall>>, Path(name): Path<String>, asked: HeaderMap) -> Response {
    about(&hall, Endpoint::Image, &name, &asked).await
}

async fn similar(State(hall): State<Arc<Hall>>, Path(name): Path<String>, asked: HeaderMap) -> Response {
    about(&hall, Endpoint::Similar, &name, &asked).await
}

async fn about(hall: &Hall, endpoint: Endpoint, name: &str, asked: &HeaderMap) -> Response {
    // The answer shows the state when the request arrived, like a service that reads first and answers slowly: an edit
    // in between makes it stale, and a cache must cope with that.
    let known = hall.collection.artwork(name).map(|work| (work, work.shown()));
    if let Err(response) = hall.wait(endpoint).await {
        return response;
    }
    let Some((work, (version, last))) = known else { return hall.unknown(endpoint, name) };
    if version < last {
        hall.ledger.count_outdated(endpoint, work.title, version, last);
    }
    hall.tagged(endpoint, asked, version, || {
        let data = match endpoint {
            Endpoint::Image => Collection::image(work, version),
            Endpoint::Similar => hall.collection.similar(work, version),
            _ => hall.collection.describe(work, version),
        };
        json!({ "data": data })
    })
}

async fn artist(State(hall): State<Arc<Hall>>, Path(name): Path<String>, asked: HeaderMap) -> Response {
    if let Err(response) = hall.wait(Endpoint::Artist).await {
        return response;
    }
    let Some(artist) = hall.collection.artist(&name) else { return hall.unknown(Endpoint::Artist, &name) };
    hall.tagged(Endpoint::Artist, &asked, 1, || json!({ "data": hall.collection.biography(artist) }))
}

async fn popular(State(hall): State<Arc<Hall>>, Query(Limit { limit }): Query<Limit>) -> Response {
    let names = hall.collection.artworks.iter().map(|work| work.title);
    named(&hall, Endpoint::Popular, names.take(limit.unwrap_or(usize::MAX)).collect()).await
}

async fn popular_artists(State(hall): State<Arc<Hall>>, Query(Limit { limit }): Query<Limit>) -> Response {
    let names = hall.collection.artists.iter().map(|artist| artist.name);
    named(&hall, Endpoint::PopularArtists, names.take(limit.unwrap_or(usize::MAX)).collect()).await
}

async fn named(hall: &Hall, endpoint: Endpoint, names: Vec<&str>) -> Response {
    if let Err(response) = hall.wait(endpoint).await {
        return response;
    }
    hall.ledger.count(endpoint, Answered::Fully);
    Json(json!({ "names": names })).into_response()
}

async fn edit(State(hall): State<Arc<Hall>>, Path(name): Path<String>) -> Response {
    match hall.collection.edit(&name) {
        Some(version) => {
            hall.ledger.count_edit();
            Json(json!({ "name": name, "version": version })).into_response()
        }
        None => hall.unknown(Endpoint::Artwork, &name),
    }
}

async fn faults(State(hall): State<Arc<Hall>>, Json(Faults { mode }): Json<Faults>) -> Json<Value> {
    hall.set_mode(mode);
    Json(json!({ "mode": format!("{mode:?}").to_lowercase() }))
}

async fn completion(State(hall): State<Arc<Hall>>, Json(chat): Json<Chat>) -> Response {
    if let Err(response) = hall.wait(Endpoint::Completion).await {
        return response;
    }
    hall.ledger.count(Endpoint::Completion, Answered::Fully);
    let prompt = chat.messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n");
    let story = story::tell(&hall.collection, &prompt, chat.max_tokens);
    // Each message has an overhead of a few tokens.
    let tokens_in = story::tokens(&prompt) + 4 * chat.messages.len() as u64;
    let tokens_out = story::tokens(&story.text);
    hall.ledger.count_tokens(tokens_in, tokens_out);
    let number = hall.completions.fetch_add(1, Ordering::Relaxed);
    Json(json!({
        "id": format!("chatcmpl-museum{number:08}"),
        "object": "chat.completion",
        "created": chrono::Utc::now().timestamp(),
        "model": chat.model,
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": story.text },
            "finish_reason": if story.whole { "stop" } else { "length" },
        }],
        "usage": { "prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out },
    }))
    .into_response()
}
