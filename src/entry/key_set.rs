//! Sets of many keys in little memory.

use string_interner::StringInterner;
use string_interner::backend::StringBackend;
use string_interner::symbol::{Symbol, SymbolU32};

use super::EntryKey;

/// Distinct keys in the order in which they were inserted. All of them are one text in memory, so that a million keys
/// of 15 bytes take 40 MB; in a set of [`EntryKey`]s they take 100 MB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    keys: StringInterner<StringBackend>,
}

impl KeySet {
    /// Inserts a key. Returns `false` if it was there.
    pub fn insert(&mut self, key: &str) -> bool {
        let before = self.keys.len();
        self.keys.get_or_intern(key);
        self.keys.len() > before
    }

    /// Returns `true` if the key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.keys.get(key).is_some()
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns `true` if there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the key with this number, counted from 0.
    pub fn get(&self, number: usize) -> Option<&str> {
        SymbolU32::try_from_usize(number).and_then(|symbol| self.keys.resolve(symbol))
    }

    /// Returns the number of a key, counted from 0.
    pub fn number(&self, key: &str) -> Option<usize> {
        self.keys.get(key).map(Symbol::to_usize)
    }

    /// Returns the keys in the order in which they were inserted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|(_, key)| key)
    }

    /// Returns the keys in the order of their texts.
    pub fn sorted(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.iter().collect();
        keys.sort_unstable();
        keys
    }

    /// Returns the keys in the order in which they were inserted, so many at a time.
    pub fn pages(&self, size: usize) -> impl Iterator<Item = Vec<EntryKey>> {
        let size = size.max(1);
        let page = move |from| (from..self.len().min(from + size)).filter_map(|number| self.get(number));
        (0..self.len()).step_by(size).map(move |from| page(from).map(EntryKey::new).collect())
    }
}

impl<T: AsRef<str>> Extend<T> for KeySet {
    fn extend<I: IntoIterator<Item = T>>(&mut self, keys: I) {
        for key in keys {
            self.insert(key.as_ref());
        }
    }
}

impl<T: AsRef<str>> FromIterator<T> for KeySet {
    fn from_iter<I: IntoIterator<Item = T>>(keys: I) -> Self {
        let mut set = Self::default();
        set.extend(keys);
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_in_order_and_once() {
        let set: KeySet = ["b", "Göl", "", "b", "a"].into_iter().collect();
        assert_eq!(Vec::from_iter(set.iter()), ["b", "Göl", "", "a"]);
        assert_eq!(set.sorted(), ["", "Göl", "a", "b"]);
        assert_eq!((set.len(), set.get(1), set.get(4), set.number("Göl")), (4, Some("Göl"), None, Some(1)));
        assert!(set.contains("a") && !set.contains("G"));
        let pages: Vec<Vec<EntryKey>> = set.pages(3).collect();
        assert_eq!(
            pages,
            [vec!["b", "Göl", ""], vec!["a"]].map(|page| page.into_iter().map(EntryKey::new).collect::<Vec<_>>())
        );
        assert_eq!(KeySet::default().pages(3).count(), 0);
    }
}
