//! The facts that tell why an entry is as it is, in the order in which a person asks.

use super::status::UpstreamStatus;
use super::words::{ago, relative};
use super::{Entry, HeldInput, LeaseHolder, MissingInput, TagStamp, UnderWay};
use crate::agenda::{Due, State};
use crate::entry::duration;
use crate::entry::{Outcome, Priority, Trigger};
use crate::redis::RedisTime;
use crate::store::{Expiry, other_type_reason};
use crate::warmer::INPUT_WAIT;

/// A fact about an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its subject, in a word or two.
    pub what: &'static str,
    /// The fact. It may quote keys and answers, so it must be escaped.
    pub text: String,
}

/// The facts so far.
#[derive(Default)]
struct Facts(Vec<Fact>);

impl Facts {
    fn say(&mut self, what: &'static str, text: String) {
        self.0.push(Fact { what, text });
    }
}

/// Returns the facts about an entry, but for its value. `has_inputs` means that its job makes entries from others.
pub fn facts(entry: &Entry, has_inputs: bool) -> Vec<Fact> {
    let mut facts = Facts::default();
    tell_value(&mut facts, entry, has_inputs);
    tell_last_attempt(&mut facts, entry, has_inputs);
    tell_agenda(&mut facts, entry, has_inputs);
    tell_under_way(&mut facts, entry);
    facts.0
}

/// Adds the value's age and its versions, and what keeps the entry from being fetched.
fn tell_value(facts: &mut Facts, entry: &Entry, has_inputs: bool) {
    let now = entry.now_ms;
    facts.say("job", entry.job.clone().unwrap_or_else(|| no_job(entry)));
    if entry.job_is_left {
        facts
            .say("left", "no running worker knows the job, so nothing is fetched: `samovar jobs` says more".to_owned());
    }
    if let (Some(since), Some(job)) = (entry.job_paused_ms, &entry.job) {
        let since = ago(since, now);
        facts.say("paused", format!("the job was paused {since}: nothing is fetched until `samovar resume {job}`"));
    }
    if let (Some(until), Some(job)) = (entry.removal_held_until_ms, &entry.job) {
        facts.say("held", held(entry, job, until, has_inputs));
    }
    if let Some(other) = &entry.other_type {
        facts.say("other type", other_type_reason(&format!("a {other}"), &entry.key));
    }
    match entry.expiry {
        Expiry::Absent => {}
        Expiry::Never => facts.say("expires", "never: it has no TTL, so another program wrote it".to_owned()),
        Expiry::At(at) if entry.removal_held_until_ms.is_some_and(|until| until < at) => {
            let later = "later than it is held, so that the upstream can be asked once more before";
            facts.say("expires", format!("{}, {later}", relative(at, now)));
        }
        Expiry::At(at) if entry.outlives_ms.is_some() && entry.removal_held_until_ms.is_none() => {
            let longer =
                "or later: it is extended while the entry cannot be fetched, as long as `stale_if_error` allows";
            facts.say("expires", format!("{}, {longer}", relative(at, now)));
        }
        Expiry::At(at) => facts.say("expires", relative(at, now)),
    }
    tell_origin(facts, entry);
    if let Some(ends) = entry.outlives_ms {
        let (at, cause) = (relative(ends, now), cause_of_age(entry));
        let kept = match ends > now {
            true => format!("may be kept beyond its TTL, which ends {at}"),
            false => format!("kept beyond its TTL, which ended {at}"),
        };
        facts.say("old", format!("{kept}, because {cause}"));
    }
    for upstream in &entry.closed_upstreams {
        facts.say("upstream", format!("{}: {}", upstream.upstream, upstream.closed_text(now).unwrap_or_default()));
    }
    for HeldInput { key, job, until_ms } in &entry.held_inputs {
        let left = duration::rough(until_ms.saturating_since(now));
        facts.say("input", format!("{key} is gone, and its removal is held back for {left}: see `samovar gone {job}`"));
    }
    for MissingInput { key, reason } in entry.missing_inputs.iter().filter(|_| entry.due.is_some()) {
        match entry.fetched_ms.filter(|_| !is_waiting(entry)) {
            Some(made) => {
                let made = ago(made, now);
                facts.say("input", format!("{key} {reason}; the value is fresh, and was made from it {made}"));
            }
            None => facts.say("waits for", format!("its input {key}, which {reason}")),
        }
    }
    if let Some(at) = entry.invalidated_ms {
        facts.say("invalidated", format!("{}, {}", ago(at, now), since_invalidation(entry)));
    }
    if let Some(version) = entry.version {
        facts.say("version", version.shown());
    }
    if let Some(announced) = entry.announced_version {
        facts.say("behind", format!("version {} was announced, and is not stored yet", announced.shown()));
    }
    if !entry.rechecks_ms.is_empty() {
        let time = |at: RedisTime| if at > now { relative(at, now) } else { "with the next attempt".to_owned() };
        let mut times = Vec::from_iter(entry.rechecks_ms.iter().map(|at| time(*at)));
        times.dedup();
        facts.say("rechecks", times.join(", "));
    }
}

