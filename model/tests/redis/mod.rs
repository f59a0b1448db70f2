//! A real server whose clock the test sets, and the server in memory that is compared with it.

mod commands;
mod connections;
pub(crate) mod pair;
mod scripts;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use samovar_model::commands::Reply;

/// Returns how much to compare: more for `make prove`.
pub(crate) fn walks() -> u64 {
    std::env::var("SAMOVAR_MODEL_WALKS").ok().and_then(|text| text.parse().ok()).unwrap_or(15)
}

/// A server whose clock the test sets.
#[derive(Debug)]
pub(crate) struct Redis {
    child: Child,
    folder: PathBuf,
    port: u16,
    link: Link,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Redis {
    /// Starts an empty server, whose folder has this name.
    pub(crate) fn start(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("samovar-{name}-{}", std::process::id()));
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
                    return Self { child, folder, port, link: Link(BufReader::new(link)) };
                }
                std::thread::yield_now();
            }
        }
        panic!("redis-server does not start");
    }

    /// Sets the clock (µs).
    pub(crate) fn set_clock(&self, us: i64) {
        let file = std::fs::File::options().write(true).open(self.folder.join("clock")).unwrap();
        file.write_all_at(&us.to_ne_bytes(), 0).unwrap();
    }

    /// Opens another connection.
    pub(crate) fn connect(&self) -> Link {
        let link = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        link.set_nodelay(true).unwrap();
        Link(BufReader::new(link))
    }

    /// Asks, and returns the reply.
    pub(crate) fn ask<T: AsRef<[u8]>>(&mut self, words: &[T]) -> Reply {
        self.link.send(words);
        self.link.reply()
    }

    /// Waits until so many clients block.
    pub(crate) fn wait_for_blocked(&mut self, count: usize) {
        let expected = format!("blocked_clients:{count}");
        for _ in 0..20_000 {
            if self.ask(&["INFO", "clients"]).text().lines().any(|line| line == expected) {
                return;
            }
            std::thread::yield_now();
        }
        panic!("other than {count} clients block");
    }
}

/// A connection to a real server.
#[derive(Debug)]
pub(crate) struct Link(BufReader<TcpStream>);

impl Link {
    /// Asks.
    pub(crate) fn send<T: AsRef<[u8]>>(&mut self, words: &[T]) {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            let word = word.as_ref();
            request.extend(format!("${}\r\n", word.len()).bytes());
            request.extend(word);
            request.extend(b"\r\n");
        }
        self.0.get_mut().write_all(&request).unwrap();
    }

    /// Returns the next reply.
    pub(crate) fn reply(&mut self) -> Reply {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let line = line.trim_end_matches(['\r', '\n']);
        let (kind, rest) = line.split_at(1);
        match kind {
            "+" => Reply::Status(rest.to_owned().into()),
            "-" => Reply::Error(rest.into()),
            ":" => Reply::Int(rest.parse().unwrap()),
            "$" if rest == "-1" => Reply::Nil,
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(bytes.into())
            }
            _ if rest == "-1" => Reply::Nil,
            _ => Reply::Array((0..rest.parse::<usize>().unwrap()).map(|_| self.reply()).collect()),
        }
    }
}
