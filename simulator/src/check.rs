//! The properties: those that hold after every command, and those that hold once all is quiet.

use std::time::Duration;

use serde_json::Value;

use crate::completions::Prompt;
use crate::files::Job;
use crate::machine;
use crate::redis::{INBOX, Redis, Word};
use crate::world::{Made, Published, World};

/// Invariant 1.
pub(crate) const NOT_WRITTEN: &str = "invariant 1: nothing fetched before a handled invalidation is written";
/// Invariant 1.
pub(crate) const NOT_READABLE: &str = "invariant 1: an evicted value is not readable";
/// Invariant 1.
pub(crate) const NOTED: &str = "invariant 1: a refresh that is handled stays noted until a fetch answers it";
/// Invariant 2.
pub(crate) const HAS_TTL: &str = "invariant 2: the API reads complete, valid JSON with a TTL";
/// Invariant 4.
pub(crate) const ONE_FETCH: &str = "invariant 4: at most one fetch of a key is in flight";
/// Invariant 5.
pub(crate) const LIVES: &str = "invariant 5: no worker ends by itself";
/// Invariant 9.
pub(crate) const NOT_LOWER: &str = "invariant 9: no commit replaces a value with one of a lower version";
/// Costs.
pub(crate) const PAID_ONCE: &str = "a story is paid for once while its prompt is unchanged and no message names it";
/// Costs.
pub(crate) const BUDGET: &str = "the token budget is exceeded by one request at most";
/// Costs.
pub(crate) const WANTED: &str = "an entry that was evicted is fetched only if it is wanted again";
/// Requests for many entries.
pub(crate) const IN_BULK: &str = "a request asks for no more entries than its job allows";
/// Pauses.
pub(crate) const PAUSED: &str = "nothing of a paused job is requested, but what was claimed before";
/// Subscriptions.
pub(crate) const HEARS: &str = "a worker whose subscription broke has another one soon";
/// Liveness.
pub(crate) const FRESH: &str = "once all is quiet, all wanted entries are fresh and nothing is left";
/// The simulator itself.
pub(crate) const KNOWN: &str = "the modelled Redis has every command that is sent";
/// Costs.
pub(crate) const COSTS: &str = "once all is fresh, a bounded number of requests keeps it so";

/// The time in which a request arrives that was under way when its entry was evicted.
const UNDER_WAY: Duration = Duration::from_millis(500);
/// Longer than any lease: for so long a fetch that was evicted may wait for its upstream's limits.
const FENCED: Duration = Duration::from_secs(8);
/// The time beyond the claim time in which entries are fetched that were claimed before a pause.
const CLAIMED: Duration = Duration::from_secs(20);

/// Checks the values after a command.
pub(crate) fn values(world: &mut World, redis: &Redis) {
    let names: Vec<String> = world.items.keys().cloned().collect();
    for name in &names {
        if let Some((property, told)) = art(world, redis, name) {
            world.violated(property, told, &Job::Art.key(name));
        }
    }
    let jobs: Vec<Job> = world.plan.jobs().filter(|job| *job != Job::Art).collect();
    for job in jobs {
        for name in &names {
            if let Some(told) = made(world, redis, job, name) {
                world.violated(HAS_TTL, told, &job.key(name));
            }
        }
    }
}

