//! Fetching missing entries, and waiting for them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use redis::RedisResult;
use serde::{Deserialize, Serialize};

use super::Parts;
use super::extract::{Asked, Body, Fleet};
use super::problem::Problem;
use crate::agenda::When;
use crate::entry::Trigger;
use crate::entry::duration;
use crate::entry::{EntryKey, JobName, KeySet};
use crate::ops::{Asked as Request, Done};
use crate::redis::RedisTime;

/// The default timeout.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The shortest timeout.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest timeout.
const LONGEST: Duration = Duration::from_secs(600);
/// Entries that are put on the agenda in one step.
const PAGE: usize = 1_000;

/// The wanted entries. At least one of the two lists must not be empty.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    /// Keys of entries, with high priority; each must be a key of a job.
    #[schema(required = false)]
    keys: Vec<String>,
    /// Jobs by name, with normal priority: the entries that they keep warm.
    #[schema(required = false)]
    jobs: Vec<String>,
    /// `warm`, as in a message for the inbox; optional.
    #[schema(required = false, pattern = "^warm$")]
    action: Option<String>,
}

/// The wait of a request.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// Answer when the entries are fetched.
    wait: bool,
    /// With `wait`: the longest wait, from `1s` to `10m`; `30s` if absent. A plain number counts as seconds.
    #[param(example = "30s")]
    timeout: Option<String>,
    /// Go on even if a key looks like a pattern and no entry has it.
    force: bool,
}

impl WaitQuery {
    fn timeout(&self) -> Result<Duration, Problem> {
        let Some(text) = &self.timeout else { return Ok(TIMEOUT) };
        let refuse = |why: String| Problem::new(StatusCode::BAD_REQUEST, format!("`timeout`: `{text}` {why}"));
        let timeout = duration::parse_or_seconds(text).map_err(refuse)?;
        if !(SHORTEST..=LONGEST).contains(&timeout) {
            let [shortest, longest] = [SHORTEST, LONGEST].map(duration::text);
            return Err(refuse(format!("must be between {shortest} and {longest}")));
        }
        if self.wait { Ok(timeout) } else { Err(refuse("has no effect without `wait=true`".to_owned())) }
    }
}

/// The entries put on the agenda.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Due {
    /// Entries that will be fetched if they are missing.
    due: usize,
    /// Live workers.
    workers: usize,
}

