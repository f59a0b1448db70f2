//! `bulk` of an HTTP source: how many entries one request asks for, and how an answer's items name them.

use super::document::{Field, Table, short};
use super::item::item;
use super::pointer::pointer;
use super::scope::Scope;
use crate::job::{Absent, Bulk, KeyPattern, Shape, Template};
use std::ops::RangeInclusive;
use std::time::Duration;

/// The allowed number of entries in one request.
const SIZE: RangeInclusive<u64> = 2..=1_000;
/// The allowed wait of an entry for others.
const WAIT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(5);
const DEFAULT_WAIT: Duration = Duration::from_millis(20);
/// The fields that say how a request for many entries is made and answered.
const OF_BULK: [&str; 4] = ["items", "item", "absent", "wait"];

/// Reads `bulk` and the fields that belong to it; `key` is absent where it is at fault itself.
pub(super) fn bulk(table: &Table<'_>, field: Option<&Field<'_>>, key: Option<&KeyPattern>) -> Option<Bulk> {
    let [items_field, item_field, absent_field, wait_field] = OF_BULK.map(|name| table.field(name));
    let Some(field) = field else {
        for other in [items_field, item_field, absent_field, wait_field].into_iter().flatten() {
            other.doc.fault_with_help(
                other.key.clone(),
                format!("`{}` has no effect without `bulk`", other.name),
                Some("add `bulk = 100`, the most entries in one request, or remove it".to_owned()),
            );
        }
        return None;
    };
    let size = field.integer(SIZE);
    if key.is_some_and(|key| key.names().is_empty()) {
        field.doc.fault_with_help(
            field.key.clone(),
            "`bulk` asks for many entries, and a key without placeholders has one",
            Some("remove it, or add a placeholder to the key".to_owned()),
        );
    }
    let items = items_field.and_then(|field| pointer(&field)).unwrap_or_default();
    let item = item_field.map(|field| item(&field, key, None, &Scope::item())).unwrap_or_default();
    let absent = absent_field.and_then(|field| absent(&field)).unwrap_or(Absent::Gone);
    let wait = wait_field.and_then(|field| field.duration(WAIT)).unwrap_or(DEFAULT_WAIT);
    Some(Bulk { size: usize::try_from(size?).ok()?, items, item, absent, wait })
}

fn absent(field: &Field<'_>) -> Option<Absent> {
    let text = field.filled()?;
    match text.value.as_str() {
        "gone" => Some(Absent::Gone),
        "failed" => Some(Absent::Failed),
        other => {
            text.fault(format!("`absent` is \"gone\" or \"failed\", not \"{}\"", short(other)));
            None
        }
    }
}

/// Checks that a request for many entries says which: `entries` stands in its URL or in its body.
pub(super) fn check_entries(field: &Field<'_>, url: &Template, body: Option<&Shape>) {
    let mut templates = std::iter::once(url).chain(body.into_iter().flat_map(Shape::templates));
    let names_entries = |name: &String| name.split('.').next() == Some("entries");
    if !templates.any(|template| template.names().iter().any(names_entries)) {
        field.doc.fault_with_help(
            field.key.clone(),
            "neither the URL nor `body` has `entries`, so that a request does not say which entries it asks for",
            Some(
                "write a list of them, such as \"/artworks?ids={{ entries | map(attribute='id') | join(',') }}\", or \
                 remove `bulk`"
                    .to_owned(),
            ),
        );
    }
}
