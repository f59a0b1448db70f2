//! The invalidator: does what a message asks for, in the store and then on the agenda.
//!
//! Every invalidation has a time S, and touches only what was fetched at or before S, or since then without knowing of
//! S (`invalidate.lua`). So it is safe to handle one twice, late, or on every worker. The order is entry, agenda,
//! acknowledgement: a crash in between only repeats the work. A key of a wrong type is passed over; any other error of
//! Redis ends the handling, and the caller handles the message again.

mod foreign;
mod kept;
mod tags;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{RedisError, RedisResult};
use tracing::warn;

use crate::agenda::{Agenda, When};
use crate::entry::Trigger;
use crate::entry::{Announced, EntryKey, JobName};
use crate::job::{Job, Jobs};
use crate::popularity::Popularity;
use crate::protocol::Keys;
use crate::protocol::{Action, Handled, Message};
use crate::redis::{Connection, RedisTime, Scan};
use crate::store::{Removal, Store, Terms};

/// Entries whose scripts run at once.
const ABREAST: usize = 64;
/// Entries that wait for inputs and become due last. If there are more, some become due before.
const LAST: usize = 10_000;

/// An entry whose refresh waits for the end of a fetch or of a storm: see [`Store::invalidate`].
#[derive(Clone, Debug)]
pub struct Debounced {
    /// Its job.
    pub job: Arc<Job>,
    /// The entry.
    pub key: EntryKey,
    /// The time of the invalidation.
    pub at: RedisTime,
    /// The version that it announces.
    pub version: Announced,
    /// Its place on the agenda after the wait.
    pub when: When,
    /// The time to wait.
    pub wait: Duration,
}

/// The order that a message gives.
#[derive(Clone, Copy)]
struct Order {
    action: Action,
    /// Its time.
    at: RedisTime,
    /// No other worker hears of it.
    alone: bool,
}

/// The work that is left once all scripts of a message have run.
struct Left {
    /// The most entries in `last`.
    most: usize,
    debounced: Vec<Debounced>,
    /// The entries that wait for inputs, by job. They become due last: if the message names an input, it is marked by
    /// then.
    last: BTreeMap<JobName, Vec<EntryKey>>,
}

impl Left {
    /// Creates one of several that share the bound of entries kept for the end.
    fn one_of(messages: usize) -> Self {
        Self { most: LAST / messages.max(1), debounced: Vec::new(), last: BTreeMap::new() }
    }
}

/// The tags of a message, and what was done for them.
struct Part<'a> {
    tags: Vec<&'a str>,
    order: Order,
    handled: Handled,
    left: Left,
}

/// An entry to invalidate, with its job, and the time and version of the invalidation.
type Named = (Arc<Job>, EntryKey, RedisTime, Announced);

/// Entries of one job without a value, and the time of the invalidation.
type Absent<'a> = (&'a Arc<Job>, Vec<EntryKey>, RedisTime);

/// The work on the agenda that the scripts of entries leave.
#[derive(Default)]
struct Next<'a> {
    /// The entries to fetch, by job.
    due: BTreeMap<&'a JobName, Vec<EntryKey>>,
    /// The entries that have no value, by job, and by whether the store knew nothing of them.
    absent: BTreeMap<(&'a JobName, bool), Absent<'a>>,
}

impl<'a> Next<'a> {
    fn due(&mut self, job: &'a Job, key: &EntryKey) {
        self.due.entry(&job.name).or_default().push(key.clone());
    }

    fn absent(&mut self, job: &'a Arc<Job>, key: &EntryKey, at: RedisTime, is_unknown: bool) {
        let (_, keys, _) = self.absent.entry((&job.name, is_unknown)).or_insert_with(|| (job, Vec::new(), at));
        keys.push(key.clone());
    }
}

/// Handles invalidations of these jobs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Invalidator {
    redis: Connection,
    keys: Keys,
    jobs: Arc<Jobs>,
    store: Store,
    agenda: Agenda,
    popularity: Popularity,
    /// Its invalidations are only doubts after a gap.
    in_doubt: bool,
    /// All its entries are known to be kept warm by their jobs.
    are_kept: bool,
}

impl Invalidator {
    /// Creates the invalidator of these jobs.
    pub fn new(redis: Connection, keys: Keys, jobs: Arc<Jobs>, store: Store, agenda: Agenda) -> Self {
        let popularity = Popularity::new(redis.clone(), keys.clone());
        Self { redis, keys, jobs, store, agenda, popularity, in_doubt: false, are_kept: false }
    }

