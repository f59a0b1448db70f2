//! The turn of a generation: from it on, the generation is in charge of the jobs. It describes them before it makes
//! anything due, so that workers with earlier files know that they are not the newest.

use tokio_util::sync::CancellationToken;

/// The turn of a generation. It begins once and does not end.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn {
    begun: CancellationToken,
    described: CancellationToken,
}

impl Turn {
    /// Puts the generation in charge.
    pub(super) fn begin(&self) {
        self.begun.cancel();
    }

    /// Returns `true` if the generation is in charge.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Waits until the generation is in charge.
    pub(super) async fn begins(&self) {
        self.begun.cancelled().await;
    }

    /// Notes that the fleet has the descriptions of the generation's jobs.
    pub(super) fn describe(&self) {
        self.described.cancel();
    }

    /// Waits until the fleet has the descriptions of the generation's jobs.
    pub(super) async fn is_described(&self) {
        self.described.cancelled().await;
    }
}
