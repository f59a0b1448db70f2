//! One HTTP request for many entries, and the item of each in its answer.
//!
//! Which entry an item is of decides whose value it becomes, and whether another entry counts as gone. An upstream may
//! also leave entries out because its answers are short, or because it names them otherwise. So an entry counts as gone
//! only by an answer without any item; before that, those that an answer leaves out are asked for again. Validators
//! (`ETag`) are not kept: they belong to an answer for the same entries.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Instant;

use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::client::{Body, Reached, Received, Request, answer_error};
use super::http::{Rendered, kind, made, render, select_by};
use super::{Answer, Ask, Ended, FetchError, Permit, Sources, context, item};
use crate::job::{Absent, Bulk, HttpSource, Job, Params, Source};

/// The longest URL of a request for several entries, in bytes: many servers refuse longer ones.
pub(crate) const LONGEST_URL: usize = 8_000;

/// A request for entries of a job, which is not sent yet.
#[derive(Debug)]
pub struct ManyRequest<'a> {
    job: &'a Job,
    source: &'a HttpSource,
    bulk: &'a Bulk,
    rendered: Rendered<'a>,
    wanted: Vec<&'a Params>,
}

/// The end of a request for entries of a job.
#[derive(Debug)]
pub struct Many {
    /// The part of each entry in the answer, in their order.
    pub parts: Result<Vec<Part>, FetchError>,
    /// One of the entries may be the reason why the upstream refuses all, or they are too many: fewer may be answered.
    pub is_divisible: bool,
}

/// The part of one entry in an answer for many; see [`Sources::value_of`].
#[derive(Debug)]
pub struct Part(Found);

#[derive(Debug)]
enum Found {
    Item(Body),
    Gone,
    /// It has no item, and others have: it is to be asked for again, without these.
    LeftOut,
    Failed(FetchError),
}

impl Part {
    /// Returns `true` if the answer has items of other entries only, so that the upstream may have this one all the
    /// same.
    pub fn is_left_out(&self) -> bool {
        matches!(self.0, Found::LeftOut)
    }
}

impl ManyRequest<'_> {
    /// Returns the length of the URL, in bytes.
    pub fn url_length(&self) -> usize {
        self.rendered.url.len()
    }

    /// Returns `true` if fewer entries should be asked for at once.
    pub fn is_too_long(&self) -> bool {
        self.url_length() > LONGEST_URL && self.wanted.len() > 1
    }
}

impl Sources {
    /// Renders the request of a source for many entries: their placeholders' values, and their inputs. Sort the
    /// entries, so that a request for the same ones is the same.
    ///
    /// # Errors
    /// A template that fails, perhaps because of one of the entries only, or a source that asks for each by itself.
    pub fn request_many<'a>(
        &self,
        job: &'a Job,
        source: usize,
        entries: &[(&'a Params, &Map<String, Value>)],
    ) -> Result<ManyRequest<'a>, FetchError> {
        let Some(Source::Http(source)) = job.sources.get(source) else { return Err(no_bulk(job)) };
        let bulk = source.bulk.as_ref().ok_or_else(|| no_bulk(job))?;
        let client = self.client(&source.upstream)?;
        let context = context_of_many(entries.iter().copied());
        let rendered = render(source, job, &context).map_err(|error| error.map(|text| client.hide(&text)))?;
        let wanted = entries.iter().map(|(params, _)| *params).collect();
        Ok(ManyRequest { job, source, bulk, rendered, wanted })
    }

    /// Sends a request for many entries under a permit of its upstream's gate, and returns the permit with the
    /// request's end.
    pub async fn fetch_many(&self, request: &ManyRequest<'_>, mut permit: Permit, deadline: Instant) -> Many {
        let began = Instant::now();
        permit.begin();
        let many = self.exchange_many(request, deadline).await;
        permit.spent(super::Spent::Nothing);
        permit.fetched(&request.job.name, Ended::from(&many.parts), began.elapsed());
        permit.end(&many.parts).await;
        many
    }