    /// Returns an invalidator of the same jobs whose invalidations are only doubts after a gap.
    #[must_use]
    pub fn in_doubt(&self) -> Self {
        Self { in_doubt: true, ..self.clone() }
    }

    /// Returns Redis's time, for a message that has none of its own.
    ///
    /// # Errors
    /// Redis's.
    pub async fn now(&self) -> RedisResult<RedisTime> {
        self.store.now().await
    }

    /// Handles a message of the time `at`, and waits for its debounced entries.
    ///
    /// # Errors
    /// Redis's; handle it again.
    pub async fn handle(&self, message: &Message, at: RedisTime) -> RedisResult<Handled> {
        let (mut handled, mut debounced) = self.begin(message, at, true).await?;
        while let Some(wait) = debounced.iter().map(|entry| entry.wait).min() {
            tokio::time::sleep(wait).await;
            debounced = self.again(debounced, &mut handled).await?;
        }
        Ok(handled)
    }

    /// Handles a message, and returns its debounced entries, which [`Self::again`] handles after their wait.
    ///
    /// If no other worker hears of the message (`alone`), the values of jobs that are unknown here are removed.
    ///
    /// # Errors
    /// Redis's; handle it again.
    pub async fn begin(&self, message: &Message, at: RedisTime, alone: bool) -> RedisResult<(Handled, Vec<Debounced>)> {
        let (mut handled, mut left) = (Handled::default(), Left::one_of(1));
        let order = Order { action: message.action, at, alone };
        let keys = message.keys.iter().map(|key| EntryKey::new(key.as_str()));
        let (named, foreign) = self.by_owner(keys, at, message.version);
        if message.may_be_broken_json() && !foreign.is_empty() {
            handled.is_broken = true;
        } else {
            foreign.iter().for_each(|key| handled.add_foreign(key.as_str()));
        }
        let when = if message.is_narrow() { When::Urgent } else { When::BULK_NOW };
        // An earlier or a newer file may have such a key.
        if alone {
            self.foreign(foreign, order, when, &mut handled).await?;
        }
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
                    handled.add_foreign(name);
                    if alone {
                        self.left_by(name, order, &mut handled, &mut left).await?;
                    }
                }
            }
        }
        if message.action == Action::Refresh {
            self.kept(message, order, &mut handled, &mut left).await?;
        }
        self.put_last(&mut left, when, message.action).await?;
        Ok((handled, left.debounced))
    }

    /// Handles debounced entries, each with its own priority; returns those that must wait longer.
    ///
    /// # Errors
    /// Redis's; handle it again.
    pub async fn again(&self, mut debounced: Vec<Debounced>, handled: &mut Handled) -> RedisResult<Vec<Debounced>> {
        let mut left = Left::one_of(1);
        while let Some(when) = debounced.first().map(|entry| entry.when) {
            let same = debounced.extract_if(.., |entry| entry.when == when);
            let entries: Vec<Named> = same.map(|entry| (entry.job, entry.key, entry.at, entry.version)).collect();
            handled.entries = handled.entries.saturating_sub(entries.len() as u64);
            self.entries(&entries, Action::Refresh, when, handled, &mut left).await?;
            self.put_last(&mut left, when, Action::Refresh).await?;
        }
        Ok(left.debounced)
    }

    /// Handles messages that name only tags as [`Self::begin`] does, each with its time and its `alone`. One scan
    /// serves all of them.
    ///
    /// # Errors
    /// Redis's; handle all of them again.
    pub async fn begin_tags(
        &self,
        messages: &[(&Message, RedisTime, bool)],
    ) -> RedisResult<Vec<(Handled, Vec<Debounced>)>> {
        let parts = messages.iter().map(|&(message, at, alone)| Part {
            tags: message.tags.iter().map(String::as_str).collect(),
            order: Order { action: message.action, at, alone },
            handled: Handled::default(),
            left: Left::one_of(messages.len()),
        });
        let mut parts: Vec<Part<'_>> = parts.collect();
        self.tags(&mut parts).await?;
        for part in &mut parts {
            self.put_last(&mut part.left, When::BULK_NOW, part.order.action).await?;
        }
        Ok(parts.into_iter().map(|part| (part.handled, part.left.debounced)).collect())
    }

    /// Handles entries whose keys match a glob. It scans all leases, then all values: a new entry has a lease before it
    /// has a value, so the other order could miss it.
    async fn matching(
        &self,
        glob: &str,
        only: Option<&Arc<Job>>,
        order: Order,
        handled: &mut Handled,
        left: &mut Left,
    ) -> RedisResult<()> {
        let Order { action, at, alone } = order;
        for leases in [true, false] {
            let match_glob = if leases { self.keys.lease_glob(glob) } else { glob.to_owned() };
            let mut scan = Scan::new(match_glob);
            while let Some(found) = scan.next(&mut self.redis.clone()).await? {
                let (mut named, mut foreign) = (Vec::new(), Vec::new());
                for found in found {
                    let key = if leases { self.keys.entry_of_lease(&found) } else { Some(found.as_str()) };
                    let Some(key) = key.filter(|key| !self.keys.is_own(key)) else { continue };
                    let owner = match only {
                        Some(job) => job.key.read(key).map(|_| job),
                        None => self.jobs.owner(key).map(|(job, _)| job),
                    };
                    match owner {
                        Some(job) => named.push((Arc::clone(job), EntryKey::new(key), at, Announced::None)),
                        None if alone => foreign.push(EntryKey::new(key)),
                        None => {}
                    }
                }
                self.foreign(foreign, order, When::BULK_NOW, handled).await?;
                self.entries(&named, action, When::BULK_NOW, handled, left).await?;
            }
        }
        Ok(())
    }

    /// Handles what is on the agenda of a job that is unknown here. If it was renamed, its keys belong to another job,
    /// and are handled as entries of that one.
    async fn left_by(&self, name: &str, order: Order, handled: &mut Handled, left: &mut Left) -> RedisResult<()> {
        let kept = pass_over(self.agenda.matching(&JobName::new(name), "*").await, name)?.unwrap_or_default();
        let (named, foreign) = self.by_owner(kept, order.at, Announced::None);
        self.foreign(foreign, order, When::BULK_NOW, handled).await?;
        self.entries(&named, order.action, When::BULK_NOW, handled, left).await
    }

    /// Parts keys into entries of jobs, with the time and version of their invalidation, and those of no job here.
    fn by_owner(
        &self,
        keys: impl IntoIterator<Item = EntryKey>,
        at: RedisTime,
        version: Announced,
    ) -> (Vec<Named>, Vec<EntryKey>) {
        let (mut named, mut foreign) = (Vec::new(), Vec::new());
        for key in keys {
            match self.jobs.owner(key.as_str()) {
                Some((job, _)) => named.push((Arc::clone(job), key, at, version)),
                None => foreign.push(key),
            }
        }
        (named, foreign)
    }

    /// Runs the scripts of these entries, then puts on the agenda what follows from them.
    async fn entries(
        &self,
        named: &[Named],
        action: Action,
        when: When,
        handled: &mut Handled,
        left: &mut Left,
    ) -> RedisResult<()> {
        let mut next = Next::default();
        for batch in named.chunks(ABREAST) {
            handled.entries += batch.len() as u64;
            match action {
                Action::Refresh => self.remove_or_mark(batch, Removal::Refresh, when, handled, left, &mut next).await?,
                Action::Evict => self.remove_or_mark(batch, Removal::Evict, when, handled, left, &mut next).await?,
                Action::Warm => batch.iter().for_each(|(job, key, ..)| next.due(job, key)),
            }
        }
        self.schedule(next, action, when, handled, left).await
    }

    /// Runs the scripts of at most [`ABREAST`] entries, and notes in `next` what follows from each.
    async fn remove_or_mark<'a>(
        &self,
        batch: &'a [Named],
        removal: Removal,
        when: When,
        handled: &mut Handled,
        left: &mut Left,
        next: &mut Next<'a>,
    ) -> RedisResult<()> {
        let scripts = batch.iter().map(async |(job, key, at, version)| {
            let terms = Terms { is_doubt: self.in_doubt, ..terms(job, *version) };
            self.store.invalidate_on(key, *at, removal, terms).await
        });
        let mut unknown: BTreeMap<&JobName, Vec<&Named>> = BTreeMap::new();
        for (named, result) in batch.iter().zip(join_all(scripts).await) {
            let (job, key, at, version) = named;
            let Some(result) = pass_over(result, key)? else { continue };
            handled.fenced += u64::from(result.fenced);
            handled.removed += u64::from(result.removed);
            if result.was_held {
                pass_over(self.store.note_recovery(&job.name, key).await, key)?;
            }
            if let Some(wait) = result.debounced {
                let (job, key) = (Arc::clone(job), key.clone());
                left.debounced.push(Debounced { job, key, at: *at, version: *version, when, wait });
                continue;
            }
            match removal {
                // The fetch's own worker fetches again, and sees to the entry.
                Removal::Refresh if result.fenced && !result.left_alone => {}
                Removal::Refresh if result.due => next.due(job, key),
                Removal::Refresh if result.unknown => unknown.entry(&job.name).or_default().push(named),
                Removal::Evict if result.removed || result.fenced || result.unknown => {
                    next.absent(job, key, *at, result.unknown);
                }
                Removal::Refresh | Removal::Evict => {}
            }
        }
        for entries in unknown.into_values() {
            self.unknown(&entries, next).await?;
        }
        Ok(())
    }

    /// Notes what follows from a refresh of entries of one job of which nothing is known. Those that the job keeps warm
    /// are fetched. The others stay absent, and a service may be about to write an old value.
    async fn unknown<'a>(&self, entries: &[&'a Named], next: &mut Next<'a>) -> RedisResult<()> {
        let Some((job, ..)) = entries.first() else { return Ok(()) };
        let keys: Vec<EntryKey> = entries.iter().map(|(_, key, ..)| key.clone()).collect();
        let kept = match self.are_kept {
            true => vec![true; keys.len()],
            false => self.popularity.keeps_warm(job, &keys).await?,
        };
        for ((job, key, at, _), kept) in entries.iter().zip(kept) {
            if kept || job.key.read(key.as_str()).is_some_and(|params| job.entries.lists(&params)) {
                next.due(job, key);
            } else {
                next.absent(job, key, *at, true);
            }
        }
        Ok(())
    }

    /// Puts entries on the agenda, or takes them off it.
    async fn schedule(
        &self,
        next: Next<'_>,
        action: Action,
        when: When,
        handled: &mut Handled,
        left: &mut Left,
    ) -> RedisResult<()> {
        for (name, entries) in next.due {
            handled.due += entries.len() as u64;
            if self.jobs.jobs.get(name).is_some_and(|job| job.waits_for_inputs()) {
                left.last.entry(name.clone()).or_default().extend(entries);
            } else {
                pass_over(self.agenda.put(name, &entries, when, trigger(action)).await, name)?;
            }
        }
        if left.last.values().map(Vec::len).sum::<usize>() > left.most {
            self.put_last(left, when, action).await?;
        }
        for ((name, is_unknown), (job, entries, at)) in next.absent {
            if !is_unknown {
                pass_over(self.agenda.cancel(name, &entries, at).await, name)?;
            }
            // A service that fills misses itself may write an old value just after.
            if let Some(first) = job.warm.recheck.first() {
                let when = When::Keep(at + *first);
                pass_over(self.agenda.put(name, &entries, when, Trigger::Recheck).await, name)?;
            }
        }
        Ok(())
    }

    /// Makes the entries due that wait for inputs.
    async fn put_last(&self, left: &mut Left, when: When, action: Action) -> RedisResult<()> {
        for (name, entries) in std::mem::take(&mut left.last) {
            pass_over(self.agenda.put(&name, &entries, when, trigger(action)).await, &name)?;
        }
        Ok(())
    }
}

