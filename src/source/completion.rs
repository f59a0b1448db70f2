//! A chat completion, read field by field.
//!
//! OpenAI-compatible servers differ in every field, and an answer is paid for before it is read. A field of an
//! unexpected type or value therefore counts as absent, and the other fields are still read. The text is used if it can
//! be read, and tokens are counted as far as the server reports them. A text that was cut off, filtered or refused is
//! not used, because it would be stored as if it were complete.

use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use tracing::debug;

/// The largest plausible token count of one answer. A larger number is ignored.
const MOST_TOKENS: u64 = 1_000_000_000;
/// The part of a `finish_reason` that messages show, in characters.
const REASON_SHOWN: usize = 40;

/// Word stems in a `finish_reason` of an incomplete text. Letter case and separators are ignored, so `MAX_TOKENS`,
/// `maxTokens` and `max_output_tokens` match alike.
const CUT: &str = "length max limit trunc incomplete unfinish exceed window pause";
const TOOL: &str = "tool function";
const FILTERED: &str =
    "filter safety recit refus block prohibit spii guardrail sensitive moderat toxic policy violat malicious";
const BROKEN: &str =
    "error fail abort cancel timeout timedout insufficient interrupt overload exception disconnect malformed";

type Fields<'a> = BTreeMap<String, &'a RawValue>;

/// The fields that are read of a completion.
pub(super) struct Completion<'a> {
    usage: Fields<'a>,
    choice: Option<Fields<'a>>,
    message: Fields<'a>,
    /// The length of the answers in bytes, with everything beside the text.
    said: usize,
}

impl<'a> Completion<'a> {
    /// Reads an answer's body; returns `None` if it is not JSON.
    pub(super) fn read(body: &'a str) -> Option<Self> {
        let mut all = fields(serde_json::from_str(body).ok()?);
        let usage = all.remove("usage").or_else(|| fields(all.get("error")?).remove("usage"));
        let usage = usage.map(fields).unwrap_or_default();
        let choices: Vec<&RawValue> =
            all.remove("choices").and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        let choices: Vec<Fields<'_>> = choices.into_iter().map(fields).collect();
        let answers = choices.iter().filter_map(|choice| choice.get("message").or_else(|| choice.get("text")));
        let said = answers.map(|answer| answer.get().len()).sum();
        let choice = choices.into_iter().next();
        let message = choice.as_ref().and_then(|choice| choice.get("message")).map(|raw| fields(raw));
        Some(Self { usage, choice, message: message.unwrap_or_default(), said })
    }

    /// Returns the tokens that the answer cost; `prompt` is the estimate for the prompt.
    ///
    /// Servers report a total and its two parts; the higher sum counts. If there is no total, a part that is missing or
    /// zero is estimated.
    pub(super) fn tokens(&self, prompt: u64) -> u64 {
        let [total, asked, answered] = self.counts();
        match total {
            Some(total) => total.max(asked.unwrap_or(0) + answered.unwrap_or(0)),
            None => asked.unwrap_or(prompt) + answered.unwrap_or_else(|| estimate(self.said)),
        }
    }

    /// Returns `true` if the server reports any tokens.
    pub(super) fn tells_usage(&self) -> bool {
        self.counts().iter().any(Option::is_some)
    }

    /// Returns the tokens that the server reports: all, the prompt's, the answer's.
    fn counts(&self) -> [Option<u64>; 3] {
        [["total_tokens", "totalTokens"], ["prompt_tokens", "input_tokens"], ["completion_tokens", "output_tokens"]]
            .map(|names| names.into_iter().filter_map(|name| count(self.usage.get(name)?)).max())
    }

    /// Returns `true` if the text was cut off at its longest length.
    pub(super) fn is_cut(&self) -> bool {
        self.finish_reason().is_some_and(|reason| Finish::of(&reason) == Finish::Cut)
    }

    fn finish_reason(&self) -> Option<String> {
        whole_text(self.choice.as_ref()?.get("finish_reason")?)
    }

    /// Returns the complete text.
    ///
    /// `limit` is the requested limit of the answer, with the name of its option.
    ///
    /// # Errors
    /// A text that says what the answer is instead.
    pub(super) fn text(&self, limit: Option<(&str, u64)>) -> Result<String, String> {
        let Some(choice) = &self.choice else { return Err("is a completion without `choices`".into()) };
        if self.message.get("refusal").is_some_and(|raw| is_said(raw)) {
            return Err("is the model's refusal".into());
        }
        if choice.get("error").is_some_and(|raw| is_said(raw)) {
            return Err("has an error in place of a text".into());
        }
        if let Some(reason) = self.finish_reason() {
            check_finish(&reason, limit)?;
        }
        let content = self.message.get("content").or_else(|| choice.get("text"));
        let text = content.and_then(|raw| text_of(raw)).unwrap_or_default();
        match text.trim() {
            "" if content.is_some_and(|raw| refuses(raw)) => Err("is the model's refusal".into()),
            "" => Err("is a completion without text".into()),
            text => Ok(text.to_owned()),
        }
    }
}