    /// Makes the answer of an entry from its part in an answer for many.
    ///
    /// # Errors
    /// The reason why the part cannot be used, without secrets.
    pub fn value_of(&self, ask: &Ask<'_>, part: Part) -> Result<Answer, FetchError> {
        let Some(Source::Http(source)) = ask.job.sources.get(ask.source) else { return Err(no_bulk(ask.job)) };
        let client = self.client(&source.upstream)?;
        match part.0 {
            Found::Gone => Ok(Answer::Gone),
            Found::LeftOut => Err(no_part(ask.job)),
            Found::Failed(error) => Err(error),
            Found::Item(item) => {
                let fetched = made(source, client.max_bytes(), &item, context(ask.params, ask.inputs, None));
                fetched.map(Answer::Value).map_err(|error| error.map(|text| client.hide(&text)))
            }
        }
    }

    /// Asks a source for an entry once, together with others that have no inputs, if it asks for many at once. If the
    /// upstream refuses them together, or leaves the entry out, asks for it alone.
    ///
    /// # Errors
    /// As [`Sources::fetch`].
    pub async fn fetch_among(&self, ask: &Ask<'_>, others: &[Params]) -> Result<Answer, FetchError> {
        let is_bulk = ask.job.sources.get(ask.source).is_some_and(|source| source.properties().at_once > 1);
        if !is_bulk || others.is_empty() {
            return self.fetch(ask).await;
        }
        let none = Map::new();
        let others = others.iter().filter(|params| *params != ask.params).map(|params| (params, &none));
        let mut entries: Vec<(&Params, &Map<String, Value>)> = others.chain([(ask.params, ask.inputs)]).collect();
        entries.sort_by_key(|(params, _)| *params);
        let request = self.request_many(ask.job, ask.source, &entries)?;
        let Many { parts, is_divisible } = self.exchange_many(&request, ask.deadline).await;
        if is_divisible {
            return self.fetch(ask).await;
        }
        let own = entries.iter().zip(parts?).find(|((params, _), _)| *params == ask.params);
        let (_, part) = own.ok_or_else(|| no_part(ask.job))?;
        if part.is_left_out() { self.fetch(ask).await } else { self.value_of(ask, part) }
    }

    /// Asks a source with `bulk` for one entry.
    pub(super) async fn fetch_lone(&self, ask: &Ask<'_>) -> Result<Answer, FetchError> {
        let request = self.request_many(ask.job, ask.source, &[(ask.params, ask.inputs)])?;
        let mut parts = self.exchange_many(&request, ask.deadline).await.parts?;
        self.value_of(ask, parts.pop().ok_or_else(|| no_part(ask.job))?)
    }

    async fn exchange_many(&self, request: &ManyRequest<'_>, deadline: Instant) -> Many {
        let ManyRequest { source, rendered: Rendered { url, headers, body }, wanted, .. } = request;
        let named: HashSet<&str> = wanted.iter().flat_map(|params| params.values().map(String::as_str)).collect();
        let reached = Reached::default();
        let exchange = async {
            let client = self.client(&source.upstream)?;
            let body = body.as_ref();
            let asked = Request { url, headers, body, known: None, named: Some(&named), max_bytes: None, deadline };
            let parts = match client.exchange_noting(asked, &reached).await {
                Ok(Received::Body(answer)) => parts(request, &answer),
                Ok(Received::Gone) if wanted.len() == 1 => Ok(vec![Part(Found::Gone)]),
                Ok(Received::Gone) => Err(answer_error(url, "says that it has none of the entries (404 or 410)")),
                Ok(Received::Unchanged) => Err(answer_error(url, "answers 304 to an unconditional request")),
                Err(error) => Err(error),
            };
            parts.map_err(|error| error.map(|text| client.hide(&text)))
        };
        let parts = exchange.await;
        let is_refused = matches!(reached.answered(), Some(400 | 404 | 410 | 413 | 414 | 422)) || reached.is_too_long();
        let is_divisible = wanted.len() > 1 && is_refused && matches!(parts, Err(FetchError::Answer(_)));
        Many { parts, is_divisible }
    }
}

/// Returns the context of the templates of a request for many entries.
pub fn context_of_many<'a>(entries: impl IntoIterator<Item = (&'a Params, &'a Map<String, Value>)>) -> Value {
    let entries: Vec<Value> = entries.into_iter().map(|(params, inputs)| context(params, inputs, None)).collect();
    serde_json::json!({ "entries": entries })
}

fn no_bulk(job: &Job) -> FetchError {
    FetchError::Answer(format!("job `{}` asks for each entry by itself: the job files changed", job.name))
}

