//! The tags of values: rendered for a new value, and kept or rendered again for a value that stays.

use redis::RedisResult;
use serde_json::{Map, Value};

use super::Warmer;
use crate::entry::EntryKey;
use crate::job::{Job, Params, Template};
use crate::protocol::inbox::LONGEST_TAG;
use crate::source::context;
use crate::store::LastAttempt;

/// The most tags of one value.
const MOST_TAGS: usize = 100;
/// The most elements of a list that makes tags; some may be empty, or the same.
const MOST_ELEMENTS: usize = 10_000;

impl Warmer {
    /// Returns the tags of a kept value, or the reason why they cannot be rendered; `before` is its metadata. They are
    /// rendered again: an AI value is kept although the job's tags or the inputs in them may have changed, and an
    /// earlier build may have made one tag of a list.
    pub(super) async fn tags_kept(
        &self,
        job: &Job,
        key: &EntryKey,
        params: &Params,
        inputs: &Map<String, Value>,
        before: Option<&LastAttempt>,
    ) -> RedisResult<Result<Vec<String>, String>> {
        if job.tags.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let text = self.store.values(std::slice::from_ref(key)).await?.pop().flatten();
        if let Some(value) = text.and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
            return Ok(render(job, params, inputs, || value));
        }
        // The value is gone, so the commit does not keep it.
        Ok(Ok(before.map(|last_attempt| last_attempt.tags.clone()).unwrap_or_default()))
    }
}

/// Renders the tags of a value, each once; returns the reason if one cannot be rendered.
pub(super) fn render(
    job: &Job,
    params: &Params,
    inputs: &Map<String, Value>,
    value: impl FnOnce() -> Value,
) -> Result<Vec<String>, String> {
    if job.tags.is_empty() {
        return Ok(Vec::new());
    }
    let context = context(params, inputs, Some(value()));
    let mut tags = Vec::new();
    for template in &job.tags {
        let rendered = texts(template, &context).map_err(|e| format!("the tag `{}`: {e}", template.source()))?;
        for tag in rendered {
            let tag = tag.trim();
            if tag.len() > LONGEST_TAG {
                return Err(format!("the tag `{}` is longer than {LONGEST_TAG} bytes", template.source()));
            }
            if tag.is_empty() || tags.iter().any(|known| known == tag) {
                continue;
            }
            if tags.len() == MOST_TAGS {
                return Err(format!("the tag `{}`: more than {MOST_TAGS} tags for one value", template.source()));
            }
            tags.push(tag.to_owned());
        }
    }
    Ok(tags)
}

/// Returns what a tag's template makes: its text; of a single expression that is a list, each element as text. Elements
/// that are null are left out, as empty text is.
fn texts(template: &Template, context: &Value) -> Result<Vec<String>, String> {
    let items = match template.value(context) {
        Ok(Value::Array(items)) => items,
        Ok(Value::String(text)) => return Ok(vec![text]),
        Ok(_) | Err(_) => return Ok(vec![template.render(context)?]),
    };
    if items.len() > MOST_ELEMENTS {
        return Err(format!("a list of {} elements; the most are {MOST_ELEMENTS}", items.len()));
    }
    let text = |(place, item): (usize, Value)| match item {
        Value::Null => None,
        Value::String(text) => Some(Ok(text)),
        Value::Number(_) | Value::Bool(_) => Some(Ok(item.to_string())),
        Value::Array(_) | Value::Object(_) => {
            let kind = if item.is_array() { "a list" } else { "an object" };
            Some(Err(format!(
                "element {} of the list is {kind}; write a list of texts or numbers, such as \
                 `{{{{ value.items | map(attribute='id') }}}}`",
                place + 1
            )))
        }
    };
    items.into_iter().enumerate().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::job::Jobs;

    /// Returns the tags that this template makes of a value.
    fn tags(template: &str, value: Value) -> Result<Vec<String>, String> {
        let job = format!(
            "key = \"art:{{name}}\"\ntags = [{}]\n[source]\nkind = \"http\"\nurl = \"http://h/\"\n",
            json!(template)
        );
        let jobs = Jobs::parse(&[("art.toml".to_owned(), job)], Duration::from_secs(60), &|_| None).unwrap();
        let params = Params::from([("name".to_owned(), "a".to_owned())]);
        render(&jobs.jobs["art"], &params, &Map::new(), || value)
    }

    #[test]
    fn a_list_gives_a_tag_for_each_element() {
        let value = json!({"genres": ["portre", " nü ", 7, true, null, "", "portre"], "of": [{"id": 1}, {"id": 2}]});
        assert_eq!(tags("{{ value.genres }}", value.clone()).unwrap(), ["portre", "nü", "7", "true"]);
        assert_eq!(tags("{{ value.of | map(attribute='id') }}", value.clone()).unwrap(), ["1", "2"]);
        assert_eq!(tags("{{ value.genres[0] }}", value.clone()).unwrap(), ["portre"]);
        assert_eq!(tags("{{ name }}", value).unwrap(), ["a"]);
        assert_eq!(tags("{{ value.genres }}", json!({"genres": []})).unwrap(), Vec::<String>::new());
        for number in [json!(5), json!(1.5), json!(true)] {
            assert_eq!(tags("{{ value }}", number.clone()).unwrap(), [number.to_string()]);
        }
    }

    #[test]
    fn a_list_that_makes_no_tags_fails_with_its_reason() {
        let fault = |value: Value| tags("{{ value }}", value).unwrap_err();
        assert!(fault(json!(["a", ["b"]])).starts_with("the tag `{{ value }}`: element 2 of the list is a list; "));
        assert!(fault(json!([{"id": 1}])).contains("element 1 of the list is an object; "));
        assert!(fault(json!(["x".repeat(LONGEST_TAG + 1)])).contains("is longer than"));
        assert!(fault((0..=MOST_TAGS).map(|n| json!(n)).collect()).contains("more than 100 tags for one value"));
        assert_eq!(tags("{{ value }}", (0..MOST_TAGS).map(|n| json!(n)).collect()).unwrap().len(), MOST_TAGS);
        let repeated = (0..MOST_ELEMENTS).map(|n| json!(n % MOST_TAGS)).collect();
        assert_eq!(tags("{{ value }}", repeated).unwrap().len(), MOST_TAGS);
        assert!(fault((0..200_000).map(|n| json!(n.to_string())).collect()).contains("a list of 200000 elements; "));
    }
}
