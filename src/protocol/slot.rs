//! Hash slots of a Redis Cluster.

use std::sync::LazyLock;

/// Slots of a Redis Cluster.
pub(super) const SLOTS: u16 = 16_384;
/// The checksum that gives a key its slot.
pub(super) static CRC: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_16_XMODEM);

/// Returns the hash slot of a key, as Redis Cluster computes it.
pub fn slot(key: &str) -> u16 {
    let hashed = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty())
        .unwrap_or(key);
    CRC.checksum(hashed.as_bytes()) % SLOTS
}

/// Returns a tag of at most four characters that hashes to the same slot as `key`.
pub(super) fn tag_of(key: &str) -> &'static str {
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
    &TAGS[usize::from(slot(key))]
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