/// Returns the error of an entry of which an answer tells nothing.
fn no_part(job: &Job) -> FetchError {
    FetchError::Answer(format!("an answer for entries of job `{}` has no part of this one", job.name))
}

/// Returns the part of each entry of a request in its answer.
fn parts(request: &ManyRequest<'_>, answer: &Body) -> Result<Vec<Part>, FetchError> {
    let ManyRequest { job, bulk, wanted, .. } = request;
    let places: HashMap<&Params, usize> = wanted.iter().enumerate().map(|(place, params)| (*params, place)).collect();
    let mut found: Vec<Vec<&str>> = vec![Vec::new(); wanted.len()];
    let (mut others, mut nameless) = (0, None);
    let items = items(answer.text()?, bulk).map_err(|reason| answer.error(&reason))?;
    for (number, (name, json)) in (1..).zip(&items) {
        match named(job, bulk, name.as_deref(), json) {
            Ok(params) => match places.get(&params) {
                Some(place) => found[*place].push(json),
                None => others += 1,
            },
            Err(reason) => _ = nameless.get_or_insert_with(|| format!("its item {number} {reason}")),
        }
    }
    let doubt = match nameless {
        // It may be the one of this entry.
        Some(why) => Some(format!("has no item of this entry, and {why}")),
        // It may be this one by another name, or the upstream does not take the list of entries.
        None if others > 0 => {
            Some(format!("has no item of this entry, and items of entries that were not asked for ({others})"))
        }
        None => (bulk.absent == Absent::Failed).then(|| "has no item of this entry".to_owned()),
    };
    // Once for all, since it hides secrets.
    let absent = match doubt {
        Some(reason) => Err(answer.error(&reason)),
        None => Ok(found.iter().all(Vec::is_empty)),
    };
    let part = |items: Vec<&str>| match (items.as_slice(), &absent) {
        ([item], _) => Found::Item(answer.item(item)),
        ([], Err(error)) => Found::Failed(error.clone()),
        ([], Ok(true)) => Found::Gone,
        ([], Ok(false)) => Found::LeftOut,
        (several, _) => Found::Failed(answer.error(&format!("has {} items of this entry", several.len()))),
    };
    Ok(found.into_iter().map(part).map(Part).collect())
}

/// Items of an answer, and the names of those of an object.
type Items<'a, T> = Vec<(Option<Cow<'a, str>>, T)>;

/// Returns the items of an answer as they are written, each with its name if they are those of an object. A `null` is
/// none.
fn items<'a>(answer: &'a str, bulk: &Bulk) -> Result<Items<'a, &'a str>, String> {
    let json = select_by(answer, &bulk.items, "items")?;
    let not_json = |error: serde_json::Error| format!("is not JSON: {error}");
    let items: Items<'a, &'a RawValue> = if json.starts_with('[') {
        let items: Vec<&RawValue> = serde_json::from_str(json).map_err(not_json)?;
        items.into_iter().map(|item| (None, item)).collect()
    } else if json.starts_with('{') {
        serde_json::Deserializer::from_str(json).deserialize_map(Fields).map_err(not_json)?
    } else {
        let found = serde_json::from_str(json).as_ref().map_or("not JSON", kind);
        return Err(format!("has {found} in place of the items, which are an array or an object: see `items`"));
    };
    Ok(items.into_iter().map(|(name, item)| (name, item.get())).filter(|(_, item)| *item != "null").collect())
}

/// Reads the fields of an object, also those with equal names.
struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Items<'de, &'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some((name, item)) = fields.next_entry::<Name<'de>, &RawValue>()? {
            items.push((Some(name.0), item));
        }
        Ok(items)
    }
}

/// The name of a field, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Returns the entry that an item is of.
fn named(job: &Job, bulk: &Bulk, name: Option<&str>, json: &str) -> Result<Params, String> {
    if !bulk.item.is_empty() {
        return item::by_templates(json, &bulk.item, name);
    }
    if json.starts_with('{') {
        return item::by_fields(json, &job.key.names().iter().collect::<Vec<_>>());
    }
    let what = serde_json::from_str(json).as_ref().map_or("not JSON", kind);
    Err(format!("is {what}, and not an object that names its entry: see `item`"))
}
