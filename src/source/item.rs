//! Items of an answer: the placeholders' values that each gives. A number counts as its text, as the answer writes it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::context;
use super::http::kind;
use crate::job::{Params, Template};

/// JSON integers of this size or more are read as floats, unless they fit into 64 bits.
const EXACT: f64 = 9_223_372_036_854_775_808.0;

/// Returns what templates make of an item, and of its `name` if it has one.
///
/// # Errors
/// The rest of a sentence that begins with the item.
pub(super) fn by_templates(
    item: &str,
    templates: &BTreeMap<String, Template>,
    name: Option<&str>,
) -> Result<Params, String> {
    let mut value: Value = serde_json::from_str(item).map_err(|error| format!("is not JSON: {error}"))?;
    let of = |value| {
        let mut context = context(&Params::new(), &Map::new(), Some(value));
        if let Some(name) = name {
            context["name"] = name.into();
        }
        context
    };
    let context = of(value.clone());
    let exact = (zero_inexact(&mut value) > 0).then(|| of(value));
    let params = templates.iter().map(|(name, template)| {
        let value = template.value(&context).map_err(|reason| format!("gives no `{name}`: {reason}"))?;
        if exact.as_ref().is_some_and(|exact| template.value(exact).as_ref() != Ok(&value)) {
            return Err(format!("gives a number of more than 64 bits as `{name}`: send it as a string"));
        }
        // A string is a text already; anything else is read as the answer's own fields are.
        let text = match value {
            Value::String(text) => filled(text),
            other => text_of(&other.to_string()),
        };
        Ok((name.clone(), text.map_err(|what| format!("gives {what} as `{name}`"))?))
    });
    params.collect()
}

/// Returns the fields of an object with these names.
///
/// # Errors
/// The rest of a sentence that begins with the item.
pub(super) fn by_fields(item: &str, names: &[&String]) -> Result<Params, String> {
    let mut fields: BTreeMap<Cow<'_, str>, &RawValue> =
        serde_json::from_str(item).map_err(|error| format!("is not JSON: {error}"))?;
    let params = names.iter().map(|name| {
        let field = fields.remove(name.as_str()).ok_or_else(|| format!("has no `{name}`: see `item`"))?;
        Ok(((*name).clone(), text_of(field.get()).map_err(|what| format!("has {what} as `{name}`"))?))
    });
    params.collect()
}

/// Returns the text that a JSON value stands for: a string's, or a number as it is written. Otherwise returns what the
/// value is.
pub(super) fn text_of(json: &str) -> Result<String, &'static str> {
    if json.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
        return Ok(json.to_owned());
    }
    match serde_json::from_str(json) {
        Ok(Value::String(text)) => filled(text),
        Ok(other) => Err(kind(&other)),
        Err(_) => Err("not JSON"),
    }
}

/// Replaces the numbers that are too large to be exact by 0, and returns how many there are.
fn zero_inexact(value: &mut Value) -> usize {
    match value {
        Value::Number(number) if number.as_f64().is_some_and(|float| number.is_f64() && float.abs() >= EXACT) => {
            *value = 0.into();
            1
        }
        Value::Array(items) => items.iter_mut().map(zero_inexact).sum(),
        Value::Object(fields) => fields.values_mut().map(zero_inexact).sum(),
        _ => 0,
    }
}

fn filled(text: String) -> Result<String, &'static str> {
    if text.is_empty() { Err("an empty string") } else { Ok(text) }
}
