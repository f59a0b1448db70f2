//! `bulk` of an HTTP source: one request for many entries, and how its answer names them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::job::Template;

/// One request for many entries, and how the items of its answer are told apart.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// The most entries in one request.
    pub size: usize,
    /// JSON Pointer to the items in an answer: an array, or an object of items by name.
    pub items: jsonptr::PointerBuf,
    /// Templates over `value`, the item, and `name`, its name in an object, by placeholder. If empty, an item is an
    /// object with a field for each placeholder.
    pub item: BTreeMap<String, Template>,
    /// The meaning of an answer that has no item of an entry.
    pub absent: Absent,
    /// The longest wait of an entry that is due alone for others of its job.
    pub wait: Duration,
}

/// The meaning of an answer that has no item of an entry that it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The upstream does not have the entry, as if it had answered 404.
    Gone,
    /// The answer is unusable for this entry.
    Failed,
}
