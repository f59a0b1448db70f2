//! Hash slots of a Redis Cluster.

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
