//! Invalidations: what a message says, and what is done for it.
//!
//! Every invalidation has a time S, and touches only what was fetched at or before it; so handling one twice, late, or by
//! every worker does no harm. The order is entry first, then agenda, then acknowledge: a crash in between only repeats.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::{RedisError, RedisResult};
use tracing::warn;

use crate::agenda::{Agenda, When};
use crate::entry::Trigger;
use crate::entry::{EntryKey, JobName};
use crate::job::{Job, Jobs};
use crate::protocol::Keys;
use crate::protocol::{Action, Handled, Message};
use crate::redis::Connection;
use crate::store::{Removal, Store};

/// Keys that Redis looks at in one step of a scan.
const STEP: usize = 500;
/// Entries whose scripts are under way at once.
const ABREAST: usize = 64;
/// Entries that AI makes, which become due when all is looked at; of more, some do so before.
const LAST: usize = 10_000;

/// Key patterns of jobs that are not known here, of which what services loaded is looked for.
const GLOBS: usize = 1_000;

/// How often messages that cannot be followed are told of.
const TELL: Duration = Duration::from_secs(60);
/// Longest excerpt of one in the log, in characters.
const EXCERPT: usize = 80;

/// Messages that could not be followed, told of from time to time.
#[derive(Debug)]
pub struct Complaints {
    what: &'static str,
    count: u64,
    told: Option<Instant>,
}

impl Complaints {
    /// Of this kind of messages.
    pub fn of(what: &'static str) -> Self {
        Self { what, count: 0, told: None }
    }

    /// Tells of one, unless another was told of just now.
    pub fn complain(&mut self, text: &[u8], reason: &str) {
        self.count += 1;
        if self.told.is_none_or(|told| told.elapsed() >= TELL) {
            let excerpt: String =
                String::from_utf8_lossy(text.get(..4 * EXCERPT).unwrap_or(text)).chars().take(EXCERPT).collect();
            warn!(count = self.count, excerpt, "cannot follow {}, which is dropped: {reason}", self.what);
            *self = Self { count: 0, told: Some(Instant::now()), ..*self };
        }
    }
}

/// An entry whose refresh waits for the end of a fetch, or for a storm to calm: see [`Store::invalidate`].
#[derive(Clone, Debug)]
pub struct Debounced {
    /// Its job.
    pub job: Arc<Job>,
    /// The entry.
    pub key: EntryKey,
    /// The time of the invalidation (Redis time, ms).
    pub at: i64,
    /// When it is to be fetched then.
    pub when: When,
    /// How long to wait.
    pub wait: Duration,
}

/// What a message asks for, of whatever it names.
#[derive(Clone, Copy)]
struct Order {
    action: Action,
    /// Its time (Redis time, ms).
    at: i64,
    /// Nobody else hears of it.
    alone: bool,
}

/// What is left to do when all that a message names was looked at.
#[derive(Default)]
struct Left {
    held: Vec<Debounced>,
    /// What AI makes from other entries, by job. What it is made from may be named as well, and is marked by then, so that it is
    /// waited for.
    last: BTreeMap<JobName, Vec<EntryKey>>,
}

/// A message, as far as it names tags, and what was done for it.
struct Part<'a> {
    tags: Vec<&'a str>,
    order: Order,
    handled: Handled,
    left: Left,
}

/// Evicted entries of one job, and the time of the eviction.
type Evicted<'a> = (&'a Arc<Job>, Vec<EntryKey>, i64);

/// An entry to be invalidated.
type Named = (Arc<Job>, EntryKey, i64);

/// Does what invalidations ask for.
#[derive(Clone, Debug)]
pub struct Invalidator {
    redis: Connection,
    keys: Keys,
    jobs: Arc<Jobs>,
    store: Store,
    agenda: Agenda,
}

impl Invalidator {
    /// Over these jobs.
    pub fn new(redis: Connection, keys: Keys, jobs: Arc<Jobs>, store: Store, agenda: Agenda) -> Self {
        Self { redis, keys, jobs, store, agenda }
    }

