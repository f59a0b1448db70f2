//! The entries that a job keeps warm: those that its file lists and its feed named last, and its most read ones. Some
//! of them may be absent; each of these has a reason.

use std::collections::{BTreeMap, BTreeSet};

use redis::RedisResult;
use serde::Serialize;

use super::{Entry, MissingInput, Ops, PAGE};
use crate::entry::{EntryKey, JobName, KeySet, Outcome, duration, excerpt};
use crate::job::KnownJob;
use crate::popularity::{Popularity, feed};
use crate::store::other_type_reason;

/// The longest reason, in characters.
const LONGEST: usize = 300;

/// An entry that a job keeps warm, and that has no value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Absent {
    /// Its key.
    pub key: String,
    /// The reason why it has no value now.
    pub reason: String,
}

/// A page of the absent entries of a job, by key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AbsentPage {
    /// Entries that the job keeps warm.
    pub wanted: usize,
    /// Those of them that have no value.
    pub total: usize,
    /// The page.
    pub absent: Vec<Absent>,
    /// The last key of the page, if there are more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Ops {
    /// Returns the keys of the entries that a job keeps warm, as far as the fleet knows: those of its feed, those that
    /// its file lists, and the most read ones. Without an answer of the feed, its last one is used.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn wanted(&self, job: &KnownJob, fed: Option<KeySet>) -> RedisResult<KeySet> {
        let mut wanted = match fed {
            Some(fed) => fed,
            None if job.feed => feed::named_last(&mut self.redis.clone(), &self.keys, &job.name, &job.key).await?,
            None => KeySet::default(),
        };
        wanted.extend(self.list(job).await?.iter());
        if job.popular > 0 {
            let popularity = Popularity::new(self.redis.clone(), self.keys.clone());
            let top = popularity.top_of(&job.name, job.ttl, job.popular).await?;
            // Reads of entries of an earlier key pattern are counted until they have decayed.
            wanted.extend(top.into_iter().map(|(key, _)| key).filter(|key| job.key.read(key.as_str()).is_some()));
        }
        Ok(wanted)
    }

    /// Returns for each of these entries of a job whether the job keeps it warm, in order.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn keeps_warm(&self, job: &KnownJob, entries: &[EntryKey]) -> RedisResult<Vec<bool>> {
        let popularity = Popularity::new(self.redis.clone(), self.keys.clone());
        let mut kept = popularity.keeps_warm_of(&job.name, job.feed, job.popular, entries).await?;
        for (page, kept) in entries.chunks(PAGE).zip(kept.chunks_mut(PAGE)) {
            for (listed, kept) in self.listed(job, page).await?.into_iter().zip(kept) {
                *kept |= listed;
            }
        }
        Ok(kept)
    }

    /// Returns those of these entries that their jobs keep warm.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn kept_of(&self, entries: &[EntryKey]) -> RedisResult<Vec<EntryKey>> {
        let mut by_job: BTreeMap<&JobName, (&KnownJob, Vec<EntryKey>)> = BTreeMap::new();
        for key in entries {
            if let Some((job, _)) = self.jobs.owner(key.as_str()) {
                by_job.entry(&job.name).or_insert_with(|| (job, Vec::new())).1.push(key.clone());
            }
        }
        let mut all = Vec::new();
        for (job, keys) in by_job.into_values() {
            let kept = self.keeps_warm(job, &keys).await?;
            all.extend(keys.into_iter().zip(kept).filter_map(|(key, kept)| kept.then_some(key)));
        }
        Ok(all)
    }

    /// Returns the entries of a job that are to be warm and have no value, with the reasons: at most `limit`, those
    /// after the key `from`. `looked_at` hears how many of how many entries have been looked at.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn absent(
        &self,
        job: &KnownJob,
        limit: usize,
        from: Option<&str>,
        looked_at: impl Fn(usize, usize),
    ) -> RedisResult<AbsentPage> {
        let wanted = self.wanted(job, None).await?;
        let (mut total, mut keys) = (0, Vec::new());
        for (page, batch) in wanted.sorted().chunks(PAGE).enumerate() {
            looked_at(page * PAGE, wanted.len());
            let batch: Vec<EntryKey> = batch.iter().copied().map(EntryKey::new).collect();
            for key in self.without_value(&batch).await? {
                total += 1;
                if keys.len() <= limit && from.is_none_or(|from| key.as_str() > from) {
                    keys.push(key.clone());
                }
            }
        }
        let has_more = keys.len() > limit;
        keys.truncate(limit);
        let mut absent = Vec::with_capacity(keys.len());
        for key in &keys {
            let entry = self.entry(key.as_str()).await?;
            // It may have got a value meanwhile.
            if entry.value.is_none() {
                absent.push(Absent { key: key.to_string(), reason: why_absent(job, &entry) });
            }
        }
        let next = keys.last().filter(|_| has_more).map(|key| key.to_string());
        Ok(AbsentPage { wanted: wanted.len(), total, absent, next })
    }

    /// Returns those of these entries that have no value, also those whose keys hold another type than a string.
    async fn without_value<'a>(&self, batch: &'a [EntryKey]) -> RedisResult<Vec<&'a EntryKey>> {
        let snapshots = self.store.snapshots(batch).await?;
        let found = batch.iter().zip(&snapshots);
        let foreign = found.filter(|(_, snapshot)| snapshot.has_value() && snapshot.ours().is_none());
        let foreign: Vec<EntryKey> = foreign.map(|(key, _)| key.clone()).collect();
        let types = self.store.other_types(&foreign).await?;
        let others: BTreeSet<EntryKey> =
            foreign.into_iter().zip(types).filter_map(|(key, other)| other.map(|_| key)).collect();
        let found = batch.iter().zip(snapshots);
        let absent = found.filter(|(key, snapshot)| !snapshot.has_value() || others.contains(*key));
        Ok(absent.map(|(key, _)| key).collect())
    }
}

