//! Entries of no job here, in a message that no other worker hears of: while workers with new job files replace old
//! ones, they may belong to a file that this worker does not have.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures_util::future::join_all;
use redis::RedisResult;

use super::{ABREAST, Invalidator, Order, pass_over, trigger};
use crate::agenda::When;
use crate::entry::{EntryKey, JobName};
use crate::protocol::{Action, Handled};
use crate::redis::is_of_keys;
use crate::store::Removal;
use crate::trigger::invalidation::known_to_workers;

/// The time in which a worker that took charge has recorded which jobs it knows.
const RECORDED: Duration = Duration::from_secs(5);

impl Invalidator {
    /// Handles entries that belong to no job here. Those of a newer file are marked and made due: a worker with that
    /// file fetches them. Of all others, values of Samovar's are removed: without their job it cannot be told how to
    /// renew them, and no value is better than an outdated one.
    pub(super) async fn foreign(
        &self,
        keys: Vec<EntryKey>,
        order: Order,
        when: When,
        handled: &mut Handled,
    ) -> RedisResult<()> {
        let keys = if order.action == Action::Warm { keys } else { self.with_traces(keys).await? };
        self.foreign_values(keys, order, when, handled).await
    }

    /// Handles entries that belong to no job here and are known to be Samovar's, or a service's load of it.
    pub(super) async fn foreign_values(
        &self,
        keys: Vec<EntryKey>,
        order: Order,
        when: When,
        handled: &mut Handled,
    ) -> RedisResult<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut due = match order.action {
            Action::Evict => BTreeMap::new(),
            Action::Refresh | Action::Warm => self.newer_owners(&keys).await?,
        };
        if order.action != Action::Warm {
            let newer: Vec<&EntryKey> = due.values().flatten().collect();
            let left = Vec::from_iter(keys.iter().filter(|key| !newer.contains(key)));
            for batch in left.chunks(ABREAST) {
                self.remove(batch, order, handled).await?;
            }
            if order.action == Action::Refresh && !left.is_empty() {
                // A worker that has just taken charge may not have told yet which jobs it knows.
                let left = Vec::from_iter(left.into_iter().cloned());
                for (job, entries) in self.store.newer_owners(&left, |_, age| age < RECORDED).await? {
                    pass_over(self.agenda.put(&job, &entries, when, trigger(order.action)).await, &job)?;
                }
            }
        }
        for (job, entries) in &mut due {
            if order.action == Action::Refresh {
                self.mark(entries, order, handled).await?;
            }
            handled.entries += entries.len() as u64;
            handled.due += entries.len() as u64;
            pass_over(self.agenda.put(job, &*entries, when, trigger(order.action)).await, job)?;
        }
        Ok(())
    }

    /// Returns which of these entries belong to a newer file that another worker has, by job.
    async fn newer_owners(&self, keys: &[EntryKey]) -> RedisResult<BTreeMap<JobName, Vec<EntryKey>>> {
        let now = self.store.now().await?;
        let known = match known_to_workers(&mut self.redis.clone(), &self.keys, now).await {
            Err(e) if is_of_keys(&e) => HashSet::new(),
            known => known?,
        };
        self.store.newer_owners(keys, |job, _| known.contains(&job.identity())).await
    }

    /// Returns the entries that have a lease, or a value of Samovar's.
    async fn with_traces(&self, keys: Vec<EntryKey>) -> RedisResult<Vec<EntryKey>> {
        let mut ours = Vec::new();
        for batch in keys.chunks(ABREAST) {
            let snapshots = self.store.snapshots(batch).await?;
            let leased = self.store.leased(batch).await?;
            let found = batch.iter().zip(snapshots).zip(leased);
            let found = found.filter(|((_, snapshot), leased)| *leased || snapshot.ours().is_some());
            ours.extend(found.map(|((key, _), _)| key.clone()));
        }
        Ok(ours)
    }

    /// Removes the values of at most [`ABREAST`] entries.
    async fn remove(&self, keys: &[&EntryKey], order: Order, handled: &mut Handled) -> RedisResult<()> {
        let scripts = keys.iter().map(async |key| (key, self.store.invalidate(key, order.at, Removal::Evict).await));
        for (key, result) in join_all(scripts).await {
            let Some(result) = pass_over(result, key)? else { continue };
            handled.removed += u64::from(result.removed);
            handled.fenced += u64::from(result.fenced);
        }
        Ok(())
    }

    /// Marks the values of entries, and keeps those that are to be fetched and that nobody fetches yet.
    async fn mark(&self, entries: &mut Vec<EntryKey>, order: Order, handled: &mut Handled) -> RedisResult<()> {
        let mut due = Vec::new();
        for batch in entries.chunks(ABREAST) {
            let scripts = batch.iter().map(async |key| (key, self.store.refresh_at_once(key, order.at).await));
            for (key, result) in join_all(scripts).await {
                let Some(result) = pass_over(result, key)? else { continue };
                handled.fenced += u64::from(result.fenced);
                if result.due && (!result.fenced || result.left_alone) {
                    due.push(key.clone());
                }
            }
        }
        *entries = due;
        Ok(())
    }
}
