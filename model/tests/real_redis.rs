//! The model of Redis is compared with a real server: the same scripts and commands at the same times, reply by reply.
//! `redis/` compares the server in memory: its commands, all scripts, and what concerns connections.
#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "tests read how long they are to take")]

mod redis;

use std::collections::BTreeMap;

use redis::pair::Pair;

use samovar_model::commands::Reply;
use samovar_model::engine::{Asked, Engine};
use samovar_model::explorer::walk_once;
use samovar_model::guards;
use samovar_model::limits;
use samovar_model::rate_limits;
use samovar_model::reports;
use samovar_model::scenarios::ALL;
use samovar_model::schedules;
use samovar_model::world::Step;

/// Random calls of a seed: the engine, the seed, and how many.
type Walk = fn(&Engine, u64, usize) -> Step;

/// Both servers, and the scripts that they were given.
struct Repeater {
    pair: Pair,
    scripts: BTreeMap<usize, String>,
}

impl Repeater {
    /// Asks both the same, and returns the replies of the explored model and of the servers where they differ.
    fn repeat(&mut self, asked: &Asked) -> Option<(Reply, Reply)> {
        let (expected, found) = match asked {
            Asked::Clock(us) => {
                self.pair.set_clock(*us);
                return None;
            }
            Asked::Command(words, reply) => (reply, self.pair.same(words)),
            Asked::Script(call, reply) => {
                let id = call.script as usize;
                if !self.scripts.contains_key(&id) {
                    let loaded = self.pair.same(&["SCRIPT", "LOAD", &call.script.for_redis()]);
                    assert!(matches!(loaded, Reply::Bulk(_)), "{}: {loaded:?}", call.script.path());
                    self.scripts.insert(id, loaded.text());
                }
                let count = call.keys.len().to_string();
                let begin = ["EVALSHA", &self.scripts[&id], &count];
                let words = begin.into_iter().chain(call.keys.iter().chain(&call.args).map(String::as_str));
                (reply, self.pair.same(&words.collect::<Vec<_>>()))
            }
        };
        // A server adds where a script failed.
        let same = match (expected, &found) {
            (Reply::Error(a), Reply::Error(b)) => a.split(' ').next() == b.split(' ').next(),
            (a, b) => a == b,
        };
        (!same).then(|| (expected.clone(), found))
    }

    /// Repeats all that was asked on an empty server.
    fn compare(&mut self, what: &str, asked: &[Asked]) {
        self.pair.same(&["FLUSHALL"]);
        self.pair.told.clear();
        for (n, step) in asked.iter().enumerate() {
            if let Some((model, redis)) = self.repeat(step) {
                panic!("{what}, step {n}: {step:?}\nmodel: {model:?}\nRedis: {redis:?}");
            }
        }
    }
}

#[test]
fn a_real_redis_gives_the_replies_of_the_model() {
    let mut server = Repeater { pair: Pair::new("model"), scripts: BTreeMap::new() };
    let engine = Engine::new(None);
    engine.record();
    let walks = redis::walks();
    let mut compared = 0;
    for scenario in ALL {
        for seed in 0..walks {
            let _ = walk_once(&engine, scenario, seed, 60);
            let asked = engine.recorded();
            compared += asked.len();
            server.compare(&format!("{}, seed {seed}", scenario.name), &asked);
        }
    }
    for seed in 0..walks {
        let walks = [
            ("schedules and locks", schedules::walk as Walk),
            ("guards", guards::walk),
            ("rate limits", rate_limits::walk),
            ("reports", reports::walk),
        ];
        for (what, walk) in walks {
            let _ = walk(&engine, seed, 200);
            let asked = engine.recorded();
            compared += asked.len();
            server.compare(&format!("{what}, seed {seed}"), &asked);
        }
    }
    for seed in 0..walks {
        let _ = limits::walk(&engine, seed, 200, None);
        let asked = engine.recorded();
        compared += asked.len();
        server.compare(&format!("limits, seed {seed}"), &asked);
    }
    println!("{compared} scripts and commands gave the same replies");
    assert!(compared > 10_000, "{compared}");
}
