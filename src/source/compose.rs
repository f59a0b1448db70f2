//! Compose sources: a value made from the entry's inputs by a template, without a server.
//!
//! Nothing is sent, so no limit applies and no permit is needed. Inputs are read as JSON: an integer beyond 64 bits
//! becomes a floating-point number. A template that fails, makes null, or makes more than [`LONGEST`] bytes is a failed
//! answer.

use super::{Answer, Ask, FetchError, Fetched, context};
use crate::entry::Validators;
use crate::job::ComposeSource;

/// The longest composed value, in bytes of JSON. A single template may not make more either.
const LONGEST: usize = 8 << 20;

/// Makes the value.
pub(super) fn compose(source: &ComposeSource, ask: &Ask<'_>) -> Result<Answer, FetchError> {
    let failed = |reason: String| FetchError::Answer(format!("`value` {reason}"));
    let value = source
        .value
        .render(&context(ask.params, ask.inputs, None))
        .map_err(|reason| failed(format!("cannot be composed: {reason}")))?;
    if value.is_null() {
        return Err(failed("makes null: there is nothing to store".to_owned()));
    }
    let json = value.to_string();
    if json.len() > LONGEST {
        return Err(failed(format!("makes {} bytes of JSON; the most is {LONGEST}", json.len())));
    }
    Ok(Answer::Value(Fetched { json, parsed: Some(value), validators: Validators::default(), tokens: 0 }))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::{Map, Value, json};

    use super::*;
    use crate::job::{Jobs, Params};
    use crate::source::Sources;

    /// Composes `value`, TOML, for `page:x` with an input `art`.
    async fn composed(value: &str, art: Value) -> Result<String, String> {
        let page = format!(
            "key = \"page:{{name}}\"\n[inputs]\nart = \"art:{{name}}\"\n[source]\nkind = \"compose\"\nvalue = {value}\n"
        );
        let art_job = "key = \"art:{name}\"\n[source]\nkind = \"http\"\nurl = \"http://127.0.0.1/{{ name }}\"\n";
        let files = [("art.toml".to_owned(), art_job.to_owned()), ("page.toml".to_owned(), page)];
        let jobs = Jobs::parse(&files, Duration::from_secs(60), &|_| None).unwrap();
        let job = &jobs.jobs["page"];
        let params = Params::from([("name".to_owned(), "x".to_owned())]);
        let (key, inputs) = (job.key.write(&params).unwrap(), Map::from_iter([("art".to_owned(), art)]));
        let ask =
            Ask { job, source: 0, key: &key, params: &params, inputs: &inputs, known: None, deadline: Instant::now() };
        match Sources::new(&jobs).unwrap().fetch_with(&ask, None).await {
            (Ok(Answer::Value(fetched)), 0) => Ok(fetched.json),
            (Err(FetchError::Answer(reason)), 0) => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_sole_expression_keeps_its_type() {
        let art = json!({"title": "Kaplumbağa", "year": 1906, "tags": ["a"], "none": null});
        for (value, expected) in [
            (r#""{{ art }}""#, art.to_string()),
            (r#""{{ art.year }}""#, "1906".to_owned()),
            (r#""about {{ art.year }}""#, "\"about 1906\"".to_owned()),
            (r#"{ id = "{{ name }}", tags = "{{ art.tags }}" }"#, r#"{"id":"x","tags":["a"]}"#.to_owned()),
            (r#"["{{ art.title }}", 2, true, "{{ art.none }}"]"#, r#"["Kaplumbağa",2,true,null]"#.to_owned()),
        ] {
            assert_eq!(composed(value, art.clone()).await, Ok(expected), "{value}");
        }
    }

    /// An optional input that is gone is null.
    #[tokio::test]
    async fn a_template_goes_on_without_an_input_that_is_null() {
        for (value, expected) in [
            (r#"["{{ art }}"]"#, "[null]"),
            (r#""by {{ art.title | default('nobody') }}""#, r#""by nobody""#),
            (r#""by {{ art.title if art else 'nobody' }}""#, r#""by nobody""#),
        ] {
            assert_eq!(composed(value, Value::Null).await, Ok(expected.to_owned()), "{value}");
        }
        let reason = composed(r#""by {{ art.title }}""#, Value::Null).await.unwrap_err();
        assert!(reason.contains("`art.title` is undefined"), "{reason}");
    }

    #[tokio::test]
    async fn a_value_that_cannot_be_stored_fails_with_its_reason() {
        let long = json!({"text": "x".repeat(5 << 20), "none": null});
        for (value, reason) in [
            (r#"{ a = { b = "{{ art.lost }}" } }"#, "`value` cannot be composed: a: b: `art.lost` is undefined"),
            (r#""{{ 1e308 * 10 }}""#, "`value` cannot be composed: inf is not a JSON number"),
            (r#""{{ art.none }}""#, "`value` makes null: there is nothing to store"),
            (r#"["{{ art.text }}", "{{ art.text }}"]"#, "`value` makes 10485767 bytes of JSON; the most is 8388608"),
        ] {
            assert_eq!(composed(value, long.clone()).await, Err(reason.to_owned()), "{value}");
        }
    }
}
