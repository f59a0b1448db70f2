//! Key patterns: `artwork_info:{artwork_name}`, read both ways.
use super::{EntryKey, Params};

/// A pattern that writes an entry's key from its parameters and reads them back.
#[derive(Clone, Debug)]
pub struct KeyPattern {}

impl KeyPattern {
    /// Reads a pattern; `{{` and `}}` are literal braces.
    pub fn parse(_text: &str) -> Result<Self, String> {
        todo!()
    }
    /// The key for these parameters; `None` where one is missing, or where reading the key back would not give the same.
    pub fn write(&self, _params: &Params) -> Option<EntryKey> {
        todo!()
    }
    /// The parameters in a key; `None` where the key is not of this pattern.
    pub fn read(&self, _key: &str) -> Option<Params> {
        todo!()
    }
    /// A Redis glob (`SCAN MATCH`) that matches at least this pattern's keys.
    pub fn glob(&self) -> String {
        todo!()
    }
    /// The placeholders' names in order.
    pub fn names(&self) -> &[String] {
        todo!()
    }
    /// Whether some key could be of both patterns.
    pub fn overlaps(&self, _other: &Self) -> bool {
        todo!()
    }
}
