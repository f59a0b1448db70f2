//! What is wrong with job files: where, what, and what to do.

use std::fmt;
use std::ops::Range;

/// Excerpts of longer lines show what is around the fault.
const EXCERPT_WIDTH: usize = 100;

/// One fault of one file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", self.place())]
pub struct Fault {
    /// The file's path as it was given.
    pub file: String,
    /// Counted from 1; 0 where the fault is in no line.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// Bytes in the file.
    pub span: Range<usize>,
    /// What is wrong, with the value.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// The line's text.
    pub excerpt: String,
}

/// All faults of all files, in the order of files and lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Fault {
    /// A fault at a place in a file's text.
    pub fn at(file: &str, text: &str, span: Range<usize>, message: impl Into<String>, help: Option<String>) -> Self {
        let start = floor(text, span.start);
        let end = floor(text, span.end.max(start));
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let excerpt = text.get(line_start..).unwrap_or_default().lines().next().unwrap_or_default();
        Self {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: text.get(line_start..start).unwrap_or_default().chars().count() + 1,
            span: start..end,
            message: message.into(),
            help,
            excerpt: excerpt.to_owned(),
        }
    }

    /// A fault of a whole file or folder.
    pub fn whole(file: &str, message: impl Into<String>, help: Option<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: 0,
            column: 0,
            span: 0..0,
            message: message.into(),
            help,
            excerpt: String::new(),
        }
    }

    fn place(&self) -> String {
        if self.line == 0 {
            format!("{}: ", self.file)
        } else {
            format!("{}:{}:{}: ", self.file, self.line, self.column)
        }
    }

    fn write(&self, f: &mut impl fmt::Write, paint: &Paint) -> fmt::Result {
        let Paint { strong, wrong, quiet, end } = paint;
        writeln!(f, "{strong}{}{end}{wrong}{}{end}", self.place(), self.message)?;
        if self.line > 0 {
            let (shown, skip, marks) = self.window();
            let number = self.line.to_string();
            let gutter = " ".repeat(number.len());
            writeln!(f, "{quiet}{gutter} |{end}")?;
            writeln!(f, "{quiet}{number} |{end} {shown}")?;
            writeln!(f, "{quiet}{gutter} |{end} {}{wrong}{}{end}", " ".repeat(skip), "^".repeat(marks))?;
        }
        if let Some(help) = &self.help {
            writeln!(f, "{quiet}  help:{end} {help}")?;
        }
        Ok(())
    }

    /// What of the line is shown, how many columns stand before the fault, and how many it has.
    fn window(&self) -> (String, usize, usize) {
        let chars: Vec<char> = self.excerpt.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let start = self.column.saturating_sub(1).min(chars.len());
        let wanted = self.span.len();
        let tail: String = self.excerpt.chars().skip(start).collect();
        let width = tail.char_indices().take_while(|(at, _)| *at < wanted).count().max(1);
        let from = if chars.len() <= EXCERPT_WIDTH { 0 } else { start.saturating_sub(EXCERPT_WIDTH / 2) };
        let mut shown: String = chars.iter().skip(from).take(EXCERPT_WIDTH).collect();
        let mut skip = start - from;
        if from > 0 {
            shown.insert(0, '…');
            skip += 1;
        }
        if chars.len() > from + EXCERPT_WIDTH {
            shown.push('…');
        }
        (shown.trim_end().to_owned(), skip, width.min(EXCERPT_WIDTH + 1 - skip.min(EXCERPT_WIDTH)))
    }
}

impl Faults {
    /// All faults as text, each with the line it is in; with colours for a terminal.
    pub fn render(&self, colours: bool) -> String {
        let paint = if colours { Paint::COLOURS } else { Paint::PLAIN };
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut text, &paint);
        text
    }

    fn write(&self, f: &mut impl fmt::Write, paint: &Paint) -> fmt::Result {
        for fault in &self.0 {
            fault.write(f, paint)?;
            writeln!(f)?;
        }
        let mut files: Vec<&str> = self.0.iter().map(|fault| fault.file.as_str()).collect();
        files.sort_unstable();
        files.dedup();
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let (faults, files) = (self.0.len(), files.len());
        write!(f, "{faults} fault{} in {files} file{}; no job was loaded", plural(faults), plural(files))
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &Paint::PLAIN)
    }
}

impl std::error::Error for Faults {}

struct Paint {
    strong: &'static str,
    wrong: &'static str,
    quiet: &'static str,
    end: &'static str,
}

impl Paint {
    const PLAIN: Self = Self { strong: "", wrong: "", quiet: "", end: "" };
    const COLOURS: Self = Self { strong: "\x1b[1m", wrong: "\x1b[31m", quiet: "\x1b[36m", end: "\x1b[0m" };
}

fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
