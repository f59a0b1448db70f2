//! A service that uses all of `samovar::cache`.
//!
//!     samovar museum &
//!     cargo run --example service -- --museum http://127.0.0.1:8080
//!     curl -i 'http://127.0.0.1:7071/artworks/Mona%20Lisa'
//!
//! If a worker runs the shipped jobs, artworks are warm before the first request. If Redis stops, the service keeps
//! answering, more slowly, and recovers with Redis.
#![expect(clippy::print_stdout, reason = "says where it listens")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use samovar::cache::{
    Cache, Error, Heard, Invalidation, InvalidationPublisher, Lock, RateLimiter, SessionCache, UserCache,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

#[derive(Parser)]
struct Arguments {
    /// Address of Redis, which may be unavailable
    #[arg(long, default_value = "redis://127.0.0.1:6379")]
    redis: String,
    /// Address of the museum
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    museum: String,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:7071")]
    listen: SocketAddr,
    /// Rate limit for each client
    #[arg(long, default_value = "100/minute")]
    limit: String,
}

#[derive(Clone)]
struct Service {
    /// Values that Samovar's workers keep warm: read here, never written.
    artworks: Cache,
    /// Values that this service makes from artworks, and caches itself.
    summaries: Cache,
    sessions: SessionCache,
    users: UserCache,
    limiter: RateLimiter,
    publisher: InvalidationPublisher,
    museum: Arc<str>,
    http: reqwest::Client,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let service = Service::new(&arguments).await?;
    let mut background = JoinSet::new();
    background.spawn(tell_changes(service.artworks.clone()));

    let limited = from_fn_with_state(service.limiter.clone(), limit);
    let routes = Router::new()
        .route("/artworks/{name}", get(artwork))
        .route("/artworks/{name}/changed", post(changed))
        .route("/summaries/{name}", get(summary))
        .route("/summaries", axum::routing::delete(forget_summaries))
        .route("/sessions/{id}", post(log_in).get(who))
        .layer(limited)
        .route("/reports", post(report))
        .route("/stats", get(stats))
        .with_state(service);
    let listener = tokio::net::TcpListener::bind(arguments.listen).await?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, routes).await?;
    Ok(())
}

impl Service {
    async fn new(arguments: &Arguments) -> Result<Self, anyhow::Error> {
        let artworks = Cache::builder(arguments.redis.as_str())
            .prefix("artwork_info")
            .default_ttl(Duration::from_secs(3_600))
            .near(16 << 20, Duration::from_secs(5))
            .demand(true)
            .build()
            .await?;
        Ok(Self {
            summaries: artworks.with_prefix("summary")?,
            sessions: SessionCache::new(&artworks),
            users: UserCache::new(&artworks),
            limiter: RateLimiter::new(&artworks, &arguments.limit)?,
            publisher: InvalidationPublisher::new(&artworks),
            museum: arguments.museum.as_str().into(),
            http: reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?,
            artworks,
        })
    }

    async fn ask_museum(&self, name: &str) -> Result<Value, Failure> {
        let mut url = reqwest::Url::parse(&self.museum).map_err(Failure::museum)?;
        url.path_segments_mut()
            .map_err(|()| Failure::museum("the museum's URL has no path"))?
            .extend(["artworks", name]);
        let answer = self.http.get(url).send().await.and_then(reqwest::Response::error_for_status);
        let mut answer: Value = answer.map_err(Failure::museum)?.json().await.map_err(Failure::museum)?;
        Ok(answer["data"].take())
    }
}

/// Returns an artwork from the near cache or from Redis. On a miss it asks the museum, and the workers warm the artwork
/// for later requests.
async fn artwork(State(service): State<Service>, Path(name): Path<String>) -> Result<Response, Failure> {
    let (value, cached): (Value, _) = match service.artworks.get(&name).await? {
        Some(value) => (value, "hit"),
        None => (service.ask_museum(&name).await?, "miss"),
    };
    Ok(([("x-cache", cached)], Json(value)).into_response())
}

