//! The server version and the user's rights that Samovar needs, checked at start.
//!
//! The check executes no command: commands are queued in a transaction, where Redis checks the user's rights, and
//! discarded.

use redis::{RedisError, RedisResult, Value};

use super::Connection;
use super::connection::UNANSWERED;
use super::refused::{Refused, is_refusal};
use super::sentinels;
use super::url::{CLUSTER_FORM, SENTINEL_FORM};
use super::wrong_types::{WRONG_TYPE, is_wrong_type};
use crate::protocol::Keys;

/// The oldest supported major version: scripts with flags, `PEXPIRETIME`, `EXPIRE … GT`.
const OLDEST: u32 = 7;

/// The documentation page that lists the required rights.
const PAGE: &str = "docs/redis.md";

/// Every command that a worker or one of its scripts needs. `K` stands for a key of its own.
const NEEDED: &[&str] = &[
    "DEL K",
    "EVALSHA S 1 K",
    "EXISTS K",
    "EXPIRE K 1",
    "GET K",
    "GETRANGE K 0 0",
    "HDEL K f",
    "HEXISTS K f",
    "HGET K f",
    "HGETALL K",
    "HINCRBY K f 1",
    "HKEYS K",
    "HLEN K",
    "HMGET K f",
    "HSCAN K 0",
    "HSET K f v",
    "HSETNX K f v",
    "HSTRLEN K f",
    "INCR K",
    "LINDEX K 0",
    "LLEN K",
    "LPOP K",
    "LPUSH K v",
    "LRANGE K 0 0",
    "LTRIM K 0 0",
    "MGET K",
    "PERSIST K",
    "PEXPIRE K 1",
    "PEXPIREAT K 1",
    "PEXPIRETIME K",
    "PING",
    "PTTL K",
    "PUBLISH C v",
    "RENAME K K",
    "RPUSH K v",
    "SADD K v",
    "SCAN 0",
    "SCARD K",
    "SCRIPT|EXISTS S",
    "SCRIPT|LOAD S",
    "SET K v",
    "SRANDMEMBER K",
    "SREM K v",
    "STRLEN K",
    "TIME",
    "TYPE K",
    "UNLINK K",
    "XACK K g 1",
    "XADD K * f v",
    "XAUTOCLAIM K g c 1 0",
    "XDEL K 1",
    "XGROUP|CREATE K g 0",
    "XGROUP|DELCONSUMER K g c",
    "XINFO|CONSUMERS K g",
    "XINFO|STREAM K",
    "XLEN K",
    "XPENDING K g",
    "XRANGE K - +",
    "XREADGROUP GROUP g c STREAMS K >",
    "XREVRANGE K + -",
    "XTRIM K MAXLEN 1",
    "ZADD K 1 v",
    "ZCARD K",
    "ZCOUNT K 1 1",
    "ZMSCORE K v",
    "ZPOPMAX K",
    "ZPOPMIN K",
    "ZRANGE K 0 0",
    "ZRANGEBYSCORE K 1 1",
    "ZREM K v",
    "ZREMRANGEBYRANK K 0 0",
    "ZREMRANGEBYSCORE K 1 1",
    "ZREVRANGE K 0 0",
    "ZREVRANK K v",
    "ZSCAN K 0",
    "ZSCORE K v",
];

/// The errors for a right that is missing in a script: of Redis 7.0 for a command and for a key, and of later versions.
const IN_SCRIPT: [&str; 3] =
    ["can't run this command", "can't access at least one of the keys", "ACL failure in script"];

/// Optional commands, and what a worker cannot do without each.
const WANTED: &[(&str, &str)] = &[
    (
        "INFO",
        "restarts are detected by a script that a restarted Redis has lost, evictions of Samovar's own keys only \
         when a whole key is gone, an invalidation by an unknown tag scans all keys, and reads are sampled at fixed intervals",
    ),
    (
        "OBJECT|IDLETIME K",
        "reads are not detected: only entries that are listed, in a feed, or reported as read are kept warm",
    ),
    ("OBJECT|FREQ K", "reads are not detected under an LFU policy"),
    ("OBJECT|REFCOUNT K", "reads of values that are numbers below 10,000 may be counted for each other"),
    ("XREVRANGE K + -", "the console does not show the audit log"),
    ("PUBSUB|NUMSUB", "`samovar watch` shows nothing of what this worker does"),
    ("PUBSUB|CHANNELS", "workers of another database on the same channel are not detected"),
];

/// The missing rights, as `ACL SETUSER` names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lack {
    /// Commands, including commands that the server does not have.
    commands: Vec<String>,
    /// Patterns of keys.
    keys: Vec<String>,
    /// Channels.
    channels: Vec<String>,
}

impl Lack {
    fn is_none(&self) -> bool {
        self == &Self::default()
    }

