//! Globs, as `KEYS`, `SCAN` and `PSUBSCRIBE` match them.

/// Returns true if a text matches a glob.
pub(crate) fn matches(glob: &[u8], text: &[u8]) -> bool {
    let Some((first, rest)) = glob.split_first() else { return text.is_empty() };
    match first {
        b'*' => {
            let rest = &glob[glob.iter().take_while(|byte| **byte == b'*').count()..];
            rest.is_empty() || (0..=text.len()).any(|from| matches(rest, &text[from..]))
        }
        b'?' => !text.is_empty() && matches(rest, &text[1..]),
        b'[' => {
            let Some((byte, text)) = text.split_first() else { return false };
            let (is_in, rest) = class(rest, *byte);
            is_in && matches(rest, text)
        }
        b'\\' if !rest.is_empty() => text.first() == Some(&rest[0]) && matches(&rest[1..], &text[1..]),
        byte => text.first() == Some(byte) && matches(rest, &text[1..]),
    }
}

/// Returns true if a class such as `a-z]…` has the byte, and what follows it.
fn class(mut glob: &[u8], byte: u8) -> (bool, &[u8]) {
    let is_negated = glob.first() == Some(&b'^');
    if is_negated {
        glob = &glob[1..];
    }
    let mut is_in = false;
    loop {
        match glob {
            [] => break,
            [b']', rest @ ..] => {
                glob = rest;
                break;
            }
            [b'\\', escaped, rest @ ..] => {
                is_in |= *escaped == byte;
                glob = rest;
            }
            [from, b'-', to, rest @ ..] => {
                is_in |= (*from.min(to)..=*from.max(to)).contains(&byte);
                glob = rest;
            }
            [single, rest @ ..] => {
                is_in |= *single == byte;
                glob = rest;
            }
        }
    }
    (is_in != is_negated, glob)
}
