//! Metrics: all names and their meaning.
//!
//! Label values are jobs, upstreams, words of closed sets, and a bounded number of masters, never keys, so that the
//! number of series is bounded.
//! Counters and histograms are of this process; gauges of the fleet are the same from each worker.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use tracing::debug;

use crate::entry::Trigger;
use crate::entry::{JobName, UpstreamName};
use crate::entry::{Outcome, Recheck, Usage};
use crate::redis::RedisTime;

const ENTRIES: &str = "samovar_entries_total";
const RECHECKS: &str = "samovar_rechecks_total";
const BEHIND: &str = "samovar_upstream_behind_total";
const UPSTREAM_LAG: &str = "samovar_upstream_lag_seconds";
const LAG: &str = "samovar_lag_seconds";
const FETCH: &str = "samovar_fetch_duration_seconds";
const TOKENS: &str = "samovar_tokens_total";
const INVALIDATIONS: &str = "samovar_invalidations_total";
const MALFORMED: &str = "samovar_invalidations_malformed_total";
const FOREIGN: &str = "samovar_invalidations_foreign_total";
const WAITING: &str = "samovar_invalidations_waiting";
const DEAD_TOTAL: &str = "samovar_dead_letters_total";
const FEED_FAILURES: &str = "samovar_feed_failures_total";
const HELD_BACK: &str = "samovar_removals_held_total";

const AGENDA_DUE: &str = "samovar_agenda_due";
const AGENDA_IN_HAND: &str = "samovar_agenda_in_hand";
const DEAD: &str = "samovar_dead_letters";
const WARM: &str = "samovar_warm_entries";
const OLDEST: &str = "samovar_oldest_value_age_seconds";
const OLD: &str = "samovar_old_entries";
const PAUSED: &str = "samovar_job_paused";
const HOLDING: &str = "samovar_gone_guard_holding";
const WARMED_UP: &str = "samovar_warmup_last_success_timestamp_seconds";
const IN_HAND: &str = "samovar_in_hand";
const WORKERS: &str = "samovar_workers";
const IN_FLIGHT: &str = "samovar_upstream_in_flight";
const OPEN: &str = "samovar_upstream_open";
const SPENT: &str = "samovar_tokens_spent";
const BUDGET: &str = "samovar_tokens_budget";
const WINDOW_ENDS: &str = "samovar_tokens_window_ends_timestamp_seconds";
const JOB_SPENT: &str = "samovar_job_tokens_spent_total";
const JOB_SAVED: &str = "samovar_job_tokens_saved_total";
const CALLS_SAVED: &str = "samovar_job_calls_saved_total";
const NOT_MODIFIED: &str = "samovar_job_not_modified_total";
const JOB_HITS: &str = "samovar_job_hits_total";
const JOB_MISSES: &str = "samovar_job_misses_total";
const JOB_STALE_HITS: &str = "samovar_job_stale_hits_total";
const JOB_AUDITS: &str = "samovar_job_audits_total";
const ANSWERS: &str = "samovar_upstream_answers_total";
const RELOAD_REFUSED: &str = "samovar_reload_refused";
const REDIS_UP: &str = "samovar_redis_up";
const MASTERS: &str = "samovar_redis_masters";
const MASTER: &str = "samovar_redis_master_info";
const SENTINELS_ANSWERING: &str = "samovar_sentinels_answering";
const SENTINELS_KNOWN: &str = "samovar_sentinels_known";
const BUILD: &str = "samovar_build_info";

/// The masters that a process names at most: as many servers as a Cluster may have.
const MOST_MASTERS: usize = 1_000;

/// Counters that Redis keeps. They fall when Redis loses them, which a counter of the recorder cannot do, so they are
/// recorded as gauges.
const KEPT_IN_REDIS: [&str; 8] =
    [JOB_SPENT, JOB_SAVED, CALLS_SAVED, NOT_MODIFIED, JOB_HITS, JOB_MISSES, JOB_STALE_HITS, JOB_AUDITS];

/// From a nearby cached answer to a slow model's timeout.
const FETCH_SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
/// From an immediate invalidation to a backlog of hours.
const LAG_SECONDS: [f64; 11] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0];

