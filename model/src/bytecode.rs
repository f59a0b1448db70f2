//! Reads from Lua 5.1's bytecode which lines hold code.

use std::collections::BTreeSet;

struct Reader<'a> {
    bytes: &'a [u8],
    word: usize,
}

impl Reader<'_> {
    fn skip(&mut self, count: usize) -> Option<()> {
        self.bytes = self.bytes.get(count..)?;
        Some(())
    }

    fn number(&mut self, size: usize) -> Option<usize> {
        let mut bytes = [0; 8];
        bytes.get_mut(..size)?.copy_from_slice(self.bytes.get(..size)?);
        self.skip(size)?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    }

    fn int(&mut self) -> Option<usize> {
        self.number(4)
    }

    fn text(&mut self) -> Option<()> {
        let length = self.number(self.word)?;
        self.skip(length)
    }

    fn function(&mut self, lines: &mut BTreeSet<usize>) -> Option<()> {
        self.text()?;
        // Where it is defined, then parameters and the like.
        self.skip(4 + 4 + 4)?;
        let code = self.int()?;
        self.skip(4 * code)?;
        for _ in 0..self.int()? {
            match self.number(1)? {
                0 => {}
                1 => self.skip(1)?,
                3 => self.skip(8)?,
                4 => self.text()?,
                _ => return None,
            }
        }
        for _ in 0..self.int()? {
            self.function(lines)?;
        }
        for _ in 0..self.int()? {
            lines.insert(self.int()?);
        }
        for _ in 0..self.int()? {
            self.text()?;
            self.skip(8)?;
        }
        for _ in 0..self.int()? {
            self.text()?;
        }
        Some(())
    }
}

/// Returns the lines that hold code; `None` for bytecode of another form.
pub(crate) fn lines(bytes: &[u8]) -> Option<BTreeSet<usize>> {
    let header = bytes.get(..12)?;
    if !header.starts_with(b"\x1bLua\x51") || header[6] != 1 || header[7] != 4 || header[10] != 8 {
        return None;
    }
    let mut reader = Reader { bytes: &bytes[12..], word: usize::from(header[8]) };
    let mut lines = BTreeSet::new();
    reader.function(&mut lines)?;
    Some(lines)
}
