//! Live updates. While a page is open in some tab, one poller reads the state of the fleet for all tabs, and tells them
//! when it changed; each then asks for its page again. A page is made once for each state, whoever asks for it.
//!
//! Without a tab nothing is read and nothing is kept: a page that is asked for then reads the state itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use redis::RedisResult;
use tokio::sync::{Notify, OnceCell, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin, Of, Parts, Readiness, Rights, State};
use crate::ops::status::{JobStatus, UpstreamStatus};
use crate::redis::RedisTime;

/// The pause between two looks at the state.
const POLL: Duration = Duration::from_secs(2);
/// The pause as a multiple of what the look took, so that a large fleet is not read all the time.
const SHARE: u32 = 9;
/// The time that each part of the state has to be read.
const PATIENCE: Duration = Duration::from_secs(2);
/// The shortest pause, when something was changed.
const LEAST: Duration = Duration::from_millis(250);
/// The longest pause. After this time, pages are made anew although nothing has changed: they tell
/// times relative to now.
const AGES: Duration = Duration::from_secs(10);
/// The most pages that are kept for a state.
const PAGES: usize = 64;

/// The state of the fleet at one time, as far as it can be read.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// When it was read.
    pub(super) at: RedisTime,
    /// The jobs.
    pub(super) jobs: Vec<JobStatus>,
    /// The jobs that cannot be read, each with the reason.
    pub(super) unread_jobs: BTreeMap<String, String>,
    /// The upstreams.
    pub(super) upstreams: Vec<UpstreamStatus>,
    /// The upstreams that cannot be read, each with the reason.
    pub(super) unread_upstreams: BTreeMap<String, String>,
    /// Other parts that cannot be read, as sentences.
    pub(super) unread: Vec<String>,
    /// The health of this worker.
    pub(super) health: Readiness,
}

impl Snapshot {
    /// Reads the state of this part. It never waits for a count of entries, which another request may have begun.
    ///
    /// # Errors
    /// Fails if no server of Redis answers.
    pub(super) async fn read(admin: &Admin, parts: &Parts, of: Of<'_>) -> RedisResult<Self> {
        let at = parts.ops.store.now().await?;
        let census = admin.census(Duration::ZERO).await;
        let (state, health) =
            tokio::join!(State::read(parts, of, census.as_deref(), PATIENCE), admin::readiness(admin));
        let State { jobs, unread_jobs, upstreams, unread_upstreams, unread } = state;
        Ok(Self { at, jobs, unread_jobs, upstreams, unread_upstreams, unread, health })
    }

    /// Returns what decides whether another state differs: all but times that only tell when it was read.
    fn told(&self) -> String {
        let Self { at: _, mut jobs, unread_jobs, upstreams, unread_upstreams, unread, mut health } = self.clone();
        for reads in jobs.iter_mut().filter_map(|job| job.reads.as_mut()) {
            reads.as_of_ms = RedisTime::ZERO;
        }
        health.invalidation_waits_s = None;
        let told = (jobs, unread_jobs, upstreams, unread_upstreams, unread, health);
        serde_json::to_string(&told).unwrap_or_default()
    }

    /// Returns what a visitor may see.
    pub(super) fn for_visitor(self: Arc<Self>, rights: Rights) -> Arc<Self> {
        if rights.reasons {
            return self;
        }
        let mut shown = Self::clone(&self);
        for job in &mut shown.jobs {
            admin::withhold_reasons(job);
            job.pause_note = None;
        }
        Arc::new(shown)
    }
}

/// Returns the pause after a reading that took so long.
fn pause(took: Duration) -> Duration {
    (took * SHARE).clamp(POLL, AGES)
}

/// A page that was made: its status, headers and content.
pub(super) type Made = Arc<OnceCell<(StatusCode, HeaderMap, Bytes)>>;
/// The distinction of pages: the path with its query, and what the visitor may see.
type PageKey = String;

