//! Entries of no job here, in a message that no other worker hears of: while workers with new job files replace old
//! ones, they may belong to a file that this worker does not have.

use futures_util::future::join_all;
use redis::RedisResult;

use super::{ABREAST, Invalidator, Order, pass_over, trigger};
use crate::agenda::When;
use crate::entry::EntryKey;
use crate::protocol::{Action, Handled};
use crate::store::Removal;

impl Invalidator {
    /// Removes values of Samovar's that belong to no job here, and leaves them to a newer file as [`Self::remove`]
    /// does.
    pub(super) async fn remove_foreign(
        &self,
        keys: Vec<EntryKey>,
        order: Order,
        when: When,
        handled: &mut Handled,
    ) -> RedisResult<()> {
        for batch in keys.chunks(ABREAST) {
            let snapshots = self.store.snapshots(batch).await?;
            let leased = self.store.leased(batch).await?;
            let ours = batch.iter().zip(snapshots).zip(leased);
            let ours = ours.filter(|((_, snapshot), leased)| *leased || snapshot.ours().is_some());
            let ours = Vec::from_iter(ours.map(|((key, _), _)| key.clone()));
            self.remove(&ours, order, when, handled).await?;
        }
        Ok(())
    }

    /// Removes the values of at most [`ABREAST`] entries: without their job it cannot be told how to renew them, and no
    /// value is better than an outdated one. A refresh makes those due that a newer file owns, so that a worker with
    /// that file fetches them.
    pub(super) async fn remove(
        &self,
        keys: &[EntryKey],
        order: Order,
        when: When,
        handled: &mut Handled,
    ) -> RedisResult<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let scripts = keys.iter().map(async |key| (key, self.store.invalidate(key, order.at, Removal::Evict).await));
        for (key, result) in join_all(scripts).await {
            let Some(result) = pass_over(result, key)? else { continue };
            handled.removed += u64::from(result.removed);
            handled.fenced += u64::from(result.fenced);
        }
        if order.action != Action::Refresh {
            return Ok(());
        }
        for (job, entries) in self.store.newer_owners(keys).await? {
            handled.entries += entries.len() as u64;
            handled.due += entries.len() as u64;
            pass_over(self.agenda.put(&job, &entries, when, trigger(order.action)).await, &job)?;
        }
        Ok(())
    }
}
