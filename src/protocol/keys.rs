//! Every key and channel name that Samovar uses.
//!
//! Each script touches keys of one hash slot. A key of an entry K carries a short tag that hashes to K's own slot
//! (`samovar:lease:{tag}:K`), so on a cluster it is in the same slot as K. A key of a job carries the job's name as its
//! tag.
//!
//! Pub/sub ignores databases: a message reaches the subscribers of all of them. So channel names of every database but
//! 0 contain its number, and fleets on two databases of one server do not receive each other's messages.

use std::sync::Arc;

pub use super::slot::slot;
use super::slot::{tag_at, tag_of};
use crate::entry::{EntryKey, JobName, UpstreamName};

/// Builds key and channel names under one prefix.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: Arc<str>,
    /// The beginning of channel names: the prefix, and the database unless it is 0.
    scope: Arc<str>,
    database: i64,
    /// The channel of invalidations if one was configured; otherwise it is derived from the scope.
    channel: Option<Arc<str>>,
}

impl Keys {
    /// Creates names under `prefix` (without braces), with `channel` for invalidations in every database.
    pub fn new(prefix: &str, channel: &str) -> Self {
        Self { channel: Some(channel.into()), ..Self::of(prefix) }
    }

    /// Creates names under `prefix` (without braces), of database 0.
    pub fn of(prefix: &str) -> Self {
        Self { prefix: prefix.into(), scope: prefix.into(), database: 0, channel: None }
    }

    /// Returns the names for this database. Its channels are its own, except a configured one.
    #[must_use]
    pub fn in_database(mut self, database: i64) -> Self {
        self.database = database;
        self.scope = match database {
            0 => Arc::clone(&self.prefix),
            _ => format!("{}:db{database}", self.prefix).into(),
        };
        self
    }

    /// Returns the database.
    pub fn database(&self) -> i64 {
        self.database
    }

    /// Returns the prefix of all names.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The lease of one entry: the lock and fence of a fetch, `token fetched_at mark`.
    pub fn lease(&self, key: &EntryKey) -> String {
        format!("{}:lease:{{{}}}:{key}", self.prefix, tag_of(key.as_str()))
    }

    /// The metadata of one entry's value: see [`crate::store::Meta`].
    pub fn meta(&self, key: &EntryKey) -> String {
        format!("{}:meta:{{{}}}:{key}", self.prefix, tag_of(key.as_str()))
    }

    /// Returns a glob that matches the leases of entries whose keys match `glob`.
    pub fn lease_glob(&self, glob: &str) -> String {
        format!("{}:lease:{{*}}:{glob}", self.prefix)
    }

