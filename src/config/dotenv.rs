//! The grammar of `.env`. Nothing is substituted: a value is what the file says.
//!
//! ```text
//! file     = line*                              lines end with LF or CRLF
//! line     = blank | "#" anything | ["export "] NAME "=" value
//! NAME     = [A-Za-z_][A-Za-z0-9_.]*            blanks around "=" are allowed
//! value    = "'" any text but "'" "'"           as it stands, over several lines too
//!          | '"' text with escapes '"'          \n \r \t \\ \" \' \$; over several lines too
//!          | anything up to the line's end      as it stands: quotes, `$`, `\` and `#` included
//! ```
//!
//! A comment may follow a value after a blank: `NAME=value # comment`. `${NAME}` outside single quotes is a fault,
//! because its author expects a substitution. No fault shows any part of a line, which may be secret.

/// A fault of a line, with the remedy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The line where the variable begins, counted from 1.
    pub(super) line: usize,
    /// The message. It holds nothing of the line.
    pub(super) what: &'static str,
}

const NO_VARIABLE: &str = "not a variable; write NAME=value, and `#` before a comment";
const NO_END: &str =
    "the quote before the value has no end; close it, or quote the whole value in the other kind of quote";
const BEHIND: &str = "there is text after the closing quote; quote the whole value, in the kind of quote that it does \
                      not hold, and write a blank before the `#` of a comment";
const ESCAPE: &str = "`\\` before this sign has no meaning in double quotes; write `\\\\` for a backslash, or quote \
                      the value in single quotes";
const REFERENCE: &str = "`${…}` is not substituted here; write the value itself, or use single quotes to keep `${…}` \
                         as it is";

/// Returns the variables in the order of the file, and all faults.
pub(super) fn parse(text: &str) -> (Vec<(String, String)>, Vec<Fault>) {
    let (mut variables, mut faults) = (Vec::new(), Vec::new());
    let mut rest = text;
    while !rest.is_empty() {
        let line = 1 + text[..text.len() - rest.len()].matches('\n').count();
        let (line_now, later) = split(rest);
        if line_now.trim().is_empty() || line_now.trim_start().starts_with('#') {
            rest = later;
            continue;
        }
        let Some((name, behind)) = name(line_now) else {
            faults.push(Fault { line, what: NO_VARIABLE });
            rest = later;
            continue;
        };
        let (value, later) = value(&rest[line_now.len() - behind.len()..]);
        match value {
            Ok(value) => variables.push((name.to_owned(), value)),
            Err(what) => faults.push(Fault { line, what }),
        }
        rest = later;
    }
    (variables, faults)
}

/// Returns the first line without its end, and the rest.
fn split(text: &str) -> (&str, &str) {
    text.split_once('\n').map_or((text, ""), |(line, later)| (line.strip_suffix('\r').unwrap_or(line), later))
}

/// Returns a variable's name, and the text after its `=`.
fn name(line: &str) -> Option<(&str, &str)> {
    let (name, behind) = line.split_once('=')?;
    let name = name.trim();
    let exported = name.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t']));
    let name = exported.unwrap_or(name).trim_start();
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let is_name = begins && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
    is_name.then_some((name, behind))
}

/// Returns the value that begins here, and the lines after it.
fn value(text: &str) -> (Result<String, &'static str>, &str) {
    let begins = text.trim_start_matches([' ', '\t']);
    match begins.chars().next() {
        Some(quote @ ('"' | '\'')) => quoted(&begins[1..], quote),
        _ => {
            let (line, later) = split(text);
            // A comment's `#` follows a blank; the first sign after `=` does not.
            let comment = line.char_indices().skip(1).find(|&(at, c)| c == '#' && line[..at].ends_with([' ', '\t']));
            let value = comment.map_or(line, |(at, _)| &line[..at]).trim_matches([' ', '\t', '\r']);
            (if has_reference(value) { Err(REFERENCE) } else { Ok(value.to_owned()) }, later)
        }
    }
}

fn quoted(text: &str, quote: char) -> (Result<String, &'static str>, &str) {
    let mut value = String::new();
    let mut fault = None;
    let mut signs = text.char_indices();
    while let Some((at, sign)) = signs.next() {
        match sign {
            _ if sign == quote => {
                let (tail, later) = split(&text[at + 1..]);
                let comment = tail.starts_with([' ', '\t']) && tail.trim_start().starts_with('#');
                if !tail.trim().is_empty() && !comment {
                    fault = fault.or(Some(BEHIND));
                }
                return (fault.map_or(Ok(value), Err), later);
            }
            '\\' if quote == '"' => match signs.next().map(|(_, escaped)| escaped) {
                Some('n') => value.push('\n'),
                Some('r') => value.push('\r'),
                Some('t') => value.push('\t'),
                Some(escaped @ ('\\' | '"' | '\'' | '$')) => value.push(escaped),
                _ => fault = fault.or(Some(ESCAPE)),
            },
            '$' if quote == '"' && is_reference(&text[at..]) => {
                fault = fault.or(Some(REFERENCE));
                value.push('$');
            }
            sign => value.push(sign),
        }
    }
    (Err(NO_END), "")
}

