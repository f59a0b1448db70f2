//! `kind = "ai"`: one chat completion and what is made of it.

use super::{Outline, Properties};
use crate::entry::{UpstreamName, Usage};
use crate::job::Template;

/// One chat completion and what is made of it.
#[derive(Clone, Debug)]
pub struct AiSource {
    /// The server that is asked, with its limits and the token budget.
    pub upstream: UpstreamName,
    /// The absolute URL of `…/chat/completions`.
    pub url: Template,
    /// The model's name.
    pub model: String,
    /// The system message.
    pub system: Option<Template>,
    /// The user message.
    pub prompt: Template,
    /// The sampling temperature; the server's default if absent.
    pub temperature: Option<f64>,
    /// The longest answer that is requested, in tokens.
    pub max_tokens: Option<u32>,
    /// Further fields of the request's body, as they are.
    pub options: serde_json::Map<String, serde_json::Value>,
    /// The form in which the answer is stored.
    pub format: AiFormat,
}

/// The form in which an AI answer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AiFormat {
    /// As a JSON string.
    Text,
    /// As the JSON document that the answer must be.
    Json,
}

impl AiSource {
    /// The fields of the request's body that limit the answer.
    pub(crate) const LIMITS: [&str; 2] = ["max_tokens", "max_completion_tokens"];

    /// Returns the longest answer that is requested, in tokens, and the field of the body that says so.
    pub fn limit(&self) -> Option<(&'static str, u64)> {
        let option = |name| Some((name, self.options.get(name)?.as_u64()?));
        self.max_tokens
            .map(|most| ("max_tokens", u64::from(most)))
            .or_else(|| Self::LIMITS.into_iter().find_map(option))
    }

    pub(super) fn properties(&self) -> Properties<'_> {
        Properties {
            upstream: Some(&self.upstream),
            may_lag: false,
            costs_money: true,
            may_hold_unasked: true,
            // Each fetch is paid for, so one from an input's old value would be wasted.
            waits_for_inputs: true,
            at_once: 1,
            gathers: None,
            saves: |tokens| Usage { tokens_saved: tokens, calls_saved: 1, ..Usage::default() },
        }
    }

    pub(super) fn outline(&self) -> Outline<'_> {
        Outline {
            method: "POST",
            url: Some(&self.url),
            headers: None,
            body: None,
            model: Some(&self.model),
            system: self.system.as_ref(),
            prompt: Some(&self.prompt),
            value: None,
            is_bulk: false,
        }
    }
}
