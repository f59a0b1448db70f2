//! The server in memory is compared with a real one: random commands on keys of all types, reply by reply.
#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "tests read how long they are to take")]

mod redis;

use std::fmt::Debug;

use redis::Redis;
use samovar_model::commands::Reply;
use samovar_model::server::Server;

const EPOCH: i64 = 1_700_000_000_000_000;
const CLIENT: u64 = 1;

/// Random choices, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % end
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}

/// Both servers.
struct Pair {
    model: Server,
    redis: Redis,
    told: Vec<String>,
}

impl Pair {
    fn new(name: &str) -> Self {
        Self { model: Server::new(1, EPOCH), redis: Redis::start(name), told: Vec::new() }
    }

    fn set_clock(&mut self, us: i64) {
        self.model.set_clock(us);
        self.redis.set_clock(us);
        // Makes it drop what has expired, as the model does; else it would be back once the clock is set back.
        self.redis.ask(&["SCAN", "0", "COUNT", "1000"]);
    }

    fn both<T: AsRef<[u8]> + Debug>(&mut self, words: &[T]) -> (Reply, Reply) {
        let model = self.model.execute(CLIENT, words).expect("a reply");
        if words[0].as_ref() == b"DBSIZE" {
            // Keys that were set with an expiry in the past.
            self.redis.ask(&["SCAN", "0", "COUNT", "1000"]);
        }
        let redis = self.redis.ask(words);
        self.told.push(format!("{words:?} = {redis:?}"));
        (model, redis)
    }

    fn same<T: AsRef<[u8]> + Debug>(&mut self, words: &[T]) -> Reply {
        let (model, redis) = self.both(words);
        if ordered(words, &model) != ordered(words, &redis) {
            let before = self.told[self.told.len().saturating_sub(40)..].join("\n");
            panic!("{before}\nmodel: {model:?}\nRedis: {redis:?}");
        }
        redis
    }
}

/// Sorts what has no order: fields of hashes and members of sets. The fields of `XINFO` that count nodes are left out.
fn ordered<T: AsRef<[u8]>>(words: &[T], reply: &Reply) -> String {
    let name = words[0].as_ref().to_ascii_uppercase();
    let parts = reply.parts();
    let sorted = |parts: &[Reply], size: usize| {
        let mut all: Vec<String> = parts.chunks(size).map(|some| format!("{some:?}")).collect();
        all.sort();
        all.join("\n")
    };
    match (name.as_slice(), parts) {
        (b"SRANDMEMBER" | b"SPOP", parts) => {
            format!("{} {}", parts.len(), matches!(reply, Reply::Error(_) | Reply::Nil))
        }
        (_, []) => format!("{reply:?}"),
        (b"HGETALL", _) => sorted(parts, 2),
        (b"HKEYS" | b"HVALS" | b"SMEMBERS" | b"KEYS", _) => sorted(parts, 1),
        (b"HSCAN" | b"ZSCAN", [cursor, found]) => format!("{cursor:?} {}", sorted(found.parts(), 2)),
        (b"SSCAN", [cursor, found]) => format!("{cursor:?} {}", sorted(found.parts(), 1)),
        (b"XINFO", _) => {
            let told = parts.chunks(2).filter(|pair| !pair[0].text().starts_with("radix"));
            told.map(|pair| format!("{pair:?}")).collect()
        }
        _ => format!("{reply:?}"),
    }
}

