//! The turn of a generation: from it on, the generation is in charge of the jobs.

use tokio_util::sync::CancellationToken;

/// The turn of a generation. It begins once and does not end.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn(CancellationToken);

impl Turn {
    /// Puts the generation in charge.
    pub(super) fn begin(&self) {
        self.0.cancel();
    }

    /// Returns `true` if the generation is in charge.
    pub(super) fn has_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the generation is in charge.
    pub(super) async fn begins(&self) {
        self.0.cancelled().await;
    }
}