/// Returns what is held back of an entry of a job until then, and what a person can do.
fn held(entry: &Entry, job: &str, until: RedisTime, has_inputs: bool) -> String {
    let gone = match has_inputs {
        true => "its upstream answers that it is gone, or an input is gone",
        false => "its upstream answers that it is gone",
    };
    let (until, then) = match entry.expiry.at() {
        Some(expires) if expires < until => (expires, "when it expires"),
        _ => (until, "and then removed if it is still gone"),
    };
    let (at, left) = (until.utc(), relative(until, entry.now_ms));
    format!(
        "{gone}; the value is held, and served until {at} ({left}), {then}. `samovar gone {job} --accept` lets the \
         removals of {job} through now, `samovar gone {job} --hold` holds them for another hour"
    )
}

/// Returns what follows from a key that no job has.
fn no_job(entry: &Entry) -> String {
    let none = "none: no job's key pattern matches (`samovar jobs` shows them)";
    match entry.written_by_samovar {
        true => format!(
            "{none}, so nothing makes the value anew: it stays until it expires, or until `samovar invalidate KEY` \
             removes it"
        ),
        false => none.to_owned(),
    }
}

/// Adds when the value was fetched, and whether an earlier job file made it.
fn tell_origin(facts: &mut Facts, entry: &Entry) {
    let now = entry.now_ms;
    if let Some(at) = entry.fetched_ms {
        facts.say("fetched", format!("{}, age {}", ago(at, now), duration::rough(now.saturating_since(at))));
    } else if entry.expiry != Expiry::Absent {
        facts.say("written by", "another program".to_owned());
    }
    if let Some(waits_for) = &entry.outdated_waits_for {
        facts.say(
            "file",
            format!("the value is of an earlier job file, and is to be made anew: it waits for {waits_for}"),
        );
    }
}

/// Returns what followed the invalidation of an entry that is not fetched again.
fn since_invalidation(entry: &Entry) -> String {
    match (&entry.other_type, entry.stays_absent()) {
        (Some(other), _) => format!("not fetched while the key holds a {other}"),
        (None, _) if entry.job.is_none() => "not fetched again, as no job has the key".to_owned(),
        (None, true) => ABSENT.to_owned(),
        (None, false) => "not fetched again yet".to_owned(),
    }
}

/// Returns `true` if an entry waits for inputs that are missing. An entry whose value is fresh asks for them at its
/// refresh, also if a recheck is due; one that was tried without them is tried again within [`INPUT_WAIT`].
fn is_waiting(entry: &Entry) -> bool {
    let later = |due: Due| {
        due.trigger == Trigger::Recheck || (due.state == State::Scheduled && due.at > entry.now_ms + INPUT_WAIT)
    };
    entry.value.is_none() || entry.invalidated_ms.is_some() || !entry.due.is_some_and(later)
}

/// Returns why a value is kept beyond its TTL. The metadata tell no attempt that ended before its fetch, so an upstream
/// to which no requests are sent is the cause unless the last attempt has another.
fn cause_of_age(entry: &Entry) -> String {
    let reason = entry.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
    if entry.removal_held_until_ms.is_some() {
        return format!("its removal is held back{reason}");
    }
    match (entry.last_outcome, entry.closed_upstreams.first()) {
        (Some(Outcome::Failed), _) => format!("its source fails{reason}"),
        (Some(Outcome::Deferred), _) => format!("its fetch is deferred{reason}"),
        (_, Some(UpstreamStatus { upstream, closed: Some("tokens"), .. })) => {
            format!("the token budget of {upstream} is spent")
        }
        (_, Some(UpstreamStatus { upstream, .. })) => format!("no requests are sent to {upstream}"),
        (_, None) => "it could not be fetched in time".to_owned(),
    }
}

/// Adds the last attempt and what the value came with.
fn tell_last_attempt(facts: &mut Facts, entry: &Entry, has_inputs: bool) {
    let now = entry.now_ms;
    if let (Some(outcome), Some(trigger), Some(at)) = (entry.last_outcome, entry.last_trigger, entry.last_attempt_ms) {
        let why = if has_inputs { INVALIDATION_OR_INPUT } else { INVALIDATION };
        let purpose = purpose(trigger, why, recheck_of(entry, has_inputs));
        facts.say("last attempt", format!("{outcome}, {}, for {purpose}", ago(at, now)));
    }
    let is_told =
        entry.outlives_ms.is_some() && matches!(entry.last_outcome, Some(Outcome::Failed | Outcome::Deferred));
    if let Some(reason) = entry.reason.as_ref().filter(|_| !is_told) {
        facts.say("reason", reason.clone());
    }
    if let Some(failures) = entry.failures.filter(|failures| *failures > 0) {
        facts.say("failures", format!("{failures} in a row"));
    }
    for (what, validator) in [("etag", &entry.etag), ("last modified", &entry.last_modified)] {
        if let Some(validator) = validator {
            facts.say(what, validator.clone());
        }
    }
    if !entry.tags.is_empty() {
        facts.say("tags", entry.tags.join(", "));
    }
}

