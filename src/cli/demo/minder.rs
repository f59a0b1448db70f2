//! The minder: a process that stops the demo's children if the demo itself is killed.
//!
//! It reads commands from standard input. If the input ends without the demo's goodbye, the demo was killed: the minder
//! then kills the children and removes their folder. A child is forgotten before it is waited for, so that no other
//! process can have its id.

use std::io::{BufRead as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::exit;

/// Arguments of the minder, which only the demo starts.
#[derive(Args)]
pub(in super::super) struct MinderArgs {
    /// The folder to remove at the end
    folder: PathBuf,
}

/// Runs the minder.
pub(in super::super) fn run(args: &MinderArgs) -> u8 {
    let mut minded: Vec<i32> = Vec::new();
    for order in std::io::stdin().lock().lines().map_while(Result::ok) {
        match order.split_once(' ') {
            Some(("mind", pid)) => minded.extend(pid.parse::<i32>().ok()),
            Some(("forget", pid)) => minded.retain(|known| known.to_string() != pid),
            _ => {}
        }
    }
    for pid in minded {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = std::fs::remove_dir_all(&args.folder);
    exit::OK
}

/// The demo's handle of the minder.
#[derive(Clone)]
pub(super) struct Minder(Arc<Process>);

struct Process {
    child: Mutex<Child>,
    orders: Mutex<Option<ChildStdin>>,
}

impl Minder {
    /// Starts a minder; `folder` is removed when the demo ends.
    pub(super) fn start(folder: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["demo-minder".as_ref(), folder.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start the demo's minder")?;
        let orders = Mutex::new(child.stdin.take());
        Ok(Self(Arc::new(Process { child: Mutex::new(child), orders })))
    }

    /// Starts a process that ends with the demo, in its own group, so that Ctrl-C reaches only the demo.
    pub(super) fn spawn(&self, command: &mut Command) -> std::io::Result<Ward> {
        let child = command.stdin(Stdio::null()).process_group(0).spawn()?;
        self.order("mind", child.id());
        Ok(Ward { child: Some(child), minder: self.clone() })
    }

    fn order(&self, what: &str, pid: u32) {
        if let Some(orders) = &mut *self.0.orders.lock().unwrap_or_else(PoisonError::into_inner) {
            // Without a minder the demo stops its children itself, unless it is killed.
            let _ = writeln!(orders, "{what} {pid}");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.orders.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        let _ = self.child.get_mut().unwrap_or_else(PoisonError::into_inner).wait();
    }
}

/// A child process. Dropping it kills it.
pub(super) struct Ward {
    child: Option<Child>,
    minder: Minder,
}

impl Ward {
    /// Returns its process id.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Returns `true` while it runs.
    pub(super) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Kills it with SIGKILL.
    pub(super) fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.minder.order("forget", child.id());
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        self.kill9();
    }
}
