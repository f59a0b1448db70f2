//! Caches with well-known prefixes.

use std::ops::Deref;

use super::Cache;

const SESSION: &str = "session";
const USER: &str = "user";
pub(super) const RATE_LIMIT: &str = "rate_limit";

/// The well-known prefixes; keys of these caches begin with one of them and a colon.
pub const KNOWN_PREFIXES: [&str; 3] = [SESSION, USER, RATE_LIMIT];

macro_rules! known_cache {
    ($(#[$doc:meta])* $name:ident, $prefix:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(Cache);

        impl $name {
            /// Creates it with the connection and settings of another cache.
            pub fn new(cache: &Cache) -> Self {
                Self(cache.known($prefix))
            }
        }

        impl Deref for $name {
            type Target = Cache;

            fn deref(&self) -> &Cache {
                &self.0
            }
        }
    };
}

known_cache! {
    /// Sessions: a [`Cache`] of keys `session:ID`. A key that already begins with `session:` is used unchanged.
    ///
    /// Changes are not announced, so that no session id is published, and nothing is kept in a near cache.
    ///
    /// ```no_run
    /// # async fn example(cache: samovar::cache::Cache) -> Result<(), samovar::cache::Error> {
    /// use samovar::cache::SessionCache;
    /// use std::time::Duration;
    ///
    /// let sessions = SessionCache::new(&cache);
    /// sessions.set_with("5f2c", &serde_json::json!({ "user": 7 }), Duration::from_secs(1_800)).await?;
    /// let same: Option<serde_json::Value> = sessions.get("session:5f2c").await?;
    /// # Ok(())
    /// # }
    /// ```
    SessionCache, SESSION
}

known_cache! {
    /// User data: a [`Cache`] of keys `user:ID`. A key that already begins with `user:` is used unchanged.
    ///
    /// Like a [`SessionCache`], it announces nothing and uses no near cache.
    UserCache, USER
}
