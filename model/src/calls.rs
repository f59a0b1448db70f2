//! The calls of `src/`, as they are sent with each script: keys and arguments, and nothing else.
//!
//! The callers are `src/store/`, `src/agenda/`, `src/cache/` and `src/trigger/cron.rs`. Channels and keys have shorter
//! names here, and times are those of a job whose upstream answers within a second.

use super::scripts::Script;

/// A script with its keys and arguments.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    /// The script.
    pub script: Script,
    /// Its keys.
    pub keys: Vec<String>,
    /// Its arguments.
    pub args: Vec<String>,
}

/// The time of a lease (ms).
pub const LEASE: i64 = 2_000;
/// The time of a claim (ms).
pub const CLAIM: i64 = 1_000;
/// The time for which a caller waits for an answer (ms).
pub const ANSWER: i64 = 500;
/// The time for which an entry may run (ms).
pub const RUN: i64 = 3_000;
/// The TTL of values (ms).
pub const TTL: i64 = 600_000;
/// The time before its expiry at which a value is refreshed (ms).
pub const AHEAD: i64 = 60_000;
/// The time by which metadata outlive a value (ms).
pub const OUTLIVES: i64 = 3_600_000;
/// The time for which the invalidation of an entry without a value is remembered (ms).
pub const REMEMBERED: i64 = 60_000;
/// The time for which a refresh is held off, and in a storm where a fetch costs money (ms).
pub const PAUSE: (i64, i64) = (250, 10_000);
/// The longest time by which an old value outlives its TTL while its source fails (ms).
pub const STALE: i64 = 2_000;
/// The wait for an announced version (ms).
pub const PATIENCE: i64 = 5_000;
/// The wait before a retry (ms).
pub const RETRY: i64 = 500;
/// The wait of an entry whose lease ended too early (ms).
pub const SHORT_WAIT: i64 = 1_000;
/// The time in which a guard counts removals (ms).
pub const MINUTE: i64 = 60_000;
/// The time for which removals are held back, and the longest such time (ms).
pub const HOLDS: (i64, i64) = (3_600_000, 86_400_000);
/// The time after which an entry that is held back has its mark (ms).
pub const SETTLED: i64 = 300_000;
/// The wait of an entry whose removal is held back (ms).
pub const HELD_WAIT: i64 = 20_000;
/// When an entry is rechecked after an invalidation (ms).
pub const RECHECK: i64 = 1_000;
/// The most entries of a job in flight.
pub const CAP: usize = 1;
/// The most dead letters.
pub const DEAD: usize = 1;
/// The most stamps of unknown tags.
pub const STAMPS: usize = 1;
/// The sums that services report.
pub const REPORTED: &str = "reported";
/// The figures of reported reads.
pub const MINUTES: &str = "minutes";
/// The shortest time between two figures (ms).
pub const SHORTEST: i64 = 1_000;
/// The time after which no worker was there (ms).
pub const UNATTENDED: i64 = 5_000;
/// The figures that are kept.
pub const FIGURES: usize = 4;
/// The life of figures (ms).
pub const MINUTES_LIFE: i64 = 3_600_000;
/// The minute figures of a job.
pub const HISTORY: &str = "history";
/// The hours of which they are kept.
pub const HISTORY_HOURS: i64 = 3;
/// Their life (ms).
pub const HISTORY_LIFE: i64 = 14_400_000;
/// The audits that are asked for.
pub const AUDITS: &str = "audits";
/// The most audits of a job that a worker takes at once.
pub const MOST_AUDITS: i64 = 3;
/// The life of audits that are asked for (ms).
pub const AUDITS_LIFE: i64 = 86_400_000;
/// The time for which a stamp is kept (ms).
pub const STAMPED: i64 = 86_400_000;

