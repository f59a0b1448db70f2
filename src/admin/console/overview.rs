//! The overview: is the cache fresh, and if not, why?

use axum::response::IntoResponse;
use maud::{Markup, html};

use super::history;
use super::live::Snapshot;
use super::page::{Failure, Page, Screen, Tab, figure, job_link, number, text};
use crate::admin::readiness;
use crate::ops::status::JobStatus;
use crate::ops::words::grouped;

/// The parts that cannot be read and are named.
const UNREAD: usize = 10;

/// The overall state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Good,
    Fair,
    Bad,
}

impl Mood {
    fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Fair => "fair",
            Self::Bad => "bad",
        }
    }
}

/// Sums of all jobs. A sum of which a part is unknown is unknown.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    warm: Option<u64>,
    wanted: Option<u64>,
    missing: Option<u64>,
    old: Option<u64>,
    invalidated: Option<u64>,
    outdated: Option<u64>,
    paused: usize,
    /// The parts of the state that cannot be read.
    unread: usize,
    waiting: usize,
    due: Option<u64>,
    in_flight: Option<u64>,
    dead: Option<u64>,
    tokens_spent: Option<u64>,
    tokens_saved: Option<u64>,
    calls_saved: Option<u64>,
    not_modified: Option<u64>,
}

impl Sums {
    fn of(snapshot: &Snapshot) -> Self {
        let jobs = || snapshot.jobs.iter();
        let missing = |warm: Option<u64>, wanted: Option<u64>| Some(wanted?.saturating_sub(warm?));
        let all = || snapshot.unread_jobs.is_empty().then_some(());
        let sum = |of: fn(&JobStatus) -> u64| all().map(|()| jobs().map(of).sum());
        let known = |sum: Option<u64>| all().and(sum);
        Self {
            warm: known(jobs().map(|job| job.warm).sum()),
            wanted: known(jobs().map(|job| job.wanted).sum()),
            missing: known(jobs().map(|job| missing(job.warm, job.wanted)).sum()),
            old: known(jobs().map(|job| job.old).sum()),
            invalidated: known(jobs().map(|job| job.invalidated).sum()),
            outdated: known(
                jobs().map(|job| job.warm.map(|_| job.outdated.as_ref().map_or(0, |outdated| outdated.values))).sum(),
            ),
            paused: jobs().filter(|job| job.paused_ms.is_some()).count(),
            unread: snapshot.unread_jobs.len() + snapshot.unread_upstreams.len() + snapshot.unread.len(),
            waiting: snapshot.health.invalidations_waiting,
            due: sum(|job| job.due),
            in_flight: sum(|job| job.in_flight),
            dead: sum(|job| job.dead),
            tokens_spent: sum(|job| job.usage.tokens_spent),
            tokens_saved: sum(|job| job.usage.tokens_saved),
            calls_saved: sum(|job| job.usage.calls_saved),
            not_modified: sum(|job| job.usage.not_modified),
        }
    }

    /// Returns the state in one sentence.
    fn sentence(&self, snapshot: &Snapshot) -> (Mood, String) {
        let workers = snapshot.jobs.iter().find_map(|job| job.workers);
        let faults = snapshot.health.reasons.len();
        let [due, dead] = [self.due, self.dead].map(Option::unwrap_or_default);
        let entries = |count: u64, one: &str, many: &str| match count {
            1 => format!("1 entry {one}"),
            _ => format!("{} entries {many}", grouped(count)),
        };
        match (snapshot.health.status, self.missing, self.old) {
            ("unhealthy", ..) => (Mood::Bad, "This worker cannot do its work.".to_owned()),
            _ if workers == Some(0) => (Mood::Bad, "No worker is running: nothing is fetched.".to_owned()),
            _ if self.unread > 0 => {
                (Mood::Fair, "A part of the state cannot be read; what is told here is of the rest.".to_owned())
            }
            ("degraded", ..) if faults == 1 => (Mood::Fair, "It works, with one fault.".to_owned()),
            ("degraded", ..) => (Mood::Fair, format!("It works, with {faults} faults.")),
            (_, None, _) => (Mood::Good, "It works; the entries are not counted yet.".to_owned()),
            (_, Some(missing), _) if missing > 0 => (
                Mood::Fair,
                format!("It works; at the last count {}.", entries(missing, "was missing", "were missing")),
            ),
            (_, _, Some(old)) if old > 0 => {
                (Mood::Fair, format!("It works; {}.", entries(old, "outlives its TTL", "outlive their TTL")))
            }
            _ if self.invalidated.is_some_and(|invalidated| invalidated > 0) => {
                let invalidated = self.invalidated.unwrap_or_default();
                let waited =
                    entries(invalidated, "was invalidated and not fetched yet", "were invalidated and not fetched yet");
                (Mood::Fair, format!("It works; at the last count {waited}."))
            }
            _ if self.outdated.is_some_and(|outdated| outdated > 0) => {
                let outdated = self.outdated.unwrap_or_default();
                let many = "are made from an earlier job file";
                (Mood::Fair, format!("It works; {}.", entries(outdated, "is made from an earlier job file", many)))
            }
            _ if self.paused > 0 => (Mood::Fair, format!("It works; paused jobs: {}.", self.paused)),
            _ if self.waiting > 0 => {
                (Mood::Good, format!("It works; messages that wait to be handled: {}.", self.waiting))
            }
            _ if dead > 0 => (Mood::Fair, format!("It works; {}.", entries(dead, "is given up", "are given up"))),
            (_, Some(_), _) if due > 0 => {
                (Mood::Good, format!("It works; {} right now.", entries(due, "is due", "are due")))
            }
            (_, Some(_), _) => {
                (Mood::Good, "Nothing waits, and nothing was known to be missing or old at the last count.".to_owned())
            }
        }
    }
}

