//! Short hashes that are stored with every entry.

/// Returns a hash as text of at most 11 letters and digits.
pub fn compact(mut hash: u64) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::with_capacity(11);
    while hash > 0 || text.is_empty() {
        text.push(char::from(DIGITS[usize::try_from(hash % 62).unwrap_or(0)]));
        hash /= 62;
    }
    text
}

/// Returns the fingerprint of a value: equal hashes mean equal content.
pub fn hash(json: &str) -> String {
    compact(twox_hash::XxHash3_64::oneshot(json.as_bytes()))
}
