//! `INFO`: the fields that callers read.

use std::fmt::Write as _;

use super::Server;
use super::clients::VERSION;
use crate::commands::keys::size;
use crate::db::Bytes;

/// The sections in their order, and whether they are told unasked.
const SECTIONS: [(&str, bool); 9] = [
    ("Server", true),
    ("Clients", true),
    ("Memory", true),
    ("Persistence", true),
    ("Stats", true),
    ("Replication", true),
    ("CPU", true),
    ("Commandstats", false),
    ("Keyspace", true),
];

/// The bytes of a server that has no keys.
const EMPTY: usize = 1_000_000;

fn human(bytes: usize) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let bytes = bytes as f64;
    match bytes {
        ..1_024.0 => format!("{bytes}B"),
        ..1_048_576.0 => format!("{:.2}K", bytes / 1_024.0),
        ..1_073_741_824.0 => format!("{:.2}M", bytes / 1_048_576.0),
        _ => format!("{:.2}G", bytes / 1_073_741_824.0),
    }
}

impl Server {
    pub(super) fn info(&mut self, sections: &[Bytes]) -> String {
        let asked: Vec<String> = sections.iter().map(|name| name.to_string().to_ascii_lowercase()).collect();
        let has = |word: &str| asked.iter().any(|asked| asked == word);
        let mut text = String::new();
        for (name, by_default) in SECTIONS {
            let is_default = by_default && (asked.is_empty() || has("default"));
            if is_default || has("all") || has("everything") || has(&name.to_ascii_lowercase()) {
                if !text.is_empty() {
                    text.push_str("\r\n");
                }
                let _ = write!(text, "# {name}\r\n");
                for (name, value) in self.section(name) {
                    let _ = write!(text, "{name}:{value}\r\n");
                }
            }
        }
        text
    }

    fn section(&mut self, name: &str) -> Vec<(String, String)> {
        let own = |name: &str, value: &dyn ToString| (name.to_owned(), value.to_string());
        let uptime = (self.db.now_us - self.started).max(0) / 1_000_000;
        match name {
            "Server" => vec![
                own("redis_version", &VERSION),
                own("redis_mode", &"standalone"),
                own("os", &"none"),
                own("process_id", &1),
                own("run_id", &self.run_id),
                own("tcp_port", &0),
                own("uptime_in_seconds", &uptime),
                own("uptime_in_days", &(uptime / 86_400)),
            ],
            "Clients" => {
                vec![own("connected_clients", &self.clients.len()), own("blocked_clients", &self.blocked.len())]
            }
            "Memory" => {
                let used = EMPTY + self.db.keys().map(|(key, slot)| size(key, slot)).sum::<usize>();
                vec![
                    own("used_memory", &used),
                    own("used_memory_human", &human(used)),
                    own("maxmemory", &self.config.get("maxmemory")),
                    own("maxmemory_policy", &self.config.get("maxmemory-policy")),
                ]
            }
            "Persistence" => vec![
                own("loading", &0),
                own("rdb_bgsave_in_progress", &0),
                own("rdb_last_save_time", &self.saved.div_euclid(1_000)),
                own("rdb_last_bgsave_status", &"ok"),
                own("rdb_last_bgsave_time_sec", &-1),
                own("rdb_current_bgsave_time_sec", &-1),
                own("aof_enabled", &0),
                own("aof_current_rewrite_time_sec", &-1),
            ],
            "Stats" => {
                let channels = self.live().channels.all().count();
                let live = self.live();
                vec![
                    own("total_commands_processed", &live.calls.values().sum::<u64>()),
                    own("expired_keys", &live.expired),
                    own("evicted_keys", &live.evicted),
                    own("keyspace_hits", &live.reads[0]),
                    own("keyspace_misses", &live.reads[1]),
                    own("pubsub_channels", &channels),
                    own("pubsub_patterns", &live.channels.patterns()),
                ]
            }
            "Replication" => {
                vec![own("role", &"master"), own("connected_slaves", &0), own("master_failover_state", &"no-failover")]
            }
            "Commandstats" => {
                let told = |(name, calls): (&&str, &u64)| {
                    let figures =
                        format!("calls={calls},usec={calls},usec_per_call=1.00,rejected_calls=0,failed_calls=0");
                    (format!("cmdstat_{name}"), figures)
                };
                self.live().calls.iter().map(told).collect()
            }
            "Keyspace" => {
                let (keys, expires) = (self.live().places.len(), self.live().expiries.len());
                let told = format!("keys={keys},expires={expires},avg_ttl=0");
                if keys > 0 { vec![("db0".to_owned(), told)] } else { Vec::new() }
            }
            _ => Vec::new(),
        }
    }
}
