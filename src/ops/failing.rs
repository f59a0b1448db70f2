//! Jobs of which nothing succeeds: their answers are refused, so their entries become dead letters, one after another.
//!
//! The measure is in Redis, so it is the fleet's, and survives restarts: the dead letters and the failed attempts since
//! the last success. A worker's heartbeat notes a success once the job's counters have grown
//! ([`Ops::note_successes`]). When a job works again, the same puts the dead letters of refused answers back on the
//! agenda: spread over a minute, and at most once an hour, so that entries that always fail cost little.
//!
//! On failure: two workers may note the same success, and put the same letters back; neither does harm.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::RedisResult;

use super::Ops;
use super::status::JobStatus;
use crate::agenda::When;
use crate::entry::{EntryKey, JobName, Outcome, Trigger};
use crate::job::KnownJob;
use crate::redis::{RedisTime, is_of_keys};

/// So many dead letters since the last success are enough; more than half of the entries of a small job, too.
const ENOUGH: usize = 10;
/// So many failed attempts for each entry on the agenda are enough as well, but no fewer than [`ENOUGH`]. Entries whose
/// old value outlives its TTL become no dead letters.
const TRIES: u64 = 2;
/// Dead letters that come back at once.
const AT_ONCE: usize = 1_000;
/// The time over which they are spread, and into how many parts.
const SPREAD: (Duration, u32) = (Duration::from_secs(60), 20);
/// The shortest time between two returns of a job's dead letters.
const PAUSE: Duration = Duration::from_secs(3_600);

/// The fields of a job's counters that tell its successes.
const FIELDS: [&str; 9] = [
    Outcome::Warmed.as_str(),
    Outcome::Gone.as_str(),
    "not_modified",
    SEEN,
    SUCCEEDED,
    RECOVERED,
    RETURNED,
    Outcome::Failed.as_str(),
    FAILED_THEN,
];
/// The number of successes at the last inspection.
const SEEN: &str = "successes";
/// The number of failed attempts then.
const FAILED_THEN: &str = "failures";
/// The time of the inspection that found the last one.
const SUCCEEDED: &str = "succeeded";
/// The last success before a job failed, and the first one after: the letters between them come back.
const RECOVERED: &str = "recovered";
/// When letters came back.
const RETURNED: &str = "returned";

/// What is known of a job's successes.
#[derive(Debug, Default)]
struct Successes {
    /// All that were counted.
    counted: u64,
    seen: Option<u64>,
    last: RedisTime,
    recovered: Option<(RedisTime, RedisTime)>,
    returned: RedisTime,
    /// Failed attempts, all of them and those since the last success.
    failed: u64,
    failed_since: u64,
    /// Dead letters since the last one.
    dead: usize,
    /// Entries on the agenda.
    alive: usize,
}

impl Successes {
    fn of(fields: &[Option<String>], alive: usize) -> Self {
        let text = |at: usize| fields.get(at).and_then(Option::as_deref);
        let number = |at| text(at).and_then(|text| text.parse::<u64>().ok());
        let time = |at| text(at).and_then(|text| text.parse().ok()).unwrap_or_default();
        let recovered = text(5).and_then(|text| text.split_once(' '));
        Self {
            counted: [0, 1, 2].into_iter().filter_map(number).sum(),
            seen: number(3),
            last: time(4),
            recovered: recovered.and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?))),
            returned: time(6),
            failed: number(7).unwrap_or_default(),
            failed_since: number(7).unwrap_or_default().saturating_sub(number(8).unwrap_or_default()),
            dead: 0,
            alive,
        }
    }

    /// Returns `true` if so many entries were given up, or attempts failed, and none succeeded since.
    fn is_failing(&self) -> bool {
        let tries = (TRIES * self.alive as u64).max(ENOUGH as u64);
        let is_bad = self.dead >= ENOUGH || self.dead > self.alive || self.failed_since >= tries;
        self.counted <= self.seen.unwrap_or_default() && is_bad
    }

    /// Returns this as a sentence that stays true until the next success.
    fn notice(&self, job: &JobName) -> String {
        let Self { dead, failed_since, .. } = self;
        let what = match dead {
            0 => format!("{failed_since} attempts at entries of {job} failed"),
            1 => format!("1 entry of {job} was given up"),
            _ => format!("{dead} entries of {job} were given up"),
        };
        let why = match dead {
            0 => format!("`samovar jobs {job}` shows the last outcome"),
            _ => format!("`samovar dead {job}` tells why"),
        };
        let since = match self.last {
            RedisTime::ZERO => "and nothing ever succeeded".to_owned(),
            last => format!("and nothing has succeeded since {}", last.utc()),
        };
        format!("{what}, {since}: {why}")
    }
}