/// Checks the value of an artwork.
fn art(world: &mut World, redis: &Redis, name: &str) -> Option<(&'static str, String)> {
    let key = Job::Art.key(name);
    let (versions, broke) = (world.plan.versions, world.broke);
    let item = world.items.get_mut(name)?;
    let Some((text, expires)) = redis.value(&key) else {
        item.seen = None;
        return None;
    };
    let Some(expires) = expires else { return Some((HAS_TTL, format!("{key} has none"))) };
    if let Some((seen, _, seen_expires)) = &mut item.seen
        && seen == text
    {
        *seen_expires = expires;
        return None;
    }
    let Some((number, revision)) = read(text) else { return Some((HAS_TTL, format!("{key} is {text:?}"))) };
    let before = item.seen.replace((text.to_owned(), revision, expires));
    world.counts.values += 1;
    let asked = world.requests.get(number)?;
    let handled = item.handled.filter(|handled| *handled > broke && asked.arrived > broke);
    if asked.name != *name || handled.is_some_and(|handled| asked.arrived < handled) {
        let told = format!(
            "{key} became revision {revision} of request #{number} of {:.3}; a message of {:.3} is handled",
            asked.arrived.as_secs_f64(),
            handled.unwrap_or_default().as_secs_f64()
        );
        return Some((NOT_WRITTEN, told));
    }
    // A value that a service loaded tells no job file, and no version.
    let has_version = |text: &str| versions && text.contains("\"file\"");
    let is_lower = |(text, before, expires): &(String, u64, i64)| {
        has_version(text) && revision < *before && redis.now() < *expires
    };
    let lower = before.filter(is_lower);
    lower.map(|(_, before, _)| (NOT_LOWER, format!("{key} became revision {revision}, and had {before}")))
}

/// Checks a value that is made from an artwork; returns what is wrong.
fn made(world: &mut World, redis: &Redis, job: Job, name: &str) -> Option<String> {
    let key = job.key(name);
    let Some((text, expires)) = redis.value(&key) else {
        world.made.remove(&key);
        return None;
    };
    if expires.is_none() {
        return Some(format!("{key} has none"));
    }
    if world.made.get(&key).is_some_and(|made| made.text == text) {
        return None;
    }
    let is_whole = match job {
        Job::Story => Prompt::of(text).is_some_and(|(prompt, _)| prompt.name == name),
        _ => page(text).is_some_and(|(art, _)| art["name"].as_str() == Some(name)),
    };
    world.made.insert(key.clone(), Made { text: text.to_owned(), since: machine::elapsed() });
    world.counts.values += 1;
    (!is_whole).then(|| format!("{key} is {text:?}"))
}

/// Returns the number of the request that brought a value, and its revision.
fn read(text: &str) -> Option<(usize, u64)> {
    let value: Value = serde_json::from_str(text).ok()?;
    Some((usize::try_from(value["n"].as_u64()?).ok()?, value["rev"].as_u64()?))
}

/// Returns the artwork of which a page is composed, and the number of its job file.
fn page(text: &str) -> Option<(Value, u64)> {
    let mut value: Value = serde_json::from_str(text).ok()?;
    Some((value["art"].take(), value["file"].as_u64()?))
}

impl World {
    /// Returns true if the jobs keep an entry warm.
    fn is_kept_warm(&self, name: &str) -> bool {
        self.plan.listed.iter().chain(&self.feed).any(|kept| kept == name)
    }

    /// Checks that a worker's request is for an entry that someone may want.
    pub(crate) fn is_for_someone(&mut self, name: &str) {
        let item = self.items.get(name);
        if let Some((since, fenced_until)) = item.and_then(|item| Some((item.unwanted?, item.fenced_until)))
            && machine::elapsed() > fenced_until.max(since + UNDER_WAY)
        {
            let told = format!("{name} is requested, and was evicted at {:.3}", since.as_secs_f64());
            self.violated(WANTED, told, name);
        }
    }

    /// Checks that a worker's request is not for a job that is paused.
    pub(crate) fn is_not_paused(&mut self, job: Job, name: &str) {
        let claimed = self.plan.claim + CLAIMED;
        if let Some((_, since)) = self.paused.filter(|(paused, _)| *paused == job)
            && machine::elapsed() > since + claimed
        {
            let told = format!("{} is requested, and paused since {:.3}", job.key(name), since.as_secs_f64());
            self.violated(PAUSED, told, name);
        }
    }
}

