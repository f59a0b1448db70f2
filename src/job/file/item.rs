//! `item`: how the items of an answer name entries.

use super::document::{Field, short};
use super::scope::Scope;
use super::spelling::has_names;
use crate::job::{KeyPattern, Template};
use std::collections::BTreeMap;

/// Reads `item`: a template over an item for each placeholder that `with` does not give. `constants` are those of
/// `with`, where there may be any.
pub(super) fn item(
    field: &Field<'_>,
    key: Option<&KeyPattern>,
    constants: Option<&BTreeMap<String, Vec<String>>>,
    scope: &Scope,
) -> BTreeMap<String, Template> {
    let Some(table) = field.table("`item`") else { return BTreeMap::new() };
    let is_constant = |name: &String| constants.is_some_and(|constants| constants.contains_key(name));
    let fields = table.all();
    let mut item = BTreeMap::new();
    for field in &fields {
        if is_constant(&field.name) {
            field.doc.fault_with_help(
                field.key.clone(),
                format!("`{}` is in both `item` and `with`", field.name),
                Some("keep one of them".to_owned()),
            );
        } else {
            check_placeholder(field, key);
        }
        let Some(template) = field.template(scope) else { continue };
        if template.is_literal() {
            field.fault_with_help(
                format!("`{}` inserts nothing, so all items name the same: `{}`", field.name, short(template.source())),
                match constants {
                    Some(_) => "write a template over the item, such as \"{{ value.id }}\"; constants belong in `with`",
                    None => "write a template over the item, such as \"{{ value.id }}\"",
                },
            );
        }
        item.insert(field.name.clone(), template);
    }
    let is_given = |name: &String| is_constant(name) || fields.iter().any(|field| field.name == *name);
    let names = key.map(KeyPattern::names).unwrap_or_default();
    let missing: Vec<String> = names.iter().filter(|name| !is_given(name)).map(|name| format!("`{name}`")).collect();
    if let Some(first) = missing.first() {
        let name = first.trim_matches('`');
        field.doc.fault_with_help(
            field.key.clone(),
            format!("`item` has no {}", missing.join(", ")),
            Some(match constants {
                Some(_) => format!("add {name} = \"{{{{ value.{name} }}}}\", or constants for it in `with`"),
                None => format!("add {name} = \"{{{{ value.{name} }}}}\""),
            }),
        );
    }
    item
}

/// Checks that a field is named after a placeholder of the key.
pub(super) fn check_placeholder(field: &Field<'_>, key: Option<&KeyPattern>) {
    let Some(key) = key.filter(|key| !key.names().is_empty() && !key.names().contains(&field.name)) else { return };
    field.doc.fault_with_help(
        field.key.clone(),
        format!("`{}` is no placeholder of the key `{key}`", field.name),
        Some(has_names(key)),
    );
}