pub(super) async fn overview(screen: Screen) -> Result<impl IntoResponse, Failure> {
    let snapshot = match screen.snapshot().await {
        Ok(snapshot) => snapshot,
        Err(failure) => return Err(failure.with(readiness(&screen.console.admin).await.reasons)),
    };
    let freshness = history::or_told(history::of_fleet(&screen, &snapshot).await);
    let page = Page { tab: Tab::Overview, title: "Overview".to_owned(), as_of: Some(snapshot.at), is_live: true };
    Ok(screen.page(&page, &view(&snapshot, &freshness)))
}

fn view(snapshot: &Snapshot, freshness: &Markup) -> Markup {
    let sums = Sums::of(snapshot);
    let (mood, sentence) = sums.sentence(snapshot);
    let counted = snapshot.jobs.iter().find_map(|job| job.warm_counted_ms);
    let workers = snapshot.jobs.iter().find_map(|job| job.workers).map(|workers| workers as u64);
    let waiting = snapshot.health.invalidations_waiting as u64;
    html! {
        p.sentence.(mood.class()) role="status" { (sentence) }
        @if !snapshot.health.reasons.is_empty() {
            ul.faults { @for reason in &snapshot.health.reasons { li { (text(reason)) } } }
        }
        (unread(snapshot))
        (freshness)
        section aria-labelledby="entries" {
            h2 #entries { "Entries" }
            p.note {
                @match counted {
                    Some(at) => { "Warm, wanted, missing, invalidated and old: as of the count of " (at.utc()) "." }
                    None => { "The entries are not counted yet." }
                }
            }
            dl.figures {
                (figure("Warm", &number(sums.warm), None))
                (figure("Wanted", &number(sums.wanted), None))
                (figure("Missing, at least", &number(sums.missing), None))
                (figure("Invalidated, not fetched yet", &number(sums.invalidated), None))
                (figure("Beyond their TTL", &number(sums.old), None))
                (figure("Of an earlier file", &number(sums.outdated), None))
                (figure("Due", &number(sums.due), None))
                (figure("In flight", &number(sums.in_flight), None))
                (figure("Dead letters", &number(sums.dead), None))
            }
        }
        section aria-labelledby="cost" {
            h2 #cost { "Cost" }
            dl.figures {
                (figure("AI tokens spent", &number(sums.tokens_spent), None))
                (figure("AI tokens saved", &number(sums.tokens_saved), None))
                (figure("AI calls saved", &number(sums.calls_saved), None))
                (figure("Answers 304", &number(sums.not_modified), None))
            }
            p.note { "Of all jobs, each since its counters began." }
        }
        section aria-labelledby="fleet" {
            h2 #fleet { "Fleet" }
            dl.figures {
                (figure("Workers", &number(workers), None))
                (figure("Invalidations waiting", &number(Some(waiting)), Some("bulk, of this worker")))
            }
        }
        (closed(snapshot))
        (attention(snapshot))
    }
}

/// Returns what cannot be read.
fn unread(snapshot: &Snapshot) -> Markup {
    let parts = snapshot.unread_jobs.iter().map(|(job, why)| (job_link(job), why));
    let parts = parts.chain(snapshot.unread_upstreams.iter().map(|(name, why)| (html! { (text(name)) }, why)));
    let (all, parts) = (parts.clone().count(), parts.take(UNREAD));
    html! {
        @if all > 0 || !snapshot.unread.is_empty() {
            ul.faults {
                @for (part, why) in parts { li { (part) " cannot be read: " (text(why)) } }
                @if all > UNREAD { li { "and " (all - UNREAD) " more" } }
                @for why in &snapshot.unread { li { (text(why)) } }
            }
        }
    }
}