/// Returns the terms of an invalidation of a job's entry that announces this version.
fn terms(job: &Job, version: Announced) -> Terms {
    let version = if job.version.is_some() { version } else { Announced::None };
    let patience = if version.is_none() { Duration::ZERO } else { job.warm.version_patience };
    let usual = Terms::default();
    let last = job.warm.recheck.last().copied().unwrap_or_default();
    let remembered = usual.remembered.max(patience).max(last);
    let rechecked_for = if job.may_lag() { last } else { Duration::ZERO };
    Terms { version, is_paid_for: job.is_paid_for(), remembered, rechecked_for, ..usual }
}

/// Returns the trigger of the entries that a message names.
fn trigger(action: Action) -> Trigger {
    match action {
        Action::Warm => Trigger::Demand,
        Action::Refresh | Action::Evict => Trigger::Invalidation,
    }
}

/// Returns what Redis answered for one key, tag or job; logs a wrong type and returns `None`. A retry does not mend a
/// wrong type, so it must block neither the rest of the message nor the messages behind it.
fn pass_over<T>(result: RedisResult<T>, what: impl Display) -> RedisResult<Option<T>> {
    match result {
        Err(e) if is_wrong_type(&e) => {
            warn!("cannot invalidate {what}, it is passed over: a key of Samovar's holds another type: {e}");
            Ok(None)
        }
        result => result.map(Some),
    }
}

/// Returns `true` if all errors of the command or pipeline are wrong types.
fn is_wrong_type(error: &RedisError) -> bool {
    let errors = error.clone().into_server_errors();
    errors.is_some_and(|errors| errors.iter().all(|(_, error)| error.code() == "WRONGTYPE"))
}
