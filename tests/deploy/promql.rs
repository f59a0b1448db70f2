//! PromQL as far as the files use it: which series an expression selects, and by which labels it groups.
//!
//! This is not a parser: check.py has one. It is strict, so that a word that it does not know is a fault.

use std::collections::BTreeSet;

/// The functions, aggregations and words that the files may use.
const WORDS: [&str; 11] = [
    "sum",
    "max",
    "count",
    "rate",
    "increase",
    "max_over_time",
    "histogram_quantile",
    "absent",
    "time",
    "and",
    "unless",
];
/// The words with a list of labels.
const GROUPING: [&str; 2] = ["by", "on"];

/// The series that an expression selects, and the labels that it groups by.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pub(crate) selectors: Vec<Selector>,
    pub(crate) grouping: BTreeSet<String>,
}

/// A metric and the matchers of its labels.
#[derive(Debug)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    /// Label, operator and value.
    pub(crate) matchers: Vec<(String, String, String)>,
}

/// Reads an expression.
///
/// # Panics
/// If it has a word that is neither a metric nor one of those above.
pub(crate) fn read(expression: &str) -> Query {
    let mut query = Query::default();
    let mut rest = expression.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = |is: fn(char) -> bool| rest.find(|c| !is(c)).unwrap_or(rest.len());
        if first.is_ascii_alphabetic() {
            let (word, after) = rest.split_at(end(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':'));
            rest = after.trim_start();
            if GROUPING.contains(&word) {
                let (labels, after) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).expect(expression);
                query.grouping.extend(labels.split(',').map(|label| label.trim().to_owned()));
                rest = after;
            } else if !WORDS.contains(&word) {
                assert!(word.starts_with("samovar_") || word.starts_with("process_"), "`{word}` in {expression}");
                let (matchers, after) = matchers(rest);
                query.selectors.push(Selector { metric: word.to_owned(), matchers });
                rest = after;
            }
        } else if first == '[' {
            rest = rest.split_once(']').expect(expression).1;
        } else if first.is_ascii_digit() {
            rest = &rest[end(|c| c.is_ascii_digit() || c == '.')..];
        } else {
            assert!("()+-*/<>=!,".contains(first), "`{first}` in {expression}");
            rest = &rest[1..];
        }
        rest = rest.trim_start();
    }
    assert!(!query.selectors.is_empty(), "{expression} selects nothing");
    query
}

/// Reads `{label="value", …}`, if it is there, and returns what follows.
fn matchers(text: &str) -> (Vec<(String, String, String)>, &str) {
    let Some(text) = text.strip_prefix('{') else { return (Vec::new(), text) };
    let (inside, rest) = text.split_once('}').unwrap();
    let mut all = Vec::new();
    for matcher in inside.split(',').filter(|matcher| !matcher.trim().is_empty()) {
        let (left, value) = matcher.split_once('"').unwrap();
        let label: String = left.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let operator = left.trim()[label.len()..].to_owned();
        assert!(["=", "=~", "!=", "!~"].contains(&operator.as_str()), "{matcher}");
        all.push((label, operator, value.trim_end().strip_suffix('"').unwrap().to_owned()));
    }
    (all, rest)
}

#[test]
fn the_reader_finds_series_and_labels() {
    let query = read(r#"sum by (job, le) (rate(samovar_a{job=~"$job", b!="c"}[5m])) / 1.5 and on (x) process_b > 0"#);
    let found: Vec<_> = query.selectors.iter().map(|one| (one.metric.as_str(), one.matchers.len())).collect();
    assert_eq!(found, [("samovar_a", 2), ("process_b", 0)]);
    assert_eq!(query.selectors[0].matchers[1], ("b".to_owned(), "!=".to_owned(), "c".to_owned()));
    assert_eq!(query.grouping.into_iter().collect::<Vec<_>>(), ["job", "le", "x"]);
}
