//! The time of an entry's refresh.

use std::time::{Duration, Instant};

use tracing::debug;
use twox_hash::XxHash3_64;

use super::Next;
use crate::entry::EntryKey;
use crate::job::Job;
use crate::redis::RedisTime;
use crate::store::Expiry;

/// The part of the refresh's lead by which refreshes are spread, so that what was warmed together does not expire
/// together. Entries that share requests are due at common times, so far apart.
const SPREAD: f64 = 0.25;
/// The longest lead, as a part of the TTL.
const LONGEST_LEAD: f32 = 0.95;

/// The common pace of entries that were asked for together, so that they are retried and rechecked together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// When the last of their leases began.
    pub(crate) last: RedisTime,
    /// When they heard of their answer.
    pub(crate) told: Instant,
    /// A random number from 0 to 1, in place of one for each entry.
    pub(crate) draw: f64,
}

/// Returns when an entry with this expiry is due again, to be refreshed if it is kept warm or read.
///
/// Entries that share requests are due at few common times. Otherwise each that was invalidated alone would be parted
/// from the others for good, until each takes a request of its own.
pub(crate) fn keep(job: &Job, key: &EntryKey, expiry: Expiry) -> Next {
    let Some(expires) = expiry.at().filter(|_| !job.warm.ahead.is_zero()) else { return Next::Out };
    let longest = job.ttl.mul_f32(LONGEST_LEAD);
    let at = if job.at_once() > 1 {
        aligned(expires - job.warm.ahead, job).max(expires - longest)
    } else {
        expires - job.warm.ahead.mul_f64(1.0 + SPREAD * rand::random::<f64>()).min(longest)
    };
    debug!(%key, %at, "due again");
    Next::At(at)
}

/// Returns the last common time up to `at` at which entries of a job are due that share requests. Jobs differ in these.
fn aligned(at: RedisTime, job: &Job) -> RedisTime {
    let part = i64::try_from(job.warm.ahead.mul_f64(SPREAD).as_millis()).unwrap_or(i64::MAX).max(1);
    let name = XxHash3_64::oneshot(job.name.as_str().as_bytes()) >> 1;
    let offset = i64::try_from(name).unwrap_or_default() % part;
    at - Duration::from_millis((at.as_millis() - offset).rem_euclid(part).unsigned_abs())
}
