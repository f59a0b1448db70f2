//! The effect of an invalidation, counted without carrying it out.

use std::collections::{BTreeMap, BTreeSet};

use redis::RedisResult;
use serde::Serialize;

use super::{BudgetLeft, Ops, PAGE, Plan};
use crate::entry::{EntryKey, JobName, KeySet};
use crate::job::{KnownJob, KnownJobs};
use crate::protocol::{Action, Message, glob};
use crate::redis::Scan;

/// The entries that an invalidation concerns, and the most requests that they take.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct Effect {
    /// By job.
    pub jobs: BTreeMap<String, Plan>,
    /// By job, the number of values that are removed and not fetched anew: no running worker knows the job.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub removed: BTreeMap<String, usize>,
    /// The number of values that are removed and that nothing makes anew: no job has such a key any more. An earlier
    /// job file made them, or a service loaded them.
    #[serde(skip_serializing_if = "is_zero")]
    pub unowned: usize,
    /// Jobs whose entries are made from these. Those whose inputs change are made again, which comes in addition.
    pub dependants: BTreeSet<String>,
}

/// The effect of a message, as a dry run shows it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DryRun {
    /// `refresh`, `evict` or `warm`.
    #[schema(value_type = String)]
    pub action: Action,
    /// The entries, and the requests.
    #[serde(flatten)]
    pub effect: Effect,
    /// `true` if fewer entries may be fetched: those that have the version already are not.
    pub at_most: bool,
    /// The rest of the budgets of upstreams that the AI calls may ask.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<BudgetLeft>,
}

/// Keys by job.
type Keys = BTreeMap<JobName, KeySet>;

/// The keys that a message names.
#[derive(Default)]
struct Named {
    jobs: Keys,
    /// Those of no job, of which there is a value that Samovar or its library wrote.
    unowned: BTreeSet<EntryKey>,
}

