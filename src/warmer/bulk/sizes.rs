//! The most entries that one request may ask for.
//!
//! A request that is too long, or is refused because of one of its entries, is made again in parts. There is little
//! time for that, since the entries have their leases. So entries keep the size of their part until they are answered:
//! the next group in which they are asked for is no larger. Each request thus answers its entries or makes their groups
//! smaller, however few requests the upstream admits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::job::Params;
use crate::source::LONGEST_URL;

/// The time for which the size of an entry's group is kept: longer than any wait before its next try.
const KEPT: Duration = Duration::from_secs(600);
/// The most entries whose sizes are kept.
const MOST_KEPT: usize = 10_000;
/// The part of the longest URL that is used, in percent: entries are not all equally long.
const USED: usize = 90;

/// The sizes of the requests to a source.
pub(super) struct Sizes {
    /// The most entries that its job allows.
    most: usize,
    /// The number of entries that are named in a URL of the longest length, as far as is known.
    fitting: AtomicUsize,
    /// The sizes of the groups of entries that were refused together, and when that was.
    refused: Mutex<BTreeMap<Params, (usize, Instant)>>,
}

impl Sizes {
    pub(super) fn new(most: usize) -> Self {
        Self { most, fitting: AtomicUsize::new(most), refused: Mutex::default() }
    }

    /// Returns the most entries of a group with this entry, and whether that is because a request for it was refused.
    pub(super) fn of(&self, params: &Params) -> (usize, bool) {
        let fitting = self.fitting.load(Ordering::Relaxed);
        let refused = self.refused();
        let kept = refused.get(params).filter(|(_, since)| since.elapsed() < KEPT);
        (kept.map_or(fitting, |(size, _)| fitting.min(*size)), kept.is_some())
    }

    /// Keeps the size of a part until its entries are answered.
    pub(super) fn keep<'p>(&self, part: impl ExactSizeIterator<Item = &'p Params>) {
        let (size, now) = (part.len(), Instant::now());
        let mut refused = self.refused();
        if refused.len() + size > MOST_KEPT {
            refused.retain(|_, (_, since)| now < *since + KEPT);
        }
        for params in part {
            if refused.len() < MOST_KEPT || refused.contains_key(params) {
                refused.insert(params.clone(), (size, now));
            }
        }
    }

    /// Forgets the size of an entry, since it was answered.
    pub(super) fn forget(&self, params: &Params) {
        self.refused().remove(params);
    }

    /// Notes the length of the URL of a request for so many entries, in bytes.
    pub(super) fn measure(&self, entries: usize, length: usize) {
        let fitting = (entries * LONGEST_URL * USED / 100 / length.max(1)).clamp(1, self.most);
        if length > LONGEST_URL {
            self.fitting.store(fitting, Ordering::Relaxed);
        } else if entries >= self.fitting.load(Ordering::Relaxed) {
            // Few entries tell little: one of others may be longer than all of them.
            self.fitting.fetch_max(fitting, Ordering::Relaxed);
        }
    }

    fn refused(&self) -> MutexGuard<'_, BTreeMap<Params, (usize, Instant)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Params {
        Params::from([("name".to_owned(), name.to_owned())])
    }

    #[test]
    fn an_entry_keeps_the_size_of_its_part_until_it_is_answered() {
        let sizes = Sizes::new(100);
        let [a, b, c] = ["a", "b", "c"].map(named);
        sizes.keep([&a, &b].into_iter());
        assert_eq!([&a, &b, &c].map(|params| sizes.of(params)), [(2, true), (2, true), (100, false)]);
        sizes.keep([&a].into_iter());
        sizes.forget(&b);
        assert_eq!([&a, &b].map(|params| sizes.of(params)), [(1, true), (100, false)]);
    }

    #[test]
    fn groups_are_as_large_as_the_longest_url() {
        let sizes = Sizes::new(1_000);
        let size = |sizes: &Sizes| sizes.of(&named("a")).0;
        sizes.measure(1_000, 40_000);
        assert_eq!(size(&sizes), 180, "200 fit, and some may be longer");
        sizes.measure(3, 300);
        assert_eq!(size(&sizes), 180, "three tell little");
        sizes.measure(180, 7_900);
        assert_eq!(size(&sizes), 180, "they fit");
        sizes.measure(180, 1_800);
        assert_eq!(size(&sizes), 720, "they have become shorter");
        sizes.measure(1, 9_000);
        assert_eq!(size(&sizes), 1, "not even one fits, but it is asked for");
        sizes.measure(1, 7);
        assert_eq!(size(&sizes), 1_000, "no more than the job allows");
    }

    #[test]
    fn the_sizes_of_few_entries_are_kept() {
        let sizes = Sizes::new(2);
        let all: Vec<Params> = (0..=MOST_KEPT).map(|number| named(&number.to_string())).collect();
        sizes.keep(all.iter());
        assert_eq!(sizes.refused().len(), MOST_KEPT);
    }
}
