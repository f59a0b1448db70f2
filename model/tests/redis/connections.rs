//! Commands of connections and of the server itself: transactions, subscriptions, blocking, scans, `INFO`.

use std::collections::{BTreeMap, BTreeSet};

use samovar_model::commands::Reply;
use samovar_model::server::Server;

use super::pair::{Dice, EPOCH, Pair};

#[test]
fn transactions_are_those_of_a_real_server() {
    let mut pair = Pair::new("transactions");
    for line in [
        "MULTI",
        "MULTI",
        "SET a 1",
        "INCR a",
        "HGET a f",
        "EVALSHA x 0",
        "EXEC",
        "EXEC",
        "MULTI",
        "GET",
        "SET a 2",
        "EXEC",
        "GET a",
        "MULTI",
        "SET a 3",
        "DISCARD",
        "GET a",
        "MULTI",
        "EXEC",
        "MULTI",
        "NOSUCH",
        "DISCARD",
        "MULTI",
        "XLEN a",
        "XREADGROUP GROUP g c BLOCK 0 STREAMS a >",
        "TIME",
        "PING",
        "EXEC",
        "XGROUP CREATE s g 0 MKSTREAM",
        "MULTI",
        "XREADGROUP GROUP g c BLOCK 0 STREAMS s >",
        "EXEC",
        "HELLO 4",
        "CLIENT NO-TOUCH ON",
        "CLIENT SETINFO lib-name x",
        "PUBSUB CHANNELS a*",
        "PUBSUB NUMSUB a b",
        "CONFIG SET notify-keyspace-events Em",
        "CONFIG GET notify-keyspace-events",
        "CONFIG SET notify-keyspace-events AKE",
        "CONFIG GET notify-keyspace-events",
        "CONFIG SET notify-keyspace-events x",
        "CONFIG GET notify*",
        "CONFIG SET notify-keyspace-events g$lshzxetdKn",
        "CONFIG GET notify-keyspace-events",
        "CONFIG SET maxmemory-policy allkeys-lfu",
        "OBJECT IDLETIME a",
        "SET b word",
        "OBJECT FREQ b",
        "OBJECT IDLETIME none",
        "CONFIG SET maxmemory-policy noeviction",
        "OBJECT REFCOUNT a",
        "SET b 10000",
        "OBJECT REFCOUNT b",
        "OBJECT ENCODING b",
        "OBJECT ENCODING none",
        "SET b word",
        "OBJECT ENCODING b",
        "HSET h f v",
        "OBJECT ENCODING h",
        "ZADD z 1 a",
        "OBJECT ENCODING z",
        "SADD i 1 2",
        "OBJECT ENCODING i",
        "SADD i x",
        "OBJECT ENCODING i",
        "RPUSH l a",
        "OBJECT ENCODING l",
        "OBJECT ENCODING s",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
    }
}

fn hello(reply: &Reply) -> BTreeMap<String, String> {
    let pairs = reply.parts().chunks(2).map(|pair| (pair[0].text(), format!("{:?}", pair[1])));
    pairs.filter(|(name, _)| name != "id").collect()
}

