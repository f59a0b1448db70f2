//! Single flight within a process: of the calls for one key, the first loads and the others share its result.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The flights of this process, by whole key.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<String, Arc<Flight>>>);

/// A flight: the holder of the lock loads.
pub(super) type Flight = tokio::sync::Mutex<Option<Outcome>>;

/// The result that waiting calls share.
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

    /// Ends the flight of a key for later calls, which start a new one.
    pub(super) fn forget(&self, key: &str) {
        self.map().remove(key);
    }

    /// Ends the flights of all keys with this prefix for later calls.
    pub(super) fn forget_all(&self, prefix: &str) {
        self.map().retain(|key, _| !key.starts_with(prefix));
    }

    fn map(&self) -> MutexGuard<'_, HashMap<String, Arc<Flight>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call's place in a flight. The last one dropped removes the flight.
pub(super) struct Seat<'a> {
    flights: &'a Flights,
    key: String,
    pub(super) flight: Arc<Flight>,
}

impl Seat<'_> {
    /// Returns `true` if this process wrote and deleted nothing since the flight started.
    pub(super) fn is_current(&self) -> bool {
        self.flights.map().get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight))
    }

    /// Ends the flight: later calls start a new one.
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
        // One reference is the map's, the other this seat's.
        if mine && Arc::strong_count(&self.flight) == 2 {
            map.remove(&self.key);
        }
    }
}