/// From a cache in between to a slow replica.
const UPSTREAM_LAG_SECONDS: [f64; 10] = [0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0];

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
static PROCESS: LazyLock<Collector> = LazyLock::new(Collector::default);

/// Starts recording in this process; only the first call has an effect. Earlier counts are lost.
pub fn install() {
    RECORDER.get_or_init(|| {
        let buckets = |builder: PrometheusBuilder, name: &str, bounds: &[f64]| {
            builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)
        };
        let builder = buckets(PrometheusBuilder::new(), FETCH, &FETCH_SECONDS)
            .and_then(|builder| buckets(builder, LAG, &LAG_SECONDS))
            .and_then(|builder| buckets(builder, UPSTREAM_LAG, &UPSTREAM_LAG_SECONDS))
            .unwrap_or_default();
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            debug!("another recorder is installed in this process: `GET /metrics` is empty");
        }
        describe();
        handle
    });
}

fn describe() {
    describe_counter!(ENTRIES, "Entries whose warming ended, by outcome and trigger.");
    describe_counter!(RECHECKS, "Rechecks that asked the upstream, by what they found.");
    describe_counter!(BEHIND, "Answers with a lower version than the stored or the announced one.");
    describe_counter!(DEAD_TOTAL, "Entries moved to the dead letters.");
    describe_counter!(FEED_FAILURES, "Requests to a job's feed without a usable answer, and requests not admitted.");
    describe_counter!(HELD_BACK, "Answers that an entry is gone whose removal was held back.");
    describe_counter!(TOKENS, "AI tokens spent, whether or not the answers were usable.");
    describe_counter!(INVALIDATIONS, "Invalidations handled, by channel or inbox.");
    describe_counter!(MALFORMED, "Messages that were invalid.");
    describe_counter!(FOREIGN, "Keys and jobs in invalidations that belong to no known job.");
    describe_histogram!(LAG, Unit::Seconds, "Time from when an entry was due until it was warm.");
    describe_histogram!(
        UPSTREAM_LAG,
        Unit::Seconds,
        "Time from an invalidation until a recheck found another value: the upstream's lag at most."
    );
    describe_histogram!(FETCH, Unit::Seconds, "Durations of requests to upstreams, by result.");
    describe_gauge!(AGENDA_DUE, "Entries due and not yet claimed, in the fleet.");
    describe_gauge!(AGENDA_IN_HAND, "Entries claimed by workers, in the fleet.");
    describe_gauge!(DEAD, "Dead letters, in the fleet.");
    describe_gauge!(WARM, "Entries with a value at the last count, in the fleet.");
    describe_gauge!(OLDEST, Unit::Seconds, "Age of the oldest value as of the last count, in the fleet.");
    describe_gauge!(OLD, "Values kept beyond their TTL while their source fails, as of the last count, in the fleet.");
    describe_gauge!(PAUSED, "1 while the job is paused.");
    describe_gauge!(HOLDING, "1 while the job's guard holds removals back.");
    describe_gauge!(
        WARMED_UP,
        Unit::Seconds,
        "When the job's last complete warmup ended (Unix time), in the fleet; NaN before the first one."
    );
    describe_gauge!(WAITING, "Invalidations by pattern, tag or job, or of many keys, that wait in this worker.");
    describe_gauge!(IN_HAND, "Entries claimed by this worker.");
    describe_gauge!(WORKERS, "Live workers.");
    describe_gauge!(IN_FLIGHT, "Requests of this worker in flight.");
    describe_gauge!(OPEN, "1 while the upstream's breaker is open and only occasional probes are sent.");
    describe_gauge!(SPENT, "AI tokens spent in the current window, by the fleet.");
    describe_gauge!(BUDGET, "AI tokens that may be spent in a window, by the fleet.");
    describe_gauge!(
        WINDOW_ENDS,
        Unit::Seconds,
        "When the current window ends (Unix time); NaN while nothing is spent in it."
    );
    describe_gauge!(JOB_SPENT, "AI tokens spent since the job's counters started, by the fleet.");
    describe_gauge!(JOB_SAVED, "AI tokens saved since then by keeping unchanged values, by the fleet.");
    describe_gauge!(CALLS_SAVED, "AI calls saved since then by keeping unchanged values, by the fleet.");
    describe_gauge!(NOT_MODIFIED, "HTTP answers 304 since then, in the fleet.");
    describe_gauge!(
        JOB_HITS,
        "Reads of the job's keys that found a value, as services report them; absent without reports."
    );
    describe_gauge!(JOB_MISSES, "Reads of the job's keys that found none, as services report them.");
    describe_gauge!(JOB_STALE_HITS, "Those of the hits that services know or suppose to be out of date.");
    describe_gauge!(JOB_AUDITS, "Freshness audits by result, in the fleet; absent before the first one.");
    describe_counter!(ANSWERS, "Answers of upstreams, by class of the status; `none` for a request without an answer.");
    describe_gauge!(RELOAD_REFUSED, "1 while the job files of the last reload are refused and the old jobs stay.");
    describe_gauge!(REDIS_UP, "1 while Redis answers.");
    describe_gauge!(MASTERS, "Masters of Redis that are known, by topology: single, sentinel or cluster.");
    describe_gauge!(MASTER, "1 for each master of Redis; 0 once it is none any more. The label is its address.");
    describe_gauge!(SENTINELS_ANSWERING, "Sentinels that name the master now; absent without Sentinels.");
    describe_gauge!(SENTINELS_KNOWN, "Sentinels that are asked for the master; absent without Sentinels.");
    describe_gauge!(BUILD, "Always 1; the label is the version.");
    PROCESS.describe();
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    counter!(MALFORMED).absolute(0);
    counter!(FOREIGN).absolute(0);
    for way in ["channel", "inbox"] {
        counter!(INVALIDATIONS, "way" => way).absolute(0);
    }
}

