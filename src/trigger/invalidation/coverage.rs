//! The records of what the workers of a fleet heard, and what they say about the invalidations of a job in a gap.

use std::time::Duration;

use crate::job::Job;
use crate::redis::RedisTime;

/// The time for which a worker that sends no canary may still be alive.
const SILENT: Duration = Duration::from_secs(12);

/// The record of another worker: since when it hears, its last canary, and up to when it has handled all.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) worker: String,
    pub(super) since: RedisTime,
    pub(super) last: RedisTime,
    pub(super) handled: RedisTime,
    /// The identities of the jobs that it knows, separated by commas.
    pub(super) jobs: String,
    /// If it has not checked for a gap before `since`: its last canary before that gap, zero if it has never checked;
    /// and its first canary of all. Builds before this one neither write nor read it.
    pub(super) unchecked: Option<(RedisTime, RedisTime)>,
}

impl Other {
    /// Reads a record as Redis had it at `now`; `None` if it is malformed or from another clock.
    pub(super) fn read(worker: &[u8], heard: &[u8], now: RedisTime) -> Option<Self> {
        let (worker, heard) = (str::from_utf8(worker).ok()?, str::from_utf8(heard).ok()?);
        let mut words = heard.split(' ');
        let mut time = || words.next()?.parse().ok().filter(|time| *time <= now);
        let (since, last, handled) = (time()?, time()?, time()?);
        Some(Self {
            worker: worker.to_owned(),
            since,
            last,
            handled,
            jobs: words.next().unwrap_or_default().to_owned(),
            unchecked: words.next().map(|before| {
                let began = words.next().and_then(|began| began.parse().ok());
                (before.parse().unwrap_or_default(), began.unwrap_or_default())
            }),
        })
    }

    fn knows(&self, job: &Job) -> bool {
        let identity = job.identity();
        self.jobs.split(',').any(|known| known == identity)
    }

    pub(super) fn is_alive(&self, now: RedisTime) -> bool {
        self.last + SILENT > now
    }

    /// Returns `true` if it may know what was before a worker that began at `began` and hears since `since`. Workers
    /// that have never checked wait for those that began before them, and no two for each other.
    fn is_before(&self, worker: &str, began: RedisTime, since: RedisTime) -> bool {
        match self.unchecked {
            None => (self.since, &*self.worker) < (since, worker),
            Some((RedisTime::ZERO, other)) => (other, &*self.worker) < (began, worker),
            Some(_) => true,
        }
    }
}

/// The state of a job's bare invalidations from a time when this worker did not hear.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Coverage {
    /// A worker that knows the job heard and handled all of them.
    Covered,
    /// A worker that may have done so has not recorded it yet.
    Open,
    /// Invalidations published up to this time may be missed.
    Missed(RedisTime),
}

/// A worker's question to the others.
pub(super) struct Asking<'a> {
    pub(super) worker: &'a str,
    /// The time since which it hears.
    pub(super) since: RedisTime,
    /// The last canary that it heard before that and before any gap that is not checked; zero if there is none.
    pub(super) before: RedisTime,
    /// The first canary of all that it heard.
    pub(super) began: RedisTime,
    pub(super) now: RedisTime,
}

