//! The rescuer: frees the entries, leases and permits of a dead worker at once.
//!
//! A worker's tasks in flight name its entries, and the tokens of its leases and permits begin with its id. Every step
//! is a compare-and-swap, so several workers may rescue the same one. A worker that was only frozen changes nothing
//! when it wakes: its tokens are gone. If a step fails, claims, leases and permits expire by themselves.
//!
//! Each entry that was being fetched counts a crash, since it may have killed the worker: see `POISON_CRASHES`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use tracing::{error, info};

use crate::agenda::{Agenda, Due, Finished, Next, State};
use crate::entry::Outcome;
use crate::entry::{EntryKey, JobName, UpstreamName};
use crate::job::Jobs;
use crate::queue::{Chunk, Queue};
use crate::redis::Troubles;
use crate::source::Gate;
use crate::store::{LastAttempt, Store};
use crate::store::{POISON_CRASHES, poison_reason};

/// Returns the id in a worker's name, with which the tokens of its leases and permits begin.
pub fn id(worker: &str) -> &str {
    worker.rsplit('-').next().unwrap_or(worker)
}

/// Rescues what dead workers held.
#[derive(Debug)]
pub struct Rescuer {
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// Holds their tasks.
    pub queue: Queue,
    /// Holds their entries.
    pub agenda: Agenda,
    /// Holds their leases.
    pub store: Store,
    /// Hold their permits.
    pub gates: BTreeMap<UpstreamName, Arc<Gate>>,
    /// The time without a beat after which a worker counts as dead.
    pub dead_after: Duration,
    /// The failures of single jobs and upstreams.
    pub troubles: Troubles,
}

impl Rescuer {
    /// Frees what the dead worker of this name held.
    ///
    /// # Errors
    /// Redis's; it is safe to rescue the worker again.
    pub async fn rescue(&self, worker: &str) -> RedisResult<()> {
        for (upstream, gate) in &self.gates {
            self.troubles.alone(upstream.as_str(), gate.rescue(id(worker)).await)?;
        }
        let mut freed = 0;
        loop {
            let tasks = self.queue.tasks_in_flight(worker).await?;
            for chunk in tasks.iter().filter_map(|(_, chunk)| chunk.as_ref()) {
                // If that fails for good, the entries come due again when their claims expire.
                freed += self.troubles.alone(&chunk.job, self.free(id(worker), chunk).await)?.unwrap_or(0);
            }
            let ids: Vec<String> = tasks.into_iter().map(|(id, _)| id).collect();
            let left = self.queue.forget(worker, &ids, self.dead_after).await?;
            if left == 0 || ids.is_empty() {
                info!(worker, entries = freed, "a worker died; its entries are due again");
                return Ok(());
            }
        }
    }

    /// Makes the entries of a task due again, as they were before; returns how many moved, as far as is known.
    async fn free(&self, dead: &str, chunk: &Chunk) -> RedisResult<usize> {
        let Some((name, job)) = self.jobs.jobs.get_key_value(chunk.job.as_str()) else { return Ok(0) };
        let keys: Vec<EntryKey> = chunk.entries.iter().map(|entry| EntryKey::new(entry.key.as_str())).collect();
        let holders = self.store.holders(&keys).await?;
        let scores = self.agenda.scores(name, &keys).await?;
        let mut back = Vec::new();
        for (((claimed, key), holder), score) in chunk.entries.iter().zip(&keys).zip(holders).zip(scores) {
            let next = match holder {
                Some((holder, token)) if holder == dead => self.take_lease(&job.name, key, &token).await?,
                // Another worker fetches it by now.
                Some(_) => continue,
                None => Next::In(Duration::ZERO),
            };
            let Some(score) = score else { continue };
            let number = score.parse().unwrap_or_default();
            let ours = match Due::from_score(number).state {
                State::Claimed => claimed.is_at(number),
                // The score does not tell which worker runs it. If it was another one, the entry is found fresh later.
                State::Running => true,
                State::Urgent | State::Scheduled => false,
            };
            if ours {
                back.push(Finished { key: claimed.key.clone(), score, next, outcome: None });
            }
        }
        self.agenda.finish(name, &back, "").await?;
        Ok(back.len())
    }

    /// Ends the fetch of an entry whose worker died, and counts the crash.
    async fn take_lease(&self, job: &JobName, key: &EntryKey, token: &str) -> RedisResult<Next> {
        let last = self.store.snapshot(key).await?.meta.map(|meta| meta.last_attempt).unwrap_or_default();
        let crashes = last.crashes.saturating_add(1);
        let reason = poison_reason(crashes);
        let attempt = LastAttempt { crashes, outcome: Some(Outcome::Failed), reason: Some(reason.clone()), ..last };
        Ok(match self.store.rescue(key, token, &attempt).await? {
            Some(_) if crashes >= POISON_CRASHES => {
                error!(%job, %key, "{reason}; it is a dead letter until someone asks for it: check its source");
                Next::Dead(reason)
            }
            // The lease's mark does not matter: an eviction takes the entry off the agenda, so it was asked for since.
            Some(_) | None => Next::In(Duration::ZERO),
        })
    }
}
