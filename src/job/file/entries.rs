//! `[entries]`: which entries a job keeps warm.

use super::document::{Field, short};
use super::feed::feed;
use super::spelling::has_names;
use super::upstreams::Upstreams;
use crate::job::{Entries, KeyPattern, Params};
use std::collections::BTreeSet;

const MOST_LISTED: usize = 100_000;

/// Reads `[entries]`.
pub(super) fn entries(field: &Field<'_>, key: Option<&KeyPattern>, upstreams: &Upstreams) -> Entries {
    let Some(table) = field.table("[entries]") else { return Entries::default() };
    let (list, feed_field, popular) = (table.field("list"), table.field("feed"), table.field("popular"));
    if let Some(key) = key.filter(|key| key.names().is_empty()) {
        for field in [&list, &feed_field, &popular].into_iter().flatten() {
            field.doc.fault_with_help(
                field.key.clone(),
                format!("`{}`: the key `{key}` has no placeholder, so there is only one entry", field.name),
                Some("remove it; the one entry is always kept warm".to_owned()),
            );
        }
    }
    let list = list.map(|field| listed(&field, key)).unwrap_or_default();
    let entries = Entries {
        feed: feed_field.and_then(|field| feed(&field, key, upstreams)),
        popular: popular
            .and_then(|field| field.integer(0..=1_000_000))
            .and_then(|number| usize::try_from(number).ok())
            .unwrap_or(0),
        ..Entries::default()
    };
    table.finish();
    entries.listing(list)
}

/// Entries named in the file. One that is named twice is kept once.
fn listed(field: &Field<'_>, key: Option<&KeyPattern>) -> Vec<Params> {
    let Some(items) = field.items() else { return Vec::new() };
    if items.len() > MOST_LISTED {
        field.doc.fault_with_help(
            field.key.clone(),
            format!("{} entries are too many to list; the most is {MOST_LISTED}", items.len()),
            Some("serve them from a `feed`".to_owned()),
        );
        return Vec::new();
    }
    let Some(key) = key.filter(|key| !key.names().is_empty()) else { return Vec::new() };
    let mut seen = BTreeSet::new();
    let mut list = Vec::with_capacity(items.len());
    for item in items {
        let Some(params) = entry(&item, key) else { continue };
        match key.write(&params) {
            Some(_) => {
                if seen.insert(params.clone()) {
                    list.push(params);
                }
            }
            None => item.fault_with_help(
                format!("{params:?} has no key: in `{key}` it would be too long, or be read back as something else"),
                "a key has 2048 bytes at most; a placeholder but the last ends where the text after it first occurs",
            ),
        }
    }
    list
}

fn entry(item: &Field<'_>, key: &KeyPattern) -> Option<Params> {
    let mut params = Params::new();
    if item.is_text_or_number() {
        let text = item.text_or_number()?;
        let [name] = key.names() else {
            let example: Vec<String> = key.names().iter().map(|name| format!("{name} = \"…\"")).collect();
            text.fault_with_help(
                format!("`{}`: the key `{key}` has {} placeholders", short(&text.value), key.names().len()),
                &format!("write a table, such as {{ {} }}", example.join(", ")),
            );
            return None;
        };
        if text.value.is_empty() {
            text.fault("an entry's name is empty");
            return None;
        }
        params.insert(name.clone(), text.value);
        return Some(params);
    }
    if !item.is_table() {
        item.fault("an entry is a string or a number, or a table with one for each placeholder");
        return None;
    }
    let mut sound = true;
    for field in item.table("an entry")?.all() {
        if !key.names().contains(&field.name) {
            field.doc.fault_with_help(
                field.key.clone(),
                format!("`{}` is no placeholder of the key `{key}`", field.name),
                Some(has_names(key)),
            );
            sound = false;
            continue;
        }
        match field.text_or_number() {
            Some(text) if text.value.is_empty() => {
                text.fault(format!("`{}` is empty", field.name));
                sound = false;
            }
            Some(text) => {
                params.insert(field.name.clone(), text.value);
            }
            None => sound = false,
        }
    }
    let missing: Vec<String> =
        key.names().iter().filter(|name| !params.contains_key(*name)).map(|name| format!("`{name}`")).collect();
    if sound && !missing.is_empty() {
        item.fault(format!("the entry has no {}", missing.join(", ")));
        sound = false;
    }
    sound.then_some(params)
}
