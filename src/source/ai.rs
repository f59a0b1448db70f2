//! AI sources: one chat completion of an OpenAI-compatible server, and JSON out of it.
//!
//! Generating costs money. So a value carries a hash of what it was made from (model, messages, settings), and while that
//! is the same, nothing is asked ([`unchanged`]). Tokens are counted from the server's `usage`, also for answers that cannot
//! be used; a server that gives none is counted at a token for four characters.
//!
//! With format `json` the answer must be a JSON document; one Markdown fence around the whole of it is taken off, because
//! many models cannot be kept from writing one, and each answer refused for it would be paid again.

use super::exchange::{Body, Client, Received, Request, answer_error};
use super::http::select;
use super::{Answer, Ask, FetchError, Fetched, Validators, context};
use crate::job::{AiFormat, AiSource};
use jsonptr::Pointer;
use serde::Deserialize;
use serde_json::{Value, json};
use twox_hash::XxHash3_128;

/// What is read of a completion.
#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<Message>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    total_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

/// Asks an AI source once, if the value would be made from anything else than the present one. With the tokens spent,
/// whatever came of it.
pub(super) async fn fetch(client: &Client, source: &AiSource, ask: &Ask<'_>) -> (Result<Answer, FetchError>, u64) {
    let (url, body) = match request(source, ask) {
        Ok(request) => request,
        Err(reason) => return (Err(FetchError::Answer(reason)), 0),
    };
    let made_from = fingerprint(source, &body);
    if ask.known.is_some_and(|known| known.prompt.as_ref() == Some(&made_from)) {
        return (Ok(Answer::Unchanged), 0);
    }
    let request = Request { url: &url, headers: &[], body: Some(&body), known: None, deadline: ask.deadline };
    let answer = match client.exchange(request).await {
        Ok(Received::Body(answer)) => answer,
        Ok(Received::Gone) => {
            let reason = format!("has no such model or path (404 or 410): is `{}` right?", source.model);
            return (Err(answer_error(&url, &reason)), 0);
        }
        Ok(Received::Unchanged) => return (Err(answer_error(&url, "answers 304 without having been asked")), 0),
        Err(error) => return (Err(error), 0),
    };
    let completion = match answer.text().and_then(|text| {
        let (text, _) = select(text, Pointer::root()).map_err(|reason| answer.error(&reason))?;
        serde_json::from_str::<Completion>(text).map_err(|error| answer.error(&format!("is not a completion: {error}")))
    }) {
        Ok(completion) => completion,
        Err(error) => return (Err(error), 0),
    };
    let tokens = completion.tokens(&body);
    let value = completion.content(&answer, source).and_then(|text| stored(text, source.format, &answer));
    let fetched = value.map(|(json, value)| {
        let validators = Validators { prompt: Some(made_from), ..Validators::default() };
        Answer::Value(Fetched { json, parsed: Some(value), validators, tokens })
    });
    (fetched, tokens)
}

/// Whether the present value was made from what it would be made from now.
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
    Ok((url, body))
}

fn fingerprint(source: &AiSource, body: &Value) -> String {
    let format = match source.format {
        AiFormat::Text => "text",
        AiFormat::Json => "json",
    };
    format!("{:032x}", XxHash3_128::oneshot(format!("{format} {body}").as_bytes()))
}

impl Completion {
    fn tokens(&self, body: &Value) -> u64 {
        match &self.usage {
            Some(usage) => {
                usage.total_tokens.unwrap_or_else(|| usage.prompt_tokens.saturating_add(usage.completion_tokens))
            }
            None => {
                let asked = body.to_string().chars().count();
                let texts = self.choices.iter().filter_map(|choice| choice.message.as_ref()?.content.as_ref());
                let answered = texts.map(|text| text.chars().count()).sum::<usize>();
                (asked + answered).div_ceil(4) as u64
            }
        }
    }

    /// The text, if it is a whole one.
    fn content<'a>(&'a self, answer: &Body, source: &AiSource) -> Result<&'a str, FetchError> {
        let Some(choice) = self.choices.first() else { return Err(answer.error("is a completion without choices")) };
        let message = choice.message.as_ref();
        if message.and_then(|message| message.refusal.as_ref()).is_some() {
            return Err(answer.error("is the model's refusal"));
        }
        match choice.finish_reason.as_deref() {
            Some("stop") => {}
            Some("length") => {
                let most =
                    source.max_tokens.map_or("the server's limit".into(), |most| format!("`max_tokens` ({most})"));
                return Err(answer.error(&format!("was cut short at {most}: raise it, or ask for less")));
            }
            other => {
                let reason = other.unwrap_or("none");
                return Err(
                    answer.error(&format!("did not come to its end: finish_reason is {reason:?}, not \"stop\""))
                );
            }
        }
        let text = message.and_then(|message| message.content.as_deref()).unwrap_or_default().trim();
        if text.is_empty() { Err(answer.error("is a completion without text")) } else { Ok(text) }
    }
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

/// What stands in a Markdown fence, if that is all there is.
fn unfenced(text: &str) -> &str {
    let inner = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    inner.and_then(|inner| inner.split_once('\n')).map_or(text, |(language, inner)| {
        if language.trim().is_empty() || language.trim().eq_ignore_ascii_case("json") { inner } else { text }
    })
}
