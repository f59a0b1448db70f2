//! Supervision: a loop that ends when it should not takes the process down, with the reason.

use std::future::Future;
use std::time::Duration;

use anyhow::anyhow;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The loops of a process or of a generation. Nothing else starts a loop.
pub(super) struct Supervisor {
    loops: JoinSet<&'static str>,
    stop: CancellationToken,
}

impl Supervisor {
    /// Creates a supervisor of loops that may end once `stop` is set.
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self { loops: JoinSet::new(), stop }
    }

    /// Starts a loop. `name` stands in the error if it ends too early.
    pub(super) fn run(&mut self, name: &'static str, body: impl Future<Output = ()> + Send + 'static) {
        self.loops.spawn(async move {
            body.await;
            name
        });
    }

    /// Waits until a loop ends before `stop`, or panics; returns an error that names it.
    pub(super) async fn wait(&mut self) -> anyhow::Error {
        while let Some(ended) = self.loops.join_next().await {
            match ended {
                Ok(_) if self.stop.is_cancelled() => {}
                Ok(name) => return anyhow!("{name} ended by itself: please report this"),
                Err(e) => return anyhow!("a loop panicked: please report this: {e}"),
            }
        }
        std::future::pending().await
    }

    /// Waits until all loops have ended, or aborts them after `time`.
    pub(super) async fn end(mut self, time: Duration) {
        let all = async { while self.loops.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(time, all).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_that_ends_too_early_is_named_with_the_reason() {
        let mut loops = Supervisor::new(CancellationToken::new());
        loops.run("a loop", async {});
        assert!(loops.wait().await.to_string().contains("a loop ended by itself"));
        loops.run("another", async { panic!("a fault") });
        assert!(loops.wait().await.to_string().contains("a fault"));
    }

    #[tokio::test]
    async fn a_loop_that_ends_after_the_stop_is_no_fault() {
        let stop = CancellationToken::new();
        let mut loops = Supervisor::new(stop.clone());
        stop.cancel();
        loops.run("a loop", async {});
        loops.run("a fault", async { panic!("the loop before it was no fault") });
        // The panic ends the wait, whichever loop ends first.
        assert!(loops.wait().await.to_string().contains("panicked"));
    }
}
