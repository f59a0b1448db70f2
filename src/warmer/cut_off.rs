//! AI requests whose answers were cut off: each was paid for, and the same request would be cut off again.
//!
//! The entry's metadata keep hashes of these requests, one a source at most. Such a request is not made again by
//! itself. A changed request, of changed inputs or of a changed job file, has another hash. An operator's request
//! ([`crate::entry::Trigger::Manual`]) is made once, whatever is known.

/// What follows the reason of an answer that was cut off.
pub(super) const NOT_AGAIN: &str = "the same request is not paid for again: raise `max_tokens`, or ask anew with \
                                    `samovar dead --retry` or `samovar warm`";

/// What an attempt knows of answers that were cut off.
#[derive(Debug)]
pub(super) struct CutOff {
    /// Hashes of the requests to the present sources whose answers were cut off.
    pub(super) requests: Vec<String>,
    /// This attempt has paid for one of them.
    pub(super) is_paid: bool,
}
