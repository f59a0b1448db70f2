//! HTTP sources: one bounded request to an upstream, and the JSON of its answer.
//!
//! Without `value`, the stored text is the upstream's own: the whole answer, or with `select` that part of it, byte for
//! byte, so that numbers too long for 64 bits stay as they are. A `value` builds a new document; there such numbers
//! become floating-point, as in any JSON reader. A full parse checks every answer. It also refuses raw NUL bytes,
//! invalid UTF-8, unpaired surrogates, numbers beyond a double and nesting beyond 128. A byte order mark is dropped.

use super::client::{Body, Received, Request};
use super::{Answer, Ask, FetchError, Fetched, Sources, context, unrenderable};
use crate::entry::Validators;
use crate::job::{HttpSource, Job, Template};
use jsonptr::Pointer;
use serde::Deserializer;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use twox_hash::XxHash3_64;

/// Validators longer than this are not kept; they live in Redis with every entry.
const VALIDATOR_LONGEST: usize = 512;

/// A request for an entry, or for many, with its templates rendered.
#[derive(Debug)]
pub(super) struct Rendered<'a> {
    pub(super) url: String,
    pub(super) headers: Vec<(&'a str, String)>,
    pub(super) body: Option<Value>,
}

/// Renders a source's request.
pub(super) fn render<'a>(source: &'a HttpSource, job: &Job, context: &Value) -> Result<Rendered<'a>, FetchError> {
    let fails = |template: &Template, reason: String| match source.bulk {
        // Its templates name the inputs within `entries`.
        Some(_) if !job.inputs.is_empty() => FetchError::Answer(reason),
        Some(_) | None => unrenderable(job, [template], reason),
    };
    let url = source.url.render_url(context).map_err(|reason| fails(&source.url, format!("url: {reason}")))?;
    let mut headers = Vec::new();
    for (name, template) in &source.headers {
        let text = template.render(context);
        let text = text.map_err(|reason| fails(template, format!("header `{name}`: {reason}")))?;
        headers.push((name.as_str(), text));
    }
    let body = match &source.body {
        Some(shape) => Some(shape.render(context).map_err(|reason| FetchError::Answer(format!("body: {reason}")))?),
        None => None,
    };
    Ok(Rendered { url, headers, body })
}

/// Asks an HTTP source once.
pub(super) async fn fetch(sources: &Sources, source: &HttpSource, ask: &Ask<'_>) -> Result<Answer, FetchError> {
    let client = sources.client(&source.upstream)?;
    let context = context(ask.params, ask.inputs, None);
    let Rendered { url, headers, body } = render(source, ask.job, &context)?;
    // A 304 says that the upstream's answer is the same. The value is only if it would be made of it in the same way.
    let made_from = body.is_none().then(|| fingerprint(ask, &url, &headers, &context));
    let known = ask.known.filter(|known| made_from.is_some() && known.prompt == made_from);
    let request = Request {
        url: &url,
        headers: &headers,
        body: body.as_ref(),
        known,
        named: None,
        max_bytes: None,
        deadline: ask.deadline,
    };
    let answer = match client.exchange(request).await? {
        Received::Unchanged => return Ok(Answer::Unchanged),
        Received::Gone => return Ok(Answer::Gone),
        Received::Body(answer) => answer,
    };
    let fetched = made(source, client.max_bytes(), &answer, context)?;
    let validators = match made_from {
        Some(_) => {
            Validators { etag: answer.header("etag"), last_modified: answer.header("last-modified"), prompt: made_from }
                .worth_keeping()
        }
        None => Validators::default(),
    };
    Ok(Answer::Value(Fetched { validators, ..fetched }))
}

/// Makes the value of an entry from an answer, or from an item of one. `most` is the longest value, in bytes.
pub(super) fn made(source: &HttpSource, most: u64, answer: &Body, mut context: Value) -> Result<Fetched, FetchError> {
    let text = answer.text()?;
    let validators = Validators::default();
    if source.accept.is_none() && source.value.is_none() {
        // Nobody looks into it.
        let selected = select_text(text, &source.select).map_err(|reason| answer.error(&reason))?;
        if selected == "null" {
            return Err(answer.error("is null: there is nothing to store"));
        }
        let json = selected.to_owned();
        return Ok(Fetched { json, parsed: None, validators, tokens: 0 });
    }
    let (selected, value) = select(text, &source.select).map_err(|reason| answer.error(&reason))?;
    if value.is_null() && source.value.is_none() {
        return Err(answer.error("is null: there is nothing to store"));
    }
    let mut json = Cow::Borrowed(selected);
    context["value"] = value;
    if let Some(accept) = &source.accept {
        match accept.test(&context) {
            Ok(true) => {}
            Ok(false) => return Err(answer.error("is refused by `accept`")),
            Err(reason) => return Err(answer.error(&format!("cannot be judged: `accept`: {reason}"))),
        }
    }
    let value = match &source.value {
        Some(shape) => {
            let built = shape
                .render(&context)
                .map_err(|reason| answer.error(&format!("does not make a value: `value`: {reason}")))?;
            if built.is_null() {
                return Err(answer.error("makes null: `value` has nothing to store"));
            }
            json = Cow::Owned(built.to_string());
            if json.len() as u64 > most {
                return Err(answer.error("makes a value longer than the upstream's `max_bytes`"));
            }
            built
        }
        None => context["value"].take(),
    };
    Ok(Fetched { json: json.into_owned(), parsed: Some(value), validators, tokens: 0 })
}