/// Fetch missing entries
#[utoipa::path(
    post,
    path = "/warm",
    tag = "changes",
    params(WaitQuery),
    request_body = Wanted,
    responses(
        (status = 200, body = Done, description = "All entries are fetched, or known to be gone"),
        (status = 202, body = Due, description = "The entries are on the agenda")
    )
)]
pub(super) async fn warm(
    fleet: Fleet,
    Asked(query): Asked<WaitQuery>,
    Body(wanted): Body<Wanted>,
) -> Result<Response, Problem> {
    let parts = &fleet.parts;
    let ops = &parts.ops;
    let timeout = query.timeout()?;
    let entries = entries(parts, &wanted, query.force).await?;
    if query.wait {
        for job in entries.keys() {
            if ops.paused(job).await?.is_some() {
                let detail = format!("{job} is paused, so its entries would not be fetched: POST /jobs/{job}/resume");
                return Err(Problem::new(StatusCode::CONFLICT, detail));
            }
        }
    }
    let asked = ops.store.now().await?;
    for (job, entries) in &entries {
        entries.put(parts, job, asked).await?;
    }
    if !query.wait {
        let due = entries.values().map(Entries::count).sum();
        let workers = parts.workers.load(std::sync::atomic::Ordering::Relaxed);
        return Ok((StatusCode::ACCEPTED, Json(Due { due, workers })).into_response());
    }
    let asked = Request { trigger: Trigger::Demand, at: asked, may_be_lost: false };
    let waits = entries
        .into_iter()
        .filter_map(|(name, entries)| Some((ops.jobs.jobs.get(&name)?, entries.all())))
        .map(async |(job, keys)| ops.wait(job, keys, asked, timeout, |_| {}).await);
    let done = tokio::select! {
        done = futures_util::future::try_join_all(waits) => sum(done?),
        () = fleet.admin.stop.cancelled() => {
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the worker is shutting down; another fetches the entries"));
        }
    };
    if done.failed.is_empty() {
        return Ok(Json(done).into_response());
    }
    let late = done.seconds >= timeout.as_secs_f32();
    let status = if late { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
    Err(Problem::new(status, not_fetched(done.failed.len())).with("result", done))
}

/// Makes these entries due, and the absent ones that these jobs keep warm.
pub(crate) async fn warm_due(parts: &Parts, keys: &[String], jobs: &[String]) -> Result<(), Problem> {
    let wanted = Wanted { keys: keys.to_vec(), jobs: jobs.to_vec(), action: None };
    let entries = entries(parts, &wanted, false).await?;
    let asked = parts.ops.store.now().await?;
    for (job, entries) in &entries {
        entries.put(parts, job, asked).await?;
    }
    Ok(())
}

fn not_fetched(failed: usize) -> String {
    if failed == 1 { "1 entry was not fetched".to_owned() } else { format!("{failed} entries were not fetched") }
}

/// The wanted entries of one job, each once.
#[derive(Default)]
struct Entries {
    /// Entries named by their keys.
    named: BTreeSet<EntryKey>,
    /// Entries that their job was named for.
    of_job: KeySet,
}

impl Entries {
    /// Puts the entries on the agenda: named ones with high priority, those of the job as due since `asked`.
    async fn put(&self, parts: &Parts, job: &JobName, asked: RedisTime) -> RedisResult<()> {
        let agenda = &parts.ops.agenda;
        agenda.put(job, &self.named, When::Urgent, Trigger::Demand).await?;
        for page in self.of_job.pages(PAGE) {
            let others = page.iter().filter(|key| !self.named.contains(*key));
            agenda.put(job, others, When::Due(asked), Trigger::Demand).await?;
        }
        Ok(())
    }

    /// Returns the number of them.
    fn count(&self) -> usize {
        self.of_job.len() + self.named.iter().filter(|key| !self.of_job.contains(key.as_str())).count()
    }

    /// Returns all of them.
    fn all(mut self) -> Vec<EntryKey> {
        self.of_job.extend(&self.named);
        self.of_job.iter().map(EntryKey::new).collect()
    }
}

/// Returns the wanted entries by job.
async fn entries(parts: &Parts, wanted: &Wanted, force: bool) -> Result<BTreeMap<JobName, Entries>, Problem> {
    let refuse = |detail: String| Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    let unknown = |detail: String| Err(Problem::new(StatusCode::NOT_FOUND, detail));
    if wanted.keys.is_empty() && wanted.jobs.is_empty() {
        return refuse("it names nothing: give keys or jobs".to_owned());
    }
    if let Some(action) = wanted.action.as_ref().filter(|action| *action != "warm") {
        return refuse(format!("`{action}` is not supported here; use POST /invalidate"));
    }
    let ops = &parts.ops;
    let mut entries: BTreeMap<JobName, Entries> = BTreeMap::new();
    for key in &wanted.keys {
        let Some((job, params)) = ops.jobs.owner(key) else {
            return unknown(format!("no job has the key `{key}`; GET /jobs lists the jobs of this worker"));
        };
        let named = EntryKey::new(key.as_str());
        if !force && ops.is_mistaken_pattern(job, &named, &params).await? {
            return refuse(format!(
                "`{key}` is a literal key, and no entry has it; nothing is due. Name the job in `jobs` for all its \
                 entries; `?force=true` fetches this key"
            ));
        }
        entries.entry(job.name.clone()).or_default().named.insert(named);
    }
    for name in &wanted.jobs {
        let Some(job) = ops.jobs.jobs.get(name.as_str()) else {
            return unknown(format!("there is no job `{name}`; GET /jobs lists the jobs of this worker"));
        };
        let fed = match job.file.as_ref().and_then(|file| Some((file, file.entries.feed.as_ref()?))) {
            Some((file, feed)) => Some(parts.cron.entries_of_feed(file, feed).await?),
            None => None,
        };
        entries.entry(job.name.clone()).or_default().of_job = ops.wanted(job, fed).await?;
    }
    Ok(entries)
}

fn sum(parts: Vec<Done>) -> Done {
    parts.into_iter().fold(Done::default(), |mut all, part| {
        all += part;
        all
    })
}
