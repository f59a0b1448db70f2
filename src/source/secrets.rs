//! Secrets in messages: a secret that an upstream echoes is shown as `***`.
//!
//! Secrets are the values sent in headers and queries, and the values that job files take from the environment. They
//! are found in a text verbatim (in any letter case), percent-encoded (also twice, and with `+` for a space), escaped
//! as in JSON or HTML, and in base64. The user and password in a `Basic` credential are secret, too. Values shorter
//! than [`SHORTEST`] are not hidden, because they occur in ordinary words.

use crate::job::{EnvValues, Upstream};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use url::Url;

/// The shortest text that is hidden, in bytes; [`SHORTEST_NAMED`] if the variable's name marks it as secret.
const SHORTEST: usize = 6;
const SHORTEST_NAMED: usize = 4;
/// The longest escape of one character, in bytes.
const LONGEST_ESCAPE: usize = 12;
const BLOT: &str = "***";

/// Texts that messages must not show.
#[derive(Clone, Default)]
pub(super) struct Secrets {
    /// The secrets of the upstream and the job files.
    lasting: Arc<[String]>,
    /// The secrets of one request.
    own: Vec<String>,
}

impl fmt::Debug for Secrets {
    /// Shows no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(BLOT)
    }
}

impl Secrets {
    /// Returns the secrets of an upstream's headers, if there is one, and of the environment.
    ///
    /// The host of a URL stays visible, so that a message names the server, unless the variable's name marks it as
    /// secret.
    pub(super) fn new(upstream: Option<&Upstream>, env: &EnvValues) -> Self {
        let mut secrets = Self::default();
        for text in upstream.iter().flat_map(|upstream| upstream.headers.values()) {
            secrets.add(text);
        }
        let authority = upstream.and_then(|upstream| Url::parse(&upstream.url).ok());
        let authority = authority.map(|url| url.authority().to_ascii_lowercase()).unwrap_or_default();
        for (name, value) in env.iter() {
            let value = value.trim();
            let url = Url::parse(value).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            if let Some(url) = &url {
                let path = url.path().split('/').map(str::to_owned);
                let query = url.query_pairs().map(|(_, value)| value.into_owned());
                path.chain(query).for_each(|part| secrets.add(&part));
            }
            if EnvValues::is_secret(name) {
                secrets.add(value);
                secrets.keep(value.trim_end_matches('/'), SHORTEST_NAMED);
            } else if url.is_none() && !authority.contains(&value.to_ascii_lowercase()) {
                secrets.add(value);
            }
        }
        Self { lasting: secrets.own.into(), own: Vec::new() }
    }

    /// Adds a text that is sent, and its parts: some servers echo only the `abc` of `Bearer abc`.
    pub(super) fn add(&mut self, text: &str) {
        let parts = text.split(is_between);
        for part in std::iter::once(text.trim()).chain(text.split_whitespace()).chain(parts) {
            self.keep(part, SHORTEST);
        }
        for word in text.split_whitespace() {
            let decoded = STANDARD_NO_PAD.decode(word.trim_end_matches('=')).ok();
            let Some(pair) = decoded.and_then(|bytes| String::from_utf8(bytes).ok()) else { continue };
            if let Some((_, password)) = pair.split_once(':').filter(|_| !pair.contains(char::is_control)) {
                self.keep(&pair, SHORTEST);
                self.keep(password, SHORTEST_NAMED);
            }
        }
    }

    /// Adds a text that is sent, without those of its parts that are no secrets.
    pub(super) fn add_except(&mut self, text: &str, named: Option<&HashSet<&str>>) {
        match named {
            Some(named) if text.split(is_between).any(|part| named.contains(part)) => {
                text.split(is_between).filter(|part| !named.contains(part)).for_each(|part| self.add(part));
            }
            Some(_) | None => self.add(text),
        }
    }

