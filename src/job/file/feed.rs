//! `feed` of `[entries]`: where entries are asked for, and how an answer's items name them.

use super::document::{Field, Table, short};
use super::item::{check_placeholder, item};
use super::pointer::pointer;
use super::scope::Scope;
use super::source::{Target, target};
use super::upstreams::{Upstreams, size};
use crate::job::{Feed, KeyPattern, Params};
use std::collections::BTreeMap;

/// The most combinations of constants that an item is crossed with.
const MOST_COMBINATIONS: usize = 1_000;

/// Reads a feed; `key` is absent where it is at fault itself.
pub(super) fn feed(field: &Field<'_>, key: Option<&KeyPattern>, upstreams: &Upstreams) -> Option<Feed> {
    let table = field.table("`feed`")?;
    let target = target(&table, &Scope::environment(), upstreams, None);
    let select = table.field("select").and_then(|field| pointer(&field)).unwrap_or_default();
    let (item_field, with_field) = (table.field("item"), table.field("with"));
    let constants = with_field.as_ref().map(|field| constants(field, key)).unwrap_or_default();
    let scope = Scope::environment().with_value();
    let item = item_field.as_ref().map(|field| item(field, key, Some(&constants), &scope)).unwrap_or_default();
    let names = key.map(KeyPattern::names).unwrap_or_default();
    let gives_all = !names.is_empty() && names.iter().all(|name| constants.contains_key(name));
    if let Some(field) = with_field.as_ref().filter(|_| gives_all) {
        field.doc.fault_with_help(
            field.key.clone(),
            "`with` gives all placeholders of the key, and leaves none to the feed",
            Some("write these entries into `list`, or leave a placeholder to the items".to_owned()),
        );
    }
    let (next, next_param) = next(&table);
    let max_bytes = table.field("max_bytes").and_then(|field| field.parsed(size));
    let may_be_empty = table.field("empty").and_then(|field| empty(&field));
    table.finish();
    let Target { upstream, url } = target?;
    let with = with_field.as_ref().map_or_else(|| crossed(&constants), |field| bounded(field, &constants));
    let may_be_empty = may_be_empty.is_some();
    Some(Feed { upstream, url, select, item, with, next, next_param, max_bytes, may_be_empty })
}

/// Reads `with`: constants by placeholder. One that stands twice counts once.
fn constants(field: &Field<'_>, key: Option<&KeyPattern>) -> BTreeMap<String, Vec<String>> {
    let mut constants = BTreeMap::new();
    for field in field.table("`with`").iter().flat_map(Table::all) {
        check_placeholder(&field, key);
        let mut texts: Vec<String> = Vec::new();
        let Some(items) = field.items() else {
            // `item` need not give this placeholder.
            constants.insert(field.name, texts);
            continue;
        };
        if items.is_empty() {
            field.fault_with_help(
                format!("`{}` lists nothing, so the feed would name no entry", field.name),
                "write at least one constant, or leave the placeholder to the items",
            );
        }
        for text in items.iter().filter_map(Field::text_or_number) {
            if text.value.is_empty() {
                text.fault(format!("a constant of `{}` is empty", field.name));
            } else if !texts.contains(&text.value) {
                texts.push(text.value);
            }
        }
        constants.insert(field.name, texts);
    }
    constants
}

/// Returns all combinations of the constants; a fault where they are too many.
fn bounded(field: &Field<'_>, constants: &BTreeMap<String, Vec<String>>) -> Vec<Params> {
    let count = constants.values().fold(1, |count: usize, texts| count.saturating_mul(texts.len()));
    if count <= MOST_COMBINATIONS {
        return crossed(constants);
    }
    field.doc.fault_with_help(
        field.key.clone(),
        format!("`with` makes {count} entries of each item; the most is {MOST_COMBINATIONS}"),
        Some("list fewer constants, or let the feed name the combinations that are needed".to_owned()),
    );
    Vec::new()
}

fn crossed(constants: &BTreeMap<String, Vec<String>>) -> Vec<Params> {
    constants.iter().fold(vec![Params::new()], |combinations, (name, texts)| {
        let with = |params: &Params, text: &String| {
            let mut params = params.clone();
            params.insert(name.clone(), text.clone());
            params
        };
        combinations.iter().flat_map(|params| texts.iter().map(move |text| with(params, text))).collect()
    })
}

/// Reads `next` and `next_param`.
fn next(table: &Table<'_>) -> (Option<jsonptr::PointerBuf>, Option<String>) {
    let (next, param) = (table.field("next"), table.field("next_param"));
    if let Some(param) = param.as_ref().filter(|_| next.is_none()) {
        param.doc.fault_with_help(
            param.key.clone(),
            "`next_param` has no effect without `next`",
            Some("add `next`, a JSON Pointer to the cursor in an answer, such as \"/next\"".to_owned()),
        );
    }
    let pointer = next.and_then(|field| {
        let pointer = pointer(&field)?;
        if pointer.is_root() {
            field.fault_with_help("`next` points to the whole answer", "write where the next page stands: \"/next\"");
        }
        Some(pointer)
    });
    (pointer, param.and_then(|field| field.filled()).map(|text| text.value))
}

/// Reads `empty`.
fn empty(field: &Field<'_>) -> Option<()> {
    let text = field.filled()?;
    if text.value == "ok" {
        return Some(());
    }
    text.fault_with_help(
        format!("`empty` can only be \"ok\", not \"{}\"", short(&text.value)),
        "remove it: an answer without entries is then refused if there were many",
    );
    None
}
