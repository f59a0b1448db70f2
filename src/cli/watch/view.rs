//! The collected state: counts of events, the last events, and the last poll.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use chrono::{DateTime, Local};
use serde::Serialize;

use super::news::{News, Poll, Reads};
use crate::entry::Outcome;
use crate::entry::duration;
use crate::ops::reads::{self, ReportedReads};
use crate::ops::status::UpstreamStatus;
use crate::redis::RedisTime;
use crate::telemetry::{Event, Invalidation, WorkerReport};

/// The most events that are kept.
const RECENT: usize = 500;
/// The most times of a job from which percentiles are computed.
const TIMES: usize = 500;
/// The time in which all workers report the same message of the channel.
const TOGETHER: Duration = Duration::from_secs(10);
/// The longest time between the reports of two workers of when they handled the same message of the channel.
const APART: Duration = Duration::from_secs(2);
/// The polls over which reads are summed.
const POLLS: usize = 10;

/// The state that is shown.
#[derive(Debug)]
pub(super) struct View {
    /// The Redis URL.
    pub(super) server: String,
    /// The filter; empty for all.
    pub(super) only: String,
    /// Why no events are received.
    pub(super) disconnected: Option<String>,
    /// Why Redis cannot be polled.
    pub(super) unreachable: Option<String>,
    /// The last poll.
    pub(super) poll: Option<Poll>,
    /// The events of each job since the start.
    pub(super) tallies: BTreeMap<String, Tally>,
    /// The last events, the newest last.
    pub(super) recent: VecDeque<(String, Event)>,
    /// Events that workers dropped.
    pub(super) dropped: u64,
    /// Invalidations since the start.
    pub(super) invalidations: u64,
    /// Messages of the channel of late, by what they name. Each worker reports each of them.
    bare: BTreeMap<String, Bare>,
    reads: VecDeque<Reads>,
    summed_up: Instant,
    since_summary: Tally,
    before: (u64, u64),
}

/// Messages of the channel with the same names.
#[derive(Debug)]
struct Bare {
    /// When one was last reported.
    heard: Instant,
    /// The count of each worker's reports of one. A worker that started later counts as if it had heard the earlier
    /// ones.
    times: BTreeMap<String, u64>,
    /// The count of the worker that reported most.
    most: u64,
    /// When those were handled that were reported first, without those that are older than [`APART`].
    recent: VecDeque<RedisTime>,
}

impl Bare {
    fn new() -> Self {
        Self { heard: Instant::now(), times: BTreeMap::new(), most: 0, recent: VecDeque::new() }
    }

    /// Counts a worker's report of a message that it handled at `at`. Returns `true` if no other worker has reported
    /// it.
    fn is_first(&mut self, worker: &str, at: RedisTime) -> bool {
        self.heard = Instant::now();
        let (most, recent) = (self.most, &self.recent);
        let before = || most.saturating_sub(recent.iter().filter(|other| other.abs_diff(at) <= APART).count() as u64);
        let times = self.times.entry(worker.to_owned()).or_insert_with(before);
        *times += 1;
        if *times <= self.most {
            return false;
        }
        self.most = *times;
        self.recent.retain(|other| other.abs_diff(at) <= APART);
        self.recent.push_back(at);
        true
    }
}

/// Outcomes of entries and their times.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    outcomes: BTreeMap<&'static str, u64>,
    lags: VecDeque<u64>,
    took: VecDeque<u64>,
}

impl Tally {
    fn add(&mut self, outcome: Outcome, lag_ms: u64, took_ms: u64) {
        *self.outcomes.entry(outcome.as_str()).or_default() += 1;
        // The lag of an entry that was not warmed means nothing.
        if matches!(outcome, Outcome::Warmed | Outcome::Unchanged) {
            push(&mut self.lags, lag_ms, TIMES);
            push(&mut self.took, took_ms, TIMES);
        }
    }

