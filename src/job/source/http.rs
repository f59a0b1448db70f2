//! `kind = "http"`: one HTTP request and what is made of its answer.

use std::collections::BTreeMap;

use super::{Bulk, Outline, Properties};
use crate::entry::{UpstreamName, Usage};
use crate::job::{Shape, Template};

/// One HTTP request and what is made of its answer.
#[derive(Clone, Debug)]
pub struct HttpSource {
    /// The server that is asked, with its limits.
    pub upstream: UpstreamName,
    /// The absolute URL. What templates insert is percent-encoded as one path segment or query value.
    pub url: Template,
    /// Headers sent in addition to the upstream's.
    pub headers: BTreeMap<String, Template>,
    /// The JSON body, sent with POST; GET if absent.
    pub body: Option<Shape>,
    /// A JSON Pointer (RFC 6901) into the answer; empty for all of it.
    pub select: jsonptr::PointerBuf,
    /// An expression over `value` that a usable answer satisfies.
    pub accept: Option<Template>,
    /// The stored value, built from `value`, the selected part; if absent, the selected part as it is.
    pub value: Option<Shape>,
    /// One request is made for many entries. URL, headers and body are then made from the list `entries`, and `select`,
    /// `accept` and `value` apply to each item of the answer.
    pub bulk: Option<Bulk>,
}

impl HttpSource {
    pub(super) fn properties(&self) -> Properties<'_> {
        Properties {
            upstream: Some(&self.upstream),
            may_lag: true,
            costs_money: false,
            may_hold_unasked: false,
            waits_for_inputs: false,
            at_once: self.bulk.as_ref().map_or(1, |bulk| bulk.size),
            gathers: self.bulk.as_ref().map(|bulk| bulk.wait),
            saves: |_| Usage { not_modified: 1, ..Usage::default() },
        }
    }

    pub(super) fn outline(&self) -> Outline<'_> {
        let method = if self.body.is_some() { "POST" } else { "GET" };
        Outline {
            method,
            url: Some(&self.url),
            headers: Some(&self.headers),
            body: self.body.as_ref(),
            model: None,
            system: None,
            prompt: None,
            value: None,
            is_bulk: self.bulk.is_some(),
        }
    }
}
