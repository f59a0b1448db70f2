//! Content codings (RFC 9110, section 8.4): decodes a body while it is read, within bounds.
//!
//! The only coding that is requested and decoded is gzip (RFC 1952). Several members count as one document. A body that
//! ends inside a member, fails a checksum, or has data other than members is an error, so half a document never passes
//! for a whole one. Both the decoded and the coded length are bounded.

use flate2::write::MultiGzDecoder;
use reqwest::header::{self, HeaderMap};
use std::io::{self, Write};

/// The value of `Accept-Encoding`.
pub(super) const ACCEPTED: &str = "gzip";
/// The first bytes of gzip data (RFC 1952, section 2.3.1).
const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// The most codings of a body.
const MOST_CODINGS: usize = 3;
/// The bytes that a coded body may be longer than its bound: the frames of members enlarge small documents.
const FRAMES: u64 = 64 << 10;
/// The part of an unknown coding's name that messages show, in characters.
const NAME_SHOWN: usize = 40;

/// The reason why a body cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// It is longer than its bound.
    TooLong,
    /// It is not gzip, or has other data beside it.
    Malformed,
    /// It ends inside a member, or the last member fails its checksum.
    Incomplete,
}

/// Decodes one body.
pub(super) struct Decoder {
    layers: Layers,
    /// The number of coded bytes that may still arrive.
    left: u64,
    coded: bool,
    /// The number of coded bytes that arrived.
    sent: usize,
}

/// The codings of a body, the outermost first.
enum Layers {
    Plain(Bounded),
    Gzip(Box<MultiGzDecoder<Layers>>),
}

struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Decoder {
    /// Returns a decoder for a body with these headers, of at most `most` decoded bytes.
    ///
    /// # Errors
    /// A coding that is not supported, by its name.
    pub(super) fn new(headers: &HeaderMap, most: u64) -> Result<Self, String> {
        let mut layers =
            Layers::Plain(Bounded { bytes: Vec::new(), most: usize::try_from(most).unwrap_or(usize::MAX) });
        let mut codings = 0;
        for line in headers.get_all(header::CONTENT_ENCODING) {
            let line = String::from_utf8_lossy(line.as_bytes());
            for coding in line.split(',').map(str::trim) {
                match coding.to_ascii_lowercase().as_str() {
                    "" | "identity" => {}
                    "gzip" | "x-gzip" if codings < MOST_CODINGS => {
                        codings += 1;
                        layers = Layers::Gzip(Box::new(MultiGzDecoder::new(layers)));
                    }
                    "gzip" | "x-gzip" => return Err(format!("is coded more than {MOST_CODINGS} times")),
                    _ => {
                        let name: String = coding.chars().take(NAME_SHOWN).collect();
                        return Err(format!(
                            "has the content coding `{name}`, but only {ACCEPTED}, which was requested, is supported"
                        ));
                    }
                }
            }
        }
        let coded = codings > 0;
        let left = if coded { most.saturating_add(FRAMES) } else { most };
        Ok(Self { layers, left, coded, sent: 0 })
    }

    /// Returns the number of coded bytes that may still arrive.
    pub(super) fn most_sent(&self) -> u64 {
        self.left
    }

    /// Returns `true` if the body has a coding.
    pub(super) fn is_coded(&self) -> bool {
        self.coded
    }

    /// Decodes the next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        // The decoder checks a header only when it is complete, and a short plain document is shorter than a header.
        let starts = MAGIC.iter().skip(self.sent).zip(bytes).all(|(magic, byte)| magic == byte);
        if self.coded && !starts {
            return Err(Broken::Malformed);
        }
        self.sent += bytes.len();
        let fits = usize::try_from(self.left).map_or(bytes.len(), |left| bytes.len().min(left));
        self.left -= fits as u64;
        self.layers.write_all(&bytes[..fits]).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => Broken::TooLong,
            _ => Broken::Malformed,
        })?;
        if fits < bytes.len() { Err(Broken::TooLong) } else { Ok(()) }
    }

    /// Returns the whole body. A body without bytes is empty in any coding.
    pub(super) fn finish(self) -> Result<Vec<u8>, Broken> {
        if self.sent == 0 {
            return Ok(Vec::new());
        }
        self.layers.finish().map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => Broken::TooLong,
            _ => Broken::Incomplete,
        })
    }

    /// Returns the bytes that were decoded so far.
    pub(super) fn so_far(mut self) -> Vec<u8> {
        // A fault of the rest does not matter: the beginning is shown.
        let _ = self.layers.flush();
        self.layers.written().to_vec()
    }
}

impl Layers {
    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Plain(bounded) => Ok(bounded.bytes),
            Self::Gzip(decoder) => decoder.finish()?.finish(),
        }
    }

    fn written(&self) -> &[u8] {
        match self {
            Self::Plain(bounded) => &bounded.bytes,
            Self::Gzip(decoder) => decoder.get_ref().written(),
        }
    }
}

impl Write for Layers {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(bounded) => bounded.write(bytes),
            Self::Gzip(decoder) => decoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Gzip(decoder) => decoder.flush(),
        }
    }
}