impl Ops {
    /// Counts the entries that a message concerns, and the requests that it would cause.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn effect(&self, message: &Message) -> RedisResult<Effect> {
        let left = self.left_jobs().await?;
        let mut named = self.named(message, &left).await?;
        let kept = match message.action {
            Action::Refresh => self.kept(message, &left).await?,
            Action::Evict | Action::Warm => Keys::new(),
        };
        for (name, keys) in &kept {
            named.jobs.entry(name.clone()).or_default().extend(keys.iter());
        }
        let unowned = if message.action == Action::Warm { 0 } else { named.unowned.len() };
        let dependants = dependants(&self.jobs, named.jobs.keys());
        let mut effect = Effect { unowned, dependants, ..Effect::default() };
        for (name, keys) in named.jobs {
            let Some(job) = self.jobs.jobs.get(&name) else { continue };
            let (mut entries, is_left) = (0, left.contains(&name));
            for page in keys.pages(PAGE) {
                entries += match is_left {
                    true => self.removed(&page, message.action).await?,
                    false => self.concerned(job, &page, message.action, kept.get(&name)).await?,
                };
            }
            if entries > 0 && is_left {
                effect.removed.insert(name.to_string(), entries);
                effect.jobs.insert(name.to_string(), Plan { entries, ..Plan::default() });
            } else if entries > 0 {
                effect.jobs.insert(name.to_string(), requests(job, entries));
            }
        }
        Ok(effect)
    }

    /// Counts as [`Self::effect`] does, and returns what is left of the budgets as well.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn dry_run(&self, message: &Message) -> RedisResult<DryRun> {
        let effect = self.effect(message).await?;
        let plans: Vec<(&str, Plan)> = effect.jobs.iter().map(|(job, plan)| (job.as_str(), *plan)).collect();
        let budgets = self.budgets(&plans, &BTreeSet::new()).await?;
        Ok(DryRun { action: message.action, effect, at_most: !message.version.is_none(), budgets })
    }

    /// Returns the jobs that a message names, or whose keys it names or may match, and that no running worker knows:
    /// workers remove the values that it concerns, and do not fetch them anew.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn left_by(&self, message: &Message) -> RedisResult<BTreeSet<JobName>> {
        if message.action == Action::Warm {
            return Ok(BTreeSet::new());
        }
        let mut left = self.left_jobs().await?;
        let owners = message.keys.iter().filter_map(|key| Some(self.jobs.owner(key)?.0.name.clone()));
        let owners: BTreeSet<JobName> = owners.collect();
        left.retain(|name| {
            let matches = |glob: &String| self.jobs.jobs.get(name).is_some_and(|job| job.key.may_match(glob));
            owners.contains(name)
                || message.jobs.iter().any(|job| job == name.as_str())
                || message.patterns.iter().any(matches)
        });
        Ok(left)
    }

    /// Counts the values of no job under the keys that a message names: workers remove them, and nothing makes them
    /// anew. Patterns and tags are not looked up.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn unowned(&self, message: &Message) -> RedisResult<usize> {
        if message.action == Action::Warm {
            return Ok(0);
        }
        let mut named = Named::default();
        self.add(&mut named, message.keys.iter().map(|key| EntryKey::new(key.as_str()))).await?;
        Ok(named.unowned.len())
    }

    /// Returns the keys that a message names. Of a job in `left`, which no running worker knows, and of one that nobody
    /// knows, workers handle what is on its agenda.
    async fn named(&self, message: &Message, left: &BTreeSet<JobName>) -> RedisResult<Named> {
        let mut named = Named::default();
        self.add(&mut named, message.keys.iter().map(|key| EntryKey::new(key.as_str()))).await?;
        for glob in &message.patterns {
            self.add_matching(&mut named, glob, None).await?;
        }
        for name in &message.jobs {
            match self.jobs.jobs.get(name.as_str()).filter(|job| !left.contains(&job.name)) {
                Some(job) => self.add_matching(&mut named, &job.key.glob(), Some(job)).await?,
                None => {
                    let on_agenda = self.agenda.matching(&JobName::new(name.as_str()), "*").await?;
                    self.add(&mut named, on_agenda).await?;
                }
            }
        }
        for tag in &message.tags {
            let mut cursor = Some(0);
            while let Some(from) = cursor {
                let (next, found) = self.store.tagged(tag, from).await?;
                self.add(&mut named, found).await?;
                cursor = (next != 0).then_some(next);
            }
        }
        if !message.tags.is_empty() {
            self.add_loaded(&mut named).await?;
        }
        Ok(named)
    }

    /// Returns the entries, absent or not, that jobs keep warm and a message names by job, and those that they list and
    /// it names by pattern.
    async fn kept(&self, message: &Message, left: &BTreeSet<JobName>) -> RedisResult<Keys> {
        let mut kept = Keys::new();
        for job in self.jobs.jobs.values().filter(|job| !left.contains(&job.name)) {
            let is_named = message.jobs.iter().any(|name| name == job.name.as_str());
            let globs: Vec<&String> = message.patterns.iter().filter(|glob| job.key.may_match(glob)).collect();
            if !is_named && globs.is_empty() {
                continue;
            }
            let wanted = if is_named {
                self.wanted(job, None).await?
            } else {
                let listed = self.list(job).await?;
                listed.iter().filter(|key| globs.iter().any(|glob| glob::matches(glob, key))).collect()
            };
            if !wanted.is_empty() {
                kept.insert(job.name.clone(), wanted);
            }
        }
        Ok(kept)
    }

    /// Adds keys: those of jobs, and those of no job under which Samovar or its library keeps a value.
    async fn add(&self, named: &mut Named, keys: impl IntoIterator<Item = EntryKey>) -> RedisResult<()> {
        let keys = keys.into_iter().filter(|key| !self.keys.is_own(key.as_str()));
        let mut unowned = Vec::new();
        for key in keys {
            match self.jobs.owner(key.as_str()) {
                Some((job, _)) => _ = named.jobs.entry(job.name.clone()).or_default().insert(key.as_str()),
                None => unowned.push(key),
            }
        }
        for page in unowned.chunks(PAGE) {
            let found = page.iter().zip(self.store.snapshots(page).await?);
            named.unowned.extend(found.filter(|(_, value)| value.ours().is_some()).map(|(key, _)| key.clone()));
        }
        Ok(())
    }

    /// Adds the keys that match a glob, or those of them that are `only` this job's.
    async fn add_matching(&self, named: &mut Named, glob: &str, only: Option<&KnownJob>) -> RedisResult<()> {
        let mut scan = Scan::new(glob);
        while let Some(found) = scan.next(&mut self.redis.clone()).await? {
            let is_sought = |key: &String| only.is_none_or(|job| job.key.read(key).is_some());
            self.add(named, found.into_iter().filter(is_sought).map(EntryKey::new)).await?;
        }
        Ok(())
    }

    /// Adds the values that services loaded for jobs with tags: they count as values with every tag.
    async fn add_loaded(&self, named: &mut Named) -> RedisResult<()> {
        let tagged = self.jobs.jobs.values().filter(|job| job.tags);
        let globs: Vec<String> = tagged.map(|job| job.key.glob()).collect();
        for set in self.store.loaded_sets(globs.iter().map(String::as_str)) {
            let mut cursor = Some(0);
            while let Some(from) = cursor {
                let (next, found) = self.store.loaded(&set, from).await?;
                let has_tags = |key: &EntryKey| self.jobs.owner(key.as_str()).is_some_and(|(job, _)| job.tags);
                self.add(named, found.into_iter().filter(has_tags)).await?;
                cursor = (next != 0).then_some(next);
            }
        }
        Ok(())
    }

    /// Returns how many values of these entries of a job that no running worker knows an action removes.
    async fn removed(&self, page: &[EntryKey], action: Action) -> RedisResult<usize> {
        if action == Action::Warm {
            return Ok(0);
        }
        Ok(self.store.snapshots(page).await?.iter().filter(|snapshot| snapshot.ours().is_some()).count())
    }

    /// Returns how many of these entries of a job an action concerns: a refresh those that are known or kept warm, an
    /// eviction those with a value, and a warming those without. Those in `kept` are known to be kept warm.
    async fn concerned(
        &self,
        job: &KnownJob,
        page: &[EntryKey],
        action: Action,
        kept: Option<&KeySet>,
    ) -> RedisResult<usize> {
        let (mut concerned, mut blank) = (0, Vec::new());
        let is_kept = |key: &EntryKey| kept.is_some_and(|kept| kept.contains(key.as_str()));
        for (key, snapshot) in page.iter().zip(self.store.snapshots(page).await?) {
            let is_blank = snapshot.is_blank() && !is_kept(key);
            concerned += usize::from(match action {
                Action::Evict => snapshot.has_value(),
                Action::Warm => !snapshot.has_value(),
                Action::Refresh => !is_blank,
            });
            if action == Action::Refresh && is_blank {
                blank.push(key.clone());
            }
        }
        let kept = self.keeps_warm(job, &blank).await?;
        Ok(concerned + kept.into_iter().filter(|kept| *kept).count())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Returns the requests for these many entries of a job without a value that may be kept.
fn requests(job: &KnownJob, entries: usize) -> Plan {
    let fetches = if job.may_hold_unasked { 0 } else { job.fetches(entries) };
    let ai_calls = if job.may_hold_unasked { entries } else { 0 };
    Plan { entries, fetches, ai_calls, fallback_ai_calls: entries * job.paid_fallbacks, inputs_missing: 0 }
}

/// Returns the jobs whose entries are made from entries of these, directly or not.
fn dependants<'a>(jobs: &'a KnownJobs, of: impl Iterator<Item = &'a JobName>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut reached: Vec<&JobName> = of.collect();
    while let Some(input) = reached.pop().and_then(|name| jobs.jobs.get(name)) {
        for job in jobs.jobs.values() {
            let is_made_from = job.made_from.iter().any(|made_from| made_from.key.overlaps(&input.key));
            if is_made_from && found.insert(job.name.to_string()) {
                reached.push(&job.name);
            }
        }
    }
    found
}
