//! The wait of a request for a permit of its upstream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::ending::Ending;
use super::freshness::jitter;
use crate::agenda::Next;
use crate::entry::{Outcome, Priority};
use crate::source::{Cost, Gate, LONGEST_WAIT, Permit};

/// The time between two peeks of a waiting request with a fallback at its gate, which may have closed meanwhile.
const PEEK: Duration = Duration::from_millis(50);

/// Waits until `until` for a permit of a gate; returns the ending of an entry that gets none. A request with a fallback
/// does not wait for a closed upstream.
pub(super) async fn pass(
    gate: &Arc<Gate>,
    drain: &CancellationToken,
    is_last: bool,
    cost: Cost,
    priority: Priority,
    until: Instant,
) -> Result<Permit, Ending> {
    let upstream = &gate.upstream().name;
    let refused = |wait: Duration, says: String| {
        let wait = wait.min(LONGEST_WAIT);
        Ending::because(Outcome::Deferred, Next::In(jitter(wait)), format!("upstream {upstream} {says}"))
    };
    let closed = async {
        if is_last {
            return std::future::pending().await;
        }
        loop {
            match gate.closed_for() {
                Some(wait) => return wait,
                None => tokio::time::sleep(PEEK).await,
            }
        }
    };
    tokio::select! {
        admitted = gate.admit_for(priority, until, cost) => {
            admitted.map_err(|refusal| refused(refusal.wait, gate.says(&refusal)))
        }
        wait = closed => Err(refused(wait, "is closed for a while".to_owned())),
        () = drain.cancelled() => Err(Ending::because(Outcome::Deferred, Next::In(Duration::ZERO), "drained")),
    }
}
