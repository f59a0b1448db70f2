//! AI requests whose answers were cut off: each was paid for, and the same request would be cut off again.
//!
//! The entry's metadata keep hashes of these requests, one a source at most. Such a request is not made again by
//! itself. A changed request, of changed inputs or of a changed job file, has another hash. An operator's request
//! ([`Trigger::Manual`]) is made once, whatever is known.

use std::time::Instant;

use super::attempt::{Attempt, Ending};
use crate::agenda::Next;
use crate::entry::Trigger;
use crate::store::Lease;

/// What follows the reason of an answer that was cut off.
pub(super) const NOT_AGAIN: &str = "the same request is not paid for again: raise `max_tokens`, or ask anew with \
                                    `samovar dead --retry` or `samovar warm`";

/// What an attempt knows of answers that were cut off.
#[derive(Debug)]
pub(super) struct CutOff {
    /// Hashes of the requests to the present sources whose answers were cut off.
    requests: Vec<String>,
    /// This attempt has paid for one of them.
    is_paid: bool,
}

impl Attempt<'_> {
    /// Returns the first source to ask, of which one is known to be left out; `None` if each is.
    pub(super) fn first_not_cut(&self, known: &[String]) -> Option<usize> {
        let is_known = |source: &usize| self.request(*source).is_some_and(|request| self.is_left_out(known, &request));
        (0..self.job.sources.len()).find(|source| known.is_empty() || !is_known(source))
    }

    /// Recalls what is known as a fetch begins. Requests that would be others by now are forgotten.
    pub(super) fn recall_cut(&mut self, lease: &Lease) {
        if self.cut.is_some() {
            return;
        }
        let known = lease.before.meta.as_ref().map(|meta| meta.last_attempt.cut.clone()).unwrap_or_default();
        let present = if known.is_empty() { 0 } else { self.job.sources.len() };
        let requests = (0..present).filter_map(|source| self.request(source)).filter(|request| known.contains(request));
        self.cut = Some(CutOff { requests: requests.collect(), is_paid: false });
    }

    /// Returns the hash of the request to a source, if it costs money.
    pub(super) fn request(&self, source: usize) -> Option<String> {
        self.warmer.sources.paid_request(&self.ask(source, None, Instant::now()))
    }

    /// Tells whether this request is not made since its answer was cut off.
    pub(super) fn is_cut(&self, request: &str) -> bool {
        self.cut.as_ref().is_some_and(|cut| self.is_left_out(&cut.requests, request))
    }

    fn is_left_out(&self, known: &[String], request: &str) -> bool {
        self.entry.trigger != Trigger::Manual && known.iter().any(|known| known == request)
    }

    /// Notes whether the answer to a request was cut off.
    pub(super) fn note_cut(&mut self, request: Option<String>, is_cut: bool) {
        let (Some(request), Some(cut)) = (request, &mut self.cut) else { return };
        cut.requests.retain(|known| *known != request);
        if is_cut {
            cut.requests.push(request);
            cut.is_paid = true;
        }
    }

    /// Returns what the metadata note; `None` before a fetch, which changes nothing.
    pub(super) fn cut_requests(&self) -> Option<Vec<String>> {
        self.cut.as_ref().map(|cut| cut.requests.clone())
    }

    /// Tells that an operator's request was made, and its answer was cut off: no later try repeats it.
    pub(super) fn is_carried_out(&self) -> bool {
        self.entry.trigger == Trigger::Manual && self.cut.as_ref().is_some_and(|cut| cut.is_paid)
    }

    /// Returns the ending of an entry whose next try comes by itself, and no more for the operator.
    pub(super) fn by_itself(running: &super::Running, mut ending: Ending) -> Ending {
        if let Next::In(wait) | Next::Aside(wait) = ending.next {
            ending.next = Next::At(running.since + running.late + wait);
        }
        ending
    }
}
