//! Live updates. While a page is open in some tab, one poller reads the state of the fleet for all tabs, and tells them
//! when it changed; each then asks for its page again. A page is made once for each state, whoever asks for it.
//!
//! Without a tab nothing is read and nothing is kept: a page that is asked for then reads the state itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use bytes::Bytes;
use redis::RedisResult;
use tokio::sync::{Notify, OnceCell, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin, Parts, Readiness, Rights};
use crate::ops::status::{JobStatus, UpstreamStatus};
use crate::redis::RedisTime;

/// The pause between two looks at the state.
const POLL: Duration = Duration::from_secs(2);
/// The shortest pause, when something was changed or another tab opened.
const LEAST: Duration = Duration::from_millis(250);
/// The time after which pages are made anew although nothing has changed: they tell times relative to now.
const AGES: Duration = Duration::from_secs(10);
/// The most pages that are kept for a state.
const PAGES: usize = 64;

/// The state of the fleet at one time.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// When it was read.
    pub(super) at: RedisTime,
    /// The jobs.
    pub(super) jobs: Vec<JobStatus>,
    /// The upstreams.
    pub(super) upstreams: Vec<UpstreamStatus>,
    /// The health of this worker.
    pub(super) health: Readiness,
}

impl Snapshot {
    /// Reads the state. It never waits for a count of entries, which another request may have begun.
    pub(super) async fn read(admin: &Admin, parts: &Parts) -> RedisResult<Self> {
        let census = admin.census(Duration::ZERO).await;
        let (jobs, upstreams) = admin::state(parts, census.as_deref()).await?;
        let health = admin::readiness(admin).await;
        Ok(Self { at: parts.ops.store.now().await?, jobs, upstreams, health })
    }

    /// Returns what decides whether another state differs: all but times that only tell when it was read.
    fn told(&self) -> String {
        let Self { mut jobs, upstreams, mut health, .. } = self.clone();
        for reads in jobs.iter_mut().filter_map(|job| job.reads.as_mut()) {
            reads.as_of_ms = RedisTime::ZERO;
        }
        health.invalidation_waits_s = None;
        serde_json::to_string(&(jobs, upstreams, health)).unwrap_or_default()
    }

    /// Removes what a visitor may not see.
    pub(super) fn for_visitor(&self, rights: Rights) -> Self {
        let mut shown = self.clone();
        if !rights.reasons {
            shown.jobs.iter_mut().for_each(admin::withhold_reasons);
        }
        shown
    }
}

/// A page that was made: its status and content.
pub(super) type Made = Arc<OnceCell<(StatusCode, Bytes)>>;
/// The distinction of pages: the path with its query, and what the visitor may see.
type PageKey = String;

/// The state that tabs share.
#[derive(Debug)]
pub(super) struct Live {
    revision: watch::Sender<u64>,
    snapshot: Mutex<Option<Arc<Snapshot>>>,
    pages: Mutex<HashMap<PageKey, Made>>,
    /// Somebody began to look, or something was changed.
    wanted: Notify,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            revision: watch::Sender::new(0),
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

    /// Returns the numbers of the present state and of later ones, and has the state read from now on.
    pub(super) fn follow(&self) -> watch::Receiver<u64> {
        let receiver = self.revision.subscribe();
        self.wanted.notify_one();
        receiver
    }

    /// Returns the state that tabs share; `None` while nobody looks.
    pub(super) fn shared(&self) -> Option<Arc<Snapshot>> {
        held(&self.snapshot).clone()
    }

    /// Returns the place of a page that is made once for the present state; `None` while nobody looks.
    pub(super) fn place(&self, key: PageKey) -> Option<Made> {
        if !self.is_watched() {
            return None;
        }
        let mut pages = held(&self.pages);
        if pages.len() >= PAGES && !pages.contains_key(&key) {
            pages.clear();
        }
        Some(Arc::clone(pages.entry(key).or_default()))
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
                let snapshot = match admin.parts() {
                    Some(parts) => Snapshot::read(admin, &parts).await.ok(),
                    None => None,
                };
                let text = snapshot.as_ref().map(Snapshot::told);
                let is_new = told.as_ref().is_none_or(|(before, since)| *before != text || since.elapsed() >= AGES);
                if is_new {
                    self.set(snapshot);
                    told = Some((text, Instant::now()));
                }
                tokio::time::sleep(LEAST).await;
                tokio::select! {
                    () = tokio::time::sleep(POLL - LEAST) => {}
                    () = self.wanted.notified() => told = None,
                    () = over.cancelled() => {}
                }
            }
            *held(&self.snapshot) = None;
            held(&self.pages).clear();
        }
    }
}
