//! AI sources: one chat completion of an OpenAI-compatible server, and JSON out of it.
//!
//! Generating costs money. So a value carries a hash of what it was made from (model, messages, settings, options), and
//! while that is the same, nothing is asked ([`unchanged`]). Every answer with a success status counts as paid, also
//! where it cannot be used, and so does a request whose answer did not come in time. The server's `usage` tells the
//! cost; what it does not tell is estimated ([`Spent`]). With the status of an error only what `usage` tells counts.
//!
//! With format `json` the answer must be a JSON document; one Markdown fence around the whole of it is taken off,
//! because many models cannot be kept from writing one, and each answer refused for it would be paid again.

use super::client::{Body, Reached, Received, Request, answer_error};
use super::completion::{Completion, estimate};
use super::http::select;
use super::{Answer, Ask, Cost, FetchError, Fetched, Sources, Spent, context, unrenderable};
use crate::entry::Validators;
use crate::job::{AiFormat, AiSource};
use jsonptr::Pointer;
use serde_json::{Value, json};
use twox_hash::XxHash3_128;

/// Asks an AI source once, if the value would be made from anything else than the present one. With what that cost,
/// whatever came of it.
pub(super) async fn fetch(sources: &Sources, source: &AiSource, ask: &Ask<'_>) -> (Result<Answer, FetchError>, Spent) {
    let client = match sources.client(&source.upstream) {
        Ok(client) => client,
        Err(error) => return (Err(error), Spent::Nothing),
    };
    let (url, body) = match request(source, ask) {
        Ok(request) => request,
        Err(reason) => {
            let templates = [&source.url, &source.prompt].into_iter().chain(&source.system);
            return (Err(unrenderable(ask.job, templates, reason)), Spent::Nothing);
        }
    };
    let made_from = fingerprint(source, &body);
    if ask.known.is_some_and(|known| known.prompt.as_ref() == Some(&made_from)) {
        return (Ok(Answer::Unchanged), Spent::Nothing);
    }
    let prompt = estimate(body.to_string().len());
    let request = Request {
        url: &url,
        headers: &[],
        body: Some(&body),
        known: None,
        named: None,
        max_bytes: None,
        deadline: ask.deadline,
    };
    let reached = Reached::default();
    let answer = match client.exchange_noting(request, &reached).await {
        Ok(Received::Body(answer)) => answer,
        Ok(Received::Gone) => {
            let reason = format!("has no such model or path (404 or 410): is `{}` right?", source.model);
            return (Err(answer_error(&url, &reason)), told(&reached, prompt).unwrap_or(Spent::Nothing));
        }
        Ok(Received::Unchanged) => {
            return (Err(answer_error(&url, "answers 304 to an unconditional request")), Spent::Nothing);
        }
        Err(error) => {
            let untold = if reached.may_be_paid() { Spent::Untold { prompt } } else { Spent::Nothing };
            return (Err(hinted(error, source)), told(&reached, prompt).unwrap_or(untold));
        }
    };
    let text = match answer.text() {
        Ok(text) => text,
        Err(error) => return (Err(error), Spent::Untold { prompt }),
    };
    let Some(completion) = Completion::read(text) else {
        let reason = select(text, Pointer::root()).err();
        return (Err(answer.error(reason.as_deref().unwrap_or("is not JSON"))), Spent::Untold { prompt });
    };
    let tokens = completion.tokens(prompt);
    let value = completion.text(source.limit()).map_err(|reason| match answer.error(&reason) {
        FetchError::Answer(reason) if completion.is_cut() => FetchError::Cut(reason),
        error => error,
    });
    let fetched = value.and_then(|text| stored(&text, source.format, &answer)).map(|(json, value)| {
        let validators = Validators { prompt: Some(made_from), ..Validators::default() };
        Answer::Value(Fetched { json, parsed: Some(value), validators, tokens })
    });
    (fetched, Spent::Tokens { prompt, all: tokens })
}

