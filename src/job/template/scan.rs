//! The places of words in a template. Minijinja reports the names that a template uses, but not where they are.
//!
//! The scanner is lenient: minijinja refuses what it cannot read.

use std::ops::Range;

/// A word in a template's code.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Word<'t> {
    pub(super) role: Role,
    pub(super) text: &'t str,
    /// Bytes in the template.
    pub(super) at: Range<usize>,
}

/// The role of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Name,
    Attribute,
    Filter,
    Test,
    Statement,
    /// A character with which no token begins.
    Stray,
}

/// The characters, beside letters, digits, quotes and spaces, with which tokens begin.
const SIGNS: &str = "_+-*/%.,:~|=<>!()[]{}";

/// Returns all words in order.
pub(super) fn words(source: &str) -> Vec<Word<'_>> {
    blocks(source).into_iter().flatten().collect()
}

/// Returns the words of each pair of braces, in order.
pub(super) fn blocks(source: &str) -> Vec<Vec<Word<'_>>> {
    let mut blocks = Vec::new();
    let mut at = 0;
    while let Some(open) = source.get(at..).and_then(|rest| rest.find('{')).map(|found| at + found) {
        let mut words = Vec::new();
        at = match source.as_bytes().get(open + 1) {
            Some(b'#') => skip_past(source, open + 2, "#}"),
            Some(b'{') => code(source, open + 2, "}}", &mut words),
            Some(b'%') => {
                let end = code(source, open + 2, "%}", &mut words);
                let raw = words.first().is_some_and(|word| word.role == Role::Statement && word.text == "raw");
                if raw { skip_past(source, end, "endraw") } else { end }
            }
            _ => open + 1,
        };
        blocks.push(words);
    }
    blocks
}

fn skip_past(source: &str, from: usize, mark: &str) -> usize {
    source.get(from..).and_then(|rest| rest.find(mark)).map_or(source.len(), |found| from + found + mark.len())
}

/// Collects the words up to the closing mark; returns the place after it.
fn code<'t>(source: &'t str, from: usize, close: &str, words: &mut Vec<Word<'t>>) -> usize {
    let bytes = source.as_bytes();
    let mut at = from;
    let mut depth = 0_usize;
    let mut previous = "";
    let mut before_previous = "";
    let mut first = close == "%}";
    while let Some(&byte) = bytes.get(at) {
        let rest = source.get(at..).unwrap_or_default();
        if depth == 0 && rest.starts_with(close) {
            return at + close.len();
        }
        let length = match byte {
            b'"' | b'\'' => string_length(rest, byte),
            b if b.is_ascii_alphabetic() || b == b'_' => {
                rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count()
            }
            b if b.is_ascii_digit() => rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count(),
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
        let token = rest.get(..length).unwrap_or_default();
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b if b.is_ascii_alphabetic() || b == b'_' => {
                let role = match previous {
                    _ if first => Role::Statement,
                    "|" => Role::Filter,
                    "filter" if close == "%}" => Role::Filter,
                    "is" => Role::Test,
                    "not" if before_previous == "is" => Role::Test,
                    "." => Role::Attribute,
                    _ => Role::Name,
                };
                first = false;
                if !(role == Role::Test && token == "not") {
                    words.push(Word { role, text: token, at: at..at + length });
                }
            }
            b if !(b.is_ascii_digit() || b.is_ascii_whitespace() || b"\"'".contains(&b) || SIGNS.contains(token)) => {
                words.push(Word { role: Role::Stray, text: token, at: at..at + length });
            }
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            before_previous = previous;
            previous = token;
        }
        at += length.max(1);
    }
    source.len()
}

fn string_length(rest: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b if b == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(source: &str) -> Vec<(Role, &str)> {
        words(source).into_iter().map(|word| (word.role, word.text)).collect()
    }

    #[test]
    fn each_word_has_its_role() {
        assert_eq!(
            found("a {{ value.title|upper }} {% if x is not defined and y %}{% filter trim %}{% endfilter %}"),
            [
                (Role::Name, "value"),
                (Role::Attribute, "title"),
                (Role::Filter, "upper"),
                (Role::Statement, "if"),
                (Role::Name, "x"),
                (Role::Name, "is"),
                (Role::Test, "defined"),
                (Role::Name, "and"),
                (Role::Name, "y"),
                (Role::Statement, "filter"),
                (Role::Filter, "trim"),
                (Role::Statement, "endfilter"),
            ]
        );
    }

    #[test]
    fn strings_comments_and_raw_text_hold_no_words() {
        assert_eq!(
            found(r#"{# a #}{{ "b }} \" c" }}{% raw %}{{ d }}{% endraw %}{{ {"e": {"f": 1}} }}{{ g }}"#),
            [(Role::Statement, "raw"), (Role::Statement, "raw"), (Role::Name, "g"),]
                .into_iter()
                .skip(1)
                .collect::<Vec<_>>()
        );
    }
}