impl Ops {
    /// Returns the jobs of which nothing succeeds, each with a sentence.
    ///
    /// # Errors
    /// Fails if Redis returns an error; keys of another type count as empty.
    pub(crate) async fn failing(&self) -> RedisResult<BTreeMap<JobName, String>> {
        let jobs: Vec<&KnownJob> = self.jobs.jobs.values().map(AsRef::as_ref).collect();
        let known = jobs.iter().zip(self.successes(&jobs).await?);
        let failing = known.filter(|(_, known)| known.is_failing());
        Ok(failing.map(|(job, known)| (job.name.clone(), known.notice(&job.name))).collect())
    }

    /// Adds to each job that nothing of it succeeds; returns the sentences.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(crate) async fn add_failing(&self, statuses: &mut [JobStatus]) -> RedisResult<Vec<String>> {
        let mut failing = self.failing().await?;
        let mut told = Vec::new();
        for status in statuses {
            let said = failing.remove(status.job.as_str());
            told.extend(said.clone());
            status.faults.extend(said);
        }
        Ok(told)
    }

    /// Notes which jobs had a success since the last call, and puts dead letters back of those that work again. Returns
    /// how many, by job.
    ///
    /// # Errors
    /// Fails if Redis returns an error; call it again.
    pub(crate) async fn note_successes(&self) -> RedisResult<BTreeMap<JobName, usize>> {
        let jobs: Vec<&KnownJob> = self.jobs.jobs.values().map(AsRef::as_ref).collect();
        let (now, mut back) = (self.store.now().await?, BTreeMap::new());
        for (job, known) in jobs.iter().zip(self.successes(&jobs).await?) {
            match self.note_success(job, known, now).await {
                Ok(0) => {}
                Ok(entries) => _ = back.insert(job.name.clone(), entries),
                // Told elsewhere; the other jobs go on.
                Err(e) if is_of_keys(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(back)
    }

    /// Notes a success of a job since the last call; returns how many dead letters came back.
    async fn note_success(&self, job: &KnownJob, mut known: Successes, now: RedisTime) -> RedisResult<usize> {
        let seen = known.seen.replace(known.counted);
        if seen.is_some_and(|seen| seen > known.counted) {
            // The counters began anew.
            let fields = [(SEEN, known.counted.to_string()), (FAILED_THEN, known.failed.to_string())];
            self.note(job, &fields).await?;
        } else if seen.unwrap_or_default() < known.counted {
            if known.is_failing() {
                let from = known.recovered.map_or(known.last, |(from, _)| from);
                known.recovered = Some((from, now));
                self.note(job, &[(RECOVERED, format!("{from} {now}"))]).await?;
            }
            let fields = [
                (SEEN, known.counted.to_string()),
                (FAILED_THEN, known.failed.to_string()),
                (SUCCEEDED, now.to_string()),
            ];
            self.note(job, &fields).await?;
        }
        let Some(recovered) = known.recovered.filter(|_| known.returned + PAUSE <= now) else { return Ok(0) };
        let returned = self.bring_back(job, recovered, now).await?;
        self.note(job, &[(RETURNED, now.to_string())]).await?;
        let mut done = redis::cmd("HDEL");
        done.arg(self.keys.stats(&job.name)).arg(RECOVERED).exec_async(&mut self.redis.clone()).await?;
        Ok(returned)
    }

    /// Reads what is known of the jobs' successes, in two round trips.
    async fn successes(&self, jobs: &[&KnownJob]) -> RedisResult<Vec<Successes>> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let mut ask = redis::pipe();
        for job in jobs {
            ask.cmd("HMGET").arg(self.keys.stats(&job.name)).arg(&FIELDS);
            ask.add_command(self.agenda.ask_size(&job.name));
        }
        let replies: Vec<RedisResult<redis::Value>> = ask.ignore_errors().query_async(&mut self.redis.clone()).await?;
        let mut replies = replies.into_iter();
        let mut all = Vec::new();
        for _ in jobs {
            let fields: Vec<Option<String>> = there(replies.next())?;
            all.push(Successes::of(&fields, there(replies.next())?));
        }
        let mut ask = redis::pipe();
        for (job, known) in jobs.iter().zip(&all) {
            ask.cmd("ZCOUNT").arg(self.keys.dead(&job.name)).arg(format!("({}", known.last)).arg("+inf");
        }
        let counts: Vec<RedisResult<redis::Value>> = ask.ignore_errors().query_async(&mut self.redis.clone()).await?;
        for (known, count) in all.iter_mut().zip(counts) {
            known.dead = there(Some(count))?;
        }
        Ok(all)
    }

    async fn note(&self, job: &KnownJob, fields: &[(&str, String)]) -> RedisResult<()> {
        let mut note = redis::cmd("HSET");
        note.arg(self.keys.stats(&job.name));
        for (name, text) in fields {
            note.arg(name).arg(text);
        }
        note.exec_async(&mut self.redis.clone()).await
    }

    /// Puts the dead letters of refused answers between these times back on the agenda, as a warmup does; returns how
    /// many.
    async fn bring_back(
        &self,
        job: &KnownJob,
        (from, to): (RedisTime, RedisTime),
        now: RedisTime,
    ) -> RedisResult<usize> {
        let mut ask = redis::cmd("ZRANGEBYSCORE");
        ask.arg(self.keys.dead(&job.name)).arg(format!("({from}")).arg(to).arg("LIMIT").arg(0).arg(AT_ONCE);
        let names: Vec<String> = ask.query_async(&mut self.redis.clone()).await?;
        let entries: Vec<EntryKey> = names.into_iter().map(EntryKey::new).collect();
        let refused = self.agenda.died_of(&job.name, entries, GIVEN_UP).await?;
        let part = refused.len().div_ceil(SPREAD.1 as usize).max(1);
        for (nth, entries) in (0..).zip(refused.chunks(part)) {
            self.agenda.put(&job.name, entries, When::Keep(now + SPREAD.0 * nth / SPREAD.1), Trigger::Cron).await?;
        }
        Ok(refused.len())
    }
}

/// The reason of a dead letter whose attempts failed begins like this; one of a key, an input or a cut-off text has
/// another.
const GIVEN_UP: &str = " times, last: ";

/// Reads one reply; that of a key of another type counts as empty.
fn there<T: Default + redis::FromRedisValue>(reply: Option<RedisResult<redis::Value>>) -> RedisResult<T> {
    match reply {
        None => Ok(T::default()),
        Some(Err(e)) if is_of_keys(&e) => Ok(T::default()),
        Some(reply) => Ok(redis::from_redis_value(reply?)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(fields: &[Option<&str>], dead: usize, alive: usize) -> Option<String> {
        let fields: Vec<Option<String>> = fields.iter().map(|field| field.map(str::to_owned)).collect();
        let known = Successes { dead, ..Successes::of(&fields, alive) };
        known.is_failing().then(|| known.notice(&JobName::new("art")))
    }

    #[test]
    fn a_job_fails_once_many_failed_and_none_succeeded_since() {
        let never = [None; 9];
        for (dead, alive, is_failing) in [(0, 0, false), (1, 1, false), (2, 1, true), (9, 900, false), (10, 900, true)]
        {
            assert_eq!(told(&never, dead, alive).is_some(), is_failing, "{dead} of {alive}");
        }
        assert_eq!(
            told(&never, 1, 0).unwrap(),
            "1 entry of art was given up, and nothing ever succeeded: `samovar dead art` tells why"
        );
        // Warmed 5 times, which was seen; then so many attempts failed at entries whose old values are kept.
        let since = |failed| [Some("5"), None, None, Some("5"), Some("1000"), None, None, Some(failed), Some("7")];
        assert_eq!((told(&since("16"), 0, 4), told(&since("30"), 0, 12)), (None, None));
        let said = told(&since("17"), 0, 4).unwrap();
        let reason = "10 attempts at entries of art failed, and nothing has succeeded since 1970-01-01 00:00:01 UTC";
        assert!(said.starts_with(reason), "{said}");
        // Another success was counted since the last inspection.
        assert_eq!(told(&[Some("6"), None, None, Some("5"), None, None, None, Some("90"), None], 90, 4), None);
    }
}
