//! Escaping of untrusted text for terminals and logs: no key and no upstream's answer can send a terminal command,
//! start a line, or change the reading direction.
//!
//! All untrusted text that is printed passes through here: [`escaped`] for people, [`json`] for programs.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Serialize;

/// Returns `true` for a character that must be escaped: C0, DEL, C1, bidirectional marks and controls, line and
/// paragraph separators, and the byte order mark.
pub(crate) fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Returns the text in one line, with unsafe characters as `\n` or `\u{1b}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    escaped_but(text, |_| false)
}

/// Returns a text of several lines that this program composed, with unsafe characters escaped and its line ends kept.
pub fn escaped_lines(text: &str) -> Cow<'_, str> {
    escaped_but(text, |c| c == '\n')
}

fn escaped_but(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let unfit = |c: char| is_unfit(c) && !stays(c);
    if !text.contains(unfit) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            _ if !unfit(c) => shown.push(c),
            '\n' | '\r' | '\t' => shown.extend(c.escape_default()),
            _ => shown.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(shown)
}

/// Returns JSON text of the same meaning. Unsafe characters can only be in strings, apart from the white space between
/// tokens.
pub fn json(text: &str) -> Cow<'_, str> {
    let unfit = |c: char| is_unfit(c) && !matches!(c, '\n' | '\r' | '\t');
    if !text.contains(unfit) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if unfit(c) {
            // All unsafe characters are in the basic multilingual plane.
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Returns a document as JSON in one line; `null` if it cannot be serialized.
pub fn json_line(document: &impl Serialize) -> String {
    serde_json::to_string(document).map_or_else(|_| "null".to_owned(), |text| json(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_commands_a_terminal_is_shown_by_its_number() {
        for (text, shown) in [
            ("art:Mona Lisa", "art:Mona Lisa"),
            ("ş é 漢字 👩\u{200d}🚀", "ş é 漢字 👩\u{200d}🚀"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[2J\u{7}\0", "\\u{1b}[2J\\u{7}\\u{0}"),
            ("\u{7f}\u{9b}2J\u{85}", "\\u{7f}\\u{9b}2J\\u{85}"),
            ("\u{202e}gpj\u{2066}\u{2028}\u{200f}", "\\u{202e}gpj\\u{2066}\\u{2028}\\u{200f}"),
        ] {
            assert_eq!(escaped(text), shown);
        }
        assert_eq!(escaped_lines("a\n\u{1b}b\r"), "a\n\\u{1b}b\\r");
    }

    proptest! {
        #[test]
        fn nothing_unfit_is_left(text in any::<String>(), odd in "[\\x00-\\x1f\\x7f-\\u{9f}\\u{200e}-\\u{202e}\\u{2066}-\\u{2069}]{0,9}") {
            let text = text + &odd;
            prop_assert!(!escaped(&text).contains(is_unfit));
            prop_assert!(!escaped_lines(&text).contains(|c| is_unfit(c) && c != '\n'));
        }

        #[test]
        fn json_means_the_same(text in any::<String>(), odd in "[\\x00-\\x1f\\x7f-\\u{9f}\\u{200e}-\\u{202e}\\u{2066}-\\u{2069}]{0,9}") {
            let value = serde_json::json!({ text.clone() + &odd: [text, odd] });
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let shown = json(&pretty);
            prop_assert!(!shown.contains(|c| is_unfit(c) && c != '\n'));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
