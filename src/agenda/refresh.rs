//! The time of an entry's refresh.

use tracing::debug;

use super::Next;
use crate::entry::EntryKey;
use crate::job::Job;
use crate::store::Expiry;

/// Returns when an entry with this expiry is due again, to be refreshed if it is kept warm or read.
pub(crate) fn keep(job: &Job, key: &EntryKey, expiry: Expiry) -> Next {
    let Some(expires) = expiry.at().filter(|_| !job.warm.ahead.is_zero()) else { return Next::Out };
    // Spread by a quarter, so that what was warmed together does not expire together; never more than the TTL allows.
    let ahead = job.warm.ahead.mul_f64(rand::random_range(1.0..=1.25)).min(job.ttl.mul_f32(0.95));
    let at = expires - ahead;
    debug!(%key, %at, "due again");
    Next::At(at)
}
