//! Hash slots of a Redis Cluster, and tags that bring a key into a slot.

use std::sync::LazyLock;

/// Slots of a Redis Cluster.
pub(crate) const SLOTS: u16 = 16_384;
/// The checksum that gives a key its slot.
pub(crate) static CRC: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_16_XMODEM);

/// Returns the hash slot of a key, as Redis Cluster computes it.
pub(crate) fn slot_of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|b| *b == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|b| *b == b'}').map(|close| &rest[..close])
    });
    CRC.checksum(tag.filter(|tag| !tag.is_empty()).unwrap_or(key)) % SLOTS
}

/// Returns the hash slot of a key, as Redis Cluster computes it.
pub fn slot(key: &str) -> u16 {
    slot_of(key.as_bytes())
}

/// Returns a tag of at most four characters that hashes to the same slot as `key`.
pub(super) fn tag_of(key: &str) -> &'static str {
    tag_at(slot(key))
}

/// Returns a tag of at most four characters that hashes to this slot.
pub(super) fn tag_at(slot_of_tag: u16) -> &'static str {
    static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
        let mut tags = vec![String::new(); usize::from(SLOTS)];
        let mut missing = tags.len();
        let mut n = 0_u32;
        while missing > 0 {
            let tag = base36(n);
            let place = &mut tags[usize::from(slot(&tag))];
            if place.is_empty() {
                *place = tag;
                missing -= 1;
            }
            n += 1;
        }
        tags
    });
    &TAGS[usize::from(slot_of_tag)]
}

fn base36(mut n: u32) -> String {
    let mut text = Vec::new();
    loop {
        text.push(b"0123456789abcdefghijklmnopqrstuvwxyz"[(n % 36) as usize]);
        n /= 36;
        if n == 0 {
            break;
        }
    }
    text.iter().rev().map(|&b| char::from(b)).collect()
}
