//! A wall clock that a test sets, for a server that it starts.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// A clock for a server, which is off by a set time. It is preloaded into the server, which needs a C compiler and a
/// dynamic loader that heeds `LD_PRELOAD`.
#[derive(Debug)]
pub struct OffsetClock {
    folder: TempDir,
}

impl OffsetClock {
    /// A clock that is right as yet.
    pub fn new() -> Self {
        let clock = Self { folder: tempfile::tempdir().unwrap() };
        clock.set(0);
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/clock.c");
        let compiled =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(clock.shim()).arg(source).output();
        match compiled {
            Ok(done) => assert!(done.status.success(), "cc: {}", String::from_utf8_lossy(&done.stderr)),
            Err(e) if e.kind() == ErrorKind::NotFound => panic!("no C compiler `cc` on the PATH: apt-get install gcc"),
            Err(e) => panic!("cc cannot be started: {e}"),
        }
        clock
    }

    /// Sets it off by so many milliseconds from now on.
    pub fn set(&self, ms: i64) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).create(true).truncate(false).open(self.offset()).unwrap();
        file.write_all_at(&(ms * 1_000).to_ne_bytes(), 0).unwrap();
    }

    /// The environment of a server that goes by it.
    pub fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", self.shim()), ("CLOCK_OFFSET", self.offset())]
    }

    fn shim(&self) -> PathBuf {
        self.folder.path().join("clock.so")
    }

    fn offset(&self) -> PathBuf {
        self.folder.path().join("offset")
    }
}