/// Returns whether a text holds `${NAME`.
fn has_reference(text: &str) -> bool {
    text.match_indices('$').any(|(at, _)| is_reference(&text[at..]))
}

fn is_reference(text: &str) -> bool {
    text.strip_prefix("${").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(line: &str) -> Result<String, &'static str> {
        let (mut variables, faults) = parse(line);
        match faults.first() {
            Some(fault) => Err(fault.what),
            None => Ok(variables.pop().unwrap().1),
        }
    }

    #[test]
    fn a_value_is_what_the_file_says() {
        for (line, value) in [
            ("K=abc$def12", "abc$def12"),
            ("K=abcdef12$", "abcdef12$"),
            ("K=$abc", "$abc"),
            ("K=a$$b$(c)$1", "a$$b$(c)$1"),
            ("K=\"abc$def12\"", "abc$def12"),
            ("K=\"abc\\$def12\"", "abc$def12"),
            ("K='abc$def12'", "abc$def12"),
            ("K='${HOME}'", "${HOME}"),
            ("K=${", "${"),
            ("K=abc\\$def", "abc\\$def"),
            ("K=back\\slash\\n", "back\\slash\\n"),
            ("K='back\\slash\\n'", "back\\slash\\n"),
            ("K=\"a\\\\b\\n\\t\\r\\\"\\'\"", "a\\b\n\t\r\"'"),
            ("K=a#b", "a#b"),
            ("K=#b", "#b"),
            ("K=a # b", "a"),
            ("K=a\t#b", "a"),
            ("K= # b", ""),
            ("K=", ""),
            ("K=''", ""),
            ("K=\"\" # empty", ""),
            ("K='a # b'", "a # b"),
            ("K=two words", "two words"),
            ("  K = blanks around  ", "blanks around"),
            ("K='  kept  '", "  kept  "),
            ("export K=x", "x"),
            ("export\tK=x", "x"),
            ("export=x", "x"),
            ("K=a=b==", "a=b=="),
            ("K=it's", "it's"),
            ("K=a\"b", "a\"b"),
            ("K='say \"x\"'", "say \"x\""),
            ("K=\"it's\"", "it's"),
            ("K='two\nlines'", "two\nlines"),
            ("K=\"two\nlines\"", "two\nlines"),
            ("K=ş\u{a0} ", "ş\u{a0}"),
            ("a.b_C9=x", "x"),
            ("K=first\nK=second", "second"),
            ("K=x\r\n", "x"),
        ] {
            assert_eq!(one(line).as_deref(), Ok(value), "{line}");
        }
    }

    #[test]
    fn a_line_that_is_unclear_is_refused_with_the_remedy() {
        for (line, what) in [
            ("word", NO_VARIABLE),
            ("=x", NO_VARIABLE),
            ("9K=x", NO_VARIABLE),
            ("K-L=x", NO_VARIABLE),
            ("two words=x", NO_VARIABLE),
            ("export K", NO_VARIABLE),
            ("K='x", NO_END),
            ("K=\"x\\\"", NO_END),
            ("K=\"x\"y", BEHIND),
            ("K='it''s'", BEHIND),
            ("K='x'#y", BEHIND),
            ("K=\"a\\qb\"", ESCAPE),
            ("K=http://${HOST}/", REFERENCE),
            ("K=\"http://${HOST}/\"", REFERENCE),
        ] {
            assert_eq!(one(line), Err(what), "{line}");
        }
    }

    #[test]
    fn each_fault_has_the_line_where_its_variable_begins() {
        let (variables, faults) = parse("A=1\nbad\r\nB='two\nlines'\n\nC=\"x\n\"y\nD=2\nbad again");
        let names: Vec<&str> = variables.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["A", "B", "D"]);
        let places: Vec<_> = faults.iter().map(|fault| (fault.line, fault.what)).collect();
        assert_eq!(places, [(2, NO_VARIABLE), (6, BEHIND), (9, NO_VARIABLE)]);
    }

    fn escaped(value: &str) -> String {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
        value.replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t")
    }

    proptest! {
        #[test]
        fn a_secret_without_blanks_is_read_as_it_stands(value in "[!-&(-~][!-~]{0,40}") {
            prop_assume!(!value.starts_with('"') && !has_reference(&value));
            prop_assert_eq!(one(&format!("K={value}")), Ok(value));
        }

        #[test]
        fn any_value_without_a_quote_survives_single_quotes(value in "[^']{0,40}") {
            prop_assert_eq!(one(&format!("K='{value}'")), Ok(value));
        }

        #[test]
        fn any_value_survives_escapes_in_double_quotes(value in any::<String>()) {
            prop_assert_eq!(one(&format!("export K = \"{}\" # comment", escaped(&value))), Ok(value));
        }

        #[test]
        fn any_text_is_read_or_refused(text in any::<String>()) {
            parse(&text);
        }

        #[test]
        fn a_line_breaks_no_other(line in "[^'\"\n]*", value in "[a-z$#\\\\]{1,9}") {
            let (variables, _) = parse(&format!("A=1\n{line}\nZZ={value}\n"));
            prop_assert_eq!(variables.last(), Some(&("ZZ".to_owned(), value)));
        }
    }
}