    /// Returns the number of entries with this outcome.
    pub(super) fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(outcome.as_str()).copied().unwrap_or_default()
    }

    /// Returns p50 and p99 of the time from when entries were due until they were warm (ms).
    pub(super) fn lag(&self) -> Option<(u64, u64)> {
        percentiles(&self.lags)
    }

    /// Returns p50 and p99 of the duration of warming (ms).
    pub(super) fn took(&self) -> Option<(u64, u64)> {
        percentiles(&self.took)
    }
}

/// A summary of events since the last one, and of the current state.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    event: &'static str,
    /// Redis's clock at its last answer.
    at_ms: RedisTime,
    /// Since when Redis has not answered, by its clock: the figures are of then. Absent while it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    unanswered_since_ms: Option<RedisTime>,
    /// The seconds since the last summary, or since the start.
    seconds: f64,
    workers: usize,
    due: u64,
    in_flight: u64,
    dead: u64,
    outcomes: BTreeMap<&'static str, u64>,
    invalidations: u64,
    dropped: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_p50_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_p99_ms: Option<u64>,
    /// Redis's own counts of the last ten seconds, of all clients and with Samovar's look-ups.
    keyspace_hits: u64,
    keyspace_misses: u64,
    keyspace_hit_rate: Option<f64>,
    /// The reads that these are of; `None` before they are known.
    #[serde(skip)]
    reads: Option<Reads>,
    jobs: Vec<JobSummary>,
    /// Upstreams that are closed or have a budget.
    upstreams: Vec<UpstreamStatus>,
}

#[derive(Clone, Debug, Serialize)]
struct JobSummary {
    job: String,
    due: u64,
    in_flight: u64,
    dead: u64,
    paused: bool,
    /// The reads that services report; null if none are.
    reads: Option<ReportedReads>,
}

impl View {
    pub(super) fn new(server: String, only: String) -> Self {
        Self {
            server,
            only,
            disconnected: Some("connecting".to_owned()),
            unreachable: None,
            poll: None,
            tallies: BTreeMap::new(),
            recent: VecDeque::new(),
            dropped: 0,
            invalidations: 0,
            bare: BTreeMap::new(),
            reads: VecDeque::new(),
            summed_up: Instant::now(),
            since_summary: Tally::default(),
            before: (0, 0),
        }
    }

    /// Returns `true` if an input is a failure that lasts, with the same reason.
    pub(super) fn knows(&self, news: &News) -> bool {
        match news {
            News::Disconnected(why) => self.disconnected.as_ref() == Some(why),
            News::Unreachable(why) => self.unreachable.as_ref() == Some(why),
            News::Connected | News::Report(_) | News::Polled(_) => false,
        }
    }

    /// Adds an input.
    pub(super) fn take(&mut self, news: News) {
        match news {
            News::Connected => self.disconnected = None,
            News::Disconnected(why) => self.disconnected = Some(why),
            News::Unreachable(why) => self.unreachable = Some(why),
            News::Report(report) => self.hear(report),
            News::Polled(poll) => self.see(*poll),
        }
    }

    /// Returns `true` while events are received and Redis is polled.
    pub(super) fn is_complete(&self) -> bool {
        self.disconnected.is_none() && self.poll.is_some()
    }

    /// Drops the events that tell of a message of the channel again: each worker handles and reports it.
    pub(super) fn drop_repeats(&mut self, report: &mut WorkerReport) {
        let worker = &report.worker;
        report.events.retain(|event| match event {
            Event::Ended(_) => true,
            Event::Invalidation(invalidation) => self.is_first(worker, invalidation),
        });
    }

    /// Counts an invalidation, and returns `true` if no other worker has reported it. Messages of the channel with the
    /// same names count as often as the worker reports them that does most often.
    fn is_first(&mut self, worker: &str, invalidation: &Invalidation) -> bool {
        let Invalidation { at_ms, way, action, keys, patterns, tags, jobs, .. } = invalidation;
        if way != "channel" {
            self.invalidations += 1;
            return true;
        }
        self.bare.retain(|_, bare| bare.heard.elapsed() < TOGETHER);
        let names = format!("{:?}", (action, keys, patterns, tags, jobs));
        let is_first = self.bare.entry(names).or_insert_with(Bare::new).is_first(worker, *at_ms);
        self.invalidations += u64::from(is_first);
        is_first
    }