/// Returns what keeps an entry without a value from its fetch.
fn why_absent(job: &KnownJob, entry: &Entry) -> String {
    let reason = entry.reason.as_deref().unwrap_or_default();
    let told = |what: &str| if reason.is_empty() { what.to_owned() } else { format!("{what}: {reason}") };
    let text = if let Some(other) = &entry.other_type {
        other_type_reason(&format!("a {other}"), &entry.key)
    } else if entry.job_is_left {
        "no running worker knows its job".to_owned()
    } else if entry.job_paused_ms.is_some() {
        "its job is paused".to_owned()
    } else if let Some(why) = &entry.given_up {
        format!("dead letter: {why}")
    } else if let Some(MissingInput { key, reason }) = entry.missing_inputs.first() {
        format!("waits for its input {key}, which {reason}")
    } else if let Some(closed) = entry.closed_upstreams.first() {
        let why = closed.closed_text(entry.now_ms).unwrap_or_default();
        format!("{}: {why}", closed.upstream)
    } else if entry.last_outcome == Some(Outcome::Gone) {
        told("gone")
    } else if let Some(due) = entry.due.filter(|_| !entry.stays_absent()) {
        let wait = duration::rough(due.at.saturating_since(entry.now_ms));
        match entry.due_state {
            Some("claimed" | "running") => "is being fetched".to_owned(),
            _ if entry.failures.unwrap_or_default() > 0 => {
                told(&format!("its fetch failed, and is tried again in {wait}"))
            }
            _ if due.at > entry.now_ms => told(&format!("due in {wait}")),
            _ => "due now".to_owned(),
        }
    } else if job.schedule.is_some() {
        told("not due: the next warmup fetches it")
    } else {
        told(&format!("not due, and its job has no schedule: `samovar warm '{}'` fetches it", entry.key))
    };
    excerpt(&text, LONGEST)
}
