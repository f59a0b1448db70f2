//! The work under way for an entry, the entries that it is made from, and those that are made from it.

use redis::RedisResult;
use serde::Serialize;

use super::Ops;
use crate::entry::EntryKey;
use crate::job::{KnownJob, Params};
use crate::redis::{RedisTime, is_of_keys};
use crate::store::{Held, Meta, Removal};

/// The most dependants that are named.
const DEPENDANTS: usize = 50;

/// A fetch or a load of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct LeaseHolder {
    /// Its holder: the end of a worker's name, or the number that a service chose.
    pub holder: String,
    /// When it began.
    #[schema(value_type = i64)]
    pub since_ms: RedisTime,
    /// When it ends at the latest.
    #[schema(value_type = Option<i64>)]
    pub until_ms: Option<RedisTime>,
    /// `true` if a service loads the value, and no worker fetches it.
    pub is_load: bool,
    /// The action of an invalidation that came since it began: `refresh` or `evict`. Its answer is not written.
    pub mark: Option<&'static str>,
}

/// The last invalidation by a tag of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct TagStamp {
    /// The tag.
    pub tag: String,
    /// Its time.
    #[schema(value_type = i64)]
    pub at_ms: RedisTime,
    /// Its action: `refresh` or `evict`.
    pub action: &'static str,
}

/// The work under way for an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct UnderWay {
    /// The fetch or the load.
    pub lease: Option<LeaseHolder>,
    /// The last invalidations by its tags, as far as they are known.
    pub tag_stamps: Vec<TagStamp>,
    /// `true` if it is still to be revalidated, since invalidations may have been missed.
    pub awaits_revalidation: bool,
    /// `true` if it was last fetched within a second of an earlier invalidation: further ones are debounced.
    pub is_debounced: bool,
}

/// The entries that an entry is made from, and those that are made from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Its inputs, each with `true` if it has a value.
    pub inputs: Vec<(String, bool)>,
    /// Its dependants, in the same form.
    pub dependants: Vec<(String, bool)>,
    /// There are more.
    pub has_more: bool,
}

fn action(removal: Removal) -> &'static str {
    match removal {
        Removal::Refresh => "refresh",
        Removal::Evict => "evict",
    }
}

impl Ops {
    /// Reads what is under way for an entry with these metadata.
    pub(super) async fn under_way(
        &self,
        key: &EntryKey,
        job: Option<&KnownJob>,
        meta: Option<&Meta>,
    ) -> RedisResult<UnderWay> {
        let held = match self.store.held(key).await {
            Err(e) if is_of_keys(&e) => None,
            held => held?,
        };
        let lease = held.map(|Held { holder, began, until, is_load, mark }| LeaseHolder {
            holder,
            since_ms: began,
            until_ms: until,
            is_load,
            mark: mark.map(action),
        });
        let tags = meta.map(|meta| meta.last_attempt.tags.as_slice()).unwrap_or_default();
        let stamps = self.store.stamps(tags).await?;
        let tag_stamps = tags.iter().zip(stamps).filter_map(|(tag, stamp)| {
            stamp.map(|stamp| TagStamp { tag: tag.clone(), at_ms: stamp.at, action: action(stamp.removal) })
        });
        let revalidation = self.revalidation().await?;
        let awaits_revalidation = revalidation.zip(job).is_some_and(|(all, job)| {
            all.left.contains(&job.name.to_string()) && meta.is_some_and(|meta| meta.fetched_at <= all.fetched_until)
        });
        let is_debounced = meta.is_some_and(|meta| meta.last_attempt.storm);
        Ok(UnderWay { lease, tag_stamps: tag_stamps.collect(), awaits_revalidation, is_debounced })
    }

    /// Reads the neighbours of an entry: of its dependants, the first 50.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn neighbours(&self, name: &str) -> RedisResult<Neighbours> {
        let key = EntryKey::new(name);
        let inputs = self.jobs.owner(name).map_or_else(Vec::new, |(job, params)| inputs(job, &params));
        let (mut dependants, mut is_listed) = (Vec::new(), false);
        for (job, params) in self.made_from(name) {
            match job.key.write(&params) {
                Some(dependant) => dependants.push(dependant),
                None => is_listed = true,
            }
        }
        let mut has_more = false;
        if is_listed {
            let (next, found) = match self.store.dependants(&key, 0).await {
                Err(e) if is_of_keys(&e) => (0, Vec::new()),
                found => found?,
            };
            dependants.extend(found);
            has_more = next != 0;
        }
        dependants.sort();
        dependants.dedup();
        has_more |= dependants.len() > DEPENDANTS;
        dependants.truncate(DEPENDANTS);
        let [inputs, dependants] = [self.with_values(inputs).await?, self.with_values(dependants).await?];
        Ok(Neighbours { inputs, dependants, has_more })
    }

    /// Returns the jobs with an input of this key, and what the key tells of their entries.
    fn made_from(&self, name: &str) -> Vec<(&KnownJob, Params)> {
        let inputs = self.jobs.jobs.values().flat_map(|job| job.made_from.iter().map(move |input| (job, input)));
        inputs.filter_map(|(job, input)| Some((&**job, input.key.read(name)?))).collect()
    }

    async fn with_values(&self, keys: Vec<EntryKey>) -> RedisResult<Vec<(String, bool)>> {
        let snapshots = self.store.snapshots(&keys).await?;
        Ok(keys.iter().zip(snapshots).map(|(key, snapshot)| (key.to_string(), snapshot.has_value())).collect())
    }
}

fn inputs(job: &KnownJob, params: &Params) -> Vec<EntryKey> {
    job.made_from.iter().filter_map(|input| input.key.write(params)).collect()
}
