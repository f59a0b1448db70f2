//! One entry: its value, and what is known of it.

use redis::RedisResult;
use serde::Serialize;
use serde_json::{Value, json};

use super::Ops;
use crate::agenda::{Due, State};
use crate::entry::EntryKey;
use crate::entry::Outcome;
use crate::entry::Trigger;
use crate::store::Expiry;

/// One entry. Times are Redis's, in ms since the epoch.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// The job that owns it; absent where no job's key pattern fits.
    pub job: Option<String>,
    /// What the API reads; a value that is no JSON is shown as a string.
    pub value: Option<Value>,
    /// How long it still lives, ms; absent where there is no value or no TTL.
    pub ttl_ms: Option<i64>,
    /// Whether Samovar wrote it.
    pub written_by_samovar: bool,
    /// When its content was last asked for, or confirmed by its source.
    pub fetched_ms: Option<i64>,
    /// An invalidation that is not yet answered.
    pub invalidated_ms: Option<i64>,
    /// What it came with.
    pub etag: Option<String>,
    /// What it came with.
    pub last_modified: Option<String>,
    /// How the last attempt ended.
    #[schema(value_type = Option<String>)]
    pub last_outcome: Option<Outcome>,
    /// Why it was made.
    #[schema(value_type = Option<String>)]
    pub last_trigger: Option<Trigger>,
    /// When it began.
    pub last_attempt_ms: Option<i64>,
    /// Attempts that have failed in a row.
    pub failures: Option<u32>,
    /// Why the last one failed.
    pub reason: Option<String>,
    /// When its TTL ends or ended, where the value lives on beyond that because its source fails.
    pub outlives_ms: Option<i64>,
    /// Its tags.
    pub tags: Vec<String>,
    /// When it is due; while it is in hand, when it would be due again.
    pub due_ms: Option<i64>,
    /// Why it is due.
    #[schema(value_type = Option<String>)]
    pub due_for: Option<Trigger>,
    /// Why its warming was given up, if it was.
    pub given_up: Option<String>,
    /// Redis's clock as it was looked at.
    pub now_ms: i64,
    /// When its value expires.
    #[serde(skip)]
    pub expiry: Expiry,
    /// Its state on the agenda.
    #[serde(skip)]
    pub state: Option<State>,
}

impl Ops {
    /// Looks at one entry.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn entry(&self, name: &str) -> RedisResult<Entry> {
        let key = EntryKey::new(name);
        let owner = self.jobs.owner(name).map(|(job, _)| job);
        let now = self.store.now().await?;
        let text = self.store.values(std::slice::from_ref(&key)).await?.pop().flatten();
        let snapshot = self.store.snapshot(&key).await?;
        let (score, given_up): (Option<f64>, Option<String>) = match owner {
            Some(job) => {
                redis::pipe()
                    .add_command(self.agenda.ask_score(&job.name, &key))
                    .cmd("HGET")
                    .arg(self.keys.dead_reasons(&job.name))
                    .arg(name)
                    .query_async(&mut self.redis.clone())
                    .await?
            }
            None => (None, None),
        };
        let due = score.map(Due::from_score);
        let (expiry, ours, meta) = (snapshot.expiry, snapshot.ours(), snapshot.meta.as_ref());
        let note = meta.map(|meta| meta.note.clone());
        Ok(Entry {
            key: name.to_owned(),
            job: owner.map(|job| job.name.to_string()),
            value: text.map(|text| serde_json::from_str(&text).unwrap_or_else(|_| json!(text))),
            ttl_ms: expiry.at().map(|at| at - now),
            written_by_samovar: ours.is_some(),
            fetched_ms: ours.map(|meta| meta.fetched_at),
            invalidated_ms: meta.map(|meta| meta.invalidated).filter(|at| *at > 0),
            etag: note.as_ref().and_then(|note| note.validators.etag.clone()),
            last_modified: note.as_ref().and_then(|note| note.validators.last_modified.clone()),
            last_outcome: note.as_ref().and_then(|note| note.outcome),
            last_trigger: note.as_ref().and_then(|note| note.trigger),
            last_attempt_ms: note.as_ref().map(|note| note.attempted),
            failures: note.as_ref().map(|note| note.failures),
            reason: note.as_ref().and_then(|note| note.reason.clone()),
            outlives_ms: ours.filter(|meta| meta.stale_for > 0).map(|meta| meta.own_expiry - meta.stale_for),
            tags: note.filter(|_| ours.is_some()).map(|note| note.tags).unwrap_or_default(),
            due_ms: due.map(|due| due.at),
            due_for: due.map(|due| due.trigger),
            given_up: given_up.filter(|_| due.is_none()),
            now_ms: now,
            expiry,
            state: due.map(|due| due.state),
        })
    }
}
