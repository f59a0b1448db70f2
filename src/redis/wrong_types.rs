//! Keys of the wrong type: somebody else's key stands where Samovar's own belongs, and each command on it fails.
//!
//! Redis does not say which key that is. So a connection hands over the names in a command that failed ([`WrongTypes::met`]),
//! and [`WrongTypes::look`] asks Redis for the types of these, and now and then of all names that are known beforehand.
//! Nothing is ever changed there: it is told what to delete or rename, and when that was done.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::{Arg, Cmd, RedisError, RedisResult};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Connection;
use crate::protocol::Keys;

/// Keys that are remembered at once; further ones are found when some of these are gone.
const MOST: usize = 256;
/// Names that are asked for in one round trip.
const STEP: usize = 500;
/// How often the known ones are looked at again, and how often all names are.
const LOOK: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// So many of the first words of a command are looked at: keys come first.
const WORDS: usize = 16;
/// Longest name that is told, in characters.
const NAME: usize = 200;

/// What Redis answers to a command on a key of another type.
const WRONGTYPE: &str = "WRONGTYPE";

/// Returns whether an error concerns only the keys that were named, so that waiting for Redis does not mend it: a key of another
/// type, one that the user has no right to, an answer that makes no sense.
pub fn is_of_keys(error: &RedisError) -> bool {
    let is_one = |code: &str| matches!(code, WRONGTYPE | "NOPERM" | "ERR");
    // Of a pipeline, all that failed must be such.
    let errors = error.clone().into_server_errors();
    errors.is_some_and(|errors| errors.iter().all(|(_, error)| is_one(error.code())))
        || error.code().is_some_and(is_one)
        || matches!(error.kind(), redis::ErrorKind::UnexpectedReturnType | redis::ErrorKind::Parse)
}

/// A key of another type than Samovar's, in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongType {
    /// The key.
    pub key: String,
    /// Its type, as `TYPE` tells it.
    pub found: String,
    /// Samovar's.
    pub expected: &'static str,
    /// Nothing can be fetched for any job while it is there.
    pub is_needed_by_all: bool,
}

impl fmt::Display for WrongType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, found, expected, .. } = self;
        let key: String = key.chars().take(NAME).flat_map(char::escape_debug).collect();
        write!(f, "key {key} holds a {found} that Samovar did not write, in place of a {expected}: delete or rename it")
    }
}

/// The keys of the wrong type that a worker knows of. Cheap to clone; clones share what they know.
#[derive(Clone, Debug, Default)]
pub struct WrongTypes(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Names in commands that failed.
    suspects: Mutex<BTreeSet<String>>,
    found: Mutex<BTreeMap<String, WrongType>>,
    wakeup: Notify,
}

impl WrongTypes {
    /// Takes note of a command that met a key of the wrong type.
    pub(super) fn met(&self, command: &Cmd) {
        let mut suspects = lock(&self.0.suspects);
        for arg in command.args_iter().take(WORDS) {
            if let Arg::Simple(name) = arg
                && let Ok(name) = str::from_utf8(name)
                && suspects.len() < MOST
                && !suspects.contains(name)
            {
                suspects.insert(name.to_owned());
            }
        }
        drop(suspects);
        self.0.wakeup.notify_one();
    }

    /// Returns the keys that were found at the last look.
    pub fn found(&self) -> Vec<WrongType> {
        lock(&self.0.found).values().cloned().collect()
    }

    /// Looks until `stop`: soon after a command failed, at what is known every two seconds, and at all of these names
    /// every ten seconds.
    pub async fn run(self, redis: Connection, keys: Keys, names: Vec<String>, stop: CancellationToken) {
        let mut all: Option<Instant> = None;
        while !stop.is_cancelled() {
            let is_due = all.is_none_or(|at| at.elapsed() >= LOOK.1);
            match self.look(&redis, &keys, if is_due { &names } else { &[] }).await {
                Ok(()) if is_due => all = Some(Instant::now()),
                Ok(()) => {}
                // The loops that need Redis say so.
                Err(e) => debug!("cannot ask for the types of keys: {e}"),
            }
            let rest = async {
                tokio::time::sleep(LOOK.0).await;
                let idle = self.found().is_empty() && lock(&self.0.suspects).is_empty();
                if idle {
                    let next = all.map_or(LOOK.0, |at| LOOK.1.saturating_sub(at.elapsed()));
                    let _ = tokio::time::timeout(next, self.0.wakeup.notified()).await;
                }
            };
            tokio::select! {
                () = rest => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Looks at names in commands that failed, at what was found before, and at these; tells what is new and what is over.
    ///
    /// # Errors
    /// Redis's; look again.
    pub async fn look(&self, redis: &Connection, keys: &Keys, names: &[String]) -> RedisResult<()> {
        let suspects = std::mem::take(&mut *lock(&self.0.suspects));
        let mut asked: BTreeSet<String> = suspects.into_iter().chain(names.iter().cloned()).collect();
        asked.extend(lock(&self.0.found).keys().cloned());
        let asked: Vec<String> = asked.into_iter().collect();
        let now = wrong_types(redis, keys, &asked).await?;
        let mut found = lock(&self.0.found);
        let is_over = |key: &str| !now.iter().any(|wrong| wrong.key == key);
        for (key, _) in found.extract_if(.., |key, _| is_over(key)) {
            info!(key, "no key of another type stands there any more");
        }
        for wrong in now {
            if found.len() >= MOST {
                break;
            }
            if found.get(&wrong.key) != Some(&wrong) {
                warn!("{wrong}");
                found.insert(wrong.key.clone(), wrong);
            }
        }
        Ok(())
    }
}

/// Asks Redis which of these names, as far as they are Samovar's own, hold a key of another type.
///
/// # Errors
/// Redis's.
pub async fn wrong_types(redis: &Connection, keys: &Keys, names: &[String]) -> RedisResult<Vec<WrongType>> {
    let own: Vec<(&String, &'static str)> = names.iter().filter_map(|name| Some((name, keys.type_of(name)?))).collect();
    let mut wrong = Vec::new();
    for some in own.chunks(STEP) {
        let mut ask = redis::pipe();
        for (name, _) in some {
            ask.cmd("TYPE").arg(name);
        }
        let types: Vec<String> = ask.query_async(&mut redis.clone()).await?;
        for ((key, expected), found) in some.iter().zip(types) {
            if found != "none" && found != *expected {
                let is_needed_by_all = keys.is_of_queue(key);
                wrong.push(WrongType { key: (*key).clone(), found, expected, is_needed_by_all });
            }
        }
    }
    Ok(wrong)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
