//! Dead letters, read in pages of bounded size.

use std::collections::BTreeSet;
use std::sync::Arc;

use redis::RedisResult;
use serde::Serialize;

use super::Ops;
use crate::agenda::When;
use crate::entry::Trigger;
use crate::entry::{EntryKey, JobName};
use crate::job::KnownJob;
use crate::redis::{RedisTime, is_of_keys};
use crate::warmer::{USED_UP, is_of_input};

/// Dead letters read at once.
const AT_ONCE: usize = 50;
/// Bytes of keys and reasons in one page; the letter that exceeds it ends the page.
const PAGE_BYTES: usize = 64 * 1024;

/// A dead letter.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Dead {
    /// The job.
    pub job: String,
    /// The entry.
    pub key: String,
    /// When the entry moved to the dead letters (Redis time, ms since the epoch).
    #[schema(value_type = i64)]
    pub at_ms: RedisTime,
    /// When the entry is tried again, if it is on the agenda all the same (Redis time, ms since the epoch).
    #[schema(value_type = Option<i64>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_ms: Option<RedisTime>,
    /// The reason; over HTTP only with the owner's rights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Dead {
    /// Returns the cause: the reason with `…` for what names entries. All letters of an outage have the same.
    pub fn cause(&self) -> String {
        without_names(self.reason.as_deref().unwrap_or_default())
    }
}

/// A page of dead letters.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Letters {
    /// The number of dead letters on all pages.
    pub total: usize,
    /// The dead letters of this page, the oldest of each job first.
    pub dead: Vec<Dead>,
    /// The offset of the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

