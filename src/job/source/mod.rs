//! Sources: where a job's values come from, and the properties by which the rest of the program treats them.
//!
//! Each kind states its properties in its own file. No other module looks at the kind, except `source`, which
//! fetches. A new kind takes these steps:
//!
//! 1. Here: a file with its properties and outline, a variant of [`Source`], and an arm in [`Source::properties`] and
//!    in [`Source::outline`].
//! 2. In `job/file/source.rs`: a parser, its arm in `source` and the word in the fault text there. Fields that say what
//!    a server is asked also go into `ASKING`, which `compose` refuses.
//! 3. In `job/file/upstreams.rs`, if it speaks another protocol: `checked_url` admits only `http` and `https`.
//! 4. In the module `source`: a file with its fetch, and an arm in `Sources::fetch_counting`. `Sources::new` builds an
//!    HTTP client for every upstream. A kind that costs tokens or may be kept without a request also needs an arm in
//!    `Sources::cost` or `Sources::unchanged_without_asking`.
//! 5. In `docs/sources.md` and `docs/jobs.md`: its row and its fields.

mod ai;
mod bulk;
mod compose;
mod http;

pub use ai::{AiFormat, AiSource};
pub use bulk::{Absent, Bulk};
pub use compose::ComposeSource;
pub use http::HttpSource;

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Shape, Template};
use crate::entry::{UpstreamName, Usage};

/// Where values come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// An HTTP service that answers with JSON.
    Http(Box<HttpSource>),
    /// An OpenAI-compatible chat completions server.
    Ai(Box<AiSource>),
    /// The entry's inputs.
    Compose(Box<ComposeSource>),
}

/// The properties of a source by which the rest of the program treats it.
#[derive(Clone, Copy, Debug)]
pub struct Properties<'a> {
    /// The server that is asked, with its limits. `None` if the source asks no server: it then needs no permit.
    pub upstream: Option<&'a UpstreamName>,
    /// The server may answer with an old value for a while after a change, as replicas and caches do.
    pub may_lag: bool,
    /// A fetch may cost money.
    pub costs_money: bool,
    /// A value may be kept without a request, because what it was made from says whether it would be the same.
    pub may_hold_unasked: bool,
    /// An entry waits for an input that was invalidated: a fetch before the input's would be repeated after it.
    pub waits_for_inputs: bool,
    /// The most entries that one request asks for.
    pub at_once: usize,
    /// The longest wait of an entry that is due alone for others to be asked for with it; `None` if each is asked for
    /// by itself.
    pub gathers: Option<Duration>,
    /// Returns what an unchanged value saved whose fetch cost this many tokens.
    pub saves: fn(u64) -> Usage,
}

/// A source as people are shown it, with the templates that are rendered before there is an answer.
#[derive(Clone, Copy, Debug)]
pub struct Outline<'a> {
    /// `GET` or `POST`; the kind of a source that asks no server, in capitals.
    pub method: &'static str,
    /// The URL that is asked.
    pub url: Option<&'a Template>,
    /// Headers sent in addition to the upstream's.
    pub headers: Option<&'a BTreeMap<String, Template>>,
    /// The JSON body of an HTTP source.
    pub body: Option<&'a Shape>,
    /// The AI model.
    pub model: Option<&'a str>,
    /// The system message of an AI source.
    pub system: Option<&'a Template>,
    /// The user message of an AI source.
    pub prompt: Option<&'a Template>,
    /// The value of a source that asks no server.
    pub value: Option<&'a Shape>,
    /// URL, headers and body are made from the list `entries`.
    pub is_bulk: bool,
}

impl Source {
    /// Returns the properties of the source.
    pub fn properties(&self) -> Properties<'_> {
        match self {
            Self::Http(source) => source.properties(),
            Self::Ai(source) => source.properties(),
            Self::Compose(source) => source.properties(),
        }
    }

    /// Returns what people are shown of the source.
    pub fn outline(&self) -> Outline<'_> {
        match self {
            Self::Http(source) => source.outline(),
            Self::Ai(source) => source.outline(),
            Self::Compose(source) => source.outline(),
        }
    }

    /// Returns the server that is asked; `None` if the source asks no server and so needs no permit.
    pub fn upstream(&self) -> Option<&UpstreamName> {
        self.properties().upstream
    }
}
