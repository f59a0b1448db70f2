//! Key patterns: `artwork_info:{artwork_name}`, read both ways.
//!
//! A key is of a pattern if and only if [`KeyPattern::read`] takes it apart, and then [`KeyPattern::write`] puts the
//! same key together again. Parameters that would read back as others (a `:` in a placeholder that a `:` ends) have no
//! key.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

#[cfg(feature = "worker")]
use super::glob;
use crate::entry::EntryKey;
use crate::entry::LONGEST_KEY;

/// The values of a key pattern's placeholders, by name.
pub type Params = BTreeMap<String, String>;

/// The longest pattern; keys themselves may be longer, up to [`LONGEST_KEY`].
const MAX_PATTERN: usize = 512;

/// Names that templates use for something else, or that minijinja reads as words of its language.
const RESERVED: [&str; 20] = [
    "and",
    "caller",
    "dict",
    "else",
    "env",
    "false",
    "if",
    "in",
    "is",
    "loop",
    "namespace",
    "none",
    "not",
    "null",
    "or",
    "range",
    "self",
    "super",
    "true",
    "value",
];

/// A pattern that writes an entry's key from its parameters and reads them back.
#[derive(Clone)]
pub struct KeyPattern {
    source: String,
    /// One more than there are names: before, between and after the placeholders. Only the last may be empty.
    literals: Vec<String>,
    names: Vec<String>,
}

impl fmt::Debug for KeyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyPattern").field(&self.source).finish()
    }
}

impl fmt::Display for KeyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl PartialEq for KeyPattern {
    fn eq(&self, other: &Self) -> bool {
        self.literals == other.literals && self.names == other.names
    }
}

impl Eq for KeyPattern {}

