//! Faults of job files: where, what, and what to do.

use std::fmt;
use std::ops::Range;

use crate::entry::escape::{escaped, escaped_lines, is_unfit};

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
    /// The fault, with the value.
    pub message: String,
    /// The remedy.
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
        let (place, message) = (self.place(), escaped_lines(&self.message));
        writeln!(f, "{strong}{}{end}{wrong}{message}{end}", escaped(&place))?;
        if self.line > 0 {
            let (shown, skip, marks) = self.window();
            let number = self.line.to_string();
            let gutter = " ".repeat(number.len());
            writeln!(f, "{quiet}{gutter} |{end}")?;
            writeln!(f, "{quiet}{number} |{end} {shown}")?;
            writeln!(f, "{quiet}{gutter} |{end} {}{wrong}{}{end}", " ".repeat(skip), "^".repeat(marks))?;
        }
        if let Some(help) = &self.help {
            writeln!(f, "{quiet}  help:{end} {}", escaped_lines(help))?;
        }
        Ok(())
    }

    /// Returns what of the line is shown, how many columns stand before the fault, and how many it has.
    fn window(&self) -> (String, usize, usize) {
        let chars: Vec<char> = self.excerpt.chars().map(|c| if is_unfit(c) { ' ' } else { c }).collect();
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
    /// Returns the number of faults and the place of the first, without any text of a file.
    pub(crate) fn summary(&self) -> String {
        let first = self.0.first().map(Fault::place).unwrap_or_default();
        let first = first.trim_end_matches(": ");
        match self.0.len() {
            1 => format!("1 fault, at {first}"),
            faults => format!("{faults} faults, the first at {first}"),
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Faults {
        let text = "ttl = \"1h\"\n\tahead = \"çok\" # é\n";
        let at = text.find("\"çok").unwrap();
        let help = Some("write a time".to_owned());
        Faults(vec![
            Fault::at("jobs/a.toml", text, at..at + 6, "`ahead` is no time", help),
            Fault::whole("jobs/b c.toml", "no name", None),
        ])
    }

    #[test]
    fn a_fault_is_shown_with_its_line_and_a_caret() {
        assert_eq!(
            two().to_string(),
            "jobs/a.toml:2:10: `ahead` is no time\n  |\n2 |  ahead = \"çok\" # é\n  |          ^^^^^\n  help: write a time\n\n\
             jobs/b c.toml: no name\n\n2 faults in 2 files; no job was loaded"
        );
        assert_eq!(two().0[0].to_string(), "jobs/a.toml:2:10: `ahead` is no time");
        assert_eq!(two().render(false), two().to_string());
    }

    #[test]
    fn colours_change_nothing_but_the_colours() {
        let mut plain = two().render(true);
        assert!(plain.contains("\x1b[31m"));
        for code in ["\x1b[1m", "\x1b[31m", "\x1b[36m", "\x1b[0m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, two().to_string());
    }

    #[test]
    fn a_long_line_is_cut_around_the_fault() {
        let text = format!("a = \"{}WRONG{}\"", "x".repeat(300), "y".repeat(300));
        let faults = Faults(vec![Fault::at("a.toml", &text, 305..310, "wrong", None)]).to_string();
        let lines: Vec<&str> = faults.lines().collect();
        assert_eq!(lines[2], format!("1 | …{}WRONG{}…", "x".repeat(50), "y".repeat(45)));
        assert_eq!(lines[3], format!("  | {}^^^^^", " ".repeat(51)));
    }

    #[test]
    fn spans_beyond_the_text_or_within_a_character_are_tolerated() {
        let text = "é\nü";
        for start in 0..8 {
            for end in 0..8 {
                let fault = Fault::at("a.toml", text, start..end, "wrong", None);
                assert!(fault.line <= 2 && !Faults(vec![fault]).to_string().is_empty());
            }
        }
    }
}