/// The agenda of the one job.
pub const AGENDA: &str = "agenda";
/// The key that pauses the job.
pub const PAUSED: &str = "paused";
/// Dead letters.
pub const DEAD_LETTERS: &str = "dead";
/// The reasons of dead letters.
pub const REASONS: &str = "dead-reasons";
/// The counters.
pub const STATS: &str = "stats";
/// The index of the one known tag.
pub const TAG: &str = "tag:T";
/// The stamps of unknown tags.
pub const STAMPS_KEY: &str = "stamps";
/// The set of the keys that services loaded.
pub const LOADED: &str = "loaded";
/// The window of an upstream's token budget.
pub const SPENT: &str = "spent";
/// The schedules of warmups.
pub const SCHEDULES: &str = "schedules";
/// The claimed ticks.
pub const TICKS: &str = "ticks";
/// The digests of job files.
pub const DIGESTS: &str = "digests";
/// The guard of the one job.
pub const GUARD: &str = "guard";
const CHANGED: &str = "changed";
const SIGNAL: &str = "signal";

/// Returns the key of an entry's lease.
pub fn lease_key(entry: &str) -> String {
    format!("lease:{entry}")
}

/// Returns the key of an entry's metadata.
pub fn meta_key(entry: &str) -> String {
    format!("meta:{entry}")
}

/// Returns the announcement of a change.
pub fn change(entry: &str, event: &str) -> String {
    format!(r#"{{"key":"{entry}","event":"{event}"}}"#)
}

fn call(script: Script, keys: &[&str], args: &[&dyn ToString]) -> Call {
    Call {
        script,
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        args: args.iter().map(|arg| arg.to_string()).collect(),
    }
}

fn stored(script: Script, entry: &str, args: &[&dyn ToString]) -> Call {
    call(script, &[entry, &lease_key(entry), &meta_key(entry)], args)
}

/// The conditions that make a fetch unnecessary (`Fresh` in `src/store/lease.rs`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Fresh {
    /// Our value was fetched at or after this.
    pub since: Option<i64>,
    /// Our value lives at least until this.
    pub until: Option<i64>,
    /// There is a value.
    pub any: bool,
    /// There is no value.
    pub absent: bool,
    /// So many crashes in a row.
    pub crashes: Option<i64>,
}

/// The attempt, as metadata note it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// The trigger's number.
    pub trigger: u8,
    /// The fetch answers an invalidation that followed another.
    pub storm: bool,
    /// The outcome's number.
    pub outcome: u8,
    /// When it began; 0 where `validated_at` says so.
    pub began: i64,
    /// Crashes in a row.
    pub crashes: u32,
    /// The value has the tag.
    pub tagged: bool,
    /// Failures in a row.
    pub failures: u32,
    /// The value's version.
    pub version: Option<u32>,
    /// Until when the removal of the value is held back; 0 for never.
    pub held_until: i64,
    /// The time of a doubt; 0 for none.
    pub doubted: i64,
    /// The rechecks to come: since when they count, and their flags.
    pub rechecks: Option<(i64, u8)>,
}

impl Attempt {
    /// Returns the attempt as `src/store/meta.rs` packs it.
    pub fn packed(&self) -> String {
        let number = |number: i64, usual: i64| if number == usual { String::new() } else { number.to_string() };
        let fields = [
            number(self.trigger.into(), 2),
            number(self.storm.into(), 0),
            number(self.outcome.into(), 0),
            number(self.began, 0),
            number(self.crashes.into(), 0),
        ];
        fields.join(".").trim_end_matches('.').to_owned()
    }