/// The state that tabs share.
#[derive(Debug)]
pub(super) struct Live {
    revision: watch::Sender<u64>,
    snapshot: Mutex<Option<Arc<Snapshot>>>,
    pages: Mutex<HashMap<PageKey, Made>>,
    /// The first tab opened, or something was changed.
    wanted: Notify,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            // Other workers, and this one after a restart, have other numbers.
            revision: watch::Sender::new(rand::random::<u32>().into()),
            snapshot: Mutex::default(),
            pages: Mutex::default(),
            wanted: Notify::new(),
        }
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// Returns the number of the present state.
    pub(super) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Has all tabs ask again: something was changed from here.
    pub(super) fn disturb(&self) {
        if self.is_watched() {
            *held(&self.snapshot) = None;
            self.wanted.notify_one();
        }
        held(&self.pages).clear();
    }

    /// Returns the number of tabs that are kept up to date.
    pub(super) fn tabs(&self) -> usize {
        self.revision.receiver_count()
    }

    fn is_watched(&self) -> bool {
        self.tabs() > 0
    }

    /// Returns the numbers of the present state and of later ones, and has the state read from now on. Another tab
    /// beside the first one causes no reading.
    pub(super) fn follow(&self) -> watch::Receiver<u64> {
        let is_first = !self.is_watched();
        let receiver = self.revision.subscribe();
        if is_first {
            self.wanted.notify_one();
        }
        receiver
    }

    /// Returns the state that tabs share; `None` while nobody looks.
    pub(super) fn shared(&self) -> Option<Arc<Snapshot>> {
        held(&self.snapshot).clone()
    }

    /// Returns the place of a page that is made once for the present state; `None` while nobody looks.
    pub(super) fn place(&self, key: &PageKey) -> Option<Made> {
        if !self.is_watched() {
            return None;
        }
        let mut pages = held(&self.pages);
        if pages.len() >= PAGES && !pages.contains_key(key) {
            pages.clear();
        }
        Some(Arc::clone(pages.entry(key.clone()).or_default()))
    }

    /// Has a page made anew for the next one who asks; those who wait for it have it.
    pub(super) fn forget(&self, key: &PageKey, made: &Made) {
        let mut pages = held(&self.pages);
        if pages.get(key).is_some_and(|kept| Arc::ptr_eq(kept, made)) {
            pages.remove(key);
        }
    }

    fn set(&self, snapshot: Option<Snapshot>) {
        *held(&self.snapshot) = snapshot.map(Arc::new);
        held(&self.pages).clear();
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Reads the state while somebody looks.
    pub(super) async fn run(&self, admin: &Admin, over: &CancellationToken) {
        loop {
            tokio::select! {
                () = self.wanted.notified() => {}
                () = over.cancelled() => return,
            }
            // What the tabs know, and since when.
            let mut told: Option<(Option<String>, Instant)> = None;
            while self.is_watched() && !over.is_cancelled() {
                let begun = Instant::now();
                let snapshot = match admin.parts() {
                    Some(parts) => Snapshot::read(admin, &parts, Of::All).await.ok(),
                    None => None,
                };
                let text = snapshot.as_ref().map(Snapshot::told);
                let is_new = told.as_ref().is_none_or(|(before, since)| *before != text || since.elapsed() >= AGES);
                if is_new {
                    self.set(snapshot);
                    told = Some((text, Instant::now()));
                }
                let pause = pause(begun.elapsed());
                tokio::time::sleep(LEAST).await;
                tokio::select! {
                    () = tokio::time::sleep(pause.saturating_sub(LEAST)) => {}
                    () = self.wanted.notified() => told = None,
                    () = over.cancelled() => {}
                }
            }
            *held(&self.snapshot) = None;
            held(&self.pages).clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reads::ReportedReads;

    fn snapshot(at_ms: i64, waits_s: u64) -> Snapshot {
        let at = RedisTime::from_millis(at_ms);
        let job = JobStatus { reads: Some(ReportedReads::unknown(at)), ..JobStatus::default() };
        let health = Readiness { invalidation_waits_s: Some(waits_s), ..Readiness::default() };
        Snapshot { at, jobs: vec![job], health, ..Snapshot::default() }
    }

    #[test]
    fn the_time_of_a_look_is_no_change() {
        assert_eq!(snapshot(1_000, 1).told(), snapshot(3_000, 3).told());
        let mut changed = snapshot(1_000, 1);
        changed.jobs[0].due = 1;
        assert_ne!(changed.told(), snapshot(1_000, 1).told());
        let mut unread = snapshot(1_000, 1);
        unread.unread_jobs.insert("art".to_owned(), "lost".to_owned());
        assert_ne!(unread.told(), snapshot(1_000, 1).told());
    }

    #[test]
    fn a_slow_look_is_followed_by_a_longer_pause() {
        let pauses = [1, 500, 1_000, 60_000].map(|ms| pause(Duration::from_millis(ms)).as_millis());
        assert_eq!(pauses, [2_000, 4_500, 9_000, 10_000]);
    }
}