    fn hear(&mut self, WorkerReport { worker, dropped, events }: WorkerReport) {
        self.dropped += dropped;
        for event in events {
            match &event {
                Event::Ended(ended) => {
                    let tally = self.tallies.entry(ended.job.clone()).or_default();
                    tally.add(ended.outcome, ended.lag_ms, ended.took_ms);
                    self.since_summary.add(ended.outcome, ended.lag_ms, ended.took_ms);
                }
                // They are counted when repeats are dropped.
                Event::Invalidation(_) => {}
            }
            push(&mut self.recent, (worker.clone(), event), RECENT);
        }
    }

    /// The polls' own reads do not count: the sum is from the end of one poll to the start of the next.
    fn see(&mut self, poll: Poll) {
        self.unreachable = None;
        if let Some((before, last)) = poll.before.zip(self.poll.as_ref().and_then(|last| last.after)) {
            let hits = before.hits.checked_sub(last.hits);
            let misses = before.misses.checked_sub(last.misses);
            match (hits, misses) {
                (Some(hits), Some(misses)) => push(&mut self.reads, Reads { hits, misses }, POLLS),
                // Redis was restarted.
                _ => self.reads.clear(),
            }
        }
        self.poll = Some(poll);
    }

    /// Returns since when Redis has not answered, by its clock: the figures of the last poll are of then. `None` while
    /// it answers, and before its first answer.
    pub(super) fn unanswered_since(&self) -> Option<RedisTime> {
        self.poll.as_ref().filter(|_| self.unreachable.is_some()).map(|poll| poll.now)
    }

    /// Returns the reads of Redis in the last ten seconds, by all clients; `None` before they are known.
    pub(super) fn reads(&self) -> Option<Reads> {
        let add = |sum: Reads, more: Reads| Reads { hits: sum.hits + more.hits, misses: sum.misses + more.misses };
        self.reads.iter().copied().reduce(add)
    }

    /// Returns a line for each upstream that is closed or has a budget.
    pub(super) fn upstreams(&self) -> Vec<(bool, String)> {
        let Some(poll) = &self.poll else { return Vec::new() };
        poll.upstreams.iter().filter_map(|upstream| about(upstream, poll.now)).collect()
    }

    /// Returns a summary of events since the last call, and of the current state.
    pub(super) fn sum_up(&mut self) -> Summary {
        let tally = std::mem::take(&mut self.since_summary);
        let before = std::mem::replace(&mut self.before, (self.invalidations, self.dropped));
        let seconds = std::mem::replace(&mut self.summed_up, Instant::now()).elapsed().as_secs_f64();
        let poll = self.poll.as_ref();
        let jobs: Vec<JobSummary> = poll.map(|poll| &poll.jobs).into_iter().flatten().map(of_job).collect();
        let sum = |what: fn(&JobSummary) -> u64| jobs.iter().map(what).sum();
        let reads = self.reads();
        let upstreams = poll.map(|poll| &poll.upstreams).into_iter().flatten();
        let upstreams = upstreams.filter(|upstream| upstream.closed.is_some() || upstream.tokens_budget.is_some());
        Summary {
            event: "summary",
            at_ms: poll.map(|poll| poll.now).unwrap_or_default(),
            unanswered_since_ms: self.unanswered_since(),
            seconds: (seconds * 10.0).round() / 10.0,
            workers: poll.map(|poll| poll.workers).unwrap_or_default(),
            due: sum(|job| job.due),
            in_flight: sum(|job| job.in_flight),
            dead: sum(|job| job.dead),
            lag_p50_ms: tally.lag().map(|(half, _)| half),
            lag_p99_ms: tally.lag().map(|(_, most)| most),
            outcomes: tally.outcomes,
            invalidations: self.invalidations - before.0,
            dropped: self.dropped - before.1,
            keyspace_hits: reads.unwrap_or_default().hits,
            keyspace_misses: reads.unwrap_or_default().misses,
            keyspace_hit_rate: reads.and_then(rate),
            reads,
            upstreams: upstreams.cloned().collect(),
            jobs,
        }
    }
}