/// Words of commands. `K` stands for a key, of any type; `V` for a value, `F` for a field or member, `I` for an integer,
/// `N` for a number, `R` for a rank, `B` for a bound of scores, `T` for a time in ms, `A` for a time since the epoch,
/// `S` for an id of a stream, `G` for a group, `C` for a reader.
const COMMANDS: &[&str] = &[
    "DEL K",
    "DEL K K K",
    "UNLINK K",
    "EXISTS K",
    "EXISTS K K",
    "TYPE K",
    "EXPIRE K 2",
    "EXPIRE K I",
    "PEXPIRE K T",
    "PEXPIRE K T LT",
    "PEXPIRE K T GT",
    "PEXPIRE K T NX",
    "PEXPIRE K T XX",
    "PEXPIRE K T NX GT",
    "PEXPIRE K T LT GT",
    "PEXPIRE K T foo",
    "PEXPIREAT K A",
    "PEXPIREAT K A LT",
    "EXPIREAT K 1700000001",
    "EXPIREAT K I",
    "PEXPIRETIME K",
    "EXPIRETIME K",
    "PTTL K",
    "TTL K",
    "PERSIST K",
    "RENAME K K",
    "RENAMENX K K",
    "KEYS *",
    "KEYS k[1-3]",
    "KEYS ?2",
    "DBSIZE",
    "TIME",
    "TOUCH K K",
    "OBJECT ENCODING",
    "OBJECT FOO K",
    "OBJECT FREQ K",
    "PUBLISH c V",
    "GET K",
    "SET K V",
    "SET K V NX",
    "SET K V XX",
    "SET K V PX T",
    "SET K V PXAT A",
    "SET K V EX 3 NX",
    "SET K V GET",
    "SET K V NX GET",
    "SET K V KEEPTTL",
    "SET K V PX 0",
    "SET K V PX x",
    "SET K V NX XX",
    "SET K V EX 1 PX 1",
    "SET K V KEEPTTL PX 3",
    "SET K V PX",
    "SETNX K V",
    "SETEX K 2 V",
    "SETEX K 0 V",
    "PSETEX K T V",
    "GETSET K V",
    "GETDEL K",
    "MGET K K K",
    "MSET K V K V",
    "MSET K V K",
    "INCR K",
    "DECR K",
    "INCRBY K I",
    "INCRBY K x",
    "DECRBY K I",
    "INCRBY K 9223372036854775807",
    "APPEND K V",
    "STRLEN K",
    "GETRANGE K R R",
    "GETRANGE K 0 -1",
    "GETRANGE K x 1",
    "HSET K F V",
    "HSET K F V F V",
    "HSET K F V F",
    "HMSET K F V",
    "HSETNX K F V",
    "HGET K F",
    "HMGET K F F F",
    "HGETALL K",
    "HKEYS K",
    "HVALS K",
    "HLEN K",
    "HEXISTS K F",
    "HSTRLEN K F",
    "HDEL K F",
    "HDEL K F F",
    "HINCRBY K F I",
    "HINCRBY K F x",
    "LPUSH K V",
    "LPUSH K V V",
    "RPUSH K V",
    "RPUSH K V V V",
    "LPOP K",
    "LPOP K R",
    "RPOP K",
    "RPOP K 2",
    "LLEN K",
    "LRANGE K R R",
    "LRANGE K 0 -1",
    "LTRIM K R R",
    "LTRIM K 1 -1",
    "LINDEX K R",
    "LINDEX K x",
    "LSET K R V",
    "LREM K R V",
    "SADD K F",
    "SADD K F F",
    "SREM K F F",
    "SCARD K",
    "SISMEMBER K F",
    "SMISMEMBER K F F",
    "SMEMBERS K",
    "SRANDMEMBER K",
    "SRANDMEMBER K R",
    "SRANDMEMBER K x",
    "ZADD K N F",
    "ZADD K N F N F",
    "ZADD K NX N F",
    "ZADD K XX N F",
    "ZADD K GT N F",
    "ZADD K LT N F",
    "ZADD K GT CH N F N F",
    "ZADD K XX CH N F",
    "ZADD K INCR N F",
    "ZADD K XX INCR N F",
    "ZADD K NX XX N F",
    "ZADD K GT LT N F",
    "ZADD K N",
    "ZADD K INCR N F N F",
    "ZADD K x F",
    "ZADD K nan F",
    "ZADD K inf F",
    "ZINCRBY K N F",
    "ZREM K F F",
    "ZCARD K",
    "ZCOUNT K B B",
    "ZSCORE K F",
    "ZMSCORE K F F",
    "ZRANK K F",
    "ZREVRANK K F",
    "ZRANGE K R R",
    "ZRANGE K R R WITHSCORES",
    "ZRANGE K R R REV",
    "ZRANGE K B B BYSCORE",
    "ZRANGE K B B BYSCORE REV WITHSCORES",
    "ZRANGE K B B BYSCORE LIMIT R R",
    "ZRANGE K R R LIMIT 0 1",
    "ZRANGE K x 1",
    "ZREVRANGE K R R WITHSCORES",
    "ZRANGEBYSCORE K B B",
    "ZRANGEBYSCORE K B B WITHSCORES LIMIT R R",
    "ZRANGEBYSCORE K B B LIMIT 0",
    "ZREVRANGEBYSCORE K B B WITHSCORES",
    "ZREMRANGEBYSCORE K B B",
    "ZREMRANGEBYRANK K R R",
    "ZPOPMIN K",
    "ZPOPMAX K",
    "ZPOPMIN K R",
    "ZPOPMAX K R",
    "XLEN K",
    "XADD K * F V",
    "XADD K * F V F V",
    "XADD K S F V",
    "XADD K MAXLEN 3 * F V",
    "XADD K NOMKSTREAM * F V",
    "XADD K * F",
    "XADD K 0-0 F V",
    "XADD K x F V",
    "XADD K 5-* F V",
    "XTRIM K MAXLEN R",
    "XTRIM K MINID S",
    "XTRIM K FOO 1",
    "XDEL K S S",
    "XDEL K x",
    "XRANGE K - +",
    "XRANGE K S S",
    "XRANGE K (S + COUNT 2",
    "XREVRANGE K + -",
    "XREVRANGE K S S COUNT 1",
    "XGROUP CREATE K G 0",
    "XGROUP CREATE K G $ MKSTREAM",
    "XGROUP CREATE K G S",
    "XGROUP CREATE K G",
    "XGROUP CREATE K G x",
    "XGROUP DELCONSUMER K G C",
    "XGROUP CREATECONSUMER K G C",
    "XGROUP DESTROY K G",
    "XGROUP SETID K G S",
    "XGROUP FOO",
    "XREADGROUP GROUP G C STREAMS K >",
    "XREADGROUP GROUP G C COUNT 1 STREAMS K >",
    "XREADGROUP GROUP G C COUNT 2 STREAMS K >",
    "XREADGROUP GROUP G C STREAMS K 0",
    "XREADGROUP GROUP G C STREAMS K S",
    "XREADGROUP GROUP G C NOACK STREAMS K >",
    "XREADGROUP GROUP G C STREAMS K K >",
    "XREADGROUP GROUP G C STREAMS K $",
    "XACK K G S",
    "XACK K G S S",
    "XPENDING K G",
    "XPENDING K G - + 10",
    "XPENDING K G - + 1 C",
    "XPENDING K G IDLE 5 S + 10",
    "XPENDING K G - +",
    "XAUTOCLAIM K G C 0 0",
    "XAUTOCLAIM K G C T S COUNT 1",
    "XAUTOCLAIM K G C 5 0 COUNT 2 JUSTID",
    "XAUTOCLAIM K G C 0 0 COUNT 0",
    "XAUTOCLAIM K G C 0 (S",
    "XINFO STREAM K",
    "XINFO CONSUMERS K G",
    "XINFO FOO K",
    "XINFO STREAM",
    "XINFO CONSUMERS K",
    "GET",
    "GET K K",
    "NOSUCH K V",
    "SCAN x",
    "SCAN 0 COUNT 0",
    "HSCAN K 0",
    "ZSCAN K 0 MATCH a*",
    "SSCAN K 0",
    "HSCAN K 0 TYPE x",
    "ECHO V",
    "PING",
    "PING V",
    "SCRIPT EXISTS V",
    "EVALSHA V 0",
    "EVALSHA V -1",
    "EVALSHA V 2 K",
    "EVALSHA V x",
    "FLUSHALL foo",
    "CLIENT NO-TOUCH ON",
    "WAIT 0 0",
    "PUBSUB NUMSUB c",
    "PUBSUB CHANNELS",
    "CONFIG GET maxmemory",
    "CONFIG GET notify-keyspace-events",
    "SELECT 0",
    "CLIENT GETNAME",
    "DISCARD",
    "EXEC",
    "ACL WHOAMI",
    "MEMORY FOO",
];

