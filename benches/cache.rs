//! The cache library against raw calls on one multiplexed connection, in the same run. Read the ratios.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and stops at the first surprise")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use redis::{AsyncCommands, Script};
use samovar::cache::{Cache, RateLimiter};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use support::{TestRedis, eventually};

const CALLERS: usize = 64;
const CALLS: usize = 128_000;
const KEYS: usize = 1_000;
const ROUNDS: usize = 5;
const NEAR_HITS: u32 = 1_000_000;

#[derive(Serialize, Deserialize)]
struct Artwork {
    title: String,
    artist: String,
    year: i32,
}

#[tokio::main]
async fn main() {
    let redis = TestRedis::start().await;
    let client = redis.client();
    let raw = client.get_multiplexed_async_connection().await.unwrap();
    let cache = Cache::builder(redis.redis_url()).prefix("art").build().await.unwrap();
    let artworks = (0..KEYS).map(|n| {
        let artist = "Osman Hamdi Bey".to_owned();
        (n.to_string(), Artwork { title: format!("Kaplumbağa Terbiyecisi {n}"), artist, year: 1906 })
    });
    cache.set_many(artworks).await.unwrap();

    println!("{CALLS} calls by {CALLERS} callers on one connection, median of {ROUNDS} rounds");
    compare(
        ("GET", {
            let raw = raw.clone();
            move |n: usize| {
                let mut raw = raw.clone();
                async move {
                    let json: Option<String> = raw.get(format!("art:{}", n % KEYS)).await.unwrap();
                    assert!(json.is_some());
                }
            }
        }),
        ("Cache::get", {
            let cache = cache.clone();
            move |n: usize| {
                let cache = cache.clone();
                async move {
                    let artwork: Option<Artwork> = cache.get(&(n % KEYS).to_string()).await.unwrap();
                    assert!(artwork.is_some());
                }
            }
        }),
    )
    .await;

    let script = std::sync::Arc::new(Script::new(include_str!("../src/cache/lua/admit_within.lua")));
    script.load_async(&mut raw.clone()).await.unwrap();
    let limiter = RateLimiter::new(&cache, "1000/second").unwrap();
    compare(
        ("EVALSHA", {
            let raw = raw.clone();
            move |n: usize| {
                let (mut raw, script) = (raw.clone(), script.clone());
                async move {
                    let mut evalsha = redis::cmd("EVALSHA");
                    evalsha.arg(script.get_hash()).arg(1).arg(format!("raw:{}", n % KEYS)).arg(1_000).arg(1_000_000);
                    let _: (bool, u32, u64, u64) = evalsha.query_async(&mut raw).await.unwrap();
                }
            }
        }),
        ("RateLimiter::check", move |n: usize| {
            let limiter = limiter.clone();
            async move {
                assert!(!limiter.check(&(n % KEYS).to_string()).await.unwrap().local);
            }
        }),
    )
    .await;

    near(&redis).await;
}

/// Runs both in turn and prints their rates and the ratio.
async fn compare<A, B>(
    bare: (&str, impl Fn(usize) -> A + Clone + Send + 'static),
    ours: (&str, impl Fn(usize) -> B + Clone + Send + 'static),
) where
    A: Future<Output = ()> + Send + 'static,
    B: Future<Output = ()> + Send + 'static,
{
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (bare, ours) = (rate(bare.1.clone()).await, rate(ours.1.clone()).await);
        rates.push((bare, ours));
        ratios.push(ours / bare);
    }
    ratios.sort_by(f64::total_cmp);
    rates.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (a, b) = rates[ROUNDS / 2];
    println!("{:>10} {a:8.0}/s   {:>18} {b:8.0}/s   ratio {:.2}", bare.0, ours.0, ratios[ROUNDS / 2]);
}

async fn rate<F: Future<Output = ()> + Send + 'static>(call: impl Fn(usize) -> F + Clone + Send + 'static) -> f64 {
    let begun = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let call = call.clone();
        callers.spawn(async move {
            for n in 0..CALLS / CALLERS {
                call(caller + n * CALLERS).await;
            }
        });
    }
    callers.join_all().await;
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let calls = CALLS as f64;
    calls / begun.elapsed().as_secs_f64()
}

async fn near(redis: &TestRedis) {
    let near = Cache::builder(redis.redis_url()).prefix("art").near(1 << 20, Duration::from_secs(600));
    let near = near.build().await.unwrap();
    eventually("it is kept near", async || {
        near.get::<Artwork>("7").await.unwrap();
        near.stats().near_hits > 0
    })
    .await;
    let before = near.stats().near_hits;
    let begun = Instant::now();
    for _ in 0..NEAR_HITS {
        std::hint::black_box(near.get::<Artwork>("7").await.unwrap());
    }
    let each = begun.elapsed() / NEAR_HITS;
    assert_eq!(near.stats().near_hits - before, u64::from(NEAR_HITS));
    println!("near-cache hit: {each:?}, JSON read included");
}
