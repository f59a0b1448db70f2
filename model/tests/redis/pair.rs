//! The server in memory beside a real one.

use std::fmt::Debug;

use samovar_model::commands::Reply;
use samovar_model::server::Server;

use super::Redis;

/// When both clocks begin (µs).
pub(crate) const EPOCH: i64 = 1_700_000_000_000_000;
const CLIENT: u64 = 1;

/// Random choices, the same for the same seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % end
    }

    /// Returns one of these.
    pub(crate) fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}

/// Both servers.
pub(crate) struct Pair {
    pub(crate) model: Server,
    pub(crate) redis: Redis,
    pub(crate) told: Vec<String>,
}

impl Pair {
    /// Starts both.
    pub(crate) fn new(name: &str) -> Self {
        Self { model: Server::new(1, EPOCH), redis: Redis::start(name), told: Vec::new() }
    }

    /// Sets both clocks (µs).
    pub(crate) fn set_clock(&mut self, us: i64) {
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
        let words: Vec<String> = words.iter().map(|word| format!("{word:?}").chars().take(100).collect()).collect();
        self.told.push(format!("{} = {redis:?}", words.join(" ")));
        (model, redis)
    }

    /// Asks both, and returns the reply if it is the same.
    pub(crate) fn same<T: AsRef<[u8]> + Debug>(&mut self, words: &[T]) -> Reply {
        self.same_in(words, |reply| ordered(words, reply))
    }

    /// Asks both, and returns the reply if it has the same members at each depth.
    pub(crate) fn same_members<T: AsRef<[u8]> + Debug>(&mut self, words: &[T]) -> Reply {
        self.same_in(words, |reply| {
            let mut leaves = Vec::new();
            leaves_of(reply, &mut leaves);
            leaves.sort();
            leaves.join("\n")
        })
    }

    fn same_in<T: AsRef<[u8]> + Debug>(&mut self, words: &[T], form: impl Fn(&Reply) -> String) -> Reply {
        let (model, redis) = self.both(words);
        if form(&model) != form(&redis) {
            let before = self.told[self.told.len().saturating_sub(40)..].join("\n");
            panic!("{before}\nmodel: {model:?}\nRedis: {redis:?}");
        }
        redis
    }
}

fn leaves_of(reply: &Reply, leaves: &mut Vec<String>) {
    match reply {
        Reply::Array(parts) => parts.iter().for_each(|part| leaves_of(part, leaves)),
        other => leaves.push(format!("{other:?}")),
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
