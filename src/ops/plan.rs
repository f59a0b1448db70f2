//! The requests that warming would make, counted without making them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::time::Instant;

use redis::RedisResult;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Ops;
use crate::entry::EntryKey;
use crate::job::{Input, Job, Params};
use crate::source::{Ask, Sources};

/// Values of inputs that are read at once.
const INPUTS: usize = 64;

/// The most requests that a warming would make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Plan {
    /// The entries.
    pub entries: usize,
    /// Requests to HTTP upstreams; with validators, some are answered 304.
    pub fetches: usize,
    /// Requests to AI upstreams: entries whose prompt has changed, or that have no value.
    pub ai_calls: usize,
    /// Requests to AI upstreams that fallbacks make in addition, if the sources before them fail for all entries.
    pub fallback_ai_calls: usize,
    /// Entries whose inputs are missing, so that their requests are not known yet. Counted as AI calls or fetches.
    pub inputs_missing: usize,
}

impl AddAssign for Plan {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.fetches += other.fetches;
        self.ai_calls += other.ai_calls;
        self.fallback_ai_calls += other.fallback_ai_calls;
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
        let paid_fallbacks = job.paid_fallbacks();
        if !job.may_hold_unasked() {
            plan.fetches = if job.sources[0].upstream().is_some() { page.len().div_ceil(job.at_once()) } else { 0 };
            plan.fallback_ai_calls = page.len() * paid_fallbacks;
            return Ok(plan);
        }
        for entries in page.chunks(INPUTS.div_ceil(job.inputs.len().max(1))) {
            let keys: Vec<EntryKey> = entries.iter().map(|(key, _)| key.clone()).collect();
            let snapshots = self.store.snapshots(&keys).await?;
            let values = self.inputs_of(job, entries).await?;
            for ((key, params), snapshot) in entries.iter().zip(snapshots) {
                let input = |(name, input): (&String, &Input)| {
                    Some((name.clone(), values.get(&input.key.write(params)?)?.clone()))
                };
                let inputs: Map<String, Value> = job.inputs.iter().filter_map(input).collect();
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
        }
        plan.fallback_ai_calls = plan.ai_calls * paid_fallbacks;
        Ok(plan)
    }

    /// Reads the inputs of entries, each once. An optional input that is gone is `null`; one that is missing is absent.
    async fn inputs_of(&self, job: &Job, entries: &[(EntryKey, Params)]) -> RedisResult<BTreeMap<EntryKey, Value>> {
        let all = |is_optional: bool| {
            let inputs = job.inputs.values().filter(move |input| !is_optional || input.is_optional);
            inputs.flat_map(|input| entries.iter().filter_map(|(_, params)| input.key.write(params)))
        };
        let keys: Vec<EntryKey> = Vec::from_iter(all(false).collect::<BTreeSet<_>>());
        let texts = self.store.values(&keys).await?;
        let value = |(key, text): (EntryKey, Option<String>)| Some((key, serde_json::from_str(&text?).ok()?));
        let mut values: BTreeMap<EntryKey, Value> = keys.into_iter().zip(texts).filter_map(value).collect();
        let absent: BTreeSet<EntryKey> = all(true).filter(|key| !values.contains_key(key)).collect();
        let absent = Vec::from_iter(absent);
        let snapshots = self.store.snapshots(&absent).await?;
        for (key, snapshot) in absent.into_iter().zip(snapshots) {
            if let Some((owner, _)) = self.jobs.owner(key.as_str())
                && let Some(owner) = &owner.file
                && snapshot.gone(&owner.requests).is_some()
            {
                values.insert(key, Value::Null);
            }
        }
        Ok(values)
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

    /// Counts the requests that making those of these keys anew would take that are outdated values of a job.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn plan_outdated(
        &self,
        job: &Job,
        base: &str,
        sources: &Sources,
        keys: impl IntoIterator<Item = EntryKey>,
    ) -> RedisResult<Plan> {
        let outdated = self.outdated(job, base, keys).await?;
        self.plan(job, sources, &outdated).await
    }
}
