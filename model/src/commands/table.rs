//! All commands: names, numbers of words, and what carries them out.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::{Answer, Reply, groups, hashes, keys, lists, scan, sets, sorted, streams, strings};
use crate::db::{Bytes, Db};

/// The command writes.
pub(crate) const WRITES: u8 = 1;
/// The command is refused while the memory is used up.
pub(crate) const DENIED_WHEN_FULL: u8 = 2;
/// Scripts may not use the command.
pub(crate) const NOT_IN_SCRIPTS: u8 = 4;

/// The function that carries a command out.
#[derive(Clone, Copy)]
pub(crate) enum Run {
    /// A function on keys.
    Keys(fn(&mut Db, &[Bytes]) -> Answer),
    /// The server, since it concerns clients, scripts or the server itself.
    Server,
}

/// A command.
pub(crate) struct Spec {
    /// The name, in lower case.
    pub(crate) name: &'static str,
    /// The number of words, the name included; the least number, negated, if there may be more.
    words: i8,
    flags: u8,
    /// The function that carries it out.
    pub(crate) run: Run,
}

impl Spec {
    /// Returns true if the command has any of these flags.
    pub(crate) fn is(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Returns true if the command may have so many words.
    pub(crate) fn takes(&self, words: usize) -> bool {
        let expected = usize::from(self.words.unsigned_abs());
        if self.words < 0 { words >= expected } else { words == expected }
    }

    /// Returns the error for another number of words.
    pub(crate) fn wrong_number(&self) -> String {
        format!("ERR wrong number of arguments for '{}' command", self.name)
    }

    /// Carries the command out, and counts it.
    pub(crate) fn run(&self, db: &mut Db, args: &[Bytes]) -> Reply {
        if let Some(live) = &mut db.live {
            *live.calls.entry(self.name).or_default() += 1;
        }
        match self.run {
            Run::Keys(run) => run(db, args).unwrap_or_else(Reply::Error),
            Run::Server => Reply::Error(format!("ERR the model does not know {} here", self.name)),
        }
    }
}

static TABLE: LazyLock<HashMap<&'static [u8], Spec>> = LazyLock::new(|| {
    let keyed = KEYS.iter().chain(CONTENT).map(|(name, words, flags, run)| (*name, *words, *flags, Run::Keys(*run)));
    let all = keyed.chain(SERVER.iter().map(|(name, words, flags)| (*name, *words, *flags, Run::Server)));
    all.map(|(name, words, flags, run)| (name.as_bytes(), Spec { name, words, flags, run })).collect()
});

/// Returns a command by its name, in any case.
pub(crate) fn find(name: &[u8]) -> Option<&'static Spec> {
    const LONGEST: usize = 24;
    let mut lower = [0; LONGEST];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    TABLE.get(&*lower)
}

