//! Invalidation messages, as in docs/protocol.md.

use serde::{Deserialize, Serialize};

use super::inbox;
use crate::entry::Announced;

/// The most keys of a narrow message.
const NARROW: usize = 64;

/// The requested action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Fetch again; the old value is served until the new one is written.
    #[default]
    Refresh,
    /// Remove at once; the entry returns with the next warmup or demand.
    Evict,
    /// Fetch if absent.
    Warm,
}

/// An invalidation, as in docs/protocol.md.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Literal keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Globs, as Redis matches them; they match only keys of jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<String>,
    /// Tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Whole jobs, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<String>,
    /// The requested action.
    #[serde(default)]
    pub action: Action,
    /// The version that the keys must have, where their jobs tell versions.
    #[serde(default, skip_serializing_if = "Announced::is_none")]
    pub version: Announced,
    /// It was published as plain text, which is one key.
    #[serde(skip)]
    pub is_plain: bool,
}

/// The reason why a message is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Message {
    /// Reads a message: a JSON object, or else one literal key.
    ///
    /// # Errors
    /// The message is empty, too long, or an object with unknown content.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        inbox::check_size(text.len()).map_err(Malformed)?;
        if text.trim().is_empty() {
            return Err(Malformed("it is empty: name a key".to_owned()));
        }
        // A key may begin with a brace: text that is not valid JSON is a key.
        if text.trim_start().starts_with('{')
            && let Ok(object) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text)
        {
            let message: Self = serde_json::from_value(object.into()).map_err(|e| Malformed(e.to_string()))?;
            return message.checked();
        }
        Self { keys: vec![text.to_owned()], is_plain: true, ..Self::default() }.checked()
    }

    /// Reads a message from bytes.
    ///
    /// # Errors
    /// The bytes are not UTF-8, or [`Message::parse`] rejects the text.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        inbox::check_size(bytes.len()).map_err(Malformed)?;
        Self::parse(str::from_utf8(bytes).map_err(|e| Malformed(format!("it is not UTF-8: {e}")))?)
    }

    /// Returns the message as it is published.
    ///
    /// # Errors
    /// The message is too long.
    pub fn text(&self) -> Result<String, Malformed> {
        let text = serde_json::to_string(self).map_err(|e| Malformed(e.to_string()))?;
        inbox::check_size(text.len()).map_err(Malformed).map(|()| text)
    }

    /// Returns the message without duplicates, if it is valid.
    ///
    /// # Errors
    /// The message is invalid.
    pub fn checked(mut self) -> Result<Self, Malformed> {
        let Self { keys, patterns, tags, jobs, action, version, is_plain: _ } = &mut self;
        let only_keys = inbox::only_keys(*action == Action::Warm, !version.is_none()).map_err(Malformed)?;
        inbox::Lists { keys, patterns, tags, jobs }.check(only_keys).map_err(Malformed)?;
        Ok(self)
    }

    /// Returns the total length of its names, in bytes.
    pub fn bytes(&self) -> usize {
        [&self.keys, &self.patterns, &self.tags, &self.jobs].into_iter().flatten().map(String::len).sum()
    }

    /// Returns `true` if it names only tags.
    pub fn is_of_tags(&self) -> bool {
        !self.tags.is_empty() && self.keys.is_empty() && self.patterns.is_empty() && self.jobs.is_empty()
    }

    /// Returns `true` if it is plain text that begins as JSON does. If no job has such a key, it is a message that was
    /// cut off or that no program wrote as JSON. A hash tag may begin a key: `{shop}:17`.
    pub fn may_be_broken_json(&self) -> bool {
        let Some(key) = self.keys.first().filter(|_| self.is_plain) else { return false };
        let key = key.trim();
        let tagged = key.strip_prefix('{').and_then(|key| key.split_once('}'));
        let has_hash_tag = tagged.is_some_and(|(tag, rest)| !rest.is_empty() && !tag.contains(['"', '\'']));
        key.starts_with(['{', '[', '"']) && !has_hash_tag
    }

    /// Returns `true` if it names only a few keys, so that it goes before broad messages.
    pub fn is_narrow(&self) -> bool {
        self.patterns.is_empty() && self.tags.is_empty() && self.jobs.is_empty() && self.keys.len() <= NARROW
    }
}

/// The effect of an invalidation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    /// Entries of jobs that were examined.
    pub entries: u64,
    /// Of these, made due.
    pub due: u64,
    /// Values removed.
    pub removed: u64,
    /// Fetches in flight whose answers will not be written.
    pub fenced: u64,
    /// Keys and jobs that it names and that are unknown here.
    pub foreign: u64,
    /// The first of these.
    pub first_foreign: Option<String>,
    /// It is no JSON message and no key of a job, so it is dropped: see [`Message::may_be_broken_json`].
    pub is_broken: bool,
}

