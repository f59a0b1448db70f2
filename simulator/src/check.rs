//! The properties: those that hold after every command, and those that hold once all is quiet.

use std::time::Duration;

use serde_json::Value;

use crate::machine;
use crate::redis::{INBOX, Redis, Word};
use crate::world::{Published, World};

/// Invariant 1.
pub(crate) const NOT_WRITTEN: &str = "invariant 1: nothing fetched before a handled invalidation is written";
/// Invariant 1.
pub(crate) const NOT_READABLE: &str = "invariant 1: an evicted value is not readable";
/// Invariant 2.
pub(crate) const HAS_TTL: &str = "invariant 2: the API reads complete, valid JSON with a TTL";
/// Invariant 4.
pub(crate) const ONE_FETCH: &str = "invariant 4: at most one fetch of a key is in flight";
/// Invariant 5.
pub(crate) const LIVES: &str = "invariant 5: no worker ends by itself";
/// Liveness.
pub(crate) const FRESH: &str = "once all is quiet, all wanted entries are fresh and nothing is left";
/// The simulator itself.
pub(crate) const KNOWN: &str = "the modelled Redis has every command that is sent";
/// Costs.
pub(crate) const COSTS: &str = "once all is fresh, a bounded number of requests keeps it so";

/// Returns the key of an item's entry.
pub(crate) fn key(name: &str) -> String {
    format!("art:{name}")
}

/// Checks the values after a command.
pub(crate) fn values(world: &mut World, redis: &Redis) {
    let mut found = None;
    for (name, item) in &mut world.items {
        let Some((text, expires)) = redis.value(&key(name)) else {
            item.seen = None;
            continue;
        };
        if item.seen.as_deref() == Some(text) {
            if expires.is_none() {
                found = Some((HAS_TTL, format!("{} has none", key(name)), key(name)));
            }
            continue;
        }
        item.seen = Some(text.to_owned());
        world.counts.values += 1;
        let Some((number, revision)) = read(text) else {
            found = Some((HAS_TTL, format!("{} is {text:?}", key(name)), key(name)));
            continue;
        };
        let Some(asked) = world.requests.get(number) else { continue };
        if expires.is_none() {
            found = Some((HAS_TTL, format!("{} has none", key(name)), key(name)));
        }
        let handled = item.handled.filter(|handled| *handled > world.broke && asked.arrived > world.broke);
        if asked.name != *name || handled.is_some_and(|handled| asked.arrived < handled) {
            let told = format!(
                "{} became revision {revision} of request #{number} of {:.3}; a message of {:.3} is handled",
                key(name),
                asked.arrived.as_secs_f64(),
                handled.unwrap_or_default().as_secs_f64()
            );
            found = Some((NOT_WRITTEN, told, name.clone()));
        }
    }
    if let Some((property, told, subject)) = found {
        world.violated(property, told, &subject);
    }
}

/// Returns the number of the request that brought a value, and its revision.
fn read(text: &str) -> Option<(usize, u64)> {
    let value: Value = serde_json::from_str(text).ok()?;
    Some((usize::try_from(value["n"].as_u64()?).ok()?, value["rev"].as_u64()?))
}

/// Notes what a command did to the inbox: a message that was added, or one that is handled.
pub(crate) fn inbox(world: &mut World, redis: &Redis, words: &[Word], reply: &[u8]) {
    if words.len() == 7 && words[3] == INBOX && words[4].starts_with(b"{") {
        let reply = String::from_utf8_lossy(reply);
        let id = reply.split("\r\n").nth(1).unwrap_or_default().to_owned();
        if let Some((names, evicts)) = concerns(world, &words[4])
            && id.contains('-')
        {
            let at = machine::elapsed();
            world.published.insert(id, Published { at, names, evicts });
        }
    }
    if words.len() > 2 && words[0] == b"XDEL" && words[1] == INBOX {
        for id in &words[2..] {
            let id = String::from_utf8_lossy(id).into_owned();
            if let Some(message) = world.published.remove(&id) {
                handled(world, redis, &id, &message);
            }
        }
    }
}