impl KeyPattern {
    /// Reads a pattern; `{{` and `}}` are literal braces.
    ///
    /// A pattern begins with literal text, so that jobs can be told apart and scanned for, and has literal text between
    /// its placeholders. Without a placeholder it is one key.
    ///
    /// # Errors
    /// A text that says what is wrong, and the remedy.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_PATTERN {
            return Err(format!("key pattern is {} bytes long; the most is {MAX_PATTERN}", text.len()));
        }
        let mut literals = Vec::new();
        let mut names: Vec<String> = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                literal.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err(format!("`}}` in `{text}` closes nothing; write `}}}}` for a literal brace"));
            }
            let Some((name, after)) = rest.split_once('}') else {
                return Err(format!(
                    "`{{` in `{text}` is never closed; write `{{name}}`, or `{{{{` for a literal brace"
                ));
            };
            check_name(name)?;
            if names.iter().any(|known| known == name) {
                return Err(format!("placeholder `{{{name}}}` stands twice in `{text}`"));
            }
            if literal.is_empty() {
                return Err(match names.last() {
                    None => format!("key pattern `{text}` must begin with literal text, such as `{name}:{{{name}}}`"),
                    Some(before) => format!(
                        "`{{{before}}}{{{name}}}`: nothing tells where `{before}` ends; put literal text between them, \
                         such as `{{{before}}}:{{{name}}}`"
                    ),
                });
            }
            literals.push(std::mem::take(&mut literal));
            names.push(name.to_owned());
            rest = after;
        }
        literal.push_str(rest);
        if literal.is_empty() && names.is_empty() {
            return Err("key pattern is empty; write one such as `artwork_info:{artwork_name}`".to_owned());
        }
        literals.push(literal);
        if let Some(template) = template_in(text, &names) {
            return Err(format!("`{template}` is a template, and a key has placeholders: write one as `{{name}}`"));
        }
        Ok(Self { source: text.to_owned(), literals, names })
    }

    /// The key for these parameters; `None` where one is missing, or where reading the key back would not give the
    /// same.
    ///
    /// Parameters that the pattern does not name are ignored, so that an input's key can be written from its job's.
    pub fn write(&self, params: &Params) -> Option<EntryKey> {
        let mut key = self.literals.first()?.clone();
        for (name, literal) in self.names.iter().zip(self.literals.iter().skip(1)) {
            key.push_str(params.get(name)?);
            key.push_str(literal);
        }
        let back = self.read(&key)?;
        back.iter().all(|(name, value)| params.get(name) == Some(value)).then(|| EntryKey::new(key))
    }

    /// The parameters in a key; `None` where the key is not of this pattern, or longer than any entry's.
    ///
    /// Every value has at least one character. The last placeholder takes the rest of the key (less the pattern's end);
    /// each earlier one ends where the literal after it first occurs.
    pub fn read(&self, key: &str) -> Option<Params> {
        let mut params = Params::new();
        let take = |name: &str, value: &str| _ = params.insert(name.to_owned(), value.to_owned());
        self.split(key, take)?;
        Some(params)
    }

    /// Returns `true` if a key is of this pattern, as [`KeyPattern::read`] tells.
    pub fn owns(&self, key: &str) -> bool {
        self.split(key, |_, _| ()).is_some()
    }

    /// Passes each placeholder and its value in a key to `take`; `None` if the key is not of this pattern.
    fn split(&self, key: &str, mut take: impl FnMut(&str, &str)) -> Option<()> {
        if key.len() > LONGEST_KEY {
            return None;
        }
        let (first, literals) = self.literals.split_first()?;
        let mut rest = key.strip_prefix(first.as_str())?;
        let Some((last_name, names)) = self.names.split_last() else {
            return rest.is_empty().then_some(());
        };
        for (name, literal) in names.iter().zip(literals) {
            let one = rest.chars().next()?.len_utf8();
            let end = one + rest[one..].find(literal.as_str())?;
            take(name, &rest[..end]);
            rest = &rest[end + literal.len()..];
        }
        let value = rest.strip_suffix(literals.last()?.as_str())?;
        if value.is_empty() {
            return None;
        }
        take(last_name, value);
        Some(())
    }

    /// A Redis glob (`SCAN MATCH`) that matches at least this pattern's keys.
    pub fn glob(&self) -> String {
        let mut glob = String::with_capacity(self.source.len() + 4);
        for (at, literal) in self.literals.iter().enumerate() {
            for c in literal.chars() {
                if matches!(c, '*' | '?' | '[' | ']' | '\\') {
                    glob.push('\\');
                }
                glob.push(c);
            }
            if at < self.names.len() {
                glob.push('*');
            }
        }
        glob
    }

    /// Returns `true` if a glob may match a key of this pattern, as the literal beginnings of both tell.
    #[cfg(feature = "worker")]
    pub fn may_match(&self, glob: &str) -> bool {
        let (literal, prefix) = (glob::literal(glob), self.literal_prefix());
        !glob.is_empty() && (prefix.starts_with(literal) || literal.starts_with(prefix))
    }

    /// The placeholders' names in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// As written in the file.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Returns what all keys of this pattern begin with; never empty.
    pub fn literal_prefix(&self) -> &str {
        self.literals.first().map_or("", String::as_str)
    }

    /// Returns whether some key could be of both patterns.
    ///
    /// Exact: both patterns are walked side by side over all keys at once, character by character.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.steps(), other.steps());
        let mut seen = HashSet::new();
        let mut open = vec![(0, 0)];
        while let Some((i, j)) = open.pop() {
            if !seen.insert((i, j)) {
                continue;
            }
            if i == a.len() && j == b.len() {
                return true;
            }
            if a.get(i) == Some(&Step::Any) {
                open.push((i + 1, j));
            }
            if b.get(j) == Some(&Step::Any) {
                open.push((i, j + 1));
            }
            let (Some(x), Some(y)) = (a.get(i), b.get(j)) else { continue };
            if let (Step::Char(x), Step::Char(y)) = (x, y)
                && x != y
            {
                continue;
            }
            let after = |step: &Step, at: usize| if *step == Step::Any { at } else { at + 1 };
            open.push((after(x, i), after(y, j)));
        }
        false
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (at, literal) in self.literals.iter().enumerate() {
            if at > 0 {
                steps.extend([Step::One, Step::Any]);
            }
            steps.extend(literal.chars().map(Step::Char));
        }
        steps
    }
}

/// A pattern's demand on the next character of a key.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    Char(char),
    /// Whatever it is.
    One,
    /// Any number of whatever.
    Any,
}

/// Refuses names that templates could not use.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let mut chars = name.chars();
    let valid = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !valid {
        return Err(format!("`{name}` is no name; use letters, digits and `_`, beginning with a letter"));
    }
    if RESERVED.contains(&name.to_ascii_lowercase().as_str()) {
        return Err(format!("the name `{name}` means something else in templates; choose another"));
    }
    Ok(())
}

