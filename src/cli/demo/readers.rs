//! Readers: visitors who come when they come, however long the last one waits (an open loop).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::catalogue::{Catalogue, Reads};
use super::contender::Contender;

/// Which reads of the trace are counted, by their times in it; so the same are, for all contenders.
#[derive(Default)]
pub(super) struct Window {
    /// The first.
    pub(super) from: OnceLock<Duration>,
    /// The end of them, and of the reading.
    pub(super) to: OnceLock<Duration>,
}

/// Sends readers to a contender from `begin` until the window ends, and waits for the last of them.
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
