//! The rules of gap detection that protect from a missed invalidation. Each can be taken out of the model.

/// A rule of the real code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rule {
    /// `Other::knows`: a record covers only the jobs that its worker knows.
    KnowsJob,
    /// `Hearing::hear`: a canary counts only by a nonce that its worker sent.
    Nonce,
    /// `Hearing::lose`: the nonces sent before the connection ended do not count.
    NoncesEnd,
    /// `GapDetector::subscribed`: the nonces sent while there was no subscription do not count.
    NoncesBegin,
    /// `Other::read`: times later than now do not count.
    NoFuture,
    /// `GapDetector::check`: records with such times are dropped.
    FutureGoes,
    /// `Asking::coverage`: what was heard and not handled covers nothing.
    Handled,
    /// `Unhandled::handled`: a canary counts when all that was heard before it is handled.
    InOrder,
    /// `Asking::coverage`: a worker that begins asks those that began before it.
    FreshAsks,
    /// `Asking::coverage`: of workers that begin together, each counts only those that began before.
    FreshOrder,
    /// `Asking::coverage`: a worker that heard before, and finds no other record, was the fleet.
    FleetAlone,
    /// `Asking::coverage`: another worker heard since before the last canary that the asking one heard.
    SinceBefore,
    /// `Asking::coverage`: times are strictly earlier, since more can happen in a millisecond.
    Strict,
    /// `Hearing::lose`: the time since which a gap is to be checked stays until it is checked.
    KeepBefore,
    /// `Asking::coverage`: a worker whose own gap is not checked does not cover a worker that begins.
    Unchecked,
    /// `Asking::coverage`: a worker that heard before, and whose gap is not checked, began before.
    GapCounts,
    /// `Other::is_before`: a worker that has never checked counts by its first canary of all.
    Began,
    /// `Hearing`: each connection is checked, whatever its first time is.
    EachChecked,
    /// `canary.lua`: times of records do not go back when Redis's clock does.
    Steady,
    /// `canary.lua`: a worker that heard once, and has no record any more, says that it is there.
    Deaf,
    /// `GapDetector::check`: the record of the worker that was heard last is never dropped.
    NewestStays,
    /// `GapDetector::check`: a worker whose own gap is not checked lets no record be dropped.
    NewestChecked,
    /// `GapDetector::run`: a subscription over which nothing comes back is made anew.
    Stalled,
    /// `Coverage::Open`: a worker that may have heard everything is waited for, then not any more.
    Silent,
    /// `RestartMonitor::check`: another `run_id` than the marker's is a gap.
    Restart,
    /// `RestartMonitor::restore`: the marker is written after the gap is noted.
    MarkerLast,
    /// `suspect.lua`: of two notes the later time counts.
    LaterNote,
    /// `suspect.lua`: jobs that are not in doubt stay handled only if they were.
    SpareHandled,
    /// `suspect.lua`: a job that was only not in doubt is not handled for a later gap, although the note stays.
    SparedOnly,
    /// `suspect.lua`: a note of a time that is in the future is replaced by each new gap.
    NoteAnew,
    /// `suspect.lua`: the same until the clock has passed the time that it shows twice.
    NoteAnewLater,
    /// `close_gap.lua`: the note stays until all jobs of the fleet are handled.
    AllJobs,
    /// `close_gap.lua`: a note that changed meanwhile is not closed.
    SameNote,
    /// `Revalidator::revalidate`: a job counts as handled after its entries are marked.
    HandledLast,
    /// `clock.lua`: a clock that is set back is a gap of all that was fetched.
    ClockBack,
    /// `clock.lua`: the note of a gap that is open becomes another one.
    StepAnew,
    /// `Revalidator::revalidate`: a worker with nothing left to do tries to close the gap.
    CloseAgain,
    /// `Revalidator::affected`: what was fetched in the future is affected.
    FutureFetch,
    /// `Inbox::next`: messages of a worker that died are taken over.
    TakeOver,
    /// `acknowledge`: a message is acknowledged after it is handled.
    AckLast,
    /// `Invalidator::remove_foreign`: a message of the inbox about an unknown job removes the value.
    Foreign,
    /// `inbox::bound`: a trimmed inbox says so.
    Trimmed,
    /// `Inbox::note_lost_inbox`: an inbox that is gone is a gap.
    InboxGone,
    /// `Watermark::compare`: an inbox whose last id is lower than one that was seen lost messages.
    Highest,
    /// `Watermark::marked`: a mark in Redis that is older than the one written means lost messages.
    Mark,
}

