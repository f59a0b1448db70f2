//! Globs, as Redis's `KEYS` and `SCAN` match them: they tell which keys a pattern of a message names where Redis has no
//! such key to match.

/// Returns the literal beginning of every key that matches a glob.
pub(crate) fn literal(glob: &str) -> &str {
    glob.split(['*', '?', '[', '\\']).next().unwrap_or_default()
}

/// Returns `true` if a key matches a glob. Takes at most as many steps as the glob has bytes, times those of the key.
pub(crate) fn matches(glob: &str, key: &str) -> bool {
    let (glob, key) = (glob.as_bytes(), key.as_bytes());
    let (mut at, mut read) = (0, 0);
    // What follows the last `*`, and the first byte of the key that it does not stand for.
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = key.get(read) {
        if glob.get(at) == Some(&b'*') {
            at += 1;
            star = Some((at, read));
        } else if let Some(length) = one(&glob[at..], *byte) {
            at += length;
            read += 1;
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            (at, read) = (after, from + 1);
        } else {
            return false;
        }
    }
    glob[at..].iter().all(|byte| *byte == b'*')
}

/// Returns the length of the part at the beginning of a glob that matches this byte; `None` if it does not match.
fn one(glob: &[u8], byte: u8) -> Option<usize> {
    match glob {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', class @ ..] => {
            let (has, length) = class_has(class, byte);
            has.then_some(1 + length)
        }
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
    }
}

/// Returns `true` if a class such as `a-z]` has a byte, and the length of the class. One without an end goes on to the
/// end of the glob. Of a range with bytes beyond ASCII, Redis's answer depends on the machine.
fn class_has(class: &[u8], byte: u8) -> (bool, usize) {
    let is_negated = class.first() == Some(&b'^');
    let (mut has, mut length) = (false, usize::from(is_negated));
    loop {
        length += match &class[length..] {
            [] => break,
            [b'\\', escaped, ..] => {
                has |= *escaped == byte;
                2
            }
            [b']', ..] => {
                length += 1;
                break;
            }
            [from, b'-', to, ..] => {
                has |= (*from.min(to)..=*from.max(to)).contains(&byte);
                3
            }
            [single, ..] => {
                has |= *single == byte;
                1
            }
        };
    }
    (has != is_negated, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::server::Server;

    #[tokio::test]
    async fn a_glob_matches_the_keys_that_redis_matches() {
        let server = Server::start().await;
        let mut redis = server.connect().await;
        let keys = [
            "a", "b", "ab", "ba", "aab", "abab", "a*b", "a?b", "a[b", "a]b", "a-b", "a^b", "a\\b", "ks:B000",
            "ks:B010", "ks:", "Kuğu", "ks:a:b:c", "-", "^", "]", "\\",
        ];
        for key in keys {
            redis::cmd("SET").arg(key).arg("").exec_async(&mut redis).await.unwrap();
        }
        let parts = ["a", "b", "*", "?", "[", "]", "-", "^", "\\", "ks:", "ğ", "0"];
        let pairs = parts.iter().flat_map(|a| parts.iter().map(move |b| format!("{a}{b}")));
        let mut globs: Vec<String> = pairs.flat_map(|pair| parts.map(|c| format!("{pair}{c}"))).collect();
        globs.extend(
            [
                "*",
                "**",
                "",
                "[a-c]",
                "[c-a]b",
                "[^a-c]*",
                "[^]",
                "[]",
                "[]a]",
                "a[]-]b",
                "[\\]]",
                "[a-",
                "[a",
                "[",
                "*[a-b]*b",
                "a\\*b",
                "a\\",
                "\\",
                "?*?",
                "ks:B0?0",
                "ks:*:*",
                "ks:*:c",
                "Ku??u",
                "Ku?u",
                "*[0-9][0-9]",
            ]
            .map(str::to_owned),
        );
        for glob in globs {
            let mut found: Vec<String> = redis::cmd("KEYS").arg(&glob).query_async(&mut redis).await.unwrap();
            found.sort_unstable();
            let mut matched: Vec<&str> = keys.into_iter().filter(|key| matches(&glob, key)).collect();
            matched.sort_unstable();
            assert_eq!(found, matched, "{glob}");
        }
    }

    /// A glob that Redis matches by trying all places for each of its stars.
    #[test]
    fn many_stars_take_few_steps() {
        let glob = format!("{}b", "*a".repeat(127));
        assert!(!matches(&glob, &"a".repeat(2_048)));
    }
}