/// Returns what a request may cost; nothing if no request can be made.
pub(super) fn cost(source: &AiSource, ask: &Ask<'_>) -> Cost {
    let Ok((_, body)) = request(source, ask) else { return Cost::default() };
    let answer = source.limit().map(|(_, most)| most);
    Cost { prompt: estimate(body.to_string().len()), answer }
}

/// Returns what an answer without a value cost, if it tells that.
fn told(reached: &Reached, prompt: u64) -> Option<Spent> {
    let completion = Completion::read(reached.refusal()?)?;
    completion.tells_usage().then(|| Spent::Tokens { prompt, all: completion.tokens(prompt) })
}

/// Says what to write where a model refuses `max_tokens`.
fn hinted(error: FetchError, source: &AiSource) -> FetchError {
    match (error, source.max_tokens) {
        (FetchError::Answer(reason), Some(most)) if reason.contains("max_completion_tokens") => {
            FetchError::Answer(format!(
                "the model wants `options = {{ max_completion_tokens = {most} }}` in place of `max_tokens`: {reason}"
            ))
        }
        (error, _) => error,
    }
}

/// Returns whether the present value was made from what it would be made from now.
pub(super) fn unchanged(source: &AiSource, ask: &Ask<'_>) -> bool {
    let Some(known) = ask.known.and_then(|known| known.prompt.as_ref()) else { return false };
    request(source, ask).is_ok_and(|(_, body)| fingerprint(source, &body) == *known)
}

/// The URL and the body.
fn request(source: &AiSource, ask: &Ask<'_>) -> Result<(String, Value), String> {
    let context = context(ask.params, ask.inputs, None);
    let url = source.url.render_url(&context).map_err(|reason| format!("url: {reason}"))?;
    let mut messages = Vec::new();
    if let Some(system) = &source.system {
        let text = system.render(&context).map_err(|reason| format!("`system`: {reason}"))?;
        messages.push(json!({ "role": "system", "content": text }));
    }
    let prompt = source.prompt.render(&context).map_err(|reason| format!("`prompt`: {reason}"))?;
    if prompt.trim().is_empty() {
        return Err("`prompt`: is empty".into());
    }
    messages.push(json!({ "role": "user", "content": prompt }));
    let mut body = json!({ "model": source.model, "messages": messages });
    if let Some(temperature) = source.temperature {
        body["temperature"] = json!(temperature);
    }
    if let Some(most) = source.max_tokens {
        body["max_tokens"] = json!(most);
    }
    for (name, option) in &source.options {
        body[name] = option.clone();
    }
    Ok((url, body))
}

fn fingerprint(source: &AiSource, body: &Value) -> String {
    let format = match source.format {
        AiFormat::Text => "text",
        AiFormat::Json => "json",
    };
    format!("{:032x}", XxHash3_128::oneshot(format!("{format} {body}").as_bytes()))
}

/// The JSON stored for a text, as text and parsed.
fn stored(text: &str, format: AiFormat, answer: &Body) -> Result<(String, Value), FetchError> {
    match format {
        AiFormat::Text => {
            let value = Value::String(text.to_owned());
            Ok((value.to_string(), value))
        }
        AiFormat::Json => {
            let (json, value) = select(unfenced(text), Pointer::root())
                .map_err(|reason| answer.error(&format!("holds a text that {reason}, but `format` is json")))?;
            if value.is_null() {
                return Err(answer.error("holds null: there is nothing to store"));
            }
            Ok((json.to_owned(), value))
        }
    }
}

/// Returns the content of a Markdown fence around the whole text, else the text.
fn unfenced(text: &str) -> &str {
    let inner = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    inner.and_then(|inner| inner.split_once('\n')).map_or(text, |(language, inner)| {
        if language.trim().is_empty() || language.trim().eq_ignore_ascii_case("json") { inner } else { text }
    })
}