/// The end of a text, as a `finish_reason` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    Whole,
    Tool,
    Filtered,
    Broken,
    Cut,
}

impl Finish {
    /// Any word that is not known for an incomplete text counts as a server's own for a complete one.
    fn of(reason: &str) -> Self {
        let word = letters(reason);
        let has = |stems: &str| stems.split(' ').any(|stem| word.contains(stem));
        match () {
            () if has(TOOL) => Self::Tool,
            () if has(FILTERED) => Self::Filtered,
            () if has(BROKEN) => Self::Broken,
            () if has(CUT) => Self::Cut,
            () => Self::Whole,
        }
    }
}

/// Returns a word's letters and digits in lower case.
fn letters(word: &str) -> String {
    word.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}

/// Returns an estimate of the tokens in a text of this length: one for four bytes. It is close for Latin script, and
/// for other scripts, whose letters have more bytes and more tokens.
pub(super) fn estimate(bytes: usize) -> u64 {
    bytes.div_ceil(4) as u64
}

/// Refuses a reason that says that the text is incomplete.
fn check_finish(reason: &str, limit: Option<(&str, u64)>) -> Result<(), String> {
    let shown: String = reason.chars().take(REASON_SHOWN).collect();
    match Finish::of(reason) {
        Finish::Tool => {
            Err(format!("calls a tool in place of a text (finish_reason {shown:?}): remove `tools` from the options"))
        }
        Finish::Filtered => Err(format!("was filtered or refused (finish_reason {shown:?})")),
        Finish::Broken => Err(format!("was not completed (finish_reason {shown:?})")),
        Finish::Cut => {
            let most = limit.map_or("the server's limit".into(), |(name, most)| format!("`{name}` ({most})"));
            Err(format!("was cut off at {most} (finish_reason {shown:?}): raise the limit, or ask for a shorter text"))
        }
        Finish::Whole => {
            let usual = ["stop", "eos", "eostoken", "end", "endturn", "stopsequence", ""];
            if !usual.contains(&letters(reason).as_str()) {
                debug!(finish_reason = shown, "unknown finish_reason; the text counts as complete");
            }
            Ok(())
        }
    }
}

/// Returns a text, or the joined texts of its parts; `None` if one of them is not a JSON string.
fn text_of(raw: &RawValue) -> Option<String> {
    match raw.get().as_bytes().first()? {
        b'[' => serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok()?.into_iter().map(part).collect(),
        _ => part(raw),
    }
}

/// Returns a part's text; empty for a part of another kind, such as reasoning.
fn part(raw: &RawValue) -> Option<String> {
    if let Some(text) = whole_text(raw) {
        return Some(text);
    }
    let part = fields(raw);
    let kind = part.get("type").and_then(|raw| whole_text(raw)).unwrap_or_default().to_ascii_lowercase();
    if !matches!(kind.as_str(), "" | "text" | "output_text") {
        return Some(String::new());
    }
    let text = part.get("text")?;
    whole_text(text).or_else(|| whole_text(fields(text).get("value")?))
}

/// Returns `true` if one of the parts is a refusal.
fn refuses(raw: &RawValue) -> bool {
    let parts: Vec<&RawValue> = serde_json::from_str(raw.get()).unwrap_or_default();
    parts.into_iter().any(|part| fields(part).get("refusal").is_some_and(|raw| is_said(raw)))
}

fn fields(raw: &RawValue) -> Fields<'_> {
    serde_json::from_str(raw.get()).unwrap_or_default()
}

fn whole_text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// Returns `true` if a field has a content; some servers send it empty.
fn is_said(raw: &RawValue) -> bool {
    !matches!(raw.get(), "null" | "false" | "\"\"" | "{}" | "[]")
}

