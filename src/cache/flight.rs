//! Flights: the calls of this process for one key, of which the first loads.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Flights under way in this process, by whole key.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<String, Arc<Flight>>>);

/// Whoever holds the lock loads.
pub(super) type Flight = tokio::sync::Mutex<Option<Outcome>>;

/// What those who waited get.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// The value.
    Loaded(Arc<str>),
    /// The loader's error, an `Arc<E>`.
    Failed(Arc<dyn Any + Send + Sync>),
}

impl Flights {
    pub(super) fn join(self: &Flights, key: &str) -> Seat<'_> {
        let flight = Arc::clone(self.map().entry(key.to_owned()).or_default());
        Seat { flights: self, key: key.to_owned(), flight }
    }

    /// Those who come from now on form a new flight.
    pub(super) fn forget(&self, key: &str) {
        self.map().remove(key);
    }

    /// The same for all keys with this prefix.
    pub(super) fn forget_all(&self, prefix: &str) {
        self.map().retain(|key, _| !key.starts_with(prefix));
    }

    fn map(&self) -> MutexGuard<'_, HashMap<String, Arc<Flight>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a flight; the last one to leave takes it off the map.
pub(super) struct Seat<'a> {
    flights: &'a Flights,
    key: String,
    pub(super) flight: Arc<Flight>,
}

impl Seat<'_> {
    /// Whether nothing was written or deleted in this process since the flight began.
    pub(super) fn is_current(&self) -> bool {
        self.flights.map().get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight))
    }

    /// The flight is over: those who come from now on form a new one.
    pub(super) fn over(&self) {
        let mut map = self.flights.map();
        if map.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            map.remove(&self.key);
        }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut map = self.flights.map();
        let mine = map.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight));
        // The map's and this one.
        if mine && Arc::strong_count(&self.flight) == 2 {
            map.remove(&self.key);
        }
    }
}
