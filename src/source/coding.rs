//! Content codings (RFC 9110, section 8.4.1): decodes an answer's bytes, all of them or none.
//!
//! Each gzip member must be complete, with its checksum, and nothing may follow the last one: half an answer can be valid
//! JSON. Sizes are bounded while decoding, and so is the number of codings.

use flate2::bufread::MultiGzDecoder;
use reqwest::header::{CONTENT_ENCODING, HeaderMap};
use std::io::{ErrorKind, Read as _};

/// The value of `Accept-Encoding`.
pub(super) const ACCEPTED: &str = "gzip";
/// The most codings that are taken off one answer; servers use one, and an error in a proxy makes it two.
const LAYERS: usize = 3;

/// Why bytes cannot be decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Encoded {
    /// There are more of them than allowed.
    TooLong,
    /// They end too early.
    Cut,
    /// They are something else, or an unknown coding's; says what about the answer.
    Wrong(String),
}

/// Takes the codings that the headers name off the bytes, the last one first; at most so many bytes may come of each. After
/// an error the bytes are what was decoded until then.
pub(super) fn decode(headers: &HeaderMap, bytes: &mut Vec<u8>, most: u64) -> Result<(), Encoded> {
    for _ in 0..layers(headers)? {
        let mut decoded = Vec::new();
        let read = MultiGzDecoder::new(bytes.as_slice()).take(most.saturating_add(1)).read_to_end(&mut decoded);
        let longest = usize::try_from(most).unwrap_or(usize::MAX);
        let too_long = decoded.len() > longest;
        decoded.truncate(longest);
        *bytes = decoded;
        match read {
            _ if too_long => return Err(Encoded::TooLong),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(Encoded::Cut),
            Err(error) => return Err(Encoded::Wrong(format!("is not whole gzip data: {error}"))),
        }
    }
    Ok(())
}