type Row = (&'static str, i8, u8, fn(&mut Db, &[Bytes]) -> Answer);

const R: u8 = 0;
const W: u8 = WRITES;
const G: u8 = WRITES | DENIED_WHEN_FULL;
const N: u8 = NOT_IN_SCRIPTS;

const KEYS: &[Row] = &[
    ("dbsize", 1, R, keys::dbsize),
    ("del", -2, W, keys::del),
    ("echo", 2, R, keys::echo),
    ("exists", -2, R, keys::exists),
    ("expire", -3, W, keys::expire),
    ("expireat", -3, W, keys::expireat),
    ("expiretime", 2, R, keys::expiretime),
    ("flushall", -1, W, keys::flush),
    ("flushdb", -1, W, keys::flush),
    ("keys", 2, R, keys::keys),
    ("memory", -2, R, keys::memory),
    ("object", -2, R, keys::object),
    ("persist", 2, W, keys::persist),
    ("pexpire", -3, W, keys::pexpire),
    ("pexpireat", -3, W, keys::pexpireat),
    ("pexpiretime", 2, R, keys::pexpiretime),
    ("pttl", 2, R, keys::pttl),
    ("publish", 3, R, keys::publish),
    ("randomkey", 1, R, keys::randomkey),
    ("rename", 3, W, keys::rename),
    ("renamenx", 3, W, keys::renamenx),
    ("scan", -2, R, scan::scan),
    ("time", 1, R, keys::time),
    ("touch", -2, R, keys::touch),
    ("ttl", 2, R, keys::ttl),
    ("type", 2, R, keys::kind),
    ("unlink", -2, W, keys::del),
    ("wait", 3, N, keys::wait),
];

const CONTENT: &[Row] = &[
    ("append", 3, G, strings::append),
    ("decr", 2, G, strings::decr),
    ("decrby", 3, G, strings::decrby),
    ("get", 2, R, strings::get),
    ("getdel", 2, W, strings::getdel),
    ("getrange", 4, R, strings::getrange),
    ("getset", 3, G, strings::getset),
    ("incr", 2, G, strings::incr),
    ("incrby", 3, G, strings::incrby),
    ("mget", -2, R, strings::mget),
    ("mset", -3, G, strings::mset),
    ("psetex", 4, G, strings::psetex),
    ("set", -3, G, strings::set),
    ("setex", 4, G, strings::setex),
    ("setnx", 3, G, strings::setnx),
    ("strlen", 2, R, strings::strlen),
    ("hdel", -3, W, hashes::hdel),
    ("hexists", 3, R, hashes::hexists),
    ("hget", 3, R, hashes::hget),
    ("hgetall", 2, R, hashes::hgetall),
    ("hincrby", 4, G, hashes::hincrby),
    ("hkeys", 2, R, hashes::hkeys),
    ("hlen", 2, R, hashes::hlen),
    ("hmget", -3, R, hashes::hmget),
    ("hmset", -4, G, hashes::hmset),
    ("hscan", -3, R, scan::hscan),
    ("hset", -4, G, hashes::hset),
    ("hsetnx", 4, G, hashes::hsetnx),
    ("hstrlen", 3, R, hashes::hstrlen),
    ("hvals", 2, R, hashes::hvals),
    ("lindex", 3, R, lists::lindex),
    ("llen", 2, R, lists::llen),
    ("lpop", -2, W, lists::lpop),
    ("lpush", -3, G, lists::lpush),
    ("lrange", 4, R, lists::lrange),
    ("lrem", 4, W, lists::lrem),
    ("lset", 4, G, lists::lset),
    ("ltrim", 4, W, lists::ltrim),
    ("rpop", -2, W, lists::rpop),
    ("rpush", -3, G, lists::rpush),
    ("sadd", -3, G, sets::sadd),
    ("scard", 2, R, sets::scard),
    ("sismember", 3, R, sets::sismember),
    ("smembers", 2, R, sets::smembers),
    ("smismember", -3, R, sets::smismember),
    ("spop", -2, W, sets::spop),
    ("srandmember", -2, R, sets::srandmember),
    ("srem", -3, W, sets::srem),
    ("sscan", -3, R, scan::sscan),
    ("xack", -4, W, groups::xack),
    ("xadd", -5, G, streams::xadd),
    ("xautoclaim", -6, W, groups::xautoclaim),
    ("xdel", -3, W, streams::xdel),
    ("xgroup", -2, G, groups::xgroup),
    ("xinfo", -2, R, streams::xinfo),
    ("xlen", 2, R, streams::xlen),
    ("xpending", -3, R, groups::xpending),
    ("xrange", -4, R, streams::xrange),
    ("xreadgroup", -7, W, groups::xreadgroup),
    ("xrevrange", -4, R, streams::xrevrange),
    ("xtrim", -4, W, streams::xtrim),
    ("zadd", -4, G, sorted::zadd),
    ("zcard", 2, R, sorted::zcard),
    ("zcount", 4, R, sorted::zcount),
    ("zincrby", 4, G, sorted::zincrby),
    ("zmscore", -3, R, sorted::zmscore),
    ("zpopmax", -2, W, sorted::zpopmax),
    ("zpopmin", -2, W, sorted::zpopmin),
    ("zrange", -4, R, sorted::zrange),
    ("zrangebyscore", -4, R, sorted::zrangebyscore),
    ("zrank", 3, R, sorted::zrank),
    ("zrem", -3, W, sorted::zrem),
    ("zremrangebyrank", 4, W, sorted::zremrangebyrank),
    ("zremrangebyscore", 4, W, sorted::zremrangebyscore),
    ("zrevrange", -4, R, sorted::zrevrange),
    ("zrevrangebyscore", -4, R, sorted::zrevrangebyscore),
    ("zrevrank", 3, R, sorted::zrevrank),
    ("zscan", -3, R, scan::zscan),
    ("zscore", 3, R, sorted::zscore),
];

const SERVER: &[(&str, i8, u8)] = &[
    ("acl", -2, N),
    ("auth", -2, N),
    ("client", -2, N),
    ("config", -2, N),
    ("discard", 1, N),
    ("eval", -3, N),
    ("evalsha", -3, N),
    ("exec", 1, N),
    ("hello", -1, N),
    ("info", -1, R),
    ("multi", 1, N),
    ("ping", -1, R),
    ("psubscribe", -2, N),
    ("pubsub", -2, R),
    ("punsubscribe", -1, N),
    ("quit", -1, N),
    ("script", -2, N),
    ("select", 2, R),
    ("subscribe", -2, N),
    ("unsubscribe", -1, N),
];