/// Returns a part of a key pattern with these placeholders that is meant as a template. Doubled braces stand for
/// literal ones, as in the hash tags `{{user}}`, `{{shop.eu}}` and `{{my tag}}`. A template has spaces inside its
/// braces, a filter, or a field of a placeholder.
fn template_in<'a>(text: &'a str, names: &[String]) -> Option<&'a str> {
    let is_template = |inner: &str| {
        let is_spaced = inner.len() > 2 && inner.starts_with(' ') && inner.ends_with(' ');
        let first = inner.split(['.', ' ']).next().filter(|first| first.len() < inner.len());
        is_spaced || inner.contains('|') || first.is_some_and(|first| names.iter().any(|name| name == first))
    };
    let mut from = 0;
    while let Some(start) = text[from..].find("{{").map(|at| from + at) {
        let end = start + 2 + text[start + 2..].find("}}")?;
        let inner = &text[start + 2..end];
        if !inner.contains(['{', '}']) && is_template(inner) {
            return Some(&text[start..end + 2]);
        }
        from = start + 2;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> KeyPattern {
        KeyPattern::parse(text).unwrap()
    }

    fn params(pairs: &[(&str, &str)]) -> Params {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_last_placeholder_takes_the_rest() {
        let story = pattern("ai_content:{kind}:{key}");
        assert_eq!(story.read("ai_content:story:a:b: c"), Some(params(&[("kind", "story"), ("key", "a:b: c")])));
        assert_eq!(story.read("ai_content::b"), None);
        assert_eq!(story.read("ai_content::::b"), Some(params(&[("kind", ":"), ("key", ":b")])));
        assert_eq!(story.read("ai_content:story:"), None);
        assert_eq!(story.read("ai_content:story"), None);
        assert_eq!(story.read("artwork_info:story:x"), None);
    }

    #[test]
    fn a_pattern_may_end_in_text_or_have_no_placeholder() {
        let sized = pattern("img:{name}:{size}.jpg");
        assert_eq!(sized.read("img:a:b:c.jpg.jpg"), Some(params(&[("name", "a"), ("size", "b:c.jpg")])));
        assert_eq!(sized.read("img:a:.jpg"), None);
        let one = pattern("homepage");
        assert_eq!(one.read("homepage"), Some(Params::new()));
        assert_eq!(one.read("homepages"), None);
        assert_eq!(one.write(&Params::new()).unwrap().as_str(), "homepage");
    }

    #[test]
    fn doubled_braces_are_literal() {
        let tagged = pattern("{{tag}}:{name}");
        assert_eq!(tagged.write(&params(&[("name", "{x}")])).unwrap().as_str(), "{tag}:{x}");
        assert_eq!(tagged.read("{tag}:{x}"), Some(params(&[("name", "{x}")])));
        assert_eq!(tagged.names(), ["name"]);
        for (tag, key) in [("{{shop.eu}}", "{shop.eu}"), ("{{my tag}}", "{my tag}"), ("{{name}}", "{name}")] {
            let tagged = pattern(&format!("cart:{tag}:{{name}}"));
            assert_eq!(tagged.write(&params(&[("name", "7")])).unwrap().as_str(), format!("cart:{key}:7"));
        }
        for template in ["b:{{ name }}", "b:{{product.brand.slug}}:{product}", "b:{{name|lower}}:{name}"] {
            assert!(KeyPattern::parse(template).unwrap_err().contains("is a template"), "{template}");
        }
    }

    #[test]
    fn what_would_read_back_as_something_else_has_no_key() {
        let two = pattern("a:{x}:{y}");
        assert_eq!(two.write(&params(&[("x", "1:2"), ("y", "3")])), None);
        assert_eq!(two.write(&params(&[("x", "1"), ("y", "")])), None);
        assert_eq!(two.write(&params(&[("x", "1")])), None);
        assert_eq!(two.write(&params(&[("x", "1"), ("y", "2:3"), ("z", "4")])).unwrap().as_str(), "a:1:2:3");
    }

    #[test]
    fn patterns_that_cannot_be_read_back_are_refused() {
        for (text, message) in [
            ("", "key pattern is empty; write one such as `artwork_info:{artwork_name}`"),
            ("{x}", "key pattern `{x}` must begin with literal text, such as `x:{x}`"),
            ("a:{x}{y}", "`{x}{y}`: nothing tells where `x` ends; put literal text between them, such as `{x}:{y}`"),
            ("a:{x}:{x}", "placeholder `{x}` stands twice in `a:{x}:{x}`"),
            ("a:{x", "`{` in `a:{x` is never closed; write `{name}`, or `{{` for a literal brace"),
            ("a:x}", "`}` in `a:x}` closes nothing; write `}}` for a literal brace"),
            ("a:{}", "`` is no name; use letters, digits and `_`, beginning with a letter"),
            ("a:{9}", "`9` is no name; use letters, digits and `_`, beginning with a letter"),
            ("a:{ x }", "` x ` is no name; use letters, digits and `_`, beginning with a letter"),
            ("a:{value}", "the name `value` means something else in templates; choose another"),
        ] {
            assert_eq!(KeyPattern::parse(text).unwrap_err(), message);
        }
        assert!(KeyPattern::parse(&"a".repeat(MAX_PATTERN + 1)).is_err());
    }

    #[test]
    fn overlap_is_a_key_of_both() {
        for (a, b, overlap) in [
            ("ai_content:story:{x}", "ai_content:{content_type}:{key}", true),
            ("artwork_info:{x}", "artwork_image:{x}", false),
            ("artwork_info:{x}", "artwork_info:{y}", true),
            ("artwork:{x}", "artwork:{x}:image", true),
            ("artwork:{x}:info", "artwork:{x}:image", false),
            ("a:{x}b", "a{x}:b", true),
            ("homepage", "home{x}", true),
            ("homepage", "homepage:{x}", false),
            ("homepage", "homepage", true),
            ("a:{x}", "a:", false),
            ("a:{x}", "ab:{x}", false),
            ("a:{x}:1", "a:b:{y}:2", false),
            ("{{a}}:{x}", "{{a}}:{y}", true),
        ] {
            assert_eq!(pattern(a).overlaps(&pattern(b)), overlap, "{a} {b}");
            assert_eq!(pattern(b).overlaps(&pattern(a)), overlap, "{b} {a}");
        }
    }

    #[test]
    fn glob_specials_are_literal() {
        assert_eq!(pattern("a[1]*?\\:{x}:{y}-z").glob(), "a\\[1\\]\\*\\?\\\\:*:*-z");
    }

    /// Redis's glob without classes, which a pattern never writes unescaped.
    fn glob_matches(glob: &[char], text: &[char]) -> bool {
        match (glob, text) {
            ([], _) => text.is_empty(),
            (['*', rest @ ..], _) => (0..=text.len()).any(|at| glob_matches(rest, &text[at..])),
            (['?', rest @ ..], [_, after @ ..]) => glob_matches(rest, after),
            (['\\', c, rest @ ..], [d, after @ ..]) => c == d && glob_matches(rest, after),
            ([c, rest @ ..], [d, after @ ..]) => c == d && glob_matches(rest, after),
            (_, []) => false,
        }
    }

    fn any_pattern() -> impl Strategy<Value = KeyPattern> {
        let literal = "[ab:*?ğ{}\\[\\]]{1,3}";
        (literal, prop::collection::vec(literal, 0..3), prop::option::of("[ab:]{0,2}")).prop_map(
            |(first, between, last)| {
                let brace = |text: &str| text.replace('{', "{{").replace('}', "}}");
                let mut text = brace(&first);
                for (index, literal) in between.iter().enumerate() {
                    text.push_str(&format!("{{p{index}}}{}", brace(literal)));
                }
                if let Some(last) = last {
                    text.push_str(&format!("{{last}}{}", brace(&last)));
                }
                pattern(&text)
            },
        )
    }

    fn any_params() -> impl Strategy<Value = Params> {
        prop::collection::vec("[ab:ğ ]{0,4}", 4)
            .prop_map(|values| ["p0", "p1", "p2", "last"].into_iter().map(str::to_owned).zip(values).collect())
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(pattern in any_pattern(), params in any_params()) {
            if let Some(key) = pattern.write(&params) {
                let back = pattern.read(key.as_str()).unwrap();
                prop_assert_eq!(back.len(), pattern.names().len());
                for (name, value) in back {
                    prop_assert_eq!(&params[&name], &value);
                }
            }
        }

        #[test]
        fn what_is_read_writes_the_same_key(pattern in any_pattern(), key in "[ab:*?ğ{}\\[\\]]{0,12}") {
            if let Some(params) = pattern.read(&key) {
                let written = pattern.write(&params).unwrap();
                prop_assert_eq!(written.as_str(), key);
            }
        }

        #[test]
        fn the_glob_matches_every_key(pattern in any_pattern(), params in any_params()) {
            if let Some(key) = pattern.write(&params) {
                let glob: Vec<char> = pattern.glob().chars().collect();
                let key: Vec<char> = key.as_str().chars().collect();
                prop_assert!(glob_matches(&glob, &key));
            }
        }

        #[test]
        fn overlap_is_symmetric_and_never_misses_a_common_key(
            a in any_pattern(), b in any_pattern(), params in any_params(), key in "[ab:]{0,8}",
        ) {
            prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
            prop_assert!(a.overlaps(&a));
            let written = a.write(&params).map(|key| key.as_str().to_owned());
            for key in written.into_iter().chain([key]) {
                if a.read(&key).is_some() && b.read(&key).is_some() {
                    prop_assert!(a.overlaps(&b));
                }
            }
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = KeyPattern::parse(&text);
        }
    }
}
