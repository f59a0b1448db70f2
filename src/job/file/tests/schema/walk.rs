//! A walk over a schema along an instance: which fields the schema knows in each table.

use super::Schema;
use serde_json::Value;
use std::collections::BTreeSet;

/// The tables of an instance with the fields that a schema knows in each.
pub(super) struct Walk<'s> {
    schema: &'s Schema,
    pub(super) tables: Vec<(Vec<String>, BTreeSet<String>)>,
    /// JSON Pointers of the parts of the schema that were used.
    pub(super) used: BTreeSet<String>,
}

impl<'s> Walk<'s> {
    pub(super) fn over(schema: &'s Schema, instance: &Value) -> Self {
        let mut walk = Self { schema, tables: Vec::new(), used: BTreeSet::new() };
        walk.visit("", instance, &[]);
        walk
    }

    fn node(&self, pointer: &str) -> &Value {
        self.schema.document.pointer(pointer).unwrap_or(&Value::Null)
    }

    fn is_valid(&self, pointer: &str, instance: &Value) -> bool {
        self.schema.part(pointer).is_valid(instance)
    }

    fn visit(&mut self, pointer: &str, instance: &Value, path: &[String]) {
        self.used.insert(pointer.to_owned());
        let node = self.node(pointer).clone();
        if let Some(target) = node["$ref"].as_str() {
            return self.visit(target.trim_start_matches('#'), instance, path);
        }
        let first = self.tables.len();
        for keyword in ["allOf", "anyOf", "oneOf"] {
            for branch in 0..node[keyword].as_array().map_or(0, Vec::len) {
                let branch = format!("{pointer}/{keyword}/{branch}");
                if self.is_valid(&branch, instance) {
                    self.visit(&branch, instance, path);
                }
            }
        }
        let below = |name: &str| [path, &[name.to_owned()]].concat();
        for (index, item) in instance.as_array().into_iter().flatten().enumerate() {
            if node["items"].is_object() {
                self.visit(&format!("{pointer}/items"), item, &below(&index.to_string()));
            }
        }
        let known = |name: &String| !node["properties"][name].is_null();
        for (name, value) in instance.as_object().into_iter().flatten() {
            if known(name) {
                self.visit(&format!("{pointer}/properties/{name}"), value, &below(name));
            } else if node["additionalProperties"].is_object() {
                self.visit(&format!("{pointer}/additionalProperties"), value, &below(name));
            }
        }
        if node["additionalProperties"] == false {
            let mut names: BTreeSet<String> = node["properties"].as_object().unwrap().keys().cloned().collect();
            self.narrow(pointer, instance, &mut names);
            self.tables.push((path.to_owned(), names));
        }
        for refused in node["not"]["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            for (_, names) in self.tables[first..].iter_mut().filter(|(table, _)| table == path) {
                names.remove(refused);
            }
        }
    }

    /// Leaves the names that the conditions of a part of the schema allow.
    fn narrow(&mut self, pointer: &str, instance: &Value, names: &mut BTreeSet<String>) {
        if let Some(allowed) = self.node(pointer)["propertyNames"]["enum"].as_array() {
            names.retain(|name| allowed.iter().any(|one| one == name));
            self.used.insert(format!("{pointer}/propertyNames"));
        }
        if self.node(pointer)["if"].is_object() {
            let branch = if self.is_valid(&format!("{pointer}/if"), instance) { "then" } else { "else" };
            self.narrow(&format!("{pointer}/{branch}"), instance, names);
        }
    }
}

/// Returns the JSON Pointers of what an example must use: each field of a table, and each list of the names of a kind.
pub(super) fn to_be_used(schema: &Value, pointer: &str, found: &mut BTreeSet<String>) {
    if schema["propertyNames"]["enum"].is_array() {
        found.insert(format!("{pointer}/propertyNames"));
    }
    let is_closed = schema["additionalProperties"] == false;
    for name in schema["properties"].as_object().into_iter().flat_map(|all| all.keys()).filter(|_| is_closed) {
        found.insert(format!("{pointer}/properties/{name}"));
    }
    match schema {
        Value::Object(all) => all.iter().for_each(|(name, part)| to_be_used(part, &format!("{pointer}/{name}"), found)),
        Value::Array(all) => {
            all.iter().enumerate().for_each(|(at, part)| to_be_used(part, &format!("{pointer}/{at}"), found));
        }
        _ => {}
    }
}