impl Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.most - self.bytes.len();
        if room == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let fits = bytes.len().min(room);
        self.bytes.extend_from_slice(&bytes[..fits]);
        Ok(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    fn member(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn headers(lines: &[&str]) -> HeaderMap {
        let lines = lines.iter().map(|line| (header::CONTENT_ENCODING, line.parse().unwrap()));
        let mut headers = HeaderMap::new();
        lines.for_each(|(name, line)| {
            headers.append(name, line);
        });
        headers
    }

    /// Decodes a body that arrives in pieces of this length.
    fn decoded(lines: &[&str], body: &[u8], piece: usize, most: u64) -> Result<Vec<u8>, Broken> {
        let mut decoder = Decoder::new(&headers(lines), most).unwrap();
        for bytes in body.chunks(piece.max(1)) {
            decoder.feed(bytes)?;
        }
        decoder.finish()
    }

    #[test]
    fn codings_are_read_in_every_spelling() {
        let once = member(b"1234");
        for lines in [
            &["gzip"][..],
            &["GZIP"],
            &["x-gzip"],
            &["X-GZip"],
            &["gzip, identity"],
            &["identity,gzip"],
            &[" ,gzip , "],
            &["identity", "gzip"],
            &["", "gzip", "Identity"],
        ] {
            assert_eq!(decoded(lines, &once, 3, 100), Ok(b"1234".to_vec()), "{lines:?}");
        }
        let twice = member(&once);
        assert_eq!(decoded(&["gzip, x-gzip"], &twice, 3, 100), Ok(b"1234".to_vec()));
        assert_eq!(decoded(&["gzip", "gzip"], &twice, 3, 100), Ok(b"1234".to_vec()));
        for lines in [&["identity"][..], &[""], &[",, ,"], &[]] {
            assert_eq!(decoded(lines, b"1234", 3, 4), Ok(b"1234".to_vec()), "{lines:?}");
        }
    }

    #[test]
    fn other_codings_are_named() {
        for (line, name) in [
            ("br", "`br`"),
            ("deflate", "`deflate`"),
            ("gzip, ZSTD", "`ZSTD`"),
            ("utf-8", "`utf-8`"),
            ("gzip;q=1", "`gzip;q=1`"),
            ("none", "`none`"),
        ] {
            let error = Decoder::new(&headers(&[line]), 100).err().unwrap();
            assert!(error.contains(name) && error.contains("only gzip"), "{error}");
        }
        assert!(Decoder::new(&headers(&["gzip,gzip,gzip,gzip"]), 100).is_err());
        let long = "x".repeat(10_000);
        assert!(Decoder::new(&headers(&[&long]), 100).err().unwrap().len() < 200);
    }

    #[test]
    fn a_body_is_bounded_as_sent_and_as_decoded() {
        let bomb = member(&vec![b' '; 10 << 20]);
        assert_eq!(decoded(&["gzip"], &bomb, 100, 1000), Err(Broken::TooLong));
        assert_eq!(decoded(&["gzip, gzip"], &member(&bomb), 100, 1000), Err(Broken::TooLong));
        let nothing = member(b"").repeat(10_000);
        assert_eq!(decoded(&["gzip"], &nothing, 1000, 1000), Err(Broken::TooLong));
        for (most, fits) in [(4, true), (3, false)] {
            assert_eq!(decoded(&["gzip"], &member(b"1234"), 1, most).is_ok(), fits);
            assert_eq!(decoded(&[], b"1234", 1, most).is_ok(), fits);
        }
    }

    #[test]
    fn an_empty_body_is_empty_and_a_plain_one_is_not_gzip() {
        assert_eq!(decoded(&["gzip"], b"", 1, 100), Ok(Vec::new()));
        assert_eq!(decoded(&["gzip"], &member(b""), 1, 100), Ok(Vec::new()));
        assert_eq!(decoded(&["gzip"], b"{\"a\": [1, 2, 3]}", 100, 100), Err(Broken::Malformed));
        assert_eq!(decoded(&["gzip"], b"1", 100, 100), Err(Broken::Malformed));
        assert_eq!(decoded(&["gzip"], b"\x1f1", 1, 100), Err(Broken::Malformed));
        assert_eq!(decoded(&["gzip"], b"\x1f\x8b", 1, 100), Err(Broken::Incomplete));
    }

    #[test]
    fn what_can_be_decoded_of_a_broken_body_is_shown() {
        let mut body = member(b"{\"error\": \"quota\"}");
        body.truncate(body.len() - 3);
        let mut decoder = Decoder::new(&headers(&["gzip"]), 100).unwrap();
        decoder.feed(&body).unwrap();
        assert_eq!(decoder.so_far(), b"{\"error\": \"quota\"}");
    }

    proptest! {
        #[test]
        fn members_are_one_document_or_an_error(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..8),
            piece in 1_usize..200,
            cut in any::<prop::sample::Index>(),
            junk in prop::collection::vec(any::<u8>(), 1..30),
            flip in any::<prop::sample::Index>(),
        ) {
            let document = parts.concat();
            let members: Vec<Vec<u8>> = parts.iter().map(|part| member(part)).collect();
            let body = members.concat();
            prop_assert_eq!(decoded(&["gzip"], &body, piece, 1000), Ok(document.clone()));

            // Cut anywhere but between two members.
            let at = cut.index(body.len());
            let mut ends = members.iter().scan(0, |end, member| { *end += member.len(); Some(*end) });
            if at > 0 && !ends.any(|end| end == at) {
                prop_assert!(decoded(&["gzip"], &body[..at], piece, 1000).is_err(), "cut at {}", at);
            }

            if !junk.starts_with(&[0x1f, 0x8b]) {
                let more = [body.as_slice(), &junk].concat();
                prop_assert!(decoded(&["gzip"], &more, piece, 1000).is_err());
            }

            // A flipped bit in a header's name or time changes nothing.
            let mut flipped = body.clone();
            flipped[flip.index(body.len())] ^= 0x10;
            if let Ok(read) = decoded(&["gzip"], &flipped, piece, 1000) {
                prop_assert_eq!(read, document);
            }
        }
    }
}