/// Returns the items that a message concerns, and whether it evicts.
fn concerns(world: &World, text: &[u8]) -> Option<(Vec<String>, bool)> {
    let message: Value = serde_json::from_slice(text).ok()?;
    let is_of_all = ["patterns", "tags", "jobs"].iter().any(|list| message[list].is_array());
    let names = if is_of_all {
        world.items.keys().cloned().collect()
    } else {
        let keys = message["keys"].as_array()?.iter().filter_map(Value::as_str);
        keys.filter_map(|key| key.strip_prefix("art:")).map(str::to_owned).collect()
    };
    match message["action"].as_str() {
        Some("warm") => None,
        action => Some((names, action == Some("evict"))),
    }
}

/// Checks what must hold once a message is handled: what is older is not readable if the message evicts.
fn handled(world: &mut World, redis: &Redis, id: &str, message: &Published) {
    world.tell(format!("observer   {id} is handled"));
    if message.at <= world.broke {
        return;
    }
    for name in &message.names {
        let value = redis.value(&key(name)).and_then(|(text, _)| read(text));
        if message.evicts
            && let Some((number, revision)) = value
            && let Some(asked) = world.requests.get(number)
            && asked.arrived < message.at
            && asked.arrived > world.broke
            && world.items.get(name).is_none_or(|item| item.confirmed < Some(message.at))
        {
            let told = format!(
                "{} has revision {revision} of request #{number}, which arrived at {:.3}, before {id} of {:.3}",
                key(name),
                asked.arrived.as_secs_f64(),
                message.at.as_secs_f64()
            );
            world.violated(NOT_READABLE, told, name);
        }
        if let Some(item) = world.items.get_mut(name) {
            item.handled = item.handled.max(Some(message.at));
        }
    }
}

/// Checks that all is done and fresh.
///
/// # Errors
/// The reason why not, and the text that lines about it contain.
pub(crate) fn settled(world: &World, redis: &Redis) -> Result<(), (String, String)> {
    let now = machine::elapsed();
    if world.busy_editors > 0 {
        return Err((format!("{} editors could not publish", world.busy_editors), "editor".to_owned()));
    }
    if redis.in_inbox() > 0 {
        return Err((format!("{} messages are in the inbox", redis.in_inbox()), "inbox".to_owned()));
    }
    for (name, item) in &world.items {
        let revision = item.at(now);
        let value = redis.value(&key(name)).map(|(text, _)| read(text));
        if value.flatten().is_some_and(|(number, _)| is_beyond_reach(world, redis, name, number)) {
            continue;
        }
        let value = value.map(|value| value.map(|(_, revision)| revision));
        let is_wanted = world.plan.listed.contains(name) && world.plan.warms_up();
        match (revision, value) {
            (Some(revision), Some(Some(there))) if there == u64::from(revision) => {}
            (Some(_), None) if !is_wanted => {}
            (None, None) => {}
            (revision, value) => {
                let told = format!("{} has {value:?} and the upstream {revision:?}", key(name));
                return Err((told, name.clone()));
            }
        }
        // A value that a service loaded has no metadata and ends by itself; so does one that is read too rarely.
        let is_kept = world.plan.listed.contains(name) && redis.has_meta(&key(name));
        if value.is_some() && is_kept && !redis.is_on_agenda(&key(name)) {
            return Err((format!("{} is on no agenda", key(name)), name.clone()));
        }
    }
    let left: Vec<&str> = redis.keys().filter(|key| is_work(key)).collect();
    if left.is_empty() { Ok(()) } else { Err((format!("{left:?} are left"), left[0].to_owned())) }
}

/// Returns true for a value that no revalidation reaches: a service loaded it before messages may have been lost, and
/// it has no metadata. It ends with its TTL.
fn is_beyond_reach(world: &World, redis: &Redis, name: &str, number: usize) -> bool {
    let arrived = world.requests.get(number).map(|asked| asked.arrived);
    !redis.has_meta(&key(name)) && (world.plan.tells_bare() || arrived <= world.lost)
}

/// Returns true for keys that are there only while something is under way.
fn is_work(key: &str) -> bool {
    let is_task = key.starts_with("{samovar:queue}:") && !key.ends_with(":workers");
    key.starts_with("samovar:lease:") || is_task || key.starts_with("samovar:{suspect}")
}

/// Returns the most requests that keep all fresh for this time.
pub(crate) fn allowance(world: &World, time: Duration) -> usize {
    let rounds = 4 + usize::try_from(time.as_secs() / 5).unwrap_or(usize::MAX);
    world.items.len() * rounds
}