fn filled(dice: &mut Dice, template: &str) -> Vec<String> {
    let word = |dice: &mut Dice, word: &str| match word {
        "K" => format!("k{}", dice.below(7)),
        "V" => dice.of(&["", "a", "1", "-7", "12345", "007", "9999", "some longer text", "3.5", "ö"]).to_owned(),
        "F" => dice.of(&["a", "b", "c", "ab", "", "7"]).to_owned(),
        "I" => dice.of(&["0", "1", "-1", "3", "-9", "100"]).to_owned(),
        "N" => dice
            .of(&["0", "1", "-1", "1.5", "-2.25", "1e20", "1700000000000.5", "0.1", "-0", "+inf", "-inf"])
            .to_owned(),
        "R" => dice.of(&["0", "1", "2", "3", "-1", "-2", "-3", "10", "-10"]).to_owned(),
        "B" => dice.of(&["-inf", "+inf", "0", "(0", "1", "(1", "1.5", "-1", "(1700000000000.5", "x", "inf"]).to_owned(),
        "T" => dice.of(&["1", "5", "20", "1000", "-1", "0"]).to_owned(),
        "A" => dice.of(&["1700000000005", "1700000000100", "1700000010000", "1", "-5"]).to_owned(),
        "S" | "(S" => {
            let id =
                dice.of(&["0", "5-1", "1700000000000", "1700000000000-1", "1700000000010-0", "1700000000020-3", "9-9"]);
            word.replace('S', id)
        }
        "G" => dice.of(&["g", "h"]).to_owned(),
        "C" => dice.of(&["one", "two"]).to_owned(),
        word => word.to_owned(),
    };
    template.split(' ').map(|part| word(dice, part)).collect()
}

#[test]
fn random_commands_get_the_replies_of_a_real_server() {
    let mut pair = Pair::new("commands");
    let began = std::time::Instant::now();
    let rounds = std::env::var("SAMOVAR_MODEL_WALKS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    for seed in 1..=6 * rounds {
        pair.same(&["FLUSHALL"]);
        pair.told.clear();
        let mut dice = Dice(seed * 0x9e37_79b9);
        let mut now = EPOCH;
        pair.set_clock(now);
        // A few commands of one type each time, so that keys grow.
        let prefix = dice.of(&["", "", "S", "H", "L", "Z", "X", "XREADGROUP", "XA", "X"]);
        for _ in 0..300 {
            if dice.below(6) == 0 {
                now += [0, 1_000, 4_000, 30_000, -2_000][dice.below(5)];
                pair.set_clock(now);
            }
            let template = loop {
                let template = COMMANDS[dice.below(COMMANDS.len())];
                if template.starts_with(prefix) || dice.below(4) == 0 {
                    break template;
                }
            };
            let words = filled(&mut dice, template);
            pair.same(&words);
        }
    }
    println!("{} commands gave the same replies within {:.1?}", 6 * rounds * 300, began.elapsed());
}