/// The part of a JSON text that a pointer names: as it is written, and parsed. The last of several equal keys counts,
/// as everywhere.
pub(super) fn select<'a>(text: &'a str, pointer: &Pointer) -> Result<(&'a str, Value), String> {
    if pointer.is_root() {
        let whole = serde_json::from_str(text).map_err(|error| not_json(text, &error))?;
        return Ok((text.trim_ascii(), whole));
    }
    let selected = select_text(text, pointer)?;
    let value = serde_json::from_str(selected).map_err(|error| not_json(text, &error))?;
    Ok((selected, value))
}

fn not_json(text: &str, error: &serde_json::Error) -> String {
    let start = text.trim_start();
    if start.is_empty() {
        "is empty".to_owned()
    } else if start.starts_with('<') {
        "is HTML or XML, not JSON".to_owned()
    } else {
        format!("is not JSON: {error}")
    }
}

/// Returns that part as it is written; checked, not parsed.
pub(super) fn select_text<'a>(text: &'a str, pointer: &Pointer) -> Result<&'a str, String> {
    select_by(text, pointer, "select")
}

/// Returns the part that the pointer in a field of the job file names, as it is written; checked, not parsed.
pub(super) fn select_by<'a>(text: &'a str, pointer: &Pointer, field: &str) -> Result<&'a str, String> {
    let not_json = |error: serde_json::Error| not_json(text, &error);
    // All of it, so that nothing is taken out of half an answer.
    let mut whole = serde_json::Deserializer::from_str(text);
    Checked.deserialize(&mut whole).and_then(|()| whole.end()).map_err(not_json)?;
    if pointer.is_root() {
        return Ok(text.trim_ascii());
    }
    let nowhere = || format!("has nothing at `{pointer}`: see `{field}`");
    let mut raw: &'a RawValue = serde_json::from_str(text).map_err(not_json)?;
    for token in pointer.tokens() {
        let token = token.decoded();
        raw = if raw.get().starts_with('{') {
            let mut fields: BTreeMap<Cow<'_, str>, &'a RawValue> = serde_json::from_str(raw.get()).map_err(not_json)?;
            fields.remove(&*token).ok_or_else(nowhere)?
        } else if raw.get().starts_with('[') {
            let items: Vec<&'a RawValue> = serde_json::from_str(raw.get()).map_err(not_json)?;
            // RFC 6901: no leading zeros.
            let index = token.parse::<usize>().ok().filter(|index| index.to_string() == *token);
            index.and_then(|index| items.get(index).copied()).ok_or_else(nowhere)?
        } else {
            return Err(nowhere());
        };
    }
    Ok(raw.get())
}

/// Reads JSON as closely as [`Value`] does, and keeps nothing of it.
struct Checked;

impl<'de> DeserializeSeed<'de> for Checked {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while fields.next_key_seed(Self)?.is_some() {
            fields.next_value_seed(Self)?;
        }
        Ok(())
    }
}

/// Returns a hash of what a value is made from besides the upstream's answer.
fn fingerprint(ask: &Ask<'_>, url: &str, headers: &[(&str, String)], context: &Value) -> String {
    let made_from = serde_json::to_vec(&(&ask.job.digest, ask.source, url, headers, context)).unwrap_or_default();
    crate::entry::compact(XxHash3_64::oneshot(&made_from))
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl Validators {
    /// Nothing where the upstream gave nothing; nothing unreasonably long.
    fn worth_keeping(mut self) -> Self {
        self.etag = self.etag.filter(|text| text.len() <= VALIDATOR_LONGEST);
        self.last_modified = self.last_modified.filter(|text| text.len() <= VALIDATOR_LONGEST);
        if self.etag.is_none() && self.last_modified.is_none() { Self::default() } else { self }
    }
}
