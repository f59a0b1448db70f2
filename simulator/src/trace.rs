//! The trace of a run: each step in a line, and a hash of all lines.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

/// Lines that are kept.
const KEPT: usize = 20_000;
/// The longest line that is shown, in characters.
const SHOWN: usize = 240;
/// Lines of the end that a failure shows.
const TAIL: usize = 40;
/// Lines about a subject that a failure shows.
const ABOUT: usize = 60;

/// The steps of a run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    lines: VecDeque<String>,
    hasher: DefaultHasher,
    count: u64,
    /// Lines are printed as they come.
    prints: bool,
}

impl Trace {
    /// Returns an empty trace, which prints its lines as they come or not.
    pub(crate) fn new(prints: bool) -> Self {
        Self { prints, ..Self::default() }
    }

    /// Adds a step.
    pub(crate) fn add(&mut self, at: Duration, text: &str) {
        let line = format!("{:>9.3} {text}", at.as_secs_f64());
        self.hasher.write(line.as_bytes());
        self.hasher.write_u8(0xFF);
        self.count += 1;
        if self.prints {
            println!("{}", shown(&line));
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Returns the hash of all lines.
    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// Returns the last steps, and before these the last ones that mention `subject`.
    pub(crate) fn tail(&self, subject: &str) -> String {
        let last = self.lines.len().saturating_sub(TAIL);
        let mut about: Vec<&String> = Vec::new();
        if !subject.is_empty() {
            about = self.lines.range(..last).rev().filter(|line| line.contains(subject)).take(ABOUT).collect();
            about.reverse();
        }
        let mut text = String::new();
        for line in about {
            text += &shown(line);
            text.push('\n');
        }
        text += "      --- the last steps\n";
        for line in self.lines.range(last..) {
            text += &shown(line);
            text.push('\n');
        }
        text
    }
}

fn shown(line: &str) -> String {
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
