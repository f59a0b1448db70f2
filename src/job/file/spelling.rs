//! Known names, for the remedy of an unknown one.

use crate::job::KeyPattern;

/// Returns the placeholders of a key, as a sentence.
pub(super) fn has_names(key: &KeyPattern) -> String {
    let names: Vec<String> = key.names().iter().map(|name| format!("`{name}`")).collect();
    format!("the key has {}", names.join(", "))
}

/// The known name that somebody most likely meant.
pub(crate) fn closest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let name = name.to_lowercase();
    let best = known.map(|candidate| (distance(&name, &candidate.to_lowercase()), candidate)).min()?;
    let tolerance = (name.chars().count() / 3).clamp(1, 4);
    (best.0 <= tolerance).then_some(best.1)
}

/// Returns how many characters must be changed, added, left out or swapped with their neighbour (optimal string
/// alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().max(b.len()) > 100 {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |line: &[usize], column: usize| line.get(column).copied().unwrap_or(usize::MAX / 2);
            let mut least = (at(&above, j) + usize::from(x != y)).min(at(&above, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                least = least.min(at(&before, j - 1) + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_a_stranger_is_not() {
        let known = ["ttl", "schedule", "stale_if_error", "key"];
        for (written, meant) in [
            ("tll", Some("ttl")),
            ("shedule", Some("schedule")),
            ("Schedule", Some("schedule")),
            ("scheudle", Some("schedule")),
            ("stale_on_error", Some("stale_if_error")),
            ("prompt", None),
            ("", None),
        ] {
            assert_eq!(closest(written, known.into_iter()), meant, "{written}");
        }
        assert_eq!(closest(&"x".repeat(10_000), known.into_iter()), None);
        assert_eq!(closest("x", std::iter::empty()), None);
    }
}
