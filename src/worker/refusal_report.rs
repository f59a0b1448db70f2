//! The report of a refused reload: it tells the fleet that this worker goes on with its earlier job files.

use std::sync::Arc;
use std::time::Instant;

use redis::RedisResult;
use tracing::warn;

use crate::job::Reload;
use crate::ops::{Ops, RefusedReload};

/// One worker's report.
#[derive(Debug)]
pub(super) struct RefusalReport {
    ops: Ops,
    reload: Arc<Reload>,
    worker: Arc<str>,
    /// The refusal that was told last, and when it was on this machine's clock.
    told: Option<(Instant, RefusedReload)>,
    /// Another program uses the key.
    is_blocked: bool,
}

impl RefusalReport {
    pub(super) fn new(ops: Ops, reload: Arc<Reload>, worker: Arc<str>) -> Self {
        Self { ops, reload, worker, told: None, is_blocked: false }
    }

    /// Tells the refusal of the last reload, or takes it back if a reload succeeded since. What is told lasts for a few
    /// beats, so each beat tells it again.
    pub(super) async fn tell(&mut self) -> RedisResult<()> {
        let Some(refusal) = self.reload.refused() else { return self.take_back().await };
        let refused = match self.told.take() {
            Some((at, refused)) if at == refusal.at => refused,
            _ => {
                let at_ms = self.ops.store.now().await? - refusal.at.elapsed();
                RefusedReload { worker: self.worker.to_string(), at_ms, reason: refusal.reason }
            }
        };
        let (_, refused) = self.told.insert((refusal.at, refused));
        let is_told = self.ops.tell_refused(refused).await?;
        if !is_told && !self.is_blocked {
            let key = self.ops.keys.refused(&self.worker);
            warn!(key, "another program uses this key; the fleet is not told of the refused reload: rename the key");
        }
        self.is_blocked = !is_told;
        Ok(())
    }

    /// Takes back what was told.
    pub(super) async fn take_back(&mut self) -> RedisResult<()> {
        if self.told.is_some() {
            self.ops.take_back_refused(&self.worker).await?;
            self.told = None;
        }
        Ok(())
    }
}
