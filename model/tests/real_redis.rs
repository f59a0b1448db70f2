//! The model of Redis is compared with a real server: the same scripts and commands at the same times, reply by reply.
#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "tests read how long they are to take")]

mod redis;

use std::collections::BTreeMap;

use redis::Redis;

use samovar_model::commands::Reply;
use samovar_model::engine::{Asked, Engine};
use samovar_model::explorer::walk_once;
use samovar_model::scenarios::ALL;
use samovar_model::schedules;

/// A real server, and the scripts that it was given.
struct Repeater {
    redis: Redis,
    scripts: BTreeMap<usize, String>,
}

impl Repeater {
    /// Asks the same, and returns the replies of the model and of the server where they differ.
    fn repeat(&mut self, asked: &Asked) -> Option<(Reply, Reply)> {
        let (expected, found) = match asked {
            Asked::Clock(us) => {
                self.redis.set_clock(*us);
                // Makes it drop what has expired, as the model does; else it would be back once the clock is set back.
                self.redis.ask(&["SCAN", "0", "COUNT", "1000"].map(str::to_owned));
                return None;
            }
            Asked::Command(words, reply) => (reply, self.redis.ask(words)),
            Asked::Script(call, reply) => {
                let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
                let id = call.script as usize;
                if !self.scripts.contains_key(&id) {
                    let text = call.script.for_redis();
                    let loaded = self.redis.ask(&words(&["SCRIPT", "LOAD", &text]));
                    assert!(matches!(loaded, Reply::Bulk(_)), "{}: {loaded:?}", call.script.path());
                    self.scripts.insert(id, loaded.text());
                }
                let mut request = words(&["EVALSHA", &self.scripts[&id], &call.keys.len().to_string()]);
                request.extend(call.keys.iter().chain(&call.args).cloned());
                (reply, self.redis.ask(&request))
            }
        };
        // Redis adds where a script failed.
        let same = match (expected, &found) {
            (Reply::Error(a), Reply::Error(b)) => a.split(' ').next() == b.split(' ').next(),
            (a, b) => a == b,
        };
        (!same).then(|| (expected.clone(), found))
    }

    /// Repeats all that was asked on an empty server.
    fn compare(&mut self, what: &str, asked: &[Asked]) {
        self.redis.ask(&["FLUSHALL".to_owned()]);
        for (n, step) in asked.iter().enumerate() {
            if let Some((model, redis)) = self.repeat(step) {
                panic!("{what}, step {n}: {step:?}\nmodel: {model:?}\nRedis: {redis:?}");
            }
        }
    }
}

#[test]
fn a_real_redis_gives_the_replies_of_the_model() {
    let mut server = Repeater { redis: Redis::start("model"), scripts: BTreeMap::new() };
    let engine = Engine::new(None);
    engine.record();
    let walks = std::env::var("SAMOVAR_MODEL_WALKS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
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
        let _ = schedules::walk(&engine, seed, 200);
        let asked = engine.recorded();
        compared += asked.len();
        server.compare(&format!("schedules and locks, seed {seed}"), &asked);
    }
    println!("{compared} scripts and commands gave the same replies");
    assert!(compared > 10_000, "{compared}");
}
