//! The rescuer: frees at once what a dead worker held.
//!
//! Who holds what can be read off it: a worker's tasks in flight name its entries, and the tokens of its leases and permits
//! begin with its id. Every step compares and swaps, so that all workers may bury the same one, and one that was only frozen
//! changes nothing when it wakes: its tokens are gone. Where a step fails, claims, leases and permits run out by themselves.
//!
//! Whoever was being fetched when a worker died is counted for that, entry by entry, since it may be what killed it: see
//! `POISON_CRASHES`.

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
use crate::store::{Note, Store};
use crate::store::{POISON_CRASHES, poison_reason};

/// The part of a worker's name that its leases and permits begin with.
pub fn id(worker: &str) -> &str {
    worker.rsplit('-').next().unwrap_or(worker)
}

/// Buries dead workers.
#[derive(Debug)]
pub struct Rescuer {
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// Where the tasks of the dead are.
    pub queue: Queue,
    /// Where their entries are.
    pub agenda: Agenda,
    /// Where their leases are.
    pub store: Store,
    /// Where their permits are.
    pub gates: BTreeMap<UpstreamName, Arc<Gate>>,
    /// After how long without a beat a worker counts as dead.
    pub dead_after: Duration,
    /// What fails in single jobs and upstreams.
    pub troubles: Troubles,
}

impl Rescuer {
    /// Frees what a dead worker, known by its name, held.
    ///
    /// # Errors
    /// Redis's; rescuing it again does no harm.
    pub async fn rescue(&self, worker: &str) -> RedisResult<()> {
        for (upstream, gate) in &self.gates {
            self.troubles.alone(upstream.as_str(), gate.rescue(id(worker)).await)?;
        }
        let mut freed = 0;
        loop {
            let tasks = self.queue.in_hand_of(worker).await?;
            for chunk in tasks.iter().filter_map(|(_, chunk)| chunk.as_ref()) {
                // Where that fails for good, its entries come due again when their claims run out.
                freed += self.troubles.alone(&chunk.job, self.free(id(worker), chunk).await)?.unwrap_or(0);
            }
            let ids: Vec<String> = tasks.into_iter().map(|(id, _)| id).collect();
            let left = self.queue.forget(worker, &ids, self.dead_after).await?;
            if left == 0 || ids.is_empty() {
                info!(worker, entries = freed, "a worker died: what it held is due again");
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
                // Somebody else has it by now.
                Some(_) => continue,
                None => Next::In(Duration::ZERO),
            };
            let Some(score) = score else { continue };
            let number = score.parse().unwrap_or_default();
            let ours = match Due::from_score(number).state {
                State::Claimed => claimed.is_at(number),
                // By whom is not said. Taken from somebody else, an entry is looked at once more and found fresh.
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

    /// Ends the fetch of an entry whose worker died, and counts that.
    async fn take_lease(&self, job: &JobName, key: &EntryKey, token: &str) -> RedisResult<Next> {
        let note = self.store.snapshot(key).await?.meta.map(|meta| meta.note).unwrap_or_default();
        let crashes = note.crashes.saturating_add(1);
        let reason = poison_reason(crashes);
        let note = Note { crashes, outcome: Some(Outcome::Failed), reason: Some(reason.clone()), ..note };
        Ok(match self.store.rescue(key, token, &note).await? {
            Some(_) if crashes >= POISON_CRASHES => {
                error!(%job, %key, "{reason}: it is not tried again before somebody asks for it");
                Next::Dead(reason)
            }
            // Whatever its mark said: an eviction takes the entry off the agenda, so who is there was asked for since.
            Some(_) | None => Next::In(Duration::ZERO),
        })
    }
}
