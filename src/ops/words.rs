//! Sentences and figures on jobs and times, which commands and the console share.

use crate::entry::duration;
use crate::ops::RefusedReload;
use crate::ops::status::{JobStatus, Outdated};
use crate::redis::RedisTime;
use crate::store::{GoneGuard, GuardState};

/// Returns the distance of a time from `now`, as text.
pub fn relative(at: RedisTime, now: RedisTime) -> String {
    let distance = duration::rough(at.abs_diff(now));
    if at > now { format!("in {distance}") } else { format!("{distance} ago") }
}

/// Returns the time of something that has happened, relative to `now`. A later time counts as now: it happened after
/// the clock was read, or the clock was set back.
pub fn ago(at: RedisTime, now: RedisTime) -> String {
    relative(at.min(now), now)
}

/// Returns a number with separators: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns the last outcome of a job as text.
pub fn last(status: &JobStatus) -> Option<String> {
    status.last.as_ref().map(|last| match &last.reason {
        Some(reason) => format!("{} {} ({}): {reason}", last.outcome, last.key, last.trigger),
        None => format!("{} {} ({})", last.outcome, last.key, last.trigger),
    })
}

/// Returns what a refused reload means.
pub fn refusal(RefusedReload { worker, at_ms, reason }: &RefusedReload, now: RedisTime) -> String {
    let at = ago(*at_ms, now);
    format!(
        "the worker {worker} refused its last reload {at} ({reason}) and goes on with its earlier job files: mend the \
         files, which `samovar check` helps with, and reload it"
    )
}

/// Returns what is wrong with a job's feed, if anything is.
pub fn feed(status: &JobStatus, now: RedisTime) -> Option<String> {
    let (job, feed) = (&status.job, status.feed.as_ref()?);
    if let Some(reason) = &feed.reason {
        let failed = feed.failed_ms.map(|failed| ago(failed, now)).unwrap_or_default();
        let again = match status.next_warmup_ms {
            Some(next) if next > now => format!("asked again {}", relative(next, now)),
            Some(_) => "asked again now".to_owned(),
            None => "not asked again".to_owned(),
        };
        let answered = match feed.answered_ms {
            Some(answered) => format!("the entries that it named {} are kept warm", ago(answered, now)),
            None => "it never answered".to_owned(),
        };
        let mut letters = reason.chars();
        let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
        let reason = format!("{first}{}", letters.as_str());
        let failures = if feed.failures == 1 { "once".to_owned() } else { format!("{} times", feed.failures) };
        return Some(format!("Feed of {job}: failed {failures}, last {failed}; {again}; {answered}. {reason}"));
    }
    let first = feed.first_skipped.as_ref()?;
    let skipped = grouped(feed.skipped as u64);
    Some(format!("Feed of {job}: {skipped} of its items name no entry and are skipped; the first: {first}."))
}

/// Returns how many values of a job outlive their TTL.
pub fn old(status: &JobStatus) -> Option<String> {
    let (job, number) = (&status.job, status.old.filter(|old| *old > 0)?);
    let values = match number {
        1 => format!("1 value of {job} outlives its TTL, because it"),
        _ => format!("{} values of {job} outlive their TTL, because they", grouped(number)),
    };
    Some(format!("{values} could not be fetched in time; `samovar get KEY` tells until when it is served."))
}

/// Returns how many entries of a job have no value at least, while a person lets removals through; empty if none.
pub fn lost(status: &JobStatus) -> String {
    let is_accepted = status.gone_guard.is_some_and(|guard| !guard.is_holding());
    // Values of entries that it does not keep warm are counted as well.
    let counts = status.wanted.zip(status.warm).filter(|(wanted, warm)| is_accepted && wanted > warm);
    counts.map_or_else(String::new, |(wanted, warm)| {
        let [lost, wanted] = [wanted - warm, wanted].map(grouped);
        format!(" At the last count, at least {lost} of {wanted} entries that it keeps warm had no value.")
    })
}

/// Returns how many values of a job are made from an earlier file, and what they wait for.
pub fn outdated(status: &JobStatus) -> Option<String> {
    let Outdated { values, waits_for, reason } = status.outdated.as_ref()?;
    let (job, number) = (&status.job, grouped(*values));
    let made = match values {
        1 => format!("1 value of {job} is made from an earlier file. It waits for"),
        _ => format!("{number} values of {job} are made from an earlier file. They wait for"),
    };
    let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    Some(format!("{made} {waits_for}{reason}."))
}

/// Returns what a job's guard does, in sentences.
pub fn guard(job: &str, guard: Option<&GoneGuard>, now: RedisTime) -> String {
    let Some(guard @ GoneGuard { state, since_ms, until_ms, gone, of, .. }) = guard else {
        return format!("Removals of {job}: none are held back.");
    };
    let (since, ends) = (ago(*since_ms, now), relative(*until_ms, now));
    let left = duration::rough(until_ms.saturating_since(now));
    match state {
        GuardState::Holding if guard.held == 0 => format!(
            "Removals of {job}: no value is held back any more; the guard watches for another {left}, in case the \
             upstream wavers. It began {since}, as {gone} of about {of} entries were gone within a minute."
        ),
        GuardState::Holding => format!(
            "Removals of {job}: held back for another {left}. Within a minute, {since}, {gone} of about {of} entries \
             were gone, at the upstream or with an input. Meanwhile {}. What is still gone {ends} is removed then. \
             `samovar gone {job} --accept` lets removals through now, `--hold` holds them for another hour.",
            guard.served()
        ),
        GuardState::Accepted => format!(
            "Removals of {job}: let through, as a person decided; the guard counts again {ends}. \
             `samovar gone {job} --hold` takes that back."
        ),
    }
}