    /// Returns the rights to grant, as the end of an `ACL SETUSER`.
    fn grants(&self) -> String {
        let commands = self.commands.iter().map(|name| format!("+{name}"));
        let keys = self.keys.iter().map(|glob| format!("~{glob}"));
        let channels = self.channels.iter().map(|name| format!("&{name}"));
        commands.chain(keys).chain(channels).collect::<Vec<_>>().join(" ")
    }

    /// Returns the fault in one line: the missing rights and the remedy.
    fn told(&self, user: &str) -> String {
        let kinds = [("to run", &self.commands), ("to use keys", &self.keys), ("to use channels", &self.channels)];
        let missing = kinds.iter().filter(|(_, names)| !names.is_empty());
        let missing: Vec<String> = missing.map(|(what, names)| format!("{what} {}", names.join(", "))).collect();
        let (missing, grants) = (missing.join(", "), self.grants());
        format!("the Redis user `{user}` has no right {missing}; grant it: ACL SETUSER {user} {grants} ({PAGE})")
    }
}

/// Returns why Samovar cannot use this server: its version or its mode. `None` if it can, or if the server does not
/// tell.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn unsupported(redis: &mut Connection) -> RedisResult<Option<String>> {
    let Some(server) = Server::ask(redis).await? else {
        // Redis 7 accepts this shebang; earlier versions report a syntax error.
        let tried: RedisResult<String> =
            redis::cmd("SCRIPT").arg("LOAD").arg("#!lua flags=no-writes\nreturn 1").query_async(redis).await;
        return match tried {
            Err(e) if e.to_string().contains("compil") => {
                let fault = "the server hides its version and cannot run Redis 7 scripts: Redis 7.0 or newer, \
                             or Valkey, is needed";
                Ok(Some(fault.into()))
            }
            Err(e) if !is_refusal(&e) => Err(e),
            _ => Ok(None),
        };
    };
    if server.mode == "sentinel" {
        let watched = sentinels::services(redis).await.unwrap_or_default();
        return Ok(Some(format!(
            "the server is a Sentinel, which knows {}: {SENTINEL_FORM}",
            sentinels::listed(&watched)
        )));
    }
    if server.mode == "cluster" && redis.slots().is_none() {
        return Ok(Some(format!("the server is a node of a Redis Cluster: {CLUSTER_FORM}")));
    }
    Ok(server.fault())
}

/// A server's version and mode.
#[derive(Debug, Default)]
struct Server {
    version: String,
    mode: String,
}

impl Server {
    /// Asks by `HELLO`, which needs no rights, else by `INFO`; `None` if the server answers neither.
    async fn ask(redis: &mut Connection) -> RedisResult<Option<Self>> {
        let hello: RedisResult<Value> = redis::cmd("HELLO").query_async(redis).await;
        match hello {
            Ok(fields) => {
                let fields = match fields {
                    Value::Map(fields) => fields,
                    Value::Array(fields) => {
                        let mut fields = fields.into_iter();
                        std::iter::from_fn(|| fields.next().zip(fields.next())).collect()
                    }
                    _ => Vec::new(),
                };
                let text = |value: &Value| redis::from_redis_value_ref::<String>(value).unwrap_or_default();
                let field = |name: &str| fields.iter().find(|(key, _)| text(key) == name).map(|(_, value)| text(value));
                if let Some(version) = field("version") {
                    return Ok(Some(Self { version, mode: field("mode").unwrap_or_default() }));
                }
            }
            Err(e) if is_refusal(&e) => {}
            Err(e) => return Err(e),
        }
        let Some(info) = redis.info(&["server"]).await? else { return Ok(None) };
        let mode = info.mode().unwrap_or_default().to_owned();
        Ok(info.version().map(|version| Self { version: version.to_owned(), mode }))
    }

    fn fault(&self) -> Option<String> {
        let Self { version, .. } = self;
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        let old = major.is_some_and(|major| major < OLDEST);
        old.then(|| format!("the server is Redis {version}: Redis {OLDEST}.0 or newer, or Valkey, is needed"))
    }
}