/// Returns all metrics in Prometheus's text format; gauges keep their last value.
pub fn render() -> String {
    PROCESS.collect();
    let text = RECORDER.get().map(PrometheusHandle::render).unwrap_or_default();
    KEPT_IN_REDIS.iter().fold(text, |text, name| {
        text.replacen(&format!("# TYPE {name} gauge\n"), &format!("# TYPE {name} counter\n"), 1)
    })
}

/// Aggregates recorded samples, so that they take no memory while nobody scrapes.
pub(super) fn upkeep() {
    if let Some(recorder) = RECORDER.get() {
        recorder.run_upkeep();
    }
}

pub(super) fn entry(job: &JobName, outcome: Outcome, trigger: Trigger) {
    counter!(ENTRIES, "job" => Arc::<str>::from(job), "outcome" => outcome.as_str(), "trigger" => trigger.as_str())
        .increment(1);
}

pub(super) fn lag(job: &JobName, lag: Duration) {
    histogram!(LAG, "job" => Arc::<str>::from(job)).record(lag);
}

pub(super) fn recheck(job: &JobName, found: Recheck) {
    counter!(RECHECKS, "job" => Arc::<str>::from(job), "found" => found.as_str()).increment(1);
    if let Recheck::Changed(lag) = found {
        histogram!(UPSTREAM_LAG, "job" => Arc::<str>::from(job)).record(lag);
    }
}

pub(super) fn behind(job: &JobName) {
    counter!(BEHIND, "job" => Arc::<str>::from(job)).increment(1);
}

pub(super) fn dead_letter(job: &JobName) {
    counter!(DEAD_TOTAL, "job" => job.to_string()).increment(1);
}

/// Counts a failure of a job's feed.
pub(crate) fn feed_failed(job: &JobName) {
    counter!(FEED_FAILURES, "job" => job.to_string()).increment(1);
}

/// Counts a removal that is held back.
pub(crate) fn removal_held(job: &JobName) {
    counter!(HELD_BACK, "job" => job.to_string()).increment(1);
}

/// Starts the counter of removals that are held back at zero, so that the first one is an increase.
pub(crate) fn count_removals_held(job: &JobName) {
    counter!(HELD_BACK, "job" => job.to_string()).increment(0);
}

/// Starts the counter of a feed's failures at zero, so that the first one is an increase.
pub(crate) fn count_feed_failures(job: &JobName) {
    counter!(FEED_FAILURES, "job" => job.to_string()).increment(0);
}

