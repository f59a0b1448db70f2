//! The only reader of `INFO`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// The information of a server: the fields of an answer to `INFO`.
///
/// A field is `None` where the server does not tell it, or its section was not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerInfo(BTreeMap<String, String>);

impl ServerInfo {
    /// Reads an answer to `INFO`. Lines that are not fields are ignored.
    pub fn parse(text: &str) -> Self {
        let fields = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(':'));
        Self(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    /// Returns the information of several servers as that of one: counts, memory and figures are added up, of times the
    /// latest counts, and everything else is the first server's.
    pub(super) fn of_all(all: impl IntoIterator<Item = Self>) -> Self {
        let mut all = all.into_iter();
        let Self(mut sum) = all.next().unwrap_or_default();
        for Self(other) in all {
            for (name, value) in other {
                match sum.entry(name) {
                    Entry::Vacant(place) => _ = place.insert(value),
                    Entry::Occupied(mut place) => {
                        if let Some(added) = added(place.key(), place.get(), &value) {
                            place.insert(added);
                        }
                    }
                }
            }
        }
        Self(sum)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.parse().ok()
    }

    fn count(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// Returns the id of the replication that the server followed as a replica; `None` if it never was promoted.
    pub fn promoted_from(&self) -> Option<&str> {
        self.text("master_replid2").filter(|id| id.contains(|digit| digit != '0'))
    }

    /// Returns the addresses of the replicas that the server knows.
    pub fn replicas(&self) -> Vec<String> {
        let address = |(name, replica): (&String, &String)| {
            name.strip_prefix("slave")?.parse::<u32>().ok()?;
            let field = |name: &str| replica.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            Some(format!("{}:{}", field("ip")?, field("port")?))
        };
        self.0.iter().filter_map(address).collect()
    }

    /// Returns the id of the server's current run, which changes with every restart.
    pub fn run_id(&self) -> Option<&str> {
        self.text("run_id")
    }

    /// Returns the version, such as `7.2.4`.
    pub fn version(&self) -> Option<&str> {
        self.text("redis_version")
    }

    /// Returns the mode: `standalone`, `cluster` or `sentinel`.
    pub fn mode(&self) -> Option<&str> {
        self.text("redis_mode")
    }

    /// Returns the id of the server's process.
    pub fn process_id(&self) -> Option<u32> {
        self.text("process_id")?.parse().ok()
    }

    /// Returns `true` while the server loads its data from disk.
    pub fn is_loading(&self) -> Option<bool> {
        self.text("loading").map(|loading| loading != "0")
    }

    /// Returns the number of connected clients.
    pub fn connected_clients(&self) -> Option<u64> {
        self.count("connected_clients")
    }

    /// Returns how long the server has run, in seconds.
    pub fn uptime_seconds(&self) -> Option<u64> {
        self.count("uptime_in_seconds")
    }

    /// Returns each database by name, such as `db0`, with its keys and the keys among them that have a TTL.
    pub fn databases(&self) -> impl Iterator<Item = (&str, [u64; 2])> {
        self.0.iter().filter_map(|(name, figures)| {
            name.strip_prefix("db")?.parse::<u32>().ok()?;
            let figure = |name: &str| {
                let figures = figures.split(',').filter_map(|figure| figure.split_once('='));
                figures.into_iter().find(|(known, _)| *known == name)?.1.parse().ok()
            };
            Some((name.as_str(), ["keys", "expires"].map(|name| figure(name).unwrap_or_default())))
        })
    }

    /// Returns the limit of the memory in bytes; 0 for none.
    pub fn maxmemory(&self) -> Option<u64> {
        self.count("maxmemory")
    }

    /// Returns the memory in use as the server writes it, such as `1.50M`; `None` for several servers.
    pub fn used_memory_human(&self) -> Option<&str> {
        self.text("used_memory_human").filter(|text| !text.is_empty())
    }

    /// Returns the memory in use, in bytes.
    pub fn used_memory(&self) -> Option<u64> {
        self.count("used_memory")
    }

    /// Returns `maxmemory-policy`.
    pub fn eviction_policy(&self) -> Option<&str> {
        self.text("maxmemory_policy")
    }

    /// Returns `true` if the eviction policy is an LFU one.
    pub fn is_lfu(&self) -> bool {
        self.eviction_policy().is_some_and(|policy| policy.ends_with("-lfu"))
    }

    /// Returns `true` if the server may evict keys that have no TTL.
    pub fn evicts_all_keys(&self) -> bool {
        self.eviction_policy().is_some_and(|policy| policy.starts_with("allkeys"))
    }

    /// Returns the number of keys that were evicted since the server started.
    pub fn evicted_keys(&self) -> Option<u64> {
        self.count("evicted_keys")
    }

    /// Returns the number of reads that found a key since the server started.
    pub fn hits(&self) -> Option<u64> {
        self.count("keyspace_hits")
    }

    /// Returns the number of reads that found no key since the server started.
    pub fn misses(&self) -> Option<u64> {
        self.count("keyspace_misses")
    }

    /// Returns how often these commands were called in total; `None` if the server tells of no command.
    pub fn calls(&self, commands: &[&str]) -> Option<u64> {
        self.0.keys().any(|name| name.starts_with("cmdstat_")).then(|| {
            let calls = commands.iter().filter_map(|command| {
                let figures = self.text(&format!("cmdstat_{command}"))?.strip_prefix("calls=")?;
                figures.split_once(',')?.0.parse::<u64>().ok()
            });
            calls.sum()
        })
    }

    /// Returns how long the current snapshot and the current rewrite of the append-only file have run, in seconds; −1
    /// for none.
    pub fn running_saves(&self) -> [i64; 2] {
        ["rdb_current_bgsave_time_sec", "aof_current_rewrite_time_sec"].map(|name| self.number(name).unwrap_or(-1))
    }

    /// Returns when the last snapshot ended (Unix time, s), and how long it took, in seconds; −1 for unknown.
    pub fn last_save(&self) -> (i64, i64) {
        let number = |name| self.number(name).unwrap_or(-1);
        (number("rdb_last_save_time"), number("rdb_last_bgsave_time_sec"))
    }
}

/// Fields that are added up over servers.
const ADDED: [&str; 6] =
    ["connected_clients", "evicted_keys", "keyspace_hits", "keyspace_misses", "maxmemory", "used_memory"];
/// Fields of which the largest counts.
const LARGEST: [&str; 4] =
    ["aof_current_rewrite_time_sec", "rdb_current_bgsave_time_sec", "rdb_last_bgsave_time_sec", "rdb_last_save_time"];

/// Returns the value of a field for two servers; `None` if it is the first one's.
fn added(name: &str, one: &str, other: &str) -> Option<String> {
    let numbers = || Some((one.parse::<i64>().ok()?, other.parse::<i64>().ok()?));
    if ADDED.contains(&name) {
        return numbers().map(|(one, other)| (one + other).to_string());
    }
    if LARGEST.contains(&name) {
        return numbers().map(|(one, other)| one.max(other).to_string());
    }
    if name == "used_memory_human" {
        return Some(String::new());
    }
    let is_database = name.strip_prefix("db").is_some_and(|number| number.parse::<u32>().is_ok());
    if !is_database && !name.starts_with("cmdstat_") {
        return None;
    }
    let figures = one.split(',').zip(other.split(',')).map(|(one, other)| {
        let sum = || {
            let ((name, one), (_, other)) = (one.split_once('=')?, other.split_once('=')?);
            Some(format!("{name}={}", one.parse::<u64>().ok()? + other.parse::<u64>().ok()?))
        };
        sum().unwrap_or_else(|| one.to_owned())
    });
    Some(figures.collect::<Vec<String>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_several_servers_are_added_up() {
        let one =
            "used_memory:5\r\nredis_version:7.2.4\r\ndb0:keys=3,expires=1,avg_ttl=0\r\ncmdstat_get:calls=5,usec=9\r\n";
        let other = "used_memory:7\r\nredis_version:7.2.5\r\ndb0:keys=4,expires=2,avg_ttl=8\r\n\
                     cmdstat_get:calls=1,usec=1.5\r\n";
        let both = ServerInfo::of_all([one, other].map(ServerInfo::parse));
        assert_eq!((both.used_memory(), both.version()), (Some(12), Some("7.2.4")));
        assert_eq!((both.databases().collect::<Vec<_>>(), both.calls(&["get"])), (vec![("db0", [7, 3])], Some(6)));
    }

    #[test]
    fn the_fields_of_info_are_read_by_name() {
        let info = ServerInfo::parse(
            "# Server\r\nredis_version:7.2.4\r\nredis_mode:standalone\r\nrun_id:abc\r\n\r\n# Stats\r\n\
             evicted_keys:3\r\nkeyspace_hits:x\r\nmaxmemory_policy:allkeys-lfu\r\nrdb_last_save_time:7\r\n\
             cmdstat_get:calls=5,usec=9\r\ncmdstat_set:calls=2,usec=9\r\nloading:0\r\n\
             dbsize:9\r\ndb3:keys=3,expires=1,avg_ttl=0\r\n",
        );
        assert_eq!((info.version(), info.mode(), info.run_id()), (Some("7.2.4"), Some("standalone"), Some("abc")));
        assert_eq!((info.evicted_keys(), info.hits(), info.misses()), (Some(3), None, None));
        assert!(info.is_lfu() && info.evicts_all_keys());
        assert_eq!((info.running_saves(), info.last_save()), ([-1, -1], (7, -1)));
        assert_eq!(info.calls(&["get", "mget"]), Some(5));
        assert_eq!(info.is_loading(), Some(false));
        assert_eq!(info.databases().collect::<Vec<_>>(), [("db3", [3, 1])]);
        assert_eq!(ServerInfo::default().calls(&["get"]), None);
    }
}