/// How often the body was gzipped.
fn layers(headers: &HeaderMap) -> Result<usize, Encoded> {
    let mut layers = 0;
    for line in headers.get_all(CONTENT_ENCODING) {
        let line = String::from_utf8_lossy(line.as_bytes());
        for name in line.split(',').map(str::trim) {
            match name.to_ascii_lowercase().as_str() {
                "gzip" | "x-gzip" => layers += 1,
                "" | "identity" => {}
                _ => {
                    let name: String = name.chars().take(40).collect();
                    return Err(Encoded::Wrong(format!(
                        "has the content coding {name:?}, but only gzip and identity are read (we send \
                         `Accept-Encoding: {ACCEPTED}`): let the server keep to that, or set `Accept-Encoding` in `headers`"
                    )));
                }
            }
        }
    }
    if layers > LAYERS {
        return Err(Encoded::Wrong(format!("is gzipped {layers} times over; at most {LAYERS} times are undone")));
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;
    use std::io::Write as _;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (CONTENT_ENCODING, HeaderValue::from_bytes(line.as_bytes()).unwrap())).collect()
    }

    fn decoded(lines: &[&str], bytes: &[u8], most: u64) -> Result<Vec<u8>, Encoded> {
        let mut bytes = bytes.to_vec();
        decode(&headers(lines), &mut bytes, most).map(|()| bytes)
    }

    #[test]
    fn codings_are_read_in_every_spelling() {
        let (plain, once) = (b"{\"a\": 1}".to_vec(), gzip(b"{\"a\": 1}"));
        let twice = gzip(&once);
        let cases: [(&[&str], &Vec<u8>); 16] = [
            (&[], &plain),
            (&[""], &plain),
            (&["identity"], &plain),
            (&["Identity, ,identity"], &plain),
            (&["gzip"], &once),
            (&["GZIP"], &once),
            (&["x-gzip"], &once),
            (&["X-GZip"], &once),
            (&[" gzip\t"], &once),
            (&["gzip, identity"], &once),
            (&["identity,gzip"], &once),
            (&[",gzip,,"], &once),
            (&["identity", "gzip"], &once),
            (&["gzip,gzip"], &twice),
            (&["gzip", "x-gzip"], &twice),
            (&["gzip, identity, GZIP"], &twice),
        ];
        for (lines, bytes) in cases {
            assert_eq!(decoded(lines, bytes, 100), Ok(plain.clone()), "{lines:?}");
        }
    }

    #[test]
    fn unknown_codings_are_named_in_the_error() {
        for name in ["br", "zstd", "deflate", "compress", "dcb", "gzipped", "\"gzip\"", "gzip;q=1", "*", "é"] {
            for lines in [vec![name.to_owned()], vec![format!("gzip, {name}")], vec!["gzip".into(), name.into()]] {
                let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                let Err(Encoded::Wrong(reason)) = decoded(&lines, &gzip(b"1"), 100) else { panic!("{lines:?}") };
                assert!(reason.contains(&format!("{name:?}")) && reason.contains("only gzip"), "{reason}");
            }
        }
        let nested = (0..4).fold(b"1".to_vec(), |bytes, _| gzip(&bytes));
        assert!(matches!(decoded(&["gzip,gzip,gzip,gzip"], &nested, 1000), Err(Encoded::Wrong(_))));
    }

    #[test]
    fn bombs_and_long_bodies_are_bounded() {
        let bomb = gzip(&vec![b' '; 10 << 20]);
        let mut bytes = bomb.clone();
        assert_eq!(decode(&headers(&["gzip"]), &mut bytes, 1000), Err(Encoded::TooLong));
        assert_eq!(bytes.len(), 1000);
        assert_eq!(decoded(&["gzip, gzip"], &gzip(&bomb), 1000), Err(Encoded::TooLong));
        assert_eq!(decoded(&["gzip"], &gzip(b"12345"), 5), Ok(b"12345".to_vec()));
        assert_eq!(decoded(&["gzip"], &gzip(b"123456"), 5), Err(Encoded::TooLong));
        assert_eq!(decoded(&["gzip"], &[gzip(b"123"), gzip(b"456")].concat(), 5), Err(Encoded::TooLong));
        assert_eq!(decoded(&["gzip"], b"", 5), Err(Encoded::Cut));
    }

    proptest! {
        #[test]
        fn all_members_are_read_or_nothing(
            parts in prop::collection::vec("[0-9a-z\\[\\] ]{0,40}", 1..40),
            cut in any::<prop::sample::Index>(),
            junk in prop::collection::vec(any::<u8>(), 1..40),
        ) {
            let whole = parts.concat().into_bytes();
            let members: Vec<Vec<u8>> = parts.iter().map(|part| gzip(part.as_bytes())).collect();
            let encoded = members.concat();
            prop_assert_eq!(decoded(&["gzip"], &encoded, 10_000), Ok(whole));

            let ends: Vec<usize> = members.iter().scan(0, |end, member| { *end += member.len(); Some(*end) }).collect();
            let cut = cut.index(encoded.len());
            if !ends.contains(&cut) {
                prop_assert!(decoded(&["gzip"], &encoded[..cut], 10_000).is_err());
            }
            prop_assert!(decoded(&["gzip"], &[encoded.clone(), junk].concat(), 10_000).is_err());
            prop_assert!(decoded(&["gzip"], &[encoded, vec![0; 8]].concat(), 10_000).is_err());
        }

        #[test]
        fn changed_bytes_are_no_other_value(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let text = b"{\"name\": \"Mona Lisa\", \"year\": 1503, \"artist\": \"Leonardo\"}";
            let mut encoded = gzip(text);
            let at = at.index(encoded.len());
            encoded[at] ^= 1 << bit;
            if let Ok(bytes) = decoded(&["gzip"], &encoded, 10_000) {
                prop_assert_eq!(bytes, text);
            }
        }

        #[test]
        fn any_bytes_decode_within_bounds(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = [&[0x1f, 0x8b, 8, 0][..], &bytes].concat();
            let _ = decode(&headers(&["gzip"]), &mut bytes, 1000);
            prop_assert!(bytes.len() <= 1000);
        }
    }

    #[test]
    fn members_cut_at_each_byte_are_refused() {
        let encoded = [gzip(b"12"), gzip(b"34")].concat();
        let first = gzip(b"12").len();
        for cut in (0..encoded.len()).filter(|cut| *cut != first) {
            assert_eq!(decoded(&["gzip"], &encoded[..cut], 100), Err(Encoded::Cut), "{cut}");
        }
        assert_eq!(decoded(&["gzip"], &encoded, 100), Ok(b"1234".to_vec()));
    }
}