/// Returns the missing rights that every worker needs, whatever its jobs; `None` if none is missing. Opens a test
/// subscription.
///
/// # Errors
/// Fails if the rights cannot be determined.
pub async fn lacking(redis: &mut Connection, keys: &Keys) -> RedisResult<Option<String>> {
    let own = format!("{}:rights", keys.prefix());
    let mut lack = Lack::default();
    let mut transaction = redis::pipe();
    transaction.cmd("MULTI").cmd("DISCARD").cmd("EXEC").ignore_errors();
    let steps: Vec<RedisResult<Value>> = transaction.query_async(redis).await?;
    for (step, name) in steps.iter().zip(["multi", "discard", "exec"]) {
        if step.as_ref().err().and_then(Refused::by).is_some() {
            lack.commands.push(name.to_owned());
        }
    }
    if !lack.is_none() {
        // Without a transaction the commands would be executed.
        return Ok(Some(lack.told(&user_of(redis))));
    }
    let channels = [keys.signal_channel(), keys.changed_channel(), keys.watched_channel()];
    for (word, refused) in NEEDED.iter().zip(queue(redis, NEEDED.iter().copied(), &own, &channels[0]).await?) {
        if refused.is_some_and(|refused| !matches!(refused, Refused::Key | Refused::Channel)) {
            lack.commands.push(name_of(word));
        }
    }
    if !lack.commands.iter().any(|name| name == "evalsha") {
        for (glob, key) in
            [(format!("{}:*", keys.prefix()), own), (format!("{}:*", keys.queue()), keys.queue() + ":rights")]
        {
            if may_not_use(redis, &key).await? {
                lack.keys.push(glob);
            }
        }
    }
    if !lack.commands.iter().any(|name| name == "publish") {
        for channel in &channels {
            let refused = queue(redis, ["PUBLISH C v"], "", channel).await?;
            if refused.into_iter().flatten().next().is_some() {
                lack.channels.push(channel.clone());
            }
        }
    }
    for channel in [keys.invalidate_channel(), keys.signal_channel(), keys.hearing_channel()] {
        match redis.subscribe(&channel).await {
            Ok(_) => {}
            Err(e) => match Refused::by(&e) {
                Some(Refused::Channel) if !lack.channels.contains(&channel) => lack.channels.push(channel),
                Some(Refused::Channel) => {}
                Some(_) => {
                    lack.commands.push("subscribe".to_owned());
                    break;
                }
                None => return Err(e),
            },
        }
    }
    Ok((!lack.is_none()).then(|| lack.told(&user_of(redis))))
}

/// Returns which of these patterns the user has no right to, by testing one key of each; `None` if none.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn lacking_keys(redis: &mut Connection, keys: &[(String, String)]) -> RedisResult<Option<String>> {
    let mut lack = Lack::default();
    for (glob, key) in keys {
        if may_not_use(redis, key).await? {
            lack.keys.push(glob.clone());
        }
    }
    Ok((!lack.is_none()).then(|| lack.told(&user_of(redis))))
}

/// Returns what a worker cannot do because an optional right is missing; empty if the user has all.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn doing_without(redis: &mut Connection, keys: &Keys) -> RedisResult<Vec<String>> {
    let own = format!("{}:rights", keys.prefix());
    let refused = queue(redis, WANTED.iter().map(|(words, _)| *words), &own, "").await?;
    let missing = WANTED.iter().zip(refused).filter(|(_, refused)| refused.is_some());
    Ok(missing.map(|((words, cost), _)| format!("without +{}, {cost}", name_of(words))).collect())
}

/// Returns the error's text, with the remedy if a right is missing.
pub fn explain(error: &RedisError) -> String {
    if error.code() == Some(UNANSWERED) {
        return error.detail().unwrap_or("no answer").to_owned();
    }
    let text = error.to_string();
    if error.code() == Some("NOPERM") {
        return format!("{text}; grant it to the Redis user of this process: {PAGE} lists all required rights");
    }
    if IN_SCRIPT.iter().any(|part| text.contains(part)) {
        // Before 7.2 Redis does not name the command.
        return format!(
            "{text}; grant it to the Redis user of this process: a worker names the missing rights when it starts, \
             and {PAGE} lists all required rights"
        );
    }
    if is_wrong_type(&text) {
        return WRONG_TYPE.to_owned();
    }
    let remedy = match error.code() {
        Some("CLUSTERDOWN") => {
            "a master is away, or a slot has none: `redis-cli --cluster check HOST:PORT` tells which"
        }
        Some("NOAUTH" | "WRONGPASS") => "correct the user and the password in REDIS_URL or REDIS_PASSWORD",
        Some("OOM") => "raise `maxmemory`, or delete keys",
        _ => return text,
    };
    format!("{text}; {remedy}")
}

/// Queues commands, discards them, and returns for each why it would be refused.
async fn queue<'a>(
    redis: &mut Connection,
    commands: impl IntoIterator<Item = &'a str>,
    key: &str,
    channel: &str,
) -> RedisResult<Vec<Option<Refused>>> {
    let mut pipe = redis::pipe();
    pipe.cmd("MULTI");
    for words in commands {
        let mut words = words.split(['|', ' ']);
        pipe.cmd(words.next().unwrap_or_default());
        for word in words {
            pipe.arg(match word {
                "K" => key,
                "C" => channel,
                // A digest that belongs to no script.
                "S" => "0000000000000000000000000000000000000000",
                word => word,
            });
        }
    }
    pipe.cmd("DISCARD");
    let mut replies: Vec<RedisResult<Value>> = pipe.ignore_errors().query_async(redis).await?;
    replies.pop();
    let refused = |reply: RedisResult<Value>| reply.err().and_then(|e| Refused::by(&e));
    Ok(replies.into_iter().skip(1).map(refused).collect())
}