impl Summary {
    /// Returns the summary as text.
    pub(super) fn line(&self) -> String {
        let mut parts = vec![match self.workers {
            0 => "no worker is running".to_owned(),
            1 => "1 worker".to_owned(),
            n => format!("{n} workers"),
        }];
        parts.push(format!("{} due, {} in hand, {} dead", self.due, self.in_flight, self.dead));
        let ended: Vec<String> = self.outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        let ended = if ended.is_empty() { "nothing".to_owned() } else { ended.join(", ") };
        if self.seconds >= 1.0 || !self.outcomes.is_empty() {
            parts.push(format!("in {}s {ended}", self.seconds));
        }
        if self.invalidations > 0 {
            parts.push(format!("{} invalidations", self.invalidations));
        }
        if let (Some(half), Some(most)) = (self.lag_p50_ms, self.lag_p99_ms) {
            parts.push(format!("lag p50 {}, p99 {}", ms(half), ms(most)));
        }
        parts.extend(self.reads.map(hit_rate));
        if self.dropped > 0 {
            parts.push(format!("{} events dropped", self.dropped));
        }
        parts.extend(self.upstreams.iter().filter_map(|upstream| Some(about(upstream, self.at_ms)?.1)));
        let since = self.unanswered_since_ms.map(|since| format!("{}, as of then: ", unanswered(since)));
        format!("-- {}{}", since.unwrap_or_default(), parts.join("; "))
    }
}

fn of_job(status: &crate::ops::status::JobStatus) -> JobSummary {
    JobSummary {
        job: status.job.clone(),
        due: status.due,
        in_flight: status.in_flight,
        dead: status.dead,
        paused: status.paused_ms.is_some(),
        reads: status.reads.clone(),
    }
}

/// Returns whether an upstream is closed, and a line about it.
fn about(upstream: &UpstreamStatus, now: RedisTime) -> Option<(bool, String)> {
    let mut words = Vec::from_iter(upstream.closed_text(now));
    if let (Some(spent), Some(budget)) = (upstream.tokens_spent, upstream.tokens_budget) {
        words.push(format!("{spent} of {budget} tokens spent"));
    }
    let said = format!("{}: {}", upstream.upstream, words.join(", "));
    (!words.is_empty()).then_some((upstream.closed.is_some(), said))
}

/// Returns the hit rate of all reads as text. Redis does not tell them apart by client.
pub(super) fn hit_rate(reads: Reads) -> String {
    match rate(reads) {
        Some(rate) => {
            let all = reads.hits + reads.misses;
            format!("Redis hits {:.1} % of {all} reads (of all clients, workers included)", rate * 100.0)
        }
        None => "no reads".to_owned(),
    }
}

fn rate(Reads { hits, misses }: Reads) -> Option<f64> {
    reads::rate(hits, misses)
}

/// Returns a time of Redis's clock as a local time of day.
pub(super) fn time_of_day(at: RedisTime, format: &str) -> String {
    let time = DateTime::from_timestamp_millis(at.as_millis()).unwrap_or_default();
    time.with_timezone(&Local).format(format).to_string()
}

/// Returns as text that Redis does not answer.
pub(super) fn unanswered(since: RedisTime) -> String {
    format!("Redis has not answered since {}", time_of_day(since, "%H:%M:%S"))
}

/// Returns a time in milliseconds as text.
pub(super) fn ms(time: u64) -> String {
    duration::rough(Duration::from_millis(time))
}

fn percentiles(times: &VecDeque<u64>) -> Option<(u64, u64)> {
    let mut sorted: Vec<u64> = times.iter().copied().collect();
    sorted.sort_unstable();
    let last = sorted.len().checked_sub(1)?;
    Some((sorted[last / 2], sorted[last * 99 / 100]))
}

