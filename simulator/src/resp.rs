//! The wire format: commands of subscriptions, and replies.

/// The reply of a wait that was in vain.
pub(crate) const NIL: &[u8] = b"*-1\r\n";

/// Reads a whole command: its words, and its length in bytes.
pub(crate) fn command(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let (count, mut at) = number(bytes, 0, b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let (length, begin) = number(bytes, at, b'$')?;
        words.push(bytes.get(begin..begin + length)?.to_vec());
        at = begin + length + 2;
    }
    (at <= bytes.len()).then_some((words, at))
}

/// Reads a number with its sign, and returns where the next line begins.
fn number(bytes: &[u8], at: usize, sign: u8) -> Option<(usize, usize)> {
    let line = bytes.get(at..)?;
    let end = line.windows(2).position(|two| two == b"\r\n")?;
    let text = line.get(..end)?.strip_prefix(&[sign])?;
    Some((std::str::from_utf8(text).ok()?.parse().ok()?, at + end + 2))
}

/// Returns true if a reply is nil.
pub(crate) fn is_nil(reply: &[u8]) -> bool {
    matches!(reply, b"$-1\r\n" | b"*-1\r\n" | b"_\r\n")
}