    /// Returns a text without the secrets. `cut` means that the text was cut off, so its end may be the beginning of a
    /// secret.
    pub(super) fn blot(&self, text: &str, cut: bool) -> String {
        let bytes = text.as_bytes();
        let mut shown = String::with_capacity(text.len());
        let mut hidden_until = 0;
        for (at, c) in text.char_indices() {
            let longest = self.all().filter_map(|secret| occurrence(&bytes[at..], secret.as_bytes(), cut)).max();
            if let Some(length) = longest {
                if hidden_until <= at {
                    shown.push_str(BLOT);
                }
                hidden_until = hidden_until.max(at + length);
            }
            if at >= hidden_until {
                shown.push(c);
            }
        }
        shown
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        self.lasting.iter().chain(&self.own)
    }

    fn keep(&mut self, text: &str, shortest: usize) {
        if text.len() < shortest || text == BLOT {
            return;
        }
        let renderings = [text.to_owned(), STANDARD.encode(text), URL_SAFE.encode(text), URL_SAFE_NO_PAD.encode(text)];
        for rendering in renderings {
            if self.all().all(|known| *known != rendering) {
                self.own.push(rendering);
            }
        }
    }
}

/// Returns `true` for a character between the parts of a text, which some servers echo by themselves.
fn is_between(c: char) -> bool {
    c.is_whitespace() || matches!(c, '=' | ';' | ',' | '"')
}

/// Returns the length of a secret at the beginning of the text, plain or escaped; if the text is `cut`, the beginning
/// of the secret suffices. Characters that may be plain or an escape (`\\` or `%25`) are tried as both.
fn occurrence(text: &[u8], secret: &[u8], cut: bool) -> Option<usize> {
    walk(text, secret, cut, true).max(walk(text, secret, cut, false))
}

fn walk(text: &[u8], secret: &[u8], cut: bool, plain_first: bool) -> Option<usize> {
    let (mut at, mut told) = (0, 0);
    while told < secret.len() {
        let (rest, secret) = (&text[at..], &secret[told..]);
        let plain = || rest.first().filter(|byte| byte.eq_ignore_ascii_case(&secret[0])).map(|_| (1, 1));
        let escaped = || unescaped(rest, secret);
        let step = if plain_first { plain().or_else(escaped) } else { escaped().or_else(plain) };
        match step {
            Some((length, part)) => {
                at += length;
                told += part;
            }
            None if cut && at > 0 && could_be_half_an_escape(rest) => return Some(text.len()),
            None => return None,
        }
    }
    (at > 0).then_some(at)
}

/// Returns the lengths of an escape at the beginning of the text and of the part of the secret that it stands for.
fn unescaped(text: &[u8], secret: &[u8]) -> Option<(usize, usize)> {
    let mut bytes = percent(text).into_iter().flatten();
    let byte = bytes.find(|(_, byte)| byte.eq_ignore_ascii_case(&secret[0])).map(|(length, _)| (length, 1));
    byte.or_else(|| {
        escape(text).and_then(|(length, c)| {
            let mut buffer = [0; 4];
            let meant = c.encode_utf8(&mut buffer).as_bytes();
            let same = secret.get(..meant.len()).is_some_and(|part| part.eq_ignore_ascii_case(meant));
            same.then_some((length, meant.len()))
        })
    })
}

/// Decodes `%2541` (an escape of an escape) and `%41`, with their lengths. `%2541` may be either.
fn percent(text: &[u8]) -> [Option<(usize, u8)>; 2] {
    let digits = |from: usize| u8::from_str_radix(std::str::from_utf8(text.get(from..from + 2)?).ok()?, 16).ok();
    if text.first() != Some(&b'%') {
        return [None; 2];
    }
    let twice = if digits(1) == Some(b'%') { digits(3) } else { None };
    [twice.map(|byte| (5, byte)), digits(1).map(|byte| (3, byte))]
}