/// Returns `true` if the user has no right to read and write this key, as scripts do.
async fn may_not_use(redis: &mut Connection, key: &str) -> RedisResult<bool> {
    let refused = queue(redis, ["EVALSHA S 1 K"], key, "").await?;
    Ok(refused.into_iter().flatten().any(|refused| refused == Refused::Key))
}

/// Returns the command's name, as `ACL SETUSER` writes it.
fn name_of(words: &str) -> String {
    words.split(' ').next().unwrap_or_default().to_lowercase()
}

fn user_of(redis: &Connection) -> String {
    redis.user().unwrap_or("default").to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::redis::server::Server as TestServer;

    /// Commands that are sent but not required: each use has a fallback.
    const SPARED: [&str; 9] = ["ASKING", "CLIENT", "CLUSTER", "CONFIG", "DBSIZE", "DISCARD", "EXEC", "HELLO", "MULTI"];

    fn sources(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let skipped = [
                "src/cache",
                "src/cli/demo",
                "src/cli/museum",
                "tests.rs",
                "redis/connection.rs",
                "redis/sentinels.rs",
            ];
            if skipped.iter().any(|end| path.ends_with(end)) {
                continue;
            }
            if path.is_dir() {
                sources(&path, found);
            } else {
                found.push(path);
            }
        }
    }

    #[test]
    fn every_command_that_is_sent_is_looked_at() {
        let looked_at = NEEDED.iter().chain(WANTED.iter().map(|(words, _)| words));
        let looked_at: BTreeSet<String> =
            looked_at.map(|words| words.split(['|', ' ']).next().unwrap().to_owned()).collect();
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let mut unknown = BTreeSet::new();
        let mut seen = 0;
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for begin in ["cmd(\"", "redis.call('", "redis.pcall('", "try('"] {
                for rest in text.split(begin).skip(1) {
                    let name: String = rest.chars().take_while(char::is_ascii_uppercase).collect();
                    seen += 1;
                    if !looked_at.contains(&name) && !SPARED.contains(&name.as_str()) {
                        unknown.insert(format!("{name} in {}", file.display()));
                    }
                }
            }
        }
        assert!(seen > 200 && unknown.is_empty(), "{seen} seen, {unknown:?}");
    }

    #[tokio::test]
    async fn looking_at_rights_changes_nothing() {
        let server = TestServer::start().await;
        let mut redis = server.connect().await;
        let keys = Keys::of("samovar");
        assert_eq!(unsupported(&mut redis).await.unwrap(), None);
        assert_eq!(lacking(&mut redis, &keys).await.unwrap(), None);
        assert_eq!(doing_without(&mut redis, &keys).await.unwrap(), [""; 0]);
        let one = ("art:*".to_owned(), "art:a".to_owned());
        assert_eq!(lacking_keys(&mut redis, &[one]).await.unwrap(), None);
        let size: usize = redis::cmd("DBSIZE").query_async(&mut redis).await.unwrap();
        assert_eq!(size, 0);
    }

    /// Covers the errors of other versions, and this version's error for a key.
    #[tokio::test]
    async fn a_right_that_a_script_lacks_is_told_with_what_to_do() {
        let server = TestServer::start().await;
        let mut redis = server.connect().await;
        let user = ["ACL", "SETUSER", "default", "resetkeys", "~own:*"];
        let () = redis::cmd(user[0]).arg(&user[1..]).exec_async(&mut redis).await.unwrap();
        for (script, told) in [
            ("return redis.call('GET', 'other:1')", true),
            (
                "return redis.error_reply(\"ERR ACL failure in script: User app has no permissions to run the 'get' command\")",
                true,
            ),
            ("return redis.error_reply('ERR something else')", false),
        ] {
            let answer: RedisResult<Value> = redis::cmd("EVAL").arg(script).arg(0).query_async(&mut redis).await;
            let text = explain(&answer.unwrap_err());
            assert_eq!(text.contains("a worker names the missing rights when it starts"), told, "{text}");
        }
    }

    #[test]
    fn what_the_server_is_decides() {
        let fault = |version: &str, mode: &str| Server { version: version.into(), mode: mode.into() }.fault();
        for old in ["6.2.14", "6.3.4", "5.0.14", "2.8"] {
            let fault = fault(old, "standalone").unwrap();
            assert!(fault.contains(&format!("Redis {old}")) && fault.contains("7.0"), "{fault}");
        }
        for new in ["7.0.0", "7.2.4", "8.1.3", "10.0", "255.255.255", "unstable", ""] {
            assert_eq!(fault(new, "standalone"), None, "{new}");
        }
    }
}
