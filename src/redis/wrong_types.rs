//! Keys of the wrong type: a foreign key has the name of one of Samovar's own, and each command on it fails.
//!
//! Redis does not name the key. So a connection hands over the arguments of a failed command ([`WrongTypes::met`]).
//! [`WrongTypes::inspect`] then asks Redis for their types, and at intervals for the types of all names that are known
//! in advance. Samovar never changes such a key. It logs what to delete or rename, and when that was done.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::ConnectionLike;
use redis::{Arg, Cmd, RedisError, RedisResult};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::protocol::Keys;

/// The most keys that are remembered; further ones are found once some of these are gone.
const MOST: usize = 256;
/// Names in one round trip.
const STEP: usize = 500;
/// The intervals at which the known keys and all names are inspected.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// Leading arguments of a command that are inspected: keys come first.
const WORDS: usize = 16;
/// The longest name that is logged, in characters.
const NAME: usize = 200;

/// The error code of a command on a key of another type.
const WRONGTYPE: &str = "WRONGTYPE";

/// The text of [`WRONGTYPE`] for people. That of a script tells its lines and its digest, and neither tells the key.
pub(super) const WRONG_TYPE: &str = "a key of Samovar's holds another type (WRONGTYPE): `/health` and `samovar jobs` \
                                     name the key; delete or rename it";

/// Returns `true` if this is the text of such an error.
pub(super) fn is_wrong_type(text: &str) -> bool {
    text.contains("holding the wrong kind of value")
}

/// Returns `true` if an error concerns only the command's keys, so that waiting does not help: a key of another type, a
/// missing right to a key, an unexpected answer.
pub fn is_of_keys(error: &RedisError) -> bool {
    let is_one = |code: &str| matches!(code, WRONGTYPE | "NOPERM" | "ERR");
    // In a pipeline, all errors must be of this kind.
    let errors = error.clone().into_server_errors();
    errors.is_some_and(|errors| errors.iter().all(|(_, error)| is_one(error.code())))
        || error.code().is_some_and(is_one)
        || matches!(error.kind(), redis::ErrorKind::UnexpectedReturnType | redis::ErrorKind::Parse)
}

/// A foreign key of another type under one of Samovar's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongType {
    /// The key.
    pub key: String,
    /// Its type, as `TYPE` returns it.
    pub found: String,
    /// The type of Samovar's key.
    pub expected: &'static str,
    /// No job can be warmed while the key exists.
    pub is_needed_by_all: bool,
}

impl fmt::Display for WrongType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, found, expected, .. } = self;
        let key: String = key.chars().take(NAME).flat_map(char::escape_debug).collect();
        write!(f, "key {key} holds a {found} that Samovar did not write, in place of a {expected}: delete or rename it")
    }
}

/// The keys of the wrong type that a worker knows. Cheap to clone; clones share their state.
#[derive(Clone, Debug, Default)]
pub struct WrongTypes(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Arguments of failed commands.
    suspects: Mutex<BTreeSet<String>>,
    found: Mutex<BTreeMap<String, WrongType>>,
    wakeup: Notify,
}

impl WrongTypes {
    /// Records a command that failed on a key of the wrong type.
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

    /// Returns the keys that the last inspection found.
    pub fn found(&self) -> Vec<WrongType> {
        lock(&self.0.found).values().cloned().collect()
    }

    /// Inspects until `stop`: soon after a command fails, the known keys every two seconds, and all of `names` every
    /// ten seconds.
    pub async fn run(self, mut redis: impl ConnectionLike, keys: Keys, names: Vec<String>, stop: CancellationToken) {
        let mut all: Option<Instant> = None;
        while !stop.is_cancelled() {
            let is_due = all.is_none_or(|at| at.elapsed() >= INTERVAL.1);
            match self.inspect(&mut redis, &keys, if is_due { &names } else { &[] }).await {
                Ok(()) if is_due => all = Some(Instant::now()),
                Ok(()) => {}
                // The loops that need Redis log this.
                Err(e) => debug!("cannot read the types of keys: {e}"),
            }
            let rest = async {
                tokio::time::sleep(INTERVAL.0).await;
                let idle = self.found().is_empty() && lock(&self.0.suspects).is_empty();
                if idle {
                    let next = all.map_or(INTERVAL.0, |at| INTERVAL.1.saturating_sub(at.elapsed()));
                    let _ = tokio::time::timeout(next, self.0.wakeup.notified()).await;
                }
            };
            tokio::select! {
                () = rest => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Inspects the arguments of failed commands, the keys found before, and `names`. Logs new keys and keys that are
    /// gone.
    ///
    /// # Errors
    /// Fails if Redis returns an error; inspect again.
    pub async fn inspect(&self, redis: &mut impl ConnectionLike, keys: &Keys, names: &[String]) -> RedisResult<()> {
        let suspects = std::mem::take(&mut *lock(&self.0.suspects));
        let mut asked: BTreeSet<String> = suspects.into_iter().chain(names.iter().cloned()).collect();
        asked.extend(lock(&self.0.found).keys().cloned());
        let asked: Vec<String> = asked.into_iter().collect();
        let now = wrong_types(redis, keys, &asked).await?;
        let mut found = lock(&self.0.found);
        let is_over = |key: &str| !now.iter().any(|wrong| wrong.key == key);
        for (key, _) in found.extract_if(.., |key, _| is_over(key)) {
            info!(key, "the key of the wrong type is gone");
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

/// Returns which of these names are Samovar's own and hold a key of another type.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn wrong_types(
    redis: &mut impl ConnectionLike,
    keys: &Keys,
    names: &[String],
) -> RedisResult<Vec<WrongType>> {
    let own: Vec<(&String, &'static str)> = names.iter().filter_map(|name| Some((name, keys.type_of(name)?))).collect();
    let mut wrong = Vec::new();
    for some in own.chunks(STEP) {
        let mut ask = redis::pipe();
        for (name, _) in some {
            ask.cmd("TYPE").arg(name);
        }
        let types: Vec<String> = ask.query_async(redis).await?;
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