/// Decodes a `+`, or an escape of JSON or HTML, at the beginning of a text; returns its length and the character.
fn escape(text: &[u8]) -> Option<(usize, char)> {
    match text.first()? {
        b'+' => Some((1, ' ')),
        b'&' => html(text),
        b'\\' => match text.get(1)? {
            b'n' => Some((2, '\n')),
            b't' => Some((2, '\t')),
            b'r' => Some((2, '\r')),
            b'b' => Some((2, '\u{8}')),
            b'f' => Some((2, '\u{c}')),
            b'u' => match (json_unit(text, 0)?, json_unit(text, 6)) {
                (high @ 0xd800..=0xdbff, Some(low @ 0xdc00..=0xdfff)) => {
                    Some((12, char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00))?))
                }
                (unit, _) => Some((6, char::from_u32(unit)?)),
            },
            c @ (b'"' | b'\\' | b'/' | b'\'') => Some((2, char::from(*c))),
            _ => None,
        },
        _ => None,
    }
}

/// Decodes `\u0041` at a place.
fn json_unit(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Decodes `&amp;`, `&#38;` and `&#x26;`.
fn html(text: &[u8]) -> Option<(usize, char)> {
    let end = text.iter().take(LONGEST_ESCAPE).position(|byte| *byte == b';')?;
    let name = std::str::from_utf8(text.get(1..end)?).ok()?;
    let c = match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => number.parse(),
            };
            char::from_u32(code.ok()?)?
        }
    };
    Some((end + 1, c))
}

