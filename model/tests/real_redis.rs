//! The model of Redis is compared with a real server: the same scripts and commands at the same times, reply by reply.
#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "tests read how long they are to take")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use samovar_model::commands::Reply;
use samovar_model::engine::{Asked, Engine};
use samovar_model::explorer::walk_once;
use samovar_model::scenarios::ALL;
use samovar_model::schedules;

/// A server whose clock the test sets.
#[derive(Debug)]
struct Server {
    child: Child,
    folder: PathBuf,
    link: BufReader<TcpStream>,
    scripts: BTreeMap<usize, String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Server {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("samovar-model-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (shim, clock) = (folder.join("clock.so"), folder.join("clock"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clock.c");
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(source).output();
        let compiled = compiled.expect("no C compiler `cc` on the PATH: apt-get install gcc");
        assert!(compiled.status.success(), "cc: {}", String::from_utf8_lossy(&compiled.stderr));
        std::fs::write(&clock, 1_700_000_000_000_000_i64.to_ne_bytes()).unwrap();
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut child = ["redis-server", "valkey-server"]
                .iter()
                .find_map(|name| {
                    Command::new(name)
                        .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"])
                        .arg(&folder)
                        .envs([("LD_PRELOAD", &shim), ("CLOCK_AT", &clock)])
                        .stdout(Stdio::null())
                        .spawn()
                        .ok()
                })
                .expect("neither redis-server nor valkey-server is on the PATH: run `make setup`");
            while child.try_wait().unwrap().is_none() {
                if let Ok(link) = TcpStream::connect(("127.0.0.1", port)) {
                    link.set_nodelay(true).unwrap();
                    return Self { child, folder, link: BufReader::new(link), scripts: BTreeMap::new() };
                }
                std::thread::yield_now();
            }
        }
        panic!("redis-server does not start");
    }

    fn set_clock(&self, us: i64) {
        let file = std::fs::File::options().write(true).open(self.folder.join("clock")).unwrap();
        file.write_all_at(&us.to_ne_bytes(), 0).unwrap();
    }

    fn ask(&mut self, words: &[String]) -> Reply {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).bytes());
            request.extend(word.bytes());
            request.extend(b"\r\n");
        }
        self.link.get_mut().write_all(&request).unwrap();
        self.reply()
    }

    fn reply(&mut self) -> Reply {
        let mut line = String::new();
        self.link.read_line(&mut line).unwrap();
        let line = line.trim_end();
        let (kind, rest) = line.split_at(1);
        match kind {
            "+" => Reply::Status(rest.into()),
            "-" => Reply::Error(rest.into()),
            ":" => Reply::Int(rest.parse().unwrap()),
            "$" if rest == "-1" => Reply::Nil,
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.link.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(String::from_utf8(bytes).unwrap())
            }
            _ if rest == "-1" => Reply::Nil,
            _ => Reply::Array((0..rest.parse::<usize>().unwrap()).map(|_| self.reply()).collect()),
        }
    }

    /// Asks the same, and returns the replies of the model and of the server where they differ.
    fn repeat(&mut self, asked: &Asked) -> Option<(Reply, Reply)> {
        let (expected, found) = match asked {
            Asked::Clock(us) => {
                self.set_clock(*us);
                // Makes it drop what has expired, as the model does; else it would be back once the clock is set back.
                self.ask(&["SCAN", "0", "COUNT", "1000"].map(str::to_owned));
                return None;
            }
            Asked::Command(words, reply) => (reply, self.ask(words)),
            Asked::Script(call, reply) => {
                let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
                let id = call.script as usize;
                if !self.scripts.contains_key(&id) {
                    let text = call.script.for_redis();
                    let loaded = self.ask(&words(&["SCRIPT", "LOAD", &text]));
                    assert!(matches!(loaded, Reply::Bulk(_)), "{}: {loaded:?}", call.script.path());
                    self.scripts.insert(id, loaded.text());
                }
                let mut request = words(&["EVALSHA", &self.scripts[&id], &call.keys.len().to_string()]);
                request.extend(call.keys.iter().chain(&call.args).cloned());
                (reply, self.ask(&request))
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
        self.ask(&["FLUSHALL".to_owned()]);
        for (n, step) in asked.iter().enumerate() {
            if let Some((model, redis)) = self.repeat(step) {
                panic!("{what}, step {n}: {step:?}\nmodel: {model:?}\nRedis: {redis:?}");
            }
        }
    }
}

#[test]
fn a_real_redis_gives_the_replies_of_the_model() {
    let mut server = Server::start();
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
