//! The clocks of a Cluster's masters, as one process measures them.
//!
//! The fleet's clock is that of the master of one slot, the one in which workers keep the latest time that they saw:
//! they compare it with each other to the millisecond, so it is not converted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::redis::endpoint::Address;

/// The slot of `{suspect}`, the tag of the keys with which gaps and set-back clocks are noted.
pub(super) const REFERENCE: u16 = 15_278;
/// By how many microseconds two clocks may drift apart in a second.
const DRIFT: i64 = 200;
/// The time for which processes may take different masters for the reference, after the slot moved.
const MOVING: Duration = Duration::from_secs(10);

/// A measurement: by how many microseconds a clock is ahead of this process's, by how many it may be wrong, and when
/// it was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) ahead: i64,
    pub(super) doubt: i64,
    pub(super) at: Instant,
}

impl Measured {
    /// Returns by how much it may be wrong by now.
    fn doubt(&self) -> i64 {
        self.doubt + DRIFT * i64::try_from(self.at.elapsed().as_secs()).unwrap_or(i64::MAX / DRIFT)
    }
}

/// The clocks of the masters.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    all: BTreeMap<Address, Measured>,
    reference: Option<Address>,
    /// By how much the fleet's clock changed when the reference did, and when.
    moved: Option<(i64, Instant)>,
}

impl Clocks {
    /// Takes a measurement, unless the one before is more exact and agrees.
    pub(super) fn measured(&mut self, address: Address, new: Measured) {
        let keeps = self.all.get(&address).is_some_and(|old| {
            let doubt = old.doubt();
            (new.ahead - old.ahead).abs() <= new.doubt + doubt && doubt < new.doubt
        });
        if !keeps {
            self.all.insert(address, new);
        }
    }

    /// Keeps the clocks of these servers, and takes the clock of `reference` for the fleet's.
    pub(super) fn refer(&mut self, reference: Option<&Address>, servers: &BTreeSet<&Address>) {
        if self.reference.as_ref() != reference {
            if let (Some(before), Some(now)) = (&self.reference, reference) {
                let by = match (self.all.get(before), self.all.get(now)) {
                    (Some(before), Some(now)) => (now.ahead - before.ahead).abs(),
                    _ => 0,
                };
                self.moved = Some((by, Instant::now()));
            }
            self.reference = reference.cloned();
        }
        self.all.retain(|address, _| servers.contains(address));
    }

    /// Returns by how many microseconds a clock is ahead of the fleet's; `None` until both have been read.
    pub(super) fn ahead(&self, address: &Address) -> Option<i64> {
        let reference = self.reference.as_ref()?;
        if address == reference {
            return Some(0);
        }
        Some(self.all.get(address)?.ahead - self.all.get(reference)?.ahead)
    }

    /// Returns by how many microseconds any clock is behind the fleet's at most.
    #[cfg(feature = "worker")]
    pub(super) fn behind(&self) -> i64 {
        self.all.keys().filter_map(|address| self.ahead(address)).map(|ahead| -ahead).max().unwrap_or_default().max(0)
    }

    /// Returns by how many microseconds the times of two processes may differ for the same moment.
    pub(super) fn doubt(&self) -> i64 {
        let worst = self.all.values().map(Measured::doubt).max().unwrap_or_default();
        let moved = self.moved.filter(|(_, at)| at.elapsed() < MOVING).map_or(0, |(by, _)| by);
        // Of two clocks, for the process that fetches and for the one that invalidates.
        4 * worst + moved
    }

    /// Returns the clock that is furthest from the fleet's, and by how many microseconds it is ahead.
    #[cfg(feature = "worker")]
    pub(super) fn furthest(&self) -> Option<(&Address, i64)> {
        let all = self.all.keys().filter_map(|address| Some((address, self.ahead(address)?)));
        all.max_by_key(|(_, ahead)| ahead.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::slot_of;

    fn at(port: u16) -> Address {
        Address { host: "127.0.0.1".into(), port }
    }

    fn measured(ahead: i64, doubt: i64) -> Measured {
        Measured { ahead, doubt, at: Instant::now() }
    }

    fn two(ahead: i64) -> Clocks {
        let mut clocks = Clocks::default();
        clocks.measured(at(1), measured(1_000, 10));
        clocks.measured(at(2), measured(1_000 + ahead, 20));
        clocks.refer(Some(&at(1)), &BTreeSet::from([&at(1), &at(2)]));
        clocks
    }

    #[test]
    fn the_reference_is_where_set_back_clocks_are_noted() {
        assert_eq!(slot_of(b"samovar:{suspect}"), REFERENCE);
    }

    #[test]
    fn a_worse_measurement_replaces_only_one_that_it_contradicts() {
        let mut clocks = two(500);
        assert_eq!((clocks.ahead(&at(1)), clocks.ahead(&at(2)), clocks.ahead(&at(3))), (Some(0), Some(500), None));
        clocks.measured(at(2), measured(1_900, 800));
        assert_eq!(clocks.ahead(&at(2)), Some(500));
        clocks.measured(at(2), measured(3_000_000, 800));
        assert_eq!(clocks.ahead(&at(2)), Some(2_999_000));
        assert_eq!((clocks.furthest(), clocks.behind()), (Some((&at(2), 2_999_000)), 0));
    }

    #[test]
    fn a_reference_that_changes_makes_times_doubtful() {
        let mut clocks = two(-700_000);
        assert_eq!((clocks.doubt(), clocks.behind()), (80, 700_000));
        clocks.refer(Some(&at(2)), &BTreeSet::from([&at(1), &at(2)]));
        assert_eq!((clocks.doubt(), clocks.ahead(&at(1))), (700_080, Some(700_000)));
    }
}