impl Asking<'_> {
    /// Returns when a worker that knows the job last heard or handled messages before a gap that ended at `end`; zero
    /// if none did, as with a job that is new to the fleet, or whose keys are.
    pub(super) fn heard_before(&self, job: &Job, others: &[Other], end: RedisTime) -> RedisTime {
        let heard = others.iter().filter(|other| other.knows(job)).filter_map(|other| match other.unchecked {
            _ if other.last < end => Some(other.last),
            Some((before, _)) => Some(before),
            // It heard all, and has not handled it.
            None if other.since < end => Some(other.handled.min(end)),
            None => None,
        });
        heard.fold(self.before, RedisTime::max)
    }

    /// Returns what the records of workers that know the job say about it.
    pub(super) fn coverage(&self, job: &Job, others: &[Other]) -> Coverage {
        let Self { worker, since, before, began, now } = *self;
        let fresh = before == RedisTime::ZERO;
        // Of workers that start together, each counts only those that started before, so the first one counts none.
        let is_before = |other: &&Other| !fresh || other.is_before(worker, began, since);
        let heard: Vec<&Other> = others.iter().filter(is_before).collect();
        if fresh && heard.is_empty() {
            // There was no fleet, unless it was this worker alone.
            return if began < since { Coverage::Missed(since) } else { Coverage::Covered };
        }
        let heard: Vec<&Other> = heard.into_iter().filter(|other| other.knows(job)).collect();
        let before = if fresh { heard.iter().map(|other| other.last).max().unwrap_or_default() } else { before };
        // Messages may come between two canaries of one millisecond.
        let hears = |other: &&&Other| (other.since < before || (fresh && other.since == before)) && before <= now;
        let covers = heard.iter().filter(hears);
        // What was before the gap of an unchecked worker is known to itself alone.
        let is_relied_on = |other: &&Other| !fresh || other.unchecked.is_none();
        if covers.clone().any(|other| other.handled > since && is_relied_on(other)) {
            return Coverage::Covered;
        }
        let mut alive = covers.filter(|other| other.is_alive(now));
        // It heard everything and is still handling it, or it dies.
        let busy = alive.clone().any(|other| other.last >= since);
        if busy || (alive.next().is_some() && now.saturating_since(since) < SILENT) {
            return Coverage::Open;
        }
        // Workers that heard again a little sooner, after the same gap, cover the time since then.
        let since =
            heard.iter().filter(|other| other.handled > since).map(|other| other.since).fold(since, RedisTime::min);
        Coverage::Missed(since)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::job::Jobs;

    fn at(millis: i64) -> RedisTime {
        RedisTime::from_millis(millis)
    }

    /// A job of this name over these keys, and nothing else.
    fn jobs(name: &str, key: &str) -> Arc<Jobs> {
        let text = format!("key = \"{key}\"\n[source]\nkind = \"http\"\nurl = \"http://127.0.0.1/{{{{ name }}}}\"\n");
        Arc::new(Jobs::parse(&[(format!("{name}.toml"), text)], Duration::from_secs(60), &|_| None).unwrap())
    }

    fn job(name: &str, key: &str) -> Job {
        Job::clone(&jobs(name, key).jobs[name])
    }

    fn other(worker: &str, times: [i64; 3], jobs: &[&Job]) -> Other {
        let [since, last, handled] = times;
        let jobs: Vec<String> = jobs.iter().map(|job| job.identity()).collect();
        let heard = format!("{since} {last} {handled} {}", jobs.join(","));
        Other::read(worker.as_bytes(), heard.as_bytes(), at(100_000)).unwrap()
    }

    fn asking() -> Asking<'static> {
        Asking { worker: "x", since: at(60_000), before: at(50_000), began: at(60_000), now: at(100_000) }
    }

    #[test]
    fn only_who_knows_the_job_and_its_keys_vouches_for_it() {
        let (art, poem) = (job("art", "art:{name}"), job("poem", "poem:{name}"));
        let (moved, renamed) = (job("art", "picture:{name}"), job("picture", "art:{name}"));
        for before in [0, 50_000] {
            let asking = Asking { before: at(before), ..asking() };
            let gap = |jobs: &[&Job]| asking.coverage(&art, &[other("y", [1_000, 99_000, 99_000], jobs)]);
            assert_eq!(gap(&[&art]), Coverage::Covered);
            assert_eq!(gap(&[&poem, &art]), Coverage::Covered);
            for jobs in [&[][..], &[&poem], &[&moved], &[&renamed]] {
                assert_eq!(gap(jobs), Coverage::Missed(at(60_000)), "before {before}");
            }
        }
        let first = Asking { before: at(0), ..asking() };
        assert_eq!(first.coverage(&art, &[]), Coverage::Covered, "there was no fleet");
        let again = Asking { began: at(55_000), ..first };
        assert_eq!(again.coverage(&art, &[]), Coverage::Missed(at(60_000)), "it was the fleet");
    }

    #[test]
    fn a_worker_that_begins_does_not_rely_on_an_unchecked_one() {
        let art = job("art", "art:{name}");
        let fresh = Asking { before: at(0), now: at(64_000), ..asking() };
        let unchecked = |since, last, before| Other {
            unchecked: Some((at(before), at(since))),
            ..other("y", [since, last, last], &[&art])
        };
        assert_eq!(fresh.coverage(&art, &[unchecked(59_000, 63_000, 0)]), Coverage::Open, "it is about to check");
        assert_eq!(fresh.coverage(&art, &[unchecked(59_000, 63_000, 40_000)]), Coverage::Open);
        let later = Asking { now: at(90_000), ..fresh };
        assert_eq!(later.coverage(&art, &[unchecked(59_000, 63_000, 40_000)]), Coverage::Missed(at(59_000)), "it died");
        assert_eq!(later.coverage(&art, &[unchecked(61_000, 63_000, 40_000)]), Coverage::Missed(at(60_000)));
        assert_eq!(later.coverage(&art, &[unchecked(61_000, 63_000, 0)]), Coverage::Covered, "it began later");
        let knows = Asking { before: at(59_500), ..fresh };
        assert_eq!(knows.coverage(&art, &[unchecked(59_000, 63_000, 40_000)]), Coverage::Covered, "its gap was heard");
    }

    #[test]
    fn a_canary_of_one_millisecond_covers_nothing() {
        let art = job("art", "art:{name}");
        let asking = asking();
        let gap = |times| asking.coverage(&art, &[other("y", times, &[&art])]);
        assert_eq!(gap([50_000, 99_000, 99_000]), Coverage::Missed(at(50_000)));
        assert_eq!(gap([49_999, 60_000, 60_000]), Coverage::Missed(at(60_000)));
        assert_eq!(gap([49_999, 60_001, 60_001]), Coverage::Covered);
    }

    #[test]
    fn a_shared_gap_ends_when_the_first_worker_hears_again() {
        let art = job("art", "art:{name}");
        let asking = asking();
        assert_eq!(
            asking.coverage(&art, &[other("y", [55_000, 99_000, 99_000], &[&art])]),
            Coverage::Missed(at(55_000))
        );
        assert_eq!(
            asking.coverage(&art, &[other("y", [55_000, 99_000, 59_000], &[&art])]),
            Coverage::Missed(at(60_000))
        );
        assert_eq!(
            asking.coverage(&art, &[other("y", [1_000, 99_000, 59_000], &[&art])]),
            Coverage::Open,
            "it is at it"
        );
    }

    #[test]
    fn times_of_another_clock_vouch_for_nothing() {
        let art = job("art", "art:{name}");
        for heard in ["1 2", "1", "", "1 99999999999999 3 x", "1 2 99999999999999 x", "99999999999999 2 3 x", "a b c"] {
            assert!(Other::read(b"y", heard.as_bytes(), at(100_000)).is_none(), "{heard}");
        }
        assert!(Other::read(b"\xff", b"1 2 3 x", at(100_000)).is_none());
        let asking = Asking { before: at(700_000), ..asking() };
        let others = [other("y", [59_000, 99_000, 99_000], &[&art])];
        assert_eq!(asking.coverage(&art, &others), Coverage::Missed(at(59_000)), "the clock was set back in the gap");
    }

    #[test]
    fn a_gap_is_as_long_as_nobody_who_knows_the_job_heard() {
        let art = job("art", "art:{name}");
        let fresh = Asking { before: at(0), ..asking() };
        let dead = || other("dead", [1_000, 38_000, 38_000], &[&art]);
        // Another worker began with this one, and has not checked either.
        let beside = Other { unchecked: Some((at(0), at(60_500))), ..other("y", [60_500, 63_000, 63_000], &[&art]) };
        assert_eq!(fresh.heard_before(&art, &[dead(), beside], at(60_000)), at(38_000));
        let again = Other { unchecked: Some((at(40_000), at(900))), ..other("y", [59_000, 63_000, 63_000], &[&art]) };
        assert_eq!(fresh.heard_before(&art, &[dead(), again], at(60_000)), at(40_000), "it was deaf itself");
        let behind = other("y", [1_000, 99_000, 45_000], &[&art]);
        assert_eq!(fresh.heard_before(&art, &[behind], at(60_000)), at(45_000));
        assert_eq!(asking().heard_before(&art, &[dead()], at(60_000)), at(50_000), "it heard that itself");
        let moved = job("art", "picture:{name}");
        assert_eq!(fresh.heard_before(&moved, &[dead()], at(60_000)), RedisTime::ZERO, "its keys are new");
    }
}