    /// Redis's clock, ms: the time of a message that brings none.
    ///
    /// # Errors
    /// Redis's.
    pub async fn now(&self) -> RedisResult<i64> {
        self.store.now().await
    }

    /// Handles a message whose time is `at` (Redis time, ms), to its end.
    ///
    /// # Errors
    /// Redis's; handle it again.
    pub async fn handle(&self, message: &Message, at: i64) -> RedisResult<Handled> {
        let (mut handled, mut held) = self.begin(message, at, true).await?;
        while let Some(wait) = held.iter().map(|held| held.wait).min() {
            tokio::time::sleep(wait).await;
            held = self.again(held, &mut handled).await?;
        }
        Ok(handled)
    }

    /// Handles a message but for what is held off: of that it says when to come [again](Self::again).
    ///
    /// Where nobody else hears of it (`alone`), what Samovar keeps for a job that is not known here is removed.
    ///
    /// # Errors
    /// Redis's; handle it again.
    pub async fn begin(&self, message: &Message, at: i64, alone: bool) -> RedisResult<(Handled, Vec<Debounced>)> {
        let (mut handled, mut left) = (Handled::default(), Left::default());
        let (mut named, mut foreign) = (Vec::new(), Vec::new());
        let order = Order { action: message.action, at, alone };
        for key in &message.keys {
            match self.jobs.owner(key) {
                Some((job, _)) => named.push((Arc::clone(job), EntryKey::new(key.as_str()), at)),
                None => foreign.push(EntryKey::new(key.as_str())),
            }
        }
        handled.foreign += foreign.len() as u64;
        if alone && message.action != Action::Warm {
            self.remove_foreign(foreign, at, &mut handled).await?;
        }
        let when = if message.is_narrow() { When::Urgent } else { When::Bulk(0) };
        self.entries(&named, message.action, when, &mut handled, &mut left).await?;
        if !message.tags.is_empty() {
            let mut part = Part { tags: message.tags.iter().map(String::as_str).collect(), order, handled, left };
            self.tags(std::slice::from_mut(&mut part)).await?;
            Part { handled, left, .. } = part;
        }
        for pattern in &message.patterns {
            self.matching(pattern, None, order, &mut handled, &mut left).await?;
        }
        for name in &message.jobs {
            match self.jobs.jobs.get(name.as_str()) {
                Some(job) => {
                    let glob = job.key.glob();
                    self.matching(&glob, Some(job), Order { alone: false, ..order }, &mut handled, &mut left).await?;
                }
                None => {
                    handled.foreign += 1;
                    if alone {
                        let kept = self.agenda.matching(&JobName::new(name.as_str()), "*").await;
                        let kept = passed_over(kept, name)?.unwrap_or_default();
                        self.remove_foreign(kept, at, &mut handled).await?;
                    }
                }
            }
        }
        self.put_last(&mut left, when, message.action).await?;
        Ok((handled, left.held))
    }

    /// Handles what was held off, each to be fetched as urgently as it was named; returns what still is.
    ///
    /// # Errors
    /// Redis's; handle it again.
    pub async fn again(&self, mut held: Vec<Debounced>, handled: &mut Handled) -> RedisResult<Vec<Debounced>> {
        let mut left = Left::default();
        while let Some(when) = held.first().map(|held| held.when) {
            let same = held.extract_if(.., |held| held.when == when);
            let entries: Vec<Named> = same.map(|held| (held.job, held.key, held.at)).collect();
            handled.entries = handled.entries.saturating_sub(entries.len() as u64);
            self.entries(&entries, Action::Refresh, when, handled, &mut left).await?;
            self.put_last(&mut left, when, Action::Refresh).await?;
        }
        Ok(left.held)
    }