#[test]
fn messages_are_those_of_a_real_server() {
    let mut pair = Pair::new("messages");
    let mut listener = pair.redis.connect();
    let (model, redis) = (pair.model.execute(1, &["HELLO"]).unwrap(), pair.redis.ask(&["HELLO"]));
    assert_eq!(hello(&model), hello(&redis));
    let told = |pair: &mut Pair, listener: &mut super::Link, words: &str, pushes: usize| {
        let words: Vec<&str> = words.split(' ').collect();
        assert_eq!(pair.model.execute(2, &words), None, "{words:?}");
        listener.send(&words);
        let redis: Vec<Reply> = (0..pushes).map(|_| listener.reply()).collect();
        assert_eq!(pair.model.take_pushes(2), redis, "{words:?}");
    };
    told(&mut pair, &mut listener, "SUBSCRIBE a b a", 3);
    told(&mut pair, &mut listener, "PSUBSCRIBE a* __key*", 2);
    pair.same(&["CONFIG", "SET", "notify-keyspace-events", "KEm"]);
    let heard = |pair: &mut Pair, listener: &mut super::Link, words: &[&str], pushes: usize| {
        pair.same(words);
        let redis: Vec<Reply> = (0..pushes).map(|_| listener.reply()).collect();
        assert_eq!(pair.model.take_pushes(2), redis, "{words:?}");
    };
    heard(&mut pair, &mut listener, &["PUBLISH", "a", "hello"], 2);
    heard(&mut pair, &mut listener, &["PUBLISH", "b", "\u{f6}"], 1);
    heard(&mut pair, &mut listener, &["PUBLISH", "c", "nobody"], 0);
    heard(&mut pair, &mut listener, &["PUBSUB", "NUMSUB", "a", "c"], 0);
    heard(&mut pair, &mut listener, &["PUBSUB", "CHANNELS", "a"], 0);
    heard(&mut pair, &mut listener, &["PUBSUB", "NUMPAT"], 0);
    heard(&mut pair, &mut listener, &["EVAL", "return redis.call('PUBLISH', 'a', 'x')", "0"], 2);
    for (words, pushes) in [
        (&["GET", "none"][..], 2),
        (&["MGET", "none", "other"], 4),
        (&["HGET", "none", "f"], 2),
        (&["EXISTS", "none"], 2),
        (&["PTTL", "none"], 2),
        (&["TYPE", "none"], 2),
        (&["PEXPIRETIME", "none"], 2),
        (&["OBJECT", "ENCODING", "none"], 0),
        (&["OBJECT", "IDLETIME", "none"], 0),
        (&["GETRANGE", "none", "0", "-1"], 2),
        (&["STRLEN", "none"], 2),
        (&["ZSCORE", "none", "a"], 2),
        (&["SMEMBERS", "none"], 2),
        (&["LRANGE", "none", "0", "-1"], 2),
        (&["DEL", "none"], 0),
        (&["PEXPIRE", "none", "5"], 0),
        (&["HSCAN", "none", "0"], 2),
        (&["XLEN", "none"], 2),
        (&["SET", "none", "x", "XX"], 0),
        (&["LPOP", "none"], 0),
        (&["ZADD", "none", "XX", "1", "a"], 0),
        (&["HDEL", "none", "a"], 0),
        (&["INCR", "none"], 0),
    ] {
        heard(&mut pair, &mut listener, words, pushes);
    }
    told(&mut pair, &mut listener, "UNSUBSCRIBE b", 1);
    told(&mut pair, &mut listener, "UNSUBSCRIBE", 1);
    told(&mut pair, &mut listener, "PUNSUBSCRIBE a*", 1);
    for words in [["GET", "a"], ["PING", "x"]] {
        listener.send(&words);
        assert_eq!(pair.model.execute(2, &words), Some(listener.reply()), "{words:?}");
    }
}

/// The first client that blocks.
const FIRST: u64 = 10;

#[test]
fn blocked_readers_get_what_a_real_server_gives() {
    let mut pair = Pair::new("blocked");
    let mut readers = [pair.redis.connect(), pair.redis.connect()];
    pair.same(&["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"]);
    let block = ["XREADGROUP", "GROUP", "g", "c", "COUNT", "1", "BLOCK", "100000", "STREAMS", "s", ">"];
    let ends: &[&[&str]] = &[
        &["XADD", "s", "*", "a", "b"],
        &["DEL", "s"],
        &["XGROUP", "DESTROY", "s", "g"],
        &["EVAL", "redis.call('XADD', 's', '*', 'a', 'b') redis.call('XADD', 's', '*', 'c', 'd')", "0"],
        &["FLUSHALL"],
        &["SET", "s", "x"],
        &["RENAME", "s", "t"],
    ];
    for end in ends {
        for (n, reader) in readers.iter_mut().enumerate() {
            assert_eq!(pair.model.execute(FIRST + n as u64, &block), None);
            reader.send(&block);
            pair.redis.wait_for_blocked(n + 1);
        }
        pair.same(end);
        let mut woken = pair.model.woken();
        pair.redis.wait_for_blocked(2 - woken.len());
        // Those that still wait get the next entry.
        pair.same(&["XINFO", "CONSUMERS", "s", "g"]);
        pair.same(&["DEL", "s"]);
        woken.extend(pair.model.woken());
        pair.redis.wait_for_blocked(2 - woken.len());
        pair.same(&["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"]);
        while woken.len() < 2 {
            pair.same(&["XADD", "s", "*", "last", "one"]);
            woken.extend(pair.model.woken());
        }
        for (n, (client, reply)) in woken.iter().enumerate() {
            assert_eq!(*client, FIRST + n as u64);
            assert_eq!(readers[n].reply(), *reply, "{end:?}");
        }
        pair.same(&["DEL", "s", "t"]);
        pair.same(&["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"]);
    }
}