/// Returns the upstreams to which no requests are sent.
fn closed(snapshot: &Snapshot) -> Markup {
    let closed = snapshot.upstreams.iter().filter_map(|upstream| Some((upstream, upstream.closed_text(snapshot.at)?)));
    let closed: Vec<_> = closed.collect();
    html! {
        section aria-labelledby="upstreams" {
            h2 #upstreams { "Upstreams" }
            @if closed.is_empty() && snapshot.unread_upstreams.is_empty() {
                p { "All upstreams take requests." }
            } @else {
                ul.faults { @for (upstream, why) in closed { li { (text(&upstream.upstream)) ": " (why) } } }
            }
        }
    }
}

/// Returns the jobs that need a look.
fn attention(snapshot: &Snapshot) -> Markup {
    let needs = |job: &&JobStatus| {
        job.dead > 0 || job.paused_ms.is_some() || !job.faults.is_empty() || job.gone_guard.is_some()
    };
    let jobs: Vec<_> = snapshot.jobs.iter().filter(needs).collect();
    html! {
        @if !jobs.is_empty() {
            section aria-labelledby="attention" {
                h2 #attention { "Jobs that need a look" }
                ul {
                    @for job in jobs {
                        li {
                            (job_link(&job.job))
                            @if job.paused_ms.is_some() { ", paused" }
                            @if job.dead > 0 { ", " (grouped(job.dead)) " given up" }
                            @if job.gone_guard.is_some() { ", removals held back or let through" }
                            @for fault in &job.faults { "; " (text(fault)) }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Readiness;
    use crate::redis::RedisTime;

    fn snapshot(jobs: Vec<JobStatus>) -> Snapshot {
        let health = Readiness { status: "healthy", ..Readiness::default() };
        Snapshot { at: RedisTime::from_millis(1_000), jobs, health, ..Snapshot::default() }
    }

    fn job(warm: Option<u64>, wanted: Option<u64>) -> JobStatus {
        let none = warm.map(|_| 0);
        JobStatus { job: "art".to_owned(), warm, wanted, old: none, invalidated: none, ..JobStatus::default() }
    }

    fn sentence(snapshot: &Snapshot) -> (Mood, String) {
        Sums::of(snapshot).sentence(snapshot)
    }

    #[test]
    fn the_sentence_names_the_worst_that_is_known() {
        let fresh = snapshot(vec![job(Some(3), Some(3))]);
        assert_eq!(
            sentence(&fresh),
            (Mood::Good, "Nothing waits, and nothing was known to be missing or old at the last count.".to_owned())
        );
        let missing = snapshot(vec![job(Some(3), Some(3)), job(Some(1), Some(2))]);
        assert_eq!(sentence(&missing), (Mood::Fair, "It works; at the last count 1 entry was missing.".to_owned()));
        let waiting = snapshot(vec![JobStatus { invalidated: Some(2), ..job(Some(3), Some(3)) }]);
        let told = "It works; at the last count 2 entries were invalidated and not fetched yet.";
        assert_eq!(sentence(&waiting), (Mood::Fair, told.to_owned()));
        let mut faulty = missing.clone();
        faulty.health = Readiness { status: "degraded", reasons: vec!["x".to_owned(); 2], ..Readiness::default() };
        assert_eq!(sentence(&faulty), (Mood::Fair, "It works, with 2 faults.".to_owned()));
        let idle = snapshot(vec![JobStatus { workers: Some(0), ..job(Some(3), Some(3)) }]);
        assert_eq!(sentence(&idle).0, Mood::Bad);
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_not_zero() {
        let mut part = snapshot(vec![job(Some(3), Some(3))]);
        part.unread_jobs.insert("story".to_owned(), "no answer".to_owned());
        let sums = Sums::of(&part);
        assert_eq!((sums.warm, sums.missing, sums.outdated, sums.due, sums.dead), (None, None, None, None, None));
        assert_eq!(
            sentence(&part),
            (Mood::Fair, "A part of the state cannot be read; what is told here is of the rest.".to_owned())
        );
        let page = view(&part, &Markup::default()).into_string();
        assert!(page.contains("story</a> cannot be read: no answer"), "{page}");
    }

    #[test]
    fn what_is_not_counted_is_unknown_and_not_zero() {
        let one = snapshot(vec![job(Some(3), Some(3)), job(None, None)]);
        let sums = Sums::of(&one);
        assert_eq!((sums.warm, sums.missing, sums.old, sums.outdated), (None, None, None, None));
        assert_eq!(sentence(&one), (Mood::Good, "It works; the entries are not counted yet.".to_owned()));
        assert!(view(&one, &Markup::default()).into_string().contains("title=\"unknown\""));
    }
}
