//! TOML string literals: which byte of the file a byte of the value comes from.

/// Where in a string literal, quotes and escapes included, the byte `offset` of its value stands.
pub(super) fn raw_offset(raw: &str, offset: usize) -> usize {
    let (quote, basic) = match raw {
        _ if raw.starts_with("\"\"\"") => ("\"\"\"", true),
        _ if raw.starts_with("'''") => ("'''", false),
        _ if raw.starts_with('"') => ("\"", true),
        _ => ("'", false),
    };
    let mut at = quote.len();
    if quote.len() == 3 {
        let rest = raw.get(at..).unwrap_or_default();
        at += if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) };
    }
    let mut decoded = 0;
    while decoded < offset {
        let Some(rest) = raw.get(at..).filter(|rest| !rest.is_empty()) else { return raw.len() };
        let (length, value) = match rest.strip_prefix('\\').filter(|_| basic) {
            Some(escape) => escaped(escape),
            None => {
                let size = rest.chars().next().map_or(1, char::len_utf8);
                (size, size)
            }
        };
        at += length;
        decoded += value;
    }
    at.min(raw.len())
}

/// Returns how long an escape is in the file, backslash included, and how long its value.
fn escaped(after: &str) -> (usize, usize) {
    let hex = |digits: usize| {
        let code = after.get(1..=digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        (2 + digits, code.and_then(char::from_u32).map_or(1, char::len_utf8))
    };
    match after.bytes().next() {
        Some(b'u') => hex(4),
        Some(b'U') => hex(8),
        Some(b'x') => hex(2),
        Some(b'\n' | b'\r' | b' ' | b'\t') => (1 + after.len() - after.trim_start().len(), 0),
        _ => (2, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use toml::de::DeValue;

    /// Returns what follows where the value's last character begins, found by way of the mapping.
    fn last(raw: &str) -> &str {
        let value = DeValue::parse(raw).unwrap();
        let value = value.get_ref().as_str().unwrap();
        &raw[raw_offset(raw, value.char_indices().next_back().unwrap().0)..]
    }

    #[test]
    fn escapes_and_delimiters_are_counted() {
        assert_eq!(last(r#""abcX""#), "X\"");
        assert_eq!(last(r"'a\tX'"), "X'");
        assert_eq!(last(r#""\t\"\\\u00e9\U0001F600\x41X""#), "X\"");
        assert_eq!(last("\"\"\"\nabX\"\"\""), "X\"\"\"");
        assert_eq!(last("\"\"\"a \\\n   bX\"\"\""), "X\"\"\"");
        assert_eq!(last("'''\r\nçX'''"), "X'''");
    }

    proptest! {
        #[test]
        fn any_text_is_mapped_inside_itself(raw in ".{0,20}", offset in 0_usize..40) {
            prop_assert!(raw_offset(&raw, offset) <= raw.len());
        }
    }
}
