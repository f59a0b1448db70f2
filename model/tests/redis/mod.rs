//! A real server whose clock the test sets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use samovar_model::commands::Reply;

/// A server whose clock the test sets.
#[derive(Debug)]
pub(crate) struct Redis {
    child: Child,
    folder: PathBuf,
    link: BufReader<TcpStream>,
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
                    return Self { child, folder, link: BufReader::new(link) };
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

    /// Asks, and returns the reply.
    pub(crate) fn ask<T: AsRef<[u8]>>(&mut self, words: &[T]) -> Reply {
        self.send(words);
        self.reply()
    }

    /// Asks.
    pub(crate) fn send<T: AsRef<[u8]>>(&mut self, words: &[T]) {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            let word = word.as_ref();
            request.extend(format!("${}\r\n", word.len()).bytes());
            request.extend(word);
            request.extend(b"\r\n");
        }
        self.link.get_mut().write_all(&request).unwrap();
    }

    /// Returns the next reply.
    pub(crate) fn reply(&mut self) -> Reply {
        let mut line = String::new();
        self.link.read_line(&mut line).unwrap();
        let line = line.trim_end_matches(['\r', '\n']);
        let (kind, rest) = line.split_at(1);
        match kind {
            "+" => Reply::Status(rest.to_owned().into()),
            "-" => Reply::Error(rest.into()),
            ":" => Reply::Int(rest.parse().unwrap()),
            "$" if rest == "-1" => Reply::Nil,
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.link.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(bytes.into())
            }
            _ if rest == "-1" => Reply::Nil,
            _ => Reply::Array((0..rest.parse::<usize>().unwrap()).map(|_| self.reply()).collect()),
        }
    }
}