    /// Returns the note.
    pub fn note(&self) -> String {
        let tags = self.tagged.then(|| r#""g":["T"]"#.to_owned());
        let number = |name: &str, number: i64| (number > 0).then(|| format!(r#""{name}":{number}"#));
        let (held, doubted) = (number("h", self.held_until), number("u", self.doubted));
        let rechecks = self.rechecks.map(|(since, flags)| format!(r#""k":[{since},"",{flags}]"#));
        let fields = [tags, held, doubted, number("n", self.failures.into()), rechecks];
        format!("{{{}}}", fields.into_iter().flatten().collect::<Vec<_>>().join(","))
    }

    fn version(&self) -> String {
        self.version.map(|version| version.to_string()).unwrap_or_default()
    }
}

/// The rules by which an answer's version is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Versions {
    /// The job has versions.
    pub kept: bool,
    /// Only a higher version is stored.
    pub look: bool,
}

impl Versions {
    fn patience(self) -> String {
        if self.kept { PATIENCE.to_string() } else { String::new() }
    }
}

/// `Store::lease`.
pub fn lease(entry: &str, token: &str, fresh: Fresh) -> Call {
    let (since, until) = (fresh.since.unwrap_or(-1), fresh.until.unwrap_or(-1));
    let (any, absent) = (u8::from(fresh.any), u8::from(fresh.absent));
    let crashes = fresh.crashes.unwrap_or(-1);
    stored(Script::Lease, entry, &[&token, &LEASE, &since, &until, &any, &absent, &1_000, &crashes])
}

/// `Store::release`.
pub fn release(entry: &str, token: &str, attempt: Option<&Attempt>) -> Call {
    let (packed, note) = attempt.map(|attempt| (attempt.packed(), attempt.note())).unwrap_or_default();
    stored(Script::Release, entry, &[&token, &packed, &note, &OUTLIVES])
}

/// `Store::commit`.
pub fn commit(entry: &str, token: &str, json: &str, attempt: &Attempt, began: i64, versions: Versions) -> Call {
    let (hash, look) = (format!("h{json}"), u8::from(versions.look));
    let (packed, note, version) = (attempt.packed(), attempt.note(), attempt.version());
    stored(
        Script::Commit,
        entry,
        &[
            &token,
            &json,
            &TTL,
            &hash,
            &packed,
            &note,
            &OUTLIVES,
            &LEASE,
            &CHANGED,
            &change(entry, "warmed"),
            &began,
            &version,
            &versions.patience(),
            &look,
        ],
    )
}

/// `Store::extend`, and `Store::extend_unasked` where nobody was `asked`.
pub fn extend(
    entry: &str,
    token: &str,
    before: i64,
    attempt: &Attempt,
    asked: bool,
    began: i64,
    versions: Versions,
) -> Call {
    let (unasked, look) = (u8::from(!asked), u8::from(versions.look));
    stored(
        Script::Extend,
        entry,
        &[
            &token,
            &TTL,
            &before,
            &attempt.packed(),
            &attempt.note(),
            &OUTLIVES,
            &LEASE,
            &unasked,
            &began,
            &versions.patience(),
            &look,
        ],
    )
}

/// `Store::gone`.
pub fn gone(entry: &str, token: &str, attempt: &Attempt, began: i64, versions: Versions) -> Call {
    let look = u8::from(versions.look);
    stored(
        Script::Gone,
        entry,
        &[
            &token,
            &attempt.packed(),
            &attempt.note(),
            &OUTLIVES,
            &LEASE,
            &CHANGED,
            &change(entry, "gone"),
            &began,
            &versions.patience(),
            &look,
        ],
    )
}

/// The script of `Store::extend_stale`.
pub fn extend_stale(entry: &str, time: i64) -> Call {
    stored(Script::ExtendStale, entry, &[&time, &STALE, &OUTLIVES, &0])
}

/// The script of `Store::extend_held`.
pub fn extend_held(entry: &str, time: i64) -> Call {
    stored(Script::ExtendStale, entry, &[&time, &(10 * 366 * 24 * 3_600_000_i64), &OUTLIVES, &1])
}

/// `Store::invalidate_on` of a doubt after a gap.
pub fn doubt(entry: &str, at: i64, pauses: (i64, i64), last: i64) -> Call {
    let mut call = invalidate(entry, at, false, pauses, (REMEMBERED, last), "");
    call.args[9] = "1".to_owned();
    call
}

/// `Store::invalidate_on`; `pauses` are zero in `Store::fence`. `last` is the time of the last recheck; 0 for none, and
/// in `Store::fence`. `version` is `''`, a number or `any`.
pub fn invalidate(
    entry: &str,
    at: i64,
    evict: bool,
    pauses: (i64, i64),
    (remembered, last): (i64, i64),
    version: &str,
) -> Call {
    let removal = if evict { "e" } else { "r" };
    stored(
        Script::Invalidate,
        entry,
        &[
            &at,
            &removal,
            &OUTLIVES,
            &CHANGED,
            &change(entry, "evicted"),
            &pauses.0,
            &pauses.1,
            &remembered,
            &version,
            &0,
            &last,
        ],
    )
}

/// `Store::guard_removal`; so many removals are enough, and in a small job.
pub fn guard_removal(entry: &str, marked: i64, (enough, of_few): (u32, u32)) -> Call {
    let args: [&dyn ToString; 8] = [&10, &enough, &MINUTE, &HOLDS.0, &HOLDS.1, &marked, &of_few, &entry];
    call(Script::GuardRemoval, &[GUARD, AGENDA], &args)
}

/// `Store::note_recovery`, and `Store::sweep_guard` of an entry that was held back then.
pub fn guard_recovery(entry: &str, noted: &str) -> Call {
    call(Script::GuardRecovery, &[GUARD], &[&entry, &MINUTE, &noted])
}

/// A person's decision.
pub fn guard_decision(decision: &str) -> Call {
    call(Script::GuardDecision, &[GUARD], &[&decision, &HOLDS.0, &HOLDS.1])
}

/// `Store::tag`, its first step.
pub fn tag(entry: &str) -> Call {
    call(Script::Tag, &[TAG], &[&entry, &(TTL + STALE + LEASE), &100])
}

/// `Store::tag`, its second step.
pub fn read_unknown() -> Call {
    call(Script::ReadUnknown, &[STAMPS_KEY], &[&"T"])
}

/// `Store::untag`.
pub fn untag(entry: &str, until: i64) -> Call {
    call(Script::Untag, &[TAG], &[&entry, &until])
}

/// `Store::stamp`, its first step.
pub fn stamp(at: i64, evict: bool) -> Call {
    call(Script::Stamp, &[TAG], &[&at, &if evict { "e" } else { "r" }])
}

/// `Store::stamp`, its second step.
pub fn stamp_unknown(tag: &str, at: i64, evict: bool) -> Call {
    call(Script::StampUnknown, &[STAMPS_KEY], &[&tag, &at, &if evict { "e" } else { "r" }, &STAMPS])
}

/// `Store::mark`.
pub fn mark(before: i64, mark: i64) -> Call {
    call(Script::Mark, &[TAG], &[&before, &mark])
}

/// `Store::sweep_tags`.
pub fn sweep() -> Call {
    call(Script::Sweep, &[TAG], &[&1_000, &STAMPED])
}

/// `Agenda::put`.
pub fn due(how: &str, trigger: u8, at: i64, entries: &[&str]) -> Call {
    let mut call = call(
        Script::Due,
        &[AGENDA],
        &[&how, &trigger, &at, &u8::from(trigger == 1 || trigger == 4), &SIGNAL, &"due art"],
    );
    call.args.extend(entries.iter().map(|entry| (*entry).to_owned()));
    call
}

/// The last claim of a worker.
pub fn last_claim(worker: usize) -> String {
    format!("claim:{worker}")
}

/// `Agenda::claim` by a worker: this call's number, and that of the last one that was answered.
pub fn claim(worker: usize, most: usize, number: u64, answered: u64) -> Call {
    call(Script::Claim, &[AGENDA, PAUSED, &last_claim(worker)], &[&most, &CAP, &CLAIM, &number, &answered])
}

/// `Agenda::take`; `again` is the time since the first call of a caller that asks again (ms).
pub fn take(entry: &str, score: &str, again: Option<i64>) -> Call {
    let within = again.map_or(0, |after| (after + ANSWER).min(RUN));
    call(Script::Take, &[AGENDA], &[&RUN, &within, &entry, &score])
}

/// `Agenda::cancel`.
pub fn cancel(entry: &str, at: i64) -> Call {
    call(Script::Cancel, &[AGENDA], &[&at, &entry])
}

/// `Agenda::finish_counting` of one entry; `counter` is its outcome.
pub fn finish(entry: &str, score: &str, counter: &str, (what, arg): (&str, &str)) -> Call {
    let keys = [AGENDA, DEAD_LETTERS, REASONS, STATS];
    if counter.is_empty() {
        return call(Script::Finish, &keys, &[&DEAD, &"", &SIGNAL, &"due art", &0, &entry, &score, &what, &arg]);
    }
    let last = format!(r#"{{"outcome":"{counter}"}}"#);
    call(Script::Finish, &keys, &[&DEAD, &last, &SIGNAL, &"due art", &1, &counter, &1, &entry, &score, &what, &arg])
}

/// `Cache::begin`.
pub fn begin_load(entry: &str, token: &str) -> Call {
    call(Script::BeginLoad, &[entry, &lease_key(entry)], &[&token, &LEASE])
}

/// `Cache::land`.
pub fn commit_load(entry: &str, token: &str, json: &str, ttl: &str) -> Call {
    call(Script::CommitLoad, &[entry, &lease_key(entry)], &[&token, &json, &ttl, &CHANGED, &change(entry, "warmed")])
}

/// A lease that a load drops.
pub fn drop_lease(entry: &str, token: &str) -> Call {
    call(Script::DropLease, &[&lease_key(entry)], &[&token])
}

/// `Cache::set`.
pub fn set(entry: &str, json: &str, ttl: &str) -> Call {
    call(Script::Set, &[entry, &lease_key(entry)], &[&json, &ttl, &CHANGED, &change(entry, "warmed")])
}

/// `Cache::delete`.
pub fn delete(entry: &str) -> Call {
    call(Script::Delete, &[entry, &lease_key(entry)], &[&CHANGED, &change(entry, "evicted")])
}

/// `Cache::increment`.
pub fn increment(entry: &str, by: i64, ttl: &str) -> Call {
    call(Script::Increment, &[entry, &lease_key(entry)], &[&by, &ttl, &CHANGED, &change(entry, "warmed")])
}

/// `Cache::track`.
pub fn track(entry: &str, life: i64) -> Call {
    call(Script::Track, &[LOADED], &[&entry, &life, &100])
}

/// `Store::put_loaded`.
pub fn track_found(entry: &str, life: i64) -> Call {
    call(Script::Tag, &[LOADED], &[&entry, &life, &100])
}

/// `RateLimiter::check`: so many within this time (µs).
pub fn admit(limit: usize, period: i64) -> Call {
    call(Script::AdmitWithin, &["log"], &[&limit, &period])
}

/// Adds up a job's reported reads.
pub fn roll_reads() -> Call {
    call(Script::RollReads, &[REPORTED, MINUTES], &[&SHORTEST, &UNATTENDED, &FIGURES, &MINUTES_LIFE])
}

/// Takes the audits of these jobs that are due, each with its interval (ms).
pub fn claim_audits(jobs: &[(&str, i64)]) -> Call {
    let mut claim = call(Script::ClaimAudits, &[AUDITS], &[&MOST_AUDITS, &AUDITS_LIFE]);
    claim.args.extend(jobs.iter().flat_map(|(job, interval)| [(*job).to_owned(), interval.to_string()]));
    claim
}

/// Adds counts to the figures of the minute of this age (ms).
pub fn add_figures(age: i64, counts: &[(&str, i64)]) -> Call {
    let mut add = call(Script::AddFigures, &[HISTORY], &[&age, &HISTORY_HOURS, &HISTORY_LIFE]);
    add.args.extend(counts.iter().flat_map(|(name, count)| [(*name).to_owned(), count.to_string()]));
    add
}

/// Withdraws audits of a job.
pub fn withdraw_audits(job: &str, most: i64) -> Call {
    call(Script::WithdrawAudits, &[AUDITS], &[&job, &most])
}

/// `Cache::lock`.
pub fn lock(token: &str) -> Call {
    call(Script::Lock, &["lock", "number"], &[&token, &LEASE, &86_400_000])
}

/// A lock that is renewed, or released with 0.
pub fn renew_lock(token: &str, time: i64) -> Call {
    call(Script::RenewLock, &["lock"], &[&token, &time])
}

/// An upstream's limits, as its gates send them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The time after which a permit comes back by itself (ms).
    pub hold: i64,
    /// Requests at once; 0 for no limit.
    pub most: usize,
    /// The time between two requests (µs); 0 for no limit.
    pub interval: i64,
    /// The time by which requests may come early (µs).
    pub early: i64,
    /// The time by which a place in the rate limit's future may be ahead (ms).
    pub ahead: i64,
    /// Tokens that may be spent in a window; 0 for no limit.
    pub budget: i64,
    /// The window (ms).
    pub window: i64,
}

/// The end of a request: the word for it, the pause that the upstream asks for (ms), and the answer's tokens.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// The word.
    pub word: &'a str,
    /// The pause.
    pub busy: i64,
    /// The answer's tokens.
    pub answer: i64,
}

/// The tokens that a process tells: all that it has spent, and those that it heard to be counted.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The process.
    pub process: &'a str,
    /// All.
    pub spent: i64,
    /// Those counted.
    pub counted: i64,
}

fn limited(script: Script, args: &[&dyn ToString], returned: &[String]) -> Call {
    let mut call = call(script, &["limits", "permits", SPENT, "reserved"], args);
    call.args.extend(returned.iter().cloned());
    call
}

/// `Gate::take`, of a gate that has waited for so long (ms); `cost` are the tokens of the prompt, and of the answer at
/// most.
pub fn take_permit(
    id: &str,
    (gate, waited): (&str, i64),
    limits: Limits,
    cost: (i64, i64),
    returned: &[String],
) -> Call {
    let Limits { hold, most, interval, early, ahead, budget, .. } = limits;
    limited(
        Script::TakePermit,
        &[&id, &hold, &most, &interval, &early, &ahead, &budget, &gate, &waited, &cost.0, &cost.1],
        returned,
    )
}

/// `Permit::done`.
pub fn return_permit(id: &str, limits: Limits, ended: Ended<'_>, told: Told<'_>, returned: &[String]) -> Call {
    let Limits { budget, window, .. } = limits;
    let Ended { word, busy, answer } = ended;
    let Told { process, spent, counted } = told;
    let (opens, longest) = if word.starts_with("refused") { (60_000, 3_600_000) } else { (5_000, 120_000) };
    limited(
        Script::ReturnPermit,
        &[
            &id,
            &word,
            &busy,
            &process,
            &spent,
            &counted,
            &window,
            &budget,
            &10,
            &opens,
            &longest,
            &SIGNAL,
            &"upstream x",
            &answer,
        ],
        returned,
    )
}

/// `Gate::refresh`.
pub fn inspect(limits: Limits, told: Told<'_>, returned: &[String]) -> Call {
    let Limits { budget, window, .. } = limits;
    let Told { process, spent, counted } = told;
    limited(Script::Inspect, &[&budget, &window, &process, &spent, &counted, &SIGNAL, &"upstream x"], returned)
}

/// `Cron::claim_tick`.
pub fn tick() -> Call {
    call(Script::Tick, &[SCHEDULES, TICKS], &[&CLAIM, &"art", &"zoo"])
}

/// The end of a warmup.
pub fn end_tick(job: &str, tick: i64, till: i64, next: &str) -> Call {
    call(Script::EndTick, &[SCHEDULES, TICKS], &[&job, &tick, &till, &next])
}

/// A warmup that takes long.
pub fn hold_tick(job: &str, tick: i64, till: i64) -> Call {
    call(Script::HoldTick, &[SCHEDULES, TICKS], &[&job, &tick, &till, &CLAIM])
}

/// A warmup whose feed failed.
pub fn retry_tick(job: &str, tick: i64, till: i64) -> Call {
    call(Script::RetryTick, &[SCHEDULES, TICKS], &[&job, &tick, &till, &RETRY])
}

/// `Cron::ensure`.
pub fn ensure(job: &str, digest: &str, next: &str) -> Call {
    call(Script::Ensure, &[SCHEDULES, TICKS, DIGESTS], &[&job, &digest, &next, &CLAIM, &""])
}
