//! The ticks of a job: what a warmup at a claimed tick fetches, and which tick follows it.
//!
//! A job has one tick at a time in Redis, the earliest of all its schedules. A late warmup stands for all times that
//! have passed since its tick. If one of them is a refetch, the warmup refetches. Other times may be skipped; a refetch
//! never is: if its time comes during a warmup, the next tick is that time, and the next warmup begins at once.
//!
//! Workers with different files, as during a deployment, share the tick. One with the newest file expands and ends it.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::job::{Job, Schedules};
use crate::redis::RedisTime;

/// A tick that this worker has claimed. If the claim runs out, another worker claims the tick until a later time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) tick: RedisTime,
    pub(super) till: RedisTime,
    /// When it was claimed.
    pub(super) at: RedisTime,
}

impl Claim {
    /// Returns the time of the refetch that this warmup makes: it leaves alone only what was fetched since then.
    /// Returns `None` if it fills.
    pub(super) fn refetch_since(&self, job: &Job) -> Option<RedisTime> {
        let schedules = &job.warm.schedules;
        if schedules.refetch_always() { Some(self.tick) } else { last_refetch(schedules, self.tick, self.at) }
    }

    /// Returns the last time of a schedule that this warmup stands for; its own tick, if that is the only one.
    pub(super) fn last_time(&self, job: &Job) -> RedisTime {
        let last = utc(self.tick).zip(utc(self.at)).and_then(|(from, to)| job.warm.schedules.last(from, to));
        last.map_or(self.tick, redis_time)
    }

    /// Returns the tick after this warmup, which ends `now`. It has passed if it is a refetch that came meanwhile.
    pub(super) fn next(&self, job: &Job, now: RedisTime) -> Option<RedisTime> {
        let schedules = &job.warm.schedules;
        let refetch = schedules.refetch_sometimes().then(|| schedules.next_refetch(utc(self.at)?)).flatten();
        refetch.map(redis_time).into_iter().chain(next_tick(job, now)).min()
    }
}

/// Returns the next tick of a job, later than `now`.
pub(super) fn next_tick(job: &Job, now: RedisTime) -> Option<RedisTime> {
    next_after(job, now).map(|next| next.max(now + Duration::from_millis(1)))
}

/// Returns the time of a job's schedules that follows `time`.
pub(super) fn next_after(job: &Job, time: RedisTime) -> Option<RedisTime> {
    job.warm.schedules.next(utc(time)?).map(redis_time)
}

/// Returns the last refetch from `from` to `to`, of a job that also has warmups that fill.
pub(super) fn last_refetch(schedules: &Schedules, from: RedisTime, to: RedisTime) -> Option<RedisTime> {
    if !schedules.refetch_sometimes() {
        return None;
    }
    schedules.last_refetch(utc(from)?, utc(to)?).map(redis_time)
}

fn utc(time: RedisTime) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(time.as_millis())
}

