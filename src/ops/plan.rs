//! The requests that warming would make, counted without making them.

use std::ops::AddAssign;
use std::time::Instant;

use redis::RedisResult;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Ops;
use crate::entry::EntryKey;
use crate::job::{Input, Job, Params};
use crate::redis::Scan;
use crate::source::{Ask, Sources};

/// The most requests that a warming would make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The entries.
    pub entries: usize,
    /// Requests to HTTP upstreams; with validators, some are answered 304.
    pub fetches: usize,
    /// Requests to AI upstreams: entries whose prompt has changed, or that have no value.
    pub ai_calls: usize,
    /// Entries whose inputs are missing, so that their requests are not known yet. Counted as AI calls or fetches.
    pub inputs_missing: usize,
}

impl AddAssign for Plan {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.fetches += other.fetches;
        self.ai_calls += other.ai_calls;
        self.inputs_missing += other.inputs_missing;
    }
}

impl Ops {
    /// Counts the requests that warming these entries of a job would make; at most a page of entries.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn plan(&self, job: &Job, sources: &Sources, page: &[(EntryKey, Params)]) -> RedisResult<Plan> {
        let mut plan = Plan { entries: page.len(), ..Plan::default() };
        if !job.may_hold_unasked() {
            plan.fetches = if job.sources[0].upstream().is_some() { page.len() } else { 0 };
            return Ok(plan);
        }
        let keys: Vec<EntryKey> = page.iter().map(|(key, _)| key.clone()).collect();
        let snapshots = self.store.snapshots(&keys).await?;
        for ((key, params), snapshot) in page.iter().zip(snapshots) {
            let mut inputs = Map::new();
            for (name, Input { key: pattern, is_optional }) in &job.inputs {
                let Some(input) = pattern.write(params) else { continue };
                let text = self.store.values(std::slice::from_ref(&input)).await?.pop().flatten();
                if let Some(value) = text.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok()) {
                    inputs.insert(name.clone(), value);
                } else if *is_optional
                    && let Some((owner, _)) = self.jobs.owner(input.as_str())
                    && let Some(owner) = &owner.file
                    && self.store.snapshot(&input).await?.gone(&owner.requests).is_some()
                {
                    inputs.insert(name.clone(), Value::Null);
                }
            }
            if inputs.len() < job.inputs.len() {
                plan.inputs_missing += 1;
                plan.ai_calls += 1;
                continue;
            }
            let known = snapshot.into_ours().filter(|meta| meta.invalidated.is_none());
            let known = known.map(|meta| meta.last_attempt.validators);
            let deadline = Instant::now();
            let ask = Ask { job, source: 0, key, params, inputs: &inputs, known: known.as_ref(), deadline };
            plan.ai_calls += usize::from(!sources.unchanged_without_asking(&ask));
        }
        Ok(plan)
    }

    /// Returns those of these keys that are entries of a job with a value of Samovar's that was made from another file.
    /// A value that does not tell its file counts as made from `base`.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn outdated(
        &self,
        job: &Job,
        base: &str,
        keys: impl IntoIterator<Item = EntryKey>,
    ) -> RedisResult<Vec<(EntryKey, Params)>> {
        let entry = |key: EntryKey| {
            let params = job.key.read(key.as_str()).filter(|_| !self.keys.is_own(key.as_str()))?;
            Some((key, params))
        };
        let entries: Vec<(EntryKey, Params)> = keys.into_iter().filter_map(entry).collect();
        let keys: Vec<EntryKey> = entries.iter().map(|(key, _)| key.clone()).collect();
        let snapshots = self.store.snapshots(&keys).await?;
        let outdated = entries
            .into_iter()
            .zip(snapshots)
            .filter(|(_, snapshot)| snapshot.ours().is_some_and(|meta| meta.is_outdated(&job.made, base)));
        Ok(outdated.map(|(entry, _)| entry).collect())
    }

    /// Counts the requests that making all outdated values of a job anew would take, with one scan of all keys.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn plan_outdated(&self, job: &Job, base: &str, sources: &Sources) -> RedisResult<Plan> {
        let mut plan = Plan::default();
        let mut scan = Scan::new(job.key.glob());
        while let Some(found) = scan.next(&mut self.redis.clone()).await? {
            let outdated = self.outdated(job, base, found.into_iter().map(EntryKey::new)).await?;
            plan += self.plan(job, sources, &outdated).await?;
        }
        Ok(plan)
    }
}
