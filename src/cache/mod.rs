//! A Redis cache for Rust services, with Samovar's workers or without them.
//!
//! ```no_run
//! use samovar::cache::Cache;
//! use std::time::Duration;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Artwork {
//!     title: String,
//!     year: i32,
//! }
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let builder = Cache::builder("redis://127.0.0.1:6379").prefix("artwork").near(8 << 20, Duration::from_secs(2));
//! let cache = builder.build().await?;
//! let artwork: Artwork = cache.get_or_load("42", async || ask_the_museum(42).await).await?;
//! # Ok(())
//! # }
//! # async fn ask_the_museum(_: u32) -> Result<Artwork, std::io::Error> { unimplemented!() }
//! ```
//!
//! [`Cache`] is the central type. The others are made from one and share its connection: [`SessionCache`],
//! [`UserCache`], [`RateLimiter`], [`RateLimitCache`], [`Lock`], [`InvalidationPublisher`], [`Subscription`].
//!
//! # Without Redis
//!
//! A call waits for Redis for at most 250 ms ([`Builder::bound`]; `get_or_load` and `clear_pattern` make several).
//! After three failures in a row calls no longer wait, except one probe every half second. On a Cluster, that goes for
//! each master by itself. Everything resumes when Redis answers.
//!
//! | call | without Redis |
//! |---|---|
//!
//! `get`, `get_many`
//! from the near cache, else a miss
//!
//! | `exists`, `ttl` | `false`, `None` |
//! | `set`, `set_many`, `delete`, `expire` | dropped and counted ([`Cache::stats`]) |
//! | `get_or_load` | loads, once at a time in this process; the value is not written |
//!
//! `RateLimiter::check`
//! this process applies the limit alone
//!
//! | `Builder::build` | builds; connects when it can |
//!
//! `Subscription::next`
//! waits, then reports a gap
//!
//! | `increment`, `clear_pattern`, `publish` | [`Error::Unavailable`] |
//! | `InvalidationPublisher::publish` | [`Error::Unavailable`] |
//!
//! `Lock::acquire`, `Held::release`
//! [`Error::Unavailable`]; the holder learns when it is lost
//!
//!
//! A write refused by a full or read-only Redis is treated the same: it is dropped and counted, and a limiter decides
//! locally. Every other error of Redis is returned.

mod breaker;
mod builder;
#[expect(clippy::module_inception, reason = "the file is named for its type")]
mod cache;
mod error;
mod flight;
mod inner;
mod json;
mod link;
mod load;
mod lock;
mod near;
mod pattern;
mod prefix;
mod publisher;
mod rate_limit;
mod reads;
mod session;
mod stats;
mod subscriber;
mod ttl;

pub use builder::{Builder, Source};
pub use cache::Cache;
pub use error::Error;
pub use lock::{Held, Lock};
pub use publisher::{Invalidation, InvalidationPublisher};
pub use rate_limit::{Decision, Limit, RateLimitCache, RateLimiter};
pub use session::{KNOWN_PREFIXES, SessionCache, UserCache};
pub use stats::Stats;
pub use subscriber::{Change, ChangeEvent, Heard, Subscription};
pub use ttl::Ttl;
