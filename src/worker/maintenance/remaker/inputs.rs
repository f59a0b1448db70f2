//! The inputs of outdated entries, direct or not, that must be made anew before them: an AI value made from an old one
//! would be paid for twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redis::RedisResult;

use super::{Changes, Remaker};
use crate::agenda::State;
use crate::entry::{EntryKey, JobName};
use crate::job::{Job, Params};
use crate::ops::Noted;
use crate::redis::RedisTime;
use crate::store::Snapshot;

/// The time in which entries that are made from new content become due.
const WAKES: Duration = Duration::from_secs(15);

/// An input, direct or not.
struct Needed<'a> {
    owner: &'a Job,
    /// The keys of its own inputs.
    inputs: Vec<EntryKey>,
}

impl Remaker {
    /// Returns how many jobs in a row a job's entries are made from.
    pub(super) fn depth(&self, job: &Job) -> usize {
        let owners = job.inputs.values().filter_map(|input| {
            self.jobs.jobs.values().find(|owner| owner.name != job.name && owner.key.overlaps(&input.key))
        });
        owners.map(|owner| 1 + self.depth(owner)).max().unwrap_or_default()
    }

    /// Returns the inputs of these entries that are still to be made anew: those of an earlier file; those that a
    /// worker makes because they are older than the content of one of their own inputs; and those with such an input.
    pub(super) async fn pending_inputs(
        &self,
        job: &Job,
        entries: &[(EntryKey, Params)],
        changes: &Changes,
    ) -> RedisResult<BTreeSet<EntryKey>> {
        let needed = self.needed(job, entries);
        let mut by_owner: BTreeMap<&JobName, (&Job, Vec<EntryKey>)> = BTreeMap::new();
        for (key, Needed { owner, .. }) in &needed {
            by_owner.entry(&owner.name).or_insert_with(|| (owner, Vec::new())).1.push(key.clone());
        }
        let mut pending = BTreeSet::new();
        for (name, (owner, keys)) in &by_owner {
            let base = changes.get(*name).map_or(&*owner.made, Noted::base);
            let outdated = self.ops.outdated(owner, base, keys.iter().cloned()).await?;
            pending.extend(outdated.into_iter().map(|(key, _)| key));
        }
        let keys: Vec<EntryKey> = needed.keys().cloned().collect();
        let now = self.ops.store.now().await?;
        let snapshots = self.ops.store.snapshots(&keys).await?;
        let found: BTreeMap<&EntryKey, Snapshot> = keys.iter().zip(snapshots).collect();
        // Those that others are made from come first.
        let mut owners: Vec<(&Job, Vec<EntryKey>)> = by_owner.into_values().collect();
        owners.sort_by_cached_key(|(owner, _)| self.depth(owner));
        for (owner, keys) in owners {
            let newer = |key: &EntryKey| {
                let made = found[key].ours()?.validated_at;
                let since = needed[key].inputs.iter().filter_map(|input| found.get(input)?.content_since()).max()?;
                (made <= since).then_some(since)
            };
            let older = keys.iter().filter_map(|key| Some((key.clone(), newer(key)?)));
            pending.extend(self.in_the_making(owner, older.collect(), now).await?);
            let follows = |key: &EntryKey| needed[key].inputs.iter().any(|input| pending.contains(input));
            let following: Vec<EntryKey> = keys.into_iter().filter(follows).collect();
            pending.extend(following);
        }
        Ok(pending)
    }

    /// Returns those of these entries of a job that a worker makes anew. Each is older than an input, whose content is
    /// there since the time beside it. If none makes an entry, nothing is to be waited for.
    async fn in_the_making(
        &self,
        owner: &Job,
        older: Vec<(EntryKey, RedisTime)>,
        now: RedisTime,
    ) -> RedisResult<Vec<EntryKey>> {
        let keys: Vec<EntryKey> = older.iter().map(|(key, _)| key.clone()).collect();
        let dues = self.ops.agenda.dues(&owner.name, &keys).await?;
        let sure = self.surely_due(owner, &keys).await?;
        let made = older.into_iter().zip(dues.into_iter().zip(sure)).filter(|((_, since), (due, sure))| {
            let is_in_flight = due.is_some_and(|due| matches!(due.state, State::Claimed | State::Running));
            *sure || is_in_flight || now < *since + WAKES
        });
        Ok(made.map(|((key, _), _)| key).collect())
    }

    /// Returns all inputs of these entries, direct or not.
    fn needed(&self, job: &Job, entries: &[(EntryKey, Params)]) -> BTreeMap<EntryKey, Needed<'_>> {
        let mut needed = BTreeMap::new();
        let mut next: Vec<EntryKey> = entries.iter().flat_map(|(_, params)| inputs(job, params)).collect();
        while let Some(key) = next.pop() {
            if needed.contains_key(&key) {
                continue;
            }
            let Some((owner, params)) = self.jobs.owner(key.as_str()) else { continue };
            let inputs: Vec<EntryKey> = inputs(owner, &params).collect();
            next.extend(inputs.iter().cloned());
            needed.insert(key, Needed { owner, inputs });
        }
        needed
    }
}

/// Returns the keys of an entry's inputs.
fn inputs(job: &Job, params: &Params) -> impl Iterator<Item = EntryKey> {
    job.inputs.values().filter_map(move |input| input.key.write(params))
}