impl Ops {
    /// Returns a page of dead letters of these jobs and entries, or of all if none is named: at most `most` from offset
    /// `from`, fewer if they are long.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn dead(&self, only: &[String], from: usize, most: usize) -> RedisResult<Letters> {
        let mut page = Page { dead: Vec::new(), bytes: 0, most };
        let (mut total, mut at) = (0, from);
        for job in self.named_jobs(only) {
            let mut redis = self.redis.clone();
            let of_job: usize = redis::cmd("ZCARD").arg(self.keys.dead(&job.name)).query_async(&mut redis).await?;
            while !page.is_full() && (total..total + of_job).contains(&at) {
                let first = at - total;
                let last = first + AT_ONCE.min(most - page.dead.len()) - 1;
                let mut ask = redis::cmd("ZRANGE");
                ask.arg(self.keys.dead(&job.name)).arg(first).arg(last).arg("WITHSCORES");
                let found = self.letters(job, ask.query_async(&mut redis).await?).await?;
                if found.is_empty() {
                    // Some were retried since they were counted.
                    at = total + of_job;
                }
                at += page.take(found);
            }
            total += of_job;
        }
        for (job, key) in self.named_keys(only) {
            if let Some(letter) = self.letter(job, key).await? {
                if !page.is_full() && at == total {
                    at += page.take(vec![letter]);
                }
                total += 1;
            }
        }
        Ok(Letters { total, dead: page.dead, next: (from < at && at < total).then_some(at) })
    }

    /// Returns the first of these names that is neither a job nor a key of a job.
    pub fn unknown<'a>(&self, names: &'a [String]) -> Option<&'a String> {
        names.iter().find(|name| !self.jobs.jobs.contains_key(name.as_str()) && self.jobs.owner(name).is_none())
    }

    /// Puts some dead letters back on the agenda with a full number of attempts: those that died up to this time and
    /// are named or of a named job. Returns how many; none is left once it returns 0.
    ///
    /// # Errors
    /// Fails if Redis returns an error; some may be back on the agenda, and a retry does no harm.
    pub async fn retry(&self, only: &[String], until: RedisTime) -> RedisResult<Vec<Dead>> {
        for job in self.named_jobs(only) {
            let mut ask = redis::cmd("ZRANGEBYSCORE");
            ask.arg(self.keys.dead(&job.name)).arg("-inf").arg(until).arg("WITHSCORES");
            ask.arg("LIMIT").arg(0).arg(AT_ONCE);
            let found = self.letters(job, ask.query_async(&mut self.redis.clone()).await?).await?;
            if !found.is_empty() {
                self.put_back(job, &found).await?;
                return Ok(found);
            }
        }
        for (job, key) in self.named_keys(only) {
            if let Some(letter) = self.letter(job, key).await?.filter(|letter| letter.at_ms <= until) {
                let found = vec![letter];
                self.put_back(job, &found).await?;
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    /// Returns all dead letters of a job that have this [cause](Dead::cause). There are at most 10,000 of each job.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn dead_of(&self, job: &KnownJob, cause: &str) -> RedisResult<Vec<Dead>> {
        let (mut of_cause, mut from) = (Vec::new(), 0);
        loop {
            let mut ask = redis::cmd("ZRANGE");
            ask.arg(self.keys.dead(&job.name)).arg(from).arg(from + super::PAGE - 1).arg("WITHSCORES");
            let found = self.letters(job, ask.query_async(&mut self.redis.clone()).await?).await?;
            let is_last = found.len() < super::PAGE;
            of_cause.extend(found.into_iter().filter(|dead| dead.cause() == cause));
            if is_last {
                return Ok(of_cause);
            }
            from += super::PAGE;
        }
    }

    /// Puts these dead letters back on the agenda with a full number of attempts.
    ///
    /// # Errors
    /// Fails if Redis returns an error; some may be back on the agenda.
    pub async fn put_back(&self, job: &KnownJob, dead: &[Dead]) -> RedisResult<()> {
        let keys: Vec<EntryKey> = dead.iter().map(|dead| EntryKey::new(&*dead.key)).collect();
        // First put on the agenda, then removed from the dead letters: a crash in between only leaves a superfluous
        // letter.
        self.agenda.put(&job.name, &keys, When::NOW, Trigger::Manual).await?;
        let keys: Vec<&str> = keys.iter().map(EntryKey::as_str).collect();
        redis::pipe()
            .cmd("ZREM")
            .arg(self.keys.dead(&job.name))
            .arg(&keys)
            .ignore()
            .cmd("HDEL")
            .arg(self.keys.dead_reasons(&job.name))
            .arg(&keys)
            .ignore()
            .query_async(&mut self.redis.clone())
            .await
    }

    /// Returns at most `most` dead letters of a job that died up to `until`, the oldest first: of a [passing
    /// reason](Self::may_pass), and not on the agenda.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(crate) async fn passing(&self, job: &KnownJob, until: RedisTime, most: usize) -> RedisResult<Vec<Dead>> {
        let (mut passing, mut from) = (Vec::new(), 0);
        loop {
            let mut ask = redis::cmd("ZRANGEBYSCORE");
            ask.arg(self.keys.dead(&job.name)).arg("-inf").arg(until).arg("WITHSCORES");
            ask.arg("LIMIT").arg(from).arg(super::PAGE);
            let found = self.letters(job, ask.query_async(&mut self.redis.clone()).await?).await?;
            let is_last = found.len() < super::PAGE;
            passing.extend(found.into_iter().filter(|dead| dead.due_ms.is_none() && self.may_pass(dead)));
            if is_last || passing.len() >= most {
                passing.truncate(most);
                return Ok(passing);
            }
            from += super::PAGE;
        }
    }

    /// Tells whether workers try a dead letter again by themselves: it used up its attempts, and its service may answer
    /// well again. The return of a missing input makes its entry due, and what costs money is not tried.
    pub fn may_pass(&self, dead: &Dead) -> bool {
        let is_retried = self.jobs.jobs.get(dead.job.as_str()).is_some_and(|job| job.is_retried);
        let reason = dead.reason.as_deref().unwrap_or_default();
        let last = reason.strip_prefix(USED_UP).and_then(|rest| rest.split_once(" times, last: "));
        is_retried && last.is_some_and(|(_, last)| !is_of_input(last))
    }

    /// Returns the named jobs; all if nothing is named.
    fn named_jobs(&self, only: &[String]) -> impl Iterator<Item = &Arc<KnownJob>> {
        self.jobs.jobs.values().filter(move |job| only.is_empty() || only.iter().any(|name| *name == job.name.as_str()))
    }

    /// Returns the named keys whose jobs are not named, each once.
    fn named_keys<'a>(&'a self, only: &'a [String]) -> impl Iterator<Item = (&'a Arc<KnownJob>, &'a str)> {
        let names: BTreeSet<&str> = only.iter().map(String::as_str).collect();
        let named = names.clone();
        let owned = names.into_iter().filter_map(|name| Some((self.jobs.owner(name)?.0, name)));
        owned.filter(move |(job, _)| !named.contains(job.name.as_str()))
    }

    /// Returns the reasons of those of these entries that became dead letters at `since` or later, in order. Letters
    /// under keys of another type are somebody else's, and count as none.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(super) async fn died_since(
        &self,
        job: &JobName,
        keys: &[EntryKey],
        since: RedisTime,
    ) -> RedisResult<Vec<Option<String>>> {
        let names: Vec<&str> = keys.iter().map(EntryKey::as_str).collect();
        let mut ask = redis::pipe();
        ask.cmd("ZMSCORE").arg(self.keys.dead(job)).arg(&names);
        ask.cmd("HMGET").arg(self.keys.dead_reasons(job)).arg(&names);
        let (died, reasons): (Vec<Option<f64>>, Vec<Option<String>>) =
            match ask.query_async(&mut self.redis.clone()).await {
                Err(e) if is_of_keys(&e) => return Ok(vec![None; keys.len()]),
                letters => letters?,
            };
        let letters = died.into_iter().zip(reasons);
        Ok(letters.map(|(at, reason)| at.filter(|at| time(*at) >= since).and(reason)).collect())
    }

    async fn letter(&self, job: &KnownJob, key: &str) -> RedisResult<Option<Dead>> {
        let at: Option<f64> =
            redis::cmd("ZSCORE").arg(self.keys.dead(&job.name)).arg(key).query_async(&mut self.redis.clone()).await?;
        let found = at.map(|at| (key.to_owned(), at)).into_iter().collect();
        Ok(self.letters(job, found).await?.pop())
    }

    async fn letters(&self, job: &KnownJob, found: Vec<(String, f64)>) -> RedisResult<Vec<Dead>> {
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
        let mut ask = redis::cmd("HMGET");
        ask.arg(self.keys.dead_reasons(&job.name)).arg(&keys);
        let reasons: Vec<Option<String>> = ask.query_async(&mut self.redis.clone()).await?;
        let entries: Vec<EntryKey> = keys.into_iter().map(EntryKey::new).collect();
        let dues = match self.agenda.dues(&job.name, &entries).await {
            Err(e) if is_of_keys(&e) => vec![None; entries.len()],
            dues => dues?,
        };
        let letters = found.into_iter().zip(reasons).zip(dues).map(|(((key, at), reason), due)| Dead {
            job: job.name.to_string(),
            key,
            at_ms: time(at),
            due_ms: due.map(|due| due.at),
            reason: Some(reason.unwrap_or_default()),
        });
        Ok(letters.collect())
    }
}