impl Handled {
    /// Counts a key or a job that is unknown here.
    pub(crate) fn add_foreign(&mut self, name: &str) {
        self.foreign += 1;
        self.first_foreign.get_or_insert_with(|| name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_is_one_literal_key() {
        for key in ["artwork_info:Mona Lisa", "a:[x]?*", "{not json", "{\"keys\": broken", "\"quoted\"", "[1]"] {
            let message = Message::parse(key).unwrap();
            assert_eq!(message, Message { keys: vec![key.to_owned()], is_plain: true, ..Message::default() });
        }
    }

    #[test]
    fn text_that_begins_as_json_does_may_be_a_broken_message() {
        for (text, may_be) in [
            (r#"{"keys": ["team:4401""#, true),
            ("{'keys': ['team:4401']}\n", true),
            ("{keys: [team:4401]}", true),
            (r#"["team:4401"]"#, true),
            (r#" "team:4401""#, true),
            ("team:4401", false),
            ("{shop}:17", false),
            ("{my shop}{17}", false),
            (r#"{"keys": ["team:4401"]}"#, false),
            (r#"{"keys": ["{", "a:1"]}"#, false),
            (r#"{"keys": ["{open"]}"#, false),
            (r#"{"keys": ["[1]"], "action": "evict"}"#, false),
            (r#"{"keys": ["{"], "tags": ["a"]}"#, false),
        ] {
            assert_eq!(Message::parse(text).unwrap().may_be_broken_json(), may_be, "{text}");
        }
    }

    #[test]
    fn an_object_says_more() {
        let message = Message::parse(r#" {"keys": ["a:1"], "patterns": ["a:*"], "action": "evict"}"#).unwrap();
        assert_eq!(message.action, Action::Evict);
        assert_eq!(message.patterns, ["a:*"]);
    }

    #[test]
    fn spaces_around_a_tag_do_not_count() {
        let message = Message::parse(r#"{"tags": ["film:  bo\u015fluk ", " t", "t"]}"#).unwrap();
        assert_eq!(message.tags, ["film:  boşluk", "t"], "as values have them");
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_the_reason() {
        let long = json!({"patterns": ["a:*", "a".repeat(257)]}).to_string();
        let list = |field: &str, count: usize, length: usize| {
            let names: Vec<String> = (0..count).map(|n| format!("{n:x<length$}")).collect();
            json!({field: names}).to_string()
        };
        let many = list("patterns", 65, 3);
        let [keys, tags, jobs] = [("keys", 10_001), ("tags", 1_001), ("jobs", 65)].map(|(field, n)| list(field, n, 1));
        let [key, tag, job] = [("keys", 2_049), ("tags", 513), ("jobs", 256)].map(|(field, n)| list(field, 1, n));
        let (bare, huge) = ("k".repeat(2_049), "k".repeat((1 << 20) + 1));
        for (text, reason) in [
            ("", "empty"),
            ("  ", "empty"),
            ("{}", "names nothing"),
            (r#"{"keys": "a:1"}"#, "sequence"),
            (r#"{"keys": ["a:1"], "action": "explode"}"#, "explode"),
            (r#"{"key": ["a:1"]}"#, "unknown field"),
            (r#"{"patterns": ["a:*"], "action": "warm"}"#, "keys only"),
            (r#"{"tags": [""]}"#, "tag is empty"),
            (r#"{"tags": [" "]}"#, "tag is empty"),
            (r#"{"tags": ["t"], "version": 7}"#, "`version` takes keys only"),
            (r#"{"keys": ["a:1"], "patterns": ["a:*"], "version": null}"#, "`version` takes keys only"),
            (r#"{"keys": ["a:1"], "version": "soon"}"#, "no version"),
            (r#"{"keys": ["a:1"], "version": -1}"#, "version"),
            (r#"{"keys": ["a:1"], "action": "warm", "version": 7}"#, "`warm` takes no version"),
            (long.as_str(), "257 bytes"),
            (many.as_str(), "65 patterns"),
            (keys.as_str(), "10001 keys"),
            (tags.as_str(), "1001 tags"),
            (jobs.as_str(), "65 jobs"),
            (key.as_str(), "2049 bytes"),
            (tag.as_str(), "513 bytes"),
            (job.as_str(), "256 bytes"),
            (bare.as_str(), "2049 bytes"),
            (huge.as_str(), "1048577 bytes"),
        ] {
            let Malformed(said) = Message::parse(text).unwrap_err();
            assert!(said.contains(reason), "{text}: {said}");
        }
        for (field, count, length) in
            [("patterns", 64, 256), ("keys", 10_000, 8), ("tags", 1_000, 512), ("jobs", 64, 255)]
        {
            let message = Message::parse(&list(field, count, length)).unwrap();
            assert_eq!(message.bytes(), count * length, "{field}");
        }
        assert!(Message::parse(&"k".repeat(2_048)).is_ok());
        assert!(Message::read(b"\xff").unwrap_err().to_string().contains("UTF-8"));
    }

    #[test]
    fn what_is_named_many_times_is_named_once() {
        let art = vec!["art:*"; 100_000];
        let text = json!({"keys": art[..3], "patterns": art[..3], "tags": art[..3], "jobs": art}).to_string();
        let message = Message::parse(&text).unwrap();
        let Message { keys, patterns, tags, jobs, .. } = &message;
        assert!([keys, patterns, tags, jobs].into_iter().all(|list| list == &["art:*"]), "{message:?}");
    }
}