/// Adds when and why the entry is due.
fn tell_agenda(facts: &mut Facts, entry: &Entry, has_inputs: bool) {
    let now = entry.now_ms;
    if let Some(reason) = &entry.given_up {
        facts.say("agenda", format!("dead letter ({reason}); `samovar dead --retry` puts it back"));
    }
    if let Some(Due { at, state, trigger, priority, .. }) = entry.due {
        let state = match (state, priority) {
            (State::Claimed, _) => "claimed".to_owned(),
            (State::Running, _) => "running".to_owned(),
            (State::Urgent, Priority::High) => format!("urgent (high priority), due {}", relative(at, now)),
            (State::Urgent, _) => format!("due {} (bulk priority)", relative(at, now)),
            (State::Scheduled, _) => format!("scheduled, due {}", relative(at, now)),
        };
        let why = if entry.due_for_input { "a change of an input" } else { INVALIDATION };
        let none = if entry.stays_absent() { NONE_FETCHED } else { "" };
        let purpose = purpose(trigger, why, recheck_of(entry, has_inputs));
        facts.say("agenda", format!("{state}, for {purpose}{none}"));
    }
}

/// Adds who fetches the entry, and what may overtake that.
fn tell_under_way(facts: &mut Facts, entry: &Entry) {
    let (UnderWay { lease, tag_stamps, awaits_revalidation, is_debounced }, now) = (&entry.under_way, entry.now_ms);
    if let Some(LeaseHolder { holder, since_ms, until_ms, is_load, mark }) = lease {
        let who = match is_load {
            true => format!("a service loads it ({holder})"),
            false => format!("the worker …-{holder} fetches it"),
        };
        let until = until_ms.map(|until| format!(", until {} at the latest", relative(until, now))).unwrap_or_default();
        let mark = match *mark {
            Some("evict") => "; it was evicted since, so the answer is dropped",
            Some(_) => "; it was invalidated since, so it is fetched once more",
            None => "",
        };
        facts.say("lease", format!("{who}, since {}{until}{mark}", ago(*since_ms, now)));
    }
    for TagStamp { tag, at_ms, action } in tag_stamps {
        facts.say("tag", format!("{tag}: last invalidated {} ({action})", ago(*at_ms, now)));
    }
    if *awaits_revalidation {
        let until = "messages may have been missed; it is still to be looked at";
        facts.say("revalidation", until.to_owned());
    }
    if *is_debounced {
        let storm = "the last fetch followed an invalidation that came within a second of another: further ones wait \
                     for one fetch";
        facts.say("debounce", storm.to_owned());
    }
}

/// The consequence of the invalidation of an absent entry that is not due.
const ABSENT: &str = "absent: nothing fetches it before a warmup or a demand; `samovar warm KEY` does";
/// The limit of a recheck for such an entry.
const NONE_FETCHED: &str = "; while it is absent, nothing is fetched";

/// Reasons of entries that are due for [`Trigger::Invalidation`]. A change of an input has the same trigger, and leaves
/// no mark of an invalidation. Once the entry is fetched, the two are not told apart.
const INVALIDATION: &str = "invalidation";
const INVALIDATION_OR_INPUT: &str = "an invalidation, or a change of an input";

/// Returns what a recheck of an entry is for.
fn recheck_of(entry: &Entry, has_inputs: bool) -> &'static str {
    match (entry.rechecked_in_doubt, has_inputs) {
        (true, _) => "to see whether an old value was stored: messages or data may have been lost, or Redis was empty",
        (false, false) => "to see whether an old value was stored after the invalidation",
        (false, true) => "to see whether an old value was stored after the invalidation, or the change of an input",
    }
}

/// Returns a trigger as text for people; `invalidation` is that of an invalidation, `recheck` what a recheck is for.
fn purpose(trigger: Trigger, invalidation: &str, recheck: &str) -> String {
    match trigger {
        Trigger::Invalidation => invalidation.to_owned(),
        Trigger::Recheck => format!("{trigger}: {recheck}"),
        Trigger::Cron | Trigger::Expiry | Trigger::Demand | Trigger::Manual => trigger.to_string(),
    }
}
