//! The schedules of a job: when its warmups run, and which of them fetch everything.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use std::fmt;

use super::Schedule;

/// One schedule of a job.
#[derive(Clone, Debug)]
pub struct JobSchedule {
    /// When warmups run.
    pub schedule: Schedule,
    /// They also fetch values that are still good.
    pub refetch: bool,
}

/// As in the file, with the time zone unless it is UTC, and with `(refetch)`.
impl fmt::Display for JobSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.schedule.as_str())?;
        if let Some(zone) = self.schedule.timezone().filter(|zone| *zone != Tz::UTC) {
            write!(f, " {zone}")?;
        }
        if self.refetch { f.write_str(" (refetch)") } else { Ok(()) }
    }
}

/// All schedules of a job. Without any, warmups run only at the start, after a change of the file, and after a flush.
#[derive(Clone, Debug, Default)]
pub struct Schedules {
    list: Vec<JobSchedule>,
    refetch_always: bool,
}

impl Schedules {
    /// One schedule or none. `refetch` holds for all warmups, also for those that no schedule asks for.
    pub(super) fn single(schedule: Option<Schedule>, refetch: bool) -> Self {
        let list = schedule.map(|schedule| JobSchedule { schedule, refetch }).into_iter().collect();
        Self { list, refetch_always: refetch }
    }

    /// A list of schedules. The other warmups fetch everything if those of all schedules do.
    pub(super) fn several(list: Vec<JobSchedule>) -> Self {
        let refetch_always = !list.is_empty() && list.iter().all(|one| one.refetch);
        Self { list, refetch_always }
    }

    /// The schedules, in the file's order.
    pub fn list(&self) -> &[JobSchedule] {
        &self.list
    }

    /// Returns whether each warmup fetches everything.
    pub fn refetch_always(&self) -> bool {
        self.refetch_always
    }

    /// Returns whether some warmups fetch everything and others do not.
    pub fn refetch_sometimes(&self) -> bool {
        !self.refetch_always && self.refetching().next().is_some()
    }

    /// Returns the first time of any schedule later than `after`.
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.list.iter().filter_map(|one| one.schedule.next(after)).min()
    }

    /// Returns the last time of any schedule from `from` to `to`, both included.
    pub fn last(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.list.iter().filter_map(|one| one.schedule.last(from, to)).max()
    }

    /// Returns the first time of a schedule with `refetch` later than `after`.
    pub fn next_refetch(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.refetching().filter_map(|schedule| schedule.next(after)).min()
    }

    /// Returns the last time of a schedule with `refetch` from `from` to `to`, both included.
    pub fn last_refetch(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.refetching().filter_map(|schedule| schedule.last(from, to)).max()
    }

    /// Returns the schedules as texts joined by `; `; `None` if there is none.
    pub fn text(&self) -> Option<String> {
        let texts: Vec<String> = self.list.iter().map(JobSchedule::to_string).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    fn refetching(&self) -> impl Iterator<Item = &Schedule> {
        self.list.iter().filter(|one| one.refetch).map(|one| &one.schedule)
    }
}
