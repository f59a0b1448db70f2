//! The inputs of outdated entries, direct or not, that must be made anew before them: an AI value made from an old one
//! would be paid for twice.

use std::collections::{BTreeMap, BTreeSet};

use redis::RedisResult;

use super::{Changes, Remaker};
use crate::entry::{EntryKey, JobName};
use crate::job::{Job, Params};
use crate::ops::Noted;
use crate::store::Snapshot;

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

    /// Returns the inputs of these entries that are still to be made anew: those of an earlier file, those that were
    /// made before the present content of one of their own inputs, and those with such an input.
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
        let snapshots = self.ops.store.snapshots(&keys).await?;
        let found: BTreeMap<&EntryKey, Snapshot> = keys.iter().zip(snapshots).collect();
        // Those that others are made from come first.
        let mut owners: Vec<(&Job, Vec<EntryKey>)> = by_owner.into_values().collect();
        owners.sort_by_cached_key(|(owner, _)| self.depth(owner));
        for key in owners.into_iter().flat_map(|(_, keys)| keys) {
            let inputs = &needed[&key].inputs;
            let made = found[&key].ours().map(|meta| meta.validated_at);
            let since = inputs.iter().filter_map(|input| found.get(input)?.content_since()).max();
            let is_older = made.zip(since).is_some_and(|(made, since)| made <= since);
            if is_older || inputs.iter().any(|input| pending.contains(input)) {
                pending.insert(key);
            }
        }
        Ok(pending)
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