/// A scan finds what is there throughout, whatever comes and goes meanwhile.
#[test]
fn scans_find_what_is_there_throughout() {
    let mut server = Server::new(7, EPOCH);
    let mut ask = |words: &[&str]| server.execute(1, words).unwrap();
    for kind in ["SCAN", "HSCAN h", "SSCAN s", "ZSCAN z"] {
        let mut dice = Dice(5);
        let add = |ask: &mut dyn FnMut(&[&str]) -> Reply, name: &str| match kind {
            "SCAN" => ask(&["SET", name, "1"]),
            "HSCAN h" => ask(&["HSET", "h", name, "1"]),
            "SSCAN s" => ask(&["SADD", "s", name]),
            _ => ask(&["ZADD", "z", "1", name]),
        };
        let remove = |ask: &mut dyn FnMut(&[&str]) -> Reply, name: &str| match kind {
            "SCAN" => ask(&["DEL", name]),
            "HSCAN h" => ask(&["HDEL", "h", name]),
            "SSCAN s" => ask(&["SREM", "s", name]),
            _ => ask(&["ZREM", "z", name]),
        };
        ask(&["FLUSHALL"]);
        let stays: BTreeSet<String> = (0..500).map(|n| format!("stays:{n}")).collect();
        stays.iter().for_each(|name| drop(add(&mut ask, name)));
        let (mut cursor, mut found, mut steps) = ("0".to_owned(), BTreeSet::new(), 0);
        loop {
            for _ in 0..5 {
                let name = format!("comes:{}", dice.below(50));
                if dice.below(2) == 0 {
                    add(&mut ask, &name)
                } else {
                    remove(&mut ask, &name)
                };
            }
            let mut words: Vec<&str> = kind.split(' ').collect();
            words.extend([cursor.as_str(), "MATCH", "stays:*", "COUNT", "20"]);
            let reply = ask(&words);
            found.extend(reply.part(1).parts().iter().map(Reply::text).filter(|name| name.starts_with("stays")));
            (cursor, steps) = (reply.part(0).text(), steps + 1);
            if cursor == "0" {
                break;
            }
        }
        assert_eq!(found, stays, "{kind}");
        assert!(steps > 20, "{kind}: {steps}");
    }
}