fn push<T>(queue: &mut VecDeque<T>, item: T, most: usize) {
    if queue.len() == most {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn poll(before: (u64, u64), after: (u64, u64)) -> News {
        let reads = |(hits, misses)| Some(Reads { hits, misses });
        News::Polled(Box::new(Poll { before: reads(before), after: reads(after), ..Poll::default() }))
    }

    #[test]
    fn our_own_looks_are_no_reads_and_a_restart_begins_anew() {
        let mut view = View::new(String::new(), String::new());
        view.take(poll((100, 10), (150, 60)));
        assert_eq!(view.reads(), None, "not known yet");
        assert!(!view.sum_up().line().contains("reads"));
        view.take(poll((159, 61), (200, 100)));
        assert_eq!(view.reads(), Some(Reads { hits: 9, misses: 1 }));
        assert_eq!(hit_rate(view.reads().unwrap()), "Redis hits 90.0 % of 10 reads (of all clients, workers included)");
        view.take(poll((1, 1), (2, 2)));
        assert_eq!(view.reads(), None);
        view.take(poll((2, 2), (3, 3)));
        assert_eq!(hit_rate(view.reads().unwrap()), "no reads");
    }

    /// Takes a worker's report of invalidations of these keys, heard in this way; returns how many are shown.
    fn hear(view: &mut View, worker: &str, way: &str, keys: &[&str]) -> usize {
        hear_at(view, 1, worker, way, keys)
    }

    fn hear_at(view: &mut View, at_ms: u64, worker: &str, way: &str, keys: &[&str]) -> usize {
        let event = |key: &&str| {
            let invalidation = json!({
                "event": "invalidation", "at_ms": at_ms, "way": way, "action": "refresh", "keys": [key],
                "entries": 1, "due": 1, "removed": 0, "fenced": 0, "foreign": 0,
            });
            serde_json::from_value(invalidation).unwrap()
        };
        let mut report = WorkerReport { worker: worker.into(), dropped: 0, events: keys.iter().map(event).collect() };
        view.drop_repeats(&mut report);
        let shown = report.events.len();
        view.take(News::Report(report));
        shown
    }

    #[test]
    fn a_message_that_all_workers_hear_counts_and_shows_once() {
        let mut view = View::new(String::new(), String::new());
        assert_eq!(hear(&mut view, "one", "channel", &["a", "b", "a"]), 3);
        assert_eq!(hear(&mut view, "two", "channel", &["a", "b", "a"]), 0);
        assert_eq!(view.invalidations, 3);
        assert_eq!(hear(&mut view, "two", "channel", &["a"]), 1);
        assert_eq!(hear(&mut view, "one", "channel", &["a", "c"]), 1);
        assert_eq!(view.invalidations, 5);
        assert_eq!(hear(&mut view, "one", "inbox", &["a"]) + hear(&mut view, "two", "inbox", &["a"]), 2);
        assert_eq!(view.invalidations, 7, "each was read from the inbox by one worker");
        view.bare.values_mut().for_each(|bare| bare.heard = Instant::now().checked_sub(TOGETHER).unwrap());
        assert_eq!(hear(&mut view, "three", "channel", &["a"]), 1, "a later one is another one");
        assert_eq!((view.invalidations, view.recent.len()), (8, 8));
    }

    #[test]
    fn a_worker_that_replaces_another_goes_on_with_its_count() {
        let mut view = View::new(String::new(), String::new());
        let mut shown = 0;
        for second in 0..30 {
            let both = (14..16).contains(&second);
            if second < 14 || both {
                shown += hear_at(&mut view, second * 1_000, "old", "channel", &["a"]);
            }
            if second >= 14 {
                shown += hear_at(&mut view, second * 1_000 + 7, "new", "channel", &["a"]);
            }
        }
        assert!((27..=30).contains(&view.invalidations), "{}", view.invalidations);
        assert_eq!(shown as u64, view.invalidations);
    }

    #[test]
    fn percentiles_are_of_what_was_seen() {
        assert_eq!(percentiles(&VecDeque::new()), None);
        assert_eq!(percentiles(&VecDeque::from([7])), Some((7, 7)));
        assert_eq!(percentiles(&(1..=101).rev().collect()), Some((51, 100)));
    }
}