fn redis_time(time: DateTime<Utc>) -> RedisTime {
    RedisTime::from_millis(time.timestamp_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Jobs;

    /// Returns the job with this `[warm]`.
    fn job(warm: &str) -> Job {
        let text = format!("key = \"art:{{name}}\"\n[source]\nkind = \"http\"\nurl = \"http://h/x\"\n[warm]\n{warm}");
        let files = [("art.toml".to_owned(), text)];
        let jobs = Jobs::parse(&files, Duration::from_secs(3_600), &|_| None).unwrap();
        Job::clone(&jobs.jobs["art"])
    }

    /// Returns a time of this day, or of a later one: `27:00:00` is 3:00 of the next day.
    fn at(text: &str) -> RedisTime {
        let [hours, minutes, seconds]: [f64; 3] =
            text.split(':').map(|part| part.parse().unwrap()).collect::<Vec<_>>().try_into().unwrap();
        let day = DateTime::parse_from_rfc3339("2026-03-28T00:00:00Z").unwrap().timestamp_millis();
        RedisTime::from_millis(day) + Duration::from_secs_f64((hours * 60.0 + minutes) * 60.0 + seconds)
    }

    fn claim(tick: &str, claimed: &str) -> Claim {
        Claim { tick: at(tick), till: at(claimed), at: at(claimed) }
    }

    /// Fill every quarter of an hour, fetch all anew at 4:00.
    const NIGHTLY: &str =
        "[[warm.schedules]]\nevery = \"15m\"\n[[warm.schedules]]\nschedule = \"0 4 * * *\"\nrefetch = true\n";

    #[test]
    fn a_warmup_refetches_if_a_refetch_is_among_its_times() {
        let job = job(NIGHTLY);
        for (tick, claimed, since) in [
            ("3:45:00", "3:45:00", None),
            ("3:45:00", "3:59:59.999", None),
            ("4:00:00", "4:00:00", Some("4:00:00")),
            ("4:00:00", "4:00:00.002", Some("4:00:00")),
            ("4:00:00", "4:20:00", Some("4:00:00")),
            ("4:00:00.001", "4:20:00", None),
            ("4:15:00", "4:15:00.001", None),
            // An outage: the last refetch that was missed counts.
            ("3:45:00", "10:00:00", Some("4:00:00")),
            ("3:45:00", "54:00:00", Some("52:00:00")),
            ("4:00:00", "54:00:00", Some("52:00:00")),
            // The tick of a start lies between the times of schedules.
            ("3:59:59.123", "4:00:01", Some("4:00:00")),
            ("3:50:12.345", "3:50:12.346", None),
            // A clock that was set back since.
            ("4:00:00", "3:00:00", None),
        ] {
            assert_eq!(claim(tick, claimed).refetch_since(&job), since.map(at), "{tick} {claimed}");
        }
    }

    #[test]
    fn a_refetch_that_comes_during_a_warmup_is_the_next_tick() {
        let job = job(NIGHTLY);
        for (claimed, ended, next) in [
            ("3:45:00", "3:45:01", "4:00:00"),
            ("3:59:00", "4:00:00", "4:00:00"),
            ("3:59:00", "4:31:00", "4:00:00"),
            ("4:00:00", "4:00:01", "4:15:00"),
            ("4:00:00", "4:31:00", "4:45:00"),
            ("4:00:00", "28:31:00", "28:00:00"),
        ] {
            assert_eq!(claim(claimed, claimed).next(&job, at(ended)), Some(at(next)), "{claimed} {ended}");
        }
    }

    #[test]
    fn a_single_schedule_refetches_at_each_tick_or_never() {
        for (warm, refetches) in [
            ("every = \"15m\"\nrefetch = true\n", true),
            ("every = \"15m\"\n", false),
            ("refetch = true\n", true),
            ("schedules = [{ every = \"15m\", refetch = true }, { schedule = \"0 4 * * *\", refetch = true }]\n", true),
            ("schedules = [{ every = \"15m\" }]\n", false),
        ] {
            let job = job(warm);
            for tick in ["4:00:00", "3:50:12.345"] {
                let since = claim(tick, "20:00:00").refetch_since(&job);
                assert_eq!(since, refetches.then(|| at(tick)), "{warm} {tick}");
            }
            // What passed meanwhile is skipped.
            let next = claim("3:45:00", "3:45:00").next(&job, at("4:31:00"));
            assert_eq!(next, warm.contains("15m").then(|| at("4:45:00")), "{warm}");
        }
    }

    #[test]
    fn each_schedule_follows_its_own_clock() {
        // Berlin: 2026-03-29 02:00 → 03:00 at 01:00 UTC. New York is at UTC-4.
        let job = job("[[warm.schedules]]\nschedule = \"30 2 * * *\"\ntimezone = \"Europe/Berlin\"\nrefetch = true\n\
             [[warm.schedules]]\nschedule = \"0 22 * * *\"\ntimezone = \"America/New_York\"\n");
        let ticks: Vec<_> =
            std::iter::successors(next_tick(&job, at("0:00:00")), |tick| next_tick(&job, *tick)).take(4).collect();
        assert_eq!(ticks, ["1:30:00", "2:00:00", "25:00:00", "26:00:00"].map(at));
        let refetches =
            ticks.iter().map(|tick| Claim { tick: *tick, till: *tick, at: *tick }.refetch_since(&job).is_some());
        assert_eq!(refetches.collect::<Vec<_>>(), [true, false, true, false]);
    }

    #[test]
    fn a_warmup_that_stays_open_stands_for_later_times() {
        let job = job(NIGHTLY);
        for (tick, claimed, last) in [
            ("4:00:00", "4:14:59", "4:00:00"),
            ("4:00:00", "4:15:00", "4:15:00"),
            ("4:00:00", "9:59:00", "9:45:00"),
            ("3:50:12.345", "3:59:00", "3:50:12.345"),
        ] {
            assert_eq!(claim(tick, claimed).last_time(&job), at(last), "{tick} {claimed}");
        }
    }
}
