//! Feeds: the entries that an upstream names for a job, read page by page.
//!
//! An item that names no entry is skipped and counted, so one bad item does not keep the others cold. An answer of
//! which nothing can be used is an error; the caller doubts one of which little can be used. A number counts as its
//! text, as the answer writes it.

use super::client::{Body, Client, Received, Request, answer_error};
use super::http::{kind, select_text};
use super::{FetchError, context, item};
use crate::entry::{KeySet, duration, excerpt};
use crate::job::{Feed, Job, Params};
use reqwest::Url;
use serde::Deserializer;
use serde::de::{SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

/// The most entries that a feed may name.
const LONGEST: usize = 1_000_000;
/// The default of a feed's `max_bytes`: enough for a million names.
const MAX_BYTES: u64 = 32 << 20;
/// The most pages of a feed.
const MOST_PAGES: usize = 1_000;
/// The part of an item that messages show, in characters.
const EXCERPT: usize = 100;
/// The longest time that all pages may take together.
const LONGEST_READING: Duration = Duration::from_secs(300);

/// The entries that a feed names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// The entries, in the upstream's order.
    pub entries: KeySet,
    /// Items that name no entry, and combinations of items with constants that make no key.
    pub skipped: usize,
    /// All items.
    pub items: usize,
    /// Items that name no entry, with any constants.
    pub useless: usize,
    /// The number of the first of these, counted from 1, and why it was skipped.
    pub first_skipped: Option<String>,
}

/// A feed whose pages are read one after the other.
pub struct FeedReading<'a> {
    client: &'a Client,
    feed: &'a Feed,
    job: &'a Job,
    first: Url,
    /// The page to read next; `None` once all are read.
    next: Option<Url>,
    asked: HashSet<Url>,
    began: Instant,
    fed: Fed,
}

impl<'a> FeedReading<'a> {
    pub(super) fn new(client: &'a Client, feed: &'a Feed, job: &'a Job) -> Result<Self, FetchError> {
        let unusable = |reason: String| FetchError::Answer(format!("url: {reason}"));
        let url = feed.url.render_url(&context(&Params::new(), &Map::new(), None)).map_err(unusable)?;
        let first = Url::parse(&url).map_err(|error| unusable(error.to_string()))?;
        let (next, asked) = (Some(first.clone()), HashSet::new());
        Ok(Self { client, feed, job, first, next, asked, began: Instant::now(), fed: Fed::default() })
    }

    /// Returns `true` once all pages are read.
    pub fn is_over(&self) -> bool {
        self.next.is_none()
    }

    /// Returns `true` as long as no page named an entry.
    pub fn names_nothing(&self) -> bool {
        self.fed.entries.is_empty()
    }

    /// Reads the next page, with one request.
    ///
    /// # Errors
    /// As [`super::Sources::fetch`], and for more pages or entries than a feed may have.
    pub async fn read_page(&mut self) -> Result<(), FetchError> {
        self.read().await.map_err(|error| error.map(|text| self.client.hide(&text)))
    }

    /// Returns the entries of all pages read.
    ///
    /// # Errors
    /// Fails if there are items, and none names an entry.
    pub fn finish(self) -> Result<Fed, FetchError> {
        let Self { client, fed, first, .. } = self;
        let why = fed.first_skipped.as_deref().map(|why| client.hide(why));
        let fed = Fed { first_skipped: why, ..fed };
        let Some(why) = &fed.first_skipped else { return Ok(fed) };
        if fed.entries.is_empty() {
            let (items, plural) = (fed.items, if fed.items == 1 { "" } else { "s" });
            let reason = format!("answered with {items} item{plural}, and none names an entry: {why}");
            return Err(answer_error(&client.hide(first.as_str()), &reason));
        }
        Ok(fed)
    }

    async fn read(&mut self) -> Result<(), FetchError> {
        let Some(url) = self.next.take() else { return Ok(()) };
        if self.asked.len() == MOST_PAGES {
            let reason = format!("has more than {MOST_PAGES} pages; let it name more items on each");
            return Err(answer_error(self.first.as_str(), &reason));
        }
        if self.began.elapsed() > LONGEST_READING {
            let longest = duration::text(LONGEST_READING);
            let reason = format!("has pages that take longer than {longest} together; let it name more items on each");
            return Err(answer_error(self.first.as_str(), &reason));
        }
        let deadline = Instant::now() + self.client.timeout();
        let max_bytes = Some(self.feed.max_bytes.unwrap_or(MAX_BYTES.max(self.client.max_bytes())));
        let request =
            Request { url: url.as_str(), headers: &[], body: None, known: None, named: None, max_bytes, deadline };
        let answer = match self.client.exchange(request).await? {
            Received::Body(answer) => answer,
            Received::Gone => return Err(answer_error(url.as_str(), "says that there is no such feed (404 or 410)")),
            Received::Unchanged => return Err(answer_error(url.as_str(), "answers 304 to an unconditional request")),
        };
        self.add_items(&answer)?;
        let next = self.next_page(&answer, &url)?;
        self.asked.insert(url);
        if next.as_ref().is_some_and(|next| self.asked.contains(next)) {
            return Err(answer.error("has a `next` that names a page that was already read"));
        }
        self.next = next;
        Ok(())
    }

