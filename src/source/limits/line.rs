//! The line of one worker's requests before an upstream: how many are in flight, and which goes next.
//!
//! Only the first of each priority asks Redis, so that no request overtakes another of its priority. Requests of higher
//! priority go first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{AcquireError, Mutex, MutexGuard, Notify, OwnedSemaphorePermit, Semaphore};

use crate::entry::Priority;

/// One in this many slots is kept for high-priority requests.
const KEPT: usize = 16;

/// The line of one worker's requests before an upstream.
pub(super) struct Line {
    slots: Arc<Semaphore>,
    /// Slots for high-priority requests, which then wait for no other answer.
    kept: Arc<Semaphore>,
    size: usize,
    /// Held by the first request of each priority.
    first: [Mutex<()>; 3],
    /// The number of requests that wait, by priority.
    waiting: [AtomicUsize; 3],
    /// Wakes those that wait when a permit may be free.
    news: Notify,
}

impl Line {
    /// Returns a line with at most `size` requests in flight (at least 1).
    pub(super) fn new(size: usize) -> Self {
        let size = size.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            slots: Arc::new(Semaphore::new(size - size / KEPT)),
            kept: Arc::new(Semaphore::new(size / KEPT)),
            size,
            first: Default::default(),
            waiting: Default::default(),
            news: Notify::new(),
        }
    }

    /// Returns the number of requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.size - self.slots.available_permits() - self.kept.available_permits()
    }

    /// Waits until a request is the first of its priority.
    pub(super) async fn enter(&self, priority: Priority) -> Place<'_> {
        self.waiting[priority as usize].fetch_add(1, Ordering::AcqRel);
        let mut place = Place { line: self, priority, first: None };
        place.first = Some(self.first[priority as usize].lock().await);
        place
    }

    /// Waits while requests of higher priority wait.
    pub(super) async fn let_higher_pass(&self, priority: Priority) {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            if self.waiting[priority as usize + 1..].iter().all(|waiting| waiting.load(Ordering::Acquire) == 0) {
                return;
            }
            news.await;
        }
    }

    /// Waits until one more request may be in flight here.
    pub(super) async fn slot(&self, priority: Priority) -> Result<OwnedSemaphorePermit, AcquireError> {
        let (slots, kept) = (Arc::clone(&self.slots), Arc::clone(&self.kept));
        if priority < Priority::High {
            return slots.acquire_owned().await;
        }
        tokio::select! {
            biased;
            slot = slots.acquire_owned() => slot,
            slot = kept.acquire_owned() => slot,
        }
    }

    /// Waits for the next [`Line::wake`].
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Wakes those that wait, because a permit may be free.
    pub(super) fn wake(&self) {
        self.news.notify_waiters();
    }
}

/// The place of a request that waits. Requests of lower priority let it pass.
pub(super) struct Place<'a> {
    line: &'a Line,
    priority: Priority,
    first: Option<MutexGuard<'a, ()>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.first.take();
        self.line.waiting[self.priority as usize].fetch_sub(1, Ordering::AcqRel);
        if self.priority > Priority::Normal {
            self.line.wake();
        }
    }
}
