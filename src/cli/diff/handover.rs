//! Values whose owner changes, since a job is renamed, removed, or has another key; and the entries that a feed's last
//! answer names by a new file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Failed, Fleet, JobDiff, PAGE, State};
use crate::entry::{EntryKey, JobName, KeySet};
use crate::job::{Job, Jobs, KeyPattern, Params};
use crate::ops::{Ops, Plan};
use crate::popularity::feed;
use crate::redis::Scan;
use crate::source::Sources;

/// The values under a key pattern.
#[derive(Default)]
struct Values {
    /// The number that each job of the new files owns.
    owned: BTreeMap<JobName, usize>,
    /// The number that none owns.
    left: usize,
}

impl Values {
    /// Counts the values of Samovar's under a key pattern, by the owner in the new files.
    async fn count(ops: &Ops, key: &KeyPattern, jobs: &Jobs) -> Result<Self, Failed> {
        let (mut values, mut seen) = (Self::default(), BTreeSet::new());
        let mut scan = Scan::new(key.glob());
        while let Some(found) = scan.next(&mut ops.redis.clone()).await? {
            let found = found.into_iter().filter(|name| key.read(name).is_some() && !ops.keys.is_own(name));
            // A scan may find a key twice.
            let found: Vec<EntryKey> = found.map(EntryKey::new).filter(|key| seen.insert(key.clone())).collect();
            let snapshots = ops.store.snapshots(&found).await?;
            for (key, _) in found.iter().zip(snapshots).filter(|(_, snapshot)| snapshot.ours().is_some()) {
                match jobs.owner(key.as_str()) {
                    Some((job, _)) => *values.owned.entry(job.name.clone()).or_default() += 1,
                    None => values.left += 1,
                }
            }
        }
        Ok(values)
    }
}

impl Fleet {
    /// Returns the entries that a feed's last answer names by the new file, as far as its items can be told from the
    /// keys of then: with the new key, and with all combinations of the new constants.
    pub(super) async fn fed(&self, ops: &Ops, job: &Job) -> Result<KeySet, Failed> {
        let Some(feed) = &job.entries.feed else { return Ok(KeySet::default()) };
        let key = self.described.jobs.get(&job.name).map_or(&job.key, |known| &known.key);
        let named = feed::named_last(&mut ops.redis.clone(), &ops.keys, &job.name, key).await?;
        let mut fed = KeySet::default();
        for params in named.iter().filter_map(|named| key.read(named)) {
            for constants in &feed.with {
                let mut params = params.clone();
                params.extend(constants.iter().map(|(name, text)| (name.clone(), text.clone())));
                fed.extend(job.key.write(&params));
            }
        }
        Ok(fed)
    }

    /// Notes the values that a job takes over under a new name, or finds when it comes back, with their requests, and
    /// those that a job with a new key leaves behind.
    pub(super) async fn note_handover(
        &self,
        ops: &Ops,
        sources: &Sources,
        jobs: &Jobs,
        job: &Arc<Job>,
        diff: &mut JobDiff,
    ) -> Result<(), Failed> {
        if matches!(diff.state, State::New | State::Returned) {
            let plan = revalidated(ops, sources, job).await?;
            diff.fetches += plan.fetches;
            diff.ai_calls += plan.ai_calls;
            if plan.entries > 0 {
                let values = many(plan.entries, "value");
                let why = match diff.state {
                    State::Returned => format!("no worker knew it meanwhile, so its {values} may be old. It"),
                    State::New | State::Changed | State::Unchanged | State::Removed => {
                        format!("it takes over {values} and")
                    }
                };
                diff.notes.push(format!(
                    "{why} revalidates them: at most one request each, 304 if the upstream sends \
                     validators; AI values with unchanged inputs are kept"
                ));
            }
            return Ok(());
        }
        let Some(known) = self.described.jobs.get(&job.name).filter(|known| known.key.glob() != job.key.glob()) else {
            return Ok(());
        };
        let left = Values::count(ops, &known.key, jobs).await?.left;
        if left > 0 {
            let values = format!("{} at the earlier keys `{}`", many(left, "value"), known.key);
            diff.notes.push(format!("{values} will belong to no job, and expire with their TTL"));
        }
        Ok(())
    }

    /// Reports a job without a file. Jobs to which its keys belong take its values over.
    pub(super) async fn removed(&self, ops: &Ops, name: &JobName, jobs: &Jobs) -> Result<JobDiff, Failed> {
        let mut becomes = Vec::new();
        match self.described.jobs.get(name) {
            Some(known) => {
                let Values { owned, left } = Values::count(ops, &known.key, jobs).await?;
                let taken = |(heir, count): (&JobName, &usize)| {
                    let are = if *count == 1 { "is" } else { "are" };
                    format!("its {} {are} taken over by {heir}", many(*count, "value"))
                };
                becomes.extend(owned.iter().map(taken));
                if left > 0 || becomes.is_empty() {
                    becomes.push(format!("its {} expire with their TTL", many(left, "value")));
                }
            }
            None => becomes.push("its values expire with their TTL".to_owned()),
        }
        let note = format!("{}; its agenda, counts and dead letters are dropped after 1d", becomes.join("; "));
        Ok(JobDiff {
            job: name.to_string(),
            state: State::Removed,
            changed: Vec::new(),
            values: 0,
            missing: 0,
            fetches: 0,
            ai_calls: 0,
            fallback_ai_calls: 0,
            notes: vec![note],
        })
    }
}

/// Counts the values that a job takes over from others, and the requests that revalidate them.
async fn revalidated(ops: &Ops, sources: &Sources, job: &Arc<Job>) -> Result<Plan, Failed> {
    let (mut plan, mut seen) = (Plan::default(), BTreeSet::new());
    let mut scan = Scan::new(job.key.glob());
    while let Some(found) = scan.next(&mut ops.redis.clone()).await? {
        let entries = found.into_iter().filter_map(|name| Some((EntryKey::new(&*name), job.key.read(&name)?)));
        let entries: Vec<(EntryKey, Params)> = entries.filter(|(key, _)| seen.insert(key.clone())).collect();
        for page in entries.chunks(PAGE) {
            let keys: Vec<EntryKey> = page.iter().map(|(key, _)| key.clone()).collect();
            let found = page.iter().zip(ops.store.snapshots(&keys).await?);
            let ours = found.filter(|(_, snapshot)| snapshot.ours().is_some()).map(|(entry, _)| entry.clone());
            plan += ops.plan(job, sources, &Vec::from_iter(ours)).await?;
        }
    }
    Ok(plan)
}

/// Returns a number with its noun.
fn many(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