    /// Adds the entries that a page's items name.
    fn add_items(&mut self, answer: &Body) -> Result<(), FetchError> {
        let selected = select_text(answer.text()?, &self.feed.select).map_err(|reason| answer.error(&reason))?;
        let (page, mut number) = (self.asked.len() + 1, 0);
        let read = each_item(selected, |item| {
            number += 1;
            self.fed.items += 1;
            if self.fed.entries.len() > LONGEST {
                return;
            }
            if let Err(Skipped { combinations, is_useless, reason }) = self.add(item) {
                self.fed.skipped += combinations;
                self.fed.useless += usize::from(is_useless);
                self.fed.first_skipped.get_or_insert_with(|| match self.feed.next {
                    Some(_) => format!("item {number} of page {page} {reason}"),
                    None => format!("item {number} {reason}"),
                });
            }
        });
        if read.is_err() {
            let found = serde_json::from_str(selected).as_ref().map_or("not JSON", kind);
            return Err(answer.error(&format!("is {found}, but a feed is an array: see `select`")));
        }
        if self.fed.entries.len() > LONGEST {
            return Err(answer.error(&format!("names more than {LONGEST} entries")));
        }
        Ok(())
    }

    /// Adds the entries that an item names, one for each combination of the constants. Otherwise returns what was
    /// skipped, and why.
    fn add(&mut self, item: &str) -> Result<(), Skipped> {
        let skipped = |reason| Skipped { combinations: 1, is_useless: true, reason };
        let named = self.params(item).map_err(skipped)?;
        let mut combinations = 0;
        for constants in &self.feed.with {
            let mut params = named.clone();
            params.extend(constants.iter().map(|(name, text)| (name.clone(), text.clone())));
            match self.job.key.write(&params) {
                Some(key) => _ = self.fed.entries.insert(key.as_str()),
                None => combinations += 1,
            }
        }
        if combinations == 0 {
            return Ok(());
        }
        let beginning = excerpt(item, EXCERPT);
        let reason = format!("makes no key of `{}`; it begins: {beginning}", self.job.key);
        Err(Skipped { combinations, is_useless: combinations == self.feed.with.len(), reason })
    }

    /// Returns the placeholders' values that an item gives.
    fn params(&self, item: &str) -> Result<Params, String> {
        if !self.feed.item.is_empty() {
            return item::by_templates(item, &self.feed.item, None);
        }
        let constants = self.feed.with.first();
        let is_left = |name: &&String| constants.is_none_or(|constants| !constants.contains_key(*name));
        let names: Vec<&String> = self.job.key.names().iter().filter(is_left).collect();
        if item.starts_with('{') {
            return item::by_fields(item, &names);
        }
        match names.as_slice() {
            [name] => match item::text_of(item) {
                Ok(text) => Ok(Params::from([((*name).clone(), text)])),
                Err(what) => Err(format!("is {what}, but must be text or a number")),
            },
            names => {
                let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
                let what = serde_json::from_str(item).as_ref().map_or("not JSON", kind);
                Err(format!("is {what}, but must be an object with {}", names.join(", ")))
            }
        }
    }

    /// Returns the page that follows an answer; `None` after the last one.
    fn next_page(&self, answer: &Body, url: &Url) -> Result<Option<Url>, FetchError> {
        let Some(pointer) = &self.feed.next else { return Ok(None) };
        let Ok(named) = select_text(answer.text()?, pointer) else { return Ok(None) };
        let named = match serde_json::from_str(named) {
            Ok(Value::Null | Value::Bool(false)) => return Ok(None),
            Ok(Value::String(text)) if text.is_empty() => return Ok(None),
            Ok(Value::String(text)) => text,
            Ok(Value::Number(_)) if self.feed.next_param.is_some() => named.to_owned(),
            Ok(other) => {
                return Err(answer.error(&format!("has {} at `{pointer}`, which names no page", kind(&other))));
            }
            Err(error) => return Err(answer.error(&format!("is not JSON: {error}"))),
        };
        if let Some(param) = &self.feed.next_param {
            let mut next = self.first.clone();
            let others: Vec<_> = self.first.query_pairs().filter(|(name, _)| name != param).collect();
            next.query_pairs_mut().clear().extend_pairs(others).append_pair(param, &named);
            return Ok(Some(next));
        }
        if !["http://", "https://", "/", "?"].iter().any(|start| named.starts_with(start)) {
            let reason = format!("has no URL at `{pointer}`: set `next_param` to the query parameter of a cursor");
            return Err(answer.error(&reason));
        }
        let next = url.join(&named).ok().filter(|next| {
            next.origin() == self.first.origin() && next.username().is_empty() && next.password().is_none()
        });
        let Some(mut next) = next else {
            let own = self.first.origin().ascii_serialization();
            return Err(answer.error(&format!("names a next page that is not at {own}: it is not asked")));
        };
        next.set_fragment(None);
        Ok(Some(next))
    }
}

/// The part of an item of a feed that names nothing.
struct Skipped {
    /// Combinations with constants that make no key; 1 if the item names nothing.
    combinations: usize,
    /// No combination makes a key.
    is_useless: bool,
    reason: String,
}

/// Passes each item of a JSON array to `take`, without a list of all of them. Fails if the text is no array.
fn each_item<'a>(array: &'a str, take: impl FnMut(&'a str)) -> serde_json::Result<()> {
    struct Items<F>(F);

    impl<'de, F: FnMut(&'de str)> Visitor<'de> for Items<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
            while let Some(item) = items.next_element::<&RawValue>()? {
                (self.0)(item.get());
            }
            Ok(())
        }
    }

    serde_json::Deserializer::from_str(array).deserialize_seq(Items(take))
}