/// Returns `true` if a text that was cut off may end inside an escape.
fn could_be_half_an_escape(text: &[u8]) -> bool {
    text.len() < LONGEST_ESCAPE && text.first().is_none_or(|first| b"%\\&".contains(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(texts: &[&str]) -> Secrets {
        let mut secrets = Secrets::default();
        texts.iter().for_each(|text| secrets.add(text));
        secrets
    }

    #[test]
    fn every_rendering_of_a_secret_is_blotted_out() {
        let secrets = of(&["Bearer s3/cr+t \"ö&1\""]);
        for rendering in [
            "s3/cr+t \"ö&1\"",
            "S3/CR+T \"ö&1\"",
            "s3%2Fcr%2Bt%20%22%C3%B6%261%22",
            "s3%2fcr%2bt%20%22%c3%b6%261%22",
            "s3%2Fcr%2Bt+%22%C3%B6%261%22",
            "s3/cr%2Bt%20%22ö&1%22",
            "s3%252Fcr%252Bt%2520%2522%25C3%25B6%25261%2522",
            "s3/cr+t \\\"ö&1\\\"",
            "s3\\/cr\\u002bt \\u0022\\u00f6\\u00261\\\"",
            "s3&#x2F;cr&#43;t &quot;&#246;&amp;1&quot;",
        ] {
            assert_eq!(secrets.blot(&format!("got Bearer {rendering}."), false), "got ***.", "{rendering}");
        }
        let encoded = STANDARD.encode("s3cret-word");
        let secrets = of(&["s3cret-word"]);
        for rendering in [encoded.clone(), encoded.trim_end_matches('=').to_owned(), encoded.replace('=', "%3D")] {
            let shown = secrets.blot(&rendering, false);
            assert!(shown.starts_with("***"), "{rendering}: {shown}");
        }
    }

    #[test]
    fn a_basic_credential_is_hidden_with_what_is_in_it() {
        let header = format!("Basic {}", STANDARD.encode("admin:open sesame"));
        let secrets = of(&[&header]);
        for echo in [
            header.as_str(),
            "admin:open sesame",
            "password open%20sesame",
            "password open+sesame",
            header.trim_start_matches("Basic ").trim_end_matches('='),
        ] {
            let shown = secrets.blot(echo, false);
            assert!(!shown.contains("sesame") && !shown.contains(&header[8..16]), "{echo}: {shown}");
        }
    }

    #[test]
    fn parts_of_a_header_are_secret_by_themselves() {
        let secrets = of(&["session=abcdef12; user=\"xyz-98765\"", "Bearer sk-very-secret"]);
        assert_eq!(secrets.blot("abcdef12 xyz-98765 sk-very-secret", false), "*** *** ***");
    }

    #[test]
    fn values_that_name_entries_are_shown() {
        let mut secrets = Secrets::default();
        let named = HashSet::from(["n40-abc", "n41-abc"]);
        secrets.add_except("n40-abc,n41-abc", Some(&named));
        secrets.add_except("s3cret-word", Some(&named));
        assert_eq!(secrets.blot("unknown id n40-abc of s3cret-word", false), "unknown id n40-abc of ***");
    }

    #[test]
    fn overlapping_secrets_leave_nothing_between_them() {
        assert_eq!(of(&["abcdefgh", "efghijkl"]).blot("-abcdefghijkl-", false), "-***-");
    }

    #[test]
    fn the_beginning_of_a_secret_at_a_cut_is_hidden() {
        let secrets = of(&["s3cr3t/token"]);
        for cut in ["s3cr", "s3cr3t%2", "s3cr3t%", "s3cr3t\\u00", "s3cr3t&#x2"] {
            assert_eq!(secrets.blot(&format!("told {cut}"), true), "told ***", "{cut}");
            assert_eq!(secrets.blot(&format!("told {cut}"), false), format!("told {cut}"), "{cut}");
        }
    }

    #[test]
    fn the_environment_is_secret_but_for_the_host() {
        let upstream = |url: &str| {
            let files = [("upstreams.toml".to_owned(), format!("[up]\nurl = \"{url}\"\n")),
                ("a.toml".to_owned(), "key = \"a:{x}\"\n[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/{{ x }}\"\nheaders = { L = \"{{ env.LEVEL }}\" }".to_owned())];
            let env = |name: &str| {
                Some(
                    match name {
                        "HOOK" => "https://hooks.test/services/T0000000/x",
                        "HOST" => "museum.test",
                        "LEVEL" => "extreme level",
                        "PIN_KEY" => "1234",
                        _ => return None,
                    }
                    .to_owned(),
                )
            };
            let jobs = crate::job::Jobs::parse(&files, std::time::Duration::from_secs(60), &env).unwrap();
            Secrets::new(jobs.upstreams.values().next().map(|upstream| &**upstream), &jobs.env_values)
        };
        let secrets = upstream("{{ env.HOOK }}");
        assert_eq!(secrets.blot("https://hooks.test/services/T0000000/x/7", false), "https://hooks.test/***/***/x/7");
        let secrets = upstream("https://{{ env.HOST }}/bot{{ env.PIN_KEY }}");
        assert_eq!(
            secrets.blot("https://museum.test/bot1234/7 of extreme%20level", false),
            "https://museum.test/bot***/7 of ***"
        );
    }

    proptest! {
        #[test]
        fn percent_encoded_secrets_never_show(
            secret in "[ -~ğ☕]{6,20}",
            escaped in prop::collection::vec(any::<bool>(), 80),
            before in "[a-z]{0,5}",
        ) {
            let secrets = of(&[&secret]);
            let secret = secret.trim();
            prop_assume!(secret.len() >= SHORTEST);
            let mut echo = before;
            for (byte, escaped) in secret.bytes().zip(escaped.iter().cycle()) {
                if *escaped || !byte.is_ascii_alphanumeric() {
                    echo.push_str(&format!("%{byte:02x}"));
                } else {
                    echo.push(char::from(byte));
                }
            }
            let shown = secrets.blot(&echo, false);
            prop_assert!(shown.contains(BLOT) && shown.len() <= echo.len().max(8), "{} of {}", shown, echo);
            prop_assert!(!secrets.blot(secret, false).contains(secret));
            let json = serde_json::to_string(secret).unwrap();
            prop_assert!(!secrets.blot(&json, false).contains(&json[1..json.len() - 1]));
        }

        #[test]
        fn blotting_never_panics(secret in "\\PC{0,12}", text in "[%+&;#x0-9a-fA-Fu\\\\ğ☕]{0,60}", cut in any::<bool>()) {
            of(&[&secret, &text]).blot(&text, cut);
        }
    }
}