/// Notes what a command did to the inbox: a message that was added, or one that is handled.
pub(crate) fn inbox(world: &mut World, redis: &Redis, words: &[Word], reply: &[u8]) {
    if words.len() == 7 && words[3] == INBOX && words[4].starts_with(b"{") {
        let reply = String::from_utf8_lossy(reply);
        let id = reply.split("\r\n").nth(1).unwrap_or_default().to_owned();
        if let Some(message) = published(world, redis.now(), &words[4])
            && id.contains('-')
        {
            world.published.insert(id, message);
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

/// Returns a message that is published now, at `clock` of Redis's clock; `None` if it invalidates nothing.
fn published(world: &World, clock: i64, text: &[u8]) -> Option<Published> {
    let message: Value = serde_json::from_slice(text).ok()?;
    let names = |list: &str| {
        let texts = message[list].as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut keys = names("keys");
    let patterns = names("patterns").into_iter().filter_map(|pattern| Some(pattern.strip_suffix(":*")?.to_owned()));
    // Only artworks have tags.
    let tags = names("tags").into_iter().map(|_| Job::Art.name().to_owned());
    for job in patterns.chain(names("jobs")).chain(tags) {
        keys.extend(world.items.keys().map(|name| format!("{job}:{name}")));
    }
    let evicts = match message["action"].as_str() {
        Some("warm") => return None,
        action => action == Some("evict"),
    };
    let version = message["version"].as_u64();
    Some(Published { at: machine::elapsed(), clock, keys, evicts, version })
}

/// Checks what must hold once a message is handled.
fn handled(world: &mut World, redis: &Redis, id: &str, message: &Published) {
    world.tell(format!("observer   {id} is handled"));
    if message.at <= world.broke {
        return;
    }
    for key in &message.keys {
        if !message.evicts && message.version.is_none() {
            is_noted(world, redis, id, message.clock, key);
        }
        let Some((job, name)) = Job::of(key) else { continue };
        if job != Job::Art {
            let since = world.made.get(key).map(|made| made.since);
            // A page that was made anew since may be the same.
            let made_at = redis.meta(key).and_then(|meta| meta.split(' ').next()?.parse::<i64>().ok());
            let is_new = job == Job::Page && made_at.is_some_and(|at| at > message.clock);
            if message.evicts && !is_new && since.is_some_and(|since| since < message.at) {
                let told = format!("{key} is there since {:.3}, before {id}", since.unwrap_or_default().as_secs_f64());
                world.violated(NOT_READABLE, told, name);
            }
            continue;
        }
        evicted(world, redis, id, message, name);
        let is_alone = world.plan.fetches_on_demand()
            && world.named.get(key).is_none_or(|named| named.pending == 0)
            && !world.published.values().any(|other| other.keys.contains(key));
        if let Some(item) = world.items.get_mut(name) {
            // An entry without a value and without a fetch is not evicted: what waits for it stays. A fetch that began
            // after the message was published brings it back.
            let is_fenced = item.fenced_until > machine::elapsed();
            let is_back = redis.value(key).is_some() || redis.is_leased(key) && !is_fenced;
            let is_evicted = message.evicts && item.evicted == Some(message.clock) && !is_back;
            if is_evicted && is_alone && item.wanted < message.at && item.handled <= Some(message.at) {
                item.unwanted = Some(machine::elapsed());
            }
            // A message that announces what is there already asks for nothing.
            let there = item.seen.as_ref().map(|(_, revision, _)| *revision);
            let is_there = message.version.is_some_and(|version| there >= Some(version));
            if message.evicts || !is_there {
                item.handled = item.handled.max(Some(message.at));
            }
        }
    }
}

/// Notes that an eviction of an artwork removed its value, or fenced its fetch.
pub(crate) fn invalidation(world: &mut World, words: &[Word], reply: &[u8]) {
    let words: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word)).collect();
    // EVALSHA digest 3 value lease meta S action …
    let [_, _, _, key, _, _, at, action, ..] = &words[..] else { return };
    let reply = String::from_utf8_lossy(reply);
    let numbers: Vec<&str> = reply.split("\r\n").collect();
    let [_, fenced, _, removed, ..] = numbers[..] else { return };
    if action == "e"
        && (fenced == ":1" || removed == ":1")
        && let Some((Job::Art, name)) = Job::of(key)
        && let Some(item) = world.items.get_mut(name)
    {
        item.evicted = at.parse().ok();
        if fenced == ":1" {
            item.fenced_until = machine::elapsed() + FENCED;
        }
    }
}

/// Notes that a service loads a value. It may have taken over the lease of a fetch that was evicted, which still sends
/// its request once its upstream's limits admit it.
pub(crate) fn load(world: &mut World, words: &[Word]) {
    // EVALSHA digest 2 value lease token …
    if let Some(key) = words.get(3)
        && let Some((Job::Art, name)) = Job::of(&String::from_utf8_lossy(key))
        && let Some(item) = world.items.get_mut(name)
    {
        item.taken_over_until = item.fenced_until;
    }
}

/// Checks that an artwork which is older than an eviction is not readable, unless it has the announced version.
fn evicted(world: &mut World, redis: &Redis, id: &str, message: &Published, name: &str) {
    let key = Job::Art.key(name);
    let value = redis.value(&key).and_then(|(text, _)| read(text));
    if message.evicts
        && let Some((number, revision)) = value
        && message.version.is_none_or(|version| revision < version)
        && let Some(asked) = world.requests.get(number)
        && asked.arrived < message.at
        && asked.arrived > world.broke
        && world.items.get(name).is_none_or(|item| item.confirmed < Some(message.at))
    {
        let told = format!(
            "{key} has revision {revision} of request #{number}, which arrived at {:.3}, before {id} of {:.3}",
            asked.arrived.as_secs_f64(),
            message.at.as_secs_f64()
        );
        world.violated(NOT_READABLE, told, name);
    }
}

/// Checks that the value of a refresh is noted as invalidated, unless it was fetched since, or in that millisecond.
fn is_noted(world: &mut World, redis: &Redis, id: &str, published: i64, key: &str) {
    let (Some((_, Some(expires))), Some(meta)) = (redis.value(key), redis.meta(key)) else { return };
    // validated_at own_expiry invalidated stale_for hash~fetched_at@…
    let words: Vec<&str> = meta.splitn(6, ' ').collect();
    let [validated, own_expiry, invalidated, _, hash, ..] = words[..] else { return };
    let fetched = hash.split_once('~').map(|(_, rest)| rest.split(['@', '#', '!']).next().unwrap_or_default());
    let fetched: i64 = fetched.unwrap_or(validated).parse().unwrap_or_default();
    let is_ours = own_expiry.parse() == Ok(expires);
    if is_ours && fetched > 0 && fetched < published && invalidated == "0" {
        world.violated(NOTED, format!("{key} was fetched at {fetched}, and {id} is handled: {meta}"), key);
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
    // A Redis that has lost its data has none: nobody has set out yet to fetch anew what is to be warm.
    if !redis.keys().any(|key| key == "samovar:marker") {
        return Err(("no worker has noticed that Redis lost its data".to_owned(), "marker".to_owned()));
    }
    let names: Vec<&String> = world.items.keys().collect();
    for name in names {
        is_present(world, redis, name, now).map_err(|told| (told, name.clone()))?;
        for job in world.plan.jobs() {
            let key = job.key(name);
            // A value that a service loaded has no metadata and ends by itself; so does one that is read too rarely.
            let is_kept = world.is_kept_warm(name) && redis.value(&key).is_some() && redis.has_meta(&key);
            if is_kept && !redis.is_on_agenda(job, &key) {
                return Err((format!("{key} is on no agenda"), name.clone()));
            }
            if job != Job::Art {
                is_made_from_present(world, redis, job, name, now).map_err(|told| (told, name.clone()))?;
            }
        }
    }
    let left: Vec<&str> = redis.keys().filter(|key| is_work(key)).collect();
    if left.is_empty() { Ok(()) } else { Err((format!("{left:?} are left"), left[0].to_owned())) }
}

/// Checks that an artwork is the upstream's present one, by the present file.
fn is_present(world: &World, redis: &Redis, name: &str, now: Duration) -> Result<(), String> {
    let key = Job::Art.key(name);
    let revision = world.items.get(name).and_then(|item| item.at(now));
    let text = redis.value(&key).map(|(text, _)| text);
    let value = text.map(read);
    if value.flatten().is_some_and(|(number, _)| is_beyond_reach(world, redis, name, number)) {
        return Ok(());
    }
    match (revision, value.map(|value| value.map(|(_, revision)| revision))) {
        (Some(revision), Some(Some(there))) if there == u64::from(revision) => {}
        (Some(_), None) if !(world.is_kept_warm(name) && world.plan.warms_up()) => {}
        (None, None) => {}
        (revision, value) => return Err(format!("{key} has {value:?} and the upstream {revision:?}")),
    }
    let file = text.and_then(|text| serde_json::from_str::<Value>(text).ok()?["file"].as_u64());
    match file {
        Some(file) if redis.has_meta(&key) && file != u64::from(world.files.art) => {
            Err(format!("{key} was made from file {file}, and {} is the present one", world.files.art))
        }
        _ => Ok(()),
    }
}

/// Checks that what is made from an artwork is made from the present one, by the present file.
fn is_made_from_present(world: &World, redis: &Redis, job: Job, name: &str, now: Duration) -> Result<(), String> {
    let key = job.key(name);
    let text = redis.value(&key).map(|(text, _)| text);
    let art = redis.value(&Job::Art.key(name)).and_then(|(text, _)| serde_json::from_str::<Value>(text).ok());
    let Some(text) = text else {
        let is_missing = art.is_some() && world.is_kept_warm(name) && world.plan.warms_up();
        let is_missing = is_missing && (job != Job::Story || !world.has_spent_all());
        return if is_missing { Err(format!("{key} is missing")) } else { Ok(()) };
    };
    let Some(art) = art else {
        // An evicted artwork may be there at the upstream: what is made from it waits for the next warmup or demand. So
        // it does where the artwork is gone and no warmup asks for it.
        let is_gone = world.plan.warms_up() && world.items.get(name).is_some_and(|item| item.at(now).is_none());
        return if is_gone { Err(format!("{key} is there, and its artwork is gone")) } else { Ok(()) };
    };
    // Nobody tells of what a service loaded.
    let is_told = redis.has_meta(&Job::Art.key(name));
    let is_present = match job {
        Job::Story => Prompt::of(text).is_some_and(|(prompt, _)| {
            world.has_spent_all() || prompt.file == world.files.story && (!is_told || art["rev"] == prompt.revision)
        }),
        _ => page(text).is_some_and(|(of, file)| file == u64::from(world.files.page) && (!is_told || of == art)),
    };
    if is_present {
        Ok(())
    } else {
        Err(format!("{key} is {text}, its artwork {art}, and the files {:?}", world.files))
    }
}

/// Returns true for a value that no revalidation reaches: a service loaded it before messages may have been lost, and
/// it has no metadata. It ends with its TTL.
fn is_beyond_reach(world: &World, redis: &Redis, name: &str, number: usize) -> bool {
    let arrived = world.requests.get(number).map(|asked| asked.arrived);
    !redis.has_meta(&Job::Art.key(name)) && (world.plan.tells_bare() || arrived <= world.lost)
}

/// Returns true for keys that are there only while something is under way. The lock of a gap may stay: where the clock
/// was set back, it ends when the next worker asks for it.
fn is_work(key: &str) -> bool {
    let is_task = key.starts_with("{samovar:queue}:") && !key.ends_with(":workers");
    let is_gap = key.starts_with("samovar:{suspect}") && !key.ends_with(":lock");
    key.starts_with("samovar:lease:") || is_task || is_gap
}

/// Returns the most requests that keep all fresh for this time.
pub(crate) fn allowance(world: &World, time: Duration) -> usize {
    let rounds = 4 + usize::try_from(time.as_secs() / 5).unwrap_or(usize::MAX);
    world.items.len() * rounds
}