    /// Returns the entry's key from the name of its lease.
    pub fn entry_of_lease<'a>(&self, lease: &'a str) -> Option<&'a str> {
        let rest = lease.strip_prefix(&*self.prefix)?.strip_prefix(":lease:{")?;
        rest.split_once("}:").map(|(_, key)| key)
    }

    /// Returns `true` for a key of Samovar's own.
    pub fn is_own(&self, key: &str) -> bool {
        key.strip_prefix(&*self.prefix).is_some_and(|rest| rest.starts_with(':'))
            || key
                .strip_prefix('{')
                .and_then(|rest| rest.strip_prefix(&*self.prefix))
                .is_some_and(|r| r.starts_with(':'))
    }

    /// Returns the type of one of Samovar's own keys, as `TYPE` names it. `None` for all other keys, and for keys of
    /// the queue that contain a task's id.
    pub fn type_of(&self, key: &str) -> Option<&'static str> {
        let queue = self.queue();
        if let Some(rest) = key.strip_prefix(&queue).and_then(|rest| rest.strip_prefix(':')) {
            return match rest {
                "active" => Some("list"),
                "data" => Some("hash"),
                "workers" => Some("zset"),
                _ => rest.starts_with("inflight:").then_some("set"),
            };
        }
        let rest = key.strip_prefix(&*self.prefix)?.strip_prefix(':')?;
        let kind = rest.split_once(":{").map_or(rest, |(kind, _)| kind);
        match kind {
            "lease" | "lock" | "number" | "meta" | "paused" | "unknown" | "census" | "touched" | "misses" | "sweep"
            | "marker" | "loss" | "{suspect}" | "{suspect}:lock" | "remaker" | "retrier" => Some("string"),
            "tag" | "stamps" | "tagged" | "loaded" | "made-from" | "agenda" | "popular" | "reads" | "dead"
            | "permits" | "{schedules}" => Some("zset"),
            "acknowledged"
            | "ears"
            | "feed"
            | "sample"
            | "frequencies"
            | "frequencies-next"
            | "dead-reasons"
            | "stats"
            | "reported"
            | "history"
            | "requests"
            | "attended"
            | "audit"
            | "audits"
            | "gone"
            | "limit"
            | "budget"
            | "reserved"
            | "clock"
            | "{schedules}:ticks"
            | "{schedules}:digests"
            | "{schedules}:made"
            | "{schedules}:files"
            | "{suspect}:dealt"
            | "jobs"
            | "list" => Some("hash"),
            "inbox" | "minutes" | "audit-log" | "heard" => Some("stream"),
            _ if kind.starts_with("refused:") => Some("string"),
            _ => kind.starts_with("fetched:").then_some("hash"),
        }
    }

    /// Returns `true` for a key of the queue, which the tasks of all jobs pass through.
    pub fn is_of_queue(&self, key: &str) -> bool {
        key.strip_prefix(&self.queue()).is_some_and(|rest| rest.starts_with(':'))
    }

    /// Returns all of Samovar's own keys that are known in advance for these jobs and upstreams. The keys of single
    /// entries, tags, tasks and locks are not.
    pub fn all_fixed<'a>(
        &self,
        jobs: impl IntoIterator<Item = &'a JobName>,
        upstreams: impl IntoIterator<Item = &'a UpstreamName>,
    ) -> Vec<String> {
        let mut all = vec![
            self.census(),
            self.reads(),
            self.misses(),
            self.schedules(),
            self.ticks(),
            self.digests(),
            self.made(),
            self.files(),
            self.remaker(),
            self.retrier(),
            self.audits(),
            self.attended(),
            self.marker(),
            self.gap_detectors(),
            self.sweep_lock(),
            self.acknowledged(),
            self.inbox(),
            self.audit_log(),
            self.heard(),
            self.stamps(),
            self.tagged(),
            self.clock(),
            self.jobs(),
        ];
        all.extend(self.revalidation());
        all.extend(["active", "data", "workers"].map(|kind| format!("{}:{kind}", self.queue())));
        jobs.into_iter().for_each(|job| all.extend(self.all_of(job)));
        for upstream in upstreams {
            all.extend(self.upstream(upstream));
            all.push(self.fetched(upstream));
            all.push(self.upstream_history(upstream));
        }
        all
    }

    /// The index of a tag: a sorted set of its entries, with the tag's stamp.
    pub fn tag(&self, tag: &str) -> String {
        format!("{}:tag:{{{}}}:{tag}", self.prefix, tag_of(tag))
    }

    /// The stamps of tags that no entry has: a sorted set, member = tag.
    pub fn stamps(&self) -> String {
        format!("{}:stamps", self.prefix)
    }

    /// Returns a glob that matches the indexes of all tags.
    pub fn tag_glob(&self) -> String {
        format!("{}:tag:{{*}}:*", self.prefix)
    }

    /// The dependants of an entry that cannot be derived from its key: a sorted set like a tag's index.
    pub fn made_from(&self, input: &EntryKey) -> String {
        format!("{}:made-from:{{{}}}:{input}", self.prefix, tag_of(input.as_str()))
    }

    /// Returns a glob that matches the dependants of all entries.
    pub fn made_from_glob(&self) -> String {
        format!("{}:made-from:{{*}}:*", self.prefix)
    }

    /// The key patterns of jobs with tags: a sorted set, member = glob, score = rounds since a worker last announced
    /// such a job, see `worker::maintenance::JobCleaner`.
    pub fn tagged(&self) -> String {
        format!("{}:tagged", self.prefix)
    }

    /// The sets that track values loaded by services, of this key: see [`crate::cache`]. One is for keys with the same
    /// text up to the first colon, the other for jobs whose keys may begin with any text.
    pub fn loaded(&self, key: &str) -> [String; 2] {
        let first = key.split(':').next().unwrap_or_default();
        [first, "*"].map(|first| self.loaded_set(first))
    }

    /// Returns the set that tracks the keys that match this glob.
    pub fn loaded_like(&self, glob: &str) -> String {
        let first = glob.split_once(':').map(|(first, _)| first);
        self.loaded_set(first.filter(|first| !first.contains(['*', '?', '[', '\\'])).unwrap_or("*"))
    }

    fn loaded_set(&self, first: &str) -> String {
        format!("{}:loaded:{{{}}}:{first}", self.prefix, tag_of(first))
    }

    /// A job's agenda: a sorted set, member = entry key, score = when it is due, in the bands of `agenda`.
    pub fn agenda(&self, job: &JobName) -> String {
        format!("{}:agenda:{{{job}}}", self.prefix)
    }

    /// The last claim by one dispatcher: when it ends (ms), and its number.
    pub fn last_claim(&self, job: &JobName, claimer: &str) -> String {
        format!("{}:claim:{{{job}}}:{claimer}", self.prefix)
    }

    /// When a job was paused (ms); absent while it is not paused.
    pub fn paused(&self, job: &JobName) -> String {
        format!("{}:paused:{{{job}}}", self.prefix)
    }

    /// Rounds since a worker last announced a job: see `worker::maintenance::JobCleaner`.
    pub fn unknown(&self, job: &JobName) -> String {
        format!("{}:unknown:{{{job}}}", self.prefix)
    }

    /// Returns a glob that matches these keys of all jobs.
    pub fn unknown_glob(&self) -> String {
        format!("{}:unknown:{{*}}", self.prefix)
    }

    /// Returns the job of such a key.
    pub fn job_of_unknown<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&*self.prefix)?.strip_prefix(":unknown:{")?.strip_suffix('}')
    }

    /// Returns all keys of a job in its own slot, [`Keys::unknown`] first.
    pub fn all_of(&self, job: &JobName) -> [String; 17] {
        let [frequencies, next_frequencies] = self.frequencies(job);
        [
            self.unknown(job),
            self.agenda(job),
            self.paused(job),
            self.feed(job),
            self.popular(job),
            self.sample(job),
            frequencies,
            next_frequencies,
            self.dead(job),
            self.dead_reasons(job),
            self.stats(job),
            self.gone(job),
            self.list(job),
            self.reported(job),
            self.minutes(job),
            self.audit(job),
            self.history(job),
        ]
    }

    /// The descriptions of the fleet's jobs: a hash, job to JSON, see [`crate::job::KnownJob`].
    pub fn jobs(&self) -> String {
        format!("{}:jobs", self.prefix)
    }

    /// The entries that a job's file lists: a hash of buckets like [`Keys::feed`], and the digest of the file.
    pub fn list(&self, job: &JobName) -> String {
        format!("{}:list:{{{job}}}", self.prefix)
    }

    /// The last census: see [`crate::ops::Census`].
    pub fn census(&self) -> String {
        format!("{}:census", self.prefix)
    }

    /// The last entries of a job's feed: a hash of buckets, each a JSON array.
    pub fn feed(&self, job: &JobName) -> String {
        format!("{}:feed:{{{job}}}", self.prefix)
    }

    /// The reads of a job's entries: a sorted set, score = the decayed count of reads, see [`crate::popularity`].
    pub fn popular(&self, job: &JobName) -> String {
        format!("{}:popular:{{{job}}}", self.prefix)
    }

    /// The clock of a job's decayed counts, and the times of its samples: a hash.
    pub fn sample(&self, job: &JobName) -> String {
        format!("{}:sample:{{{job}}}", self.prefix)
    }

    /// `OBJECT FREQ` of a job's entries at the last sample and at the current one: two hashes, only under LFU policies.
    pub fn frequencies(&self, job: &JobName) -> [String; 2] {
        ["frequencies", "frequencies-next"].map(|kind| format!("{}:{kind}:{{{job}}}", self.prefix))
    }

    /// A marker with a TTL of one hour: Samovar itself read the entry's value, and Redis counts that as a read.
    pub fn touched(&self, key: &EntryKey) -> String {
        format!("{}:touched:{{{}}}:{key}", self.prefix, tag_of(key.as_str()))
    }

    /// Reads reported by an API: a sorted set, member = entry key, score = number of reads.
    pub fn reads(&self) -> String {
        format!("{}:reads", self.prefix)
    }

    /// The worker that listens for misses; it has a TTL.
    pub fn misses(&self) -> String {
        format!("{}:misses", self.prefix)
    }

    /// A job's dead letters: a sorted set, score = when (ms).
    pub fn dead(&self, job: &JobName) -> String {
        format!("{}:dead:{{{job}}}", self.prefix)
    }

    /// The reasons of a job's dead letters: a hash, entry key to reason.
    pub fn dead_reasons(&self, job: &JobName) -> String {
        format!("{}:dead-reasons:{{{job}}}", self.prefix)
    }

    /// A job's counters for the whole fleet: a hash of outcomes, usage, `since` and `last`.
    pub fn stats(&self, job: &JobName) -> String {
        format!("{}:stats:{{{job}}}", self.prefix)
    }

    /// A job's guard against removals: a hash with a TTL, see [`crate::store::GoneGuard`].
    pub fn gone(&self, job: &JobName) -> String {
        format!("{}:gone:{{{job}}}", self.prefix)
    }

    /// The reads of a job's keys that services report: a hash, see [`crate::cache`].
    pub fn reported(&self, job: &JobName) -> String {
        format!("{}:reported:{{{job}}}", self.prefix)
    }

    /// The minute figures of a job: a stream of sums, see `ops::reads`.
    pub fn minutes(&self, job: &JobName) -> String {
        format!("{}:minutes:{{{job}}}", self.prefix)
    }

    /// The figures of a job by minute: a hash, see [`crate::telemetry::history`].
    pub fn history(&self, job: &JobName) -> String {
        format!("{}:history:{{{job}}}", self.prefix)
    }

    /// The figures of an upstream by minute: a hash like [`Keys::history`].
    pub fn upstream_history(&self, upstream: &UpstreamName) -> String {
        format!("{}:requests:{{{upstream}}}", self.prefix)
    }

    /// The number of workers that were there, by minute: a hash like [`Keys::history`].
    pub fn attended(&self) -> String {
        format!("{}:attended", self.prefix)
    }

    /// The freshness audits that are asked for or due next: a hash, see `ops::audit`.
    pub fn audits(&self) -> String {
        format!("{}:audits", self.prefix)
    }

    /// The results of a job's freshness audits: a hash.
    pub fn audit(&self, job: &JobName) -> String {
        format!("{}:audit:{{{job}}}", self.prefix)
    }

    /// The next warmup of each job: a sorted set, member = job, score = the tick (ms) or, while a tick is expanded,
    /// when to retry.
    pub fn schedules(&self) -> String {
        format!("{}:{{schedules}}", self.prefix)
    }

    /// The tick that is being expanded: a hash, job to tick (ms), and `JOB/state`: see hasten.lua.
    pub fn ticks(&self) -> String {
        format!("{}:{{schedules}}:ticks", self.prefix)
    }

    /// The digest of each job's file when its schedule was last set, and the `run_id` of Redis then: a hash.
    pub fn digests(&self) -> String {
        format!("{}:{{schedules}}:digests", self.prefix)
    }

    /// The digest of what each job's values are made from; see [`crate::ops::Noted`]: a hash.
    pub fn made(&self) -> String {
        format!("{}:{{schedules}}:made", self.prefix)
    }

    /// The digests of the job files that each worker works with: a hash, worker to JSON.
    pub fn files(&self) -> String {
        format!("{}:{{schedules}}:files", self.prefix)
    }

    /// The refusal of a worker's last reload, as JSON; it has a TTL: see [`crate::ops::RefusedReload`].
    pub fn refused(&self, worker: &str) -> String {
        format!("{}:refused:{worker}", self.prefix)
    }

    /// The worker that makes values due after a change of job files; it has a TTL.
    pub fn remaker(&self) -> String {
        format!("{}:remaker", self.prefix)
    }

    /// The worker that tries dead letters again; it has a TTL.
    pub fn retrier(&self) -> String {
        format!("{}:retrier", self.prefix)
    }

    /// The name of the queue for apalis; all its keys are in one slot.
    pub fn queue(&self) -> String {
        format!("{{{}:queue}}", self.prefix)
    }

    /// The `run_id` of the Redis server that holds the data. If it is missing or different, Redis was flushed,
    /// restarted or failed over.
    pub fn marker(&self) -> String {
        format!("{}:marker", self.prefix)
    }

    /// When a loss of data was first found; it has a TTL of one hour. Workers that find the same one note the same gap.
    /// It is in the slot of [`Keys::marker`].
    pub fn loss(&self, id: &str) -> String {
        format!("{}:loss:{{{}}}:{id}", self.prefix, tag_of(&self.marker()))
    }

    /// The own mark of a master of a Cluster, at a slot that it serves. If it is gone, data of the master are lost.
    pub fn marker_at(&self, slot: u16) -> String {
        format!("{}:marker:{{{}}}", self.prefix, tag_at(slot))
    }

    /// The state of revalidation: the time up to which values may be stale and the kind of gap (`time gap`), the lock
    /// of the worker that revalidates, and the jobs that are done (a hash). One slot.
    pub fn revalidation(&self) -> [String; 3] {
        ["", ":lock", ":dealt"].map(|kind| format!("{}:{{suspect}}{kind}", self.prefix))
    }

    /// Redis's clock as workers last read it, and the time of the last closed gap (a hash), in the slot of
    /// [`Keys::revalidation`]. The tag is precomputed, so that the first heartbeat does not wait for the table of tags.
    pub fn clock(&self) -> String {
        format!("{}:clock:{{11x}}", self.prefix)
    }

    /// The records of the workers' gap detectors: a hash, worker to `since last handled jobs` (ms). Each holds the
    /// period in which the worker received everything that was published for the jobs that it knows.
    pub fn gap_detectors(&self) -> String {
        format!("{}:ears", self.prefix)
    }

    /// The lock of the sweeper.
    pub fn sweep_lock(&self) -> String {
        format!("{}:sweep", self.prefix)
    }

    /// The highest id of the inbox that each worker has acknowledged: a hash.
    pub fn acknowledged(&self) -> String {
        format!("{}:acknowledged", self.prefix)
    }

    /// The stream of durable invalidations.
    pub fn inbox(&self) -> String {
        format!("{}:inbox", self.prefix)
    }

    /// The journal of invalidations: a stream, see [`crate::telemetry::journal`].
    pub fn heard(&self) -> String {
        format!("{}:heard", self.prefix)
    }

    /// The audit log: a stream of what people changed, see [`crate::ops::audit_log`].
    pub fn audit_log(&self) -> String {
        format!("{}:audit-log", self.prefix)
    }

    /// The state of an upstream: rate and breaker (a hash), the permits in use (a sorted set, score = when they
    /// expire), the window of its token budget (a hash without a TTL: see `src/source/limits/lua/state.lua`), and the
    /// tokens reserved by requests in flight (a hash).
    pub fn upstream(&self, upstream: &UpstreamName) -> [String; 4] {
        ["limit", "permits", "budget", "reserved"].map(|kind| format!("{}:{kind}:{{{upstream}}}", self.prefix))
    }

    /// The durations of the fleet's requests to an upstream: a hash.
    pub fn fetched(&self, upstream: &UpstreamName) -> String {
        format!("{}:fetched:{upstream}", self.prefix)
    }

    /// A service's lock and the last number issued with it, in one slot.
    pub fn lock(&self, name: &str) -> [String; 2] {
        let tag = tag_of(name);
        ["lock", "number"].map(|kind| format!("{}:{kind}:{{{tag}}}:{name}", self.prefix))
    }

    /// The channel for invalidations; any client may publish there.
    pub fn invalidate_channel(&self) -> String {
        self.channel.as_deref().map_or_else(|| format!("{}:invalidate", self.scope), str::to_owned)
    }

    /// The channel that announces every change of a value.
    pub fn changed_channel(&self) -> String {
        format!("{}:changed", self.scope)
    }

    /// The channel of workers' events, used while somebody is subscribed.
    pub fn watched_channel(&self) -> String {
        format!("{}:watched", self.scope)
    }

    /// The channel by which workers wake each other.
    pub fn signal_channel(&self) -> String {
        format!("{}:signal", self.scope)
    }

    /// A channel without messages: its subscribers show on which database and channel they receive invalidations.
    pub fn hearing_channel(&self) -> String {
        format!("{}:db{}:hears:{}", self.prefix, self.database, self.invalidate_channel())
    }

    /// Returns a glob that matches the hearing channels of all subscribers of the same invalidation channel, whatever
    /// their prefix and database.
    pub fn hearing_glob(&self) -> String {
        let mut glob = "*:hears:".to_owned();
        for c in self.invalidate_channel().chars() {
            if "*?[]^\\".contains(c) {
                glob.push('\\');
            }
            glob.push(c);
        }
        glob
    }

    /// Returns the database and the prefix of the subscribers of a hearing channel.
    pub fn hearing_of<'a>(&self, channel: &'a str) -> Option<(i64, &'a str)> {
        let named = channel.strip_suffix(&*self.invalidate_channel())?.strip_suffix(":hears:")?;
        let (prefix, database) = named.rsplit_once(":db")?;
        Some((database.parse().ok()?, prefix))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::slot::{CRC, SLOTS};

    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(slot("123456789"), 12_739);
        assert_eq!(slot("{user1000}.following"), slot("{user1000}.followers"));
        assert_eq!(slot("foo{}{bar}"), CRC.checksum(b"foo{}{bar}") % SLOTS);
        assert_eq!(slot("foo{{bar}}zap"), slot("{{bar}"));
    }

    #[test]
    fn a_clock_and_what_it_makes_suspect_share_a_slot() {
        let keys = Keys::new("samovar", "samovar:invalidate");
        assert_eq!(slot(&keys.clock()), slot(&keys.revalidation()[0]));
    }

    #[test]
    fn tags_are_short() {
        assert!((0..10_000).all(|n| (1..=4).contains(&tag_of(&format!("artwork_info:{n}")).len())));
    }

    fn channels(keys: &Keys) -> [String; 5] {
        let [invalidate, changed] = [keys.invalidate_channel(), keys.changed_channel()];
        [invalidate, changed, keys.watched_channel(), keys.signal_channel(), keys.hearing_channel()]
    }

    #[test]
    fn no_two_databases_share_a_channel() {
        let all = [0, 1, 2, 15, 10_000].map(|database| Keys::of("samovar").in_database(database));
        let names: std::collections::HashSet<String> = all.iter().flat_map(channels).collect();
        assert_eq!(names.len(), 5 * all.len(), "{names:?}");
        assert!(names.iter().all(|name| all[0].is_own(name)));
        assert_eq!(all[0].invalidate_channel(), "samovar:invalidate");
        assert_eq!(all[2].invalidate_channel(), "samovar:db2:invalidate");
        assert_eq!(all[2].clone().in_database(0).changed_channel(), "samovar:changed");
    }

    #[test]
    fn a_channel_that_was_named_is_that_of_every_database() {
        let keys = Keys::new("samovar", "purge").in_database(3);
        assert_eq!(
            (keys.invalidate_channel().as_str(), keys.signal_channel().as_str()),
            ("purge", "samovar:db3:signal")
        );
    }

    #[test]
    fn a_hearing_channel_says_whose_it_is() {
        let keys = Keys::new("app:1", "a:hears:[b]").in_database(3);
        assert_eq!(keys.hearing_of(&keys.hearing_channel()), Some((3, "app:1")));
        assert_eq!(keys.hearing_of("app:1:db3:hears:other"), None);
        assert_eq!(keys.hearing_glob(), "*:hears:a:hears:\\[b\\]");
    }

    #[test]
    fn each_fixed_key_has_a_type_and_no_stranger_has() {
        let keys = Keys::new("samovar", "samovar:invalidate");
        let (job, upstream) = (JobName::new("art"), UpstreamName::new("http://127.0.0.1:80"));
        let all = keys.all_fixed([&job], [&upstream]);
        assert!(all.iter().all(|key| keys.type_of(key).is_some()), "{all:?}");
        let entry = EntryKey::new("art:1");
        let [lease, meta, touched] = [keys.lease(&entry), keys.meta(&entry), keys.touched(&entry)];
        let others = [lease, meta, touched, keys.made_from(&entry), keys.tag("x"), keys.refused("host-01K")];
        assert!(others.iter().all(|key| keys.type_of(key).is_some()), "{others:?}");
        for stranger in
            ["art:1", "samovar", "samovar:else", "samovars:marker", "{samovar:queue}:meta:1", "session:{x}:marker"]
        {
            assert_eq!(keys.type_of(stranger), None, "{stranger}");
        }
    }

    proptest! {
        #[test]
        fn what_belongs_to_an_entry_lives_in_its_slot(key in "\\PC{1,40}") {
            let keys = Keys::new("samovar", "samovar:invalidate");
            let entry = EntryKey::new(key.as_str());
            prop_assert_eq!(slot(&keys.lease(&entry)), slot(&key));
            prop_assert_eq!(slot(&keys.meta(&entry)), slot(&key));
            prop_assert_eq!(slot(&keys.touched(&entry)), slot(&key));
            prop_assert_eq!(slot(&keys.made_from(&entry)), slot(&key));
            let lease = keys.lease(&entry);
            prop_assert_eq!(keys.entry_of_lease(&lease), Some(key.as_str()));
        }
    }
}