/// Reads a count above zero. Fractions are rounded up, and the number may be a string.
fn count(raw: &RawValue) -> Option<u64> {
    let number = match serde_json::from_str(raw.get()).ok()? {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and bounded")]
    let whole = (number > 0.0 && number <= MOST_TOKENS as f64).then(|| number.ceil() as u64);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn tokens(usage: &str) -> u64 {
        let text = "x".repeat(100);
        let body = format!(r#"{{"choices":[{{"message":{{"content":"{text}"}}}}],"usage":{usage}}}"#);
        Completion::read(&body).unwrap().tokens(7)
    }

    fn text(choice: &Value) -> Result<String, String> {
        Completion::read(&json!({ "choices": [choice] }).to_string()).unwrap().text(None)
    }

    /// Returns the estimate for the answer in [`tokens`].
    fn said() -> u64 {
        estimate(json!({"content": "x".repeat(100)}).to_string().len())
    }

    #[test]
    fn usage_is_read_as_far_as_it_can_be() {
        for (usage, expected) in [
            (r#"{"total_tokens": 15}"#, 15),
            (r#"{"total_tokens": 15.0}"#, 15),
            (r#"{"total_tokens": 14.2}"#, 15),
            (r#"{"total_tokens": "15"}"#, 15),
            (r#"{"total_tokens": " 15.0 "}"#, 15),
            (r#"{"prompt_tokens": 10, "completion_tokens": 5}"#, 15),
            (r#"{"input_tokens": 10, "output_tokens": 5}"#, 15),
            (r#"{"prompt_tokens": "10", "completion_tokens": 5.0, "total_tokens": null}"#, 15),
            (r#"{"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 1}"#, 15),
            (r#"{"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 0}"#, 15),
            (r#"{"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": -3}"#, 15),
            (r#"{"prompt_tokens": null, "completion_tokens": {}, "total_tokens": 15}"#, 15),
            (r#"{"prompt_tokens": -1, "completion_tokens": 5}"#, 7 + 5),
            (r#"{"prompt_tokens": 10}"#, 10 + said()),
            (r#"{"prompt_tokens": 10, "completion_tokens": 0}"#, 10 + said()),
        ] {
            assert_eq!(tokens(usage), expected, "{usage}");
        }
    }

    #[test]
    fn usage_that_tells_nothing_is_estimated() {
        let long = "9".repeat(400);
        for usage in [
            "null",
            "{}",
            "[]",
            "3",
            "\"15\"",
            "true",
            r#"{"total_tokens": 0}"#,
            r#"{"total_tokens": -15}"#,
            r#"{"total_tokens": "many"}"#,
            r#"{"total_tokens": "NaN"}"#,
            r#"{"total_tokens": "inf"}"#,
            r#"{"total_tokens": 1e400}"#,
            r#"{"total_tokens": 18446744073709551615}"#,
            r#"{"total_tokens": [15]}"#,
            r#"{"total_tokens": {"value": 15}}"#,
            r#"{"prompt_tokens": 0, "completion_tokens": 0}"#,
            &format!(r#"{{"total_tokens": {long}}}"#),
            &format!(r#"{{"total_tokens": "{long}"}}"#),
        ] {
            assert_eq!(tokens(usage), 7 + said(), "{usage}");
        }
    }

    fn odd_count() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (0_u64..5000).prop_map(Value::from),
            (0_u64..5000).prop_map(|number| json!(number.to_string())),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            Just(json!([1])),
            Just(json!({ "a": 1 })),
        ]
    }

    proptest! {
        #[test]
        fn no_usage_hides_the_text_or_the_cost(
            total in odd_count(), asked in odd_count(), answered in odd_count(), text in "[a-z]{1,200}"
        ) {
            let usage = json!({"total_tokens": total, "prompt_tokens": asked, "completion_tokens": answered});
            let choice = json!({"message": {"content": text}, "finish_reason": "stop"});
            let body = json!({"choices": [choice], "usage": usage}).to_string();
            let completion = Completion::read(&body).unwrap();
            prop_assert_eq!(completion.text(None), Ok(text));
            let tokens = completion.tokens(7);
            prop_assert!((1..=3 * MOST_TOKENS).contains(&tokens), "{}", tokens);
            for told in [&total, &asked, &answered] {
                let told = told.as_u64().filter(|told| *told <= MOST_TOKENS).unwrap_or(0);
                prop_assert!(tokens >= told, "{} < {}", tokens, told);
            }
        }

        #[test]
        fn any_json_is_counted(body in any::<[u8; 8]>().prop_map(|bytes| json!({"choices": bytes, "usage": bytes}))) {
            let body = body.to_string();
            let completion = Completion::read(&body).unwrap();
            prop_assert!(completion.text(None).is_err());
            prop_assert_eq!(completion.tokens(7), 7);
        }
    }

    #[test]
    fn odd_fields_beside_the_text_do_not_lose_it() {
        let odd = r#"{"id": 1e999, "created": "yesterday", "x": "\ud83d", "choices": [{"index": "0", "logprobs": 1e999,
            "message": {"role": null, "content": " T\u00fc ", "tool_calls": [], "refusal": "", "name": 3}, "error": null,
            "finish_reason": {"type": "stop"}}, 7, null]}"#;
        assert_eq!(Completion::read(odd).unwrap().text(None).unwrap(), "Tü");
        for content in [
            json!("Tü"),
            json!([{"type": "text", "text": "T"}, {"type": "text", "text": "ü"}]),
            json!([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Tü"}]),
            json!([{"type": "reasoning", "text": "hm"}, {"type": "output_text", "text": "Tü", "annotations": []}]),
            json!([{"text": {"value": "Tü"}}]),
            json!(["T", "ü"]),
            json!({"type": "text", "text": "Tü"}),
        ] {
            assert_eq!(text(&json!({"message": {"content": content}})).unwrap(), "Tü", "{content}");
        }
        assert_eq!(text(&json!({"text": "Tü", "finish_reason": "stop"})).unwrap(), "Tü");
    }

    #[test]
    fn texts_that_cannot_be_read_are_refused() {
        for content in [json!(null), json!(3), json!([]), json!([3]), json!([{"type": "text"}]), json!({}), json!(" ")]
        {
            let refused = text(&json!({"message": {"content": content}})).unwrap_err();
            assert_eq!(refused, "is a completion without text", "{content}");
        }
        let refusals = [
            json!({"content": null, "refusal": "no"}),
            json!({"content": "I cannot", "refusal": true}),
            json!({"content": [{"type": "refusal", "refusal": "no"}]}),
        ];
        for message in refusals {
            assert_eq!(text(&json!({ "message": message })).unwrap_err(), "is the model's refusal", "{message}");
        }
        // Half of a surrogate pair cannot be stored as JSON.
        let half = r#"{"choices": [{"message": {"content": "a\ud83d"}}]}"#;
        assert!(Completion::read(half).unwrap().text(None).is_err());
        assert!(text(&json!({"message": {"content": "a"}, "error": {"message": "no"}})).is_err());
    }

    #[test]
    fn texts_that_came_to_their_end_are_used() {
        let reasons = "stop STOP eos eos_token EosToken end end_turn stop_sequence null finished complete COMPLETE stop_token \
                       done normal FINISH_REASON_STOP something-new";
        for reason in reasons.split_whitespace().chain(["", " "]) {
            let choice = json!({"message": {"content": "a"}, "finish_reason": reason});
            assert_eq!(text(&choice).as_deref(), Ok("a"), "{reason}");
        }
        for reason in [json!(null), json!(0), json!(["stop"]), json!({"stop": true})] {
            assert!(text(&json!({"message": {"content": "a"}, "finish_reason": reason})).is_ok());
        }
        assert!(text(&json!({"message": {"content": "a"}})).is_ok());
    }

    #[test]
    fn texts_that_are_not_whole_are_refused_by_their_reason() {
        for (kind, reasons) in [
            (
                "was cut off",
                "length Length max_tokens MAX_TOKENS maxTokens max_output_tokens max_new_tokens model_length \
                 model_context_window_exceeded token_limit truncated incomplete pause_turn",
            ),
            (
                "was filtered or refused",
                "content_filter CONTENT_FILTER contentFilter content-filter content_filtered safety SAFETY recitation \
                 RECITATION refusal BLOCKLIST PROHIBITED_CONTENT SPII guardrail_intervened sensitive ERROR_TOXIC IMAGE_SAFETY",
            ),
            ("calls a tool", "tool_calls tool_use TOOL_CALL function_call MALFORMED_FUNCTION_CALL"),
            (
                "was not completed",
                "error ERROR abort cancelled timeout insufficient_system_resource network_error failed",
            ),
        ] {
            for reason in reasons.split_whitespace() {
                let refused = text(&json!({"message": {"content": "half a"}, "finish_reason": reason})).unwrap_err();
                assert!(refused.contains(kind) && refused.contains(reason), "{refused}");
            }
        }
        let cut = json!({"choices": [{"message": {"content": "a"}, "finish_reason": "length"}]}).to_string();
        let refused = Completion::read(&cut).unwrap().text(Some(("max_completion_tokens", 9))).unwrap_err();
        assert!(refused.contains("`max_completion_tokens` (9)"), "{refused}");
    }
}
