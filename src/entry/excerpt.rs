//! Beginnings of long texts.

/// Returns a text of at most `longest` characters, or the first `longest` of them and `…`.
pub fn excerpt(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_text_that_is_cut_ends_with_an_ellipsis() {
        assert_eq!(excerpt("şiir", 4), "şiir");
        assert_eq!(excerpt("şiirler", 4), "şiir…");
    }
}
