//! Readers: an open loop of visitors, independent of how long earlier ones wait.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::catalogue::{Catalogue, Reads};
use super::contender::Contender;

/// The window of counted reads, by their times in the trace, so that it is the same for all contenders.
#[derive(Default)]
pub(super) struct Window {
    /// The start.
    pub(super) from: OnceLock<Duration>,
    /// The end, also of reading.
    pub(super) to: OnceLock<Duration>,
}

/// Sends readers to a contender from `begin` to the end of the window, and waits for the last of them.
pub(super) async fn run(
    contender: Arc<Contender>,
    catalogue: Arc<Catalogue>,
    (per_second, seed): (f64, u64),
    begin: Instant,
    window: Arc<Window>,
) -> anyhow::Result<()> {
    let mut reading = JoinSet::new();
    for (at, shelf, entry) in Reads::new(&catalogue, per_second, seed)? {
        tokio::time::sleep_until(begin + at).await;
        if window.to.get().is_some_and(|to| at >= *to) {
            break;
        }
        while reading.try_join_next().is_some() {}
        let counts = window.from.get().is_some_and(|from| at >= *from);
        let (contender, catalogue) = (Arc::clone(&contender), Arc::clone(&catalogue));
        reading.spawn(async move {
            if let Some((shelf, entry)) = catalogue.at(shelf, entry) {
                contender.read(shelf, entry, counts).await;
            }
        });
    }
    while reading.join_next().await.is_some() {}
    Ok(())
}