pub(super) fn invalidation(way: &'static str, foreign: u64) {
    counter!(INVALIDATIONS, "way" => way).increment(1);
    counter!(FOREIGN).increment(foreign);
}

pub(super) fn malformed() {
    counter!(MALFORMED).increment(1);
}

pub(super) fn paused(job: &JobName, paused: bool) {
    gauge!(PAUSED, "job" => job.to_string()).set(f64::from(u8::from(paused)));
}

/// Records the end of a request to an upstream. `result` is `answer`, `unusable`, `failed`, `busy` (told to wait) or
/// `refused` (account refused).
pub(crate) fn fetched(upstream: &UpstreamName, job: &JobName, result: &'static str, took: Duration, tokens: u64) {
    histogram!(FETCH, "upstream" => Arc::<str>::from(upstream), "result" => result).record(took);
    super::history::fetched(upstream, job, result != "answer", took, tokens);
    if tokens > 0 {
        counter!(TOKENS, "job" => job.to_string(), "upstream" => upstream.to_string()).increment(tokens);
    }
}

/// Counts an answer of an upstream by its status; `None` for a request without an answer.
pub(crate) fn answered(upstream: &UpstreamName, status: Option<u16>) {
    let class = match status {
        None => "none",
        Some(200..=299) => "2xx",
        Some(300..=399) => "3xx",
        Some(400..=499) => "4xx",
        Some(500..=599) => "5xx",
        Some(_) => "other",
    };
    counter!(ANSWERS, "upstream" => Arc::<str>::from(upstream), "class" => class).increment(1);
}

/// The gauges of a job in the fleet; `None` if Redis does not answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct JobGauges {
    /// Entries due and not yet claimed.
    pub due: Option<u64>,
    /// Entries claimed by workers.
    pub in_flight: Option<u64>,
    /// Dead letters.
    pub dead: Option<u64>,
    /// Entries with a value.
    pub warm: Option<u64>,
    /// Age of the oldest value.
    pub oldest_age: Option<Duration>,
    /// Values kept beyond their TTL.
    pub old: Option<u64>,
    /// `true` while the job is paused.
    pub paused: Option<bool>,
    /// `true` while the job's guard holds removals back.
    pub holding: Option<bool>,
    /// When the last complete warmup ended.
    pub warmed_up: Option<RedisTime>,
    /// The job's usage.
    pub usage: Option<Usage>,
    /// Hits, misses and stale hits that services report.
    pub reads: Option<[u64; 3]>,
}

/// Sets the counts of a job's freshness audits, by result.
pub fn set_audits(job: &JobName, counts: impl IntoIterator<Item = (&'static str, u64)>) {
    for (result, count) in counts {
        #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
        gauge!(JOB_AUDITS, "job" => job.to_string(), "result" => result).set(count as f64);
    }
}

/// Sets the gauges of a job.
pub fn set_job(job: &JobName, gauges: JobGauges) {
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    let set = |name: &'static str, value: Option<u64>| {
        gauge!(name, "job" => job.to_string()).set(value.map_or(f64::NAN, |value| value as f64));
    };
    set(AGENDA_DUE, gauges.due);
    set(AGENDA_IN_HAND, gauges.in_flight);
    set(DEAD, gauges.dead);
    set(WARM, gauges.warm);
    set(OLD, gauges.old);
    set(PAUSED, gauges.paused.map(u64::from));
    set(HOLDING, gauges.holding.map(u64::from));
    // A counter keeps its last value, also after its job is removed, as the counters of this process do: NaN would
    // spoil the rates over it.
    if let Some(Usage { tokens_spent, tokens_saved, calls_saved, not_modified, .. }) = gauges.usage {
        for (name, count) in KEPT_IN_REDIS.into_iter().zip([tokens_spent, tokens_saved, calls_saved, not_modified]) {
            set(name, Some(count));
        }
    }
    for (name, count) in [JOB_HITS, JOB_MISSES, JOB_STALE_HITS].into_iter().zip(gauges.reads.into_iter().flatten()) {
        set(name, Some(count));
    }
    let age = gauges.oldest_age.map_or(f64::NAN, |age| age.as_secs_f64());
    gauge!(OLDEST, "job" => job.to_string()).set(age);
    set(WARMED_UP, gauges.warmed_up.and_then(|at| u64::try_from(at.as_millis() / 1_000).ok()));
}