/// The fields that `src/redis/info.rs` reads, and those of `INFO` without sections.
#[test]
fn fields_of_info_are_those_of_a_real_server() {
    let mut pair = Pair::new("info");
    for words in
        [&["SET", "a", "1"][..], &["SET", "b", "1", "PX", "9999"], &["GET", "a"], &["GET", "none"], &["HGET", "c", "d"]]
    {
        pair.same(words);
    }
    pair.same(&["EVAL", "return redis.call('GET', 'a')", "0"]);
    let fields = |reply: Reply| -> BTreeMap<String, String> {
        let text = reply.text();
        text.lines().filter_map(|line| line.split_once(':')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
    };
    for sections in
        [&[][..], &["server"], &["memory", "stats"], &["commandstats"], &["everything"], &["keyspace"], &["nosuch"]]
    {
        let words = [&["INFO"], sections].concat();
        let model = fields(pair.model.execute(1, &words).unwrap());
        let redis = fields(pair.redis.ask(&words));
        assert!(model.keys().all(|name| name == "cmdstat_info" || redis.contains_key(name)), "{model:?}, {redis:?}");
        for name in [
            "redis_version",
            "redis_mode",
            "loading",
            "maxmemory",
            "maxmemory_policy",
            "evicted_keys",
            "keyspace_hits",
            "keyspace_misses",
            "rdb_current_bgsave_time_sec",
            "aof_current_rewrite_time_sec",
            "rdb_last_bgsave_time_sec",
            "rdb_last_save_time",
            "connected_clients",
            "role",
            "expired_keys",
        ] {
            assert_eq!(model.get(name), redis.get(name), "{sections:?}: {name}");
        }
        let keys = |fields: &BTreeMap<String, String>| {
            fields.get("db0").and_then(|told| told.rsplit_once(",avg")).map(|(told, _)| told.to_owned())
        };
        assert_eq!(keys(&model), keys(&redis), "{sections:?}");
        for name in ["run_id", "process_id", "used_memory", "used_memory_human", "uptime_in_seconds"] {
            assert_eq!(model.contains_key(name), redis.contains_key(name), "{sections:?}: {name}");
        }
        for name in ["cmdstat_get", "cmdstat_hget", "cmdstat_set", "cmdstat_eval"] {
            let calls = |fields: &BTreeMap<String, String>| fields.get(name)?.split(',').next().map(str::to_owned);
            assert_eq!(calls(&model), calls(&redis), "{sections:?}: {name}");
        }
    }
}

#[test]
fn a_full_server_refuses_what_a_real_one_refuses() {
    let mut pair = Pair::new("full");
    for words in [&["SET", "a", "1"][..], &["RPUSH", "l", "x"], &["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"]] {
        pair.same(words);
    }
    pair.same(&["CONFIG", "SET", "maxmemory", "1"]);
    pair.model.set_full(true);
    let write = "return redis.call('SET', 'a', '2')";
    let late = "redis.call('DEL', 'b') return redis.call('SET', 'a', '2')";
    let flagged = "#!lua flags=allow-oom\nreturn redis.call('SET', 'a', '3')";
    let reads = "#!lua flags=no-writes\nreturn redis.call('GET', 'a')";
    for words in [
        &["SET", "a", "2"][..],
        &["GET", "a"],
        &["HSET", "h", "a", "b"],
        &["ZADD", "z", "1", "a"],
        &["XADD", "s", "*", "a", "b"],
        &["LPUSH", "l", "a"],
        &["LPOP", "l"],
        &["DEL", "l"],
        &["EXPIRE", "a", "100"],
        &["PUBLISH", "c", "x"],
        &["XACK", "s", "g", "1-1"],
        &["XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"],
        &["XGROUP", "CREATE", "s", "h", "0"],
        &["SCRIPT", "LOAD", write],
        &["EVAL", write, "0"],
        &["EVAL", late, "0"],
        &["EVAL", flagged, "0"],
        &["EVAL", reads, "0"],
        &["EVAL", "#!lua\nreturn 1", "0"],
        &["EVAL", "return redis.pcall('SET', 'a', 1)", "0"],
        &["MULTI"],
        &["SET", "a", "4"],
        &["EXEC"],
        &["GET", "a"],
        &["RENAME", "a", "b"],
        &["HDEL", "h", "a"],
        &["INCR", "n"],
    ] {
        pair.same(words);
    }
}

#[test]
fn a_restart_loses_scripts_and_keeps_or_loses_data() {
    let mut server = Server::new(1, EPOCH);
    let text = |server: &mut Server, words: &[&str]| server.execute(1, words).unwrap().text();
    let digest = text(&mut server, &["SCRIPT", "LOAD", "return 1"]);
    let id = |server: &mut Server| {
        let info = server.execute(1, &["INFO", "server"]).unwrap().text();
        info.lines().find_map(|line| line.strip_prefix("run_id:").map(str::to_owned)).unwrap()
    };
    server.execute(1, &["SET", "a", "1"]);
    server.execute(2, &["SUBSCRIBE", "c"]);
    let before = id(&mut server);
    assert_eq!(before.len(), 40);
    server.restart(true);
    assert_ne!(id(&mut server), before);
    assert_eq!(text(&mut server, &["GET", "a"]), "1");
    assert_eq!(
        server.execute(1, &["EVALSHA", &digest, "0"]).unwrap(),
        Reply::Error("NOSCRIPT No matching script. Please use EVAL.".into())
    );
    assert_eq!(server.execute(1, &["PUBLISH", "c", "x"]), Some(Reply::Int(0)));
    server.restart(false);
    assert_eq!(server.execute(1, &["GET", "a"]), Some(Reply::Nil));
    server.set_full(true);
    let refused = server.execute(1, &["SET", "a", "1"]).unwrap();
    assert!(matches!(refused, Reply::Error(text) if text.starts_with("OOM")));
}