    /// Begins to handle messages that name tags and nothing else, as [`Self::begin`] does, each with its time and whether it is
    /// this worker's alone; whatever must be sought for any of them is sought once.
    ///
    /// # Errors
    /// Redis's; handle all of them again.
    pub async fn begin_tags(&self, messages: &[(&Message, i64, bool)]) -> RedisResult<Vec<(Handled, Vec<Debounced>)>> {
        let parts = messages.iter().map(|&(message, at, alone)| Part {
            tags: message.tags.iter().map(String::as_str).collect(),
            order: Order { action: message.action, at, alone },
            handled: Handled::default(),
            left: Left::default(),
        });
        let mut parts: Vec<Part<'_>> = parts.collect();
        self.tags(&mut parts).await?;
        for part in &mut parts {
            self.put_last(&mut part.left, When::Bulk(0), part.order.action).await?;
        }
        Ok(parts.into_iter().map(|part| (part.handled, part.left.held)).collect())
    }

    /// Handles the entries under tags: the stamps first, which fetches under way look at before they write, then the entries
    /// that are there, then what an index may lack.
    async fn tags(&self, parts: &mut [Part<'_>]) -> RedisResult<()> {
        for Part { tags, order, .. } in &mut *parts {
            let removal = if order.action == Action::Evict { Removal::Evict } else { Removal::Refresh };
            let mut stamped = Vec::new();
            for tag in &*tags {
                let done = self.store.stamp(tag, order.at, removal).await;
                stamped.extend(passed_over(done, tag)?.map(|()| *tag));
            }
            *tags = stamped;
        }
        for Part { tags, order, handled, left } in &mut *parts {
            for tag in &*tags {
                passed_over(self.tagged(tag, *order, handled, left).await, tag)?;
            }
        }
        let all: BTreeSet<&str> = parts.iter().flat_map(|part| part.tags.iter().copied()).collect();
        let lacking = self.store.may_lack(&Vec::from_iter(all)).await?;
        if !lacking.is_empty() {
            self.seek_tagged(&HashSet::from_iter(lacking), parts).await?;
        }
        for Part { order, handled, left, .. } in &mut *parts {
            self.loaded(*order, handled, left).await?;
        }
        Ok(())
    }

    /// Handles the entries that the index of a tag names.
    async fn tagged(
        &self,
        tag: &str,
        Order { action, at, alone }: Order,
        handled: &mut Handled,
        left: &mut Left,
    ) -> RedisResult<()> {
        let mut cursor = 0;
        loop {
            let (next, entries) = self.store.tagged(tag, cursor).await?;
            let (mut named, mut foreign) = (Vec::new(), Vec::new());
            for key in entries {
                match self.jobs.owner(key.as_str()) {
                    Some((job, _)) => named.push((Arc::clone(job), key, at)),
                    None => foreign.push(key),
                }
            }
            if alone {
                self.remove_foreign(foreign, at, handled).await?;
            }
            self.entries(&named, action, When::Bulk(0), handled, left).await?;
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Handles what services loaded of jobs with tags, whatever tags it would have. Where nobody else hears of it, what
    /// they loaded of jobs that are not known here is removed. Call it once the tags are stamped.
    async fn loaded(&self, order: Order, handled: &mut Handled, left: &mut Left) -> RedisResult<()> {
        let mut globs = self.jobs.globs_with_tags();
        let mut foreign = BTreeSet::new();
        if order.alone {
            let mut ask = redis::cmd("ZRANGE");
            ask.arg(self.keys.tagged()).arg(0).arg(GLOBS - 1);
            let all: RedisResult<Vec<String>> = ask.query_async(&mut self.redis.clone()).await;
            let all = passed_over(all, "what services loaded of jobs that are not known here")?.unwrap_or_default();
            foreign.extend(all.into_iter().filter(|glob| !globs.contains(glob)));
        }
        let foreign_sets = self.store.loaded_sets(foreign.iter().map(String::as_str));
        globs.extend(foreign);
        for set in self.store.loaded_sets(globs.iter().map(String::as_str)) {
            let order = Order { alone: foreign_sets.contains(&set), ..order };
            passed_over(self.loaded_in(&set, &globs, order, handled, left).await, &set)?;
        }
        Ok(())
    }

    /// Handles those of one such set; `globs` are of all jobs with tags.
    async fn loaded_in(
        &self,
        set: &str,
        globs: &BTreeSet<String>,
        Order { action, at, alone }: Order,
        handled: &mut Handled,
        left: &mut Left,
    ) -> RedisResult<()> {
        if !self.store.tracks(set).await? {
            self.store.track(set, false).await?;
            for glob in globs.iter().filter(|glob| self.keys.loaded_like(glob) == *set) {
                self.seek_loaded(set, glob).await?;
            }
            self.store.track(set, true).await?;
        }
        let mut cursor = 0;
        loop {
            let (next, found) = self.store.loaded(set, cursor).await?;
            let (mut named, mut foreign) = (Vec::new(), Vec::new());
            for key in found {
                match self.jobs.owner(key.as_str()) {
                    Some((job, _)) if !job.tags.is_empty() => named.push((Arc::clone(job), key, at)),
                    Some(_) => {}
                    None => foreign.push(key),
                }
            }
            if alone {
                for batch in foreign.chunks(ABREAST) {
                    self.remove(batch, at, handled).await?;
                }
            }
            self.entries(&named, action, When::Bulk(0), handled, left).await?;
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Tracks what services have loaded of keys that match a glob: leases first, then values, as in [`Self::matching`].
    async fn seek_loaded(&self, set: &str, glob: &str) -> RedisResult<()> {
        for leases in [true, false] {
            let mut cursor = 0_u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH");
                scan.arg(if leases { self.keys.lease_glob(glob) } else { glob.to_owned() });
                scan.arg("COUNT").arg(STEP).arg("TYPE").arg("string");
                let (next, found): (u64, Vec<redis::Value>) = scan.query_async(&mut self.redis.clone()).await?;
                let found = found.into_iter().filter_map(|key| redis::from_redis_value::<String>(key).ok());
                let keys = found.filter_map(|key| match leases {
                    true => self.keys.entry_of_lease(&key).map(EntryKey::new),
                    false => (!self.keys.is_own(&key)).then(|| EntryKey::new(key)),
                });
                self.store.track_all(set, keys.collect()).await?;
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Handles entries that have tags whose indexes Redis may have evicted: all values of jobs with tags are looked at, once for
    /// all of these tags. What is being fetched sees the stamps.
    async fn seek_tagged(&self, tags: &HashSet<&str>, parts: &mut [Part<'_>]) -> RedisResult<()> {
        let mut globs: Vec<String> =
            self.jobs.jobs.values().filter(|job| !job.tags.is_empty()).map(|job| job.key.glob()).collect();
        let glob = match globs.pop() {
            None => return Ok(()),
            Some(only) if globs.is_empty() => only,
            Some(_) => "*".to_owned(),
        };
        let seeking = self.store.seek(tags).await?;
        let mut cursor = 0_u64;
        loop {
            let (next, found): (u64, Vec<redis::Value>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(&glob)
                .arg("COUNT")
                .arg(STEP)
                .query_async(&mut self.redis.clone())
                .await?;
            let found = found.into_iter().filter_map(|key| redis::from_redis_value::<String>(key).ok());
            let found = found.filter(|key| {
                !self.keys.is_own(key) && self.jobs.owner(key).is_some_and(|(job, _)| !job.tags.is_empty())
            });
            let found = self.store.with_tags(tags, found.map(EntryKey::new).collect()).await?;
            for part in &mut *parts {
                let sought = part.tags.iter().copied().filter(|tag| tags.contains(tag)).collect();
                let named = found.iter().filter(|(_, has)| concerns(has.as_deref(), &sought));
                let named = named.filter_map(|(key, _)| {
                    let (job, _) = self.jobs.owner(key.as_str())?;
                    Some((Arc::clone(job), key.clone(), part.order.at))
                });
                let named: Vec<Named> = named.collect();
                let Part { order, handled, left, .. } = part;
                self.entries(&named, order.action, When::Bulk(0), handled, left).await?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        self.store.sought(seeking).await
    }

    /// Handles entries whose keys match a glob. Leases are scanned to the end first, then values: a key that is being
    /// content_since has a lease before it has a value, so the other way round could miss it.
    async fn matching(
        &self,
        glob: &str,
        only: Option<&Arc<Job>>,
        Order { action, at, alone }: Order,
        handled: &mut Handled,
        left: &mut Left,
    ) -> RedisResult<()> {
        for leases in [true, false] {
            let match_glob = if leases { self.keys.lease_glob(glob) } else { glob.to_owned() };
            let mut cursor = 0_u64;
            loop {
                let (next, found): (u64, Vec<redis::Value>) = redis::cmd("SCAN")
                    .arg(cursor)
                    .arg("MATCH")
                    .arg(&match_glob)
                    .arg("COUNT")
                    .arg(STEP)
                    .query_async(&mut self.redis.clone())
                    .await?;
                let (mut named, mut foreign) = (Vec::new(), Vec::new());
                for found in found {
                    // A key that is not text is nobody's entry.
                    let Ok(found) = redis::from_redis_value::<String>(found) else { continue };
                    let key = if leases { self.keys.entry_of_lease(&found) } else { Some(found.as_str()) };
                    let Some(key) = key.filter(|key| !self.keys.is_own(key)) else { continue };
                    let owner = match only {
                        Some(job) => job.key.read(key).map(|_| job),
                        None => self.jobs.owner(key).map(|(job, _)| job),
                    };
                    match owner {
                        Some(job) => named.push((Arc::clone(job), EntryKey::new(key), at)),
                        None if alone => foreign.push(EntryKey::new(key)),
                        None => {}
                    }
                }
                self.remove_foreign(foreign, at, handled).await?;
                self.entries(&named, action, When::Bulk(0), handled, left).await?;
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Removes values that Samovar keeps for jobs that are not known here, as while workers with new job files replace old
    /// ones: nobody else is told, and to have none is better than to keep what is not true any more.
    async fn remove_foreign(&self, keys: Vec<EntryKey>, at: i64, handled: &mut Handled) -> RedisResult<()> {
        for batch in keys.chunks(ABREAST) {
            let looked = self.store.look(batch).await?;
            let leased = self.store.leased(batch).await?;
            let ours = batch.iter().zip(looked).zip(leased);
            let ours = ours.filter(|((_, (expires, meta)), leased)| {
                *leased || meta.as_ref().is_some_and(|meta| meta.is_of(*expires))
            });
            self.remove(ours.map(|((key, _), _)| key), at, handled).await?;
        }
        Ok(())
    }

    /// Removes values, at once: not more than [`ABREAST`].
    async fn remove(
        &self,
        keys: impl IntoIterator<Item = &EntryKey>,
        at: i64,
        handled: &mut Handled,
    ) -> RedisResult<()> {
        let scripts = keys.into_iter().map(async |key| (key, self.store.invalidate(key, at, Removal::Evict).await));
        for (key, result) in join_all(scripts).await {
            let Some(result) = passed_over(result, key)? else { continue };
            handled.removed += u64::from(result.removed);
            handled.fenced += u64::from(result.fenced);
        }
        Ok(())
    }

    /// Entry scripts first, then the agenda.
    async fn entries(
        &self,
        named: &[Named],
        action: Action,
        when: When,
        handled: &mut Handled,
        left: &mut Left,
    ) -> RedisResult<()> {
        let mut due: BTreeMap<&JobName, Vec<EntryKey>> = BTreeMap::new();
        // Of an eviction: whether nothing was known of them, and the entries.
        let mut out: BTreeMap<(&JobName, bool), Evicted<'_>> = BTreeMap::new();
        for batch in named.chunks(ABREAST) {
            handled.entries += batch.len() as u64;
            let removal = match action {
                Action::Refresh => Removal::Refresh,
                Action::Evict => Removal::Evict,
                Action::Warm => {
                    for (job, key, _) in batch {
                        due.entry(&job.name).or_default().push(key.clone());
                    }
                    continue;
                }
            };
            let scripts = batch.iter().map(async |(job, key, at)| match job.is_paid_for() {
                true => self.store.invalidate_paid(key, *at, removal).await,
                false => self.store.invalidate(key, *at, removal).await,
            });
            for ((job, key, at), result) in batch.iter().zip(join_all(scripts).await) {
                let Some(result) = passed_over(result, key)? else { continue };
                handled.fenced += u64::from(result.fenced);
                handled.removed += u64::from(result.removed);
                let lists = || job.key.read(key.as_str()).is_some_and(|params| job.entries.lists(&params));
                if let Some(wait) = result.debounced {
                    left.held.push(Debounced { job: Arc::clone(job), key: key.clone(), at: *at, when, wait });
                    continue;
                }
                match removal {
                    // A fenced fetch is begun anew by its own worker; a service's load is not.
                    Removal::Refresh if result.fenced && !result.loading => {}
                    Removal::Refresh if result.due || (result.unknown && lists()) => {
                        due.entry(&job.name).or_default().push(key.clone());
                    }
                    // Somebody may be about to write an old value where there is none.
                    Removal::Refresh if result.unknown => {
                        let (_, keys, _) = out.entry((&job.name, true)).or_insert_with(|| (job, Vec::new(), *at));
                        keys.push(key.clone());
                    }
                    Removal::Evict if result.removed || result.fenced || result.unknown => {
                        let place = (&job.name, result.unknown);
                        let (_, keys, _) = out.entry(place).or_insert_with(|| (job, Vec::new(), *at));
                        keys.push(key.clone());
                    }
                    Removal::Refresh | Removal::Evict => {}
                }
            }
        }
        for (name, entries) in due {
            handled.due += entries.len() as u64;
            if self.jobs.jobs.get(name).is_some_and(|job| job.waits_for_inputs()) {
                left.last.entry(name.clone()).or_default().extend(entries);
            } else {
                passed_over(self.agenda.put(name, &entries, when, trigger(action)).await, name)?;
            }
        }
        if left.last.values().map(Vec::len).sum::<usize>() > LAST {
            self.put_last(left, when, action).await?;
        }
        for ((name, unknown), (job, entries, at)) in out {
            if !unknown {
                passed_over(self.agenda.cancel(name, &entries, at).await, name)?;
            }
            // Whoever fills misses by himself may write an old value just after.
            if !job.warm.settle.is_zero() {
                let settle = i64::try_from(job.warm.settle.as_millis()).unwrap_or(0);
                passed_over(self.agenda.put(name, &entries, When::Keep(at + settle), Trigger::Settle).await, name)?;
            }
        }
        Ok(())
    }

    /// Makes due what AI makes.
    async fn put_last(&self, left: &mut Left, when: When, action: Action) -> RedisResult<()> {
        for (name, entries) in std::mem::take(&mut left.last) {
            passed_over(self.agenda.put(&name, &entries, when, trigger(action)).await, &name)?;
        }
        Ok(())
    }
}

/// Whether an entry that has these tags is concerned by an invalidation by those; one of which nothing is known may have any.
fn concerns(has: Option<&[String]>, tags: &HashSet<&str>) -> bool {
    !tags.is_empty() && has.is_none_or(|has| has.iter().any(|tag| tags.contains(tag.as_str())))
}

/// Why what is named becomes due.
fn trigger(action: Action) -> Trigger {
    match action {
        Action::Warm => Trigger::Demand,
        Action::Refresh | Action::Evict => Trigger::Invalidation,
    }
}

/// What Redis says of one key, tag or job, or nothing where somebody else's key stands where ours should: waiting does not mend
/// that, and neither others that the message names nor messages behind it are held up by it.
fn passed_over<T>(result: RedisResult<T>, what: impl Display) -> RedisResult<Option<T>> {
    match result {
        Err(e) if is_wrong_type(&e) => {
            warn!("cannot invalidate {what}, since a key of ours holds something else: {e}");
            Ok(None)
        }
        result => result.map(Some),
    }
}

/// Of a pipeline, whether that is all that Redis has against it.
fn is_wrong_type(error: &RedisError) -> bool {
    let errors = error.clone().into_server_errors();
    errors.is_some_and(|errors| errors.iter().all(|(_, error)| error.code() == "WRONGTYPE"))
}