/// Returns the time that the score of a dead letter is.
#[expect(clippy::cast_possible_truncation, reason = "a time in ms")]
fn time(score: f64) -> RedisTime {
    RedisTime::from_millis(score as i64)
}

/// A page under construction.
struct Page {
    dead: Vec<Dead>,
    bytes: usize,
    most: usize,
}

impl Page {
    fn is_full(&self) -> bool {
        self.dead.len() >= self.most || self.bytes >= PAGE_BYTES
    }

    /// Adds letters while there is room; returns how many.
    fn take(&mut self, letters: Vec<Dead>) -> usize {
        let before = self.dead.len();
        for letter in letters {
            if self.is_full() {
                break;
            }
            self.bytes += letter.key.len() + letter.reason.as_ref().map_or(0, String::len);
            self.dead.push(letter);
        }
        self.dead.len() - before
    }
}

/// Returns a reason with `…` for what names entries: the keys of inputs that are missing, and the paths of URLs.
fn without_names(reason: &str) -> String {
    let mut parts = reason.split("its input ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (input, rest) = part.split_once(" is missing: ").map_or(("", part), |(_, rest)| ("… is missing: ", rest));
        text.extend(["its input ", input, rest]);
    }
    without_paths(&text)
}

fn without_paths(reason: &str) -> String {
    let host = |word: &str| {
        let rest = word.strip_prefix("http://").or_else(|| word.strip_prefix("https://"))?;
        let end = word.len() - rest.len() + rest.find('/')?;
        Some(format!("{}/…", &word[..end]))
    };
    let words = reason.split(' ').map(|word| host(word).unwrap_or_else(|| word.to_owned()));
    Vec::from_iter(words).join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_an_outage_are_the_same_for_all_entries() {
        let reason = |path: &str| format!("failed 5 times, last: https://museum.test:81/{path} answered 503");
        assert_eq!(without_paths(&reason("art/a?x=ı")), "failed 5 times, last: https://museum.test:81/… answered 503");
        assert_eq!(without_paths(&reason("b")), without_paths(&reason("")));
        for other in ["", "http://", "http://museum.test refused: ü  /art/a"] {
            assert_eq!(without_paths(other), other);
        }
        let cascade = |key: &str| {
            let own = format!("its input art:{key} is missing: failed 5 times, last: http://museum.test/{key} refused");
            format!("failed 5 times, last: its input story:{key} is missing: {own}")
        };
        let own = "its input … is missing: failed 5 times, last: http://museum.test/… refused";
        assert_eq!(without_names(&cascade("a")), format!("failed 5 times, last: its input … is missing: {own}"));
        assert_eq!(without_names(&cascade("b:c")), without_names(&cascade("ı")));
        assert_eq!(without_names("its input art:a is gone"), "its input art:a is gone");
    }
}