/// The rules that a property needs, each with the scenario in which the search shows that.
pub const NEEDED: &[(Rule, &str)] = &[
    (Rule::KnowsJob, "different jobs"),
    (Rule::Nonce, "strangers"),
    (Rule::NoncesBegin, "strangers"),
    (Rule::Handled, "heard, not handled"),
    (Rule::InOrder, "heard, not handled"),
    (Rule::FreshAsks, "a newcomer"),
    (Rule::FreshOrder, "a newcomer"),
    (Rule::FleetAlone, "a first fleet"),
    (Rule::SinceBefore, "flapping"),
    (Rule::Strict, "flapping"),
    (Rule::KeepBefore, "a newcomer"),
    (Rule::Unchecked, "a job that comes to be known"),
    (Rule::GapCounts, "a job that comes to be known"),
    (Rule::Began, "a first fleet"),
    (Rule::Steady, "clock back"),
    (Rule::Deaf, "restarts"),
    (Rule::NewestStays, "after a weekend"),
    (Rule::NewestChecked, "after a weekend"),
    (Rule::Stalled, "stalled"),
    (Rule::Silent, "flapping"),
    (Rule::LaterNote, "the inbox"),
    (Rule::SpareHandled, "different jobs"),
    (Rule::SparedOnly, "different jobs"),
    (Rule::NoteAnewLater, "clock back, an open gap"),
    (Rule::AllJobs, "different jobs"),
    (Rule::SameNote, "restarts"),
    (Rule::HandledLast, "a revalidator dies"),
    (Rule::ClockBack, "clock back, an open gap"),
    (Rule::StepAnew, "clock back twice, an open gap"),
    (Rule::CloseAgain, "a job that vanishes"),
    (Rule::TakeOver, "the inbox"),
    (Rule::AckLast, "the inbox"),
    (Rule::Foreign, "the inbox"),
    (Rule::Trimmed, "the inbox"),
    (Rule::InboxGone, "the inbox"),
    (Rule::Highest, "a lost inbox, paid for"),
    (Rule::Mark, "a lost inbox, paid for"),
];

/// The rules without which no property fails here, and why they are kept.
pub const KEPT: &[(Rule, &str)] = &[
    (Rule::NoncesEnd, "A subscription that begins drops the nonces as well."),
    (Rule::NoFuture, "Only a program that writes to the records makes such times, now that they do not go back."),
    (Rule::FutureGoes, "As above."),
    (Rule::EachChecked, "Two connections have the same first time only if times go back."),
    (Rule::Restart, "A restart ends all subscriptions, so the detectors note a gap as well, if all of them live."),
    (Rule::MarkerLast, "The same."),
    (Rule::NoteAnew, "For notes of a previous version, which do not tell since when the clock was set back."),
    (Rule::FutureFetch, "The note of a clock that was set back covers such a fetch, unless no worker saw its time."),
];

/// The rules that are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules(u64);

impl Rules {
    /// All rules.
    pub const ALL: Self = Self(u64::MAX);

    /// Returns these rules without one.
    #[must_use]
    pub const fn without(self, rule: Rule) -> Self {
        Self(self.0 & !(1 << rule as u8))
    }

    /// Returns true if a rule is in force.
    pub const fn has(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u8) != 0
    }
}
