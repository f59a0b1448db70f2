//! The workers: `samovar worker` processes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::minder::{Minder, Ward};
use super::scale;

/// Claims are short in scaled time: workers accept one second, and two leave room on a busy machine.
const CLAIM: &str = "2s";
/// The lines of log that are shown if a worker ends unexpectedly.
const SHOWN: usize = 20;

/// Worker processes on one Redis, one museum and one folder of jobs.
pub(super) struct Fleet {
    workers: Vec<Worker>,
    jobs: PathBuf,
    logs: PathBuf,
    redis: String,
    museum: String,
    minder: Minder,
}

struct Worker {
    number: usize,
    process: Ward,
    log: PathBuf,
}

impl Fleet {
    /// Creates an empty fleet.
    pub(super) fn new(jobs: &Path, logs: &Path, redis: String, museum: String, minder: &Minder) -> Self {
        let (jobs, logs, minder) = (jobs.to_owned(), logs.to_owned(), minder.clone());
        Self { workers: Vec::new(), jobs, logs, redis, museum, minder }
    }

    /// Starts one more worker.
    pub(super) fn start(&mut self, number: usize) -> anyhow::Result<()> {
        let log = self.logs.join(format!("worker-{number}.log"));
        let out = File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(std::env::current_exe()?);
        // The user's own settings and `.env` do not apply.
        command
            .args(["worker", "--claim", CLAIM, "--listen", "127.0.0.1:0"])
            .env_clear()
            .envs(scale::environment(&self.museum))
            .env("REDIS_URL", &self.redis)
            .env("SAMOVAR_JOBS", &self.jobs)
            .current_dir(&self.logs)
            .stdout(Stdio::null())
            .stderr(out);
        let process = self.minder.spawn(&mut command).context("cannot start a worker")?;
        self.workers.push(Worker { number, process, log });
        Ok(())
    }

    /// Kills a worker with SIGKILL.
    pub(super) fn kill9(&mut self, number: usize) {
        self.workers.retain_mut(|worker| {
            if worker.number == number {
                worker.process.kill9();
            }
            worker.number != number
        });
    }

    /// Checks that all workers run.
    ///
    /// # Errors
    /// A worker ended; the error contains the end of its log.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        for worker in &mut self.workers {
            if !worker.process.is_running() {
                let log = std::fs::read_to_string(&worker.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let shown = lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default().join("\n");
                bail!("worker {} ended unexpectedly; the end of its log:\n{shown}", worker.number);
            }
        }
        Ok(())
    }

    /// Returns the URL of the console of a worker, as its log tells it.
    pub(super) fn console(&self) -> Option<String> {
        self.workers.iter().find_map(|worker| {
            let log = std::fs::read_to_string(&worker.log).ok()?;
            let line = log.lines().find(|line| line.contains("answers health"))?;
            line.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_owned)
        })
    }

    /// Returns the process ids.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.workers.iter().filter_map(|worker| worker.process.pid()).collect()
    }

    /// Returns the memory of all workers, in bytes; `None` if the system does not tell.
    pub(super) fn memory(&self) -> Option<u64> {
        self.pids().into_iter().map(resident).sum()
    }
}

fn resident(pid: u32) -> Option<u64> {
    if let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) {
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        return line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024);
    }
    let told = Command::new("ps").args(["-o", "rss=", "-p", &pid.to_string()]).output().ok()?;
    String::from_utf8(told.stdout).ok()?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
