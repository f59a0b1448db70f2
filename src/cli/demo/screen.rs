//! The progress output: bars on a terminal, plain lines otherwise, nothing with `--json`.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::cli::session::wrapped;

/// The interval between status lines without a terminal.
const PLAIN: Duration = Duration::from_secs(5);

/// The screen.
pub(super) struct Screen {
    begun: Instant,
    mode: Mode,
}

enum Mode {
    Live { all: MultiProgress, phase: ProgressBar, lines: Vec<ProgressBar> },
    Plain { told: Option<Instant> },
    Silent,
}

impl Screen {
    /// Creates a screen with this many lines below the bar; silent if only the result is wanted.
    pub(super) fn new(lines: usize, silent: bool) -> Self {
        let mode = if silent {
            Mode::Silent
        } else if std::io::stdout().is_terminal() {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
            let phase = all.add(ProgressBar::new(1).with_style(style("\n{prefix:.bold} [{bar:40.green}] {msg}")));
            let lines = (0..lines).map(|_| all.add(ProgressBar::new(1).with_style(style("{wide_msg}")))).collect();
            Mode::Live { all, phase, lines }
        } else {
            Mode::Plain { told: None }
        };
        Self { begun: Instant::now(), mode }
    }

    /// Starts a phase.
    pub(super) fn phase(&mut self, name: &str) {
        match &mut self.mode {
            Mode::Live { phase, .. } => phase.set_prefix(format!("{name:<8}")),
            Mode::Plain { told } => *told = None,
            Mode::Silent => {}
        }
    }

    /// Prints a permanent line.
    pub(super) fn say(&self, text: &str) {
        let seconds = self.begun.elapsed().as_secs_f64();
        match &self.mode {
            Mode::Live { all, .. } => _ = all.println(wrapped(&format!("{seconds:>5.1} s  {text}"), "         ")),
            Mode::Plain { .. } => println!("{seconds:>5.1} s  {text}"),
            Mode::Silent => {}
        }
    }

    /// Shows the progress of the phase, a word on it, and the lines below.
    pub(super) fn show(&mut self, done: u64, whole: u64, word: &str, status: &[String]) {
        match &mut self.mode {
            Mode::Live { phase, lines, .. } => {
                phase.set_length(whole.max(1));
                phase.set_position(done);
                phase.set_message(word.to_owned());
                for (line, text) in lines.iter().zip(status) {
                    line.set_message(text.clone());
                }
            }
            Mode::Plain { told } => {
                if told.is_none_or(|told| told.elapsed() >= PLAIN) {
                    *told = Some(Instant::now());
                    println!("         {word}");
                    for text in status.iter().filter(|text| !text.is_empty()) {
                        println!("         {text}");
                    }
                }
            }
            Mode::Silent => {}
        }
    }

    /// Removes the bars; permanent lines stay.
    pub(super) fn end(&mut self) {
        if let Mode::Live { all, phase, lines } = &self.mode {
            phase.finish_and_clear();
            for line in lines {
                line.finish_and_clear();
            }
            let _ = all.clear();
        }
        if !matches!(self.mode, Mode::Silent) {
            println!();
        }
        self.mode = Mode::Silent;
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("━━─")
}
