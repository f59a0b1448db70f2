//! Samovar as the process that users run.

use super::eventually::DEADLINE;
use super::{JobsFolder, TestRedis};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const POLL: Duration = Duration::from_millis(10);

/// Lines of a worker's log that a failing test prints.
const SHOWN_LINES: usize = 200;

/// A command line to be run: `samovar(["jobs", "--json"]).redis(&redis).jobs(&folder).run().await`.
pub fn samovar<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Samovar {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_samovar"));
    command.args(args).env_clear().current_dir(&folder);
    // Many workers on one machine; a test that asks one says where.
    command.env("SAMOVAR_LISTEN", "off");
    #[allow(clippy::disallowed_methods, reason = "a clean environment still needs to find programs")]
    for name in ["PATH", "HOME", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    Samovar { command, folder, through: false, unread: false }
}

/// Returns a number from the environment of the test run.
#[allow(clippy::disallowed_methods, reason = "settings of a test are none of Samovar's")]
pub fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// A command line, in an environment and a working directory that hold nothing else.
#[derive(Debug)]
pub struct Samovar {
    command: Command,
    folder: TempDir,
    /// Another program runs it, which may stay in between.
    through: bool,
    /// Nobody reads what it writes to standard error.
    unread: bool,
}

/// The end of a one-shot command.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Samovar {
    /// On this Redis.
    pub fn redis(mut self, redis: &TestRedis) -> Self {
        if let Some(ca) = redis.ca() {
            self.command.env("SAMOVAR_REDIS_CA", ca);
        }
        self.env("REDIS_URL", &redis.url())
    }

    /// With these jobs.
    pub fn jobs(mut self, jobs: &JobsFolder) -> Self {
        self.command.env("SAMOVAR_JOBS", jobs.path());
        self
    }

    /// On the Redis at this URL.
    pub fn redis_at(self, url: &str) -> Self {
        self.env("REDIS_URL", url)
    }

    /// Run by this program: `through(&["faketime", "+1h"])`.
    pub fn through(mut self, program: &[&str]) -> Self {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(self.command.get_program()).args(self.command.get_args());
        command.env_clear().current_dir(&self.folder);
        command.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        // A signal to one is meant for both.
        command.process_group(0);
        self.command = command;
        self.through = true;
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// With this `.env` in its working directory.
    pub fn dot_env(self, text: &str) -> Self {
        std::fs::write(self.folder.path().join(".env"), text).unwrap();
        self
    }

    /// With a reader of its standard error that has gone.
    pub fn unread(mut self) -> Self {
        self.unread = true;
        self
    }

    /// Runs it to its end.
    pub async fn run(self) -> Finished {
        let mut process = self.spawn();
        let status = process.wait().await;
        let (stdout, stderr) = (process.stdout.finish().await, process.stderr.finish().await);
        Finished { code: status.code(), stdout, stderr }
    }

    /// Starts it.
    pub fn spawn(mut self) -> WorkerProcess {
        let errors = if self.unread { Stdio::from(std::io::pipe().unwrap().1) } else { Stdio::piped() };
        let streams = self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = streams.spawn().expect("the samovar binary starts");
        let stdout = Lines::drain(child.stdout.take().unwrap());
        let stderr = match child.stderr.take() {
            Some(stderr) => Lines::drain(stderr),
            None => Lines::drain(std::io::empty()),
        };
        WorkerProcess { child, stdout, stderr, through: self.through, _folder: self.folder }
    }
}

/// A running Samovar. It is killed when this is dropped; its log is printed if the test failed.
#[derive(Debug)]
pub struct WorkerProcess {
    child: Child,
    stdout: Lines,
    stderr: Lines,
    through: bool,
    _folder: TempDir,
}

impl WorkerProcess {
    /// `samovar worker` on this Redis with these jobs; for more, see [`samovar`].
    pub fn spawn(redis: &TestRedis, jobs: &JobsFolder) -> Self {
        samovar(["worker"]).redis(redis).jobs(jobs).spawn()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once, as a crash would.
    pub fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// Asks it to stop (SIGTERM).
    pub fn term(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Asks it to reload its jobs (SIGHUP).
    pub fn hangup(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// It hangs, with its sockets open.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// It goes on where it was.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Waits until it has ended by itself.
    pub async fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + 3 * DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "samovar (pid {}) does not end", self.pid());
            tokio::time::sleep(POLL).await;
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Returns the lines printed so far.
    pub fn printed(&self) -> Vec<String> {
        self.stdout.so_far()
    }

    /// The log so far.
    pub fn log(&self) -> Vec<String> {
        self.stderr.so_far()
    }

    /// Waits for a log line that holds all these texts, and returns it.
    ///
    /// # Panics
    /// If the process ends without having written it, or does not write it in time.
    pub async fn wait_for_log(&mut self, texts: &[&str]) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let running = self.is_running();
            if !running {
                self.stderr.finish().await;
            }
            if let Some(line) = self.log().into_iter().find(|line| texts.iter().all(|text| line.contains(text))) {
                return line;
            }
            assert!(running, "samovar ended and never logged {texts:?}");
            assert!(Instant::now() < deadline, "samovar never logged {texts:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Returns the URL where it answers, if `SAMOVAR_LISTEN` is `127.0.0.1:0`.
    pub async fn http(&mut self) -> String {
        let line = self.wait_for_log(&["answers health"]).await;
        let port = line.split(' ').find_map(|word| word.strip_prefix("http://")?.rsplit(':').next()).unwrap();
        format!("http://127.0.0.1:{port}")
    }

    /// Time that it has kept a core busy.
    pub fn busy(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Memory that it has in RAM, bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most memory that it ever had in RAM, bytes.
    pub fn most_resident(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().cast_signed();
        // A negative one is a whole group's.
        kill(Pid::from_raw(if self.through { -pid } else { pid }), signal).unwrap();
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        if self.is_running() {
            self.kill9();
        }
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("--- samovar, pid {}, last lines of its log:", self.pid());
            for line in &log[log.len().saturating_sub(SHOWN_LINES)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// The lines of a pipe, read as they come, so that the writer never waits.
#[derive(Debug)]
struct Lines {
    read: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
}

impl Lines {
    fn drain(pipe: impl Read + Send + 'static) -> Self {
        let read = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&read);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                lines.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Self { read, reader }
    }

    fn so_far(&self) -> Vec<String> {
        self.read.lock().unwrap().clone()
    }

    /// All of it, once the writer has ended. A child that it left behind may hold the pipe open for ever; it is not
    /// waited for.
    async fn finish(&mut self) -> String {
        let deadline = Instant::now() + Duration::from_secs(2);
        while !self.reader.is_finished() && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
        self.so_far().iter().map(|line| format!("{line}\n")).collect()
    }
}
