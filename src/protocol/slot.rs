//! Tags of keys that are in the slot of another key.

use std::sync::LazyLock;

pub(super) use crate::redis::SLOTS;
use crate::redis::slot_of;

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