/// An upstream's token budget.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Tokens that may be spent in a window.
    pub budget: u64,
    /// Tokens spent in the current window; `None` if Redis does not answer.
    pub spent: Option<u64>,
    /// When the current window ends; `None` while nothing is spent in it.
    pub ends: Option<RedisTime>,
}

/// Sets the gauges of an upstream: this worker's requests in flight, the breaker, and the token budget if there is one.
pub fn set_upstream(upstream: &UpstreamName, in_flight: usize, open: bool, tokens: Option<Budget>) {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let set = |name: &'static str, value: Option<u64>| {
        gauge!(name, "upstream" => upstream.to_string()).set(value.map_or(f64::NAN, |value| value as f64));
    };
    set(IN_FLIGHT, Some(in_flight as u64));
    set(OPEN, Some(u64::from(open)));
    if let Some(Budget { budget, spent, ends }) = tokens {
        set(SPENT, spent);
        set(BUDGET, Some(budget));
        set(WINDOW_ENDS, ends.and_then(|at| u64::try_from(at.as_millis() / 1_000).ok()));
    }
}

/// Clears the gauges of an upstream that no job uses any more.
pub fn forget_upstream(upstream: &UpstreamName) {
    for name in [IN_FLIGHT, OPEN, SPENT, BUDGET, WINDOW_ENDS] {
        gauge!(name, "upstream" => upstream.to_string()).set(f64::NAN);
    }
}

/// Sets the gauge that tells whether the last reload was refused.
pub fn set_reload_refused(refused: bool) {
    gauge!(RELOAD_REFUSED).set(f64::from(u8::from(refused)));
}

/// Sets the gauges of Redis's masters, as this worker sees them. One that is no master any more has 0.
pub fn set_masters(topology: &'static str, masters: &[String]) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    gauge!(MASTERS, "topology" => topology).set(masters.len() as f64);
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    let room = MOST_MASTERS.saturating_sub(told.len());
    let new: Vec<String> = masters.iter().filter(|master| !told.contains(*master)).take(room).cloned().collect();
    told.extend(new);
    for master in &*told {
        let is_one = f64::from(u8::from(masters.contains(master)));
        gauge!(MASTER, "topology" => topology, "master" => master.clone()).set(is_one);
    }
}

/// Sets the gauges of the Sentinels that name the master, as this worker sees them.
pub fn set_sentinels(answering: usize, known: usize) {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let counts = (answering as f64, known as f64);
    gauge!(SENTINELS_ANSWERING).set(counts.0);
    gauge!(SENTINELS_KNOWN).set(counts.1);
}

/// Sets the gauges of this process and of the fleet.
pub fn set_process(redis_up: bool, in_flight: usize, workers: usize, waiting: usize) {
    gauge!(REDIS_UP).set(f64::from(u8::from(redis_up)));
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let counts = (in_flight as f64, workers as f64, waiting as f64);
    gauge!(IN_HAND).set(counts.0);
    gauge!(WORKERS).set(counts.1);
    gauge!(WAITING).set(counts.2);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_gauges_of_a_forgotten_upstream_are_cleared() {
        install();
        let upstream = UpstreamName::new("forgotten");
        let budget = Budget { budget: 2, spent: Some(1), ends: Some(RedisTime::from_millis(1_732_270_000_123)) };
        set_upstream(&upstream, 3, true, Some(budget));
        let gauges = || {
            let lines = render();
            let gauges = lines.lines().filter(|line| line.contains("{upstream=\"forgotten\"}")).map(str::to_owned);
            gauges.collect::<Vec<_>>()
        };
        assert_eq!(gauges().len(), 5);
        assert!(gauges().iter().all(|line| !line.ends_with("NaN")), "{:?}", gauges());
        forget_upstream(&upstream);
        assert!(gauges().iter().all(|line| line.ends_with("NaN")), "{:?}", gauges());
    }
}