/// Publishes an editor's change. The inbox loses nothing; the request fails only if the inbox is unavailable.
async fn changed(State(service): State<Service>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    let invalidation = Invalidation::keys([service.artworks.key(&name)]);
    service.publisher.publish(&invalidation).await?;
    service.summaries.delete(&name).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Returns a summary, made once for all concurrent requests on all instances.
async fn summary(State(service): State<Service>, Path(name): Path<String>) -> Result<Json<Value>, Failure> {
    let make = async || {
        let artwork = service.ask_museum(&name).await?;
        Ok::<_, Failure>(json!({ "title": artwork["title"], "summary": format!("All about {name}.") }))
    };
    Ok(Json(service.summaries.get_or_load(&name, make).await.map_err(|failure| (*failure).clone())?))
}

async fn forget_summaries(State(service): State<Service>) -> Result<Json<Value>, Failure> {
    Ok(Json(json!({ "deleted": service.summaries.clear_pattern("*").await? })))
}

async fn log_in(
    State(service): State<Service>,
    Path(id): Path<String>,
    Json(user): Json<Value>,
) -> Result<StatusCode, Failure> {
    service.sessions.set_with(&id, &user["id"], Duration::from_secs(1_800)).await?;
    service.users.set(&user["id"].to_string(), &user).await?;
    Ok(StatusCode::CREATED)
}

async fn who(State(service): State<Service>, Path(id): Path<String>) -> Result<Response, Failure> {
    let Some(user) = service.sessions.get::<Value>(&id).await? else {
        return Ok(StatusCode::UNAUTHORIZED.into_response());
    };
    service.sessions.expire(&id, Duration::from_secs(1_800)).await?;
    Ok(Json(service.users.get::<Value>(&user.to_string()).await?).into_response())
}

/// Makes a report, on one instance at a time.
async fn report(State(service): State<Service>) -> Result<Response, Failure> {
    let held = match Lock::new(&service.artworks, "report").acquire(Duration::ZERO).await {
        Ok(held) => held,
        Err(Error::Taken(_)) => return Ok(StatusCode::CONFLICT.into_response()),
        Err(e) => return Err(e.into()),
    };
    let number = service.summaries.increment("reports", 1).await?;
    let answer = Json(json!({ "report": number, "fence": held.number() })).into_response();
    held.release().await?;
    Ok(answer)
}

async fn stats(State(service): State<Service>) -> Json<Value> {
    let stats = service.artworks.stats();
    Json(json!({
        "hits": stats.hits,
        "near_hits": stats.near_hits,
        "misses": stats.misses,
        "degraded": stats.degraded,
        "dropped_writes": stats.dropped_writes,
    }))
}

/// Tells each client how many requests it has left, and refuses requests beyond the limit.
async fn limit(State(limiter): State<RateLimiter>, request: Request, next: Next) -> Result<Response, Failure> {
    let client = request.headers().get("x-client").and_then(|client| client.to_str().ok()).unwrap_or("anonymous");
    let decision = limiter.check(client).await?;
    let mut response = match decision.allowed {
        true => next.run(request).await,
        false => StatusCode::TOO_MANY_REQUESTS.into_response(),
    };
    let headers: HeaderMap = decision
        .headers()
        .filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_str(&value).ok()?)))
        .collect();
    response.headers_mut().extend(headers);
    Ok(response)
}

/// Logs what the workers change.
async fn tell_changes(cache: Cache) {
    let mut changes = cache.changes().await;
    loop {
        match changes.next().await {
            Heard::Message(change) => tracing::info!(key = change.key, event = ?change.event, "changed"),
            Heard::Gap => tracing::warn!("some changes were missed"),
            Heard::Unreadable(why) => tracing::warn!("a change cannot be read: {why}"),
        }
    }
}

/// A failure, as a client sees it.
#[derive(Clone)]
struct Failure(StatusCode, String);

impl Failure {
    fn museum(why: impl std::fmt::Display) -> Self {
        Self(StatusCode::BAD_GATEWAY, why.to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status =
            if error.is_unavailable() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::INTERNAL_SERVER_ERROR };
        Self(status, error.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}
